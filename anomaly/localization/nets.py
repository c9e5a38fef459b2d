"""Trained networks as the preprocessing takes them: callables that can be sent to other processes."""

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import torch

from anomaly.data.dataset import Films
from anomaly.localization.base import HANDS, Detection, LocalizationCalibration, LocalizationModel
from anomaly.localization.packaged import load_packaged, packaged_net
from anomaly.localization.predict import detect_films, load_localization_model
from anomaly.runs import Run
from anomaly.training.device import make_repeatable
from preprocessing import InputError, steps
from preprocessing.cache.schema import BOX_CLASSES
from preprocessing.crop import Box4
from preprocessing.recipe import Localization, Side

TURNED_SCORE, TURNED_RATIO = 0.5, 2
"""A film is turned where a hand scores at least this on the turned film, and this many times its score on the film."""
WIDENING = 1.0
"""A lone hand's box is widened to what stands out there by at most this share of its longer side."""
NESTED = 0.7
"""A box of which at least this share lies in another is a part of the same limb."""
CPU = torch.device("cpu")


# --- loading --------------------------------------------------------------------------------------------------------


def load_localizer(run: Path | None = None) -> "NetLocalizer":
    """Return the localizer of a run, by default the package's; InputError for a run of another kind."""
    if run is None:
        return NetLocalizer(*_packaged("ssd"))
    return NetLocalizer(*_checked(run, "boxes", "detects hands; `anomaly train ssd`"))


def load_segmenter(run: Path | None = None) -> "NetSegmenter":
    """Return the segmenter of a run, by default the package's; InputError for a run of another kind."""
    if run is None:
        return NetSegmenter(*_packaged("unet"))
    return NetSegmenter(*_checked(run, "masks", "segments films; `anomaly train unet`"))


def _packaged(name: str) -> tuple[str, str, str]:
    net = packaged_net(name)
    load_once("", name, net.digest)
    return "", name, net.digest


def _checked(path: Path, targets: Literal["boxes", "masks"], purpose: str) -> tuple[str, str, str]:
    """Return folder, name and digest of a run's network, loaded once to see that it can be."""
    run = Run(path)
    make_repeatable(CPU)
    model = load_localization_model(run, CPU)
    if model.targets != targets:
        raise InputError(f"{path} is a run of {run.config.model}, not of a network that {purpose} makes one")
    return str(path.absolute()), run.config.model, _digest(run)


def _digest(run: Run) -> str:
    digest = hashlib.sha256((run.path / "weights.safetensors").read_bytes())
    digest.update((run.path / "calibration.json").read_bytes())
    return digest.hexdigest()[:12]


@cache
def load_once(folder: str, name: str, digest: str) -> tuple[LocalizationModel, int, float]:
    """Return the model, film side in pixels and threshold of a network, read once in a process.

    folder  its run; empty for the package's network of that name. A network is sent to a process again with every few
    films that are to be prepared there. Raises InputError where it no longer has the digest.
    """
    if folder:
        run = Run(Path(folder))
        found = _digest(run)
    else:
        packaged = packaged_net(name)
        found = packaged.digest
    if found != digest:
        place = folder or f"the package's {name}"
        raise InputError(f"{place} has changed while films were prepared with it; give the command again")
    if not folder:
        return load_packaged(name, CPU), packaged.size, packaged.threshold
    threshold = run.read("calibration.json", LocalizationCalibration).threshold
    return load_localization_model(run, CPU), int(run.config.size), threshold


# --- callables ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Net:
    """Names a trained network, which each process then loads for itself."""

    run: str  # absolute path of its run folder; empty for the package's
    name: str  # of the model
    digest: str  # of its weights and threshold


