"""The grid: models x variants x seeds on one cache, a run folder a cell, and the table that it gives.

    bench.json        what makes it: films, models, variants, seeds, settings; another grid needs another folder
    cells/            <model>-<variant>-<seed>: ordinary run folders, scored on the test split
    failures/         a cell that could not be trained: why
    workers/          what each process is at: cell and epoch
    results.json, table.md, table.tex, table.csv   the table
    index.html        the page

Any number of processes work at one bench: each takes the first cell that is not done and that no other holds, so that
one which dies costs its cell's last seconds only. On a disk that machines share, the same command on each of them is a
bench on all of them.
"""

import fcntl
import json
import multiprocessing
import os
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed

from anomaly import runs
from anomaly.data import LABELS, assign_splits
from anomaly.evaluation import score_films
from anomaly.fit import Plan, continue_or_create, fit, prepare, resolve, settings_of
from anomaly.metrics import TRIVIAL
from anomaly.models import find_detector
from anomaly.report import BenchRun, render_bench
from anomaly.runs import write_atomic
from anomaly.score import View, open_model, run_view
from anomaly.table import Scored, Table, build, to_csv, to_json, to_latex, to_markdown, to_terminal
from anomaly.train import EpochReport, Trainer, choose_device
from preprocessing import InputError
from preprocessing.cluster import call_up
from preprocessing.schema import Cache

TRIES = 2
"""Times that a cell may take its process with it before it counts as failed."""
POLL_SECONDS = 0.5
PAPERS = ("cae", "vae", "dcgan", "bigan", "alphagan")
"""The models of the paper's table, in its order."""
FLOOR = "contrast_density"
FORMATS = {"terminal": to_terminal, "markdown": to_markdown, "latex": to_latex, "csv": to_csv, "json": to_json}
WRITTEN = {"table.md": to_markdown, "table.tex": to_latex, "table.csv": to_csv, "results.json": to_json}
LABELLED = {name: value for value, name in LABELS.items() if value >= 0}


@dataclass(frozen=True)
class Cell:
    """One training of the grid."""

    row: str  # a model, or "model/preset"
    variant: str
    seed: int
    preset: str

    @property
    def model(self) -> str:
        """The model alone."""
        return self.row.partition("/")[0]

    @property
    def name(self) -> str:
        """The name of its folder."""
        return f"{self.row.replace('/', '_')}-{self.variant}-{self.seed}"


@dataclass(frozen=True)
class Grid:
    """All that makes a bench."""

    cache: Path
    models: tuple[str, ...]  # "cae", or "classifier/mura" with a preset of its own
    variants: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    preset: str = "fast"
    settings: tuple[str, ...] = ()  # "key=value", for every model that has the setting
    split_by_seed: bool = False  # whether each seed splits the patients anew, as the paper's protocol does
    device: str = "auto"
    precision: str = "auto"

    def cells(self) -> list[Cell]:
        """Return its cells: seed by seed, so that the table is complete early, and those of one variant together."""
        return [
            Cell(row, variant, seed, row.partition("/")[2] or _preset(row, self.preset))
            for seed in self.seeds
            for variant in self.variants
            for row in self.models
        ]

    def plan(self, cell: Cell) -> Plan:
        """Return what a cell trains."""
        known = settings_of(find_detector(cell.model))
        settings = tuple(text for text in self.settings if text.partition("=")[0] in known)
        return Plan(
            cell.model,
            self.cache,
            cell.variant,
            cell.preset,
            settings,
            seed=cell.seed,
            split_seed=cell.seed if self.split_by_seed else 0,
            device=self.device,
            precision=self.precision,
        )

    def check(self) -> None:
        """Refuse what no cell can train, before anything is."""
        cache = Cache(self.cache)
        for variant in self.variants:
            cache.films(variant, np.arange(0))  # an unknown one is refused, with those there are
        index = cache.index
        for seed in self.seeds:
            split_seed = seed if self.split_by_seed else 0
            split = assign_splits(index["patient"], index["label"], index["split"], seed=split_seed)
            label = index["label"][split == "test"]
            for value, name in LABELS.items():
                if value >= 0 and not (label == value).any():
                    raise InputError(
                        f"{cache.path} has no {name} films to test on ({len(label)} films in its test split): a table "
                        "needs films of both classes; give them in a MURA tree, class folders or a manifest"
                    )
        for text in self.settings:
            if not any(text.partition("=")[0] in settings_of(find_detector(c.model)) for c in self.cells()):
                raise InputError(f"--set {text!r}: none of {', '.join(self.models)} has this setting")
        for cell in self.cells()[: len(self.models)]:
            kind = find_detector(cell.model)
            if cell.preset not in kind.presets:
                raise InputError(f"no preset {cell.preset!r} of {cell.model}; there are: {', '.join(kind.presets)}")

    def told(self) -> dict[str, Any]:
        """Return it as plain data; the same films elsewhere are the same films."""
        plain = {key: value for key, value in asdict(self).items() if key not in ("cache", "device", "precision")}
        return json.loads(runs.to_json(plain | {"content_hash": Cache(self.cache).content_hash}))  # type: ignore[no-any-return]


