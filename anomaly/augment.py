"""Augmentation by imgaug, film and mask by the same transform: the one door to imgaug.

The sets are the paper's (section 2.2; probabilities and ranges from its code), in its order. Two things differ on
purpose: the mask travels with its film instead of being guessed from black pixels afterwards, and no per-film
rescaling follows, which in the original undid every darkening and most of every brightening. Films are augmented at
the size the model takes, where the original did it before resizing.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

AugmentationName = Literal["none", "flips", "advanced", "upright", "mirrored"]
LEFT_OF_A_BOX = 0.5
"""A box of which less than this share is left on the film is no target any more."""


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


def _pipeline(name: AugmentationName) -> Any:
    iaa = _augmenters()
    if name == "upright":
        zoomed = iaa.Affine(
            scale={"x": (0.8, 1.15), "y": (0.8, 1.15)}, translate_percent={"x": (-0.1, 0.1), "y": (-0.1, 0.1)}
        )
        return iaa.Sequential([iaa.Sometimes(0.5, iaa.Multiply((0.8, 1.2))), iaa.Sometimes(0.7, zoomed)])
    if name == "mirrored":
        return iaa.Sequential([iaa.Fliplr(0.5), iaa.Affine(rotate=(-10, 10))])
    flips = [iaa.Fliplr(0.5), iaa.Flipud(0.5)]
    if name == "flips":
        return iaa.Sequential(flips)
    turned = iaa.KeepSizeByResize(iaa.Affine(rotate=(-20, 20), fit_output=True), interpolation="linear")
    return iaa.Sequential(
        [
            *flips,
            iaa.Sometimes(0.5, iaa.Multiply((0.8, 1.2))),  # saturates at the type's ends, as exposure does
            iaa.Sometimes(0.5, iaa.Affine(scale={"x": (0.8, 1.2), "y": (0.8, 1.2)})),
            iaa.Sometimes(
                0.5, turned
            ),  # the canvas grows so that no finger is cut off, then shrinks to the film's size
        ]
    )


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
        self._pipeline = None if name == "none" else _pipeline(name)

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
