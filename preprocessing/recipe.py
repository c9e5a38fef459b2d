"""The recipe: which steps a film goes through, in which order, with which settings; its digest names what it made.

One reading of a film gives all twelve variants. The order, and why:

1. square pixels: where those of the file are not, the film is resampled, so that anatomy keeps its shape;
2. inversion, so that bones are bright everywhere after it; where the file states its polarity nothing is guessed;
3. the exposed field, in every recipe: what lies beyond is off all masks, and takes no part in the levels;
4. carrier, then limb: slices of the film at its own scale; a tilted carrier is resampled once. A trained localizer may
   also turn the carrier by quarters, and where it finds two hands each becomes a film of its own, as in the paper;
5. side markers that a localizer found are blanked, in the crop and never in the raw film, and only beside the hand;
6. foreground mask of that crop;
7. film and masks are scaled to the cache's size, once, by area;
8. last, levels, under the stage's mask: stretched, equalized as a whole (`-he`) or by tiles (`-clahe`), or replaced by
   their local contrast (`-contrast`).

The paper equalizes the native film and shrinks it afterwards. Here levels come last: areas are averaged in the levels
the film was taken in, and the film that a model sees is the one whose histogram is even, under the very mask stored
beside it.

Every film made here is 0 outside its mask and uses one scale within it: stretched and equalized films span the full
range of their type, each for itself; contrast has a fixed scale, the same for every film, of which a film takes the
part that its contrast reaches. So one rule turns stored levels into a model's range, whatever the film's depth was:
input = level / largest level of the type.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import DTypeLike
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from preprocessing import InputError, steps
from preprocessing.cache.schema import STAGES, split_variant
from preprocessing.crop import (
    Box4,
    blank_markers,
    clip_box,
    move_box,
    place_frame,
    rotation_matrix,
    widen_box,
)
from preprocessing.nets import Localization, Localizer, Nets, Segmenter, Side
from preprocessing.prepared import Prepared
from preprocessing.scene import IDENTITY, Hands, Request, Scene, given_region, squared
from preprocessing.wording import did_you_mean

if TYPE_CHECKING:
    from preprocessing.readers import Film

__all__ = [
    "AUTO",
    "RECIPES",
    "RECIPE_VERSION",
    "SPREADS",
    "STAGES",
    "VARIANTS",
    "Localization",
    "Localizer",
    "Nets",
    "Prepared",
    "Recipe",
    "Segmenter",
    "Side",
]

RECIPE_VERSION = 3  # rises with any change of a step that changes pixels: caches made before are then stale
VARIANTS = (
    *("raw", "raw-he", "crop", "crop-he", "full", "full-he"),
    *("raw-contrast", "crop-contrast", "full-contrast"),
    *("raw-clahe", "crop-clahe", "full-clahe"),
)

# What a recipe's name stands for: `limb` is for limbs on a background, `plain` for films that fill the frame, such as
# chests. AUTO is no recipe, but the choice between them (preprocessing.choice).
RECIPES: dict[str, dict[str, str]] = {
    "limb": {},
    "plain": {"carrier": "none", "hand": "none", "mask": "none"},
}
AUTO = "auto"

UNCERTAIN = 0.5  # log-odds: a film is turned round where they say so by more; by less, they say nothing
SPREADS: dict[str, Callable[[steps.Pixels, steps.Mask], steps.Pixels]] = {  # by the second part of a variant's name
    "": steps.stretch,
    "he": steps.equalize,
    "contrast": steps.local_contrast,
    "clahe": steps.clahe,
}

HANDS = 2  # at most, of one film


class Recipe(BaseModel):
    """The settings of the preprocessing. A wrong name or value raises InputError.

    >>> Recipe(name="plain", size=64).carrier
    'none'
    >>> Recipe(name="hnd")
    Traceback (most recent call last):
        ...
    preprocessing.InputError: no recipe 'hnd'; there are: auto, limb, plain
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Literal["limb", "plain"] = "limb"
    size: int = Field(default=128, ge=16, le=2048)  # pixels a side of every film made
    window: Literal["none", "voi"] = "none"  # voi: DICOM films as seen through the display window they name
    invert: Literal["auto", "never"] = "auto"
    carrier: Literal["otsu", "none"] = "otsu"
    hand: Literal["classical", "none"] = "classical"
    margin: float = Field(default=0.05, ge=0, le=1)  # around the hand, as a share of the box's longer side
    mask: Literal["local", "grabcut", "otsu", "none"] = "local"

    def __init__(self, **settings: Any) -> None:
        name = settings.get("name", "limb")
        if name not in list(RECIPES):
            raise InputError(_no_recipe(name))
        try:
            super().__init__(**{**RECIPES[name], **settings})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            if first["type"] == "extra_forbidden":
                known = type(self).model_fields
                listed, hint = ", ".join(known), did_you_mean(where, known)
                raise InputError(f"no recipe setting {where!r}; there are: {listed}{hint}") from None
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
        nets: Nets = Nets(),
    ) -> tuple[Prepared, ...]:
        """Make the variants of one film, all from one reading: one result, or one for each of two hands.

        dtype       type of the films made, uint8 or uint16; by default the film's own
        box         the region of interest (x0, y0, x1, y1) in the film's pixels: replaces carrier and localization
        mask        (H, W) bool foreground of the film: replaces segmentation
        anomaly     (H, W) bool pixel truth of the film: carried along
        nets        trained nets, asked before the classical steps

        Several results come only where a localizer found two hands and a stage other than raw is made, from left to
        right on the upright film. A localizer's boxes are widened by `margin`. Only what `variants` need is made:
        `masks` holds their stages, and nothing is segmented for raw and crop alone. A flat film works: nothing is found
        in it, and its films are zeros. Raises InputError for an unknown variant, a type other than the two, a box
        beside the film, a mask of another shape, or pixels longer than ASPECT times their width.
        """
        given = {"mask": mask, "anomaly mask": anomaly, "exposed field": film.exposed}
        target = _checked(film.pixels, variants, dtype, given)
        request = Request(tuple(variants), target, box, mask, anomaly, nets)
        film, request, to_square = squared(film, request)
        scene = self._locate(film, request, to_square)
        first = 0 if len(scene.hands) == 1 else 1
        return tuple(
            self._prepare(scene, request, side, region, hand) for hand, (side, region) in enumerate(scene.hands, first)
        )

    def _locate(self, film: "Film", request: Request, to_square: steps.Matrix) -> Scene:
        """Bring a film upright, bones bright, and locate its exposed field and its hands."""
        pixels, box, fallbacks = film.pixels, request.box, []
        copies = steps.Copies()
        inverted, certain = self._polarity(film, copies)
        if not certain:
            fallbacks.append("polarity")
        if inverted:
            pixels = steps.invert(pixels)
        exposed = steps.find_field(pixels, copies=copies) if film.exposed is None else film.exposed
        if exposed is not None and not exposed.any():
            exposed = None
            fallbacks.append("exposed field")
        carrier = None
        if self.carrier == "otsu" and box is None:
            within = pixels if film.exposed is None else steps.fill(pixels, exposed)
            carrier = steps.find_carrier(within, copies=copies)
            if carrier is None:
                fallbacks.append("carrier")
        upright, to_upright = (pixels, IDENTITY) if carrier is None else steps.rectify(pixels, carrier)
        if box is None:
            localizer = request.nets.localizer if request.stages != {"raw"} else None
            field = (
                None if exposed is None else steps.warp_mask(exposed, to_upright, (upright.shape[0], upright.shape[1]))
            )
            hands, markers, turns = self._localize(upright, field, localizer, fallbacks, copies)
            if carrier is not None and "hand" in fallbacks:  # a carrier holds a limb: without, half a trunk may be one
                carrier, upright, to_upright = None, pixels, IDENTITY
                fallbacks.insert(fallbacks.index("hand"), "carrier")
        else:
            hands, markers, turns = ((("", given_region(box, pixels.shape)),)), (), 0
        if turns:
            to_upright = steps.compose(rotation_matrix(turns, upright.shape), to_upright)
            upright = np.ascontiguousarray(np.rot90(upright, turns))
        return Scene(
            film,
            pixels,
            to_square,
            inverted,
            exposed,
            carrier,
            upright,
            to_upright,
            hands,
            markers,
            turns,
            tuple(fallbacks),
        )

    def _polarity(self, film: "Film", copies: steps.Copies) -> tuple[bool, bool]:
        """Tell whether to turn a film round, and whether that is certain; what its header says is."""
        if self.invert == "never" or film.polarity_known:
            return False, True
        evidence = steps.polarity_odds(film.pixels, exposed=film.exposed, copies=copies)
        return evidence < -UNCERTAIN, abs(evidence) > UNCERTAIN

    def _prepare(self, scene: Scene, request: Request, side: Side, region: steps.Box | None, hand: int) -> Prepared:
        """Make the variants of one hand."""
        fallbacks = list(scene.fallbacks)
        x0, y0, x1, y1 = region or (0, 0, scene.upright.shape[1], scene.upright.shape[0])
        to_crop = steps.compose(np.array([[1.0, 0, -x0], [0, 1, -y0]]), scene.to_upright)
        markers = [move_box(marker, -x0, -y0) for marker in scene.markers]
        crop, blanked = blank_markers(scene.upright[y0:y1, x0:x1], markers)
        stages = self._stages(scene, request, crop, to_crop, fallbacks)
        films = {}
        for variant in request.variants:
            stage, levels = split_variant(variant)
            spread = SPREADS[levels]
            if spread is steps.stretch and stage != "full":
                spread = partial(steps.stretch, black=_black(scene, request.dtype))
            films[variant] = _narrowed(spread(*stages[stage]), request.dtype)
        shape, anomaly = (crop.shape[0], crop.shape[1]), request.anomaly
        truth = None
        if anomaly is not None:
            in_crop = steps.warp_mask(anomaly, to_crop, shape)
            truth = {"raw": steps.fit_mask(anomaly, self.size), "crop": steps.fit_mask(in_crop, self.size)}
        to_small = steps.fit_matrix(shape, self.size)
        wanted = [stage for stage in STAGES if stage in request.stages]
        return Prepared(
            films=films,
            masks={stage: stages[stage][1] for stage in wanted},
            matrices={
                "raw": steps.compose(steps.fit_matrix(scene.pixels.shape, self.size), scene.to_square),
                "crop": steps.compose(steps.compose(to_small, to_crop), scene.to_square),
            },
            carrier=scene.carrier,
            box=region,
            frame=place_frame(shape, to_small),
            inverted=scene.inverted,
            fallbacks=tuple(fallbacks),
            grey={stage: _statistics(*stages[stage], scene.film) for stage in wanted},
            anomaly=truth,
            side=side,
            hand=hand,
            turns=scene.turns,
            markers=blanked,
        )

    def _stages(
        self, scene: Scene, request: Request, crop: steps.Pixels, to_crop: steps.Matrix, fallbacks: list[str]
    ) -> dict[str, tuple[steps.Pixels, steps.Mask]]:
        """Make the stages that the variants need, at the cache's size, with masks; levels are not spread yet."""
        stages: dict[str, tuple[steps.Pixels, steps.Mask]] = {}
        if "raw" in request.stages:
            exposed = np.ones(scene.pixels.shape, bool) if scene.exposed is None else scene.exposed
            stages["raw"] = _fitted(scene.pixels, exposed, self.size, request.dtype)
        if not request.stages & {"crop", "full"}:
            return stages
        shape = crop.shape[0], crop.shape[1]
        on_film = np.ones(shape, bool)
        if scene.carrier is not None:
            on_film = steps.warp_mask(np.ones(scene.pixels.shape, bool), to_crop, shape)
        if scene.exposed is not None:
            within = on_film & steps.warp_mask(scene.exposed, to_crop, shape)
            if within.any():
                on_film = within
            else:
                fallbacks.append("exposed field")
        small, small_mask = stages["crop"] = _fitted(crop, on_film, self.size, request.dtype)
        if "full" in request.stages:
            if request.mask is None:
                inside = self._segment(crop, on_film, request.nets.segmenter, fallbacks)
            else:
                inside = steps.warp_mask(request.mask, to_crop, shape)
            full_mask = small_mask if inside is None else steps.fit_mask(inside & on_film, self.size)
            if inside is None or not full_mask.any():
                fallbacks.append("mask")
                full_mask = small_mask
            stages["full"] = small, full_mask
        return stages

    def _localize(
        self,
        film: steps.Pixels,
        exposed: steps.Mask | None,
        localizer: Localizer | None,
        fallbacks: list[str],
        copies: steps.Copies,
    ) -> tuple[Hands, tuple[Box4, ...], int]:
        """Find hands, side markers and quarter turns on the carrier; where no hand is found, all of it is one."""
        if localizer is not None:
            localization = localizer(film)
            hands = () if localization is None else self._located_hands(localization, film.shape)
            if localization is not None and hands:
                return hands, tuple(box for _, box in localization.markers), localization.turns % 4
            fallbacks.append("localizer")
        if self.hand == "none":
            return (("", None),), (), 0
        region = steps.find_hand(steps.fill(film, exposed), margin=self.margin, copies=copies)
        if region is None:
            fallbacks.append("hand")
        return (("", region),), (), 0

    def _located_hands(self, localization: Localization, shape: tuple[int, ...]) -> Hands:
        """Widen and clip the hands a localizer found on a film of this shape; the best, from left to right."""
        turned = shape[::-1] if localization.turns % 2 else shape
        boxes = ((side, clip_box(widen_box(box, self.margin), turned)) for side, box in localization.hands)
        hands = [(side, box) for side, box in boxes if box is not None][:HANDS]
        hands.sort(key=lambda hand: (hand[1][0] + hand[1][2], hand[1][1] + hand[1][3]))
        return tuple(hands)

    def _segment(
        self, crop: steps.Pixels, exposed: steps.Mask, segmenter: Segmenter | None, fallbacks: list[str]
    ) -> steps.Mask | None:
        """Give the foreground of the crop, or None where nothing was found."""
        if segmenter is not None:
            mask = segmenter(crop)
            if mask is not None and mask.any():
                return mask
            fallbacks.append("segmenter")
        if "hand" in fallbacks and self.mask != "none":
            return None  # without a limb the film is left whole
        return steps.foreground(steps.fill(crop, exposed), method=self.mask)


