"""Heatmap files: PNG, TIFF, NPY, in the cache's geometry or on the original film."""

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.data.splits import LABELS
from anomaly.evaluation.calibration import read_calibration
from anomaly.evaluation.predict import View, maps, score
from anomaly.models.base import Detector
from anomaly.reporting.heatmap import overlay, to_film_space, write_map, write_png
from anomaly.runs import Run, inside
from preprocessing import InputError
from preprocessing.readers import read_film

if TYPE_CHECKING:
    from preprocessing.sources import Source


MAP_FORMATS = ("png", "tiff", "npy")


# --- maps -----------------------------------------------------------------------------------------------------------


def write_maps(
    run: Run,
    model: Detector,
    view: View,
    device: torch.device,
    folder: Path,
    *,
    name: str,
    formats: Sequence[str],
    originals: "Source | None",
    limit: int | None,
    on_film: Callable[[], None],
) -> list[Path]:
    """Write a heatmap of every film of the view, or of its `limit` highest-scored ones; the first file is the
    highest's.

    `name` is the score they are ranked by. `originals` lays the maps back onto the original films; without it they stay
    in the cache's geometry.
    """
    calibration = read_calibration(run)
    scores = score(model, view, device)[name]
    order = np.argsort(-scores, kind="stable")[:limit]
    chosen = View(view.cache, view.variant, view.rows[order], view.size)
    threshold = calibration.thresholds["mean"]["film"][name]  # a film alone is its own mean
    drawn_films = "SYNTHETIC film, " if view.cache.synthetic else ""
    written = []
    for (row, drawn, film, mask), value in zip(maps(model, chosen, device), scores[order], strict=True):
        path, hand = (view.cache.index[column][row] for column in ("path", "hand"))
        stem = f"{path}-{hand}" if hand else str(path)
        if originals is not None:
            film, drawn, mask = _on_film(view, row, film, drawn, mask, originals)
        label = LABELS[int(view.cache.index["label"][row])]
        title = f"{view.cache.names[row]}\n{drawn_films}{name} {value:.4g}, flagged from {threshold:.4g}" + (
            f", labelled {label}" if label else ""
        )
        for suffix in formats:
            # After the film's whole name: a.png and a.dcm, or the dotted names of DICOM, stay apart.
            file = inside(folder, f"{stem}_heatmap.{suffix}")
            if suffix == "png":
                write_png(
                    file, overlay(film, drawn, mask, calibration.map_scale or 1.0, title=title, unit=model.map_unit)
                )
            else:
                write_map(file, drawn)
        written.append(folder / f"{stem}_heatmap.{formats[0]}")
        on_film()
    return written


def _on_film(
    view: View, row: int, film: Any, drawn: Any, mask: NDArray[np.bool_], originals: "Source"
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Return the original film in [0, 1], the map and the mask in its geometry."""
    index = view.cache.index
    path = str(index["path"][row])
    data = originals.read(path)
    if hashlib.sha256(data).hexdigest() != index["sha256"][row]:
        raise InputError(f"{path} in {originals.root} is not the film that was prepared; name the right --source")
    original = read_film(path, data)
    stage = "matrix_raw" if view.variant.startswith("raw") else "matrix_crop"
    scale = view.size / view.cache.size  # the model's film may be smaller than the cache's
    shrink = np.array([[scale, 0, (scale - 1) / 2], [0, scale, (scale - 1) / 2]])  # pixel centers at whole numbers
    matrix = shrink @ np.vstack([index[stage][row], [0, 0, 1]])
    shape = (original.pixels.shape[0], original.pixels.shape[1])
    levels = original.pixels.astype(np.float32)
    low, high = float(levels.min()), float(levels.max())
    grey = (levels - low) / max(1.0, high - low)
    return grey, to_film_space(drawn, matrix, shape), to_film_space(mask.astype(np.float32), matrix, shape) >= 0.5
