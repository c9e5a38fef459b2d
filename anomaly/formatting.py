"""Numbers, intervals and Markdown tables as text."""

import math
import shlex
from collections.abc import Iterable, Sequence

# ------------------------------------------------------------------------------------------------------------- tables

FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
"""What a spreadsheet program takes for the beginning of a formula, in full width too (OWASP, "CSV Injection")."""


def csv_cell(value: object) -> object:
    """Return a value as it stands in a CSV file: a text that a spreadsheet would run as a formula after an apostrophe.

    Numbers stay as they are. A text that begins with an apostrophe gets a second one, so that `from_csv_cell` gives
    back every text.

    >>> csv_cell("=cmd|'/c calc'!A0"), csv_cell("a.png"), csv_cell(-1.5), csv_cell("'a")
    ("'=cmd|'/c calc'!A0", 'a.png', -1.5, "''a")
    """
    return f"'{value}" if isinstance(value, str) and value.startswith((*FORMULA, "'")) else value


def from_csv_cell(text: str) -> str:
    """Return the text of which `csv_cell` made this one.

    >>> from_csv_cell("'=1"), from_csv_cell("''a"), from_csv_cell("a.png")
    ('=1', "'a", 'a.png')
    """
    return text.removeprefix("'")


def number(value: float | None) -> str:
    """Three decimals without the leading zero, a dash for an undefined value.

    >>> number(0.8431), number(1.0), number(-0.12), number(None)
    ('.843', '1.000', '-.120', '–')
    """
    if value is None or math.isnan(value):
        return "–"
    text = f"{value:.3f}"
    text = "0.000" if text == "-0.000" else text
    return text.replace("0.", ".", 1) if text.lstrip("-").startswith("0.") else text


def command_line(*words: object) -> str:
    """Return a command as it can be pasted into a shell, whatever is in its paths.

    >>> command_line("anomaly", "score", "runs/my run (2)")
    "anomaly score 'runs/my run (2)'"
    """
    return shlex.join(map(str, words))


def counted(count: int, noun: str) -> str:
    """A number and what it counts, in the plural unless it is one.

    >>> counted(1, "model"), counted(0, "seed"), counted(2, "study"), counted(3, "array")
    ('1 model', '0 seeds', '2 studies', '3 arrays')
    """
    if count == 1:
        return f"{count} {noun}"
    ends_in_consonant_y = noun.endswith("y") and noun[-2:-1] not in "aeiou"
    return f"{count} {noun[:-1]}ies" if ends_in_consonant_y else f"{count} {noun}s"


def size_on_disk(count: int) -> str:
    """Bytes as a reader takes them in, by thousands.

    >>> size_on_disk(999), size_on_disk(24_831), size_on_disk(1_250_000_000)
    ('999 B', '24.8 kB', '1.25 GB')
    """
    if count < 1000:
        return f"{count} B"
    power = next((power for power in (1, 2, 3) if count < 999.5 * 1000**power), 4)
    return f"{count / 1000**power:.3g} {('kB', 'MB', 'GB', 'TB')[power - 1]}"


def with_interval(value: float | None, limits: Sequence[float] | None) -> str:
    """A figure and its interval; the figure alone where the interval is undefined.

    >>> with_interval(0.843, (0.79, 0.884)), with_interval(0.843, None)
    ('.843 [.790, .884]', '.843')
    """
    if limits is None or any(math.isnan(limit) for limit in limits):
        return number(value)
    return f"{number(value)} {interval(limits)}"


def interval(limits: Sequence[float]) -> str:
    """An interval in brackets.

    >>> interval((0.79, 0.884))
    '[.790, .884]'
    """
    return f"[{number(limits[0])}, {number(limits[1])}]"


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table, columns padded to one width; the first is set left, the others right.

    >>> print("\\n".join(markdown(["model", "AUC"], [["cae", ".843"], ["a|b", "–"]])))
    | model |  AUC |
    | :---- | ---: |
    | cae   | .843 |
    | a\\|b  |    – |
    """
    cells = [[_cell(text) for text in row] for row in (head, *rows)]
    if any(len(row) != len(head) for row in cells):
        raise ValueError(f"every row needs {len(head)} cells like the head")
    widths = [max(3, *(len(row[column]) for row in cells)) for column in range(len(head))]

    def line(row: Sequence[str]) -> str:
        padded = [
            text.rjust(width) if column else text.ljust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rule = [("-" * (width - 1) + ":") if column else (":" + "-" * (width - 1)) for column, width in enumerate(widths)]
    return [line(cells[0]), line(rule), *(line(row) for row in cells[1:])]


def _cell(text: str) -> str:
    """Text that stays in its cell."""
    return " ".join(text.split()).replace("|", "\\|")
