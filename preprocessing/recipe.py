"""The recipe: which steps a film goes through, in which order, with which settings; its digest names what it made.

One reading of a film gives all twelve variants. The order, and why:

1. inversion, so that bones are bright everywhere after it;
2. carrier, then hand: slices of the film at its own scale; a tilted carrier is resampled once. A trained localizer may
   also turn the carrier by quarters, and where it finds two hands each becomes a film of its own, as in the paper;
3. side markers that a localizer found are blanked, in the crop and never in the raw film, and only beside the hand;
4. foreground mask of that crop;
5. film and masks are scaled to the cache's size, once, by area;
6. last, levels, under the stage's mask: stretched, equalised as a whole (`-he`) or by tiles (`-clahe`), or replaced by
   their local contrast (`-contrast`).

The paper equalises the native film and shrinks it afterwards. Here levels come last: areas are averaged in the levels
the film was taken in, and the film that a model sees is the one whose histogram is even, under the very mask stored
beside it.

Every film made here is 0 outside its mask and uses one scale within it: stretched and equalised films span the full
range of their type, each for itself; contrast has a fixed scale, the same for every film, of which a film takes the
part that its contrast reaches. So one rule turns stored levels into a model's range, whatever the film's depth was:
input = level / largest level of the type.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import cv2
import numpy as np
from numpy.typing import DTypeLike
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from preprocessing import InputError, steps
from preprocessing.cache.schema import STAGES, split_variant, stage_of

if TYPE_CHECKING:
    from preprocessing.readers import Film

RECIPE_VERSION = 2  # rises with any change of a step that changes pixels: caches made before are then stale
VARIANTS = (
    *("raw", "raw-he", "crop", "crop-he", "full", "full-he"),
    *("raw-contrast", "crop-contrast", "full-contrast"),
    *("raw-clahe", "crop-clahe", "full-clahe"),
)

# What a recipe's name stands for. `plain` is for films that fill the frame, chests for instance.
RECIPES: dict[str, dict[str, str]] = {
    "hand": {},
    "plain": {"invert": "never", "carrier": "none", "hand": "none", "mask": "none"},
}

IDENTITY: steps.Matrix = np.eye(2, 3)

SPREADS: dict[str, Callable[[steps.Pixels, steps.Mask], steps.Pixels]] = {  # by the second part of a variant's name
    "": steps.stretch,
    "he": steps.equalize,
    "contrast": steps.local_contrast,
    "clahe": steps.clahe,
}

HANDS = 2  # at most, of one film
RING = 0.25  # width of what is looked at around a marker, as a share of the longer side of its box
CLOSE = 0.015  # to the hand, as a share of the crop's longer side: there nothing is covered
COVER = 0.02  # share of a marker's box that may lie on what stands out as the hand: more, and it stays

Side = Literal["left", "right", ""]
Box4 = tuple[float, float, float, float]  # x0, y0, x1, y1


@dataclass(frozen=True)
class Localization:
    """What a localizer found on the upright carrier that it was shown.

    hands     side and box (x0, y0, x1, y1) of each hand, best first: two are taken; in pixels of the film as turned,
              whose edges are at 0 and its width or height
    markers   side and box of each side marker, likewise
    turns     quarter turns counter-clockwise, as of np.rot90(film, turns), that bring the film upright
    """

    hands: tuple[tuple[Side, Box4], ...]
    markers: tuple[tuple[Side, Box4], ...] = ()
    turns: int = 0


Localizer = Callable[[steps.Pixels], Localization | None]  # None: nothing was found
Segmenter = Callable[[steps.Pixels], steps.Mask | None]


@dataclass(frozen=True)
class Prepared:
    """What a recipe makes of one film, or of one of the two hands on it.

    films       variant -> (S, S) uint8 | uint16, levels as told above, 0 outside the stage's mask
    masks       stage -> (S, S) bool, of the stages made: raw where the film is, crop where the crop lies on the film,
                full the foreground
    matrices    "raw", "crop" -> (2, 3) float64, film (x, y) -> (x, y) here, pixel centres; full shares crop's
    carrier     (4, 2) float32 corners (x, y) in the film, or None
    box         the crop (x0, y0, x1, y1) in pixels of the upright carrier as turned, of the film where there is no
                carrier, or None
    frame       where the crop lies in the stages crop and full: x0, y0, x1, y1, edges; beside it is padding
    inverted    whether the film had to be inverted
    fallbacks   what found nothing: "carrier", so the whole film was kept; "hand", so the whole carrier was; "mask", so
                the whole crop is the foreground; "localizer" or "segmenter", so the classical step was asked instead
    grey        stage -> mean and standard deviation of its film under its mask before the levels were spread, as shares
                of the greatest level that the film's depth allows: how bright and how rich in contrast it was exposed
    anomaly     "raw", "crop" -> (S, S) bool, the pixel truth carried along, or None where none was given
    side        of the body that the hand is of, where a localizer said so
    hand        0 the film's only hand, or the whole film; 1, 2 of two, from left to right on the upright film
    turns       quarter turns counter-clockwise by which the carrier was turned upright, 0 to 3
    markers     how many side markers were blanked in the crop
    """

    films: dict[str, steps.Pixels]
    masks: dict[str, steps.Mask]
    matrices: dict[str, steps.Matrix]
    carrier: steps.Corners | None
    box: Box4 | None
    frame: Box4
    inverted: bool
    fallbacks: tuple[str, ...]
    grey: dict[str, tuple[float, float]]
    anomaly: dict[str, steps.Mask] | None
    side: Side = ""
    hand: int = 0
    turns: int = 0
    markers: int = 0


class Recipe(BaseModel):
    """The settings of the preprocessing. A wrong name or value raises InputError.

    >>> Recipe(name="plain", size=64).carrier
    'none'
    >>> Recipe(name="hnd")
    Traceback (most recent call last):
        ...
    preprocessing.InputError: no recipe 'hnd'; there are: hand, plain
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["hand", "plain"] = "hand"
    size: int = Field(default=128, ge=16, le=2048)  # pixels a side of every film made
    window: Literal["none", "voi"] = "none"  # voi: DICOM films as seen through the display window they name
    invert: Literal["auto", "never"] = "auto"
    carrier: Literal["otsu", "none"] = "otsu"
    hand: Literal["classical", "none"] = "classical"
    margin: float = Field(default=0.05, ge=0, le=1)  # around the hand, as a share of the box's longer side
    mask: Literal["grabcut", "otsu", "none"] = "grabcut"

    def __init__(self, **settings: Any) -> None:
        name = settings.get("name", "hand")
        if name not in list(RECIPES):
            raise InputError(f"no recipe {name!r}; there are: {', '.join(RECIPES)}")
        try:
            super().__init__(**{**RECIPES[name], **settings})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            if first["type"] == "extra_forbidden":
                known = ", ".join(type(self).model_fields)
                raise InputError(f"no recipe setting {where!r}; there are: {known}") from None
            raise InputError(f"recipe setting {where!r} is {first['input']!r}: {first['msg']}") from None

    def to_json(self) -> str:
        """Write the settings as JSON, keys sorted, so that equal recipes have equal texts."""
        return json.dumps(self.model_dump(), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Recipe":
        """Read what `to_json` wrote."""
        try:
            settings = json.loads(text)
        except json.JSONDecodeError as error:
            raise InputError(f"the recipe is not JSON: {error}") from None
        if not isinstance(settings, dict):
            raise InputError(f"the recipe is {text!r}; it must be a JSON object of settings")
        return cls(**settings)

    def digest(self) -> str:
        """Give 12 hex digits that change with every setting and with RECIPE_VERSION."""
        text = json.dumps({"version": RECIPE_VERSION, **self.model_dump()}, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    def apply(
        self,
        film: "Film",
        *,
        variants: Sequence[str] = VARIANTS,
        dtype: DTypeLike | None = None,
        box: Box4 | None = None,
        mask: steps.Mask | None = None,
        anomaly: steps.Mask | None = None,
        localizer: Localizer | None = None,
        segmenter: Segmenter | None = None,
    ) -> tuple[Prepared, ...]:
        """Make the variants of one film, all from one reading: one result, or one for each of two hands.

        dtype       type of the films made, uint8 or uint16; by default the film's own
        box         the region of interest (x0, y0, x1, y1) in the film's pixels: replaces carrier and localisation
        mask        (H, W) bool foreground of the film: replaces segmentation
        anomaly     (H, W) bool pixel truth of the film: carried along
        localizer   upright carrier (h, w) -> Localization, or None: asked before the classical localisation, unless
                    nothing but raw films is made
        segmenter   crop (h, w) -> (h, w) bool, or None: asked before the classical segmentation

        Several results come only where a localizer found two hands and a stage other than raw is made, from left to
        right on the upright film. A localizer's boxes are widened by `margin`. Only what `variants` need is made:
        `masks` holds their stages, and nothing is segmented for raw and crop alone. A flat film works: nothing is found
        in it, and its films are zeros. Raises InputError for an unknown variant, a type other than the two, a box
        beside the film, or a mask of another shape.
        """
        pixels = film.pixels
        target = _checked(pixels, variants, dtype, {"mask": mask, "anomaly mask": anomaly})
        stages = {stage_of(variant) for variant in variants}
        fallbacks: list[str] = []

        carrier = steps.find_carrier(pixels) if self.carrier == "otsu" and box is None else None
        if self.carrier == "otsu" and box is None and carrier is None:
            fallbacks.append("carrier")
        inverted = self.invert == "auto" and steps.is_inverted(pixels, carrier=carrier)
        if inverted:
            pixels = steps.invert(pixels)

        upright, to_upright = (pixels, IDENTITY) if carrier is None else steps.rectify(pixels, carrier)
        if box is None:
            found = self._localize(upright, localizer if stages != {"raw"} else None, fallbacks)
        elif (region := _clipped(box, pixels.shape)) is not None:
            found = _Found((("", region),))
        else:
            raise InputError(
                f"the box {box} lies beside the film of {pixels.shape[1]} x {pixels.shape[0]} pixels; "
                "give x0 y0 x1 y1 in pixels of the film"
            )
        if found.turns:
            to_upright = steps.compose(_turned(found.turns, upright.shape), to_upright)
            upright = np.ascontiguousarray(np.rot90(upright, found.turns))
        whole: dict[str, tuple[steps.Pixels, steps.Mask]] = {}  # what all hands of the film have in common
        if "raw" in stages:
            whole["raw"] = steps.fit(_widened(pixels, target), np.ones(pixels.shape, bool), self.size)[:2]

        def cut_out(side: Side, region: steps.Box | None, hand: int) -> Prepared:
            """Make one hand's variants."""
            passed = list(fallbacks)  # what found nothing, here
            x0, y0, x1, y1 = region or (0, 0, upright.shape[1], upright.shape[0])
            to_crop = steps.compose(np.array([[1.0, 0, -x0], [0, 1, -y0]]), to_upright)
            crop, markers = _blanked(upright[y0:y1, x0:x1], [_moved(marker, -x0, -y0) for marker in found.markers])
            shape = crop.shape[0], crop.shape[1]
            on_film = np.ones(shape, bool)
            if carrier is not None:
                on_film = steps.warp_mask(np.ones(pixels.shape, bool), to_crop, shape)

            prepared = dict(whole)
            if stages & {"crop", "full"}:
                prepared["crop"] = steps.fit(_widened(crop, target), on_film, self.size)[:2]
            if "full" in stages:
                small, small_mask = prepared["crop"]
                given = None if mask is None else steps.warp_mask(mask, to_crop, shape)
                inside = self._segment(crop, segmenter, passed) if given is None else given
                full_mask = small_mask if inside is None else steps.fit_mask(inside & on_film, self.size)
                if inside is None or not full_mask.any():
                    passed.append("mask")
                    full_mask = small_mask
                prepared["full"] = small, full_mask

            films = {}
            for variant in variants:
                stage, levels = split_variant(variant)
                films[variant] = _narrowed(SPREADS[levels](*prepared[stage]), target)
            truth = None
            if anomaly is not None:
                in_crop = steps.warp_mask(anomaly, to_crop, shape)
                truth = {"raw": steps.fit_mask(anomaly, self.size), "crop": steps.fit_mask(in_crop, self.size)}
            to_small = steps.fit_matrix(shape, self.size)
            return Prepared(
                films=films,
                masks={stage: prepared[stage][1] for stage in STAGES if stage in stages},
                matrices={
                    "raw": steps.fit_matrix(pixels.shape, self.size),
                    "crop": steps.compose(to_small, to_crop),
                },
                carrier=carrier,
                box=region,
                frame=_frame(shape, to_small),
                inverted=inverted,
                fallbacks=tuple(passed),
                grey={stage: _statistics(*prepared[stage], film) for stage in STAGES if stage in stages},
                anomaly=truth,
                side=side,
                hand=hand,
                turns=found.turns,
                markers=markers,
            )

        if len(found.hands) == 1:
            return (cut_out(*found.hands[0], 0),)
        return tuple(cut_out(side, region, hand) for hand, (side, region) in enumerate(found.hands, 1))

    def _localize(self, film: steps.Pixels, localizer: Localizer | None, fallbacks: list[str]) -> "_Found":
        """Find the hands on the upright carrier; where none is found, the whole carrier is one."""
        if localizer is not None:
            found = self._asked(localizer, film)
            if found is not None:
                return found
            fallbacks.append("localizer")
        if self.hand == "none":
            return _Found((("", None),))
        region = steps.find_hand(film, margin=self.margin)
        if region is None:
            fallbacks.append("hand")
        return _Found((("", region),))

    def _asked(self, localizer: Localizer, film: steps.Pixels) -> "_Found | None":
        """Ask a localizer; None where it finds no hand on the film."""
        answer = localizer(film)
        if answer is None:
            return None
        turns = answer.turns % 4
        shape = film.shape[::-1] if turns % 2 else film.shape
        boxes = ((side, _clipped(_wider(box, self.margin), shape)) for side, box in answer.hands)
        hands = [(side, box) for side, box in boxes if box is not None][:HANDS]
        if not hands:
            return None
        hands.sort(key=lambda hand: (hand[1][0] + hand[1][2], hand[1][1] + hand[1][3]))
        return _Found(tuple(hands), tuple(box for _, box in answer.markers), turns)

    def _segment(self, crop: steps.Pixels, segmenter: Segmenter | None, fallbacks: list[str]) -> steps.Mask | None:
        """Give the foreground of the crop, or None where nothing was found."""
        if segmenter is not None:
            found = segmenter(crop)
            if found is not None and found.any():
                return found
            fallbacks.append("segmenter")
        return steps.foreground(crop, method=self.mask)


@dataclass(frozen=True)
class _Found:
    """Where to cut: the side and box of each hand, None for the whole carrier; and what else a localizer said."""

    hands: tuple[tuple[Side, steps.Box | None], ...]
    markers: tuple[Box4, ...] = ()
    turns: int = 0


def _checked(
    pixels: steps.Pixels, variants: Sequence[str], dtype: DTypeLike | None, masks: dict[str, steps.Mask | None]
) -> np.dtype[Any]:
    """Refuse what cannot be made; give the type of the films to make."""
    unknown = [variant for variant in variants if variant not in VARIANTS]
    if unknown or not variants:
        raise InputError(f"no variant {unknown[0] if unknown else ''!r}; there are: {', '.join(VARIANTS)}")
    target = np.dtype(pixels.dtype if dtype is None else dtype)
    for kind in (pixels.dtype, target):
        if kind not in (np.uint8, np.uint16):
            raise InputError(f"a film of {kind} is not handled; films are uint8 or uint16")
    for name, mask in masks.items():
        if mask is not None and mask.shape != pixels.shape:
            raise InputError(f"the {name} has shape {mask.shape}, its film {pixels.shape}; they must be the same")
    return target


def _clipped(box: Box4, shape: tuple[int, ...]) -> steps.Box | None:
    """Give the whole pixels of a film that a box touches, or None where it lies beside the film or is no box."""
    if not all(math.isfinite(side) for side in box):
        return None
    x0, y0 = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    x1, y1 = min(shape[1], math.ceil(box[2])), min(shape[0], math.ceil(box[3]))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _wider(box: Box4, margin: float) -> Box4:
    """Widen a box on every side by this share of its longer side."""
    x0, y0, x1, y1 = box
    extra = margin * max(x1 - x0, y1 - y0)
    return x0 - extra, y0 - extra, x1 + extra, y1 + extra


def _moved(box: Box4, x: float, y: float) -> Box4:
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def _frame(shape: tuple[int, int], matrix: steps.Matrix) -> Box4:
    """Give where the edges of a film of this shape come to lie through a matrix, which maps pixel centres."""
    low, high = (matrix[:, :2] @ corner + matrix[:, 2] + 0.5 for corner in ((-0.5, -0.5), np.array(shape[::-1]) - 0.5))
    return float(low[0]), float(low[1]), float(high[0]), float(high[1])


def _turned(turns: int, shape: tuple[int, ...]) -> steps.Matrix:
    """Give the matrix from (x, y) of a film of this shape to (x, y) of np.rot90(film, turns)."""
    matrix = IDENTITY
    height, width = shape[:2]
    for _ in range(turns):
        matrix = steps.compose(np.array([[0.0, 1, 0], [-1, 0, width - 1]]), matrix)
        height, width = width, height
    return matrix


def _blanked(crop: steps.Pixels, markers: Sequence[Box4]) -> tuple[steps.Pixels, int]:
    """Cover side markers by the median level around them; the crop, and how many of them were covered.

    A marker that lies on the hand, by as little as COVER of its box, stays: what is blank cannot be fractured. So does
    one on a crop in which no hand stands out, for then there is no telling. Of one that is covered, what lies close to
    the hand stays as it is: fingertips are fainter than what stands out.
    """
    boxes = [box for marker in markers if (box := _clipped(marker, crop.shape)) is not None]
    hand = steps.foreground(crop, method="otsu") if boxes else None
    if hand is None:
        return crop, 0
    blank, count = crop.copy(), 0
    wide = 2 * max(1, round(CLOSE * max(crop.shape))) + 1
    far = cv2.dilate(hand.astype(np.uint8), np.ones((wide, wide), np.uint8)) == 0
    for x0, y0, x1, y1 in boxes:
        reach = max(2, round(RING * max(x1 - x0, y1 - y0)))
        around = slice(max(0, y0 - reach), y1 + reach), slice(max(0, x0 - reach), x1 + reach)
        ring = ~hand
        ring[y0:y1, x0:x1] = False
        levels = crop[around][ring[around]]
        if levels.size and hand[y0:y1, x0:x1].mean() <= COVER:
            blank[y0:y1, x0:x1][far[y0:y1, x0:x1]] = np.median(levels)
            count += 1
    return blank, count


def _statistics(pixels: steps.Pixels, mask: steps.Mask, film: "Film") -> tuple[float, float]:
    """Give mean and standard deviation under the mask as shares of the greatest level of the film's depth."""
    widened = 257 if pixels.dtype != film.pixels.dtype else 1
    inside = pixels[mask].astype(np.float64) / (widened * (2**film.depth - 1))
    return float(inside.mean()), float(inside.std())


def _widened(pixels: steps.Pixels, target: np.dtype[Any]) -> steps.Pixels:
    """Give an 8-bit film that is to become 16 bit its room before it is averaged; others stay."""
    return pixels.astype(np.uint16) * np.uint16(257) if target == np.uint16 and pixels.dtype == np.uint8 else pixels


def _narrowed(film: steps.Pixels, target: np.dtype[Any]) -> steps.Pixels:
    """Round a 16-bit film that is to become 8 bit, 65535 to 255, after its levels were spread; others stay."""
    return ((film.astype(np.uint32) + 128) // 257).astype(np.uint8) if target != film.dtype else film
