"""`anomaly serve` as typed, with a real detector: scores as `anomaly score` gives them, kills, bombs, options."""

import gzip
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

import anomaly
from anomaly.manifest import list_files, write_listed
from anomaly.runs import Run
from anomaly.service.detector import OpenRunFolder, Task

from .service_running import TOKEN, httpx, running, until
from .test_cli import refused, typed
from .test_next_commands import following


def test_what_is_said_of_a_film_does_not_depend_on_those_beside_it(run: Run, films: Path, tmp_path: Path) -> None:
    detector = OpenRunFolder(run.path, device="cpu")()
    tasks = [
        Task(str(number), film, tmp_path, str(number))
        for number, film in enumerate([*sorted(films.rglob("image1.png"))[:10], Path(__file__)])
    ]
    together = detector.score(tasks)
    alone = [detector.score([task])[0] for task in tasks]
    assert [result.state for result in together] == ["scored"] * 10 + ["failed"]
    for one, other, task in zip(together, alone, tasks, strict=True):
        assert json.loads(task.result.read_text())["state"] == one.state
        assert one.notes == other.notes and one.error == other.error
        for part, same in zip(one.parts, other.parts, strict=True):
            assert part.score == pytest.approx(same.score, rel=1e-5)
            assert (part.flagged, part.out_of_domain) == (same.flagged, same.out_of_domain)
    assert together[-1].error is not None and together[-1].error.startswith("not a PNG, JPEG")


def started(words: list[str]) -> tuple[subprocess.Popen[str], list[str]]:
    """Start `anomaly serve`, and return the process and what it printed until it answered."""
    process = subprocess.Popen([sys.executable, "-m", "anomaly", "serve", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines = []
    for line in process.stdout:
        lines.append(line)
        if "/docs" in line:
            return process, lines
    raise AssertionError(f"it ended with status {process.wait()}: {lines}")


def test_the_verb_scores_as_score_does_and_survives_kills(run: Run, films: Path, tmp_path: Path) -> None:
    chosen = sorted(films.rglob("image1.png"))[:4]
    scores = [film.score for film in anomaly.load(run.path, device="cpu").score(chosen)]
    words = [str(run.path), "--port", "0", "--spool", str(tmp_path / "the spool"), "--device", "cpu"]
    process, lines = started(words)
    assert "calibration: the one of the training\n" in lines
    try:
        address = lines[-1].partition(": ")[0]
        with httpx.Client(base_url=address, timeout=60) as client:
            posted = [client.post("/films", content=film.read_bytes()).json()["films"][0] for film in chosen]
            process.kill()  # with films in the spool
        process.communicate()
        process, lines = started(words)
        address = lines[-1].partition(": ")[0]
        with httpx.Client(base_url=address, timeout=60) as client:
            ids = [film["id"] for film in posted]
            until(lambda: all(client.get(f"/films/{one}").json()["state"] == "scored" for one in ids), 60)
            told = [client.get(f"/films/{film_id}").json() for film_id in ids]
            assert [film["score"] for film in told] == pytest.approx(scores, rel=1e-5)
            bad = client.post("/films?wait=60", content=b"PK\x03\x04 a zip bomb, or not").json()["films"][0]
            assert bad["state"] == "failed" and "unpack it" in bad["error"]
        os.kill(process.pid, signal.SIGTERM)
        out = process.communicate(timeout=30)[0]
        assert process.returncode == 0 and "stopped; 0 films wait" in out
        assert following(out) == ["anomaly", "serve", *words]  # the same command, with all that it was given
    finally:
        process.kill()


def test_a_bomb_is_refused_and_takes_no_memory(tmp_path: Path, run: Run) -> None:
    """A gzip of 2 GB of zeros, a PNG and a TIFF that say they are huge: refused by their headers, by a real worker."""
    packed = gzip.compress(b"\0" * 2**24)
    head = gzip.compress(b"\0" * 128 + b"DICM" + bytes.fromhex("0200000055 4c0400 00000000".replace(" ", "")))
    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 16, 0, 0, 0, 0))
        + chunk(b"IDAT", b"")
    )
    with running(tmp_path / "spool", opens=OpenRunFolder(run.path, device="cpu")) as one:
        for content in (head + packed * 128, packed, png):
            film = one.score(content)
            assert film["state"] == "failed" and film["error"] and "died" not in film["error"], film
        assert one.client.get("/health").json()["workers_died"] == 0


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (("--host", "0.0.0.0"), "give --token-file FILE"),
        (("--host", "example.org"), "give --token-file FILE"),
        (("--token-file", "none"), "--token-file none"),
        (("--tls-key", "key.pem"), "without --tls-cert"),
        (("--tls-cert", "none.pem"), "--tls-cert none.pem"),
        (("--send-to", "PACS@127.0.0.1:4242"), "give --dicom PORT"),
        (("--dicom", "0", "--send-to", "nowhere"), "is not AET@HOST:PORT"),
        (("--dicom", "0", "--aet", "SEVENTEEN LETTERS"), "is no AE title"),
        (("--host", "0.0.0.0", "--token-file", "token", "--dicom", "0"), "give --callers"),
    ],
)
def test_options_that_do_not_serve_are_refused(
    capsys: pytest.CaptureFixture[str], run: Run, words: tuple[str, ...], reason: str
) -> None:
    Path("token").write_text(TOKEN)
    assert reason in refused(capsys, "serve", run.path, "--port", "0", *words)


def test_what_is_no_run_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for words in (("serve", "nothing"), ("watch", "nothing", tmp_path, "--out", tmp_path / "out")):
        assert "nothing is not a run folder" in refused(capsys, *words)


def test_a_port_that_is_taken_is_named(capsys: pytest.CaptureFixture[str], run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert "can't be listened on" in refused(capsys, "serve", run.path, "--port", port)


def test_what_is_unsent_is_said_at_the_end_with_the_command_that_sends_it(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pynetdicom")
    from anomaly.service.serve import Left

    monkeypatch.setattr("anomaly.service.serve.serve", lambda options, ready: Left(waiting=2, unsent=3, refused=1))
    words = ["--spool", tmp_path / "a b", "--dicom", 0, "--send-to", "PACS@127.0.0.1:104", "--keep", 5]
    status, out, _ = typed(capsys, "serve", run.path, *words)
    assert status == 0 and "2 films wait" in out and "findings on 3 films are unsent" in out
    assert "findings on 1 film were refused" in out
    assert following(out) == ["anomaly", "serve", str(run.path), *map(str, words)]


def test_a_remembered_calibration_is_named_at_the_start(run: Run, tmp_path: Path) -> None:
    place = Path(shutil.copytree(run.path, tmp_path / "run"))
    (place / "calibrations/south").mkdir(parents=True)
    shutil.copy(place / "calibration.json", place / "calibrations/south")
    list_files(place / "calibrations/south", ("calibration.json",), {})
    loaded = anomaly.load(place, device="cpu", calibration="south")
    assert loaded.calibration_name == "south" and loaded.remembered is None
    assert anomaly.load(place, device="cpu").calibration_name is None
    write_listed(place / "choices.json", '{"calibration": "south"}')
    facts = OpenRunFolder(place, device="cpu")().facts
    assert facts.calibration == "south" and "--calibration south: as chosen before" in str(facts.remembered)
