"""What fraction of this machine's own rates a training step of each model reaches.

Every operation of a step, as PyTorch dispatches it, is counted: its floating-point operations by torch's own rules
(convolutions, products, attention) and the bytes of the tensors it reads and writes. It can't be faster than its
operations over the machine's measured matrix rate in the step's precision, nor than its bytes over the measured copy
rate; the sum over operations of the greater of the two is called the step's floor, and floor / measured time the
fraction reached. It is no strict floor: what is fused, or stays in a processor's cache, beats the second rate, so that
small tensors make the fraction too high. A convolution's rate is no matrix product's either: the fraction says where to
look, not what is left.
"""

import argparse
import time
from collections import Counter
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.record import alternate, record
from benchmarks.training import DEVICE, noise, step, trainer

CASES = [
    ("cae", 128, 16),
    ("cae", 512, 8),
    ("vae", 512, 8),
    ("dcgan", 512, 8),
    ("bigan", 128, 16),
    ("alphagan", 128, 16),
]
"""Model, its size in pixels in the paper (and the CAE's on a laptop), films a batch."""


ATEN = torch.ops.aten
ALLOCATIONS = {ATEN.empty, ATEN.empty_like, ATEN.empty_strided, ATEN.new_empty, ATEN.detach, ATEN._unsafe_view}
WRITES = {ATEN.copy_, ATEN.fill_, ATEN.zero_}


class Count(TorchDispatchMode):
    """Floating-point operations and bytes of every operation, and the seconds that both take at the machine's rates."""

    def __init__(self, rates: dict[torch.dtype, float], copy: float) -> None:
        super().__init__()
        self.rates, self.copy = rates, copy
        self.operations, self.bytes = 0, 0
        self.seconds: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.is_view or func._overloadpacket in ALLOCATIONS:
            return out
        tensors = [t for t in tree_leaves((args, kwargs, out)) if isinstance(t, torch.Tensor)]
        # Of an expanded tensor only what there is; what is only written to was given as an argument, too.
        size = sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)
        if func._overloadpacket in WRITES:
            size -= args[0].numel() * args[0].element_size()
        count = flop_registry.get(func._overloadpacket)
        operations = int(count(*args, **(kwargs or {}), out_val=out)) if count else 0
        low = any(t.dtype == torch.bfloat16 for t in tensors)
        computing, moving = operations / self.rates[torch.bfloat16 if low else torch.float32], size / self.copy
        self.operations, self.bytes = self.operations + operations, self.bytes + size
        self.seconds["computing" if computing > moving else "moving"] += max(computing, moving)
        return out


def matrix_rate(dtype: torch.dtype, side: int) -> float:
    """Return the operations a second of a square matrix product, the best of several."""
    a, b = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _best(lambda: torch.mm(a, b))


def copy_rate(count: int) -> float:
    """Return the bytes read and written a second of copying so many bytes, the best of several."""
    a, b = (torch.zeros(count // 4, device=DEVICE) for _ in range(2))
    return 2 * count / _best(lambda: b.copy_(a))


def _best(call: Any) -> float:
    spent = []
    for _ in range(8):
        start = time.perf_counter()
        call()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
    return min(spent)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    side = 8192 if DEVICE.type == "cuda" else 2048  # a GPU is done with the smaller before it is well begun
    parser.add_argument("--side", type=int, default=side, help="of the matrices")
    options = parser.parse_args()
    rates = {dtype: matrix_rate(dtype, options.side) for dtype in (torch.float32, torch.bfloat16)}
    copy = copy_rate(2**28)
    figures: dict[str, Any] = {
        "matrix rate, float32, GFLOP/s": rates[torch.float32] / 1e9,
        "matrix rate, bfloat16, GFLOP/s": rates[torch.bfloat16] / 1e9,
        "copy rate, GB/s": copy / 1e9,
    }
    for name, size, batch in CASES:
        films = noise(batch, size)
        sides = {p: trainer(name, films, size, f"batch_size={batch}", precision=p) for p in ("float32", "bfloat16")}
        ready = next(sides["float32"].batches.epoch(0))
        spent = alternate({p: partial(step, made, ready) for p, made in sides.items()}, options.rounds)
        for precision, made in sides.items():
            with Count(rates, copy) as counted:
                step(made, ready)
            floor, median = sum(counted.seconds.values()), spent[precision]["median"]
            figures[f"{name} {size} px, {precision}"] = {
                "gflop_per_film": counted.operations / batch / 1e9,
                "gb_per_film": counted.bytes / batch / 1e9,
                "ms_per_film": {k: 1000 * s / batch for k, s in spent[precision].items()},
                "floor_ms_per_film": 1000 * floor / batch,
                "of which computing": counted.seconds["computing"] / floor,
                "fraction_reached": floor / median,
                "gflop_per_second": counted.operations / median / 1e9,
            }
    command = f"python -m benchmarks.roofline --rounds {options.rounds} --side {options.side}"
    record("roofline", command, {**vars(options), "device": DEVICE.type, "threads": torch.get_num_threads()}, figures)


if __name__ == "__main__":
    main()
