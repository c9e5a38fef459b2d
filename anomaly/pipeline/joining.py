"""The films of a run and more of them in one cache, in which no patient changes split."""

import hashlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.console import Advance, silent
from anomaly.data.splits import SPLITS, SplitRule, assign_splits
from anomaly.formatting import command_line
from anomaly.models import find_model
from anomaly.pipeline.open_run import run_cache_and_split
from anomaly.pipeline.options import CACHES
from anomaly.pipeline.plan import prepares_films
from anomaly.runs import Run
from preprocessing import InputError
from preprocessing.cache.join import NewFilms, check_joinable, join, new_films
from preprocessing.cache.reader import Cache

LONGEST_STEM = 40
"""Characters of a cache's name that the name of a joined one keeps."""


@dataclass(frozen=True)
class Joined:
    """What became of films that joined those of a run."""

    path: Path  # of the cache of all of them
    films: int  # that were new
    known: int  # of the same file as one that the run had already
    by_split: dict[str, int]  # new films
    patients: int  # of the run who have new films, which go where the patient is


def join_films(
    run: Run,
    more: Path,
    cache_path: Path | None,
    *,
    display: Callable[[str, int, str], AbstractContextManager[Advance]] = silent,
) -> Joined:
    """Write the films of a run's cache and those of another into one, whose index has the split of each.

    Patients of the run keep their split, and new films of theirs go there; other patients keep the split that their own
    source gives, or are split by the rule and seed of the run. The cache is cache/<old>+<new>-<digest>.h5, in the run's
    variant. Raises InputError where the films were prepared otherwise, or none of them is new.
    """
    config = run.config
    if prepares_films(find_model(config.model)):
        raise InputError(f"{run.path} prepares films; prepare old and new ones together, and train it on those")
    old, old_split = run_cache_and_split(run, cache_path)
    new_cache = Cache(more)
    check_joinable(old, new_cache, config.variant)
    new = new_films(old, new_cache)
    if not len(new.rows):
        raise InputError(f"{more}: all of its {len(new_cache)} films are films of {run.path} already; none is new")
    home = {name: split for name, split in zip(old.index["patient"], old_split, strict=True) if split}
    split = _splits(run, new_cache, new, home)
    if not (split != "").any():
        raise InputError(f"{more}: none of its new films meets --where {' --where '.join(config.where)}")
    every_old = np.array([home.get(name, "") for name in old.index["patient"]], dtype=object)
    digest = hashlib.sha256(f"{old.content_hash} {new_cache.content_hash} {config.split_hash}".encode()).hexdigest()
    path = CACHES / f"{old.path.stem[:LONGEST_STEM]}+{more.stem[:LONGEST_STEM]}-{digest[:8]}.h5"
    with display("joining", len(old) + len(new.rows), "films") as advance:
        join(
            old,
            new_cache,
            new,
            (every_old, split),
            path,
            variant=config.variant,
            command=command_line("anomaly", "train", run.path, "--more-films", more),
            on_film=advance,
        )
    return Joined(
        path,
        len(new.rows),
        len(new_cache) - len(new.rows),
        {name: int((split == name).sum()) for name in SPLITS},
        len({names.patient for names in new.names} & set(home)),
    )


def _splits(run: Run, cache: Cache, new: NewFilms, home: dict[str, Any]) -> NDArray[Any]:
    """Return the split of each new film, (n,); "" of those that the run's --where leaves out."""
    config = run.config
    patient = np.array([names.patient for names in new.names], dtype=object)
    split = np.array([home.get(name, "") for name in patient], dtype=object)
    others = np.flatnonzero((split == "") & cache.where(config.where)[new.rows])
    if len(others):
        rows = new.rows[others]
        label, given = cache.index["label"][rows], cache.index["split"][rows]
        split[others] = assign_splits(patient[others], label, given, seed=config.split_seed, rule=_rule(run))
    return split


def _rule(run: Run) -> SplitRule:
    """Return the rule for patients whose source gives no split, where that of the run's films gave them."""
    config = run.config
    if config.split_rule != "given":
        return config.split_rule
    rule: SplitRule = config.settings.training["splits"]
    return "paper, labelled" if rule == "paper" and find_model(config.model).targets == "labels" else rule
