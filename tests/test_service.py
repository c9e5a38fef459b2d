"""The service over HTTP, by real sockets and a real worker process: what is asked, what is wrong, what dies."""

import errno
import logging
import os
import signal
import socket
import stat
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from pathlib import Path

import pytest

from anomaly.service.access import is_loopback, read_token
from anomaly.service.server import listen
from anomaly.service.service import Limits, Service
from anomaly.service.spool import RESERVE, Incoming
from preprocessing import InputError

from .service_detectors import OpenFake
from .service_running import TOKEN, Running, raw, running, until


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("service") / "spool") as one:
        yield one


# --- films ----------------------------------------------------------------------------------------------------------


def test_a_film_is_scored_and_kept_without_its_pixels(served: Running) -> None:
    answer = served.post("0.75", name="../../x/hand.png")
    assert answer.status_code in (200, 202)
    (film,) = answer.json()["films"]
    assert film["state"] in ("waiting", "scored") and film["name"] == "hand.png"
    until(lambda: served.client.get(f"/films/{film['id']}").json()["state"] == "scored")
    told = served.client.get(f"/films/{film['id']}").json()
    assert told["score"] == 0.75 and told["flagged"] is True and told["p_value"] == 0.25
    assert told["p_interval"] == [0.1, 0.4] and told["score_name"] == "mse" and told["threshold"] == 0.5
    folder = served.service.spool.path(film["id"])
    assert {file.name for file in folder.iterdir()} == {"submission.json", "result.json"}
    assert stat.S_IMODE(served.service.spool.folder.stat().st_mode) == 0o700
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_several_films_of_one_form_keep_their_order_and_names(served: Running) -> None:
    files = [("film", (f"{i}.png", f"0.{i}".encode())) for i in range(1, 7)]
    answer = served.client.post("/films", files=files, params={"wait": 30})
    assert answer.status_code == 200
    assert [(film["name"], film["score"]) for film in answer.json()["films"]] == [
        (f"{i}.png", i / 10) for i in range(1, 7)
    ]


def test_heatmaps_come_where_they_are_asked_for(served: Running) -> None:
    film, plain = served.score("0.5", heatmap=True), served.score("0.5")
    for suffix in ("png", "tiff", "npy"):
        got = served.client.get(f"/films/{film['id']}/heatmap.{suffix}")
        assert got.content == b"map of 0.5" and got.status_code == 200
    assert served.client.get(f"/films/{film['id']}/heatmap.png?part=2").status_code == 404
    missing = served.client.get(f"/films/{plain['id']}/heatmap.png")
    assert missing.status_code == 404 and "POST /films?heatmap=true" in missing.json()["detail"]
    archive = zipfile.ZipFile(BytesIO(served.client.get(f"/films/{film['id']}/results.zip").content))
    names = {"result.json", *(f"result_heatmap.{suffix}" for suffix in ("png", "tiff", "npy"))}
    assert set(archive.namelist()) == names


def test_a_film_that_is_none_fails_with_the_reason(served: Running) -> None:
    film = served.score("bad")
    assert film["state"] == "failed" and film["error"] == "the film: not a film" and film["score"] is None


def test_what_is_deleted_is_gone(served: Running) -> None:
    film = served.score("0.1")
    assert served.client.delete(f"/films/{film['id']}").status_code == 204
    assert served.client.get(f"/films/{film['id']}").status_code == 404
    assert served.client.delete(f"/films/{film['id']}").status_code == 404
    assert not served.service.spool.path(film["id"]).exists()


def test_a_film_deleted_in_work_goes_when_it_is_done(served: Running) -> None:
    ids = [served.post("slow").json()["films"][0]["id"] for _ in range(4)]
    until(lambda: served.service.queue.at_work(ids[-1]))
    assert served.client.delete(f"/films/{ids[-1]}").status_code == 204
    assert served.client.get(f"/films/{ids[-1]}").status_code == 404
    until(lambda: not served.service.spool.path(ids[-1]).exists())


