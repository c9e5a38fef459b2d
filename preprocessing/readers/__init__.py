"""Films of any format to one grey array at full depth; `film` says how, and these are its public names."""

from preprocessing.readers.film import (
    OBJECT_HEAD_BYTES,
    Film,
    other_object_by_head,
    peek_depth,
    read_dicom_header,
    read_film,
    read_mask,
)
from preprocessing.readers.header import MAX_BYTES, MAX_PIXELS, MIN_SIDE
from preprocessing.readers.recognize import HEAD_BYTES, SUFFIXES, recognize

__all__ = [
    "HEAD_BYTES",
    "MAX_BYTES",
    "MAX_PIXELS",
    "MIN_SIDE",
    "OBJECT_HEAD_BYTES",
    "SUFFIXES",
    "Film",
    "other_object_by_head",
    "peek_depth",
    "read_dicom_header",
    "read_film",
    "read_mask",
    "recognize",
]
