"""Each film passes a model once, whatever is wanted of it, and what a page shows is kept from that pass."""

import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import anomaly
from anomaly.cli.scoring import heatmap, report
from anomaly.cli.scoring import score as score_verb
from anomaly.data.dataset import Films
from anomaly.evaluation.figures import Metrics
from anomaly.evaluation.predict import PredictedFilms
from anomaly.evaluation.torch_scorer import TorchScorer
from anomaly.models.ensemble import Ensemble
from anomaly.pipeline import api, gallery, open_run, results, selection
from anomaly.pipeline.ensemble import combine
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.gallery import GalleryCollector
from anomaly.pipeline.open_run import OpenRun
from anomaly.pipeline.options import HeatmapOptions, Plan, ReportOptions, ScoreOptions
from anomaly.pipeline.plan import prepare
from anomaly.reporting.galleries import gallery_rows
from anomaly.runs import DiskFull, Run, read_csv
from anomaly.service import detector
from anomaly.service.detector import OpenRunFolder, Task
from preprocessing.cache.reader import Cache
from preprocessing.cache.writer import Writer

from .conftest import TINY

# --- passes ---


@dataclass
class Passes:
    """Films that opened models were given to predict, and that came to the first layer of each of their nets."""

    predicted: int = 0
    nets: dict[nn.Module, int] = field(default_factory=dict)

    def watch(self, opened: OpenRun) -> OpenRun:
        detector = cast(TorchScorer, opened.model).detector
        predict = detector.predict

        def counted(batch: Any, **more: Any) -> Any:
            self.predicted += len(batch.film)
            return predict(batch, **more)

        detector.predict = counted  # type: ignore[method-assign]
        for net in detector.members if isinstance(detector, Ensemble) else [detector]:
            first = next(part for part in net.modules() if [*part.parameters(recurse=False)])
            self.nets[first] = 0
            first.register_forward_pre_hook(self._see)
        return opened

    def _see(self, layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        self.nets[layer] += len(inputs[0])

    def take(self) -> set[int]:
        """Return every count since the last time, each once."""
        counts = {self.predicted, *self.nets.values()}
        self.predicted, self.nets = 0, {}
        return counts


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Passes:
    """Those of every run that a verb opens."""
    counts, really = Passes(), open_run.open_run
    monkeypatch.setattr(open_run, "open_run", lambda *given: counts.watch(really(*given)))
    return counts


@pytest.fixture(scope="module")
def trained(run: Run, cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    """A run of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    runs = {"cae": Run(Path(shutil.copytree(run.path, folder / "cae")))}
    for name, model, preset in (("classifier", "classifier", "cnn"), ("vae", "vae", "standard")):
        prepared = prepare(Plan(model, cache.path, "full-he", preset, TINY, device="cpu"))
        made = continue_or_create(prepared, folder / name, resume=False)
        runs[name] = fit(prepared, made, workers=0, on_epoch=lambda report: None)
    runs["ensemble"] = combine([runs["cae"], runs["vae"]], folder / "ensemble", None, torch.device("cpu"))
    return runs


KINDS = pytest.mark.parametrize("kind", ["cae", "classifier", "ensemble"])


@KINDS
def test_score_and_report_pass_each_film_once(
    kind: str, trained: dict[str, Run], passes: Passes, films: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly.data.dataset.chunk_length", lambda size: 5)  # the last chunk is a smaller one
    run, several = trained[kind], sorted(films.rglob("image1.png"))[:3]
    count = len(open_run.run_films(run, "test")[0])
    score_verb(ScoreOptions(run.path, device="cpu"))
    assert passes.take() == {count} and count > 10
    score_verb(ScoreOptions(run.path, several, out=Path("new"), device="cpu", workers=1))
    assert passes.take() == {3}

    for module in (gallery, results):
        monkeypatch.setattr(module, "SHOWN", 1)
        monkeypatch.setattr(module, "MOST_WRONG", 2)
    report(ReportOptions(run.path, device="cpu"))
    lines = read_csv(run.path / "scores.csv")
    label = [["normal", "abnormal"].index(line["label"]) for line in lines]
    values = [float(line[run.read("metrics.json", Metrics).score]) for line in lines]
    highest, _, lowest = gallery_rows(label, values, 1)
    shown = {*highest, *lowest, *gallery_rows(label, values, 2)[1]}
    (run.path / "scores.csv").unlink()
    assert passes.take() == {len(shown)} and len(shown) <= 4
    report(ReportOptions(run.path, device="cpu"))
    assert passes.take() == {count}, "films that were not scored are scored once, galleries included"


def test_a_service_that_draws_prepares_and_passes_each_film_once(
    trained: dict[str, Run], passes: Passes, films: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    prepared: list[object] = []
    build = selection.build
    monkeypatch.setattr(selection, "build", lambda *given, **named: prepared.append(given) or build(*given, **named))
    monkeypatch.setattr(api, "open_run", open_run.open_run)  # the counted one
    scorer = OpenRunFolder(trained["cae"].path, device="cpu")()
    several = sorted(films.rglob("image1.png"))[:3]
    drawn = [Task(str(i), film, tmp_path, str(i), ("png", "npy")) for i, film in enumerate(several)]
    results = scorer.score([Task("plain", several[0], tmp_path, "plain"), *drawn])
    assert passes.take() == {4} and len(prepared) == 2
    plain, first = results[0].parts[0], results[1].parts[0]
    assert plain.scores == pytest.approx(first.scores, rel=1e-5) and plain.p_value == first.p_value
    assert first.files == ["heatmap.png", "heatmap.npy"] and not plain.files
    (alone,) = anomaly.load(trained["cae"].path, device="cpu").heatmap(several[0], space="film")
    np.testing.assert_allclose(np.load(tmp_path / "0_heatmap.npy"), alone.map, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
@pytest.mark.parametrize("at", ["append", "build", "write_atomic"])
def test_a_failing_disk_is_no_fault_of_the_film(
    at: str, number: int, trained: dict[str, Run], films: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    several = sorted(films.rglob("image1.png"))[:2]
    scorer = OpenRunFolder(trained["cae"].path, device="cpu")()

    def failing(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "films.h5")

    places = {"append": (Writer, "append"), "build": (selection, "build"), "write_atomic": (detector, "write_atomic")}
    monkeypatch.setattr(*places[at], failing)
    with pytest.raises(DiskFull, match=f"films.h5: {os.strerror(number)}"):
        scorer.score([Task(str(i), film, tmp_path, str(i)) for i, film in enumerate(several)])
    assert not [*tmp_path.glob("*.json")]


@KINDS
@pytest.mark.parametrize("limit", [None, 2])
def test_heatmap_passes_each_film_once(kind: str, limit: int | None, trained: dict[str, Run], passes: Passes) -> None:
    run = trained[kind]
    heatmap(HeatmapOptions(run.path, formats="npy", limit=limit, out=Path("maps"), device="cpu"))
    count = len(open_run.run_films(run, "test")[0])
    assert passes.take() == {count}
    assert len([*Path("maps").rglob("*.npy")]) == (limit or count)


# --- what is kept for a page ---


@st.composite
def scored_films(draw: st.DrawFn) -> tuple[list[int], list[float], list[int]]:
    """Labels and scores, with ties, and where the films are cut into chunks."""
    films = draw(st.lists(st.tuples(st.sampled_from([-1, 0, 1]), st.integers(-4, 4)), min_size=1, max_size=40))
    cuts = draw(st.sets(st.integers(1, len(films))))
    return [label for label, _ in films], [float(score) for _, score in films], sorted({0, *cuts, len(films)})


def predicted(labels: list[int], scores: list[float], cuts: list[int], *, maps: bool) -> Iterator[PredictedFilms]:
    """Films of 4 x 4 pixels whose map and reconstruction say which place they have."""
    label, score = np.array(labels, np.int8), np.array(scores)
    code = np.arange(len(label), dtype=np.float32)[:, None, None] * np.ones((1, 4, 4), np.float32)
    for start, stop in pairwise(cuts):
        places = slice(start, stop)
        films = Films(code[places].astype(np.uint8), np.ones((stop - start, 4, 4), bool), label[places])
        reconstructions = code[places].copy()
        yield PredictedFilms(places, films, {"mse": score[places]}, code[places] if maps else None, reconstructions)
        reconstructions[:] = -1  # what is kept must not change with an array of the pass


@given(scored_films(), st.integers(1, 4), st.integers(1, 6), st.booleans())
def test_what_galleries_show_is_kept_and_no_more_than_can_be_shown(
    films: tuple[list[int], list[float], list[int]], shown: int, most_wrong: int, maps: bool
) -> None:
    labels, scores, cuts = films
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gallery, "SHOWN", shown)
        patch.setattr(gallery, "MOST_WRONG", most_wrong)
        collector = GalleryCollector("mse")
        for part in predicted(labels, scores, cuts, maps=maps):
            collector.add(part)
            done = part.places.stop
            highest, _, lowest = gallery_rows(labels[:done], scores[:done], shown)
            wrong = gallery_rows(labels[:done], scores[:done], most_wrong)[1]
            assert {*highest, *wrong, *lowest} <= collector.layers.keys()
            # A film is as wrong as the other class makes it, which is known at the end only: the extremes of both.
            normal = sorted((-scores[place], place) for place in range(done) if labels[place] == 0)[:most_wrong]
            abnormal = sorted((scores[place], place) for place in range(done) if labels[place] == 1)[:most_wrong]
            assert collector.layers.keys() == {*highest, *lowest, *(place for _, place in (*normal, *abnormal))}
    for place, layers in collector.layers.items():
        assert layers.reconstruction is not None and (layers.reconstruction == place).all()
        assert (layers.map is not None) == maps
        if layers.map is not None:
            np.testing.assert_allclose(layers.map, place, rtol=1e-5)