def _preset(row: str, preset: str) -> str:
    """Return the preset of a row that names none: what learns nothing has no other than `standard` to speak of."""
    return preset if preset in find_detector(row).presets or row != FLOOR else "standard"


# --- the folder -----------------------------------------------------------------------------------------------------


Found = dict[tuple[str, str, str], list[Scored] | str]
"""(row, score, variant) -> its seeds, or why there is none."""


class Bench:
    """A bench folder: what is done, what failed, what is still to do."""

    def __init__(self, path: Path, grid: Grid) -> None:
        """Open or make it; a folder of another grid is refused with the differences."""
        self.path, self.grid, self.cells = path, grid, grid.cells()
        file = path / "bench.json"
        if file.is_file():
            try:
                old = json.loads(file.read_text())
            except ValueError as error:
                raise InputError(f"{file} is damaged ({error}); delete it, the cells stay") from None
            if changed := runs.differences(old, grid.told()):
                raise InputError(
                    f"{path} is a bench of other films or settings: {'; '.join(changed)}; take another --out"
                )
        elif path.exists() and any(path.iterdir()):
            raise InputError(f"{path} exists and is no bench; take another --out")
        else:
            write_atomic(file, runs.to_json(grid.told()))

    def folder(self, cell: Cell) -> Path:
        """Return the run folder of a cell."""
        return self.path / "cells" / cell.name

    def done(self, cell: Cell) -> bool:
        """Whether a cell is trained and scored."""
        return (self.folder(cell) / "metrics.json").is_file()

    def failure(self, cell: Cell) -> str | None:
        """Return why a cell failed, or None."""
        file = self.path / "failures" / f"{cell.name}.txt"
        return file.read_text().strip() if file.is_file() else None

    def fail(self, cell: Cell, reason: str) -> None:
        """Note why a cell failed."""
        write_atomic(self.path / "failures" / f"{cell.name}.txt", reason + "\n")

    def forgive(self) -> None:
        """Forget what failed: a new command tries again."""
        for file in (self.path / "failures").glob("*.txt"):
            file.unlink()

    def open(self) -> list[Cell]:
        """Return the cells that are neither done nor failed."""
        return [cell for cell in self.cells if not self.done(cell) and self.failure(cell) is None]

    def table(self, **options: Any) -> Table:
        """Return the table of what is there."""
        grid = self.grid
        found: Found = {}
        plain: Found = {}
        for cell in self.cells:
            reason = None if self.done(cell) else self.failure(cell) or "not done"
            lines = [] if reason else _labelled(self.folder(cell))
            for score in find_detector(cell.model).score_names:
                key = cell.row, score, cell.variant
                _put(found, key, reason or _scored(lines, score))
            for name in TRIVIAL if reason is None else ():
                key = "trivial", name, cell.variant
                if cell.row == self._first_done(cell):  # the films' own, the same whatever the model
                    _put(plain, key, _scored(lines, name))
        cache = Cache(grid.cache)
        title = f"Film ROC-AUC on test: {cache.source}, preset {grid.preset}"
        facts = {
            "films": cache.source,
            "content": cache.content_hash[:12],
            "preset": grid.preset,
            "seeds": list(grid.seeds),
        }
        return build(found | plain, title=title, synthetic=cache.synthetic, facts=facts, **options)

    def write(self, table: Table) -> None:
        """Write the table in every form, and the page."""
        for name, make in WRITTEN.items():
            write_atomic(self.path / name, make(table))
        write_atomic(
            self.path / "index.html", render_bench(table, [self._shown(c) for c in self.cells], self.grid.told())
        )

    def _shown(self, cell: Cell) -> BenchRun:
        page = f"cells/{cell.name}/report.html" if self.done(cell) else None
        return BenchRun(cell.row, cell.variant, cell.seed, page, None if page else self.failure(cell) or "not done")

    def _first_done(self, cell: Cell) -> str | None:
        others = (c for c in self.cells if (c.variant, c.seed) == (cell.variant, cell.seed) and self.done(c))
        first = next(others, None)
        return first.row if first else None


