"""Films that a program has in hand: paths, arrays, pydicom datasets, brought to one source."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from anomaly.private_folder import private_folder
from preprocessing import InputError
from preprocessing.sources import Source, open_films

if TYPE_CHECKING:
    from pydicom import Dataset

Film: TypeAlias = "str | Path | NDArray[Any] | Dataset"
"""A path (film, folder, zip or manifest), a 2-D array of grey levels, or a DICOM dataset."""


@contextmanager
def source_of(films: "Film | Sequence[Film]") -> Iterator[Source]:
    """Yield a source of these films, for as long as the context lasts.

    The source has the films in the order given. Arrays are (H, W) of grey levels, of any integer or floating-point
    type. A film in memory is named after its place in the list: array-0, dataset-1. It is written to a temporary file,
    so that it is prepared exactly as a film on disk is: 32-bit and floating-point levels are stretched from the lowest
    to the highest. Raises InputError on anything else.
    """
    several: Sequence[Any] = films if isinstance(films, (list, tuple)) else [films]
    if not several:
        raise InputError("no films were given")
    with private_folder() as folder:
        paths = [_path_of(film, place, folder) for place, film in enumerate(several)]
        yield open_films(paths, names={path: path.stem for path in paths if path.parent == folder})


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
                f"dataset-{place} can't be written as DICOM ({reason}); give the path of its file"
            ) from None
        return path
    levels = np.asarray(film)
    if levels.ndim != 2 or not levels.size or levels.dtype.kind not in "uif":
        what = f"an array {levels.shape} of {levels.dtype}" if isinstance(film, np.ndarray) else repr(film)[:80]
        raise InputError(
            f"film {place} is {what}: give a path, a pydicom dataset, or an array (H, W) of integers or "
            "floating-point numbers; several films as a list"
        )
    import tifffile

    path = folder / f"array-{place}.tif"
    tifffile.imwrite(path, np.ascontiguousarray(levels), photometric="minisblack", metadata=None)
    return path
