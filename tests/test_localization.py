"""The networks that prepare films: one contract suite over them, their figures, and their use in preprocessing."""

import json
import math
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load, save
from torch import Tensor

from anomaly.data.batch import Batch, as_batch
from anomaly.data.dataset import Films, FilmSet
from anomaly.localization import evaluate as evaluation
from anomaly.localization import nets
from anomaly.localization.base import LocalizationModel
from anomaly.localization.detection import Detection, LocalizationCalibration
from anomaly.localization.evaluate import (
    BoxFigures,
    ForegroundFigures,
    choose_threshold,
    evaluate,
    iou,
    match_boxes,
    write_evaluation,
)
from anomaly.localization.nets import NetLocalizer, load_localizer, load_segmenter
from anomaly.localization.predict import annotated_rows, load_localization_model, split_by_patient
from anomaly.localization.ssd import SSD
from anomaly.localization.unet import UNet
from anomaly.models import TOOLS, ZOO, find_model
from anomaly.nn.losses import soft_dice
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.plan import Plan, prepare, resolve
from anomaly.reporting.localization import localization_table
from anomaly.runs import Run
from anomaly.training.config import TrainConfig
from anomaly.training.trainer import Trainer
from preprocessing import InputError
from preprocessing.build import BuildOptions, build
from preprocessing.cache.reader import Cache
from preprocessing.cache.schema import BOX_CLASSES
from preprocessing.readers import Film
from preprocessing.recipe import Nets, Recipe
from preprocessing.sources import open_source
from preprocessing.sources.annotations import annotate

CPU = torch.device("cpu")
SIZE = 96
NARROW = {"ssd": ["size=none"], "unet": ["width=4"], "dense": ["hidden=16"]}


def annotated_cache(films: Path, name: str, out: Path) -> Cache:
    kind = find_model(name)
    assert issubclass(kind, LocalizationModel)
    recipe = Recipe(**(dict(kind.recipe) | {"size": SIZE}))
    options = BuildOptions(variants=kind.variants, workers=1)
    build(annotate(open_source(films), kind.targets), recipe, out, options=options)
    return Cache(out)


@pytest.fixture(scope="module")
def caches(films: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Cache]:
    folder = tmp_path_factory.mktemp("annotated")
    return {name: annotated_cache(films, name, folder / f"{name}.h5") for name in TOOLS}


@pytest.fixture(params=sorted(TOOLS))
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def narrow_model(name: str) -> LocalizationModel:
    torch.manual_seed(0)
    kind = find_model(name)
    model = kind(resolve(name, "fast", NARROW[name])[0], SIZE)  # type: ignore[call-arg]
    assert isinstance(model, LocalizationModel)
    return model


def annotated_films(caches: dict[str, Cache], name: str, count: int = 6) -> Films:
    kind = type(narrow_model(name))
    rows = annotated_rows(caches[name], kind.targets)[:count]
    return FilmSet(caches[name], "crop", rows, SIZE, kind.targets).read()


def trained(caches: dict[str, Cache], name: str, out: Path, *settings: str) -> Run:
    plan = Plan(name, caches[name].path, preset="fast", settings=(*NARROW[name], "epochs=2", *settings), device="cpu")
    prepared = prepare(plan)
    return fit(prepared, continue_or_create(prepared, out, resume=False), workers=0, on_epoch=lambda report: None)


