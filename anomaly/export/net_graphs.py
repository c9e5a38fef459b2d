"""Writing the nets that prepare films as ONNX graphs: the localizer of hands, the segmenter of the foreground.

    localizer.onnx   film (N, 1, S, S) -> boxes (N, A, 4), probabilities (N, A, 4), of all A default boxes
    segmenter.onnx   film, mask (N, 1, S, S) -> foreground (N, 1, S, S)

Suppression of boxes that overlap is left to who reads them (`SSD.detect`): it is a search in a list, not a network.
"""

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from anomaly.export.bundle import BundledNet
from anomaly.export.bundle import Tensor as TensorRecord
from anomaly.export.forms import exportable
from anomaly.export.graph import example, write_onnx
from anomaly.localization.detection import HANDS, NMS_IOU, SCORE_FLOOR
from anomaly.localization.nets import NetLocalizer, NetSegmenter, load_once
from anomaly.localization.ssd import SSD
from preprocessing.cache.schema import BOX_CLASSES


class _Boxes(nn.Module):
    """An SSD as a function of films."""

    anchors: Tensor

    def __init__(self, model: SSD) -> None:
        super().__init__()
        self.model, self.size = exportable(model, {}), model.size
        self.decode = model.net.box_coder.decode_single
        self.anchors = nn.Buffer(model.anchors.clone())

    def forward(self, film: Tensor) -> tuple[Tensor, Tensor]:
        offsets, logits = self.model(film)
        anchors = self.anchors.expand(offsets.shape[0], -1, -1).flatten(0, 1)
        boxes: Any = self.decode(offsets.flatten(0, 1), anchors).clamp(0, self.size)
        return boxes.view(-1, len(self.anchors), 4), logits.softmax(dim=-1)[..., 1:]


class _Foreground(nn.Module):
    """A net that segments films as a function of them."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = exportable(model, {})

    def forward(self, film: Tensor, mask: Tensor) -> Tensor:
        logits: Tensor = self.model(film * mask)
        return logits.sigmoid() * mask


def net_graph(part: str, net: NetLocalizer | NetSegmenter) -> tuple[BundledNet, bytes]:
    """Return what is to be known of a net of the recipe, the "localizer" or "segmenter", and its graph."""
    model, size, threshold = load_once(net.run, net.name, net.digest)
    film, mask = example(2, size)
    inputs = {"film": film}
    shape: list[int | str] = ["N", 1, size, size]
    meaning = "gray levels in [0, 1], stretched over the whole range under the mask and 0 off it"
    records = [TensorRecord(name="film", dtype="float32", shape=shape, meaning=meaning)]
    if isinstance(model, SSD):
        outputs, traced = _box_outputs(model), _Boxes(model)
        content = write_onnx(traced, inputs, [output.name for output in outputs])
    else:
        inputs["mask"] = mask
        records.append(TensorRecord(name="mask", dtype="bool", shape=shape, meaning="where there is film"))
        meaning = "probability of being foreground, 0 off the mask"
        outputs = [TensorRecord(name="foreground", dtype="float32", shape=shape, meaning=meaning)]
        content = write_onnx(_Foreground(model), inputs, ["foreground"])
    return (
        BundledNet(
            file=Path(part).with_suffix(".onnx").name,
            name=net.name,
            digest=net.digest,
            size=size,
            threshold=threshold,
            inputs=records,
            outputs=outputs,
        ),
        content,
    )


def _box_outputs(model: SSD) -> list[TensorRecord]:
    shape: list[int | str] = ["N", len(model.anchors), 4]
    classes = ", ".join(BOX_CLASSES)
    rule = (
        f"of {classes}; the greater of the first {HANDS} and the greater of the others are scores of a hand and of a "
        f"marker: those over {SCORE_FLOOR} count, of two that overlap by an IoU over {NMS_IOU} the greater, hands and "
        "markers apart"
    )
    return [
        TensorRecord(
            name="boxes", dtype="float32", shape=shape, meaning="x0, y0, x1, y1 in pixels from the film's edge"
        ),
        TensorRecord(name="probabilities", dtype="float32", shape=shape, meaning=rule),
    ]
