"""The preprocessing steps, each a pure function of a film.

A film is (H, W), uint8 or uint16, larger is brighter; a mask is (H, W) bool. No step changes its input, none depends on
chance or on earlier films, and a flat film is a valid film. Decisions (inverted? where is the exposed field, the
carrier, the limb, the foreground?) are taken on an 8-bit copy of at most REDUCED pixels a side: GrabCut knows no other
depth, and a decision needs no more. The film itself keeps its depth throughout.
"""

from preprocessing.steps.carrier import find_carrier
from preprocessing.steps.field import find_field
from preprocessing.steps.foreground import find_hand, foreground, largest
from preprocessing.steps.geometry import compose, fill, fit, fit_mask, fit_matrix, rectify, square, warp_mask
from preprocessing.steps.levels import clahe, equalize, local_contrast, stretch
from preprocessing.steps.polarity import invert, is_inverted, polarity_odds
from preprocessing.steps.reduction import REDUCED, Box, Copies, Corners, Levels, Mask, Matrix, Pixels

__all__ = [
    "REDUCED",
    "Box",
    "Copies",
    "Corners",
    "Levels",
    "Mask",
    "Matrix",
    "Pixels",
    "clahe",
    "compose",
    "equalize",
    "fill",
    "find_carrier",
    "find_field",
    "find_hand",
    "fit",
    "fit_mask",
    "fit_matrix",
    "foreground",
    "invert",
    "is_inverted",
    "largest",
    "local_contrast",
    "polarity_odds",
    "rectify",
    "square",
    "stretch",
    "warp_mask",
]
