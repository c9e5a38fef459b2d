"""The supervised baselines: what is theirs alone. What every model keeps is asked in test_models.py."""

import hashlib
import io
import math
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anomaly.data.batch import Batch, as_batch
from anomaly.data.dataset import Films, FilmSet
from anomaly.evaluation.calibration import read_calibration
from anomaly.models import pretrained
from anomaly.models.classifier import BACKBONES, CAM_CELLS, Classifier, ClassifierConfig
from anomaly.nn.losses import class_weighted_cross_entropy, log_mean
from anomaly.pipeline.ensemble import combine
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.open_run import open_run
from anomaly.pipeline.options import Plan
from anomaly.pipeline.plan import prepare, resolve
from anomaly.runs import Run
from anomaly.training.config import State, TrainConfig
from anomaly.training.optimizers import SGD, Adam
from anomaly.training.trainer import Trainer, after_plateaus
from preprocessing import InputError
from preprocessing.build import BuildOptions, build
from preprocessing.cache.reader import Cache
from preprocessing.phantom import write_phantoms
from preprocessing.recipe import Recipe
from preprocessing.sources import open_source

CPU = torch.device("cpu")
CATS = range(281, 286)
"""Classes of ImageNet."""
TINY = ("width=2", "epochs=2", "augmentation=none")


def built(size: int = 64, **settings: object) -> Classifier:
    torch.manual_seed(0)
    return Classifier(ClassifierConfig.model_validate({"backbone": "cnn", "width": 4} | settings), size)


def batch(count: int = 4, size: int = 64, **more: Tensor) -> Batch:
    film = torch.rand(count, 1, size, size, generator=torch.Generator().manual_seed(0))
    return Batch(film, torch.ones_like(film, dtype=torch.bool), torch.arange(count) % 2, **more)


def plan(cache: Cache, *settings: str, preset: str = "cnn", **more: object) -> Plan:
    chosen = (*TINY, *settings)
    return Plan("classifier", cache.path, preset=preset, settings=chosen, device="cpu", **more)  # type: ignore[arg-type]


def trained(cache: Cache, out: Path, *settings: str, preset: str = "cnn") -> Run:
    prepared = prepare(plan(cache, *settings, preset=preset))
    return fit(prepared, continue_or_create(prepared, out, resume=False), workers=0, on_epoch=lambda report: None)


# --- the sources' numbers ---


@pytest.mark.parametrize(
    ("backbone", "outputs", "count"),
    [
        ("densenet169", 1, 12_486_145),
        ("efficientnet_b0", 2, 4_010_110),  # "4.01 Million"
        ("lite0", 1000, 4_652_008),  # of the published file
        ("vgg16", 2, 134_268_738),  # "134.27 Million"
    ],
)
def test_parameter_counts_are_the_sources(backbone: str, outputs: int, count: int) -> None:
    with torch.device("meta"):
        model = built(224, backbone=backbone, outputs=min(2, outputs))
    last = model.head[-1] if isinstance(model.head[-1], nn.Linear) else model.head[-1][-1]
    assert isinstance(last, nn.Linear)
    more = (outputs - last.out_features) * (last.in_features + 1)
    assert sum(p.numel() for p in model.parameters()) + more == count


def test_the_weighted_loss_is_the_sources_formula() -> None:
    """A = 2 abnormal and N = 6 normal films: w1 = 6/8, w0 = 2/8. A study of probabilities .2 and .6 has p = .4."""
    model = built()
    model.set_class_counts(normal=6, abnormal=2)
    assert model.class_weights.tolist() == [0.25, 0.75]
    logit = torch.tensor([0.2, 0.6, 0.9]).logit()
    study = torch.tensor([0, 0, 1])
    abnormal, normal = log_mean(logit.sigmoid().log(), study, 2), log_mean((1 - logit.sigmoid()).log(), study, 2)
    for label, expected in (
        ([1, 0], [-0.75 * math.log(0.4), -0.25 * math.log(1 - 0.9)]),  # .6872, .5756
        ([0, 1], [-0.25 * math.log(1 - 0.4), -0.75 * math.log(0.9)]),  # .1277, .0790
    ):
        loss = class_weighted_cross_entropy(abnormal, normal, torch.tensor(label), model.class_weights)
        torch.testing.assert_close(loss, torch.tensor(expected))


