"""The trained weights of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from anomaly.console import warn
from anomaly.formatting import command_line
from anomaly.manifest import FILE, check_files
from anomaly.memory import keep_freed_memory
from anomaly.models import find_detector
from anomaly.models.base import Model
from anomaly.runs import CHECKPOINT, RESULTS, Run, checkpoint_state
from anomaly.training.device import make_repeatable
from preprocessing import InputError

M = TypeVar("M", bound=Model)
BEST = "best/"
"""What the names of the best weights so far begin with, in a checkpoint."""


def load_weights(run: Run, kind: type[M], device: torch.device, refitted: Path | None = None) -> M:
    """Return the trained model of a finished run, of its class, on `device` and in evaluation mode.

    refitted  a .safetensors file of tensors in place of those of the run: a reference fitted to other films.
    """
    if not run.finished:
        raise InputError(f"{run.path} is unfinished; {resume_command(run)} resumes it")
    path = run.path / "weights.safetensors"
    if not path.is_file():
        raise InputError(f"{path} is gone; train again with another --out")
    remedy = "put the right file back, or train again with another --out"
    if path.name not in check_files(run.path, remedy, RESULTS):
        warn(f"{run.path} is of an older version and has no {FILE}: damage to its files would not be noticed")
    return _loaded(run, kind, device, path, prefix="", refitted=refitted)


def load_best_checkpoint(run: Run, kind: type[M], device: torch.device) -> tuple[M, int, int]:
    """Return the best weights so far of an unfinished run, the epoch they are of, and how many epochs are done.

    What is fitted when training ends, the reference of the scores, is not in them yet.
    """
    path = run.path / CHECKPOINT
    if not path.is_file():
        raise InputError(f"{run.path} is unfinished and has no checkpoint yet; {resume_command(run)} resumes it")
    state = checkpoint_state(path)
    return _loaded(run, kind, device, path, prefix=BEST), int(state["best_epoch"]), int(state["epoch"])


def resume_command(run: Run) -> str:
    """Return the command, in backquotes, that resumes an unfinished run."""
    begun, words = run.config.begun_with, ["anomaly", "train", run.config.model]
    if begun is not None:
        films = ["--more-films", begun.more_films] if begun.more_films else []
        epochs = ["--more-epochs", run.config.settings.training["epochs"], "--seed", run.config.seed]
        words = ["anomaly", "train", begun.run, *films, *map(str, epochs)]
    if run.config.members:
        chosen = zip(run.config.members, run.config.settings.model["members"], strict=True)
        members = (run_text if _is_first(one) else f"{run_text}:{one['score']}" for run_text, one in chosen)
        return f"`{command_line('anomaly', 'ensemble', *members, '--out', run.path)}`"
    return f"`{command_line(*words, '--out', run.path, '--resume')}`"


def _is_first(member: Mapping[str, Any]) -> bool:
    """Whether the score that a member of an ensemble brings is the first of its model, as where none is named."""
    names = find_detector(str(member["model"])).score_names
    return isinstance(names, tuple) and names[:1] == (member["score"],)


def _loaded(
    run: Run, kind: type[M], device: torch.device, path: Path, *, prefix: str, refitted: Path | None = None
) -> M:
    try:
        tensors = _tensors(path, prefix)
        if refitted is not None:
            path = refitted  # what an error is of
            tensors |= load_file(refitted)
        return build(kind, run.config.settings.model, run.config.size, tensors, device)
    except Exception as error:
        reason = " ".join(str(error).split())[:120]
        raise InputError(
            f"{path} has weights of another model or version than the {run.config.model} of run.json ({reason} "
            "...); put the right file back, or train again"
        ) from None


def build(
    kind: type[M], settings: Mapping[str, Any], size: int, tensors: Mapping[str, torch.Tensor], device: torch.device
) -> M:
    """Return a model of these settings with these weights, on `device` and in evaluation mode.

    Weights of a lower precision become those of the model. RuntimeError for weights of another model.
    """
    make_repeatable(device)
    keep_freed_memory()
    model = kind(kind.Config(**settings), size)
    model.load_state_dict(tensors)
    return model.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload,no-any-return]


def _tensors(path: Path, prefix: str) -> dict[str, torch.Tensor]:
    if not prefix:
        return load_file(path)
    with safe_open(path, "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118  (not a mapping)
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}
