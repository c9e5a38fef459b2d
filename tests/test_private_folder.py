"""Prepared films of patients: nobody else reads them, and a killed process leaves them for a moment only."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from anomaly.private_folder import private_folder
from preprocessing import InputError

from .conftest import on_path


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the folders are."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path / f"anomaly-{os.getuid()}"


def folders(home: Path) -> list[Path]:
    return [path for path in home.iterdir() if path.is_dir()]


def test_a_folder_is_its_user_s_alone_and_goes(home: Path) -> None:
    with private_folder() as folder:
        (folder / "film").write_text("of a patient")
        assert home.stat().st_mode & 0o777 == 0o700 and not list(folder.parent.glob("film"))
        with private_folder() as other:
            assert folder.is_dir() and other.is_dir() and other != folder
        assert folder.is_dir()
    assert not folders(home)


def test_a_folder_that_a_killed_process_left_goes_at_the_next_start(home: Path, tmp_path: Path) -> None:
    code = """
import sys, time
from anomaly.private_folder import private_folder
with private_folder() as folder:
    (folder / "film").write_text("of a patient")
    print(folder, flush=True)
    time.sleep(60)
"""
    environment = on_path(Path(__file__).parents[1]) | {"TMPDIR": str(tmp_path)}
    words = [sys.executable, "-c", code]
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout
        left = Path(process.stdout.readline().strip())
        with private_folder():
            assert (left / "film").is_file(), "it is held by a living process"
        process.send_signal(signal.SIGKILL)
    assert (left / "film").is_file()
    with private_folder():
        assert not left.exists()


def test_a_folder_that_can_not_be_removed_is_named(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "rmtree", lambda path, ignore_errors: None)
    with private_folder() as folder:
        pass
    assert f"{folder.parent}, where films were prepared, could not be removed" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["open", "link", "file"])
def test_a_folder_that_others_may_enter_is_refused(home: Path, tmp_path: Path, place: str) -> None:
    if place == "open":
        home.mkdir()
        home.chmod(0o755)
    elif place == "link":
        (tmp_path / "elsewhere").mkdir(mode=0o700)
        home.symlink_to(tmp_path / "elsewhere")
    else:
        home.touch()
    with pytest.raises(InputError, match="not a folder of yours alone"), private_folder():
        pass
