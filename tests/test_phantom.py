"""The built-in synthetic films: the same for the same seed, true to their truth, without a shortcut, written safely."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import astuple, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from preprocessing import InputError
from preprocessing.phantom import (
    DEFAULT,
    DIFFICULTIES,
    FINDINGS,
    GRADES,
    VIEWS,
    FilmPlan,
    Phantom,
    draw_film,
    plan_films,
    write_phantoms,
)
from preprocessing.phantom.anatomy import Anatomy, pose_hand
from preprocessing.phantom.lesion import Study, settle

SMALL = 96


@pytest.fixture(scope="module")
def films() -> list[Phantom]:
    return [draw_film(plan, seed=3, size=SMALL) for plan in plan_films(seed=3, patients=60)]


def tree(root: Path) -> dict[str, bytes]:
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}


def cases() -> Iterator[FilmPlan]:
    for number, finding in enumerate(FINDINGS):
        for grade, difficulty in enumerate(DIFFICULTIES):
            yield FilmPlan(50 + 3 * number + grade, 1, 1, VIEWS[(number + grade) % 3], finding, difficulty)


# ------------------------------------------------------------------------------------------------------------- the plan


@pytest.mark.parametrize("seed", range(4))
def test_default_plan_has_enough_of_everything(seed: int) -> None:
    plans = plan_films(seed=seed)
    sick = {plan.patient for plan in plans if plan.finding}
    healthy = [plan for plan in plans if plan.patient not in sick]
    assert 700 <= len(plans) <= 850
    assert len({plan.patient for plan in plans}) == DEFAULT
    assert 80 <= len(sick) <= 100
    assert 180 <= sum(bool(plan.finding) for plan in plans) <= 250  # half of them are tested on

    rng = np.random.default_rng(seed)
    patients = sorted({plan.patient for plan in healthy})
    for _ in range(20):  # as many normal patients as abnormal ones go to validation and test
        held = set(rng.permutation(patients)[: len(sick)])
        assert sum(plan.patient not in held for plan in healthy) >= 240


def test_plan_balances_findings_and_difficulties() -> None:
    abnormal = [plan for plan in plan_films() if plan.finding]
    difficulties = Counter(plan.difficulty for plan in abnormal)
    findings = Counter(plan.finding for plan in abnormal)
    assert set(difficulties) == set(DIFFICULTIES) and set(findings) == set(FINDINGS)
    assert max(difficulties.values()) - min(difficulties.values()) <= 2
    assert max(findings.values()) - min(findings.values()) <= 3


def test_plan_has_several_films_and_studies_and_mixed_patients() -> None:
    plans = plan_films()
    studies: dict[tuple[int, int], list[FilmPlan]] = {}
    for plan in plans:
        studies.setdefault((plan.patient, plan.study), []).append(plan)
    assert {len(study) for study in studies.values()} == {1, 2, 3, 4}
    assert all(len({(plan.finding, plan.difficulty) for plan in study}) == 1 for study in studies.values())
    assert all([plan.image for plan in study] == list(range(1, len(study) + 1)) for study in studies.values())
    assert {plan.view for plan in plans} == set(VIEWS)
    signs: dict[int, set[bool]] = {}
    for (patient, _), study in studies.items():
        signs.setdefault(patient, set()).add(bool(study[0].finding))
    assert sum(len(both) == 2 for both in signs.values()) >= 2
    assert [plan.path for plan in plans] == sorted(plan.path for plan in plans)
    assert len({plan.path for plan in plans}) == len(plans)


def test_studies_and_views_know_nothing_of_the_label() -> None:
    """Nothing drawn before the labels changes with the share of abnormal patients."""
    default = [(plan.patient, plan.study, plan.image, plan.view) for plan in plan_films(seed=1)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("preprocessing.phantom.plan.ABNORMAL", 0.6)
        assert [(plan.patient, plan.study, plan.image, plan.view) for plan in plan_films(seed=1)] == default


# ------------------------------------------------------------------------------------------------------------ the films


def test_same_seed_same_film_and_other_seed_another() -> None:
    plan = FilmPlan(5, 1, 1, "oblique", "fracture", "medium")
    first, again, other = (draw_film(plan, seed=seed, size=SMALL) for seed in (0, 0, 1))
    assert first.pixels.tobytes() == again.pixels.tobytes()
    assert first.ground_truth() == again.ground_truth()
    assert first.pixels.shape != other.pixels.shape or (first.pixels != other.pixels).any()


def test_film_does_not_depend_on_the_number_of_threads() -> None:
    plan = FilmPlan(8, 1, 2, "frontal", "swelling", "obvious")
    threads = cv2.getNumThreads()
    try:
        cv2.setNumThreads(1)
        one = draw_film(plan, size=256)
        cv2.setNumThreads(4)
        four = draw_film(plan, size=256)
    finally:
        cv2.setNumThreads(threads)
    assert (one.pixels == four.pixels).all() and (one.anomaly == four.anomaly).all()


def test_truth_lies_in_the_frame_and_agrees_with_itself(films: list[Phantom]) -> None:
    for film in films:
        height, width = film.pixels.shape
        assert film.pixels.dtype == np.uint8 and max(height, width) == SMALL and min(height, width) >= SMALL // 2
        assert film.hand.shape == film.anomaly.shape == (height, width)
        assert 0.03 < film.hand.mean() < 0.75
        boxed = np.zeros_like(film.hand)
        for name, (x0, y0, x1, y1) in film.boxes:
            assert name in {"right hand", "left hand", "right marker", "left marker"}
            assert 0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height
            if name.endswith("hand"):
                boxed[y0:y1, x0:x1] = True
            else:
                assert not film.hand[y0:y1, x0:x1].any() or film.plan.finding == "swelling"
        assert not (film.hand & ~boxed).any()
        assert 1 <= sum(name.endswith("hand") for name, _ in film.boxes) <= 2
        (x0, y0), (x1, y1), (x2, y2), (x3, y3) = film.carrier
        assert x0 < x1 and x3 < x2 and y0 < y3 and y1 < y2
        field = np.zeros((height, width), np.uint8)
        cv2.fillConvexPoly(field, np.rint(film.carrier).astype(np.int32), 1)
        assert not (film.hand & (cv2.dilate(field, np.ones((3, 3), np.uint8)) == 0)).any()


def test_anomaly_masks_are_there_for_abnormal_films_alone(films: list[Phantom]) -> None:
    for film in films:
        assert film.anomaly.any() == bool(film.plan.finding)
        if film.plan.finding not in ("", "missing"):
            near = cv2.dilate(film.hand.astype(np.uint8), np.ones((7, 7), np.uint8)) > 0
            assert not (film.anomaly & ~near).any()
        assert film.anomaly.mean() < 0.2


def test_set_varies(films: list[Phantom]) -> None:
    assert 0.02 < np.mean([film.inverted for film in films]) < 0.18
    assert 0 < np.mean([sum("hand" in name for name, _ in film.boxes) == 2 for film in films]) < 0.2
    assert {name for film in films for name, _ in film.boxes} == {
        "right hand",
        "left hand",
        "right marker",
        "left marker",
    }
    assert len({film.pixels.shape for film in films}) > 10


@pytest.mark.parametrize("plan", list(cases()), ids=lambda plan: f"{plan.finding}-{plan.difficulty}")
def test_normal_twin_differs_at_the_finding_alone(plan: FilmPlan) -> None:
    film = draw_film(plan, seed=2, size=256)
    twin = draw_film(replace(plan, finding="", difficulty=""), seed=2, size=256)
    assert film.carrier.tolist() == twin.carrier.tolist() and film.inverted == twin.inverted
    markers = [[box for box in drawn.boxes if box[0].endswith("marker")] for drawn in (film, twin)]
    assert markers[0] == markers[1]
    assert not twin.anomaly.any()

    change = np.abs(film.pixels.astype(int) - twin.pixels.astype(int))
    # Of what is missing the mask has the stump's end alone.
    reach = 151 if plan.finding == "missing" else 11
    near = cv2.dilate(film.anomaly.astype(np.uint8), np.ones((reach, reach), np.uint8)) > 0
    assert change[~near].max() <= 4
    assert change[film.anomaly].mean() >= 2
    assert change[film.anomaly].mean() > 20 * change[~near].mean()


def test_all_films_of_a_study_show_the_same_lesion() -> None:
    """What differs between films of a study is where the hand lies, not which bone or how much of it."""
    views = ("frontal", "oblique", "frontal")
    study = Study.of(FilmPlan(4, 1, 1, "frontal", "lytic", "medium", views), 0)
    shown = settle(study)
    assert len(shown) == 3 and len({(film.place, film.strength) for film in shown}) == 1
    changed = []
    for image, view in enumerate(views, 1):
        anatomy = Anatomy.draw(np.random.default_rng([0, 4, 0, 0, 3]))
        hand = pose_hand(anatomy, view, np.random.default_rng([0, 4, 1, image, 2]))
        sick = study.lesion(hand, shown[0].place, shown[0].strength).hand
        changed.append([(bone.name, bone.spot) for bone in sick.bones if bone.spot])
    spot = changed[0][0][1]
    for others in changed[1:]:
        assert [other for other, _ in others] == [name for name, _ in changed[0]]
        assert astuple(others[0][1])[:4] == pytest.approx(astuple(spot)[:4]) and others[0][1].lobes == spot.lobes


@pytest.mark.parametrize("plan", list(cases()), ids=lambda plan: f"{plan.finding}-{plan.difficulty}")
def test_visibility_is_what_two_drawn_films_show(plan: FilmPlan) -> None:
    """The figures in the JSON file, against the pixels of film and twin, rounded and noisy as they are."""
    film = draw_film(plan, seed=2, size=256)
    assert film.visibility is not None
    pixels, twin = (
        (255 - shown.pixels if shown.inverted else shown.pixels).astype(float) / 255
        for shown in (film, draw_film(replace(plan, finding="", difficulty=""), seed=2, size=256))
    )
    change = (pixels - twin)[film.anomaly]
    mean, square = (cv2.GaussianBlur(power, (0, 0), 6) for power in (twin, twin**2))
    contrast = np.abs(change).mean() / np.sqrt(square - mean**2)[film.anomaly].mean()
    assert contrast == pytest.approx(film.visibility.contrast_to_structure, rel=0.12, abs=0.01)
    mean, square = (cv2.blur(power, (6, 6)) for power in (twin, twin**2))
    detectability = np.sqrt((change**2 / (square - mean**2)[film.anomaly]).sum())
    assert detectability == pytest.approx(film.visibility.detectability, rel=0.15)
    rows, columns = np.nonzero(film.anomaly)
    extent = np.hypot(np.ptp(rows), np.ptp(columns)) + 1
    assert max(np.ptp(rows), np.ptp(columns)) + 1 <= film.visibility.length <= extent + 1e-6


@pytest.mark.parametrize("difficulty", DIFFICULTIES)
@pytest.mark.parametrize("finding", FINDINGS)
def test_every_film_meets_its_grade(finding: str, difficulty: str) -> None:
    grade = GRADES[difficulty]
    for patient in (300, 301):
        for view in VIEWS:
            for shown in settle(Study.of(FilmPlan(patient, 1, 1, view, finding, difficulty), 5)):
                seen = shown.visibility
                assert grade.contrast[0] <= seen.contrast_to_structure < grade.contrast[1]
                assert seen.detectability >= grade.detectability and seen.length >= grade.length


def test_every_film_of_a_set_meets_its_grade_whatever_its_study() -> None:
    studies = {(plan.patient, plan.study): plan for plan in plan_films(seed=8, patients=40) if plan.finding}
    for plan in studies.values():
        shown = settle(Study.of(plan, 8))
        assert len(shown) == len(plan.views)
        assert all(GRADES[plan.difficulty].met_by(film.visibility) for film in shown)


def test_lesion_does_not_depend_on_the_size_of_the_film() -> None:
    plan = FilmPlan(6, 1, 1, "oblique", "fused", "medium")
    small, large = (draw_film(plan, size=size) for size in (128, 512))
    assert small.visibility == large.visibility is not None
    middle = [np.argwhere(film.anomaly).mean(0) / film.anomaly.shape for film in (small, large)]
    assert np.abs(middle[0] - middle[1]).max() < 0.02


def test_missing_bone_has_its_ground_truth_where_the_bone_stops() -> None:
    """The mask is far smaller than what is gone, and touches what is left of the bone."""
    plan = FilmPlan(9, 1, 1, "frontal", "missing", "obvious")
    film, twin = (draw_film(p, size=256) for p in (plan, FilmPlan(9, 1, 1, "frontal")))
    gone = twin.hand & ~film.hand
    assert 0 < film.anomaly.sum() < 0.5 * gone.sum()
    stump = cv2.dilate(film.hand.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert (film.anomaly & stump).any()


def test_a_view_that_is_not_the_studys_is_refused() -> None:
    with pytest.raises(InputError, match="image 1: its view 'frontal'"):
        draw_film(FilmPlan(1, 1, 1, "frontal", "lytic", "medium", ("lateral", "frontal")), size=64)


def test_finding_hardly_moves_brightness_or_contrast(films: list[Phantom]) -> None:
    """What films of no other label than their twins' tell of it: the difference is exact where a sample's isn't."""
    labels = [bool(film.plan.finding) for film in films]
    twins = [
        draw_film(replace(film.plan, finding="", difficulty=""), seed=3, size=SMALL) if film.plan.finding else film
        for film in films
    ]
    for figure in (np.mean, np.std):
        with_finding, without = (
            roc_auc_score(labels, [figure(film.pixels) for film in drawn]) for drawn in (films, twins)
        )
        assert abs(with_finding - without) < 0.04


