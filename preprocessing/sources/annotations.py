"""Boxes and masks that lie beside the films of a source, for nets that learn to find hands or to mask them.

NAME is a film's file name without its suffix, its folder the one it lies in; "beside its folder" is where that folder
itself lies, and for films at the top of the source the top. The first of these that exists applies to a film:

boxes
  NAME.json   beside the film, as the built-in films have it: {"boxes": [{"class": "right hand", "box": [x0, y0, x1,
              y1]}, ...]}. Other keys, and files without "boxes", are ignored.
  NAME.xml    Pascal VOC, beside the film, else in a folder `annotations` or `Annotations` beside its folder, else in
              one at the top of the source. Numbers are read as labelImg writes them, positions of edges counted from 0
              (1 where it means 0); VOC's own kit counts pixels from 1 and ends with the last one inside, which is a
              pixel off at left and top. A box beyond the `size` that the file names is refused; `filename` and `path`
              are not looked at, as films get renamed. No DOCTYPE, no entities.
  boxes.csv   at the top of the source. Columns, by name and in any order: path (of the film, from the top), class, x0,
              y0, x1, y1; a line for each box, so several for a film. Other columns are ignored.
  Boxes reach from x0 to x1 and y0 to y1 in pixels of the film as read, edges counted from 0: a film 100 pixels wide
  from 0 to 100. Classes are "right hand", "left hand", "right marker" and "left marker", or for short rh, lh, rl, ll.
  A file without a box says nothing about its film, and the next is tried.
masks
  The column `mask` of a manifest, else the first of the places that `masks` describes. Masks are not opened here: what
  cannot be read, has another size or several slices is refused with its film later. A NIfTI mask is turned by its own
  affine, which must be the film's.

A file that two films could claim is refused.
"""

from __future__ import annotations

import copy
import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Literal, TypeVar
from xml.etree import ElementTree  # nosec B405 # files are parsed by `_PlainXml` alone

from preprocessing import InputError
from preprocessing.cache.schema import BOX_CLASSES, MAX_BOXES
from preprocessing.sources.masks import above, mask_places, split_path
from preprocessing.sources.names import BOXES
from preprocessing.sources.record import Record, Source
from preprocessing.sources.tables import SEPARATORS, Table, open_table
from preprocessing.wording import counted

What = Literal["boxes", "masks"]
_Entry = TypeVar("_Entry")

Box = tuple[str, float, float, float, float]
"""Class, x0, y0, x1, y1."""

MAX_SIDECAR_BYTES = 2**20
"""A longer file of one film's boxes is refused."""

_SHORT = dict(zip(("rh", "lh", "rl", "ll"), BOX_CLASSES, strict=True))
_NAMES = {name: name for name in BOX_CLASSES} | _SHORT
_EDGES = ("x0", "y0", "x1", "y1")
_VOC_EDGES = ("xmin", "ymin", "xmax", "ymax")
_LOOKED_FOR = {
    "boxes": f"NAME.json, NAME.xml beside the films or in annotations/, and {BOXES} at the top",
    "masks": "NAME_mask.png beside the films, masks/NAME.png, labels/NAME.nii.gz and the like",
}


def annotate(source: Source, what: What) -> Source:
    """Return a source of the films that have boxes, or a mask, beside them, with these in their records.

    Nothing else of a record changes, and `source` stays as it is. Films without are left out. What one call adds,
    another keeps: for boxes and masks call it twice. Files are looked for where the source lies, so not in a
    `Source.part`.

    Raises `InputError` where no film has any, for a file that two films could claim, for damaged files, and for boxes
    that make no sense: of other classes, empty, not finite, beginning before 0, or more than `schema.MAX_BOXES` of a
    film.
    """
    store = copy.copy(source.store)
    store.sizes = dict(store.sizes)
    annotated = replace(source, store=store)
    listed = list(annotated.records)
    records = _with_boxes(annotated, listed) if what == "boxes" else _with_masks(annotated, listed)
    if not records:
        number = counted(len(listed), "film")
        raise InputError(f"{source.root}: no {what} beside {number}; looked for {_LOOKED_FOR[what]}")
    store.sizes = {file: store.sizes[file] for record in records for file in record.files()}
    return replace(annotated, records=records)


