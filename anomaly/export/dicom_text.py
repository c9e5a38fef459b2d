"""Text of a film in its character set, and the one that its results are written in: PS3.3 C.12.1.1.2, PS3.5 6.1.

Films name character sets that no library writes as they are: legal ones (`\\ISO 2022 IR 87`, `GBK`, `ISO_IR 203`), and
others that only mean one (`ISO-IR 100`, `UTF-8`). Text is read by what the film says or plainly means. Results keep its
set where text survives in it as other programs read it, and else are UTF-8, which holds every name.
"""

import io
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydicom import DataElement, Dataset

UTF_8 = "ISO_IR 192"
TEXT = ("PN", "LO", "SH", "LT", "ST", "UC", "UT")
"""Value representations whose text is in the character set that a film names: PS3.5 section 6.1.2.3."""

_SINGLE_BYTE = ("100", "101", "109", "110", "144", "127", "126", "138", "148", "203", "13", "166")
"""Registrations of sets of one byte a character, tables C.12-2 and C.12-3."""
_MANY_BYTES = ("87", "159", "149", "58")
"""Those of more, by code extension alone, table C.12-4."""
_ALONE = (UTF_8, "GB18030", "GBK")
"""Sets that allow no code extension, table C.12-5."""
_MEANT = {
    "UTF8": UTF_8,
    "UNICODE": UTF_8,
    "GB18030": "GB18030",
    "GBK": "GBK",
    "GB2312": "GBK",  # which contains it
    "ISO2022GBK": "GBK",  # CP-1234
    "ISO202258": "GBK",
    "ASCII": "",
    "USASCII": "",
    "LATIN1": "ISO_IR 100",
    **{
        f"ISO8859{part}": f"ISO_IR {registered}"
        for part, registered in (
            *((1, 100), (2, 101), (3, 109), (4, 110), (5, 144), (6, 127), (7, 126), (8, 138), (9, 148), (11, 166)),
            (15, 203),
        )
    },
}
"""What is no defined term, in capitals without spaces and marks -> the term that it plainly means."""
_CODECS = {"ISO_IR 203": "iso8859_15", "ISO 2022 IR 203": "iso8859_15"}
"""Terms that pydicom does not know -> Python's name, which it takes instead."""
_KEPT = (
    *(f"ISO_IR {registered}" for registered in _SINGLE_BYTE if registered not in ("13", "203")),
    *(UTF_8, "GB18030"),
)
"""Sets, named alone, that other programs read. dicom3tools reads no katakana of ISO_IR 13, and not GBK; neither it nor
pydicom knows ISO_IR 203.
"""
_EXTENSION_LEFT = re.compile(r"\x1b\$\)A")
"""The escape sequence of ISO 2022 IR 58, which pydicom leaves in the text."""
_LINES = "\t\n\f\r"


@dataclass(frozen=True)
class CharacterSet:
    """The character set that a film names."""

    terms: tuple[str, ...]  # as it should be named: defined terms, the first "" by code extension of ASCII; () ASCII
    codecs: tuple[str, ...]  # to read its text by, as pydicom takes them
    notes: tuple[str, ...] = ()  # what it does not name as the standard does, a sentence each


def character_set(source: "Dataset", keywords: Sequence[str]) -> CharacterSet:
    """Return the character set of a film, and what was guessed of it.

    keywords  the attributes that are going to be read: where the film names no set that is known, they tell UTF-8 from
    Latin-1. They must not have been looked at before, as pydicom decodes them then.
    """
    named = _named(source)
    found = [_term(name, several=len(named) > 1) for name in named]
    known = [term for term in found if term is not None]
    terms = _arranged(known) if len(known) == len(found) else ()
    notes: list[str] = []
    if len(known) < len(found):
        notes.append(f"its character set {_quoted(named)} is not known")
    elif terms != named:
        meant = "\\".join(terms) or "ASCII"
        notes.append(f"its character set {_quoted(named)} is no defined term, and is taken as {meant}")
    if terms:
        # Text in one of these sets alone, which is not legal, comes without the escape sequence too.
        read = terms[1:] if known[0] in ("ISO 2022 IR 149", "ISO 2022 IR 58") else terms
        return CharacterSet(terms, tuple(_CODECS.get(term, term) for term in read), tuple(notes))
    raw = b" ".join(_bytes(source, keywords))
    if raw.isascii():
        return CharacterSet((), ("",), tuple(notes))
    term, name = (UTF_8, "UTF-8") if _decodes(raw, "utf-8") else ("ISO_IR 100", "Latin-1")
    what = "its text" if notes else "text beyond ASCII without a character set"
    return CharacterSet((term,), (term,), (*notes, f"{what} is taken as {name}"))


def reread(source: "Dataset", keywords: Sequence[str], charset: CharacterSet) -> "Dataset":
    """Return these attributes of a film, as far as it has them, to be decoded by that character set."""
    from pydicom import Dataset
    from pydicom.charset import convert_encodings
    from pydicom.datadict import tag_for_keyword

    read = Dataset()
    for keyword in keywords:
        tag = tag_for_keyword(keyword)
        if tag is not None and tag in source:
            read[tag] = source.get_item(tag)
    read.set_original_encoding(None, None, convert_encodings(list(charset.codecs)))
    return read


