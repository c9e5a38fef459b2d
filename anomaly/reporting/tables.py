"""The table of a bench as text: JSON and CSV keep its numbers in full, Markdown, LaTeX and the terminal show three
decimals.

In the last three the best of a column stands out, `=` marks what is tied with it, and the footnotes say what was
measured and how.
"""

import csv
import io
import json
import re
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from anomaly.evaluation.comparison import ComparisonSettings, Entry, Key, Row, Table, one_line
from anomaly.formatting import csv_cell, markdown, number
from anomaly.reporting.latex import Latex, escape, render_latex

if TYPE_CHECKING:
    from rich.table import Table as Grid

_KEY = ("model", "score", "variant")
_PAIRS = {
    "interval": ("low", "high"),
    "difference_interval": ("difference_low", "difference_high"),
    "paper": ("paper_mean", "paper_sd"),
}

# --------------------------------------------------------------------------------------------------------- whole data


@dataclass(frozen=True, kw_only=True)
class _StoredEntry(Entry):
    model: str
    score: str
    variant: str


@dataclass(frozen=True)
class _StoredTable:
    title: str
    rows: tuple[Row, ...]
    columns: tuple[str, ...]
    entries: tuple[_StoredEntry, ...]
    synthetic: bool
    notes: tuple[str, ...]
    facts: dict[str, Any]
    settings: ComparisonSettings


def to_json(table: Table) -> str:
    """The whole table, every number in full."""
    entries = [dict(zip(_KEY, key, strict=True)) | asdict(entry) for key, entry in table.entries.items()]
    document = {field.name: getattr(table, field.name) for field in fields(table)}
    document |= {"entries": entries, "settings": asdict(table.settings)}
    return json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str) -> Table:
    """The table that `to_json` wrote. Raises ValueError on other text, with each field that is wrong."""
    from pydantic import TypeAdapter

    stored = TypeAdapter(_StoredTable).validate_json(text)
    values = {field.name: getattr(stored, field.name) for field in fields(stored)}
    names = [field.name for field in fields(Entry)]
    entries = {
        (entry.model, entry.score, entry.variant): Entry(**{name: getattr(entry, name) for name in names})
        for entry in stored.entries
    }
    return Table(**values | {"entries": entries})


