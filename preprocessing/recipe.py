"""The recipe: which steps a film goes through, in which order, with which settings; its digest names what it made.

One reading of a film gives all twelve variants. The order, and why:

1. inversion, so that bones are bright everywhere after it;
2. carrier, then hand: slices of the film at its own scale; a tilted carrier is resampled once. A trained localizer may
   also turn the carrier by quarters, and where it finds two hands each becomes a film of its own, as in the paper;
3. side markers that a localizer found are blanked, in the crop and never in the raw film, and only beside the hand;
4. foreground mask of that crop;
5. film and masks are scaled to the cache's size, once, by area;
6. last, levels, under the stage's mask: stretched, equalized as a whole (`-he`) or by tiles (`-clahe`), or replaced by
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
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import DTypeLike
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from preprocessing import InputError, steps
from preprocessing.cache.schema import STAGES, split_variant, stage_of
from preprocessing.crop import Box4, blank_markers, clip_box, move_box, place_frame, rotation_matrix, widen_box

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
Side = Literal["left", "right", ""]


@dataclass(frozen=True)
class Localization:
    """What a localizer found on the carrier.

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
class Nets:
    """The trained nets that prepare films, in place of classical steps.

    localizer   upright carrier (h, w) -> Localization, or None: asked before the classical localization, unless nothing
                but raw films is made
    segmenter   crop (h, w) -> (h, w) bool, or None: asked before the classical segmentation

    To be recorded in a cache, a net has the text attributes `name`, `run` (where it was trained; empty for a net of the
    package) and `digest`, which tells its weights apart, and it can be sent to other processes.
    """

    localizer: Localizer | None = None
    segmenter: Segmenter | None = None

    def named(self) -> dict[str, Any]:
        """Give the nets there are: "localizer", "segmenter" -> net."""
        nets = {"localizer": self.localizer, "segmenter": self.segmenter}
        return {role: net for role, net in nets.items() if net is not None}

    def to_json(self) -> str:
        """Describe the nets: role -> name, run and digest; {} without any."""
        described = {
            role: {name: getattr(net, name) for name in ("name", "run", "digest")} for role, net in self.named().items()
        }
        return json.dumps(described, sort_keys=True)

    def open(self) -> None:
        """Load the nets that load lazily: one that is missing is no fault of the films.

        Raises InputError where a net cannot be loaded.
        """
        for net in self.named().values():
            opened = getattr(net, "opened", None)
            if opened is not None:
                opened()


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
        beside the film, or a mask of another shape.
        """
        target = _checked(film.pixels, variants, dtype, {"mask": mask, "anomaly mask": anomaly})
        request = _Request(tuple(variants), target, mask, anomaly, nets)
        scene = self._locate(film, box, request)
        first = 0 if len(scene.hands) == 1 else 1
        return tuple(
            self._prepare(scene, request, side, region, hand) for hand, (side, region) in enumerate(scene.hands, first)
        )

    def _locate(self, film: "Film", box: Box4 | None, request: "_Request") -> "_Scene":
        """Bring a film upright, bones bright, and locate its hands."""
        pixels, fallbacks = film.pixels, []
        carrier = steps.find_carrier(pixels) if self.carrier == "otsu" and box is None else None
        if self.carrier == "otsu" and box is None and carrier is None:
            fallbacks.append("carrier")
        inverted = self.invert == "auto" and steps.is_inverted(pixels, carrier=carrier)
        if inverted:
            pixels = steps.invert(pixels)
        upright, to_upright = (pixels, IDENTITY) if carrier is None else steps.rectify(pixels, carrier)
        if box is None:
            localizer = request.nets.localizer if request.stages != {"raw"} else None
            hands, markers, turns = self._localize(upright, localizer, fallbacks)
        else:
            hands, markers, turns = ((("", _given_region(box, pixels.shape)),)), (), 0
        if turns:
            to_upright = steps.compose(rotation_matrix(turns, upright.shape), to_upright)
            upright = np.ascontiguousarray(np.rot90(upright, turns))
        return _Scene(film, pixels, inverted, carrier, upright, to_upright, hands, markers, turns, tuple(fallbacks))

    def _prepare(
        self, scene: "_Scene", request: "_Request", side: Side, region: steps.Box | None, hand: int
    ) -> Prepared:
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
            films[variant] = _narrowed(SPREADS[levels](*stages[stage]), request.dtype)
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
                "raw": steps.fit_matrix(scene.pixels.shape, self.size),
                "crop": steps.compose(to_small, to_crop),
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
        self, scene: "_Scene", request: "_Request", crop: steps.Pixels, to_crop: steps.Matrix, fallbacks: list[str]
    ) -> dict[str, tuple[steps.Pixels, steps.Mask]]:
        """Make the stages that the variants need, at the cache's size, with masks; levels are not spread yet."""
        stages: dict[str, tuple[steps.Pixels, steps.Mask]] = {}
        if "raw" in request.stages:
            everywhere = np.ones(scene.pixels.shape, bool)
            stages["raw"] = steps.fit(_widened(scene.pixels, request.dtype), everywhere, self.size)[:2]
        if not request.stages & {"crop", "full"}:
            return stages
        shape = crop.shape[0], crop.shape[1]
        on_film = np.ones(shape, bool)
        if scene.carrier is not None:
            on_film = steps.warp_mask(np.ones(scene.pixels.shape, bool), to_crop, shape)
        small, small_mask = steps.fit(_widened(crop, request.dtype), on_film, self.size)[:2]
        stages["crop"] = small, small_mask
        if "full" in request.stages:
            if request.mask is None:
                inside = self._segment(crop, request.nets.segmenter, fallbacks)
            else:
                inside = steps.warp_mask(request.mask, to_crop, shape)
            full_mask = small_mask if inside is None else steps.fit_mask(inside & on_film, self.size)
            if inside is None or not full_mask.any():
                fallbacks.append("mask")
                full_mask = small_mask
            stages["full"] = small, full_mask
        return stages

    def _localize(
        self, film: steps.Pixels, localizer: Localizer | None, fallbacks: list[str]
    ) -> tuple["_Hands", tuple[Box4, ...], int]:
        """Find hands, side markers and quarter turns on the carrier; where no hand is found, all of it is one."""
        if localizer is not None:
            localization = localizer(film)
            hands = () if localization is None else self._located_hands(localization, film.shape)
            if localization is not None and hands:
                return hands, tuple(box for _, box in localization.markers), localization.turns % 4
            fallbacks.append("localizer")
        if self.hand == "none":
            return (("", None),), (), 0
        region = steps.find_hand(film, margin=self.margin)
        if region is None:
            fallbacks.append("hand")
        return (("", region),), (), 0

    def _located_hands(self, localization: Localization, shape: tuple[int, ...]) -> "_Hands":
        """Widen and clip the hands a localizer found on a film of this shape; the best, from left to right."""
        turned = shape[::-1] if localization.turns % 2 else shape
        boxes = ((side, clip_box(widen_box(box, self.margin), turned)) for side, box in localization.hands)
        hands = [(side, box) for side, box in boxes if box is not None][:HANDS]
        hands.sort(key=lambda hand: (hand[1][0] + hand[1][2], hand[1][1] + hand[1][3]))
        return tuple(hands)

    def _segment(self, crop: steps.Pixels, segmenter: Segmenter | None, fallbacks: list[str]) -> steps.Mask | None:
        """Give the foreground of the crop, or None where nothing was found."""
        if segmenter is not None:
            mask = segmenter(crop)
            if mask is not None and mask.any():
                return mask
            fallbacks.append("segmenter")
        return steps.foreground(crop, method=self.mask)


