"""The table of a bench, as far as its cells are done: made, written in every format, and shown on a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from anomaly import runs
from anomaly.evaluation.comparison import Scored, Table, build_table
from anomaly.evaluation.figures import TRIVIAL
from anomaly.experiments.bench import Bench
from anomaly.experiments.grid import Cell
from anomaly.manifest import check_file
from anomaly.models import find_detector
from anomaly.reporting.bench_page import BenchRun, render_bench
from anomaly.reporting.tables import from_json, to_csv, to_json, to_latex, to_markdown, to_terminal
from preprocessing.cache.reader import Cache
from preprocessing.where import LABEL_VALUES
from preprocessing.wording import patients_note

FORMATS = {"terminal": to_terminal, "markdown": to_markdown, "latex": to_latex, "csv": to_csv, "json": to_json}
FILES = {"table.md": to_markdown, "table.tex": to_latex, "table.csv": to_csv, "results.json": to_json}

Seeds = list[Scored | str | None]
"""The seeds of an entry: scored, or why one failed, or None where it is not done."""


def bench_table(bench: Bench, *, paper: bool = False) -> Table:
    """Return the table of what is done; with `paper`, the published figures stand beside it."""
    grid = bench.grid
    models: dict[tuple[str, str, str], Seeds] = {}  # by row, score, variant
    trivial: dict[tuple[str, str, str], Seeds] = {}
    seen: set[tuple[str, int]] = set()  # trivial scores are those of the films, the same for every model
    for cell in bench.cells:
        done = bench.done(cell)
        lines = _labelled_lines(bench.folder(cell)) if done else []
        for score in find_detector(cell.model).score_names:
            seeds = models.setdefault((cell.row, score, cell.variant), [])
            seeds.append(_scored(lines, score) if done else bench.failure(cell))
        if done and (cell.variant, cell.seed) not in seen:
            seen.add((cell.variant, cell.seed))
            for name in TRIVIAL:
                seeds = trivial.setdefault(("trivial", name, cell.variant), [None] * len(grid.seeds))
                seeds[grid.seeds.index(cell.seed)] = _scored(lines, name)
    cache = Cache(grid.cache)
    chosen = cache.where(grid.where)
    note = patients_note(int((~cache.index["patient_known"][chosen]).sum()), int(chosen.sum()))
    return build_table(
        models | trivial,
        title=f"Film ROC-AUC on test: {cache.source}, preset {grid.preset}",
        synthetic=cache.synthetic,
        facts={
            "films": cache.source,
            "content": cache.content_hash[:12],
            "preset": grid.preset,
            "seeds": list(grid.seeds),
        },
        paper=paper,
        notes=[note] if note else [],
    )


def write_results(bench: Bench, table: Table) -> None:
    """Write the table in every format, and the page."""
    settings = bench.grid.to_file().model_dump(mode="json")
    page = render_bench(table, [_bench_run(bench, cell) for cell in bench.cells], settings)
    with bench.locked():
        for name, render in FILES.items():
            runs.write_atomic(bench.path / name, render(table))
        runs.write_atomic(bench.path / "index.html", page)


def shows_paper(bench: Bench) -> bool:
    """Whether its table, as it was written last, has the published figures beside its own."""
    try:
        table = from_json((bench.path / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return any(entry.paper for entry in table.entries.values())


def _bench_run(bench: Bench, cell: Cell) -> BenchRun:
    page = f"cells/{cell.name}/report.html" if bench.done(cell) else None
    return BenchRun(cell.row, cell.variant, cell.seed, page, bench.failure(cell))


def _labelled_lines(folder: Path) -> list[dict[str, str]]:
    """Return the lines of a run's scores.csv whose label is known."""
    check_file(folder / "scores.csv", f"delete {folder}, and the same bench makes it again")
    return [line for line in runs.read_csv(folder / "scores.csv") if line["label"] in LABEL_VALUES]


def _scored(lines: Sequence[Mapping[str, str]], score: str) -> Scored:
    """Return one score of films."""
    return Scored(
        np.array([LABEL_VALUES[line["label"]] for line in lines], np.int64),
        np.array([float(line[score]) for line in lines]),
        np.array([line["patient"] for line in lines]),
    )