def _no_recipe(name: object) -> str:
    """Say which recipes there are."""
    if name == AUTO:
        return (
            f"recipe {AUTO!r} stands for the one that suits the films; choose it first, or name {' or '.join(RECIPES)}"
        )
    hint = did_you_mean(str(name), RECIPES)
    hint = "; `hand` is called `limb` now, as it serves any limb" if name == "hand" else hint
    return f"no recipe {name!r}; there are: {', '.join((AUTO, *RECIPES))}{hint}"


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
            raise InputError(f"a film of {kind} is not supported; films are uint8 or uint16")
    for name, mask in masks.items():
        if mask is not None and mask.shape != pixels.shape:
            raise InputError(f"the {name} has shape {mask.shape}, its film {pixels.shape}; they must be the same")
    return target


def _statistics(pixels: steps.Pixels, mask: steps.Mask, film: "Film") -> tuple[float, float]:
    """Give mean and standard deviation under the mask as shares of the greatest level of the film's depth."""
    widened = 257 if pixels.dtype != film.pixels.dtype else 1
    inside = pixels[mask].astype(np.float64) / (widened * (2**film.depth - 1))
    return float(inside.mean()), float(inside.std())


def _fitted(film: steps.Pixels, mask: steps.Mask, size: int, target: np.dtype[Any]) -> tuple[steps.Pixels, steps.Mask]:
    """Scale a film of enough room, and its mask, to the cache's size."""
    small, small_mask, _ = steps.fit(_widened(film, target), mask, size)
    return small, small_mask


def _black(scene: Scene, target: np.dtype[Any]) -> int | None:
    """Give the film's darkest level where part of it is not exposed: padding, or a dark rim; None where all is.

    Whether a dark rim is found, or named by the file, does not change the levels of the tissue beside it.
    """
    if scene.exposed is None:
        return None
    return int(_widened(scene.pixels.min(keepdims=True), target).min())


def _widened(pixels: steps.Pixels, target: np.dtype[Any]) -> steps.Pixels:
    """Give an 8-bit film that is to become 16 bit its room before it is averaged; others stay."""
    return pixels.astype(np.uint16) * np.uint16(257) if target == np.uint16 and pixels.dtype == np.uint8 else pixels


def _narrowed(film: steps.Pixels, target: np.dtype[Any]) -> steps.Pixels:
    """Round a 16-bit film that is to become 8 bit, 65535 to 255, after its levels were spread; others stay."""
    return ((film.astype(np.uint32) + 128) // 257).astype(np.uint8) if target != film.dtype else film
