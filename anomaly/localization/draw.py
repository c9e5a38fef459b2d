"""Pictures of films with what is annotated on them and what a network detects."""

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray

from anomaly.data.dataset import Films
from anomaly.localization.detection import Detection

SIDE = 256
"""A film is enlarged by the greatest whole factor at which it has no more pixels than this."""
WHITE = (255, 255, 255)
COLORS = ((255, 140, 0), (0, 200, 255), (255, 80, 80), (120, 255, 120))
"""Of the classes of boxes; a foreground has the first."""


def draw_detections(films: Films, detections: Sequence[Detection], threshold: float) -> NDArray[np.uint8]:
    """Return films side by side, annotations in white and detections from the threshold on in color: (H, W, 3)."""
    pictures = []
    for i, (detection, levels) in enumerate(zip(detections, films.unit(), strict=True)):
        scale = max(1, SIDE // levels.shape[0])
        side = levels.shape[0] * scale
        grey = cv2.resize(np.rint(levels * 255).astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
        picture = np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=2))
        if films.foreground is not None and detection.foreground is not None:
            _outline(picture, films.foreground[i], WHITE)
            _outline(picture, detection.foreground >= threshold, COLORS[0])
        if films.boxes is not None:
            boxes, scores = detection.scored_boxes()
            for box in films.boxes[i][films.boxes[i][:, 4] > 0]:
                _rectangle(picture, box, scale, WHITE)
            for box in boxes[scores >= threshold]:
                _rectangle(picture, box, scale, COLORS[int(box[4]) - 1])
        pictures.append(picture)
    return np.concatenate(pictures, axis=1)


def _outline(picture: NDArray[np.uint8], mask: NDArray[np.bool_], color: tuple[int, int, int]) -> None:
    enlarged = cv2.resize(mask.astype(np.uint8), picture.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(enlarged, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(picture, contours, -1, color, 1)


def _rectangle(picture: NDArray[np.uint8], box: NDArray[np.float32], scale: int, color: tuple[int, int, int]) -> None:
    x0, y0, x1, y1 = (round(float(v) * scale) for v in box[:4])
    cv2.rectangle(picture, (x0, y0), (x1 - 1, y1 - 1), color, 1)
