"""The table of a bench: a row a model and score, a column a variant, the ROC-AUC over seeds, its interval, who is best.

A cell is the ROC-AUC of test films, raw scores, never flipped. It has two spreads, and they answer two questions:

- over seeds, a standard deviation (n - 1): what would another training give?
- over patients, an interval: what would other patients give these very nets?

**Intervals** are by the rule of `metrics`, applied to the mean over seeds. Patients are drawn with replacement, all
their films with them, once for the whole column: of all patients that any row or seed of it was tested on. A draw's
figure is the mean over seeds of the ROC-AUC with that draw's patients; a draw in which a seed's films are of one class
is left out. Degrees of freedom are the patients of the rarer class, those of all the row's seeds, less one. With one
seed this is `metrics.interval`, to the last digit.

**Comparisons** set every row against the best of its column, the one with the highest mean. The difference over the
same draws has a normal interval (`metrics.paired`). Its p-value is corrected for all rows of the column together, the
pick of the best included (`against_best`): were all rows equally good, at most about one column in twenty would have a
row with p < .05, fewer where patients are few. A row with p >= 1 - level is *tied*: it cannot be told apart from the
best. The intervals of the differences are not corrected, and p knows no spread over seeds. `benchmarks/ties.py` counts
by simulation; Holm's correction, which takes the best for given, tells one of 24 equal rows apart in 25 to 39 % of
columns.

**Seeds that are missing** leave the others' figures: a cell says how many of its seeds it has, and why some failed.
Degenerate cases:

- A seed without films of both classes, or with scores that are not finite, has failed, and says so.
- Fewer than two patients of a class: no interval and no p; every row is tied with the best.
- A difference that is the same in every draw, as of a constant score against a complete separation: no p, not tied.

`build` makes a `Table`; `to_json` and `to_csv` keep its numbers in full, `to_markdown`, `to_latex` and `to_terminal`
show them to three decimals, and each has its way back.
"""

import csv
import io
import json
import math
import re
import statistics
import textwrap
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from anomaly.console import plain
from anomaly.evaluation.bootstrap import Comparison, PatientBootstrap
from anomaly.evaluation.figures import TRIVIAL
from anomaly.evaluation.ranking import Floats, Integers, checked_scores, has_both_classes, roc_auc
from anomaly.formatting import markdown, number

Row = tuple[str, str]  # model, score
Key = tuple[str, str, str]  # model, score, variant
Pair = tuple[float, float]


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


Seed = Scored | str | None  # its films, why it failed, or that it is not done
Cell = Sequence[Seed] | str  # its seeds, or why all of them failed


@dataclass(frozen=True)
class Entry:
    """A cell of the table. One without a seed that is done has no figures: None, no `each`."""

    mean: float | None = None  # ROC-AUC in [0, 1], the mean over seeds
    sd: float | None = None  # standard deviation over seeds; None with one
    interval: Pair | None = None  # of the mean, over patients; None where it cannot be told
    each: tuple[float, ...] = ()  # ROC-AUC by seed
    best: bool = False  # the highest mean of its column
    tied: bool = False  # cannot be told apart from the best
    difference: float | None = None  # mean less the best's, in [-1, 1]; None for the best
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


@dataclass(frozen=True)
class Table:
    """A table with all that stands above and underneath it. Every row has an entry in every column."""

    title: str  # says SYNTHETIC where the films are
    rows: tuple[Row, ...]
    columns: tuple[str, ...]  # variants
    entries: dict[Key, Entry]
    synthetic: bool
    notes: tuple[str, ...]
    facts: dict[str, Any]  # what it was made of (data hash, preset, seeds), plain data that JSON can hold
    statistics: dict[str, Any]  # "level", "resamples", "seed" of the draws, "trivial": names that cannot be best


# ---------------------------------------------------------------------------------------------------------- the paper

PAPER_VARIANTS = ("raw", "raw-he", "crop", "crop-he", "full", "full-he")

_PAPER = """
cae       mse                 .460 ± .033  .504 ± .034  .466 ± .022  .510 ± .021  .501 ± .013  .570 ± .019
cae       mse_topk            .466 ± .013  .448 ± .025  .486 ± .015  .473 ± .018  .506 ± .039  .553 ± .023
vae       kld                 .488 ± .031  .491 ± .013  .470 ± .046  .496 ± .045  .520 ± .026  .533 ± .014
vae       l1                  .432 ± .033  .446 ± .016  .438 ± .033  .438 ± .016  .435 ± .014  .483 ± .009
vae       l1_kld              .432 ± .033  .446 ± .016  .438 ± .034  .437 ± .016  .438 ± .011  .488 ± .011
vae       l1_topk             .438 ± .017  .472 ± .010  .440 ± .025  .471 ± .013  .428 ± .013  .481 ± .010
vae       mse                 .432 ± .033  .446 ± .016  .438 ± .033  .438 ± .016  .435 ± .014  .483 ± .009
vae       mse_kld             .432 ± .033  .446 ± .016  .438 ± .033  .438 ± .016  .436 ± .013  .486 ± .010
vae       mse_topk            .438 ± .017  .472 ± .010  .440 ± .025  .471 ± .013  .428 ± .013  .481 ± .010
dcgan     discriminator       .497 ± .018  .491 ± .041  .493 ± .015  .493 ± .025  .530 ± .027  .527 ± .022
bigan     mse                 .471 ± .021  –            .438 ± .039  –            .491 ± .042  .522 ± .017
bigan     mse_topk            .471 ± .011  –            .459 ± .030  –            .475 ± .033  .508 ± .026
bigan     discriminator       .508 ± .007  –            .534 ± .016  –            .549 ± .006  .522 ± .019
alphagan  code                .500 ± .000  –            .500 ± .001  –            .500 ± .000  .500 ± .000
alphagan  mse                 .476 ± .029  –            .466 ± .022  –            .442 ± .013  .528 ± .018
alphagan  mse_topk            .465 ± .031  –            .446 ± .018  –            .422 ± .016  .533 ± .013
alphagan  discriminator       .503 ± .022  –            .534 ± .022  –            .607 ± .016  .584 ± .012
alphagan  discriminator_code  .503 ± .022  –            .534 ± .022  –            .607 ± .016  .584 ± .012
"""


