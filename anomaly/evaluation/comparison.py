"""Comparison of detectors over the grid of a bench: a row a model and score, a column a variant of the films.

A cell is the ROC-AUC of test films, from raw scores, never flipped. It has two spreads, which answer two questions:

- over seeds, a standard deviation (n - 1): what would another training give?
- over patients, a confidence interval: what would other patients give with these trained models?

**Intervals** follow the rule of `bootstrap`, applied to the mean over seeds. Patients are drawn with replacement, all
their films with them, once for the whole column: from all patients that any row or seed of it was tested on. The figure
of a draw is the mean over seeds of the ROC-AUC with the patients of that draw; a draw in which the films of a seed are
of one class is left out. Degrees of freedom are the patients of the rarer class, over all seeds of the row, less one.
With one seed this is `bootstrap.interval`, to the last digit.

**Comparisons** set every row against the best of its column, the one with the highest mean. The difference over the
same draws has a normal interval (as in `bootstrap.paired`). Its p-value is corrected for all rows of the column
together, the choice of the best included (`against_best`): were all rows equally good, at most about one column in
twenty would have a row with p < .05, fewer where patients are few. A row with p >= 1 - level is *tied*: it cannot be
distinguished from the best. The intervals of the differences are not corrected, and p ignores the spread over seeds.
`benchmarks/multiple_comparisons.py` counts by simulation; Holm's correction, which takes the best as given, separates
one of 24 equal rows in 25 to 39 % of columns.

**Missing seeds** leave the figures of the others: a cell says how many of its seeds it has, and why some failed.
Degenerate cases:

- A seed without films of both classes, or with scores that are not finite, has failed, with the reason.
- Fewer than two patients of a class: no interval and no p; every row is tied with the best.
- A difference that is the same in every draw, as of a constant score against complete separation: no p, not tied.
"""

import json
import math
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from anomaly.console import plain
from anomaly.evaluation.bootstrap import Comparison, PatientBootstrap
from anomaly.evaluation.figures import TRIVIAL
from anomaly.evaluation.paper import PAPER
from anomaly.evaluation.ranking import Floats, Integers, checked_scores, has_both_classes, roc_auc

Row = tuple[str, str]  # model, score
Key = tuple[str, str, str]  # model, score, variant
Pair = tuple[float, float]

_ROUNDING = 1e-12  # ROC-AUC: smaller differences are rounding


@dataclass(frozen=True, eq=False)
class Scored:
    """One seed of one cell: its test films of known label. Raises ValueError on other labels or lengths."""

    labels: ArrayLike  # (n,) 0 or 1
    scores: ArrayLike  # (n,) float64, higher is more abnormal, any range
    patients: ArrayLike  # (n,) whose film it is, any names

    def __post_init__(self) -> None:
        shapes = [np.shape(column) for column in (self.labels, self.scores, self.patients)]
        if len(shapes[0]) != 1 or len(set(shapes)) > 1:
            raise ValueError("labels {}, scores {} and patients {} must all be (n,)".format(*shapes))
        checked_scores(self.labels, np.zeros(shapes[0]))


Seed = Scored | str | None  # its films, why it failed, or None where it is not done
Cell = Sequence[Seed] | str  # its seeds, or why all of them failed


@dataclass(frozen=True)
class Entry:
    """A cell of the table. Without a finished seed it has no figures: None, and no `each`."""

    mean: float | None = None  # ROC-AUC in [0, 1], the mean over seeds
    sd: float | None = None  # standard deviation over seeds; None with one
    interval: Pair | None = None  # of the mean, over patients; None where it is undefined
    each: tuple[float, ...] = ()  # ROC-AUC by seed
    best: bool = False  # the highest mean of its column
    tied: bool = False  # cannot be distinguished from the best
    difference: float | None = None  # mean less that of the best, in [-1, 1]; None for the best
    difference_interval: Pair | None = None  # its interval over patients, not corrected
    p: float | None = None  # of no difference to the best, two-sided, corrected for all rows of the column
    failed: int = 0  # seeds that failed
    undone: int = 0  # seeds that are not done
    failure: str | None = None  # why seeds failed, one line
    paper: Pair | None = None  # the published mean and standard deviation
    n: int | None = None  # test films, the mean over seeds
    n_abnormal: int | None = None  # abnormal ones, the mean over seeds
    n_patients: int | None = None  # whose they are, of all seeds together
    prevalence: float | None = None  # abnormal films / films, of all seeds together

    @property
    def above_paper(self) -> float | None:
        """The mean less the published one; None where either is missing."""
        return None if self.mean is None or self.paper is None else self.mean - self.paper[0]

    @property
    def state(self) -> str:
        """How many seeds are done, "" where all are done or all failed: "2 of 4 seeds", "not done"."""
        done, missing = len(self.each), self.failed + self.undone
        if missing and (done or (self.failed and self.undone)):
            return f"{done} of {done + missing} seeds"
        return "not done" if self.undone else ""