def test_a_study_is_one_sample_whatever_its_films() -> None:
    model = built().eval()
    films = batch(5)
    study = torch.tensor([1, 1, 0, 0, 0])
    films = Batch(films.film, films.mask, torch.tensor([1, 1, 0, 0, 0]), study=study, studies=2)
    model.set_class_counts(normal=6, abnormal=2)
    with torch.inference_mode():
        p = model.predict(films).scores["probability"]
        loss, right = model.validate(films).values()
    assert loss.shape == (2,) and films.study is not None
    expected = [-0.25 * math.log(1 - float(p[2:].mean())), -0.75 * math.log(float(p[:2].mean()))]
    torch.testing.assert_close(loss, torch.tensor(expected), rtol=1e-4, atol=1e-5)
    assert right.tolist() == [float(p[2:].mean() < 0.5), float(p[:2].mean() > 0.5)]
    (step,) = model.train(False).training_steps(films)
    torch.testing.assert_close(step.loss(), loss.mean())


def test_without_balance_all_samples_weigh_alike_and_two_outputs_are_a_softmax() -> None:
    model = built(outputs=2, balance=False).eval()
    model.set_class_counts(normal=6, abnormal=2)
    assert model.class_weights.tolist() == [1.0, 1.0]
    films = batch()
    with torch.inference_mode():
        made = model.head(model.features((films.film - model.shift) / model.spread))
        expected = torch.nn.functional.cross_entropy(made, films.label, reduction="none")
        torch.testing.assert_close(model.validation_loss(films), expected)
        torch.testing.assert_close(model.predict(films).scores["probability"].float(), made.softmax(dim=1)[:, 1])


@pytest.mark.parametrize(("normalize", "low", "high"), [("symmetric", -1.0, 1.0), ("imagenet", -2.117904, 2.64)])
def test_a_grey_film_feeds_three_channels(normalize: str, low: float, high: float) -> None:
    model = built(normalize=normalize)
    seen: list[Tensor] = []
    model.features[0].register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    model(torch.zeros(1, 1, 64, 64)), model(torch.ones(1, 1, 64, 64))
    assert seen[0].shape == (1, 3, 64, 64)
    assert float(seen[0].min()) == pytest.approx(low, abs=1e-5)
    assert float(seen[1].max()) == pytest.approx(high, abs=1e-5)


def test_the_presets_have_the_sources_numbers() -> None:
    def told(preset: str, *names: str) -> list[object]:
        model, training = resolve("classifier", preset, [])
        values = model.model_dump() | training.model_dump()
        return [values[name] for name in names]

    rates = ("optimizer", "learning_rate", "beta1", "beta2", "batch_size", "size", "augmentation")
    assert told("mura", *rates) == ["adam", 1e-4, 0.9, 0.999, 8, 224, "mirrored"]
    assert told("mura", "sample", "balance", "outputs", "factor", "keep") == ["study", True, 1, 0.1, "best"]
    assert told("hip", *rates) == ["adam", 1e-4, 0.9, 0.999, 32, 224, "mirrored"]
    assert told("hip", "outputs", "normalize", "stages", "splits") == [2, "symmetric", "all,head", "70/20/10"]
    names = ("optimizer", "learning_rate", "momentum", "weight_decay", "schedule", "factor", "plateau", "epochs")
    assert told("fracture", *names, "outputs") == ["sgd", 1e-3, 0.9, 1e-4, "plateau", 0.1, 5, 50, 2]
    vgg, _ = resolve("classifier", "fracture", ["backbone=vgg16"])
    with torch.device("meta"):
        drops = [m.p for m in Classifier(vgg, 224).head.modules() if isinstance(m, torch.nn.Dropout)]  # type: ignore[arg-type]
    assert drops == [0.5, 0.5]
    assert told("cnn", "backbone", "optimizer", "outputs") == ["cnn", "adam", 2]


# --- backbones ---


