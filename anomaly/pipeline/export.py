"""Exporting a run: `anomaly export` makes of it a bundle that is scored with onnxruntime alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.data.batch import Batch, as_batch
from anomaly.data.dataset import FilmSet
from anomaly.evaluation.calibration import Calibration
from anomaly.evaluation.named_calibration import REFITTED, calibration_folder, named_calibration
from anomaly.export.bundle import MODEL, PROBE, Bundle, check_place, is_bundle, write_bundle
from anomaly.export.card import LICENCE, licence_texts, model_card
from anomaly.export.graph import OPSET, Graph, detector_graph, example
from anomaly.export.layouts import LAYOUTS, Layout, layout_files
from anomaly.export.net_graphs import net_graph
from anomaly.export.onnx_session import open_session
from anomaly.export.probe import Difference, compare, run_graph
from anomaly.export.pullback import UnknownLayer
from anomaly.export.run_copy import run_files
from anomaly.models import find_detector, zoo
from anomaly.models.base import Detector
from anomaly.pipeline.backend import recorded_nets
from anomaly.pipeline.open_run import run_films
from anomaly.runs import Run, sha256, versions
from anomaly.training.weights import load_weights, resume_command
from preprocessing import InputError

CPU = torch.device("cpu")
WRONG = 1e-3
"""A difference from torch on the made-up films from which a graph is refused: that is no rounding."""
ROUNDING = 1e-7
"""Of a film's levels in float32, relative."""
PROBED = 3
"""Made-up films of the probe."""
MOST_CHECKED = 64
"""Films of the test split that `--check` scores by both, taken evenly."""


@dataclass(frozen=True)
class Exported:
    """A bundle that was made."""

    folder: Path
    bundle: Bundle
    probe: Sequence[Difference]  # on the made-up films, on this machine
    model: Detector
    calibration: Calibration


def export_run(run: Run, out: Path | None = None, *, calibration: str | None = None, layout: str = "plain") -> Exported:
    """Write the bundle of a finished run.

    out  its folder; None: `bundle` in that of the run.    calibration  the one beside the run's own that the bundle has
    as its own.    layout  "plain", or that of "monai" or "hf" besides. Raises InputError where the run is unfinished,
    the folder is no bundle, or the graph doesn't give what torch gives.
    """
    if layout not in LAYOUTS:
        raise InputError(f"no layout {layout!r}; there are: {', '.join(LAYOUTS)}")
    if is_bundle(run.path):
        raise InputError(f"{run.path} is a bundle already; name the run that it was made of")
    kind = find_detector(run.config.model)
    if not run.finished:
        raise InputError(f"{run.path} is unfinished; {resume_command(run)} resumes it")
    if missing := [package for package in ("onnx", "onnxruntime") if find_spec(package) is None]:
        raise InputError(f"exporting needs {' and '.join(missing)}: pip install 'xray-anomaly[export]'")
    folder = out or run.path / "bundle"
    check_place(folder)
    found = named_calibration(run, calibration)
    refitted = None if calibration is None else calibration_folder(run, calibration) / REFITTED
    model = load_weights(run, kind, CPU, refitted if refitted and refitted.is_file() else None)
    graph, notes = _graph(model, run.config.size)
    probe, differences = _probe(model, graph, run.config.size, _spread(found, model.score_names))
    _refuse_wrong(run, differences)
    rounding = {row.output: row.at_most for row in differences}
    files, left_out = run_files(run, calibration)
    bundle = _record(run, model, graph, calibration, [*notes, *left_out])
    nets: dict[str, Any] = {}
    for part, net in recorded_nets(run).named().items():
        nets[part], files[nets[part].file] = net_graph(part, net)
    bundle = bundle.model_copy(update={"nets": nets, "rounding": rounding})
    about = next(iter((kind.__doc__ or "").strip().splitlines()), "")
    card, licence = model_card(run, bundle, found, about), licence_texts(run.config)
    files |= {MODEL: graph.content, PROBE: probe, "model_card.md": card.encode(), "LICENSE.txt": licence.encode()}
    chosen: Layout = next(name for name in LAYOUTS if name == layout)
    files |= layout_files(chosen, bundle, card, licence, graph.content)
    return Exported(folder, write_bundle(folder, bundle, files), differences, model, found)


def check_export(exported: Exported, run: Run, cache: Path | None = None) -> tuple[list[Difference], int]:
    """Score films of the run's test split by torch and by the bundle, and return the differences, and of how many.

    cache  where the run's cache is now, if not where it was.
    """
    films = _evenly(run_films(run, "test", cache)[0], MOST_CHECKED)
    model, session = exported.model, open_session(exported.folder / MODEL, threads=1)
    expected: list[dict[str, NDArray[Any]]] = []
    found: list[dict[str, NDArray[Any]]] = []
    pictures = any(tensor.name == "map" for tensor in exported.bundle.outputs)
    for _, part in films.chunks():
        batch = as_batch(part, CPU)
        expected.append(_predicted(model, batch, maps=pictures))
        found.append(run_graph(session, batch.film.numpy(), batch.mask.numpy()))
    spread = _spread(exported.calibration, model.score_names)
    if exported.calibration.normals is None:  # a run of format 4
        spread = _joined(expected)["scores"].std(axis=0)
    thresholds = exported.calibration.thresholds["mean"]["film"]
    names, rounding = list(model.score_names), exported.bundle.rounding
    return compare(names, _joined(expected), _joined(found), spread, thresholds, rounding), len(films)


