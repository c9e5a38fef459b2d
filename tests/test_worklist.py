"""The worklist of new films: its files, its pictures, and the page in a browser, by keyboard, at 10,000 films too."""

import csv
import json
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from anomaly.pipeline.open_run import open_run
from anomaly.pipeline.pictures import LONGEST, PictureCollector
from anomaly.pipeline.results_record import ResultsRecord
from anomaly.pipeline.scoring import score_selection
from anomaly.pipeline.selection import recorded_films
from anomaly.pipeline.worklist import write_worklist
from anomaly.reporting.heatmap import jpeg
from anomaly.reporting.worklist import ListedFilm, WorklistContext, render_worklist
from anomaly.runs import Run, read_csv

from .browser import Browser, needs_browser
from .test_cli import typed

CPU = ("--device", "cpu", "--workers", "1")


# --- the files ---


@pytest.fixture(scope="module")
def mine(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A copy of the trained run, to score new films with."""
    return Run(Path(shutil.copytree(run.path, tmp_path_factory.mktemp("worklist") / "cae")))


@pytest.fixture(scope="module")
def new(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve films without labels, some larger than a picture of them may be."""
    folder = tmp_path_factory.mktemp("new") / "today"
    folder.mkdir()
    for number, path in enumerate(sorted(films.rglob("image?.png"))[:12]):
        film = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        film = cv2.resize(film, None, fx=10, fy=10) if number == 3 else film
        cv2.imwrite(str(folder / f"film{number:02d}.png"), film)
    return folder


def test_new_films_get_a_list_a_page_and_pictures_that_belong_together(
    mine: Run, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = typed(capsys, "score", mine.path, new, *CPU)
    assert status == 0, err
    (folder,) = (mine.path / "new").glob("*-today")
    record = ResultsRecord.model_validate_json((folder / "results.json").read_bytes())
    rows = {row["film"]: row for row in read_csv(folder / "scores.csv")}
    assert [film.rank for film in record.films] == [*range(1, 13)] and {film.film for film in record.films} == {*rows}
    assert [film.score for film in record.films] == sorted((float(row["mse"]) for row in rows.values()), reverse=True)
    assert all(film.flagged == (rows[film.film]["flagged"] == "1") for film in record.films)
    assert record.notes and record.failures == [] and len(record.patients) == len({f.patient for f in record.films})
    page = (folder / "worklist.html").read_text()
    assert page.index(record.films[0].film) < page.index(record.films[-1].film)
    assert "SYNTHETIC" in page and "Not a medical device" in page and record.notes[0] in page
    named = {file for film in record.films for file in film.pictures.values()}
    assert named == {f"worklist/{path.name}" for path in (folder / "worklist").iterdir()}
    assert all(set(film.pictures) == {"thumbnail", "film", "heatmap", "reconstruction"} for film in record.films)
    assert "drawing pictures 12/12" in err and f"{folder / 'worklist.html'}: " in out


def test_pictures_have_the_original_films_shape_and_heat_where_it_was_prepared_from(
    mine: Run, new: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(capsys, "score", mine.path, new, "--out", tmp_path, *CPU)[0] == 0
    record = ResultsRecord.model_validate_json((tmp_path / "results.json").read_bytes())
    hands, heated = sorted(films.rglob("image?_hand.png")), np.zeros(2)
    for film in record.films:
        original = cv2.imread(str(new / film.film), cv2.IMREAD_GRAYSCALE)
        shown = cv2.imread(str(tmp_path / film.pictures["film"]))
        heat = cv2.imread(str(tmp_path / film.pictures["heatmap"])).astype(int)
        factor = min(1, LONGEST / max(original.shape))
        assert shown.shape[:2] == tuple(round(side * factor) for side in original.shape) == heat.shape[:2]
        hand = cv2.imread(str(hands[int(film.film[4:6])]), cv2.IMREAD_GRAYSCALE)
        hand = cv2.resize(hand, shown.shape[1::-1], interpolation=cv2.INTER_NEAREST) > 0
        colored = abs(heat - shown).max(axis=2) > 40
        heated += np.array([colored[hand].sum(), colored.sum()]) / colored.size
    assert heated[1] > 0 and heated[0] > 0.6 * heated[1]


def test_pictures_are_of_as_many_films_as_asked_for_and_older_ones_go(
    mine: Run, new: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in (12, 2, 0):
        status, out, _ = typed(capsys, "score", mine.path, new, "--pictures", count, *CPU)
        assert status == 0
        (folder,) = (mine.path / "new").glob("*-today")
        record = ResultsRecord.model_validate_json((folder / "results.json").read_bytes())
        assert [bool(film.pictures) for film in record.films] == [True] * count + [False] * (12 - count)
        assert len([*(folder / "worklist").glob("*.jpg")]) == 4 * count
        page = (folder / "worklist.html").read_text()
        assert ("highest-ranked film" in page.split("</dl>")[0]) == (count < 12)
        assert (f"with pictures of the {count} highest" in out) == (count < 12)


def test_the_same_films_land_in_the_same_folder_and_others_never_overwrite_it(
    mine: Run, new: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "today"
    other.mkdir()
    shutil.copy(new / "film00.png", other / "film00.png")
    for _ in range(2):
        for source in (new, other):
            assert typed(capsys, "score", mine.path, source, "--pictures", 0, *CPU)[0] == 0
    first, second = sorted((mine.path / "new").glob("*-today*"), key=lambda folder: len(folder.name))
    assert second.name == f"{first.name}-2"
    assert [len(read_csv(folder / "scores.csv")) for folder in (first, second)] == [12, 1]
    (other / "film00.png").write_bytes((new / "film01.png").read_bytes() + b"\0")  # another film of the same name
    assert typed(capsys, "score", mine.path, other, "--pictures", 0, *CPU)[0] == 0
    assert len([*(mine.path / "new").glob("*-today*")]) == 3


def test_the_terminal_has_at_most_twenty_lines_of_many_films_and_names_few_failures(
    mine: Run, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number, path in enumerate(sorted(films.rglob("image?.png"))[:30]):
        shutil.copy(path, folder / f"{number}.png")
    for number in range(8):
        (folder / f"bad{number}.png").write_bytes(b"no film")
    status, out, err = typed(capsys, "score", mine.path, folder, "--pictures", 0, "--out", tmp_path / "out", *CPU)
    lines = out.splitlines()
    assert status == 2 and len(lines) <= 20, out
    assert len([line for line in lines if re.match(r"\| \d+\.png", line)]) == 10
    assert "... and 20 films that score lower" in lines and lines[-1].startswith("next: anomaly heatmap ")
    assert any(line.startswith("flagged: ") and "of 30 films" in line for line in lines)
    assert err.count("left out: ") == 4 and f"5 more; {tmp_path / 'out/results.json'} lists them" in err
    assert len(json.loads((tmp_path / "out/results.json").read_text())["failures"]) == 8


def test_p_values_are_in_the_record_and_in_words_on_the_page(mine: Run, tmp_path: Path) -> None:
    opened = open_run(mine, "cpu")
    opened = replace(opened, calibration=opened.calibration.model_copy(update={"patients": 412}))
    result = score_selection(opened, recorded_films(mine, "test", None))
    first, *others = result.films
    known = replace(first, p_value=8 / 413, p_interval=(0.0069, 0.0347), q_value=0.04)
    vars(result)["films"] = [known, *(replace(film, p_value=None, p_interval=None, q_value=None) for film in others)]
    write_worklist(result, PictureCollector("mse", 0, None), tmp_path)
    record = ResultsRecord.model_validate_json((tmp_path / "results.json").read_bytes())
    (film,) = [film for film in record.films if film.film == first.id]
    assert (film.p_value, film.p_interval, film.q_value) == (known.p_value, known.p_interval, known.q_value)
    assert sum(film.p_value is not None for film in record.films) == 1
    page = (tmp_path / "worklist.html").read_text()
    assert page.count("more abnormal than 98.3 % of 412 normal patients [96.5, 99.3], q .040") == 1
    assert page.count("more abnormal than") == 1 and not (tmp_path / "worklist").exists()


def test_units_that_stand_unlike_their_only_film_are_explained(mine: Run, tmp_path: Path) -> None:
    opened = open_run(mine, "cpu")
    films = recorded_films(mine, "test", None)
    thresholds = {
        pooling: {unit: {name: 0.0 if unit == "patient" else 1e9 for name in of} for unit, of in units.items()}
        for pooling, units in opened.calibration.thresholds.items()
    }
    opened = replace(opened, calibration=opened.calibration.model_copy(update={"thresholds": thresholds}))
    result = score_selection(opened, films)
    alone = any(patient.films == 1 for patient in result.patients)
    assert ("threshold of its own (film 1e+09, study 1e+09, patient 0)" in result.flag_counts) == alone
    write_worklist(result, PictureCollector("mse", 0, None), tmp_path)
    assert result.flag_counts in (tmp_path / "worklist.html").read_text()


def test_what_a_pass_keeps_for_pictures_is_bounded_and_of_the_highest() -> None:
    rng, collector = np.random.default_rng(0), PictureCollector("mse", 5, 1.0)
    scores = rng.permutation(300).astype(float)
    maps = rng.random((300, 16, 16), np.float32)
    for start in range(0, 300, 20):
        part = slice(start, start + 20)
        predicted = SimpleNamespace(
            places=part,
            scores={"mse": scores[part]},
            maps=maps[part],
            reconstructions=None,
            smoothed_map=lambda index, start=start: maps[start + index],
        )
        collector.add(predicted)  # type: ignore[arg-type]
        assert len(collector.kept) <= 5
    assert {*collector.kept} == {*np.argsort(-scores)[:5].tolist()}


# --- the page ---

EVIL = '<script>window.ran=1</script>"\'><img src=x onerror="window.ran=1">'
FORMULA = "=cmd|' /C calc'!A0"


def listed(count: int, **films: str) -> list[ListedFilm]:
    pictures = {"thumbnail": "worklist/0.jpg", "film": "worklist/1.jpg", "heatmap": "worklist/2.jpg"}
    names = {0: EVIL, 1: FORMULA, 2: "__proto__"}
    return [
        ListedFilm(
            rank=place + 1,
            name=names.get(place, f"study{place // 3}/film{place}.png"),
            score=1.5 - place / count,
            flagged=place < 4,
            said="more abnormal than 98.3 % of 412 normal patients [96.5, 99.3]",
            whose=[f"patient {EVIL if place == 0 else place // 3} (3 films)"],
            pictures=pictures if place < 5 else {},
        )
        for place in range(count)
    ]


def written(folder: Path, count: int, id: str = "list") -> Path:
    """A worklist of as many films, the first of hostile names, pictures of five of them."""
    (folder / "worklist").mkdir()
    for number, level in enumerate((90, 120, 200)):
        grey = np.full((96, 72), level, np.uint8)
        (folder / f"worklist/{number}.jpg").write_bytes(
            jpeg(grey if number < 2 else np.stack([grey, grey, 0 * grey], 2))
        )
    context = WorklistContext(
        title=f"Worklist {EVIL}",
        id=id,
        subtitle="of a test",
        score="mse",
        threshold=1.0,
        films=listed(count),
        counts={"flagged": "4 films"},
        notes=[EVIL],
        synthetic=True,
        map_scale=0.1,
        failures=[(EVIL, "no film")],
    )
    page = folder / "worklist.html"
    page.write_text("".join(render_worklist(context)))
    return page


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("page"), 120)


def test_every_text_is_escaped(page: Path) -> None:
    text = page.read_text()
    assert "<script>window" not in text and "<img src=x" not in text and "&lt;script&gt;" in text
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)
    assert "default-src 'none'" in policy and "http:" not in policy and "script-src 'sha256-" in policy
    assert not re.findall(r'(?:src|href)="(?:https?:)?//', text)


VISIBLE = "[...document.querySelectorAll('.films li')].filter((row) => row.checkVisibility()).length"
FOCUSED = "document.activeElement.closest('li')?.querySelector('b').textContent"


@needs_browser
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True), (1200, True), (390, False)])
def test_the_list_opens_without_a_complaint(browser: Browser, page: Path, width: int, dark: bool) -> None:
    browser.open(page, width=width, dark=dark)
    assert browser.complaints() == [] and browser.js("window.ran") is None
    asked = {event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")}
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert {url for url in asked if not url.startswith("data:")} == {
        page.as_uri(),
        f"{page.parent.as_uri()}/worklist/0.jpg",
    }
    assert browser.js("document.documentElement.scrollWidth") <= width
    light = browser.js("getComputedStyle(document.body).backgroundColor")
    levels = np.array([int(level) for level in re.findall(r"\d+", light)])
    assert (levels < 50).all() if dark else (levels > 200).all()
    browser.js("document.querySelector('.films button').click()")
    browser.js("new Promise((done) => setTimeout(done, 100))")
    box = "(({left, right, top, bottom}) => [left, right, top, bottom])(view.getBoundingClientRect())"
    left, right, top, bottom = browser.js(box)
    assert left >= 0 and right <= width and top >= 0 and bottom <= 800
    assert browser.js("document.querySelector('#view-picture').naturalWidth") == 72
    assert browser.complaints() == []


@needs_browser
def test_the_list_is_gone_through_by_keyboard_alone(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.js("localStorage.clear()")
    browser.open(page)
    for key, rank in (("j", "1"), ("j", "2"), ("ArrowDown", "3"), ("k", "2"), ("ArrowUp", "1"), ("k", "1"), ("j", "2")):
        browser.press(key)
        assert browser.js(FOCUSED) == rank
    assert browser.js("getComputedStyle(document.activeElement).outlineStyle") == "solid"
    browser.press("Enter")
    assert browser.js("view.open && view.querySelector('h2').textContent") == f"2. {FORMULA}"
    shown = "document.querySelector('#view-picture').src.slice(-5)"
    assert browser.js(shown) == "2.jpg"  # the heatmap first
    browser.press("o")
    assert browser.js(shown) == "1.jpg"
    browser.press("j")
    assert browser.js("view.querySelector('h2').textContent") == "3. __proto__" and browser.js(shown) == "1.jpg"
    browser.press("f")
    browser.press("n")
    browser("Input.insertText", text="=look again")
    browser.press("Escape")
    assert browser.js("view.open")
    browser.press("Escape")
    assert not browser.js("view.open") and browser.js(FOCUSED) == "3"
    assert browser.js("document.activeElement.querySelector('.noted').textContent") == "marked: =look again"
    browser.press("/")
    browser("Input.insertText", text="study7/")
    assert browser.js(VISIBLE) == 3 and browser.js("document.querySelector('#count').textContent") == "3 of 120 films"
    browser.press("Escape")
    assert browser.js(FOCUSED) == "22"
    browser.press("Enter")
    browser.press("/")
    assert not browser.js("view.open") and browser.js("document.activeElement.id") == "filter"
    assert browser.complaints() == []
    browser.open(page)  # notes are still there
    assert browser.js("document.querySelectorAll('.marked .noted').length") == 1
    browser.js("localStorage.clear()")


@needs_browser
def test_notes_leave_as_csv_that_no_spreadsheet_takes_for_formulas(
    browser: Browser, page: Path, tmp_path: Path
) -> None:
    browser.open(page)
    browser.js("localStorage.clear()")
    browser.open(page)
    assert browser.js("document.querySelector('#export').disabled")
    browser("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    for note in ("@SUM(A1)", 'he said "no"', ""):
        browser.press("j")
        browser.press("f")
        browser.press("n")
        browser("Input.insertText", text=note)
        browser.press("Escape")
        browser.press("Escape")
    browser.js("document.querySelector('#export').click()")
    file, until = tmp_path / "notes.csv", time.monotonic() + 30
    while not file.exists() and time.monotonic() < until:
        time.sleep(0.05)
    with file.open(newline="", encoding="utf-8-sig") as lines:
        head, *rows = list(csv.reader(lines))
    assert head == ["rank", "film", "of", "mse", "flagged", "marked", "note"]
    assert [row[1] for row in rows] == [EVIL, f"'{FORMULA}", "__proto__"]
    assert [row[6] for row in rows] == ["'@SUM(A1)", 'he said "no"', ""]
    assert all(row[4:6] == ["1", "1"] for row in rows)
    browser.js("localStorage.clear()")


@needs_browser
def test_other_lists_have_other_notes(browser: Browser, page: Path, tmp_path: Path) -> None:
    browser.open(page)
    browser.js("localStorage.clear()")
    browser.press("j")
    browser.press("f")
    browser.open(written(tmp_path, 20, id="another"))
    assert browser.js("document.querySelectorAll('.marked').length") == 0
    browser.js("localStorage.clear()")


@needs_browser
def test_controls_of_the_list_have_names_and_it_reads_without_scripts(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.js("document.querySelector('.films button').click()")
    browser("Accessibility.enable")
    nodes = browser("Accessibility.getFullAXTree")["nodes"]
    for role in ("button", "radio", "dialog", "textbox", "image"):
        own = [node for node in nodes if node.get("role", {}).get("value") == role and not node.get("ignored")]
        assert own and all(node.get("name", {}).get("value") for node in own), role
    browser("Accessibility.disable")
    browser("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(page)
        assert browser.js("document.querySelectorAll('.films li').length") == 120
        assert browser.js("document.querySelector('noscript p').checkVisibility()")
        assert not browser.js("document.querySelector('.tools').checkVisibility()")
    finally:
        browser("Emulation.setScriptExecutionDisabled", value=False)


@needs_browser
def test_ten_thousand_films_open_and_load_what_is_looked_at(browser: Browser, tmp_path: Path) -> None:
    """Two seconds on an idle core; here a bound that a busy machine keeps, and what makes it so."""
    page = written(tmp_path, 10_000)
    text = page.read_text()
    for place in range(400):  # a thumbnail of its own each, to be counted
        name = f"worklist/t{place}.jpg"
        shutil.copy(tmp_path / "worklist/0.jpg", tmp_path / name)
        text = text.replace("<i></i>", f'<img src="{name}" alt="" loading="lazy" width="72" height="72">', 1)
    page.write_text(text)
    browser.open(page)
    loaded = browser.js("performance.getEntriesByType('navigation')[0].loadEventEnd")
    assert loaded < 30_000, f"{loaded} ms"
    asked = [event for event in browser.seen("Network.requestWillBeSent") if "/worklist/t" in event["request"]["url"]]
    assert 0 < len(asked) < 60
    assert browser.js("document.querySelectorAll('.films li').length") == 10_000
    browser.js("document.querySelector('#filter').value = 'film9999.png'; sift()")
    assert browser.js(VISIBLE) == 1
    assert browser.js("document.documentElement.scrollHeight") < 3000  # no room is left for those filtered out
    assert browser.complaints() == []
