"""`anomaly doctor`: what is there is said as it is, and what is missing has an advice."""

import json
import sys
from collections import namedtuple
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from anomaly.pipeline import doctor
from anomaly.pipeline.doctor import Fact, examine

from .test_cli import typed

Usage = namedtuple("Usage", "total used free")


def fact(name: str) -> Fact:
    (found,) = [one for one in examine() if one.name == name]
    return found


def installed(monkeypatch: pytest.MonkeyPatch, **changes: str | None) -> None:
    """Let packages have another version, or none."""
    known = {name.replace("_", "-"): number for name, number in changes.items()}

    def other(name: str) -> str:
        number = known[name] if name in known else version(name)
        if number is None:
            raise PackageNotFoundError(name)
        return number

    monkeypatch.setattr(doctor, "version", other)


def test_a_machine_on_which_these_tests_run_lacks_nothing_that_is_needed(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = typed(capsys, "doctor")
    assert status == 0 and out.splitlines()[-1] == "next: anomaly demo"
    assert version("torch") in out and version("numpy") in out
    sections = [line for line in out.splitlines() if not line.startswith((" ", "next"))]
    assert sections == ["program:", "packages:", "extras:", "machine:", "places:", "weights:"]
    status, out, _ = typed(capsys, "doctor", "--json")
    assert status == 0 and {one["name"] for one in json.loads(out)} >= {"torch", "processor", "here"}


def test_a_package_that_is_missing_or_too_old_ends_it_with_the_command_that_helps(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    installed(monkeypatch, h5py=None, numpy="1.26.4")
    status, out, err = typed(capsys, "doctor")
    assert status == 1 and "next:" not in out
    assert "note: h5py: pip install 'h5py>=" in err and "note: numpy: pip install 'numpy>=2.0'" in err


def test_another_build_of_opencv_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, opencv_python=None, opencv_python_headless="5.0.0")
    assert fact("opencv-python") == Fact("packages", "opencv-python", "5.0.0")


def test_an_installation_that_only_scores_is_not_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, torch=None, torchvision=None, onnxruntime="1.20")
    assert "scores bundles alone" in fact("torch").value and not any(one.needed for one in examine())


def test_extras_that_are_not_complete_are_offered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_found", lambda wanted: None if wanted.name == "optuna" else "9999")
    assert fact("tune").value == "without optuna" and "xray-anomaly[tune]" in (fact("tune").advice or "")
    assert fact("cluster").advice is None
    assert not fact("tune").needed


def test_builds_that_do_not_fit_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision.ops", None)  # importing it then fails
    assert fact("torch and torchvision").needed


def test_little_room_is_advised_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda place: Usage(64 << 20, 0, 1 << 20))
    monkeypatch.setattr(doctor, "free_memory", lambda: 1 << 30)
    assert {one.name for one in examine() if one.advice} >= {"here", "temporary files", "shared memory", "memory left"}


def test_no_weights_is_no_end(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("anomaly.models.pretrained.find_spec", lambda package: None)
    assert "random weights" in fact("lite0").value and "[features]" in (fact("lite0").advice or "")


def test_every_dependency_is_looked_at() -> None:
    declared = {Requirement(text).name for text in doctor.metadata(doctor.PACKAGE).get_all("Requires-Dist") or ()}
    shown = {one.name for one in examine() if one.section == "packages"}
    assert {"torch", "numpy", "h5py"} <= shown <= declared