def _joined(parts: Sequence[dict[str, NDArray[Any]]]) -> dict[str, NDArray[Any]]:
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _evenly(films: FilmSet, most: int) -> FilmSet:
    places = np.linspace(0, len(films) - 1, min(most, len(films))).round().astype(np.int64)
    return films.subset(places)


def _graph(model: Detector, size: int) -> tuple[Graph, list[str]]:
    """Return the graph, and what it lacks."""
    try:
        return detector_graph(model, size), []
    except UnknownLayer as layer:
        note = (
            f"the map isn't in the graph: its gradient through {layer} isn't written out; `anomaly heatmap` of the run "
            "draws it"
        )
        return detector_graph(model, size, maps=False), [note]


def _probe(model: Detector, graph: Graph, size: int, spread: NDArray[np.float64]) -> tuple[bytes, list[Difference]]:
    """Return the made-up films with what torch says of them, as safetensors, and how far the graph is off."""
    from safetensors.numpy import save

    film, mask = example(PROBED, size)
    maps = any(tensor.name == "map" for tensor in graph.outputs)
    expected = _predicted(model, Batch(film, mask, torch.full((PROBED,), -1)), maps=maps)
    session = open_session(graph.content, threads=1)
    found = run_graph(session, film.numpy(), mask.numpy())
    single = [run_graph(session, film[i : i + 1].numpy(), mask[i : i + 1].numpy()) for i in range(PROBED)]
    alone = {name: np.concatenate([one[name] for one in single]) for name in found}
    names = list(model.score_names)
    generator = torch.Generator().manual_seed(0)
    # What torch's own numbers move by where the film does by its rounding, two libraries can't agree on. A gradient,
    # such as Grad-CAM's, jumps where a ReLU opens.
    nudged = film * (1 + ROUNDING * torch.randn(film.shape, generator=generator))
    moved = _predicted(model, Batch(nudged, mask, torch.full((PROBED,), -1)), maps=maps)
    rounding = {row.output: max(row.at_most, 10 * row.largest) for row in compare(names, expected, moved, spread)}
    differences = max(
        (compare(names, expected, these, spread, rounding=rounding) for these in (found, alone)),
        key=lambda rows: max(row.largest / row.at_most for row in rows),
    )
    arrays = {"film": film.numpy(), "mask": mask.numpy(), "spread": spread} | expected
    return save({name: np.ascontiguousarray(array) for name, array in arrays.items()}), differences


def _predicted(model: Detector, batch: Batch, *, maps: bool) -> dict[str, NDArray[Any]]:
    with torch.inference_mode():
        prediction = model.predict(batch, maps=maps)
    scores = np.stack([prediction.scores[name].double().numpy() for name in model.score_names], axis=1)
    drawn = {"map": prediction.map, "reconstruction": prediction.reconstruction}
    return {"scores": scores} | {name: tensor.float().numpy() for name, tensor in drawn.items() if tensor is not None}


def _spread(calibration: Calibration, names: Sequence[str]) -> NDArray[np.float64]:
    """Return the standard deviation of each score among the normal validation films, 0 where they weren't kept."""
    if calibration.normals is None:
        return np.zeros(len(names))
    return np.array([np.std(calibration.normals.scores.get(name, [0.0])) for name in names])


def _refuse_wrong(run: Run, differences: Sequence[Difference]) -> None:
    worst = max(differences, key=lambda row: row.largest / row.at_most)
    if not worst.largest <= max(WRONG, worst.at_most):
        raise InputError(
            f"the graph of {run.path} gives another {worst.output} than torch (by {worst.largest:.1g} on made-up "
            "films), so no bundle was written; its model may do what tracing can't follow"
        )


def _record(run: Run, model: Detector, graph: Graph, calibration: str | None, notes: list[str]) -> Bundle:
    config = run.config
    entry = zoo().get(config.model)
    packages = versions(entry.package if entry else None)
    return Bundle(
        model=config.model,
        score_names=list(model.score_names),
        map_unit=model.map_unit,
        size=config.size,
        opset=OPSET,
        inputs=graph.inputs,
        outputs=graph.outputs,
        labelled=model.targets == "labels",
        calibration=calibration,
        synthetic=config.cache.synthetic,
        run=run.path.resolve().name,
        run_sha256=sha256(run.path / "weights.safetensors"),
        versions=packages | _onnx_versions(),
        licence=LICENCE,
        notes=notes,
    )


def _onnx_versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("onnx", "onnxruntime")}
