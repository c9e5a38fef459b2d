"""DICOM's modality tables, C.11.1, and display windows and tables, C.11.2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from preprocessing import InputError
from preprocessing.readers.dicom_header import is_little_endian, number, numbers, present, text
from preprocessing.wording import counted

_EMPTY_BITS = 4  # so many top bits that no entry uses mean that the descriptor is wrong: 12-bit entries called 16


@dataclass(frozen=True)
class Table:
    """A lookup table.

    entries  (N,) int32 in 0..2 ** bits - 1.
    first    the value that the first entry is for.
    bits     of the entries, 1..16.
    """

    entries: NDArray[np.int32]
    first: int
    bits: int

    def look_up(self, values: NDArray[Any]) -> NDArray[np.int32]:
        """Look integers up; values beyond the table take its ends: C.11.1.1, C.11.2.1.1."""
        return np.asarray(self.entries[np.clip(values - self.first, 0, len(self.entries) - 1)])


@dataclass(frozen=True)
class Window:
    """A display window: `function` is LINEAR, LINEAR_EXACT or SIGMOID, C.11.2.1.2 and C.11.2.1.3."""

    center: float
    width: float
    function: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"]


def modality_table(dataset: Any, *, signed: bool) -> Table | None:
    """Give the modality table; None where there is none, or an empty one. `signed` as the stored pixels are."""
    return _first_table(dataset, "ModalityLUTSequence", signed=signed)


def palette_table(dataset: Any, bits: int) -> tuple[NDArray[np.uint16], int]:
    """Give the colours of all numbers of `bits` bits, (2 ** bits, 3), and the bits of these: C.7.6.3.1.5, C.7.9.2."""
    from pydicom.pixels.processing import apply_color_lut

    colors = np.asarray(apply_color_lut(np.arange(2**bits, dtype=np.uint16)[None], dataset))[0, :, :3]
    return colors.astype(np.uint16), _real_bits(colors, 8 * colors.dtype.itemsize)


def voi_of(dataset: Any, *, negative: bool) -> Table | Window | None:
    """Give the first display table, else the first window, else None; what is empty counts as absent.

    negative  whether rescaled values may lie below 0.
    """
    table = _first_table(dataset, "VOILUTSequence", signed=negative)
    if table is not None:
        return table
    center, width = number(dataset, "WindowCenter"), number(dataset, "WindowWidth")
    name = text(dataset, "VOILUTFunction").upper() or "LINEAR"
    if name == "LINEAR":
        function: Literal["LINEAR", "LINEAR_EXACT", "SIGMOID"] = "LINEAR"
    elif name in ("LINEAR_EXACT", "SIGMOID"):
        function = "SIGMOID" if name == "SIGMOID" else "LINEAR_EXACT"
    else:
        raise InputError(f"VOI LUT function {name!r}; there are: LINEAR, LINEAR_EXACT, SIGMOID")
    if center is None or width is None or width <= 0 or (function == "LINEAR" and width < 1):
        return None
    return Window(center, width, function)


def apply_window(values: NDArray[np.floating[Any]], shown: Table | Window, bits: int) -> NDArray[np.int32]:
    """Show rescaled values over 0..2 ** bits - 1."""
    top = 2**bits - 1
    if isinstance(shown, Table):
        output = shown.look_up(np.rint(np.clip(values, -(2**30), 2**30)).astype(np.int64))
        return np.asarray(np.rint(output * (top / (2**shown.bits - 1))), np.int32)
    if shown.function == "SIGMOID":
        share = 1 / (1 + np.exp(np.clip(-4 * (values - shown.center) / shown.width, -700, 700)))
    elif shown.function == "LINEAR_EXACT":
        share = (values - shown.center) / shown.width + 0.5
    else:  # a width of 1 is a step, and the smallest divisor makes it one
        share = (values - (shown.center - 0.5)) / max(shown.width - 1, 1e-6) + 0.5
    return np.asarray(np.rint(np.clip(share, 0, 1) * top), np.int32)


def _first_table(dataset: Any, keyword: str, *, signed: bool) -> Table | None:
    """Read the first item of a sequence of tables; None where sequence, item, descriptor or data are empty."""
    for item in present(dataset, keyword)[:1]:
        descriptor = numbers(item, "LUTDescriptor")
        if descriptor and present(item, "LUTData"):
            return _table(descriptor, item, signed=signed, order="<" if is_little_endian(dataset) else ">")
    return None


def _table(descriptor: list[float], item: Any, *, signed: bool, order: str) -> Table:
    if len(descriptor) != 3:
        raise InputError(f"a lookup table whose descriptor has {counted(len(descriptor), 'value')}; it needs 3")
    count, first, claimed = (int(value) for value in descriptor)
    count = count & 0xFFFF or 65536  # C.11.1.1: 0 stands for 65536
    first &= 0xFFFF  # 16 bits, whichever representation they were read in
    if signed and first >= 32768:
        first -= 65536
    entries = _entries(item, count, order=order, narrow=claimed <= 8)
    return Table(entries, first, _real_bits(entries, claimed))


def _real_bits(entries: NDArray[Any], claimed: int) -> int:
    """Believe the bits that are claimed, unless the greatest entry needs more or leaves the top ones unused."""
    real = max(int(entries.max()).bit_length(), 1)
    return claimed if claimed - _EMPTY_BITS < real <= claimed <= 16 else max(real, 8)


def _entries(item: Any, count: int, *, order: str, narrow: bool) -> NDArray[np.int32]:
    """Give the entries, one a word, or, where the length says so, one a byte: C.11.1.1.2, C.11.2.1.1."""
    data = item.get("LUTData")
    if isinstance(data, bytes):
        if item["LUTData"].VR == "UN":  # PS3.5 6.2.2: always little endian
            order = "<"
        one_a_byte = len(data) in (count, count + count % 2)
        if one_a_byte and order == ">" and item["LUTData"].VR == "OW":
            data = np.frombuffer(data, ">u2").astype("<u2").tobytes()  # words hold two entries, the first one low
        whole = data if one_a_byte else data[: len(data) // 2 * 2]
        entries = np.frombuffer(whole, np.uint8 if one_a_byte else f"{order}u2")
    else:
        entries = np.atleast_1d(np.asarray(data, np.int64)) & 0xFFFF
        if narrow and len(entries) == (count + 1) // 2 and count > 1:
            entries = np.frombuffer(entries.astype("<u2").tobytes(), np.uint8)
    if len(entries) < count:
        raise InputError(f"a lookup table of {count} entries that holds {len(entries)}: damaged header")
    return entries[:count].astype(np.int32)
