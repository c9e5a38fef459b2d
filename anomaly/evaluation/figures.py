"""The figures of an evaluation as typed data: what metrics.json holds, written by `to_data`, read back by validation.

Intervals are (low, high), or None where they are undefined; so is every figure that is 0 / 0 or needs a class of films
that is absent. All counts, shares and figures leave films of unknown label out.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, model_serializer

from anomaly.formatting import command_line
from anomaly.manifest import check_file
from anomaly.runs import Run
from preprocessing.wording import patients_note

Pooling = Literal["mean", "max"]
POOLINGS: tuple[Pooling, ...] = ("mean", "max")
Unit = Literal["film", "study", "patient"]
UNITS: tuple[Unit, ...] = ("film", "study", "patient")

METRICS = "metrics.json"
TRIVIAL = ("mean_grey", "minus_std")
"""Scores that need no training, and that every detector has to beat."""

Interval = tuple[float, float]
GroundTruth = Literal["masks", "boxes", "masks and boxes", "none"]


class Figures(BaseModel):
    """Immutable figures; an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)  # most commands use few of them
    omitted_when_none: ClassVar[frozenset[str]] = frozenset()  # keys that JSON lacks rather than null

    @model_serializer(mode="wrap")
    def _without_omitted(self, serialize: Callable[["Figures"], dict[str, Any]]) -> dict[str, Any]:
        return {
            name: value
            for name, value in serialize(self).items()
            if value is not None or name not in self.omitted_when_none
        }

    def to_data(self) -> dict[str, Any]:
        """Return the figures as plain data for JSON."""
        return self.model_dump(mode="json")


class EvaluationSettings(Figures):
    """How figures are computed."""

    aggregate: Pooling = "mean"  # films -> study, patient
    level: float = 0.95  # of the confidence intervals
    resamples: int = 1000
    seed: int = 0
    trivial: tuple[str, ...] = TRIVIAL  # the scores that the others have to beat


# ------------------------------------------------------------------------------------------------------------ ranking


class ThresholdFigures(Figures):
    """The result of flagging every film at or above a threshold."""

    threshold: float
    sensitivity: float | None
    specificity: float | None
    precision: float | None
    n_flagged: int


class Difference(Figures):
    """A ROC-AUC minus another on the same films, and the two-sided p-value of no difference."""

    difference: float
    interval: Interval | None
    p: float | None


class KindFigures(Figures):
    """How well a score ranks the abnormal films of one kind above normal films: all, or those of the same column value.

    There is no average precision, threshold or comparison: they would depend on an arbitrary mix of films.
    """

    roc_auc: float | None
    roc_auc_interval: Interval | None
    n: int
    n_abnormal: int
    n_patients: int
    prevalence: float | None


class ScoreFigures(KindFigures):
    """How well a score ranks abnormal films, studies or patients above normal ones."""

    omitted_when_none = frozenset({"threshold", "against"})
    ap: float | None  # average precision
    ap_interval: Interval | None
    threshold: ThresholdFigures | None = None
    against: dict[str, Difference] | None = None  # trivial score -> this score's ROC-AUC minus its


# ----------------------------------------------------------------------------------------------------- classification


class Confusion(Figures):
    """Counts of films: a row a label (normal, abnormal), a column a call (normal, abnormal)."""

    counts: tuple[tuple[int, int], tuple[int, int]]
    normalized: tuple[Interval | None, Interval | None]  # each row as shares; None where the class is missing


class AccuracyRow(Figures):
    """The accuracy in scikit-learn's classification report, which has one value for precision, recall and F1."""

    f1: float | None
    support: int


class ClassRow(Figures):
    """A class, or an average over both, in scikit-learn's classification report."""

    precision: float | None
    recall: float | None
    f1: float | None
    support: int


