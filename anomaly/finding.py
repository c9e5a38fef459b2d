"""The nets that prepare films, at work: what counts as found, how good they are, and what preprocessing asks of them.

A find is right where it overlaps a box of its kind by IoU .5; finds are matched to boxes, the surest first, each box
once (Everingham et al. 2010). Thresholds are chosen on validation films, figures are those of the test films.
"""

import hashlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray

from anomaly.console import warn
from anomaly.data import Films, as_batch, assign_splits, load_films, split_hash
from anomaly.finder import HANDS, Finder, Found
from anomaly.metrics import markdown, mean_interval, number, with_interval
from anomaly.models import TOOLS, find_model
from anomaly.runs import Run, to_csv, to_json
from anomaly.score import load_weights, make_repeatable
from preprocessing import InputError, steps
from preprocessing.cache.reader import Cache
from preprocessing.cache.schema import BOX_CLASSES
from preprocessing.recipe import Localization, Side

MATCHED = 0.5
"""IoU from which on a find is right."""
SURE, TWICE = 0.5, 2
"""A film is turned where a hand on the turned film is as sure as this, and by this factor surer than on the film."""
REACH = 0.2
"""A lone hand's box is widened to what stands out there by so much of its longer side at most."""
CHUNK = 16
"""Films that a net sees at a time."""


# --- films ----------------------------------------------------------------------------------------------------------


def rows_of(cache: Cache, learns: Literal["boxes", "masks"]) -> NDArray[np.int64]:
    """Return the rows a net can learn from; raises InputError, with the way to make them, where there are none.

    Boxes: the films that have any. Masks: those whose mask came with the film; where none did, those whose mask the
    classical steps found, so that the net learns to do as they do.
    """
    if learns == "boxes":
        if not cache.has_boxes:
            raise InputError(
                f"{cache.path} has no boxes; `anomaly preprocess FILMS --for ssd` takes them from beside the films"
            )
        return np.flatnonzero((cache.boxes(np.arange(len(cache)))[..., 4] > 0).any(axis=1))
    if not {"crop", "full"} <= set(cache.variants):
        raise InputError(
            f"{cache.path} lacks crop or full films; `anomaly preprocess FILMS --for unet` makes them with the masks "
            "beside the films, `anomaly preprocess FILMS --variants crop,full` with those of the classical steps"
        )
    given = cache.index["given"]
    if given.any():
        return np.flatnonzero(given)
    if json.loads(cache.recipe_json)["mask"] == "none":
        raise InputError(
            f"{cache.path} has no masks: its recipe takes the whole film as foreground; `anomaly preprocess FILMS "
            "--for unet` takes masks from beside the films, `--mask grabcut` makes some"
        )
    found = ["mask" not in text.split(",") for text in cache.index["fallbacks"]]
    return np.flatnonzero(found)


def splits_of(cache: Cache, seed: int) -> NDArray[Any]:
    """Return "train", "val" or "test" for every film, by patient: (N,).

    A source's own splits are kept; otherwise a tenth of the patients validates and a tenth tests. Labels say nothing
    here: a hand is a hand, normal or not.
    """
    index = cache.index
    return assign_splits(index["patient"], np.zeros(len(cache), np.int8), index["split"], seed=seed)


def finds(model: Finder, films: Films, device: torch.device) -> Iterator[Found]:
    """Yield what the model finds on each film."""
    with torch.inference_mode():
        for start in range(0, len(films), CHUNK):
            yield from model.find(as_batch(films.part(slice(start, start + CHUNK)), device))


# --- figures --------------------------------------------------------------------------------------------------------