@dataclass(frozen=True)
class ComparisonSettings:
    """How the figures of a table are made."""

    level: float = 0.95  # of the intervals; p < 1 - level separates a row from the best
    resamples: int = 1000  # draws of patients
    seed: int = 0  # of the draws
    trivial: tuple[str, ...] = TRIVIAL
    """Rows with one of these as model or score are compared with the best, but cannot be the best."""


@dataclass(frozen=True)
class Table:
    """A table with everything printed above and below it. Every row has an entry in every column."""

    title: str  # says SYNTHETIC where the films are
    rows: tuple[Row, ...]
    columns: tuple[str, ...]  # variants
    entries: dict[Key, Entry]
    synthetic: bool
    notes: tuple[str, ...]
    facts: dict[str, Any]  # what it was made from (data hash, preset, seeds), plain data that JSON can hold
    settings: ComparisonSettings  # `trivial`: those among the rows

    @property
    def failures(self) -> dict[str, int]:
        """Each reason of failure and its number in the table, from 1 in the order of rows and columns."""
        ordered = (self.entries[(*row, variant)].failure for row in self.rows for variant in self.columns)
        return {reason: number for number, reason in enumerate(dict.fromkeys(filter(None, ordered)), 1)}


# -------------------------------------------------------------------------------------------------------------- build


def build_table(
    cells: Mapping[Key, Cell],
    *,
    title: str,
    synthetic: bool = False,
    facts: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    paper: bool = False,
    settings: ComparisonSettings = ComparisonSettings(),
) -> Table:
    """The table of these cells, rows and columns in the order in which they first come.

    cells  (model, score, variant) -> its seeds, or why all of them failed; one that is missing was not run. Each seed
    is `Scored`, or why it failed, or None where it is not done; a cell without seeds is not done. Seeds may have
    different test films, rows too.    facts  as in `Table`.    paper  whether to put the published figures beside ours.
    Raises ValueError without a cell, and on names that are empty or not one line of printable text.
    """
    for name in {name for key in cells for name in key}:
        if not name or one_line(name) != name:
            raise ValueError(f"{name!r} is no name of a model, score or variant: it must be one line, and not empty")
    if not cells:
        raise ValueError("no cell: there is no table")
    rows = tuple(dict.fromkeys((model, score) for model, score, _ in cells))
    columns = tuple(dict.fromkeys(variant for _, _, variant in cells))
    entries: dict[Key, Entry] = {}
    remarks: dict[str, list[str]] = {}  # remark -> its variants
    for variant in columns:
        column = {row: cells[(*row, variant)] for row in rows if (*row, variant) in cells}
        column_entries, films = _compare_column(column, settings)
        for row in rows:
            published = PAPER.get((*row, variant)) if paper else None
            entries[(*row, variant)] = replace(column_entries.get(row, Entry()), paper=published)
        for remark in _remarks(column_entries, films):
            remarks.setdefault(remark, []).append(variant)
    if synthetic and "SYNTHETIC" not in title:
        title = f"{title} (SYNTHETIC films)"
    names = {name for row in rows for name in row}
    return Table(
        title=one_line(title),
        rows=rows,
        columns=columns,
        entries=entries,
        synthetic=synthetic,
        notes=(
            *(one_line(note) for note in notes),
            *(f"{', '.join(variants)}: {remark}." for remark, variants in remarks.items()),
        ),
        facts=json.loads(json.dumps(dict(facts or {}), allow_nan=False)),
        settings=replace(settings, trivial=tuple(name for name in settings.trivial if name in names)),
    )


def against_best(means: Floats, drawn: Floats, freedom: ArrayLike, eligible: ArrayLike = True) -> Floats:
    """P-values of no difference to the row of the highest mean, (R,), two-sided, corrected for all rows together.

    means  (R,).    drawn  (R, B) the same of every draw.    freedom  (R,) degrees of freedom.    eligible  (R,) which
    rows can be the best.

    Each difference is divided by its standard error, and Student's t turns it into a normal score, smaller where
    patients are few. The draws, each less its row's mean, give what the score would reach by chance: the largest score
    of any row against the one that is best in that very draw, so that choosing the best is part of it. The row furthest
    from the best is tested first, and each among those not yet tested (Romano and Wolf 2005), so that rows that are
    clearly worse do not hide a difference between good ones. No p is below 1 / (B + 1).
    """
    from scipy.special import ndtri, stdtr

    rows, count = drawn.shape
    eligible = np.broadcast_to(np.asarray(eligible), rows)
    centered = drawn - drawn.mean(axis=1, keepdims=True)
    errors = np.stack([(centered - row).std(axis=1, ddof=1) for row in centered])  # (R, R)
    scale = np.where(errors > _ROUNDING, errors, math.inf)  # rows that rank alike differ by nothing
    best = int(np.where(eligible, means, -math.inf).argmax())
    degrees = np.minimum(freedom, np.broadcast_to(freedom, rows)[best])
    reached = -ndtri(stdtr(degrees, -np.abs(means - means[best]) / scale[best]))  # (R,)
    p = np.ones(rows)
    others = sorted(set(range(rows)) - {best}, key=lambda row: -reached[row])
    for position, row in enumerate(others):
        remaining = [best, *others[position:]]
        leader = np.where(eligible[remaining, None], centered[remaining], -math.inf).argmax(axis=0)  # (B,)
        gaps = np.abs(centered[remaining] - centered[remaining][leader, np.arange(count)])
        gaps /= scale[np.ix_(remaining, remaining)][:, leader]
        chance = (1 + np.count_nonzero(gaps.max(axis=0) >= reached[row])) / (1 + count)
        p[row] = max(chance, *p[others[position - 1 : position]], 0)
    return p


