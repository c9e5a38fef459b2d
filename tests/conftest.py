"""Built-in films, a cache and a trained run, small and made once."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from anomaly.fit import Plan, continue_or_create, fit, prepare
from anomaly.runs import Run
from preprocessing.build import build
from preprocessing.phantom import write_phantoms
from preprocessing.recipe import VARIANTS, Recipe
from preprocessing.schema import Cache
from preprocessing.sources import open_source

TINY = ("width=4", "epochs=3", "batch_size=8", "augmentation=advanced")
"""Settings under which any model trains in a second."""


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test works in a folder of its own: relative paths such as cache/ and runs/ go there."""
    monkeypatch.chdir(tmp_path)
    yield
    torch.use_deterministic_algorithms(False)


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
    build(open_source(films), Recipe(name="hand", size=64), path, variants=VARIANTS, workers=1)
    return Cache(path)


@pytest.fixture(scope="session")
def run(cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A trained run."""
    prepared = prepare(Plan("cae", cache.path, "full-he", settings=TINY, device="cpu"))
    folder = continue_or_create(prepared, tmp_path_factory.mktemp("runs") / "cae", resume=False)
    return fit(prepared, folder, workers=0, on_epoch=lambda report: None)
