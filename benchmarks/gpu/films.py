"""The films of the benchmark: built-in ones (SYNTHETIC), drawn and prepared beforehand into one small cache."""

import tempfile
from pathlib import Path

import numpy as np

from anomaly.data.dataset import Films
from preprocessing import InputError
from preprocessing.cache.reader import Cache

VARIANT = "full-he"


def draw(path: Path, *, patients: int, size: int) -> int:
    """Draw and prepare films into a cache at `path`, and return their number. Needs everything that preparing needs."""
    from preprocessing.build import BuildOptions, build
    from preprocessing.phantom import write_phantoms
    from preprocessing.recipe import Recipe
    from preprocessing.sources import open_source

    with tempfile.TemporaryDirectory() as folder:
        write_phantoms(Path(folder) / "films", seed=0, patients=patients, size=max(64, size))
        options = BuildOptions(variants=(VARIANT,), workers=1, compression="lzf", force=True)
        build(open_source(Path(folder) / "films"), Recipe(name="limb", size=size), path, options=options)
    return len(Cache(path))


def load(path: Path, size: int) -> Films:
    """Read all films, normal and abnormal, at `size` px: averaged over squares, so that no image library is needed."""
    cache = Cache(path)
    if cache.size % size:
        raise InputError(f"{path} holds films of {cache.size} px, which is no multiple of {size}; draw others: --draw")
    rows = np.arange(len(cache))
    film, mask = cache.films(VARIANT, rows), cache.masks(VARIANT, rows)
    if cache.size > size:
        squares = (len(rows), size, cache.size // size, size, cache.size // size)
        mask = mask.reshape(squares).mean(axis=(2, 4)) >= 0.5
        film = (film.reshape(squares).mean(axis=(2, 4)).round() * mask).astype(cache.dtype)
    return Films(film, mask, cache.index["label"][rows])


def repeated(films: Films, count: int) -> Films:
    """Return `count` films, the same ones again and again."""
    return films.part(np.arange(count) % len(films))