@pytest.mark.parametrize("backbone", sorted(set(BACKBONES) - {"vgg16"}))  # the weights of that take seconds to draw
def test_every_backbone_trains_and_maps_at_its_least_size(backbone: str) -> None:
    size = BACKBONES[backbone].least  # type: ignore[index]
    config = ClassifierConfig.model_validate({"backbone": backbone, "width": 2})
    reason = Classifier.check_size(config, size - 1)
    assert reason is not None and f"with {backbone} takes films of {size} px and more" in reason
    assert Classifier.check_size(config, size) is None
    torch.manual_seed(0)
    model = Classifier(config, size)
    films = batch(2, size)
    (step,) = model.training_steps(films)
    step.loss().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    model.eval()
    with torch.inference_mode():
        heat = model.predict(films, maps=True).map
    assert heat is not None and heat.shape == films.film.shape and (heat >= 0).all() and heat.isfinite().all()


@pytest.mark.parametrize("backbone", sorted(BACKBONES))
@pytest.mark.parametrize("size", [64, 128, 224, 512])
def test_the_map_is_of_the_deepest_layer_with_enough_cells(backbone: str, size: int) -> None:
    with torch.device("meta"):
        model = built(size, backbone=backbone)
        seen: list[int] = []
        model.features[model._cam_layer()].register_forward_hook(lambda _, __, made: seen.append(made.shape[-1]))
        model.eval()(torch.empty(1, 1, size, size))
    assert seen[0] >= CAM_CELLS
    strides = [stride for stride, _ in BACKBONES[backbone].stages]  # type: ignore[index]
    assert seen[0] == size // max(s for s in strides if size // s >= CAM_CELLS)


def test_the_map_lies_where_the_evidence_is(tmp_path: Path) -> None:
    """Films that differ by one bright square: the map of the trained net is hottest there, and scores tell them."""
    draw = np.random.default_rng(0)
    film = draw.integers(60, 90, (32, 64, 64)).astype(np.uint8)
    label = (np.arange(32) % 2).astype(np.int8)
    place = draw.integers(8, 48, (32, 2))
    for i in np.flatnonzero(label):
        y, x = place[i]
        film[i, y : y + 10, x : x + 10] = 220
    films = Films(film, np.ones(film.shape, bool), label)
    config = TrainConfig(batch_size=8, augmentation="none", learning_rate=3e-3)
    model = built(width=8, dropout=0.0)
    loop = Trainer(model, config, films, films, seed=0, device=CPU, precision="float32", workers=0)
    for number in range(1, 26):  # of six seeds all had learned it after 15
        figures = loop.train_epoch(number)
    assert figures["validation_accuracy"] == 1.0 and figures["accuracy"] > 0.9
    model.eval()
    with torch.inference_mode():
        prediction = model.predict(as_batch(films, CPU), maps=True)
    assert prediction.map is not None
    heat, p = prediction.map[:, 0].numpy(), prediction.scores["probability"].numpy()
    assert p[label == 1].min() > p[label == 0].max()
    # A map that doesn't know of the square has 1 there on average; measured from 3.6, of the seed of the coarsest map.
    near = [heat[i][y : y + 10, x : x + 10].mean() > 2 * heat[i].mean() for i, (y, x) in enumerate(place) if label[i]]
    assert np.mean(near) > 0.7


def test_a_net_to_which_all_films_are_the_same_says_so(some: Films) -> None:
    model = built()
    for parameter in model.parameters():
        torch.nn.init.zeros_(parameter)
    loop = stage_loop(model, some, learning_rate=1e-9)
    (warning,) = model.warnings(loop.train_epoch(1))
    assert warning.startswith("all films get about the same probability (they differ by 0): it learns nothing")
    assert not model.warnings({"spread": 0.3})


# --- weights that training begins with ---


def published(folder: Path, monkeypatch: pytest.MonkeyPatch, backbone: str = "efficientnet_b0") -> Path:
    """Write a file as torchvision publishes it, 1,000 outputs and all, with weights of its own."""
    import torchvision.models

    torch.manual_seed(7)
    state = getattr(torchvision.models, backbone)(weights=None).state_dict()
    if backbone == "densenet169":  # the published file has names from before torchvision's networks were scripted
        state = {k.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): v for k, v in state.items()}
    data = io.BytesIO()
    torch.save(state, data)
    digits = hashlib.sha256(data.getvalue()).hexdigest()[:8]
    path = folder / "checkpoints" / f"{backbone}-{digits}.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(data.getvalue())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(folder))
    monkeypatch.setattr(pretrained, "_address", lambda name: f"https://example.invalid/{path.name}")
    return path


