"""Two processes on one card against one: the same weights after an epoch."""

import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from anomaly.distributed import SINGLE_PROCESS, World
from benchmarks.gpu.correctness import relative
from benchmarks.gpu.setting import Case, Setting

SETTINGS = ("batch_norm=false", "output=sigmoid", "optimizer=sgd", "learning_rate=0.1", "augmentation=none")
"""Batch normalization sees a process's own films, and Adam takes steps of gradients that are rounding alone."""


def _train(case: Case, world: World) -> torch.Tensor:
    films = case.films.part(slice(0, 4 * case.batch))
    trainer = case.trainer("float32", *SETTINGS, films=films, world=world)
    trainer.train_epoch(1)
    return torch.cat([p.detach().cpu().flatten() for p in trainer.parameters["autoencoder"]])


def _process(rank: int, case: Case, folder: Path) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
    try:
        weights = _train(case, World(rank, 2))
        save_file({"weights": weights}, folder / f"{rank}.safetensors")
    finally:
        dist.destroy_process_group()


def two_as_one(setting: Setting, side: int) -> dict[str, Any]:
    """Train a CAE without batch normalization by two processes that share the device, and by this one."""
    case = setting.case("cae", side=side, batch=8)
    alone = _train(case, SINGLE_PROCESS)
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        both = [context.Process(target=_process, args=(rank, case, folder), daemon=True) for rank in (0, 1)]
        for process in both:
            process.start()
        for process in both:
            process.join(90)
        if any(process.exitcode for process in both) or None in [process.exitcode for process in both]:
            for process in both:
                process.kill()
            raise RuntimeError(f"exit codes {[process.exitcode for process in both]} of two processes")
        first, second = (load_file(folder / f"{rank}.safetensors")["weights"] for rank in (0, 1))
    moved = relative(alone, _initial(case))
    error = relative(first, alone)
    return {"passed": error < 1e-3 * moved and torch.equal(first, second), "error": error, "moved": moved}


def _initial(case: Case) -> torch.Tensor:
    trainer = case.trainer("float32", *SETTINGS)
    return torch.cat([p.detach().cpu().flatten() for p in trainer.parameters["autoencoder"]])
