"""Joining two caches of the same recipe into one, with a split for every film."""

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.cache.reader import Cache
from preprocessing.cache.schema import COLUMNS, Header, Row, stage_of, truth_stage
from preprocessing.cache.writer import Writer

STORED = tuple(name for name in COLUMNS if name not in ("truth", "checksum", "split", "path", "patient", "study"))
"""What a row keeps as it is."""


@dataclass(frozen=True)
class Names:
    """The names of a joined film: those of its own cache, but for those that mean another film in the first."""

    path: str
    patient: str
    study: str


@dataclass(frozen=True)
class NewFilms:
    """Which films of a second cache are not in the first, and their names beside those of the first."""

    rows: NDArray[np.int64]  # (n,) of the second cache
    names: tuple[Names, ...]  # of each of them


def check_joinable(first: Cache, second: Cache, variant: str) -> None:
    """Raise InputError unless films of both were prepared alike: recipe and nets, size, depth and variant."""
    for what, a, b in (
        ("recipe", first.recipe_digest, second.recipe_digest),
        ("size", first.size, second.size),
        ("type of the films", first.dtype.name, second.dtype.name),
    ):
        if a != b:
            raise InputError(
                f"{second.path} has another {what} than {first.path} ({b}, not {a}); prepare its films as "
                f"`{first.command}` did those"
            )
    second.films(variant, np.arange(0))  # raises for a variant that it lacks


def new_films(first: Cache, second: Cache) -> NewFilms:
    """Return the films of the second cache whose file is not in the first, whatever it is called there.

    A path, and a patient or study that stands for a film or folder of which the patient is not known, gets the name of
    its source in front where the first cache has one of that name: these are other films. A patient who is known by the
    same name in both is one patient.
    """
    index = second.index
    known_files = set(first.index["sha256"])
    taken = {name: set(first.index[name]) for name in ("path", "patient", "study")}

    def apart(name: str, text: str) -> str:
        return f"{second.source}/{text}" if text in taken[name] else text

    rows = np.flatnonzero([digest not in known_files for digest in index["sha256"]])
    names = []
    for row in rows.tolist():
        path, patient, study = (str(index[name][row]) for name in ("path", "patient", "study"))
        if not index["patient_known"][row]:
            patient, study = apart("patient", patient), apart("study", study)
        names.append(Names(apart("path", path), patient, study))
    if clash := {one.path for one in names} & taken["path"]:
        raise InputError(f"{second.path}: {min(clash)} is the name of another film in {first.path}; rename it")
    return NewFilms(rows, tuple(names))


def join(
    first: Cache,
    second: Cache,
    new: NewFilms,
    splits: tuple[NDArray[Any], NDArray[Any]],
    path: Path,
    *,
    variant: str,
    command: str,
    on_film: Callable[[], None] = lambda: None,
) -> Path:
    """Write the films of the first cache, then the new ones of the second, in one variant, as a cache; its path.

    splits  the split of each row of the first cache, and of each of `new`; "" for one that has none.    command  what
    makes the file again. One that is there with this very content is taken as it is; an interrupted one is resumed.
    """
    header = _header(first, second, splits, variant, command)
    with suppress(InputError):  # damaged, of another version, or not there
        if Cache(path).source_hash == header.source_hash:
            return path
    films = [*_films(first, np.arange(len(first))), *_films(second, new.rows)]
    known = zip(*(first.index[name].tolist() for name in ("path", "patient", "study")), strict=True)
    entries = list(zip([*(Names(*names) for names in known), *new.names], np.concatenate(splits), strict=True))
    failures = list(dict.fromkeys((*first.failures, *second.failures)))
    start = 0
    with Writer(path, header, total=len(films) + len(failures)) as writer:
        done = writer.done
        for number, (cache, rows) in enumerate(films):
            own = entries[start : start + len(rows)]
            start += len(rows)
            if number >= done:
                made = [_row(cache, row, variant, *entry) for row, entry in zip(rows, own, strict=True)]
                writer.append(*made)
            on_film()
        for failure in failures[max(0, done - len(films)) :]:
            writer.fail(*failure)
        return writer.finish()


def _header(
    first: Cache, second: Cache, splits: tuple[NDArray[Any], NDArray[Any]], variant: str, command: str
) -> Header:
    content = [first.content_hash, second.content_hash, variant, *(list(map(str, part)) for part in splits)]
    sources = dict.fromkeys((first.source, second.source))
    return Header(
        variants=(variant,),
        size=first.size,
        dtype=first.dtype.name,
        recipe_json=first.recipe_json,
        recipe_digest=first.recipe_digest,
        nets=json.dumps(first.nets, sort_keys=True),
        source=" + ".join(sources),
        source_kind=first.source_kind,
        source_hash=hashlib.sha256(json.dumps(content).encode()).hexdigest(),
        source_path=first.source_path,
        synthetic=first.synthetic or second.synthetic,
        truth=any(cache.anomaly(variant, np.arange(0)) is not None for cache in (first, second)),
        command=command,
    )


def _films(cache: Cache, rows: NDArray[np.int64]) -> Iterator[tuple[Cache, list[int]]]:
    """Give the rows of each film: one, or one for each of its hands."""
    hands = cache.index["hand"]
    film: list[int] = []
    for row in rows.tolist():
        if film and hands[row] < 2:
            yield cache, film
            film = []
        film.append(row)
    if film:
        yield cache, film


def _row(cache: Cache, row: int, variant: str, names: Names, split: object) -> Row:
    """Return a film as it is stored, under its names and with its split."""
    at = np.array([row])
    index = cache.index
    truth = None
    if index["truth"][row]:
        anomaly = cache.anomaly(variant, at)
        truth = None if anomaly is None else {truth_stage(variant): anomaly[0]}
    return Row(
        path=names.path,
        patient=names.patient,
        study=names.study,
        split=str(split),
        films={variant: cache.films(variant, at)[0]},
        masks={stage_of(variant): cache.masks(variant, at)[0]},
        truth=truth,
        **{name: index[name][row] for name in STORED},
    )
