"""How well scores tell abnormal films from normal ones: ROC-AUC, AP, intervals over patients, comparisons, tables.

Scores go into rank statistics as they are: float64, higher is more abnormal, no sigmoid, no scaling, never flipped (a
ROC-AUC below .5 is reported below .5). Labels are 0 normal, 1 abnormal, -1 unknown; figures leave the unknown out.

**Intervals** answer "what if other patients had come?". Patients are drawn with replacement, all their films with them,
and the standard error of the figure over these draws, divided by the slope p (1 - p) of the logit, is that of its
logit. The interval is symmetric there around the estimate, with Student's t at (patients of the rarer class - 1)
degrees of freedom: it stays inside [0, 1], and where few patients are left it holds what it says. In simulations at
95 % (`benchmarks/coverage.py`: 30, 100 and 300 patients, half of them abnormal, three films each, true ROC-AUC .60, .75
and .95) it covers .944 to .974, the plain percentile bootstrap by patient .852 to .948, one that draws films .722 to
.790; with 5 patients against 40 to 20 against 80 it covered .937 to .982, with 2 against 40 always. Degenerate cases:

- One class only: the figure and its interval are nan (None in `evaluate`, as JSON has no nan).
- Fewer than two patients of a class: the figure stands, its interval is nan.
- Complete separation (figure 0 or 1): no draw differs, so the draws say nothing. n disjoint pairs of patients were all
  ranked alike, an event of probability AUC^n, so the far limit is the binomial one, (alpha / 2)^(1 / n) for 1, with n
  the patients of the rarer class.
- A draw that misses a class is left out.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Metric = Literal["roc_auc", "ap"]
Pooling = Literal["mean", "max"]
POOLINGS: tuple[Pooling, ...] = ("mean", "max")

TRIVIAL = ("mean_grey", "minus_std")

_CELLS = 2**18  # films x draws at a time: the resampling takes megabytes, which a processor has at hand


# ------------------------------------------------------------------------------------------------------------ figures


def roc_auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """The chance that an abnormal film scores above a normal one, ties counting half; nan with one class only.

    labels  (N,) 0 or 1.    scores  (N,) finite, any range.    Raises ValueError on anything else.

    >>> roc_auc([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8])
    0.75
    """
    from sklearn.metrics import roc_auc_score

    truth, score = _checked(labels, scores)
    return float(roc_auc_score(truth, score)) if _two_classes(truth) else math.nan


def average_precision(labels: ArrayLike, scores: ArrayLike) -> float:
    """The precision averaged over the recall it is reached at, without interpolation; nan with one class only.

    labels  (N,) 0 or 1.    scores  (N,) finite, any range.    A score without information gets the prevalence, not .5.

    >>> round(average_precision([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]), 3)
    0.833
    """
    from sklearn.metrics import average_precision_score

    truth, score = _checked(labels, scores)
    return float(average_precision_score(truth, score)) if _two_classes(truth) else math.nan


def roc_curve(labels: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """Shares of normal and of abnormal films at or above every threshold, (K,) and (K,), each from 0 to 1.

    Raises ValueError with one class only: there is no such curve.
    """
    from sklearn.metrics import roc_curve as curve

    truth, score = _checked(labels, scores)
    if not _two_classes(truth):
        raise ValueError("a ROC curve needs normal and abnormal films; there is one class only")
    flagged_normal, flagged_abnormal, _ = curve(truth, score)
    return flagged_normal, flagged_abnormal


def at_threshold(labels: ArrayLike, scores: ArrayLike, threshold: float) -> dict[str, float | int | None]:
    """What comes of flagging every film that scores at or above a threshold.

    labels  (N,) 0 or 1.    scores  (N,) finite.    A share of nothing is None: no abnormal film, no sensitivity.

    >>> at_threshold([0, 0, 1, 1], [1, 3, 2, 4], threshold=3)
    {'threshold': 3.0, 'sensitivity': 0.5, 'specificity': 0.5, 'precision': 0.5, 'n_flagged': 2}
    """
    truth, score = _checked(labels, scores)
    flagged, abnormal = score >= threshold, truth == 1
    return {
        "threshold": float(threshold),
        "sensitivity": _share(flagged & abnormal, abnormal),
        "specificity": _share(~flagged & ~abnormal, ~abnormal),
        "precision": _share(flagged & abnormal, flagged),
        "n_flagged": int(flagged.sum()),
    }


# ---------------------------------------------------------------------------------------------------------- intervals


def interval(
    labels: ArrayLike,
    scores: ArrayLike,
    patients: ArrayLike,
    metric: Metric = "roc_auc",
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """The interval of a figure over patients, by the rule at the top of this file; (nan, nan) where it cannot be told.

    labels  (N,) 0 or 1.    scores  (N,) finite.    patients  (N,) whose film it is, any names.    The same seed and
    patients give the same draws, whatever the scores: intervals of several scores can be compared.
    """
    truth, score = _checked(labels, scores)
    draws = _Draws(truth, patients, resamples=resamples, seed=seed)
    return draws.interval(_ESTIMATE[metric](truth, score), draws.figures(score, metric), level)


def mean_interval(values: ArrayLike, patients: ArrayLike, *, level: float = 0.95) -> tuple[float, tuple[float, float]]:
    """The mean over films and its interval over patients; (nan, nan) with fewer than two patients.

    values  (N,) finite.    patients  (N,) whose film it is.    The films of a patient vary together: the variance is
    that of the patients' summed residuals (Liang and Zeger 1986), the quantile Student's with one degree of freedom
    less than there are patients.

    >>> mean_interval([1.0, 3.0], ["a", "b"])[0]
    2.0
    """
    value = np.asarray(values, np.float64)
    _, whose = np.unique(np.asarray(patients), return_inverse=True)
    mean, count = float(value.mean()), int(whose.max()) + 1
    if count < 2:
        return mean, (math.nan, math.nan)
    from scipy.special import stdtrit

    residual = np.bincount(whose, weights=value - mean)  # (patients,)
    deviation = math.sqrt(count / (count - 1) * float(np.square(residual).sum())) / len(value)
    reach = float(stdtrit(count - 1, 0.5 + level / 2)) * deviation
    return mean, (mean - reach, mean + reach)


@dataclass(frozen=True)
class Comparison:
    """A difference of two ROC-AUCs on the same films, its interval, and the two-sided p-value of no difference.

    low, high and p are nan where they cannot be told: one class only, fewer than two patients of a class, or no draw
    that differs.
    """

    difference: float
    low: float
    high: float
    p: float

    def plain(self) -> dict[str, Any]:
        """As data for JSON: "difference", "interval" [low, high] or None, "p" or None."""
        return {
            "difference": self.difference,
            "interval": _plain_pair(self.low, self.high),
            "p": _plain(self.p),
        }


def paired(
    labels: ArrayLike,
    a: ArrayLike,
    b: ArrayLike,
    patients: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """ROC-AUC of score a minus that of score b, both on the same draws of patients.

    Normal interval and p-value with the standard error of the difference over the draws. Scores that rank alike differ
    by 0 with p = 1. labels  (N,) 0 or 1.    a, b  (N,) finite.    patients  (N,) whose film it is.
    """
    truth, first = _checked(labels, a)
    _, second = _checked(labels, b)
    draws = _Draws(truth, patients, resamples=resamples, seed=seed)
    return draws.comparison(
        roc_auc(truth, first) - roc_auc(truth, second),
        draws.figures(first, "roc_auc") - draws.figures(second, "roc_auc"),
        level,
    )


class _Draws:
    """Draws of patients with replacement, kept as how often each patient came: one set serves every score and
    figure."""

    def __init__(self, labels: Integers, patients: ArrayLike, *, resamples: int, seed: int) -> None:
        names, self.patient = np.unique(np.asarray(patients), return_inverse=True)  # (P,), (N,)
        if self.patient.shape != labels.shape:
            raise ValueError(f"{len(labels)} labels but {self.patient.size} patients: one patient a film")
        if resamples < 2:
            raise ValueError(f"{resamples} resamples: a standard error needs at least 2")
        self.labels = labels
        self.resamples = resamples
        self.classes = [np.unique(self.patient[labels == label]).size for label in (0, 1)]
        self.counts = np.zeros((resamples, len(names)), np.uint16)  # (B, P)
        generator = np.random.default_rng(seed)
        for row in range(resamples if len(names) else 0):
            self.counts[row] = np.bincount(generator.integers(len(names), size=len(names)), minlength=len(names))

    @property
    def enough(self) -> bool:
        """Whether there are patients enough for an interval."""
        return min(self.classes) >= 2

    def figures(self, scores: Floats, metric: Metric) -> Floats:
        """The figure of every draw, (B,): a film counts as often as its patient came. Nan where a class is missing."""
        if not self.enough:
            return np.full(self.resamples, math.nan)
        if metric == "roc_auc":
            return self._roc_auc(scores)
        order = np.argsort(scores, kind="stable")
        ranked = scores[order]
        starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])  # (G,) where a new score begins
        abnormal, patient = self.labels[order] == 1, self.patient[order]
        step = max(1, _CELLS // len(scores))
        parts = []
        for start in range(0, self.resamples, step):
            weight = self.counts[start : start + step][:, patient].astype(np.float64)  # (b, N)
            parts.append(
                _weighted_ap(
                    np.add.reduceat(weight * abnormal, starts, axis=1),
                    np.add.reduceat(weight * ~abnormal, starts, axis=1),
                )
            )
        return np.concatenate(parts)

    def _roc_auc(self, scores: Floats) -> Floats:
        """The ROC-AUC of every draw, (B,), from whole and half numbers of pairs won, which float64 keeps exactly."""
        order = np.argsort(scores, kind="stable")
        abnormal = self.labels[order] == 1
        above, rivals = scores[order[abnormal]], scores[order[~abnormal]]  # (A,), (M,) rising
        owners, others = self.patient[order[abnormal]], self.patient[order[~abnormal]]
        below, upto = np.searchsorted(rivals, above), np.searchsorted(rivals, above, "right")  # (A,) normal films
        step = max(1, _CELLS // len(scores))
        parts = []
        for start in range(0, self.resamples, step):
            counts = np.ascontiguousarray(self.counts[start : start + step].T)  # (P, b)
            beaten = np.zeros((len(rivals) + 1, counts.shape[1]))  # normal films by the rising scores
            np.cumsum(counts[others], axis=0, dtype=np.float64, out=beaten[1:])
            weight = counts[owners].astype(np.float64)  # (A, b)
            won = np.einsum("ab,ab->b", weight, beaten[below] + beaten[upto]) / 2  # a tie is half of either
            parts.append(_ratio(won, weight.sum(axis=0) * beaten[-1]))
        return np.concatenate(parts)

    def interval(self, estimate: float, drawn: Floats, level: float) -> tuple[float, float]:
        """The interval around an estimate from its figures in every draw."""
        from scipy.special import stdtrit

        if not self.enough:
            return math.nan, math.nan
        tail, rarer = (1 - level) / 2, min(self.classes)
        if min(estimate, 1 - estimate) < 1e-12:
            far = tail ** (1 / rarer)
            return (far, 1.0) if estimate > 0.5 else (0.0, 1 - far)
        error = float(drawn[~np.isnan(drawn)].std(ddof=1)) / (estimate * (1 - estimate))  # of the logit, by its slope
        half = float(stdtrit(rarer - 1, 1 - tail)) * error
        centre = math.log(estimate / (1 - estimate))
        return _logistic(centre - half), _logistic(centre + half)

    def comparison(self, difference: float, drawn: Floats, level: float) -> Comparison:
        """The difference of two figures with its interval and p-value, from its value in every draw."""
        drawn = drawn[~np.isnan(drawn)]
        error = float(drawn.std(ddof=1)) if self.enough else math.nan
        if difference == 0 and error == 0:
            return Comparison(0.0, 0.0, 0.0, 1.0)
        if not error > 0:
            return Comparison(difference, math.nan, math.nan, math.nan)
        normal = NormalDist()
        half = normal.inv_cdf(0.5 + level / 2) * error
        p = 2 * normal.cdf(-abs(difference) / error)
        return Comparison(difference, max(-1.0, difference - half), min(1.0, difference + half), p)


def _weighted_roc_auc(abnormal: Floats, normal: Floats) -> Floats:
    """ROC-AUC from the weights of each class at each of G rising scores: (B, G), (B, G) -> (B,)."""
    below = np.cumsum(normal, axis=1) - normal / 2
    return _ratio((abnormal * below).sum(axis=1), abnormal.sum(axis=1) * normal.sum(axis=1))


def _weighted_ap(abnormal: Floats, normal: Floats) -> Floats:
    """Average precision from the weights of each class at each of G rising scores: (B, G), (B, G) -> (B,)."""
    hits = np.cumsum(abnormal[:, ::-1], axis=1)
    flagged = hits + np.cumsum(normal[:, ::-1], axis=1)
    gains = abnormal[:, ::-1] * np.divide(hits, flagged, out=np.zeros_like(hits), where=flagged > 0)
    total = abnormal.sum(axis=1)
    return _ratio(gains.sum(axis=1), np.where(normal.sum(axis=1) > 0, total, 0.0))


_ESTIMATE: dict[Metric, Callable[[ArrayLike, ArrayLike], float]] = {"roc_auc": roc_auc, "ap": average_precision}


# --------------------------------------------------------------------------------------------------------- evaluation


@dataclass(frozen=True)
class Groups:
    """Films put together by study or patient, in the order of their first film."""

    ids: NDArray[Any]  # (G,) the study or patient
    labels: (
        Integers  # (G,) the largest label of its films: one abnormal film makes it abnormal; -1 where all are unknown
    )
    scores: Floats  # (G,) the mean or the largest score of its films
    films: Integers  # (G,) how many films it has
    first: Integers  # (G,) row of its first film


def aggregate(ids: ArrayLike, scores: ArrayLike, labels: ArrayLike, how: Pooling = "mean") -> Groups:
    """One score and one label per study or patient.

    ids  (N,) the study or patient of each film.    scores  (N,) finite.    labels  (N,) -1, 0 or 1.    "max" flags a
    study for its worst view and grows with the number of views; "mean" does not.

    >>> groups = aggregate(["b", "a", "b"], [1.0, 5.0, 3.0], [0, -1, 1])
    >>> groups.ids.tolist(), groups.scores.tolist(), groups.labels.tolist(), groups.films.tolist()
    (['b', 'a'], [2.0, 5.0], [1, -1], [2, 1])
    """
    truth, score = _checked(labels, scores, known=False)
    names, first, group, films = np.unique(np.asarray(ids), return_index=True, return_inverse=True, return_counts=True)
    if group.shape != score.shape:
        raise ValueError(f"{len(score)} scores but {group.size} ids: one id a film")
    if how == "mean":
        pooled = np.bincount(group, weights=score, minlength=len(names)) / films
    elif how == "max":
        pooled = np.full(len(names), -math.inf)
        np.maximum.at(pooled, group, score)
    else:
        raise ValueError(f"no pooling {how!r}; there are: max, mean")
    label = np.full(len(names), -1)
    np.maximum.at(label, group, truth)
    order = np.argsort(first)
    return Groups(
        names[order], label[order], pooled[order], films[order].astype(np.int64), first[order].astype(np.int64)
    )


def evaluate(
    columns: Mapping[str, ArrayLike],
    scores: Mapping[str, ArrayLike],
    *,
    thresholds: Mapping[str, Mapping[str, float]] | None = None,
    trivial: Sequence[str] = TRIVIAL,
    how: Pooling = "mean",
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Every figure of every score, for films, studies and patients, as plain data that JSON can hold.

    columns  "label" (N,) -1, 0 or 1; "patient" and "study" (N,) names; "finding" and "difficulty" (N,) names, "" where
    there is none (both may be missing).    scores  name -> (N,) finite.
    thresholds  level -> score -> value from which films (studies, patients) are flagged, found on validation films.
    trivial  the scores that the others have to beat.    how  films -> study, patient.

    Returns {"settings": ..., "film" | "study" | "patient": {score: figures}, "finding" | "difficulty": {kind: {score:
    figures}}} where figures hold "roc_auc", "ap", their "_interval" [low, high] or None, "n", "n_abnormal",
    "n_patients", "prevalence", and where asked for "threshold" (see `at_threshold`) and "against" {trivial:
    {"difference", "interval", "p"}}. A kind's figures set its abnormal films against all normal films, and have no AP,
    threshold or comparison: the mix would be ours. What cannot be told is None.
    """
    label, patient = np.asarray(columns["label"]), np.asarray(columns["patient"])
    units = {"film": np.arange(len(label)), "study": np.asarray(columns["study"]), "patient": patient}
    settings = {"aggregate": how, "level": level, "resamples": resamples, "seed": seed, "trivial": list(trivial)}
    result: dict[str, Any] = {"settings": settings}
    for unit, ids in units.items():
        groups = {name: aggregate(ids, score, label, how) for name, score in scores.items()}
        whole = aggregate(ids, np.zeros(len(label)), label)
        truth, owner = whole.labels, patient[whole.first]
        known = truth >= 0
        draws = _Draws(truth[known], owner[known], resamples=resamples, seed=seed)
        result[unit] = _figures(
            draws,
            {name: group.scores[known] for name, group in groups.items()},
            level=level,
            thresholds=(thresholds or {}).get(unit, {}),
            trivial=trivial,
        )
    for column in ("finding", "difficulty"):
        kinds = np.asarray(columns.get(column, np.full(label.shape, "")))
        result[column] = {}
        for kind in sorted({str(kind) for kind in kinds[label == 1]} - {""}):
            rows = (label == 0) | ((label == 1) & (kinds == kind))
            draws = _Draws(label[rows].astype(np.int64), patient[rows], resamples=resamples, seed=seed)
            chosen = {name: np.asarray(score)[rows] for name, score in scores.items()}
            result[column][kind] = _figures(draws, chosen, level=level, metrics=("roc_auc",))
    return result


