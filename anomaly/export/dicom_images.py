"""Two of the images among DICOM results: Secondary Capture and Segmentation (PS3.3 A.8, A.51).

A projection film has no frame of reference. So its Segmentation has none: each pixel is that of the film at the same
row and column, which the Derivation Image functional group says (PS3.3 A.51.5).
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from anomaly.evaluation.heatmap_scale import QUANTILE
from anomaly.export.dicom_identity import (
    NOT_A_DEVICE,
    code,
    decimal,
    derive,
    derived_uid,
    equipment,
    identifiers,
    instance_uid,
    patient_and_study,
    plain_text,
    rule_of,
    stamp,
)
from anomaly.export.dicom_source import SourceHeader
from anomaly.export.finding import MANUFACTURER, UNLIKE, Finding
from anomaly.reporting.heatmap import enlargement, overlay

if TYPE_CHECKING:
    from pydicom import Dataset

REGION = ("AREA1", "Area above the normal range of the anomaly map")
"""Code and meaning of what is segmented. That it is a lesion is not known, so no code of one is used."""

TRACKING_ID = "anomalous area"
"""Of that area, as the report names it."""

_OF_THE_SOURCE = (
    "RecognizableVisualFeatures",
    "LossyImageCompression",
    "LossyImageCompressionRatio",
    "LossyImageCompressionMethod",
)


def segmented(finding: Finding) -> NDArray[np.bool_]:
    """Return the area that the Segmentation holds, (H, W): where the map reaches the scale, inside the mask."""
    return np.asarray((finding.map >= finding.scale) & finding.mask, np.bool_)


def secondary_capture(header: SourceHeader, finding: Finding) -> "Dataset":
    """Return the overlay, as `anomaly heatmap` draws it, as an RGB Secondary Capture; text is burned in, no name."""
    from highdicom.sc import SCImage

    source = header.dataset
    picture = overlay(finding.film, finding.map, finding.mask, finding.scale, title=_title(finding), unit=finding.unit)
    result = SCImage(
        pixel_array=picture,
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),  # the constructor wants one; `stamp` sets that of the film
        **patient_and_study(header),
        **identifiers(header, finding, "sc"),
        **equipment(finding.device),
    )
    result.copy_patient_and_study_information(source)
    result.ConversionType = "WSD"  # workstation
    result.BurnedInAnnotation = "YES"
    result.SecondaryCaptureDeviceManufacturer = MANUFACTURER
    result.SecondaryCaptureDeviceSoftwareVersions = plain_text(finding.device.version)
    derive(result, header, finding, f"{finding.unit} over the film in color; {rule_of(finding)} is the mark on the bar")
    for keyword in _OF_THE_SOURCE:
        if keyword in source:
            result.add(source[keyword])
    zoom = enlargement(finding.film.shape)
    for keyword, (rows, columns) in header.spacing.items():
        setattr(result, keyword, [decimal(rows / zoom), decimal(columns / zoom)])
    for keyword, text in header.spacing_text.items():
        setattr(result, keyword, text)
    if header.aspect:
        result.PixelAspectRatio = list(header.aspect)
    stamp(result, header, finding, "sc")
    return result


def _title(finding: Finding) -> str:
    """Return what is written above the overlay: no name of a patient, a film or a file."""
    device = finding.device
    drawn = ", SYNTHETIC film" if finding.synthetic else ", trained on SYNTHETIC films" * device.trained_on_synthetic
    said = [f"{'flagged' if finding.flagged else 'not flagged'} (from {finding.threshold:.4g})"]
    said += [] if finding.p_value is None else [f"p = {finding.p_value:.2g}"]
    standing = ", ".join(said)
    if finding.out_of_domain:
        standing = f"{' and '.join(said)} {'does' if len(said) == 1 else 'do'} not hold"
    return "\n".join(
        (
            f"{NOT_A_DEVICE}, for research{drawn}; {device.model} {device.version}",
            *([f"{UNLIKE.upper()}: the score means nothing"] if finding.out_of_domain else []),
            f"{finding.score_name} {finding.score:.4g}, {standing}",
            f"mark on the bar: {QUANTILE:.1%} of normal pixels lie below {finding.scale:.2g} ({finding.unit})",
        )
    )


def segmentation(header: SourceHeader, finding: Finding) -> "Dataset | None":
    """Return the area above the scale as a BINARY Segmentation; None where no pixel is."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentationTypeValues, SegmentDescription
    from pydicom.sr.codedict import codes

    area, device = segmented(finding), finding.device
    if not area.any():
        return None
    description = SegmentDescription(
        segment_number=1,
        segment_label="Above normal range",
        segmented_property_category=codes.SCT.SpatialAndRelationalConcept,
        segmented_property_type=code(*REGION),
        algorithm_type="AUTOMATIC",
        algorithm_identification=AlgorithmIdentificationSequence(
            name=plain_text(f"{MANUFACTURER} {device.model}"),
            family=codes.DCM.ArtificialIntelligence,
            version=plain_text(f"{device.version} {device.digest[:12]}"),
            source=MANUFACTURER,
            parameters=parameters(finding),
        ),
        tracking_uid=tracking_uid(header, finding),
        tracking_id=TRACKING_ID,
    )
    unlike = f"; the film is {UNLIKE}" * bool(finding.out_of_domain)
    description.SegmentDescription = plain_text(rule_of(finding) + unlike, 1024)
    result = Segmentation(
        source_images=[header.dataset],
        pixel_array=area.astype(np.uint8),
        segmentation_type=SegmentationTypeValues.BINARY,
        segment_descriptions=[description],
        content_label="ANOMALY",
        content_description=f"{NOT_A_DEVICE}, for research",
        **identifiers(header, finding, "seg"),
        **equipment(device),
    )
    if header.aspect:
        result.PixelAspectRatio = list(header.aspect)
    stamp(result, header, finding, "seg")
    return result


def tracking_uid(header: SourceHeader, finding: Finding) -> str:
    """Return the UID by which the report speaks of the segmented area."""
    return derived_uid(instance_uid(header, finding, "seg"), "tracking")


def parameters(finding: Finding) -> dict[str, str]:
    """Return the parameters of the algorithm, for TID 4019 and its macro."""
    said = {"score": finding.score_name, "run": finding.device.run, **finding.device.parameters}
    if finding.device.trained_on_synthetic:
        said["trained on"] = "SYNTHETIC films"
    return {plain_text(name): plain_text(value) for name, value in said.items()}
