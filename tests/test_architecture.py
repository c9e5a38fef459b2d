"""Imports point down, and `--help` imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
HEAVY = {"torch", "torchvision", "imgaug", "cv2", "sklearn", "skimage", "matplotlib", "h5py", "numpy"}

# The rooms, bottom up: a file imports from its own room and from those below it.
ANOMALY = [
    {"memory", "formatting", "console", "names", "processor", "sealed", "drafts"},
    {"runs", "distributed", "private_folder"},
    {"manifest"},
    {"nn"},
    {"data"},
    {"models"},
    {"training"},
    {"evaluation"},
    {"localization"},
    {"reporting"},
    {"export"},
    {"pipeline"},
    {"experiments", "service"},
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


def arrows(package: str) -> dict[str, set[str]]:
    """Return each module of a package and those of the same package it imports, functions included."""
    files = modules(package)
    found: dict[str, set[str]] = {}
    for name, path in files.items():
        inner = {other.removeprefix(f"{package}.") for other in imported(path) if other.startswith(f"{package}.")}
        found[name] = {other for other in inner if other in files and other != name}
    return found


def test_imports_point_down() -> None:
    level = {room: i for i, rooms in enumerate(ANOMALY) for room in rooms}
    found = arrows("anomaly")
    assert {name.partition(".")[0] for name in found} - {"__init__"} == set(level), (
        "a folder without a place in ANOMALY"
    )
    for name, others in found.items():
        if name == "__init__":
            continue
        for other in others - {"__init__"}:
            here, there = name.partition(".")[0], other.partition(".")[0]
            assert level[there] < level[here] or there == here, f"{name} imports {other}, which lies above it"


@pytest.mark.parametrize("package", ["anomaly", "preprocessing"])
def test_no_modules_import_each_other_in_a_circle(package: str) -> None:
    found = arrows(package)
    done: set[str] = set()

    def walk(name: str, way: tuple[str, ...]) -> None:
        assert name not in way, f"a circle: {' -> '.join((*way[way.index(name) :], name))}"
        if name not in done:
            for other in found[name]:
                walk(other, (*way, name))
            done.add(name)

    for name in found:
        walk(name, ())


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


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["models"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys; sys.argv = ['anomaly', *sys.argv[1:]]\n"
        "from anomaly.cli.app import main\n"
        "try: main()\n"
        "except SystemExit as stop: assert not stop.code, stop.code\n"
        f"print('HEAVY', sorted({HEAVY!r} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "HEAVY []"