@pytest.fixture(scope="module")
def runs(caches: dict[str, Cache], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return {name: trained(caches, name, tmp_path_factory.mktemp("nets") / name) for name in TOOLS}


# --- the contract ---------------------------------------------------------------------------------------------------


def test_names_are_apart() -> None:
    assert not set(TOOLS) & set(ZOO)


def test_presets_and_thresholds_are_valid(name: str) -> None:
    kind = find_model(name)
    assert issubclass(kind, LocalizationModel) and {"standard", "fast"} <= set(kind.presets)
    for preset in kind.presets:
        resolve(name, preset, [])
    assert list(kind.thresholds) == sorted(set(kind.thresholds)) and 0 < kind.thresholds[0] < kind.thresholds[-1] < 1
    Recipe(**dict(kind.recipe))
    assert kind.variant in kind.variants
    assert any(kind.check_size(resolve(name, "standard", [])[0], size) is None for size in (96, 128, 320))


def test_every_parameter_has_one_owner_and_learns(name: str, caches: dict[str, Cache]) -> None:
    model = narrow_model(name)
    owned = [id(p) for modules in model.players().values() for module in modules for p in module.parameters()]
    assert len(owned) == len(set(owned)) and set(owned) == {id(p) for p in model.parameters()}
    films = annotated_films(caches, name)
    loop = trainer(model, films)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    first = loop.train_epoch(1)
    assert all(math.isfinite(value) for value in first.values())
    moved = [not torch.equal(before[key], value) for key, value in model.named_parameters()]
    assert np.mean(moved) > 0.9  # of heads on a single cell no box may have been matched


def trainer(model: LocalizationModel, films: Films, **settings: object) -> Trainer:
    config = TrainConfig.model_validate({"batch_size": 3, "augmentation": "none", "patience": 0} | settings)
    return Trainer(model, config, films, films, seed=0, device=CPU, precision="float32", workers=0)


MOST_EPOCHS = 60


def test_a_few_films_are_learnt(name: str, caches: dict[str, Cache]) -> None:
    """Until their loss has fallen well below its first; after how many epochs differs between processors. Of four seeds
    each net's was there after at most 13.
    """
    films = annotated_films(caches, name, 4)
    model = narrow_model(name)
    loop = trainer(model, films, learning_rate=3e-3)
    totals: list[float] = []
    while len(totals) < MOST_EPOCHS:
        figures = loop.train_epoch(len(totals) + 1)
        totals.append(sum(value for key, value in figures.items() if "." in key))
        if totals[-1] < 0.7 * totals[0]:
            break
    assert totals[-1] < 0.7 * totals[0]


@torch.inference_mode()
def test_detections_depend_on_the_film_alone(name: str, caches: dict[str, Cache]) -> None:
    films, model = annotated_films(caches, name, 3), narrow_model(name).eval()
    together = model.detect(as_batch(films, CPU))
    for i, one in enumerate(together):
        (alone,) = model.detect(as_batch(films.part(slice(i, i + 1)), CPU))
        for ours, theirs in ((one.foreground, alone.foreground), (one.boxes, alone.boxes), (one.scores, alone.scores)):
            assert (ours is None) == (theirs is None)
            if ours is not None and theirs is not None:
                np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3)
        if one.foreground is not None:
            assert one.foreground.shape == (SIZE, SIZE) and (one.foreground[~films.mask[i]] == 0).all()
            assert one.foreground.min() >= 0 and one.foreground.max() <= 1
        if one.boxes is not None and one.scores is not None:
            assert (np.diff(one.scores) <= 0).all() and ((one.boxes[:, :4] >= 0) & (one.boxes[:, :4] <= SIZE)).all()


@torch.inference_mode()
def test_a_saved_model_detects_the_same_when_reopened(name: str, caches: dict[str, Cache]) -> None:
    batch, model, again = (
        as_batch(annotated_films(caches, name, 2), CPU),
        narrow_model(name).eval(),
        narrow_model(name).eval(),
    )
    again.load_state_dict(load(save({k: v.contiguous() for k, v in model.state_dict().items()})))
    torch.testing.assert_close(model.validation_loss(batch), again.validation_loss(batch))
    assert model.validation_loss(batch).shape == (2,)


# --- training by the one loop ---------------------------------------------------------------------------------------


def test_a_run_is_whole_measured_and_says_what_it_prepares(
    name: str, runs: dict[str, Run], caches: dict[str, Cache]
) -> None:
    run = runs[name]
    assert run.finished and (run.path / "detections.png").is_file() and (run.path / "learning_curve.png").is_file()
    model = find_model(name)(resolve(name, "fast", NARROW[name])[0], SIZE)  # type: ignore[call-arg]
    assert isinstance(model, LocalizationModel)
    assert run.read("calibration.json", LocalizationCalibration).threshold in model.thresholds
    result = evaluate(run, model.eval(), caches[name], CPU, "test")
    assert write_evaluation(run, result) == run.path / "metrics.json"
    metrics, table = json.loads((run.path / "metrics.json").read_text()), localization_table(result)
    assert "SYNTHETIC" in table[0] and len((run.path / "films.csv").read_text().splitlines()) - 1 == result.films
    assert metrics["films"] == result.films and metrics["threshold"] == result.threshold
    if model.targets == "masks":
        assert isinstance(result.figures, ForegroundFigures)
        assert 0 <= result.figures.iou.mean <= result.figures.dice.mean <= 1
        assert metrics["dice"]["mean"] == result.figures.dice.mean and len(table) == 1 + 4
    else:
        assert set(metrics["classes"]) == {*BOX_CLASSES, "hand, either side", "marker, either side"}
        assert len(table) == 1 + 2 + len(metrics["classes"])


