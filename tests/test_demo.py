"""The demo: which lesion it shows first and why, the ceilings beside its figures, and the pictures it leaves."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from anomaly.cli.demo import _fewer_components
from anomaly.data.batch import Batch
from anomaly.data.dataset import FilmSet
from anomaly.evaluation.calibration import Calibration
from anomaly.evaluation.observers import Observed, matched_filter, mean_ideal, observer_interval
from anomaly.evaluation.torch_scorer import TorchScorer
from anomaly.models.base import Detector, Prediction
from anomaly.pipeline.lesion_pictures import find_lesion, lesion_sheet, marked_films, of_each_finding
from anomaly.pipeline.open_run import OpenRun
from anomaly.pipeline.selection import Selection
from preprocessing.cache.reader import Cache
from preprocessing.phantom import FilmPlan

from .test_cli import typed

SIDE = 64
SQUARES = {"a": 12, "b": 16, "c": 20, "d": 14}
"""Sides of the one bright square of each abnormal film; the lesion of c is marked elsewhere, that of d nowhere."""


class Brightness(Detector):
    """Draws the film itself as its map, and scores by its mean: it points at the bright square."""

    score_names = ("max",)

    def players(self) -> dict[str, list[torch.nn.Module]]:
        return {}

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        return Prediction({"max": batch.film.flatten(1).mean(dim=1)}, batch.film if maps else None)


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """Normal films, and four abnormal ones with a bright square; d has no marked lesion."""
    from anomaly.cli.app import app  # noqa: F401  # the verbs
    from anomaly.pipeline.options import PreprocessOptions
    from anomaly.pipeline.preprocess import preprocess

    folder = tmp_path_factory.mktemp("squares")
    rows = ["path,label,patient,split,finding,difficulty,anomaly_mask"]
    for name in ("n1", "n2", *SQUARES):
        film, mask = np.full((SIDE, SIDE), 60, np.uint8), np.zeros((SIDE, SIDE), np.uint8)
        film[::2] += 10  # a film of one level is refused
        if name in SQUARES:
            square = slice(10, 10 + SQUARES[name])
            film[square, square] = 240
            mask[slice(40, 60) if name == "c" else square, square] = 255
        cv2.imwrite(str(folder / f"{name}.png"), film)
        marked = name in SQUARES and name != "d"
        if marked:
            cv2.imwrite(str(folder / f"{name}_lesion.png"), mask)
        label, kind = ("abnormal", f"kind {name}") if name in SQUARES else ("normal", "")
        difficulty = "" if name not in SQUARES else "subtle" if name == "b" else "obvious"
        rows.append(f"{name}.png,{label},{name},test,{kind},{difficulty},{f'{name}_lesion.png' if marked else ''}")
    (folder / "manifest.csv").write_text("\n".join(rows) + "\n")
    options = PreprocessOptions(
        folder / "manifest.csv", size=SIDE, recipe="plain", variants="raw", out=folder / "films.h5", workers=1
    )
    return Cache(preprocess(options).report.path)


@pytest.fixture
def detector() -> OpenRun:
    thresholds = {pooling: {unit: {"max": 0.5} for unit in ("film", "study", "patient")} for pooling in ("mean", "max")}
    calibration = Calibration(thresholds=thresholds, map_scale=0.5, quantile=0.95, films=2)  # type: ignore[arg-type]
    films = SimpleNamespace(synthetic=True)
    run = SimpleNamespace(
        path=Path("run"), finished=False, config=SimpleNamespace(size=SIDE, variant="raw", cache=films)
    )
    return OpenRun(run, TorchScorer(Brightness(), torch.device("cpu")), calibration, "cpu")  # type: ignore[arg-type]


def selected(cache: Cache, names: str = "") -> Selection:
    """Films of a cache: all of them, or the named ones."""
    keep = [row for row, path in enumerate(cache.index["path"]) if not names or Path(path).stem in names.split()]
    films = FilmSet(cache, "raw", np.array(keep), SIDE)
    return Selection(films, np.full(len(films), "test", dtype=object), "test")


def test_the_lesion_shown_is_the_highest_scored_that_the_map_points_at(squares: Cache, detector: OpenRun) -> None:
    lesion = find_lesion(detector, selected(squares), "max")
    # c scores higher, but its map peaks beside the lesion; d scores lower than b, and its lesion is not marked
    assert lesion is not None and lesion.heatmap.name.startswith("b") and (lesion.found, lesion.marked) == (2, 3)
    assert (lesion.finding, lesion.difficulty) == ("kind b", "subtle")
    assert str(lesion).startswith("the highest-scored of the 2 of 3 abnormal films")
    assert lesion.lesion[12, 12] and not lesion.lesion[50, 12]
    picture = lesion.picture("a title")
    assert picture.dtype == np.uint8 and picture.shape[1] == 2 * (picture.shape[0] - 28)


def test_no_lesion_is_shown_where_none_is_found(squares: Cache, detector: OpenRun) -> None:
    assert find_lesion(detector, selected(squares, "n1 n2 c d"), "max") is None
    assert find_lesion(detector, selected(squares, "n1 n2"), "max") is None


def test_films_of_the_sheet_are_chosen_by_their_place(squares: Cache, detector: OpenRun) -> None:
    films = selected(squares).films
    assert [*of_each_finding(films).column("finding")] == ["kind a", "kind b", "kind c"]
    assert [*of_each_finding(films, "obvious").column("finding")] == ["kind a", "kind c"]
    sheet = lesion_sheet([detector, detector], marked_films(films), 80)
    assert sheet.shape == (3 * 80, 3 * 80, 3)  # a row of films and one for each run
    np.testing.assert_array_equal(sheet[80:160], sheet[160:])


def observed(detectability: float, response: float, twin: float, patient: int = 1) -> Observed:
    return Observed(FilmPlan(patient, 1, 1, finding="lytic"), detectability, response, twin)


@pytest.mark.parametrize(
    ("figure", "films", "expected"),
    [
        (mean_ideal, [observed(0.0, 0, 0)], 0.5),  # nothing to see: chance
        (mean_ideal, [observed(40.0, 0, 0)], 1.0),
        (mean_ideal, [observed(2.0**0.5, 0, 0)], 0.8413447),  # Phi(1)
        (matched_filter, [observed(1, 3.0, 1.0), observed(1, 2.0, 0.0)], 1.0),
        (matched_filter, [observed(1, 1.0, 1.0)], 0.5),
    ],
)
def test_observers(figure: Callable[..., float], films: list[Observed], expected: float) -> None:
    assert figure(films) == pytest.approx(expected)


def test_the_interval_of_an_observer_holds_its_figure() -> None:
    rng = np.random.default_rng(0)
    films = [observed(float(d), float(r), float(t), n // 2) for n, (d, r, t) in enumerate(rng.random((40, 3)))]
    for figure in (mean_ideal, matched_filter):
        low, high = observer_interval(films, figure)
        assert low <= figure(films) <= high and high > low


def test_without_weights_the_demo_shows_the_cae_and_says_why(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly.models.pretrained._kept", lambda name: Path("nowhere") / name)
    monkeypatch.setattr("anomaly.models.pretrained.find_spec", lambda name: None)
    status, out, _ = typed(capsys, "demo", "--patients", 10, "--size", 64)
    assert (
        status == 0 and "pip install 'xray-anomaly[features]'" in out and "$ anomaly train feature_mixture" not in out
    )
    named = [line.split(":")[0].strip() for line in out.partition("Open these:")[2].splitlines() if "runs/" in line]
    assert named and all(Path(name).exists() for name in named if not name.startswith("next"))


def test_few_and_small_films_get_fewer_components_than_the_preset_has(cache: Cache) -> None:
    (setting,) = _fewer_components(cache.path)
    assert setting.startswith("components=") and 1 <= int(setting.partition("=")[2]) < 1000