def test_names_are_never_paths(served: Running) -> None:
    for bad in ("../../etc/passwd", "%2e%2e%2fincoming", "0" * 31, "A" * 32, "x"):
        assert served.client.get(f"/films/{bad}").status_code in (404, 422)
        assert served.client.get(f"/films/{bad}/heatmap.png").status_code in (404, 422)
    assert served.client.get(f"/films/{'0' * 32}/submission.json").status_code == 422


def test_results_go_when_their_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anomaly.service.service.TIDY_SECONDS", 0.05)
    with running(tmp_path / "spool", Limits(keep_minutes=0.005)) as one:
        film = one.score("0.3")
        until(lambda: one.client.get(f"/films/{film['id']}").status_code == 404)
        until(lambda: "expired" in {event["event"] for event in one.events()})  # logged once it is gone


# --- pages ----------------------------------------------------------------------------------------------------------


def test_pages_and_descriptions(served: Running) -> None:
    film = served.score("0.9", heatmap=True, name="<b>&.png")
    served.score("bad", name="broken.png")
    health = served.client.get("/health").json()
    assert health["status"] == "ok" and health["scored"] >= 1 and health["failed"] >= 1
    assert served.client.get("/version").json()["model"] == "fake"
    schema = served.client.get("/openapi.json").json()
    assert {"/films", "/films/{film_id}", "/health", "/worklist"} <= set(schema["paths"])
    docs = served.client.get("/").text if served.client.follow_redirects else served.client.get("/docs").text
    assert "POST /films" in docs and "http://" not in docs and "https://" not in docs
    page = served.client.get("/worklist").text
    assert "&lt;b&gt;&amp;.png" in page and "<b>&.png" not in page and "broken.png" in page and "SYNTHETIC" in page
    assert f"films/{film['id']}/heatmap.png" in page


def test_an_answer_does_not_wait_for_an_acknowledgment(served: Running) -> None:
    """Without TCP_NODELAY on the service's side, an answer's body waits 40 ms for its head to be acknowledged."""
    with listen("127.0.0.1", 0) as one:
        assert one.proto == socket.IPPROTO_TCP
    served.client.get("/health")
    seconds = []
    for _ in range(30):
        begun = time.perf_counter()
        served.client.get("/health")
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 0.03


def test_the_audit_log_has_no_names(served: Running) -> None:
    film = served.score("0.2", name="Jane_Doe_19700101.dcm")
    assert "Jane" not in served.service.audit.file.read_text()
    mine = [event for event in served.events() if event.get("id") == film["id"]]
    assert [event["event"] for event in mine] == ["received", "scored"] and mine[0]["bytes"] == 3
    assert stat.S_IMODE(served.service.audit.file.stat().st_mode) == 0o600


# --- who may ask ----------------------------------------------------------------------------------------------------


def test_beyond_the_token_there_is_health_alone(tmp_path: Path) -> None:
    with running(tmp_path / "spool", token=TOKEN) as one:
        for path in ("/films/" + "0" * 32, "/worklist", "/version", "/docs", "/openapi.json"):
            refused = one.client.get(path)
            assert refused.status_code == 401 and "Bearer" in refused.headers["www-authenticate"]
            wrong = one.client.get(path, headers={"authorization": f"Bearer {TOKEN[:-1]}x"})
            assert wrong.status_code == 401
        assert one.post("0.5").status_code == 401 and not list(one.service.spool.ids())
        assert one.client.get("/health").status_code == 200
        assert one.client.get("/version", headers={"authorization": f"bearer {TOKEN}"}).status_code == 200
        assert one.client.get("/worklist", auth=("anybody", TOKEN)).status_code == 200
        assert one.client.get("/worklist", headers={"authorization": "Basic !!"}).status_code == 401
        assert {event.get("status") for event in one.events() if event["event"] == "refused"} == {401}


def test_pages_of_other_sites_are_not_answered(served: Running) -> None:
    assert served.client.get("/health", headers={"host": "evil.example"}).status_code == 403
    assert served.client.get("/health", headers={"origin": "https://evil.example"}).status_code == 403
    for odd in ("[", "[::1", ""):
        assert served.client.get("/health", headers={"host": odd}).status_code in (400, 403)
    assert served.client.get("/health").headers["cache-control"] == "no-store"
    own = f"http://127.0.0.1:{served.port}"
    assert served.client.get("/health", headers={"origin": own}).status_code == 200