class ClassificationFigures(Figures):
    """Calls of films normal or abnormal at one threshold; see `anomaly.evaluation.classification` for definitions."""

    threshold: float
    n: int
    n_abnormal: int
    n_patients: int
    accuracy: float | None
    accuracy_interval: Interval | None
    precision: float | None
    precision_interval: Interval | None
    recall: float | None
    recall_interval: Interval | None
    f1: float | None
    f1_interval: Interval | None
    specificity: float | None
    specificity_interval: Interval | None
    kappa: float | None
    kappa_interval: Interval | None
    confusion: Confusion
    report: dict[str, ClassRow | AccuracyRow]  # normal, abnormal, accuracy, macro avg, weighted avg

    def value(self, name: str) -> tuple[float | None, Interval | None]:
        """Return a figure by its name, with its interval."""
        return getattr(self, name), getattr(self, f"{name}_interval")


class ReliabilityBin(Figures):
    """Films whose probability lies in [low, high) (the last bin also holds 1)."""

    low: float
    high: float
    n: int
    mean_probability: float
    share: float  # of abnormal films
    share_interval: Interval | None


class Reliability(Figures):
    """Calibration: whether films called abnormal with a probability are abnormal that often."""

    brier: float
    brier_interval: Interval | None
    brier_of_prevalence: float  # the Brier score of always predicting these films' own prevalence
    bins: tuple[ReliabilityBin, ...]  # those that have films


class ClassifierFigures(Figures):
    """Probabilities as a classifier, at .5 and at the threshold chosen on validation films, and their calibration."""

    half: ClassificationFigures
    chosen: ClassificationFigures
    reliability: Reliability


# ------------------------------------------------------------------------------------------------- pixels, everything


class FrocPoint(Figures):
    """A point of the FROC curve: lesions found at the lowest threshold with at most so many false marks a film."""

    false_marks: float
    found: float | None  # share of lesions
    found_interval: Interval | None


class LesionFigures(Figures):
    """How well maps point at some of the lesions; `anomaly.evaluation.film_localization` defines lesions and marks.

    Normal pixels and false marks are those of all films with ground truth and of all normal films, whichever lesions
    are looked at, so that figures of kinds share one false-positive rate.
    """

    n_films: int  # that have such lesions
    n_lesions: int
    n_patients: int  # of these films
    prevalence: float | None  # of these lesions' pixels among them and all normal ones: the floor of `ap`
    roc_auc: float | None  # of pixels: large lesions weigh more
    roc_auc_interval: Interval | None
    ap: float | None  # average precision of pixels
    ap_interval: Interval | None
    ap_over_prevalence: float | None
    ap_over_prevalence_interval: Interval | None
    aupro_30: float | None  # mean share of a lesion found, integrated over the false-positive rate up to .3, over .3
    aupro_30_interval: Interval | None
    aupro_05: float | None  # the same up to .05
    aupro_05_interval: Interval | None
    f1_max: float | None  # of pixels, one threshold for all films, chosen on these very films, hence optimistic
    f1_max_interval: Interval | None
    best_dice: float | None  # mean over films, a threshold each, chosen on these very films, hence optimistic
    best_dice_interval: Interval | None
    film_roc_auc: float | None  # mean of the films' own pixel ROC-AUCs, over films that have no other lesions
    film_roc_auc_interval: Interval | None
    peak_in_lesion: float | None  # share of films whose largest value lies in such a lesion
    peak_in_lesion_interval: Interval | None
    pointing: float | None  # the same with a tolerance: the pointing game
    pointing_interval: Interval | None
    froc: tuple[FrocPoint, ...]  # at 1/8, 1/4, 1/2, 1, 2, 4, 8 false marks a film
    froc_mean: float | None  # of these: the competition metric of LUNA16
    froc_mean_interval: Interval | None

    def value(self, name: str) -> tuple[float | None, Interval | None]:
        """Return a figure by its name, with its interval."""
        return getattr(self, name), getattr(self, f"{name}_interval")


