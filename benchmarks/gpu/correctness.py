"""Whether a GPU computes what a processor does: a step and the scores of every model, augmentation, and resuming."""

from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from anomaly.data.augment import DeviceAugmentation
from anomaly.data.batch import Batch, as_batch, batches
from anomaly.data.dataset import Films
from anomaly.models.base import Detector
from anomaly.runs import Run
from anomaly.training.config import Precision
from anomaly.training.trainer import Trainer
from benchmarks.gpu.setting import UNTRAINED, Case, Setting, tf32

CPU = torch.device("cpu")
MODELS = ("cae", "vae", "dcgan", "bigan", "alphagan", "classifier")
ROUNDING = {"float32": 2.0**-18, "TF32": 2.0**-10, "bfloat16": 2.0**-8}
"""What rounding comes to over the layers of a network, relative."""
TOLERANCE, LARGEST = 10, 0.75
"""A gradient may be off by so many times what it changes by when the weights change by `ROUNDING`; and at most.

Its error alone says little: where an activation changes its side of a ReLU's kink the gradient jumps, and with the
paper's output of the CAE every pixel is one. There float32 on a processor is 17 % off float64, without a mistake.
"""
LOSS = {"float32": 1e-5, "TF32": 1e-3, "bfloat16": 1e-2}
"""Relative error of a loss term that is allowed."""


class SameDraws(TorchFunctionMode):
    """Draws every random tensor on the processor from one seed, whatever device it is for."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func in (torch.randn, torch.rand) and "generator" not in kwargs:
            device = kwargs.pop("device", None)
            return func(*args, **kwargs, generator=self.generator).to(device or CPU)
        if func in (torch.randn_like, torch.rand_like):
            draw = torch.randn if func is torch.randn_like else torch.rand
            return draw(args[0].shape, generator=self.generator).to(args[0])
        return func(*args, **kwargs)


def relative(value: Tensor, reference: Tensor) -> float:
    """Return |value - reference| / |reference|, Euclidean; NaN where anything isn't finite."""
    a, b = value.double().flatten().cpu(), reference.double().flatten().cpu()
    return float((a - b).norm() / b.norm().clamp(min=1e-30))


