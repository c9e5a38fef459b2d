"""PNG, JPEG, TIFF, DICOM and NIfTI to one grey array at full depth; `film` says how, and these are its public names."""

from preprocessing.readers.film import SUFFIXES, Film, peek_depth, read_film, read_mask, recognize
from preprocessing.readers.header import MAX_BYTES, MAX_PIXELS, MIN_SIDE

__all__ = [
    "MAX_BYTES",
    "MAX_PIXELS",
    "MIN_SIDE",
    "SUFFIXES",
    "Film",
    "peek_depth",
    "read_film",
    "read_mask",
    "recognize",
]
