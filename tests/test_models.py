"""One contract suite over the registry: a new model is one line in ZOO, and everything here is asked of it."""

import math

import pytest
import torch
from torch import Tensor

from anomaly.data import Films, as_batch, load_films
from anomaly.detector import Batch, Detector
from anomaly.fit import resolve, settings_of
from anomaly.models import ZOO, find_model
from anomaly.train import TrainConfig, Trainer
from preprocessing import InputError
from preprocessing.schema import Cache

CPU = torch.device("cpu")
SIZE = 64
ERRORS = {"mse", "mse_topk", "l1", "l1_topk"}
"""Scores that are errors of a reconstruction, and nothing else."""


@pytest.fixture(params=sorted(ZOO))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def model(name: str) -> Detector:
    torch.manual_seed(0)
    config, _ = resolve(name, "fast", ["width=4"])
    return find_model(name)(config, SIZE)


@pytest.fixture
def some(cache: Cache) -> Films:
    rows = (cache.index["label"] == 0).nonzero()[0][:12]
    return load_films(cache, "full-he", rows, SIZE)


@pytest.fixture
def batch(some: Films) -> Batch:
    return as_batch(some, CPU)


def trainer(model: Detector, some: Films, **settings: object) -> Trainer:
    config = TrainConfig.model_validate({"batch_size": 6, "augmentation": "none", "patience": 0} | settings)
    return Trainer(model, config, some, some, seed=0, device=CPU, precision="float32", workers=0)


def test_every_parameter_has_one_owner(model: Detector) -> None:
    owned = [id(p) for modules in model.players().values() for module in modules for p in module.parameters()]
    assert len(owned) == len(set(owned))
    assert set(owned) == {id(p) for p in model.parameters()}


def test_a_step_moves_its_player_only(model: Detector, some: Films) -> None:
    loop = trainer(model, some)
    owner = {id(p): player for player, parameters in loop.parameters.items() for p in parameters}
    moved: set[str] = set()

    def values() -> dict[str, Tensor]:
        return {n: p.detach().clone() for n, p in model.named_parameters()}

    model.train()
    before = values()
    for step in loop._steps(as_batch(some, CPU)):
        after = values()
        changed = {owner[id(p)] for n, p in model.named_parameters() if not torch.equal(before[n], after[n])}
        assert changed == {step.player}
        moved |= changed
        before = after
    assert moved == set(loop.parameters)


@torch.inference_mode()
def test_scores_are_finite_repeatable_and_named(model: Detector, batch: Batch) -> None:
    model.eval()
    first, second = model.scores(batch), model.scores(batch)
    assert tuple(first) == model.score_names
    for key, values in first.items():
        assert values.shape == (len(batch.film),) and values.isfinite().all()
        assert torch.equal(values, second[key])


@torch.inference_mode()
def test_a_score_does_not_depend_on_the_company(model: Detector, some: Films, batch: Batch) -> None:
    model.eval()
    whole = model.scores(batch)
    turned = model.scores(Batch(batch.film.flip(0), batch.mask.flip(0), batch.label.flip(0)))
    for i in range(0, len(some), 5):
        alone = model.scores(as_batch(Films(some.film[i : i + 1], some.mask[i : i + 1], some.label[i : i + 1]), CPU))
        for key, values in whole.items():
            torch.testing.assert_close(alone[key][0], values[i], rtol=1e-4, atol=1e-7)
            torch.testing.assert_close(turned[key][len(some) - 1 - i], values[i], rtol=1e-4, atol=1e-7)


@torch.inference_mode()
def test_scores_and_maps_look_under_the_mask_only(model: Detector, batch: Batch) -> None:
    """What differs from the reconstruction outside the mask costs nothing: the mask is real at any level."""
    model.eval()
    drawn = model.anomaly_map(batch)
    if drawn is None:
        pytest.skip("draws no map")
    assert drawn.shape == batch.film.shape and (drawn >= 0).all()
    assert (drawn[~batch.mask] == 0).all() and (drawn[batch.mask] > 0).any()
    nothing = Batch(batch.film, torch.zeros_like(batch.mask), batch.label)
    assert all((values == 0).all() for key, values in model.scores(nothing).items() if key in ERRORS)


