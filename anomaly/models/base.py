"""The contract every model keeps: Step, Model, Detector.

A model says which player moves, and when; the training loop does everything else. One contract covers an autoencoder
(one player, one step), a GAN (several players, several steps) and a classifier.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from anomaly.data.batch import Batch, Batches
from anomaly.data.dataset import Targets
from anomaly.models.search_space import Space


class Settings(BaseModel):
    """What a model, or the training, can be told: typed, with limits, unknown names refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Step:
    """One move of one player: the loss terms whose sum that player's optimizer lowers.

    >>> Step("critic", real=torch.tensor(1.0), fake=torch.tensor(2.0)).loss()
    tensor(3.)
    """

    def __init__(self, player: str, /, *, watch: Mapping[str, Tensor] | None = None, **terms: Tensor) -> None:
        """Each term is a scalar, and `player.name` its column in the run's history.

        `watch` has scalars that no optimizer sees, a column each under its own name: what shows how training goes.
        """
        if not terms:
            raise ValueError(f"step of {player!r} has no loss term")
        self.player = player
        self.terms = terms
        self.watch = dict(watch or {})

    def loss(self) -> Tensor:
        """Return the sum of the terms, a scalar."""
        return torch.stack([term.float() for term in self.terms.values()]).sum()


@dataclass(frozen=True)
class Prediction:
    """What a detector says of the films of one batch, all from one pass."""

    scores: dict[str, Tensor]  # name -> (N,), higher is more abnormal
    map: Tensor | None = None  # (N, 1, S, S) >= 0, 0 outside the mask; None: not asked for, or not drawn
    reconstruction: Tensor | None = None  # (N, 1, S, S) in [0, 1]; None where the model doesn't reconstruct


class Model(nn.Module):
    """A network that can be trained. Knows no optimizer, device, precision, file or flag.

    A subclass is built as `Subclass(config, size)`: `config` its own `Config`, `size` the side of its films in pixels.
    """

    Config: ClassVar[type[Settings]]
    presets: ClassVar[Mapping[str, Mapping[str, Any]]]
    """Named settings, model and training together, over the defaults; `standard` is the one taken unasked."""
    targets: ClassVar[Targets] = "none"
    """What it learns from; decides which rows it trains on."""
    reconstructs: ClassVar[bool] = False
    """Whether it learns to draw a film anew, and so can learn it from a corrupted one."""
    takes_crops: ClassVar[bool] = False
    """Whether it can be trained on crops of films: its steps take films of any side that `check_size` allows, and what
    it learns of a place does not depend on where in the film that lies."""
    replayable: ClassVar[bool] = False
    """Whether `training_steps` does the same operations for all batches of one shape, none decided in Python by a value
    or a counter, and never waits for the device: then a GPU can replay them as a CUDA graph."""
    self_attention: ClassVar[bool] = False
    """Whether its steps have self-attention, whose gradient a GPU sums in an order that varies, unless told not to."""
    space: ClassVar[Space] = {}
    """What `anomaly tune` searches, where a model has something to search. Only settings that leave `validation_loss`
    the same yardstick: a weight within that loss would be chosen for making it small, not for a better model."""
    low_precision: ClassVar[bool] = False
    """Whether bfloat16 autocast is known to pay on a processor with AVX512-bf16 (see docs/performance.md)."""

    @classmethod
    def pays_in_bfloat16(cls, config: Any) -> bool:
        """Whether it does with these settings of the model."""
        return cls.low_precision

    @classmethod
    def check_size(cls, config: Any, size: int) -> str | None:
        """Return why films of `size` pixels can't be taken, as the end of a sentence, or None where they can."""
        return None

    def players(self) -> dict[str, list[nn.Module]]:
        """Return who owns which modules; every parameter has exactly one owner. No player: nothing is trained."""
        return {}

    def training_steps(self, batch: Batch) -> Iterator[Step]:
        """Yield the steps of one batch; each is applied before the generator resumes: later lines see moved weights."""
        return iter(())

    def validation_loss(self, batch: Batch) -> Tensor:
        """Return what checkpoints are chosen by, lower is better: (N,), or one a study where those are the samples.

        0 where nothing is trained: there is nothing to choose.
        """
        return torch.zeros(len(batch.film), device=batch.film.device)

    def rates(self) -> dict[str, float]:
        """Return the learning rate of players as a share of the training's, 1 where a player isn't named."""
        return {}

    def parts(self) -> dict[str, list[nn.Module]]:
        """Return the modules that a stage of the training can have to itself, the others frozen (`stages`)."""
        return {}

    @classmethod
    def weights_file(cls, config: Any) -> Path | None:
        """Return the file of pretrained weights, downloaded if need be, or None for none.

        Raises InputError where it isn't to be had.
        """
        return None

    def load_pretrained(self, weights: Path) -> None:
        """Load pretrained weights before training; raises InputError where they have another shape.

        Called only where `weights_file` names some: a model that names weights overrides this too.
        """
        raise NotImplementedError(f"{type(self).__name__} names pretrained weights and can't load them")

    def fit_reference(self, normals: Batches) -> None:
        """Keep what scores of normal films look like, in buffers that are saved with the weights.

        Called once, when training is over, in evaluation mode, with the training's films; a model that compares with
        nothing leaves it as it is. The films can be passed over as often as need be, in the same order every time, and
        need not fit into memory.
        """

    def set_class_counts(self, normal: int, abnormal: int) -> None:
        """Take the numbers of the training's films of each class, which a loss may be weighted by."""

    def validate(self, batch: Batch) -> dict[str, Tensor]:
        """Return "validation", the loss that checkpoints are chosen by, and what else is to be seen of validation
        films: each (N,), its mean a column of the history.
        """
        return {"validation": self.validation_loss(batch)}

    def warnings(self, figures: Mapping[str, float]) -> list[str]:
        """Return what is wrong with an epoch of these history figures, a sentence each that says what to do."""
        return []


class Detector(Model, ABC):
    """A model that says how abnormal a film is.

    Its `targets` are "none", where it sees normal films only, or "labels", where it learns from both classes.
    """

    score_names: ClassVar[tuple[str, ...]]
    """The keys of `Prediction.scores`; the first one is the score that is reported first."""
    map_unit: ClassVar[str] = "squared error"
    """The unit of `Prediction.map`."""

    @abstractmethod
    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        """Return scores, reconstruction and, where asked for, maps of the batch's films, from one pass.

        A film's score depends on that film and the weights alone: not on its batch, beyond the rounding of float32,
        the order, or chance. Called in evaluation mode, without gradients.
        """

    def preview(self, batch: Batch) -> Prediction:
        """Return what can be drawn of the films while the model trains, before `fit_reference`: it may have no scores.

        Called in evaluation mode, without gradients; by default there is nothing to draw.
        """
        return Prediction({})

    def generate(self, count: int) -> Tensor | None:
        """Return films of the same codes every time, (count, 1, S, S) in [0, 1]; None where it generates none."""
        return None