@pytest.mark.parametrize("backbone", ["efficientnet_b0", "densenet169"])
def test_imagenet_weights_are_taken_but_for_the_last_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backbone: str
) -> None:
    path = published(tmp_path, monkeypatch, backbone)
    config = ClassifierConfig.model_validate({"backbone": backbone, "weights": "imagenet"})
    assert Classifier.weights_file(config) == path
    model = Classifier(config, 64)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_pretrained(path)
    given = torch.hub.load_state_dict_from_url(path.name, str(path.parent), weights_only=True)
    given = {model._own_name(key): value for key, value in given.items()}
    own = model.state_dict()
    last = {f"head.{name}" for name in list(model.head.state_dict())[-2:]}
    assert all(torch.equal(own[name], before[name]) for name in last)
    features = [name for name in own if name.startswith("features.")]
    assert len(features) > 300 and all(torch.equal(own[name], given[name]) for name in features)


def test_lite0_begins_with_the_weights_of_the_installed_package() -> None:
    """With the published last layer its features know a cat."""
    config = ClassifierConfig(backbone="lite0", weights="lite0", normalize="symmetric")
    file = Classifier.weights_file(config)
    assert file is not None
    model = built(backbone="lite0", normalize="symmetric").eval()
    model.load_pretrained(file)
    published = load_file(file)
    film = torch.from_numpy(cv2.resize(skimage.data.chelsea()[:, 75:375], (224, 224), interpolation=cv2.INTER_AREA))
    with torch.inference_mode():
        features = model.features(film.permute(2, 0, 1)[None] / 127.5 - 1).mean(dim=(2, 3))
        classes = features @ published["_fc.weight"].T + published["_fc.bias"]
    assert int(classes.argmax()) in CATS


@pytest.mark.parametrize(
    ("backbone", "weights", "message"),
    [
        ("cnn", "lite0", "lite0 are no weights of cnn: take --set backbone=lite0"),
        ("lite0", "lite1", "lite1 are no weights of lite0"),
        ("lite0", "imagenet", "torchvision has no lite0; take --weights lite0"),
    ],
)
def test_weights_of_another_network_are_refused(backbone: str, weights: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Classifier.weights_file(ClassifierConfig.model_validate({"backbone": backbone, "weights": weights}))


def test_a_damaged_file_of_imagenet_weights_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = published(tmp_path, monkeypatch)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"efficientnet_b0-.*\.pth is damaged .* delete it, to have it fetched again"):
        Classifier.weights_file(ClassifierConfig(weights="imagenet"))


def test_without_a_network_one_sentence_says_where_the_file_belongs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Cache
) -> None:
    path = published(tmp_path, monkeypatch)
    path.unlink()

    def unreachable(*arguments: object, **more: object) -> None:
        raise OSError("Name or service not known")

    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    with pytest.raises(InputError) as caught:
        prepare(plan(cache, "backbone=efficientnet_b0", "weights=imagenet"))
    message = str(caught.value)
    assert str(path) in message and "can't be fetched (Name or service not known)" in message
    assert f"put https://example.invalid/{path.name} there by hand, or take --weights none" in message
    with pytest.raises(InputError, match="cnn has no ImageNet weights"):
        prepare(plan(cache, "weights=imagenet"))


