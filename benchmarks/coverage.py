"""How often a 95 % interval of ROC-AUC holds the true one: ours, and two rules that are often used instead.

Cohorts are drawn whose true ROC-AUC is known. Half of the patients are abnormal and each has three films, with the
patient's label and scores that vary together: score = distance x label + patient + film, the last two normal, their
variances `correlation` and the rest of 1. Films of different patients are then told apart with probability
Phi(distance / sqrt(2)), and no two films of different labels are of one patient.

ours        `metrics.interval`: standard error over draws of patients on the logit scale, Student's t
percentile  2.5 and 97.5 % of the figures over the same draws of patients
films       the same of draws of films, as if each were a patient

The three see the same cohorts. The figure of a draw is taken from the pairs of patients won, (abnormal, normal), by a
product of matrices; that the interval so made is that of `metrics.interval` is checked on the first cohorts of each.
"""

import argparse
import math
import time
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.evaluation.bootstrap import PatientBootstrap, interval
from anomaly.formatting import markdown, number
from benchmarks.record import command_line, record

Floats = NDArray[np.float64]

PATIENTS = (30, 100, 300)
TRUE = (0.60, 0.75, 0.95)
FILMS = 3
LEVEL, RESAMPLES = 0.95, 1000
RULES = ("ours", "percentile", "films")
CHECKED = 3  # cohorts


class Resampling:
    """Draws of patients or films with replacement, and the ROC-AUC of each from the pairs won."""

    def __init__(self, labels: NDArray[np.int64], owners: NDArray[np.int64]) -> None:
        """labels (N,) 0 or 1, of one kind an owner; owners (N,) 0 to P - 1, each with as many films as another."""
        self.draws = PatientBootstrap(labels, owners, resamples=RESAMPLES, seed=0)
        abnormal = np.zeros(owners.max() + 1, np.bool_)
        abnormal[owners[labels == 1]] = True
        # Whole numbers below 2**24: float32 counts them exactly.
        self.abnormal, self.normal = (self.draws.counts[:, kind].astype(np.float32) for kind in (abnormal, ~abnormal))
        films = len(labels) // len(abnormal)
        pairs = films**2 * self.abnormal.sum(axis=1, dtype=np.float64) * self.normal.sum(axis=1)
        self.pairs = np.where(pairs > 0, pairs, np.nan)

    def figures(self, won: NDArray[np.float32]) -> Floats:
        """Return the figure of every draw, (B,), nan where a class is missing; `won` counts (abnormal, normal)."""
        return np.asarray(np.einsum("bn,bn->b", self.abnormal @ won, self.normal) / self.pairs)


def cohorts(patients: int, true: float, correlation: float, count: int, seed: int) -> Iterator[Floats]:
    """Yield the scores of each cohort, (patients, FILMS); the first half of the patients is normal."""
    generator = np.random.default_rng([seed, patients, round(true * 1000), round(correlation * 1000)])
    distance = math.sqrt(2) * NormalDist().inv_cdf(true)
    label = (np.arange(patients) >= patients // 2)[:, None]
    for _ in range(count):
        own = math.sqrt(correlation) * generator.standard_normal((patients, 1))
        yield distance * label + own + math.sqrt(1 - correlation) * generator.standard_normal((patients, FILMS))


def coverage(patients: int, true: float, correlation: float, count: int, seed: int) -> dict[str, Any]:
    """Return by rule the share of cohorts whose interval holds the true figure, and the intervals' mean width."""
    owner = np.repeat(np.arange(patients), FILMS)
    label = (owner >= patients // 2).astype(np.int64)
    by_patient, by_film = Resampling(label, owner), Resampling(label, np.arange(len(owner)))
    normal, tails = patients // 2, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
    limits: dict[str, list[tuple[float, float]]] = {rule: [] for rule in RULES}
    for scores in cohorts(patients, true, correlation, count, seed):
        won = (scores[normal:].reshape(-1, 1) > scores[:normal].reshape(1, -1)).astype(np.float32)  # films
        between = won.reshape(patients - normal, FILMS, normal, FILMS).sum(axis=(1, 3))  # patients
        estimate, drawn = float(won.mean(dtype=np.float64)), by_patient.figures(between)
        limits["ours"].append(by_patient.draws.interval(estimate, drawn, LEVEL))
        limits["percentile"].append(tuple(np.nanquantile(drawn, tails)))
        limits["films"].append(tuple(np.nanquantile(by_film.figures(won), tails)))
        if len(limits["ours"]) <= CHECKED:
            asked = interval(label, scores.ravel(), owner, level=LEVEL, resamples=RESAMPLES)
            assert np.allclose(asked, limits["ours"][-1], rtol=0, atol=1e-9), (asked, limits["ours"][-1])
    figures: dict[str, Any] = {}
    for rule, pairs in limits.items():
        low, high = np.array(pairs).T
        figures[rule] = {
            "coverage": float(((low <= true) & (true <= high)).mean()),
            "below": float((high < true).mean()),
            "above": float((low > true).mean()),
            "width": float((high - low).mean()),
        }
    return figures


def main() -> None:
    """Draw the cohorts of every cell, print the table, record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cohorts", type=int, default=2000, help="of each of the nine cells")
    parser.add_argument("--correlation", type=float, default=0.8, help="of two films of one patient, 0 to 1")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    count, correlation, start = arguments.cohorts, arguments.correlation, time.perf_counter()
    if count < 1 or not 0 <= correlation <= 1:
        parser.error("at least one cohort, and a correlation of 0 to 1")
    rows: list[list[str]] = []
    told: dict[str, Any] = {}
    for patients in PATIENTS:
        for true in TRUE:
            found = coverage(patients, true, correlation, count, arguments.seed)
            told[f"{patients} patients, {true:.2f}"] = found
            shares = [f"{100 * found[rule]['coverage']:.1f} %" for rule in RULES]
            rows.append([str(patients), number(true)[:3], *shares, number(found["ours"]["width"])])
    settings = {"cohorts": count, "films": FILMS, "correlation": correlation, "level": LEVEL, "resamples": RESAMPLES}
    told["seconds"] = round(time.perf_counter() - start, 1)
    record("coverage", command_line("coverage"), settings | {"seed": arguments.seed}, told)
    head = ["patients", "true ROC-AUC", "ours", "percentile, patients", "percentile, films", "mean width of ours"]
    print("\n".join(markdown(head, rows)))


if __name__ == "__main__":
    main()
