"""Names of films, patients and archives: formulas, lengths, markup."""

import csv
import re
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anomaly import runs
from anomaly.formatting import FORMULA, csv_cell
from anomaly.names import LONGEST_FILE, LONGEST_PATH, fitting
from anomaly.pipeline.map_files import MapFiles, write_heatmaps
from anomaly.pipeline.open_run import open_run
from anomaly.pipeline.selection import new_films
from anomaly.runs import Run
from preprocessing.sources import open_films

from ..test_cli import typed

CPU = torch.device("cpu")
TEXTS = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=20)
FORMULAS = ("=cmd|'/c calc'!A0", "+1+1", "-2+3", "@SUM(1)", "\t=1", "\r=1", "＝1+1")


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=5))
def test_no_text_of_a_csv_file_is_a_formula_and_all_come_back(tmp_path_factory, rows):
    path = tmp_path_factory.getbasetemp() / "table.csv"
    columns = {"film": [film for film, _ in rows], "patient": [patient for _, patient in rows]}
    path.write_text(runs.to_csv(columns), newline="", encoding="utf-8")
    with path.open(newline="", encoding="utf-8") as file:
        assert not any(cell.startswith(FORMULA) for line in csv.reader(file) for cell in line)
    assert runs.read_csv(path) == [{"film": film, "patient": patient} for film, patient in rows]


def test_numbers_stay_numbers():
    assert runs.to_csv({"a": [-1.5, -2]}) == "a\n-1.5\n-2\n"


@pytest.mark.parametrize("formula", FORMULAS)
def test_known_formulas_become_texts(formula):
    assert csv_cell(formula) == f"'{formula}"


def test_films_called_like_formulas_are_scored_and_written_as_texts(
    run: Run, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = next(films.rglob("image1.png")).read_bytes()
    folder = tmp_path / "new"
    folder.mkdir()
    for name in ("=1+1.png", "-2.png", "@a.png"):
        (folder / name).write_bytes(film)
    assert typed(capsys, "score", run.path, folder, "--out", tmp_path / "out")[0] == 0
    with (tmp_path / "out" / "scores.csv").open(newline="") as file:
        names = [line[0] for line in csv.reader(file)][1:]
    assert sorted(names) == ["'-2.png", "'=1+1.png", "'@a.png"]


@given(st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0/"), min_size=1), st.integers(1, 4))
def test_any_name_fits(text, depth):
    path = "/".join([text * 40] * depth * 10)
    cut = fitting(path)
    assert all(len(name.encode()) <= LONGEST_FILE for name in cut.split("/"))
    assert len(cut.encode()) <= LONGEST_PATH


def test_names_that_differ_at_their_end_alone_stay_apart():
    names = [fitting("x" * 300 + end + "_heatmap.png") for end in ("a", "b")]
    assert names[0] != names[1] and all(name.endswith(".png") for name in names)
    assert fitting("x" * 243 + "_heatmap.png") == "x" * 243 + "_heatmap.png"


def test_films_of_long_names_get_heatmaps_and_so_do_those_after_them(run: Run, films: Path, tmp_path: Path) -> None:
    film = next(films.rglob("image1.png")).read_bytes()
    (tmp_path / ("a" * 251 + ".png")).write_bytes(film)
    with zipfile.ZipFile(tmp_path / "films.zip", "w") as archive:
        archive.writestr("b" * 500 + "/" + "c" * 900 + ".png", film)
        archive.writestr("z.png", film)
    opened = open_run(run, CPU)
    paths = [tmp_path / ("a" * 251 + ".png"), tmp_path / "films.zip"]
    for source in map(open_films, ([path] for path in paths)):
        with new_films(run, source) as selection:
            written = write_heatmaps(opened, selection, MapFiles(tmp_path / "maps", ("npy", "png")))
            assert len(written) == len(selection.films) and all(path.is_file() for path in written)
            assert np.load(written[0]).ndim == 2


PAGES = ("auto.html", "bench.html", "report.html", "service.html", "worklist.html", "wrong.html")


def test_every_page_has_a_content_security_policy() -> None:
    templates = Path(runs.__file__).parent / "reporting" / "templates"
    whole = {path.name for path in templates.glob("*.html") if "{% extends" in path.read_text()}
    assert whole == set(PAGES), "a page that is not built on base.html"
    base = (templates / "base.html").read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', base)
    assert policy and policy[1].startswith("default-src 'none'; ") and "form-action 'none'" in policy[1]
    assert base.index("Content-Security-Policy") < base.index("<style"), "what stands before it is not bound by it"
