"""The Parametric Map among DICOM results: the anomaly map's own numbers, float32 (PS3.3 A.75).

It has one frame, with the rows and columns of the film. Unlike a Segmentation it must have a frame of reference, which
a projection film does not: it gets one of its own, shared with no other image, whose origin is the center of the film's
first pixel. Only distances within the film mean anything in it.
"""

import copy
from typing import TYPE_CHECKING

import numpy as np

from anomaly.export.dicom_identity import (
    NOT_A_DEVICE,
    code,
    derive,
    derived_uid,
    equipment,
    identifiers,
    instance_uid,
    plain_text,
    rule_of,
    stamp,
)
from anomaly.export.dicom_source import SourceHeader
from anomaly.export.finding import Finding
from anomaly.reporting.heatmap import REACH

if TYPE_CHECKING:
    from pydicom import Dataset

_DERIVATION = ("MAP1", "Anomaly map of a detector")
_AXES = {"L": (1, 0, 0), "R": (-1, 0, 0), "P": (0, 1, 0), "A": (0, -1, 0), "H": (0, 0, 1), "F": (0, 0, -1)}
"""Directions of a biped in patient coordinates, PS3.3 C.7.6.2.1.1."""
_NO_ORIENTATION = ("L", "P")


def parametric_map(header: SourceHeader, finding: Finding) -> "Dataset":
    """Return the map's own numbers as a Parametric Map of the film's rows and columns."""
    from highdicom import VOILUTTransformation
    from highdicom.pm import ParametricMap, RealWorldValueMapping
    from pydicom.sr.codedict import codes

    values = np.ascontiguousarray(finding.map, np.float32)
    plane, geometry = _plane(header, finding)
    mapping = RealWorldValueMapping(
        lut_label="ANOMALY",
        lut_explanation=plain_text(finding.unit),
        unit=codes.UCUM.NoUnits,
        value_range=(0.0, float(values.max())),
        slope=1.0,
        intercept=0.0,
    )
    window = VOILUTTransformation(  # as far as the colors of the overlay run
        window_center=REACH / 2 * finding.scale, window_width=REACH * finding.scale, voi_lut_function="LINEAR_EXACT"
    )
    result = ParametricMap(
        source_images=[plane],
        pixel_array=values,
        contains_recognizable_visual_features=header.dataset.get("RecognizableVisualFeatures") == "YES",
        real_world_value_mappings=[mapping],
        voi_lut_transformations=[window],
        content_label="ANOMALY_MAP",
        content_description=f"{NOT_A_DEVICE}, for research",
        content_qualification="RESEARCH",
        derivation=code(*_DERIVATION),
        **identifiers(header, finding, "pm"),
        **equipment(finding.device),
    )
    derive(result, header, finding, f"{finding.unit}; {rule_of(finding)}; {geometry}")
    stamp(result, header, finding, "pm")
    return result


def _plane(header: SourceHeader, finding: Finding) -> "tuple[Dataset, str]":
    """Return the film's header with a plane in a frame of reference of its own, and in words what that rests on.

    Raises nothing: directions or distances that the film does not tell are assumed, and the words say so.
    """
    plane = copy.deepcopy(header.dataset)
    plane.FrameOfReferenceUID = derived_uid(instance_uid(header, finding, "pm"), "frame of reference")
    plane.ImagePositionPatient = [0, 0, 0]
    row, column = (value[0] for value in header.orientation or _NO_ORIENTATION)
    plane.ImageOrientationPatient = [*_AXES[row], *_AXES[column]]
    keyword, spacing = next(iter(header.spacing.items()), ("", None))
    if spacing is None:
        spacing = (1.0, 1.0) if header.aspect is None else (header.aspect[0] / header.aspect[1], 1.0)
    plane.PixelSpacing = [float(f"{value:.8g}") for value in spacing]
    plane.SliceThickness = None
    said = [f"distances by the film's {keyword}" if keyword else "distances not known, 1 mm a pixel assumed"]
    said += [] if header.orientation else ["directions not known, assumed"]
    return plane, "; ".join(["frame of reference of this film alone", *said])
