"""Worker processes: replaced when they die, stopped in order, and what stops them is raised."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pytest

from anomaly.experiments import supervisor
from anomaly.experiments.supervisor import MOST_DEATHS, exit_on_sigterm, supervise
from preprocessing import InputError
from preprocessing.locks import file_lock

# --- what workers do; they find these by name ---


def note_settings(folder: Path) -> None:
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    (folder / str(os.getpid())).write_text(f"{os.environ['OMP_NUM_THREADS']} {ignored}")


def die_first(folder: Path) -> None:
    """Be killed, unless another process was."""
    try:
        (folder / "died").touch(exist_ok=False)
    except FileExistsError:
        (folder / "survived").touch()
    else:
        os.kill(os.getpid(), signal.SIGKILL)


def die(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    os.kill(os.getpid(), signal.SIGKILL)


def fail(error: Exception) -> None:
    raise error


def wait_for_end(folder: Path) -> None:
    """Work until told to stop, and leave a file only when that was in order."""
    (folder / f"{os.getpid()}.begun").touch()
    try:
        time.sleep(60)
    finally:
        (folder / f"{os.getpid()}.ended").touch()


# --- what becomes of them ---


def run(work: Callable[[], None], jobs: int = 1, **more: object) -> list[int]:
    """Supervise, and return how many processes were alive at each poll."""
    alive: list[int] = []
    options: dict[str, object] = {"threads": 1, "on_poll": lambda pids: alive.append(len(pids)), "achieved": lambda: 0}
    supervise(work, jobs=jobs, **(options | more))  # type: ignore[arg-type]
    return alive


def test_each_process_has_its_threads_and_leaves_ctrl_c_to_the_one_that_started_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    before = signal.getsignal(signal.SIGINT)  # a shell lets what it starts in the background ignore Ctrl-C
    alive = run(partial(note_settings, tmp_path), jobs=2, threads=3)
    assert [file.read_text() for file in tmp_path.iterdir()] == ["3 True"] * 2
    assert alive[0] == 2 and os.environ["OMP_NUM_THREADS"] == "7"
    assert signal.getsignal(signal.SIGINT) == before


def test_one_that_dies_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(partial(die_first, tmp_path))
    assert (tmp_path / "survived").exists()
    assert "a worker died by signal 9; another one takes over" in capsys.readouterr().err


def test_those_that_die_with_nothing_done_end_the_work(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=rf"^{MOST_DEATHS} workers in a row died with nothing done, the last by signal 9"
    ):
        run(partial(die, tmp_path))
    assert len(list(tmp_path.iterdir())) == MOST_DEATHS


def test_those_that_die_after_some_progress_are_replaced_until_the_work_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "MOST_DEATHS", 2)
    deaths = iter((0, 1, 2, 3, 3))  # what was achieved at the start, and after each death
    with pytest.raises(InputError, match="2 workers in a row"):
        run(partial(die, tmp_path), achieved=lambda: next(deaths))
    assert len(list(tmp_path.iterdir())) == 4


@pytest.mark.parametrize(
    ("error", "raised", "text"),
    [
        (InputError("no such\nfilm"), InputError, "no such film"),
        (OSError(28, "No space left"), InputError, "OSError: [Errno 28] No space left"),
        (ZeroDivisionError("ours"), RuntimeError, "ZeroDivisionError: ours"),
    ],
)
def test_what_ends_a_worker_is_raised_with_its_traceback(error: Exception, raised: type[Exception], text: str) -> None:
    with pytest.raises(raised) as seen:
        run(partial(fail, error))
    assert seen.type is raised and str(seen.value) == text and "in fail" in seen.value.__notes__[0]


def test_an_interruption_stops_the_workers_in_order(tmp_path: Path) -> None:
    def interrupt(pids: Sequence[int]) -> None:
        if len(list(tmp_path.glob("*.begun"))) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(partial(wait_for_end, tmp_path), jobs=2, on_poll=interrupt)
    assert len(list(tmp_path.glob("*.ended"))) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_workers_stop_in_order_when_the_process_that_started_them_is_ended(tmp_path: Path, number: int) -> None:
    code = f"""
from functools import partial
from pathlib import Path
from anomaly.experiments.supervisor import exit_on_sigterm, supervise
from tests.test_supervisor import wait_for_end
if __name__ == "__main__":
    with exit_on_sigterm():
        work = partial(wait_for_end, Path({str(tmp_path)!r}))
        supervise(work, jobs=2, threads=1, on_poll=lambda pids: None, achieved=lambda: 0)
"""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment)
    wait_until(lambda: len(list(tmp_path.glob("*.begun"))) == 2)
    process.send_signal(number)
    process.wait(30)
    wait_until(lambda: len(list(tmp_path.glob("*.ended"))) == 2)
    assert process.returncode == (128 + number if number == signal.SIGTERM else -number)


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_sigterm_raises_once_and_the_handler_is_restored() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as stop, exit_on_sigterm():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)  # must not interrupt this
            time.sleep(0.01)
    assert stop.value.code == 128 + signal.SIGTERM and signal.getsignal(signal.SIGTERM) == before


# --- locks ---


def test_a_file_lock_is_exclusive_unless_shared(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    with file_lock(path) as first, file_lock(path) as second, file_lock(path, shared=True) as third:
        assert (first, second, third) == (True, False, False)
    with file_lock(path, shared=True) as first, file_lock(path, shared=True) as second, file_lock(path) as third:
        assert (first, second, third) == (True, True, False)
    with file_lock(path, wait=True) as locked:
        assert locked