class _Beside:
    """Looks for files beside films, each of which may belong to one film alone."""

    def __init__(self, source: Source) -> None:
        self._store = source.store
        self._owners: dict[str, str] = {}

    def first(self, film: str, places: Iterator[str]) -> str | None:
        """Return the first of `places` at which there is a file, or None."""
        file = next((place for place in places if self._store.find(place)), None)
        if file is not None and (owner := self._owners.setdefault(file, film)) != film:
            raise InputError(f"{file}: belongs to {owner} or to {film}? give the films different names, or remove one")
        return file


# ---- boxes


def _with_boxes(source: Source, chosen: list[Record]) -> list[Record]:
    beside = _Beside(source)
    table = _read_table(source)
    kinds = ((_json_places, _read_json), (_voc_places, _read_voc))
    records = []
    for record in chosen:
        boxes: tuple[Box, ...] = ()
        for places, read in kinds:
            file = None if boxes else beside.first(record.path, places(record.path))
            if file is not None:
                boxes = read(file, source.store.read(file, MAX_SIDECAR_BYTES))
        boxes = boxes or tuple(table.get(record.path, ()))
        if len(boxes) > MAX_BOXES:
            raise InputError(f"{record.path}: {len(boxes)} boxes; a film has at most {MAX_BOXES}")
        if boxes:
            records.append(replace(record, boxes=boxes))
    return records


def _box(name: str, edges: Sequence[float]) -> Box:
    """Check one box; the caller adds its place to errors."""
    name = " ".join(name.split())
    known = _NAMES.get(name.lower())
    if known is None:
        allowed = ", ".join(f"{long} ({short})" for short, long in _SHORT.items())
        raise InputError(f"class {name[:40]!r}; there are: {allowed}")
    x0, y0, x1, y1 = edges
    if not (0 <= x0 < x1 < math.inf and 0 <= y0 < y1 < math.inf):
        numbers = " ".join(f"{edge:g}" for edge in edges)
        raise InputError(f"box {numbers}; x0 < x1 and y0 < y1 are needed, in pixels from 0")
    return known, x0, y0, x1, y1


def _all(place: str, entries: Iterable[_Entry], read: Callable[[_Entry], Box]) -> tuple[Box, ...]:
    """Read the boxes of a file; errors say which one."""
    boxes = []
    for number, entry in enumerate(entries, 1):
        try:
            boxes.append(read(entry))
        except InputError as error:
            raise InputError(f"{place} {number}: {error}") from None
    return tuple(boxes)


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{name} {text.strip()[:40]!r} is not a number") from None


def _json_places(film: str) -> Iterator[str]:
    folder, name, _ = split_path(film)
    yield f"{folder}{name}.json"


def _read_json(file: str, data: bytes) -> tuple[Box, ...]:
    """Read the boxes of a built-in film's JSON; any other JSON has none."""
    try:
        content = json.loads(data, parse_int=float)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not the JSON that belongs beside a film; correct or remove it") from error
    entries = content.get("boxes") if isinstance(content, dict) else None
    if entries is None:
        return ()
    if not isinstance(entries, list):
        raise InputError(f'{file}: "boxes" must be a list')
    return _all(f"{file}, box", entries, _json_box)


def _json_box(entry: Any) -> Box:
    match entry:
        case {"class": str(name), "box": [float(x0), float(y0), float(x1), float(y1)]}:
            return _box(name, [x0, y0, x1, y1])
    raise InputError('write {"class": "right hand", "box": [x0, y0, x1, y1]}, with numbers')


def _voc_places(film: str) -> Iterator[str]:
    folder, name, _ = split_path(film)
    yield f"{folder}{name}.xml"
    for outer in (above(folder), ""):
        yield from (f"{outer}{inner}/{name}.xml" for inner in ("annotations", "Annotations"))


