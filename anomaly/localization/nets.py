"""Trained networks as the preprocessing takes them: callables that can be sent to other processes."""

import hashlib
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Literal

import torch

from anomaly.data.dataset import Films
from anomaly.localization.base import LocalizationModel
from anomaly.localization.detection import Detection, LocalizationCalibration
from anomaly.localization.locate import locate, segment
from anomaly.localization.packaged import load_packaged, packaged_net
from anomaly.localization.predict import detect_films, load_localization_model
from anomaly.nn.folding import fold_batch_norms
from anomaly.runs import Run
from anomaly.training.device import make_repeatable
from preprocessing import InputError, steps
from preprocessing.recipe import Localization

CPU = torch.device("cpu")


# --- loading --------------------------------------------------------------------------------------------------------


def load_localizer(run: Path | None = None) -> "NetLocalizer":
    """Return the localizer of a run, by default the package's; InputError for a run of another kind."""
    if run is None:
        return NetLocalizer(*_packaged("ssd"))
    return NetLocalizer(*_checked(run, "boxes", "detects hands; `anomaly train ssd`"))


def load_segmenter(run: Path | None = None) -> "NetSegmenter":
    """Return the segmenter of a run, by default the package's; InputError for a run of another kind."""
    if run is None:
        return NetSegmenter(*_packaged("unet"))
    return NetSegmenter(*_checked(run, "masks", "segments films; `anomaly train unet`"))


def _packaged(name: str) -> tuple[str, str, str]:
    net = packaged_net(name)
    load_once("", name, net.digest)
    return "", name, net.digest


def _checked(path: Path, targets: Literal["boxes", "masks"], purpose: str) -> tuple[str, str, str]:
    """Return folder, name and digest of a run's network, loaded once to see that it can be."""
    run = Run(path)
    make_repeatable(CPU)
    model = load_localization_model(run, CPU)
    if model.targets != targets:
        raise InputError(f"{path} is a run of {run.config.model}, not of a network that {purpose} makes one")
    return str(path.absolute()), run.config.model, _digest(run)


def _digest(run: Run) -> str:
    digest = hashlib.sha256((run.path / "weights.safetensors").read_bytes())
    digest.update((run.path / "calibration.json").read_bytes())
    return digest.hexdigest()[:12]


@cache
def load_once(folder: str, name: str, digest: str) -> tuple[LocalizationModel, int, float]:
    """Return the model, film side in pixels and threshold of a network, read once in a process.

    folder  its run; empty for the package's network of that name. A network is sent to a process again with every few
    films that are to be prepared there. Raises InputError where it no longer has the digest.
    """
    if folder:
        run = Run(Path(folder))
        found = _digest(run)
    else:
        packaged = packaged_net(name)
        found = packaged.digest
    if found != digest:
        place = folder or f"the package's {name}"
        raise InputError(f"{place} has changed while films were prepared with it; give the command again")
    if folder:
        model, size = load_localization_model(run, CPU), int(run.config.size)
        threshold = run.read("calibration.json", LocalizationCalibration).threshold
    else:
        model, size, threshold = load_packaged(name, CPU), packaged.size, packaged.threshold
    fold_batch_norms(model)
    return model, size, threshold


# --- callables ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Net:
    """Names a trained network, which each process then loads for itself."""

    run: str  # absolute path of its run folder; empty for the package's
    name: str  # of the model
    digest: str  # of its weights and threshold


class NetLocalizer(_Net):
    """Locates hands and side markers on an upright carrier, or on one that lies on a side or upside down."""

    def __call__(self, film: steps.Pixels) -> Localization | None:
        """Return hands and markers in pixels of the film as turned, or None where no hand is detected."""
        model, size, threshold = load_once(self.run, self.name, self.digest)
        return locate(film, partial(_detect, model), size, threshold)


class NetSegmenter(_Net):
    """Segments the foreground of a crop."""

    def __call__(self, film: steps.Pixels) -> steps.Mask | None:
        """Return the foreground, (h, w) bool, or None where it is empty."""
        model, size, threshold = load_once(self.run, self.name, self.digest)
        return segment(film, partial(_detect, model), size, threshold)


def _detect(model: LocalizationModel, films: Films) -> list[Detection]:
    """Return what a model detects on films, on one thread: the result must not depend on their number."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return list(detect_films(model, films, CPU))
    finally:
        torch.set_num_threads(threads)
