"""The examples of docs/development.md, run as they stand: a model in one file and one line, a preprocessing step."""

import ast
import doctest
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import anomaly.models
from anomaly.data.batch import Batch
from anomaly.models.base import Detector
from anomaly.models.reconstructor import Reconstructor
from anomaly.pipeline.loaded_run import LoadedRun
from preprocessing import recipe
from preprocessing.cache.reader import Cache
from preprocessing.readers import Film
from preprocessing.recipe import Recipe
from preprocessing.steps import levels

ROOT = Path(__file__).parents[1]
MODEL, LINE, STEP = re.findall(
    r"^```python\n(.*?)^```$", (ROOT / "docs/development.md").read_text(), re.DOTALL | re.MULTILINE
)
NAME, WHERE = next(iter(ast.literal_eval(f"{{{LINE.strip()}}}").items()))


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The registry with the example's line, and the example's file among the models."""
    folder = tmp_path_factory.mktemp("models")
    module = WHERE.partition(":")[0]
    (folder / f"{module.rpartition('.')[2]}.py").write_text(MODEL)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anomaly.models, "__path__", [*anomaly.models.__path__, str(folder)])
        patch.setitem(anomaly.models.ZOO, NAME, WHERE)
        yield
        sys.modules.pop(module, None)


@pytest.fixture(scope="module")
def run(zoo: None, cache: Cache, tmp_path_factory: pytest.TempPathFactory) -> LoadedRun:
    """The example after one epoch."""
    out = tmp_path_factory.mktemp("runs") / NAME
    return anomaly.train(
        NAME, cache.path, variant="full-he", preset="fast", settings={"epochs": 1}, out=out, device="cpu", quiet=True
    )


def test_the_model_is_trained_scores_films_and_draws_heatmaps(run: LoadedRun, films: Path) -> None:
    assert (run.model, run.scores[0]) == (NAME, "mse") and NAME in anomaly.list_models()
    new = sorted(films.rglob("*.png"))[:3]
    result = run.score(new)
    assert len(result.films) == len(new)
    assert len(list(run.heatmap(new))) == len(new)


@pytest.fixture
def model(zoo: None) -> Detector:
    """The example, not trained, with a reference of four films of noise."""
    kind = anomaly.models.find_detector(NAME)
    torch.manual_seed(0)
    model = kind(kind.Config(width=4), 32).eval()
    assert isinstance(model, Reconstructor)
    with torch.inference_mode():
        model.fit_reference([noise(4)])
    return model


def noise(count: int) -> Batch:
    """Films of noise whose mask leaves a rim."""
    mask = torch.zeros(count, 1, 32, 32, dtype=torch.bool)
    mask[:, :, 4:28, 4:28] = True
    film = torch.rand(count, 1, 32, 32, generator=torch.Generator().manual_seed(1)) * mask
    return Batch(film, mask, torch.zeros(count, dtype=torch.int64))


def test_the_model_keeps_the_contract(model: Detector) -> None:
    owned = [id(p) for modules in model.players().values() for module in modules for p in module.parameters()]
    assert len(owned) == len(set(owned)) and set(owned) == {id(p) for p in model.parameters()}
    assert {"standard", "fast"} <= set(model.presets)
    assert all(field.description for field in model.Config.model_fields.values())
    batch = noise(4)
    with torch.inference_mode():
        whole = model.predict(batch, maps=True)
        assert set(whole.scores) == set(model.score_names) and whole.map is not None
        assert (whole.map >= 0).all() and (whole.map[~batch.mask] == 0).all() and (whole.map[batch.mask] > 0).any()
        for i in range(4):
            alone = model.predict(Batch(batch.film[i : i + 1], batch.mask[i : i + 1], batch.label[i : i + 1]))
            for key, values in whole.scores.items():
                assert values.shape == (4,) and values.isfinite().all()
                torch.testing.assert_close(alone.scores[key][0], values[i], rtol=1e-4, atol=1e-6)


def test_the_files_pass_the_linters() -> None:
    ruff = shutil.which("ruff", path=str(Path(sys.executable).parent))
    assert ruff, "make setup installs ruff"
    step = [
        "--extend-ignore",
        "F821,D100",
    ]  # it stands among others in levels.py, with imports and a docstring
    for place, code, extra in (("anomaly/models/linear.py", MODEL, []), ("preprocessing/root.py", STEP, step)):
        for verb in (["check", *extra], ["format", "--check"]):
            done = subprocess.run(
                [ruff, *verb, "--no-cache", "--stdin-filename", place, "-"],
                cwd=ROOT,
                input=code,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, done.stdout + done.stderr


def test_the_step_does_what_its_docstring_says_and_makes_a_variant(monkeypatch: pytest.MonkeyPatch) -> None:
    names = dict(vars(levels))
    exec(STEP, names)
    step = names["square_root"]
    (example,) = doctest.DocTestFinder().find(step, "square_root", module=False, globs=names)
    assert example.examples and doctest.DocTestRunner().run(example).failed == 0
    for flat in (np.full((4, 4), 9, np.uint8), np.full((4, 4), 9, np.uint16)):
        made = step(flat, np.ones((4, 4), bool))
        assert made.dtype == flat.dtype and not made.any()
    monkeypatch.setitem(recipe.SPREADS, "sqrt", step)
    monkeypatch.setattr(recipe, "VARIANTS", (*recipe.VARIANTS, "full-sqrt"))
    ramp = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    (prepared,) = Recipe(name="plain", size=32).apply(Film(ramp, 8), variants=("full", "full-sqrt"))
    plain, brighter = prepared.films["full"].astype(int), prepared.films["full-sqrt"].astype(int)
    assert (brighter >= plain).all() and (brighter > plain).any()
