"""The benchmark of a GPU, on a processor; and what training does otherwise on a GPU, as far as a processor can tell."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from anomaly.data import loader
from anomaly.data.batch import Batch
from anomaly.data.dataset import Films
from anomaly.data.loader import TrainingBatches
from anomaly.models import find_model
from anomaly.models.base import Step
from anomaly.pipeline.plan import resolve
from anomaly.training import replay
from anomaly.training.device import make_repeatable, repeatable_attention
from anomaly.training.replay import WARM_UP, Replay
from anomaly.training.trainer import Trainer
from benchmarks.gpu.films import draw
from benchmarks.gpu.lines import Lines
from tests.conftest import on_path

ROOT = Path(__file__).parents[1]
ABSENT = """import sys
for name in ('cv2', 'imgaug', 'skimage', 'pydicom', 'nibabel', 'matplotlib', 'sklearn', 'jinja2'):
    sys.modules[name] = None
"""
CPU = torch.device("cpu")


def python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run code in a process in which optional libraries can't be imported."""
    command = [sys.executable, "-c", ABSENT + code, *arguments]
    return subprocess.run(command, env=on_path(ROOT), capture_output=True, text=True, check=False)


def test_it_runs_to_its_end_on_a_processor_without_image_libraries(tmp_path: Path) -> None:
    films, out = tmp_path / "films.h5", tmp_path / "gpu.jsonl"
    assert draw(films, patients=8, size=32) >= 8
    code = "import runpy; sys.argv[0] = 'gpu'; runpy.run_module('benchmarks.gpu', run_name='__main__')"
    small = [
        "--size",
        "32",
        "--check-size",
        "32",
        "--batch",
        "4",
        "--models",
        "cae,feature_mixture",
        "--minutes",
        "2",
    ]
    parts = ["--device", "cpu", "--parts", "rates,check,steps,epochs,scoring,repeat,kernels,compile"]
    done = python(code, "--films", str(films), "--out", str(out), *small, *parts)
    assert done.returncode == 0, done.stderr + done.stdout
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    checked = ["one step", "scores", "scores", "augmentation"]
    parts_done = ["machine", "rates", *checked, "step", "epoch", "grid", "scoring", "scoring"]
    assert [line["section"] for line in lines] == [*parts_done, "repeated and resumed", "end"]
    assert all(line.get("passed", True) and "failed" not in line for line in lines[:-1])
    assert lines[-1]["failed"] == lines[-1]["not_passed"] == lines[-1]["left_out"] == []
    assert all(line["card"].startswith("no GPU") for line in lines)
    grid = next(line for line in lines if line["section"] == "grid")
    assert set(grid["hours_a_seed"]) == {"cae"} and grid["all"] > 0


def test_what_fails_or_no_longer_fits_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    def fail() -> dict[str, Any]:
        raise ValueError("no such kernel")

    lines = Lines(tmp_path / "out.jsonl", 1.0, "a card")
    assert not lines.attempt("step", "broken", fail)
    assert not lines.attempt("step", "long", lambda: {"seconds": 1.0}, needs=3600)
    assert lines.attempt("step", "fine", lambda: {"seconds": 1.0})
    written = [json.loads(line) for line in lines.path.read_text().splitlines()]
    assert [line["case"] for line in written] == ["broken", "fine"] and written[0]["failed"].endswith("no such kernel")
    assert (lines.failed, lines.left_out) == (["step: broken"], ["step: long"])


def test_training_with_augmentation_on_the_device_needs_no_image_library() -> None:
    done = python("import anomaly.training.trainer, anomaly.evaluation.predict, anomaly.pipeline.plan")
    assert done.returncode == 0, done.stderr


def some_films(rng: np.random.Generator, count: int = 11, size: int = 32) -> Films:
    film = rng.integers(0, 256, (count, size, size), dtype=np.uint8)
    return Films(film, film > 60, np.zeros(count, np.int8))


@pytest.mark.parametrize("study", [False, True])
def test_films_that_lie_on_the_device_give_the_same_batches(
    study: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    films = some_films(rng)
    if study:
        films = Films(films.film, films.mask, films.label, study=np.repeat(np.arange(5), 3)[:11])

    def all_batches() -> list[Batch]:
        made = TrainingBatches(
            films, batch_size=4, augmentation="advanced", seed=3, workers=0, device=CPU, augmented_by="device"
        )
        return [batch for number in (1, 2) for batch in made.epoch(number)]

    usual = all_batches()
    monkeypatch.setattr(loader, "_fits", lambda films, device: True)
    there = all_batches()
    assert len(usual) == len(there) >= 2
    for a, b in zip(usual, there, strict=True):
        assert torch.equal(a.film, b.film) and torch.equal(a.mask, b.mask) and torch.equal(a.label, b.label)
        assert (a.study is None) == (b.study is None) and a.studies == b.studies
        assert a.study is None or b.study is None or torch.equal(a.study, b.study)


# --- replaying, with a stand-in for what only a GPU has ---


class Recording:
    """Does the steps of a batch, as a recording would."""

    made: ClassVar[list[tuple[int, ...]]] = []

    def __init__(self, apply_steps: Any, batch: Batch, stream: object, pool: object) -> None:
        self.made.append(tuple(batch.film.shape))
        self.apply_steps = apply_steps

    def play(self, batch: Batch) -> Iterator[Step]:
        return iter(self.apply_steps(batch))


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes of batches that were recorded."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: SimpleNamespace(wait_stream=lambda other: None))
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 0))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(Replay, "_warm_up", lambda self, apply_steps, batch: list(apply_steps(batch)))
    monkeypatch.setattr(Recording, "made", [])
    monkeypatch.setattr(replay, "_Recording", Recording)
    return Recording.made