def test_splits_part_patients_and_hold_films_of_either_label(caches: dict[str, Cache]) -> None:
    cache = caches["unet"]
    split = split_by_patient(cache, 0)
    homes = {(patient, place) for patient, place in zip(cache.index["patient"], split, strict=True)}
    assert len(homes) == len(set(cache.index["patient"]))
    assert {"train", "val", "test"} == set(split)
    assert set(cache.index["label"][split == "train"]) == {0, 1}


def test_a_mask_is_learnt_from_the_classical_steps_where_none_came_with_the_films(films: Path, tmp_path: Path) -> None:
    build(
        open_source(films),
        Recipe(size=32),
        tmp_path / "c.h5",
        options=BuildOptions(variants=("crop", "full"), workers=1),
    )
    cache = Cache(tmp_path / "c.h5")
    assert not cache.index["given"].any() and len(annotated_rows(cache, "masks")) > 0.8 * len(cache)
    with pytest.raises(InputError, match=r"has no boxes; `anomaly preprocess FILMS --for ssd`"):
        annotated_rows(cache, "boxes")
    build(open_source(films), Recipe(size=32), tmp_path / "d.h5", options=BuildOptions(variants=("full",), workers=1))
    with pytest.raises(InputError, match=r"lacks crop or full films"):
        annotated_rows(Cache(tmp_path / "d.h5"), "masks")


def test_another_variant_is_refused(caches: dict[str, Cache]) -> None:
    with pytest.raises(InputError, match="on films of variant crop"):
        prepare(Plan("unet", caches["unet"].path, "full", settings=("width=4",)))


# --- the losses -----------------------------------------------------------------------------------------------------


def test_soft_dice_is_dice_on_hard_masks_and_ignores_what_is_off_the_mask() -> None:
    draw = torch.Generator().manual_seed(0)
    found, truth, mask = (torch.rand(3, 1, 16, 16, generator=draw) > 0.5 for _ in range(3))
    loss = soft_dice(found.float(), truth.float(), mask)
    both = (found & truth & mask).sum(dim=(1, 2, 3))
    whole = (found & mask).sum(dim=(1, 2, 3)) + (truth & mask).sum(dim=(1, 2, 3))
    torch.testing.assert_close(loss, 1 - (2 * both + 1) / (whole + 1))
    other = torch.where(mask, found, ~found).float()
    torch.testing.assert_close(soft_dice(other, truth.float(), mask), loss)


def test_a_collapsed_network_is_warned_of() -> None:
    for loss, word in (("dice", "loss=dice+bce"), ("dice+bce", "learning_rate")):
        model = UNet(UNet.Config(width=1, loss=loss), 16)
        assert not model.warnings({"foreground_predicted": 0.3, "foreground_annotated": 0.3})
        (text,) = model.warnings({"foreground_predicted": 0.001, "foreground_annotated": 0.3})
        assert word in text


def test_the_unet_is_the_sources() -> None:
    """Bruhn and Mahmood's layers, counted by hand: nine weights and a bias a filter, concatenations as wide as both."""
    pairs = [(1, 32), (32, 32), (32, 64), (64, 64), (64, 128), (128, 128), (128, 128), (128, 128)]
    pairs += [(256, 64), (64, 64), (128, 64), (64, 64), (96, 32), (32, 32)]
    wanted = sum(9 * i * o + o for i, o in pairs) + 33
    assert sum(p.numel() for p in UNet(UNet.Config(), 64).parameters()) == wanted


def test_ssd_has_a_default_box_for_every_prediction() -> None:
    for size in (96, 224, 320):
        model = SSD(SSD.Config(), size).eval()
        with torch.inference_mode():
            offsets, logits = model(torch.zeros(1, 1, size, size))
        assert offsets.shape == (1, len(model.anchors), 4) and logits.shape == (
            1,
            len(model.anchors),
            1 + len(BOX_CLASSES),
        )


# --- figures --------------------------------------------------------------------------------------------------------