def test_a_token_is_long_and_plain(tmp_path: Path) -> None:
    file = tmp_path / "token"
    for content in ("", "short", "has a space in its middle", "ä" * 20):
        file.write_text(content)
        with pytest.raises(InputError, match="openssl rand"):
            read_token(file)
    with pytest.raises(InputError, match="No such file"):
        read_token(tmp_path / "none")
    file.write_text(f"{TOKEN}\n")
    assert read_token(file) == TOKEN
    assert not is_loopback("0.0.0.0") and not is_loopback("example.org") and is_loopback("127.8.9.1")


# --- what is wrong with a request -----------------------------------------------------------------------------------


def test_an_oversized_body_is_refused_before_it_is_read(tmp_path: Path) -> None:
    with running(tmp_path / "spool", Limits(most_bytes=1000)) as one:
        head = "POST /films HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"
        answer = raw(one.port, f"{head}Content-Length: 999999999999\r\n\r\nabc".encode())
        assert answer.startswith(b"HTTP/1.1 413") and b"--max-bytes" in answer
        chunk = b"ffff\r\n" + b"x" * 0xFFFF + b"\r\n"
        endless = raw(one.port, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunk)  # never ended
        assert endless.startswith(b"HTTP/1.1 413")
        form = one.client.post("/films", files=[("film", ("a", b"0.1")), ("film", ("b", b"x" * 1001))])
        assert form.status_code == 413
        assert not list(one.service.spool.ids()) and not list((one.service.spool.folder / "incoming").iterdir())
        assert one.service.queue.counts() == (0, 0)
        assert one.score("0.4")["score"] == 0.4


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("image/png", b""),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=b", b"no boundary here"),
        (
            "multipart/form-data; boundary=b",
            b"--b\r\nContent-Disposition: form-data; name=film; filename=a\r\n\r\nhalf",
        ),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: form-data; name=x\r\n\r\n1\r\n--b--\r\n"),
        ("multipart/form-data; boundary=b", b"--b--\r\n"),
    ],
)
def test_a_body_that_holds_no_film_is_refused_in_one_line(served: Running, kind: str, body: bytes) -> None:
    before = len(list(served.service.spool.ids()))
    answer = served.client.post("/films", content=body, headers={"content-type": kind})
    assert answer.status_code == 400 and "\n" not in answer.json()["detail"], answer.text
    assert len(list(served.service.spool.ids())) == before


def test_what_is_wrong_with_a_body_is_not_said_in_the_terminal(
    served: Running, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # as without pytest: warnings go to stderr
    kind = {"content-type": "multipart/form-data; boundary=b"}
    assert served.client.post("/films", content=b"\0" * 20, headers=kind).status_code == 400
    assert capsys.readouterr().err == ""


def test_a_client_that_goes_leaves_nothing(served: Running) -> None:
    head = b"POST /films HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 1000\r\n\r\nhalf"
    incoming, before = served.service.spool.folder / "incoming", len(list(served.service.spool.ids()))
    raw(served.port, head, shut=True)
    until(lambda: any(event.get("status") == 499 for event in served.events()))
    until(lambda: not list(incoming.iterdir()))
    assert len(list(served.service.spool.ids())) == before and served.service.queue._reserved == 0


def test_a_body_that_does_not_arrive_is_given_up(tmp_path: Path) -> None:
    with running(tmp_path / "spool", Limits(seconds=0.3)) as one:
        head = b"POST /films HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 10\r\n\r\nhalf"
        assert raw(one.port, head).startswith(b"HTTP/1.1 408")
        assert one.service.queue._reserved == 0


def test_a_full_queue_says_when_to_come_again_and_loses_nothing(tmp_path: Path) -> None:
    with running(tmp_path / "spool", Limits(queue=8)) as one, ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: one.post("slow"), range(60)))
        codes = [answer.status_code for answer in answers]
        assert set(codes) <= {200, 202, 429} and 429 in codes and len(codes) - codes.count(429) >= 8
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in answers if answer.status_code == 429)
        ids = [answer.json()["films"][0]["id"] for answer in answers if answer.status_code != 429]
        until(lambda: not one.service.unfinished(ids))
        assert all(one.client.get(f"/films/{film_id}").json()["state"] == "scored" for film_id in ids)
        form = one.client.post("/films", files=[("film", (str(i), b"slow")) for i in range(9)])
        assert form.status_code == 429 and one.service.queue.counts() == (0, 0)  # all of a form or none


