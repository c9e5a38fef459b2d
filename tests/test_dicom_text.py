"""Names of patients in the character sets that films name, legal and not: results read back equal, and are valid."""

import io
from pathlib import Path
from typing import NamedTuple

import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import Dataset
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

from anomaly.export.dicom_objects import KINDS, dicom_bytes, dicom_results, kind_of
from anomaly.export.dicom_source import source_header
from anomaly.export.dicom_text import UTF_8
from tests.dicom_cases import DCIODVFY, errors_of, finding, source_film

pytest.importorskip("highdicom")


class Case(NamedTuple):
    """What a film says, and what its results say then."""

    named: str  # SpecificCharacterSet of the film
    raw: bytes  # its PatientName
    name: str  # as it is to be read
    written: str  # SpecificCharacterSet of the results
    notes: tuple[str, ...] = ()  # parts of what is said of it, one a note


AS_UTF_8 = "is written as UTF-8"
CASES = {
    # Single sets of one byte a letter, PS3.3 table C.12-2: kept.
    "ascii": Case("", b"Roe^Jane", "Roe^Jane", ""),
    "latin 1": Case("ISO_IR 100", b"M\xfcller^J\xf6rg", "Müller^Jörg", "ISO_IR 100"),
    "latin 2": Case("ISO_IR 101", b"Wa\xb3\xeasa^Lech", "Wałęsa^Lech", "ISO_IR 101"),
    "latin 3": Case("ISO_IR 109", b"\xd8orda^", "Ĝorda^", "ISO_IR 109"),
    "latin 4": Case("ISO_IR 110", b"B\xbarzi\xf1\xb9^", "Bērziņš^", "ISO_IR 110"),
    "cyrillic": Case("ISO_IR 144", b"\xbb\xee\xdace\xdc\xd1yp\xd3^\xb8\xd2\xd0\xdd", "Люкceмбypг^Иван", "ISO_IR 144"),
    "arabic": Case("ISO_IR 127", b"\xe2\xc8\xc7\xe6\xea^\xe4\xe6\xd2\xc7\xd1", "قباني^لنزار", "ISO_IR 127"),
    "greek": Case("ISO_IR 126", b"\xc4\xe9\xef\xed\xf5\xf3\xe9\xef\xf2", "Διονυσιος", "ISO_IR 126"),
    "hebrew": Case("ISO_IR 138", b"\xf9\xf8\xe5\xef^\xe3\xe1\xe5\xf8\xe4", "שרון^דבורה", "ISO_IR 138"),
    "turkish": Case("ISO_IR 148", b"\xc7avu\xfeo\xf0lu^", "Çavuşoğlu^", "ISO_IR 148"),
    "thai": Case("ISO_IR 166", b"\xb9\xd2\xc1\xca\xa1\xd8\xc5^", "นามสกุล^", "ISO_IR 166"),
    "utf-8": Case(
        "ISO_IR 192", b"Wang^XiaoDong=\xe7\x8e\x8b^\xe5\xb0\x8f\xe4\xb8\x9c", "Wang^XiaoDong=王^小东", "ISO_IR 192"
    ),
    "gb 18030": Case("GB18030", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab", "Wang^XiaoDong=王^小东", "GB18030"),
    "a letter with the byte of a backslash": Case("GB18030", b"\xcd\xf5\x81\\^A", "王乗^A", UTF_8, (AS_UTF_8,)),
    # Legal ones that pydicom or dicom3tools can't read: UTF-8.
    "latin 9": Case("ISO_IR 203", b"\xbcuvre^\xa6\xa4", "Œuvre^Š€", UTF_8, (AS_UTF_8,)),
    "katakana": Case("ISO_IR 13", b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3", "ﾔﾏﾀﾞ^ﾀﾛｳ", UTF_8, (AS_UTF_8,)),
    "gbk": Case("GBK", b"Wang^XiaoDong=\xcd\xf5^\xd0\xa1\xb6\xab", "Wang^XiaoDong=王^小东", UTF_8, (AS_UTF_8,)),
    "simplified chinese": Case(
        "\\ISO 2022 IR 58",
        b"Zhang^XiaoDong=\x1b$)A\xd5\xc5^\x1b$)A\xd0\xa1\xb6\xab",  # PS3.5 annex K
        "Zhang^XiaoDong=张^小东",
        UTF_8,
        (AS_UTF_8,),
    ),
    # Code extensions, table C.12-4: kept.
    "kanji": Case(
        "\\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B=\x1b$B$d$^$@\x1b(B^\x1b$B$?$m$&\x1b(B",  # PS3.5 annex H
        "Yamada^Tarou=山田^太郎=やまだ^たろう",
        "\\ISO 2022 IR 87",
    ),
    "kanji after ascii": Case(
        "ISO 2022 IR 6\\ISO 2022 IR 87",
        b"Yamada^Tarou=\x1b$B;3ED\x1b(B^\x1b$BB@O:\x1b(B",
        "Yamada^Tarou=山田^太郎",
        "ISO 2022 IR 6\\ISO 2022 IR 87",
    ),
    "kanji after katakana": Case(
        "ISO 2022 IR 13\\ISO 2022 IR 87",
        b"\xd4\xcf\xc0\xde^\xc0\xdb\xb3=\x1b$B;3ED\x1b(J^\x1b$BB@O:\x1b(J",
        "ﾔﾏﾀﾞ^ﾀﾛｳ=山田^太郎",
        "ISO 2022 IR 13\\ISO 2022 IR 87",
    ),
    "korean": Case(
        "\\ISO 2022 IR 149",
        b"Hong^Gildong=\x1b$)C\xfb\xf3^\x1b$)C\xd1\xce\xd4\xd7=\x1b$)C\xc8\xab^\x1b$)C\xb1\xe6\xb5\xbf",  # annex I
        "Hong^Gildong=洪^吉洞=홍^길동",
        "\\ISO 2022 IR 149",
    ),
    "latin 1 and cyrillic": Case(
        "ISO 2022 IR 100\\ISO 2022 IR 144",
        b"M\xfcller^\x1b-L\xb8\xd2\xd0\xdd",
        "Müller^Иван",
        "ISO 2022 IR 100\\ISO 2022 IR 144",
    ),
    # What is no defined term: what it means.
    "extension alone": Case("ISO 2022 IR 100", b"M\xfcller^", "Müller^", "ISO_IR 100", ("taken as ISO_IR 100",)),
    "kanji alone": Case(
        "ISO 2022 IR 87", b"\x1b$B;3ED\x1b(B^", "山田^", "\\ISO 2022 IR 87", (r"taken as \ISO 2022 IR 87",)
    ),
    "korean alone, not escaped": Case(
        "ISO 2022 IR 149", b"\xc8\xab^\xb1\xe6\xb5\xbf", "홍^길동", "\\ISO 2022 IR 149", ("taken as",)
    ),
    "no extension among several": Case(
        "ISO_IR 100\\ISO_IR 144",
        b"M\xfcller^\x1b-L\xb8\xd2\xd0\xdd",
        "Müller^Иван",
        "ISO 2022 IR 100\\ISO 2022 IR 144",
        ("taken as",),
    ),
    "utf-8 and another": Case(
        "ISO_IR 192\\ISO 2022 IR 100", b"\xce\xa9^", "Ω^", "ISO_IR 192", ("taken as ISO_IR 192",)
    ),
    "dash": Case("ISO-IR 100", b"M\xfcller^", "Müller^", "ISO_IR 100", ("'ISO-IR 100' is no defined term",)),
    "space": Case("ISO IR 144", b"\xb8\xd2\xd0\xdd", "Иван", "ISO_IR 144", ("taken as ISO_IR 144",)),
    "small letters": Case("iso_ir 100", b"M\xfcller^", "Müller^", "ISO_IR 100", ("taken as ISO_IR 100",)),
    "iso 8859-5": Case("ISO 8859-5", b"\xb8\xd2\xd0\xdd", "Иван", "ISO_IR 144", ("taken as ISO_IR 144",)),
    "utf-8 by name": Case("UTF-8", b"\xce\xa9^", "Ω^", "ISO_IR 192", ("taken as ISO_IR 192",)),
    "ascii by name": Case("ISO_IR 6", b"Roe^Jane", "Roe^Jane", "", ("taken as ASCII",)),
    "not known, ascii": Case("FOO", b"Roe^Jane", "Roe^Jane", "", ("'FOO' is not known",)),
    # Bytes beyond ASCII that no set is named for, which many films have.
    "unnamed utf-8": Case("", b"M\xc3\xbcller^", "Müller^", UTF_8, ("without a character set is taken as UTF-8",)),
    "unnamed latin 1": Case("", b"M\xfcller^", "Müller^", "ISO_IR 100", ("taken as Latin-1",)),
    "not known, latin 1": Case("FOO", b"M\xfcller^", "Müller^", "ISO_IR 100", ("not known", "taken as Latin-1")),
    "latin 1 as ascii": Case("ISO_IR 6", b"M\xfcller^", "Müller^", "ISO_IR 100", ("as ASCII", "taken as Latin-1")),
    "latin 1 before kanji": Case("\\ISO 2022 IR 87", b"M\xfcller^\x1b$BB@O:\x1b(B", "Müller^太郎", UTF_8, (AS_UTF_8,)),
    # Bytes that are not of the set that is named.
    "latin 1 as utf-8": Case("ISO_IR 192", b"M\xfcller^", "", UTF_8, ("left empty in its results: PatientName",)),
    "windows quotes": Case("ISO_IR 100", b"O\x92Neil^", "", "ISO_IR 100", ("left empty",)),
    "another escape": Case("ISO 2022 IR 100\\ISO 2022 IR 144", b"M^\x1b-F\xc4\xe9", "", "", ("left empty",)),
}


def film(case: Case, keyword: str = "PatientName") -> Dataset:
    """A film's header as it is read from a file: bytes that nothing has decoded."""
    source = source_film()
    tag = Tag("SpecificCharacterSet")
    for element, vr, raw in ((tag, "CS", case.named.encode()), (Tag(keyword), dictionary_VR(keyword), case.raw)):
        source[element] = RawDataElement(element, vr, len(raw), raw, 0, False, True, True)
    return source


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_name_reads_back_as_the_film_means_it(case: Case, tmp_path: Path) -> None:
    notes = source_header(film(case)).notes
    assert len(notes) == len(case.notes)
    assert all(part in note for part, note in zip(case.notes, sorted(notes, key="left empty".__lt__), strict=True)), (
        notes
    )
    for result in dicom_results(film(case), finding()):
        (file := tmp_path / "result.dcm").write_bytes(dicom_bytes(result))
        read = pydicom.dcmread(file)
        named = read.get("SpecificCharacterSet") or ""
        assert str(read.PatientName) == case.name, kind_of(result)
        assert (named if isinstance(named, str) else "\\".join(named)) == case.written, kind_of(result)
        if DCIODVFY is not None:
            assert errors_of(file) == [], kind_of(result)


@pytest.mark.parametrize("keyword", ["StudyDescription", "PatientComments", "InstitutionName", "AccessionNumber"])
def test_other_text_is_of_the_same_set(keyword: str) -> None:
    case = CASES["latin 9"]
    header = source_header(film(case, keyword))
    assert header.dataset[keyword].value == case.name
    assert header.character_set == (UTF_8,)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from(["", "ISO_IR 100", "ISO 2022 IR 87", "ISO 2022 IR 58", "GBK", "x", "UTF8", "ISO_IR 6"])),
    st.binary(max_size=24),
)
def test_whatever_bytes_there_are_what_is_written_is_what_was_read(named: list[str], raw: bytes) -> None:
    header = source_header(film(Case("\\".join(named), raw, "", "")))
    (result,) = dicom_results(film(Case("\\".join(named), raw, "", "")), finding(), KINDS[:1])
    read = pydicom.dcmread(io.BytesIO(dicom_bytes(result)))
    assert str(read.PatientName) == str(header.dataset.PatientName or "")
    assert "\x1b" not in str(read.PatientName)