def films_with(boxes: list[list[list[float]]]) -> Films:
    grid = np.zeros((len(boxes), 16, 5), np.float32)
    for i, rows in enumerate(boxes):
        grid[i, : len(rows)] = np.array(rows, np.float32).reshape(-1, 5)
    blank = np.zeros((len(boxes), 32, 32), np.uint8)
    return Films(blank, blank == 0, np.zeros(len(boxes), np.int8), boxes=grid)


def detection(rows: list[list[float]], scores: list[float]) -> Detection:
    return Detection(np.array(rows, np.float32).reshape(-1, 5), np.array(scores, np.float32))


def test_matches_by_hand() -> None:
    films = films_with([[[0, 0, 10, 10, 1], [20, 20, 30, 30, 3]], [[0, 0, 10, 10, 2]]])
    detections = [
        detection([[0, 0, 10, 9, 1], [0, 0, 10, 10, 1], [20, 20, 30, 30, 3], [0, 20, 5, 25, 4]], [0.9, 0.8, 0.7, 0.4]),
        detection([[0, 0, 10, 10, 1]], [0.9]),
    ]
    matches = match_boxes(detections, films, 0.5)  # a box detected twice, a wrong side
    assert (matches.true_positives, matches.false_positives, matches.false_negatives) == (2, 2, 1)
    assert matches.ious == pytest.approx([0.9, 1.0]) and matches.f1 == pytest.approx(4 / 7)
    either = match_boxes(detections, films, 0.5, (1, 2), same_class=False)
    assert (either.true_positives, either.false_positives, either.false_negatives) == (2, 1, 0)
    assert either.figures(either_side=True).recall == 1 and either.figures(either_side=True).side_accuracy == 0.5
    none_annotated = match_boxes(detections, films, 0.1, (4,)).figures()
    assert none_annotated == BoxFigures(boxes=0, recall=None, precision=0.0, iou=None, side_accuracy=None)


@given(st.lists(st.tuples(*[st.floats(0, 20)] * 2, *[st.floats(0.5, 9)] * 2), min_size=1, max_size=6))
def test_every_box_overlaps_itself_wholly(corners: list[tuple[float, float, float, float]]) -> None:
    boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in corners])
    overlap = iou(boxes, boxes)
    assert np.allclose(np.diag(overlap), 1) and np.allclose(overlap, overlap.T) and (overlap <= 1 + 1e-9).all()


class _Sure(UNet):
    """Detects a disc with a probability that falls from its middle."""

    def forward(self, film: Tensor) -> Tensor:
        y, x = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
        sure = 1 - ((x - 16) ** 2 + (y - 16) ** 2).sqrt() / 16
        return torch.logit(sure.clamp(0.01, 0.99)).expand(len(film), 1, 32, 32)


def test_the_threshold_is_the_one_of_the_highest_dice() -> None:
    y, x = np.mgrid[:32, :32]
    truth = (x - 16) ** 2 + (y - 16) ** 2 < (16 * 0.6) ** 2  # where it is surer than .4
    blank = np.zeros((2, 32, 32), np.uint8)
    films = Films(blank, blank == 0, np.zeros(2, np.int8), foreground=np.stack([truth] * 2))
    choice = choose_threshold(_Sure(UNet.Config(width=1), 32), films, CPU)
    assert choice.threshold == pytest.approx(0.4, abs=0.051) and choice.figure > 0.9


# --- at work --------------------------------------------------------------------------------------------------------


def test_nets_travel_to_other_processes_and_name_their_weights(runs: dict[str, Run], tmp_path: Path) -> None:
    localizer, segmenter = load_localizer(runs["ssd"].path), load_segmenter(runs["unet"].path)
    assert len(localizer.digest) == 12 and localizer.digest != segmenter.digest
    assert (localizer.name, segmenter.name) == ("ssd", "unet") and Path(localizer.run).is_absolute()
    draw = np.random.default_rng(0)
    film = draw.integers(0, 255, (150, 90)).astype(np.uint8)
    first = segmenter(film)
    again = pickle.loads(pickle.dumps(segmenter))(film)
    assert (first is None) == (again is None) and (first is None or again is None or (first == again).all())
    assert first is None or (first.shape == film.shape and first.dtype == np.bool_)


