"""One training by several processes, on as many GPUs: `torchrun --nproc-per-node 2 -m anomaly train cae`.

Each process has the whole model and takes its part of every batch; gradients are averaged over the films of the batch,
so that all take the same step. The first one writes the run. Batch normalization sees the part, not the batch; its
running statistics are those of the first process.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn

from anomaly.memory import share_memory
from preprocessing import InputError

LONGEST_PATH = 4096


@dataclass(frozen=True)
class World:
    """Which of how many processes this is."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    def average(self, parameters: Iterable[nn.Parameter], films: int) -> None:
        """Make every gradient the mean over all processes, weighted by the films of each."""
        if self.size == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        parts = [gradient.flatten() * films for gradient in gradients]
        whole = torch.cat([*parts, parts[0].new_full((1,), films)])  # one message, not one a parameter
        dist.all_reduce(whole)
        whole /= whole[-1].clone()
        start = 0
        for gradient in gradients:
            gradient.copy_(whole[start : start + gradient.numel()].view_as(gradient))
            start += gradient.numel()

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over all processes of a tensor of one shape."""
        if self.size > 1:
            dist.all_reduce(values)
            values /= self.size
        return values

    def share_buffers(self, model: nn.Module) -> None:
        """Give all the first one's buffers: running statistics."""
        if self.size > 1:
            for buffer in model.buffers():
                dist.broadcast(buffer, 0)

    def same_path(self, path: Path | None, device: torch.device) -> Path:
        """Return the path that the first one has; the others have none."""
        assert path is not None or not self.first
        if self.size == 1:
            assert path is not None
            return path
        text = os.fsencode(path) if path else b""
        told = torch.zeros(LONGEST_PATH, dtype=torch.uint8, device=device)
        told[: len(text)] = torch.tensor(list(text), dtype=torch.uint8)
        dist.broadcast(told, 0)
        return Path(os.fsdecode(bytes(told.cpu().tolist()).rstrip(b"\0")))

    def wait(self) -> None:
        """Go on when all have come here."""
        if self.size > 1:
            dist.barrier()


SINGLE_PROCESS = World()


@contextmanager
def join(device: str) -> Iterator[World]:
    """Yield the processes that `torchrun` started together; without it, this process alone.

    device  on which it trains, as given to `--device`: GPUs talk to each other by another library than processors.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield SINGLE_PROCESS
        return
    gpus = torch.cuda.is_available() and device.partition(":")[0] in ("auto", "cuda")
    if gpus:
        local, there = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= there:
            gpus_there = f"{there} GPU{'s' * (there > 1)}"
            raise InputError(
                f"process {local + 1} of this machine finds {gpus_there}: each process needs its own; start {there} of "
                f"them (--nproc-per-node {there}), or take --device cpu"
            )
        torch.cuda.set_device(local)
    share_memory(int(os.environ.get("LOCAL_WORLD_SIZE", size)))
    dist.init_process_group("nccl" if gpus else "gloo")
    try:
        yield World(dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
