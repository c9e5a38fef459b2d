"""What a search for a detector tried, what it cost, what was chosen and why: auto.json, typed."""

from typing import Literal

from pydantic import Field

from anomaly.evaluation.figures import Interval
from anomaly.runs import Record

Basis = Literal["labels", "planted"]


class ScoreRecord(Record):
    """The figure of one score on validation films."""

    figure: float
    interval: Interval | None
    families: dict[str, float] = Field(default_factory=dict)
    """Of planted anomalies: the figure of each family."""


class CandidateRecord(Record):
    """One detector: what it cost and what it gave, or why it was left out."""

    name: str
    model: str
    preset: str
    state: Literal["done", "left out"]
    reason: str = ""
    """Why it was left out, or had fewer epochs than its preset."""
    estimate: float | None = None
    """Seconds that it was expected to take."""
    seconds: float = 0.0
    """Seconds that it took, all of it: probe, training, reference, calibration, scores."""
    epochs: int | None = None
    """Epochs trained; none where nothing is trained."""
    predict: float = 0.0
    """Seconds that a film takes, by the probe."""
    labels: dict[str, ScoreRecord] = Field(default_factory=dict)
    """Score -> ROC-AUC on labelled validation films."""
    planted: dict[str, ScoreRecord] = Field(default_factory=dict)
    """Score -> figure on planted anomalies."""

    def scores(self, basis: Basis) -> dict[str, ScoreRecord]:
        """The figures that a choice by this is made on."""
        return self.labels if basis == "labels" else self.planted


class ChoiceRecord(Record):
    """What was chosen."""

    detector: str
    score: str
    reason: str
    tied: list[str]
    """All that can't be told from the best, the simplest first."""
    below_floor: str = ""
    """What no detector was better than, where that is so."""


class TestRecord(Record):
    """The look at the test films, by the chosen detector alone."""

    roc_auc: float
    interval: Interval | None
    films: int
    abnormal: int
    patients: int


class AutoRecord(Record):
    """auto.json."""

    format: int = 1
    films: str
    """Where they are, as it was typed."""
    listing_hash: str
    """Of the source, or the content hash of a cache: other films are another search."""
    where: list[str]
    seed: int
    choose_by: str
    recipe: str
    size: int | None
    minutes: int
    """The budget, as last given."""
    spent: float = 0.0
    """Seconds of all calls together."""
    cache: str = ""
    variant: str = ""
    synthetic: bool = False
    preparation: str = ""
    """What became of the films, and the seconds that took."""
    basis: Basis = "labels"
    basis_reason: str = ""
    counts: dict[str, int] = Field(default_factory=dict)
    floor: dict[str, ScoreRecord] = Field(default_factory=dict)
    """Trivial score -> its figure."""
    candidates: list[CandidateRecord] = Field(default_factory=list)
    choice: ChoiceRecord | None = None
    test: TestRecord | None = None
    tested: list[str] = Field(default_factory=list)
    """Detectors and scores that have looked at the test films: more than one where the choice has changed since."""
    test_reason: str = ""
    """Why there is no figure on test films."""
    notes: list[str] = Field(default_factory=list)
    commands: list[str] = Field(default_factory=list)
    """How to go on."""

    @property
    def test_looks(self) -> str:
        """How often the test films were looked at, in words."""
        before = self.tested[:-1]
        return "looked at once" if not before else f"looked at before by {', '.join(before)}, so no longer unseen"

    def same_search(self, other: "AutoRecord") -> bool:
        """Whether it goes on from another one: the same films, asked the same; with whatever budget."""
        names = ("listing_hash", "where", "seed", "choose_by", "recipe", "size")
        return all(getattr(self, name) == getattr(other, name) for name in names)

    def candidate(self, name: str) -> CandidateRecord | None:
        """Return what is known of a candidate."""
        return next((one for one in self.candidates if one.name == name), None)

    def with_candidate(self, made: CandidateRecord) -> "AutoRecord":
        """Return it with a candidate in the place of what was known of it, or as the last one."""
        candidates = {one.name: one for one in self.candidates} | {made.name: made}
        return self.model_copy(update={"candidates": list(candidates.values())})
