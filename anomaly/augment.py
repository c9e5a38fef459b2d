"""Augmentation by imgaug, film and mask by the same transform: the one door to imgaug.

The sets are the paper's (section 2.2; probabilities and ranges from its code), in its order. Two things differ on
purpose: the mask travels with its film instead of being guessed from black pixels afterwards, and no per-film
rescaling follows, which in the original undid every darkening and most of every brightening. Films are augmented at
the size the model takes, where the original did it before resizing.
"""

from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

AugmentationName = Literal["none", "flips", "advanced"]


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
    """A named set of random transforms: `none`, `flips` or `advanced` (flips, brightness, zoom, rotation).

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
        self, films: NDArray[Any], masks: NDArray[np.bool_], seed: int
    ) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Transform a batch: films (N, S, S) uint8 or uint16, masks (N, S, S) bool; returns the same shapes and types.

        What comes in from outside a film is level 0 and outside its mask.
        """
        if self._pipeline is None:
            return films, masks
        self._pipeline.seed_(seed)  # a seed given to Sequential does not reach its children; this one does
        out, turned = self._pipeline(images=films[..., None], segmentation_maps=masks[..., None])
        return np.asarray(out)[..., 0], np.asarray(turned)[..., 0]
