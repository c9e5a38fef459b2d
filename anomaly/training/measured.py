"""What was measured once on this machine: whether training in bfloat16 pays here.

Kept in the user's cache folder, a record for each processor, number of threads and version of torch, as a home folder
may be shared by many machines. A file that is damaged is measured anew.
"""

import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from torch import nn

from anomaly.console import warn
from anomaly.processor import processor_name
from anomaly.runs import now, write_atomic

SWITCH = "ANOMALY_MEASURE"
"""Variable of the environment: 0 measures nothing, and goes by the processor's instructions alone."""
ROUNDS = 7
LEAST_GAIN = 1.1
"""By which bfloat16 has to be faster in all rounds but one: less is within the noise of a machine that does more."""
HOPELESS = 3.0
"""Times as long as float32 after which nothing more is measured: a processor that only emulates it."""


class Measured(BaseModel):
    """How a training step in bfloat16 compares with float32, on one processor."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    gains: list[float] = Field(min_length=1)
    """Seconds in float32 over seconds in bfloat16, in each round."""
    date: str

    @property
    def pays(self) -> bool:
        """Whether bfloat16 is faster beyond doubt."""
        return sorted(self.gains)[min(1, len(self.gains) - 1)] >= LEAST_GAIN

    def __str__(self) -> str:
        gain = f"{median(self.gains):.2f} times as fast as float32 ({min(self.gains):.2f} to {max(self.gains):.2f})"
        return f"bfloat16 trains {gain}: {'taken where it pays' if self.pays else 'float32 is taken'}"


class _File(BaseModel):
    """The file: machine -> what was measured there."""

    model_config = ConfigDict(extra="forbid")

    machines: dict[str, Measured]


def is_on() -> bool:
    """Whether anything is to be measured."""
    return os.environ.get(SWITCH) != "0"


def place() -> Path:
    """Return where measurements are kept: in $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xray-anomaly" / "machines.json"


def machine() -> str:
    """Return what a measurement depends on: processor, threads, version of torch."""
    return f"{processor_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}"


def kept() -> Measured | None:
    """Return what was measured on this machine, or None; says in one line where the file is damaged."""
    return _read().get(machine())


def measured() -> Measured:
    """Return what was measured on this machine, or measure it now, which takes about a second, and say so."""
    return kept() or measure()


def measure() -> Measured:
    """Measure, keep and say it in one line; in another one where it can't be kept."""
    found = Measured(gains=_gains(), date=now())
    path = place()
    try:
        write_atomic(path, _File(machines=_read(quiet=True) | {machine(): found}).model_dump_json(indent=1))
    except OSError as error:
        warn(f"measured on this machine: {found}; it can't be kept in {path} ({error.strerror or error})")
    else:
        warn(f"measured on this machine: {found}; kept in {path}")
    return found


def _read(*, quiet: bool = False) -> dict[str, Measured]:
    path = place()
    try:
        return _File.model_validate_json(path.read_bytes()).machines
    except FileNotFoundError:
        return {}
    except (OSError, ValidationError) as error:
        if not quiet:
            reason = error.strerror if isinstance(error, OSError) else "damaged, or of another version"
            warn(f"{path} is not used ({reason})")
        return {}


@torch.inference_mode(False)
@torch.enable_grad()
def _gains() -> list[float]:
    """Return seconds of a training step in float32 over those in bfloat16, in turns."""
    with torch.random.fork_rng(devices=()):
        layers = [nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)]
        net = nn.Sequential(*layers).to(memory_format=torch.channels_last)
        films = torch.randn(4, 64, 64, 64).to(memory_format=torch.channels_last)
    sides: list[Callable[[], float]] = [partial(_step, net, films, low) for low in (False, True)]
    for side in sides:  # the first steps set libraries up
        side()
    gains: list[float] = []
    for _ in range(ROUNDS):
        plain, low = (side() for side in sides)
        gains.append(plain / low)
        if low > HOPELESS * plain:
            break
    return gains


def _step(net: nn.Module, films: torch.Tensor, low: bool) -> float:
    """Return the seconds of one step forward and backward."""
    start = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        output = net(films)
    output.float().square().mean().backward()
    seconds = time.perf_counter() - start
    net.zero_grad()
    return seconds
