"""Tables as text: CSV by whoever wrote it (pandas, Excel, a hospital's export), to rows with their line numbers.

Text is UTF-8, with or without a byte order mark, or UTF-16 with one. Cells are separated by `,`, `;` or tabs, whichever
gives the heading the most cells; a first line `sep=;`, as Excel reads it, is skipped. Cells are stripped, empty lines
passed over.
"""

from __future__ import annotations

import codecs
import csv
import io
from collections.abc import Iterator
from dataclasses import dataclass

from preprocessing import InputError
from preprocessing.sources.storage import MAX_MANIFEST_BYTES, Store
from preprocessing.wording import counted

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}
TABLE_SUFFIXES = (".csv", ".tsv")


@dataclass(frozen=True)
class Table:
    """A heading and the lines below it.

    where      file as messages name it
    separator  of cells: a key of `SEPARATORS`
    columns    cells of the heading, as they are written
    line       number of the heading's line
    """

    where: str
    separator: str
    columns: tuple[str, ...]
    line: int
    text: str

    def rows(self, *, ragged: bool = False) -> Iterator[tuple[int, list[str]]]:
        """Yield number and cells of each line below the heading.

        ragged  take lines of another number of cells: missing ones are empty, further empty ones dropped

        Raises `InputError`, with the line, for lines of another number of cells, unclosed quotes and the like.
        """
        rows = csv.reader(io.StringIO(self.text, newline=""), delimiter=self.separator, strict=True)
        try:
            for row in rows:
                cells = [cell.strip() for cell in row]
                if not any(cells) or rows.line_num <= self.line:
                    continue
                if ragged and (len(cells) < len(self.columns) or not any(cells[len(self.columns) :])):
                    cells = (cells + [""] * len(self.columns))[: len(self.columns)]
                if len(cells) != len(self.columns):
                    separators = SEPARATORS[self.separator]
                    raise InputError(
                        f"{counted(len(cells), 'cell')}, the heading has {len(self.columns)}; quote cells that contain "
                        f"{separators}"
                    )
                yield rows.line_num, cells
        except (InputError, csv.Error) as error:
            raise InputError(f"{self.where}, line {rows.line_num}: {error}") from None

    def dicts(self) -> Iterator[tuple[int, dict[str, str]]]:
        """Yield number and cells by column of each line, `ragged`; of two columns of one name the first."""
        for line, cells in self.rows(ragged=True):
            yield line, dict(reversed(list(zip(self.columns, cells, strict=True))))


def read_table(where: str, data: bytes) -> Table | None:
    """Read the heading of a table from the bytes of its file; None where there is no line. `InputError`: no text."""
    text = decoded(where, data)
    separator, columns, line = _heading(where, text)
    return Table(where, separator, columns, line, text) if columns else None


def open_table(where: str, file: str, store: Store) -> Table | None:
    """Read a table of a store, of at most `MAX_MANIFEST_BYTES`; like `read_table`."""
    return read_table(where, store.read(file, MAX_MANIFEST_BYTES))


def decoded(where: str, data: bytes) -> str:
    """Return the text of a file in UTF-8 or, with a byte order mark, UTF-16; `InputError` with advice for any other."""
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        try:
            return data.decode("utf-16")
        except UnicodeDecodeError as error:
            raise InputError(f"{where}: damaged UTF-16 text at byte {error.start}; save it as UTF-8") from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f'{where}: not UTF-8 text at byte {error.start}; save it as UTF-8 (in Excel: as "CSV UTF-8")'
        ) from error
    if "\0" in text:
        raise InputError(
            f"{where}: text with null characters, perhaps UTF-16 without a byte order mark; save it as UTF-8"
        )
    return text


def _is_separator_line(row: list[str], separator: str) -> bool:
    """Whether a line is `sep=;` or the like, split as it may be."""
    return separator.join(row).strip().lower() in {f"sep={sign}".strip() for sign in SEPARATORS}


def _heading(where: str, text: str) -> tuple[str, tuple[str, ...], int]:
    """Return separator, cells and line of the first line that is one, by the separator that gives the most cells."""
    best: tuple[str, tuple[str, ...], int] = ",", (), 1
    faults = []
    for separator in SEPARATORS:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
        try:
            for row in rows:
                cells = tuple(cell.strip() for cell in row)
                if any(cells) and not _is_separator_line(row, separator):
                    best = max(best, (separator, cells, rows.line_num), key=lambda heading: len(heading[1]))
                    break
        except csv.Error as error:
            faults.append(f"{where}, line {rows.line_num}: {error}")
    if len(faults) == len(SEPARATORS):
        raise InputError(faults[0])
    return best
