"""A run measured and shown: scores.csv, metrics.json, tables, charts, heatmap files, the pages."""

import csv
import shlex
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.data.batch import as_batch
from anomaly.data.dataset import brought_to
from anomaly.data.splits import LABELS
from anomaly.evaluation.calibration import LEVELS, Calibration, read_calibration
from anomaly.evaluation.classification import evaluate_classes
from anomaly.evaluation.figures import TRIVIAL, Pooling, aggregate, evaluate
from anomaly.evaluation.pixels import pixel_roc_auc
from anomaly.evaluation.predict import View, maps, score
from anomaly.formatting import markdown
from anomaly.models import TOOLS
from anomaly.models.base import Detector
from anomaly.pipeline.open_run import open_model, run_view
from anomaly.reporting.heatmap import blend
from anomaly.reporting.page import ReportContext, Shown, gallery_rows, reliability_png, render_report, render_wrong
from anomaly.runs import Run, to_csv, to_json, write_atomic
from preprocessing import InputError

if TYPE_CHECKING:
    pass
from anomaly.reporting.text import summary
from preprocessing.wording import counted

MOST_WRONG = 40
"""Films on the page of the most wrong ones, at most."""
PICTURES = {
    "reconstructions.png": "Validation films, their reconstructions and heatmaps",
    "maps.png": "Validation films and their heatmaps",
    "samples.png": "Films that the model made up",
}
"""What a training draws, as the page shows it."""

# --- scores ---------------------------------------------------------------------------------------------------------


def score_films(
    run: Run,
    model: Detector,
    view: View,
    device: torch.device,
    folder: Path,
    *,
    split: NDArray[Any],
    main: str,
    how: Pooling,
    command: str,
    on_films: Callable[[int], None],
) -> list[str]:
    """Score the view into `folder` and return lines to print.

    Always scores.csv, studies.csv, patients.csv; with labels metrics.json and report.html too; wrong.html where films
    are ranked wrongly, and reliability.png of a supervised detector's probabilities. An older file of these two that
    would no longer belong to the others is removed.

    split    (n,) the split of each film of the run's cache, "new" for others. Where one of them is "train" there are no
             figures: the model has seen these films.
    main     the score that flags, ranks and is reported first.
    how      films -> study, patient.
    command  what was typed, for the page.
    """
    scores = score(model, view, device, on_films)
    calibration = read_calibration(run)
    thresholds = calibration.thresholds[how]
    columns = {name: view.column(name) for name in ("study", "patient", "label", "finding", "difficulty")}
    columns["film"] = view.cache.names[view.rows]  # each hand of two is a film of its own
    lines = []
    for level, file in zip(LEVELS, ("scores.csv", "studies.csv", "patients.csv"), strict=True):
        ids = columns[level]
        groups = {name: aggregate(ids, values, columns["label"], how) for name, values in scores.items()}
        one = groups[main]
        out: dict[str, Sequence[Any]] = {level: one.ids.tolist()}
        if level == "film":
            out |= {name: columns[name].tolist() for name in ("study", "patient")}
        out |= {"label": [LABELS[int(x)] for x in one.labels], "split": split[one.first].tolist()}
        out |= {name: group.scores.tolist() for name, group in groups.items()}
        out["flagged"] = (one.scores >= thresholds[level][main]).astype(int).tolist()
        out["synthetic"] = [int(view.cache.synthetic)] * len(one.ids)
        write_atomic(folder / file, to_csv(out))
        lines.append(f"{folder / file}: {counted(len(one.ids), level)}")
    if set(split) == {"new"}:
        return [*_each(columns["film"], scores[main], main, thresholds["film"][main], calibration, run), *lines]
    if "train" in split:
        return [*lines, "no figures: the model was trained on some of these films"]
    figures = evaluate(columns, scores, thresholds=thresholds, trivial=TRIVIAL, how=how)
    figures |= {"run": str(run.path), "split": "+".join(sorted(set(split))), "synthetic": view.cache.synthetic}
    figures |= {"score": main, "command": command}
    figures["pixel"] = _pixels(model, view, device, calibration.map_scale)
    if model.supervised and _probabilities(scores[main]):
        chosen = {level: thresholds[level][main] for level in LEVELS}
        figures["classes"] = evaluate_classes(columns, scores[main], chosen, how=how)
        figures["chosen_on"] = calibration.films
    write_atomic(folder / "metrics.json", to_json(figures))
    chart = reliability_png(figures.get("classes", {}), synthetic=view.cache.synthetic)
    drawn = _kept(folder / "reliability.png", chart)
    pages = _write_pages(page_context(run, model, view, device, scores, figures, main, command), folder)
    return [
        *lines,
        f"{folder / 'metrics.json'}: every figure",
        *summary(figures, main),
        *([f"{drawn}: how far the probabilities can be taken at their word"] if drawn else []),
        *pages,
    ]


