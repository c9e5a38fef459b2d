"""What is stored of a row: a line of the index as JSON holds it, and the arrays of its films and masks."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.cache.schema import COLUMNS, Header, Row


def index_line(row: Row) -> dict[str, Any]:
    """Give the row's line of the index without its checksum.

    Raises InputError for a text that HDF5 cannot hold, ValueError for an array of another shape.
    """
    line: dict[str, Any] = {}
    for name, (dtype, shape) in COLUMNS.items():
        if name in ("truth", "checksum"):
            continue
        value = getattr(row, name)
        if dtype == "str":
            if value != storable(value):
                raise InputError(
                    f"{storable(row.path)}: {name} is not text that can be stored (UTF-8, no zero byte); rename it"
                )
            line[name] = value
        elif shape:
            array = np.full(shape, np.nan) if value is None else np.asarray(value, dtype)
            if array.shape != shape:
                raise ValueError(f"{row.path}: {name} has shape {array.shape}, the cache stores {shape}")
            line[name] = array.tolist()
        else:
            line[name] = np.dtype(dtype).type(value).item()
    return line | {"truth": row.truth is not None}


def row_arrays(row: Row, header: Header) -> dict[str, NDArray[Any]]:
    """Give the row's arrays by dataset, in the order of `Header.arrays`.

    Raises ValueError for a film, mask or truth unlike the header.
    """
    given: dict[str, dict[str, NDArray[Any]]] = {"films": row.films, "masks": row.masks, "truth": row.truth or {}}
    arrays: dict[str, NDArray[Any]] = {}
    square = (header.size, header.size)
    if row.truth is not None and not header.truth:
        raise ValueError(f"{row.path}: pixel truth is given, the cache was laid out without")
    for name, (dtype, shape) in header.arrays().items():
        group, key = name.split("/")
        if group == "targets":
            arrays[name] = _padded_boxes(row, shape)
        elif group == "truth" and row.truth is None:
            arrays[name] = np.zeros(shape, dtype)
        else:
            array = given[group][key]  # (S, S)
            wanted = dtype if group == "films" else "bool"
            if array.shape != square or array.dtype != wanted:
                raise ValueError(
                    f"{row.path}: {name} is {array.dtype} {array.shape}, the cache stores {wanted} {square}"
                )
            arrays[name] = np.ascontiguousarray(array) if group == "films" else np.packbits(array)  # (S, S) | (P,)
    return arrays


def storable(text: str) -> str:
    """Give the text as HDF5 can hold it: what is not UTF-8 escaped, zero bytes left out."""
    return text.replace("\0", "").encode("utf-8", "backslashreplace").decode()


def _padded_boxes(row: Row, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Give the row's boxes, with lines of zeros up to (16, 5)."""
    boxes = np.asarray([] if row.boxes is None else row.boxes, np.float32).reshape(-1, shape[1])
    if len(boxes) > shape[0]:
        raise ValueError(f"{row.path}: {len(boxes)} boxes, the cache stores {shape[0]}")
    padded = np.zeros(shape, np.float32)
    padded[: len(boxes)] = boxes
    return padded
