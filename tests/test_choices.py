"""How films are flagged, as typed, and what a run remembers of it."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import anomaly
from anomaly.evaluation.calibration import Calibration, FlagRule, read_calibration
from anomaly.evaluation.conformal import benjamini_hochberg
from anomaly.pipeline import choices
from anomaly.pipeline.choices import ABNORMAL, Choices, choices_of, read_choices
from anomaly.pipeline.open_run import open_run
from anomaly.pipeline.selection import Selection, recorded_films
from anomaly.runs import OLDEST, Run, read_csv
from anomaly.sealed import unsealed
from preprocessing import InputError

from .test_cli import refused, typed

Capture = pytest.CaptureFixture[str]
UNITS = {"film": "scores.csv", "study": "studies.csv", "patient": "patients.csv"}


@pytest.fixture
def mine(run: Run, tmp_path: Path) -> Path:
    """A run of its own, of 4 normal and 4 abnormal validation patients."""
    shutil.copytree(run.path, tmp_path / "mine")
    return tmp_path / "mine"


ALL = ("--split", "all")  # films of the training among them: scores and flags, but no figures, which take longer


def score(capsys: Capture, *words: object) -> tuple[str, str]:
    status, out, err = typed(capsys, "score", *words, "--device", "cpu")
    assert status == 0, err
    return out, err


def columns(folder: Path, unit: str, *names: str) -> list[np.ndarray[Any, Any]]:
    rows = read_csv(folder / UNITS[unit])
    return [np.array([float(row[name]) for row in rows]) for name in names]


# --- how films are flagged ---


def test_every_film_study_and_patient_has_a_p_value_and_its_interval(capsys: Capture, mine: Path) -> None:
    out, _ = score(capsys, mine)
    assert "thresholds and p-values rest on 4 normal patients, fewer than 20" in out
    assert (
        "flags p <= .2: expect at most 20.0 % [0.0, 60.2] of normal films (4 normal patients); smallest p .2 (1/5)"
        in out
    )
    for unit in UNITS:
        scores, p, low, high, flagged = columns(mine, unit, "mse", "p_value", "p_low", "p_high", "flagged")
        order = np.argsort(scores)
        assert (np.diff(p[order]) <= 0).all() and p.min() >= 0.2 and p.max() <= 1
        np.testing.assert_array_equal(flagged, p <= 0.2)
        weight = 5 * p - 1
        assert (low <= weight / 4 + 1e-9).all() and (weight / 4 <= high + 1e-9).all()
    assert "q_value" not in read_csv(mine / "scores.csv")[0]


def test_a_false_alarm_rate_flags_p_values_up_to_it(capsys: Capture, mine: Path) -> None:
    out, _ = score(capsys, mine, "--false-alarms", 0.4)
    assert "flags p <= .4: expect " in out
    for unit in UNITS:
        p, flagged = columns(mine, unit, "p_value", "flagged")
        np.testing.assert_array_equal(flagged, p <= 0.4)
    figures = json.loads((mine / "metrics.json").read_text())
    assert figures["film"]["mse"]["threshold"]["n_flagged"] == columns(mine, "film", "flagged")[0].sum()
    assert "--false-alarms 0.4" in figures["command"]
    assert "at or above the threshold of p &lt;= .4 among normal films" in (mine / "report.html").read_text()


def test_a_sensitivity_is_that_of_abnormal_validation_films(capsys: Capture, mine: Path) -> None:
    out, _ = score(capsys, mine, "--sensitivity", 0.6, "--split", "val")
    assert "of abnormal films (4 abnormal validation patients), and " in out
    rows = [row for row in read_csv(mine / "val/patients.csv") if row["label"] == "abnormal"]
    flagged = [row["flagged"] == "1" for row in sorted(rows, key=lambda row: float(row["mse"]))]
    assert len(flagged) == 4 and sum(flagged) == 3  # at most .4 x 5 - 1 are missed
    kept = json.loads((mine / ABNORMAL).read_text())
    assert set(kept["films"]["scores"]) >= {"mse", "mean_grey"}
    # Kept scores serve as long as they are of this calibration.
    kept["films"]["scores"]["mse"] = [9.0 for _ in kept["films"]["patient"]]
    (mine / "manifest.json").unlink()
    (mine / ABNORMAL).write_text(json.dumps(kept))
    score(capsys, mine, *ALL)
    assert not columns(mine / "all", "film", "flagged")[0].any()
    kept["calibration_sha256"] = "0"
    (mine / ABNORMAL).write_text(json.dumps(kept))
    score(capsys, mine, *ALL)
    assert columns(mine / "all", "film", "flagged")[0].any()


def test_a_threshold_is_taken_as_given(capsys: Capture, mine: Path) -> None:
    score(capsys, mine, *ALL)
    threshold = float(np.median(columns(mine / "all", "film", "mse")[0]))
    out, _ = score(capsys, mine, "--threshold", threshold)
    assert f"flagged from {threshold:.6g}, as given: " in out and "of normal films (4 normal patients) reach it" in out
    flagged, scores = columns(mine, "film", "flagged", "mse")
    np.testing.assert_array_equal(flagged, scores >= threshold)


def test_a_false_discovery_rate_flags_by_q_values_of_the_list(capsys: Capture, mine: Path) -> None:
    out, _ = score(capsys, mine, "--fdr", 0.7)
    assert "flags q <= .7 among the films scored together" in out
    for unit in UNITS:
        p, q, flagged = columns(mine, unit, "p_value", "q_value", "flagged")
        assert q == pytest.approx(benjamini_hochberg(p))
        np.testing.assert_array_equal(flagged, q <= 0.7)
    score(capsys, mine, "--fdr", 0.01, *ALL)
    assert not columns(mine / "all", "film", "flagged")[0].any()
    films = len(read_csv(mine / "scores.csv"))
    least = math.ceil(films * 0.2 / 0.7)
    assert f"q <= .7 takes at least {least} of {films} films that score above all 4 normal patients" in out
    assert read_choices(Run(mine)).rule is None  # it is about one list


def test_new_films_are_listed_with_their_p_values(capsys: Capture, mine: Path, films: Path) -> None:
    names = sorted(films.rglob("image1.png"))[:3]
    out, _ = score(capsys, mine, *names)
    assert "| film " in out and " p | " in out and "flags p <= .2: expect" in out
    result = anomaly.load(mine, device="cpu").score(names[0])
    (film,) = result
    assert film.p_value is not None and f"{film.p_value:.3f}".removeprefix("0") in out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--false-alarms", 0.1, "--threshold", 3], "--false-alarms and --threshold exclude each other"),
        (["--sensitivity", 0.5, "--fdr", 0.1], "--sensitivity and --fdr exclude each other"),
        (["--false-alarms", 1.5], "--false-alarms is 1.5; give a share between 0 and 1"),
        (["--fdr", 0], "--fdr is 0; give a share between 0 and 1"),
        (["--threshold", "nan"], "--threshold is nan; give a value of the score"),
        (["--false-alarms", 0.1], "rate of .1 can't be told from 4 normal patients: take .2 (1/5) or more"),
        (
            ["--sensitivity", 0.9],
            "sensitivity of .9 can't be told from 4 abnormal validation patients: take .8 or less",
        ),
        (["--aggregate", "median"], "no aggregate 'median'; there are: max, mean"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(capsys: Capture, mine: Path, words: list[object], message: str) -> None:
    (mine / "scores.csv").unlink(missing_ok=True)  # which other tests leave in the run that this one is a copy of
    assert message in refused(capsys, "score", mine, *words, "--device", "cpu")
    assert not (mine / "choices.json").exists() and not (mine / "scores.csv").exists()


def test_normals_alone_give_no_sensitivity(capsys: Capture, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def normals(*where: Any) -> Selection:
        selection = recorded_films(*where)
        return replace(selection, films=selection.films.subset(np.flatnonzero(selection.films.label == 0)))

    monkeypatch.setattr(choices, "recorded_films", normals)
    message = refused(capsys, "score", mine, "--sensitivity", 0.5, "--device", "cpu")
    assert "has no abnormal validation films to find a sensitivity on; use --false-alarms" in message


# --- what is remembered ---


def test_what_was_chosen_is_remembered_and_said(capsys: Capture, mine: Path) -> None:
    score(capsys, mine, "--by", "atypicality", "--aggregate", "max", "--false-alarms", 0.4, *ALL)
    kept = json.loads((mine / "choices.json").read_text())
    rule = {"kind": "false alarms", "value": 0.4}
    assert kept == {"format": 1, "score": "atypicality", "aggregate": "max", "rule": rule}
    words = (
        "note: --by atypicality (the model's first is mse), --aggregate max, --false-alarms 0.4: as chosen before "
        f"({mine / 'choices.json'}; delete it for the defaults)"
    )
    out, err = score(capsys, mine)
    assert words in err and "flags p <= .4" in out
    figures = json.loads((mine / "metrics.json").read_text())
    assert figures["score"] == "atypicality" and figures["settings"]["aggregate"] == "max"
    page = (mine / "report.html").read_text()
    assert "as chosen before" in page
    status, _, err = typed(capsys, "report", mine, "--device", "cpu")
    assert status == 0 and words in err
    status, _, err = typed(capsys, "heatmap", mine, "--limit", 1, "--formats", "npy", "--device", "cpu")
    assert status == 0 and "--by atypicality (the model's first is mse)" in err
    result = anomaly.load(mine, device="cpu").score(split="train")
    assert result.main == "atypicality" and result.scored.settings.aggregate == "max"
    assert any("as chosen before" in note for note in result.notes)
    assert [film.flagged for film in result] == [film.p_value is not None and film.p_value <= 0.4 for film in result]

    _, err = score(capsys, mine, "--by", "mse", "--aggregate", "mean", "--false-alarms", 0.2, *ALL)  # explicit ones win
    assert "as chosen before" not in err
    _, err = score(capsys, mine, *ALL)
    assert "note: --false-alarms 0.2: as chosen before" in err and "--by" not in err


def test_the_page_is_made_anew_where_its_figures_are_of_another_choice(capsys: Capture, mine: Path) -> None:
    score(capsys, mine)
    score(capsys, mine, "--by", "atypicality", *ALL)
    assert json.loads((mine / "metrics.json").read_text())["score"] == "mse"
    typed(capsys, "report", mine, "--device", "cpu")
    assert json.loads((mine / "metrics.json").read_text())["score"] == "atypicality"


def test_a_remembered_threshold_is_not_used_for_another_score(capsys: Capture, mine: Path) -> None:
    score(capsys, mine, "--threshold", 0.05, *ALL)
    assert read_choices(Run(mine)).score == "mse"
    _, err = score(capsys, mine, "--by", "atypicality", *ALL)
    assert "note: the threshold 0.05 chosen before is of mse and isn't used" in err
    p, flagged = columns(mine / "all", "film", "p_value", "flagged")
    np.testing.assert_array_equal(flagged, p <= 0.2)


def test_nothing_given_writes_nothing(capsys: Capture, mine: Path) -> None:
    score(capsys, mine, *ALL)
    assert not (mine / "choices.json").exists()


def test_refused_words_are_not_remembered(capsys: Capture, mine: Path) -> None:
    refused(capsys, "score", mine, "--by", "likelihood", "--device", "cpu")
    refused(capsys, "score", mine, "nowhere.png", "--by", "atypicality", "--device", "cpu")
    assert not (mine / "choices.json").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "choices.json can't be read (Invalid JSON"),
        (
            '{"format": 2}',
            "choices.json can't be read (format: Input should be 1); delete it to begin with the defaults",
        ),
        ('{"format": 1, "colour": "red"}', "choices.json can't be read (colour: Extra inputs are not permitted)"),
        ('{"format": 1, "score": "likelihood"}', "names a score 'likelihood' that the model has not; delete it"),
    ],
)
def test_damaged_choices_are_one_clear_line(capsys: Capture, mine: Path, content: str, message: str) -> None:
    (mine / "choices.json").write_text(content)
    assert message in refused(capsys, "score", mine, "--device", "cpu")


def test_later_choices_stand_in_place_of_older_ones() -> None:
    old = choices_of(score="max", aggregate="max", threshold=3.0)
    assert old.updated(Choices()) == old
    assert old.updated(choices_of(aggregate="mean")) == choices_of(score="max", aggregate="mean", threshold=3.0)
    assert old.updated(choices_of(score="mean")).rule is None
    assert old.updated(choices_of(score="mean", threshold=4)).rule == FlagRule(kind="threshold", value=4)
    assert old.updated(Choices(calibration="ward")).rule is None
    words = ["--by", "max", "--aggregate", "max", "--threshold", "3.0"]
    assert old.words() == words


# --- older runs, supervised ones ---


def test_a_run_of_the_format_before_is_scored_without_p_values(capsys: Capture, mine: Path) -> None:
    file, thresholds = mine / "calibration.json", read_calibration(Run(mine)).thresholds
    kept = ("thresholds", "map_scale", "films")
    old = {name: value for name, value in json.loads(file.read_text()).items() if name in kept}
    file.write_text(json.dumps(old | {"quantile": 0.95, "rule": "quantile"}))
    config = unsealed((mine / "run.json").read_text())
    (mine / "run.json").write_text(json.dumps(config | {"format": OLDEST}))
    (mine / "manifest.json").unlink()
    out, _ = score(capsys, mine)
    assert "no p-values: the calibration is of an older version, which kept no scores of normal films: train" in out
    assert "5% of the validation normals reach the threshold" in out
    rows = read_csv(mine / "scores.csv")
    assert {row["p_value"] + row["p_low"] + row["p_high"] for row in rows} == {""}
    film = thresholds["mean"]["film"]["mse"]
    assert [row["flagged"] == "1" for row in rows] == [float(row["mse"]) >= film for row in rows]
    result = anomaly.load(mine, device="cpu").score(split="train")
    assert {film.p_value for film in result} == {None} and any("no p-values" in note for note in result.notes)
    for words in (["--false-alarms", 0.3], ["--fdr", 0.3]):
        assert "needs the scores of normal films; the calibration is of an older version" in refused(
            capsys, "score", mine, *words, "--device", "cpu"
        )
    score(capsys, mine, "--threshold", 0.05, *ALL)
    score(capsys, mine, "--sensitivity", 0.5, *ALL)


def test_thresholds_of_a_supervised_run_stay_those_of_its_classifier() -> None:
    own: dict[str, Any] = {how: {unit: {"p": 0.5} for unit in UNITS} for how in ("mean", "max")}
    normals = {"patient": list(range(30)), "study": list(range(30)), "scores": {"p": [i / 100 for i in range(30)]}}
    calibration = Calibration.model_validate(
        {"thresholds": own, "map_scale": None, "quantile": 0.95, "films": 60, "rule": "youden", "patients": 30}
        | {"normals": normals}
    )
    assert "0.0 % [0.0, 11.6] of normal films (30 normal patients) reach it" in calibration.sentence(
        "mean", "film", "p"
    )
    changed = calibration.applying(FlagRule(kind="false alarms", value=0.1), "p")
    assert changed.youden == own and changed.thresholds["mean"]["film"]["p"] == math.nextafter(0.27, 1)
    again = changed.applying(FlagRule(kind="threshold", value=0.2), "p")
    assert again.youden == own and again.thresholds["max"]["patient"] == {"p": 0.2}


def test_an_open_run_is_not_changed_by_what_is_chosen(mine: Path) -> None:
    opened = open_run(Run(mine), "cpu")
    with pytest.raises(InputError, match="has no score"):
        opened.main_score("likelihood")
    loaded = anomaly.load(mine, device="cpu")
    before = loaded.thresholds["film"]["mse"]
    changed = loaded.score(split="train", flag=("false alarms", 0.4))
    assert changed.threshold("film") < before == loaded.thresholds["film"]["mse"]
    assert loaded.score(split="train", flag=("fdr", 0.9)).films[0].q_value is not None
    assert not (mine / "choices.json").exists()
