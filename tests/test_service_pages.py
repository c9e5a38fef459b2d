"""What a service shows and refuses: films by name, one list a detector, errors of one line."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydicom import dcmread, dcmwrite

from anomaly.runs import to_json, write_atomic
from anomaly.service.identity import FILE, Identity, read_identity, write_identity

from .browser import Browser, needs_browser
from .film_files import dicom, ramp
from .service_running import Running, running


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running(tmp_path_factory.mktemp("pages") / "spool") as one:
        yield one


def test_every_refusal_is_one_line_and_in_the_description(served: Running) -> None:
    film = served.score("0.5")["id"]
    asked = {
        "/films?heatmaps=true": "no option 'heatmaps'; did you mean 'heatmap'?; there are: name, heatmap, dicom, wait",
        "/films?wait=long": "wait: input should be a valid number, unable to parse string as a number, not 'long'",
        "/films?wait=1e9": "wait: input should be less than or equal to 300, not '1e9'",
    }
    before = len(list(served.service.spool.ids()))
    for path, reason in asked.items():
        answer = served.client.post(path, content=b"0.5")
        assert (answer.status_code, answer.json()) == (422, {"detail": reason})
    assert len(list(served.service.spool.ids())) == before
    for path, status in ((f"/films/{film}/x.png", 422), (f"/films/{film}?heatmap=true", 422), ("/nowhere", 404)):
        answer = served.client.get(path)
        assert answer.status_code == status and isinstance(answer.json()["detail"], str), answer.text
    assert served.client.get("/health?at=1").status_code == 200  # a monitor's
    paths = served.client.get("/openapi.json").json()["paths"]
    for methods in paths.values():
        for told in methods.values():
            assert {"401", "403"} <= set(told["responses"])
    assert {"404", "409", "422"} <= set(paths["/films/{film_id}/{file}"]["get"]["responses"])
    assert "HTTPValidationError" not in served.client.get("/openapi.json").text
    assert "409 The film is not scored yet" in served.client.get("/docs").text


def test_what_is_missing_of_a_film_is_said_by_its_reason(served: Running) -> None:
    drawn, plain = served.score("0.5", heatmap=True)["id"], served.score("0.5")["id"]

    def detail(path: str) -> str:
        answer = served.client.get(path)
        assert answer.status_code == 404
        return str(answer.json()["detail"])

    assert "no part 2 of this film" in detail(f"/films/{drawn}/heatmap.png?part=2")
    assert "POST /films?heatmap=true" in detail(f"/films/{plain}/heatmap.png")
    assert "POST /films?dicom=true" in detail(f"/films/{drawn}/seg.dcm")
    failed = served.score("bad", heatmap=True)["id"]
    assert "could not be scored: the film: not a film" in detail(f"/films/{failed}/heatmap.png")
    waiting = served.post("slow").json()["films"][0]["id"]
    if served.client.get(f"/films/{waiting}").json()["state"] == "waiting":
        assert served.client.get(f"/films/{waiting}/results.zip").status_code == 409


def test_films_are_listed_by_their_state(served: Running) -> None:
    good, bad = served.score("0.25")["id"], served.score("bad")["id"]
    listed = [film["id"] for film in served.client.get("/films").json()["films"]]
    assert listed[:2] == [bad, good]
    for state, film, other in (("scored", good, bad), ("failed", bad, good)):
        found = served.client.get(f"/films?state={state}").json()["films"]
        assert {one["state"] for one in found} == {state}
        assert film in (ids := [one["id"] for one in found]) and other not in ids
    assert len(served.client.get("/films?most=1").json()["films"]) == 1
    refused = served.client.get("/films?state=lost")
    assert refused.status_code == 422 and "'waiting', 'scored' or 'failed'" in refused.json()["detail"]


HEADER = {
    "PatientID": "4711",
    "PatientName": "Doe^Jane",
    "StudyDate": "20261126",
    "AccessionNumber": "A-17",
    "StudyDescription": "Hand",
}


def test_the_header_says_whose_a_film_is(tmp_path: Path) -> None:
    dataset = dcmread(io.BytesIO(dicom(ramp(12))))
    for name, value in HEADER.items():
        setattr(dataset, name, value)
    dcmwrite(tmp_path / "film", dataset, enforce_file_format=True)
    write_identity(tmp_path / "film", tmp_path, whole=False)
    assert read_identity(tmp_path).lines() == ["patient Doe Jane (4711)", "study of 2026-11-26: Hand", "accession A-17"]
    (tmp_path / FILE).unlink()
    (tmp_path / "film").write_bytes(b"no DICOM")
    write_identity(tmp_path / "film", tmp_path, whole=True)
    assert read_identity(tmp_path) == Identity() and not (tmp_path / FILE).exists()


def named(served: Running, film_id: str) -> None:
    identity = Identity(patient_id="4711", patient_name="Doe <b>Jane", study_date="2026-11-26", accession_number="A-17")
    write_atomic(served.service.spool.path(film_id) / FILE, to_json(identity.model_dump(mode="json")))


def test_rows_say_whose_and_when_on_the_page_alone(served: Running) -> None:
    first, second = (served.score("0.9", name="1.2.3") for _ in range(2))
    named(served, first["id"])
    page = served.client.get("/worklist").text
    assert "patient Doe &lt;b&gt;Jane (4711) · study of 2026-11-26 · accession A-17 · received 20" in page
    assert page.count(f'data-id="{first["id"]}"') == page.count(f'data-id="{second["id"]}"') == 1
    for path in (f"/films/{first['id']}", f"/films/{first['id']}/results.zip", "/health"):
        assert b"4711" not in served.client.get(path).content
    assert "4711" not in served.service.audit.file.read_text()


def test_each_detector_has_its_own_list(tmp_path: Path) -> None:
    with running(tmp_path / "spool") as one:
        mine, other = one.score("0.6", name="mine.png"), one.score("0.7", name="other.png")
        result = one.service.result(other["id"])
        changed = result.model_copy(update={"detector": "f" * 64, "run": "limb", "threshold": 0.25})
        write_atomic(one.service.spool.path(other["id"]) / "result.json", to_json(changed.model_dump(mode="json")))
        page = one.client.get("/worklist").text
        assert mine["id"] in page and other["id"] not in page and "scored by fake of run (01234567)" in page
        assert f'href="worklist?detector={"f" * 16}">1 film scored by fake of limb (ffffffff)' in page
        theirs = one.client.get(f"/worklist?detector={'f' * 16}").text
        assert mine["id"] not in theirs and other["id"] in theirs and "from 0.25" in theirs
        assert 'href="worklist">1 film scored by fake of run' in theirs
        assert one.client.get("/worklist?detector=nothing").status_code == 404


@needs_browser
def test_the_large_view_shows_a_heatmap_without_a_film_and_notes_are_of_one_film(
    tmp_path: Path, browser: Browser, served: Running
) -> None:
    served.score("0.99", heatmap=True, name="same.dcm")
    served.score("0.99", heatmap=True, name="same.dcm")
    page = tmp_path / "worklist.html"
    page.write_text(served.client.get("/worklist").text)
    browser.open(page)
    browser.js("localStorage.clear()")
    browser.open(page)
    browser.press("Enter")
    assert browser.js("view.open && view.querySelector('h2').textContent") == "1. same.dcm"
    assert browser.js("find('view-picture').src").endswith("/heatmap.png")
    assert browser.js("find('view-none').hidden && find('view-picture').parentElement.checkVisibility()")
    browser.press("f")
    browser.press("Escape")
    browser.open(page)
    assert browser.js("document.querySelectorAll('.marked').length") == 1
    browser.js("localStorage.clear()")
