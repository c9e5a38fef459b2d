"""What the cells of a printed table show, read back from its text."""

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise

from anomaly.evaluation.comparison import Entry, Key, Pair, Table
from anomaly.formatting import from_csv_cell
from anomaly.reporting.latex import ESCAPES

NUMBER = r"[+-]?\d?\.\d{3}"
CELL = re.compile(
    rf"(?=.)(?:(?:(?P<mark>[*=]) )?(?P<mean>{NUMBER})(?: ± (?P<sd>{NUMBER}))?"
    rf"(?: \[(?P<low>{NUMBER}), (?P<high>{NUMBER})\])?|–|(?=\d+ of|not done|failed))"
    r"(?:(?:^|,? )(?P<state>\d+ of \d+ seeds|not done))?(?:(?:^|,? )failed \((?P<failed>\d+)\))?"
    rf"(?:;? paper (?P<paper_mean>{NUMBER}) ± (?P<paper_sd>{NUMBER})(?:,? ours (?P<ours>{NUMBER}))?)?"
)
FAILED = re.compile(r"failed \((\d+)\): (.+)")
LATEX_CHARACTERS = {code: character for character, code in ESCAPES.items()} | {"-{}": "-", "$-$": "-"}
LATEX_CODE = re.compile(
    r"\\texttt\{U\+([0-9A-F]+)\}|" + "|".join(map(re.escape, sorted(LATEX_CHARACTERS, key=len, reverse=True)))
)


@dataclass(frozen=True)
class Shown:
    """What a cell shows to three decimals; None for what it does not show."""

    mean: float | None = None
    sd: float | None = None
    interval: Pair | None = None
    best: bool = False
    tied: bool = False
    state: str = ""
    failure: str | None = None
    paper: Pair | None = None
    ours: float | None = None  # mean less that of the paper


def shown(table: Table) -> dict[Key, Shown]:
    """What the parsers of this module read from this table's text."""
    return {
        key: Shown(
            mean=rounded(entry.mean),
            sd=rounded(entry.sd),
            interval=rounded_pair(entry.interval),
            best=entry.best,
            tied=entry.tied,
            state=entry.state,
            failure=entry.failure,
            paper=rounded_pair(entry.paper),
            ours=rounded(entry.above_paper),
        )
        for key, entry in table.entries.items()
    }


def rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def rounded_pair(pair: Pair | None) -> Pair | None:
    return (round(pair[0], 3), round(pair[1], 3)) if pair else None


def parse_cell(text: str, reasons: Mapping[str, str]) -> Shown:
    match = CELL.fullmatch(text)
    assert match, f"{text!r} is no cell of a table of a bench"

    def pair(low: str, high: str) -> Pair | None:
        return (float(match[low]), float(match[high])) if match[low] else None

    return Shown(
        mean=float(match["mean"]) if match["mean"] else None,
        sd=float(match["sd"]) if match["sd"] else None,
        interval=pair("low", "high"),
        best=match["mark"] == "*",
        tied=match["mark"] == "=",
        state=match["state"] or "",
        failure=reasons[match["failed"]] if match["failed"] else None,
        paper=pair("paper_mean", "paper_sd"),
        ours=float(match["ours"]) if match["ours"] else None,
    )


def parse_reasons(lines: Iterable[str]) -> dict[str, str]:
    return {match[1]: match[2] for line in lines if (match := FAILED.fullmatch(line))}


def parse_csv(text: str) -> dict[Key, Entry]:
    pairs = {
        "interval": ("low", "high"),
        "difference_interval": ("difference_low", "difference_high"),
        "paper": ("paper_mean", "paper_sd"),
    }
    numbers = {"mean": float, "sd": float, "difference": float, "p": float, "prevalence": float}
    numbers |= dict.fromkeys(("failed", "undone", "n", "n_abnormal", "n_patients"), int)
    entries: dict[Key, Entry] = {}
    for escaped in csv.DictReader(io.StringIO(text, newline="")):
        line = {name: from_csv_cell(cell) for name, cell in escaped.items()}
        values = {name: (float(line[a]), float(line[b])) if line[a] else None for name, (a, b) in pairs.items()}
        values |= {name: kind(line[name]) if line[name] else None for name, kind in numbers.items()}
        values |= {name: line[name] == "True" for name in ("best", "tied")}
        values |= {"each": tuple(map(float, line["each"].split())), "failure": line["failure"] or None}
        entries[line["model"], line["score"], line["variant"]] = Entry(**values)
    return entries


def parse_markdown(text: str) -> dict[Key, Shown]:
    def unescaped(text: str) -> str:
        return re.sub(r"\\(.)", r"\1", text)

    lines = text.splitlines()
    reasons = parse_reasons(unescaped(line.removeprefix("- ")) for line in lines if line.startswith("- "))
    # A bar or any other character behind a backslash is part of its cell.
    grid = [
        [cell.strip() for cell in re.findall(r"((?:\\.|[^\\|])*)\|", line[1:])] for line in lines if line[:1] == "|"
    ]
    (_, _, *columns), _, *body = grid
    return {
        (unescaped(model), unescaped(score), unescaped(variant)): parse_cell(
            re.sub(r"^\*\*(.*?)\*\*", r"* \1", cell), reasons
        )
        for model, score, *cells in body
        for variant, cell in zip(columns, cells, strict=True)
    }


def parse_latex(text: str) -> dict[Key, Shown]:
    def unescaped(text: str) -> str:
        return LATEX_CODE.sub(lambda code: chr(int(code[1], 16)) if code[1] else LATEX_CHARACTERS[code[0]], text)

    lines = text.splitlines()
    reasons = parse_reasons(unescaped(line.removesuffix(r"\par")) for line in lines if line.endswith(r"\par"))
    grid = [re.split(r"(?<!\\) & ", line.removesuffix(r" \\")) for line in lines if line.endswith(r" \\")]
    (_, _, *columns), *body = grid
    cells = {}
    for model, score, *texts in body:
        for variant, cell in zip(columns, texts, strict=True):
            inner = cell.removeprefix(r"\begin{tabular}[t]{@{}r@{}}").removesuffix(r"\end{tabular}")
            inner = inner.replace(r"\\", " ")
            inner = re.sub(r"\\textbf\{(.*?\]?)\}(?=$| )", r"\1", "* " + inner if r"\textbf" in inner else inner)
            cells[unescaped(model), unescaped(score), unescaped(variant)] = parse_cell(unescaped(inner), reasons)
    return cells


def parse_terminal(text: str) -> dict[Key, Shown]:
    """The widest line of a column has no two spaces in a row: wherever all lines have two, a column ends."""
    lines = text.splitlines()
    reasons = parse_reasons("\n".join(lines).replace("\n  ", " ").splitlines())
    texts: dict[Key, list[str]] = {}
    for rule in (number for number, line in enumerate(lines) if line and set(line) == {"─"}):
        end = lines.index("", rule)
        block = [line.ljust(len(lines[rule])) for line in (lines[rule - 1], *lines[rule + 1 : end])]
        blank = "".join(" " if set(column) == {" "} else "x" for column in zip(*block, strict=True))
        edges = [0, *(gap.end() for gap in re.finditer("  ", blank)), len(blank) + 2]
        (_, _, *columns), *body = [[line[a : b - 2].strip() for a, b in pairwise(edges)] for line in block]
        row = ("", "")
        for model, score, *cells in body:
            row = (model, score) if model else row
            for variant, cell in zip(columns, cells, strict=True):
                texts.setdefault((*row, variant), []).append(cell)
    return {key: parse_cell(" ".join(filter(None, parts)), reasons) for key, parts in texts.items()}
