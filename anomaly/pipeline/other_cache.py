"""The films of another cache, made by the recipe of a run: scored as they lie there, without preparing them again."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anomaly.data.dataset import FilmSet
from anomaly.formatting import command_line
from anomaly.pipeline.selection import NewFilms, Selection, trained_on
from anomaly.runs import CacheRecord, Run, differences
from preprocessing import InputError
from preprocessing.cache.reader import MAGIC, Cache
from preprocessing.sources import Source, open_source
from preprocessing.wording import counted


def is_cache(path: Path) -> bool:
    """Return whether a path is an HDF5 file, which among films only a cache is."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def other_cache(paths: Sequence[Path]) -> Path | None:
    """Return the cache among what is to be scored, or None where there is none; beside films it is refused."""
    caches = [path for path in paths if is_cache(path)]
    if not caches:
        return None
    if len(paths) > 1:
        raise InputError(f"{caches[0]} is a cache: score it alone, other films with another command")
    return caches[0]


def cached_films(run: Run, path: Path, where: Sequence[str] = ()) -> Selection:
    """Return the films of another cache as new films of a run: external validation without preparing them again.

    where  conditions that they meet, such as "site=b".

    Raises InputError, with what differs, where they were prepared in another way than the run's films, and for the very
    cache that the run was trained on.
    """
    cache, recorded = Cache(path), run.config.cache
    if cache.content_hash == recorded.content_hash:
        raise InputError(
            f"{path} is the cache that {run.path} was trained on; leave it out, and choose its films with --split"
        )
    if unlike := _unlike(run, cache):
        raise InputError(
            f"{path} was not prepared as the films of {run.path} were ({'; '.join(unlike)}); score its films: "
            f"`{command_line('anomaly', 'score', run.path, cache.source_path)}`"
        )
    rows = np.flatnonzero(cache.where(where))
    digest = hashlib.sha256(f"{cache.content_hash} {rows.tolist()}".encode()).hexdigest()
    return Selection(
        FilmSet(cache, run.config.variant, rows, run.config.size),
        np.full(len(rows), "new", dtype=object),
        "new",
        identity=NewFilms(source=str(path.absolute()), films=len(rows), listing_hash=digest),
        notes=[*_missing(cache), *trained_on(run, cache, rows)],
    )


def cache_source(cache: Cache) -> Source | None:
    """Return the original films of a cache, or None where they are gone from where they were."""
    path = Path(cache.source_path)
    return open_source(path, strict=False, follow_links=True) if path.exists() else None


def _missing(cache: Cache) -> list[str]:
    if not cache.failures:
        return []
    count, lists = counted(len(cache.failures), "film"), command_line("anomaly", "inspect", cache.path)
    return [f"{count} of {cache.source} could not be prepared and are not in {cache.path}; `{lists}` lists them"]


def _unlike(run: Run, cache: Cache) -> list[str]:
    """Return in what the films of a cache differ from those that a run takes, a few words each."""
    recorded = run.config.cache
    unlike = differences(json.loads(recorded.recipe), json.loads(cache.recipe_json), "recipe.")
    if not unlike and cache.recipe_digest != recorded.recipe_digest:
        unlike.append(_nets(recorded, cache))
    if cache.dtype.name != recorded.dtype:
        unlike.append(f"levels: {recorded.dtype} -> {cache.dtype.name}")
    if run.config.variant not in cache.variants:
        unlike.append(f"variant {run.config.variant}: there are {', '.join(cache.variants)}")
    return unlike


def _nets(recorded: CacheRecord, cache: Cache) -> str:
    """Return why the digests of two equal recipes differ: by their nets, or by the recipe's version."""
    nets = {role: f"{net['name']} {net['digest'][:12]}" for role, net in recorded.nets.items()}
    others = {role: f"{net['name']} {net['digest'][:12]}" for role, net in cache.nets.items()}
    if nets != others:
        return "; ".join(differences(nets, others, "net."))
    return f"version of the recipe: {recorded.recipe_digest} -> {cache.recipe_digest}"