def test_a_net_that_was_replaced_meanwhile_is_refused(runs: dict[str, Run], tmp_path: Path) -> None:
    shutil.copytree(runs["unet"].path, tmp_path / "net")
    segmenter = load_segmenter(tmp_path / "net")
    (tmp_path / "net" / "calibration.json").write_text('{"threshold": 0.3}')
    with pytest.raises(InputError, match="has changed while films were prepared"):
        segmenter(np.zeros((40, 40), np.uint8))


def test_turned_films_lose_their_hands_and_keep_their_markers() -> None:
    torch.manual_seed(0)
    model = SSD(SSD.Config(turned=0.9), SIZE)
    film, boxes = torch.zeros(12, 1, SIZE, SIZE), torch.zeros(12, 3, 5)
    film[:, :, 10:20, 30:50] = 1
    boxes[:, 0], boxes[:, 1] = torch.tensor([30.0, 10, 50, 20, 3]), torch.tensor([0.0, 0, 90, 90, 1])
    made_of = model.randomly_turned(Batch(film, film >= 0, torch.zeros(12), boxes=boxes))
    assert made_of.boxes is not None
    kept = 0
    for one, found in zip(made_of.film[:, 0], made_of.boxes, strict=True):
        y, x = one.nonzero().unbind(1)
        assert found[0].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1, 3]
        same = torch.equal(one, film[0, 0])
        assert (found[1, 4] == 1) == same and (found[2] == 0).all()
        kept += int(same)
    assert 0 < kept < 6


def test_wrong_runs_are_refused(runs: dict[str, Run], run: Run, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"is a run of unet, not of a network that detects hands"):
        load_localizer(runs["unet"].path)
    with pytest.raises(InputError, match=r"is a run of cae, which prepares no films"):
        load_segmenter(run.path)
    with pytest.raises(InputError, match="not a run folder"):
        load_segmenter(tmp_path)


def test_a_cache_made_with_nets_names_them_and_is_another(runs: dict[str, Run], films: Path, tmp_path: Path) -> None:
    source, recipe = open_source(films), Recipe(size=32)
    segmenter = load_segmenter(runs["unet"].path)
    build(
        source,
        recipe,
        tmp_path / "net.h5",
        nets=Nets(segmenter=segmenter),
        options=BuildOptions(variants=("full",), workers=1),
    )
    build(source, recipe, tmp_path / "plain.h5", options=BuildOptions(variants=("full",), workers=1))
    net, plain = Cache(tmp_path / "net.h5"), Cache(tmp_path / "plain.h5")
    assert net.nets["segmenter"]["digest"] == segmenter.digest and plain.nets == {}
    assert net.recipe_digest != plain.recipe_digest


class _Stub(SSD):
    """Detects a hand where the film is brightest, a marker in the corner; a turned film it likes better."""

    scores: tuple[float, ...] = (0.4, 0.95, 0.3, 0.2)
    asked: list[int]

    def detect(self, batch: Batch) -> list[Detection]:
        boxes = np.array([[24, 48, 72, 96, 2], [0, 0, 12, 12, 4]], np.float32)
        first = sum(self.asked)
        self.asked.append(len(batch.film))
        scores = self.scores[first : first + len(batch.film)]
        return [Detection(boxes, np.array([score, 0.9], np.float32)) for score in scores]


@pytest.fixture
def stub() -> _Stub:
    made = _Stub(SSD.Config(), SIZE).eval()
    made.asked = []
    return made


@pytest.fixture
def stubbed(runs: dict[str, Run], stub: _Stub, monkeypatch: pytest.MonkeyPatch) -> NetLocalizer:
    monkeypatch.setattr(nets, "load_once", lambda folder, name, digest: (stub, SIZE, 0.5))
    return load_localizer(runs["ssd"].path)


@pytest.mark.parametrize(("score", "asked", "turns"), [(0.51, [1], 0), (0.5, [1, 3], 1), (0.49, [1, 3], 1)])
def test_a_film_is_only_turned_about_where_a_score_could_turn_it(
    stubbed: NetLocalizer, stub: _Stub, score: float, asked: list[int], turns: int
) -> None:
    """A turned film has to score twice as high, and no score is above 1."""
    stub.scores = (score, 1.0, 0.3, 0.2)
    found = stubbed(np.zeros((60, 120), np.uint8))
    assert found is not None and found.turns == turns and stub.asked == asked


