"""Films that a program has in hand: paths, arrays, pydicom datasets, brought to one source."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.sources import Source, open_films

if TYPE_CHECKING:
    from pydicom import Dataset

Film: TypeAlias = "str | Path | NDArray[Any] | Dataset"
"""A path (film, folder, zip or manifest), a 2-D array of grey levels, or a DICOM dataset."""


@contextmanager
def source_of(films: "Film | Sequence[Film]") -> Iterator[Source]:
    """Yield a source of these films, for as long as the context lasts.

    Arrays are (H, W) of grey levels, of any integer or floating-point type; they are called array-0, array-1, ... by
    their place, and datasets dataset-0, dataset-1, ... They are written as files in between, so that they take the very
    way of films on a disk. Raises InputError on anything else.
    """
    several: Sequence[Any] = films if isinstance(films, (list, tuple)) else [films]
    if not several:
        raise InputError("no films were given")
    with tempfile.TemporaryDirectory(prefix="anomaly-") as folder:
        yield open_films([_path_of(film, place, Path(folder)) for place, film in enumerate(several)])


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
