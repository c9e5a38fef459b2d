"""Augmentation of film and mask by the same transform: by imgaug, which only this module imports, or on a device.

The sets are the paper's (section 2.2; probabilities and ranges from its code), in its order. Two things differ on
purpose: the mask is transformed with its film instead of being guessed from black pixels afterwards, and films are not
rescaled afterwards, which in the original undid every darkening and most of every brightening. Films are augmented at
the size the model takes; the original augmented them before resizing.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

AugmentationName = Literal["none", "flips", "advanced", "upright", "mirrored"]
MIN_BOX_SHARE = 0.5
"""A box of which less than this share remains on the film is dropped."""
IDENTITY_TOLERANCE = 1e-4
"""Mean absolute difference of a matrix from the identity up to which imgaug leaves a film as it is."""


@dataclass(frozen=True)
class Draws:
    """What is drawn for each film: probabilities, and ranges of uniform draws. Applied in this order."""

    mirrored: float = 0.0  # probability, left to right
    overturned: float = 0.0  # probability, top to bottom
    brightened: float = 0.0  # probability
    brightness: tuple[float, float] = (1.0, 1.0)  # factor; saturates at the limits of the type, as exposure does
    zoomed: float = 0.0  # probability
    zoom: tuple[float, float] = (1.0, 1.0)  # factor for each axis, about the middle
    shift: tuple[float, float] = (0.0, 0.0)  # shares of the film's side for each axis, with the zoom
    turned: float = 0.0  # probability
    turn: tuple[float, float] = (0.0, 0.0)  # degrees clockwise, about the middle
    whole: bool = False  # on a canvas that a turned film fits on, which is then shrunk to the film's size


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


def import_augmenters() -> Any:
    """Return `imgaug.augmenters`, which does not import by itself with NumPy 2."""
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


def _pipeline(draws: Draws, *, boxes: bool) -> Any:
    """Return imgaug's pipeline for films and masks, or for films, masks and boxes.

    Both have the same augmenters in the same places, as those decide which seed each gets; boxes need imgaug's own
    affine augmenter, films and masks take half its time by `_affine`.
    """
    iaa = import_augmenters()

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
        zoom, shift = ({"x": span, "y": span} for span in (draws.zoom, draws.shift))
        affine = (
            iaa.Affine(scale=zoom, translate_percent=shift if any(draws.shift) else None)
            if boxes
            else _affine(zoom=draws.zoom, shift=draws.shift)
        )
        steps.append(sometimes(draws.zoomed, affine))
    if draws.turned:
        affine = (
            iaa.Affine(rotate=draws.turn, fit_output=draws.whole)
            if boxes
            else _affine(turn=draws.turn, whole=draws.whole)
        )
        if draws.whole:
            affine = iaa.KeepSizeByResize(affine, interpolation="linear")
        steps.append(sometimes(draws.turned, affine))
    return iaa.Sequential(steps)


Span = tuple[float, float]


def _affine(*, zoom: Span = (1.0, 1.0), shift: Span = (0.0, 0.0), turn: Span = (0.0, 0.0), whole: bool = False) -> Any:
    """Return an augmenter with the draws of imgaug's Affine and, but for rounding, its pixels, at half its cost.

    imgaug makes each matrix by several products of scikit-image's transforms; here it is written down. A canvas that
    grew (`whole`) is brought back to the film's size at once.
    """
    import cv2  # here, as training with augmentation on a device needs neither it nor imgaug

    def warp_films(films: Any, random_state: Any, parents: Any, hooks: Any) -> Any:
        matrices = _draw_matrices(random_state, len(films), films[0].shape[0], zoom, shift, turn)
        return np.stack(
            [_warped(film, matrix, cv2.INTER_LINEAR, whole) for film, matrix in zip(films, matrices, strict=True)]
        )

    def warp_masks(masks: Any, random_state: Any, parents: Any, hooks: Any) -> Any:
        matrices = _draw_matrices(random_state, len(masks), masks[0].arr.shape[0], zoom, shift, turn)
        for mask, matrix in zip(masks, matrices, strict=True):
            mask.arr = _warped(mask.arr, matrix, cv2.INTER_NEAREST, whole)
        return masks

    return import_augmenters().Lambda(func_images=warp_films, func_segmentation_maps=warp_masks)


def _draw_matrices(
    random_state: Any, count: int, size: int, zoom: Span, shift: Span, turn: Span
) -> list[NDArray[np.float64]]:
    """Return `count` drawn matrices of (x, y, 1), (3, 3): zoom, turn and shift about the middle of a film of `size`.

    imgaug gives films and masks a generator in the same state. Constants are drawn as well, as each draw advances the
    generator: all draws are those of its Affine.
    """
    from imgaug.parameters import Deterministic, Uniform

    def draw(span: Span) -> NDArray[np.float32]:
        parameter = Uniform(*span) if span[0] < span[1] else Deterministic(span[0])
        samples: NDArray[np.float32] = parameter.draw_samples((count,), random_state=random_state)
        return samples

    def draw_axes(span: Span) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        across = draw(span)
        return across, draw(span) if span[0] < span[1] else across

    zooms, shifts, turns = draw_axes(zoom), draw_axes(shift), draw(turn)
    middle = size / 2.0 - 0.5
    to_middle = np.array([[1, 0, -middle], [0, 1, -middle], [0, 0, 1]])
    back = np.array([[1, 0, middle], [0, 1, middle], [0, 0, 1]])
    matrices = []
    for zoom_x, zoom_y, shift_x, shift_y, degrees in zip(*zooms, *shifts, turns, strict=True):
        radians = np.deg2rad(degrees)
        cos, sin = math.cos(radians), math.sin(radians)
        turned = np.array(
            [[zoom_x * cos, -zoom_y * sin, shift_x * size], [zoom_x * sin, zoom_y * cos, shift_y * size], [0, 0, 1]]
        )
        matrices.append(back @ (turned @ to_middle))
    return matrices


def _warped(image: NDArray[Any], matrix: NDArray[np.float64], interpolation: int, whole: bool) -> NDArray[Any]:
    """Return an image (S, S, C) seen through a matrix (3, 3), with `whole` on a canvas that holds all of it, shrunk to
    the image's size.
    """
    import cv2

    size = image.shape[0]
    canvas = (size, size)
    if whole:
        corners = np.array([(x, y, 1) for x in (0, size - 1) for y in (0, size - 1)]) @ matrix.T
        low, high = corners.min(axis=0)[:2], corners.max(axis=0)[:2]
        canvas = math.ceil(high[0] - low[0] + 1), math.ceil(high[1] - low[1] + 1)
        matrix = matrix - np.outer(np.append(low, 0), matrix[2])
    if np.abs(np.eye(3) - matrix).mean() <= IDENTITY_TOLERANCE:
        return image
    warped = cv2.warpAffine(image, matrix[:2], canvas, flags=interpolation)
    if whole:
        warped = cv2.resize(warped, (size, size), interpolation=interpolation)
    return np.asarray(warped).reshape(size, size, -1)


class Augmentation:
    """A named set of random transforms: `none`, `flips`, `advanced` (flips, brightness, zoom, rotation), `upright` or
    `mirrored`.

    `upright` (brightness, zoom, shift) keeps left and right apart: a mirrored right hand looks like a left one with a
    mirrored R. Nor does it rotate, which would make boxes wider than their content. `mirrored` is what MURA's DenseNet
    was trained with: horizontal flips, rotation up to 10 degrees (Rajpurkar et al. 2017).

    The draws depend on the seed of the call alone, so that a batch is the same in any worker and after any resume.
    """

    def __init__(self, name: AugmentationName) -> None:
        """Build the pipelines; `none` doesn't import imgaug."""
        self.name = name
        self._pipeline = None if name == "none" else _pipeline(SETS[name], boxes=False)
        self._pipeline_with_boxes = None if name == "none" else _pipeline(SETS[name], boxes=True)

    def __reduce__(self) -> tuple[Any, ...]:
        # A worker process builds its own: unpickling imgaug's objects would import it without `import_augmenters`.
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

        Pixels from beyond a film's edge are 0 and outside its mask. Boxes are clipped to the film; those of which too
        little remains get class 0.
        """
        if self._pipeline is None or self._pipeline_with_boxes is None:
            return films, masks, boxes, foreground
        layers = [masks] if foreground is None else [masks, foreground]
        batch: dict[str, Any] = {"images": films[..., None], "segmentation_maps": np.stack(layers, axis=-1)}
        # seed_, as a seed given to Sequential does not reach its children.
        if boxes is None:
            self._pipeline.seed_(seed)
            films, maps = self._pipeline(**batch)
        else:
            self._pipeline_with_boxes.seed_(seed)
            corners = [[tuple(box[:4]) for box in of_film] for of_film in boxes]
            films, maps, moved = self._pipeline_with_boxes(**batch, bounding_boxes=corners)
            boxes = _clipped(boxes, np.asarray(moved, np.float32).reshape(*boxes.shape[:2], 4), masks.shape[1])
        maps = np.asarray(maps)
        return np.asarray(films)[..., 0], maps[..., 0], boxes, None if foreground is None else maps[..., 1]


def _clipped(boxes: NDArray[np.float32], moved: NDArray[np.float32], size: int) -> NDArray[np.float32]:
    """Return boxes with moved corners, clipped to the film: (N, K, 5), (N, K, 4) -> (N, K, 5)."""
    visible = np.clip(moved, 0, size)
    area, visible_area = ((b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1]) for b in (moved, visible))
    kept = (boxes[..., 4] > 0) & (visible_area > 0) & (visible_area >= MIN_BOX_SHARE * area)
    return np.where(kept[..., None], np.concatenate([visible, boxes[..., 4:]], axis=-1), 0).astype(np.float32)


# --- on the device --------------------------------------------------------------------------------------------------


class DeviceAugmentation:
    """A named set as one affine warp of a whole batch, on the device it lies on: an equivalent of `Augmentation`.

    Its draws have the distribution of `Augmentation`'s. They are made on the host from the seed of the call alone, so
    that no device is waited for and all give the same batch. Pixels differ: levels are not rounded in between; a film
    that is zoomed and turned is interpolated once, not three times, so that it stays a little sharper; and a mask is
    aligned with its film, where imgaug's is half a pixel off after a turn that keeps the whole canvas. Boxes and
    foregrounds, and so the networks that learn from them, need `Augmentation`.
    """

    def __init__(self, name: AugmentationName) -> None:
        self.name = name
        self._draws = SETS[name]

    def __call__(self, film: Tensor, mask: Tensor, seed: int) -> tuple[Tensor, Tensor]:
        """Transform a batch: film (N, 1, S, S) float32 in [0, 1], mask (N, 1, S, S) bool; returns the same shapes.

        Pixels from beyond the edge are 0 and outside the mask. But for the set `none`, films are 0 off their masks.
        """
        if self.name == "none":
            return film, mask
        draws, count = self._draws, len(film)
        generator = torch.Generator().manual_seed(seed)

        def uniform(span: Span, *axes: int) -> Tensor:
            low, high = span
            return low + (high - low) * torch.rand(count, *axes, generator=generator, dtype=torch.float64)

        def chosen(probability: float) -> Tensor:
            return uniform((0, 1)) < probability

        sign = torch.stack([torch.where(chosen(p), -1.0, 1.0) for p in (draws.mirrored, draws.overturned)], 1)
        brightness = torch.where(chosen(draws.brightened), uniform(draws.brightness), 1.0)
        zoomed = chosen(draws.zoomed)[:, None]
        zoom, shift = (
            torch.where(zoomed, uniform(draws.zoom, 2), 1.0),
            torch.where(zoomed, uniform(draws.shift, 2), 0.0),
        )
        turn = torch.where(chosen(draws.turned), uniform(draws.turn), 0.0)
        matrix, window = to_source(film.shape[-1], sign, zoom, shift, turn, whole=draws.whole)
        packed = torch.cat([matrix.flatten(1), window.flatten(1), brightness[:, None]], dim=1)
        on_device = packed.float().to(film.device, non_blocking=True)  # one transfer
        if draws.brightened:
            film = (film * on_device[:, -1, None, None, None]).clamp_(max=1)
        window_on_device = on_device[:, 6:10].view(-1, 2, 2) if draws.zoomed and draws.turned else None
        return warp(film, mask, on_device[:, :6].view(-1, 2, 3), window_on_device)


def to_source(
    size: int, sign: Tensor, zoom: Tensor, shift: Tensor, turn: Tensor, *, whole: bool
) -> tuple[Tensor, Tensor]:
    """Return where on its source each place of a transformed film lies, and the part of the source that a zoom keeps.

    Places are (x, y), each -1 to 1 from edge to edge. A film of `size` pixels is flipped (`sign` -1), zoomed about its
    middle, shifted by shares of its side, cropped at its edge, then turned clockwise by degrees: (N, 2), (N, 2), (N, 2)
    and (N,) -> matrices (N, 2, 3) and windows (N, 2, 2), middle and half side for each axis. `whole` shrinks the film
    so that all of it fits on the turned canvas, in whole pixels.
    """
    angle = turn.deg2rad()
    cos, sin = angle.cos(), angle.sin()
    extent = (size - 1) * (cos.abs() + sin.abs()) + 1 if whole else torch.full_like(turn, size)
    canvas = extent.ceil()  # the film lies in its upper left corner, up to half a pixel off the middle
    shrinkage, offset = canvas / size, (canvas - extent) / size
    inverse_turn = torch.stack([torch.stack([cos, sin], 1), torch.stack([-sin, cos], 1)], 1)
    translation = inverse_turn.sum(2) * offset[:, None] - 2 * shift
    scale = sign / zoom
    linear = inverse_turn * shrinkage[:, None, None]
    matrix = scale[:, :, None] * torch.cat([linear, translation[:, :, None]], dim=2)
    return matrix, torch.stack([-2 * shift * scale, scale.abs()], dim=1)


def warp(film: Tensor, mask: Tensor, matrix: Tensor, window: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Return films and masks warped by matrices (N, 2, 3) and, where given, windows as `to_source` returns them.

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
        inside = (source - middle).abs_() <= half
        mask &= inside[:, :1] & inside[:, 1:]
    return film * mask, mask