def _put(found: Found, key: tuple[str, str, str], value: Scored | str) -> None:
    """Add one seed to a cell of the table; one that failed fails it."""
    there = found.setdefault(key, [])
    if isinstance(value, str) or isinstance(there, str):
        found[key] = there if isinstance(there, str) else str(value)
    else:
        there.append(value)


def _labelled(folder: Path) -> list[dict[str, str]]:
    """Read the scores of a run's test films of known label."""
    return [line for line in runs.read_csv(folder / "scores.csv") if line["label"] in LABELLED]


def _scored(lines: Sequence[Mapping[str, str]], score: str) -> Scored:
    """Return one score of films."""
    return Scored(
        np.array([LABELLED[line["label"]] for line in lines], np.int64),
        np.array([float(line[score]) for line in lines]),
        np.array([line["patient"] for line in lines]),
    )


def reopen(path: Path) -> Bench:
    """Open a bench for what is there already; its cache is where its cells found it."""
    file = path / "bench.json"
    try:
        told = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{file} can't be read ({error}); the same `anomaly bench` command writes it anew") from None
    cells = sorted((path / "cells").glob("*/run.json"))
    if not cells:
        raise InputError(f"{path} has no finished cell yet; the command that made it goes on with it")
    cache = Path(runs.Run(cells[0].parent).config["cache"]["path"])
    lists: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in told.items()}
    return Bench(path, Grid(cache, **{key: value for key, value in lists.items() if key != "content_hash"}))


def take_folder(out: Path | None, grid: Grid) -> Path:
    """Return the folder of a bench: `out`, or the newest runs/bench-<n> of this very grid, or the next number."""
    if out is not None:
        return out
    told = grid.told()
    for path in reversed(runs.numbered("bench")):
        with suppress(OSError, ValueError):
            if json.loads((path / "bench.json").read_text()) == told:
                return path
    return runs.next_path("bench")


# --- the work -------------------------------------------------------------------------------------------------------


