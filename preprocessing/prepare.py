"""A film of a source to the rows of a cache, or to the reason why there are none."""

import hashlib
import json
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.cache.schema import BOX_CLASSES, MAX_BOXES, STAGES, Row
from preprocessing.changes import fingerprint_of, last_written
from preprocessing.crop import clip_box
from preprocessing.readers import Film, read_film, read_mask
from preprocessing.recipe import Nets, Prepared, Recipe
from preprocessing.sources import Record, Source, identity_from_tags

_IDENTITY_TAGS = ("PatientID", "IssuerOfPatientID", "StudyInstanceUID")  # they become patient and study


@dataclass(frozen=True)
class Job:
    """What is needed to prepare any film of a source.

    dtype    of the films made, uint8 or uint16
    narrow   bring deeper films down to `dtype`, rather than refuse them
    """

    source: Source
    recipe: Recipe
    variants: tuple[str, ...]
    dtype: str
    narrow: bool
    nets: Nets


@dataclass(frozen=True)
class Outcome:
    """What became of a film: its rows, or why there are none.

    fingerprint   of the film's files as they were read; empty if not known
    """

    path: str
    rows: tuple[Row, ...] = ()
    reason: str = ""
    fingerprint: str = ""


def prepare(job: Job, record: Record) -> Outcome:
    """Prepare a film; whatever is wrong with it becomes the outcome's reason."""
    if record.missing:
        return Outcome(record.path, reason=record.missing)
    written = last_written(job.source, record)  # asked before reading: whatever changes the files later is noticed
    files: dict[str, bytes] = {}
    rows: tuple[Row, ...] = ()
    reason = ""
    try:
        for path in record.files():
            files[path] = job.source.read(path)
        rows = _rows(job, record, files)
    except InputError as error:
        reason = reason_without_path(record.path, error)
    except Exception as error:  # one film, whatever is wrong with it, must not end the build of all others
        reason = f"{type(error).__name__}: {error}"
    hashes = [hashlib.sha256(files[path]).hexdigest() if path in files else "" for path in record.files()]
    return Outcome(record.path, rows, reason, fingerprint_of(written, hashes))


def reason_without_path(path: str, error: InputError) -> str:
    """Say why a film failed, without its name, which stands beside the reason."""
    return str(error).removeprefix(f"{path}: ")


def _rows(job: Job, record: Record, files: dict[str, bytes]) -> tuple[Row, ...]:
    data = files[record.path]
    film = read_film(record.path, data, window=job.recipe.window == "voi")
    if film.depth > 8 and job.dtype == "uint8" and not job.narrow:
        raise InputError(f"{record.path}: {film.depth} bits deep, which its header does not say; fix the film")
    height, width = film.pixels.shape[:2]
    _check_boxes(record, width, height)
    mask, anomaly = (
        None if given is None else read_mask(given, files[given]) for given in (record.mask, record.anomaly_mask)
    )
    if anomaly is None and record.lesion_boxes:
        anomaly = _filled(record, height, width)
    results = job.recipe.apply(
        film,
        variants=job.variants,
        dtype=job.dtype,
        box=record.box,
        mask=mask,
        anomaly=anomaly,
        nets=job.nets,
    )
    return tuple(_row(film, record, data, prepared) for prepared in results)


def _row(film: Film, record: Record, data: bytes, prepared: Prepared) -> Row:
    height, width = film.pixels.shape[:2]
    patient, study, known = _identity(record, film)
    return Row(
        path=record.path,
        patient=patient,
        patient_known=known,
        study=study,
        label=record.label,
        split=record.split,
        finding=record.finding,
        difficulty=record.difficulty,
        columns=_columns(record, film),
        sha256=hashlib.sha256(data).hexdigest(),
        height=height,
        width=width,
        depth=film.depth,
        spacing=film.spacing,
        inverted=prepared.inverted,
        fallbacks=",".join(prepared.fallbacks),
        carrier=prepared.carrier,
        box=prepared.box,
        matrix_raw=prepared.matrices.get("raw"),
        matrix_crop=prepared.matrices.get("crop"),
        grey=[prepared.grey.get(stage, (math.nan, math.nan)) for stage in STAGES],
        films=prepared.films,
        masks=prepared.masks,
        truth=prepared.anomaly,
        boxes=_boxes_in_crop(record, prepared),
        hand=prepared.hand,
        side=prepared.side,
        turns=prepared.turns,
        markers=prepared.markers,
        given=record.mask is not None and "mask" not in prepared.fallbacks,
        truth_from="mask" if record.anomaly_mask else "boxes" if record.lesion_boxes else "",
    )


