"""What the pages of a run are made of."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from anomaly.evaluation.evaluation import Evaluation
from anomaly.evaluation.figures import Metrics
from anomaly.reporting.galleries import Shown


@dataclass(frozen=True)
class ReportContext:
    """What the pages of a run are made of."""

    title: str
    model: str
    data: str  # what it was trained and tested on, in words
    evaluation: Evaluation  # of the films shown
    about: str = ""  # a sentence on the model
    supervised: bool = False  # trained on labelled films, not on normal ones alone
    trainings: int = 1  # how many training runs it is made of; those of an ensemble's members
    films: Mapping[str, int] = field(default_factory=dict)  # how many were used for "train", "val", ...
    config: Mapping[str, Any] = field(default_factory=dict)  # settings, nested to any depth
    facts: Mapping[str, str] = field(default_factory=dict)  # lines of the header: seed, data hash
    origin: Mapping[str, str] = field(default_factory=dict)  # how it was made: commands, precision, date
    versions: Mapping[str, str] = field(default_factory=dict)
    history: Mapping[str, Sequence[float | None]] = field(default_factory=dict)  # column -> rows; None, nan: no value
    rule: str = "chosen on validation normals"  # how thresholds were chosen, after the words "the threshold"
    map_scale: float | None = None  # from `heatmap_scale.map_scale`
    map_unit: str = "squared error"
    highest: Sequence[Shown] = ()
    wrong: Sequence[Shown] = ()  # worst first: all on their own page, the first few in the report
    lowest: Sequence[Shown] = ()
    pictures: Mapping[str, bytes] = field(default_factory=dict)  # caption -> PNG drawn in training
    failures: Sequence[tuple[str, str]] = ()  # path, reason
    notes: Sequence[str] = ()  # sentences the reader should know first

    @property
    def figures(self) -> Metrics:
        """The figures of the evaluation."""
        return self.evaluation.figures

    @property
    def score(self) -> str:
        """The main score: histogram, gallery and verdict speak of it."""
        return self.figures.score

    @property
    def threshold(self) -> float | None:
        """From where a film is flagged by the main score."""
        flagged = self.figures.main.threshold
        return None if flagged is None else flagged.threshold