def run_cell(bench: Bench, cell: Cell, on_epoch: Callable[[EpochReport], None] = lambda report: None) -> None:
    """Train a cell from wherever it stands and score it on test; what a user could mend is noted as its failure."""
    path = bench.folder(cell)
    try:
        prepared = prepare(bench.grid.plan(cell))
        run = continue_or_create(prepared, path, resume=(path / "run.json").is_file())
        fit(prepared, run, workers=0, on_epoch=on_epoch)
        device = choose_device(bench.grid.device)
        model = open_model(run, device)
        cache, split = run_view(run, bench.grid.cache)
        rows = np.flatnonzero(split == "test")
        score_films(
            run,
            model,
            View(cache, cell.variant, rows, run.config["size"]),
            device,
            path,
            split=split[rows],
            main=model.score_names[0],
            how="mean",
            command=f"anomaly score {path}",
            on_films=lambda count: None,
        )
    except InputError as error:
        bench.fail(cell, str(error))
    except (RuntimeError, MemoryError) as error:  # torch says with the first that memory is out, or a shape can't be
        bench.fail(cell, f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")


def work(path: Path, grid: Grid, threads: int, note: Callable[[Cell, str], None] | None = None) -> None:
    """Do cells, one after the other, until none is left that no other process holds.

    threads  of this process; the same number gives the same figures, whoever does the cell.
    """
    torch.set_num_threads(threads)
    bench = Bench(path, grid)
    mine = path / "workers" / _note_of(os.getpid())

    def tell(cell: Cell, stands: str) -> None:
        if (parent := multiprocessing.parent_process()) and not parent.is_alive():
            raise SystemExit  # nobody waits for this any more; the same command goes on from the last checkpoint
        write_atomic(mine, json.dumps({"cell": cell.name, "stands": stands}))
        if note:
            note(cell, stands)

    try:
        while todo := bench.open():
            taken = False
            for cell in todo:
                with _held(path / "locks" / f"{cell.name}.lock") as held:
                    if not held or bench.done(cell) or bench.failure(cell) is not None:
                        continue
                    tell(cell, "begins")
                    run_cell(bench, cell, lambda r, cell=cell: tell(cell, f"epoch {r.epoch}/{r.epochs}"))  # type: ignore[misc]
                    taken = True
                    tell(cell, "failed" if bench.failure(cell) else "done")
            if not taken:
                time.sleep(POLL_SECONDS)  # others hold what is left; one of them may die
    finally:
        mine.unlink(missing_ok=True)


@contextmanager
def _held(path: Path) -> Iterator[bool]:
    """Try to hold a lock; the kernel lets it go with the process."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@dataclass(frozen=True)
class Standing:
    """How a bench stands, for whoever shows progress."""

    done: int
    failed: int
    cells: int
    running: dict[str, str]  # cell -> epoch

    def note(self) -> str:
        """Return it in a few words."""
        at = ", ".join(f"{cell} {stands}" for cell, stands in sorted(self.running.items()))
        return f"{f'{self.failed} failed  ' if self.failed else ''}{at}"


def run_bench(bench: Bench, *, jobs: int, threads: int, on_change: Callable[[Standing], None]) -> None:
    """Do all cells in `jobs` processes of `threads` threads each; one that dies is replaced, its cell goes on."""
    if jobs == 1:
        running: dict[str, str] = {}

        def note(cell: Cell, stands: str) -> None:
            running.clear()
            running[cell.name] = stands
            on_change(_standing(bench, running))

        work(bench.path, bench.grid, threads, note)
        on_change(_standing(bench, {}))
        return
    context = multiprocessing.get_context("spawn")

    def begin() -> Any:
        process = context.Process(target=work, args=(bench.path, bench.grid, threads), daemon=True)
        process.start()
        return process

    deaths: dict[str, int] = {}
    crew = [begin() for _ in range(min(jobs, len(bench.open())))]
    try:
        while crew:
            time.sleep(POLL_SECONDS)
            on_change(_standing(bench, _at_work(bench, [process.pid for process in crew])))
            for process in [process for process in crew if not process.is_alive()]:
                crew.remove(process)
                if process.exitcode == 0:
                    continue
                cell = _left_behind(bench, process.pid)
                deaths[cell] = deaths.get(cell, 0) + 1
                if not cell and deaths[cell] >= TRIES:
                    raise InputError(f"the processes of {bench.path} end before they begin; see what they print")
                if deaths[cell] >= TRIES:
                    own = next(c for c in bench.cells if c.name == cell)
                    bench.fail(own, f"its process ended {TRIES} times with status {process.exitcode}: out of memory?")
                crew.append(begin())
    finally:
        for process in crew:
            process.terminate()
        for process in crew:
            process.join()


def run_on_cluster(bench: Bench, address: str, *, threads: int, on_change: Callable[[Standing], None]) -> None:
    """Do all cells on the workers of a Dask cluster, a cell at a time each; they read the cache and write the bench.

    A cell whose worker is lost is done by another from its last checkpoint.
    """
    path, grid = bench.path.absolute(), replace(bench.grid, cache=bench.grid.cache.absolute())
    able = partial(_able, path, grid.cache)
    with call_up(address, able, runs.FORMAT, f"{grid.cache} and {path}", gpu=True) as crew:
        for tries in range(TRIES + 1):
            todo = bench.open()
            if not todo:
                return
            if tries == TRIES:
                for cell in todo:
                    bench.fail(cell, f"its worker on {address} was lost {TRIES} times: out of memory?")
                return
            with crew.processes():  # at least two: with one joblib would work in this process
                parallel = Parallel(n_jobs=max(2, crew.at_once), batch_size=1, return_as="generator_unordered")
            with suppress(crew.lost):
                for _ in parallel(delayed(_elsewhere)(path, grid, cell, threads) for cell in todo):
                    on_change(_standing(bench, {}))


def _able(path: Path, cache: Path) -> int:
    """Tell, on a worker, that cache and bench are there, and the version of the folders it makes."""
    cache.stat()
    (path / "bench.json").stat()
    return runs.FORMAT


def _elsewhere(path: Path, grid: Grid, cell: Cell, threads: int) -> None:
    """Do one cell on a worker of a cluster, unless it is being done."""
    torch.set_num_threads(threads)
    bench = Bench(path, grid)
    with _held(path / "locks" / f"{cell.name}.lock") as held:
        if held and not bench.done(cell):
            run_cell(bench, cell)


def _note_of(pid: int | None) -> str:
    """Return the name of the file in which a process notes what it is at: other machines have the same numbers."""
    return f"{socket.gethostname()}-{pid}.json"


def _standing(bench: Bench, running: Mapping[str, str]) -> Standing:
    done = sum(bench.done(cell) for cell in bench.cells)
    failed = sum(bench.failure(cell) is not None for cell in bench.cells)
    return Standing(done, failed, len(bench.cells), dict(running))


def _at_work(bench: Bench, pids: Sequence[int | None]) -> dict[str, str]:
    """Return which cells the processes are at, and how they stand."""
    found = {}
    for pid in pids:
        with suppress(OSError, ValueError):  # none yet, or gone in this moment
            told = json.loads((bench.path / "workers" / _note_of(pid)).read_text())
            found[told["cell"]] = told["stands"]
    return found


def _left_behind(bench: Bench, pid: int | None) -> str:
    """Return the cell that a dead process was at, "" where it was at none."""
    file = bench.path / "workers" / _note_of(pid)
    cell = next(iter(_at_work(bench, [pid])), "")
    file.unlink(missing_ok=True)
    return cell


# --- how long it will take ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Estimate:
    """What the runs of one row will cost."""

    row: str
    preset: str
    size: int  # pixels
    films: int  # of the training
    epochs: int  # at most
    runs: int
    seconds: float  # of one run, at most


def estimate(grid: Grid) -> list[Estimate]:
    """Time a step of each row on this machine, and return what that makes of its runs."""
    cells = grid.cells()
    found = []
    for row in grid.models:
        cell = next(cell for cell in cells if cell.row == row)
        prepared = prepare(grid.plan(cell))
        config, training = resolve(cell.model, cell.preset, grid.plan(cell).settings)
        films, device = prepared.config["films"], choose_device(grid.device)
        few = prepared.films("train").part(np.arange(min(films["train"], training.batch_size)))
        model = prepared.model(config, prepared.config["size"])
        seconds = 0.0
        if model.players():
            trainer = Trainer(
                model,
                training,
                few,
                few.part(np.arange(2)),
                seed=0,
                device=device,
                precision=prepared.config["precision"],
                workers=0,
            )
            seconds = min(trainer._epoch(number)["seconds"] for number in (1, 2)) / len(few)
        made = sum(cell.row == row for cell in cells)
        most = training.most_epochs
        found.append(
            Estimate(
                row, cell.preset, prepared.config["size"], films["train"], most, made, seconds * films["train"] * most
            )
        )
    return found
