"""Our optimizers against torch's classes, bit for bit, without the compiler that those import."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from anomaly.training.config import TrainConfig
from anomaly.training.optimizers import OPTIMIZERS, Optimizer
from anomaly.training.trainer import after_plateaus

SHAPES = ((8, 4, 3, 3), (8,), (1,), (5, 7))
CASES: list[tuple[dict[str, Any], Any]] = [
    ({}, lambda p: torch.optim.Adam(p, lr=0.01, fused=True)),
    (
        {"beta1": 0.5, "beta2": 0.9, "weight_decay": 0.1},
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.5, 0.9), weight_decay=0.1, fused=True),
    ),
    (
        {"optimizer": "sgd", "weight_decay": 0.1},
        lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=0.1, fused=True),
    ),
    ({"optimizer": "sgd", "momentum": 0.0}, lambda p: torch.optim.SGD(p, lr=0.01, fused=True)),
]


def parameters() -> list[Tensor]:
    torch.manual_seed(0)
    made = [torch.randn(shape) for shape in SHAPES]
    made[0] = made[0].to(memory_format=torch.channels_last)
    return [one.requires_grad_() for one in made]


def ours(config: TrainConfig) -> Optimizer:
    return OPTIMIZERS[config.optimizer](parameters(), config)


def gradients(step: int) -> list[Tensor | None]:
    """Those of a step; one parameter has none at first, as a frozen one."""
    draw = torch.Generator().manual_seed(step)
    return [None if i == 3 and step < 2 else torch.randn(shape, generator=draw) for i, shape in enumerate(SHAPES)]


def move(optimizer: Any, moved: list[Tensor], step: int) -> None:
    for parameter, gradient in zip(moved, gradients(step), strict=True):
        parameter.grad = gradient
        if gradient is not None and parameter.ndim == 4:
            parameter.grad = gradient.to(memory_format=torch.channels_last)
    optimizer.step()


@pytest.mark.parametrize(("told", "theirs"), CASES[:2] + CASES[3:])
def test_steps_are_those_of_torch_bit_for_bit(told: dict[str, Any], theirs: Any) -> None:
    config = TrainConfig.model_validate({"learning_rate": 0.01} | told)
    optimizer, moved = ours(config), parameters()
    reference = theirs(moved)
    for step in range(5):
        if step == 3:
            optimizer.rate = reference.param_groups[0]["lr"] = 0.3
        move(optimizer, optimizer.parameters, step)
        move(reference, moved, step)
        for own, other in zip(optimizer.parameters, moved, strict=True):
            assert torch.equal(own, other)
    expected = reference.state_dict()["state"]
    state = {number: names for number, names in optimizer.state.items() if names}
    assert {n: sorted(names) for n, names in state.items()} == {n: sorted(v) for n, v in expected.items() if v}
    for number, names in state.items():
        for name, value in names.items():
            assert torch.equal(value, expected[number][name]) and value.stride() == expected[number][name].stride()


def test_momentum_is_that_of_torch_bit_for_bit() -> None:
    """Torch's own class can't take a parameter whose first gradient comes later, so that here all have one."""
    told, theirs = CASES[2]
    optimizer, moved = ours(TrainConfig.model_validate({"learning_rate": 0.01} | told)), parameters()
    reference = theirs(moved)
    for step in range(2, 6):
        move(optimizer, optimizer.parameters, step)
        move(reference, moved, step)
    for own, other in zip(optimizer.parameters, moved, strict=True):
        assert torch.equal(own, other)
    assert all(
        torch.equal(names["momentum_buffer"], reference.state_dict()["state"][number]["momentum_buffer"])
        for number, names in optimizer.state.items()
    )


@pytest.mark.parametrize("told", [CASES[1][0], CASES[2][0]])
def test_a_loaded_state_goes_on_bit_for_bit_and_lies_as_its_parameter(told: dict[str, Any]) -> None:
    config = TrainConfig.model_validate({"learning_rate": 0.01} | told)
    first, second = ours(config), ours(config)
    for step in range(2, 5):
        move(first, first.parameters, step)
    # As a file has it: contiguous.
    second.load({n: {k: v.contiguous().clone() for k, v in names.items()} for n, names in first.state.items()})
    with torch.no_grad():
        for own, other in zip(second.parameters, first.parameters, strict=True):
            own.copy_(other)
    for optimizer in (first, second):
        move(optimizer, optimizer.parameters, 6)
    for own, other in zip(first.parameters, second.parameters, strict=True):
        assert torch.equal(own, other)
    name = "momentum_buffer" if config.optimizer == "sgd" else "exp_avg"
    assert second.state[0][name].stride() == second.parameters[0].stride()


def test_gradients_are_dropped_and_without_any_nothing_moves() -> None:
    optimizer = ours(TrainConfig())
    move(optimizer, optimizer.parameters, 2)
    before = [one.detach().clone() for one in optimizer.parameters]
    optimizer.zero_grad()
    assert all(one.grad is None for one in optimizer.parameters)
    optimizer.step()
    assert all(torch.equal(one, other) for one, other in zip(optimizer.parameters, before, strict=True))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from((0.5, 0.7, 0.69999, 1.0, -1.0)), max_size=12), st.integers(0, 3))
def test_plateaus_are_those_of_torch(losses: list[float], patience: int) -> None:
    config = TrainConfig(schedule="plateau", plateau=patience, factor=0.1)
    stand_in = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(stand_in, "min", 0.1, patience, eps=0.0)
    for loss in losses:
        schedule.step(loss)
    assert after_plateaus(losses, config) == stand_in.param_groups[0]["lr"]


def test_a_step_of_training_loads_no_compiler() -> None:
    """It takes two seconds of every start; `compile` alone needs it."""
    code = """
import sys, numpy as np, torch
from anomaly.data.dataset import Films
from anomaly.models.cae import CAE, CAEConfig
from anomaly.training.config import TrainConfig
from anomaly.training.trainer import Trainer

films = Films(np.ones((4, 32, 32), np.uint8), np.ones((4, 32, 32), np.bool_), np.zeros(4, np.int8))
config = TrainConfig(augmentation="none", clip=1.0, batch_size=4)
cpu = torch.device("cpu")
told = {"seed": 0, "device": cpu, "precision": "float32", "workers": 0}
Trainer(CAE(CAEConfig(width=2), 32), config, films, films, **told).train_epoch(1)
print(sorted(name for name in ("torch._dynamo", "torch._inductor", "sympy") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout
