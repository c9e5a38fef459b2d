"""What is written of a film that a service or `anomaly watch` was given: JSON files, also the answers over HTTP."""

from typing import Literal

from pydantic import Field

from anomaly.runs import Record

State = Literal["waiting", "scored", "failed"]


class Submission(Record):
    """submission.json: a film as it came in."""

    id: str
    name: str
    """As the sender calls it, for display alone: the file's name, or the SOP Instance UID."""
    origin: Literal["http", "dicom"]
    received: str
    """UTC, ISO 8601."""
    size: int
    """Bytes."""
    heatmap: bool = False
    """Whether its heatmap is to be drawn (PNG, TIFF, NPY)."""
    dicom: bool = False
    """Whether the finding is to be written as DICOM objects."""


class PartResult(Record):
    """What the detector says of a film, or of one hand of a film that shows two."""

    part: int
    """0: the film's only one; 1, 2: the left-most hand and the other one."""
    score: float
    scores: dict[str, float]
    """Every score by name, those of trivial detectors too."""
    flagged: bool
    """Whether the score reaches the threshold."""
    p_value: float | None
    """Conformal: how often a normal film scores as high; null where the run was not calibrated."""
    p_interval: tuple[float, float] | None
    """95 % interval of the share of normal films that score as high."""
    out_of_domain: bool | None
    """Whether it shows something else than the films of the training; null: not known."""
    files: list[str] = Field(default_factory=list)
    """What else was made of it: heatmap.png, heatmap.tiff, heatmap.npy, sc.dcm, seg.dcm, pm.dcm, sr.dcm."""


class FilmResult(Record):
    """result.json: what became of a film."""

    state: Literal["scored", "failed"]
    finished: str
    """UTC, ISO 8601."""
    error: str | None = None
    """Why it could not be scored."""
    model: str = ""
    run: str = ""
    """Name of the run folder or bundle."""
    detector: str = ""
    """Digest of the detector, as DetectorFacts has it: two runs of one name are two detectors."""
    score_name: str = ""
    threshold: float | None = None
    """A film is flagged from here on."""
    synthetic: bool = False
    """The films of the training were drawn by this program."""
    parts: list[PartResult] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)
    """What a reader of the scores should know, a sentence each."""


class FilmAnswer(Record):
    """The answer about a film; the figures are null until it is scored. Of two hands they are the higher one's."""

    id: str
    name: str
    state: State
    received: str
    finished: str | None = None
    error: str | None = None
    model: str | None = None
    run: str | None = None
    detector: str | None = None
    score_name: str | None = None
    score: float | None = None
    threshold: float | None = None
    flagged: bool | None = None
    p_value: float | None = None
    p_interval: tuple[float, float] | None = None
    out_of_domain: bool | None = None
    synthetic: bool | None = None
    parts: list[PartResult] = Field(default_factory=list)
    notes: list[str] = Field(default_factory=list)


class FilmAnswers(Record):
    """The films that were posted or asked for."""

    films: list[FilmAnswer]


class DetectorFacts(Record):
    """What a service says of its detector."""

    model: str
    run: str
    score_name: str
    threshold: float
    map_scale: float | None
    """Where the colors of heatmaps end; null: the model draws none."""
    map_unit: str
    synthetic: bool
    digest: str
    """SHA-256 of weights, calibration and the score that flags, 64 hexadecimal digits: which detector it is."""
    calibration: str | None = None
    """Name of the calibration in use; null: the one made by the training."""
    remembered: str | None = None
    """Which choices of an earlier time are in use, and where they are kept."""


def answer_of(submission: Submission, result: FilmResult | None) -> FilmAnswer:
    """Return the answer about a film; without a result it waits."""
    about = FilmAnswer(id=submission.id, name=submission.name, state="waiting", received=submission.received)
    if result is None:
        return about
    about = about.model_copy(update={"state": result.state, "finished": result.finished, "error": result.error})
    if not result.parts:
        return about
    highest = max(result.parts, key=lambda part: part.score)
    same = {
        name: getattr(result, name)
        for name in ("model", "run", "detector", "score_name", "threshold", "synthetic", "notes")
    }
    figures = {name: getattr(highest, name) for name in ("score", "p_value", "p_interval", "out_of_domain")}
    flagged = any(part.flagged for part in result.parts)
    return about.model_copy(update={**same, **figures, "flagged": flagged, "parts": result.parts})
