"""What was measured once on this machine: whether training in bfloat16 pays here, and which kernels are faster.

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
from torch import Tensor, nn

from anomaly.console import warn
from anomaly.nn.attention import SelfAttention, attend
from anomaly.nn.blocks import Convolution, TransposedConvolution
from anomaly.processor import processor_name
from anomaly.runs import now, write_atomic

SWITCH = "ANOMALY_MEASURE"
"""Variable of the environment: 0 measures nothing, and goes by the processor's instructions alone."""
ROUNDS = 7
LEAST_GAIN = 1.1
"""By which bfloat16 has to be faster in all rounds but one: less is within the noise of a machine that does more."""
HOPELESS = 3.0
"""Times as long as the other side after which nothing more is measured: bfloat16 that is only emulated, for one."""


class Gain(BaseModel):
    """How two ways to the same step compare on one processor."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    rounds: list[float] = Field(min_length=1)
    """Seconds of the plain way over seconds of ours, in each round."""

    @property
    def pays(self) -> bool:
        """Whether ours is faster beyond doubt."""
        return sorted(self.rounds)[min(1, len(self.rounds) - 1)] >= LEAST_GAIN

    @property
    def harms(self) -> bool:
        """Whether the plain way is faster beyond doubt."""
        return sorted(self.rounds)[-min(2, len(self.rounds))] <= 1 / LEAST_GAIN

    def __str__(self) -> str:
        return f"{median(self.rounds):.2f} times as fast ({min(self.rounds):.2f} to {max(self.rounds):.2f})"


class Measured(BaseModel):
    """What is known of one processor."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    bfloat16: Gain
    """A training step in bfloat16 against one in float32."""
    small_maps: Gain
    """Convolutions on small maps as matrix products against oneDNN's, in the precision that `bfloat16` chooses."""
    attention: Gain | None
    """Attention by blocks of queries against torch's fused kernel; None where bfloat16 doesn't pay, as it is only for
    that."""
    date: str

    def lines(self) -> dict[str, str]:
        """Return what was found of each, by its name."""
        taken = "taken where it pays" if self.bfloat16.pays else "float32 is taken"
        said = {"precision": f"bfloat16 trains {self.bfloat16}: {taken}"}
        for name, gain, what in (
            ("small maps", self.small_maps, "convolutions as products"),
            ("attention", self.attention, "attention by blocks of queries"),
        ):
            if gain:
                said[name] = f"{what}, {gain}: {'torch has the faster kernel' if gain.harms else 'taken'}"
        return said


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
    """Return what was measured on this machine, or measure it now, which takes about two seconds, and say so."""
    return kept() or measure()


def measure() -> Measured:
    """Measure, keep and say it, a line for each; in another one where it can't be kept."""
    found = _measured()
    path = place()
    try:
        write_atomic(path, _File(machines=_read(quiet=True) | {machine(): found}).model_dump_json(indent=1))
        kept_where = f"kept in {path}"
    except OSError as error:
        kept_where = f"it can't be kept in {path} ({error.strerror or error})"
    warn(f"measured on this machine: {'; '.join(found.lines().values())}; {kept_where}")
    return found


def choose_kernels(model: nn.Module) -> None:
    """Let a model's layers train by the faster kernels of this processor, as measured; ours where none is faster beyond
    doubt. What they compute is the same up to rounding.
    """
    convolutions = [layer for layer in model.modules() if isinstance(layer, Convolution | TransposedConvolution)]
    attentions = [layer for layer in model.modules() if isinstance(layer, SelfAttention)]
    if not (convolutions or attentions) or not is_on():
        return
    found = measured()
    for convolution in convolutions:
        convolution.products = not found.small_maps.harms
    for attention in attentions:
        attention.by_blocks = not (found.attention and found.attention.harms)


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
def _measured() -> Measured:
    """Time each pair of ways in turns: the processor time of one thread, which hardly depends on what else runs."""
    with torch.random.fork_rng(devices=()):
        layers = [nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)]
        net, small = nn.Sequential(*layers), Convolution(256, 512, 4, 2, padding=1)
        for module in (net, small):
            module.to(memory_format=torch.channels_last)
        films = torch.randn(4, 64, 64, 64).to(memory_format=torch.channels_last)
        maps = torch.randn(16, 256, 8, 8).to(memory_format=torch.channels_last)
        parts = [torch.randn(2, 2048, width, dtype=torch.bfloat16) for width in (8, 8, 64)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        bfloat16 = _gain(partial(_step, net, films, low=False), partial(_step, net, films, low=True))
        small_maps = _gain(*(partial(_small_step, small, maps, ours, low=bfloat16.pays) for ours in (False, True)))
        attention = _gain(*(partial(_attention_step, parts, ours) for ours in (False, True))) if bfloat16.pays else None
    finally:
        torch.set_num_threads(threads)
    return Measured(bfloat16=bfloat16, small_maps=small_maps, attention=attention, date=now())


def _gain(plain: Callable[[], float], ours: Callable[[], float]) -> Gain:
    """Return seconds of the plain way over those of ours."""
    for side in (plain, ours):  # the first steps set libraries up
        side()
    rounds: list[float] = []
    for _ in range(ROUNDS):
        seconds = plain(), ours()
        rounds.append(seconds[0] / seconds[1])
        if not 1 / HOPELESS < rounds[-1] < HOPELESS:
            break
    return Gain(rounds=rounds)


def _step(net: nn.Module, films: Tensor, *, low: bool) -> float:
    """Return the seconds of one step forward and backward."""
    start = time.process_time()
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        output = net(films)
    output.float().square().mean().backward()
    seconds = time.process_time() - start
    net.zero_grad()
    return seconds


def _small_step(layer: Convolution, maps: Tensor, ours: bool, *, low: bool) -> float:
    layer.products = ours
    return _step(layer, maps.detach().requires_grad_(), low=low)


def _attention_step(parts: list[Tensor], ours: bool) -> float:
    query, key, value = (part.detach().requires_grad_() for part in parts)
    start = time.process_time()
    loss = attend(query, key, value, by_blocks=ours).float().square().mean()
    torch.autograd.grad(loss, (query, key, value))
    return time.process_time() - start
