"""The loop: repeatable, resumable to the bit, and careful with what it leaves behind."""

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from anomaly.data.batch import Batch, as_batch
from anomaly.data.dataset import Films, FilmSet
from anomaly.models import TOOLS, ZOO, find_model
from anomaly.models.base import Step
from anomaly.models.cae import CAE
from anomaly.models.vae import VAE, VAEConfig
from anomaly.nn.blocks import ToPoint
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.options import Plan
from anomaly.pipeline.plan import prepare, resolve
from anomaly.runs import Run, Warnings
from anomaly.sealed import unsealed
from anomaly.training.compiling import compilable
from anomaly.training.config import EpochReport, TrainConfig
from anomaly.training.device import choose_device, choose_precision
from anomaly.training.trainer import Trainer, corrupt
from preprocessing import InputError
from preprocessing.cache.reader import Cache

from .conftest import TINY, WITHOUT_BFLOAT16, on_path


class Stopped(Exception):
    """Stands for whatever ends a process."""


def plan(cache: Cache, *settings: str, **more: object) -> Plan:
    return Plan("cae", cache.path, settings=(*TINY, *settings), device="cpu", **more)  # type: ignore[arg-type]


def trained(cache: Cache, out: Path, *settings: str, **more: object) -> Run:
    return fit_plan(plan(cache, *settings, **more), out)


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "weights.safetensors")


def same(a: Run, b: Run) -> bool:
    x, y = weights(a), weights(b)
    return x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x)


def test_a_run_folder_holds_what_its_docstring_says(run: Run) -> None:
    names = {p.name for p in run.path.iterdir()}
    expected = {"run.json", "history.csv", "warnings.json", "weights.safetensors", "calibration.json"}
    expected |= {"films.safetensors"}
    expected |= {"learning_curve.png", "reconstructions.png", "manifest.json"}
    assert names - {".lock", ".manifest.lock"} == expected
    assert run.finished and run.config.films["train"] >= 8
    assert len((run.path / "history.csv").read_text().splitlines()) == 4  # a header and three epochs


def test_the_same_seed_gives_the_same_run_and_another_gives_another(cache: Cache, tmp_path: Path) -> None:
    first = trained(cache, tmp_path / "a", seed=0)
    assert same(first, trained(cache, tmp_path / "b", seed=0))
    assert not same(first, trained(cache, tmp_path / "c", seed=1))