def test_a_batch_can_be_overfitted_and_a_planted_blob_raises_the_score(model: Detector, some: Films) -> None:
    if model.reconstruct(as_batch(some, CPU)) is None:
        pytest.skip("reconstructs nothing")
    loop = trainer(model, some, learning_rate=5e-3, batch_size=12)

    def error() -> float:
        model.eval()
        with torch.inference_mode():
            return float(model.scores(as_batch(some, CPU))["mse"].mean())

    first = error()
    for number in range(1, 161):
        loop._epoch(number)
    assert error() < 0.2 * first
    planted = some.film.copy()
    for film, mask in zip(planted, some.mask, strict=True):
        rows, columns = mask.nonzero()
        y, x = int(rows[len(rows) // 2]), int(columns[len(rows) // 2])
        film[max(0, y - 3) : y + 3, max(0, x - 3) : x + 3] = 255 - film[y, x]
    with torch.inference_mode():
        plain = model.scores(as_batch(some, CPU))["mse"]
        blob = model.scores(as_batch(Films(planted, some.mask, some.label), CPU))["mse"]
    assert (blob > plain).float().mean() > 0.9


def test_low_precision_stays_finite(model: Detector, some: Films) -> None:
    config = TrainConfig(batch_size=6, augmentation="none")
    loop = Trainer(model, config, some, some, seed=0, device=CPU, precision="bfloat16", workers=0)
    assert all(math.isfinite(value) for value in loop._epoch(1).values())


def test_sizes_are_checked(name: str) -> None:
    kind = find_model(name)
    config, _ = resolve(name, "standard", [])
    taken = [size for size in (16, 32, 64, 100, 128, 256, 512) if kind.check_size(config, size) is None]
    assert taken, "a model that takes no size at all"
    kind(config, taken[0])


def test_presets_are_valid_and_settings_have_one_home(name: str) -> None:
    kind = find_model(name)
    assert {"standard", "paper", "fast"} <= set(kind.presets)
    for preset in kind.presets:
        resolve(name, preset, [])
    assert not set(kind.Config.model_fields) & set(TrainConfig.model_fields)
    assert all(field.description for field in (kind.Config.model_fields | TrainConfig.model_fields).values())
    assert settings_of(kind)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("widht=3", "no setting 'widht' of"),
        ("epochs=soon", "--set epochs=soon: Input should be a valid integer"),
        ("epochs", "is not key=value"),
        ("epochs=0", "greater than or equal to 1"),
        ("learning_rate=inf", "finite number"),
    ],
)
def test_wrong_settings_are_refused(name: str, setting: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        resolve(name, "standard", [setting])
    with pytest.raises(InputError, match="there are: fast, paper, standard"):
        resolve(name, "best", [])


@pytest.mark.parametrize(
    ("name", "settings", "size", "count"),
    [
        ("cae", [], 512, 6_374_560),
        ("cae", ["batch_norm=false"], 512, 6_372_577),
        ("cae", [], 64, 6_374_560),
        ("vae", [], 512, 11_891_569),
    ],
)
def test_parameter_counts_are_the_papers(name: str, settings: list[str], size: int, count: int) -> None:
    config, _ = resolve(name, "standard", settings)
    assert sum(p.numel() for p in find_model(name)(config, size).parameters()) == count


def test_the_paper_preset_is_the_papers() -> None:
    """PAPER: 512 px, batch 32, 1,000 epochs, Adam 1e-4 with .9/.999, the last epoch kept, output tanh(relu(x))."""
    model, training = resolve("cae", "paper", [])
    assert training.model_dump() | model.model_dump() == {
        "size": 512,
        "epochs": 1000,
        "batch_size": 32,
        "learning_rate": 1e-4,
        "beta1": 0.9,
        "beta2": 0.999,
        "weight_decay": 0.0,
        "clip": 0.0,
        "augmentation": "advanced",
        "patience": 0,
        "keep": "last",
        "width": 16,
        "code_channels": 0,
        "batch_norm": True,
        "output": "relu-tanh",
        "weigh": "pixel",
        "topk": 200,
    }
