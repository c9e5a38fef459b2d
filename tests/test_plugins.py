"""Models of other packages: found without being run, trained and scored like the built-in ones, refused in one line."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import anomaly.models
from anomaly.models import ZOO, find_model, headline, zoo
from preprocessing import InputError
from preprocessing.cache.reader import Cache

from .conftest import on_path

TOY = '''
"""How far a film is from one that is learned."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from anomaly.data.batch import Batch
from anomaly.models.base import Detector, Prediction, Settings, Step
from anomaly.nn.losses import masked_mean, squared_error

print("TOY RUNS")


class ToyConfig(Settings):
    grey: float = 0.5
    """Grey to begin with."""


class Toy(Detector):
    """One film for all."""

    Config = ToyConfig
    presets = {"standard": {"epochs": 5, "augmentation": "none"}}
    score_names = ("distance",)

    def __init__(self, config: ToyConfig, size: int) -> None:
        super().__init__()
        self.film = nn.ParameterList([torch.full((1, 1, size, size), config.grey)])

    def players(self) -> dict[str, list[nn.Module]]:
        return {"film": [self.film]}

    def training_steps(self, batch: Batch) -> Iterator[Step]:
        yield Step("film", distance=self.validation_loss(batch).mean())

    def validation_loss(self, batch: Batch) -> Tensor:
        return self.predict(batch).scores["distance"]

    def predict(self, batch: Batch, *, maps: bool = False) -> Prediction:
        return Prediction({"distance": masked_mean(squared_error(batch.film, self.film[0], batch.mask), batch.mask)})
'''


def install(folder: Path, package: str, models: dict[str, str], **modules: str) -> None:
    """Put a package into a folder of installed ones, as pip leaves it there."""
    info = folder / f"{package.replace('-', '_')}-0.1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.1\n")
    points = "".join(f"{name} = {where}\n" for name, where in models.items())
    (info / "entry_points.txt").write_text(f"[anomaly.models]\n{points}")
    for name, code in modules.items():
        (folder / f"{name}.py").write_text(code)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of installed packages that this process finds."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    anomaly.models._others.cache_clear()
    yield folder
    anomaly.models._others.cache_clear()


def test_a_model_of_another_package_is_listed_trained_and_scored(cache: Cache, site: Path) -> None:
    install(site, "toy-package", {"toy": "toy_package:Toy"}, toy_package=TOY)

    def typed(*commands: str) -> str:
        code = (
            "import sys; from anomaly.cli.app import main\n"
            "for command in sys.argv[1:]:\n"
            "    sys.argv = ['anomaly', *command.split()]\n"
            "    try: main()\n"
            "    except SystemExit as stop: assert not stop.code, stop.code\n"
            "print('torch', 'torch' in sys.modules)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, *commands],
            env=on_path(site),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0 and not done.stderr.startswith("note"), done.stderr
        return done.stdout

    listed = typed("models")
    line = next(line for line in listed.splitlines() if line.startswith("toy "))
    assert line.endswith(" How far a film is from one that is learned. (of the package toy-package)")
    assert "TOY RUNS" not in listed and listed.endswith("torch False\n")
    out = typed(
        f"train toy --cache {cache.path} --set epochs=1 --device cpu", "score runs/toy-1 --device cpu", "models toy"
    )
    assert "TOY RUNS" in out and "next: anomaly score runs/toy-1" in out
    assert "| distance " in out
    assert "toy (of the package toy-package): One film for all." in out
    assert "Grey to begin with." in out and "epochs=5" in out


@pytest.mark.parametrize(
    ("where", "code", "reason"),
    [
        ("absent_module:Toy", "", "can't be loaded (ModuleNotFoundError: No module named 'absent_module')"),
        ("raises_error:Toy", "raise RuntimeError('no\\nlicence')", "can't be loaded (RuntimeError: no licence)"),
        ("lacks_class:Toy", "", "can't be loaded (AttributeError: module 'lacks_class' has no attribute 'Toy')"),
        ("names_none", "", "can't be loaded (AttributeError: module 'names_none' has no attribute '')"),
        ("not_model:Toy", "class Toy: pass", "is not a subclass of anomaly.models.base.Detector"),
        ("not_class:Toy", "Toy = 3", "is not a subclass of anomaly.models.base.Detector"),
        (
            "half_model:Toy",
            "from anomaly.models.base import Detector\nclass Toy(Detector): Config = presets = score_names = ()",
            "has no predict",
        ),
        ("bare_model:Toy", TOY.replace("    score_names", "    names"), "has no score_names"),
    ],
)
def test_what_is_no_model_is_refused_when_it_is_used(site: Path, where: str, code: str, reason: str) -> None:
    module = where.partition(":")[0]
    install(site, "toy-package", {"toy": where}, **({module: code} if code or module != "absent_module" else {}))
    assert zoo()["toy"].package == "toy-package"
    headline(where)  # the list stands, whatever is wrong with it
    find_model("cae")  # nor does it touch the others
    with pytest.raises(InputError) as refusal:
        find_model("toy")
    assert str(refusal.value) == (
        f"model 'toy' of the package toy-package {reason}; update the package, or remove it: pip uninstall toy-package"
    )


def test_a_name_that_is_taken_is_left_out_with_a_note(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(site, "another", {"cae": "another:CAE", "toy": "another:Toy"})
    install(site, "toy-package", {"toy": "toy_package:Toy"})
    assert zoo()["cae"].where == ZOO["cae"] and find_model("cae").__module__ == "anomaly.models.cae"
    assert zoo()["toy"].package == "another"
    assert capsys.readouterr().err.splitlines() == [
        "note: model 'cae' of the package another is left out: anomaly itself has one of that name",
        "note: model 'toy' of the package toy-package is left out: the package another has one of that name",
    ]
    with pytest.raises(InputError, match=r"no model 'tyo'; there are: .*cae, .*toy, unet, vae"):
        find_model("tyo")


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ('"""Of the module.\n\nMore."""\nclass Toy:\n    """Of the class."""', "Of the module."),
        ('class Toy:\n    """Of the class."""', "Of the class."),
        ("class Toy: pass", ""),
        ("class Toy:", ""),
        ('"""   """', ""),
    ],
)
def test_a_headline_is_read_and_nothing_is_run(site: Path, code: str, found: str) -> None:
    package = site / "outer_package"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('is run')")
    (package / "inner.py").write_text(code)
    assert headline("outer_package.inner:Toy") == found
    assert headline("outer_package.absent:Toy") == headline("outer_package.inner.absent:Toy") == ""
    assert headline("sys:Toy") == ""  # no file
