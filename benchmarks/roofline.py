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
from functools import partial
from typing import Any

import torch

from benchmarks.rates import Count, copy_rate, matrix_rate
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    side = 8192 if DEVICE.type == "cuda" else 2048  # a GPU is done with the smaller before it is well begun
    parser.add_argument("--side", type=int, default=side, help="of the matrices")
    options = parser.parse_args()
    rates = {dtype: matrix_rate(dtype, options.side, DEVICE) for dtype in (torch.float32, torch.bfloat16)}
    copy = copy_rate(2**28, DEVICE)
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