def one_line(text: str) -> str:
    """Return text without line ends, runs of space and control characters."""
    return plain(" ".join(text.split()))


# ------------------------------------------------------------------------------------------------------------- column


@dataclass(frozen=True)
class _Figures:
    """A row of one column that has figures."""

    entry: Entry
    mean: float
    drawn: Floats  # (B,) the mean over seeds of every draw, nan where it is undefined
    freedom: int  # patients of the rarer class, less one
    films: frozenset[bytes]  # the test films of its seeds


def _compare_column(
    cells: Mapping[Row, Cell], settings: ComparisonSettings
) -> tuple[dict[Row, Entry], list[frozenset[bytes]]]:
    """The entries of one column, and of each row that has figures the test films of its seeds."""
    entries, seeds = {}, {}
    for row, cell in cells.items():
        entries[row], scored = _usable_seeds(cell)
        if scored:
            seeds[row] = scored
    if not seeds:
        return entries, []
    draws, figures = _column_figures(entries, seeds, settings)
    entries |= {row: figure.entry for row, figure in figures.items()}
    eligible = {row: figure.mean for row, figure in figures.items() if not set(row) & set(settings.trivial)}
    if eligible:
        best = max(eligible, key=eligible.__getitem__)
        entries |= _entries_against(best, figures, eligible, draws, settings.level)
    return entries, [figure.films for figure in figures.values()]


def _column_figures(
    entries: Mapping[Row, Entry], seeds: Mapping[Row, list[Scored]], settings: ComparisonSettings
) -> tuple[PatientBootstrap, dict[Row, _Figures]]:
    """The draws of the column's patients, and of each row its figures."""
    pool = [scored for row_seeds in seeds.values() for scored in row_seeds]
    labels = [np.asarray(scored.labels).astype(np.int64) for scored in pool]
    draws = PatientBootstrap(
        np.concatenate(labels),
        np.concatenate([np.asarray(scored.patients) for scored in pool]),
        resamples=settings.resamples,
        seed=settings.seed,
    )
    patients = np.split(draws.patient, np.cumsum([len(label) for label in labels])[:-1])
    figures: dict[Row, _Figures] = {}
    start = 0
    for row, row_seeds in seeds.items():
        stop = start + len(row_seeds)
        subsets = [draws.restricted(*films) for films in zip(labels[start:stop], patients[start:stop], strict=True)]
        scores = [np.asarray(scored.scores, np.float64) for scored in row_seeds]
        figures[row] = _row_figures(entries[row], subsets, scores, settings.level)
        start = stop
    return draws, figures


def _row_figures(entry: Entry, seeds: Sequence[PatientBootstrap], scores: Sequence[Floats], level: float) -> _Figures:
    """One row with its figures: the column's draws restricted to each seed's films, and their scores, (n,)."""
    each = [roc_auc(seed.labels, score) for seed, score in zip(seeds, scores, strict=True)]
    drawn: Floats = np.mean([seed.figures(score, "roc_auc") for seed, score in zip(seeds, scores, strict=True)], axis=0)
    labels: Integers = np.concatenate([seed.labels for seed in seeds])
    patient: Integers = np.concatenate([seed.patient for seed in seeds])
    pooled = seeds[0].restricted(labels, patient)
    mean, abnormal = statistics.fmean(each), int(labels.sum())
    low, high = pooled.interval(mean, drawn, level) if _count_defined(drawn) > 1 else (math.nan, math.nan)
    entry = replace(
        entry,
        mean=mean,
        sd=statistics.stdev(each) if len(each) > 1 else None,
        interval=None if math.isnan(low) else (low, high),
        each=tuple(each),
        n=round(len(labels) / len(each)),
        n_abnormal=round(abnormal / len(each)),
        n_patients=int(np.unique(patient).size),
        prevalence=abnormal / len(labels),
    )
    films = frozenset(np.sort(2 * seed.patient + seed.labels).tobytes() for seed in seeds)
    return _Figures(entry, mean, drawn, min(pooled.classes) - 1, films)


