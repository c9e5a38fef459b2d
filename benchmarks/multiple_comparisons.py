"""How often a row of a bench's table is called worse than the best though it is as good, and though it is worse.

Columns of rows are drawn whose true ROC-AUC is known. Half of the patients are abnormal and each has three films:
score = distance x label + patient + film, the last two normal, their variances .8 and the rest of 1. The rows are
independent of each other, or half of the patients' variance is common to all of them. All rows are equally good, at
.75; then the last one is worse by .05.

ours  `comparison.against_best`: the law of the largest difference over joint draws of patients
holm  Holm's correction of normal p-values, which takes the row with the highest figure for the best

any    share of columns in which a row that is as good as every other is told apart from the best
worse  share of columns in which the worse row is told apart from the best

Rules and numbers of rows see the same draws: fewer rows are the first of more. The figure of a draw is taken from the
pairs of patients won by a product of matrices; that its p-values are those of `comparison.build_table` is checked on
the first columns of each.
"""

import argparse
import math
import time
from collections.abc import Iterator
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from anomaly.evaluation.comparison import ComparisonSettings, Scored, against_best, build_table
from anomaly.formatting import markdown
from benchmarks.coverage import RESAMPLES, Resampling
from benchmarks.record import command_line, record

Floats = NDArray[np.float64]

PATIENTS = (30, 60, 230)
ROWS = (2, 8, 24)
COMMON = {"independent": 0.0, "correlated": 0.5}  # share of the patients' variance that all rows have in common
TRUE, WORSE = 0.75, 0.70
FILMS, CORRELATION = 3, 0.8
ALPHA = 0.05
CHECKED = 2  # columns


def columns(patients: int, common: float, count: int, seed: int) -> Iterator[Floats]:
    """Yield the scores of each column, (rows, patients, FILMS); the last row is the one before, but worse."""
    generator = np.random.default_rng([seed, patients, round(common * 1000)])
    rows = max(ROWS)
    good, bad = (math.sqrt(2) * NormalDist().inv_cdf(true) for true in (TRUE, WORSE))
    label = (np.arange(patients) >= patients // 2)[:, None]
    for _ in range(count):
        shared = math.sqrt(common) * generator.standard_normal((patients, 1))
        own = math.sqrt(1 - common) * generator.standard_normal((rows, patients, 1))
        film = math.sqrt(1 - CORRELATION) * generator.standard_normal((rows, patients, FILMS))
        noise = math.sqrt(CORRELATION) * (shared + own) + film
        yield np.concatenate([good * label + noise, bad * label + noise[-1:]])


def holm(means: Floats, drawn: Floats) -> Floats:
    """Return the p-values of no difference to the best row, (R,), by Holm's correction."""
    best = int(means.argmax())
    errors = (drawn - drawn[best]).std(axis=1, ddof=1)
    p = 2 * ndtr(-np.abs(means - means[best]) / np.where(errors > 0, errors, math.inf))
    others = [row for row in np.argsort(p) if row != best]
    corrected = np.ones(len(p))
    corrected[others] = np.minimum(1, np.maximum.accumulate(p[others] * np.arange(len(others), 0, -1)))
    return corrected


def shares(patients: int, common: float, count: int, seed: int) -> dict[int, dict[str, float]]:
    """Return by the number of rows how often each rule tells a row apart from the best."""
    owner = np.repeat(np.arange(patients), FILMS)
    label = (owner >= patients // 2).astype(np.int64)
    draws, normal = Resampling(label, owner), patients // 2
    found = {rows: dict.fromkeys(("ours any", "holm any", "ours worse", "holm worse"), 0.0) for rows in ROWS}
    for number, scores in enumerate(columns(patients, common, count, seed)):
        means, drawn = np.empty(len(scores)), np.empty((len(scores), RESAMPLES))
        for row, own in enumerate(scores):
            won = (own[normal:].reshape(-1, 1) > own[:normal].reshape(1, -1)).astype(np.float32)  # films
            means[row] = won.mean(dtype=np.float64)
            between = won.reshape(patients - normal, FILMS, normal, FILMS).sum(axis=(1, 3))  # patients
            drawn[row] = draws.figures(between)
        told = ~np.isnan(drawn[0])
        for rows, counts in found.items():
            for worse in (False, True):
                which = [*range(rows - 1), -1] if worse else list(range(rows))
                figures = means[which], drawn[which][:, told]
                ps = {"ours": against_best(*figures, normal - 1), "holm": holm(*figures)}
                if number < CHECKED:
                    _check([scores[row] for row in which], label, owner, ps["ours"])
                for rule, p in ps.items():
                    if worse:
                        counts[f"{rule} worse"] += float(p[-1] < ALPHA) / count
                    else:
                        counts[f"{rule} any"] += float(p.min() < ALPHA) / count
    return found


def _check(scores: list[Floats], label: NDArray[np.int64], owner: NDArray[np.int64], p: Floats) -> None:
    """Compare p-values with those of a table; the best has none there."""
    cells = {(f"row {row}", "score", "raw"): [Scored(label, own.ravel(), owner)] for row, own in enumerate(scores)}
    settings = ComparisonSettings(resamples=RESAMPLES)
    asked = [entry.p for entry in build_table(cells, title="check", settings=settings).entries.values()]
    assert np.allclose([1 if one is None else one for one in asked], p, rtol=0, atol=1.5 / RESAMPLES), (asked, p)


def main() -> None:
    """Draw the columns of every kind, print the table, record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--columns", type=int, default=1000, help="of each of the six kinds")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.columns < 1:
        parser.error("at least one column")
    start = time.perf_counter()
    lines: list[list[str]] = []
    told: dict[str, Any] = {}
    for patients in PATIENTS:
        for name, common in COMMON.items():
            for rows, found in shares(patients, common, arguments.columns, arguments.seed).items():
                told[f"{patients} patients, {rows} rows, {name}"] = {key: round(x, 4) for key, x in found.items()}
                lines.append([str(patients), str(rows), name, *(f"{100 * share:.1f} %" for share in found.values())])
    told["seconds"] = round(time.perf_counter() - start, 1)
    settings = {
        "columns": arguments.columns,
        "films": FILMS,
        "correlation": CORRELATION,
        "true": TRUE,
        "worse": WORSE,
        "common": COMMON["correlated"],
        "alpha": ALPHA,
        "resamples": RESAMPLES,
        "seed": arguments.seed,
    }
    record("multiple_comparisons", command_line("multiple_comparisons"), settings, told)
    print("\n".join(markdown(["patients", "rows", "which are", *found], lines)))


if __name__ == "__main__":
    main()