def gradients(trainer: Trainer, batch: Batch) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Do all steps of a batch; return the loss terms, and the gradient of each player at each of its steps."""
    terms: dict[str, Tensor] = {}
    found: dict[str, Tensor] = {}
    with SameDraws(7):
        for step in trainer.apply_steps(batch):
            terms |= {f"{step.player}.{name}": value.detach() for name, value in step.terms.items()}
            moved = [p.grad for p in trainer.parameters[step.player] if p.grad is not None]
            found[step.player] = torch.cat([g.detach().cpu().flatten() for g in moved])
    return terms, found


def one_step(case: Case, precision: str) -> dict[str, Any]:
    """Compare loss terms and gradients of one batch with those of a processor in float32."""
    films = case.films.part(slice(0, case.batch))
    # Plain descent: Adam's first step has the same length for gradients that are nothing but rounding.
    settings = ("optimizer=sgd", "learning_rate=0.001", *(("dropout=0",) if case.name == "classifier" else ()))
    reference = case.trainer("float32", *settings, device=CPU)
    other = case.trainer(cast("Precision", precision.replace("TF32", "float32")), *settings)
    expected_terms, expected = gradients(reference, as_batch(films, CPU))
    with tf32(precision == "TF32"):
        terms, found = gradients(other, as_batch(films, case.setting.device))
    disturbed = case.trainer("float32", *settings, device=CPU)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in disturbed.model.parameters():
            parameter *= 1 + ROUNDING[precision] * torch.randn(parameter.shape, generator=generator)
    _, moved = gradients(disturbed, as_batch(films, CPU))
    errors = {player: relative(found[player], value) for player, value in expected.items()}
    sensitivity = {player: relative(moved[player], value) for player, value in expected.items()}
    allowed = {player: min(LARGEST, TOLERANCE * (v + ROUNDING[precision])) for player, v in sensitivity.items()}
    losses = {name: relative(terms[name], value) for name, value in expected_terms.items()}
    right = all(error <= allowed[player] for player, error in errors.items())
    return {
        "passed": right and all(error <= LOSS[precision] for error in losses.values()),
        "gradient": errors,
        "allowed": allowed,
        "loss": losses,
        "weights_after": relative(_weights(other), _weights(reference)),
    }


def _weights(trainer: Trainer) -> Tensor:
    return torch.cat([p.detach().cpu().flatten() for own in trainer.parameters.values() for p in own])


def scores(case: Case, epochs: int) -> dict[str, Any]:
    """Train shortly on the device in bfloat16, where the model takes steps, then compare its scores and maps in float32
    with a processor's, and a film's score alone with its score in a batch.

    An error passes below .001 of the standard deviation over films, or 1e-5 of the score.
    """
    device = case.setting.device
    if case.name in UNTRAINED:
        there, here = case.model(), case.model(CPU)
        with torch.inference_mode():  # fitted once: k-means ends elsewhere where a distance is rounded otherwise
            there.fit_reference(batches(case.films.part(slice(0, 32)), device))
    else:
        precision: Precision = "bfloat16" if device.type == "cuda" else "float32"
        trained = case.trainer(precision, "augmentation=none", films=case.films.part(slice(0, 4 * case.batch)))
        for number in range(1, epochs + 1):
            trained.train_epoch(number)
        there = cast("Detector", trained.model.eval())
        here = cast("Detector", case.trainer("float32", device=CPU).model.eval())
    here.load_state_dict({k: v.cpu() for k, v in there.state_dict().items()})
    normal = case.films.part(slice(0, 32))
    films = case.setting.all_films(case.size).part(slice(0, 24))
    with torch.inference_mode():
        for model, where in ((there, device), (here, CPU)) if case.name not in UNTRAINED else ():
            model.fit_reference(batches(normal, where))
        found, expected = (m.predict(as_batch(films, w), maps=True) for m, w in ((there, device), (here, CPU)))
        alone = [there.predict(as_batch(films.part(slice(i, i + 1)), device)) for i in range(4)]
    figures: dict[str, Any] = {"passed": True, "over_spread": {}, "alone_over_spread": {}}
    for name, value in expected.scores.items():
        reference, own = value.double(), found.scores[name].double().cpu()
        single = torch.cat([one.scores[name].double().cpu() for one in alone])
        for key, a, b in (("over_spread", own, reference), ("alone_over_spread", single, own[:4])):
            spread, error = float(reference.std()), float((a - b).abs().max())
            figures[key][name] = error / max(spread, 1e-12)
            figures["passed"] &= error <= 1e-3 * spread + 1e-5 * float(reference.abs().max())
    if expected.map is not None and found.map is not None:
        figures["map"] = relative(found.map, expected.map)
        figures["passed"] &= figures["map"] < 1e-3
    return figures


def augmentation(setting: Setting, side: int) -> dict[str, Any]:
    """Compare the warp on the device with the same draws on a processor."""
    films = setting.all_films(side).part(slice(0, 16))
    augment = DeviceAugmentation("advanced")
    results = []
    for device in (setting.device, CPU):
        batch = as_batch(films, device)
        results.append([tensor.cpu() for tensor in augment(batch.film, batch.mask, 3)])
    (film, mask), (expected, expected_mask) = results
    both = mask & expected_mask
    apart = float((mask != expected_mask).float().mean())
    difference = (film - expected).abs()[both]
    figures = {"masks_apart": apart, "mean_level": float(difference.mean()), "largest_level": float(difference.max())}
    return {"passed": apart < 1e-4 and figures["mean_level"] < 1e-4, **figures}


class _Folder:
    """As much of a run folder as a checkpoint needs."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, name: str, data: bytes | str) -> None:
        (self.path / name).write_bytes(data.encode() if isinstance(data, str) else data)


def repeated_and_resumed(case: Case, folder: Path) -> dict[str, Any]:
    """Train two epochs, again, with one more after a checkpoint of the first, and kernel by kernel instead of replayed:
    how far the weights are from those of the first training; only 0, bit for bit, passes.
    """
    precision: Precision = "bfloat16" if case.setting.device.type == "cuda" else "float32"
    films: Films = case.films.part(slice(0, 6 * case.batch))

    def train(*settings: str, resumed: bool = False) -> Tensor:
        trainer = case.trainer(precision, *settings, films=films)
        trainer.train_epoch(1)
        if resumed:
            trainer.state.epoch = 1
            trainer.save(cast("Run", _Folder(folder)))
            trainer = case.trainer(precision, *settings, films=films)
            trainer.restore(folder / "checkpoint.safetensors")
        trainer.train_epoch(2)
        return _weights(trainer)

    first = train()
    errors = {
        "repeated": relative(train(), first),
        "resumed": relative(train(resumed=True), first),
        "kernel_by_kernel": relative(train("cuda_graph=false"), first),
    }
    return {"passed": not any(errors.values()), **errors}
