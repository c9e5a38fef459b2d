"""Films chosen by what is known of them, figures by it, and what is said where the patients are not known."""

import csv
import io
import json
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly.cli.app import main
from anomaly.runs import Run, read_csv
from preprocessing import InputError
from preprocessing.cache.reader import Cache
from preprocessing.where import chosen

REGIONS = ("hand", "wrist", "leg")


def typed(*arguments: object) -> tuple[int, str, str]:
    """Run `anomaly ARGUMENTS` in this process: status, stdout, stderr."""
    out, err = io.StringIO(), io.StringIO()
    with mock.patch.object(sys, "argv", ["anomaly", *map(str, arguments)]), redirect_stdout(out), redirect_stderr(err):
        try:
            main()
            status = 0
        except SystemExit as stop:
            status = int(stop.code or 0)
    return status, out.getvalue(), err.getvalue()


def write_film(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    levels = np.random.default_rng(seed).integers(0, 200, (48, 48)).astype(np.uint8)
    levels[12:36, 12:36] += np.uint8(40)
    cv2.imwrite(str(path), levels)


def write_manifest(folder: Path, films: int, *, columns: Sequence[str] = ("patient", "region")) -> Path:
    """Write films of 2 a patient, every third patient abnormal, in three regions, and a manifest with these columns."""
    lines = []
    for film in range(films):
        write_film(folder / f"f{film}.png", film)
        patient = film // 2
        values = {"patient": f"p{patient}", "region": REGIONS[patient % 3], "sex": "FM"[patient % 2]}
        label = int(patient % 4 == 3)
        lines.append({"path": f"f{film}.png", "label": label} | {name: values[name] for name in columns})
    with (folder / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(lines[0]))
        writer.writeheader()
        writer.writerows(lines)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A cache of 96 films, and the run of a detector that needs no training."""
    folder = tmp_path_factory.mktemp("where")
    films = write_manifest(folder / "films", 96, columns=("patient", "region", "sex"))
    cache, run = folder / "c.h5", folder / "run"
    status, _, err = typed("preprocess", films, "--recipe", "plain", "--size", "32", "--workers", "1", "--out", cache)
    assert status == 0, err
    assert typed("train", "contrast_density", "--cache", cache, "--out", run)[0] == 0
    return cache, run


@given(st.lists(st.sampled_from(["Hand", "leg", ""]), min_size=1, max_size=8))
def test_a_condition_chooses_the_films_with_one_of_its_values(regions: list[str]) -> None:
    columns = {"region": regions}
    for wanted in (["hand"], ["HAND", "leg"], [""]):
        expected = [region.casefold() in {w.casefold() for w in wanted} for region in regions]
        if not {w.casefold() for w in wanted} <= {region.casefold() for region in regions}:
            with pytest.raises(InputError, match="there are"):
                chosen([f"region={','.join(wanted)}"], columns, len(regions))
        else:
            assert chosen([f"Region={','.join(wanted)}"], columns, len(regions)).tolist() == expected


@pytest.mark.parametrize(
    ("condition", "message"),
    [
        ("region", "write column=value; there are: region"),
        ("regoin=hand", "no column 'regoin'; there are: region"),
        ("region=foot", r"no film has region 'foot'; there are: hand \(2\), leg \(1\)"),
    ],
)
def test_wrong_conditions_name_what_there_is(condition: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        chosen([condition], {"region": ["hand", "hand", "leg"]}, 3)


def test_preprocess_keeps_every_column_and_takes_the_films_asked_for(tmp_path: Path) -> None:
    films = write_manifest(tmp_path / "films", 24)
    arguments = ("preprocess", films, "--recipe", "plain", "--size", "32", "--workers", "1")
    assert (
        typed(*arguments, "--where", "region=hand,leg", "--where", "label=normal", "--out", tmp_path / "c.h5")[0] == 0
    )
    cache = Cache(tmp_path / "c.h5")
    assert set(cache.column("region")) == {"hand", "leg"} and set(cache.column("label")) == {"normal"}
    assert "--where region=hand,leg --where label=normal" in cache.command
    status, _, err = typed(*arguments, "--where", "view=ap", "--out", tmp_path / "d.h5")
    assert status == 2 and "no column 'view'; there are" in err and not (tmp_path / "d.h5").exists()


def test_a_run_knows_the_films_that_it_was_asked_to_train_on_alone(trained: tuple[Path, Path], tmp_path: Path) -> None:
    cache, run = Cache(trained[0]), tmp_path / "run"
    where = ("--where", "region=hand,wrist")
    assert typed("train", "contrast_density", "--cache", cache.path, *where, "--out", run)[0] == 0
    assert Run(run).config.where == ["region=hand,wrist"]
    assert typed("score", run, "--split", "all", "--out", tmp_path / "all")[0] == 0
    scored = {line["film"] for line in read_csv(tmp_path / "all" / "scores.csv")}
    assert scored == set(cache.names[cache.where(["region=hand,wrist"])])
    status, _, err = typed("score", run, "--split", "all", "--where", "sex=F", "--out", tmp_path / "f")
    assert status == 0, err
    women = {line["film"] for line in read_csv(tmp_path / "f" / "scores.csv")}
    assert women == set(cache.names[cache.where(["sex=F", "region=hand,wrist"])])


def test_figures_by_a_column_are_those_of_its_films_alone(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run = trained[1]
    status, out, _ = typed("score", run, "--by-column", "region", "--out", tmp_path / "scored")
    assert status == 0 and "by region" in out
    figures = json.loads((tmp_path / "scored" / "metrics.json").read_text())["columns"]["region"]
    assert set(figures) == set(REGIONS)
    for region, scores in figures.items():
        typed("score", run, "--where", f"region={region}", "--out", tmp_path / region)
        alone = json.loads((tmp_path / region / "metrics.json").read_text())["film"]
        for name, values in scores.items():
            assert values["roc_auc"] == alone[name]["roc_auc"] and values["n"] == alone[name]["n"]
    assert "By region" in (tmp_path / "scored" / "report.html").read_text()
    status, _, err = typed("score", run, "--by-column", "regoin", "--out", tmp_path / "wrong")
    assert status == 2 and "no column 'regoin'" in err


def test_it_is_said_where_patients_are_not_known_and_only_there(trained: tuple[Path, Path], tmp_path: Path) -> None:
    unknown = "patients unknown: each film counts as one; intervals are too narrow if films share a patient"
    cache, run = tmp_path / "c.h5", tmp_path / "run"
    films = write_manifest(tmp_path / "films", 48, columns=("region",))
    _, out, err = typed("preprocess", films, "--recipe", "plain", "--size", "32", "--workers", "1", "--out", cache)
    assert unknown in err
    assert typed("train", "contrast_density", "--cache", cache, "--out", run)[0] == 0
    for folder, known in ((run, False), (trained[1], True)):
        inspected = typed("inspect", cache if not known else trained[0])[1]
        _, out, _ = typed("score", folder, "--out", tmp_path / folder.name)
        page = (tmp_path / folder.name / "report.html").read_text()
        for text in (inspected, out, page):
            assert (unknown in text) is not known
        assert ("No patient is in two splits" in page) is known
    grid = ("bench", "--cache", cache, "--models", "contrast_density", "--variants", "full-he", "--table")
    assert unknown in " ".join(typed(*grid, "--out", tmp_path / "bench")[1].split())


def test_films_that_are_there_twice_or_show_nothing_are_named(tmp_path: Path) -> None:
    for split, seed in (("train", 1), ("test", 2)):
        for label in ("normal", "abnormal"):
            write_film(tmp_path / "films" / split / label / "a.png", seed + 10 * (label == "abnormal"))
    write_film(tmp_path / "films" / "test" / "normal" / "again.png", 1)
    write_film(tmp_path / "films" / "test" / "abnormal" / "other.png", 2)
    cv2.imwrite(str(tmp_path / "films" / "train" / "normal" / "black.png"), np.zeros((48, 48), np.uint8))
    arguments = ("--recipe", "plain", "--size", "32", "--workers", "1", "--out", tmp_path / "c.h5")
    _, _, err = typed("preprocess", tmp_path / "films", *arguments)
    assert "2 films there a second time, byte for byte" in err
    assert "1 film with two splits (test/normal/again.png = train/normal/a.png; the first: test, train)" in err
    assert "1 film with two labels (test/abnormal/other.png = test/normal/a.png; the first: abnormal, normal)" in err
    assert "1 film of one gray level throughout, black or white (train/normal/black.png)" in err


def test_labelled_films_of_another_place_get_every_figure(trained: tuple[Path, Path], tmp_path: Path) -> None:
    for label, seeds in (("normal", range(200, 206)), ("abnormal", range(300, 304))):
        for seed in seeds:
            write_film(tmp_path / "other" / label / f"{seed}.png", seed)
    status, out, _ = typed("score", trained[1], tmp_path / "other", "--out", tmp_path / "scored")
    assert status == 0 and all(f"by {unit}" in out for unit in ("film", "study", "patient"))
    lines = read_csv(tmp_path / "scored" / "scores.csv")
    assert [line["label"] for line in lines] == ["abnormal"] * 4 + ["normal"] * 6
    figures = json.loads((tmp_path / "scored" / "metrics.json").read_text())["film"]
    assert next(iter(figures.values()))["n_abnormal"] == 4
    assert (tmp_path / "scored" / "report.html").is_file()


def test_each_set_of_new_films_has_a_folder_of_its_own(trained: tuple[Path, Path], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert typed("train", "contrast_density", "--cache", trained[0], "--out", run)[0] == 0
    for name in ("a", "b"):
        write_film(tmp_path / f"{name}.png", ord(name))
        for _ in range(2):  # the same films again: the same folder
            assert typed("score", run, tmp_path / f"{name}.png")[0] == 0
        assert typed("heatmap", run, tmp_path / f"{name}.png", "--formats", "png")[0] == 0
    folders = sorted((run / "new").iterdir())
    assert len(folders) == 2
    for folder in folders:
        films = [line["film"] for line in read_csv(folder / "scores.csv")]
        maps = [path.name for path in (folder / "maps").iterdir()]
        assert len(films) == 1 and maps == [f"{films[0]}_heatmap.png"]