def _figures(
    draws: _Draws,
    scores: Mapping[str, NDArray[Any]],
    *,
    level: float,
    metrics: Sequence[Metric] = ("roc_auc", "ap"),
    thresholds: Mapping[str, float] | None = None,
    trivial: Sequence[str] = (),
) -> dict[str, dict[str, Any]]:
    """The figures of each score on one set of films, studies or patients, all from the same draws."""
    labels = draws.labels
    drawn: dict[str, Floats] = {}
    result: dict[str, dict[str, Any]] = {}
    for name, values in scores.items():
        truth, score = _checked(labels, values)
        figures: dict[str, Any] = {}
        for metric in metrics:
            estimate, spread = _ESTIMATE[metric](truth, score), draws.figures(score, metric)
            figures[metric] = _plain(estimate)
            figures[f"{metric}_interval"] = _plain_pair(*draws.interval(estimate, spread, level))
            if metric == "roc_auc":
                drawn[name] = spread
        figures["n"] = len(labels)
        figures["n_abnormal"] = int((labels == 1).sum())
        figures["n_patients"] = int(draws.counts.shape[1])
        figures["prevalence"] = _share(labels == 1, np.ones(labels.shape, np.bool_))
        if thresholds and name in thresholds:
            figures["threshold"] = at_threshold(truth, score, thresholds[name])
        result[name] = figures
    rivals = [name for name in trivial if name in result]
    for name in [name for name in result if name not in trivial]:
        if rivals and result[name]["roc_auc"] is not None:
            result[name]["against"] = {
                rival: draws.comparison(
                    result[name]["roc_auc"] - result[rival]["roc_auc"], drawn[name] - drawn[rival], level
                ).plain()
                for rival in rivals
            }
    return result


