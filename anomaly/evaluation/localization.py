"""How well anomaly maps point at lesions, over films added one at a time.

`LocalizationRanking` keeps a summary of every film (see `film_localization`) and exact counts of all normal pixels (see
`ValueCounts`): memory grows by some kilobytes a film, not by its pixels. Figures are those of all pixels sorted
together, to rounding while there are no more than 2**20 distinct normal values and 8,192 in a lesion, and to 1e-6
beyond.

**Intervals** are over patients: the same draws as for the figures of films (`bootstrap.PatientBootstrap`), in each of
which the curves are computed again at a few hundred thresholds; these only give the standard error, never the figure.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from anomaly.evaluation.bootstrap import PatientBootstrap
from anomaly.evaluation.figures import FrocPoint, GroundTruth, Interval, LesionFigures, LocalizationFigures
from anomaly.evaluation.film_localization import LARGEST_SHARE, Bools, FilmLocalization, Lesion, measure_film
from anomaly.evaluation.histogram import ValueCounts
from anomaly.evaluation.localization_curves import FALSE_MARKS, PixelCurves, froc
from anomaly.evaluation.ranking import Floats, Integers, finite_or_none, interval_or_none, ratio

AUPRO_LIMITS = {"aupro_30": 0.3, "aupro_05": 0.05}

_THRESHOLDS = 256  # of draws: so many quantiles of the lesions' values, and as many of the normal pixels'


class LocalizationRanking:
    """How well maps point at lesions, over films added one at a time.

    Normal films are added too: their pixels and marks are what lesions compete with.
    """

    def __init__(self) -> None:
        self._normals = ValueCounts()
        self._films: list[_Film] = []
        self._unmarked: list[str] = []  # patients of abnormal films without ground truth
        self._truth: set[str] = set()

    def add(
        self,
        map: NDArray[Any],
        ground_truth: Bools | None,
        mask: Bools,
        *,
        patient: str,
        finding: str = "",
        difficulty: str = "",
        truth_from: Literal["masks", "boxes"] = "masks",
    ) -> None:
        """Measure a film: its map (H, W), where it is abnormal (H, W) bool, which pixels count (H, W) bool.

        map  finite, at least 0.    ground_truth  all False for a normal film; None for an abnormal film without: it
        counts nowhere but among the patients drawn.    finding, difficulty  of its lesions, "" for none.    truth_from
        whether lesions were outlined, or boxes filled. Raises ValueError where shapes differ, or a value of the map
        under the mask is not finite or is negative.
        """
        if ground_truth is None:
            self._unmarked.append(patient)
            return
        measured, normal = measure_film(map, ground_truth, mask)
        self._normals.add(normal)
        self._films.append(_Film(measured, patient, finding, difficulty))
        if ground_truth.any():
            self._truth.add(truth_from)

    def figures(self, *, level: float = 0.95, resamples: int = 1000, seed: int = 0) -> LocalizationFigures:
        """The figures of all lesions added so far, and by finding, difficulty and size; None for what is undefined.

        level  of the confidence intervals.    resamples, seed  of the draws of patients: with the same films and seed
        those of the other figures of an evaluation.
        """
        patients = [film.patient for film in self._films] + self._unmarked
        bootstrap = PatientBootstrap(np.zeros(len(patients), np.int64), patients, resamples=resamples, seed=seed)
        sample = _Sample(self._films, self._normals, bootstrap, level)
        lesions = sample.lesions
        kinds = {
            "finding": _by_value([lesion.film.finding for lesion in lesions]),
            "difficulty": _by_value([lesion.film.difficulty for lesion in lesions]),
            "size": _by_value([lesion.lesion.size for lesion in lesions], tuple(LARGEST_SHARE)),
        }
        return LocalizationFigures(
            **dict(sample.figures(np.arange(len(lesions)))),
            ground_truth=cast(GroundTruth, " and ".join(sorted(self._truth, reverse=True)) or "none"),
            n_measured=len(self._films),
            n_unmarked=len(self._unmarked),
            n_hidden=sum(film.measured.hidden for film in self._films),
            n_normal_pixels=self._normals.total,
            kinds={
                column: {value: sample.figures(chosen) for value, chosen in values.items()}
                for column, values in kinds.items()
                if values
            },
        )


@dataclass(frozen=True)
class _Film:
    """A film that was measured, and what is known of it."""

    measured: FilmLocalization
    patient: str
    finding: str
    difficulty: str


@dataclass(frozen=True)
class _Placed:
    """A lesion, its film and the place of that film."""

    lesion: Lesion
    film: _Film
    place: int


def _by_value(values: Sequence[str], order: Sequence[str] = ()) -> dict[str, Integers]:
    """The places of each value, "" left out, sorted unless an order is given."""
    column = np.array(values, dtype=object)
    return {
        value: np.flatnonzero(column == value) for value in (order or sorted(set(values))) if value in values and value
    }


class _Sample:
    """All films, from which figures of any of their lesions are computed."""

    def __init__(self, films: Sequence[_Film], normals: ValueCounts, bootstrap: PatientBootstrap, level: float) -> None:
        self.films = [film.measured for film in films]
        self.normals, self.bootstrap, self.level = normals, bootstrap, level
        self.lesions = [
            _Placed(lesion, film, place) for place, film in enumerate(films) for lesion in film.measured.lesions
        ]
        self.film_of = np.array([lesion.place for lesion in self.lesions], np.int64)  # (L,)
        self.patient = bootstrap.patient[: len(films)]  # (F,)

    def figures(self, chosen: Integers) -> LesionFigures:
        """The figures of some of the lesions, (n,) places among them."""
        if not len(chosen):
            return _no_lesions()
        own = np.unique(self.film_of[chosen])
        # A film with a lesion has abnormal and normal pixels: its patient counts in both classes.
        patient = self.patient[own]
        bootstrap = self.bootstrap.restricted(np.repeat([0, 1], len(own)), np.tile(patient, 2))

        def estimated(name: str, value: Floats, drawn: Floats) -> dict[str, Any]:
            between = _ratio_interval if name == "ap_over_prevalence" else PatientBootstrap.interval
            limits = (math.nan, math.nan) if math.isnan(value[0]) else between(bootstrap, value[0], drawn, self.level)
            return {name: finite_or_none(value[0]), f"{name}_interval": interval_or_none(*limits)}

        result: dict[str, Any] = {}
        pixels = self._exact_curves(chosen)
        values, draws = _pixel_figures(pixels), _pixel_figures(self._drawn_curves(chosen))
        for name, value in values.items():
            result |= estimated(name, value, draws[name])
        for name, film_values in self._film_values(chosen).items():
            result |= estimated(name, *self._mean(film_values))
        found, drawn = self._froc(chosen)
        points = [estimated("found", found[:, place], drawn[:, place]) for place in range(len(FALSE_MARKS))]
        result |= estimated("froc_mean", found.mean(axis=1), drawn.mean(axis=1))
        return LesionFigures(
            n_films=len(own),
            n_lesions=len(chosen),
            n_patients=len(np.unique(patient)),
            prevalence=finite_or_none(pixels.prevalence[0]),
            froc=tuple(FrocPoint(false_marks=at, **point) for at, point in zip(FALSE_MARKS, points, strict=True)),
            **result,
        )

    # ---------------------------------------------------------------------------------------------------------- pixels

    def _pixels(self, chosen: Integers) -> tuple[NDArray[np.uint32], Floats, Floats]:
        """Key, number of pixels and share of the lesion of every value of some lesions."""
        lesions = [self.lesions[place].lesion for place in chosen]
        keys = np.concatenate([np.zeros(0, np.uint32), *(lesion.keys for lesion in lesions)])
        counts = np.concatenate([np.zeros(0), *(lesion.counts for lesion in lesions)])
        area = np.repeat([float(lesion.area) for lesion in lesions], [len(lesion.keys) for lesion in lesions])
        return keys, counts, counts / area

    def _exact_curves(self, chosen: Integers) -> PixelCurves:
        """The curves of the films as they are, at every value of the lesions."""
        keys, counts, shares = self._pixels(chosen)
        distinct, place = np.unique(keys, return_inverse=True)
        above, upto = self.normals.at_or_above(distinct)

        def falling(values: NDArray[Any]) -> Floats:
            return np.asarray(values[::-1], np.float64)[None]

        return PixelCurves(
            abnormal=falling(np.bincount(place, counts, len(distinct))),
            covered=falling(np.bincount(place, shares, len(distinct))),
            above=falling(above),
            upto=falling(upto),
            normal=np.array([float(self.normals.total)]),
        )

    def _drawn_curves(self, chosen: Integers) -> PixelCurves:
        """The curves of every draw of patients, at the common thresholds."""
        abnormal, covered = (self._by_patient(table[chosen], self.film_of[chosen]) for table in self._lesion_tables)
        upto = self._weights @ self._normals_by_patient  # (B, G)
        counts = np.bincount(self.patient, [film.n_normal for film in self.films], self._weights.shape[1])
        return PixelCurves(
            abnormal=self._weights @ abnormal,
            covered=self._weights @ covered,
            above=np.concatenate([np.zeros((len(upto), 1), np.float32), upto[:, :-1]], axis=1),
            upto=upto,
            normal=self._weights @ counts,
        )

    @cached_property
    def _weights(self) -> NDArray[np.float32]:
        """How often each patient was drawn, (B, P)."""
        return self.bootstrap.counts.astype(np.float32)

    @cached_property
    def _thresholds(self) -> NDArray[np.float32]:
        """The thresholds of the draws, (G,) falling: quantiles of the lesions' values and of normal pixels."""
        keys, counts, shares = self._pixels(np.arange(len(self.lesions)))
        order = np.argsort(keys)
        weight = np.cumsum(counts[order] / counts.sum() + shares[order] / shares.sum())
        at = np.searchsorted(weight, np.linspace(0, weight[-1], _THRESHOLDS, endpoint=False), "right")
        chosen = [keys[order][np.r_[0, np.minimum(at, len(keys) - 1)]]]
        if self.normals.total:
            ranks = np.geomspace(1, self.normals.total, _THRESHOLDS).astype(np.int64)
            chosen.append(self.normals.largest(ranks))
        values = np.unique(np.concatenate(chosen)).view(np.float32)
        thresholds: NDArray[np.float32] = values[values >= keys.min().view(np.float32)][::-1]
        return thresholds

    @cached_property
    def _lesion_tables(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Pixels of each lesion between a threshold and the one above it, and their share of it: (L, G) and (L, G)."""
        rising = self._thresholds[::-1]
        pixels = np.zeros((len(self.lesions), len(rising)), np.float32)
        for row, placed in zip(pixels, self.lesions, strict=True):
            places = np.searchsorted(rising, placed.lesion.keys.view(np.float32), "right") - 1
            row += np.bincount(places, placed.lesion.counts, len(rising))[::-1].astype(np.float32)
        areas = np.array([placed.lesion.area for placed in self.lesions], np.float32)
        return pixels, pixels / areas[:, None]

    @cached_property
    def _normals_by_patient(self) -> NDArray[np.float32]:
        """Normal pixels of each patient at or above each threshold, (P, G)."""
        table = np.array([film.normals_from(self._thresholds.astype(np.float64)) for film in self.films], np.float32)
        return self._by_patient(table, np.arange(len(self.films)))

    def _by_patient(self, table: NDArray[Any], films: Integers) -> NDArray[np.float32]:
        """Rows of films (n, G) summed by patient, (P, G)."""
        total = np.zeros((self._weights.shape[1], table.shape[1]), np.float32)
        np.add.at(total, self.patient[films], table)
        return total

    # ------------------------------------------------------------------------------------------------- films and marks

    def _film_values(self, chosen: Integers) -> Mapping[str, Floats]:
        """What is averaged over films, (F,) each, nan for the films that don't count."""
        all_lesions, own = (
            np.bincount(films, minlength=len(self.films)) for films in (self.film_of, self.film_of[chosen])
        )
        whole = (own > 0) & (own == all_lesions)

        def of_lesions(value: Callable[[Lesion], float]) -> Floats:
            shares = np.bincount(
                self.film_of[chosen], [value(self.lesions[place].lesion) for place in chosen], len(self.films)
            )
            return np.where(own > 0, np.minimum(shares, 1), math.nan)

        def of_films(value: Callable[[FilmLocalization], float | None]) -> Floats:
            values = np.array([value(film) for film in self.films], np.float64)  # None becomes nan
            return np.where(whole, values, math.nan)

        return {
            "film_roc_auc": of_films(lambda film: film.roc_auc),
            "best_dice": of_films(lambda film: film.best_dice),
            "peak_in_lesion": of_lesions(lambda lesion: lesion.peak),
            "pointing": of_lesions(lambda lesion: lesion.pointed),
        }

    def _mean(self, values: Floats) -> tuple[Floats, Floats]:
        """The mean over the films that count, (1,), and in every draw, (B,)."""
        counted = ~np.isnan(values)
        patients = self._weights.shape[1]
        total = np.bincount(self.patient[counted], values[counted], patients)
        films = np.bincount(self.patient[counted], minlength=patients).astype(np.float64)
        weights = np.concatenate([np.ones((1, patients)), self._weights])
        means = ratio(weights @ total, weights @ films)
        return means[:1], means[1:]

    def _froc(self, chosen: Integers) -> tuple[Floats, Floats]:
        """The share of lesions found at each rate of false marks: on the films as they are, (1, 7); drawn, (B, 7)."""
        marks = np.array([self.lesions[place].lesion.mark for place in chosen], np.float32)
        values = np.unique(marks[marks >= 0])[::-1]  # (J,) falling: only there does the share change
        false = np.array(
            [len(film.false_marks) - np.searchsorted(film.false_marks, values, "left") for film in self.films]
        ).reshape(len(self.films), len(values))
        found = (marks[:, None] >= values) & (marks[:, None] >= 0)  # (n, J)
        every = np.arange(len(self.films))
        found_by, false_by = self._by_patient(found, self.film_of[chosen]), self._by_patient(false, every)
        lesions = np.bincount(self.patient[self.film_of[chosen]], minlength=len(found_by))
        films = np.bincount(self.patient, minlength=len(found_by))
        once, thin = np.ones((1, len(films))), slice(None, None, max(1, math.ceil(len(values) / (2 * _THRESHOLDS))))
        return (
            froc(once @ found_by, once @ false_by, once @ lesions, once @ films),
            froc(  # fewer thresholds are enough for a standard error
                self._weights @ found_by[:, thin],
                self._weights @ false_by[:, thin],
                self._weights @ lesions,
                self._weights @ films,
            ),
        )


def _no_lesions() -> LesionFigures:
    """The figures where there is no lesion: none is defined."""
    froc = tuple(FrocPoint(false_marks=at, found=None, found_interval=None) for at in FALSE_MARKS)
    values: dict[str, Any] = dict.fromkeys(LesionFigures.model_fields)
    return LesionFigures(**values | {"n_films": 0, "n_lesions": 0, "n_patients": 0, "froc": froc})


def _pixel_figures(curves: PixelCurves) -> dict[str, Floats]:
    """Figures of pixels by name, (B,) each."""
    ap = curves.average_precision()
    return {
        "roc_auc": curves.roc_auc(),
        "ap": ap,
        "ap_over_prevalence": ratio(ap, curves.prevalence),
        **{name: curves.aupro(limit) for name, limit in AUPRO_LIMITS.items()},
        "f1_max": curves.f1_max(),
    }


def _ratio_interval(bootstrap: PatientBootstrap, estimate: float, drawn: Floats, level: float) -> Interval:
    """The interval of a ratio above 0 that has no upper limit, on the log scale, as `PatientBootstrap.interval` is on
    the logit scale.
    """
    from scipy.special import stdtrit

    if not bootstrap.enough or not estimate > 0:
        return math.nan, math.nan
    error = float(drawn[~np.isnan(drawn)].std(ddof=1)) / estimate
    half = float(stdtrit(min(bootstrap.classes) - 1, 0.5 + level / 2)) * error
    return estimate * math.exp(-half), estimate * math.exp(half)
