"""The Structured Report among DICOM results: TID 1500 of PS3.16, as Comprehensive SR (PS3.3 A.35.3)."""

from typing import TYPE_CHECKING, Any

from anomaly.evaluation.heatmap_scale import QUANTILE
from anomaly.export.dicom_identity import (
    NOT_A_DEVICE,
    code,
    derived_uid,
    equipment,
    identifiers,
    instance_uid,
    plain_text,
    stamp,
)
from anomaly.export.dicom_images import REGION, TRACKING_ID, parameters, segmented, tracking_uid
from anomaly.export.dicom_source import SourceHeader
from anomaly.export.finding import MANUFACTURER, Finding

if TYPE_CHECKING:
    from pydicom import Dataset

CONCEPTS = {
    "score": ("SCORE1", "Anomaly score"),
    "other": ("SCORE2", "Another anomaly score"),
    "threshold": ("THRESH1", "Anomaly score from which a film is flagged"),
    "p": ("PVALUE1", "Conformal p-value of the anomaly score"),
    "low": ("PVALUE2", "Share of normals that score as high, 95% interval, lower limit"),
    "high": ("PVALUE3", "Share of normals that score as high, 95% interval, upper limit"),
    "scale": ("SCALE1", "Upper limit of the anomaly map on normal films"),
    "largest": ("MAXIMUM1", "Largest value of the anomaly map"),
    "share": ("SHARE1", "Share of the examined area above the normal range"),
    "flag": ("FLAG1", "Flagged by the threshold"),
    "flag without meaning": ("FLAG2", "Flagged, but neither flag nor p-value holds for this film"),
    "no flag without meaning": ("FLAG3", "Not flagged, but neither flag nor p-value holds for this film"),
    "unlike": ("DOMAIN1", "Film is unlike the films of the training"),
    "use": ("USE1", "Intended use"),
    "research": ("RESEARCH1", f"{NOT_A_DEVICE}, for research"),
    "finding": ("FILM1", "Anomaly score of a film"),
}
"""Private codes of the report, value and meaning: no standard scheme has terms for them."""


def structured_report(header: SourceHeader, finding: Finding, segmentation: "Dataset | None") -> "Dataset":
    """Return the report: scores, threshold, p-value, the area above the normal range, and the device that says so.

    segmentation  of the same finding, to refer to; None leaves the area out.
    """
    from highdicom import sr
    from pydicom.sr.codedict import codes

    groups: list[Any] = [_film_group(header, finding)]
    evidence = [header.dataset]
    if segmentation is not None:
        groups.append(_area_group(header, finding, segmentation))
        evidence.append(segmentation)
    device = finding.device
    context = sr.ObservationContext(
        observer_device_context=sr.ObserverContext(
            observer_type=codes.DCM.Device,
            observer_identifying_attributes=sr.DeviceObserverIdentifyingAttributes(
                uid=derived_uid("device", device.digest, device.version),
                name=plain_text(f"{MANUFACTURER} {device.model}, run {device.run}"),
                manufacturer_name=MANUFACTURER,
                model_name=plain_text(f"{device.model} {device.version}"),
                serial_number=device.digest[:64],
            ),
        )
    )
    report = sr.MeasurementReport(
        observation_context=context,
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
    )
    result = sr.ComprehensiveSR(
        evidence=evidence,
        content=report,
        is_complete=True,
        **identifiers(header, finding, "sr"),
        **equipment(device),
    )
    stamp(result, header, finding, "sr")
    return result


def _film_group(header: SourceHeader, finding: Finding) -> Any:
    """Return what is said of the film as a whole: TID 1501."""
    from highdicom import sr

    said = [("score", finding.score), ("threshold", finding.threshold), ("scale", finding.scale)]
    said += [("largest", float(finding.map.max()))]
    if finding.p_value is not None:
        said += [("p", finding.p_value)]
    if finding.p_interval is not None:
        said += [("low", finding.p_interval[0]), ("high", finding.p_interval[1])]
    measurements = [_measurement(code(*CONCEPTS[name]), value) for name, value in said]
    for name, value in finding.scores.items():
        if name != finding.score_name:
            measurements.append(_measurement(code(*CONCEPTS["other"]), value, method=name))
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=derived_uid(instance_uid(header, finding, "sr"), "film"),
            identifier=f"film{f', hand {finding.hand} of 2 from the left' if finding.hand else ''}",
        ),
        finding_type=code(*CONCEPTS["finding"]),
        algorithm_id=_algorithm(finding),
        measurements=measurements,
        qualitative_evaluations=_evaluations(finding),
        source_images=[sr.SourceImageForMeasurementGroup.from_source_image(header.dataset)],
    )


def _evaluations(finding: Finding) -> list[Any]:
    """Return what is said in words: whether it is flagged, whether that holds, and what it may be used for."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    flagged = codes.SCT.Yes if finding.flagged else codes.SCT.No
    if finding.out_of_domain:  # no plain yes or no, which could be read without the other answer
        flagged = code(*CONCEPTS["flag without meaning" if finding.flagged else "no flag without meaning"])
    said = {"flag": flagged, "use": code(*CONCEPTS["research"])}
    if finding.out_of_domain is not None:
        said["unlike"] = codes.SCT.Yes if finding.out_of_domain else codes.SCT.No
    return [sr.QualitativeEvaluation(name=code(*CONCEPTS[name]), value=value) for name, value in said.items()]


def _area_group(header: SourceHeader, finding: Finding, segmentation: "Dataset") -> Any:
    """Return what is said of the area above the normal range: TID 1410."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    region = sr.ReferencedSegmentationFrame(
        sop_class_uid=segmentation.SOPClassUID,
        sop_instance_uid=segmentation.SOPInstanceUID,
        frame_number=1,
        segment_number=1,
        source_image=sr.SourceImageForSegmentation.from_source_image(header.dataset),
    )
    # Frame or segment, not both: PS3.3 table 10-3. The Segmentation has one of each.
    del region[0].ReferencedSOPSequence[0].ReferencedSegmentNumber
    area = segmented(finding)
    measurements = [_measurement(code(*CONCEPTS["share"]), float(area.sum() / max(1, finding.mask.sum())))]
    if header.pixel_area is not None:
        square_mm = float(area.sum()) * header.pixel_area
        measurements.append(sr.Measurement(codes.SCT.Area, square_mm, codes.UCUM.SquareMillimeter))
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=tracking_uid(header, finding), identifier=TRACKING_ID),
        referenced_segment=region,
        finding_type=code(*REGION),
        algorithm_id=_algorithm(finding),
        measurements=measurements,
    )


def _measurement(name: Any, value: float, method: str = "") -> Any:
    """Return a number without a unit; `method` is a score's own name, where several are called alike."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    how = code(f"M{derived_uid(method)[-14:]}", plain_text(method)) if method else None
    return sr.Measurement(name=name, value=value, unit=codes.UCUM.NoUnits, method=how)


def _algorithm(finding: Finding) -> Any:
    """Return the algorithm's identification: TID 4019."""
    from highdicom import sr
    from pydicom.sr.codedict import codes

    device = finding.device
    return sr.AlgorithmIdentification(
        name=plain_text(f"{MANUFACTURER} {device.model}"),
        version=plain_text(f"{device.version} {device.digest[:12]}"),
        parameters=[
            *(f"{name}: {value}" for name, value in parameters(finding).items()),
            plain_text(f"map in {finding.unit}; normal range up to the {QUANTILE:.1%} quantile of normal pixels", 256),
        ],
        family=codes.DCM.ArtificialIntelligence,
        manufacturer=MANUFACTURER,
    )
