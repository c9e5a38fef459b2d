"""The trained nets that come with the package: half-precision weights, and the record of what made them.

weights/models.json holds a `PackagedNet` by name, weights/NAME.safetensors its weights as float16, which is how they
are stored: they are computed with in float32. `anomaly models --make` makes both files, in a checkout.
"""

import subprocess  # nosec B404 # git alone is started, to ask for the commit
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, load_file, save
from torch import Tensor

from anomaly.localization.base import LocalizationModel
from anomaly.localization.detection import LocalizationCalibration
from anomaly.models import find_model
from anomaly.runs import Record, Run, first_error, sha256, to_json, write_atomic
from anomaly.training.weights import build
from preprocessing import InputError

WEIGHTS = Path(__file__).parent / "weights"
"""The folder of the package's nets."""
MODELS = "models.json"
AGAIN = "install the package again"


class PackagedNet(Record):
    """A trained net of the package, and what made it."""

    model: str
    settings: dict[str, Any]
    """Of the model."""
    size: int
    """Side of the films in pixels, as the net takes them."""
    threshold: float
    """The score from which on something counts as detected."""
    sha256: str
    """Of the weights' file."""
    command: str
    """What made it."""
    seed: int
    """Of the training."""
    films: dict[str, int]
    """What it was trained on: "seed" and "patients" of the drawn films, how many "train" and "val" had."""
    training: dict[str, Any]
    """Settings of the training."""
    commit: str
    """Of the source that trained it."""
    device: str
    precision: str
    """That the training computed in."""
    versions: dict[str, str]

    @property
    def digest(self) -> str:
        """12 hex digits that change with the weights and the threshold."""
        return f"{self.sha256[:8]}{round(self.threshold * 1e4):04x}"


def packaged_nets() -> dict[str, PackagedNet]:
    """Return the nets of the package by name; InputError where their record is missing or damaged."""
    path = WEIGHTS / MODELS
    try:
        return TypeAdapter(dict[str, PackagedNet]).validate_json(path.read_bytes())
    except OSError as error:
        reason = error.strerror or str(error)
    except ValidationError as error:
        reason = first_error(error)
    raise InputError(f"{path} can't be read ({reason}); {AGAIN}")


def packaged_net(name: str) -> PackagedNet:
    """Return one net's record; InputError where the package has none of that name."""
    nets = packaged_nets()
    if name not in nets:
        raise InputError(f"the package has no trained {name}; there are: {', '.join(nets)}")
    return nets[name]


def load_packaged(name: str, device: torch.device) -> LocalizationModel:
    """Return a net of the package in evaluation mode, float32; InputError for a file whose SHA-256 is another."""
    net, path = packaged_net(name), WEIGHTS / f"{name}.safetensors"
    try:
        stored = sha256(path)
    except OSError as error:
        raise InputError(f"{path} can't be read ({error.strerror}); {AGAIN}") from None
    if stored != net.sha256:
        raise InputError(f"{path} is damaged: its SHA-256 is not the one in {MODELS}; {AGAIN}")
    kind = find_model(net.model)
    assert issubclass(kind, LocalizationModel)
    try:
        return build(kind, net.settings, net.size, load_file(path), device)
    except (RuntimeError, SafetensorError) as error:
        raise InputError(f"{path} does not fit {net.model} of this version ({error!s:.100}); {AGAIN}") from None


# --- making them ----------------------------------------------------------------------------------------------------


def checkout() -> Path:
    """Return the root of the checkout that this package is imported from; InputError for an installed package."""
    root = WEIGHTS.parents[2]
    if not (root / "pyproject.toml").is_file():
        raise InputError(
            f"{WEIGHTS} belongs to an installed package, whose nets are ready for use; `anomaly models --make` remakes "
            "them in a checkout of the project, `anomaly train ssd` or `anomaly train unet` trains nets of your own"
        )
    return root


def commit(root: Path) -> str:
    """Return the commit of a checkout, with `+` where files differ from it, those of the nets aside."""

    def git(*words: str) -> str:
        asked = ["git", "-C", str(root), *words]
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()  # nosec B603 # no input

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{WEIGHTS.relative_to(root)}")
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError) as error:
        raise InputError(
            f"{root}: git can't say which commit this is ({error}); train the nets in a git checkout"
        ) from None


def halve(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return tensors with floating-point numbers as float16; InputError for one that float16 cannot hold."""
    halved = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    for name, tensor in halved.items():
        if not torch.isfinite(tensor).all():
            raise InputError(f"the weights {name} are too large for half precision; train again with another seed")
    return halved


def package(run: Run, command: str, films: dict[str, int], made_at: str) -> PackagedNet:
    """Make a finished run the package's net of its model, and return its record.

    command, made_at  what trained it, and at which commit
    films             seed and patients of the drawn films
    """
    config = run.config
    content = save(halve(load((run.path / "weights.safetensors").read_bytes())))
    name = config.model
    path = WEIGHTS / f"{name}.safetensors"
    write_atomic(path, content)
    net = PackagedNet(
        model=name,
        settings=config.settings.model,
        size=config.size,
        threshold=run.read("calibration.json", LocalizationCalibration).threshold,
        sha256=sha256(path),
        command=command,
        seed=int(config.seed),
        films=films | {part: config.films[part] for part in ("train", "val")},
        training=config.settings.training,
        commit=made_at,
        device=config.device,
        precision=config.precision,
        versions=config.versions,
    )
    others = packaged_nets() if (WEIGHTS / MODELS).is_file() else {}
    nets = {key: value.model_dump() for key, value in sorted((others | {name: net}).items())}
    write_atomic(WEIGHTS / MODELS, to_json(nets))
    return net
