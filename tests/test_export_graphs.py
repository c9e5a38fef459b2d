"""Every detector as an ONNX graph: a new model is one line in ZOO, and is exported and compared here."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torchvision.models.densenet import _DenseBlock, _Transition
from torchvision.models.efficientnet import MBConv, MBConvConfig
from torchvision.ops.misc import SqueezeExcitation

from anomaly.data.batch import Batch, as_batch, batches
from anomaly.data.dataset import Films, FilmSet
from anomaly.export.contrast_form import ContrastDensityForm
from anomaly.export.forms import AtypicalityForm, PValueForm, exportable
from anomaly.export.graph import OPSET, detector_graph, example
from anomaly.export.net_graphs import net_graph
from anomaly.export.onnx_session import open_session
from anomaly.export.probe import AT_MOST, Difference, compare, run_graph
from anomaly.export.pullback import UnknownLayer, averages, pullback
from anomaly.localization.nets import load_localizer, load_once, load_segmenter
from anomaly.localization.ssd import SSD
from anomaly.models import ZOO, find_model
from anomaly.models.base import Detector
from anomaly.models.classifier import Classifier
from anomaly.models.contrast_density import ContrastDensity, ContrastDensityConfig
from anomaly.models.ensemble import Ensemble, EnsembleConfig, Member
from anomaly.nn.atypicality import Atypicality
from anomaly.nn.p_values import PValue
from anomaly.pipeline.plan import resolve
from preprocessing.cache.reader import Cache
from preprocessing.steps.levels import local_contrast

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

CPU = torch.device("cpu")
SIZE = 64
NARROW = {"width": 4, "components": 8, "axes": 16, "blocks": "2,4", "coreset": 20}
CASES = {name: (name, "fast", ()) for name in ZOO} | {
    "bigan, full attention": ("bigan", "paper", ()),
    "cae, tanh and a share of pixels": ("cae", "paper", ("topk=0.05",)),
    "classifier, two outputs": ("classifier", "cnn", ()),
    "classifier, gradients through blocks": ("classifier", "standard", ()),
    "dcgan, wide": ("dcgan", "paper", ()),
    "feature_mixture, local levels": ("feature_mixture", "diffuse", ("enlarge=2", "margin=0.05")),
    "feature_mixture, nearest": ("feature_mixture", "standard", ("kind=nearest",)),
    "feature_mixture, torchvision's network": (
        "feature_mixture",
        "focal",
        ("weights=none", "backbone=efficientnet_b0", "axes=4"),
    ),
    "synthetic, without ImageNet": ("synthetic", "fast", ("weights=none",)),
}


def made(name: str, preset: str, extra: tuple[str, ...]) -> Detector:
    torch.manual_seed(0)
    kind = find_model(name)
    narrow = [f"{key}={value}" for key, value in NARROW.items() if key in kind.Config.model_fields]
    config, _ = resolve(name, preset, [*narrow, *extra])
    model = kind(config, SIZE)
    assert isinstance(model, Detector)
    if isinstance(model, Classifier):  # all films have the same probability for a network that never was trained
        [layer for layer in model.modules() if isinstance(layer, nn.Linear)][-1].weight.data.mul_(100)
    return model


@pytest.fixture(scope="module")
def normals(cache: Cache) -> Films:
    rows = np.flatnonzero(cache.index["label"] == 0)[:16]
    return FilmSet(cache, "full-he", rows, SIZE).read()


def amid(*scores: Tensor) -> float:
    """Return a threshold amid scores, as far from all of them as can be."""
    values = torch.cat(scores).double().sort().values
    widest = values.diff().argmax()
    return float(values[widest] + values[widest + 1]) / 2


def settle(model: Detector, normals: Films) -> None:
    """Let the running statistics of normalization be those of films, as of a network that was trained."""
    with torch.no_grad():
        for _ in range(10):
            list(model.train().training_steps(as_batch(normals, CPU)))
    model.eval()


def rounding(model: Detector, batch: Batch, expected: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return how far torch's own scores move when levels move by their rounding, largest over films: (K,).

    What so small a change moves by more than 1e-6 of itself, no two libraries can agree on to 1e-5.
    """
    noise = torch.randn(batch.film.shape, generator=torch.Generator().manual_seed(3))
    moved = model.predict(Batch(batch.film * (1 + 1e-7 * noise), batch.mask, batch.label)).scores
    found = np.stack([moved[name].double().numpy() for name in model.score_names], axis=1)
    largest: np.ndarray = (np.abs(found - expected) / np.maximum(np.abs(expected), spread)).max(axis=0)
    return largest