class _PlainXml(ElementTree.TreeBuilder):
    """XML without a DOCTYPE, the one place where entities can be declared."""

    def doctype(self, name: str, pubid: str | None, system: str | None) -> None:
        """Refuse it, before anything in it is expanded or fetched."""
        raise InputError("has a DOCTYPE; Pascal VOC needs none: remove it")


def _read_voc(file: str, data: bytes) -> tuple[Box, ...]:
    """Read the objects of a Pascal VOC file."""
    parser = ElementTree.XMLParser(target=_PlainXml())  # nosec B314 # it refuses every DOCTYPE, hence all entities
    try:
        parser.feed(data)
        root = parser.close()
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    except (ElementTree.ParseError, LookupError, ValueError) as error:  # the latter two: encodings it does not know
        raise InputError(f"{file}: not readable XML ({error}); save it again") from error
    if root.tag != "annotation":
        raise InputError(f"{file}: not a Pascal VOC file, its root is <{root.tag[:40]}> where <annotation> is expected")
    # Many programs leave the size empty, or 0.
    sizes = ((root.findtext(f"size/{side}") or "").strip() or "0" for side in ("width", "height"))
    try:
        width, height = (_number(size, "size") or math.inf for size in sizes)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    return _all(f"{file}, object", root.iterfind("object"), partial(_voc_box, width=width, height=height))


def _voc_box(entry: ElementTree.Element, *, width: float, height: float) -> Box:
    texts = {edge: entry.findtext(f"bndbox/{edge}") for edge in _VOC_EDGES}
    missing = [edge for edge, text in texts.items() if text is None]
    if missing:
        raise InputError(f"no {missing[0]} in its <bndbox>")
    box = _box(entry.findtext("name") or "", [_number(text or "", edge) for edge, text in texts.items()])
    if box[3] > width or box[4] > height:
        raise InputError(f"box ends at {box[3]:g} {box[4]:g}, beyond the `size` that the file names")
    return box


def _read_table(source: Source) -> dict[str, list[Box]]:
    """Read `boxes.csv`: boxes by the path of their film; none without the file."""
    if not source.store.find(BOXES):
        return {}
    where = f"{source.root / BOXES}"
    read = open_table(where, BOXES, source.store)
    if read is None:
        return {}
    listed = {record.path for record in source.records}
    table: dict[str, list[Box]] = {}
    try:
        columns = _columns(read)
    except InputError as error:
        raise InputError(f"{where}, line {read.line}: {error}") from None
    for line, row in read.rows():
        try:
            path, box = _row(columns, row)
            if path not in listed and not source.store.find(path):
                raise InputError(f"path {path!r}: no such file in the source; write it relative to {BOXES}, with /")
        except InputError as error:
            raise InputError(f"{where}, line {line}: {error}") from None
        table.setdefault(path, []).append(box)
    return table


def _columns(table: Table) -> list[str]:
    columns = [name.lower() for name in table.columns]
    times = Counter(columns)
    for needed in ("path", "class", *_EDGES):
        if times[needed] != 1:
            number = f"{times[needed]} columns" if times[needed] else "no column"
            separators = SEPARATORS[table.separator]
            raise InputError(f"{number} {needed!r}; there are: {', '.join(columns)} (separated by {separators})")
    return columns


def _row(columns: list[str], row: list[str]) -> tuple[str, Box]:
    """Check one line; the caller adds its number to errors."""
    cells = dict(zip(columns, row, strict=True))
    place = PurePosixPath(cells["path"])
    if place.is_absolute() or ".." in place.parts:
        raise InputError(f"path {cells['path']!r} leads out of the source; write it relative to {BOXES}, with /")
    return place.as_posix(), _box(cells["class"], [_number(cells[edge], edge) for edge in _EDGES])


# ---- masks


def _with_masks(source: Source, chosen: list[Record]) -> list[Record]:
    beside = _Beside(source)
    masks = ((record, record.mask or beside.first(record.path, mask_places(record.path))) for record in chosen)
    return [replace(record, mask=mask) for record, mask in masks if mask is not None]