_Hands = tuple[tuple[Side, steps.Box | None], ...]  # side of the body, and box on the upright film; None: all of it


@dataclass(frozen=True)
class _Request:
    """What is to be made of a film, and what came with it."""

    variants: tuple[str, ...]
    dtype: np.dtype[Any]
    mask: steps.Mask | None
    anomaly: steps.Mask | None
    nets: Nets

    @property
    def stages(self) -> set[str]:
        return {stage_of(variant) for variant in self.variants}


@dataclass(frozen=True)
class _Scene:
    """A film with its hands located: what all of them have in common.

    film        as read                                         pixels      (H, W) the same, bones bright
    upright     (h, w) the carrier, turned upright              to_upright  film (x, y) -> upright (x, y)
    markers     boxes of side markers on the upright film       fallbacks   steps that found nothing so far
    """

    film: "Film"
    pixels: steps.Pixels
    inverted: bool
    carrier: steps.Corners | None
    upright: steps.Pixels
    to_upright: steps.Matrix
    hands: _Hands
    markers: tuple[Box4, ...]
    turns: int
    fallbacks: tuple[str, ...]


def _given_region(box: Box4, shape: tuple[int, ...]) -> steps.Box:
    region = clip_box(box, shape)
    if region is None:
        raise InputError(
            f"the box {box} lies beside the film of {shape[1]} x {shape[0]} pixels; "
            "give x0 y0 x1 y1 in pixels of the film"
        )
    return region


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


def _widened(pixels: steps.Pixels, target: np.dtype[Any]) -> steps.Pixels:
    """Give an 8-bit film that is to become 16 bit its room before it is averaged; others stay."""
    return pixels.astype(np.uint16) * np.uint16(257) if target == np.uint16 and pixels.dtype == np.uint8 else pixels


def _narrowed(film: steps.Pixels, target: np.dtype[Any]) -> steps.Pixels:
    """Round a 16-bit film that is to become 8 bit, 65535 to 255, after its levels were spread; others stay."""
    return ((film.astype(np.uint32) + 128) // 257).astype(np.uint8) if target != film.dtype else film
