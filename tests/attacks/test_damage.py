"""Files of a run that were cut, changed or made up: one line that names the file and what to do about it."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from anomaly.manifest import FILE, check_files, list_files, write_listed
from anomaly.runs import Run, read_csv
from preprocessing import InputError

from ..test_cli import typed

KINDS = (
    "run.json",
    "calibration.json",
    "weights.safetensors",
    "films.safetensors",
    "history.csv",
    "warnings.json",
    FILE,
)


@pytest.fixture
def copied(run: Run, tmp_path: Path) -> Path:
    """A copy of the shared run, to be spoilt."""
    return Path(shutil.copytree(run.path, tmp_path / "run"))


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """What a command says that ends with one line and status 2."""
    status, _, error = typed(capsys, *words)
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert status == 2 and len(lines) == 1 and "Traceback" not in error, error
    return lines[0]


@pytest.mark.parametrize("name", KINDS)
def test_one_flipped_bit_of_a_run_is_noticed(copied, capsys, name):
    """At ten random places of each file; the command ends before it scores."""
    random, data = np.random.default_rng(0), (copied / name).read_bytes()
    for place in random.integers(len(data), size=10).tolist():
        damaged = bytearray(data)
        damaged[place] ^= 1 << int(random.integers(8))
        (copied / name).write_bytes(damaged)
        assert str(copied) in refused(capsys, "score", copied)


@pytest.mark.parametrize("name", KINDS)
def test_a_cut_file_of_a_run_is_noticed(copied, capsys, name):
    data = (copied / name).read_bytes()
    for twentieth in (0, 1, 7, 13, 19):
        (copied / name).write_bytes(data[: len(data) * twentieth // 20])
        text = refused(capsys, "score", copied)
        assert f"{copied / name}" in text and "; " in text


@pytest.mark.parametrize("name", ["run.json", "calibration.json"])
@pytest.mark.parametrize("content", [b"[" * 200_000, b'{"a":' * 100_000, b"\xff\xfe", b"", b"null", b"1e999"])
def test_json_that_is_no_record_is_one_line(copied, capsys, name, content):
    (copied / FILE).unlink()
    (copied / name).write_bytes(content)
    assert f"{copied / name}" in refused(capsys, "score", copied)


def test_a_run_of_an_older_version_opens_and_says_that_nothing_is_checked(copied, capsys):
    (copied / FILE).unlink()
    status, _, error = typed(capsys, "score", copied)
    assert status == 0 and f"{copied} is of an older version and has no manifest.json" in error


def test_what_is_damaged_among_results_is_made_again(copied, capsys):
    assert typed(capsys, "score", copied)[0] == 0
    whole = (copied / "scores.csv").read_bytes()
    (copied / "scores.csv").write_bytes(whole.replace(b",0,", b",1,", 1))
    assert "scores.csv was changed or damaged" in refused(capsys, "report", copied)
    assert typed(capsys, "score", copied)[0] == 0
    assert (copied / "scores.csv").read_bytes() == whole and typed(capsys, "report", copied)[0] == 0


@pytest.mark.parametrize("stopped", [0, 1])
def test_a_kill_while_a_listed_file_is_replaced_leaves_one_that_the_manifest_knows(tmp_path, monkeypatch, stopped):
    write_listed(tmp_path / "a.json", "1")
    count, replace = iter(range(9)), Path.replace

    def killed(path: Path, target: Path) -> Path:
        if next(count) == stopped:
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "replace", killed)
        write_listed(tmp_path / "a.json", "2")
    assert check_files(tmp_path, "") == {"a.json"} and (tmp_path / "a.json").read_text() == "1"
    write_listed(tmp_path / "a.json", "3")
    assert check_files(tmp_path, "") == {"a.json"}
    (tmp_path / "a.json").write_text("4")
    with pytest.raises(InputError, match=r"a\.json was changed or damaged after it was written .*; do this"):
        check_files(tmp_path, "do this")


def test_files_that_come_next_are_known_before(tmp_path):
    (tmp_path / "a").write_text("1")
    list_files(tmp_path, ["a", "not there"], {"b": "2"})
    assert check_files(tmp_path, "") == {"a", "b"}
    (tmp_path / "b").write_text("2")
    assert check_files(tmp_path, "") == {"a", "b"}


@pytest.mark.parametrize("content", ["", "a,b\n1\n", 'a,b\n"1,2\n', "a,b\n1,2,3\n"])
def test_a_cut_table_is_one_line(tmp_path, content):
    (tmp_path / "history.csv").write_text(content)
    with pytest.raises(InputError, match=r"history\.csv is damaged \(.*\); put the right file back, or train again$"):
        read_csv(tmp_path / "history.csv")