def test_weights_of_a_run_or_a_file_are_what_training_begins_with(cache: Cache, tmp_path: Path) -> None:
    first = trained(cache, tmp_path / "a")
    prepared = prepare(plan(cache, f"weights={first.path}", "epochs=1", "learning_rate=1e-12"))
    assert (
        prepared.config.weights.sha256 == hashlib.sha256((first.path / "weights.safetensors").read_bytes()).hexdigest()
    )
    second = fit(
        prepared, continue_or_create(prepared, tmp_path / "b", resume=False), workers=0, on_epoch=lambda report: None
    )
    old, new = (load_file(run.path / "weights.safetensors") for run in (first, second))
    for name, value in old.items():
        torch.testing.assert_close(new[name], value, rtol=1e-4, atol=1e-6)
    model = built(width=2)
    save_file({k: v for k, v in model.state_dict().items() if k.startswith("features")}, tmp_path / "part.safetensors")
    save_file(built(width=8).state_dict(), tmp_path / "wide.safetensors")
    (tmp_path / "net.pth").write_bytes(b"\x80\x04.")
    (tmp_path / "empty.safetensors").write_bytes(b"")
    for name, message in (
        ("part.safetensors", r"has other weights than cnn \(no head.2.0.weight, and 3 more\)"),
        ("wide.safetensors", r"features.0.weight \(8, 3, 3, 3\) instead of \(2, 3, 3, 3\)"),
        ("net.pth", "is not a .safetensors file, and nothing that can hold code is loaded"),
        ("empty.safetensors", "is no safetensors file"),
        ("nowhere.safetensors", "there are no weights .*nowhere.safetensors; name a file"),
    ):
        with pytest.raises(InputError, match=message):
            prepare(plan(cache, f"weights={tmp_path / name}"))


# --- stages and step sizes ---


def test_the_optimizer_is_the_one_that_is_asked_for(some: Films) -> None:
    told: dict[str, object] = {"learning_rate": 0.02, "weight_decay": 0.003, "momentum": 0.8, "beta1": 0.5}
    sgd = stage_loop(built(), some, optimizer="sgd", **told).optimizers["classifier"]
    assert isinstance(sgd, SGD) and sgd.rate == 0.02
    assert (sgd.config.weight_decay, sgd.config.momentum) == (0.003, 0.8)
    adam = stage_loop(built(), some, **told).optimizers["classifier"]
    assert isinstance(adam, Adam) and (adam.config.beta1, adam.config.beta2) == (0.5, 0.999)


def stage_loop(model: Classifier, films: Films, **settings: object) -> Trainer:
    config = TrainConfig.model_validate({"batch_size": 4, "augmentation": "none", "epochs": 2} | settings)
    return Trainer(model, config, films, films, seed=0, device=CPU, precision="float32", workers=0)


@pytest.fixture
def some(cache: Cache) -> Films:
    label = cache.index["label"]
    rows = np.r_[np.flatnonzero(label == 0)[:6], np.flatnonzero(label == 1)[:6]]
    return FilmSet(cache, "full-he", rows, 64, sample="study").read()


@pytest.mark.parametrize(
    ("stage", "moves"), [("head", {"head"}), ("features", {"features"}), ("all", {"features", "head"})]
)
def test_a_stage_moves_its_part_only_running_statistics_included(some: Films, stage: str, moves: set[str]) -> None:
    torch.manual_seed(0)
    model = Classifier(ClassifierConfig(backbone="efficientnet_b0"), 64)
    loop = stage_loop(model, some.part(np.r_[0:2, 6:8]), stages=stage)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    loop.train_epoch(1)
    moved = {
        name.partition(".")[0] for name, value in model.state_dict().items() if not torch.equal(before[name], value)
    }
    assert moved == moves


def test_the_next_stage_begins_with_the_kept_weights_and_resumes_to_the_bit(some: Films, tmp_path: Path) -> None:
    def run(folder: Path, stop: int | None = None, restore: bool = False) -> tuple[Trainer, dict[str, Tensor]]:
        loop = stage_loop(built(), some, stages="all,head", epochs=3, learning_rate=1e-2)
        if restore:
            loop.restore(folder / "checkpoint.safetensors")
        folder.mkdir(exist_ok=True)
        opened = Run.__new__(Run)
        opened.path = folder

        def on_epoch(report: object) -> None:
            if loop.state.epoch == stop:
                raise KeyboardInterrupt

        try:
            return loop, loop.run(opened, on_epoch, checkpoint_seconds=0.0)  # type: ignore[arg-type]
        except KeyboardInterrupt:
            return loop, {}

    whole, weights = run(tmp_path / "whole")
    assert whole.state.epoch == 6 and whole.state.stage == 2
    for stop in (2, 3, 4):
        run(tmp_path / "parts", stop)
        again, resumed = run(tmp_path / "parts", restore=True)
        assert again.state.history[-1]["validation"] == whole.state.history[-1]["validation"]
        assert all(torch.equal(weights[name], resumed[name]) for name in weights)
    at_best = min(line["validation"] for line in whole.state.history[:3])
    loop = stage_loop(built(), some, stages="all,head", epochs=3, learning_rate=1e-2)
    for number in (1, 2, 3):
        loop._remember(loop.train_epoch(number))
    assert loop._stage_over()
    loop._next_stage()
    assert loop._validate()["validation"] == pytest.approx(at_best, rel=1e-6)
    assert not any(optimizer.state for optimizer in loop.optimizers.values())


