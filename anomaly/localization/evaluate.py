"""How good a network that prepares films is: detections matched with annotations, figures, the choice of a threshold.

A detected box is right where it overlaps an annotated box of its class by an IoU of at least .5; detections are matched
in descending order of their scores, each annotated box once (Everingham et al. 2010). Thresholds are chosen on
validation films, figures are those of the test films.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.data.dataset import Films, FilmSet
from anomaly.evaluation.bootstrap import mean_interval
from anomaly.localization.base import LocalizationModel
from anomaly.localization.detection import HANDS, Detection, LocalizationCalibration
from anomaly.localization.predict import annotated_rows, detect_films, split_by_patient
from anomaly.runs import Run, to_csv, to_json
from preprocessing import InputError
from preprocessing.cache.reader import Cache
from preprocessing.cache.schema import BOX_CLASSES

MATCH_IOU = 0.5
"""IoU from which on a detected box is right."""
CLASSES = range(1, len(BOX_CLASSES) + 1)
"""The classes of boxes: hands up to HANDS, then side markers."""


# --- the foreground -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Mean:
    """A mean over films and its 95 % confidence interval over patients, None where there are too few of them."""

    mean: float
    interval: tuple[float, float] | None

    @classmethod
    def of(cls, values: NDArray[np.float64], patient: NDArray[Any]) -> Self:
        """Return that of a value a film: (n,), and the films' patients: (n,)."""
        mean, interval = mean_interval(values, patient)
        return cls(mean, None if math.isnan(interval[0]) else interval)


@dataclass(frozen=True)
class ForegroundFigures:
    """Overlap of the detected with the annotated foreground."""

    dice: Mean
    iou: Mean


def foreground_overlaps(detections: Sequence[Detection], films: Films, threshold: float) -> NDArray[np.float64]:
    """Return Dice and IoU of each film's foreground under its mask: (n, 2). Two empty foregrounds agree."""
    if films.foreground is None:
        raise ValueError("these films have no annotated foreground")
    overlaps = []
    for detection, annotated, mask in zip(detections, films.foreground, films.mask, strict=True):
        assert detection.foreground is not None
        detected = (detection.foreground >= threshold) & mask
        intersection = int((detected & annotated & mask).sum())
        union = int(((detected | annotated) & mask).sum())
        overlaps.append((2 * intersection / (intersection + union), intersection / union) if union else (1.0, 1.0))
    return np.array(overlaps)


# --- boxes ----------------------------------------------------------------------------------------------------------


