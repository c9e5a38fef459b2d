"""What every benchmark shares: sides timed in turns, where it ran, and a line in results.jsonl."""

import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import torch

from anomaly.runs import versions
from anomaly.training.device import has_avx512_bf16

RESULTS = Path(__file__).parent / "results.jsonl"


def machine() -> dict[str, Any]:
    """Return what a time depends on: processor, cores, low-precision ability, GPU."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "processor": model[0].partition(":")[2].strip() if model else platform.processor(),
        "cores": os.cpu_count(),
        "avx512_bf16": has_avx512_bf16(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Return median, minimum and maximum."""
    return {"median": median(seconds), "min": min(seconds), "max": max(seconds)}


def rounds_of(sides: Mapping[str, Callable[[], object]], rounds: int, units: float = 1.0) -> dict[str, list[float]]:
    """Return the seconds a unit of every side in every round: all sides in turn, round by round, in one process.

    What a shared machine does to one round it does to all sides. A round before the first warms up and isn't counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                seconds[name].append((time.perf_counter() - start) / units)
    return seconds


def alternate(
    sides: Mapping[str, Callable[[], object]], rounds: int, units: float = 1.0
) -> dict[str, dict[str, float]]:
    """Return `rounds_of` as `spread` has it."""
    return {name: spread(values) for name, values in rounds_of(sides, rounds, units).items()}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, cwd=RESULTS.parents[1]).stdout.strip()


def command_line(module: str) -> str:
    """Return the command that runs, as it was given; the home folder in it as the shell knows it."""
    home = f"{Path.home()}/"
    words = [word.replace(home, "~/", 1) if word.startswith(home) else shlex.quote(word) for word in sys.argv[1:]]
    return " ".join(["python", "-m", f"benchmarks.{module}", *words])


def record(name: str, command: str, settings: dict[str, Any], figures: dict[str, Any]) -> None:
    """Print a result and append it with commit, machine and versions."""
    commit = _git("rev-parse", "--short", "HEAD")
    if _git("status", "--porcelain", "--untracked-files=no", "--", "*.py", "pyproject.toml"):
        commit += ", changed since"
    line = {
        "benchmark": name,
        "command": command,
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit,
        "settings": settings,
        "figures": figures,
        "machine": machine(),
        "versions": versions(),
    }
    with RESULTS.open("a") as file:
        file.write(json.dumps(line) + "\n")
    print(f"{name} {json.dumps(settings)}")
    for key, value in figures.items():
        print(f"  {key:<32} {json.dumps(value)}")
