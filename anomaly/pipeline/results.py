"""The files of scored films: scores.csv, studies.csv, patients.csv, metrics.json, charts, pages."""

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.console import silent
from anomaly.evaluation.cohort import ScoredCohort
from anomaly.evaluation.evaluation import Evaluation
from anomaly.evaluation.figures import METRICS, Metrics, Pooling, Unit, read_metrics
from anomaly.evaluation.predict import predict
from anomaly.evaluation.requirements import without_figures
from anomaly.formatting import command_line
from anomaly.manifest import check_file, write_listed
from anomaly.models import about
from anomaly.pipeline.gallery import MOST_WRONG, SHOWN, Layers
from anomaly.pipeline.open_run import OpenRun
from anomaly.pipeline.scoring import PValues, ScoringResult, cohort_of, score_selection
from anomaly.pipeline.selection import Display, Selection, recorded_films
from anomaly.reporting.charts.reliability import reliability_png
from anomaly.reporting.context import ReportContext
from anomaly.reporting.galleries import Shown, gallery_rows
from anomaly.reporting.heatmap import blend, outlined
from anomaly.reporting.model_card import render_model_card
from anomaly.reporting.page import render_report, render_wrong
from anomaly.runs import read_csv, to_csv, to_json, write_atomic
from preprocessing import InputError
from preprocessing.where import LABELS
from preprocessing.wording import counted

CSV_FILES: dict[Unit, str] = {"film": "scores.csv", "study": "studies.csv", "patient": "patients.csv"}
PICTURES = {
    "reconstructions.png": "Validation films, their reconstructions and heatmaps",
    "maps.png": "Validation films and their heatmaps",
    "samples.png": "Generated films",
}
"""What a training draws, as the page shows it."""
Written = list[tuple[Path, str]]
"""Files, and in words what is in each."""


def write_results(result: ScoringResult, folder: Path) -> Written:
    """Write the files of scored films into a folder, and return them.

    Always scores.csv, studies.csv, patients.csv; with figures metrics.json and report.html too; wrong.html where films
    are ranked wrongly, and reliability.png of a supervised detector's probabilities. An older file of these two that
    would no longer belong to the others is removed.
    """
    written: Written = []
    for unit, name in CSV_FILES.items():
        columns = _csv_columns(result, unit)
        columns["out_of_domain"] = _flags(result.out_of_domain(unit), len(result.groups(unit).ids))
        write_listed(folder / name, to_csv(columns))
        written.append((folder / name, counted(len(result.groups(unit).ids), unit)))
    if result.evaluation is None:
        return written
    figures = result.evaluation.figures
    write_listed(folder / METRICS, to_json(figures.to_data()))
    written.append((folder / "metrics.json", "every figure"))
    reliabilities = {unit: classifier.reliability for unit, classifier in (figures.classes or {}).items()}
    diagram = reliability_png(reliabilities, synthetic=figures.synthetic)
    if _replace(folder / "reliability.png", diagram):
        written.append((folder / "reliability.png", "calibration of the probabilities (reliability diagram)"))
    context = _page_context(result.run, result.selection, result.evaluation, result.gallery.layers)
    return written + _write_pages(context, folder)


def _csv_columns(result: ScoringResult, unit: Unit) -> dict[str, Sequence[Any]]:
    """Return the columns of a unit's file: whose it is, its scores, whether the main one flags it, its p-value."""
    groups, cohort = result.groups(unit), result.scored.cohort
    columns: dict[str, Sequence[Any]] = {unit: groups.ids.tolist()}
    if unit == "film":
        columns |= {"study": cohort.study.tolist(), "patient": cohort.patient.tolist()}
    columns |= {"label": [LABELS[int(label)] for label in groups.labels], "split": cohort.split[groups.first].tolist()}
    columns |= {name: values.tolist() for name, values in groups.scores.items()}
    columns["flagged"] = (groups.scores[result.main] >= result.threshold(unit)).astype(int).tolist()
    columns |= _p_value_columns(result.p_values(unit), len(groups.ids))
    columns["synthetic"] = [int(cohort.synthetic)] * len(groups.ids)
    return columns


def _flags(flags: NDArray[np.bool_] | None, count: int) -> list[str]:
    """Return flags as 0 and 1, empty where they are not known."""
    return [""] * count if flags is None else flags.astype(int).astype(str).tolist()


