"""The page of a bench: its table, what can be said of the differences, and links to the pages of its runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from anomaly.evaluation.comparison import Table
from anomaly.formatting import with_interval
from anomaly.reporting.charts.forest import forest_plot
from anomaly.reporting.html import flat, render
from anomaly.reporting.model_card import bench_card
from anomaly.reporting.tables import footnotes
from preprocessing.wording import counted


@dataclass(frozen=True)
class BenchRun:
    """A run of a bench, as the page of the bench links to it."""

    model: str  # as the table names it in its rows
    variant: str
    seed: int
    report: str | None  # path of its page, relative to that of the bench; None where it failed or is not done
    failure: str | None = None  # why it failed


def render_bench(table: Table, runs: Sequence[BenchRun], settings: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """The page of a bench as HTML: its table, a forest plot a column, and links to the pages of its runs.

    settings  those of the bench, nested to any depth.    notes  sentences the reader should know first.
    """
    by_model: dict[str, dict[str, list[BenchRun]]] = {}
    for run in runs:
        by_model.setdefault(run.model, {}).setdefault(run.variant, []).append(run)
    reasons = table.failures
    return render(
        "bench.html",
        table=table,
        synthetic=table.synthetic,
        sections={
            "table": "Table",
            "forest": "Differences",
            "runs": "Runs",
            "made": "Provenance",
            "card": "Model card",
        },
        trivial=set(table.settings.trivial),
        notes=notes,
        failures=reasons,
        footnotes=footnotes(table, best="best")[: -len(reasons) or None],
        winners=_winners(table),
        forests=[forest_plot(table, column) for column in table.columns],
        runs=by_model,
        settings=flat({**table.facts, **settings}),
        card=bench_card(table),
    )


def _winners(table: Table) -> list[str]:
    """A sentence a column: which row is best, and how many are significantly worse."""
    lines = []
    for column in table.columns:
        entries = {row: entry for row in table.rows if (entry := table.entries.get((*row, column)))}
        best = next((row for row, entry in entries.items() if entry.best), None)
        if best is None:
            lines.append(f"{column}: no figure.")
            continue
        winner = entries[best]
        others = [entry for row, entry in entries.items() if row != best and entry.mean is not None]
        worse = sum(not entry.tied for entry in others)
        compared = "no other row to compare"
        if others:
            compared = f"{worse} of {counted(len(others), 'other row')} significantly worse"
        state = f" ({winner.state})" if winner.state else ""
        value = with_interval(winner.mean, winner.interval)
        lines.append(f"{column}: {' '.join(best)} is the best, {value}{state}; {compared}.")
    return lines