def _probabilities(values: NDArray[np.float64]) -> bool:
    """Return whether scores can be probabilities: a supervised detector may have others to flag by."""
    return bool(((values >= 0) & (values <= 1)).all())


def _kept(path: Path, content: bytes | str | None) -> Path | None:
    """Write a file and return its path; without content, remove what lies there from an earlier time."""
    if content is None:
        path.unlink(missing_ok=True)
        return None
    write_atomic(path, content)
    return path


def _each(
    film: NDArray[Any],
    value: NDArray[np.float64],
    name: str,
    threshold: float,
    calibration: Calibration,
    run: Run,
) -> list[str]:
    order = np.argsort(-value, kind="stable")
    rows = [(str(film[i]), f"{value[i]:.6g}", "flagged" if value[i] >= threshold else "") for i in order]
    trained = "SYNTHETIC films" if run.config["cache"]["synthetic"] else f"films of {run.config['cache']['source']}"
    if calibration.rule == "youden":
        rule = "the threshold was chosen on labelled validation films (Youden's index)"
    else:
        rule = f"{1 - calibration.quantile:.0%} of their validation normals reach the threshold"
    return [*markdown(["film", name, f"at {threshold:.6g}"], rows), f"{run.path} was trained on {trained}; {rule}"]


def _pixels(model: Detector, view: View, device: torch.device, scale: float | None) -> dict[str, Any] | None:
    """Return how well the maps find the lesions of abnormal films, or None where no truth or no map is there."""
    wanted = view.rows[view.cache.has_truth[view.rows] & (view.column("label") == 1)]
    if not len(wanted) or scale is None:
        return None
    return pixel_roc_auc(_with_truth(model, View(view.cache, view.variant, wanted, view.size), device))


def _with_truth(model: Detector, view: View, device: torch.device) -> Iterator[tuple[Any, Any, Any]]:
    for row, drawn, _, mask in maps(model, view, device):
        truth = view.cache.anomaly(view.variant, np.array([row]))
        if truth is not None:
            yield drawn, brought_to(truth[0], view.size), mask


# --- the pages ------------------------------------------------------------------------------------------------------


def run_page(
    run: Run,
    cache_path: Path | None = None,
    device: torch.device | None = None,
    *,
    on_films: Callable[[int], None] = lambda count: None,
) -> list[str]:
    """Write report.html and wrong.html of a run's test films anew, and return lines to print.

    What `score_films` found of them stands; films that were not scored yet, or are no longer these, are scored now.

    cache_path  where the run's cache is, if not where it was.    device  the CPU unasked.    on_films  told of films
    as they are scored, if they are. Raises InputError for a run that is no detector's, is unfinished, has lost its
    cache or has no test films.
    """
    if run.config["model"] in TOOLS:
        raise InputError(f"{run.path} prepares films and has no page; `anomaly score {run.path}` measures it")
    place = device or torch.device("cpu")
    model = open_model(run, place)
    cache, split = run_view(run, cache_path)
    rows = np.flatnonzero(split == "test")
    if not len(rows):
        raise InputError(f"{cache.path} has no films in test; `anomaly score {run.path} --split val` has a page too")
    view = View(cache, run.config["variant"], rows, run.config["size"])
    known = _known_scores(run, view)
    if known is None:
        words = ["anomaly", "report", str(run.path), *(["--cache", str(cache_path)] if cache_path else [])]
        return score_films(
            run,
            model,
            view,
            place,
            run.path,
            split=split[rows],
            main=model.score_names[0],
            how="mean",
            command=shlex.join(words),
            on_films=on_films,
        )
    figures = run.read_json("metrics.json")
    main = figures.get("score", model.score_names[0])
    command = figures.get("command", f"anomaly score {run.path}")
    return _write_pages(page_context(run, model, view, place, known, figures, main, command), run.path)


def _known_scores(run: Run, view: View) -> dict[str, NDArray[np.float64]] | None:
    """Return the scores of the view's films as scores.csv has them, or None where they or their figures are missing."""
    file = run.path / "scores.csv"
    if not file.is_file() or not (run.path / "metrics.json").is_file():
        return None
    with file.open(newline="") as lines:
        head, *rows = list(csv.reader(lines))
    if [row[0] for row in rows] != view.cache.names[view.rows].tolist():
        return None
    names = head[head.index("split") + 1 : head.index("flagged")]
    values = np.array([row[head.index(names[0]) : head.index("flagged")] for row in rows], np.float64)  # (n, scores)
    return dict(zip(names, values.T, strict=True))


def _write_pages(context: ReportContext, folder: Path) -> list[str]:
    """Write report.html, and wrong.html where films are ranked wrongly; return lines to print."""
    wrong = _kept(folder / "wrong.html", render_wrong(context) if context.wrong else None)
    write_atomic(folder / "report.html", render_report(context))
    return [
        *([f"{wrong}: the most wrong films ({len(context.wrong)})"] if wrong else []),
        f"{folder / 'report.html'}: the page to open",
    ]


