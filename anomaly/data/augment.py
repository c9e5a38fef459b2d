"""Augmentation, film and mask by the same transform: by imgaug, to which this is the one door, or on a film's device.

The sets are the paper's (section 2.2; probabilities and ranges from its code), in its order. Two things differ on
purpose: the mask travels with its film instead of being guessed from black pixels afterwards, and no per-film
rescaling follows, which in the original undid every darkening and most of every brightening. Films are augmented at
the size the model takes, where the original did it before resizing.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

AugmentationName = Literal["none", "flips", "advanced", "upright", "mirrored"]
LEFT_OF_A_BOX = 0.5
"""A box of which less than this share is left on the film is no target any more."""
STILL = 1e-4
"""Mean difference from the identity up to which imgaug leaves a film where it is."""


@dataclass(frozen=True)
class Draws:
    """What a set draws for each film: shares of films, and ranges drawn from evenly. Applied in this order."""

    mirrored: float = 0.0  # share of films, left to right
    overturned: float = 0.0  # share of films, top to bottom
    brightened: float = 0.0  # share of films
    brightness: tuple[float, float] = (1.0, 1.0)  # a factor; saturates at the type's ends, as exposure does
    zoomed: float = 0.0  # share of films
    zoom: tuple[float, float] = (1.0, 1.0)  # a factor for each axis, about the middle
    shift: tuple[float, float] = (0.0, 0.0)  # shares of the film's side for each axis, with the zoom
    turned: float = 0.0  # share of films
    turn: tuple[float, float] = (0.0, 0.0)  # degrees clockwise, about the middle
    whole: bool = False  # the canvas grows so that a turn cuts off no finger, then shrinks to the film's size


SETS: dict[AugmentationName, Draws] = {
    "none": Draws(),
    "flips": Draws(mirrored=0.5, overturned=0.5),
    "advanced": Draws(
        mirrored=0.5,
        overturned=0.5,
        brightened=0.5,
        brightness=(0.8, 1.2),
        zoomed=0.5,
        zoom=(0.8, 1.2),
        turned=0.5,
        turn=(-20, 20),
        whole=True,
    ),
    "upright": Draws(brightened=0.5, brightness=(0.8, 1.2), zoomed=0.7, zoom=(0.8, 1.15), shift=(-0.1, 0.1)),
    "mirrored": Draws(mirrored=0.5, turned=1.0, turn=(-10, 10)),
}


# --- by imgaug ------------------------------------------------------------------------------------------------------


def _augmenters() -> Any:
    # imgaug 0.4.0 reads np.sctypes, gone in NumPy 2, while it is imported; nothing else of it needs the old NumPy.
    if not hasattr(np, "sctypes"):
        vars(np)["sctypes"] = {
            "int": [np.int8, np.int16, np.int32, np.int64],
            "uint": [np.uint8, np.uint16, np.uint32, np.uint64],
            "float": [np.float16, np.float32, np.float64],
            "complex": [np.complex64, np.complex128],
            "others": [bool, object, bytes, str, np.void],
        }
    from imgaug import augmenters

    return augmenters


def _affine() -> Any:
    """Return imgaug's Affine with the same draws and, but for rounding, the same pixels at half its cost.

    Most of that is Python: here each matrix is made once for film and mask, not twice by scikit-image, and a canvas
    that grew (`whole`) is brought back to the film's size at once. Bounding boxes go imgaug's own way.
    """
    iaa = _augmenters()

    class Affine(iaa.Affine):  # type: ignore[misc, name-defined]
        def __init__(self, *, whole: bool = False, **settings: Any) -> None:
            super().__init__(fit_output=whole, **settings)

        def _augment_batch_(self, batch: Any, random_state: Any, parents: Any, hooks: Any) -> Any:
            if batch.bounding_boxes is not None:
                return super()._augment_batch_(batch, random_state, parents, hooks)
            samples = self._draw_samples(batch.nb_rows, random_state)
            films = []
            for i, (film, mask) in enumerate(zip(batch.images, batch.segmentation_maps, strict=True)):
                moved = self._moved(film, mask.arr, samples, i)
                films.append(moved[0])
                mask.arr = moved[1]
            batch.images = np.stack(films)
            return batch

        def _moved(self, film: Any, mask: Any, samples: Any, i: int) -> tuple[Any, Any]:
            size = film.shape[0]
            matrix, canvas = _matrix(samples, i, size), (size, size)
            if self.fit_output:
                corners = np.array([(x, y, 1) for x in (0, size - 1) for y in (0, size - 1)]) @ matrix.T
                low, high = corners.min(axis=0)[:2], corners.max(axis=0)[:2]
                canvas = math.ceil(high[0] - low[0] + 1), math.ceil(high[1] - low[1] + 1)
                matrix[:2] -= np.outer(low, matrix[2])
            if np.abs(np.eye(3) - matrix).mean() <= STILL:
                return film, mask
            film = cv2.warpAffine(film, matrix[:2], canvas, flags=cv2.INTER_LINEAR)
            mask = cv2.warpAffine(mask, matrix[:2], canvas, flags=cv2.INTER_NEAREST)
            if self.fit_output:
                film = cv2.resize(film, (size, size), interpolation=cv2.INTER_LINEAR)
                mask = cv2.resize(mask, (size, size), interpolation=cv2.INTER_NEAREST)
            return film.reshape(size, size, 1), mask.reshape(size, size, -1)

    return Affine


def _matrix(samples: Any, i: int, size: int) -> NDArray[np.float64]:
    """Return what imgaug's draw `i` makes of (x, y, 1), (3, 3): zoom, turn and shift about the film's middle."""
    turn = np.deg2rad(samples.rotate[i])
    (across, down), middle = (axis[i] for axis in samples.scale), size / 2.0 - 0.5
    shift = [axis[i] * size if samples.translate_mode == "percent" else axis[i] for axis in samples.translate]
    cos, sin = math.cos(turn), math.sin(turn)
    about = np.array([[1, 0, -middle], [0, 1, -middle], [0, 0, 1]])
    turned = np.array([[across * cos, -down * sin, shift[0]], [across * sin, down * cos, shift[1]], [0, 0, 1]])
    back = np.array([[1, 0, middle], [0, 1, middle], [0, 0, 1]])
    matrix: NDArray[np.float64] = back @ (turned @ about)
    return matrix


def _pipeline(draws: Draws) -> Any:
    iaa, affine = _augmenters(), _affine()

    def sometimes(share: float, step: Any) -> Any:
        return step if share == 1 else iaa.Sometimes(share, step)

    steps = []
    if draws.mirrored:
        steps.append(iaa.Fliplr(draws.mirrored))
    if draws.overturned:
        steps.append(iaa.Flipud(draws.overturned))
    if draws.brightened:
        steps.append(sometimes(draws.brightened, iaa.Multiply(draws.brightness)))
    if draws.zoomed:
        zoom: dict[str, Any] = {"scale": {"x": draws.zoom, "y": draws.zoom}}
        if any(draws.shift):
            zoom["translate_percent"] = {"x": draws.shift, "y": draws.shift}
        steps.append(sometimes(draws.zoomed, affine(**zoom)))
    if draws.turned:
        turn = affine(rotate=draws.turn, whole=draws.whole)
        if draws.whole:
            turn = iaa.KeepSizeByResize(turn, interpolation="linear")
        steps.append(sometimes(draws.turned, turn))
    return iaa.Sequential(steps)


class Augmentation:
    """A named set of random transforms: `none`, `flips`, `advanced` (flips, brightness, zoom, rotation), `upright` or
    `mirrored`.

    `upright` (brightness, zoom, shift) keeps what tells left from right: a mirrored right hand is a left one, with an R
    that is no letter. Nor does it rotate, which would make boxes wider than what is in them. `mirrored` is what MURA's
    DenseNet was trained with: horizontal flips, rotation up to 10 degrees (Rajpurkar et al. 2017).

    What it draws depends on the seed of the call alone, so a batch comes out the same in any worker and after any
    resume.
    """

    def __init__(self, name: AugmentationName) -> None:
        """Build the pipeline; `none` doesn't import imgaug."""
        self.name = name
        self._pipeline = None if name == "none" else _pipeline(SETS[name])

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process builds its own: imgaug's objects can't be sent to one that has not imported it by our door.
        return Augmentation, (self.name,)

    def __call__(
        self,
        films: NDArray[Any],
        masks: NDArray[np.bool_],
        seed: int,
        boxes: NDArray[np.float32] | None = None,
        foreground: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.float32] | None, NDArray[np.bool_] | None]:
        """Transform a batch: films (N, S, S) uint8 or uint16, masks (N, S, S) bool, boxes (N, K, 5), foreground
        (N, S, S) bool; returns the same shapes and types.

        What comes in from outside a film is level 0 and outside its mask. Boxes are cut off at the film's rim; of which
        too little is left, they are none (class 0).
        """
        if self._pipeline is None:
            return films, masks, boxes, foreground
        self._pipeline.seed_(seed)  # a seed given to Sequential does not reach its children; this one does
        layers = [masks] if foreground is None else [masks, foreground]
        given: dict[str, Any] = {"images": films[..., None], "segmentation_maps": np.stack(layers, axis=-1)}
        if boxes is None:
            out, turned = self._pipeline(**given)
        else:
            out, turned, moved = self._pipeline(**given, bounding_boxes=[[tuple(b[:4]) for b in one] for one in boxes])
            boxes = _cut(boxes, np.asarray(moved, np.float32).reshape(*boxes.shape[:2], 4), films.shape[1])
        turned = np.asarray(turned)
        inside = None if foreground is None else turned[..., 1]
        return np.asarray(out)[..., 0], turned[..., 0], boxes, inside


