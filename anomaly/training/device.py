"""Device, precision and repeatability."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from anomaly.models.base import Model
from anomaly.training import measured
from anomaly.training.config import Precision
from preprocessing import InputError


def make_repeatable(device: torch.device) -> None:
    """Ask for the same numbers from the same inputs: exact on a CPU, and on a GPU with `repeatable_attention`.

    TF32, which a GPU would take for float32 unasked, is off: thresholds found on one machine hold on another.
    """
    if device.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without, the order of its sums may change
    # As use_deterministic_algorithms, which loads a compiler on the way: a second of every start.
    torch.set_deterministic_debug_mode("error" if device.type == "cpu" else "default")
    # A help to find bugs, for which all memory is written twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


@contextmanager
def repeatable_attention(device: torch.device, model: Model) -> Iterator[None]:
    """Within, let the gradient of a model's self-attention be summed in one order on a GPU, which takes longer.

    Such kernels are taken where torch is to refuse all others. Only for these models: of some operations that others
    need, as VGG16's pooling to a fixed size, it has no repeatable ones.
    """
    asked = device.type == "cuda" and model.self_attention
    if asked:
        torch.set_deterministic_debug_mode("error")
    try:
        yield
    finally:
        if asked:
            torch.set_deterministic_debug_mode("default")


def choose_device(name: str) -> torch.device:
    """Return the device of a name; `auto` takes a GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if device.type not in ("cpu", "cuda", "mps"):
            raise RuntimeError("there are: cpu, cuda, mps")
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0][:160]
        raise InputError(f"no device {name!r} ({reason}); use `--device cpu`, or `auto`") from None
    return device


def choose_precision(name: str, device: torch.device, *, pays: bool) -> Precision:
    """Return the precision of training; `auto` takes bfloat16 on a GPU that has it, and on a processor where it `pays`
    for the model (`Model.pays_in_bfloat16`) and a measurement, made once and kept, says that it does on this machine.
    """
    if name in ("float32", "bfloat16"):
        return name  # type: ignore[return-value]  # narrowed by the line above, which mypy doesn't see
    if name != "auto":
        raise InputError(f"no precision {name!r}; there are: auto, float32, bfloat16")
    if device.type == "cuda":
        with torch.cuda.device(device):
            return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if not pays:
        return "float32"
    return "bfloat16" if (measured.measured().bfloat16.pays if measured.is_on() else has_avx512_bf16()) else "float32"


def has_avx512_bf16() -> bool:
    """Whether the processor is an x86-64 that multiplies bfloat16 itself: what is asked where nothing is measured."""
    known = getattr(torch.cpu, "_is_avx512_bf16_supported", None)  # private, so it may go
    return bool(known and known())
