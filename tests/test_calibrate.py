"""A run calibrated on normal films of another place: thresholds, map scale, what scores compare with."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import anomaly
from anomaly.cli.calibrating import calibrate as calibrate_verb
from anomaly.data.batch import batches
from anomaly.data.dataset import Films
from anomaly.data.joined import JoinedBatches
from anomaly.evaluation import domain
from anomaly.evaluation.calibration import FALSE_ALARMS, Calibration, ScoredFilms
from anomaly.evaluation.conformal import Reference
from anomaly.evaluation.named_calibration import calibration_folder, calibration_names, named_calibration
from anomaly.evaluation.predict import score
from anomaly.manifest import write_listed
from anomaly.pipeline.calibrate import Calibrated, calibrate_run
from anomaly.pipeline.film_reference import keep_reference
from anomaly.pipeline.open_run import open_run
from anomaly.pipeline.options import CalibrateOptions
from anomaly.pipeline.selection import new_films
from anomaly.runs import Run, read_csv, to_json
from preprocessing import InputError
from preprocessing.phantom import write_phantoms
from preprocessing.sources import open_films

from .test_cli import refused, typed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Films of another place, normal and abnormal ones."""
    out = tmp_path_factory.mktemp("site") / "clinic"
    write_phantoms(out, seed=5, patients=12, size=128)
    return out


@pytest.fixture
def own(run: Run, tmp_path: Path) -> Run:
    """A copy of the run, to calibrate."""
    return Run(Path(shutil.copytree(run.path, tmp_path / "run")))


def options(run: Run, **changes: object) -> CalibrateOptions:
    return CalibrateOptions(run.path, (), **({"device": "cpu", "workers": 1} | changes))  # type: ignore[arg-type]


def calibrated(run: Run, films: Path, **changes: object) -> Calibrated:
    return calibrate_run(run, open_films([films]), options(run, **changes))


def moved(run: Run) -> Run:
    """The run without its cache."""
    config = run.config.model_copy(update={"cache": run.config.cache.model_copy(update={"path": "/gone/films.h5"})})
    run.write("run.json", to_json(config.model_dump()))
    (run.path / "manifest.json").unlink(missing_ok=True)  # which says that run.json is another
    return Run(run.path)


# --- thresholds -----------------------------------------------------------------------------------------------------


def test_thresholds_come_from_the_normal_films_of_the_place(own: Run, site: Path) -> None:
    before = (own.path / "calibration.json").read_bytes()
    done = calibrated(own, site)
    with new_films(own, open_films([site]), workers=1) as selection:
        normals = selection.films.subset(np.flatnonzero(selection.films.label == 0))
        values = score(open_run(own, "cpu").model, normals)["mse"]
        abnormal = int((selection.films.label == 1).sum())
        patients = selection.films.column("patient")[np.flatnonzero(selection.films.label == 0)]
    found = named_calibration(own, "clinic")
    rate = max(FALSE_ALARMS, 1 / (len(set(patients)) + 1))
    expected = Reference.of(values, patients).threshold(rate)
    assert found.films == len(values) == done.source.films
    assert found.thresholds["mean"]["film"]["mse"] == pytest.approx(expected, rel=1e-4)
    assert f"left out: {abnormal} films labelled abnormal" in done.notes
    assert (own.path / "calibration.json").read_bytes() == before  # the run's own stays
    assert sorted(path.name for path in done.folder.glob("[!.]*")) == [
        "calibration.json",
        "films.safetensors",
        "manifest.json",
        "source.json",
    ]


def test_unlabelled_films_are_taken_as_normal_and_that_is_said(own: Run, site: Path, tmp_path: Path) -> None:
    (tmp_path / "plain").mkdir()
    for place, film in enumerate(sorted(site.rglob("*.png"))[:5]):
        shutil.copy(film, tmp_path / f"plain/{place}.png")
    done = calibrated(own, tmp_path / "plain")
    assert "all of 5 films are taken as normal" in done.notes
    assert done.run.calibration.films == 5 and done.run.calibration.map_scale is not None


