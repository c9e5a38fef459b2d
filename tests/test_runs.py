"""Run folders: safe writes, names that stay inside, refusals that say what to do."""

import os
from pathlib import Path

import pytest

from anomaly import runs
from preprocessing import InputError


def test_a_failed_write_leaves_the_old_file_and_nothing_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    runs.write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"a.json: the disk is full; free 0.0 MB or more"):
        runs.write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["../out", "/etc/passwd", "a/../../b", ".."])
def test_names_from_films_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match="leaves"):
        runs.inside(tmp_path / "maps", name)


def test_names_inside_are_kept(tmp_path: Path) -> None:
    assert runs.inside(tmp_path, "a/b c/ü.png") == tmp_path.resolve() / "a/b c/ü.png"


def test_files_are_as_private_as_the_user_wants(tmp_path: Path) -> None:
    old = os.umask(0o077)
    try:
        runs.write_atomic(tmp_path / "scores.csv", "x")
    finally:
        os.umask(old)
    assert (tmp_path / "scores.csv").stat().st_mode & 0o777 == 0o600


def test_numbers_count_on_from_the_highest(tmp_path: Path) -> None:
    assert runs.next_path("cae", tmp_path) == tmp_path / "cae-1"
    for name in ("cae-2", "cae-10", "cae-x", "vae-99"):
        (tmp_path / name).mkdir()
    assert [p.name for p in runs.numbered("cae", tmp_path)] == ["cae-2", "cae-10"]
    assert runs.next_path("cae", tmp_path) == tmp_path / "cae-11"


def test_what_is_no_run_is_refused_with_those_there_are(tmp_path: Path) -> None:
    runs.create(tmp_path / "cae-1", {"model": "cae", "settings": {}, "cache": {}})
    with pytest.raises(InputError, match=r"cae-2 is not a run folder .* there are: .*cae-1"):
        runs.Run(tmp_path / "cae-2")
    (tmp_path / "cae-1/run.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        runs.Run(tmp_path / "cae-1")
    for text in ("[]", '{"format": 1}'):
        (tmp_path / "cae-1/run.json").write_text(text)
        with pytest.raises(InputError, match="is damaged"):
            runs.Run(tmp_path / "cae-1")
    (tmp_path / "cae-1/run.json").write_text('{"format": 99, "model": "cae", "settings": {}, "cache": {}}')
    with pytest.raises(InputError, match=r"has format 99, this version reads \d"):
        runs.Run(tmp_path / "cae-1")


def test_a_folder_with_anything_in_it_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    runs.create(tmp_path / "mine", {"model": "cae", "settings": {}, "cache": {}})  # an empty one is
    with pytest.raises(InputError, match="exists; take another --out"):
        runs.create(tmp_path / "mine", {})


def test_csv_keeps_every_digit() -> None:
    assert runs.to_csv({"film": ['a "b", c'], "mse": [0.1 + 0.2]}) == 'film,mse\n"a ""b"", c",0.30000000000000004\n'


def test_json_has_no_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        runs.to_json({"a": float("nan")})
