"""From what a network detects to what the preprocessing asks: hands and markers in pixels of the film, the foreground.

A network is given as a function, whatever computes it.
"""

from collections.abc import Callable

import cv2
import numpy as np

from anomaly.data.dataset import Films
from anomaly.localization.detection import HANDS, Detection
from preprocessing import steps
from preprocessing.cache.schema import BOX_CLASSES
from preprocessing.crop import Box4
from preprocessing.nets import Localization, Side

TURNED_SCORE, TURNED_RATIO = 0.5, 2
"""A film is turned where a hand scores at least this on the turned film, and this many times its score on the film."""
WIDENING = 1.0
"""A lone hand's box is widened to what stands out there by at most this share of its longer side."""
NESTED = 0.7
"""A box of which at least this share lies in another is a part of the same limb."""
Detect = Callable[[Films], list[Detection]]
"""What a network detects on films of its own size, in their order; each film's as it follows from that film alone."""


def locate(film: steps.Pixels, detect: Detect, size: int, threshold: float) -> Localization | None:
    """Return hands and markers in pixels of the film as turned, or None where no hand is detected.

    film  (h, w), upright or on a side or upside down.    size  side in pixels of the films that `detect` takes.
    threshold  the score from which on something counts as detected.
    """
    orientations = [film]
    by_turns = detect(_fitted(orientations, size))
    turns = 0
    if TURNED_RATIO * _hand_score(by_turns[0]) <= 1:  # or else no score, as none is above 1, could turn the film
        orientations += [np.ascontiguousarray(np.rot90(film, turns)) for turns in (1, 2, 3)]
        by_turns += detect(_fitted(orientations[1:], size))
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


def segment(film: steps.Pixels, detect: Detect, size: int, threshold: float) -> steps.Mask | None:
    """Return the foreground of a crop (h, w) as (h, w) bool, or None where it is empty.

    size, threshold  as for `locate`.
    """
    (detection,) = detect(_fitted([film], size))
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


def _fitted(films: list[steps.Pixels], size: int) -> Films:
    """Return films as a network takes them: at its size, levels stretched, as the recipe prepares its stage crop."""
    fitted = [steps.fit(film, np.ones(film.shape, bool), size)[:2] for film in films]
    stretched = np.stack([steps.stretch(film, mask) for film, mask in fitted])
    return Films(stretched, np.stack([mask for _, mask in fitted]), np.zeros(len(films), np.int8))
