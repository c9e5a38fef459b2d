"""Time and memory of a training step, beside what the card can do."""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch

from anomaly.data.batch import Batch, as_batch
from anomaly.training.config import Precision
from anomaly.training.device import make_repeatable
from anomaly.training.trainer import Trainer
from benchmarks.gpu.films import repeated
from benchmarks.gpu.setting import Case, Setting, step, tf32
from benchmarks.rates import Count, copy_rate, matrix_rate
from benchmarks.record import spread

ARMS = {
    "steps": ("bfloat16",),
    "kernels": ("bfloat16, kernel by kernel",),
    "full": ("float32", "TF32"),
    "arms": ("bfloat16, chosen by cuDNN's timing", "bfloat16, not repeatable"),
    "compile": ("bfloat16, compiled",),
}
"""Part of the run -> how steps are taken: as `anomaly train` does, and otherwise."""
ON_PROCESSOR: dict[str, tuple[str, ...]] = {"steps": ("bfloat16",), "full": ("float32",)}
SETTINGS = {"kernel by kernel": ("cuda_graph=false",), "compiled": ("compile=true",)}
SECONDS = 0.6  # of measured steps an arm
KERNELS = 10  # named, the longest ones


@dataclass(frozen=True)
class Rates:
    """What the device reaches: operations a second of matrix products, bytes a second of a copy."""

    float32: float
    tf32: float
    bfloat16: float
    copy: float


def measure_rates(setting: Setting) -> Rates:
    """Measure the rates, on random numbers."""
    device, big = setting.device, setting.device.type == "cuda"
    side = 8192 if big else 512
    with tf32(True):
        low = matrix_rate(torch.float32, side, device)
    return Rates(
        matrix_rate(torch.float32, side, device),
        low,
        matrix_rate(torch.bfloat16, side, device),
        copy_rate(2**31 if big else 2**24, device),
    )


def _set(arm: str) -> None:
    """Set what an arm differs in, after `make_repeatable`, which every trainer calls and which resets it."""
    torch.backends.cudnn.deterministic = "not repeatable" not in arm and "timing" not in arm
    if "not repeatable" in arm:
        torch.set_deterministic_debug_mode("default")
    torch.backends.cudnn.benchmark = "timing" in arm
    if arm.startswith("TF32"):
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True


def step_time(case: Case, arm: str, rates: Rates) -> dict[str, Any]:
    """Time the steps of one batch, all players', on films in place; then its peak of memory and its lower bound."""
    setting = case.setting
    setting.clear()
    start = time.perf_counter()
    films = repeated(case.films, case.batch)
    name, _, other = arm.partition(", ")
    trainer = case.trainer(cast("Precision", name.replace("TF32", "float32")), *SETTINGS.get(other, ()), films=films)
    _set(arm)
    batch = as_batch(films, setting.device)
    step(trainer, batch)
    setting.synchronize()
    first = time.perf_counter() - start
    seconds = timed(setting, trainer, batch, SECONDS)
    middle = spread(seconds)["median"]
    figures: dict[str, Any] = {
        "ms_a_step": {k: 1000 * v for k, v in spread(seconds).items()},
        "films_per_second": case.batch / middle,
        "first_step_s": first,
    }
    if setting.device.type == "cuda":
        figures["peak_MiB"] = torch.cuda.max_memory_allocated(setting.device) / 2**20
        figures["peak_reserved_MiB"] = torch.cuda.max_memory_reserved(setting.device) / 2**20
    if not other:
        full = rates.tf32 if arm == "TF32" else rates.float32
        with Count({torch.float32: full, torch.bfloat16: rates.bfloat16}, rates.copy) as counted:
            for _ in trainer.apply_steps(batch):
                pass
        bound = sum(counted.seconds.values())
        figures |= {
            "gflop_a_film": counted.operations / case.batch / 1e9,
            "gb_a_film": counted.bytes / case.batch / 1e9,
            "bound_ms": 1000 * bound,
            "bound_computing_share": counted.seconds["computing"] / bound,
            "share_of_bound_reached": bound / middle,
        }
    if name == "bfloat16" and setting.device.type == "cuda":
        figures |= idle(setting, lambda: some_steps(trainer, batch, 3))
    make_repeatable(setting.device)
    return figures


def some_steps(trainer: Trainer, batch: Batch, count: int) -> None:
    for _ in range(count):
        step(trainer, batch)


def timed(setting: Setting, trainer: Trainer, batch: Batch, budget: float) -> list[float]:
    """Return the seconds of each step, after some that warm up: at least three, and `budget` seconds of them."""
    for _ in range(4 if setting.device.type == "cuda" else 2):  # the fourth is recorded
        step(trainer, batch)
    setting.synchronize()
    if setting.device.type != "cuda":
        seconds: list[float] = []
        while len(seconds) < 3 or (sum(seconds) < budget and len(seconds) < 50):
            start = time.perf_counter()
            step(trainer, batch)
            seconds.append(time.perf_counter() - start)
        return seconds
    marks = [torch.cuda.Event(enable_timing=True)]
    marks[0].record()
    start = time.perf_counter()
    while len(marks) < 6 or (time.perf_counter() - start < budget and len(marks) < 400):
        step(trainer, batch)
        marks.append(torch.cuda.Event(enable_timing=True))
        marks[-1].record()
        if len(marks) % 4 == 0:
            marks[-3].synchronize()  # so that the host doesn't run ahead of the clock; one step stays in the queue
    setting.synchronize()
    return [a.elapsed_time(b) / 1000 for a, b in pairwise(marks)]


def idle(setting: Setting, work: Callable[[], object]) -> dict[str, Any]:
    """Return the share of time in which the GPU does nothing while `work` runs, from first to last kernel."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    setting.synchronize()
    with torch.profiler.profile(activities=activities, acc_events=True) as profiler:
        start = time.perf_counter()
        work()
        setting.synchronize()
        wall = time.perf_counter() - start
    spans, names, cuda = [], Counter[str](), torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
    for event in profiler.events():
        annotation = getattr(event, "is_user_annotation", False)  # a span of the host, with the gaps in it
        if event.device_type == cuda and not annotation and event.time_range.end > event.time_range.start:
            spans.append((event.time_range.start, event.time_range.end))
            names[event.name[:90]] += event.time_range.end - event.time_range.start
    if not spans:
        return {"kernels": [], "busy_share": None}
    busy, last = 0.0, min(start for start, _ in spans)
    first = last
    for begin, end in sorted(spans):
        busy += max(0.0, end - max(begin, last))
        last = max(last, end)
    total = sum(names.values())
    return {
        "busy_share": busy / (last - first),
        "busy_ms": busy / 1000,
        "profiled_wall_ms": 1000 * wall,
        "kernel_count": len(spans),
        "kernels": [[name, round(value / total, 3)] for name, value in names.most_common(KERNELS)],
    }