def test_no_shortcut_for_a_linear_classifier_on_thumbnails(films: list[Phantom]) -> None:
    """Cross-validated by patient; the bound is three standard errors of a ROC-AUC of .5 over patients."""
    labels = np.array([bool(film.plan.finding) for film in films])
    patients = np.array([film.plan.patient for film in films])
    upright = [255 - film.pixels if film.inverted else film.pixels for film in films]
    thumbnails = np.array([cv2.resize(film, (32, 32), interpolation=cv2.INTER_AREA).ravel() for film in upright]) / 255
    scores = np.zeros(len(films))
    for train, test in GroupKFold(5).split(thumbnails, labels, patients):
        model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=1000))
        scores[test] = model.fit(thumbnails[train], labels[train]).decision_function(thumbnails[test])
    assert abs(roc_auc_score(labels, scores) - 0.5) < 3 * np.sqrt(1 / 12 * (1 / 18 + 1 / 42))


def test_no_shortcut_in_brightness_or_contrast(films: list[Phantom]) -> None:
    labels = [bool(film.plan.finding) for film in films]
    for numbers in (
        [film.pixels.mean() for film in films],
        [-film.pixels.std() for film in films],
        [film.pixels[film.hand].mean() for film in films],
        [-film.pixels[film.hand].std() for film in films],
    ):
        assert 0.35 <= roc_auc_score(labels, numbers) <= 0.65


