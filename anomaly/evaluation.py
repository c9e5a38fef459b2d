"""A run measured and shown: scores.csv, metrics.json, tables, charts, heatmap files, the pages."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.classification import classes_table, evaluate_classes, report_table
from anomaly.data import LABELS, brought_to
from anomaly.detector import Detector
from anomaly.heatmap import blend, overlay, to_film_space, write_map, write_png
from anomaly.metrics import TRIVIAL, Pooling, aggregate, evaluate, markdown, number, pixel_roc_auc, table, with_interval
from anomaly.report import ReportContext, Shown, gallery_rows, reliability_png, render_report, render_wrong
from anomaly.runs import Run, inside, to_csv, to_json, write_atomic
from anomaly.score import LEVELS, Calibration, View, maps, read_calibration, score
from preprocessing import InputError
from preprocessing.readers import read_film

if TYPE_CHECKING:
    from preprocessing.sources import Source

MAP_FORMATS = ("png", "tiff", "npy")
MOST_WRONG = 40
"""Films on the page of the most wrong ones, at most."""

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
        lines.append(f"{folder / file}: {len(one.ids)} {'films' if level == 'film' else file.removesuffix('.csv')}")
    if set(split) == {"new"}:
        return [*_each(columns["film"], scores[main], main, thresholds["film"][main], calibration, run), *lines]
    if "train" in split:
        return [*lines, "no figures: the model was trained on some of these films"]
    figures = evaluate(columns, scores, thresholds=thresholds, trivial=TRIVIAL, how=how)
    figures |= {"run": str(run.path), "split": "+".join(sorted(set(split))), "synthetic": view.cache.synthetic}
    figures["pixel"] = _pixels(model, view, device, calibration.map_scale)
    if model.supervised and _probabilities(scores[main]):
        chosen = {level: thresholds[level][main] for level in LEVELS}
        figures["classes"] = evaluate_classes(columns, scores[main], chosen, how=how)
    write_atomic(folder / "metrics.json", to_json(figures))
    chart = reliability_png(figures.get("classes", {}), synthetic=view.cache.synthetic)
    drawn = _kept(folder / "reliability.png", chart)
    context = page_context(run, model, view, device, scores, figures, main, command)
    wrong = _kept(folder / "wrong.html", render_wrong(context) if context.wrong else None)
    write_atomic(folder / "report.html", render_report(context))
    return [
        *lines,
        f"{folder / 'metrics.json'}: every figure",
        *summary(figures, main),
        *([f"{drawn}: how far the probabilities can be taken at their word"] if drawn else []),
        *([f"{wrong}: the most wrong films ({len(context.wrong)})"] if wrong else []),
        f"{folder / 'report.html'}: the page to open",
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


def summary(figures: dict[str, Any], main: str) -> list[str]:
    """Return the figures of `evaluate` as lines to print: a table a level, then per kind of finding and difficulty."""
    lines = []
    synthetic = "SYNTHETIC films, " if figures["synthetic"] else ""
    for level in LEVELS:
        if all(row["roc_auc"] is None for row in figures[level].values()):
            return ["no figures: they need normal and abnormal films with known labels"]
        interval = f"{figures['settings']['level']:.0%} intervals over patients"
        lines += ["", f"by {level} ({synthetic}split {figures['split']}, {interval})", *table(figures[level])]
    for column in ("finding", "difficulty"):
        if figures[column]:
            lines += [
                "",
                f"{main} by {column} ({synthetic}its abnormal films against all normal ones)",
                *kinds(figures[column], main),
            ]
    if figures["pixel"]:
        pixel = figures["pixel"]
        lines += [
            "",
            f"pixels ({synthetic}{pixel['n_films']} abnormal ones): ROC-AUC {number(pixel['roc_auc'])}, "
            f"mean over films {number(pixel['film_roc_auc'])}, "
            f"AP {number(pixel['ap'])} at prevalence {number(pixel['prevalence'])}",
        ]
    return [*lines, *_classes(figures, synthetic), ""]


def _classes(figures: dict[str, Any], synthetic: str) -> list[str]:
    """Return what comes of calling films abnormal, level by level; for films also class by class."""
    lines = []
    for level, one in figures.get("classes", {}).items():
        reliable = one["reliability"]
        lines += [
            "",
            f"as a classifier by {level} ({synthetic}split {figures['split']})",
            *classes_table(one),
            f"Brier score {with_interval(reliable['brier'], reliable['brier_interval'])}; "
            f"always saying the prevalence gets {number(reliable['brier_of_prevalence'])}",
        ]
        if level == "film":
            chosen = f"at {number(one['chosen']['threshold'])}, chosen on validation"
            for which, where in (("half", "at .5"), ("chosen", chosen)):
                lines += [
                    "",
                    f"class by class {where} ({synthetic}split {figures['split']})",
                    *report_table(one[which]),
                ]
    return lines


def kinds(figures: dict[str, Any], main: str) -> list[str]:
    """Return a table of one score by kind, the trivial detectors beside it."""
    names = (main, *TRIVIAL)
    rows = [
        (
            kind,
            *(with_interval(f[name]["roc_auc"], f[name]["roc_auc_interval"]) for name in names),
            str(f[main]["n_abnormal"]),
        )
        for kind, f in figures.items()
    ]
    return markdown(("kind", *names, "abnormal films"), rows)


# --- the pages ------------------------------------------------------------------------------------------------------


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
    calibration, config = read_calibration(run), run.config
    label = view.column("label")
    highest, _ = gallery_rows(label, scores[main])
    _, wrong = gallery_rows(label, scores[main], MOST_WRONG)
    films = {i: _film(model, view, device, i, scores[main][i], calibration.map_scale) for i in {*highest, *wrong}}
    lines = run.history()
    return ReportContext(
        title=run.path.name,
        model=f"{config['model']} ({config['preset']})",
        data=f"{config['cache']['source']}, variant {view.variant}, {view.size} px, split {figures['split']}",
        synthetic=view.cache.synthetic,
        score=main,
        labels=label,
        studies=view.column("study"),
        scores=scores,
        metrics=figures,
        config=config["settings"],
        facts={
            "seed": str(config["seed"]),
            "splits": f"seed {config['split_seed']}, {config['split_hash']}",
            "cache content": config["cache"]["content_hash"][:12],
            "precision": f"{config['precision']} on {config['device']}",
            "command": command,
        }
        | {f"warning {number}": text for number, text in enumerate(run.warnings(), 1)}
        | config["versions"],
        history={name: [float(line[name]) for line in lines] for name in (lines[0] if lines else {})},
        threshold=calibration.thresholds[figures["settings"]["aggregate"]]["film"][main],
        rule=calibration.rule,
        pixels=figures["pixel"],
        map_scale=calibration.map_scale,
        map_unit=model.map_unit,
        highest=[films[i] for i in highest],
        wrong=[films[i] for i in wrong],
        failures=view.cache.failures,
    )


def _film(model: Detector, view: View, device: torch.device, i: int, value: float, scale: float | None) -> Shown:
    row, index = int(view.rows[i]), view.cache.index
    one = View(view.cache, view.variant, np.array([row]), view.size)
    film, heat = next(one.chunks())[1].unit()[0], None
    if scale is not None:
        _, drawn, film, mask = next(maps(model, one, device))
        heat = blend(film, drawn, mask, scale)
    facts = {name: str(index[name][row]) for name in ("finding", "difficulty", "study", "patient")}
    return Shown(str(view.cache.names[row]), int(index["label"][row]), float(value), film, heat, facts)


# --- maps -----------------------------------------------------------------------------------------------------------


def write_maps(
    run: Run,
    model: Detector,
    view: View,
    device: torch.device,
    folder: Path,
    *,
    name: str,
    formats: Sequence[str],
    originals: "Source | None",
    limit: int | None,
    on_film: Callable[[], None],
) -> list[Path]:
    """Write a heatmap of every film of the view, or of its `limit` highest-scored ones; the first file is the
    highest's.

    `name` is the score they are ranked by. `originals` lays the maps back onto the original films; without it they stay
    in the cache's geometry.
    """
    calibration = read_calibration(run)
    scores = score(model, view, device)[name]
    order = np.argsort(-scores, kind="stable")[:limit]
    chosen = View(view.cache, view.variant, view.rows[order], view.size)
    threshold = calibration.thresholds["mean"]["film"][name]  # a film alone is its own mean
    drawn_films = "SYNTHETIC film, " if view.cache.synthetic else ""
    written = []
    for (row, drawn, film, mask), value in zip(maps(model, chosen, device), scores[order], strict=True):
        path, hand = (view.cache.index[column][row] for column in ("path", "hand"))
        stem = f"{path}-{hand}" if hand else str(path)
        if originals is not None:
            film, drawn, mask = _on_film(view, row, film, drawn, mask, originals)
        label = LABELS[int(view.cache.index["label"][row])]
        title = f"{view.cache.names[row]}\n{drawn_films}{name} {value:.4g}, flagged from {threshold:.4g}" + (
            f", labelled {label}" if label else ""
        )
        for suffix in formats:
            # After the film's whole name: a.png and a.dcm, or the dotted names of DICOM, stay apart.
            file = inside(folder, f"{stem}_heatmap.{suffix}")
            if suffix == "png":
                write_png(
                    file, overlay(film, drawn, mask, calibration.map_scale or 1.0, title=title, unit=model.map_unit)
                )
            else:
                write_map(file, drawn)
        written.append(folder / f"{stem}_heatmap.{formats[0]}")
        on_film()
    return written


def _on_film(
    view: View, row: int, film: Any, drawn: Any, mask: NDArray[np.bool_], originals: "Source"
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Return the original film in [0, 1], the map and the mask in its geometry."""
    index = view.cache.index
    path = str(index["path"][row])
    data = originals.read(path)
    if hashlib.sha256(data).hexdigest() != index["sha256"][row]:
        raise InputError(f"{path} in {originals.root} is not the film that was prepared; name the right --source")
    original = read_film(path, data)
    stage = "matrix_raw" if view.variant.startswith("raw") else "matrix_crop"
    scale = view.size / view.cache.size  # the model's film may be smaller than the cache's
    shrink = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2]])  # pixel centres at whole numbers
    matrix = shrink @ np.vstack([index[stage][row], [0, 0, 1]])
    shape = (original.pixels.shape[0], original.pixels.shape[1])
    levels = original.pixels.astype(np.float32)
    low, high = float(levels.min()), float(levels.max())
    grey = (levels - low) / max(1.0, high - low)
    return grey, to_film_space(drawn, matrix, shape), to_film_space(mask.astype(np.float32), matrix, shape) >= 0.5
