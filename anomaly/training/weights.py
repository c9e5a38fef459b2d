"""The trained weights of a run."""

from typing import TypeVar

import torch
from safetensors.torch import load_file

from anomaly.memory import keep_freed_memory
from anomaly.models.base import Model
from anomaly.runs import Run
from anomaly.training.device import make_repeatable
from preprocessing import InputError

M = TypeVar("M", bound=Model)


def load_weights(run: Run, kind: type[M], device: torch.device) -> M:
    """Return the trained model of a finished run, of its class, on `device`."""
    if not run.finished:
        raise InputError(
            f"{run.path} is unfinished; `anomaly train {run.config['model']} --out {run.path} --resume` goes on with it"
        )
    make_repeatable(device)
    keep_freed_memory()
    model = kind(kind.Config(**run.config["settings"]["model"]), run.config["size"])
    path = run.path / "weights.safetensors"
    if not path.is_file():
        raise InputError(f"{path} is gone; train again with another --out")
    try:
        model.load_state_dict(load_file(path))
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path} has weights of another model or version than the {run.config['model']} of run.json ({reason} "
            "...); put the right file back, or train again"
        ) from None
    return model.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]
