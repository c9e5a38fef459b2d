"""The training loop: one for every model.

Per step: one autocast context, the gradients of that player's parameters alone, that player's optimizer. So toggling
`requires_grad`, stray `detach` calls and mixed precision have one home, and a model only says who moves and when.

The checkpoint that is kept is the one of the lowest validation loss (`keep="best"`), measured after every epoch on
films that no gradient saw: for a detector trained on normal films the validation *normals*, so that no label is
needed. Training stops when that loss has not fallen for `patience` epochs. `keep="last"` keeps the last epoch, as the
paper's code did.

Training goes in `stages`, one unasked: in each either everything moves or one part of the model, the others frozen.
A stage ends like a training, after `epochs` or by `patience`; the next begins with the kept weights and new optimizers.

A training that goes on from the weights of another run measures these first: they are a checkpoint like any other, of
epoch 0. One that is stopped, by hand or at a deadline, ends between two batches, with the checkpoint that it has kept.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from torch.nn.functional import interpolate

from anomaly.data.batch import Batch, as_batch
from anomaly.data.crops import Crops
from anomaly.data.dataset import Films, FilmSet
from anomaly.data.loader import TrainingBatches
from anomaly.distributed import SINGLE_PROCESS, World
from anomaly.models.base import Model, Step
from anomaly.runs import CHECKPOINT, Run, checkpoint_state, to_csv
from anomaly.sealed import sealed_tensors
from anomaly.training.compiling import COMPILED, compilable
from anomaly.training.config import EpochReport, Precision, State, TrainConfig
from anomaly.training.device import repeatable_attention
from anomaly.training.measured import choose_kernels
from anomaly.training.optimizers import OPTIMIZERS, Optimizer
from anomaly.training.replay import Replay
from preprocessing import InputError

NO_BETTER = "no epoch lowered the validation loss of the weights that it began with"
"""How the warning begins that the weights of a training are those it began with."""
AFTER_DIVERGING = "what earlier epochs gave is kept; train again with a lower --set learning_rate=, or --set clip=1"


class _StoppedByHand(Exception):
    """Ends an epoch between two of its batches."""


class Trainer:
    """One model, its films, its optimizers; `run()` goes on from wherever the state stands."""

    def __init__(
        self,
        model: Model,
        config: TrainConfig,
        train: Films | FilmSet,
        validation: Films | FilmSet,
        *,
        seed: int,
        device: torch.device,
        precision: Precision,
        workers: int,
        world: World = SINGLE_PROCESS,
    ) -> None:
        """`seed` decides the order, the augmentation and every random draw of the model; 0 is a seed like any other."""
        self.config, self.device, self.seed, self.world = config, device, seed, world
        self.model = model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        if device.type == "cpu":
            choose_kernels(self.model)
        self.model.set_class_counts(int((train.label == 0).sum()), int((train.label == 1).sum()))
        self.train, self.validation, self.samples = train, validation, validation.samples()
        self.autocast = precision == "bfloat16"
        augmented_by = config.augmented_by
        if augmented_by == "auto":
            found = isinstance(train, Films) and (train.boxes is not None or train.foreground is not None)
            augmented_by = "device" if device.type == "cuda" and not found else "imgaug"
        self.batches = TrainingBatches(
            train,
            batch_size=config.batch_size,
            augmentation=config.augmentation,
            seed=seed,
            workers=workers,
            device=device,
            world=world,
            augmented_by=augmented_by,
            crops=Crops(config.crop, config.crops_per_film) if config.crop else None,
        )
        self.films = len(train)
        self.parameters = {
            player: [p for module in modules for p in module.parameters()]
            for player, modules in model.players().items()
        }
        if config.compile:
            # All share one cache of what was compiled, which by default holds eight.
            torch._dynamo.config.recompile_limit = COMPILED
            for module in compilable(model.players()):
                module.compile()
        self.optimizers = self._optimizers()
        replayed = config.cuda_graph and model.replayable and device.type == "cuda" and world.size == 1
        self.replay = Replay(device) if replayed and not config.compile else None
        self.state = State()
        self.best_weights: dict[str, Tensor] = {}
        self._should_stop: Callable[[State], bool] = lambda state: False

    def keep_start(self) -> None:
        """Take the weights as they stand for the checkpoint to beat, of epoch 0."""
        self.state.best = self._validate()["validation"]
        self._keep()

    def _keep(self) -> None:
        self.best_weights = {name: t.detach().cpu().clone() for name, t in self.model.state_dict().items()}

    def _optimizers(self) -> dict[str, Optimizer]:
        kind = OPTIMIZERS[self.config.optimizer]
        return {player: kind(parameters, self.config) for player, parameters in self.parameters.items()}

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(
        self,
        folder: Run,
        on_epoch: Callable[[EpochReport], None],
        on_checkpoint: Callable[[], None] = lambda: None,
        should_stop: Callable[[State], bool] = lambda state: False,
        *,
        checkpoint_seconds: float = 20.0,
    ) -> dict[str, Tensor]:
        """Train to the end and return the chosen weights; a checkpoint every `checkpoint_seconds`.

        should_stop  asked before every batch whether to end here, with what is kept of the epochs done; one at least
        is. The epoch that is under way is lost.
        """
        saved, self._should_stop = -math.inf, should_stop
        while not self._done():
            try:
                figures = self.train_epoch(self.state.epoch + 1)
            except _StoppedByHand:
                self._stop(folder)
                break
            self._remember(figures)
            new = self._warn(figures)
            if self._stage_over():
                self._next_stage()
            if self.world.first and (self._done() or time.monotonic() - saved >= checkpoint_seconds):
                self.save(folder)
                on_checkpoint()
                saved = time.monotonic()
            pace = sum(line["seconds"] for line in self.state.history[-5:]) / len(self.state.history[-5:])
            state, epochs = self.state, self.config.epochs
            left = pace * (state.before + epochs * (len(self.config.order) - state.stage) - state.epoch)
            if self.world.first:
                on_epoch(EpochReport(state.epoch, self.config.most_epochs, figures, state.best_epoch, left, new))
        if self.config.keep == "best" and self.state.best_epoch == 0:
            text = f"{NO_BETTER} ({self.state.best:.5g}): they are kept as they were"
            self.state.warnings.append({"text": text, "first": 1, "last": self.state.epoch})
        return self.best_weights

    def _stop(self, folder: Run) -> None:
        """End the training after the last whole epoch, so that resuming finds nothing left to train."""
        state = self.state
        text = f"stopped by hand or at a deadline; at most {self.config.most_epochs} epochs were planned"
        state.warnings.append({"text": text, "first": state.epoch, "last": state.epoch})
        state.stopped, state.stage = state.epoch, len(self.config.order)
        self.save(folder)

    def _check_stop(self) -> None:
        if self.best_weights and self._should_stop(self.state):
            raise _StoppedByHand

    def _done(self) -> bool:
        return self.state.stage == len(self.config.order)

    def _stage_over(self) -> bool:
        state, patience = self.state, self.config.patience
        fruitless = state.epoch - max(state.best_epoch, state.before)
        return state.epoch - state.before >= self.config.epochs or 0 < patience <= fruitless

    def _next_stage(self) -> None:
        """Go on to the next stage, from the kept weights; its optimizers know nothing of the stage before."""
        self.state.stage, self.state.before = self.state.stage + 1, self.state.epoch
        if not self._done():
            self.model.load_state_dict(self.best_weights)
            self.optimizers = self._optimizers()
            if self.replay:
                self.replay.clear()

    def train_epoch(self, number: int) -> dict[str, float]:
        """Train one epoch, counted from 1, and validate: name -> figure, a column each of the history.

        Raises InputError where a loss is not finite.
        """
        start = time.monotonic()
        # Each epoch draws from numbers of its own, so that resuming needs no state of the generators.
        own = [self.world.rank] * (not self.world.first)
        torch.manual_seed(int(np.random.SeedSequence([self.seed, number, *own]).generate_state(1, np.uint64)[0]))
        self._freeze()
        self._set_rates(number)
        terms: dict[str, list[Tensor]] = {}
        for batch in self.batches.epoch(number):
            self._check_stop()
            for step in self.steps(corrupt(batch, self.config)):
                named = {f"{step.player}.{name}": term for name, term in step.terms.items()}
                for name, term in (named | step.watch).items():
                    terms.setdefault(name, []).append(term.detach())
        figures = {}
        for name, values in terms.items():  # here the host waits for the device, not before
            series = self.world.mean(torch.stack(values).float())
            if not bool(series.isfinite().all()):
                first = int((~series.isfinite()).nonzero()[0, 0]) + 1
                raise InputError(
                    f"loss term {name} is not finite from step {first} of epoch {number} on; {AFTER_DIVERGING}"
                )
            figures[name] = float(series.mean())
        self.world.share_buffers(self.model)
        validation = self._validate()
        if not math.isfinite(validation["validation"]):
            raise InputError(f"the validation loss is not finite after epoch {number}; {AFTER_DIVERGING}")
        seconds = time.monotonic() - start
        return {"seconds": seconds, "films_per_second": self.films / seconds, **figures, **validation}

    def _freeze(self) -> None:
        """Let move what this stage trains; what is frozen keeps its running statistics too."""
        self.model.train().requires_grad_(True)
        name = self.config.order[self.state.stage]
        frozen = [] if name == "all" else [m for part, own in self.model.parts().items() if part != name for m in own]
        for module in frozen:
            module.eval().requires_grad_(False)

    def _set_rates(self, number: int) -> None:
        """Set the step sizes of epoch `number`, from 1 on."""
        config, shares = self.config, self.model.rates()
        factor = 1.0
        if config.schedule == "cosine":
            factor = 0.5 * (1 + math.cos(math.pi * (number - 1 - self.state.before) / config.epochs))
        elif config.schedule == "plateau":
            factor = after_plateaus([line["validation"] for line in self.state.history[self.state.before :]], config)
        for player, optimizer in self.optimizers.items():
            rate = config.learning_rate * shares.get(player, 1.0) * factor
            if self.replay and rate != optimizer.rate:
                self.replay.clear()
            optimizer.rate = rate

    def steps(self, batch: Batch) -> Iterator[Step]:
        """Apply the model's steps, replayed where they can be."""
        with repeatable_attention(self.device, self.model):
            yield from self.replay.steps(self.apply_steps, batch) if self.replay else self.apply_steps(batch)

    def apply_steps(self, batch: Batch) -> Iterator[Step]:
        """Apply the model's steps one by one."""
        generator = self.model.training_steps(batch)
        while True:
            # A context of its own for every step: autocast caches cast weights, which are stale once an optimizer
            # moved them.
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                step = next(generator, None)
            if step is None:
                return
            optimizer = self.optimizers[step.player]
            parameters = [p for p in self.parameters[step.player] if p.requires_grad]
            optimizer.zero_grad()
            step.loss().backward(inputs=parameters)
            self.world.average(parameters, len(batch.film))
            if self.config.clip:
                torch.nn.utils.clip_grad_norm_(parameters, self.config.clip)
            optimizer.step()
            yield step

    @torch.inference_mode()
    def _validate(self) -> dict[str, float]:
        """Return the loss on the validation films, "validation", and what else the model sees there."""
        self.model.eval()
        seen: dict[str, list[Tensor]] = {}
        for start in range(0, len(self.samples), self.config.batch_size):
            self._check_stop()
            rows = np.concatenate(self.samples[start : start + self.config.batch_size])
            batch = as_batch(self.validation.part(rows), self.device)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                values = self.model.validate(batch)
            for name, each in values.items():
                seen.setdefault(name, []).append(each)
        # The mean over all processes, so that they take the same decisions.
        return {name: float(self.world.mean(torch.cat(parts).float().mean())) for name, parts in seen.items()}

    def _remember(self, figures: dict[str, float]) -> None:
        state = self.state
        state.epoch += 1
        state.history.append({"epoch": state.epoch, **figures})
        improved = figures["validation"] < state.best
        if improved:
            state.best, state.best_epoch = figures["validation"], state.epoch
        if improved or self.config.keep == "last":
            self._keep()

    def _warn(self, figures: dict[str, float]) -> list[str]:
        """Note what is wrong with the epoch; returns what was not wrong before."""
        new = []
        for text in self.model.warnings(figures):
            kind = text.partition(" (")[0]  # figures in brackets differ from epoch to epoch
            known = next((w for w in self.state.warnings if w["text"].partition(" (")[0] == kind), None)
            if known is None:
                self.state.warnings.append({"text": text, "first": self.state.epoch, "last": self.state.epoch})
                new.append(text)
            else:
                known |= {"text": text, "last": self.state.epoch}
        return new

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def save(self, folder: Run) -> None:
        """Write the whole state as one sealed safetensors file: weights, best weights, optimizers, the rest as JSON."""
        tensors = {f"model/{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"best/{k}": v for k, v in self.best_weights.items()}
        for player, optimizer in self.optimizers.items():
            for index, values in optimizer.state.items():
                tensors |= {f"optimizer/{player}/{index}/{k}": v for k, v in values.items()}
        state = {
            "epoch": self.state.epoch,
            "stage": self.state.stage,
            "before": self.state.before,
            "best": self.state.best,
            "best_epoch": self.state.best_epoch,
            "history": self.state.history,
            "warnings": self.state.warnings,
            "stopped": self.state.stopped,
        }
        flat = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        folder.write(CHECKPOINT, sealed_tensors(flat, state))
        folder.write("history.csv", history_csv(self.state.history))

    def restore(self, path: Path) -> None:
        """Take up the state that `save` wrote."""
        groups: dict[str, dict[str, Tensor]] = {"model": {}, "best": {}, "optimizer": {}}
        self.state = State(**checkpoint_state(path))
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118  (not a mapping)
                group, _, rest = name.partition("/")
                groups[group][rest] = file.get_tensor(name)
        self.model.load_state_dict(groups["model"])
        self.best_weights = groups["best"]
        for player, optimizer in self.optimizers.items():
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in groups["optimizer"].items():
                owner, number, key = name.split("/")
                if owner == player:
                    state.setdefault(int(number), {})[key] = tensor
            optimizer.load(state)


def after_plateaus(losses: list[float], config: TrainConfig) -> float:
    """Return what the step size is multiplied by after these validation losses: `factor` for each plateau so far.

    The rule of torch's ReduceLROnPlateau, led through the losses again: so a resumed training needs no state of it.

    >>> after_plateaus([3.0, 2.0, 2.0, 2.0, 1.0], TrainConfig(schedule="plateau", plateau=1))
    0.1
    """
    rate, best, fruitless = 1.0, math.inf, 0
    for loss in losses:
        if loss < best * (1 - 1e-4):
            best, fruitless = loss, 0
        else:
            fruitless += 1
        if fruitless > config.plateau:
            rate, fruitless = rate * config.factor, 0
    return rate


def corrupt(batch: Batch, config: TrainConfig) -> Batch:
    """Return the batch with what a denoising training shows of it, drawn from torch's own random numbers."""
    if not config.noise and not config.erase:
        return batch
    shown, (count, _, side, _) = batch.film, batch.film.shape
    if config.noise:
        cells = max(1, round(side / config.noise_cell))
        noise = torch.randn(count, 1, cells, cells, device=shown.device)
        if cells != side:
            noise = interpolate(noise, size=(side, side), mode="bilinear", align_corners=False)
        shown = shown + config.noise * noise
    if config.erase:
        kept = torch.rand(count, 1, 8, 8, device=shown.device) >= config.erase
        shown = shown * interpolate(kept.float(), size=(side, side), mode="nearest")
    return replace(batch, corrupted=shown * batch.mask)


def history_csv(history: list[dict[str, float]]) -> str:
    """Return the history as CSV, one line an epoch."""
    names = list(history[0]) if history else ["epoch"]
    return to_csv({name: [line[name] for line in history] for name in names})
