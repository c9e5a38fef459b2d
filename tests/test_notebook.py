"""The notebook in examples/: its cells run, and give the outputs that are committed with it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from .notebook import run_cell, run_notebook

NOTEBOOK = Path(__file__).parents[1] / "examples/quickstart.ipynb"
FRACTION = re.compile(r"\d*\.\d+")  # digits depend on the processor, and so does which film is flagged


def texts(cell: dict[str, Any]) -> list[str]:
    """Every output of a cell as text without its digits, a picture as its type."""
    shown = []
    for output in cell.get("outputs", []):
        data = output.get("data", {"text/plain": output.get("text")})
        shown.append(FRACTION.sub("#", "".join(data["text/plain"])) if "text/plain" in data else "picture")
    return shown


def test_the_notebook_runs_and_shows_what_is_committed() -> None:
    committed = json.loads(NOTEBOOK.read_text())
    ran = run_notebook(committed)
    assert [texts(cell) for cell in ran["cells"]] == [texts(cell) for cell in committed["cells"]]
    assert sum(text == "picture" for cell in ran["cells"] for text in texts(cell)) == 1
    shown = "\n".join(text for cell in committed["cells"] for text in texts(cell))
    assert "SYNTHETIC" in shown and "95 % confidence interval" in shown
    assert not re.search(r"/(?:work|tmp|home|root|Users)\b", NOTEBOOK.read_text())


@pytest.mark.parametrize(
    ("source", "outputs"),
    [
        ("x = 1", []),
        ("x = 1\nx + 1", ["2"]),
        ("print('a')\n[1]", ["a\n", "[1]"]),
        ("None", []),
        ("1;", []),
        ("from matplotlib import pyplot\nfigure = pyplot.figure(figsize=(1, 1))", ["picture"]),
    ],
)
def test_a_cell_gives_what_jupyter_would_show(source: str, outputs: list[str]) -> None:
    assert texts({"outputs": run_cell(source, {})}) == outputs


def test_a_cell_that_fails_fails() -> None:
    with pytest.raises(ZeroDivisionError):
        run_cell("1 / 0", {})
