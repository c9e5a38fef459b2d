"""Whether films are unlike those that a run was calibrated on: p-values and thresholds hold for like films alone.

What is compared, one value a patient (the mean of its films): the main score, the distance of the film's content from
that of normal films (`domain`), gray levels of the prepared film, those before they were spread or equalized, size and
bit depth of the file, and steps of the preparation that found nothing. Each is compared by a two-sample
Kolmogorov-Smirnov test; Holm's correction covers all of them. With many films everything is significant, so a
difference counts only where the distance between the two distributions is large too.

Among unlabelled films some may be abnormal, and abnormal films score higher. So a score, and the distance of the
content, count as higher only as far as they are beyond what a share `ABNORMAL` of abnormal films could do: normal films
of distribution F make up at least 1 - ABNORMAL of the new ones, whose distribution G is then nowhere below
(1 - ABNORMAL) F. The price: a shift that makes no more films score high than such a share would is not told by the
score; it may be by the gray levels. Where labels are known, normal films alone are compared, and nothing is allowed
for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.dataset import Films, FilmSet
from anomaly.evaluation.distributions import kolmogorov
from anomaly.evaluation.domain import SIDE, thumbnails
from anomaly.evaluation.ranking import Floats
from preprocessing.wording import counted

LEAST_PATIENTS = 8
"""Of the new films: fewer tell nothing."""
LEVEL = 0.01
"""Of the tests, after Holm's correction."""
EFFECT = 0.2
"""Kolmogorov-Smirnov distance from which a difference counts."""
ABNORMAL = 0.3
"""Share of abnormal films allowed for among unlabelled ones."""
OTHER_PART = 0.5
"""Distance of the content from which another body part is the likelier explanation."""
NAMED = 3
"""Differences named in a sentence, and films out of domain."""
COMPARED: dict[str, tuple[str, str, str]] = {
    "score": ("scores", "lower", "higher"),
    "content": ("what they show", "more usual", "less usual"),
    "brightness": ("gray levels", "darker", "brighter"),
    "contrast": ("contrast", "lower", "higher"),
    "dark": ("dark gray levels", "darker", "brighter"),
    "bright": ("bright gray levels", "darker", "brighter"),
    "exposure": ("gray levels of the file", "darker", "brighter"),
    "file_contrast": ("contrast of the file", "lower", "higher"),
    "size": ("film size", "smaller", "larger"),
    "depth": ("bit depth", "lower", "higher"),
    "fallbacks": ("steps of the preparation that found nothing", "fewer", "more"),
}
"""What is compared -> in words, and what lower and higher values of it are called."""
RISE_WITH_DISEASE = ("score", "content")


@dataclass(frozen=True)
class FilmFacts:
    """What is compared of N films, but for their scores."""

    patient: NDArray[Any]  # (N,)
    values: Mapping[str, Floats]  # name, as in COMPARED, -> (N,)
    thumbnails: NDArray[np.float32]  # (N, D), as `domain.thumbnails` gives them


class FactColumns:
    """The facts of the films of a set, collected from one pass."""

    def __init__(self, films: FilmSet) -> None:
        self.films = films
        self._thumbnails = np.empty((len(films), SIDE * SIDE), np.float32)
        self._gray = np.empty((len(films), 4))

    def add(self, places: slice, part: Films) -> None:
        """Take films that have been read, (k, S, S)."""
        film = part.unit()
        self._thumbnails[places] = thumbnails(film, part.mask)
        for row, (pixels, mask) in enumerate(zip(film, part.mask, strict=True), places.start):
            levels = pixels[mask] if mask.any() else pixels.ravel()
            self._gray[row] = levels.mean(), levels.std(), *np.quantile(levels, [0.05, 0.95])

    def finish(self) -> FilmFacts:
        """Return the facts of all films."""
        films, trivial = self.films, self.films.trivial_scores()
        names = ("brightness", "contrast", "dark", "bright")
        values = {name: self._gray[:, place] for place, name in enumerate(names)}
        values["exposure"], values["file_contrast"] = trivial["mean_grey"], -trivial["minus_std"]
        values["size"] = np.maximum(films.column("height"), films.column("width")).astype(np.float64)
        values["depth"] = films.column("depth").astype(np.float64)
        values["fallbacks"] = np.array([text.count(",") + bool(text) for text in films.column("fallbacks")], np.float64)
        return FilmFacts(films.column("patient"), values, self._thumbnails)