def test_a_full_disk_is_said_and_what_is_there_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Incoming, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with running(tmp_path / "spool") as one:
        first = one.score("0.6")
        with monkeypatch.context() as patch:
            patch.setattr(Incoming, "write", full)
            answer = one.post("0.7")
            assert answer.status_code == 507 and answer.json()["detail"] == "the disk is full"
            patch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10}))
            answer = one.post("0.7")
            assert answer.status_code == 507 and "no room for a film of 3 B" in answer.json()["detail"]
            health = one.client.get("/health")
            assert health.status_code == 503 and "no film is taken" in health.json()["status"]
        assert not list((one.service.spool.folder / "incoming").iterdir()) and one.service.queue._reserved == 0
        assert one.client.get(f"/films/{first['id']}").json()["score"] == 0.6
        one.post("slow")  # meanwhile the others wait together
        films = [("film", ("a", b"0.25")), ("film", ("b", b"full"))]  # the worker meets a full disk, after the first
        ids = [film["id"] for film in one.client.post("/films", files=films).json()["films"]]
        until(lambda: one.client.get("/health").status_code == 503)
        assert "disk is full" in one.client.get("/health").json()["status"]
        (tmp_path / "room").touch()
        until(lambda: not one.service.unfinished(ids))
        told = [one.client.get(f"/films/{film_id}").json() for film_id in ids]
        assert [film["state"] for film in told] == ["scored", "scored"] and told[0]["score"] == 0.25
        assert one.client.get("/health").status_code == 200
        assert not list(one.service.spool.folder.glob("films/*/film"))


# --- what dies ------------------------------------------------------------------------------------------------------


def test_a_film_that_kills_is_given_up_and_its_neighbours_are_scored(tmp_path: Path) -> None:
    with running(tmp_path / "spool") as one:
        blocker = one.post("slow").json()["films"][0]["id"]  # meanwhile the others wait together
        films = [("film", (str(i), content.encode())) for i, content in enumerate(["0.1", "die", "0.2", "die-once"])]
        ids = [film["id"] for film in one.client.post("/films", files=films).json()["films"]]
        until(lambda: not one.service.unfinished([blocker, *ids]), 60)
        told = [one.client.get(f"/films/{film_id}").json() for film_id in ids]
        assert [film["state"] for film in told] == ["scored", "failed", "scored", "scored"]
        assert "2 processes died scoring it, the last by signal 9" in told[1]["error"]
        assert one.client.get("/health").json()["workers_died"] >= 2
        assert one.score("0.3")["score"] == 0.3


