"""The grid: models x variants x seeds on one cache, a run folder a cell, and the table that it gives.

    bench.json        what makes it: films, models, variants, seeds, settings; another grid needs another folder
    cells/            <model>-<variant>-<seed>: ordinary run folders, scored on the test split
    failures/         a cell that could not be trained: why
    workers/          what each process is at: cell and epoch
    locks/            held by the process that is at a cell
    tries/            how often a cell was begun from where it stands, by processes that did not come back
    results.json, table.md, table.tex, table.csv   the table
    index.html        the page

Any number of processes work at one bench: each takes the first cell that is not done and that no other holds, so that
one which dies costs its cell's last seconds only. A cell that takes its process with it `TRIES` times, and comes no
further in between, has failed; the tries are counted in the folder, whichever machine they are made on. On a disk that
machines share, the same command on each of them is a bench on all of them.
"""

import errno
import fcntl
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed

from anomaly import runs
from anomaly.data import LABELS, SplitRule, assign_splits
from anomaly.evaluation import score_films
from anomaly.fit import Plan, Prepared, continue_or_create, fit, prepare, resolve, settings_of
from anomaly.memory import share_memory
from anomaly.metrics import TRIVIAL
from anomaly.models import find_detector, zoo
from anomaly.report import BenchRun, render_bench
from anomaly.runs import write_atomic
from anomaly.score import View, open_model, run_view
from anomaly.table import Scored, Table, build, from_json, to_csv, to_json, to_latex, to_markdown, to_terminal
from anomaly.train import EpochReport, Trainer, choose_device
from preprocessing import InputError
from preprocessing.cache.reader import Cache
from preprocessing.cluster import connect

TRIES = 2
"""Times that a cell may take its process with it, from the same checkpoint, before it counts as failed."""
POLL_SECONDS = 0.5
END_SECONDS = 10.0
"""What a process gets to end when it is told to."""
PAPERS = ("cae", "vae", "dcgan", "bigan", "alphagan")
"""The models of the paper's table, in its order."""
FLOOR = "contrast_density"
FORMATS = {"terminal": to_terminal, "markdown": to_markdown, "latex": to_latex, "csv": to_csv, "json": to_json}
WRITTEN = {"table.md": to_markdown, "table.tex": to_latex, "table.csv": to_csv, "results.json": to_json}
STOPS = (*runs.FULL, errno.EPIPE)
"""Errors of the system that are no cell's: a full disk; whoever read the progress has gone."""
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
        """Return its cells: seed by seed, so that the table has all its rows early, those of one variant together."""
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
        rows = self.cells()[: len(self.models)]
        for text in self.settings:
            if not any(text.partition("=")[0] in settings_of(find_detector(row.model)) for row in rows):
                raise InputError(f"--set {text!r}: none of {', '.join(self.models)} has this setting")
        rules: set[SplitRule] = set()
        for row in rows:
            find_detector(row.model)
            _, training = resolve(row.model, row.preset, self.plan(row).settings)
            rules.add(training.splits)
        for seed in self.seeds:
            wrong = [_untestable(cache, seed if self.split_by_seed else 0, rule) for rule in sorted(rules)]
            if reason := wrong[0] if all(wrong) else None:
                raise InputError(reason)

    def told(self) -> dict[str, Any]:
        """Return it as plain data; the same films elsewhere are the same films."""
        plain = {key: value for key, value in asdict(self).items() if key not in ("cache", "device")}
        return json.loads(runs.to_json(plain | {"content_hash": Cache(self.cache).content_hash}))  # type: ignore[no-any-return]


def _preset(row: str, preset: str) -> str:
    """Return the preset of a row that names none: what learns nothing has no other than `standard` to speak of."""
    return preset if preset in find_detector(row).presets or row != FLOOR else "standard"


def _untestable(cache: Cache, seed: int, rule: SplitRule) -> str | None:
    """Return why a split of a cache has no films of both classes to test on, or None."""
    index = cache.index
    try:
        split = assign_splits(index["patient"], index["label"], index["split"], seed=seed, rule=rule)
    except InputError as error:
        return f"{cache.path}: {error}"
    label = index["label"][split == "test"]
    for name, value in LABELLED.items():
        if not (label == value).any():
            return (
                f"{cache.path} has no {name} films to test on ({len(label)} films in its test split): a table "
                "needs films of both classes; give them in a MURA tree, class folders or a manifest"
            )
    return None