def _entries_against(
    best: Row, figures: Mapping[Row, _Figures], eligible: Collection[Row], draws: PatientBootstrap, level: float
) -> dict[Row, Entry]:
    """The entries of a column's rows, each compared with the best."""
    entries = {best: replace(figures[best].entry, best=True)}
    gaps = {row: _difference(draws, figure, figures[best], level) for row, figure in figures.items() if row != best}
    p_values = _p_values({row: figures[row] for row in figures if row == best or not math.isnan(gaps[row].p)}, eligible)
    for row, gap in gaps.items():
        p = p_values.get(row)
        # Without a p, too few draws are defined, which leaves it open, or all draws differ from the best alike.
        same = math.isnan(gap.p) and _count_defined(figures[row].drawn - figures[best].drawn) > 1
        entries[row] = replace(
            figures[row].entry,
            difference=gap.difference,
            difference_interval=None if math.isnan(gap.low) else (gap.low, gap.high),
            p=p,
            tied=not same if p is None else p >= 1 - level,
        )
    return entries


def _p_values(figures: Mapping[Row, _Figures], eligible: Collection[Row]) -> dict[Row, float]:
    """The p-values of these rows, over the draws defined for all of them; empty where there are not two."""
    drawn = np.stack([figure.drawn for figure in figures.values()])
    drawn = drawn[:, ~np.isnan(drawn).any(axis=0)]
    if drawn.shape[1] < 2:
        return {}
    means = np.array([figure.mean for figure in figures.values()])
    freedom = [figure.freedom for figure in figures.values()]
    p_values = against_best(means, drawn, freedom, [row in eligible for row in figures])
    return dict(zip(figures, p_values.tolist(), strict=True))


def _difference(draws: PatientBootstrap, row: _Figures, best: _Figures, level: float) -> Comparison:
    """A row less the best of its column, on the same draws."""
    difference, gaps = row.mean - best.mean, row.drawn - best.drawn
    if _count_defined(gaps) < 2:
        return Comparison(difference, math.nan, math.nan, math.nan)
    if np.nanmax(gaps) - np.nanmin(gaps) > _ROUNDING:
        return draws.comparison(difference, gaps, level)
    if abs(difference) < _ROUNDING:
        return Comparison(0.0, 0.0, 0.0, 1.0)
    return Comparison(difference, math.nan, math.nan, math.nan)


def _count_defined(drawn: Floats) -> int:
    """Count the draws that have a figure."""
    return int((~np.isnan(drawn)).sum())


def _remarks(entries: Mapping[Row, Entry], films: Sequence[frozenset[bytes]]) -> list[str]:
    """What a reader of a column should know, without a full stop."""
    remarks = []
    if any(len(seeds) > 1 for seeds in films):
        remarks.append("test films differ between seeds; films and abnormal ones are means over them")
    if len(set(films)) > 1:
        remarks.append("not all rows have the same test films; a part of a difference may be theirs")
    for row, entry in entries.items():
        if entry.difference is not None and entry.difference > 0 and not entry.tied:
            remarks.append(f"{' '.join(row)} is better than the best detector")
    return remarks


# -------------------------------------------------------------------------------------------------------------- seeds


def _usable_seeds(cell: Cell) -> tuple[Entry, list[Scored]]:
    """An entry that says which seeds are missing, and the others."""
    seeds: Sequence[Seed] = [cell] if isinstance(cell, str) else list(cell) or [None]
    problems = [_problem(seed, f"seed {number} of {len(seeds)}") for number, seed in enumerate(seeds, 1)]
    reasons = [problem for problem in problems if problem]
    usable = [seed for seed, problem in zip(seeds, problems, strict=True) if isinstance(seed, Scored) and not problem]
    undone = len(seeds) - len(usable) - len(reasons)
    return Entry(failed=len(reasons), undone=undone, failure="; ".join(dict.fromkeys(reasons)) or None), usable


def _problem(seed: Seed, where: str) -> str | None:
    """Why a seed failed, or None."""
    if seed is None:
        return None
    if isinstance(seed, str):
        return one_line(seed) or "no reason given"
    labels, scores = np.asarray(seed.labels), np.asarray(seed.scores, np.float64)
    if not has_both_classes(labels):
        abnormal = int((labels == 1).sum())
        return f"{where}: {len(labels) - abnormal} normal and {abnormal} abnormal test films; a ROC-AUC needs both"
    if infinite := int((~np.isfinite(scores)).sum()):
        return f"{where}: {infinite} of {len(scores)} scores not finite"
    return None
