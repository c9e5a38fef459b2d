"""`make bench-quick`: that it runs, and what it compares with what."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import quick, record

from .conftest import on_path

ROOT = Path(__file__).parents[1]
SMALL = "--rounds 1 --films 4 --film-px 128 --step-px 64 --model-px 64 --batch 2"


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "benchmarks" / "results.jsonl"
    path.parent.mkdir()
    monkeypatch.setattr(record, "RESULTS", path)
    return path


def typed(monkeypatch: pytest.MonkeyPatch, *words: str, **ratios: float) -> None:
    monkeypatch.setattr(sys, "argv", ["quick", *words])
    monkeypatch.setattr(quick, "ratios", lambda *_: {name: [value] for name, value in ratios.items()})
    quick.main()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_ratio_of_one_process_is_measured(tmp_path: Path) -> None:
    """In a process of its own: it keeps freed memory, and sets threads."""
    path = tmp_path / "benchmarks" / "results.jsonl"
    path.parent.mkdir()
    code = "import sys; from pathlib import Path; from benchmarks import quick, record; "
    code += "record.RESULTS = Path(sys.argv.pop(1)); quick.main()"
    names = [name for name in quick.RATIOS if name != "bundle"]
    words = [sys.executable, "-c", code, str(path), *SMALL.split(), "--ratios", *names]
    done = subprocess.run(words, capture_output=True, text=True, env=on_path(ROOT))
    assert done.returncode == 0, done.stderr
    assert "nothing to compare with, recorded" in done.stdout
    (line,) = lines(path)
    assert list(line["figures"]) == names and all(value["min"] > 0 for value in line["figures"].values())
    assert line["settings"]["ratios"] == names and line["machine"]["cores"] == os.cpu_count()


def test_a_bundle_is_compared_by_processor_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "one.png").touch()
    typed: list[list[str]] = []

    def spent(words: list[str]) -> tuple[float, float]:
        typed.append(words)
        return (1.0 if words[1].endswith("bundle") else 3.0), 100.0

    monkeypatch.setattr(quick, "spent", spent)
    assert quick.bundle(tmp_path, quick.Sizes(rounds=2)) == [3.0, 3.0]
    assert [words[0] for words in typed] == ["preprocess", "train", "export", *["score"] * 6]


def test_a_ratio_that_was_higher_is_a_regression(
    results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, training=2.0, reading=50.0)
    typed(monkeypatch, training=1.81, reading=60.0)
    assert len(lines(results)) == 1, "only --record makes another line the measure"
    with pytest.raises(SystemExit, match="slower than recorded: training; again with --record"):
        typed(monkeypatch, training=1.79, reading=60.0)
    (row,) = [line for line in capsys.readouterr().out.splitlines() if "REGRESSION" in line]
    assert row.split() == ["training", "1.79", "1.79", "to", "1.79", "2.00", "2.00", "to", "2.00", "REGRESSION"]
    with pytest.raises(SystemExit):
        typed(monkeypatch, "--record", training=1.0)
    assert len(lines(results)) == 2
    typed(monkeypatch, training=0.95)


@pytest.mark.parametrize("other", ["processor", "cores", "gpu", "settings", "benchmark"])
def test_lines_of_another_machine_or_other_settings_are_no_measure(
    other: str, results: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed(monkeypatch, training=9.0)
    (line,) = lines(results)
    if other in ("settings", "benchmark"):
        line[other] = {"rounds": 99} if other == "settings" else "other"
    else:
        line["machine"][other] = "other"
    results.write_text(json.dumps(line) + "\n")
    typed(monkeypatch, training=1.0)
    assert "nothing to compare with, recorded" in capsys.readouterr().out
    assert len(lines(results)) == 2
