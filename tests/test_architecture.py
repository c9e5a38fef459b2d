"""Imports point down, and `--help` imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from anomaly.models import TOOLS, ZOO

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "torchvision", "imgaug", "cv2", "sklearn", "skimage", "matplotlib", "h5py", "numpy"}

# Each module and those of `anomaly` it may import: the rooms of the house, bottom up.
LAYERS = [
    {"memory"},
    {"console", "runs", "augment", "metrics", "classification", "detector", "team"},
    {
        "nn.adversarial",
        "nn.attention",
        "nn.blocks",
        "nn.filters",
        "nn.losses",
        "nn.spectral",
        "nn.typicality",
        "heatmap",
        "models",
        "data",
    },
    {"finder", "reconstructor"},
    {"segmenter"},
    {"models.ensemble", "chart", "report", "score", "table", "tracking", "train"}
    | {where.partition(":")[0].removeprefix("anomaly.") for where in (ZOO | TOOLS).values()},
    {"finding"},
    {"fit", "evaluation"},
    {"tune", "bench"},
    {"commands"},
    {"cli"},
    {"__main__"},
]


def imported(path: Path) -> set[str]:
    """Return all modules that a file imports anywhere, functions included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def modules(package: str) -> dict[str, Path]:
    folder = ROOT / package
    names = {".".join(p.relative_to(folder).with_suffix("").parts): p for p in folder.rglob("*.py")}
    return {name.removesuffix(".__init__") or "__init__": path for name, path in names.items()}


def test_preprocessing_knows_nothing_of_the_models() -> None:
    for path in modules("preprocessing").values():
        assert not {name for name in imported(path) if name.split(".")[0] in ("anomaly", "torch")}, path


def test_imports_point_down() -> None:
    level = {name: i for i, names in enumerate(LAYERS) for name in names}
    found = modules("anomaly")
    assert set(found) - {"__init__", "nn"} == set(level), "a module without a place in LAYERS"
    for name, path in found.items():
        for other in imported(path):
            inner = other.removeprefix("anomaly.")
            if other.startswith("anomaly.") and inner in level and name in level and inner != name:
                assert level[inner] <= level[name], f"{name} imports {inner}, which lies above it"


def test_only_the_cache_knows_hdf5_and_one_module_imgaug() -> None:
    for library, owner in (("h5py", "cache"), ("imgaug", "augment.py")):
        users = {
            path.parent.name if path.parent.name == "cache" else path.name
            for package in ("anomaly", "preprocessing")
            for path in modules(package).values()
            if any(name.split(".")[0] == library for name in imported(path))
        }
        assert users == {owner}


def test_nothing_is_pickled() -> None:
    for package in ("anomaly", "preprocessing"):
        for path in modules(package).values():
            text = path.read_text()
            assert "torch.load" not in text and "allow_pickle=True" not in text and "pickle.load" not in text, path


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["models"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['anomaly', *sys.argv[1:]]\n"
        "from anomaly.cli import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"
