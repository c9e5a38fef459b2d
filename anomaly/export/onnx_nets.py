"""The nets of a bundle's recipe as onnxruntime computes them: what `anomaly.localization.nets` are for a run."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from anomaly.data.dataset import Films
from anomaly.export.bundle import read_bundle
from anomaly.export.onnx_session import open_session
from anomaly.localization.detection import HANDS, NMS_IOU, SCORE_FLOOR, Detection
from anomaly.localization.locate import locate, segment
from preprocessing import InputError, steps
from preprocessing.cache.schema import BOX_CLASSES
from preprocessing.nets import Localization, Nets

Floats = NDArray[np.float32]


def bundled_nets(folder: Path, recorded: Mapping[str, Mapping[str, str]]) -> Nets:
    """Return the nets that prepared a run's films, from its bundle.

    recorded  part of the recipe ("localizer", "segmenter") -> name, run and digest, as run.json has them. Raises
    InputError where the bundle lacks one or has another.
    """
    bundled = read_bundle(folder).nets
    kinds: dict[str, type[_OnnxNet]] = {"localizer": OnnxLocalizer, "segmenter": OnnxSegmenter}
    nets: dict[str, Any] = {}
    for part, about in recorded.items():
        net = bundled.get(part)
        if net is None or net.digest != about["digest"]:
            raise InputError(
                f"{folder} has not the {about['name']} that prepared the run's films; export the run again"
            )
        path = str((folder / net.file).absolute())
        nets[part] = kinds[part](net.name, about["run"], net.digest, path, net.size, net.threshold)
    return Nets(**nets)


@dataclass(frozen=True)
class _OnnxNet:
    """Names a graph, which each process then opens for itself."""

    name: str  # of the model
    run: str  # where it was trained; empty for the package's
    digest: str  # of its weights and threshold
    path: str  # of the graph
    size: int  # side in pixels of the films it takes
    threshold: float  # the score from which on something counts as detected

    def opened(self) -> None:
        """Open the graph: one that can't be is no fault of the films."""
        _session(self.path, self.digest)


class OnnxLocalizer(_OnnxNet):
    """Locates hands and side markers on an upright carrier, or on one that lies on a side or upside down."""

    def __call__(self, film: steps.Pixels) -> Localization | None:
        """Return hands and markers in pixels of the film as turned, or None where no hand is detected."""
        return locate(film, self._detect, self.size, self.threshold)

    def _detect(self, films: Films) -> list[Detection]:
        session = _session(self.path, self.digest)
        boxes, probabilities = session.run(["boxes", "probabilities"], {"film": _masked(films)})
        return [_detection(*one) for one in zip(boxes, probabilities, strict=True)]


class OnnxSegmenter(_OnnxNet):
    """Segments the foreground of a crop."""

    def __call__(self, film: steps.Pixels) -> steps.Mask | None:
        """Return the foreground, (h, w) bool, or None where it is empty."""
        return segment(film, self._detect, self.size, self.threshold)

    def _detect(self, films: Films) -> list[Detection]:
        session = _session(self.path, self.digest)
        (foreground,) = session.run(["foreground"], {"film": _masked(films), "mask": films.mask[:, None]})
        return [Detection(foreground=probability) for probability in foreground[:, 0]]


@cache
def _session(path: str, digest: str) -> Any:
    """Return the session of a graph, opened once in a process; one thread: the result must not depend on their number.

    digest  of the net: the graph of another one at the same place is opened anew.
    """
    return open_session(Path(path), "cpu", threads=1)


def _masked(films: Films) -> Floats:
    """Return films as a graph takes them, (N, 1, S, S) in [0, 1] and 0 off the mask."""
    return films.unit()[:, None] * films.mask[:, None]


def _detection(boxes: Floats, probabilities: Floats) -> Detection:
    """Return hands and markers of all default boxes of a film, (A, 4) and (A, 4), as `SSD.detect` does."""
    kept = []
    for first, last in ((0, HANDS), (HANDS, len(BOX_CLASSES))):
        side, score = probabilities[:, first:last].argmax(axis=1), probabilities[:, first:last].max(axis=1)
        rows = np.concatenate([boxes, (side + first + 1)[:, None], score[:, None]], axis=1, dtype=np.float32)  # (A, 6)
        rows = rows[score > SCORE_FLOOR]
        kept.append(rows[suppressed(rows[:, :4], rows[:, 5])])
    rows = np.concatenate(kept)
    rows = rows[np.argsort(-rows[:, 5], kind="stable")]
    return Detection(rows[:, :5], rows[:, 5])


def suppressed(boxes: Floats, scores: Floats) -> NDArray[np.int64]:
    """Return which boxes stay, (n,) of (N, 4) x0, y0, x1, y1, the highest of scores (N,) first.

    Of two that overlap by an IoU above `NMS_IOU` the one with the higher score does, as torchvision's `nms` decides.

    >>> boxes = np.array([[0, 0, 10, 10], [1, 0, 10, 10], [20, 0, 30, 10]], np.float32)
    >>> suppressed(boxes, np.array([0.5, 0.9, 0.7], np.float32)).tolist()
    [1, 2]
    """
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    left, kept = np.argsort(-scores, kind="stable"), []
    while len(left):
        best, left = left[0], left[1:]
        kept.append(best)
        low, high = np.maximum(boxes[best, :2], boxes[left, :2]), np.minimum(boxes[best, 2:], boxes[left, 2:])
        overlap = np.maximum(high - low, 0).prod(axis=1)
        with np.errstate(invalid="ignore"):
            left = left[~(overlap / (area[best] + area[left] - overlap) > NMS_IOU)]
    return np.array(kept, np.int64)