def page_context(
    run: Run,
    model: Detector,
    view: View,
    device: torch.device,
    scores: dict[str, NDArray[np.float64]],
    figures: dict[str, Any],
    main: str,
    command: str,
) -> ReportContext:
    """Return what the pages are made of; heatmaps are drawn for their galleries alone."""
    calibration, config, cache = read_calibration(run), run.config, run.config["cache"]
    label = view.column("label")
    highest, _, lowest = gallery_rows(label, scores[main])
    _, wrong, _ = gallery_rows(label, scores[main], MOST_WRONG)
    films = {
        i: _film(model, view, device, i, scores[main][i], calibration.map_scale) for i in {*highest, *wrong, *lowest}
    }
    lines, members = run.history(), config.get("members", [])
    about = next(iter((type(model).__doc__ or "").strip().splitlines()), "")
    return ReportContext(
        title=run.path.name,
        model=f"{config['model']} of {len(members)} runs" if members else f"{config['model']} ({config['preset']})",
        data=f"{cache['source']}, variant {view.variant}, {view.size} px, split {figures['split']}",
        synthetic=view.cache.synthetic,
        score=main,
        labels=label,
        studies=view.column("study"),
        patients=view.column("patient"),
        scores=scores,
        metrics=figures,
        about=about,
        supervised=model.supervised,
        films=config["films"],
        trainings=len(members) or 1,
        config=config["settings"],
        facts={"seed": str(config["seed"]), "data hash": cache["content_hash"][:12]},
        origin={
            "made": config["created"],
            **({"made of": ", ".join(members)} if members else {}),
            "seed": str(config["seed"]),
            "splits": f"seed {config['split_seed']}, {config['split_hash']}",
            "data hash": cache["content_hash"],
            "precision": f"{config['precision']} on {config['device']}",
            "films prepared by": cache["command"],
            "page made by": command,
        },
        versions=config["versions"],
        history={name: [float(line[name]) for line in lines] for name in (lines[0] if lines else {})},
        threshold=calibration.thresholds[figures["settings"]["aggregate"]]["film"][main],
        rule=calibration.rule,
        pixels=figures["pixel"],
        map_scale=calibration.map_scale,
        map_unit=model.map_unit,
        highest=[films[i] for i in highest],
        wrong=[films[i] for i in wrong],
        lowest=[films[i] for i in lowest],
        pictures={
            words: (run.path / name).read_bytes() for name, words in PICTURES.items() if (run.path / name).is_file()
        },
        failures=view.cache.failures,
        notes=run.warnings(),
    )


@torch.inference_mode()
def _film(model: Detector, view: View, device: torch.device, i: int, value: float, scale: float | None) -> Shown:
    """Return a film with all that the model and the cache have to lay over it."""
    row, index = int(view.rows[i]), view.cache.index
    one = View(view.cache, view.variant, np.array([row]), view.size)
    films = next(one.chunks())[1]
    film, mask = films.unit()[0], films.mask[0]
    truth = view.cache.anomaly(view.variant, np.array([row])) if view.cache.has_truth[row] else None
    layers = {}
    if scale is not None:
        _, drawn, _, _ = next(maps(model, one, device))
        layers["heatmap"] = blend(film, drawn, mask, scale)
    made = model.reconstruct(as_batch(films, device))
    if made is not None:
        layers["reconstruction"] = np.rint(made[0, 0].float().clamp(0, 1).cpu().numpy() * 255).astype(np.uint8)
    layers["mask"] = _outlined(film, mask)
    if truth is not None:
        layers["marked lesion"] = _outlined(film, brought_to(truth[0], view.size), layers.get("heatmap"))
    facts = {name: str(index[name][row]) for name in ("finding", "difficulty", "study", "patient")}
    return Shown(str(view.cache.names[row]), int(index["label"][row]), float(value), film, layers, facts)


def _outlined(film: NDArray[Any], mask: NDArray[np.bool_], under: NDArray[np.uint8] | None = None) -> NDArray[np.uint8]:
    """Return a film with a mask's border in green: (H, W) in [0, 1], (H, W) -> (k H, k W, 3), k = 4 below 256 px.

    under  (H, W, 3) a picture to draw on instead of the film; without it, what lies outside the mask is green too.
    """
    import cv2

    grey = np.rint(np.clip(film, 0, 1) * 255).astype(np.uint8)
    picture = grey[..., None].repeat(3, axis=2) if under is None else under.copy()
    color = (53, 199, 155)
    if under is None:
        picture[~mask] = np.rint(0.65 * picture[~mask] + 0.35 * np.array(color)).astype(np.uint8)
    zoom = 4 if max(film.shape) < 256 else 1  # the line stays thin on a small film
    size = (film.shape[1] * zoom, film.shape[0] * zoom)
    picture = np.ascontiguousarray(cv2.resize(picture, size, interpolation=cv2.INTER_LINEAR), np.uint8)
    large = cv2.resize(mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    borders, _ = cv2.findContours(large, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, borders, -1, color, 2)
    return picture