def every_model(preset: str) -> tuple[str, ...]:
    """Return the rows of all models that have a preset, the paper's first, and of what learns nothing."""
    names = sorted(zoo(), key=lambda name: (PAPERS.index(name) if name in PAPERS else len(PAPERS), name))
    having = {name for name in names if preset in find_detector(name).presets}
    if not having:
        raise InputError(f"no model has a preset {preset!r}")
    return tuple(name for name in names if name in having | {FLOOR})


# --- the folder -----------------------------------------------------------------------------------------------------


Found = dict[tuple[str, str, str], list[Scored | str | None]]
"""(row, score, variant) -> its seeds: scored, or why it failed, or None where it is not done."""


class Bench:
    """A bench folder: what is done, what failed, what is still to do."""

    def __init__(self, path: Path, grid: Grid) -> None:
        """Open or make it; a folder of another grid is refused with the differences."""
        self.path, self.grid, self.cells = path, grid, grid.cells()
        file = path / "bench.json"
        begun = file.is_file() or any(path.glob("cells/[!.]*/run.json"))
        if not begun and path.exists() and any(not inside.name.startswith(".") for inside in path.iterdir()):
            raise InputError(f"{path} exists and is no bench; take another --out")
        with self._locked():
            try:
                changed = runs.differences(_read_told(path), grid.told())
            except FileNotFoundError:
                for cell in self.cells:
                    self._check_cell(cell)
                write_atomic(file, runs.to_json(grid.told()))
                return
            except ValueError as error:
                raise InputError(
                    f"{file} is damaged ({error}); delete it, the same command writes it anew and keeps the cells"
                ) from None
        if changed:
            raise InputError(f"{path} is a bench of other films or settings: {'; '.join(changed)}; take another --out")

    def _check_cell(self, cell: Cell) -> None:
        """Refuse a cell of other films or settings than the grid's, in a folder that has lost its bench.json."""
        if not (self.folder(cell) / "run.json").is_file():
            return
        old = runs.Run(self.folder(cell)).config
        plan = self.grid.plan(cell)
        chosen = zip(("model", "training"), resolve(cell.model, cell.preset, plan.settings), strict=True)
        known = {owner: settings.model_dump() for owner, settings in chosen}
        new = {name: getattr(plan, name) for name in ("model", "preset", "variant", "seed", "split_seed")}
        new |= {
            # Of a version that knew fewer settings, those it knew.
            "settings": {
                owner: {k: v for k, v in known[owner].items() if k in old["settings"][owner]} for owner in known
            },
            "cache": {"content_hash": Cache(self.grid.cache).content_hash},
        }
        told = {name: old.get(name) for name in new} | {"cache": {"content_hash": old["cache"].get("content_hash")}}
        if changed := runs.differences(told, new):
            raise InputError(
                f"{self.folder(cell)} is a cell of other films or settings: {'; '.join(changed)}; take another --out"
            )

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder, however long that takes, to write what is of the whole bench."""
        with _held(self.path / ".lock", fcntl.LOCK_EX):
            yield

    def folder(self, cell: Cell) -> Path:
        """Return the run folder of a cell."""
        return self.path / "cells" / cell.name

    def done(self, cell: Cell) -> bool:
        """Whether a cell is trained and scored, and has its page, which is written last."""
        return all((self.folder(cell) / name).is_file() for name in ("scores.csv", "report.html"))

    def failure(self, cell: Cell) -> str | None:
        """Return why a cell failed, or None; one that was done after all has not failed."""
        try:
            reason = (self.path / "failures" / f"{cell.name}.txt").read_text().strip()
        except FileNotFoundError:
            return None
        return None if self.done(cell) else reason

    def fail(self, cell: Cell, reason: str) -> None:
        """Note why a cell failed."""
        write_atomic(self.path / "failures" / f"{cell.name}.txt", reason + "\n")

    def forgive(self) -> None:
        """Forget what failed: a new command tries again. One that joins others at their work does not, or a cell that
        ends every process would end one for every command.
        """
        with _held(self._at_work) as alone:
            if alone:
                for file in (*self.path.glob("failures/[!.]*"), *self.path.glob("workers/[!.]*")):  # of killed ones
                    file.unlink(missing_ok=True)

    @property
    def _at_work(self) -> Path:
        return self.path / "locks" / "at-work.lock"

    def at_work(self) -> AbstractContextManager[bool]:
        """Say, while it is held, that a command is at work here."""
        return _held(self._at_work, fcntl.LOCK_SH)

    def take(self, cell: Cell) -> AbstractContextManager[bool]:
        """Hold a cell, unless another process does."""
        return _held(self.path / "locks" / f"{cell.name}.lock")

    @contextmanager
    def tried(self, cell: Cell) -> Iterator[bool]:
        """Count a try at a cell until it is over; False, and a failure, where it ended `TRIES` processes in one place.

        Only what ends a process on the spot leaves the try behind: a kill, a crash, the lack of memory.
        """
        file, place = self.path / "tries" / f"{cell.name}.json", self._place(cell)
        tries = 0
        with suppress(OSError, ValueError):
            told = json.loads(file.read_text())
            tries = told["tries"] if told["place"] == place else 0
        if tries >= TRIES:
            self.fail(cell, f"its process ended {TRIES} times {place}: killed, or out of memory?")
            file.unlink(missing_ok=True)
            yield False
            return
        write_atomic(file, json.dumps({"tries": tries + 1, "place": place}))
        try:
            yield True
        finally:
            file.unlink(missing_ok=True)

    def tries(self) -> dict[str, str]:
        """Return what is noted of tries that are not over."""
        found = {}
        for file in self.path.glob("tries/[!.]*.json"):
            with suppress(FileNotFoundError):  # over in this moment
                found[file.name] = file.read_text()
        return found

    def _place(self, cell: Cell) -> str:
        """Return in words where work at a cell goes on."""
        with suppress(InputError):
            run = runs.Run(self.folder(cell))
            if run.finished:
                return "after the training"
            if done := run.epochs_done():
                return f"after epoch {done}"
        return "at the start"

    def open(self) -> list[Cell]:
        """Return the cells that are neither done nor failed."""
        return [cell for cell in self.cells if not self.done(cell) and self.failure(cell) is None]

    def table(self, **options: Any) -> Table:
        """Return the table of what is there."""
        grid = self.grid
        found: Found = {}
        trivial: Found = {}
        given: set[tuple[str, int]] = set()  # the trivial scores are the films' own, the same whatever the model
        for cell in self.cells:
            done = self.done(cell)
            lines = _labelled(self.folder(cell)) if done else []
            for score in find_detector(cell.model).score_names:
                seeds = found.setdefault((cell.row, score, cell.variant), [])
                seeds.append(_scored(lines, score) if done else self.failure(cell))
            if done and (cell.variant, cell.seed) not in given:
                given.add((cell.variant, cell.seed))
                for name in TRIVIAL:
                    there = trivial.setdefault(("trivial", name, cell.variant), [None] * len(grid.seeds))
                    there[grid.seeds.index(cell.seed)] = _scored(lines, name)
        cache = Cache(grid.cache)
        title = f"Film ROC-AUC on test: {cache.source}, preset {grid.preset}"
        facts = {
            "films": cache.source,
            "content": cache.content_hash[:12],
            "preset": grid.preset,
            "seeds": list(grid.seeds),
        }
        return build(found | trivial, title=title, synthetic=cache.synthetic, facts=facts, **options)

    def write(self, table: Table) -> None:
        """Write the table in every form, and the page."""
        page = render_bench(table, [self._shown(cell) for cell in self.cells], self.grid.told())
        with self._locked():
            for name, make in WRITTEN.items():
                write_atomic(self.path / name, make(table))
            write_atomic(self.path / "index.html", page)

    def has_paper(self) -> bool:
        """Whether its table, as it was written last, has the published figures beside its own."""
        try:
            table = from_json((self.path / "results.json").read_text())
        except (OSError, ValueError):
            return False
        return any(entry.paper for entry in table.entries.values())

    def _shown(self, cell: Cell) -> BenchRun:
        page = f"cells/{cell.name}/report.html" if self.done(cell) else None
        return BenchRun(cell.row, cell.variant, cell.seed, page, self.failure(cell))


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


def _read_told(path: Path) -> dict[str, Any]:
    """Return what a bench.json says; raises OSError where there is none, ValueError where it is damaged."""
    told = json.loads((path / "bench.json").read_text())
    if not isinstance(told, dict):
        raise ValueError("not what makes a bench")
    return {"precision": "auto"} | told  # one from before this key was told


def reopen(path: Path, cache: Path | None = None) -> Bench:
    """Open a bench for what is there already; its cache is where its cells found it, unless it is given."""
    file = path / "bench.json"
    try:
        plain = {key: value for key, value in _read_told(path).items() if key != "content_hash"}
        told: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in plain.items()}
        grid = Grid(cache or Path(), **told)
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file} can't be read ({error}); the same `anomaly bench` command writes it anew") from None
    return Bench(path, grid if cache else replace(grid, cache=_cache_of(path)))


def _cache_of(path: Path) -> Path:
    """Return where a bench's films are, as its cells say."""
    places = []
    for file in sorted(path.glob("cells/[!.]*/run.json")):
        with suppress(InputError):  # a damaged one is made anew by the command that made the bench
            places.append(Path(runs.Run(file.parent).config["cache"]["path"]))
    if not places:
        raise InputError(f"{path} has no cell yet; the command that made it goes on with it, --cache shows it as it is")
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise InputError(f"the films of {path} are not at {places[0]}; say where with --cache")
    return found