# ------------------------------------------------------------------------------------------------------------- pixels


class Tally:
    """Counts how often each pixel value occurs, in bounded memory and without knowing the range beforehand.

    The upper bits of a non-negative float32 rise with its value: 20 of them (8 exponent, 12 fraction) make 2**20 bins,
    each at most 2**-12 = .025 % wide relative to its value, for values from 1e-38 to 3e38 (smaller ones count as such
    tiny values or 0).
    """

    BINS = 2**20

    def __init__(self) -> None:
        self.counts = np.zeros(self.BINS, np.int64)

    def add(self, values: NDArray[Any]) -> None:
        """Count values, any shape, finite and not negative; raises ValueError on others."""
        flat = np.ascontiguousarray(values, np.float32).ravel()
        if flat.size and not (flat.min() >= 0 and flat.max() < math.inf):
            raise ValueError("a map must be finite and not negative")
        self.counts += np.bincount((flat + 0.0).view(np.uint32) >> 11, minlength=self.BINS)  # + 0.0 turns -0.0 into 0.0

    def quantile(self, q: float) -> float:
        """The value at or below which a share q of the counted values lies: the upper end of its bin, and 0 for 0."""
        total = int(self.counts.sum())
        if not total:
            raise ValueError("no pixel was counted: there is no quantile")
        place = int(np.searchsorted(np.cumsum(self.counts), max(1, math.ceil(q * total))))
        return float(np.array([(place + 1) << 11], np.uint32).view(np.float32)[0]) if place else 0.0