def to_csv(table: Table) -> str:
    """A line an entry, every number in full, nothing where there is none; `each` by seed, with spaces between."""
    lines = [_csv_line(key, entry) for key, entry in table.entries.items()]
    out = io.StringIO()
    writer = csv.DictWriter(out, list(lines[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: csv_cell(value) for name, value in line.items()} for line in lines)
    return out.getvalue()


def _csv_line(key: Key, entry: Entry) -> dict[str, Any]:
    line: dict[str, Any] = dict(zip(_KEY, key, strict=True))
    for name, value in vars(entry).items():
        if name in _PAIRS:
            line |= dict(zip(_PAIRS[name], value or ("", ""), strict=True))
        else:
            line[name] = " ".join(map(repr, value)) if name == "each" else value
    return line


# -------------------------------------------------------------------------------------------------------------- cells


@dataclass(frozen=True)
class _CellText:
    """What a cell says, a phrase a part."""

    figure: Sequence[str]  # mean ± sd, marked, and the interval; a dash where the cell was not run
    missing: Sequence[str]  # seeds not done, and the number of the reason why some failed
    paper: Sequence[str]  # the published figure, and ours less that

    @property
    def lines(self) -> list[str]:
        """One part a line."""
        return [*self.figure, *self.missing, *self.paper]

    def sentence(self, figure: str = "{}") -> str:
        """All of it on one line; `figure` formats our figure."""
        ours = figure.format(" ".join(self.figure)) if self.figure else ""
        return "; ".join(filter(None, [", ".join(filter(None, [ours, *self.missing])), ", ".join(self.paper)]))


def _cell_text(entry: Entry, reasons: Mapping[str, int], best: str = "") -> _CellText:
    """The text of a cell; `best` marks the best of its column."""
    figure, missing, paper = [], [], []
    if entry.mean is not None:
        mark = best if entry.best else "= " if entry.tied else ""
        figure.append(mark + number(entry.mean) + ("" if entry.sd is None else f" ± {number(entry.sd)}"))
    if entry.interval:
        figure.append(f"[{number(entry.interval[0])}, {number(entry.interval[1])}]")
    if entry.state:
        missing.append(entry.state)
    if entry.failure is not None:
        missing.append(f"failed ({reasons[entry.failure]})")
    if entry.paper:
        paper.append(f"paper {number(entry.paper[0])} ± {number(entry.paper[1])}")
    if entry.above_paper is not None:
        above = round(entry.above_paper, 3)
        paper.append(f"ours {'+' if above > 0 else ''}{number(above)}")
    return _CellText(figure or ([] if missing else ["–"]), missing, paper)


# ---------------------------------------------------------------------------------------------------------- footnotes


def footnotes(table: Table, best: str = "Bold") -> list[str]:
    """What stands below the table, a sentence or more a line: films, facts, how figures are made, notes, failures.

    best  what marks the best of a column.
    """
    settings, entries = table.settings, table.entries.values()
    figure = "mean ± standard deviation over seeds" if any(entry.sd is not None for entry in entries) else "one seed"
    lines = [f"Test films: {'; '.join(_film_counts(table))}."]
    if table.facts:
        lines.append("; ".join(f"{name.replace('_', ' ')}: {_fact(value)}" for name, value in table.facts.items()))
    lines += [
        f"ROC-AUC of films, {figure} [{100 * settings.level:g} % confidence interval over patients: "
        f"{settings.resamples:,} bootstrap resamples of patients, Student's t on the logit scale]. The interval is for "
        "these trained models and does not include the spread over seeds. A ROC-AUC below .5 is reported as it is.",
        _comparison_note(settings, best),
    ]
    states = {entry.state for entry in entries}
    if states - {"", "not done"}:
        lines.append("k of n seeds: the others failed or are not done; the figures are of the k.")
    if "not done" in states:
        lines.append("not done: no seed is done, and none failed.")
    if any(entry.paper for entry in entries):
        lines.append(
            "Paper: the ROC-AUC that Davletshina et al. (2020) published for the hands of MURA, mean ± standard "
            "deviation; ours: the mean of this table less the published one."
            + (" These films are synthetic, so the difference is mostly one of data." if table.synthetic else "")
        )
    lines += table.notes
    return [one_line(line) for line in lines] + [f"failed ({n}): {reason}" for reason, n in table.failures.items()]


def _comparison_note(settings: ComparisonSettings, best: str) -> str:
    alpha = 1 - settings.level
    significance = f"{alpha:.2g}".removeprefix("0")
    note = (
        f"{best}: the highest mean of its column, selected on the test set, hence optimistic. =: not significantly "
        f"different (paired over the same patients, p ≥ {significance}, corrected for all rows of the "
        "column and for selecting the best: were all rows equally good, the chance that any row of the column lacks "
        f"its = is at most about {100 * alpha:.2g} %)."
    )
    return note + (f" {', '.join(settings.trivial)}: baselines, never the best." if settings.trivial else "")


def _film_counts(table: Table) -> list[str]:
    """How many films, abnormal films and patients the columns have, equal columns together."""
    columns: dict[str, list[str]] = {}
    for variant in table.columns:
        entries = [entry for row in table.rows if (entry := table.entries[(*row, variant)]).n is not None]
        text = "none"
        if entries:
            n, abnormal, patients, prevalence = (
                _range(values)
                for values in zip(*((e.n, e.n_abnormal, e.n_patients, e.prevalence) for e in entries), strict=True)
            )
            text = f"{n}, {abnormal} abnormal (prevalence {prevalence}), of {patients} patient{'s' * (patients != '1')}"
        columns.setdefault(text, []).append(variant)
    return [f"{', '.join(names)}: {text}" if len(columns) > 1 else text for text, names in columns.items()]


def _range(values: Sequence[float | None]) -> str:
    """One value, or from the least to the greatest."""
    ordered = sorted({value for value in values if value is not None})
    texts = [str(value) if isinstance(value, int) else number(value) for value in ordered]
    return texts[0] if len(set(texts)) == 1 else f"{texts[0]} to {texts[-1]}"


def _fact(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact(part)}" for name, part in value.items())
    return ", ".join(map(_fact, value)) if isinstance(value, list) else str(value)


# ------------------------------------------------------------------------------------------------- Markdown and LaTeX


def to_markdown(table: Table) -> str:
    """The table as Markdown, the best of a column in bold."""
    reasons = table.failures

    def cell(entry: Entry) -> str:
        return _cell_text(entry, reasons).sentence("**{}**" if entry.best else "{}")

    body = [
        [_escape_markdown(model), _escape_markdown(score)]
        + [cell(table.entries[model, score, variant]) for variant in table.columns]
        for model, score in table.rows
    ]
    head = ["model", "score", *map(_escape_markdown, table.columns)]
    title, *notes = (_escape_markdown(line).replace("|", "\\|") for line in (table.title, *footnotes(table)))
    return "\n".join([f"**{title}**", "", *markdown(head, body), "", *(f"- {note}" for note in notes)]) + "\n"


def _escape_markdown(text: str) -> str:
    """Text without a meaning in Markdown, but for bars."""
    return re.sub(r"[\\`*<>&\[\]~#]|(?<![^\W_])_|_(?![^\W_])", r"\\\g<0>", text)


def to_latex(table: Table) -> str:
    """The table as a LaTeX float for `booktabs`, the best of a column in bold."""
    reasons = table.failures
    models = [model for model, _ in table.rows]
    rows = [
        {
            "model": model,
            "score": score,
            "first_of_model": model != previous,
            "cells": [_latex_lines(table.entries[model, score, variant], reasons) for variant in table.columns],
        }
        for (model, score), previous in zip(table.rows, [None, *models], strict=False)
    ]
    return render_latex("table.tex", title=table.title, columns=table.columns, rows=rows, footnotes=footnotes(table))


def _latex_lines(entry: Entry, reasons: Mapping[str, int]) -> list[dict[str, Any]]:
    """The lines of a cell, and whether each is bold."""
    cell = _cell_text(entry, reasons)
    return [
        {"text": Latex(escape(line).replace(" -", " $-$")), "bold": entry.best and line in cell.figure}
        for line in cell.lines
    ]


# ----------------------------------------------------------------------------------------------------------- terminal


def to_terminal(table: Table, width: int = 120) -> str:
    """The table as plain text, `*` before the best of a column.

    width  characters a line: where they are too few, a cell takes several lines, and then the columns several blocks.
    """
    reasons = table.failures
    cells = {key: _cell_text(entry, reasons, best="* ") for key, entry in table.entries.items()}
    one_line_each = _grid(table, {key: cell.sentence() for key, cell in cells.items()}, table.columns)
    if _width(one_line_each) <= width:
        grids = [one_line_each]
    else:
        stacked = {key: "\n".join(cell.lines) for key, cell in cells.items()}
        blocks: list[list[str]] = [[]]
        for column in table.columns:
            if blocks[-1] and _width(_grid(table, stacked, [*blocks[-1], column])) > width:
                blocks.append([])
            blocks[-1].append(column)
        grids = [_grid(table, stacked, block) for block in blocks]
    notes = [
        textwrap.wrap(line, max(width, 20), subsequent_indent="  ", break_long_words=False, break_on_hyphens=False)
        for line in footnotes(table, best="*")
    ]
    parts = [table.title, *map(_as_text, grids), "\n".join(line for note in notes for line in note)]
    return "\n\n".join(parts) + "\n"


def _grid(table: Table, cells: Mapping[Key, str], columns: Sequence[str]) -> "Grid":
    from rich import box
    from rich.table import Table as Grid
    from rich.text import Text

    grid = Grid(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    for name in ("model", "score"):
        grid.add_column(Text(name), no_wrap=True)
    for name in columns:
        grid.add_column(Text(name), no_wrap=True, justify="right")
    for row in table.rows:
        grid.add_row(*map(Text, row), *(Text(cells[(*row, column)]) for column in columns))
    return grid


def _width(grid: "Grid") -> int:
    from rich.console import Console

    return Console(width=1_000_000).measure(grid).maximum


def _as_text(grid: "Grid") -> str:
    """The grid as plain text, as wide as its cells need."""
    from rich.console import Console

    out = io.StringIO()
    Console(file=out, width=_width(grid), color_system=None, legacy_windows=False).print(grid)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())
