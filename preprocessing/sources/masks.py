"""Which files are masks of films, by their names; none of them is opened.

NAME is a film's file name without its suffix; "beside its folder" is where the folder that it lies in itself lies, and
for films at the top of the source the top.

_hand       `image<digits>_hand.png` beside `image<digits>.<suffix>`, as the built-in films have it.
_mask       NAME_mask.png beside the film.
masks/      a folder `masks`, else `labels`, beside the film's folder: in it the film's own file name (unless that is
            a JPEG or a DICOM file, which masks cannot be), else NAME.png; for NIfTI films also NAME.nii.gz and
            NAME.nii. So `images/a.nii` goes with `labels/a.nii.gz`.
nnU-Net     `labelsTr/a.nii.gz` for `imagesTr/a_0000.nii.gz`, and so for Ts, PNG and TIFF.
NIfTI       NAME_mask or NAME_seg, .nii.gz or .nii, beside a NIfTI film.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from preprocessing.readers import SUFFIXES

LOSSLESS = frozenset({".png", ".tif", ".tiff", ".nii", ".nii.gz"})
_NIFTI = (".nii.gz", ".nii")
_MASK_FOLDERS = ("masks", "labels")
_MASK_NAME = re.compile(
    r".+[_-](mask|masks|seg|segmentation)([_-]?[0-9]+)?|(mask|seg|segmentation)[_-].+", re.IGNORECASE
)
_OF_FILM = re.compile(
    r"(.+?)[ ._-]?(mask|masks|seg|segmentation|label|labels|gt|ground[ _-]?truth|annotation|roi|contour)[ _-]?[0-9]*",
    re.IGNORECASE,
)
_BUILT_IN = re.compile(r"image[0-9]+")
_LONGEST_FIRST = sorted(SUFFIXES, key=len, reverse=True)


def split_path(path: str) -> tuple[str, str, str]:
    """Split a film's path into folder, with its slash, name and suffix; only a suffix of films is one.

    >>> split_path("a/b.c/d.nii.gz"), split_path("1.2.840")
    (('a/b.c/', 'd', '.nii.gz'), ('', '1.2.840', ''))
    """
    folder, slash, file = path.rpartition("/")
    length = next((len(suffix) for suffix in _LONGEST_FIRST if file.lower().endswith(suffix)), 0)
    return folder + slash, file[: len(file) - length], file[len(file) - length :]


def above(folder: str) -> str:
    """Return the folder in which a folder lies, both with their slash; that of the top is the top.

    >>> above("a/b/"), above("a/"), above("")
    ('a/', '', '')
    """
    return "".join(part + "/" for part in folder.split("/")[:-2])


def is_mask_name(path: str) -> bool:
    """Whether a file has a name that only masks have.

    >>> is_mask_name("a/x_mask.png"), is_mask_name("left_hand.png"), is_mask_name("unmask.png")
    (True, False, False)
    """
    return _MASK_NAME.fullmatch(split_path(path)[1]) is not None


def film_of_mask(path: str) -> str | None:
    """Return the path, without suffix, of the film that a file is the mask of if there is such a film beside it.

    Many words say so only beside such a film: `a_gt.png` or `aMask.png` beside `a.png`.

    >>> film_of_mask("x/a_gt.png"), film_of_mask("x/a.mask.png"), film_of_mask("x/a.png")
    ('x/a', 'x/a', None)
    """
    folder, name, _ = split_path(path)
    match = _OF_FILM.fullmatch(name)
    return folder + match[1] if match else None


def mask_places(film: str) -> Iterator[str]:
    """Yield the paths that the mask of a film may have, the best first; never the film's path."""
    return (place for place in _names(*split_path(film)) if place != film)


def truth_places(film: str) -> Iterator[str]:
    """Yield the paths beside a film that its lesion's mask may have, as built-in films have it."""
    folder, name, _ = split_path(film)
    if _BUILT_IN.fullmatch(name):
        yield f"{folder}{name}_anomaly.png"


def _names(folder: str, name: str, suffix: str) -> Iterator[str]:
    outer = above(folder)
    if _BUILT_IN.fullmatch(name):
        yield f"{folder}{name}_hand.png"
    yield f"{folder}{name}_mask.png"
    lossless, nifti = suffix.lower() in LOSSLESS, suffix.lower() in _NIFTI
    for masks in _MASK_FOLDERS:
        if lossless:
            yield f"{outer}{masks}/{name}{suffix}"
        yield f"{outer}{masks}/{name}.png"
        if nifti:
            yield from (f"{outer}{masks}/{name}{other}" for other in _NIFTI)
    for part in ("Tr", "Ts"):
        if lossless and name.endswith("_0000") and folder == f"{outer}images{part}/":
            yield f"{outer}labels{part}/{name.removesuffix('_0000')}{suffix}"
    if nifti:
        yield from (f"{folder}{name}_{kind}{other}" for kind in ("mask", "seg") for other in _NIFTI)