def _p_value_columns(p_values: PValues | None, count: int) -> dict[str, Sequence[Any]]:
    """Return the p-values with their intervals, empty where there are none; q-values where they were asked for."""
    empty = [""] * count
    if p_values is None:
        return {"p_value": empty, "p_low": empty, "p_high": empty}
    columns = {"p_value": p_values.p.tolist(), "p_low": p_values.low.tolist(), "p_high": p_values.high.tolist()}
    return columns | ({} if p_values.q is None else {"q_value": p_values.q.tolist()})


def _replace(path: Path, content: bytes | str | None) -> bool:
    """Write a file; without content, remove what lies there from an earlier time. Whether there is one now."""
    if content is None:
        path.unlink(missing_ok=True)
        return False
    write_atomic(path, content)
    return True


# --- the pages ------------------------------------------------------------------------------------------------------


def write_page(
    run: OpenRun,
    cache_path: Path | None = None,
    *,
    by: str | None = None,
    pooling: Pooling = "mean",
    display: Display = silent,
) -> Written:
    """Write report.html and wrong.html of a run's test films anew, and return them.

    Scores and figures that are there already stand, and only films of the galleries pass the model; films that were not
    scored yet, or are no longer these, or whose figures are of another main score, pooling or threshold, and those of
    an unfinished run are scored now. `cache_path` says where the cache is, if not where it was; `by` and `pooling` are
    those of `score_selection`.
    """
    if lacking := without_figures():
        raise InputError(f"a page shows figures: {lacking}")
    selection = recorded_films(run.run, "test", cache_path)
    scores = _known_scores(run, selection)
    figures = None
    if scores is not None:
        figures = read_metrics(run.run)
    if scores is None or figures is None or not _as_chosen(figures, run, run.main_score(by), pooling):
        words = ["anomaly", "report", str(run.run.path), *(["--cache", str(cache_path)] if cache_path else [])]
        result = score_selection(run, selection, by=by, pooling=pooling, command=shlex.join(words), display=display)
        return write_results(result, run.run.path)
    evaluation = Evaluation(ScoredCohort(cohort_of(selection), scores, figures.settings), figures)
    places = sorted({place for places in _galleries(evaluation) for place in places})
    layers = _layers_of(run, selection, places)
    return _write_pages(_page_context(run, selection, evaluation, layers), run.run.path)


def _known_scores(run: OpenRun, selection: Selection) -> dict[str, NDArray[np.float64]] | None:
    """Return the scores of the films as scores.csv has them, or None where they or their figures are missing.

    Those of an unfinished run may be of an earlier checkpoint.
    """
    file = run.run.path / CSV_FILES["film"]
    if not run.run.finished or not file.is_file() or not (run.run.path / METRICS).is_file():
        return None
    again = command_line("anomaly", "score", run.run.path)
    check_file(file, f"run `{again}` to make it again")
    lines = read_csv(file, again)
    films = selection.films
    if [line.get("film") for line in lines] != films.cache.names[films.rows].tolist():
        return None
    head = list(lines[0])
    names = head[head.index("split") + 1 : head.index("flagged")]
    return {name: np.array([line[name] for line in lines], np.float64) for name in names}


def _as_chosen(figures: Metrics, run: OpenRun, main: str, pooling: Pooling) -> bool:
    """Whether figures are of the score, the pooling and the threshold that a run is now asked for."""
    flagged = figures.film[figures.score].threshold
    threshold = None if flagged is None else flagged.threshold
    at_work = run.calibration.thresholds[pooling]["film"][main]
    return figures.score == main and figures.settings.aggregate == pooling and threshold in (None, at_work)


def _layers_of(run: OpenRun, selection: Selection, places: Sequence[int]) -> dict[int, Layers]:
    """Pass some films through the model and return what is shown of each, by place."""
    films = selection.films.subset(np.array(places, np.int64))
    layers: dict[int, Layers] = {}
    for predicted in predict(run.model, films, maps=run.calibration.map_scale is not None):
        for index in range(len(predicted.films)):
            layers[places[predicted.places.start + index]] = Layers.of(predicted, index)
    return layers


