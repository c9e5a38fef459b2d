"""The steps of a batch as one CUDA graph: recorded once, then launched as a whole rather than kernel by kernel.

A GAN's steps are more than a thousand short kernels, which a processor takes several times as long to launch as the
GPU takes to run (docs/performance.md, "GPU"). A recording has the same kernels on the same numbers, random draws
included, so the weights become those of training without it.

Only what runs on the device is recorded. So a model has to say that its steps are the same operations for every batch
of one shape (`Model.replayable`): what Python decides, by a counter or a value, would be decided once for all.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import fields, replace
from typing import Any

import torch
from torch import Tensor

from anomaly.console import warn
from anomaly.data.batch import Batch
from anomaly.models.base import Step

WARM_UP = 3
"""Batches of a shape that are trained on kernel by kernel before one is recorded: libraries set themselves up, and
optimizers make their state, at the first ones."""
RECORDED = ("film", "mask", "label", "corrupted")
"""The parts of a batch that recordings take; a batch with others is not recorded."""
ApplySteps = Callable[[Batch], Iterator[Step]]
Key = tuple[tuple[int, ...], bool]


class Replay:
    """The recordings of a trainer, one for each shape of batch."""

    def __init__(self, device: torch.device) -> None:
        # Recording needs a stream of its own; the batches before it run there, too, so that autograd's nodes belong to
        # it. One pool of memory for all: recordings run one after the other, and what they leave is copied at once.
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._pool = torch.cuda.graph_pool_handle()
        self._seen: Counter[Key] = Counter()
        self._recordings: dict[Key, _Recording] = {}
        self._refused = False

    def clear(self) -> None:
        """Forget all recordings: what they hold fixed has changed, as learning rates, optimizers or frozen layers."""
        if self._recordings:
            torch.cuda.synchronize(self._device)  # the last one may be running in the memory that it gives back
        self._seen.clear()
        self._recordings.clear()

    def steps(self, apply_steps: ApplySteps, batch: Batch) -> Iterable[Step]:
        """Do the steps of a batch and return them, their terms without gradients.

        apply_steps  does the steps of a batch and yields each after it was done; the same function in every call. It is
        not kept: a trainer that it belongs to, and its memory on the GPU, would not be freed with the last reference.
        """
        if self._refused or any(getattr(batch, f.name) is not None for f in fields(batch) if _unrecorded(f.name)):
            return apply_steps(batch)
        key = (tuple(batch.film.shape), batch.corrupted is not None)
        if key not in self._recordings:
            if self._seen[key] < WARM_UP:
                self._seen[key] += 1
                return self._warm_up(apply_steps, batch)
            try:
                self._recordings[key] = _Recording(apply_steps, batch, self._stream, self._pool)
            except RuntimeError as error:  # what a graph can't hold, as torch or the driver says it
                self._refused = True
                self.clear()
                reason = " ".join(str(error).split())[:160]
                warn(f"the steps can't be recorded as a CUDA graph ({reason}): training goes on without, more slowly")
                return apply_steps(batch)
        return self._recordings[key].play(batch)

    def _warm_up(self, apply_steps: ApplySteps, batch: Batch) -> list[Step]:
        main = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            done = [_detached(step) for step in apply_steps(batch)]
        main.wait_stream(self._stream)
        return done


class _Recording:
    """The steps of batches of one shape."""

    def __init__(
        self,
        apply_steps: ApplySteps,
        batch: Batch,
        stream: torch.cuda.Stream,
        pool: Any,
    ) -> None:
        copies = {name: own.clone() for name in RECORDED if (own := getattr(batch, name)) is not None}
        self._batch = replace(batch, **copies)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads, such as the one that pins memory for batches to come, may go on meanwhile.
        with torch.cuda.graph(self._graph, pool=pool, stream=stream, capture_error_mode="thread_local"):
            steps = [_detached(step) for step in apply_steps(self._batch)]
            values = [value.float() for step in steps for value in (*step.terms.values(), *step.watch.values())]
            self._values = torch.stack(values)
        self._names = [(step.player, tuple(step.terms), tuple(step.watch)) for step in steps]

    def play(self, batch: Batch) -> Iterator[Step]:
        """Do the steps of a batch of this shape and yield them."""
        for name in RECORDED:
            if (own := getattr(self._batch, name)) is not None:
                own.copy_(getattr(batch, name))
        self._graph.replay()
        values = iter(self._values.clone().unbind())
        for player, terms, watched in self._names:
            named = {name: next(values) for name in terms}
            yield Step(player, watch={name: next(values) for name in watched}, **named)


def _unrecorded(name: str) -> bool:
    return name not in (*RECORDED, "studies")


def _detached(step: Step) -> Step:
    """Return the step without what its gradients were computed from, which would keep memory and streams in use."""
    watch: dict[str, Tensor] = {name: value.detach() for name, value in step.watch.items()}
    return Step(step.player, watch=watch, **{name: value.detach() for name, value in step.terms.items()})
