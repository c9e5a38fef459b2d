"""Whether conformal p-values and false-alarm rates hold on normal patients: simulated, and on the scores of runs.

Simulated: each split draws n calibration patients with 1 to 5 films each (score = patient + film, both normal, their
variances `correlation` and the rest of 1). The true rate of a threshold is known: of a film drawn at random of a new
patient, or of new patients by the mean of their films.

    python -m benchmarks.conformal
    python -m benchmarks.conformal runs/chest/scores.csv runs/hands/scores.csv

With files, those that `anomaly score` wrote: their normal films are split at random by patient, half to calibrate on
and half to test, again and again; a tested patient counts once, whatever the number of films. With `--each-film` a film
counts as a patient, as where patients aren't known.

flagged    share of normals flagged, the mean over all splits
expected   that share as it is stated beforehand: the largest that n patients can tell, at most the rate asked for
held       share of splits whose stated 95 % interval holds the true rate; simulated only: of a file's own few normals
           the true rate isn't known
KS         distance of one p-value a split from uniform, and its p-value (Kolmogorov-Smirnov)
"""

import argparse
import csv
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr
from scipy.stats import kstest

from anomaly.evaluation.conformal import Reference
from anomaly.formatting import markdown
from benchmarks.record import command_line, record

Floats = NDArray[np.float64]

PATIENTS = (50, 200, 800)
RATES = (0.01, 0.05, 0.10)
MOST_FILMS = 5
UNITS = ("film", "patient")


@dataclass(frozen=True)
class Split:
    """Calibration patients, the score of one new normal patient, and how many normals a threshold flags."""

    reference: Reference
    score: float
    flagged: Callable[[float], float]
    tested: int | None = None  # patients; None: the share is the true one


def simulated(unit: str, patients: int, correlation: float, count: int, seed: int) -> Iterator[Split]:
    """Yield splits of drawn patients."""
    generator = np.random.default_rng([seed, patients, UNITS.index(unit)])
    films = np.arange(1, MOST_FILMS + 1)
    # A film's variance is 1; that of a patient's mean falls with the number of films.
    deviations = np.ones(1) if unit == "film" else np.sqrt(correlation + (1 - correlation) / films)

    def draw(number: int) -> tuple[Floats, NDArray[np.int64]]:
        owner = np.repeat(np.arange(number), generator.choice(films, number))
        own = np.sqrt(correlation) * generator.standard_normal(number)
        scores = own[owner] + np.sqrt(1 - correlation) * generator.standard_normal(len(owner))
        if unit == "film":
            return scores, owner
        return np.bincount(owner, scores) / np.bincount(owner), np.arange(number)

    for _ in range(count):
        reference = Reference.of(*draw(patients))
        yield Split(reference, draw(1)[0][0], lambda threshold: float(ndtr(-threshold / deviations).mean()))


def halves(file: Path, score: str | None, each_film: bool, count: int, seed: int) -> Iterator[Split]:
    """Yield random splits of the patients of normal films, half and half, by their films."""
    with file.open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["label"] == "normal"]
    names = list(rows[0])
    chosen = score or names[names.index("split") + 1]
    scores = np.array([row[chosen] for row in rows], np.float64)
    owner = np.unique([row["film" if each_film else "patient"] for row in rows], return_inverse=True)[1]
    generator = np.random.default_rng(seed)
    for _ in range(count):
        drawn = generator.permutation(owner.max() + 1)
        calibrates = np.isin(owner, drawn[: len(drawn) // 2])
        tested, whose = scores[~calibrates], owner[~calibrates]
        weight = 1 / np.bincount(whose)[whose]
        weight /= weight.sum()

        def flagged(threshold: float, tested: Floats = tested, weight: Floats = weight) -> float:
            return float(weight[tested >= threshold].sum())

        one = generator.choice(tested, p=weight)
        yield Split(Reference.of(scores[calibrates], owner[calibrates]), one, flagged, len(set(whose.tolist())))


def measure(splits: Iterator[Split]) -> dict[str, Any]:
    """Return the shares flagged at each rate, how often the interval holds, and the distance of p from uniform."""
    shares: dict[float, list[float]] = {rate: [] for rate in RATES}
    held: dict[float, list[bool]] = {rate: [] for rate in RATES}
    stated: dict[float, list[float]] = {rate: [] for rate in RATES}
    p_values, figures = [], dict[str, Any]()
    for split in splits:
        reference = split.reference
        p_values.append(float(reference.p_values([split.score])[0]))
        figures = {"patients": reference.patients, "tested": split.tested}
        for rate in RATES:
            if rate >= reference.smallest:
                threshold = reference.threshold(rate)
                share = split.flagged(threshold)
                expected, low, high = reference.false_alarm_rate(threshold)
                shares[rate].append(share)
                stated[rate].append(expected)
                held[rate].append(low <= share <= high)
    ks = kstest(p_values, "uniform")
    for rate in RATES:
        if shares[rate]:
            figures[f"flagged at {rate}"] = round(float(np.mean(shares[rate])), 5)
            figures[f"expected at {rate}"] = round(float(np.mean(stated[rate])), 5)
            if figures["tested"] is None:
                figures[f"held at {rate}"] = round(float(np.mean(held[rate])), 4)
    return figures | {"KS": round(float(ks.statistic), 4), "KS p": round(float(ks.pvalue), 4)}


def line(name: str, figures: dict[str, Any]) -> list[str]:
    """Return a row of the table."""
    cells = []
    for rate in RATES:
        share, held = figures.get(f"flagged at {rate}"), figures.get(f"held at {rate}")
        if share is None:
            cells.append("below 1/(n + 1)")
            continue
        text = f"{100 * share:.2f} % ({100 * figures[f'expected at {rate}']:.2f} %)"
        cells.append(text if held is None else f"{text}, {100 * held:.1f} %")
    return [name, str(figures["patients"]), *cells, f"{figures['KS']:.3f} (p {figures['KS p']:.2f})"]


def main() -> None:
    """Measure every cell or file, print the table, record it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="scores.csv of runs; none: simulated")
    parser.add_argument("--splits", type=int, default=1000)
    parser.add_argument("--correlation", type=float, default=0.8, help="of two films of one patient, 0 to 1")
    parser.add_argument("--by", help="score of the files; the first by default")
    parser.add_argument("--each-film", action="store_true", help="of the files: count each film as a patient")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.splits < 1 or not 0 <= arguments.correlation <= 1:
        parser.error("at least one split, and a correlation of 0 to 1")
    start, seed = time.perf_counter(), arguments.seed
    told: dict[str, Any] = {}
    for file in arguments.files:
        told[f"{file.parent.name}, films"] = measure(
            halves(file, arguments.by, arguments.each_film, arguments.splits, seed)
        )
    if not arguments.files:
        for unit in UNITS:
            for patients in PATIENTS:
                splits = simulated(unit, patients, arguments.correlation, arguments.splits, seed)
                told[f"{unit}, {patients} patients"] = measure(splits)
    lines = [line(name, figures) for name, figures in told.items()]
    settings = {"splits": arguments.splits, "by": arguments.by, "each_film": arguments.each_film, "seed": seed}
    settings |= {} if arguments.files else {"correlation": arguments.correlation, "films": f"1 to {MOST_FILMS}"}
    told["seconds"] = round(time.perf_counter() - start, 1)
    record("conformal", command_line("conformal"), settings, told)
    head = [
        "normals",
        "patients to calibrate on",
        *(f"{100 * rate:.0f} %: flagged (expected), held" for rate in RATES),
        "KS",
    ]
    print("\n".join(markdown(head, lines)))


if __name__ == "__main__":
    main()