def pixel_roc_auc(
    maps: Iterable[tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]],
) -> dict[str, float | int | None]:
    """How well anomaly maps tell abnormal pixels from normal ones, over films that come one at a time.

    maps  (map (H, W) finite >= 0, truth (H, W) bool, mask (H, W) bool) per abnormal film; sizes may differ; pixels
    outside the mask do not count. Values are told apart to .025 % (see `Tally`); closer ones count as tied. Memory does
    not grow with the films.

    Returns "roc_auc" and "ap" of all pixels together (large films and strong maps weigh more), "film_roc_auc" the mean
    over films that have pixels of both kinds, "n_films" how many those are, "n_pixels", and "prevalence" of abnormal
    pixels, the floor of "ap".
    """
    normal, abnormal = Tally(), Tally()
    per_film = []
    for values, truth, mask in maps:
        if not values.shape == truth.shape == mask.shape:
            raise ValueError(f"map {values.shape}, truth {truth.shape} and mask {mask.shape} must have one shape")
        inside, outside = Tally(), Tally()
        inside.add(values[truth & mask])
        outside.add(values[~truth & mask])
        per_film.append(_tally_figures(inside, outside)[0])
        abnormal.counts += inside.counts
        normal.counts += outside.counts
    area, precision = _tally_figures(abnormal, normal)
    told = [figure for figure in per_film if not math.isnan(figure)]
    pixels, lesions = int((normal.counts + abnormal.counts).sum()), int(abnormal.counts.sum())
    return {
        "roc_auc": _plain(area),
        "ap": _plain(precision),
        "film_roc_auc": _plain(float(np.mean(told))) if told else None,
        "n_films": len(told),
        "n_pixels": pixels,
        "prevalence": lesions / pixels if pixels else None,
    }


