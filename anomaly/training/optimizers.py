"""Optimizers: torch's fused Adam and SGD as torch's functions have them, with the state that they move.

`torch.optim.Adam` and `SGD`, the classes, import torch's compiler as soon as one is made: 2 s of every start. The
functions below them, which do the same arithmetic by the same kernel, do not.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim.adam import adam
from torch.optim.sgd import sgd

from anomaly.training.config import TrainConfig

EPSILON = 1e-8
"""Added to the root of Adam's mean squared gradient (Kingma and Ba 2015, algorithm 1)."""


class Optimizer(ABC):
    """What moves the parameters of one player.

    rate   learning rate, to be set before each epoch
    state  number of a parameter -> name -> tensor: all that a resumed training needs; filled by the first steps
    """

    def __init__(self, parameters: Sequence[Tensor], config: TrainConfig) -> None:
        self.parameters, self.config = list(parameters), config
        self.rate = config.learning_rate
        self.state: dict[int, dict[str, Tensor]] = {}

    def zero_grad(self) -> None:
        """Drop the gradients."""
        for parameter in self.parameters:
            parameter.grad = None

    def load(self, state: dict[int, dict[str, Tensor]]) -> None:
        """Take up a state as `state` had it; the tensors are copied."""
        self.state = {number: self._laid(number, own) for number, own in state.items()}

    def _laid(self, number: int, state: dict[str, Tensor]) -> dict[str, Tensor]:
        moved = self.parameters[number].detach()
        # The kernel walks memory: averages must lie as their parameter does, channels last.
        return {
            name: torch.empty_like(moved).copy_(own) if own.shape == moved.shape else own.to(moved.device)
            for name, own in state.items()
        }

    @torch.no_grad()
    def step(self) -> None:
        """Move all parameters that have a gradient."""
        moved = {number: p for number, p in enumerate(self.parameters) if p.grad is not None}
        if moved:
            self._move(list(moved), list(moved.values()), [p.grad for p in moved.values() if p.grad is not None])

    @abstractmethod
    def _move(self, numbers: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None: ...


class Adam(Optimizer):
    """Adam with an L2 penalty: Kingma and Ba 2015, algorithm 1."""

    def _move(self, numbers: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        for number, parameter in zip(numbers, parameters, strict=True):
            if number not in self.state:
                self.state[number] = {
                    "step": torch.zeros((), device=parameter.device),
                    "exp_avg": torch.zeros_like(parameter),
                    "exp_avg_sq": torch.zeros_like(parameter),
                }
        state = [self.state[number] for number in numbers]
        adam(
            parameters,
            gradients,
            [own["exp_avg"] for own in state],
            [own["exp_avg_sq"] for own in state],
            [],
            [own["step"] for own in state],
            fused=True,
            amsgrad=False,
            beta1=self.config.beta1,
            beta2=self.config.beta2,
            lr=self.rate,
            weight_decay=self.config.weight_decay,
            eps=EPSILON,
            maximize=False,
        )


class SGD(Optimizer):
    """Stochastic gradient descent with momentum and an L2 penalty: b <- momentum b + g, b <- g at the first step."""

    def _move(self, numbers: list[int], parameters: list[Tensor], gradients: list[Tensor]) -> None:
        momentum = self.config.momentum
        buffers = [self.state.get(number, {}).get("momentum_buffer") for number in numbers]
        sgd(
            parameters,
            gradients,
            buffers,  # made by the first step
            fused=True,
            weight_decay=self.config.weight_decay,
            momentum=momentum,
            lr=self.rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for number, buffer in zip(numbers, buffers, strict=True):
            if buffer is not None:
                self.state[number] = {"momentum_buffer": buffer}


OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": Adam, "sgd": SGD}
"""By the name of the training's setting."""
