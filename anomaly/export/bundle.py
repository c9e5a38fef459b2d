"""The bundle: a run folder whose detector is an ONNX graph, to be scored with onnxruntime alone.

    bundle.json              what is in it: `Bundle`; written last, with the SHA-256 of every other file and its own
    model.onnx               film, mask -> scores, map, reconstruction (`anomaly.export.graph`)
    localizer.onnx, segmenter.onnx   the nets of the recipe that prepared the films, where it has any
    probe.safetensors        made-up films (noise, no patient's), and what the detector says of them in torch
    run.json, calibration.json, calibrations/, films.safetensors, ...   those of the run (`anomaly.runs`), without the
                             folders of the machine that trained it
    model_card.md, LICENSE.txt

It is written beside its place and moved there. Nothing here needs torch or onnxruntime.
"""

import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from anomaly.drafts import aside, exchange
from anomaly.runs import FULL, DiskFull, Record, first_error, inside, sha256, write_atomic
from anomaly.sealed import sealed, unsealed
from preprocessing import InputError
from preprocessing.wording import counted

FORMAT = 1
FILE = "bundle.json"
MODEL = "model.onnx"
PROBE = "probe.safetensors"
CHANGEABLE = ("choices.json",)
"""Files that scoring itself changes later, and which have no hash."""


class Tensor(Record):
    """An input or output of a graph."""

    name: str
    dtype: Literal["float32", "float64", "bool"]
    shape: list[int | str]
    """Sides, or the name of one that may be any: "N" films."""
    meaning: str


class BundledNet(Record):
    """A net of the recipe, as a graph beside the detector's."""

    file: str
    name: str
    """Of the model: ssd, unet, dense."""
    digest: str
    """Of its weights and threshold, as `cache.nets` of run.json has it."""
    size: int
    """Side of the films in pixels, as the net takes them."""
    threshold: float
    """The score from which on something counts as detected."""
    inputs: list[Tensor]
    outputs: list[Tensor]


class Bundle(Record):
    """bundle.json: what a bundle is and what is in it."""

    format: int = FORMAT
    model: str
    """The detector's name in the registry."""
    score_names: list[str]
    """The columns of `scores`; the first one is reported first."""
    map_unit: str
    """The unit of `map`."""
    size: int
    """Side of the films in pixels, as the model takes them."""
    opset: int
    """Of the standard operators of the graphs."""
    inputs: list[Tensor]
    outputs: list[Tensor]
    """Of model.onnx. Without `map`, the detector draws none or `notes` says why; without `reconstruction`, it does not
    reconstruct."""
    labelled: bool
    """Whether the detector learned from labels: then its score is a probability."""
    nets: dict[str, BundledNet] = Field(default_factory=dict)
    """Part of the recipe ("localizer", "segmenter") -> its net."""
    calibration: str | None = None
    """The calibration of a run, beside its own, that this bundle has as its own; None: the run's own."""
    synthetic: bool
    """Whether the detector was trained on synthetic films."""
    run: str
    """The name of the run it was made of."""
    run_sha256: str
    """SHA-256 of that run's weights.safetensors."""
    rounding: dict[str, float] = Field(default_factory=dict)
    """Score, "map" or "reconstruction" -> the relative difference up to which two libraries agree on it."""
    versions: dict[str, str]
    """Of what exported it."""
    licence: str
    """What the files are licensed under, in a sentence; LICENSE.txt has the texts."""
    notes: list[str] = Field(default_factory=list)
    """What was left out, replaced or is to be known, a sentence each."""
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 of every other file by its path in the folder, those in CHANGEABLE aside."""


def is_bundle(path: Path) -> bool:
    """Whether a folder is a bundle, of whatever format."""
    return (path / FILE).is_file()


def write_bundle(folder: Path, bundle: Bundle, files: Mapping[str, bytes | Path]) -> Bundle:
    """Write a bundle of these files, path in the folder -> content or file to copy, and return it with their hashes.

    The folder is complete from the moment it has its name. The same bundle is left as it is, an older one replaced.
    Raises InputError for a folder that is none, for a bundle that holds results of scoring, and for a full disk.
    """
    check_place(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = aside(folder)
    try:
        for name, content in files.items():
            path = inside(beside, name)
            write_atomic(path, content.read_bytes() if isinstance(content, Path) else content)
        hashes = {name: sha256(beside / name) for name in sorted(files) if name not in CHANGEABLE}
        written = bundle.model_copy(update={"files": hashes})
        record = sealed(written.model_dump())
        write_atomic(beside / FILE, record)
        if not _unchanged(folder, record):
            _refuse_results(folder)
            _move(beside, folder)
    except OSError as error:
        if error.errno in FULL:
            raise DiskFull(f"{folder}: the disk is full; free some space and type the same command again") from error
        raise InputError(f"{folder} can't be written ({error.strerror}); choose another --out") from None
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return written


def check_place(folder: Path) -> None:
    """Raise InputError where a bundle can't be written at `folder`: something else is there."""
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() and not is_bundle(folder):
        raise InputError(f"{folder} exists and is no bundle; choose another --out")