def test_patience_ends_a_stage_and_not_the_training(some: Films) -> None:
    loop = stage_loop(built(), some, stages="all,head", epochs=9, patience=2)
    loop.state = State(epoch=4, best_epoch=2, best=0.1)
    assert loop._stage_over() and not loop._done()
    loop.best_weights = loop.model.state_dict()
    loop._next_stage()
    assert (
        not loop._stage_over() and loop.state.before == 4
    )  # what the stage before did not gain is not held against it
    loop.state.epoch = 6
    assert loop._stage_over()
    loop._next_stage()
    assert loop._done()


def test_a_plateau_lowers_the_step_size_and_only_once_for_each(some: Films) -> None:
    config = TrainConfig(schedule="plateau", plateau=2, factor=0.1)
    falling = [1.0, 0.9, 0.8, 0.7]
    assert after_plateaus([], config) == after_plateaus(falling, config) == 1.0
    assert after_plateaus([*falling, 0.7, 0.7], config) == 1.0
    assert after_plateaus([*falling, 0.7, 0.7, 0.7], config) == pytest.approx(0.1)
    assert after_plateaus([*falling, *[0.7] * 6], config) == pytest.approx(0.01)
    loop = stage_loop(built(), some, schedule="plateau", plateau=0, learning_rate=0.5)
    loop.state = State(epoch=2, history=[{"validation": 1.0}, {"validation": 2.0}])
    loop._set_rates(3)
    assert loop.optimizers["classifier"].rate == pytest.approx(0.05)


# --- from the cache to the figures ---


def test_a_run_learns_from_labels_and_its_thresholds_too(cache: Cache, tmp_path: Path) -> None:
    run = trained(cache, tmp_path / "a", "sample=study", preset="fast")
    assert run.config.split_rule == "paper, labelled" and run.config.weights is None
    assert (run.path / "maps.png").is_file() and not (run.path / "reconstructions.png").exists()
    header = (run.path / "history.csv").read_text().splitlines()[0].split(",")
    assert header[3:] == ["classifier.cross_entropy", "accuracy", "spread", "validation", "validation_accuracy"]
    calibration = read_calibration(run)
    assert calibration.rule == "youden" and calibration.map_scale
    prepared = prepare(plan(cache, preset="fast"))
    assert calibration.films == len(prepared.films("val"))
    assert 0 < calibration.thresholds["mean"]["study"]["probability"] < 1
    assert open_run(run, "cpu").model.detector.class_weights.sum() == 1