def _tally_figures(abnormal: Tally, normal: Tally) -> tuple[float, float]:
    """ROC-AUC and AP of two tallies."""
    seen = np.flatnonzero(abnormal.counts + normal.counts)
    counts = [tally.counts[seen].astype(np.float64)[None] for tally in (abnormal, normal)]  # (1, G) each
    return float(_weighted_roc_auc(*counts)[0]), float(_weighted_ap(*counts)[0])


# ------------------------------------------------------------------------------------------------------------- tables


def number(value: float | None) -> str:
    """Three decimals without the leading zero, a dash for what cannot be told.

    >>> number(0.8431), number(1.0), number(-0.12), number(None)
    ('.843', '1.000', '-.120', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:.3f}"
    text = "0.000" if text == "-0.000" else text
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def with_interval(value: float | None, limits: Sequence[float] | None) -> str:
    """A figure and its interval.

    >>> with_interval(0.843, (0.79, 0.884)), with_interval(0.843, None)
    ('.843 [.790, .884]', '.843')
    """
    if limits is None or any(math.isnan(limit) for limit in limits):
        return number(value)
    return f"{number(value)} [{number(limits[0])}, {number(limits[1])}]"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, columns padded to one width; the first is set left, the others right.

    >>> print("\\n".join(markdown(["model", "AUC"], [["cae", ".843"], ["a|b", "–"]])))
    | model |  AUC |
    | :---- | ---: |
    | cae   | .843 |
    | a\\|b  |    – |
    """
    cells = [[_cell(text) for text in row] for row in (head, *rows)]
    if any(len(row) != len(head) for row in cells):
        raise ValueError(f"every row needs {len(head)} cells like the head")
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = [
            text.rjust(width) if column else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * (width - 1) + ":") if column else (":" + "-" * (width - 1)) for column, width in enumerate(widths)]
    return [line(cells[0]), line(rule), *(line(row) for row in cells[1:])]


