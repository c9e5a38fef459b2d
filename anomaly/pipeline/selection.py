"""Which films to score or map: those of a run's cache, or new ones through the recipe that the run recorded."""

import errno
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from anomaly.console import Advance, silent
from anomaly.data.dataset import FilmSet
from anomaly.data.splits import SPLITS
from anomaly.drafts import aside
from anomaly.pipeline.backend import recorded_nets
from anomaly.pipeline.open_run import run_cache_and_split, run_films
from anomaly.private_folder import private_folder
from anomaly.runs import Record, Run, to_json, write_atomic
from preprocessing import InputError
from preprocessing.build import BuildOptions, build, made_digest
from preprocessing.cache.reader import Cache
from preprocessing.recipe import Recipe
from preprocessing.sources import Source
from preprocessing.sources.paths import safe_name
from preprocessing.wording import counted, did_you_mean

FEW = 16
"""Up to this many new films are prepared in this process: starting others would take longer."""
Display = Callable[[str, int, str], AbstractContextManager[Advance]]
"""(what is done, how many, of which unit) -> what is told of progress: `console.progress`, or `console.silent`."""


class NewFilms(Record):
    """films.json: which new films a folder of results is of."""

    source: str
    """Where they were."""
    films: int
    listing_hash: str


@dataclass(frozen=True)
class Selection:
    """Films that a run is asked about."""

    films: FilmSet
    split: NDArray[Any]  # (n,) of each film; "new" for new ones
    name: str  # a split, "all" or "new"
    source: Source | None = None  # of new films, unless they are a cache's
    identity: NewFilms | None = None  # of new films
    failures: Sequence[tuple[str, str]] = ()  # path and reason of new films that can't be read
    notes: Sequence[str] = ()  # what a reader of the results should know, a sentence each

    def folder(self, run: Run) -> Path:
        """Return where results go by default: those of the test split in the run itself, new films in their own."""
        if self.identity is not None:
            name = self.films.cache.path.stem if self.source is None else self.source.name
            return new_folder(run.path / self.name, self.identity, safe_name(name))
        return run.path if self.name == "test" else run.path / self.name


def recorded_films(run: Run, split: str | None, cache_path: Path | None, where: Sequence[str] = ()) -> Selection:
    """Return films of the cache that a run was trained on: a split's, the test split's by default, or "all".

    where  conditions that they meet, such as "region=hand".
    """
    name = split or "test"
    if name not in (*SPLITS, "all"):
        raise InputError(
            f"no split {name!r}; there are: all, {', '.join(SPLITS)}{did_you_mean(name, ('all', *SPLITS))}"
        )
    films, splits = run_films(run, name, cache_path, where)
    return Selection(films, splits, name)


@contextmanager
def new_films(run: Run, source: Source, *, workers: int = 0, display: Display = silent) -> Iterator[Selection]:
    """Prepare films of a source as those of a run were prepared, for as long as the context lasts.

    workers  processes; 0 takes what suits the machine. Raises InputError where the recipe or its nets are no longer
    those that prepared the run's films.
    """
    recorded, config = run.config.cache, run.config
    recipe, nets = Recipe.from_json(recorded.recipe), recorded_nets(run)
    if made_digest(recipe, nets) != recorded.recipe_digest:
        raise InputError(
            f"{run.path} was trained on films prepared by another version of the recipe {recipe.name}; "
            f"prepare them again with `{recorded.command}`, and train again"
        )
    with private_folder() as folder:
        with display("preparing", len(source.records), "films") as advance:
            options = BuildOptions(
                variants=(config.variant,),
                workers=workers or (1 if len(source.records) <= FEW else 0),
                dtype=recorded.dtype,  # a film's levels must not depend on the depth of the films beside it
            )
            report = build(source, recipe, folder / "films.h5", nets, options, advancing(advance))
        cache = Cache(report.path)
        films = FilmSet(cache, config.variant, np.arange(len(cache)), config.size)
        split = np.full(len(cache), "new", dtype=object)
        identity = NewFilms(source=str(source.root), films=len(source.records), listing_hash=source.listing_hash())
        notes = [*source.notes, *trained_on(run, cache, films.rows)]
        yield Selection(films, split, "new", source, identity, report.failures, notes)


def trained_on(run: Run, cache: Cache, rows: NDArray[np.int64]) -> list[str]:
    """Say how many new films are films that the run was trained on, byte for byte, if its cache is still there.

    rows  (n,) of the cache: the new films. Empty where there are none.
    """
    try:
        known, split = run_cache_and_split(run)
    except InputError:
        return []
    seen = set(known.index["sha256"][split == "train"])
    again = [row for row in rows if cache.index["sha256"][row] in seen]
    if not again:
        return []
    first = cache.index["path"][again[0]]
    verb = "is" if len(again) == 1 else "are"
    return [
        f"{len(again)} of {counted(len(rows), 'film')} {verb} among those that {run.path} was trained on (the first: "
        f"{first}): figures that count them are optimistic"
    ]


def new_folder(parent: Path, record: NewFilms, name: str) -> Path:
    """Return the folder for results of new films, `<date>-<name>`, made if there is none.

    The same films get the folder that they had, on whatever day; other films never do: theirs has a number where date
    and name are the same.
    """
    for file in sorted(parent.glob("[!.]*/films.json"), reverse=True):
        with suppress(OSError, ValidationError):
            if NewFilms.model_validate_json(file.read_bytes()).listing_hash == record.listing_hash:
                return file.parent
    name = f"{datetime.now().astimezone():%Y-%m-%d}-{name}"
    # Made beside and moved into place: a folder that a kill left without films.json would be no films' own.
    beside = aside(parent / name)
    try:
        write_atomic(beside / "films.json", to_json(record.model_dump()))
        return _placed(beside, parent, name)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def _placed(beside: Path, parent: Path, name: str) -> Path:
    """Move a folder to the first free name in `parent`: `name`, or it with a number."""
    number = 1
    while True:
        folder = parent / (name if number == 1 else f"{name}-{number}")
        try:
            beside.rename(folder)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise
            number += 1
        else:
            return folder


def advancing(advance: Advance) -> Callable[[Any], None]:
    """Return what a build tells of its progress to, shown by `advance`."""
    done = 0

    def on_progress(state: Any) -> None:
        nonlocal done
        if state.phase == "films":  # the phases before, reading headers and checking what is there, are quick
            advance(state.done - done, f"{state.failed} failed" if state.failed else "")
            done = state.done

    return on_progress
