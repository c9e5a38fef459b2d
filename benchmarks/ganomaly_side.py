"""What `benchmarks.ganomaly` runs as processes of their own: a side that trains on demand, or a command that is timed.

    python -P ganomaly_side.py ours MODEL CACHE
    python -P ganomaly_side.py theirs CONFIG OUT PRECISION         in anomalib's environment
    python -P ganomaly_side.py command START SCRIPT ARGUMENT...    in either

A side answers each line it reads, "epoch" or a number of training steps on one ready batch, with the seconds that took.
Answers are JSON lines on standard output; whatever the libraries print there goes to standard error.
"""

import json
import os
import runpy
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

ANSWERS = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)


def tell(**answer: Any) -> None:
    print(json.dumps(answer), file=ANSWERS, flush=True)


def trainable(model: Any) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def work(step: Any) -> float:
    """Return the floating-point operations of a step, in GFLOP, by torch's own count of products and convolutions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counted:
        step()
    return float(counted.get_total_flops() / 1e9)


def ours(name: str, cache: str) -> None:
    """Train one of our models as `anomaly train` does, without validation."""
    import torch

    from anomaly.memory import keep_freed_memory
    from anomaly.pipeline.plan import Plan, prepare, resolve
    from anomaly.training.device import choose_device, make_repeatable
    from anomaly.training.trainer import Trainer, corrupt

    device = choose_device("auto")
    make_repeatable(device)
    keep_freed_memory()
    torch.manual_seed(0)
    prepared = prepare(Plan(name, Path(cache)))
    config, training = resolve(name, "standard", ())
    model, films, precision = (
        prepared.model(config, prepared.config.size),
        prepared.films("train").read(),
        prepared.config.precision,
    )
    trainer = Trainer(
        model, training, films, prepared.films("val").read(), seed=0, device=device, precision=precision, workers=0
    )
    model.train()
    ready = next(trainer.batches.epoch(0))
    gflop = work(lambda: list(trainer.apply_steps(ready)))
    tell(parameters=trainable(model), films=len(films), batch=len(ready.film), precision=precision, gflop=gflop)
    for number, word in enumerate(sys.stdin, start=1):
        start = time.perf_counter()
        for batch in trainer.batches.epoch(number) if word == "epoch\n" else [ready] * int(word):
            for _ in trainer.apply_steps(corrupt(batch, training)):
                pass
        if device.type == "cuda":
            torch.cuda.synchronize()
        tell(seconds=time.perf_counter() - start)


def theirs(config: str, out: str, precision: str) -> None:
    """Train what anomalib's config asks for by anomalib's Engine, without validation; its loop waits before epochs."""
    from anomalib.callbacks import ModelCheckpoint
    from anomalib.engine import Engine
    from lightning.pytorch import Callback

    class OnDemand(Callback):
        def on_train_start(self, trainer: Any, module: Any) -> None:
            self.ready = trainer.strategy.batch_to_device(next(iter(data.train_dataloader())))
            module.pre_processor.on_train_batch_start(trainer, module, self.ready, 0)
            packages = {name: version(name) for name in ("anomalib", "lightning", "torch")}
            films, batch = len(data.train_data), len(self.ready.image)
            facts = {"films": films, "batch": batch, "precision": precision, "versions": packages}
            tell(parameters=trainable(module), gflop=work(lambda: module.training_step(self.ready, 0)), **facts)

        def on_train_epoch_start(self, trainer: Any, module: Any) -> None:
            for word in iter(sys.stdin.readline, "epoch\n"):
                if not word:
                    os._exit(0)  # no more is asked for
                start = time.perf_counter()
                for _ in range(int(word)):
                    with trainer.precision_plugin.train_step_context():
                        module.training_step(self.ready, 0)  # waits for a GPU itself: it logs its losses as numbers
                tell(seconds=time.perf_counter() - start)
            self.start = time.perf_counter()

        def on_train_batch_end(self, trainer: Any, *_: object) -> None:
            if trainer.is_last_batch:
                tell(seconds=time.perf_counter() - self.start)

    _, model, data = Engine.from_config(config)
    callbacks = [OnDemand(), ModelCheckpoint(save_top_k=0)]
    engine = Engine(
        callbacks, default_root_dir=out, max_epochs=10**6, limit_val_batches=0, precision=precision, devices=1
    )
    engine.fit(model, data)


def command(start: str, script: str, *arguments: str) -> None:
    """Run a Python command to its end; tell when its first training step was done, and its peak memory.

    That step is done when each of the optimizers has moved once, before one of them moves for the second time.
    """
    import torch
    from torch.optim.optimizer import register_optimizer_step_post_hook

    moves: list[tuple[int, float]] = []
    register_optimizer_step_post_hook(lambda optimizer, *_: moves.append((id(optimizer), time.monotonic())))
    if Path(script).name == "anomaly":  # its optimizers are none of torch's classes
        from anomaly.training.optimizers import Optimizer

        step = Optimizer.step

        def noted(optimizer: Optimizer) -> None:
            step(optimizer)
            moves.append((id(optimizer), time.monotonic()))

        Optimizer.step = noted  # type: ignore[method-assign]
    sys.argv = [script, *arguments]
    try:
        runpy.run_path(script, run_name="__main__")
    except SystemExit as end:
        if end.code:
            raise
    seen: dict[int, float] = {}
    for optimizer, moment in moves:
        if optimizer in seen:
            break
        seen[optimizer] = moment
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    gpu = {"gpu_peak_mb": torch.cuda.max_memory_allocated() / 1e6} if torch.cuda.is_available() else {}
    first = max(seen.values()) - float(start)
    tell(first_step_s=first, peak_mb=int(status["VmHWM"].split()[0]) * 1024 / 1e6, **gpu)


if __name__ == "__main__":
    {"ours": ours, "theirs": theirs, "command": command}[sys.argv[1]](*sys.argv[2:])
