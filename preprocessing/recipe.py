"""The recipe: which steps a film goes through, in which order, with which settings; its digest names what it made.

One reading of a film gives all nine variants. The order, and why:

1. inversion, so that bones are bright everywhere after it;
2. carrier, then hand: slices of the film at its own scale; a tilted carrier is resampled once;
3. foreground mask of that crop;
4. film and masks are scaled to the cache's size, once, by area;
5. last, levels, under the stage's mask: stretched, equalised (`-he`), or replaced by their local contrast
   (`-contrast`).

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

import numpy as np
from numpy.typing import DTypeLike
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from preprocessing import InputError, steps
from preprocessing.schema import STAGES, split_variant, stage_of

if TYPE_CHECKING:
    from preprocessing.readers import Film

RECIPE_VERSION = 1  # rises with any change of a step that changes pixels: caches made before are then stale
VARIANTS = ("raw", "raw-he", "crop", "crop-he", "full", "full-he", "raw-contrast", "crop-contrast", "full-contrast")

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
}

Localizer = Callable[[steps.Pixels], tuple[float, float, float, float] | None]
Segmenter = Callable[[steps.Pixels], steps.Mask | None]


@dataclass(frozen=True)
class Prepared:
    """What a recipe makes of one film.

    films       variant -> (S, S) uint8 | uint16, levels as told above, 0 outside the stage's mask
    masks       stage -> (S, S) bool, of the stages made: raw where the film is, crop where the crop lies on the film,
                full the foreground
    matrices    "raw", "crop" -> (2, 3) float64, film (x, y) -> (x, y) here, pixel centres; full shares crop's
    carrier     (4, 2) float32 corners (x, y) in the film, or None
    box         the crop (x0, y0, x1, y1) in pixels of the upright carrier, of the film where there is none, or None
    inverted    whether the film had to be inverted
    fallbacks   what found nothing: "carrier", so the whole film was kept; "hand", so the whole carrier was; "mask", so
                the whole crop is the foreground; "localizer" or "segmenter", so the classical step was asked instead
    grey        stage -> mean and standard deviation of its film under its mask before the levels were spread, as shares
                of the greatest level that the film's depth allows: how bright and how rich in contrast it was exposed
    anomaly     "raw", "crop" -> (S, S) bool, the pixel truth carried along, or None where none was given
    """

    films: dict[str, steps.Pixels]
    masks: dict[str, steps.Mask]
    matrices: dict[str, steps.Matrix]
    carrier: steps.Corners | None
    box: tuple[float, float, float, float] | None
    inverted: bool
    fallbacks: tuple[str, ...]
    grey: dict[str, tuple[float, float]]
    anomaly: dict[str, steps.Mask] | None


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
        box: tuple[float, float, float, float] | None = None,
        mask: steps.Mask | None = None,
        anomaly: steps.Mask | None = None,
        localizer: Localizer | None = None,
        segmenter: Segmenter | None = None,
    ) -> Prepared:
        """Make the variants of one film, all from one reading.

        dtype       type of the films made, uint8 or uint16; by default the film's own
        box         the region of interest (x0, y0, x1, y1) in the film's pixels: replaces carrier and localisation
        mask        (H, W) bool foreground of the film: replaces segmentation
        anomaly     (H, W) bool pixel truth of the film: carried along
        localizer   upright carrier (h, w) -> box in it, or None: asked before the classical localisation
        segmenter   crop (h, w) -> (h, w) bool, or None: asked before the classical segmentation

        Only what `variants` need is made: `masks` holds their stages, and nothing is segmented for raw and crop alone.
        A flat film works: nothing is found in it, and its films are zeros. Raises InputError for an unknown variant, a
        type other than the two, a box beside the film, or a mask of another shape.
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

        crop, to_crop = (pixels, IDENTITY) if carrier is None else steps.rectify(pixels, carrier)
        region = self._localize(crop, localizer, fallbacks) if box is None else _clipped(box, crop)
        if region is not None:
            x0, y0, x1, y1 = region
            crop, to_crop = crop[y0:y1, x0:x1], steps.compose(np.array([[1.0, 0, -x0], [0, 1, -y0]]), to_crop)
        elif box is not None:
            raise InputError(
                f"the box {box} lies beside the film of {pixels.shape[1]} x {pixels.shape[0]} pixels; "
                "give x0 y0 x1 y1 in pixels of the film"
            )
        shape = crop.shape[0], crop.shape[1]
        on_film = np.ones(shape, bool)
        if carrier is not None:
            on_film = steps.warp_mask(np.ones(pixels.shape, bool), to_crop, shape)

        to_raw = steps.fit_matrix(pixels.shape, self.size)
        to_small = steps.compose(steps.fit_matrix(shape, self.size), to_crop)
        prepared: dict[str, tuple[steps.Pixels, steps.Mask]] = {}
        if "raw" in stages:
            prepared["raw"] = steps.fit(_widened(pixels, target), np.ones(pixels.shape, bool), self.size)[:2]
        if stages & {"crop", "full"}:
            prepared["crop"] = steps.fit(_widened(crop, target), on_film, self.size)[:2]
        if "full" in stages:
            small, small_mask = prepared["crop"]
            given = None if mask is None else steps.warp_mask(mask, to_crop, shape)
            inside = self._segment(crop, segmenter, fallbacks) if given is None else given
            full_mask = small_mask if inside is None else steps.fit_mask(inside & on_film, self.size)
            if inside is None or not full_mask.any():
                fallbacks.append("mask")
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
        return Prepared(
            films=films,
            masks={stage: prepared[stage][1] for stage in STAGES if stage in stages},
            matrices={"raw": to_raw, "crop": to_small},
            carrier=carrier,
            box=region,
            inverted=inverted,
            fallbacks=tuple(fallbacks),
            grey={stage: _statistics(*prepared[stage], film) for stage in STAGES if stage in stages},
            anomaly=truth,
        )

    def _localize(self, film: steps.Pixels, localizer: Localizer | None, fallbacks: list[str]) -> steps.Box | None:
        """Give the hand's box in the upright carrier, or None for all of it."""
        if localizer is not None:
            found = localizer(film)
            region = None if found is None else _clipped(found, film)
            if region is not None:
                return region
            fallbacks.append("localizer")
        if self.hand == "none":
            return None
        region = steps.find_hand(film, margin=self.margin)
        if region is None:
            fallbacks.append("hand")
        return region

    def _segment(self, crop: steps.Pixels, segmenter: Segmenter | None, fallbacks: list[str]) -> steps.Mask | None:
        """Give the foreground of the crop, or None where nothing was found."""
        if segmenter is not None:
            found = segmenter(crop)
            if found is not None and found.any():
                return found
            fallbacks.append("segmenter")
        return steps.foreground(crop, method=self.mask)


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


def _clipped(box: tuple[float, float, float, float], film: steps.Pixels) -> steps.Box | None:
    """Give the whole pixels of the film that a box touches, or None where it lies beside the film or is no box."""
    if not all(math.isfinite(side) for side in box):
        return None
    x0, y0 = max(0, math.floor(box[0])), max(0, math.floor(box[1]))
    x1, y1 = min(film.shape[1], math.ceil(box[2])), min(film.shape[0], math.ceil(box[3]))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


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