def facts_of(films: FilmSet) -> FilmFacts:
    """Read films and return their facts."""
    columns = FactColumns(films)
    for places, part in films.chunks():
        columns.add(places, part)
    return columns.finish()


def by_patient(values: Floats, patient: NDArray[Any]) -> Floats:
    """Return the mean of each patient, in the order of their names: (N,), (N,) -> (P,)."""
    owner = np.unique(patient, return_inverse=True)[1]
    return np.asarray(np.bincount(owner, weights=values) / np.bincount(owner), np.float64)


@dataclass(frozen=True)
class Difference:
    """In what new films differ from those of the reference."""

    name: str  # as in COMPARED
    distance: float  # Kolmogorov-Smirnov, beyond what abnormal films could do
    p_value: float  # after Holm's correction
    higher: bool  # whether the new films have higher values

    def __str__(self) -> str:
        what, lower, higher = COMPARED[self.name]
        what += " (another body part?)" * self.other_part
        return f"{what} {higher if self.higher else lower}: KS {self.distance:.2f}".replace("0.", ".", 1)

    @property
    def other_part(self) -> bool:
        """Whether the films differ so much in what they show that another body part is likely."""
        return self.name == "content" and self.distance > OTHER_PART


def differences(
    reference: Mapping[str, Floats], new: Mapping[str, Floats], *, abnormal: float = ABNORMAL
) -> list[Difference]:
    """Return the differences that count: that another body part explains, then the largest first.

    reference, new  name -> one value a patient, (P,) and (Q,), of the same names, all finite; Q >= LEAST_PATIENTS.
    abnormal  share of abnormal patients allowed for among the new ones; 0 where all are known to be normal.
    """
    found = [
        _difference(name, reference[name], values, abnormal if name in RISE_WITH_DISEASE else 0.0)
        for name, values in new.items()
    ]
    order = sorted(range(len(found)), key=lambda place: found[place].p_value)
    adjusted, largest = {}, 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, found[place].p_value * (len(found) - rank)))
        adjusted[place] = largest
    counting = [
        Difference(one.name, one.distance, adjusted[place], one.higher)
        for place, one in enumerate(found)
        if adjusted[place] < LEVEL and one.distance > EFFECT
    ]
    return sorted(counting, key=lambda one: (not one.other_part, -one.distance))


def _difference(name: str, reference: Floats, new: Floats, abnormal: float) -> Difference:
    """Return the distance of two samples on the side where it is larger, and its p-value.

    The p-value is the asymptotic one of both sides (Kolmogorov), which errs on the safe side for small samples and for
    values that tie. More usual content is no difference.
    """
    grid = np.unique(np.concatenate([reference, new]))
    old, now = (np.searchsorted(np.sort(values), grid, side="right") / len(values) for values in (reference, new))
    rise = max(0.0, float(((1 - abnormal) * old - now).max()))
    fall = 0.0 if name == "content" else max(0.0, float((now - old).max()))
    distance = max(rise, fall)
    weight = math.sqrt(len(reference) * len(new) / (len(reference) + len(new)))
    return Difference(name, distance, kolmogorov(weight * distance), rise >= fall)


def shift_sentence(found: Sequence[Difference], reference: str, remedy: str) -> str:
    """Say in what films are unlike those of a reference, such as "the training", and what to do.

    >>> print(shift_sentence([Difference("size", 0.41, 1e-9, False)], "the training", "stop"))
    these films are unlike those of the training (film size smaller: KS .41): p-values and thresholds don't hold; stop
    """
    named = "; ".join(map(str, found[:NAMED])) + (f"; {len(found) - NAMED} more" if len(found) > NAMED else "")
    return f"these films are unlike those of {reference} ({named}): p-values and thresholds don't hold; {remedy}"


def domain_sentence(names: Sequence[str], films: int, reference: str) -> str:
    """Say which of a number of films show something else than those of a reference.

    >>> domain_sentence(["a.png", "b.png"], 14, "the training")
    '2 of 14 films are unlike the films of the training (another body part?): a.png, b.png; their scores mean nothing'
    """
    shown = ", ".join(names[:NAMED]) + (", ..." if len(names) > NAMED else "")
    verb, whose = ("is", "its") if len(names) == 1 else ("are", "their")
    return (
        f"{len(names)} of {counted(films, 'film')} {verb} unlike the films of {reference} (another body part?): "
        f"{shown}; {whose} scores mean nothing"
    )