@pytest.mark.parametrize("keep", ["best", "last"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resuming_is_exact_at_every_epoch(
    cache: Cache, tmp_path: Path, stop: int, keep: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(cache, tmp_path / "whole", f"keep={keep}")
    original = Trainer.run
    monkeypatch.setattr(Trainer, "run", lambda self, *arguments: original(self, *arguments, checkpoint_seconds=0.0))

    def interrupt(report: EpochReport) -> None:
        if report.epoch == stop:
            raise Stopped

    prepared = prepare(plan(cache, f"keep={keep}"))
    run = continue_or_create(prepared, tmp_path / "parts", resume=False)
    with pytest.raises(Stopped):
        fit(prepared, run, workers=0, on_epoch=interrupt)
    assert not run.finished and run.epochs_done() == stop
    seen: list[int] = []
    resumed = continue_or_create(prepared, run.path, resume=True)
    fit(prepared, resumed, workers=0, on_epoch=lambda report: seen.append(report.epoch))
    assert seen == list(range(stop + 1, 4))
    assert same(whole, resumed) and not (run.path / "checkpoint.safetensors").exists()
    assert losses(resumed) == losses(whole)


def losses(run: Run) -> list[list[str]]:
    """All of the history but seconds and films/s, which no two runs share."""
    lines = (run.path / "history.csv").read_text().splitlines()
    return [[line.split(",")[0], *line.split(",")[3:]] for line in lines]


@pytest.mark.parametrize("out", [[], ["--out", "mine"]])
def test_a_killed_training_goes_on_with_the_same_command(cache: Cache, tmp_path: Path, out: list[str]) -> None:
    settings = (*TINY, "epochs=30", "patience=0")
    command = [sys.executable, "-m", "anomaly", "train", "cae", "--cache", str(cache.path), "--device", "cpu", *out]
    command += [word for setting in settings for word in ("--set", setting)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    folder = tmp_path / (out[-1] if out else "runs/cae-1")
    deadline = time.monotonic() + 60
    while not (folder / "checkpoint.safetensors").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert (folder / "checkpoint.safetensors").exists() and not (folder / "calibration.json").exists()
    again = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "resuming after epoch" in again.stdout and f"{folder.name}: trained for 30" in again.stdout
    # The same in this process, with as many threads: another number of them rounds otherwise.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        whole = fit_plan(Plan("cae", cache.path, settings=settings, device="cpu"), tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert same(Run(folder), whole)


def fit_plan(chosen: Plan, out: Path) -> Run:
    prepared = prepare(chosen)
    return fit(prepared, continue_or_create(prepared, out, resume=False), workers=0, on_epoch=lambda report: None)


def test_resuming_with_other_settings_is_refused_with_the_difference(cache: Cache, tmp_path: Path) -> None:
    run = trained(cache, tmp_path / "a")
    with pytest.raises(InputError, match=r"settings.training.epochs: 3 -> 9"):
        continue_or_create(prepare(plan(cache, "epochs=9")), run.path, resume=True)
    with pytest.raises(InputError, match="exists and is finished; choose another --out"):
        continue_or_create(prepare(plan(cache)), run.path, resume=False)
    assert continue_or_create(prepare(plan(cache)), run.path, resume=True).finished
    with pytest.raises(InputError, match="has no unfinished cae with these settings"):
        continue_or_create(prepare(plan(cache)), None, resume=True)
    with pytest.raises(InputError, match="is not a run folder that can be resumed"):
        continue_or_create(prepare(plan(cache)), tmp_path / "b", resume=True)


def test_what_a_kill_left_before_the_run_began_bars_nothing(cache: Cache) -> None:
    for left in ("runs/cae-3", "runs/.cae-4.partial"):
        Path(left).mkdir(parents=True)
    assert continue_or_create(prepare(plan(cache)), None, resume=False).path == Path("runs/cae-4")
    # of other settings: a run of its own
    assert continue_or_create(prepare(plan(cache, "epochs=9")), None, resume=False).path == Path("runs/cae-5")
    assert continue_or_create(prepare(plan(cache)), None, resume=False).path == Path("runs/cae-4")


def test_the_same_films_under_another_path_are_the_same(cache: Cache, tmp_path: Path) -> None:
    copy = tmp_path / "copy.h5"
    copy.write_bytes(cache.path.read_bytes())
    first = continue_or_create(prepare(plan(cache)), None, resume=False)
    assert (
        continue_or_create(prepare(Plan("cae", copy, settings=TINY, device="cpu")), None, resume=False).path
        == first.path
    )


def test_two_processes_do_not_train_in_one_folder(cache: Cache, tmp_path: Path) -> None:
    prepared = prepare(plan(cache))
    run = continue_or_create(prepared, tmp_path / "a", resume=False)
    with run.locked(), pytest.raises(InputError, match="is being trained by another process"):
        fit(prepared, run, workers=0, on_epoch=lambda report: None)


def test_a_damaged_checkpoint_is_named(cache: Cache, tmp_path: Path) -> None:
    prepared = prepare(plan(cache))
    run = continue_or_create(prepared, tmp_path / "a", resume=False)
    (run.path / "checkpoint.safetensors").write_bytes(b"\x10" * 100)
    with pytest.raises(InputError, match=r"checkpoint.safetensors is damaged"):
        fit(prepared, run, workers=0, on_epoch=lambda report: None)


class Diverging(CAE):
    """A CAE whose loss is not a number from the fifth step on."""

    steps = 0

    def training_steps(self, batch: Batch) -> Iterator[Step]:
        for step in super().training_steps(batch):
            self.steps += 1
            yield Step(step.player, mse=step.terms["mse"] * (math.nan if self.steps >= 5 else 1.0))


def test_a_loss_that_is_not_finite_stops_and_is_named(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anomaly.pipeline.plan.find_model", lambda name: Diverging)
    with pytest.raises(InputError, match=r"loss term autoencoder.mse is not finite from step \d of epoch [12]"):
        trained(cache, tmp_path / "a", "epochs=20")


def test_a_validation_loss_that_is_not_finite_stops_too(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Trainer, "_validate", lambda self: {"validation": math.inf if self.state.epoch else 1.0})
    with pytest.raises(InputError, match="the validation loss is not finite after epoch 2"):
        trained(cache, tmp_path / "a")
    assert Run(tmp_path / "a").epochs_done() == 1


def test_training_stops_early_and_keeps_the_best(cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([5.0, 3.0, 4.0, 3.5, 3.2, 1.0, 0.5])
    monkeypatch.setattr(Trainer, "_validate", lambda self: {"validation": next(losses)})
    reports: list[EpochReport] = []
    prepared = prepare(plan(cache, "epochs=7", "patience=3"))
    fit(prepared, continue_or_create(prepared, tmp_path / "a", resume=False), workers=0, on_epoch=reports.append)
    assert [r.epoch for r in reports] == [1, 2, 3, 4, 5] and reports[-1].best_epoch == 2


def test_keeping_the_last_differs_from_keeping_the_best(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        Trainer, "_validate", lambda self: {"validation": float(self.state.epoch + 1)}
    )  # only ever worse
    best, last = (trained(cache, tmp_path / k, f"keep={k}", "patience=0") for k in ("best", "last"))
    assert not same(best, last)
    first = trained(cache, tmp_path / "one", "keep=last", "epochs=1")
    assert same(best, first)


def test_films_that_are_abnormal_only_are_no_training_set(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    index = {**cache.index, "label": np.ones(len(cache), np.int8)}
    monkeypatch.setattr(Cache, "index", index)
    with pytest.raises(InputError, match="has 0 normal films to train on"):
        prepare(plan(cache))


def test_sizes_variants_devices_and_precisions_are_checked(cache: Cache) -> None:
    with pytest.raises(InputError, match=r"needs a film side that is a multiple of 32; .* has 64 px"):
        prepare(plan(cache, "size=48"))
    with pytest.raises(InputError, match="holds films of 64 px, but cae is set to 512"):
        prepare(Plan("cae", cache.path, preset="paper", device="cpu"))
    with pytest.raises(InputError, match="no variant 'fulll'; there are: raw"):
        prepare(plan(cache, variant="fulll"))
    with pytest.raises(InputError, match="no device 'gpu'"):
        choose_device("gpu")
    with pytest.raises(InputError, match="no precision 'half'; there are: auto, float32, bfloat16"):
        choose_precision("half", torch.device("cpu"), pays=True)


@pytest.mark.parametrize("able", [True, False, None])
def test_auto_takes_bfloat16_where_the_processor_has_it_and_it_pays(
    able: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if able is None:
        monkeypatch.delattr(torch.cpu, "_is_avx512_bf16_supported", raising=False)  # as in some other torch
    else:
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: able, raising=False)
    cpu = torch.device("cpu")
    assert choose_precision("auto", cpu, pays=True) == ("bfloat16" if able else "float32")
    assert choose_precision("auto", cpu, pays=False) == "float32"
    assert choose_precision("bfloat16", cpu, pays=False) == "bfloat16"


def test_processes_of_tests_can_be_kept_from_bfloat16() -> None:
    code = "import sys; at_start = 'torch' in sys.modules; from anomaly.training.device import has_avx512_bf16, torch\n"
    code += "print(at_start, has_avx512_bf16(), torch.cpu._is_avx512_bf16_supported.__module__)"
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=on_path(WITHOUT_BFLOAT16), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False", "sitecustomize"]


def test_run_json_says_what_made_the_run(run: Run, cache: Cache) -> None:
    assert unsealed((run.path / "run.json").read_text()) == run.config.model_dump()
    config = Run(run.path).config
    assert config.cache.content_hash == cache.content_hash and config.cache.synthetic is True
    assert config.settings.model["width"] == 4 and config.seed == 0
    assert {"torch", "numpy", "xray-anomaly", "python"} <= set(config.versions)


def test_a_denoising_training_shows_a_damaged_film_and_asks_for_the_plain_one(cache: Cache) -> None:
    rows = (cache.index["label"] == 0).nonzero()[0][:8]
    batch = as_batch(FilmSet(cache, "full-he", rows, 64).read(), torch.device("cpu"))
    assert corrupt(batch, TrainConfig()).model_input is batch.film
    for settings in ({"noise": 0.2}, {"noise": 0.2, "noise_cell": 8}, {"erase": 0.3}, {"noise": 0.1, "erase": 0.5}):
        hurt = corrupt(batch, TrainConfig.model_validate(settings))
        assert torch.equal(hurt.film, batch.film) and not torch.equal(hurt.model_input, batch.film)
        assert (hurt.model_input[~batch.mask] == 0).all()
    noisy = corrupt(batch, TrainConfig(noise=0.2))
    assert float((noisy.model_input - batch.film)[batch.mask].std()) == pytest.approx(0.2, rel=0.1)
    inside = batch.mask & (batch.film > 0)
    holes = [(corrupt(batch, TrainConfig(erase=0.3)).model_input == 0)[inside].float().mean() for _ in range(32)]
    # Holes are large: of one batch the share has a standard deviation of .035, of 32 batches .006.
    assert float(torch.stack(holes).mean()) == pytest.approx(0.3, abs=0.03)


def test_a_warning_is_said_once_and_kept_with_its_epochs(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CAE, "warnings", lambda self, figures: [f"it fails (by {figures['validation']}): do less"])
    said: list[str] = []
    prepared = prepare(plan(cache))
    run = continue_or_create(prepared, tmp_path / "run", resume=False)
    fit(prepared, run, workers=0, on_epoch=lambda report: said.extend(report.warnings))
    assert len(said) == 1
    kept = run.read("warnings.json", Warnings).warnings
    assert [(warning.first, warning.last) for warning in kept] == [(1, 3)] and kept[0].text.startswith("it fails (by")
    assert [text.startswith("epochs 1 to 3: it fails") for text in run.warnings()] == [True]


def test_a_collapsed_posterior_is_named() -> None:
    model = VAE(VAEConfig(width=1, latent=4), 64)
    assert model.warnings({"kl_nats": 20.0}) == []
    (text,) = model.warnings({"kl_nats": 0.01})
    assert "posterior collapses" in text and "--set beta=" in text


@pytest.mark.parametrize("setting", ["noise=0.2", "erase=0.25"])
def test_damage_is_refused_by_a_model_that_mends_nothing(cache: Cache, setting: str) -> None:
    with pytest.raises(InputError, match="dcgan doesn't reconstruct"):
        prepare(Plan("dcgan", cache.path, preset="fast", settings=(setting,), device="cpu"))
    assert prepare(Plan("bigan", cache.path, preset="fast", settings=(setting,), device="cpu"))


def test_a_tracker_is_told_what_the_history_says(cache: Cache, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    prepared = prepare(plan(cache))
    run = continue_or_create(prepared, tmp_path / "a", resume=False)
    fit(prepared, run, workers=0, on_epoch=lambda report: None, track="tensorboard")
    assert list((run.path / "tensorboard").glob("events.*")) and len(run.history()) == 3


def test_films_that_outgrow_the_memory_are_read_as_needed_with_the_same_result(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = trained(cache, tmp_path / "kept", "epochs=2")
    monkeypatch.setattr("anomaly.pipeline.plan.free_memory", lambda: 1000)
    prepared = prepare(plan(cache, "epochs=2"))
    said = prepared.outgrown
    assert said and "of films stay in" in said
    few = len(prepared.films("val")) // 2  # pictures are drawn of some films

    def read(films: FilmSet) -> Films:
        assert len(films) <= few, "read whole"
        return films.part(slice(None))

    monkeypatch.setattr(FilmSet, "read", read)
    assert same(kept, trained(cache, tmp_path / "read", "epochs=2"))


def test_every_player_is_compiled_where_that_is_asked_for(
    cache: Cache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module: compiled.append(module))
    trained(cache, tmp_path / "plain", "epochs=1")
    assert not compiled
    trained(cache, tmp_path / "compiled", "epochs=1", "compile=true")
    assert len(compiled) == 2  # encoder and decoder


@pytest.mark.parametrize("name", [name for name in (*ZOO, *TOOLS) if find_model(name).presets])
def test_all_convolutions_on_maps_are_compiled(name: str) -> None:
    """Of every player, those too that aren't called as a whole."""
    kind = find_model(name)
    model = kind(resolve(name, "fast" if "fast" in kind.presets else "standard", ())[0], 64)
    for player, modules in model.players().items():
        inside = {layer for part in compilable({player: modules}) for layer in part.modules()}
        layers = {layer for module in modules for layer in module.modules() if isinstance(layer, nn.Conv2d)}
        assert inside and {layer for layer in layers - inside if not isinstance(layer, ToPoint)} == set()


def test_a_training_killed_before_its_last_step_is_recognized(cache: Cache) -> None:
    """Between calibration.json, which says that the run is whole, and the removal of the checkpoint."""
    prepared = prepare(plan(cache))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        unlink = Path.unlink

        def killed(path: Path, missing_ok: bool = False) -> None:
            if path.name == "checkpoint.safetensors":
                raise KeyboardInterrupt
            unlink(path, missing_ok=missing_ok)

        patch.setattr(Path, "unlink", killed)
        fit(prepared, continue_or_create(prepared, None, resume=False), workers=0, on_epoch=lambda report: None)
    weights = Path("runs/cae-1/weights.safetensors").read_bytes()
    run = continue_or_create(prepared, None, resume=False)
    assert run.path == Path("runs/cae-1") and run.finished and not run.ended
    fit(prepared, run, workers=0, on_epoch=lambda report: None)
    assert run.ended and Path("runs/cae-1/weights.safetensors").read_bytes() == weights
    assert continue_or_create(prepared, None, resume=False).path == Path("runs/cae-2")


def test_a_resume_on_another_number_of_threads_is_recorded(
    cache: Cache, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare(plan(cache))
    run = continue_or_create(prepared, tmp_path / "run", resume=False)

    def stop(report: EpochReport) -> None:
        raise KeyboardInterrupt

    for threads in (1, 1, 2):
        torch.set_num_threads(threads)
        with pytest.raises(KeyboardInterrupt):
            fit(prepared, continue_or_create(prepared, run.path, resume=True), workers=0, on_epoch=stop)
        assert ("was trained with 1 thread so far, now with 2" in capsys.readouterr().err) == (threads == 2)
    assert Run(run.path).config.threads == [1, 2]
