"""Several processes at one training: the same steps as one, one run folder."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anomaly import distributed as world
from anomaly.runs import Run
from preprocessing import InputError
from preprocessing.cache.reader import Cache

SETTINGS = ("width=4", "batch_norm=false", "epochs=2", "batch_size=8", "augmentation=none", "patience=0")
PLAIN = ("optimizer=sgd", "learning_rate=0.1")  # Adam makes steps of gradients that are rounding alone


def train(cache: Cache, out: Path, processes: int, *settings: str) -> str:
    words = ["-m", "anomaly", "train", "cae", "--cache", str(cache.path), "--out", str(out), "--device", "cpu"]
    words += ["--precision", "float32"]
    words += [word for setting in (*SETTINGS, *settings) for word in ("--set", setting)]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(launcher if processes > 1 else []), *words]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_two_processes_take_the_steps_of_one(cache: Cache, tmp_path: Path) -> None:
    """Without batch normalization, which sees a process's own part, the weights agree but for rounding."""
    train(cache, tmp_path / "one", 1, *PLAIN)
    said = train(cache, tmp_path / "two", 2, *PLAIN)
    assert said.count("2 processes share each batch") == 1 and said.count("trained for 2 of at most 2 epochs") == 1
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=1e-4, atol=1e-5)
    assert Run(tmp_path / "two").finished
    histories = [Run(tmp_path / name).history() for name in ("one", "two")]
    for a, b in zip(*histories, strict=True):
        assert abs(float(a["validation"]) - float(b["validation"])) < 1e-5


@pytest.mark.parametrize(
    ("device", "gpus", "backend"),
    [("auto", True, "nccl"), ("cuda", True, "nccl"), ("cpu", True, "gloo"), ("auto", False, "gloo")],
)
def test_processes_talk_by_the_device_that_they_train_on(
    device: str, gpus: bool, backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", asked.append)
    monkeypatch.setattr(world.dist, "init_process_group", asked.append)
    monkeypatch.setattr(world.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(world.dist, "destroy_process_group", lambda: None)
    with world.join(device) as joined:
        assert (joined.rank, joined.size) == (1, 2)
    assert asked == ([1, "nccl"] if backend == "nccl" else ["gloo"])


def test_more_processes_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match=r"finds 1 GPU: .*--nproc-per-node 1"), world.join("auto"):
        pass
