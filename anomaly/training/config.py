"""Settings of the training, its state between epochs, and what an epoch reports."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import Field

from anomaly.data.augment import AugmentationName
from anomaly.data.dataset import Sample
from anomaly.models.base import Settings

Precision = Literal["float32", "bfloat16"]


class TrainConfig(Settings):
    """Settings of the training, the same for every model."""

    size: int | None = Field(default=None, ge=16, le=2048)
    """Side of the films in pixels; none takes the cache's own. Smaller ones are made by an area filter."""
    epochs: int = Field(default=100, ge=1)
    """Largest number of passes over the training films."""
    batch_size: int = Field(default=16, ge=2)
    """Largest number of films in a batch; the batches of an epoch differ by at most one film."""
    sample: Sample = "film"
    """What is one sample, of which `batch_size` make a batch: a film, or a study with all of its films, however many
    (supervised models only: the loss is that of the study)."""
    splits: Literal["paper", "70/20/10"] = "paper"
    """How patients are split where the source gives no splits: by the paper's rule (a supervised model then learns from
    half of its abnormal validation patients), or 70, 20 and 10 % of those with and those without an abnormal film."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Adam, or stochastic gradient descent with momentum."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Learning rate of the optimizer."""
    schedule: Literal["constant", "cosine", "plateau"] = "constant"
    """Schedule of the learning rate: constant; cosine, down to zero along half a cosine, epoch by epoch (Loshchilov and
    Hutter 2017, without restarts); or plateau, times `factor` whenever the validation loss has not fallen by a
    ten-thousandth of itself for `plateau` epochs (torch's ReduceLROnPlateau)."""
    factor: float = Field(default=0.1, gt=0, lt=1)
    """Factor by which the schedule `plateau` multiplies the learning rate."""
    plateau: int = Field(default=5, ge=0)
    """Epochs without a lower validation loss before the schedule `plateau` lowers the learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Adam's decay of the mean gradient."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Adam's decay of the mean squared gradient."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Momentum of sgd."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2 penalty of the optimizer."""
    clip: float = Field(default=0.0, ge=0)
    """Largest norm of a player's gradient; 0: no clipping."""
    augmentation: AugmentationName = "advanced"
    """none, flips, advanced (flips, brightness, zoom, rotation), upright (brightness, zoom, shift), or mirrored
    (horizontal flips, rotation up to 10 degrees)."""
    augmented_by: Literal["auto", "imgaug", "device"] = "auto"
    """imgaug, on the CPU; or device: one affine warp of the whole batch on the training device, equal in distribution.
    auto: the device if it is a GPU, else imgaug; always imgaug for nets that learn boxes or masks."""
    crop: int = Field(default=0, ge=0, le=2048)
    """Side in pixels of random crops, at full resolution, that stand for the films in training; 0: whole films. Each
    holds a quarter or more of foreground, where the film has that. They are cut after the augmentation; films are
    validated and scored whole (only models of convolutions alone)."""
    crops_per_film: int = Field(default=1, ge=1, le=64)
    """Crops of each film in an epoch, all in one batch: `batch_size` is the number of crops, of so many times fewer
    films, whose reading and augmentation they share."""
    noise: float = Field(default=0.0, ge=0, le=1)
    """Standard deviation of Gaussian noise on the input, of which the clean film is to be reconstructed (only models
    that reconstruct: a denoising autoencoder, Vincent et al. 2008)."""
    noise_cell: int = Field(default=1, ge=1, le=128)
    """Side in pixels of the squares over which that noise is constant (Kascenas et al. 2022: 8 at 128 px)."""
    erase: float = Field(default=0.0, ge=0, lt=1)
    """Share of the squares of an 8 x 8 grid that are black in the input and have to be inpainted (the same models;
    Zavrtanik et al. 2021)."""
    compile: bool = False
    """Compile the networks (torch.compile; needs a C++ compiler, and about a minute before the first step): pays off
    in long trainings of large films."""
    cuda_graph: bool = True
    """On a GPU, record the steps of a batch as a CUDA graph and replay it for the next ones (models of which each batch
    takes the same operations; not with `compile` or several processes): the same weights, several times as fast where
    a step is many short kernels."""
    patience: int = Field(default=15, ge=0)
    """Epochs without a lower validation loss after which training, or its stage, stops; 0 never stops early."""
    stages: str = "all"
    """Comma list of what is trained one after the other, each for `epochs` at most: all, or a part of the model while
    the others are frozen. `head,all` trains the head of a network first, then everything."""
    keep: Literal["best", "last"] = "best"
    """Which checkpoint becomes the weights: that of the lowest validation loss, or the last."""

    @property
    def order(self) -> list[str]:
        """The stages as a list."""
        return self.stages.replace(" ", "").split(",")

    @property
    def most_epochs(self) -> int:
        """Epochs of all stages together, at most."""
        return self.epochs * len(self.order)


@dataclass
class State:
    """What training knows between two epochs, beside the weights and the optimizers."""

    epoch: int = 0  # epochs done
    stage: int = 0  # stages done
    before: int = 0  # epochs done before this stage
    best: float = math.inf
    best_epoch: int = 0
    history: list[dict[str, float]] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)  # text, first and last epoch of each
    stopped: int | None = None  # the epoch after which it was stopped, by hand or at a deadline


@dataclass(frozen=True)
class EpochReport:
    """What one epoch gave, for whoever shows progress."""

    epoch: int
    epochs: int
    figures: dict[str, float]
    best_epoch: int
    seconds_left: float
    warnings: list[str]  # what is wrong with the training and was not said before