def take_folder(out: Path | None, grid: Grid) -> Path:
    """Return the folder of a bench: `out`, or the newest runs/bench-<n> of this very grid, or the next number."""
    if out is not None:
        return out
    told = grid.told()
    for path in reversed(runs.numbered("bench")):
        with suppress(OSError, ValueError):
            if _read_told(path) == told:
                return path
    return runs.next_path("bench")


# --- the work -------------------------------------------------------------------------------------------------------


def run_cell(bench: Bench, cell: Cell, on_epoch: Callable[[EpochReport], None] = lambda report: None) -> None:
    """Train a cell from wherever it stands and score it on test; whatever is wrong with it is noted as its failure.

    But what would be wrong with any other cell as well, a full disk above all, is raised.
    """
    path = bench.folder(cell)
    try:
        prepared = prepare(bench.grid.plan(cell))
        run = _run_of(prepared, path)
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
    except runs.DiskFull:
        raise
    except InputError as error:
        bench.fail(cell, str(error))
    except Exception as error:  # of a model too, and some models are of other packages
        if isinstance(error, OSError) and error.errno in STOPS:
            raise
        bench.fail(cell, f"{type(error).__name__}: {_first_line(error)}")


def _run_of(prepared: Prepared, path: Path) -> runs.Run:
    """Return the run folder of a cell: as it stands where it can go on, or a new one.

    The grid is the same, so what differs from an unfinished run is the machine or the versions on it; its checkpoint is
    not gone on with, as half a training of each would be neither's. A finished one stands.
    """
    if path.exists():
        with suppress(InputError):
            run = runs.Run(path)
            return run if run.finished else continue_or_create(prepared, path, resume=True)
        shutil.rmtree(path)
    return continue_or_create(prepared, path, resume=False)


