"""Built-in films, a cache and a trained run, small and made once.

With ANOMALY_TEST_BFLOAT16=0 in the environment all tests run, the processes that they start too, as on a processor
without bfloat16: `--precision auto` then trains in float32. What asks for bfloat16 by name still gets it.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.plan import Plan, prepare
from anomaly.runs import Run
from preprocessing.build import BuildOptions, build
from preprocessing.cache.reader import Cache
from preprocessing.phantom import write_phantoms
from preprocessing.recipe import VARIANTS, Recipe
from preprocessing.sources import open_source

from .browser import Browser


def on_path(folder: Path) -> dict[str, str]:
    """The environment for a process that imports from `folder` too."""
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])}


os.environ["ANOMALY_MEASURE"] = "0"  # precision by the processor's instructions, not by what a busy machine measures

collect_ignore = ["without_bfloat16"]  # imported by the processes that it is for, and not to be imported here
WITHOUT_BFLOAT16 = Path(__file__).parent / "without_bfloat16"
if os.environ.get("ANOMALY_TEST_BFLOAT16") == "0":
    torch.cpu._is_avx512_bf16_supported = lambda: False  # what anomaly.training.device.has_avx512_bf16 asks
    os.environ |= on_path(WITHOUT_BFLOAT16)


hypothesis.settings.register_profile("suite", deadline=None)  # seconds of the clock say how busy the machine is
hypothesis.settings.load_profile("suite")

TINY = ("width=4", "epochs=3", "batch_size=8", "augmentation=advanced")
"""Settings under which any model trains in a second."""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test works in a folder of its own: relative paths such as cache/ and runs/ go there. Whatever tests ran
    before it, it draws the same random numbers and has as many threads: their number decides the rounding.
    """
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.set_deterministic_debug_mode("default")


SHARED: dict[Path, dict[str, int]] = {}
"""Folder that all tests share -> its files, with the time of their last change."""


def _files(folder: Path) -> dict[str, int]:
    return {one.name: one.stat().st_mtime_ns for one in folder.iterdir() if one.name != ".lock"}


def shared(run: Run) -> Run:
    """Have each test checked for writing into a run's folder, from now on."""
    SHARED[run.path] = _files(run.path)
    return run


@pytest.fixture(autouse=True)
def _shared_stays_as_it_is() -> Iterator[None]:
    """A test that writes into what all share makes others depend on the order of the tests."""
    yield
    for folder, files in SHARED.items():
        now = _files(folder)
        SHARED[folder] = now
        assert now == files, f"the test wrote into {folder}: let it copy the folder first"


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers for every test, whichever tests run before it."""
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of built-in films."""
    out = tmp_path_factory.mktemp("source") / "films"
    write_phantoms(out, seed=1, patients=24, size=128)
    return out


@pytest.fixture(scope="session")
def cache(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Cache:
    """All variants of them at 64 px."""
    path = tmp_path_factory.mktemp("cache") / "films.h5"
    build(open_source(films), Recipe(name="limb", size=64), path, options=BuildOptions(variants=VARIANTS, workers=1))
    return Cache(path)


@pytest.fixture(scope="session")
def run(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained run."""
    prepared = prepare(Plan("cae", cache.path, "full-he", settings=TINY, device="cpu"))
    folder = continue_or_create(prepared, tmp_path_factory.mktemp("runs") / "cae", resume=False)
    return shared(fit(prepared, folder, workers=0, on_epoch=lambda report: None))


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Headless Chromium; the tests that use it are marked `needs_browser`."""
    one = Browser(tmp_path_factory.mktemp("chromium"))
    yield one
    one.close()


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[tuple[str, list[subprocess.Popen[bytes]]]]:
    """A Dask scheduler and two workers on this machine: address and processes."""
    pytest.importorskip("distributed")
    place = tmp_path / "scheduler.json"
    environment = on_path(Path(__file__).parents[1]) | {"DASK_LOGGING__DISTRIBUTED": "critical"}
    local = ["--host", "127.0.0.1", "--no-dashboard"]

    def run(program: str, *arguments: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", f"distributed.cli.dask_{program}", "--scheduler-file", str(place), *arguments]
        return subprocess.Popen(words, cwd=tmp_path, env=environment, stderr=subprocess.DEVNULL)

    worker = ["--no-nanny", "--nthreads", "1", "--local-directory", str(tmp_path / "dask"), "--death-timeout", "60"]
    processes = [run("scheduler", "--port", "0", *local), *(run("worker", *worker, *local) for _ in range(2))]
    while not place.exists():
        assert processes[0].poll() is None
        time.sleep(0.05)
    yield json.loads(place.read_text())["address"], processes
    for process in processes:
        process.kill()
        process.wait()
