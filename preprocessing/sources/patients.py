"""Who a film is of, by the header of its file."""

from __future__ import annotations

from collections.abc import Mapping

IDENTITY_TAGS = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID")


def identity_from_tags(tags: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Give patient and study by DICOM keywords, each None where the header does not say."""
    return tags.get("PatientID"), tags.get("StudyInstanceUID")