def test_score_and_heatmap_use_the_calibration_that_is_named(
    own: Run, site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrated(own, site, name="clinic")
    film = sorted(site.rglob("*.png"))[0]
    status, out, _ = typed(capsys, "score", own.path, film, "--calibration", "clinic", "--out", tmp_path / "s")
    assert status == 0 and "calibrated on those of clinic" in out
    threshold = named_calibration(own, "clinic").thresholds["mean"]["film"]["mse"]
    (row,) = read_csv(tmp_path / "s/scores.csv")
    assert row["flagged"] == str(int(float(row["mse"]) >= threshold))
    loaded = anomaly.load(own.path, calibration="clinic", device="cpu")
    assert loaded.thresholds["film"]["mse"] == threshold
    assert anomaly.load(own.path, device="cpu").thresholds == loaded.thresholds  # `score` was told so, and remembers it
    (heatmap,) = loaded.heatmap(film, workers=1)
    assert heatmap.scale == named_calibration(own, "clinic").map_scale
    status, _, _ = typed(capsys, "heatmap", own.path, film, "--calibration", "clinic", "--out", tmp_path / "m")
    assert status == 0
    assert anomaly.load(own.path, calibration="own", device="cpu").thresholds != loaded.thresholds
    (its_own,) = anomaly.load(own.path, calibration="own", device="cpu").heatmap(film, workers=1)
    assert its_own.scale != heatmap.scale
    status, out, err = typed(capsys, "score", own.path, film, "--calibration", "own", "--out", tmp_path / "o")
    assert status == 0 and "calibrated on those of" not in out and "as chosen before" not in err
    assert anomaly.load(own.path, device="cpu").thresholds != loaded.thresholds  # own is remembered too
    assert "'own' names the calibration" in refused(capsys, "calibrate", own.path, film, "--name", "own")
    words = refused(capsys, "score", own.path, film, "--calibration", "elsewhere")
    assert "no calibration 'elsewhere'; there are: clinic; `anomaly calibrate" in words


def test_the_verb_says_what_was_made_and_what_to_do_next_in_few_lines(
    own: Run, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibrate_verb(CalibrateOptions(own.path, (site,), "clinic", device="cpu", workers=1))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) <= 10
    assert lines[-1] == f"next: anomaly score {own.path} FILMS --calibration clinic"
    assert any("by the run's own calibration" in line and "% [" in line for line in lines)
    assert any(line.startswith("thresholds and p-values rest on") for line in lines)  # fewer than 20 patients


def test_python_calibrates_too(own: Run, site: Path) -> None:
    with pytest.warns(UserWarning, match="labelled abnormal"):
        loaded = anomaly.load(own.path, device="cpu").calibrate(site, "clinic", workers=1)
    again = anomaly.load(own.path, device="cpu", calibration="clinic")
    assert loaded.thresholds == again.thresholds != anomaly.load(own.path, device="cpu").thresholds
    film = sorted(site.rglob("*.png"))[0]
    assert again.score(film, workers=1).run.calibration_name == "clinic"
    assert again.score(film, workers=1).films[0].p_value == loaded.score(film, workers=1).films[0].p_value


def test_scores_that_rise_without_abnormal_films_are_a_shift(own: Run, site: Path) -> None:
    """The reference of the scores is set low, as though the films of the training had been easier."""
    calibration = own.read("calibration.json", Calibration)
    assert calibration.normals is not None
    low = {name: (np.tile(values, 20) - 1e3).tolist() for name, values in calibration.normals.scores.items()}
    places = list(range(len(low["mse"])))
    normals = ScoredFilms(patient=places, study=places, scores=low)
    write_listed(
        own.path / "calibration.json", to_json(calibration.model_copy(update={"normals": normals}).model_dump())
    )
    result = anomaly.load(own.path, device="cpu").score(site, workers=1)
    assert any("scores higher: KS" in sentence for sentence in result.shift)


# --- names ----------------------------------------------------------------------------------------------------------


def test_a_name_is_kept_for_the_films_that_it_was_given_to(own: Run, site: Path) -> None:
    first = calibrated(own, site, name="clinic")
    calibrated(own, site, name="clinic")  # the same films again
    other = next(path for path in sorted(site.rglob("*")) if path.is_dir() and "patient" in path.name)
    with pytest.raises(InputError, match=f"calibration of the {first.source.films} films of .*give another --name, or"):
        calibrated(own, other, name="clinic")
    replaced = calibrated(own, other, name="clinic", replace=True)
    assert named_calibration(own, "clinic").films == replaced.source.films < first.source.films


@given(name=st.text(max_size=70))
@settings(max_examples=60, deadline=None)
def test_no_name_leaves_the_folder_of_calibrations(name: str) -> None:
    run = object.__new__(Run)
    run.path = Path("/runs/cae-1")
    try:
        folder = calibration_folder(run, name)
    except InputError:
        return
    assert folder.resolve().parent == Path("/runs/cae-1/calibrations")


def test_a_calibration_that_was_not_finished_is_none(own: Run, site: Path) -> None:
    done = calibrated(own, site)
    assert calibration_names(own) == ["clinic"]
    (done.folder / "calibration.json").unlink()
    assert calibration_names(own) == []
    with pytest.raises(InputError, match="there is none"):
        open_run(own, "cpu", calibration="clinic")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"only_local": True}, "give --refit too"),
        ({"name": "../x"}, "calibration name"),
        ({"name": ".hidden"}, "calibration name"),
    ],
)
def test_what_makes_no_sense_is_refused(own: Run, site: Path, changes: dict[str, object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        calibrated(own, site, **changes)
    assert not (own.path / "calibrations").exists()


def test_an_unfinished_run_is_refused(own: Run, site: Path) -> None:
    (own.path / "calibration.json").unlink()
    with pytest.raises(InputError, match="is unfinished"):
        calibrated(own, site)


def test_a_model_that_compares_with_nothing_is_not_refitted(
    own: Run, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from anomaly.models.base import Model
    from anomaly.models.cae import CAE

    monkeypatch.setattr(CAE, "fit_reference", Model.fit_reference)
    with pytest.raises(InputError, match="nothing to refit"):
        calibrated(own, site, refit=True)


# --- refit ----------------------------------------------------------------------------------------------------------


def test_a_refit_keeps_what_it_changed_and_opens_again_alike(own: Run, site: Path) -> None:
    done = calibrated(own, site, refit=True)
    kept = load_file(done.folder / "reference.safetensors")
    weights = load_file(own.path / "weights.safetensors")
    assert 0 < len(kept) < len(weights)  # the network itself isn't kept again
    assert all(
        weights[name].shape != value.shape or not torch.equal(weights[name], value) for name, value in kept.items()
    )
    opened = open_run(own, "cpu", calibration="clinic")
    state = done.run.model.detector.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in opened.model.detector.state_dict().items())
    assert opened.calibration == done.run.calibration


def test_no_patient_is_in_both_halves_of_a_refit(own: Run, site: Path) -> None:
    plain, refitted = calibrated(own, site, name="a"), calibrated(own, site, name="b", refit=True)
    source = refitted.source
    assert (
        source.refitted == "training and local" and source.patients + source.refitted_patients == plain.source.patients
    )
    assert source.films < plain.source.films and abs(source.patients - source.refitted_patients) <= 1


def test_a_refit_on_local_films_alone_needs_no_cache(own: Run, site: Path) -> None:
    keep_reference(own)
    gone = moved(own)
    with pytest.raises(InputError, match="is gone; give its new place with --cache"):
        calibrated(gone, site, refit=True)
    assert not (gone.path / "calibrations/clinic/calibration.json").exists()
    done = calibrated(gone, site, refit=True, only_local=True)
    assert done.source.refitted == "local"


@given(sizes=st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any), count=st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_joined_films_are_all_passed_in_order_and_taken_evenly(sizes: list[int], count: int) -> None:
    total = sum(sizes)
    films = Films(
        np.arange(total, dtype=np.uint8)[:, None, None] * np.ones((1, 4, 4), np.uint8),
        np.ones((total, 4, 4), np.bool_),
        np.zeros(total, np.int8),
    )
    ends = np.cumsum(sizes)
    parts = [films.part(slice(end - size, end)) for size, end in zip(sizes, ends, strict=True)]
    joined = JoinedBatches([batches(part, CPU) for part in parts])

    def levels(passed: object) -> list[int]:
        return [round(float(film[0, 0, 0]) * 255) for batch in passed for film in batch.film]  # type: ignore[attr-defined]

    assert joined.films == total and levels(joined) == levels(joined) == list(range(total))
    some = joined.evenly(count)
    taken = levels(some)
    assert some.films == len(taken) == min(count, total) and taken == sorted(set(taken))


# --- films unlike those of the training -----------------------------------------------------------------------------


def test_a_finished_run_keeps_what_its_normal_films_look_like(own: Run) -> None:
    assert (own.path / "films.safetensors").is_file()


def test_films_of_another_kind_are_named_and_flagged(
    own: Run, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(domain, "LEAST_FILMS", 10)
    keep_reference(own)
    board = (np.indices((128, 128)).sum(axis=0) // 16 % 2 * 200 + 20).astype(np.uint8)
    hand = sorted(site.rglob("*.png"))[0]
    result = anomaly.load(own.path, device="cpu").score([board, hand], workers=1)
    assert [film.out_of_domain for film in result.films] == [True, False]
    assert result.shift[0].startswith("1 of 2 films is unlike the films of the training (another body part?): array-0")
    assert result.shift[0] in result.notes
    import tifffile

    tifffile.imwrite(tmp_path / "board.tif", board)
    _, out, _ = typed(capsys, "score", own.path, tmp_path / "board.tif", "--out", tmp_path / "s")
    assert "1 of 1 film is unlike the films of the training" in out
    assert [row["out_of_domain"] for row in read_csv(tmp_path / "s/scores.csv")] == ["1"]
    drawn = anomaly.load(own.path, device="cpu").heatmap([board, hand], workers=1)
    assert [heatmap.out_of_domain for heatmap in drawn] == [True, False]
    assert ["UNLIKE THE FILMS OF THE TRAINING" in heatmap.title for heatmap in drawn] == [True, False]
    for heatmap in drawn:
        state = "flagged (from" if heatmap.flagged else "not flagged (from"
        assert f", {state}" in heatmap.title
    _, examined = anomaly.load(own.path, device="cpu").examine(tmp_path / "board.tif", workers=1, as_set=False)
    assert [heatmap.out_of_domain for heatmap in examined] == [True]
    _, _, said = typed(capsys, "heatmap", own.path, tmp_path / "board.tif", "--out", tmp_path / "m", "--formats", "png")
    assert "1 of 1 film is unlike the films of the training (another body part?): board.tif" in said


def test_darker_films_are_said_to_be_unlike_and_local_normals_mend_it(own: Run, site: Path) -> None:
    import cv2

    dark = site.parent / "dark"
    if not dark.exists():
        shutil.copytree(site, dark)
        for film in dark.rglob("*.png"):
            levels = cv2.imread(str(film), cv2.IMREAD_UNCHANGED)
            cv2.imwrite(str(film), (levels * 0.3).astype(levels.dtype))
    loaded = anomaly.load(own.path, device="cpu")
    said = " ".join(loaded.score(dark, workers=1).shift)
    assert "unlike those of the training" in said and "of the file" in said
    assert f"`anomaly calibrate {own.path} NORMALS`" in said
    with pytest.warns(UserWarning, match="labelled abnormal"):
        local = loaded.calibrate(dark, "dark", workers=1)
    assert not any("unlike" in sentence for sentence in local.score(dark, workers=1).shift)


def test_a_run_without_cache_and_summary_says_what_it_cannot_know(own: Run, site: Path) -> None:
    (own.path / "films.safetensors").unlink()
    gone = moved(own)
    result = anomaly.load(gone.path, device="cpu").score(sorted(site.rglob("*.png"))[:2], workers=1)
    assert all(film.out_of_domain is None for film in result.films)
    (said,) = result.shift
    assert "is not known" in said and "--cache" in said


def test_a_few_films_tell_nothing(own: Run, site: Path) -> None:
    films = sorted(site.rglob("*.png"))
    loaded = anomaly.load(own.path, device="cpu")
    assert loaded.score(films[0], workers=1).shift == []
    several = loaded.score([films[0], films[-1]], workers=1)
    assert several.shift == [
        "2 patients are too few to tell whether the films are like those of the training (8 are needed)"
    ]


def test_figures_of_the_runs_own_films_say_nothing_of_likeness(own: Run) -> None:
    result = anomaly.load(own.path, device="cpu").score()
    assert result.shift == []
    assert json.loads((own.path / "calibration.json").read_text())["films"] > 0
