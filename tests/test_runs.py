"""Run folders: safe writes, names that stay inside, refusals that say what to do."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from anomaly import runs
from anomaly.drafts import aside, exchange, tidy
from anomaly.runs import CacheRecord, EpochWarning, RunConfig, RunSettings, Warnings, WeightsFile
from preprocessing import InputError

from .conftest import on_path

ROOT = Path(__file__).parents[1]


def run_config(**changes: Any) -> RunConfig:
    """A run.json, as far as the folder goes."""
    cache = CacheRecord(
        path="/home/someone/films.h5",
        content_hash="cd34",
        recipe="{}",
        recipe_digest="0" * 12,
        nets={},
        dtype="uint8",
        source="films",
        synthetic=True,
        command="anomaly preprocess films",
    )
    config = RunConfig(
        model="cae",
        preset="fast",
        settings=RunSettings(model={"width": 4}, training={"epochs": 3}),
        size=64,
        variant="full-he",
        seed=3,
        split_seed=0,
        split_rule="given",
        split_hash="ef56",
        weights=WeightsFile(file="/home/someone/weights.safetensors", sha256="ab12"),
        precision="float32",
        device="cpu",
        cache=cache,
        versions={"python": "3"},
        films={"train": 9, "val": 3},
    )
    return config.model_copy(update=changes)


def test_a_failed_write_leaves_the_old_file_and_nothing_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    runs.write_atomic(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError, match=r"a.json: the disk is full; free 0.0 MB or more"):
        runs.write_atomic(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_one_file_is_written_by_many_at_once(tmp_path: Path) -> None:
    gate = threading.Barrier(8)

    def write(number: int) -> None:
        gate.wait()
        for _ in range(40):
            runs.write_atomic(tmp_path / "a.json", str(number) * 1000)

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, range(8)))
    written = (tmp_path / "a.json").read_text()
    assert len(written) == 1000 and len(set(written)) == 1
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    old, folder, new, other = (
        tmp_path / f"{name}.partial" for name in (".anomaly-0", ".anomaly-1", ".anomaly-2", ".a")
    )
    folder.mkdir()
    for file in (old, folder / "run.json", new, other):
        file.write_text("part")
    for path in (old, folder, other):
        os.utime(path, (0, 0))
    runs.write_atomic(tmp_path / "a.json", "{}")
    assert sorted(tmp_path.iterdir()) == sorted([new, other, tmp_path / "a.json"])


def test_a_draft_goes_as_soon_as_its_process_is_gone_and_not_before(tmp_path: Path) -> None:
    make = "import sys; from pathlib import Path; from anomaly.drafts import aside; d = aside(Path('a.json')); "
    command = [sys.executable, "-c", make + "d.mkdir(); (d / 'x').write_text('x'); sys.stdin.read()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, cwd=tmp_path, env=on_path(ROOT)) as process:
        while not list(tmp_path.glob("*/x")):
            assert process.poll() is None
            time.sleep(0.01)
        tidy(tmp_path)
        assert len(list(tmp_path.glob("*/x"))) == 1
        process.kill()
    tidy(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_draft_of_another_process_of_the_same_number_goes(tmp_path: Path) -> None:
    draft = aside(tmp_path / "a.json")
    machine, pid, started, token = draft.name.split("-", 1)[1].split("-")
    if not (machine and int(started)):
        pytest.skip("processes can't be looked up here")
    other = tmp_path / f".anomaly-{machine}-{pid}-{int(started) - 1}-{token}"
    for file in (draft, other):
        file.write_text("part")
    tidy(tmp_path)
    assert list(tmp_path.iterdir()) == [draft]


def test_two_folders_swap_their_names_or_stay_as_they_are(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    swapped = exchange(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / ("b" if swapped else "a")).exists() and (tmp_path / "b").exists()
    with pytest.raises(OSError, match="No such file") if swapped else nullcontext():
        assert not exchange(tmp_path / "a", tmp_path / "c")


def test_a_name_may_be_as_long_as_the_disk_takes(tmp_path: Path) -> None:
    runs.write_atomic(tmp_path / ("a" * 255), "x")
    assert (tmp_path / ("a" * 255)).read_text() == "x"


def test_of_several_that_make_one_folder_one_does(tmp_path: Path) -> None:
    gate = threading.Barrier(4)

    def make(number: int) -> bool:
        gate.wait()
        try:
            return bool(runs.create(tmp_path / "cae-1", run_config()))
        except InputError:
            return False

    with ThreadPoolExecutor(4) as threads:
        assert sum(threads.map(make, range(4))) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["cae-1"]


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
    runs.create(tmp_path / "cae-1", run_config())
    with pytest.raises(InputError, match=r"cae-2 is not a run folder .* there are: .*cae-1"):
        runs.Run(tmp_path / "cae-2")
    (tmp_path / "cae-1/run.json").write_text("{")
    with pytest.raises(InputError, match="is damaged"):
        runs.Run(tmp_path / "cae-1")
    for text in ("[]", f'{{"format": {runs.FORMAT}}}', '{"model": "cae"}'):
        (tmp_path / "cae-1/run.json").write_text(text)
        with pytest.raises(InputError, match="is damaged"):
            runs.Run(tmp_path / "cae-1")
    (tmp_path / "cae-1/run.json").write_text('{"format": 99}')
    unknown = r"has format 99, this version reads \d to \d; train again: `anomaly train MODEL --out NEW`"
    with pytest.raises(InputError, match=unknown):
        runs.Run(tmp_path / "cae-1")
    old = {"format": 2, "model": "vae", "cache": {"path": "my films.h5"}, "preset": "fast", "seed": 3, "split_seed": 0}
    (tmp_path / "cae-1/run.json").write_text(json.dumps(old))
    command = "`anomaly train vae --cache 'my films.h5' --preset fast --seed 3 --out NEW`"
    with pytest.raises(InputError, match=rf"format 2, .*train again: {command}"):
        runs.Run(tmp_path / "cae-1")


def test_a_folder_with_anything_in_it_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    runs.create(tmp_path / "mine", run_config())  # an empty one is
    with pytest.raises(InputError, match="exists; choose another --out"):
        runs.create(tmp_path / "mine", run_config())


def without(config: dict[str, Any], *keys: str) -> dict[str, Any]:
    """The same without a key, or one of an object in it."""
    key, *rest = keys
    return {k: without(v, *rest) if k == key else v for k, v in config.items() if k != key or rest}


LACKING = [(name,) for name, field in RunConfig.model_fields.items() if field.is_required()] + [
    ("cache", name) for name in CacheRecord.model_fields
]


@pytest.mark.parametrize("keys", LACKING, ids=".".join)
def test_a_run_that_lacks_what_readers_ask_for_is_neither_made_nor_opened(
    tmp_path: Path, keys: tuple[str, ...]
) -> None:
    lacking = without(run_config().model_dump(), *keys)
    where = r"\.".join(keys)
    with pytest.raises(ValidationError, match=rf"{where}\s+Field required"):
        RunConfig(**lacking)
    run = runs.create(tmp_path / "cae-1", run_config())
    run.write("run.json", runs.to_json(lacking))
    with pytest.raises(InputError, match=rf"is damaged \({where}: Field required\); train again"):
        runs.Run(run.path)


def test_a_run_is_opened_as_it_was_made_and_unknown_keys_are_refused(tmp_path: Path) -> None:
    made = run_config(created="2024-01-02T03:04:05", members=["runs/a", "runs/b"], seed="1, 2")
    run = runs.create(tmp_path / "cae-1", made)
    assert runs.Run(run.path).config == made
    run.write("run.json", runs.to_json(made.model_dump() | {"legs": 4}))
    with pytest.raises(InputError, match=r"is damaged \(legs: Extra inputs are not permitted\)"):
        runs.Run(run.path)


def test_a_record_is_read_whole_or_refused_with_its_file(tmp_path: Path) -> None:
    run = runs.create(tmp_path / "cae-1", run_config())
    for text, reason in (
        (None, "No such file or directory"),
        ("{", "Invalid JSON"),
        ('{"warnings": [{"text": "slow", "first": 1}]}', r"warnings\.0\.last: Field required"),
    ):
        if text:
            run.write("warnings.json", text)
        with pytest.raises(InputError, match=rf"warnings\.json can't be read \({reason}.*\); delete .* and train"):
            run.read("warnings.json", Warnings)


def test_warnings_name_the_epochs_that_they_are_of(tmp_path: Path) -> None:
    run = runs.create(tmp_path / "cae-1", run_config())
    assert run.warnings() == []
    given = [EpochWarning(text="too slow", first=3, last=3), EpochWarning(text="too fast", first=4, last=9)]
    run.write("warnings.json", runs.to_json(Warnings(warnings=given).model_dump()))
    assert run.warnings() == ["epoch 3: too slow", "epochs 4 to 9: too fast"]


def test_csv_keeps_every_digit() -> None:
    assert runs.to_csv({"film": ['a "b", c'], "mse": [0.1 + 0.2]}) == 'film,mse\n"a ""b"", c",0.30000000000000004\n'


def test_json_has_no_nan() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        runs.to_json({"a": float("nan")})
