"""Where a DICOM film holds no image: padding, shutter, collimator."""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from preprocessing.readers.dicom_header import numbers, present
from preprocessing.readers.dicom_pixels import Stored

_EDGES = ("LeftVertical", "RightVertical", "UpperHorizontal", "LowerHorizontal")
_MAX_VERTICES = 1000
_LEAST_FIELD = 0.02  # of a film: a finger on a plate for chests is twice as large


def is_padding(dataset: Any, stored: Stored) -> NDArray[np.bool_] | None:
    """Where pixels are padding, (H, W), C.7.5.1.1.2; None without PixelPaddingValue.

    Compared with what is stored, before any table. Both numbers are read as signed or not as the pixels are, whatever
    representation they came in; padding may lie outside the bits stored, so the whole container is compared as well.
    """
    first = _stored_number(dataset, "PixelPaddingValue", stored)
    if first is None:
        return None
    second = _stored_number(dataset, "PixelPaddingRangeLimit", stored)
    low, high = sorted((first, first if second is None else second))
    within = (stored.values >= low) & (stored.values <= high)
    return within | ((stored.container >= low) & (stored.container <= high))


def _stored_number(dataset: Any, keyword: str, stored: Stored) -> int | None:
    values = numbers(dataset, keyword)
    if not values:
        return None
    pattern = int(values[0]) & 0xFFFF
    if not stored.signed:
        return pattern
    # A negative number of fewer than 16 bits, read as an unsigned one: 4095 is -1 in 12 bits.
    width = stored.bits if 2 ** (stored.bits - 1) <= pattern < 2**stored.bits else 16
    return pattern - 2**width if pattern >= 2 ** (width - 1) else pattern


def shuttered(dataset: Any, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """What lies behind the display shutter, (H, W), C.7.6.11; None without one, and where it hides all or nothing."""
    inside = _inside(dataset, shape, "Shutter")
    return None if inside.all() or not inside.any() else inside == 0


def beyond_collimator(dataset: Any, shape: tuple[int, ...]) -> NDArray[np.bool_] | None:
    """What lies beyond the collimator's edges, (H, W), C.8.7.3; None where nothing, or nothing sound, is said of it.

    No viewer shows these attributes, so they are wrong in real files: millimetres from the beam's axis, for instance.
    Edges that are no rows and columns of the film, or that leave next to nothing of it, are not believed.
    """
    edges = [value for name in _EDGES for value in numbers(dataset, f"Collimator{name}Edge")]
    center = numbers(dataset, "CenterOfCircularCollimator")
    corners = numbers(dataset, "VerticesOfThePolygonalCollimator")
    columns, rows = edges[:2] + center[1::2] + corners[1::2], edges[2:] + center[::2] + corners[::2]
    if not all(0 <= column <= shape[1] + 1 for column in columns) or not all(0 <= row <= shape[0] + 1 for row in rows):
        return None
    inside = _inside(dataset, shape, "Collimator")
    return None if inside.all() or inside.mean() < _LEAST_FIELD else inside == 0


def _inside(dataset: Any, shape: tuple[int, ...], device: str) -> NDArray[np.uint8]:
    """What lies inside all of a device's shapes, 0 or 1; a shape without its numbers says nothing."""
    shapes = {kind.strip().upper() for kind in map(str, present(dataset, f"{device}Shape"))}
    inside = np.ones(shape, np.uint8)
    for kind, draw in (("RECTANGULAR", _rectangle), ("CIRCULAR", _circle), ("POLYGONAL", _polygon)):
        if kind in shapes:
            inside &= draw(dataset, shape, device)
    return inside


def _rectangle(dataset: Any, shape: tuple[int, ...], device: str) -> NDArray[np.uint8]:
    """Columns and rows from edge to edge, counted from 1."""
    edges = [numbers(dataset, f"{device}{name}Edge") for name in _EDGES]
    inside = np.ones(shape, np.uint8)
    if not all(edges):
        return inside
    left, right, upper, lower = (int(edge[0]) for edge in edges)
    rows, columns = np.arange(1, shape[0] + 1)[:, None], np.arange(1, shape[1] + 1)
    return np.asarray((rows >= upper) & (rows <= lower) & (columns >= left) & (columns <= right), np.uint8)


def _circle(dataset: Any, shape: tuple[int, ...], device: str) -> NDArray[np.uint8]:
    """Radius in pixels about a row and a column, counted from 1."""
    center, radius = numbers(dataset, f"CenterOfCircular{device}"), numbers(dataset, f"RadiusOfCircular{device}")
    if len(center) != 2 or not radius or radius[0] <= 0:
        return np.ones(shape, np.uint8)
    rows, columns = np.arange(1, shape[0] + 1)[:, None], np.arange(1, shape[1] + 1)
    return np.asarray((rows - center[0]) ** 2 + (columns - center[1]) ** 2 <= radius[0] ** 2, np.uint8)


def _polygon(dataset: Any, shape: tuple[int, ...], device: str) -> NDArray[np.uint8]:
    """Corners as row, column, row, column..., counted from 1."""
    corners = numbers(dataset, f"VerticesOfThePolygonal{device}")
    if len(corners) < 6 or len(corners) % 2 or len(corners) > 2 * _MAX_VERTICES:
        return np.ones(shape, np.uint8)
    points = np.clip(np.array(corners).reshape(-1, 2)[:, ::-1] - 1, -(2**15), 2**15)  # x, y, counted from 0
    inside = np.zeros(shape, np.uint8)
    cv2.fillPoly(inside, [np.rint(points).astype(np.int32)], [1])
    return inside