def _identity(record: Record, film: Film) -> tuple[str, str, bool]:
    """Give a film's patient and study, and whether that patient is known.

    What the source says goes before the film's header, and a header that names the study alone makes the study stand in
    for the patient: films of one study share one.
    """
    if record.patient_known:
        return record.patient, record.study, True
    patient, study = identity_from_tags(film.tags)
    if patient:
        return patient, f"{patient}/{study}" if study else f"{patient}/{record.study}", True
    if study and record.study == record.path:
        return study, study, False
    return record.patient, record.study, False


def _columns(record: Record, film: Film) -> str:
    """Give what the source and the film's header say of a film beside its index, as JSON; the source goes first."""
    header = {name: text for name, text in film.tags.items() if name not in _IDENTITY_TAGS}
    return json.dumps(header | dict(record.columns), sort_keys=True, ensure_ascii=False)


def _filled(record: Record, height: int, width: int) -> NDArray[np.bool_]:
    """Give the rectangles of a film's lesion boxes as a mask, (height, width): every pixel that one touches."""
    mask = np.zeros((height, width), bool)
    for box in record.lesion_boxes:
        region = clip_box(box, mask.shape)
        if region is None:
            edges = " ".join(f"{edge:g}" for edge in box)
            raise InputError(
                f"{record.path}: the lesion box {edges} lies beside the film of {width} x {height} pixels; "
                "give x0 y0 x1 y1 in its pixels"
            )
        x0, y0, x1, y1 = region
        mask[y0:y1, x0:x1] = True
    return mask


def _check_boxes(record: Record, width: int, height: int) -> None:
    """Refuse boxes that nothing could be learned from."""
    if len(record.boxes) > MAX_BOXES:
        raise InputError(f"{record.path}: {len(record.boxes)} boxes; a film may have {MAX_BOXES}")
    for name, *box in record.boxes:
        if name not in BOX_CLASSES:
            raise InputError(f"{record.path}: a box of class {name!r}; there are: {', '.join(BOX_CLASSES)}")
        x0, y0, x1, y1 = box
        # By a pixel a box may reach beyond the film: tools round. By more, it was drawn on another film, or at a scale.
        if not (-1 <= x0 < x1 <= width + 1 and -1 <= y0 < y1 <= height + 1):
            raise InputError(
                f"{record.path}: the box {x0:g} {y0:g} {x1:g} {y1:g} of a {name} is not one on this film of {width} x "
                f"{height} pixels; give x0 y0 x1 y1 in its pixels"
            )


def _boxes_in_crop(record: Record, prepared: Prepared) -> NDArray[np.float32]:
    """Carry a film's boxes into its crop: (n, 5) x0, y0, x1, y1, class, without those mostly cut off.

    Boxes are given by edges, matrices by pixel centers: half a pixel lies between them. On a tilted carrier a box grows
    to what holds it.
    """
    low, high = np.array(prepared.frame[:2]), np.array(prepared.frame[2:])
    matrix = prepared.matrices["crop"]
    carried = []
    for name, x0, y0, x1, y1 in record.boxes:
        corners = np.array([(x0, y0), (x1, y0), (x1, y1), (x0, y1)]) - 0.5
        corners = corners @ matrix[:, :2].T + matrix[:, 2] + 0.5
        whole = corners.min(axis=0), corners.max(axis=0)
        visible = np.clip(whole, low, high)
        if np.prod(visible[1] - visible[0]) >= 0.5 * np.prod(whole[1] - whole[0]):
            carried.append([*visible.ravel(), BOX_CLASSES.index(name) + 1])
    return np.array(carried, np.float32).reshape(-1, 5)