def calibrate(model: Finder, films: Films, device: torch.device) -> float:
    """Return from how sure on something counts: the threshold of the highest F1, or of the highest mean Dice."""
    found = list(finds(model, films, device))
    if films.foreground is not None:
        values = [float(np.mean([d for d, _ in _overlaps(found, films, t)])) for t in model.thresholds]
    else:
        matches = [Matches.of(found, films, t) for t in model.thresholds]
        values = [2 * m.right / max(1, 2 * m.right + m.wrong + m.missed) for m in matches]
    if max(values) == 0:
        warn("nothing on the validation films is found right, however unsure it may be: train longer, or on more films")
    best = np.flatnonzero(np.asarray(values) >= max(values) - 1e-9)
    return float(model.thresholds[best[len(best) // 2]])  # the middle of those that are as good


def _overlaps(found: Sequence[Found], films: Films, threshold: float) -> list[tuple[float, float]]:
    """Return Dice and IoU of each film's foreground; two empty ones agree."""
    assert films.foreground is not None
    out = []
    for one, truth, mask in zip(found, films.foreground, films.mask, strict=True):
        assert one.foreground is not None
        there = (one.foreground >= threshold) & mask
        both, either = int((there & truth & mask).sum()), int(((there | truth) & mask).sum())
        out.append((2 * both / (both + either) if either else 1.0, both / either if either else 1.0))
    return out


def iou(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return the intersection over the union of each with each: (n, 4+), (m, 4+) -> (n, m).

    >>> iou(np.array([[0, 0, 2, 2]]), np.array([[1, 0, 3, 2], [5, 5, 6, 6]])).round(2).tolist()
    [[0.33, 0.0]]
    """
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:4], b[None, :, 2:4])
    both = np.clip(high - low, 0, None).prod(axis=2)
    areas = [np.clip(boxes[:, 2:4] - boxes[:, :2], 0, None).prod(axis=1) for boxes in (a, b)]
    return np.asarray(both / np.maximum(1e-9, areas[0][:, None] + areas[1][None] - both), np.float64)


@dataclass
class Matches:
    """Finds and boxes, matched: those of `kinds` alone, a kind only with its own unless `named` is off."""

    right: int = 0
    wrong: int = 0  # finds that are no box
    missed: int = 0  # boxes that are not found
    overlap: list[float] = field(default_factory=list)  # IoU of what is right
    named: int = 0  # of what is right, what has the box's own class

    @classmethod
    def of(
        cls,
        found: Sequence[Found],
        films: Films,
        threshold: float,
        kinds: Sequence[int] = tuple(range(1, len(BOX_CLASSES) + 1)),
        *,
        named: bool = True,
    ) -> "Matches":
        """Match the finds of films with the films' boxes."""
        out = cls()
        assert films.boxes is not None
        for one, truth in zip(found, films.boxes, strict=True):
            assert one.boxes is not None and one.scores is not None
            sure = one.boxes[(one.scores >= threshold) & np.isin(one.boxes[:, 4], kinds)]
            there = truth[np.isin(truth[:, 4], kinds)]
            free = np.ones(len(there), bool)
            overlap = iou(sure, there)
            for i, box in enumerate(sure):
                fits = free & (overlap[i] >= MATCHED) & ((there[:, 4] == box[4]) | (not named))
                if not fits.any():
                    out.wrong += 1
                    continue
                best = int(np.argmax(np.where(fits, overlap[i], -1)))
                free[best] = False
                out.right += 1
                out.overlap.append(float(overlap[i, best]))
                out.named += int(there[best, 4] == box[4])
            out.missed += int(free.sum())
        return out

    def figures(self) -> dict[str, float | int | None]:
        """Return recall, precision, mean IoU and the share of right classes; None where nothing can be told."""

        def share(part: float, whole: int) -> float | None:
            return part / whole if whole else None

        return {
            "boxes": self.right + self.missed,
            "recall": share(self.right, self.right + self.missed),
            "precision": share(self.right, self.right + self.wrong),
            "iou": share(sum(self.overlap), self.right),
            "named": share(self.named, self.right),
        }


def measure(run: Run, model: Finder, cache: Cache, device: torch.device, split: str) -> list[str]:
    """Write metrics.json and films.csv of a split's films, and return a table to print."""
    threshold = float(run.read_json("calibration.json")["threshold"])
    wanted = rows_of(cache, model.learns)
    rows = wanted[splits_of(cache, run.config["split_seed"])[wanted] == split]
    if not len(rows):
        raise InputError(f"{cache.path} has no films in {split} that {run.config['model']} could be measured on")
    films = load_films(cache, run.config["variant"], rows, run.config["size"], learns=model.learns)
    found = list(finds(model, films, device))
    patient, path = cache.index["patient"][rows], cache.names[rows]
    columns: dict[str, Sequence[Any]] = {"film": path.tolist(), "patient": patient.tolist()}
    figures: dict[str, Any] = {
        "run": str(run.path),
        "split": split,
        "synthetic": cache.synthetic,
        "films": len(rows),
        "patients": len(set(patient)),
        "threshold": threshold,
    }
    if films.foreground is not None:
        overlaps = np.array(_overlaps(found, films, threshold))
        for i, name in enumerate(("dice", "iou")):
            columns[name] = overlaps[:, i].tolist()
            mean, limits = mean_interval(overlaps[:, i], patient)
            figures[name] = {"mean": mean, "interval": None if math.isnan(limits[0]) else limits}
        table = markdown(
            ("mean over films", "value [95 %]"),
            [(name, with_interval(figures[name]["mean"], figures[name]["interval"])) for name in ("dice", "iou")],
        )
    else:
        groups = {name: Matches.of(found, films, threshold, [kind]) for kind, name in enumerate(BOX_CLASSES, 1)}
        hands, markers = range(1, HANDS + 1), range(HANDS + 1, len(BOX_CLASSES) + 1)
        groups["hand, either side"] = Matches.of(found, films, threshold, hands, named=False)
        groups["marker, either side"] = Matches.of(found, films, threshold, markers, named=False)
        figures["classes"] = {name: one.figures() for name, one in groups.items()}
        for name in BOX_CLASSES:  # a find of another side is a wrong one there
            figures["classes"][name]["named"] = None
        each = [Matches.of([one], films.part(slice(i, i + 1)), threshold) for i, one in enumerate(found)]
        columns |= {name: [getattr(one, name) for one in each] for name in ("right", "wrong", "missed")}
        head = ("class", "boxes", "recall", "precision", "mean IoU", "side named right")
        keys = ("recall", "precision", "iou", "named")
        table = markdown(
            head,
            [(name, str(f["boxes"]), *(number(f[key]) for key in keys)) for name, f in figures["classes"].items()],
        )
    folder = run.path if split == "test" else run.path / split
    prefix = "" if split == "test" else f"{split}/"
    run.write(f"{prefix}films.csv", to_csv(columns))
    run.write(f"{prefix}metrics.json", to_json(figures))
    what = f"{len(rows)} {'SYNTHETIC ' * cache.synthetic}{split} films of {figures['patients']} patients"
    return [f"{what}, threshold {threshold:g} (chosen on validation films)", *table, f"{folder / 'metrics.json'}"]


# --- pictures -------------------------------------------------------------------------------------------------------


def pictured(model: Finder, films: Films, threshold: float, device: torch.device) -> NDArray[np.uint8]:
    """Return films side by side with what was found in colour and the truth in white: (H, W, 3)."""
    cells = []
    for one, unit, i in zip(finds(model, films, device), films.unit(), range(len(films)), strict=True):
        times = max(1, 256 // films.film.shape[1])
        side = films.film.shape[1] * times
        grey = cv2.resize(np.rint(unit * 255).astype(np.uint8), (side, side), interpolation=cv2.INTER_NEAREST)
        cell = np.ascontiguousarray(np.repeat(grey[..., None], 3, axis=2))
        if films.foreground is not None and one.foreground is not None:
            _outline(cell, films.foreground[i], WHITE)
            _outline(cell, one.foreground >= threshold, COLOURS[0])
        if films.boxes is not None and one.boxes is not None and one.scores is not None:
            for box in films.boxes[i][films.boxes[i][:, 4] > 0]:
                _rectangle(cell, box, times, WHITE)
            for box in one.boxes[one.scores >= threshold]:
                _rectangle(cell, box, times, COLOURS[int(box[4]) - 1])
        cells.append(cell)
    return np.concatenate(cells, axis=1)


WHITE = (255, 255, 255)
COLOURS = ((255, 140, 0), (0, 200, 255), (255, 80, 80), (120, 255, 120))  # of the classes


def _outline(cell: NDArray[np.uint8], mask: NDArray[np.bool_], colour: tuple[int, int, int]) -> None:
    grown = cv2.resize(mask.astype(np.uint8), cell.shape[1::-1], interpolation=cv2.INTER_NEAREST)
    contours, _ = cv2.findContours(grown, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(cell, contours, -1, colour, 1)


def _rectangle(cell: NDArray[np.uint8], box: NDArray[Any], times: int, colour: tuple[int, int, int]) -> None:
    x0, y0, x1, y1 = (round(float(v) * times) for v in box[:4])
    cv2.rectangle(cell, (x0, y0), (x1 - 1, y1 - 1), colour, 1)


# --- what preprocessing asks ----------------------------------------------------------------------------------------


def made_nets() -> Path:
    """Return the user's folder of nets that `anomaly models --make` fills: one run folder each."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(home) / "xray-anomaly" / "models"


@dataclass(frozen=True)
class _Net:
    """A trained net as preprocessing takes it: it can be sent to another process, and opens itself there."""

    run: str  # folder
    name: str
    digest: str  # of its weights and threshold

    def opened(self) -> tuple[Finder, int, float]:
        """Return model, film side and threshold."""
        return _opened(self.run, self.digest)


@cache
def _opened(folder: str, digest: str) -> tuple[Finder, int, float]:
    """Read a net once in a process, however often one is sent there with a few films to prepare."""
    run = Run(Path(folder))
    if _digest(run) != digest:
        raise InputError(f"{folder} has changed while films were prepared with it; give the command again")
    return (
        load_finder(run, torch.device("cpu")),
        int(run.config["size"]),
        float(run.read_json("calibration.json")["threshold"]),
    )


def _digest(run: Run) -> str:
    digest = hashlib.sha256((run.path / "weights.safetensors").read_bytes())
    digest.update((run.path / "calibration.json").read_bytes())
    return digest.hexdigest()[:12]


class Localizer(_Net):
    """Finds hands and markers on an upright carrier, or on one that lies on a side or upside down."""

    def __call__(self, film: steps.Pixels) -> Localization | None:
        """Return what is found, in pixels of the film as turned; None where no hand is."""
        model, size, threshold = self.opened()
        shown = [np.ascontiguousarray(np.rot90(film, turns)) for turns in range(4)]
        found = _asked(model, _films(shown, size))
        surest = [max((float(s) for b, s in _pairs(one) if b[4] <= HANDS), default=0.0) for one in found]
        turned = max((1, 2, 3), key=lambda turns: surest[turns])
        best = turned if surest[turned] >= max(SURE, TWICE * surest[0]) else 0
        back = steps.fit_matrix(shown[best].shape, size)
        hands: list[tuple[Side, Box]] = []
        markers: list[tuple[Side, Box]] = []
        for box, score in _pairs(found[best]):
            if score < threshold:
                continue
            low, high = ((corner - 0.5 - back[:, 2]) / np.diag(back[:, :2]) + 0.5 for corner in (box[:2], box[2:4]))
            side: Side = "right" if BOX_CLASSES[int(box[4]) - 1].startswith("right") else "left"
            place = (float(low[0]), float(low[1]), float(high[0]), float(high[1]))
            (hands if box[4] <= HANDS else markers).append((side, place))
        if len(hands) == 1:
            hands = [(side, _reaching(box, steps.find_hand(shown[best], margin=0))) for side, box in hands]
        return Localization(tuple(hands), tuple(markers), best) if hands else None


Box = tuple[float, float, float, float]


class Segmenter(_Net):
    """Finds the foreground of a crop."""

    def __call__(self, film: steps.Pixels) -> steps.Mask | None:
        """Return the foreground, (h, w) bool; None where nothing is found."""
        model, size, threshold = self.opened()
        (found,) = _asked(model, _films([film], size))
        assert found.foreground is not None
        matrix = steps.fit_matrix(film.shape, size)
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        shares = cv2.warpAffine(
            found.foreground, matrix, film.shape[1::-1], flags=flags, borderMode=cv2.BORDER_REPLICATE
        )
        return steps.largest(np.asarray(shares) >= threshold)


def _reaching(box: Box, seen: steps.Box | None) -> Box:
    """Widen a net's box to the box of what stands out: a net's boxes are often short of a thumb's tip.

    >>> _reaching((10, 10, 110, 110), (2, 12, 160, 112))
    (2, 10, 110, 112)
    """
    if seen is None:
        return box
    most = REACH * max(box[2] - box[0], box[3] - box[1])
    x0, y0, x1, y1 = (own if abs(own - other) > most else other for own, other in zip(box, seen, strict=True))
    return min(box[0], x0), min(box[1], y0), max(box[2], x1), max(box[3], y1)


def _asked(model: Finder, films: Films) -> list[Found]:
    """Return what a model finds, on one thread: a film comes out alike however many processes there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return list(finds(model, films, torch.device("cpu")))
    finally:
        torch.set_num_threads(threads)


def _pairs(found: Found) -> list[tuple[NDArray[np.float32], np.float32]]:
    assert found.boxes is not None and found.scores is not None
    return list(zip(found.boxes, found.scores, strict=True))


def _films(films: Sequence[steps.Pixels], size: int) -> Films:
    """Return films as a net sees them: at its size, levels stretched, as the recipe does with stage crop."""
    fitted = [steps.fit(film, np.ones(film.shape, bool), size)[:2] for film in films]
    stretched = np.stack([steps.stretch(film, mask) for film, mask in fitted])
    return Films(stretched, np.stack([mask for _, mask in fitted]), np.zeros(len(films), np.int8))


def load_finder(run: Run, device: torch.device) -> Finder:
    """Return the trained net of a run, ready to find."""
    kind = find_model(run.config["model"])
    if not issubclass(kind, Finder):
        raise InputError(
            f"{run.path} is a run of {run.config['model']}, which prepares no films; there are: {', '.join(TOOLS)}"
        )
    return load_weights(run, kind, device)


def load_localizer(path: Path) -> Localizer:
    """Return the localiser of a run; another kind of run is refused."""
    return Localizer(*_checked(path, "boxes", "finds hands; `anomaly train ssd`"))


def load_segmenter(path: Path) -> Segmenter:
    """Return the segmenter of a run; another kind of run is refused."""
    return Segmenter(*_checked(path, "masks", "finds masks; `anomaly train unet`"))


def _checked(path: Path, learns: str, does: str) -> tuple[str, str, str]:
    """Return folder, name and digest of a net, opened once to see that it can be."""
    run = Run(path)
    make_repeatable(torch.device("cpu"))
    model = load_finder(run, torch.device("cpu"))
    if model.learns != learns:
        raise InputError(f"{path} is a run of {run.config['model']}, not of a net that {does} makes one")
    return str(path.absolute()), run.config["model"], _digest(run)


def check_split(run: Run, cache: Cache) -> None:
    """Refuse a cache whose splits are not those that the run was trained with."""
    split = splits_of(cache, run.config["split_seed"])
    if split_hash(cache.index["path"], split) != run.config["split_hash"]:
        raise InputError(f"the splits of {cache.path} are not those of {run.path}; train again")
