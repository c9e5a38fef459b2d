"""The films of `anomaly auto`: from a source, or a cache, to a cache that suits the detectors, within the budget."""

import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from anomaly.console import clock
from anomaly.data.splits import LEAST_TRAINING_FILMS
from anomaly.evaluation.detector_search import AutoRecord
from anomaly.pipeline.options import CACHES, AutoOptions, PreprocessOptions
from anomaly.pipeline.preprocess import preprocess
from anomaly.pipeline.selection import Display
from anomaly.private_folder import private_folder
from preprocessing import InputError
from preprocessing.build import BuildOptions, build, cache_path
from preprocessing.cache.reader import Cache
from preprocessing.choice import choose_recipe
from preprocessing.recipe import AUTO, Recipe
from preprocessing.sources import Source, open_source
from preprocessing.wording import counted

PREPARED = {"plain": (224, "raw"), "limb": (448, "full-he")}
"""Recipe -> side in pixels and variant of the films that the detectors did best on."""
SHARE = 0.7
"""Of the budget, what the preparation may be expected to take."""
TIMED = 6
"""Films that are prepared to see how long all will take."""


@dataclass(frozen=True)
class Films:
    """Where the films come from, before anything is prepared."""

    path: Path
    source: Source | None  # None where the path is a cache
    digest: str

    @classmethod
    def open(cls, path: Path, where: tuple[str, ...]) -> "Films":
        """Open a source or a cache; without normal films it is refused at once."""
        if path.suffix == ".h5" and path.is_file():
            return cls(path, None, Cache(path).content_hash)
        source = open_source(path).where(where)
        normal = sum(record.label == 0 for record in source.records)
        if normal <= LEAST_TRAINING_FILMS:
            raise InputError(
                f"{path} has {counted(normal, 'normal film')} of {len(source.records)}; detectors learn from normal "
                f"films, and more than {LEAST_TRAINING_FILMS} are needed: add some, or say which are normal in a "
                "manifest"
            )
        return cls(path, source, source.listing_hash())


@dataclass(frozen=True)
class PreparedFilms:
    """A cache for the detectors."""

    cache: Path
    variant: str | None  # None: the cache's default
    text: str  # what became of the films, in a line
    notes: tuple[str, ...]


def prepare_films(films: Films, options: AutoOptions, seconds_left: float, display: Display) -> PreparedFilms:
    """Prepare the films into the cache that `anomaly preprocess` makes of them, or take the one that is there.

    Raises InputError where that is expected to take more than SHARE of the time that is left.
    """
    if films.source is None:
        return PreparedFilms(films.path, None, f"{films.path}: a cache of {len(Cache(films.path))} films", ())
    start = time.monotonic()
    choice = choose_recipe(films.source)
    recipe = choice.recipe if options.recipe == AUTO else options.recipe
    if recipe not in PREPARED:
        raise InputError(f"no recipe {options.recipe!r}; there are: {', '.join(sorted([*PREPARED, AUTO]))}")
    size, variant = options.size or PREPARED[recipe][0], PREPARED[recipe][1]
    path = cache_path(films.source, Recipe(name=recipe, size=size), (variant,), CACHES)
    if not path.exists():
        expected = _expected_seconds(films.source, Recipe(name=recipe, size=size), variant)
        if expected > SHARE * seconds_left:
            least = -(-int(expected / SHARE + options.minutes * 60 - seconds_left) // 60)
            raise InputError(
                f"to prepare {counted(len(films.source.records), 'film')} of {size} px takes about {clock(expected)} "
                f"here, too much of the {clock(seconds_left)} that are left: give --minutes {least} or more, or take "
                "a lower --size"
            )
    wanted = PreprocessOptions(
        films.path,
        recipe=recipe,
        size=size,
        variants=variant,
        where=options.where,
        workers=options.workers,
    )
    done = preprocess(wanted, display=display)
    state = "already there" if done.report.reused else f"prepared in {clock(time.monotonic() - start)}"
    left_out = f", {counted(len(done.failures), 'film')} left out" if done.failures else ""
    reason = choice.reason() if options.recipe == AUTO else f"recipe {recipe}, as asked for"
    text = f"{reason}; {size} px, {variant}; {done.path}: {counted(done.report.rows, 'film')} {state}{left_out}"
    failures = tuple(f"left out: {path}: {why}" for path, why in done.failures[:3])
    return PreparedFilms(done.path, variant, text, (*done.notes, *done.report.notes, *done.cache_notes, *failures))


def _expected_seconds(source: Source, recipe: Recipe, variant: str) -> float:
    """Prepare a few films, and return what all of them would take by that in one process.

    Several processes are faster, by how much depends on what else the machine does: this is what it takes at most.
    """
    there = [record for record in source.records if not record.missing]
    places = np.unique(np.linspace(0, len(there) - 1, min(TIMED, len(there))).round().astype(int))
    few = replace(source, records=[there[place] for place in places])
    start = time.monotonic()
    with private_folder() as folder:
        build(few, recipe, folder / "films.h5", options=BuildOptions(variants=(variant,), workers=1))
    return (time.monotonic() - start) / len(places) * len(there)


def wanted_record(films: Films, options: AutoOptions) -> AutoRecord:
    """Return the record of a search that has not begun."""
    return AutoRecord(
        films=str(films.path),
        listing_hash=films.digest,
        where=list(options.where),
        seed=options.seed,
        choose_by=options.choose_by,
        recipe=options.recipe,
        size=options.size,
        minutes=options.minutes,
    )
