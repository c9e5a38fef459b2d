"""The cache: one HDF5 file of prepared films. This docstring is the format, and this package alone knows it.

N prepared films of one size S in the order of their source, which two rows share where a film shows two hands; M films
failed. P = ceil(S * S / 8) bytes hold a packed (S, S) mask, eight pixels a byte, the first in the highest bit.

    films/<variant>    uint8|16  (N, S, S)  prepared film: a stage (raw, crop, full), as it is or with -he, -clahe or
                                            -contrast; larger is brighter
    masks/<stage>      uint8     (N, P)     packed foreground of a stage: raw, crop or full
    truth/<stage>      uint8     (N, P)     packed anomaly, raw or crop (for full too); only where the source has any
    targets/boxes      float32   (N, 16, 5) x0, y0, x1, y1 in the pixels of stage crop, whose edges are at 0 and S, and
                                            class: 1 right hand, 2 left hand, 3 right marker, 4 left marker, 0 no box;
                                            only where the source has any

    index/path         str       (N,)       film file, relative POSIX path within the source
    index/hand         int8      (N,)       0 the film's only hand, or the whole film; 1, 2 of two, left to right
    index/side         str       (N,)       of the body, as a trained localizer said: left, right, or empty
    index/patient      str       (N,)       patient; a split never parts one
    index/patient_known  bool    (N,)       the source, or the film's header, says which patient it is of; where not,
                                            the study or the film stands in for the patient
    index/study        str       (N,)       study, unique across patients
    index/label        int8      (N,)       0 normal, 1 abnormal, -1 unknown
    index/split        str       (N,)       the source's own: train, val, test, or empty
    index/finding      str       (N,)       what is abnormal, or empty
    index/difficulty   str       (N,)       how hard it is to see, or empty
    index/columns      str       (N,)       JSON object, sorted: everything else that a manifest or the film's header
                                            says of it, name -> text (region, view, site, sex, age, scanner, ...)
    index/sha256       str       (N,)       of the film file's bytes, hex
    index/height       int32     (N,)       of the film file, pixels
    index/width        int32     (N,)       of the film file, pixels
    index/depth        uint8     (N,)       significant bits of the film file, 8 to 16
    index/spacing      float64   (N, 2)     of the film file's pixel rows and columns, mm; NaN if unknown
    index/inverted     bool      (N,)       the grey levels were turned round, as the background was bright
    index/turns        int8      (N,)       quarter turns counter-clockwise that brought the carrier upright, 0 to 3
    index/markers      int8      (N,)       side markers blanked in the stages crop and full
    index/given        bool      (N,)       the foreground mask came with the film, it was not estimated
    index/fallbacks    str       (N,)       steps that found nothing and were passed over: comma list, or empty
    index/carrier      float64   (N, 4, 2)  carrier's corners (x, y) in the film, clockwise from top left; NaN if none
    index/box          float64   (N, 4)     crop x0, y0, x1, y1 in the carrier as turned upright, or in the film if it
                                            has none; NaN if none
    index/matrix_raw   float64   (N, 2, 3)  film (x, y) -> cache (x, y) of stage raw, pixel centres; NaN if unknown
    index/matrix_crop  float64   (N, 2, 3)  the same of the stages crop and full
    index/grey         float64   (N, 3, 2)  mean and standard deviation of stages raw, crop, full under their masks,
                                            before levels were spread, shares of 2**depth - 1; NaN if not made
    index/truth        bool      (N,)       has pixel truth of its anomaly; where not, its truth/ rows are zeros
    index/truth_from   str       (N,)       what that was given as: mask, boxes (filled rectangles), or empty
    index/checksum     uint64    (N,)       BLAKE2b of the row's bytes in films, masks, truth and targets, for `verify`

    failures/path      str       (M,)       film file that could not be prepared
    failures/reason    str       (M,)       why, one line

    attributes: format, schema (version), complete, done (films of the source: those prepared and M), content (hash of
    the index, and through its checksums of every film), size (S), variants (comma list), recipe (JSON), recipe_digest,
    nets (JSON: localizer, segmenter -> name, run, digest; {} without), source (name), source_kind, source_hash (of its
    listing), source_path (where it was), synthetic (drawn, not taken from patients), command (that makes the file
    again), seal (hash of the other attributes and the failures; older files have none)

One film is one chunk: any row costs one read. While it is made, a cache is `NAME.partial`, and `NAME.partial.rows`
beside it has one line for each film of the source that is done, JSON with all its rows after a checksum, written after
them: a film is there wholly or not at all. Space for a row a film is laid out at the start: from then on only film
bytes change, and a build killed at any moment goes on from its last whole line. With compression, and each time that
films with two hands have used that space up, the file's tables grow too: a kill in the middle of writing them may
damage it, and the build then begins again, and says so.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

FORMAT = "xray-anomaly cache"
VERSION = 3

COLUMNS: dict[str, tuple[str, tuple[int, ...]]] = {  # dtype and shape of a row's value, as in the table above
    "path": ("str", ()),
    "hand": ("int8", ()),
    "side": ("str", ()),
    "patient": ("str", ()),
    "patient_known": ("bool", ()),
    "study": ("str", ()),
    "label": ("int8", ()),
    "split": ("str", ()),
    "finding": ("str", ()),
    "difficulty": ("str", ()),
    "columns": ("str", ()),
    "sha256": ("str", ()),
    "height": ("int32", ()),
    "width": ("int32", ()),
    "depth": ("uint8", ()),
    "spacing": ("float64", (2,)),
    "inverted": ("bool", ()),
    "turns": ("int8", ()),
    "markers": ("int8", ()),
    "given": ("bool", ()),
    "fallbacks": ("str", ()),
    "carrier": ("float64", (4, 2)),
    "box": ("float64", (4,)),
    "matrix_raw": ("float64", (2, 3)),
    "matrix_crop": ("float64", (2, 3)),
    "grey": ("float64", (3, 2)),
    "truth": ("bool", ()),
    "truth_from": ("str", ()),
    "checksum": ("uint64", ()),
}

STAGES = ("raw", "crop", "full")  # in the order of index/grey
BOX_CLASSES = ("right hand", "left hand", "right marker", "left marker")  # of targets/boxes: 1, 2, 3, 4
MAX_BOXES = 16  # of a film


def split_variant(variant: str) -> tuple[str, str]:
    """Split a variant's name into its stage and how its levels were spread: "" (stretched), "he", "clahe", "contrast".

    >>> split_variant("crop-he"), split_variant("raw")
    (('crop', 'he'), ('raw', ''))
    """
    stage, _, levels = variant.partition("-")
    return stage, levels


def stage_of(variant: str) -> str:
    """Name the stage whose mask a variant has.

    >>> stage_of("crop-contrast")
    'crop'
    """
    return split_variant(variant)[0]


def truth_stage(variant: str) -> str:
    """Name the stage whose anomaly truth a variant has: that of "crop" for "full" too, as segmentation moves no pixel.

    >>> truth_stage("full-he")
    'crop'
    """
    return "raw" if stage_of(variant) == "raw" else "crop"


@dataclass(frozen=True)
class Header:
    """What a cache says of itself before its first film."""

    variants: tuple[str, ...]
    size: int  # pixels, both sides
    dtype: str  # "uint8" | "uint16"
    recipe_json: str
    recipe_digest: str
    source: str
    source_kind: str
    source_hash: str
    synthetic: bool
    truth: bool  # any film of the source has pixel truth
    boxes: bool = False  # any film of the source has boxes
    source_path: str = ""  # absolute; it, the command and where nets lie say nothing about the content
    command: str = "anomaly preprocess"
    nets: str = "{}"  # JSON: "localizer", "segmenter" -> name, run, digest; their weights are in recipe_digest

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """List the datasets of film bytes, name -> (dtype, a row's shape), in the order a checksum runs over them."""
        packed = (-(-self.size * self.size // 8),)
        arrays: dict[str, tuple[str, tuple[int, ...]]] = {}
        for variant in self.variants:
            arrays[f"films/{variant}"] = (self.dtype, (self.size, self.size))
        for variant in self.variants:
            arrays[f"masks/{stage_of(variant)}"] = ("uint8", packed)
        for variant in self.variants if self.truth else ():
            arrays[f"truth/{truth_stage(variant)}"] = ("uint8", packed)
        if self.boxes:
            arrays["targets/boxes"] = ("float32", (MAX_BOXES, 5))
        return arrays

    def row_bytes(self) -> int:
        """Bytes one film takes, uncompressed and without its line of the index."""
        return sum(int(np.prod(shape)) * np.dtype(dtype).itemsize for dtype, shape in self.arrays().values())


@dataclass(frozen=True)
class Row:
    """One prepared film with its line of the index, ready to be stored; fields as in the table of the module.

    boxes   x0, y0, x1, y1 and class of each box of the film, (n, 5) and n at most MAX_BOXES
    """

    path: str
    patient: str
    study: str
    label: int
    split: str
    finding: str
    difficulty: str
    sha256: str
    height: int
    width: int
    depth: int
    inverted: bool
    fallbacks: str
    carrier: ArrayLike | None
    box: ArrayLike | None
    matrix_raw: ArrayLike | None
    matrix_crop: ArrayLike | None
    grey: ArrayLike | None
    films: dict[str, NDArray[Any]] = field(repr=False)  # variant -> (S, S)
    masks: dict[str, NDArray[np.bool_]] = field(repr=False)  # stage -> (S, S)
    truth: dict[str, NDArray[np.bool_]] | None = field(default=None, repr=False)  # "raw" | "crop" -> (S, S)
    boxes: ArrayLike | None = None
    hand: int = 0
    side: str = ""
    turns: int = 0
    markers: int = 0
    given: bool = False
    patient_known: bool = False
    columns: str = "{}"
    spacing: ArrayLike | None = None
    truth_from: str = ""


def content_hash(column_of: Callable[[str], NDArray[Any]]) -> str:
    """Hash a cache's content: its index, and through the checksums in it every stored byte; sha256 in hex.

    The same for any number of workers, after any interruption, and with any compression.
    """
    digest = hashlib.sha256()
    for name, (dtype, _) in COLUMNS.items():
        column = column_of(name)
        digest.update(f"{name} {dtype} {column.shape}".encode())
        digest.update(json.dumps(column.tolist()).encode() if dtype == "str" else column.astype(dtype).tobytes())
    return digest.hexdigest()


def seal(attributes: Mapping[str, Any], failures: Sequence[tuple[str, str]]) -> str:
    """Hash what a cache says of itself beside its index: its attributes, but for this hash, and its failures."""
    said = {name: value for name, value in attributes.items() if name != "seal"}
    plain = {name: value.item() if isinstance(value, np.generic) else value for name, value in said.items()}
    return hashlib.sha256(json.dumps([plain, list(failures)], sort_keys=True).encode()).hexdigest()


def checksum(parts: Iterable[NDArray[Any]]) -> int:
    """Hash the bytes of a row's arrays, in the order of `Header.arrays`: BLAKE2b, 64 bits."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part.data)
    return int.from_bytes(digest.digest(), "little")


def load_dataset(dataset: Any, dtype: str, rows: slice = slice(None)) -> NDArray[Any]:
    """Load rows of an HDF5 dataset of one of the dtypes of COLUMNS; texts become an object array of str."""
    return (dataset.asstr() if dtype == "str" else dataset)[rows]  # type: ignore[no-any-return]