def _unchanged(folder: Path, record: str) -> bool:
    """Whether the very bundle that the record describes is in the folder, undamaged."""
    try:
        return (folder / FILE).read_text(encoding="utf-8") == record and bool(read_bundle(folder))
    except (OSError, ValueError, InputError):
        return False


def _refuse_results(folder: Path) -> None:
    """Raise InputError where a bundle to be replaced holds files that were not exported: they would be lost."""
    if not is_bundle(folder):
        return
    try:
        exported = _Format.model_validate_json((folder / FILE).read_bytes()).files
    except ValidationError:
        exported = {}
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    others = sorted(files - {FILE, *exported})
    if others:
        raise InputError(
            f"{folder} is a bundle of another export and holds {counted(len(others), 'file')} that were made since "
            f"({others[0]}): move them away, or choose another --out"
        )


def _move(beside: Path, folder: Path) -> None:
    """Put `beside` in the place of `folder`; an older bundle there has the hidden name then.

    Where the file system can't swap two folders in one step, there is a moment without either.
    """
    if folder.exists() and exchange(beside, folder):
        return
    old = aside(folder)
    if folder.exists():
        folder.rename(old)
    try:
        beside.rename(folder)
    except OSError:
        with suppress(OSError):
            old.rename(folder)
        raise
    shutil.rmtree(old, ignore_errors=True)


def read_bundle(folder: Path) -> Bundle:
    """Return what a bundle is, checked: raises InputError for one of another format, and for a file that is missing or
    whose content is not what was exported.
    """
    file = folder / FILE
    again = "export it again: `anomaly export RUN`"
    try:
        content = file.read_bytes()
    except OSError as error:
        raise InputError(f"{folder} is no bundle ({FILE}: {error.strerror}); `anomaly export RUN` makes one") from None
    try:
        found = _Format.model_validate_json(content).format
    except ValueError as error:
        raise _damaged(file, error, again) from None
    if found != FORMAT:
        remedy = "install a newer xray-anomaly" if found > FORMAT else again
        raise InputError(f"{file} has format {found}, this version reads {FORMAT}; {remedy}")
    try:
        bundle = Bundle.model_validate(unsealed(content))
    except ValueError as error:
        raise _damaged(file, error, again) from None
    for name, expected in bundle.files.items():
        path = inside(folder, name)
        if not path.is_file():
            raise InputError(f"{folder} lacks {name}; {again}, or copy the whole folder")
        if sha256(path) != expected:
            raise InputError(f"{path} was changed or damaged: its SHA-256 is not the one in {FILE}; {again}")
    return bundle


def _damaged(file: Path, error: ValueError, again: str) -> InputError:
    reason = first_error(error) if isinstance(error, ValidationError) else " ".join(str(error).split())
    return InputError(f"{file} is damaged ({reason}); {again}")


def run_name(folder: Path) -> str:
    """Return the name of a run: that of its folder, or of the run that a bundle, which has been read, was made of."""
    return _origin(folder).run or folder.resolve().name


def exported_calibration(folder: Path) -> str | None:
    """Return the name of the calibration that a bundle has as its own; None: a run, or one with the run's own."""
    return _origin(folder).calibration


def _origin(folder: Path) -> "_Format":
    if not is_bundle(folder):
        return _Format(format=FORMAT)
    return _Format.model_validate_json((folder / FILE).read_bytes())


class _Format(Record):
    """What bundles of all formats say; other keys are ignored."""

    model_config = Record.model_config | {"extra": "ignore"}

    format: int
    files: dict[str, str] = Field(default_factory=dict)
    run: str = ""
    calibration: str | None = None
