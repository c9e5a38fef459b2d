"""The pictures a training leaves: samples, reconstructions, maps, detections."""

import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.data.dataset import Films
from anomaly.evaluation.heatmap_scale import map_scale, smooth
from anomaly.evaluation.predict import SMOOTHING
from anomaly.localization.base import LocalizationModel
from anomaly.localization.draw import draw_detections
from anomaly.localization.predict import detect_films
from anomaly.models.base import Prediction
from anomaly.reporting.heatmap import blend, png, titled

PICTURED = 6
"""Validation films in reconstructions.png."""
DRAWN = 6
"""Generated films a side of samples.png."""


def samples(films: NDArray[np.float32], *, synthetic: bool) -> bytes:
    """Return a PNG of generated films in a square: (DRAWN², S, S) in [0, 1]."""
    grey = np.rint(np.clip(films, 0, 1) * 255).astype(np.uint8)
    rows = [np.concatenate(grey[i : i + DRAWN], axis=1) for i in range(0, len(grey), DRAWN)]
    square = np.concatenate(rows, axis=0)[..., None].repeat(3, axis=2)
    sheet = _enlarged(square, films.shape[1])
    return png(titled(sheet, f"generated films{', of SYNTHETIC ones' if synthetic else ''}"))


def picture(prediction: Prediction, films: Films, scale: float | None, *, unit: str, synthetic: bool) -> bytes:
    """Return a PNG of films: a row a film, with film, reconstruction where there is one, and map.

    prediction  of these films, with maps.    scale  of the maps; None takes that of these films.    unit  of the maps.
    """
    assert prediction.map is not None
    side = films.film.shape[1]
    raw = prediction.map[:, 0].float().cpu().numpy()
    maps = [smooth(values, mask, side * SMOOTHING) for values, mask in zip(raw, films.mask, strict=True)]
    scale = scale or map_scale(zip(maps, films.mask, strict=True))
    columns = [films.unit()]
    if prediction.reconstruction is not None:
        columns.append(prediction.reconstruction[:, 0].float().cpu().numpy())
    rows = []
    for i, (values, mask) in enumerate(zip(maps, films.mask, strict=True)):
        grey = [np.rint(np.clip(c[i], 0, 1) * 255).astype(np.uint8)[..., None].repeat(3, axis=2) for c in columns]
        rows.append(np.concatenate([*grey, blend(columns[0][i], values, mask, scale)], axis=1))
    content = f"film, {'reconstruction, ' * (len(columns) > 1)}{unit}"
    sheet = _enlarged(np.concatenate(rows, axis=0), side)
    return png(titled(sheet, f"{'SYNTHETIC films: ' * synthetic}{content}"))


def detections_picture(
    model: LocalizationModel, films: Films, threshold: float | None, device: torch.device, *, synthetic: bool
) -> bytes:
    """Return a PNG of some films with annotations in white and detections in color, from the threshold on, or from .5
    while there is none.
    """
    model.eval()
    some = films.part(np.arange(0, len(films), max(1, len(films) // PICTURED))[:PICTURED])
    sheet = draw_detections(some, list(detect_films(model, some, device)), 0.5 if threshold is None else threshold)
    return png(titled(sheet, f"{'SYNTHETIC films: ' if synthetic else ''}white: annotated, colored: detected"))


def _enlarged(sheet: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    """Return a sheet of films of `side` pixels so that each has at least 128: pixels repeated, not blurred."""
    times = -(-128 // side)
    return sheet.repeat(times, axis=0).repeat(times, axis=1)
