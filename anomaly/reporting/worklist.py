"""The worklist: new films by falling score, one page with its pictures in a folder beside it, read from the disk.

Unlike the report it does not embed its pictures: they are loaded as they are looked at, so that a page of 10,000 films
opens at once. It still loads nothing from elsewhere, and runs one script of its own.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from anomaly.reporting.galleries import heat_bar
from anomaly.reporting.html import pieces


@dataclass(frozen=True, slots=True)
class ListedFilm:
    """A film of the list."""

    rank: int  # from 1
    name: str
    score: float
    flagged: bool
    label: int = -1  # 0 normal, 1 abnormal, -1 unknown
    said: str = ""  # its p-value in words, "" where it has none
    whose: Sequence[str] = ()  # of which patient and study, and how these stand, where that is known
    pictures: Mapping[str, str] = field(default_factory=dict)  # layer -> file, relative to the page, `thumbnail` too
    id: str = ""  # under which a browser keeps its notes; "": its name, where that is one film's alone


@dataclass(frozen=True)
class WorklistContext:
    """What the page of a worklist is made of."""

    title: str
    id: str  # of this list among others, under which a browser keeps its notes
    subtitle: str  # run, model, films, date
    score: str  # the name of the score that ranks
    threshold: float
    films: Sequence[ListedFilm]  # by falling score
    counts: Mapping[str, str]  # what is counted -> how many, in words
    notes: Sequence[str] = ()  # sentences the reader should know first
    synthetic: bool = False
    folder: str = "worklist"  # of the pictures, beside the page
    map_scale: float | None = None  # where the colors of maps end; None: no maps
    map_unit: str = "squared error"
    pictures_by: str = "anomaly score --pictures N"  # what makes more of them
    others: Sequence[tuple[str, str]] = ()  # other lists: what is in one, and its address
    failures: Sequence[tuple[str, str]] = ()  # path and reason of films that can't be read


def render_worklist(context: WorklistContext) -> Iterator[str]:
    """Give the page as HTML, to lie beside the folder of its pictures, piece by piece."""
    pictured = sum(bool(film.pictures) for film in context.films)
    return pieces(
        "worklist.html",
        context=context,
        pictured=pictured,
        layers=list(dict.fromkeys(name for film in context.films for name in film.pictures if name != "thumbnail")),
        labelled=any(film.label >= 0 for film in context.films),
        bar=heat_bar(context.map_scale, context.map_unit) if pictured else None,
        synthetic=context.synthetic,
        sections={},
        # `self` is this page's own origin where a server gives it out; a page opened from the disk has none, and its
        # pictures are files.
        image_sources="'self' file: data:",
        script_file="worklist.js",
        style_file="worklist.css",
    )
