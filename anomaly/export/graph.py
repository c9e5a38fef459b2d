"""Writing a detector as an ONNX graph: film, mask -> scores, map, reconstruction, as its `predict` gives them.

torch's exporter by tracing writes it: that by `torch.export` takes 5 to 30 times as long (DenseNet-169: 61 s against
3.5) for the same numbers, and has no loop for the mixture's components. What tracing can't follow has a form of its own
(`anomaly.export.detector_forms`), and every graph is compared with torch before it is used (`anomaly.export.probe`).
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._trace import TracerWarning
from torch.nn.functional import adaptive_avg_pool2d
from torch.overrides import TorchFunctionMode

from anomaly.data.batch import Batch
from anomaly.export.bundle import Tensor as TensorRecord
from anomaly.export.detector_forms import DETECTOR_FORMS
from anomaly.export.forms import Forms, exportable
from anomaly.export.pullback import averages
from anomaly.models.base import Detector
from preprocessing import InputError

OPSET = 18
"""Version of the standard operators: the first with all that is used; onnxruntime 1.14 and later have it."""


@dataclass(frozen=True)
class Graph:
    """An ONNX graph, and what goes in and comes out."""

    content: bytes
    inputs: list[TensorRecord]
    outputs: list[TensorRecord]


class _Traced(nn.Module):
    """A detector as a function of tensors."""

    def __init__(self, detector: nn.Module, score_names: Sequence[str], *, maps: bool) -> None:
        super().__init__()
        self.detector, self.score_names, self.maps = detector, score_names, maps

    def forward(self, film: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        unknown = torch.full((1,), -1)  # no detector looks at labels when it predicts
        batch = Batch(film * mask, mask, unknown)  # what lies off the mask is no part of the film, as for a cache
        prediction: Any = self.detector.predict(batch, maps=self.maps)  # type: ignore[operator]
        columns = [prediction.scores[name].double() for name in self.score_names]
        drawn = [t.float() for t in (prediction.map, prediction.reconstruction) if t is not None]
        return torch.stack(columns, dim=1), *drawn


def detector_graph(model: Detector, size: int, *, maps: bool = True, forms: Forms = DETECTOR_FORMS) -> Graph:
    """Return the graph of a detector for films of `size` x `size` pixels, any number at a time.

    film   (N, 1, S, S) float32 in [0, 1], 0 off the mask     mask  (N, 1, S, S) bool
    scores (N, K) float64, in the order of `score_names`      map, reconstruction  (N, 1, S, S) float32, where there are
    any. maps  whether the map is wanted. Raises InputError where the exporter can't write it.
    """
    film, mask = example(2, size)
    with torch.inference_mode():
        prediction = model.predict(Batch(film, mask, torch.full((2,), -1)), maps=maps)
    drawn = {"map": prediction.map, "reconstruction": prediction.reconstruction}
    names = ["scores", *(name for name, tensor in drawn.items() if tensor is not None)]
    traced = _Traced(exportable(model, forms), model.score_names, maps=maps)
    content = write_onnx(traced, {"film": film, "mask": mask}, names)
    return Graph(content, _inputs(size), [_output(model, name, size) for name in names])


def example(count: int, size: int) -> tuple[Tensor, Tensor]:
    """Return made-up films, smooth noise under masks of several shapes: (N, 1, S, S) float32 and bool."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 1, 8, 8, generator=generator)
    smooth = nn.functional.interpolate(coarse, size=(size, size), mode="bilinear", align_corners=False)
    film = 0.1 + 0.7 * smooth + 0.2 * torch.rand(count, 1, size, size, generator=generator)
    row, column = torch.meshgrid(*(torch.linspace(-1, 1, size),) * 2, indexing="ij")
    radius = torch.linspace(1.5, 0.6, count)[:, None, None, None]  # the first is whole
    mask = (row.square() + (0.8 * column).square()).sqrt() <= radius
    levels = (film * 255).round() / 255  # as of a cache of 8 bit
    return levels * mask, mask


def write_onnx(module: nn.Module, inputs: dict[str, Tensor], outputs: Sequence[str]) -> bytes:
    """Return a module as an ONNX file's content; the first dimension of all inputs and outputs is free.

    Raises InputError where the exporter can't write it.
    """
    buffer: Any = io.BytesIO()  # the exporter by tracing writes to it, whatever its type says
    free = {name: {0: "N"} for name in (*inputs, *outputs)}
    try:
        with (
            _quiet(),
            redirect_stdout(io.StringIO()),
            _PoolingAsProducts(),
            torch.inference_mode(False),
            torch.no_grad(),
        ):
            torch.onnx.export(
                module.eval(),
                tuple(inputs.values()),
                buffer,
                input_names=list(inputs),
                output_names=list(outputs),
                dynamic_axes=free,
                opset_version=OPSET,
                dynamo=False,
            )
    except (RuntimeError, torch.onnx.errors.OnnxExporterError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"torch {torch.__version__} can't write the graph ({reason})") from error
    content: bytes = buffer.getvalue()
    return content


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out the warnings of tracing, as sides of films are constants of the graph, and the graph it prints."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        for category in (TracerWarning, DeprecationWarning, FutureWarning, UserWarning):
            warnings.simplefilter("ignore", category)
        yield


class _PoolingAsProducts(TorchFunctionMode):
    """Adaptive average pooling as products of matrices: torch's exporter has it for even divisions alone."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not adaptive_avg_pool2d:
            return func(*args, **(kwargs or {}))
        x, cells = args
        height, width = (int(side) for side in x.shape[2:])
        down, across = (cells, cells) if isinstance(cells, int) else cells
        return (averages(height, down) @ x.double() @ averages(width, across).T).to(x.dtype)


def _inputs(size: int) -> list[TensorRecord]:
    shape: list[int | str] = ["N", 1, size, size]
    return [
        TensorRecord(name="film", dtype="float32", shape=shape, meaning="gray levels in [0, 1], 0 off the mask"),
        TensorRecord(name="mask", dtype="bool", shape=shape, meaning="where the film shows the patient"),
    ]


def _output(model: Detector, name: str, size: int) -> TensorRecord:
    if name == "scores":
        shape: list[int | str] = ["N", len(model.score_names)]
        return TensorRecord(name=name, dtype="float64", shape=shape, meaning="score_names, higher is more abnormal")
    meaning = model.map_unit if name == "map" else "the film drawn anew, in [0, 1], unmasked"
    return TensorRecord(name=name, dtype="float32", shape=["N", 1, size, size], meaning=meaning)