def clean_text(text: str) -> str | None:
    """Return decoded text as it can be written; None where bytes were not of their character set."""
    text = _EXTENSION_LEFT.sub("", text)
    broken = any(
        letter == "\ufffd" or (unicodedata.category(letter) == "Cc" and letter not in _LINES) for letter in text
    )
    return None if broken else text


def written_set(elements: "Sequence[DataElement]", charset: CharacterSet) -> tuple[tuple[str, ...], str | None]:
    """Return the terms by which results write text, () for ASCII; and a note where the set is not the film's.

    elements  everything that is taken over; what is not text among it does not matter.
    """
    text = [element for element in elements if element.VR in TEXT and not element.is_empty]
    letters = "".join(str(element.value) for element in text)
    if letters.isascii() and not (len(charset.terms) == 1 and charset.terms[0] in _KEPT):
        return (), None
    if _is_kept(charset.terms, letters) and _survives(text, charset.terms):
        return charset.terms, None
    return (UTF_8,), f"its text is written as UTF-8 in its results, not as {_quoted(charset.terms)}"


def _is_kept(terms: Sequence[str], letters: str) -> bool:
    """Whether other programs read text in this set as it stands in the standard."""
    if len(terms) == 1:
        # Some letters have the byte of a backslash, at which other programs cut the value in two.
        divided = terms[0] == "GB18030" and b"\\" in letters.encode("gb18030", "replace")
        return terms[0] in _KEPT and not divided
    # By code extension of ASCII no letter has its high bit set, which pydicom, as it takes ASCII for Latin-1, would do.
    ascii_first = terms[:1] in [("",), ("ISO 2022 IR 6",)]
    return bool(terms) and not (ascii_first and any("\x7f" < letter <= "\xff" for letter in letters))


def _survives(text: "Sequence[DataElement]", terms: Sequence[str]) -> bool:
    """Whether text is the same when it has been written in this set and read again."""
    from pydicom import DataElement, Dataset, dcmread, dcmwrite

    written = Dataset()
    written.SpecificCharacterSet = list(terms)
    for element in text:  # a new one of each: pydicom keeps the bytes of a name from the first time that it is written
        values = [str(one) for one in element.value] if element.VM > 1 else str(element.value)
        written.add(DataElement(element.tag, element.VR, values))
    file = io.BytesIO()
    try:
        dcmwrite(file, written, implicit_vr=False, little_endian=True)
        again = dcmread(io.BytesIO(file.getvalue()), force=True)
        return all(str(again[element.tag].value) == str(element.value) for element in text)
    except Exception:  # of whatever kind: it can't be written so, and UTF-8 is there
        return False


def _named(source: "Dataset") -> tuple[str, ...]:
    """Return what a film says of its character set, spaces and empty values at its end left out."""
    try:
        value: Any = source.get("SpecificCharacterSet")
    except Exception:  # pydicom converts only now
        return ()
    values = [value] if value is None or isinstance(value, str) else list(value)
    names = [str(name or "").strip() for name in values]
    while names and not names[-1]:
        names.pop()
    return tuple(names)


def _term(name: str, *, several: bool) -> str | None:
    """Return the defined term that a name is or plainly means, "" for ASCII; None where that is not known."""
    bare = re.sub(r"[^A-Z0-9]", "", name.upper())
    numbered = re.fullmatch(r"ISO(?:2022)?IR(\d+)", bare)
    registered = numbered[1] if numbered else ""
    if registered == "6" or not name:
        return "ISO 2022 IR 6" if several and name else ""
    if registered in _MANY_BYTES or (several and registered in _SINGLE_BYTE):
        return f"ISO 2022 IR {registered}"
    if registered in _SINGLE_BYTE:
        return f"ISO_IR {registered}"
    meant = UTF_8 if registered == "192" else _MEANT.get(bare)
    return _term(meant, several=True) if several and meant and meant not in _ALONE else meant


def _arranged(terms: Sequence[str]) -> tuple[str, ...]:
    """Return terms in a legal order: one set alone that allows no other, and one of a byte a letter, or none, first."""
    if terms and terms[0] in _ALONE:
        return (terms[0],)
    terms = [term for term in terms if term not in _ALONE]
    if terms and terms[0].removeprefix("ISO 2022 IR ") in _MANY_BYTES:
        terms = ["", *terms]
    return tuple(terms) if any(terms) else ()


def _bytes(source: "Dataset", keywords: Sequence[str]) -> Iterator[bytes]:
    """Give the bytes of text attributes, as the film has them; of those that are decoded already, their UTF-8."""
    from pydicom.datadict import dictionary_VR
    from pydicom.dataelem import RawDataElement

    for keyword in keywords:
        if keyword not in source or dictionary_VR(keyword) not in TEXT:
            continue
        element: Any = source.get_item(keyword)
        if isinstance(element, RawDataElement):
            yield element.value or b""
        else:
            original = getattr(element.value, "original_string", None)
            yield original if isinstance(original, bytes) else str(element.value or "").encode()


def _decodes(raw: bytes, codec: str) -> bool:
    try:
        raw.decode(codec)
    except UnicodeDecodeError:
        return False
    return True


def _quoted(names: Sequence[str]) -> str:
    """Return names as they can be shown in a line: what is not printable as an escape, no more than 64 letters."""
    return repr("\\".join(names)[:64]).replace("\\\\", "\\")