class LocalizationFigures(LesionFigures):
    """How well maps point at lesions: all of them, and by finding, difficulty and size."""

    ground_truth: GroundTruth
    n_measured: int  # films: abnormal ones with ground truth, and normal ones
    n_unmarked: int  # abnormal films without ground truth, which count nowhere
    n_hidden: int  # lesions that lie outside the foreground mask altogether, which count nowhere
    n_normal_pixels: int
    kinds: dict[str, dict[str, LesionFigures]]  # "finding", "difficulty", "size" -> value -> figures


# ------------------------------------------------------------------------------------------------- threshold at work


class Rate(Figures):
    """A share of films, studies or patients; see `anomaly.evaluation.operating` for its interval."""

    value: float | None  # None of nothing
    interval: Interval | None
    count: int  # those that have the property
    n: int  # of so many
    n_patients: int  # whose these are


class OperatingFigures(Figures):
    """The result of flagging every unit at or above the threshold, with intervals over patients."""

    threshold: float
    flag_rate: Rate  # flagged, of all of known label
    sensitivity: Rate  # flagged, of the abnormal ones
    specificity: Rate  # not flagged, of the normal ones
    ppv: Rate  # abnormal, of the flagged ones, at the prevalence of these films; nothing where a class is missing
    npv: Rate  # normal, of those not flagged; as `ppv`


class OperatingPoints(Figures):
    """The main score's thresholds at work."""

    film: OperatingFigures
    study: OperatingFigures
    patient: OperatingFigures
    kinds: dict[str, dict[str, Rate]]  # "finding", "difficulty" -> value -> sensitivity by film
    columns: dict[str, dict[str, OperatingFigures]]  # by column and value, by film

    @property
    def units(self) -> Mapping[Unit, OperatingFigures]:
        """The figures by film, study and patient."""
        return {"film": self.film, "study": self.study, "patient": self.patient}


class Metrics(Figures):
    """Every figure of an evaluation: metrics.json."""

    omitted_when_none = frozenset({"classes", "chosen_on", "operating"})
    settings: EvaluationSettings
    film: dict[str, ScoreFigures]  # by score
    study: dict[str, ScoreFigures]
    patient: dict[str, ScoreFigures]
    finding: dict[str, dict[str, KindFigures]]  # by finding, then score
    difficulty: dict[str, dict[str, KindFigures]]
    run: str
    split: str  # joined by + where there are several
    synthetic: bool
    score: str  # the main score, which flags and ranks
    command: str
    unknown_patients: int = 0  # films of which the patient isn't known: each counts as one, or its study does
    films: int = 0  # all that were scored, those of unknown label too
    columns: dict[str, dict[str, dict[str, KindFigures]]] = Field(default_factory=dict)  # by column, value, then score
    localization: LocalizationFigures | None = None  # of the maps, where the model draws any
    classes: dict[Unit, ClassifierFigures] | None = None  # where the main score is a probability; units with labels
    chosen_on: int | None = None  # how many validation films chose the threshold of `classes`
    operating: OperatingPoints | None = None  # the main score's thresholds at work, where films have labels

    @property
    def units(self) -> Mapping[Unit, Mapping[str, ScoreFigures]]:
        """The figures by film, study and patient."""
        return {"film": self.film, "study": self.study, "patient": self.patient}

    @property
    def kinds(self) -> Mapping[str, Mapping[str, Mapping[str, KindFigures]]]:
        """The figures by finding and by difficulty, where films have any."""
        by_column = {"finding": self.finding, "difficulty": self.difficulty}
        return {column: figures for column, figures in by_column.items() if figures}

    @property
    def notes(self) -> list[str]:
        """What a reader of the figures has to know first, a sentence each."""
        note = patients_note(self.unknown_patients, self.films)
        return [note] if note else []

    @property
    def main(self) -> ScoreFigures:
        """The figures of the main score by film."""
        return self.film[self.score]


def read_metrics(run: Run) -> Metrics:
    """Return the figures of a run's test films, as `anomaly score` wrote them; InputError where they are damaged."""
    again = command_line("anomaly", "score", run.path)
    check_file(run.path / METRICS, f"run `{again}` to make it again")
    return run.read(METRICS, Metrics, again)