def _galleries(evaluation: Evaluation) -> tuple[list[int], list[int], list[int]]:
    """Return the places of the films that score highest, are most wrong, and score lowest."""
    label, values = evaluation.scored.cohort.label, evaluation.scored.scores[evaluation.figures.score]
    highest, _, lowest = gallery_rows(label, values, SHOWN)
    _, wrong, _ = gallery_rows(label, values, MOST_WRONG)
    return highest, wrong, lowest


def _write_pages(context: ReportContext, folder: Path) -> Written:
    """Write report.html and model_card.md, and wrong.html where films are ranked wrongly."""
    written: Written = []
    if _replace(folder / "wrong.html", render_wrong(context) if context.wrong else None):
        written.append((folder / "wrong.html", f"the most wrong films ({len(context.wrong)})"))
    write_atomic(folder / "model_card.md", render_model_card(context))
    written.append((folder / "model_card.md", "the model card, with what is left to fill in"))
    write_atomic(folder / "report.html", render_report(context))
    return [*written, (folder / "report.html", "the page to open")]


def _page_context(
    run: OpenRun, selection: Selection, evaluation: Evaluation, layers: Mapping[int, Layers]
) -> ReportContext:
    """Return what the pages are made of."""
    config, films, calibration = run.run.config, selection.films, run.calibration
    figures, cache = evaluation.figures, config.cache
    values = evaluation.scored.scores[figures.score]
    highest, wrong, lowest = _galleries(evaluation)
    shown = {
        place: _shown(run, selection, place, float(values[place]), layers[place])
        for place in {*highest, *wrong, *lowest}
    }
    history = run.run.history()
    pictures = {about: run.run.path / name for name, about in PICTURES.items()}
    return ReportContext(
        title=run.run.path.name,
        model=f"{config.model} of {len(config.members)} runs"
        if config.members
        else f"{config.model} ({config.preset})",
        data=f"{films.cache.source}, variant {films.variant}, {films.size} px, split {figures.split}",
        evaluation=evaluation,
        about=about(config.model),
        supervised=run.model.targets == "labels",
        films=config.films,
        trainings=len(config.members) or 1,
        config=config.settings.model_dump(),
        facts={"seed": str(config.seed), "data hash": cache.content_hash[:12]},
        origin={
            "made": config.created,
            **({"made of": ", ".join(config.members)} if config.members else {}),
            "seed": str(config.seed),
            "splits": f"seed {config.split_seed}, {config.split_hash}",
            "data hash": cache.content_hash,
            "precision": f"{config.precision} on {config.device}",
            "films prepared by": cache.command,
            "page made by": figures.command,
        },
        versions=config.versions,
        history={name: [float(line[name]) for line in history] for name in (history[0] if history else {})},
        rule=calibration.chosen,
        map_scale=calibration.map_scale,
        map_unit=run.model.map_unit,
        highest=[shown[place] for place in highest],
        wrong=[shown[place] for place in wrong],
        lowest=[shown[place] for place in lowest],
        pictures={about: path.read_bytes() for about, path in pictures.items() if path.is_file()},
        failures=films.cache.failures,
        notes=[
            *(note for note in (run.note, run.remembered) if note),
            *figures.notes,
            *selection.notes,
            *calibration.notes,
            *run.run.warnings(),
        ],
    )


def _shown(run: OpenRun, selection: Selection, place: int, score: float, layers: Layers) -> Shown:
    """Return a film with all that the model and the cache have to lay over it."""
    films, scale = selection.films, run.calibration.map_scale
    part = films.part(slice(place, place + 1))
    film, mask, lesion = part.unit()[0], part.mask[0], films.marked(place)
    pictures: dict[str, NDArray[np.uint8]] = {}
    if layers.map is not None and scale is not None:
        pictures["heatmap"] = blend(film, layers.map, mask, scale)
    if layers.reconstruction is not None:
        pictures["reconstruction"] = np.rint(layers.reconstruction.clip(0, 1) * 255).astype(np.uint8)
    pictures["mask"] = outlined(film, mask)
    if lesion is not None:
        pictures["marked lesion"] = outlined(film, lesion, pictures.get("heatmap"))
    cache, row = films.cache, films.rows[place]
    facts = {name: str(cache.index[name][row]) for name in ("finding", "difficulty", "study", "patient")}
    return Shown(str(cache.names[row]), int(part.label[0]), score, film, pictures, facts)