def _cut(boxes: NDArray[np.float32], moved: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return boxes where they have moved to, within the film: (N, K, 5), (N, K, 4) -> (N, K, 5)."""
    seen = np.clip(moved, 0, size)
    area, left = ((b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1]) for b in (moved, seen))
    there = (boxes[..., 4] > 0) & (left > 0) & (left >= LEFT_OF_A_BOX * area)
    return np.where(there[..., None], np.concatenate([seen, boxes[..., 4:]], axis=-1), 0).astype(np.float32)


# --- on the device --------------------------------------------------------------------------------------------------


class DeviceAugmentation:
    """A named set as one affine warp of a whole batch, on the device it lies on: `Augmentation` in another way.

    What it draws has the distribution of `Augmentation`'s draws and is drawn on the host from the seed of the call
    alone, so that no device is waited for and all give the same batch. It is no bitwise twin: levels are not rounded in
    between; a film that is zoomed and turned is interpolated once, not three times, so it stays a little sharper; and a
    mask lies where its film does, where imgaug's lies half a pixel off after a turn that keeps the whole canvas.
    Boxes and foregrounds, and so the nets that learn from them, stay with `Augmentation`.
    """

    def __init__(self, name: AugmentationName) -> None:
        self.name = name
        self._draws = SETS[name]

    def __call__(self, film: Tensor, mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Transform a batch: film (N, 1, S, S) float32 in [0, 1], mask (N, 1, S, S) bool; returns the same shapes.

        What comes in from outside a film is 0 and outside its mask; but for the set `none`, so is all off the mask.
        """
        if self.name == "none":
            return film, mask
        draws, count = self._draws, len(film)
        generator = torch.Generator().manual_seed(seed)

        def even(span: tuple[float, float], *axes: int) -> Tensor:
            low, high = span
            return low + (high - low) * torch.rand(count, *axes, generator=generator, dtype=torch.float64)

        def some(share: float) -> Tensor:
            return even((0, 1)) < share

        sign = torch.stack([torch.where(some(share), -1.0, 1.0) for share in (draws.mirrored, draws.overturned)], 1)
        brightness = torch.where(some(draws.brightened), even(draws.brightness), 1.0)
        zoomed = some(draws.zoomed)[:, None]
        zoom, shift = torch.where(zoomed, even(draws.zoom, 2), 1.0), torch.where(zoomed, even(draws.shift, 2), 0.0)
        turn = torch.where(some(draws.turned), even(draws.turn), 0.0)
        matrix, window = to_source(film.shape[-1], sign, zoom, shift, turn, whole=draws.whole)
        packed = torch.cat([matrix.flatten(1), window.flatten(1), brightness[:, None]], dim=1)
        moved = packed.float().to(film.device, non_blocking=True)
        if draws.brightened:
            film = (film * moved[:, -1, None, None, None]).clamp_(max=1)
        cut = moved[:, 6:10].view(-1, 2, 2) if draws.zoomed and draws.turned else None
        return warp(film, mask, moved[:, :6].view(-1, 2, 3), cut)


def to_source(
    size: int, sign: Tensor, zoom: Tensor, shift: Tensor, turn: Tensor, *, whole: bool
) -> tuple[Tensor, Tensor]:
    """Return where on its source each place of a transformed film comes from, and what of the source a zoom leaves.

    Places are (x, y), each -1 to 1 from rim to rim. A film of `size` pixels is flipped (`sign` -1), zoomed about its
    middle, shifted by shares of its side, cut at its rim, then turned clockwise by degrees: (N, 2), (N, 2), (N, 2) and
    (N,) -> matrices (N, 2, 3) and windows (N, 2, 2), middle and half side for each axis. `whole` shrinks the film to
    what a turn needs of room, in whole pixels.
    """
    angle = turn.deg2rad()
    cos, sin = angle.cos(), angle.sin()
    room = (size - 1) * (cos.abs() + sin.abs()) + 1 if whole else torch.full_like(turn, size)
    canvas = room.ceil()  # the film lies in its upper left corner, up to half a pixel off the middle
    shrunk, off = canvas / size, (canvas - room) / size
    back = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    at = back.sum(2) * off[:, None] - 2 * shift
    scale = sign / zoom
    matrix = scale[:, :, None] * torch.cat([back * shrunk[:, None, None], at[:, :, None]], dim=2)
    return matrix, torch.stack([-2 * shift * scale, scale.abs()], dim=1)


def warp(film: Tensor, mask: Tensor, matrix: Tensor, window: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return films and masks seen through matrices (N, 2, 3) and, where given, windows as `to_source` has them.

    Films (N, 1, S, S) are interpolated, masks (N, 1, S, S) bool take the nearest pixel; films are 0 off their masks.
    """
    size = film.shape[-1]
    along = (torch.arange(size, device=film.device, dtype=film.dtype) * 2 + 1) / size - 1
    # Not affine_grid: its matrix product is rounded to 10 bits where TF32 is on, which is a quarter of a pixel at 512.
    across, down, shift = (matrix[:, :, None, None, column] for column in range(3))
    source = across * along + (down * along[:, None] + shift)  # (N, 2, S, S)
    grid = source.permute(0, 2, 3, 1)
    film = grid_sample(film, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    mask = grid_sample(mask.to(film.dtype), grid, mode="nearest", padding_mode="zeros", align_corners=False) > 0.5
    if window is not None:
        middle, half = window[:, 0, :, None, None], window[:, 1, :, None, None]
        near = (source - middle).abs_() <= half
        mask &= near[:, :1] & near[:, 1:]
    return film * mask, mask
