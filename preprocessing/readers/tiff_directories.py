"""What a TIFF's directories may claim: checked before tifffile follows them."""

from __future__ import annotations

import struct

from preprocessing import InputError

_MAX_DIRECTORIES = 1000  # a directory describes a page
_SUB_DIRECTORIES = 330  # the tag's number


def check_directories(data: bytes) -> None:
    """Refuse a TIFF whose directories form a cycle, are too many, or claim the same bytes over and over.

    tifffile follows the chain of pages wherever it leads. A chain that breaks off is left to tifffile to judge.
    """
    order = "<" if data.startswith(b"II") else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    number, counter, start, inline = ("Q", "Q", 8, 8) if big else ("I", "H", 4, 4)
    entry = struct.Struct(f"{order}HH{number}{inline}s")
    head, link = struct.Struct(order + counter), struct.Struct(order + number)
    sizes = {1: 1, 2: 1, 6: 1, 7: 1, 3: 2, 8: 2, 4: 4, 9: 4, 11: 4, 13: 4, 5: 8, 10: 8, 12: 8, 16: 8, 17: 8, 18: 8}

    waiting = [(link.unpack_from(data, start)[0], True)] if len(data) >= start + link.size else []
    seen: set[int] = set()
    claimed = 0
    while waiting:
        offset, in_chain = waiting.pop()
        if not 0 < offset <= len(data) - head.size:
            continue
        if offset in seen:
            raise InputError(f"its pages form a cycle: the one at byte {offset} is reached twice; save the file again")
        seen.add(offset)
        if len(seen) > _MAX_DIRECTORIES:
            raise InputError(f"more than {_MAX_DIRECTORIES} pages; a film has one: split the file")
        (tags,) = head.unpack_from(data, offset)
        first, end = offset + head.size, offset + head.size + tags * entry.size
        if tags > 4096 or end > len(data):
            continue
        claimed += end - offset
        for code, kind, count, value in entry.iter_unpack(data[first:end]):
            length = count * sizes.get(kind, 0)
            outside = length > inline
            place = link.unpack(value)[0] if outside else 0
            if place + length > len(data):
                continue  # tifffile leaves such a tag out
            claimed += length if outside else 0
            # An honest file claims each byte once, save a few values that tags or pages share.
            if claimed > 4 * len(data) + 2**20:
                raise InputError("its pages claim the same bytes over and over; save the file again")
            if code == _SUB_DIRECTORIES and kind in (4, 13, 16, 18):
                stored = data[place : place + length] if outside else value
                below = f"{order}{min(count, _MAX_DIRECTORIES + 1)}{'I' if sizes[kind] == 4 else 'Q'}"
                waiting += [(other, False) for other in struct.unpack_from(below, stored)]
        if in_chain and end + link.size <= len(data):
            waiting.append((link.unpack_from(data, end)[0], True))
