"""Layers that are computed otherwise than by torch's own kernels give the same numbers."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as torchs

from anomaly.models import find_model
from anomaly.nn import attention
from anomaly.nn.attention import SelfAttention, attend
from anomaly.nn.blocks import Convolution, FromPoint, ToPoint, TransposedConvolution
from anomaly.nn.cpu_kernels import BLOCK_PRODUCTS
from anomaly.nn.folding import fold_batch_norms
from anomaly.nn.spectral import spectral_norm
from anomaly.pipeline.plan import resolve

LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "convolution": (lambda: nn.Conv2d(8, 12, 4, 2, 1), (3, 8, 16, 16)),
    "of one channel": (lambda: nn.Conv2d(1, 12, 4, 2, 1), (3, 1, 16, 16)),
    "to one channel": (lambda: nn.Conv2d(8, 1, 1), (3, 8, 16, 16)),
    "transposed": (lambda: nn.ConvTranspose2d(12, 8, 4, 2, 1), (3, 12, 8, 8)),
    "transposed to one channel": (lambda: nn.ConvTranspose2d(12, 1, 4, 2, 1), (3, 12, 8, 8)),
    "to a point": (lambda: ToPoint(8, 12, 4), (3, 8, 4, 4)),
    "from a point": (lambda: FromPoint(12, 8, 4), (3, 12, 1, 1)),
    "linear": (lambda: nn.Linear(20, 7), (5, 20)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("channels_last", [True, False])
def test_spectral_norm_is_torchs_own(name: str, channels_last: bool) -> None:
    """From the same draws on, through steps of two passes each: outputs, weights, and what is kept of them."""
    make, shape = LAYERS[name]
    pair = []
    for norm in (torchs, spectral_norm):
        torch.manual_seed(0)
        layer = norm(make())
        pair.append(layer.to(memory_format=torch.channels_last) if channels_last else layer)  # type: ignore[call-overload]
    theirs, ours = pair
    assert_alike(ours, theirs)
    optimizers = [torch.optim.SGD(layer.parameters(), 0.1) for layer in pair]
    draw = torch.Generator().manual_seed(1)
    for _ in range(4):
        first, second = (torch.randn(shape, generator=draw) for _ in range(2))
        for layer, optimizer in zip(pair, optimizers, strict=True):
            optimizer.zero_grad()
            (layer(first).square().mean() + layer(second).sin().mean()).backward()
            optimizer.step()
        assert_alike(ours, theirs)
    assert torch.allclose(ours.eval()(first), theirs.eval()(first), atol=1e-5)
    kept = {key: value.clone() for key, value in ours.state_dict().items()}
    ours(second)
    assert all(torch.equal(value, kept[key]) for key, value in ours.state_dict().items())  # scoring iterates no more


def assert_alike(ours: nn.Module, theirs: nn.Module) -> None:
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys()
    for key, value in a.items():
        assert torch.allclose(value, b[key], atol=1e-4, rtol=1e-3), key


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("make_ours", "make_theirs", "shape"),
    [
        (lambda: ToPoint(12, 20, 4), lambda: nn.Conv2d(12, 20, 4), (5, 12, 4, 4)),
        (lambda: FromPoint(20, 12, 4), lambda: nn.ConvTranspose2d(20, 12, 4), (5, 20, 1, 1)),
        (
            lambda: FromPoint(20, 12, 4, bias=False),
            lambda: nn.ConvTranspose2d(20, 12, 4, bias=False),
            (5, 20, 1, 1),
        ),
    ],
)
def test_points_and_whole_maps_are_convolutions(
    make_ours: Callable[[], nn.Module],
    make_theirs: Callable[[], nn.Module],
    shape: tuple[int, ...],
    channels_last: bool,
) -> None:
    torch.manual_seed(0)
    ours, theirs = make_ours(), make_theirs()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    if channels_last:
        ours, theirs = (m.to(memory_format=torch.channels_last) for m in (ours, theirs))  # type: ignore[call-overload]
    a, b = ours(x), theirs(x)
    assert a.shape == b.shape and torch.allclose(a, b, atol=1e-5)
    a.square().sum().backward()
    b.square().sum().backward()
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize(
    ("ours", "theirs", "settings", "shape"),
    [
        (Convolution, nn.Conv2d, (4, 2, 1), (3, 12, 8, 8)),
        (Convolution, nn.Conv2d, (4, 2, 1), (1, 12, 6, 8)),
        (Convolution, nn.Conv2d, (4, 2, 1), (2, 12, 7, 7)),  # not tiled
        (Convolution, nn.Conv2d, (6, 2, 2), (2, 12, 6, 6)),
        (Convolution, nn.Conv2d, (3, 1, 1), (3, 12, 4, 4)),
        (Convolution, nn.Conv2d, (4, 2, 1), (3, 12, 16, 16)),  # by oneDNN
        (TransposedConvolution, nn.ConvTranspose2d, (4, 2, 1), (3, 12, 4, 4)),
        (TransposedConvolution, nn.ConvTranspose2d, (4, 2, 1), (2, 12, 2, 1)),
        (TransposedConvolution, nn.ConvTranspose2d, (4, 2, 1, 1), (2, 12, 2, 1)),  # not tiled: an output padding
        (Convolution, nn.Conv2d, (3, 1, 1, 2), (3, 12, 4, 4)),  # dilated
    ],
)
def test_products_on_small_maps_are_convolutions(
    ours: type[nn.Module],
    theirs: type[nn.Module],
    settings: tuple[int, ...],
    shape: tuple[int, ...],
    low: bool,
    bias: bool,
) -> None:
    torch.manual_seed(0)
    pair = [kind(12, 20, *settings, bias=bias) for kind in (ours, theirs)]
    pair[1].load_state_dict(pair[0].state_dict())
    draw = torch.Generator().manual_seed(0)
    x, results = torch.randn(shape, generator=draw), []
    for layer in pair:
        layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        film = x.clone().requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            out = layer(film).mul_(2)  # in place, as a ReLU would be
        out.float().sin().sum().backward()
        assert (out.dtype == torch.bfloat16) == low
        results.append([out, film.grad, *(p.grad for p in layer.parameters())])
    # Sums of up to 768 products in another order: measured .4e-6 and .004 with several instruction sets.
    for one, other in zip(*results, strict=True):
        assert (one - other).float().norm() <= (0.02 if low else 1e-5) * other.float().norm()


def test_layers_told_so_train_by_torchs_own_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    ours, theirs = (kind(12, 20, 4, 2, padding=1) for kind in (Convolution, nn.Conv2d))
    theirs.load_state_dict(ours.state_dict())
    ours.products = False
    x = torch.randn(3, 12, 8, 8)
    assert torch.equal(ours(x), theirs(x))
    taken: list[str] = []
    monkeypatch.setattr(attention, "blockwise_attention", lambda *parts: taken.append("blocks"))
    layer, film = SelfAttention(8, pool=False), torch.randn(2, 8, 4, 4)
    layer(film)
    layer.by_blocks = False
    layer(film)
    assert taken == ["blocks"]


@pytest.mark.parametrize(
    ("queries", "keys", "loud"), [(9, 5, 1.0), (1, 1, 1.0), (70, 40, 30.0), (BLOCK_PRODUCTS // 256 + 3, 256, 2.0)]
)
def test_attention_in_bfloat16_is_attention(queries: int, keys: int, loud: float) -> None:
    """Within bfloat16's own error of float64's."""
    draw = torch.Generator().manual_seed(0)
    shapes = [(2, queries, 4), (2, keys, 4), (2, keys, 32), (2, queries, 32)]
    *inputs, gradient = (torch.randn(shape, generator=draw).to(torch.bfloat16) for shape in shapes)
    inputs[0] *= loud
    results = []
    for dtype in (torch.float64, torch.bfloat16):
        parts = [part.to(dtype).requires_grad_() for part in inputs]
        out = attend(*parts)
        out.backward(gradient.to(dtype))
        results.append([out, *(part.grad for part in parts)])
    for exact, ours in zip(*results, strict=True):
        assert ours.dtype == torch.bfloat16 and ours.isfinite().all()
        assert (ours.double() - exact).norm() <= 0.03 * exact.norm() + 0.03  # a single key has no gradient at all


@pytest.mark.parametrize("name", ["dcgan", "alphagan"])
def test_judging_batches_in_one_pass_is_judging_each_beside_its_own(name: str) -> None:
    torch.manual_seed(0)
    kind = find_model(name)
    model = kind(resolve(name, "fast", ["width=4"])[0], 32)
    judge = model.discriminator
    assert isinstance(judge, nn.Module)
    judge.eval()  # no power iteration between the two ways
    for module in judge.modules():
        if type(module).__name__ == "MinibatchDiscrimination":
            module.train()  # which compares with the batch, not with what is kept
    first, second = torch.rand(3, 1, 32, 32), torch.rand(5, 1, 32, 32)
    together: list[Tensor] = judge.judged(first, second)  # type: ignore[operator]
    for batch, logits in zip((first, second), together, strict=True):
        assert torch.allclose(logits, judge(batch), atol=1e-5)


def test_folded_normalizations_change_no_output() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Sequential(nn.Conv2d(2, 5, 3, bias=False), nn.BatchNorm2d(5), nn.ReLU()), nn.Conv2d(5, 4, 1))
    net.append(nn.BatchNorm2d(4, affine=False)).append(nn.BatchNorm2d(4))  # the last one follows no convolution
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None and module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.1, 2)
    net.eval()
    x = torch.randn(3, 2, 9, 9)
    expected = net(x)
    fold_batch_norms(net)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in net.modules()) == 1
    torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-6)