@pytest.mark.parametrize(
    ("plan", "settings", "said"),
    [
        (FilmPlan(1, 1, 1), {"size": 63}, "size 63"),
        (FilmPlan(1, 1, 1), {"size": 2049}, "size 2049"),
        (FilmPlan(1, 1, 1), {"seed": -1}, "seed -1"),
        (FilmPlan(1, 1, 1, finding="rickets", difficulty="subtle"), {}, "rickets"),
        (FilmPlan(1, 1, 1, finding="lytic", difficulty="tiny"), {}, "tiny"),
    ],
)
def test_bad_settings_are_refused(plan: FilmPlan, settings: dict[str, int], said: str) -> None:
    with pytest.raises(InputError, match=said):
        draw_film(plan, **{"size": 64, **settings})


# ---------------------------------------------------------------------------------------------------------- the writing


def test_set_is_written_in_muras_layout_with_its_truth(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    summary = write_phantoms(
        tmp_path / "out", patients=5, size=64, on_film=lambda done, total: seen.append((done, total))
    )
    plans = plan_films(patients=5)
    assert seen == [(number + 1, len(plans)) for number in range(len(plans))]
    assert (summary.films, summary.patients) == (len(plans), 5)
    assert summary.abnormal == sum(bool(plan.finding) for plan in plans) > 0
    assert summary.normal + summary.abnormal == summary.films
    assert set(tree(tmp_path / "out")) == {file for plan in plans for file in plan.files} | {"SYNTHETIC.txt"}
    for plan in plans:
        film = draw_film(plan, size=64)
        path = tmp_path / "out" / plan.path
        assert path.parent.name == f"study{plan.study}_{'positive' if plan.finding else 'negative'}"
        assert (cv2.imread(str(path), cv2.IMREAD_UNCHANGED) == film.pixels).all()
        assert (cv2.imread(str(path.with_name(f"image{plan.image}_hand.png")), -1) == 255 * film.hand).all()
        truth = json.loads(path.with_suffix(".json").read_text())
        assert truth == json.loads(json.dumps(film.ground_truth()))
        assert set(truth) == {"finding", "difficulty", "visibility", "carrier", "boxes", "inverted", "view", "seed"}
        anomaly = path.with_name(f"image{plan.image}_anomaly.png")
        assert anomaly.exists() == bool(plan.finding)
        if plan.finding:
            assert (cv2.imread(str(anomaly), -1) == 255 * film.anomaly).all()
    note = (tmp_path / "out" / "SYNTHETIC.txt").read_text()
    assert "SYNTHETIC" in note and "seed 0" in note and "anomaly phantom" in note


def test_complete_set_is_left_as_it_is(tmp_path: Path) -> None:
    first = write_phantoms(tmp_path, patients=4, size=64)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert write_phantoms(tmp_path, patients=4, size=64) == first
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize("after", [1, 4])
def test_interrupted_set_is_completed(tmp_path: Path, after: int) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    write_phantoms(whole, patients=4, size=64)

    def stop(done: int, total: int) -> None:
        if done == after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_phantoms(broken, patients=4, size=64, on_film=stop)
    assert not (broken / "SYNTHETIC.txt").exists()
    with pytest.raises(InputError, match="name a new folder"):
        write_phantoms(broken, seed=1, patients=4, size=64)
    missing = plan_films(patients=4)[after]
    draft = broken / missing.path
    draft.parent.mkdir(parents=True, exist_ok=True)
    draft.with_name(f".{draft.name}.draft").write_bytes(b"half a film")
    write_phantoms(broken, patients=4, size=64)
    assert tree(broken) == tree(whole)


def test_foreign_and_damaged_folders_are_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "holiday.png").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"foreign: holds .*holiday\.png.*name a new folder"):
        write_phantoms(foreign, patients=4, size=64)
    assert tree(foreign) == {"holiday.png": b"mine"}

    made = tmp_path / "made"
    write_phantoms(made, patients=4, size=64)
    for settings in ({"seed": 1, "patients": 4, "size": 64}, {"patients": 5, "size": 64}, {"patients": 4, "size": 65}):
        with pytest.raises(InputError, match="not the synthetic films asked for"):
            write_phantoms(made, **settings)
    (made / plan_films(patients=4)[0].path).unlink()
    with pytest.raises(InputError, match="damaged"):
        write_phantoms(made, patients=4, size=64)

    (tmp_path / "file").write_text("a file")
    with pytest.raises(InputError, match="is a file"):
        write_phantoms(tmp_path / "file", patients=4, size=64)
    with pytest.raises(InputError, match="cannot be written"):
        write_phantoms(tmp_path / "file" / "below", patients=4, size=64)
    with pytest.raises(InputError, match="3 patients"):
        write_phantoms(tmp_path / "few", patients=3, size=64)


def test_empty_folder_is_taken(tmp_path: Path) -> None:
    (tmp_path / "empty" / "below").mkdir(parents=True)
    assert write_phantoms(tmp_path / "empty", patients=4, size=64).films == len(plan_films(patients=4))
