"""The wheel, built and tried in an environment of its own: complete without the source tree, and nothing else in it."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("anomaly", "preprocessing")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def run(*command: str | Path, cwd: Path) -> str:
    """Return what a command prints; it finds no source tree by PYTHONPATH."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of the source tree, so that no earlier build adds to it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("benchmarks", "tests"):  # packages too, and not to be installed
        (source / folder).mkdir()
        (source / folder / "__init__.py").touch()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    run(*pip, "wheel", "--no-deps", "--no-index", "--no-build-isolation", "--wheel-dir", out, source, cwd=out)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A virtual environment with the wheel, and the dependencies of this one; an editable install here stays unseen."""
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=folder)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    # Only after the install: pip would take the package of this environment for one to be replaced. Folders named in
    # a .pth file come last, and .pth files in them, such as that of an editable install, aren't read.
    (site,) = folder.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}))
    return folder


def test_the_wheel_has_all_files_of_both_packages_and_no_others(wheel: Path) -> None:
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {"anomaly/py.typed", "preprocessing/py.typed", "anomaly/reporting/templates/report.html"} <= expected
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        (metadata,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        described = archive.read(metadata).decode()
    assert names == expected
    assert "\nLicense-Expression: MIT\n" in described and f"\nVersion: {VERSION}\n" in described


def test_the_installed_package_works_without_the_source_tree(environment: Path, tmp_path: Path) -> None:
    command, python = environment / "bin" / "anomaly", environment / "bin" / "python"
    assert run(command, "--version", cwd=tmp_path).startswith(f"anomaly {VERSION} (Python ")
    assert "preprocess" in run(command, "--help", cwd=tmp_path)
    run(command, "phantom", "films", "--patients", "4", "--size", "64", cwd=tmp_path)
    assert len(list(tmp_path.glob("films/**/*.png"))) > 4
    code = (
        "import importlib, pkgutil, anomaly, preprocessing\n"
        "for package in (anomaly, preprocessing):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        module.name.endswith('__main__') or importlib.import_module(module.name)\n"
        "print(*anomaly.list_models(), anomaly.__file__)"
    )
    *models, file = run(python, "-c", code, cwd=tmp_path).split()
    assert {"bigan", "cae", "contrast_density"} <= set(models)
    assert Path(file).is_relative_to(environment)