def batch(count: int, **others: Any) -> Batch:
    film = torch.rand(count, 1, 8, 8)
    return Batch(film, film > 0.2, torch.zeros(count, dtype=torch.int64), **others)


def mean_step(one: Batch) -> Iterator[Step]:
    yield Step("player", mean=one.film.mean())


def test_each_shape_is_recorded_once_after_some_batches_of_it(recorded: list[tuple[int, ...]]) -> None:
    replays = Replay(CPU)
    for count in [4] * (WARM_UP + 3) + [3] * WARM_UP:
        one = batch(count)
        (step,) = replays.steps(mean_step, one)
        assert step.terms["mean"] == one.film.mean()
    assert recorded == [(4, 1, 8, 8)]
    replays.clear()
    for _ in range(WARM_UP + 1):
        list(replays.steps(mean_step, batch(4)))
    assert recorded == [(4, 1, 8, 8)] * 2
    for _ in range(WARM_UP + 1):  # a batch of studies differs in more than its shape
        list(replays.steps(mean_step, batch(4, study=torch.zeros(4, dtype=torch.int64), studies=1)))
    assert len(recorded) == 2


def test_steps_that_cannot_be_recorded_go_on_without_and_say_so_once(
    recorded: list[tuple[int, ...]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*given: object) -> None:
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(replay, "_Recording", refuse)
    replays = Replay(CPU)
    done = [len(list(replays.steps(mean_step, batch(4)))) for _ in range(WARM_UP + 4)]
    assert done == [1] * (WARM_UP + 4)
    said = capsys.readouterr().err
    assert said.count("can't be recorded as a CUDA graph (operation not permitted when stream is capturing)") == 1


def trained(name: str, device: str, *settings: str, films: Films) -> dict[str, torch.Tensor]:
    make_repeatable(torch.device(device))
    given = ("width=4", "size=32", "batch_size=4", "augmented_by=device", *settings)
    config, training = resolve(name, "fast", given)
    torch.manual_seed(0)
    model = find_model(name)(config, 32)
    made = Trainer(model, training, films, films, seed=0, device=torch.device(device), precision="float32", workers=0)
    for number in (1, 2, 3):
        made.train_epoch(number)
    return {key: value.cpu() for key, value in model.state_dict().items()}


@pytest.mark.parametrize(("name", "device", "asked"), [("bigan", "cuda", 2), ("cae", "cuda", 0), ("bigan", "cpu", 2)])
def test_repeatable_kernels_are_asked_for_where_attention_needs_them(name: str, device: str, asked: int) -> None:
    usual = 2 if device == "cpu" else 0  # torch's numbers: 2 refuses what isn't repeatable
    torch.set_deterministic_debug_mode(usual)
    model = find_model(name)(resolve(name, "fast", ("width=4",))[0], 32)
    with pytest.raises(ValueError, match="diverged"), repeatable_attention(torch.device(device), model):
        assert torch.get_deterministic_debug_mode() == asked
        raise ValueError("diverged")
    assert torch.get_deterministic_debug_mode() == usual


def test_a_new_learning_rate_discards_recordings(recorded: list[tuple[int, ...]], rng: np.random.Generator) -> None:
    config, training = resolve("cae", "fast", ("size=32", "width=4", "batch_size=2", "schedule=cosine", "epochs=4"))
    films = some_films(rng, 10)
    model = find_model("cae")(config, 32)
    made = Trainer(model, training, films, films, seed=0, device=CPU, precision="float32", workers=0)
    assert made.replay is None  # a processor launches nothing
    made.replay = Replay(CPU)
    for number in (1, 2):
        made._remember(made.train_epoch(number))
    assert len(recorded) == 2  # once an epoch, each with its own rate


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", ["cae", "vae", "dcgan"])
def test_replayed_steps_give_the_weights_of_steps_launched_one_by_one(name: str, rng: np.random.Generator) -> None:
    films = some_films(rng, 18)
    first, other = (trained(name, "cuda", f"cuda_graph={on}", films=films) for on in ("true", "false"))
    assert all(torch.equal(value, other[key]) for key, value in first.items())