class NetLocalizer(_Net):
    """Locates hands and side markers on an upright carrier, or on one that lies on a side or upside down."""

    def __call__(self, film: steps.Pixels) -> Localization | None:
        """Return hands and markers in pixels of the film as turned, or None where no hand is detected."""
        model, size, threshold = load_once(self.run, self.name, self.digest)
        orientations = [np.ascontiguousarray(np.rot90(film, turns)) for turns in range(4)]
        by_turns = _detections(model, orientations, size)
        turns = _upright([_hand_score(detection) for detection in by_turns])
        upright = orientations[turns]
        to_input = steps.fit_matrix(upright.shape, size)
        scale, offset = np.diag(to_input[:, :2]), to_input[:, 2]
        hands: list[tuple[Side, Box4]] = []
        markers: list[tuple[Side, Box4]] = []
        for box, score in zip(*by_turns[turns].scored_boxes(), strict=True):
            if score < threshold:
                continue
            low, high = ((corner - 0.5 - offset) / scale + 0.5 for corner in (box[:2], box[2:4]))
            side: Side = "right" if BOX_CLASSES[int(box[4]) - 1].startswith("right") else "left"
            place = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
            (hands if box[4] <= HANDS else markers).append((side, place))
        hands = _united(hands)
        if len(hands) == 1:
            hands = [(side, _widened(box, steps.find_hand(upright, margin=0))) for side, box in hands]
        return Localization(tuple(hands), tuple(markers), turns) if hands else None


class NetSegmenter(_Net):
    """Segments the foreground of a crop."""

    def __call__(self, film: steps.Pixels) -> steps.Mask | None:
        """Return the foreground, (h, w) bool, or None where it is empty."""
        model, size, threshold = load_once(self.run, self.name, self.digest)
        (detection,) = _detections(model, [film], size)
        assert detection.foreground is not None
        to_input = steps.fit_matrix(film.shape, size)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        probability = cv2.warpAffine(
            detection.foreground, to_input, film.shape[1::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        return steps.largest(np.asarray(probability) >= threshold)


def _hand_score(detection: Detection) -> float:
    """Return the highest score of a hand, 0 where there is none."""
    boxes, scores = detection.scored_boxes()
    return float(scores[boxes[:, 4] <= HANDS].max(initial=0.0))


def _upright(scores: list[float]) -> int:
    """Return by how many quarter turns a film comes upright, from the score of its best hand after 0 to 3 of them.

    >>> _upright([0.4, 0.9, 0.1, 0.1]), _upright([0.5, 0.9, 0.1, 0.1])
    (1, 0)
    """
    best = max((1, 2, 3), key=lambda turns: scores[turns])
    return best if scores[best] >= max(TURNED_SCORE, TURNED_RATIO * scores[0]) else 0


def _united(hands: list[tuple[Side, Box4]]) -> list[tuple[Side, Box4]]:
    """Unite boxes that lie in each other, best first: a hand and its whole arm are one limb.

    >>> _united([("left", (10, 50, 40, 90)), ("right", (60, 0, 90, 90)), ("right", (8, 0, 44, 88))])
    [('left', (8, 0, 44, 90)), ('right', (60, 0, 90, 90))]
    """
    united: list[tuple[Side, Box4]] = []
    for side, box in hands:
        for number, (better, other) in enumerate(united):
            width, height = (min(box[i + 2], other[i + 2]) - max(box[i], other[i]) for i in (0, 1))
            smaller = min((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
            if min(width, height) > 0 and width * height >= NESTED * smaller:
                (x0, y0, x1, y1), (u0, v0, u1, v1) = box, other
                united[number] = better, (min(x0, u0), min(y0, v0), max(x1, u1), max(y1, v1))
                break
        else:
            united.append((side, box))
    return united


def _widened(box: Box4, visible: steps.Box | None) -> Box4:
    """Widen a network's box to the box of what stands out: it may be short of a thumb's tip, or of the arm above a
    hand.

    >>> _widened((10, 10, 110, 110), (2, 12, 250, 160))
    (2, 10, 110, 160)
    """
    if visible is None:
        return box
    reach = WIDENING * max(box[2] - box[0], box[3] - box[1])
    x0, y0, x1, y1 = (a if abs(a - b) > reach else b for a, b in zip(box, visible, strict=True))
    return min(box[0], x0), min(box[1], y0), max(box[2], x1), max(box[3], y1)


def _detections(model: LocalizationModel, films: list[steps.Pixels], size: int) -> list[Detection]:
    """Return what a model detects on films of any size, on one thread: the result must not depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return list(detect_films(model, _fitted(films, size), CPU))
    finally:
        torch.set_num_threads(threads)


def _fitted(films: list[steps.Pixels], size: int) -> Films:
    """Return films as a network takes them: at its size, levels stretched, as the recipe prepares its stage crop."""
    fitted = [steps.fit(film, np.ones(film.shape, bool), size)[:2] for film in films]
    stretched = np.stack([steps.stretch(film, mask) for film, mask in fitted])
    return Films(stretched, np.stack([mask for _, mask in fitted]), np.zeros(len(films), np.int8))
