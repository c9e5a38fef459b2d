"""What all sections share: which models at which settings, and trainers of them."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from anomaly.data.batch import Batch
from anomaly.data.dataset import Films
from anomaly.distributed import SINGLE_PROCESS, World
from anomaly.models import find_detector, find_model
from anomaly.models.base import Detector
from anomaly.pipeline.plan import resolve
from anomaly.training.config import Precision
from anomaly.training.device import make_repeatable
from anomaly.training.trainer import Trainer
from benchmarks.gpu.films import load

PAPER_MODELS = ("cae", "vae", "dcgan", "bigan", "alphagan")
PRESETS = {
    "classifier": {"paper": "mura", "standard": "standard", "fast": "fast"},
    "feature_mixture": {"paper": "standard", "standard": "standard", "fast": "fast"},
}
"""Other model -> preset of the five models -> its own."""
UNTRAINED = ("feature_mixture",)
"""Models that take no steps: they are fitted and scored."""
FEW_CELLS = 256  # px


@dataclass(frozen=True)
class Setting:
    """Where and at which sizes all is measured."""

    films: Path  # a cache
    device: torch.device
    preset: str  # of the five models
    side: int  # of the largest films in pixels; a model that takes smaller ones in its preset gets those
    most: int  # films a batch, at most
    settings: tuple[str, ...] = ()  # of every training, key=value

    def case(self, name: str, *settings: str, side: int | None = None, batch: int | None = None) -> "Case":
        """Return a model with its preset and further settings, at its own size and batch or at those given."""
        preset = PRESETS[name][self.preset] if name in PRESETS else self.preset
        _, training = resolve(name, preset, ())
        size = side or min(self.side, training.size or self.side)
        count = min(batch or training.batch_size, self.most)
        fixed = (f"size={size}", f"batch_size={count}", "augmented_by=device")  # imgaug need not be there
        return Case(self, name, preset, size, count, (*fixed, *self.settings, *settings))

    def all_films(self, size: int) -> Films:
        """Return all films at `size` px."""
        if size not in _LOADED:
            _LOADED[size] = load(self.films, size)
        return _LOADED[size]

    def synchronize(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def make_repeatable(self, device: torch.device) -> None:
        """Do so for a model there, and let the GPU go on as `anomaly` does: what a processor refuses it has to do."""
        make_repeatable(device)
        if self.device.type == "cuda":
            torch.set_deterministic_debug_mode("default")

    def clear(self) -> None:
        """Give back the memory of what is no longer used, and count its peak anew."""
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


_LOADED: dict[int, Films] = {}


@dataclass(frozen=True)
class Case:
    """One model at one size."""

    setting: Setting
    name: str
    preset: str
    size: int
    batch: int
    settings: tuple[str, ...]

    @property
    def label(self) -> str:
        """Its name in results."""
        return f"{self.name} {self.size} px, batch {self.batch}"

    @cached_property
    def films(self) -> Films:
        """All films that the model learns from: normal ones, or for labels both."""
        films = self.setting.all_films(self.size)
        return films if find_model(self.name).targets == "labels" else films.part(films.label == 0)

    def model(self, device: torch.device | None = None) -> Detector:
        """Return a detector of the same first weights every time, in evaluation mode."""
        chosen = device or self.setting.device
        self.setting.make_repeatable(chosen)
        torch.manual_seed(0)
        # Small films, as on a processor, have too few cells for more.
        few = ("components=10", "axes=16") if self.name == "feature_mixture" and self.size < FEW_CELLS else ()
        config, _ = resolve(self.name, self.preset, (*self.settings, *few))
        model = find_detector(self.name)(config, self.size)
        return model.to(device=chosen, memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]

    def trainer(
        self,
        precision: Precision,
        *settings: str,
        films: Films | None = None,
        validation: Films | None = None,
        device: torch.device | None = None,
        world: World = SINGLE_PROCESS,
    ) -> Trainer:
        """Return a trainer as `anomaly train` makes it, of the same first weights every time."""
        chosen = device or self.setting.device
        self.setting.make_repeatable(chosen)
        kind = find_model(self.name)
        config, training = resolve(self.name, self.preset, (*self.settings, *settings))
        torch.manual_seed(0)
        own = self.films if films is None else films
        held_out = own.part(slice(0, 2)) if validation is None else validation
        model = kind(config, self.size)
        made = Trainer(
            model, training, own, held_out, seed=0, device=chosen, precision=precision, workers=0, world=world
        )
        made.model.train()
        return made


def step(trainer: Trainer, batch: Batch) -> None:
    """Do all steps of a batch."""
    for _ in trainer.steps(batch):
        pass


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Let the GPU multiply float32 with 10 bits of precision, within."""
    if on:
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
