"""The table of a bench in every format, against what is read back from it."""

import json
import re
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from anomaly.evaluation.comparison import ComparisonSettings, Entry, Table, build_table
from anomaly.reporting.tables import from_json, to_csv, to_json, to_latex, to_markdown, to_terminal
from tests.table_parsers import parse_csv, parse_latex, parse_markdown, parse_terminal, shown
from tests.test_comparison import example_table, scored


@pytest.fixture(scope="module")
def whole() -> Table:
    return example_table()


def one_cell(entry: Entry) -> Table:
    key = ("cae", "mse", "full-he")
    return Table("t", (key[:2],), key[2:], {key: entry}, False, (), {}, ComparisonSettings(trivial=()))


def test_the_same_table_in_all_formats(whole):
    want = shown(whole)
    assert from_json(to_json(whole)) == whole
    assert parse_csv(to_csv(whole)) == whole.entries
    assert parse_markdown(to_markdown(whole)) == want
    assert parse_latex(to_latex(whole)) == want
    for width in (300, 120, 80, 60, 1):
        assert parse_terminal(to_terminal(whole, width)) == want
    assert any(cell.tied for cell in want.values()) and any(cell.failure for cell in want.values())
    assert {cell.state for cell in want.values()} == {"", "not done", "0 of 2 seeds", "1 of 2 seeds", "3 of 7 seeds"}
    assert len({cell.best for cell in want.values()}) == 2


FOUR = scored(1.0, patients=4, films=1)

names = st.text(st.characters(exclude_categories=["C", "Z"]) | st.just(" "), min_size=1).filter(
    lambda text: " ".join(text.split()) == text and text.isprintable()
)


def two_cells(key, reason, seeds, title) -> Table:
    cells = {key: reason, (key[0] + "'", key[1], key[2]): seeds}
    return build_table(cells, title=title, notes=[reason], settings=ComparisonSettings(resamples=2))


SEEDS = st.lists(st.sampled_from([FOUR, None, "lost"]), max_size=5)


@given(st.tuples(names, names, names), st.text(min_size=1), SEEDS, st.text())
@settings(deadline=None)
def test_any_name_reason_and_title_comes_back(key, reason, seeds, title):
    table = two_cells(key, reason, seeds, title)
    assert from_json(to_json(table)) == table
    assert parse_csv(to_csv(table)) == table.entries
    assert parse_markdown(to_markdown(table)) == shown(table)
    assert parse_latex(to_latex(table)) == shown(table)


# The parser of the terminal counts characters, so each must be one column wide.
narrow = names.filter(lambda text: all(cell_len(character) == 1 for character in text))


@given(st.tuples(narrow, narrow, narrow), st.text(min_size=1), SEEDS, st.text(), st.integers(1, 200))
@settings(deadline=None)
def test_any_name_comes_back_from_a_terminal(key, reason, seeds, title, width):
    table = two_cells(key, reason, seeds, title)
    assert parse_terminal(to_terminal(table, width)) == shown(table)


def test_json_that_is_no_table_is_refused(whole):
    for text in ("1,2", "{}", to_json(whole).replace('"best": true', '"best": "much"')):
        with pytest.raises(ValueError):
            from_json(text)


def test_what_stands_around_the_table(whole):
    for text in (to_markdown(whole), to_latex(whole), to_terminal(whole, 1000)):
        assert "Hands, 64 px (SYNTHETIC films)" in text
        assert "data hash: ab12; preset: fast; seeds: 1, 2, 3" in text
        assert "raw, full-he: 80, 40 abnormal (prevalence .500), of 40 patients; raw-he: none" in text
        assert "1,000 bootstrap resamples of patients" in text and "is at most about 5" in text
        assert "failed (1): out of memory: 12" in text and "; no seed finished" in text
        assert "failed (2): no seed finished" in text and "not done: no seed is done" in text
    assert build_table({("a", "x", "raw"): "died"}, title="SYNTHETIC", synthetic=True).title == "SYNTHETIC"


def test_cells_read_as_they_should():
    entry = Entry(mean=0.5704, sd=0.019, interval=(0.512, 0.63), best=True, paper=(0.57, 0.019))
    table = one_cell(entry)
    assert "| **.570 ± .019 [.512, .630]**; paper .570 ± .019, ours .000 |" in to_markdown(table)
    assert "cae    mse    * .570 ± .019 [.512, .630]; paper .570 ± .019, ours .000" in to_terminal(table)
    assert r"\textbf{.570 $\pm$ .019}\\\textbf{{[}.512, .630]}\\paper .570 $\pm$ .019\\ours .000" in to_latex(table)
    near = Entry(mean=0.56, interval=(0.5, 0.6), tied=True, paper=(0.6, 0.02))
    table = one_cell(near)
    assert "| = .560 [.500, .600]; paper .600 ± .020, ours -.040 |" in to_markdown(table)


@pytest.mark.parametrize("width", [300, 130, 90, 50])
def test_the_terminal_keeps_to_its_width(whole, width):
    lines = to_terminal(whole, width).splitlines()
    assert max(map(len, lines)) <= width
    # Wide: a line a cell. Narrower: several lines a cell. Narrower still: several blocks of columns.
    assert sum(line.startswith("model") for line in lines) == {300: 1, 130: 1, 90: 1, 50: 3}[width]
    assert any("]; paper" in line for line in lines) == (width == 300)


def test_the_terminal_gets_no_control_characters():
    table = build_table({("a", "x", "raw"): "\x1b[31mred\x07"}, title="\x1b]0;title")
    text = to_terminal(table)
    assert text.isascii() is False and all(line.isprintable() for line in text.splitlines())
    assert r"\x1b[31mred\x07" in text


def test_markdown_has_no_html_and_no_stray_cells(whole):
    text = to_markdown(whole)
    assert not re.search(r"(?<!\\)<", text)
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {2 + 3 + 1}


def test_csv_is_long_and_json_is_plain(whole):
    lines = to_csv(whole).splitlines()
    assert len(lines) == 1 + len(whole.rows) * len(whole.columns)
    assert lines[0].startswith("model,score,variant,mean,sd,low,high,each,best,tied,difference")
    assert json.loads(to_json(whole))["facts"]["seeds"] == [1, 2, 3]


@pytest.mark.skipif(
    not shutil.which("pdflatex"), reason="there is no pdflatex here (Debian: texlive-latex-recommended)"
)
def test_latex_compiles(whole, tmp_path):
    path = tmp_path / "table.tex"
    body = to_latex(whole)
    path.write_text(
        f"\\documentclass{{article}}\n\\usepackage{{booktabs}}\n\\begin{{document}}\n{body}\\end{{document}}\n"
    )
    done = subprocess.run(
        ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", path.name], cwd=tmp_path, capture_output=True
    )
    assert done.returncode == 0, done.stdout.decode(errors="replace")[-2000:]