def _published(text: str) -> dict[Key, Pair | None]:
    found: dict[Key, Pair | None] = {}
    for line in text.strip().splitlines():
        model, score, *cells = re.split(r"\s{2,}", line)
        for variant, cell in zip(PAPER_VARIANTS, cells, strict=True):
            mean, _, sd = cell.partition(" ± ")
            found[model, score, variant] = None if cell == "–" else (float(mean), float(sd))
    return found


PAPER = _published(_PAPER)
"""The published ROC-AUCs, (mean, standard deviation) over seeds, None where the paper has a dash.

Davletshina, Melnychuk et al. 2020 (arXiv 2001.10883), the hands of MURA; all 18 rows and 6 columns as reprinted in
Figure 11 of "Identification of Bone Fractures from Hand X-ray Images via Machine Learning Models" (a report of 2023).
Rows and columns are under our names: "top-200" is `mse_topk` or `l1_topk`, "Disc. (D)" `discriminator`, "Code-Disc.
(C)" `code`, "C + D" `discriminator_code`; "w/ HE" is `-he`.
"""


# -------------------------------------------------------------------------------------------------------------- build


def build(
    cells: Mapping[Key, Cell],
    *,
    title: str,
    synthetic: bool = False,
    facts: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    paper: bool = False,
    trivial: Collection[str] = TRIVIAL,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Table:
    """The table of these cells, rows and columns in the order in which they first come.

    cells  (model, score, variant) -> its seeds, or why all of them failed; one that is missing was not run. Each seed
    is `Scored`, or why it failed, or None where it is not done; no seed at all is one that is not done. Seeds may have
    different test films, rows too.    facts  as in `Table`.    paper  whether to put the published figures beside ours.
    trivial  rows with one of these as model or score are compared with the best, but cannot be it.    seed  of the
    draws. Raises ValueError without a cell, and on names that are empty or not one line of printable text.
    """
    for name in {name for key in cells for name in key}:
        if not name or _one_line(name) != name:
            raise ValueError(f"{name!r} is no name of a model, score or variant: it must be one line, and not empty")
    if not cells:
        raise ValueError("no cell: there is no table")
    rows = tuple(dict.fromkeys((model, score) for model, score, _ in cells))
    columns = tuple(dict.fromkeys(variant for _, _, variant in cells))
    entries: dict[Key, Entry] = {}
    remarks: dict[str, list[str]] = {}  # what there is to say, and of which variants
    for variant in columns:
        column = {row: cells[(*row, variant)] for row in rows if (*row, variant) in cells}
        found, tests = _column(column, trivial=trivial, level=level, resamples=resamples, seed=seed)
        for row in rows:
            published = PAPER.get((*row, variant)) if paper else None
            entries[(*row, variant)] = replace(found.get(row, Entry()), paper=published)
        for remark in _remarks(found, tests):
            remarks.setdefault(remark, []).append(variant)
    if synthetic and "SYNTHETIC" not in title:
        title = f"{title} (SYNTHETIC films)"
    names = {name for row in rows for name in row}
    return Table(
        title=_one_line(title),
        rows=rows,
        columns=columns,
        entries=entries,
        synthetic=synthetic,
        notes=(
            *(_one_line(note) for note in notes),
            *(f"{', '.join(variants)}: {remark}." for remark, variants in remarks.items()),
        ),
        facts=json.loads(json.dumps(dict(facts or {}), allow_nan=False)),
        statistics={
            "level": level,
            "resamples": resamples,
            "seed": seed,
            "trivial": [name for name in trivial if name in names],
        },
    )


def against_best(means: Floats, drawn: Floats, freedom: ArrayLike, able: ArrayLike = True) -> Floats:
    """P-values of no difference to the row of the highest mean, (R,), two-sided, corrected for all rows together.

    means  (R,).    drawn  (R, B) the same of every draw.    freedom  (R,) degrees of freedom.    able  (R,) which rows
    can be the best.

    Each difference is divided by its standard error, and Student's t makes a normal score of that, smaller where
    patients are few. What it would reach by chance is told by the draws, each less its row's mean: the largest score of
    any row against the one that is best in that very draw, so that the pick of the best is part of it. The row furthest
    from the best is judged first, and each among those not yet judged (Romano and Wolf 2005), so that rows that are
    clearly worse do not hide a difference between good ones. No p is below 1 / (B + 1).
    """
    from scipy.special import ndtri, stdtr

    rows, count = drawn.shape
    able = np.broadcast_to(np.asarray(able), rows)
    centerd = drawn - drawn.mean(axis=1, keepdims=True)
    errors = np.stack([(centerd - row).std(axis=1, ddof=1) for row in centerd])  # (R, R)
    scale = np.where(errors > _SAME, errors, math.inf)  # rows that rank alike differ by nothing
    best = int(np.where(able, means, -math.inf).argmax())
    degrees = np.minimum(freedom, np.broadcast_to(freedom, rows)[best])
    reached = -ndtri(stdtr(degrees, -np.abs(means - means[best]) / scale[best]))  # (R,)
    p = np.ones(rows)
    left = sorted(set(range(rows)) - {best}, key=lambda row: -reached[row])
    for place, row in enumerate(left):
        among = [best, *left[place:]]
        first = np.where(able[among, None], centerd[among], -math.inf).argmax(axis=0)  # (B,)
        gaps = np.abs(centerd[among] - centerd[among][first, np.arange(count)]) / scale[np.ix_(among, among)][:, first]
        chance = (1 + np.count_nonzero(gaps.max(axis=0) >= reached[row])) / (1 + count)
        p[row] = max(chance, *p[left[place - 1 : place]], 0)
    return p


@dataclass(frozen=True)
class _Told:
    """A row of one column that has figures."""

    entry: Entry
    mean: float
    drawn: Floats  # (B,) the mean over seeds of every draw, nan where it cannot be told
    freedom: int  # patients of the rarer class, less one
    films: frozenset[bytes]  # which test films its seeds have


def _column(
    cells: Mapping[Row, Cell], *, trivial: Collection[str], level: float, resamples: int, seed: int
) -> tuple[dict[Row, Entry], list[frozenset[bytes]]]:
    """The entries of one column, and of each row that has figures the test films of its seeds."""
    entries, seeds = {}, {}
    for row, cell in cells.items():
        entries[row], parts = _sifted(cell)
        if parts:
            seeds[row] = parts
    if not seeds:
        return entries, []
    pool = [scored for parts in seeds.values() for scored in parts]
    labels = [np.asarray(scored.labels).astype(np.int64) for scored in pool]
    draws = PatientBootstrap(
        np.concatenate(labels),
        np.concatenate([np.asarray(scored.patients) for scored in pool]),
        resamples=resamples,
        seed=seed,
    )
    patients = np.split(draws.patient, np.cumsum([len(part) for part in labels])[:-1])
    told: dict[Row, _Told] = {}
    start = 0
    for row, parts in seeds.items():
        stop = start + len(parts)
        scores = [np.asarray(scored.scores, np.float64) for scored in parts]
        told[row] = _tell(entries[row], draws, labels[start:stop], scores, patients[start:stop], level)
        start = stop
    entries |= {row: one.entry for row, one in told.items()}

    able = {row: one.mean for row, one in told.items() if not set(row) & set(trivial)}
    if able:
        first = max(able, key=able.__getitem__)
        best = told[first]
        entries[first] = replace(best.entry, best=True)
        gaps = {row: _compare(draws, one, best, level) for row, one in told.items() if row != first}
        # Without a p, either too few draws can be told or all say the same; only the first leaves it open.
        same = {row for row, gap in gaps.items() if math.isnan(gap.p) and _count(told[row].drawn - best.drawn) > 1}
        ps = _together({row: told[row] for row in told if row == first or not math.isnan(gaps[row].p)}, able)
        for row, gap in gaps.items():
            p = ps.get(row)
            entries[row] = replace(
                told[row].entry,
                difference=gap.difference,
                difference_interval=None if math.isnan(gap.low) else (gap.low, gap.high),
                p=p,
                tied=row not in same if p is None else p >= 1 - level,
            )
    return entries, [one.films for one in told.values()]


def _together(told: Mapping[Row, _Told], able: Collection[Row]) -> dict[Row, float]:
    """The p-values of these rows, over the draws that can be told of all of them; none where there are not two."""
    drawn = np.stack([one.drawn for one in told.values()])
    drawn = drawn[:, ~np.isnan(drawn).any(axis=0)]
    if drawn.shape[1] < 2:
        return {}
    means = np.array([one.mean for one in told.values()])
    ps = against_best(means, drawn, [one.freedom for one in told.values()], [row in able for row in told])
    return dict(zip(told, ps.tolist(), strict=True))


def _remarks(entries: Mapping[Row, Entry], tests: Sequence[frozenset[bytes]]) -> list[str]:
    """What a reader of a column should know, without a full stop."""
    found = []
    if any(len(films) > 1 for films in tests):
        found.append("test films differ between seeds; films and abnormal ones are means over them")
    if len(set(tests)) > 1:
        found.append("not all rows have the same test films; a part of a difference may be theirs")
    for row, entry in entries.items():
        if entry.difference is not None and entry.difference > 0 and not entry.tied:
            found.append(f"{' '.join(row)} is better than the best detector")
    return found


def _sifted(cell: Cell) -> tuple[Entry, list[Scored]]:
    """What there is to say of a cell's missing seeds, and the others."""
    seeds: Sequence[Seed] = [cell] if isinstance(cell, str) else list(cell) or [None]
    wrong = [_wrong(seed, f"seed {place} of {len(seeds)}") for place, seed in enumerate(seeds, 1)]
    reasons = [reason for reason in wrong if reason]
    parts = [seed for seed, reason in zip(seeds, wrong, strict=True) if isinstance(seed, Scored) and not reason]
    undone = len(seeds) - len(parts) - len(reasons)
    return Entry(failed=len(reasons), undone=undone, failure="; ".join(dict.fromkeys(reasons)) or None), parts


def _wrong(seed: Seed, where: str) -> str | None:
    """Why a seed failed, or None."""
    if seed is None:
        return None
    if isinstance(seed, str):
        return _one_line(seed) or "no reason given"
    label, score = np.asarray(seed.labels), np.asarray(seed.scores, np.float64)
    if not has_both_classes(label):
        abnormal = int((label == 1).sum())
        return f"{where}: {len(label) - abnormal} normal and {abnormal} abnormal test films; a ROC-AUC needs both"
    if not np.isfinite(score).all():
        return f"{where}: {int((~np.isfinite(score)).sum())} of {len(score)} scores are not finite"
    return None


def _tell(
    entry: Entry,
    draws: PatientBootstrap,
    labels: list[Integers],
    scores: list[Floats],
    patients: list[Integers],
    level: float,
) -> _Told:
    """One row with its figures: labels, scores and places among the column's patients, (n,) each, by seed."""
    seeds = [draws.restricted(label, patient) for label, patient in zip(labels, patients, strict=True)]
    each = [roc_auc(label, score) for label, score in zip(labels, scores, strict=True)]
    drawn: Floats = np.mean([own.figures(score, "roc_auc") for own, score in zip(seeds, scores, strict=True)], axis=0)
    together, whose = np.concatenate(labels), np.concatenate(patients)
    whole = draws.restricted(together, whose)
    mean, abnormal = statistics.fmean(each), int(together.sum())
    low, high = whole.interval(mean, drawn, level) if _count(drawn) > 1 else (math.nan, math.nan)
    entry = replace(
        entry,
        mean=mean,
        sd=statistics.stdev(each) if len(each) > 1 else None,
        interval=None if math.isnan(low) else (low, high),
        each=tuple(each),
        n=round(len(together) / len(each)),
        n_abnormal=round(abnormal / len(each)),
        n_patients=int(np.unique(whose).size),
        prevalence=abnormal / len(together),
    )
    films = frozenset(np.sort(2 * own.patient + own.labels).tobytes() for own in seeds)
    return _Told(entry, mean, drawn, min(whole.classes) - 1, films)


def _compare(draws: PatientBootstrap, one: _Told, best: _Told, level: float) -> Comparison:
    """A row less the best of its column, on the same draws."""
    difference, gaps = one.mean - best.mean, one.drawn - best.drawn
    if _count(gaps) < 2:
        return Comparison(difference, math.nan, math.nan, math.nan)
    if np.nanmax(gaps) - np.nanmin(gaps) > _SAME:  # means over seeds round: less is the same in every draw
        return draws.comparison(difference, gaps, level)
    alike = abs(difference) < _SAME
    return Comparison(0.0, 0.0, 0.0, 1.0) if alike else Comparison(difference, *[math.nan] * 3)


_SAME = 1e-12  # ROC-AUC, what rounding makes of no difference


def _count(drawn: Floats) -> int:
    """How many draws can be told."""
    return int((~np.isnan(drawn)).sum())


# --------------------------------------------------------------------------------------------------------- whole data


def to_json(table: Table) -> str:
    """The whole table, every number in full."""
    entries = [dict(zip(_KEY, key, strict=True)) | asdict(entry) for key, entry in table.entries.items()]
    whole = {name: getattr(table, name) for name in Table.__dataclass_fields__} | {"entries": entries}
    return json.dumps(whole, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> Table:
    """The table that `to_json` wrote; raises ValueError on other text."""
    try:
        whole = json.loads(text)
        entries = {}
        for found in whole.pop("entries"):
            key = tuple(found.pop(name) for name in _KEY)
            pairs = {name: tuple(found[name]) if found[name] else None for name in _PAIRS}
            entries[key] = Entry(**found | pairs | {"each": tuple(found["each"])})
        rows = tuple((model, score) for model, score in whole.pop("rows"))
        columns, notes = tuple(whole.pop("columns")), tuple(whole.pop("notes"))
        return Table(rows=rows, columns=columns, notes=notes, entries=entries, **whole)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no table of a bench: {error}") from error


_KEY = ("model", "score", "variant")
_PAIRS = {
    "interval": ("low", "high"),
    "difference_interval": ("difference_low", "difference_high"),
    "paper": ("paper_mean", "paper_sd"),
}
_NUMBERS = {"mean": float, "sd": float, "difference": float, "p": float, "prevalence": float} | {
    name: int for name in ("failed", "undone", "n", "n_abnormal", "n_patients")
}


def to_csv(table: Table) -> str:
    """A line an entry, every number in full, nothing where there is none; `each` by seed, with spaces between."""
    out = io.StringIO()
    lines = [_csv_line(key, entry) for key, entry in table.entries.items()]
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(lines)
    return out.getvalue()


def _csv_line(key: Key, entry: Entry) -> dict[str, str]:
    line = dict(zip(_KEY, key, strict=True))
    for name, value in vars(entry).items():
        if name in _PAIRS:
            line |= dict(zip(_PAIRS[name], map(repr, value) if value else ("", ""), strict=True))
        elif name == "each":
            line[name] = " ".join(map(repr, value))
        else:
            line[name] = "" if value is None else str(value)
    return line


def from_csv(text: str) -> dict[Key, Entry]:
    """The entries that `to_csv` wrote; raises ValueError on other text."""
    entries: dict[Key, Entry] = {}
    try:
        for line in csv.DictReader(io.StringIO(text, newline="")):
            values: dict[str, Any] = {
                name: (float(line[low]), float(line[high])) if line[low] else None
                for name, (low, high) in _PAIRS.items()
            }
            values |= {name: kind(line[name]) if line[name] else None for name, kind in _NUMBERS.items()}
            values |= {name: line[name] == "True" for name in ("best", "tied")}
            values |= {"each": tuple(map(float, line["each"].split())), "failure": line["failure"] or None}
            entries[line["model"], line["score"], line["variant"]] = Entry(**values)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no table of a bench: {error}") from error
    return entries


# ------------------------------------------------------------------------------------------------------ what is shown


@dataclass(frozen=True)
class Shown:
    """What a cell shows where numbers are printed to three decimals; None for what does not stand there."""

    mean: float | None = None
    sd: float | None = None
    interval: Pair | None = None
    best: bool = False
    tied: bool = False
    state: str = ""
    failure: str | None = None
    paper: Pair | None = None
    ours: float | None = None  # mean less the paper's


def shown(table: Table) -> dict[Key, Shown]:
    """What `from_markdown`, `from_latex` and `from_terminal` get back from this table's text."""
    return {
        key: Shown(
            mean=_rounded(entry.mean),
            sd=_rounded(entry.sd),
            interval=_rounded_pair(entry.interval),
            best=entry.best,
            tied=entry.tied,
            state=state(entry),
            failure=entry.failure,
            paper=_rounded_pair(entry.paper),
            ours=_rounded(against_paper(entry)),
        )
        for key, entry in table.entries.items()
    }


def against_paper(entry: Entry) -> float | None:
    """The mean less the published one; None where either is missing."""
    return None if entry.mean is None or entry.paper is None else entry.mean - entry.paper[0]


def state(entry: Entry) -> str:
    """How far a cell is, "" where all its seeds are done or all failed: "2 of 4 seeds", "not done"."""
    done, missing = len(entry.each), entry.failed + entry.undone
    if missing and (done or (entry.failed and entry.undone)):
        return f"{done} of {done + missing} seeds"
    return "not done" if entry.undone else ""


def failures(table: Table) -> dict[str, int]:
    """The number under which each reason of failure stands underneath, from 1 in the order of rows and columns."""
    ordered = (table.entries[(*row, variant)].failure for row in table.rows for variant in table.columns)
    return {reason: place for place, reason in enumerate(dict.fromkeys(filter(None, ordered)), 1)}


def underneath(table: Table, best: str = "Bold") -> list[str]:
    """What stands under the table, a sentence or more a line: films, facts, how figures are made, notes, failures.

    best  what marks the best of a column.
    """
    settings, entries = table.statistics, table.entries.values()
    percent, slip = f"{100 * settings['level']:g} %", f"{1 - settings['level']:.2g}".removeprefix("0")
    slip_percent = f"{100 * (1 - settings['level']):.2g} %"
    figure = "mean ± standard deviation over seeds" if any(entry.sd is not None for entry in entries) else "one seed"
    lines = [f"Test films: {'; '.join(_films(table))}."]
    if table.facts:
        lines.append("; ".join(f"{name.replace('_', ' ')}: {_fact(value)}" for name, value in table.facts.items()))
    lines += [
        f"ROC-AUC of films, {figure} [{percent} interval over patients: {settings['resamples']:,} draws of patients, "
        "Student's t on the logit scale]. The interval is for these trained models; another seed is not in it. Nothing "
        "is flipped: below .5 stays below .5.",
        f"{best}: the highest mean of its column, picked on these very films, which flatters it. =: cannot be told "
        f"apart from it (paired over the same patients, p ≥ {slip}, corrected for the rows of the column together and "
        f"for the pick of the best: were all rows equally good, one in the column would lack its = with a chance of at "
        f"most about {slip_percent}).",
    ]
    if settings["trivial"]:
        lines[-1] += f" {', '.join(settings['trivial'])}: there to be beaten, never the best."
    states = {state(entry) for entry in entries}
    if states - {"", "not done"}:
        lines.append("k of n seeds: the others failed or are not done; the figures are of those that are there.")
    if "not done" in states:
        lines.append("not done: no seed is done, and none failed.")
    if any(entry.paper for entry in entries):
        lines.append(
            "Paper: the ROC-AUC that Davletshina et al. (2020) published for the hands of MURA, mean ± standard "
            "deviation; ours: this table's mean less theirs."
            + (" These films are synthetic: the difference is one of films first." if table.synthetic else "")
        )
    lines += table.notes
    return [_one_line(line) for line in lines] + [f"failed ({n}): {why}" for why, n in failures(table).items()]


def _films(table: Table) -> list[str]:
    """How many films, abnormal films and patients the columns have, those alike put together."""
    alike: dict[str, list[str]] = {}
    for variant in table.columns:
        entries = [entry for row in table.rows if (entry := table.entries[(*row, variant)]).n is not None]
        text = "none"
        if entries:
            n, abnormal, patients, share = (
                _span(values)
                for values in zip(*((e.n, e.n_abnormal, e.n_patients, e.prevalence) for e in entries), strict=True)
            )
            text = f"{n}, {abnormal} abnormal (prevalence {share}), of {patients} patients"
        alike.setdefault(text, []).append(variant)
    return [f"{', '.join(columns)}: {text}" if len(alike) > 1 else text for text, columns in alike.items()]


def _span(values: Sequence[float | None]) -> str:
    """One value, or from the least to the greatest."""
    told = sorted({value for value in values if value is not None})
    ends = [str(value) if isinstance(value, int) else number(value) for value in told]
    return ends[0] if len(set(ends)) == 1 else f"{ends[0]} to {ends[-1]}"


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(part)}" for name, part in value.items())
    return ", ".join(map(_fact, value)) if isinstance(value, list) else str(value)


def _parts(entry: Entry, reasons: Mapping[str, int], best: str = "") -> tuple[list[str], list[str], list[str]]:
    """The texts of a cell: our figure, marked, and its interval; what of its seeds is missing; the paper's figure and
    the difference."""
    own, missing, theirs = [], [], []
    if entry.mean is not None:
        own.append(number(entry.mean) + ("" if entry.sd is None else f" ± {number(entry.sd)}"))
        own[0] = (best if entry.best else "= " if entry.tied else "") + own[0]
    if entry.interval:
        own.append(f"[{number(entry.interval[0])}, {number(entry.interval[1])}]")
    if stands := state(entry):
        missing.append(stands)
    if entry.failure is not None:
        missing.append(f"failed ({reasons[entry.failure]})")
    if entry.paper:
        theirs.append(f"paper {number(entry.paper[0])} ± {number(entry.paper[1])}")
    ours = _rounded(against_paper(entry))
    if ours is not None:
        theirs.append(f"ours {'+' if ours > 0 else ''}{number(ours)}")
    return own or ([] if missing else ["–"]), missing, theirs


def _phrase(own: Sequence[str], missing: Sequence[str], theirs: Sequence[str]) -> str:
    """The texts of a cell on one line."""
    return "; ".join(filter(None, [", ".join(filter(None, [" ".join(own), *missing])), ", ".join(theirs)]))


_NUMBER = r"[+-]?\d?\.\d{3}"
_CELL = re.compile(
    rf"(?=.)(?:(?:(?P<mark>[*=]) )?(?P<mean>{_NUMBER})(?: ± (?P<sd>{_NUMBER}))?"
    rf"(?: \[(?P<low>{_NUMBER}), (?P<high>{_NUMBER})\])?|–|(?=\d+ of|not done|failed))"
    r"(?:(?:^|,? )(?P<state>\d+ of \d+ seeds|not done))?(?:(?:^|,? )failed \((?P<failed>\d+)\))?"
    rf"(?:;? paper (?P<paper_mean>{_NUMBER}) ± (?P<paper_sd>{_NUMBER})(?:,? ours (?P<ours>{_NUMBER}))?)?"
)
_FAILED = re.compile(r"failed \((\d+)\): (.+)")


def _read(text: str, reasons: Mapping[str, str]) -> Shown:
    """What the text of a cell shows; `*` marks the best. Raises ValueError on other text."""
    found = _CELL.fullmatch(text)
    if not found:
        raise ValueError(f"{text!r} is no cell of a table of a bench")

    def pair(low: str, high: str) -> Pair | None:
        return (float(found[low]), float(found[high])) if found[low] else None

    return Shown(
        mean=float(found["mean"]) if found["mean"] else None,
        sd=float(found["sd"]) if found["sd"] else None,
        interval=pair("low", "high"),
        best=found["mark"] == "*",
        tied=found["mark"] == "=",
        state=found["state"] or "",
        failure=reasons[found["failed"]] if found["failed"] else None,
        paper=pair("paper_mean", "paper_sd"),
        ours=float(found["ours"]) if found["ours"] else None,
    )


def _reasons(lines: Iterable[str]) -> dict[str, str]:
    """The numbered reasons of failure among the lines underneath."""
    return {found[1]: found[2] for line in lines if (found := _FAILED.fullmatch(line))}


# ----------------------------------------------------------------------------------------------------------- Markdown


def to_markdown(table: Table) -> str:
    """The table as Markdown, the best of a column in bold, `=` before what is tied with it."""
    reasons = failures(table)
    body = [
        [_escaped(model), _escaped(score)]
        + [_markdown_cell(table.entries[model, score, variant], reasons) for variant in table.columns]
        for model, score in table.rows
    ]
    head = ["model", "score", *map(_escaped, table.columns)]
    foot = [f"- {_escaped(line)}".replace("|", "\\|") for line in underneath(table)]
    title = _escaped(table.title).replace("|", "\\|")
    return "\n".join([f"**{title}**", "", *markdown(head, body), "", *foot]) + "\n"


def from_markdown(text: str) -> dict[Key, Shown]:
    """What the cells of `to_markdown` show; raises ValueError on other text."""
    lines = text.splitlines()
    reasons = _reasons(_unescaped(line.removeprefix("- ")) for line in lines if line.startswith("- "))
    # A bar or any other sign behind a backslash is part of its cell.
    grid = [
        [cell.strip() for cell in re.findall(r"((?:\\.|[^\\|])*)\|", line[1:])] for line in lines if line[:1] == "|"
    ]
    if len(grid) < 2:
        raise ValueError("no table of a bench: there is no Markdown table")
    (_, _, *columns), _, *body = grid
    return {
        (_unescaped(model), _unescaped(score), _unescaped(variant)): _read(
            re.sub(r"^\*\*(.*?)\*\*", r"* \1", cell), reasons
        )
        for model, score, *cells in body
        for variant, cell in zip(columns, cells, strict=True)
    }


def _markdown_cell(entry: Entry, reasons: Mapping[str, int]) -> str:
    own, *others = _parts(entry, reasons)
    return _phrase([f"**{' '.join(own)}**"] if entry.best else own, *others)


def _escaped(text: str) -> str:
    """Text without a meaning in Markdown, but for bars."""
    return re.sub(r"[\\`*<>&\[\]~#]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text)


# -------------------------------------------------------------------------------------------------------------- LaTeX


def to_latex(table: Table) -> str:
    """The table as a LaTeX float for `booktabs`, the best of a column in bold, `=` before what is tied with it."""
    reasons = failures(table)
    lines = [
        r"% needs \usepackage{booktabs}",
        r"\begin{table}",
        r"\centering\scriptsize",
        r"\setlength{\tabcolsep}{3pt}",
        rf"\caption{{{_tex(table.title)}}}",
        r"\makebox[\linewidth]{%",  # centerd, where it is wider than the text too
        rf"\begin{{tabular}}{{ll{'r' * len(table.columns)}}}",
        r"\toprule",
        " & ".join(["model", "score", *map(_tex, table.columns)]) + r" \\",
        r"\midrule",
    ]
    before = None
    for model, score in table.rows:
        if before is not None:
            lines.append(r"\addlinespace[.2em]" if model == before else r"\addlinespace")
        before = model
        cells = [_latex_cell(table.entries[model, score, variant], reasons) for variant in table.columns]
        lines.append(" & ".join([_tex(model), _tex(score), *cells]) + r" \\")
    lines += [r"\bottomrule", r"\end{tabular}}", r"\par\medskip", r"\begin{minipage}{\linewidth}"]
    lines += [rf"{_tex(line)}\par" for line in underneath(table)]
    return "\n".join([*lines, r"\end{minipage}", r"\end{table}"]) + "\n"


def from_latex(text: str) -> dict[Key, Shown]:
    """What the cells of `to_latex` show; raises ValueError on other text."""
    lines = text.splitlines()
    reasons = _reasons(_untex(line.removesuffix(r"\par")) for line in lines if line.endswith(r"\par"))
    grid = [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in lines if line.endswith(r" \\")]
    if not grid:
        raise ValueError("no table of a bench: there is no LaTeX table")
    (_, _, *columns), *body = grid
    found = {}
    for model, score, *cells in body:
        for variant, cell in zip(columns, cells, strict=True):
            inner = cell.removeprefix(_STACK[0]).removesuffix(_STACK[1]).replace(r"\\", " ")
            inner = re.sub(r"\\textbf\{(.*?\]?)\}(?=$| )", r"\1", "* " + inner if r"\textbf" in inner else inner)
            found[_untex(model), _untex(score), _untex(variant)] = _read(_untex(inner), reasons)
    return found


_STACK = r"\begin{tabular}[t]{@{}r@{}}", r"\end{tabular}"
_TEX = {sign: "\\" + sign for sign in "{}$&#%_"} | {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    '"': r"\char34{}",
    "[": "{[}",  # after a line's end it would begin an argument, as would a star
    "*": "{*}",
    "–": r"\textendash{}",
    "±": r"$\pm$",
    "≥": r"$\geq$",
}
_SIGN = {code: sign for sign, code in _TEX.items()} | {"-{}": "-", "$-$": "-"}
_CODE = re.compile(r"\\texttt\{U\+([0-9A-F]+)\}|" + "|".join(map(re.escape, sorted(_SIGN, key=len, reverse=True))))


def _latex_cell(entry: Entry, reasons: Mapping[str, int]) -> str:
    own, *others = ([_tex(part).replace(" -", " $-$") for part in parts] for parts in _parts(entry, reasons))
    if entry.best:
        own = [rf"\textbf{{{part}}}" for part in own]
    parts = [*own, *chain(*others)]
    return parts[0] if len(parts) == 1 else _STACK[0] + r"\\".join(parts) + _STACK[1]


def _tex(text: str) -> str:
    """Text as LaTeX typesets it, with any engine: a letter that its old fonts lack is written as its code point."""
    return re.sub(r"-(?=-)", "-{}", "".join(_TEX.get(sign) or _tex_letter(sign) for sign in text))


def _tex_letter(sign: str) -> str:
    accented = sign <= "ÿ" and unicodedata.normalize("NFD", sign)[0].isascii()
    return sign if sign.isascii() or accented else rf"\texttt{{U+{ord(sign):04X}}}"


def _untex(text: str) -> str:
    return _CODE.sub(lambda found: chr(int(found[1], 16)) if found[1] else _SIGN[found[0]], text)


# ----------------------------------------------------------------------------------------------------------- terminal


def to_terminal(table: Table, width: int = 120) -> str:
    """The table as plain text, `*` before the best of a column, `=` before what is tied with it.

    width  characters a line: where they are too few, a cell takes several lines, and then the columns several blocks.
    """
    reasons = failures(table)
    parts = [
        [_parts(table.entries[(*row, variant)], reasons, best="* ") for variant in table.columns] for row in table.rows
    ]
    flat = [[[_phrase(*texts)] for texts in row] for row in parts]
    stacked = [[list(chain(*texts)) for texts in row] for row in parts]
    labels = [max(len(text) for text in texts) for texts in zip(("model", "score"), *table.rows, strict=True)]
    cells = flat if sum(w + 2 for w in [*labels, *_widths(table.columns, flat)]) - 2 <= width else stacked
    widths = _widths(table.columns, cells)

    lines = [table.title]
    for block in _blocks(widths, width - sum(w + 2 for w in labels)):
        spans = [*labels, *(widths[column] for column in block)]
        lines += ["", _laid(["model", "score", *(table.columns[column] for column in block)], spans)]
        lines.append("  ".join("─" * span for span in spans))
        for row, texts in zip(table.rows, cells, strict=True):
            chosen = [texts[column] for column in block]
            for place in range(max(map(len, chosen))):
                names = row if place == 0 else ("", "")
                lines.append(_laid([*names, *(text[place] if place < len(text) else "" for text in chosen)], spans))
    lines.append("")
    for line in underneath(table, best="*"):
        lines += textwrap.wrap(
            line, max(width, 20), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
        )
    return "\n".join(lines) + "\n"


def from_terminal(text: str) -> dict[Key, Shown]:
    """What the cells of `to_terminal` show; raises ValueError on other text."""
    lines = text.splitlines()
    rules = [place for place, line in enumerate(lines) if set(line) == {"─", " "}]
    if not rules:
        raise ValueError("no table of a bench: there is no rule under a head")
    reasons = _reasons("\n".join(lines).replace("\n  ", " ").splitlines())
    texts: dict[Key, list[str]] = {}
    for rule in rules:
        spans = [found.span() for found in re.finditer("─+", lines[rule])]
        head = [lines[rule - 1][start:stop].strip() for start, stop in spans]
        row = ("", "")
        for line in lines[rule + 1 :]:
            if not line:
                break
            model, score, *cells = (line[start:stop].strip() for start, stop in spans)
            row = (model, score) if model else row
            for variant, cell in zip(head[2:], cells, strict=True):
                texts.setdefault((*row, variant), []).append(cell)
    return {key: _read(" ".join(filter(None, parts)), reasons) for key, parts in texts.items()}


def _widths(heads: Sequence[str], cells: Sequence[Sequence[Sequence[str]]]) -> list[int]:
    """The width of each column: its head's or that of its longest line."""
    return [max(len(head), *(len(line) for row in cells for line in row[i])) for i, head in enumerate(heads)]


def _blocks(widths: Sequence[int], room: int) -> list[list[int]]:
    """Columns that stand beside each other, in order, at least one."""
    blocks: list[list[int]] = [[]]
    left = room
    for column, width in enumerate(widths):
        if blocks[-1] and width > left:
            blocks.append([])
            left = room
        blocks[-1].append(column)
        left -= width + 2
    return blocks


def _laid(texts: Sequence[str], widths: Sequence[int]) -> str:
    """One line: two columns set left, the others right."""
    pads = [
        text.rjust(width) if column > 1 else text.ljust(width)
        for column, (text, width) in enumerate(zip(texts, widths, strict=True))
    ]
    return "  ".join(pads).rstrip()


# ------------------------------------------------------------------------------------------------------------ helpers


def _one_line(text: str) -> str:
    """Text without line ends, runs of space and control characters."""
    return plain(" ".join(text.split()))


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def _rounded_pair(pair: Pair | None) -> Pair | None:
    return (round(pair[0], 3), round(pair[1], 3)) if pair else None