def test_a_film_that_takes_too_long_is_given_up(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with running(tmp_path / "spool", Limits(seconds=0.4)) as one:
        film = one.score("hang")
        assert film["state"] == "failed" and "longer than" in film["error"]
    why = "being stopped, as it took longer than 0.4 s"
    assert f"the worker died by {why}, with 1 film; another one takes over" in capsys.readouterr().err


def test_a_worker_killed_in_the_middle_costs_nothing(tmp_path: Path) -> None:
    with running(tmp_path / "spool") as one:
        ids = [one.post("slow").json()["films"][0]["id"] for _ in range(6)]
        until(lambda: one.service.queue.counts()[1] > 0)
        os.kill(one.service.worker_pids()[0], signal.SIGKILL)
        until(lambda: not one.service.unfinished(ids), 60)
        assert {one.client.get(f"/films/{film_id}").json()["state"] for film_id in ids} == {"scored"}


def test_the_spool_outlives_the_service(tmp_path: Path) -> None:
    spool = tmp_path / "spool"
    with running(spool) as one:
        done = one.score("0.6")
        films = [("film", (str(i), b"full")) for i in range(12)]  # which wait as long as the disk is full
        ids = [film["id"] for film in one.client.post("/films", files=films).json()["films"]]
        with pytest.raises(InputError, match="take another --spool"):
            Service(spool, OpenFake())
    left = [film_id for film_id in ids if not (spool / "films" / film_id / "result.json").exists()]
    assert left == ids and all((spool / "films" / film_id / "film").exists() for film_id in left)
    half = spool / "incoming" / ("0" * 32)
    half.mkdir()
    (tmp_path / "room").touch()
    with running(spool) as one:
        until(lambda: not one.service.unfinished(ids), 60)
        assert {one.client.get(f"/films/{film_id}").json()["state"] for film_id in ids} == {"scored"}
        assert one.client.get(f"/films/{done['id']}").json()["score"] == 0.6
        assert not half.exists()


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    """What is in a folder: path -> mode, content."""
    files = [folder, *folder.rglob("*")]
    return {str(path): (path.stat().st_mode, path.read_bytes() if path.is_file() else b"") for path in files}


@pytest.mark.parametrize("file", ["incoming/h0.dcm", "films/h1.dcm", "note.txt", ".hidden", "audit.jsonl"])
def test_a_folder_that_is_no_spool_is_refused_and_left_as_it_is(tmp_path: Path, file: str) -> None:
    mine = tmp_path / "mine"
    (mine / file).parent.mkdir(parents=True)
    (mine / file).write_bytes(b"film")
    mine.chmod(0o755)
    before = contents(mine)
    with pytest.raises(InputError, match="is no spool"):
        Service(mine, OpenFake())
    assert contents(mine) == before


def test_a_folder_that_can_not_be_a_spool_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="File exists"):
        Service(tmp_path / "file", OpenFake())
    newer = tmp_path / "newer"
    newer.mkdir()
    (newer / "spool.json").write_text('{"format": 1, "more": 2}')
    with pytest.raises(InputError, match="newer version"):
        Service(newer, OpenFake())


def test_a_spool_removes_nothing_but_its_own(tmp_path: Path) -> None:
    """An empty folder becomes one, also that of a volume's root; what is laid into it later stays."""
    spool = tmp_path / "spool"
    (spool / "lost+found").mkdir(parents=True)
    (spool / ".lock").touch()  # of a start that was cut off
    with running(spool, Limits(keep_minutes=0.0)):
        assert stat.S_IMODE(spool.stat().st_mode) == 0o700
    (spool / "incoming/mine.dcm").write_bytes(b"film")
    (spool / "incoming/study").mkdir()
    with running(spool):
        pass
    assert (spool / "incoming/mine.dcm").exists() and (spool / "incoming/study").exists()


def test_a_small_film_is_taken_where_the_largest_would_not_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    free = RESERVE + 1000
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": free}))
    with running(tmp_path / "spool") as one:
        assert one.score("0.5")["state"] == "scored"
        assert one.post(b"0" * 2000).status_code == 507
        assert one.client.get("/health").status_code == 200  # others fit


def test_a_film_that_no_disk_took_shows_in_health_until_one_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a quota, which no free space tells of."""
    with running(tmp_path / "spool") as one:
        incoming = one.service.receive()
        incoming._file.close()
        monkeypatch.setattr(incoming, "_file", Full())
        with pytest.raises(OSError, match="quota"):
            incoming.write(b"x")
        one.service.refuse(incoming)
        assert one.client.get("/health").status_code == 503
        one.score("0.5")
        assert one.client.get("/health").status_code == 200


class Full:
    """A file on a full disk."""

    def write(self, data: bytes) -> int:
        raise OSError(errno.EDQUOT, "quota")

    def close(self) -> None:
        pass


def test_a_run_that_is_none_is_refused_before_any_port_is_opened(tmp_path: Path) -> None:
    service = Service(tmp_path / "spool", OpenFake(tmp_path / "nothing"))
    with pytest.raises(InputError, match="is not a run folder"):
        service.start()
    service.stop()