def table(figures: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Lines of a Markdown table of one level of `evaluate`: a row a score, with intervals, n and prevalence."""
    rows = [
        [
            name,
            with_interval(row["roc_auc"], row["roc_auc_interval"]),
            with_interval(row["ap"], row["ap_interval"]) if "ap" in row else "–",
            str(row["n"]),
            str(row["n_abnormal"]),
            str(row["n_patients"]),
            number(row["prevalence"]),
        ]
        for name, row in figures.items()
    ]
    return markdown(["score", "ROC-AUC", "AP", "n", "abnormal", "patients", "prevalence"], rows)


# ------------------------------------------------------------------------------------------------------------ helpers


def _checked(labels: ArrayLike, scores: ArrayLike, *, known: bool = True) -> tuple[Integers, Floats]:
    """Labels and scores as arrays of one length, or a ValueError that says what is wrong with them."""
    truth, score = np.asarray(labels), np.asarray(scores, np.float64)
    if truth.ndim != 1 or truth.shape != score.shape:
        raise ValueError(f"labels {truth.shape} and scores {score.shape} must both be (N,)")
    allowed = (0, 1) if known else (-1, 0, 1)
    strange = np.setdiff1d(truth, allowed)
    if strange.size:
        raise ValueError(f"label {strange[0]!s}; there are: {', '.join(map(str, allowed))}")
    wrong = np.flatnonzero(~np.isfinite(score))
    if wrong.size:
        raise ValueError(
            f"{wrong.size} of {score.size} scores are not finite, the first ({score[wrong[0]]}) in row {wrong[0]}"
        )
    return truth.astype(np.int64), score


def _two_classes(labels: Integers) -> bool:
    return bool((labels == 0).any() and (labels == 1).any())


def _share(part: NDArray[np.bool_], whole: NDArray[np.bool_]) -> float | None:
    total = int(whole.sum())
    return int(part.sum()) / total if total else None


def _ratio(part: Floats, whole: Floats) -> Floats:
    """Part / whole, nan where the whole is 0."""
    out: Floats = np.divide(part, whole, out=np.full(part.shape, math.nan), where=whole > 0)
    return out


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x >= 0 else math.exp(x) / (1 + math.exp(x))


def _plain(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _plain_pair(low: float, high: float) -> list[float] | None:
    return None if math.isnan(low) else [low, high]


def _cell(text: str) -> str:
    """Text that stays in its cell."""
    return " ".join(text.split()).replace("|", "\\|")
