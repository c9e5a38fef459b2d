"""Made-up anomalies, crops of training films, and the detector that learns from both."""

import ast
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from sklearn.metrics import average_precision_score
from torch import Tensor
from torch.nn.functional import softplus

from anomaly.data.anomalies.draws import Draws
from anomaly.data.anomalies.families import FAMILIES
from anomaly.data.anomalies.site import Site
from anomaly.data.anomalies.synthesis import SMOOTHING, VISIBLE, Damaged, instance_weight, synthesize
from anomaly.data.batch import Batch, as_batch, batches
from anomaly.data.crops import LEAST_SHARE, Crops
from anomaly.data.dataset import Films, FilmSet
from anomaly.data.loader import TrainingBatches
from anomaly.localization.unet import UNet, UNetConfig
from anomaly.models import ZOO, find_model
from anomaly.models.synthetic import Synthetic, SyntheticConfig
from anomaly.nn.efficientnet_lite import LiteEncoder
from anomaly.nn.filters import gaussian_blur
from anomaly.nn.losses import average_precision
from anomaly.pipeline.plan import Plan, prepare
from anomaly.training.config import TrainConfig
from anomaly.training.trainer import Trainer
from preprocessing import InputError
from preprocessing.cache.reader import Cache

CPU = torch.device("cpu")
SIDE = 64
ROOT = Path(__file__).parent.parent
NARROW = SyntheticConfig(weights="none", width=4, levels=4, components=8, axes=8)


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def limbs(count: int, side: int = SIDE, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Films of one slanting bright bone with grain in dark flesh, and their masks: (N, 1, side, side)."""
    draw = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    film = np.zeros((count, side, side), np.float32)
    mask = np.zeros((count, side, side), bool)
    for i in range(count):
        angle = draw.uniform(0, np.pi)
        across = x * np.cos(angle) + y * np.sin(angle) - draw.uniform(-0.1, 0.1)
        mask[i] = np.abs(across) < 0.35
        bone = 1 / (1 + np.exp((np.abs(across) - 0.12) * 60))
        film[i] = (0.25 + 0.4 * bone + draw.normal(0, 0.01, y.shape)) * mask[i]
    return torch.from_numpy(film)[:, None], torch.from_numpy(mask)[:, None]


def damaged(film: Tensor, mask: Tensor, families: Sequence[str], seed: int = 0) -> Damaged:
    return synthesize(film, mask, 512, families, chances=(1.0,), generator=seeded(seed))


@pytest.fixture
def some(cache: Cache) -> Films:
    """Twelve normal films."""
    return FilmSet(cache, "full-he", (cache.index["label"] == 0).nonzero()[0][:12], SIDE).read()


# --- made-up anomalies ---


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_family_changes_films_in_a_region_and_by_its_draws_alone(family: str) -> None:
    film, mask = limbs(8, side=128)

    def changed(seed: int) -> Tensor:
        site = Site(film, mask, film.roll(1, 0), mask.roll(1, 0), 1.0, Draws(len(film), CPU, seeded(seed)))
        return FAMILIES[family](site)

    first = changed(0)
    assert first.shape == film.shape and first.isfinite().all()
    assert torch.equal(first, changed(0)) and not torch.equal(first, changed(1))
    assert torch.equal(film, limbs(8, side=128)[0]), "the films that are given are not written to"
    share = torch.cat(
        [((changed(seed) - film).abs() > VISIBLE)[mask].float().mean()[None] for seed in range(10)]
    ).mean()
    assert 0.001 < share < 0.4, "somewhere, and not all over"


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    count=st.integers(1, 5),
    side=st.sampled_from([16, 40, 64]),
    whole=st.sampled_from([64, 256, 512]),
    families=st.lists(st.sampled_from(sorted(FAMILIES)), min_size=1, unique=True),
    covered=st.sampled_from(["all", "nothing", "a pixel", "a limb"]),
)
def test_damaged_films_are_films_and_damage_is_where_they_changed(
    seed: int, count: int, side: int, whole: int, families: list[str], covered: str
) -> None:
    film, mask = limbs(count, side, seed % 97)
    if covered != "a limb":
        mask = torch.zeros_like(mask) if covered != "all" else torch.ones_like(mask)
        mask[:, :, side // 2, side // 2] |= covered == "a pixel"
        film = torch.rand(film.shape, generator=seeded(seed)) * mask
    state = torch.get_rng_state()
    made = synthesize(film, mask, whole, families, generator=seeded(seed))
    assert torch.equal(state, torch.get_rng_state()), "all is drawn from the generator that is given"
    assert made.film.shape == film.shape and made.film.isfinite().all()
    assert (made.film >= 0).all() and (made.film <= 1).all() and (made.film[~mask] == 0).all()
    assert made.target.dtype == torch.bool and not (made.target & ~mask).any()
    assert ((made.weight >= 0.89) & (made.weight <= 9.01))[made.target].all() and (made.weight[~made.target] == 1).all()
    untouched = ~made.target.any(dim=(1, 2, 3))
    assert torch.equal(made.film[untouched], film[untouched]), "what can't be seen is not done"


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_the_target_is_the_visible_change(family: str) -> None:
    film, mask = limbs(12, side=128)
    made = damaged(film, mask, [family])
    change = gaussian_blur((made.film - film).abs(), SMOOTHING)
    assert torch.equal(made.target, (change >= VISIBLE) & mask)
    assert made.target.any(dim=(1, 2, 3)).float().mean() > 0.5, "most of it can be seen"


def test_anomalies_range_from_hardly_visible_to_obvious() -> None:
    film, mask = limbs(16, side=128)
    changes, areas = [], []
    for seed in range(12):
        made = damaged(film, mask, sorted(FAMILIES), seed)
        hit = made.target.any(dim=(1, 2, 3))
        changes += (made.film - film).abs().amax(dim=(1, 2, 3))[hit].tolist()
        areas += made.target.sum(dim=(1, 2, 3))[hit].tolist()
    assert np.quantile(changes, 0.2) < 0.15 and np.quantile(changes, 0.9) > 0.25
    assert np.quantile(areas, 0.1) < 300 and np.quantile(areas, 0.9) > 500


def test_a_fifth_of_the_films_stays_as_it_is() -> None:
    film, mask = limbs(400, side=32)
    made = synthesize(film, mask, 128, sorted(FAMILIES), generator=seeded(0))
    same = (made.film == film).flatten(1).all(dim=1).float().mean()
    assert 0.12 < same < 0.45  # and those whose damage can't be seen


def test_without_a_generator_torchs_own_decides() -> None:
    film, mask = limbs(6)

    def made(seed: int) -> Tensor:
        torch.manual_seed(seed)
        return synthesize(film, mask, SIDE, sorted(FAMILIES)).film

    assert torch.equal(made(1), made(1)) and not torch.equal(made(1), made(2))


def test_damage_is_the_same_under_autocast() -> None:
    film, mask = limbs(6)
    with torch.autocast("cpu", torch.bfloat16):
        low = damaged(film, mask, sorted(FAMILIES)).film
    assert torch.equal(low, damaged(film, mask, sorted(FAMILIES)).film)


def test_small_anomalies_weigh_more_a_pixel_and_less_in_all() -> None:
    area = torch.tensor([1.0, 25.0, 100.0, 400.0, 10_000.0])
    weight = instance_weight(area, 1.0)
    assert (weight.diff() <= 0).all() and ((weight * area).diff() > 0).all()
    assert torch.equal(instance_weight(area / 4, 0.5)[1:], weight[1:]), "the same anomaly at half the size"


def test_a_patch_may_come_from_another_film_and_meets_it_at_the_border() -> None:
    """A flat patch of another level vanishes where its levels are shifted, and shows where not."""
    film = torch.full((40, 1, 64, 64), 0.5)
    film[20:] = 0.7
    mask = torch.ones_like(film).bool()
    site = Site(film, mask, film.flip(0), mask, 1.0, Draws(40, CPU, seeded(0)))
    change = (FAMILIES["patch"](site) - film).abs().amax(dim=(1, 2, 3))
    assert (change < 1e-4).float().mean() > 0.5 and (change > 0.05).float().mean() > 0.05


def test_nothing_here_knows_of_the_built_in_lesions() -> None:
    """What a detector learns from must not be drawn by the code that draws what it is measured on."""
    for path in [*(ROOT / "anomaly/data").rglob("*.py"), ROOT / "anomaly/models/synthetic.py"]:
        tree = ast.parse(path.read_text())
        names = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom):
                names += [f"{node.module}.{alias.name}" for alias in node.names]
        assert not [name for name in names if "phantom" in name], path


# --- crops ---


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    side=st.integers(1, 24),
    height=st.integers(24, 40),
    per_film=st.integers(1, 4),
    covered=st.sampled_from([0.0, 0.02, 0.3, 1.0]),
)
def test_crops_are_parts_of_their_film_with_foreground(
    seed: int, side: int, height: int, per_film: int, covered: float
) -> None:
    shape = (3, 1, height, 32)
    mask = torch.rand(shape, generator=seeded(seed)) < covered
    film = torch.arange(3 * height * 32, dtype=torch.float32).view(shape) + 1  # each pixel tells where it is from
    batch = Batch(film, mask, torch.arange(3))
    made = Crops(side, per_film).cut(batch, seed)
    assert made.film.shape == made.mask.shape == (3 * per_film, 1, side, side)
    assert made.label.tolist() == [i for i in range(3) for _ in range(per_film)]
    for crop, inside, label in zip(made.film, made.mask, made.label, strict=True):
        first = int(crop[0, 0, 0]) - 1
        number, top, left = first // (height * 32), first // 32 % height, first % 32
        assert number == label
        assert torch.equal(crop, film[number, :, top : top + side, left : left + side])
        assert torch.equal(inside, mask[number, :, top : top + side, left : left + side])
        most = torch.nn.functional.avg_pool2d(mask[number].float(), side, 1).max()
        assert inside.float().mean() >= min(int(LEAST_SHARE * side**2) / side**2, float(most)) - 1e-6


def test_crops_are_drawn_from_all_places_alike() -> None:
    film = torch.zeros(1, 1, 12, 12)
    film[0, 0] = torch.arange(144.0).view(12, 12)
    batch = Batch(film, torch.ones_like(film).bool(), torch.zeros(1))
    first = Crops(8, 2000).cut(batch, 0).film[:, 0, 0, 0]
    places, counts = first.unique(return_counts=True)
    assert len(places) == 25 and counts.min() > 40 and counts.max() < 130  # 80 +- 9 expected


def test_batches_of_crops_have_the_batch_size_and_each_film_as_often_as_asked() -> None:
    film = np.ones((12, 32, 32), np.uint8) * np.arange(12, dtype=np.uint8)[:, None, None]
    films = Films(film, np.ones(film.shape, bool), np.zeros(12, np.int8))

    def epoch(number: int, workers: int = 0) -> list[Batch]:
        made = TrainingBatches(
            films, batch_size=8, augmentation="none", seed=0, workers=workers, device=CPU, crops=Crops(16, 2)
        )
        return list(made.epoch(number))

    first = epoch(1)
    assert [len(batch.film) for batch in first] == [8, 8, 8]
    seen = torch.cat([(batch.film[:, 0, 0, 0] * 255).round() for batch in first])
    assert sorted(seen.tolist()) == sorted([*range(12), *range(12)])
    for ours, theirs in zip(first, epoch(1, workers=2), strict=True):
        assert torch.equal(ours.film, theirs.film) and ours.film.shape[-1] == 16


@pytest.mark.parametrize("name", sorted(name for name in ZOO if find_model(name).takes_crops))
def test_models_that_take_crops_train_on_them_and_score_whole_films(name: str, some: Films) -> None:
    kind = find_model(name)
    model = kind(kind.Config.model_validate({"width": 4}), SIDE)
    config = TrainConfig(batch_size=8, augmentation="advanced", crop=32, crops_per_film=2)
    loop = Trainer(model, config, some, some, seed=0, device=CPU, precision="float32", workers=0)
    sides = []
    step = model.training_steps

    def watched(batch: Batch) -> object:
        sides.append(batch.film.shape)
        return step(batch)

    model.training_steps = watched  # type: ignore[method-assign, assignment]
    assert all(np.isfinite(value) for value in loop.train_epoch(1).values())
    assert set(sides) == {(8, 1, 32, 32)} and len(sides) == 3


@pytest.mark.parametrize(
    ("model", "wanted", "message"),
    [
        ("vae", ["crop=32"], "vae learns from whole films: leave out crop .*cae, synthetic"),
        ("synthetic", ["crop=128"], "crops of 128 px don't fit into films of 64 px: take --set crop=64 or less"),
        ("synthetic", ["crop=20"], "synthetic needs a film side that is a multiple of 32, and crop=20 is none"),
        ("synthetic", ["crop=32", "batch_size=6", "crops_per_film=4"], "a batch of 6 crops can't hold 4 of each film"),
        ("cae", ["crops_per_film=4"], "crops_per_film=4 needs the side of the crops"),
    ],
)
def test_crops_that_cannot_be_are_refused(cache: Cache, model: str, wanted: list[str], message: str) -> None:
    plan = Plan(model=model, cache=cache.path, settings=tuple(wanted), device="cpu")
    with pytest.raises(InputError, match=message):
        prepare(plan)


# --- the detector ---


def fitted(model: Synthetic, some: Films) -> Synthetic:
    model.eval()
    with torch.inference_mode():
        model.fit_reference(batches(some, CPU))
    return model


def test_validation_takes_the_held_out_family_and_the_same_anomalies_every_time(
    some: Films, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[set[str]] = []

    def watched(*given: object, **more: object) -> Damaged:
        taken.append(set(given[3]))  # type: ignore[call-overload]
        return synthesize(*given, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("anomaly.models.synthetic.synthesize", watched)
    batch = as_batch(some, CPU)
    for held_out in ("structure", "shape", "none"):
        model = Synthetic(NARROW.model_copy(update={"held_out": held_out}), SIDE).eval()
        taken.clear()
        list(model.training_steps(batch))
        torch.manual_seed(1)
        first = model.validation_loss(batch)
        torch.manual_seed(2)
        assert torch.equal(first, model.validation_loss(batch)) and first.shape == (len(some),)
        assert taken[0] == set(FAMILIES) - {held_out}
        assert taken[1] == ({held_out} if held_out != "none" else set(FAMILIES))


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**31), share=st.sampled_from([0.0, 0.02, 0.5, 1.0]))
def test_average_precision_is_scikit_learns(seed: int, share: float) -> None:
    generator = seeded(seed)
    value = torch.randperm(2 * 64, generator=generator).view(2, 1, 8, 8).float()
    target, mask = (torch.rand(value.shape, generator=generator) < p for p in (share, 0.7))
    for i, ours in enumerate(average_precision(value, target, mask).tolist()):
        hit = target[i][mask[i]].numpy()
        assert ours == pytest.approx(
            average_precision_score(hit, value[i][mask[i]].numpy()) if hit.any() else 0.0, abs=1e-6
        )


def test_the_map_is_what_logits_lie_above_those_of_normal_films(some: Films) -> None:
    torch.manual_seed(0)
    model = fitted(Synthetic(NARROW, SIDE), some)
    batch = as_batch(some, CPU)
    with torch.inference_mode():
        logits = model(batch.film)
        drawn = model.predict(batch, maps=True).map
        assert drawn is not None
        least, most = model.normals.expected.min(), model.normals.expected.max()
        assert (drawn <= softplus(logits - least) + 1e-5).all() and (drawn[~batch.mask] == 0).all()
        assert (drawn >= softplus(logits - most) - 1e-5)[batch.mask].all()
        model.normals.expected += 1
        lower = model.predict(batch, maps=True).map
    assert lower is not None and (lower < drawn)[batch.mask].all()


def test_each_kind_is_calibrated_to_the_mean_logit_of_its_normal_cells() -> None:
    """Of two kinds of cells that are told apart by their features, and have logits of another level each."""
    model = Synthetic(SyntheticConfig(weights="none", width=4, levels=4, components=2, axes=2), SIDE)
    features = torch.cat([torch.randn(400, 12, generator=seeded(0)), 20 + torch.randn(600, 12, generator=seeded(1))])
    logits = torch.cat([torch.full((400,), -3.0), torch.full((600,), 5.0)])
    model._fit_mixture([features], logits)
    kinds = model.normals.kinds(model.normals.whitening(features))
    torch.testing.assert_close(model.normals.expected[kinds], logits)


def test_the_way_down_begins_as_the_published_network(tmp_path: Path) -> None:
    encoder = LiteEncoder("lite0")
    published: dict[str, Tensor] = {}
    names = encoder.network._published_names()
    for layer, (weight, name) in zip(encoder.network.convolutions(), names, strict=True):
        published[f"{weight}.weight"] = torch.randn(layer.weight.shape)
        published |= {
            f"{name}.{key}": torch.rand(layer.out_channels) for key in ("weight", "bias", "running_mean", "running_var")
        }
    save_file(published, tmp_path / "lite0.safetensors")
    model = Synthetic(SyntheticConfig(), SIDE)
    model.load_pretrained(tmp_path / "lite0.safetensors")
    assert torch.equal(model.down.network.stem[0].weight, published["_conv_stem.weight"])  # type: ignore[union-attr, index]
    assert {id(p) for p in model.down.parameters()} <= {
        id(p) for m in model.players()["segmenter"] for p in m.parameters()
    }
    assert model(torch.rand(2, 1, SIDE, SIDE)).shape == (2, 1, SIDE, SIDE)
    assert Synthetic.check_size(SyntheticConfig(), 48) == "needs a film side that is a multiple of 32"
    assert Synthetic.weights_file(SyntheticConfig(weights="none")) is None


@pytest.mark.parametrize("width", [4, 16])
def test_the_preparing_net_keeps_its_numbers(width: int) -> None:
    """The shared way through a U-Net is that of its layers one by one."""
    torch.manual_seed(0)
    net = UNet(UNetConfig(width=width), 32).eval()
    film = torch.rand(2, 1, 32, 32)
    pool, grow = torch.nn.MaxPool2d(2), torch.nn.Upsample(scale_factor=2)
    with torch.inference_mode():
        a = net.down[0](film)
        b = net.down[1](pool(a))
        c = net.down[2](pool(b))
        x = net.down[3](pool(c))
        for level, skip in zip(net.up, (c, b, a), strict=True):
            x = level(torch.cat([grow(x), skip], dim=1))
        assert torch.equal(net(film), net.last(x))


def test_damage_can_be_learned_by_heart(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same damage in every step is found, large and small."""
    film, mask = limbs(8, seed=1)
    made = synthesize(film, mask, 256, sorted(FAMILIES), chances=(1.0,), generator=seeded(0))
    monkeypatch.setattr("anomaly.models.synthetic.synthesize", lambda *_, **__: made)
    torch.manual_seed(0)
    model = Synthetic(SyntheticConfig(weights="none", width=8, levels=4), 256)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    batch = Batch(film, mask, torch.zeros(8))
    losses = []
    for _ in range(60):
        (step,) = model.training_steps(batch)
        optimizer.zero_grad()
        step.loss().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(float(step.loss().detach()))
    assert losses[-1] < 0.6 * losses[0]
    with torch.inference_mode():
        logits = model(made.film)  # with the batch's own statistics, as in training
    hit, rest = logits[made.target], logits[mask & ~made.target]
    assert (hit[::5, None] > rest[None, ::7]).float().mean() > 0.85  # ROC-AUC by pixel