@pytest.mark.parametrize(
    ("settings", "preset", "message"),
    [
        ((), "mura", r"holds films of 64 px, but classifier is set to 224: `anomaly preprocess SOURCE --size 224`"),
        (("size=16", "backbone=vgg16"), "cnn", "with vgg16 takes films of 32 px and more"),
        (("stages=all,legs",), "cnn", "no stage 'legs' of this model; there are: all, features, head"),
        (("backbone=resnet",), "cnn", "--set backbone=resnet: Input should be 'densenet169', "),
        (("noise=.1",), "cnn", "classifier doesn't reconstruct"),
    ],
)
def test_what_cannot_be_trained_is_refused(cache: Cache, settings: tuple[str, ...], preset: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(plan(cache, *settings, preset=preset))


def test_a_study_is_a_sample_for_labels_only(cache: Cache) -> None:
    with pytest.raises(InputError, match="cae is trained on single films: leave out sample=study"):
        prepare(Plan("cae", cache.path, settings=("sample=study",), device="cpu"))


def test_films_of_one_class_and_too_few_patients_are_refused(tmp_path: Path) -> None:
    films = tmp_path / "films"
    write_phantoms(films, seed=3, patients=12, size=64)

    def prepared(name: str, label: dict[int, str], split: dict[int, str]) -> None:
        paths = sorted(path for path in films.rglob("*.png") if "study1" in str(path))[:24]
        lines = [
            f"{path.relative_to(tmp_path)},{label.get(i, 'normal')},p{i},s{i},{split.get(i % 3, '')}"
            for i, path in enumerate(paths)
        ]
        manifest = tmp_path / f"{name}.csv"
        manifest.write_text("\n".join(["path,label,patient,study,split", *lines]))
        out = tmp_path / f"{name}.h5"
        build(
            open_source(manifest),
            Recipe(name="plain", size=32),
            out,
            options=BuildOptions(variants=("raw",), workers=1),
        )
        prepare(Plan("classifier", out, preset="fast", settings=("width=2",), device="cpu"))

    own = {0: "train", 1: "val", 2: "test"}
    with pytest.raises(InputError, match=r"few\.h5: 2 patients with an abnormal film are too few for train, val, test"):
        prepared("few", {0: "abnormal", 1: "abnormal"}, {})
    with pytest.raises(InputError, match=r"plain\.h5: 0 patients with an abnormal film .* such as cae"):
        prepared("plain", {}, {})
    with pytest.raises(InputError, match="has 8 labelled films to train on and none of them is abnormal"):
        prepared("train", {1: "abnormal", 2: "abnormal"}, own)
    with pytest.raises(InputError, match="has 8 labelled films to validate with and none of them is abnormal"):
        prepared("val", {0: "abnormal", 2: "abnormal"}, own)
    prepared("good", {0: "abnormal", 1: "abnormal", 2: "abnormal"}, own)


def test_an_ensemble_of_classifiers_says_the_mean_probability(cache: Cache, tmp_path: Path, run: Run) -> None:
    members = [trained(cache, tmp_path / name, f"dropout={share}") for name, share in (("a", 0.1), ("b", 0.4))]
    made = combine(members, tmp_path / "both", None, CPU)
    label = cache.index["label"]
    rows = np.flatnonzero(label >= 0)[:5]
    films = as_batch(FilmSet(cache, made.config.variant, rows, made.config.size).read(), CPU)
    with torch.inference_mode():
        said = [open_run(one, "cpu").model.detector.predict(films).scores["probability"] for one in (*members, made)]
    torch.testing.assert_close(said[2].double(), (said[0] + said[1]) / 2, rtol=1e-5, atol=1e-6)
    assert open_run(made, "cpu").model.targets == "labels" and read_calibration(made).rule == "youden"
    with pytest.raises(InputError, match="leave out :SCORE"):
        combine(members, tmp_path / "named", None, CPU, ["probability", None])
    with pytest.raises(InputError, match="has split_hash"):
        combine([members[0], run], tmp_path / "mixed", None, CPU)


def test_where_every_patient_has_an_abnormal_film_the_threshold_is_that_of_films(tmp_path: Path) -> None:
    films = tmp_path / "films"
    write_phantoms(films, seed=3, patients=12, size=64)
    paths = sorted(films.rglob("*.png"))[:24]
    split = ["train", "val", "test"]
    lines = []
    for i, path in enumerate(paths):
        place, label = split[i // 8], "abnormal" if i % 2 else "normal"
        lines.append(f"{path.relative_to(tmp_path)},{label},{place}-{i % 4 // 2},s{i},{place}")
    (tmp_path / "m.csv").write_text("\n".join(["path,label,patient,study,split", *lines]))
    build(
        open_source(tmp_path / "m.csv"),
        Recipe(name="plain", size=32),
        tmp_path / "m.h5",
        options=BuildOptions(variants=("raw",), workers=1),
    )
    prepared = prepare(Plan("classifier", tmp_path / "m.h5", preset="fast", settings=TINY, device="cpu"))
    assert prepared.config.split_rule == "given"
    made = continue_or_create(prepared, tmp_path / "run", resume=False)
    thresholds = read_calibration(fit(prepared, made, workers=0, on_epoch=lambda report: None)).thresholds["mean"]
    assert thresholds["patient"]["probability"] == thresholds["film"]["probability"]