def differences(model: Detector, normals: Films) -> list[Difference]:
    """Fit a model, write its graph, and compare it on other films, together and one by one."""
    settle(model, normals)
    with torch.inference_mode():
        model.fit_reference(batches(normals, CPU))
        if isinstance(model, Ensemble):
            model.fit_maps(batches(normals, CPU))
        batch = as_batch(normals, CPU)
        usual = model.predict(batch).scores
        noise = 0.05 * torch.randn(batch.film.shape, generator=torch.Generator().manual_seed(1))
        other = Batch((batch.film + noise).clamp(0, 1)[:6] * batch.mask[:6], batch.mask[:6], batch.label[:6])
        other.mask[5] = False  # a film without foreground
        other.film[5] = 0
        torch_says = model.predict(other, maps=True)
    names = list(model.score_names)
    expected = {"scores": np.stack([torch_says.scores[name].double().numpy() for name in names], axis=1)}
    for name, tensor in (("map", torch_says.map), ("reconstruction", torch_says.reconstruction)):
        expected |= {} if tensor is None else {name: tensor.numpy()}
    graph = detector_graph(model, SIZE)
    parsed = onnx.load_model_from_string(graph.content)
    onnx.checker.check_model(parsed)
    assert [imported.version for imported in parsed.opset_import if imported.domain == ""] == [OPSET]
    session = open_session(graph.content, threads=1)
    assert [tensor.name for tensor in graph.inputs] == [tensor.name for tensor in session.get_inputs()]
    assert [tensor.name for tensor in graph.outputs] == list(expected)
    film, mask = other.film.numpy(), other.mask.numpy()
    found = run_graph(session, film, mask)
    single = [run_graph(session, film[i : i + 1], mask[i : i + 1]) for i in range(len(film))]
    alone = {name: np.concatenate([one[name] for one in single]) for name in found}
    for tensor in graph.outputs:
        assert found[tensor.name].dtype == tensor.dtype
        assert found[tensor.name].shape == (len(film), *tensor.shape[1:])
    spread = np.array([float(usual[name].double().std()) for name in names])
    thresholds = {name: amid(usual[name], torch_says.scores[name]) for name in names}
    with torch.inference_mode():
        sure = dict(zip(names, rounding(model, other, expected["scores"], spread), strict=True))
    limits = {name: min(1e-4, max(AT_MOST["scores"], 10 * sure[name])) for name in names}
    return [row for these in (found, alone) for row in compare(names, expected, these, spread, thresholds, limits)]


@pytest.mark.parametrize("case", sorted(CASES))
def test_the_graph_gives_what_torch_gives(case: str, normals: Films) -> None:
    for row in differences(made(*CASES[case]), normals):
        assert row.largest <= row.at_most and row.flags == row.at_threshold, row


def test_so_does_that_of_an_ensemble_of_other_detectors_at_other_sizes(normals: Films) -> None:
    members = [
        Member(model="cae", settings={"width": 4}, size=SIZE, score="peak"),
        Member(
            model="feature_mixture", settings=made(*CASES["feature_mixture"]).config.model_dump(), size=32, score="max"
        ),  # type: ignore[attr-defined]
    ]
    torch.manual_seed(0)
    model = Ensemble(EnsembleConfig(members=members), SIZE).eval()
    with torch.inference_mode():
        for member, size in zip(model.members, model.sizes, strict=True):
            from anomaly.data.dataset import resize_films

            member.fit_reference(batches(resize_films(normals, size), CPU))  # type: ignore[operator]
    for row in differences(model, normals):
        assert row.largest <= row.at_most and row.flags == row.at_threshold, row


# --- parts -----------------------------------------------------------------------------------------------------------


class _Gradient:
    """The gradient of a layer's output, weighted, by torch and by `pullback`."""

    def __init__(self, layer: nn.Module, x: Tensor) -> None:
        layer.eval()
        start = x.clone().requires_grad_()
        y = layer(start * 1)  # layers work in place
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
        (self.expected,) = torch.autograd.grad((y * weights).sum(), start)
        with torch.no_grad():
            self.y, pull = pullback(layer, x)
            self.found = pull(weights)
        self.output = y.detach()


def layers() -> Iterator[nn.Module]:
    torch.manual_seed(0)
    settings_of = MBConvConfig(4, 3, 1, 8, 8, 1)
    yield nn.Sequential(nn.Conv2d(8, 6, 3, stride=2, padding=1), nn.BatchNorm2d(6), nn.SiLU(inplace=True))
    yield nn.Sequential(nn.Conv2d(8, 8, 5, padding=2, groups=8, bias=False), nn.ReLU(inplace=True), nn.MaxPool2d(2))
    yield nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.Flatten(), nn.Dropout(0.5), nn.Linear(72, 5), nn.Sigmoid())
    yield SqueezeExcitation(8, 2)
    yield MBConv(settings_of, 0.1, nn.BatchNorm2d)
    yield nn.Sequential(_DenseBlock(2, 8, 2, 4, 0.0), _Transition(16, 4))


@pytest.mark.parametrize("side", [8, 11])
@pytest.mark.parametrize("number", range(6))
def test_gradients_written_out_are_those_of_torch(number: int, side: int) -> None:
    layer = list(layers())[number]
    gradient = _Gradient(layer, torch.randn(3, 8, side, side).relu())  # with ties, as after a ReLU
    torch.testing.assert_close(gradient.y, gradient.output, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.found, gradient.expected, rtol=1e-4, atol=1e-6)


def test_a_layer_without_a_known_gradient_is_named() -> None:
    with pytest.raises(UnknownLayer, match="GELU"):
        pullback(nn.Sequential(nn.ReLU(), nn.GELU()), torch.ones(1, 2))