def _first_line(error: Exception) -> str:
    return next((line.strip()[:300] for line in str(error).splitlines() if line.strip()), "it says no more")


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
            if not any([_do(bench, cell, tell) for cell in todo]):
                time.sleep(POLL_SECONDS)  # others hold what is left; one of them may die
    finally:
        mine.unlink(missing_ok=True)


def _do(bench: Bench, cell: Cell, tell: Callable[[Cell, str], None]) -> bool:
    """Do a cell, unless another process holds it or has done it; return whether this one has."""
    with bench.take(cell) as held:
        if not held or bench.done(cell) or bench.failure(cell) is not None:
            return False
        with bench.tried(cell) as may:
            if may:
                tell(cell, "begins")
                run_cell(bench, cell, lambda report: tell(cell, f"epoch {report.epoch}/{report.epochs}"))
        tell(cell, "failed" if bench.failure(cell) else "done")
        return True


@contextmanager
def _held(path: Path, how: int = fcntl.LOCK_EX | fcntl.LOCK_NB) -> Iterator[bool]:
    """Hold a lock, or yield False where another holds it and `how` waits for none; the kernel lets it go with the
    process.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as file:  # on NFS a shared lock needs a file to read, one's own a file to write
        try:
            fcntl.flock(file, how)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def _ends_in_order() -> Iterator[None]:
    """Let SIGTERM, by which schedulers end a program, end it as Ctrl-C does: children first, and no try is counted."""
    if threading.current_thread() is not threading.main_thread():  # which alone may say what signals do
        yield
        return
    before = signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


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
    with bench.at_work(), _ends_in_order():
        if jobs == 1:
            _work_here(bench, threads, on_change)
        else:
            _work_beside(bench, jobs, threads, on_change)


def _work_here(bench: Bench, threads: int, on_change: Callable[[Standing], None]) -> None:
    """Do all cells in this process."""
    work(bench.path, bench.grid, threads, lambda cell, stands: on_change(_standing(bench, {cell.name: stands})))
    on_change(_standing(bench, {}))


def _work_beside(bench: Bench, jobs: int, threads: int, on_change: Callable[[Standing], None]) -> None:
    """Do all cells in other processes, and look after them."""
    context = multiprocessing.get_context("spawn")
    hear, tell = context.Pipe(duplex=False)

    def begin() -> Any:
        process = context.Process(target=_work_apart, args=(bench.path, bench.grid, jobs, threads, tell), daemon=True)
        process.start()
        return process

    stillborn = 0
    crew = [begin() for _ in range(min(jobs, len(bench.open())))]
    try:
        while crew:
            time.sleep(POLL_SECONDS)
            on_change(_standing(bench, _at_work(bench, [process.pid for process in crew])))
            for process in [process for process in crew if not process.is_alive()]:
                crew.remove(process)
                if process.exitcode == 0:
                    continue
                if hear.poll():
                    raise InputError(hear.recv())
                stillborn += not _left_behind(bench, process.pid)
                if stillborn >= TRIES:
                    raise InputError(f"the processes of {bench.path} end before they begin; see what they print")
                crew.append(begin())
    finally:
        for process in crew:
            process.terminate()
        for process in crew:
            process.join(END_SECONDS)
            process.kill()


def _work_apart(path: Path, grid: Grid, jobs: int, threads: int, out: Connection) -> None:
    """Work as one of `jobs` processes, and say what stops it, if it is no cell's failure."""
    share_memory(jobs)
    try:
        with _ends_in_order():
            work(path, grid, threads)
    except Exception as error:
        out.send(str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {_first_line(error)}")
        raise SystemExit(1) from None
    except KeyboardInterrupt:  # of the whole group of processes: the first one says so
        raise SystemExit(128 + signal.SIGINT) from None


def run_on_cluster(bench: Bench, address: str, *, threads: int, on_change: Callable[[Standing], None]) -> None:
    """Do all cells on the workers of a Dask cluster, a cell at a time each; they read the cache and write the bench.

    A cell whose worker is lost is done by another from its last checkpoint. One that another process holds is waited
    for while there is nothing else to do.
    """
    path, grid = bench.path.absolute(), replace(bench.grid, cache=bench.grid.cache.absolute())
    able = partial(_able, path, grid.cache)
    with (
        bench.at_work(),
        _ends_in_order(),
        connect(address, able, runs.FORMAT, f"{grid.cache} and {path}", gpu=True) as crew,
    ):
        fruitless = 0
        while todo := bench.open():
            before = bench.tries()
            with crew.processes():  # at least two: with one joblib would work in this process
                parallel = Parallel(n_jobs=max(2, crew.at_once), batch_size=1, return_as="generator_unordered")
            try:
                for _ in parallel(delayed(_elsewhere)(path, grid, cell, threads) for cell in todo):
                    on_change(_standing(bench, {}))
            except crew.lost:
                # The cell at which it was lost has a try more, which ends in time.
                fruitless = fruitless + 1 if bench.open() == todo and bench.tries() == before else 0
                if fruitless >= TRIES:
                    raise InputError(f"{address}: its workers end before they begin; see what they print") from None
            if bench.open() == todo:
                time.sleep(POLL_SECONDS)
        on_change(_standing(bench, {}))


def _able(path: Path, cache: Path) -> int:
    """Tell, on a worker, that cache and bench are there, and the version of the folders it makes."""
    cache.stat()
    (path / "bench.json").stat()
    return runs.FORMAT


def _elsewhere(path: Path, grid: Grid, cell: Cell, threads: int) -> None:
    """Do one cell on a worker of a cluster, unless another process does it."""
    torch.set_num_threads(threads)
    _do(Bench(path, grid), cell, lambda cell, stands: None)


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


def estimate(grid: Grid) -> tuple[list[Estimate], dict[str, str]]:
    """Time a step of each row on this machine; return what that makes of its runs, and why other rows can't be trained.

    A row is judged by its first cell.
    """
    cells = grid.cells()
    found, refused = [], {}
    for cell in cells[: len(grid.models)]:
        try:
            one = _estimate(grid, cell)
        except InputError as error:
            refused[cell.row] = str(error)
        except (RuntimeError, MemoryError) as error:  # torch says with the first that memory is out
            refused[cell.row] = f"{type(error).__name__}: {_first_line(error)}"
        else:
            found.append(replace(one, runs=sum(other.row == cell.row for other in cells)))
    return found, refused


def _estimate(grid: Grid, cell: Cell) -> Estimate:
    """Time a step of one cell."""
    plan = grid.plan(cell)
    prepared = prepare(plan)
    config, training = resolve(cell.model, cell.preset, plan.settings)
    films, device = prepared.config["films"]["train"], choose_device(grid.device)
    stored = prepared.stored("train")
    few = stored.part(np.concatenate(stored.samples()[: training.batch_size]))
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
    most = training.most_epochs
    return Estimate(cell.row, cell.preset, prepared.config["size"], films, most, 1, seconds * films * most)
