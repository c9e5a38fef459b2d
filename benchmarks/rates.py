"""The rates of a machine, measured, and the operations and bytes of a training step, counted."""

import time
from collections import Counter
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

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


def matrix_rate(dtype: torch.dtype, side: int, device: torch.device) -> float:
    """Return the operations a second of a square matrix product, the best of several."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / _best(lambda: torch.mm(a, b), device)


def copy_rate(count: int, device: torch.device) -> float:
    """Return the bytes read and written a second of copying so many bytes, the best of several."""
    a, b = (torch.randn(count // 4, device=device) for _ in range(2))
    return 2 * count / _best(lambda: b.copy_(a), device)


def _best(call: Any, device: torch.device) -> float:
    spent = []
    for _ in range(8):
        start = time.perf_counter()
        call()
        if device.type == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - start)
    return min(spent)