def iou(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return the intersection over union of each box with each: (n, 4+), (m, 4+) -> (n, m).

    >>> iou(np.array([[0, 0, 2, 2]]), np.array([[1, 0, 3, 2], [5, 5, 6, 6]])).round(2).tolist()
    [[0.33, 0.0]]
    """
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:4], b[None, :, 2:4])
    intersection = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:4] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (a, b)]
    union = areas[0][:, None] + areas[1][None] - intersection
    return np.asarray(intersection / np.maximum(1e-9, union), np.float64)


@dataclass(frozen=True)
class BoxFigures:
    """Figures of one class of boxes, or of several; a share is None where it has no denominator."""

    boxes: int  # annotated
    recall: float | None
    precision: float | None
    iou: float | None  # mean over true positives
    side_accuracy: float | None  # share of true positives of the annotated side, where either side counts


@dataclass
class BoxMatches:
    """How many detections and annotated boxes correspond."""

    true_positives: int = 0
    false_positives: int = 0
    false_negatives: int = 0
    ious: list[float] = field(default_factory=list)  # of true positives
    correct_class: int = 0  # of true positives

    @property
    def f1(self) -> float:
        """The F1 score, 0 where there is neither a detection nor a box."""
        total = 2 * self.true_positives + self.false_positives + self.false_negatives
        return 2 * self.true_positives / max(1, total)

    def figures(self, *, either_side: bool = False) -> BoxFigures:
        """Return the figures; `side_accuracy` only where boxes were matched whatever their side."""

        def share(part: float, whole: int) -> float | None:
            return part / whole if whole else None

        boxes = self.true_positives + self.false_negatives
        return BoxFigures(
            boxes,
            recall=share(self.true_positives, boxes),
            precision=share(self.true_positives, self.true_positives + self.false_positives),
            iou=share(sum(self.ious), self.true_positives),
            side_accuracy=share(self.correct_class, self.true_positives) if either_side else None,
        )


def match_boxes(
    detections: Sequence[Detection],
    films: Films,
    threshold: float,
    classes: Collection[int] = CLASSES,
    *,
    same_class: bool = True,
) -> BoxMatches:
    """Match the detections on films with the films' boxes, those of `classes` alone, film by film.

    With `same_class` a detection matches boxes of its own class only, otherwise those of any of `classes`.
    """
    if films.boxes is None:
        raise ValueError("these films have no annotated boxes")
    matches, wanted = BoxMatches(), list(classes)
    for detection, annotated in zip(detections, films.boxes, strict=True):
        boxes, scores = detection.scored_boxes()
        detected = boxes[(scores >= threshold) & np.isin(boxes[:, 4], wanted)]
        annotated = annotated[np.isin(annotated[:, 4], wanted)]
        unmatched = np.ones(len(annotated), bool)
        overlap = iou(detected, annotated)
        for i, box in enumerate(detected):
            candidates = unmatched & (overlap[i] >= MATCH_IOU) & ((annotated[:, 4] == box[4]) | (not same_class))
            if not candidates.any():
                matches.false_positives += 1
                continue
            best = int(np.argmax(np.where(candidates, overlap[i], -1)))
            unmatched[best] = False
            matches.true_positives += 1
            matches.ious.append(float(overlap[i, best]))
            matches.correct_class += int(annotated[best, 4] == box[4])
        matches.false_negatives += int(unmatched.sum())
    return matches


def figures_by_class(detections: Sequence[Detection], films: Films, threshold: float) -> dict[str, BoxFigures]:
    """Return the figures of each class, and of hands and of markers whatever their side."""
    figures = {
        name: match_boxes(detections, films, threshold, [number]).figures()
        for number, name in zip(CLASSES, BOX_CLASSES, strict=True)
    }
    for name, classes in (("hand", CLASSES[:HANDS]), ("marker", CLASSES[HANDS:])):
        matches = match_boxes(detections, films, threshold, classes, same_class=False)
        figures[f"{name}, either side"] = matches.figures(either_side=True)
    return figures


# --- runs -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold chosen on validation films, and the figure it was chosen by there: F1 of boxes or mean Dice."""

    threshold: float
    figure: float


def choose_threshold(model: LocalizationModel, films: Films, device: torch.device) -> ThresholdChoice:
    """Return the one of the model's thresholds with the highest F1 of its boxes, or mean Dice of its foregrounds.

    Of several that are equally good the middle one is taken.
    """
    detections = list(detect_films(model, films, device))
    if model.targets == "masks":
        figures = [float(np.mean(foreground_overlaps(detections, films, t)[:, 0])) for t in model.thresholds]
    else:
        figures = [match_boxes(detections, films, t).f1 for t in model.thresholds]
    best = np.flatnonzero(np.asarray(figures) >= max(figures) - 1e-9)
    return ThresholdChoice(float(model.thresholds[best[len(best) // 2]]), max(figures))


@dataclass(frozen=True)
class LocalizationEvaluation:
    """Figures of a run on the annotated films of a split: of boxes by class, or of the foreground."""

    run: str
    split: str
    synthetic: bool
    films: int
    patients: int
    threshold: float
    figures: ForegroundFigures | dict[str, BoxFigures]
    columns: dict[str, Sequence[Any]]  # of films.csv: film, patient, then dice and iou, or the counts of boxes


def evaluate(
    run: Run, model: LocalizationModel, cache: Cache, device: torch.device, split: str
) -> LocalizationEvaluation:
    """Return the figures of a run on a split's annotated films, at the threshold chosen on validation films.

    Raises InputError where the split has no such films.
    """
    threshold = run.read("calibration.json", LocalizationCalibration).threshold
    annotated = annotated_rows(cache, model.targets)
    rows = annotated[split_by_patient(cache, run.config.split_seed)[annotated] == split]
    if not len(rows):
        raise InputError(f"{cache.path} has no films in {split} that {run.config.model} could be measured on")
    films = FilmSet(cache, run.config.variant, rows, run.config.size, model.targets).read()
    detections = list(detect_films(model, films, device))
    patient = cache.index["patient"][rows]
    columns: dict[str, Sequence[Any]] = {"film": cache.names[rows].tolist(), "patient": patient.tolist()}
    figures: ForegroundFigures | dict[str, BoxFigures]
    if model.targets == "masks":
        dice, jaccard = foreground_overlaps(detections, films, threshold).T
        columns |= {"dice": dice.tolist(), "iou": jaccard.tolist()}
        figures = ForegroundFigures(Mean.of(dice, patient), Mean.of(jaccard, patient))
    else:
        figures = figures_by_class(detections, films, threshold)
        by_film = [
            match_boxes([detection], films.part(slice(i, i + 1)), threshold) for i, detection in enumerate(detections)
        ]
        for name in ("true_positives", "false_positives", "false_negatives"):
            columns[name] = [getattr(matches, name) for matches in by_film]
    return LocalizationEvaluation(
        str(run.path), split, cache.synthetic, len(rows), len(set(patient)), threshold, figures, columns
    )


def write_evaluation(run: Run, evaluation: LocalizationEvaluation) -> Path:
    """Write metrics.json, whose path is returned, and films.csv: into the run, or for another split than test into a
    folder named after it.
    """
    prefix = "" if evaluation.split == "test" else f"{evaluation.split}/"
    metrics = asdict(evaluation)
    columns, figures = metrics.pop("columns"), metrics.pop("figures")
    metrics |= figures if isinstance(evaluation.figures, ForegroundFigures) else {"classes": figures}
    run.write(f"{prefix}films.csv", to_csv(columns))
    run.write(f"{prefix}metrics.json", to_json(metrics))
    return run.path / f"{prefix}metrics.json"