@given(size=st.integers(1, 40), cells=st.integers(1, 40))
def test_adaptive_pooling_is_a_product(size: int, cells: int) -> None:
    x = torch.rand(1, 1, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrix = averages(size, cells)
    torch.testing.assert_close(matrix @ x @ matrix.T, adaptive_avg_pool2d(x, cells))


@given(
    normal=st.lists(st.floats(-5, 1e3, width=32), min_size=2, max_size=60),
    values=st.lists(st.floats(-1e4, 1e4, width=32), min_size=1, max_size=20),
)
def test_bisection_gives_the_p_values(normal: list[float], values: list[float]) -> None:
    p_value = PValue()
    p_value.fit(torch.tensor(normal, dtype=torch.float32))
    x = torch.tensor([*values, *normal], dtype=torch.float32)
    torch.testing.assert_close(PValueForm(p_value)(x), p_value(x), rtol=1e-5, atol=1e-6)


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**16),
    size=st.integers(16, 90),
    tiles=st.integers(1, 9),
    clip=st.floats(0.2, 6),
    kind=st.sampled_from(["smooth", "noise", "flat"]),
    depth=st.sampled_from([255, 65535]),
)
def test_local_contrast_is_that_of_opencv(seed: int, size: int, tiles: int, clip: float, kind: str, depth: int) -> None:
    rng = np.random.default_rng(seed)
    film = rng.random((size, size)) if kind == "noise" else np.full((size, size), 0.4)
    if kind == "smooth":
        film = np.add.outer(np.linspace(0, 0.4, size), np.sin(np.linspace(0, 4, size)) / 3 + 0.3)
    mask = np.hypot(*np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]) < rng.uniform(0, 1.6)
    levels = np.rint(np.rint(film * depth) / depth * mask * 65535).astype(np.uint16)
    model = ContrastDensity(ContrastDensityConfig(clip_limit=clip, tiles=tiles), size)
    noise = torch.randn(4, 196, generator=torch.Generator().manual_seed(0))
    model.atypicality.fit(noise)
    form = exportable(model, {Atypicality: AtypicalityForm, ContrastDensity: ContrastDensityForm})
    assert isinstance(form, ContrastDensityForm)
    unit = torch.from_numpy(levels.astype(np.float32) / 65535)[None, None]
    found = form.local_contrast(unit, torch.from_numpy(mask)[None, None])[0, 0].numpy() * 65535
    expected = local_contrast(levels, mask, clip=clip, tiles=tiles)
    assert np.abs(found - expected).max() <= 1, "but for a level, where a value lies midway between two"


@pytest.mark.parametrize("part", ["localizer", "segmenter"])
def test_the_nets_of_the_recipe_are_graphs_too(part: str) -> None:
    net = load_localizer() if part == "localizer" else load_segmenter()
    record, content = net_graph(part, net)
    model, size, threshold = load_once(net.run, net.name, net.digest)
    assert (record.size, record.threshold, record.digest) == (size, threshold, net.digest)
    film, mask = example(3, size)
    given_films = {"film": film.numpy(), "mask": mask.numpy()}
    session = open_session(content, threads=1)
    names = [tensor.name for tensor in record.outputs]
    found = dict(zip(names, session.run(names, {t.name: given_films[t.name] for t in record.inputs}), strict=True))
    with torch.inference_mode():
        if isinstance(model, SSD):
            offsets, logits = model(film)
            boxes = [model.net.box_coder.decode_single(one, model.anchors).clamp(0, size) for one in offsets]
            np.testing.assert_allclose(found["boxes"], torch.stack(boxes), atol=1e-3)
            np.testing.assert_allclose(found["probabilities"], logits.softmax(dim=-1)[..., 1:], atol=1e-5)
        else:
            detections = model.detect(Batch(film, mask, torch.zeros(3)))
            expected = np.stack([detection.foreground for detection in detections])  # type: ignore[misc]
            np.testing.assert_allclose(found["foreground"][:, 0], expected, atol=1e-4)


def test_a_difference_is_relative_to_the_score_or_to_what_normal_films_spread() -> None:
    expected = {"scores": np.array([[1e-9, 100.0]]), "map": np.array([[[[0.0, 2.0]]]])}
    found = {"scores": np.array([[2e-9, 100.1]]), "map": np.array([[[[0.0, 2.002]]]])}
    near_zero, large, drawn = compare(["a", "b"], expected, found, np.array([1.0, 1.0]), {"a": 1.5e-9, "b": 100.2})
    assert near_zero.largest == pytest.approx(1e-9) and near_zero.flags == near_zero.at_threshold == 1
    assert near_zero.sound  # on the threshold: rounding decides
    (_, flagged, _) = compare(["a", "b"], expected, found, np.array([1.0, 1.0]), {"a": 1.5e-9, "b": 100.05})
    assert flagged.flags == 1 and flagged.at_threshold == 0 and not flagged.sound
    assert large.largest == pytest.approx(1e-3) and large.beyond == 1 and large.flags == 0
    assert drawn.largest == pytest.approx(1e-3) and drawn.at_most == AT_MOST["map"]
