"""A trained model over films: scores, maps, and what validation normals say of their scale.

Scoring is always in float32, whatever the precision of training, and goes through the cache a few films at a time.
Thresholds and the map's scale come from validation normals alone; the thresholds of a supervised model, which has seen
labels anyway, from the labelled validation films. No film of the test split moves them.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file

from anomaly.classification import youden
from anomaly.data import Films, as_batch, assign_splits, chunks, split_hash
from anomaly.detector import Detector, Model
from anomaly.heatmap import map_scale, smooth
from anomaly.memory import keep_freed_memory
from anomaly.metrics import POOLINGS, Groups, aggregate
from anomaly.models import find_detector
from anomaly.runs import Run
from preprocessing import InputError
from preprocessing.cache.reader import Cache
from preprocessing.cache.schema import STAGES, stage_of

M = TypeVar("M", bound=Model)
LEVELS = ("film", "study", "patient")
QUANTILE = 0.95
"""A threshold flags the 5 % of validation normals that score highest; a supervised model's is `youden`'s."""
SMOOTHING = 5 / 512
"""Standard deviation of the map's Gaussian as a share of the film's side: the paper's 5 pixels at 512."""


@dataclass(frozen=True)
class Calibration:
    """What validation films say: from where a film, study or patient is flagged, and where a map's colours end."""

    thresholds: dict[str, dict[str, dict[str, float]]]  # mean | max over films -> level -> score -> threshold
    map_scale: float | None  # in the unit of the map; None where the model draws none
    quantile: float
    films: int  # validation films the thresholds rest on
    rule: Literal["quantile", "youden"] = "quantile"  # of validation normals, or on labelled validation films

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class View:
    """Which films a model looks at: rows of one variant of a cache, at one size."""

    cache: Cache
    variant: str
    rows: NDArray[np.int64]
    size: int

    def chunks(self) -> Iterator[tuple[NDArray[np.int64], Films]]:
        """Yield `(rows, films)`, about four million pixels at a time."""
        return chunks(self.cache, self.variant, self.rows, self.size, max(1, min(64, 2**22 // self.size**2)))

    def column(self, name: str) -> NDArray[Any]:
        """Return a column of the index for the rows."""
        column: NDArray[Any] = self.cache.index[name][self.rows]
        return column

    def trivial_scores(self) -> dict[str, NDArray[np.float64]]:
        """Return what a net has to beat: mean grey level and minus standard deviation, under the mask, name -> (n,).

        They are those of the film before its levels were spread or equalised, which would make them all alike.
        """
        grey = self.column("grey")[:, STAGES.index(stage_of(self.variant))]  # (n, 2)
        return {"mean_grey": grey[:, 0], "minus_std": -grey[:, 1]}


def open_model(run: Run, device: torch.device) -> Detector:
    """Return the trained detector of a run on `device`, ready to score."""
    return load_weights(run, find_detector(run.config["model"]), device)


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


def make_repeatable(device: torch.device) -> None:
    """Ask for the same numbers from the same inputs: exact on a CPU, and on a GPU as far as cuDNN grants it.

    TF32, which a GPU would take for float32 unasked, is off: thresholds found on one machine hold on another.
    """
    # As use_deterministic_algorithms, which loads a compiler on the way: a second of every start.
    torch.set_deterministic_debug_mode("error" if device.type == "cpu" else "default")
    # A help to find bugs, for which all memory is written twice.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False


@torch.inference_mode()
def score(
    model: Detector, view: View, device: torch.device, on_films: Callable[[int], None] | None = None
) -> dict[str, NDArray[np.float64]]:
    """Return every score of the model and of the trivial detectors: name -> (n,) float64, in the view's order."""
    # Arrays of their whole length from the start: a small one kept from each pass would come to lie between the large
    # ones that the pass frees, whose place then can't be used again, and memory would grow with the films.
    scores: dict[str, NDArray[np.float64]] = {}
    done = 0
    for rows, films in view.chunks():
        for name, values in model.scores(as_batch(films, device)).items():
            if name not in scores:
                scores[name] = np.empty(len(view.rows))
            scores[name][done : done + len(rows)] = values.cpu().numpy()
        done += len(rows)
        if on_films:
            on_films(len(rows))
    for name, found in scores.items():
        if not np.isfinite(found).all():
            worst = view.column("path")[~np.isfinite(found)][0]
            raise InputError(
                f"score {name} of {worst} is not finite; the training diverged: lower --set learning_rate="
            )
    return scores | view.trivial_scores()


@torch.inference_mode()
def maps(
    model: Detector, view: View, device: torch.device
) -> Iterator[tuple[int, NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]]:
    """Yield (row, smoothed map (S, S), film (S, S) in [0, 1], mask (S, S)) for every film of the view.

    Raises InputError where the model draws no map.
    """
    for rows, films in view.chunks():
        drawn = model.anomaly_map(as_batch(films, device))
        if drawn is None:
            raise InputError("this model draws no heatmap: it scores a film as a whole; the cae, for one, draws them")
        raw = drawn.float().cpu().numpy()[:, 0]
        for row, one, film, mask in zip(rows, raw, films.unit(), films.mask, strict=True):
            yield int(row), smooth(one, mask, view.size * SMOOTHING), film, mask


def calibrate(model: Detector, view: View, device: torch.device) -> Calibration:
    """Return thresholds and map scale from `view`: the validation normals, or for a supervised model all labelled ones.

    A map's scale comes from the normal ones in either case.
    """
    scores = score(model, view, device)
    label = view.column("label")

    def threshold(values: NDArray[np.float64], groups: Groups) -> float:
        if not model.supervised:
            return float(np.quantile(groups.scores, QUANTILE))
        if {0, 1} <= set(groups.labels.tolist()):
            return youden(groups.labels, groups.scores)
        return youden(label, values)  # every patient has an abnormal film: what films say is all there is

    units = {"film": np.arange(len(label)), "study": view.column("study"), "patient": view.column("patient")}
    thresholds: dict[str, dict[str, dict[str, float]]] = {
        how: {
            level: {name: threshold(values, aggregate(ids, values, label, how)) for name, values in scores.items()}
            for level, ids in units.items()
        }
        for how in POOLINGS
    }
    normals = View(view.cache, view.variant, view.rows[label == 0], view.size)
    with torch.inference_mode():
        first = next(normals.chunks())[1]
        draws = model.anomaly_map(as_batch(Films(first.film[:1], first.mask[:1], first.label[:1]), device)) is not None
    scale = map_scale((one, mask) for _, one, _, mask in maps(model, normals, device)) if draws else None
    return Calibration(thresholds, scale, QUANTILE, len(label), "youden" if model.supervised else "quantile")


def read_calibration(run: Run) -> Calibration:
    """Return the calibration kept with a run."""
    return Calibration(**run.read_json("calibration.json"))


def run_view(run: Run, cache_path: Path | None = None) -> tuple[Cache, NDArray[Any]]:
    """Return the cache that a run was trained on and the split of each of its rows.

    A cache that has moved is named by `cache_path`; one of other content is refused.
    """
    cache = run_cache(run, cache_path)
    index = cache.index
    rule = run.config.get("split_rule", "paper")
    split = assign_splits(index["patient"], index["label"], index["split"], seed=run.config["split_seed"], rule=rule)
    if split_hash(index["path"], split) != run.config["split_hash"]:
        raise InputError(f"the splits of {cache.path} are not those of {run.path}; train again")
    return cache, split


def run_cache(run: Run, cache_path: Path | None = None) -> Cache:
    """Return the cache that a run was trained on; `cache_path` says where it is now, if not where it was."""
    recorded = run.config["cache"]
    if cache_path is None and not Path(recorded["path"]).is_file():
        raise InputError(f"the cache {recorded['path']} of {run.path} is gone; say with --cache where it is now")
    cache = Cache(cache_path or Path(recorded["path"]))
    if cache.content_hash != recorded["content_hash"]:
        raise InputError(
            f"{cache.path} is not the cache that {run.path} was trained on (content {cache.content_hash[:12]}, "
            f"not {recorded['content_hash'][:12]}); make it again with `{recorded['command']}`, or name films to score"
        )
    return cache
