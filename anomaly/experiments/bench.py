"""The folder of a bench: what is done, what failed, what remains.

    bench.json        the grid: films, models, variants, seeds, settings; another grid needs another folder
    cells/            <model>-<variant>-<seed>: ordinary run folders, scored on the test split
    failures/         why a cell could not be trained
    workers/          what each process is doing: cell and epoch
    locks/            held by the process that works on a cell
    tries/            how often a cell was started from where it stands by processes that did not survive
    results.json, table.md, table.tex, table.csv   the table
    index.html        the page

Any number of processes work on one bench: each takes the first cell that is neither done nor locked by another, so that
a process that dies costs only what its cell did since its last checkpoint. A cell that takes its process with it
`MOST_ATTEMPTS` times without progress in between has failed; attempts are counted in the folder, whichever machine they
are made on. On a disk that machines share, the same command on each of them makes one bench on all of them.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ValidationError

from anomaly import runs
from anomaly.drafts import tidy
from anomaly.experiments.grid import Cell, Grid, GridFile
from anomaly.pipeline.plan import resolve
from anomaly.runs import write_atomic
from anomaly.sealed import sealed, unsealed
from preprocessing import InputError
from preprocessing.cache.reader import Cache
from preprocessing.locks import file_lock

MOST_ATTEMPTS = 2
"""Times that a cell may take its process with it, from the same checkpoint, before it counts as failed."""


class AttemptFile(BaseModel):
    """tries/<cell>.json: how often the cell was started from a place."""

    tries: int
    place: str  # in words


class Bench:
    """A bench folder: what is done, what failed, what remains."""

    def __init__(self, path: Path, grid: Grid) -> None:
        """Open or create it; raises InputError for the folder of another grid, with the differences."""
        self.path, self.grid, self.cells = path, grid, grid.cells()
        file = path / "bench.json"
        is_bench = file.is_file() or any(path.glob("cells/[!.]*/run.json"))
        if not is_bench and path.exists() and any(not inside.name.startswith(".") for inside in path.iterdir()):
            raise InputError(f"{path} exists and is not a bench; choose another --out")
        wanted = grid.to_file()
        with self.locked():
            try:
                changed = runs.differences(read_grid(path).model_dump(mode="json"), wanted.model_dump(mode="json"))
            except FileNotFoundError:
                for cell in self.cells:
                    self._check_cell(cell)
                write_atomic(file, sealed(wanted.model_dump(mode="json")))
                return
            except ValueError as error:
                raise InputError(
                    f"{file} is damaged ({error}); delete it, the same command writes it again and keeps the cells"
                ) from None
        if changed:
            raise InputError(
                f"{path} is a bench with other films or settings: {'; '.join(changed)}; choose another --out"
            )

    def _check_cell(self, cell: Cell) -> None:
        """Raise InputError for a cell of other films or settings than the grid's, in a folder without bench.json."""
        if not (self.folder(cell) / "run.json").is_file():
            return
        old = runs.Run(self.folder(cell)).config
        plan = self.grid.plan(cell)
        resolved = zip(("model", "training"), resolve(cell.model, cell.preset, plan.settings), strict=True)
        settings = {owner: chosen.model_dump() for owner, chosen in resolved}
        wanted = {name: getattr(plan, name) for name in ("model", "preset", "variant", "seed", "split_seed")}
        wanted["where"] = list(plan.where)
        known = {name: getattr(old, name) for name in wanted}
        wanted |= {
            # Of a run of a version with fewer settings, those it has.
            "settings": {
                owner: {k: v for k, v in chosen.items() if k in getattr(old.settings, owner)}
                for owner, chosen in settings.items()
            },
            "cache": {"content_hash": Cache(self.grid.cache).content_hash},
        }
        known |= {"settings": old.settings.model_dump(), "cache": {"content_hash": old.cache.content_hash}}
        if changed := runs.differences(known, wanted):
            raise InputError(
                f"{self.folder(cell)} has other films or settings: {'; '.join(changed)}; choose another --out"
            )

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder, waiting as long as it takes, to write a file that belongs to the whole bench."""
        with file_lock(self.path / ".lock", wait=True):
            yield

    # --- cells ---

    def folder(self, cell: Cell) -> Path:
        """Return the run folder of a cell."""
        return self.path / "cells" / cell.name

    def done(self, cell: Cell) -> bool:
        """Whether a cell is trained and scored, and has its page, which is written last."""
        return all((self.folder(cell) / name).is_file() for name in ("scores.csv", "report.html"))

    def failure(self, cell: Cell) -> str | None:
        """Return why a cell failed, or None; one that is done after all has not failed."""
        try:
            reason = (self.path / "failures" / f"{cell.name}.txt").read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return None
        return None if self.done(cell) else reason

    def fail(self, cell: Cell, reason: str) -> None:
        """Record why a cell failed."""
        write_atomic(self.path / "failures" / f"{cell.name}.txt", reason + "\n")

    def clear_failures(self) -> None:
        """Forget the failures, so that a new command tries again, unless others are at work.

        A command that joins others must not: a cell that ends every process would end one per command.
        """
        with file_lock(self._at_work) as alone:
            if alone:
                for file in (*self.path.glob("failures/[!.]*"), *self.path.glob("workers/[!.]*")):
                    file.unlink(missing_ok=True)
                for folder in (self.path / "failures", self.path / "workers"):
                    tidy(folder)
                with suppress(OSError):  # it isn't there, or holds what another program put there
                    (self.path / "failures").rmdir()

    def remaining(self) -> list[Cell]:
        """Return the cells that are neither done nor failed."""
        return [cell for cell in self.cells if not self.done(cell) and self.failure(cell) is None]

    # --- who works on what ---

    @property
    def _at_work(self) -> Path:
        return self.path / "locks" / "at-work.lock"

    def at_work(self) -> AbstractContextManager[bool]:
        """Tell others, while it is held, that a command is at work here."""
        return file_lock(self._at_work, shared=True, wait=True)

    def lock(self, cell: Cell) -> AbstractContextManager[bool]:
        """Lock a cell; gives False where another process has it."""
        return file_lock(self.path / "locks" / f"{cell.name}.lock")

    @contextmanager
    def attempt(self, cell: Cell) -> Iterator[bool]:
        """Count an attempt at a cell until it is over.

        Yields False, and records a failure, where the cell ended `MOST_ATTEMPTS` processes in one place. Only what ends
        a process on the spot leaves the attempt counted: a kill, a crash, the lack of memory.
        """
        file, place = self.path / "tries" / f"{cell.name}.json", self._place(cell)
        attempts = 0
        with suppress(OSError, ValidationError):
            known = AttemptFile.model_validate_json(file.read_bytes())
            attempts = known.tries if known.place == place else 0
        if attempts >= MOST_ATTEMPTS:
            self.fail(cell, f"its process ended {MOST_ATTEMPTS} times {place}: killed, or out of memory?")
            file.unlink(missing_ok=True)
            yield False
            return
        write_atomic(file, AttemptFile(tries=attempts + 1, place=place).model_dump_json())
        try:
            yield True
        finally:
            file.unlink(missing_ok=True)

    def attempts(self) -> dict[str, str]:
        """Return the content of each file of attempts that are not over."""
        texts = {}
        for file in self.path.glob("tries/[!.]*.json"):
            with suppress(FileNotFoundError):  # just over
                texts[file.name] = file.read_text(encoding="utf-8")
        return texts

    def achieved(self) -> object:
        """Return what changes whenever a worker begins, finishes or fails a cell, to tell useless deaths of workers."""
        return self.remaining(), self.attempts()

    def _place(self, cell: Cell) -> str:
        """Return in words where work on a cell resumes."""
        with suppress(InputError):
            run = runs.Run(self.folder(cell))
            if run.finished:
                return "after the training"
            if done := run.epochs_done():
                return f"after epoch {done}"
        return "at the start"


def read_grid(path: Path) -> GridFile:
    """Return the bench.json of a folder; raises OSError where there is none, ValueError of one line where damaged."""
    content = (path / "bench.json").read_bytes()
    try:
        return GridFile.model_validate(unsealed(content))
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(": ".join([*map(str, first["loc"]), first["msg"]])) from None


def reopen(path: Path, cache: Path | None = None) -> Bench:
    """Open an existing bench; its cache is where its cells found it, unless it is given."""
    file = path / "bench.json"
    try:
        known = read_grid(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{file} can't be read ({error}); the same `anomaly bench` command writes it again") from None
    return Bench(path, Grid.from_file(known, cache or _recorded_cache(path)))


def _recorded_cache(path: Path) -> Path:
    """Return where a bench's films are, as its cells recorded it."""
    places = []
    for file in sorted(path.glob("cells/[!.]*/run.json")):
        with suppress(InputError):  # a damaged cell is trained anew by the command that made the bench
            places.append(Path(runs.Run(file.parent).config.cache.path))
    if not places:
        raise InputError(f"{path} has no cell yet; repeat the command that made it, or show it as it is with --cache")
    existing = next((place for place in places if place.is_file()), None)
    if existing is None:
        raise InputError(f"the films of {path} are not at {places[0]}; name their cache with --cache")
    return existing


def bench_folder(out: Path | None, grid: Grid) -> Path:
    """Return the folder of a bench: `out`, or the newest runs/bench-<n> of this very grid, or the next number."""
    if out is not None:
        return out
    wanted = grid.to_file()
    for path in reversed(runs.numbered("bench")):
        with suppress(OSError, ValueError):
            if read_grid(path) == wanted:
                return path
    return runs.next_path("bench")
