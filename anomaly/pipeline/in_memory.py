"""Films that a program has in hand: paths, arrays, pydicom datasets, brought to one source."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.sources import Record, Source, open_films
from preprocessing.sources.storage import Parts, Store

if TYPE_CHECKING:
    from pydicom import Dataset

Film: TypeAlias = "str | Path | NDArray[Any] | Dataset"
"""A path (film, folder, zip or manifest), a 2-D array of grey levels, or a DICOM dataset."""


@contextmanager
def source_of(films: "Film | Sequence[Film]") -> Iterator[Source]:
    """Yield a source of these films, in the order in which they are given, for as long as the context lasts.

    Arrays are (H, W) of grey levels, of any integer or floating-point type; they are called array-0, array-1, ... by
    their place, and datasets dataset-0, dataset-1, ... They are written as files in between, so that they take the very
    way of films on a disk: as there, 32-bit and floating-point levels are stretched from the lowest to the highest.
    Raises InputError on anything else.
    """
    several: Sequence[Any] = films if isinstance(films, (list, tuple)) else [films]
    if not several:
        raise InputError("no films were given")
    with tempfile.TemporaryDirectory(prefix="anomaly-") as folder:
        paths = [_path_of(film, place, Path(folder)) for place, film in enumerate(several)]
        written = [path for path in paths if path.parent == Path(folder)]
        on_disk = [path for path in paths if path.parent != Path(folder)]
        yield _joined([open_films(some) for some in (on_disk, written) if some], paths, Path(folder))


def _joined(sources: Sequence[Source], paths: Sequence[Path], written: Path) -> Source:
    """Put the films of sources in the order of the paths that they come from; a film in memory gets its name."""
    rank: dict[Path, int] = {}
    for place, path in enumerate(paths):
        full = path.absolute()
        rank.setdefault(full.parent if full.suffix.lower() == ".csv" else full, place)
    ranked: list[tuple[int, Record]] = []
    files: dict[str, tuple[Store, str]] = {}
    for source in sources:
        for record in source.records:
            full = (source.root / record.path).absolute()
            place = min(rank[folder] for folder in (full, *full.parents) if folder in rank)
            name = full.stem
            named = replace(record, path=name, patient=name, study=name) if full.parent == written else record
            ranked.append((place, named))
            files |= {new: (source.store, old) for new, old in zip(named.files(), record.files(), strict=True)}
    records = [record for _, record in sorted(ranked, key=lambda pair: pair[0])]  # stable: a folder keeps its order
    synthetic = any(source.synthetic for source in sources)
    return replace(sources[0], records=records, synthetic=synthetic, store=Parts(files))


def _path_of(film: Any, place: int, folder: Path) -> Path:
    """Return where a film is, written to the folder where it was in memory."""
    if isinstance(film, (str, Path)):
        return Path(film)
    if hasattr(film, "PixelData") or type(film).__module__.startswith("pydicom"):
        path = folder / f"dataset-{place}.dcm"
        try:
            film.save_as(path, enforce_file_format=True)
        except Exception as error:  # pydicom has many reasons why a dataset is no file
            reason = " ".join(str(error).split())[:200]
            raise InputError(
                f"dataset {place} can't be written as DICOM ({reason}); give the path of its file"
            ) from None
        return path
    levels = np.asarray(film)
    if levels.ndim != 2 or levels.dtype.kind not in "uif":
        raise InputError(
            f"film {place} is {type(film).__name__} of shape {levels.shape} and type {levels.dtype}: give a path, a "
            "pydicom dataset, or an array (H, W) of integers or floating-point numbers"
        )
    import tifffile

    path = folder / f"array-{place}.tif"
    tifffile.imwrite(path, np.ascontiguousarray(levels), photometric="minisblack", metadata=None)
    return path