def test_boxes_come_back_in_the_films_pixels_and_the_better_turn_is_taken(stubbed: NetLocalizer) -> None:
    film = np.zeros((60, 120), np.uint8)  # turned by a quarter it is 120 high and 60 wide
    found = stubbed(film)
    assert found is not None and found.turns == 1 and found.hands[0][0] == "left"
    scale = 120 / SIZE  # the turned film lies 48 px wide in the middle of the 96: 24..72
    assert found.hands[0][1] == pytest.approx((0, 48 * scale, 60, 96 * scale))
    assert len(found.markers) == 1 and found.markers[0][0] == "left"


def test_a_lone_hand_is_widened_to_what_stands_out(stubbed: NetLocalizer) -> None:
    """A thumb that reaches past the net's box is in; what is far from the box is not."""
    film = np.full((120, 60), 20, np.uint8)
    film[50:118, 20:40] = 200
    film[70:80, 6:20] = 200  # the thumb
    found = stubbed(np.rot90(film, -1))
    assert found is not None and found.turns == 1
    ((_, (x0, y0, x1, y1)),) = found.hands
    assert (x0, x1) == pytest.approx((0, 60)) and 48 <= y0 <= 60 and y1 == pytest.approx(120, abs=1)


def test_a_turned_film_comes_out_upright(stubbed: NetLocalizer) -> None:
    film = np.full((60, 120), 90, np.uint8)
    recipe = Recipe(size=64, invert="never", carrier="none", margin=0.0)
    (made_of,) = recipe.apply(Film(film, 8), nets=Nets(localizer=stubbed), variants=("crop",))
    assert made_of.turns == 1 and made_of.side == "left"
    assert made_of.box == (0, 60, 60, 120)


# --- what goes wrong ------------------------------------------------------------------------------------------------


def test_a_net_that_detects_nothing_right_says_so(
    caches: dict[str, Cache], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SSD, "detect", lambda self, batch: [detection([], []) for _ in batch.film])
    films = films_with([[[0, 0, 10, 10, 1]]])
    assert choose_threshold(SSD(SSD.Config(), SIZE).eval(), films, CPU).figure == 0
    trained(caches, "ssd", tmp_path / "blind", "epochs=1")
    assert "nothing is detected correctly on the validation films" in capsys.readouterr().err


def test_one_patient_has_no_interval_and_is_measured(runs: dict[str, Run], caches: dict[str, Cache]) -> None:
    """Few patients leave one to test on: the mean stands, its interval cannot be told."""
    model = load_localization_model(runs["unet"], CPU)
    one = caches["unet"].index["patient"][0]
    split = np.where(caches["unet"].index["patient"] == one, "test", "train")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "split_by_patient", lambda cache, seed: split)
        result = evaluate(runs["unet"], model, caches["unet"], CPU, "test")
    assert isinstance(result.figures, ForegroundFigures)
    assert result.patients == 1 and result.figures.dice.interval is None
    assert "[" not in "".join(localization_table(result)[2:])


def test_a_cache_without_masks_teaches_no_segmenter(films: Path, tmp_path: Path) -> None:
    build(
        open_source(films),
        Recipe(name="plain", size=32),
        tmp_path / "p.h5",
        options=BuildOptions(variants=("crop", "full"), workers=1),
    )
    with pytest.raises(InputError, match="takes the whole film as foreground"):
        annotated_rows(Cache(tmp_path / "p.h5"), "masks")


def test_boxes_are_not_learnt_from_mirrored_films(caches: dict[str, Cache]) -> None:
    with pytest.raises(InputError, match="augmentation flips mirrors films"):
        prepare(Plan("ssd", caches["ssd"].path, settings=("augmentation=flips", "size=none")))


@pytest.mark.parametrize("workers", [1, 2])
def test_a_net_that_is_gone_ends_the_build(runs: dict[str, Run], films: Path, tmp_path: Path, workers: int) -> None:
    """It is no fault of the films: they must not become failures of a finished cache."""
    shutil.copytree(runs["unet"].path, tmp_path / "net")
    segmenter = load_segmenter(tmp_path / "net")
    (tmp_path / "net" / "calibration.json").write_text('{"threshold": 0.35}')
    with pytest.raises(InputError, match="has changed while films were prepared"):
        build(
            open_source(films),
            Recipe(size=32),
            tmp_path / "c.h5",
            nets=Nets(segmenter=segmenter),
            options=BuildOptions(variants=("full",), workers=workers),
        )
    assert not (tmp_path / "c.h5").exists()
