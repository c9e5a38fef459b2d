"""Ending a training by hand: what is kept, what is asked, and what leaves at once."""

import os
import pty
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from anomaly.cli import stop_key
from anomaly.cli.stop_key import StopKey
from anomaly.pipeline import fit as fitting
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.options import Plan
from anomaly.pipeline.plan import Prepared, prepare
from anomaly.runs import Run
from anomaly.training.config import EpochReport, State
from preprocessing.cache.reader import Cache

from .conftest import TINY

LONG = "epochs=2000"


def planned(cache: Cache, *settings: str) -> Prepared:
    return prepare(Plan("cae", cache.path, "full-he", settings=(*TINY, *settings), device="cpu"))


def begun(prepared: Prepared, out: str) -> Run:
    return continue_or_create(prepared, Path(out), resume=False)


def after_two(state: State) -> bool:
    return state.epoch == 2


# --- what is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_stopped_training_is_a_whole_run_of_the_epochs_done(cache: Cache, keep: str) -> None:
    prepared = planned(cache, "epochs=50", f"keep={keep}")
    seen: list[EpochReport] = []
    stopped = fit(prepared, begun(prepared, "a"), workers=0, on_epoch=seen.append, should_stop=after_two)
    short = planned(cache, "epochs=2", f"keep={keep}")
    wanted = fit(short, begun(short, "b"), workers=0, on_epoch=lambda _: None)
    run = Run(stopped.path)
    assert run.finished and run.config.stopped == 2 and len(seen) == len(run.history()) == 2
    assert "epoch 2: stopped by hand or at a deadline; at most 50 epochs were planned" in run.warnings()
    a, b = (load_file(each.path / "weights.safetensors") for each in (run, wanted))
    assert all(torch.equal(a[name], b[name]) for name in b)
    assert (run.path / "calibration.json").read_bytes() == (wanted.path / "calibration.json").read_bytes()
    assert wanted.config.stopped is None and not (run.path / "checkpoint.safetensors").exists()


def test_a_stop_in_the_first_of_two_stages_ends_both(cache: Cache) -> None:
    prepared = planned(cache, "epochs=3", "stages=all,all")
    run = fit(prepared, begun(prepared, "a"), workers=0, on_epoch=lambda _: None, should_stop=after_two)
    assert run.finished and len(run.history()) == 2


def test_a_run_killed_after_the_stop_is_finished_without_another_epoch(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = planned(cache, "epochs=50")
    run = begun(prepared, "a")
    finish = fitting._Closing.finish

    def killed(self: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fitting._Closing, "finish", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(prepared, run, workers=0, on_epoch=lambda _: None, should_stop=after_two)
    monkeypatch.setattr(fitting._Closing, "finish", finish)
    assert not Run(run.path).finished and Run(run.path).config.stopped == 2
    seen: list[EpochReport] = []
    resumed = continue_or_create(prepared, run.path, resume=True)
    fit(prepared, resumed, workers=0, on_epoch=seen.append)
    assert not seen and Run(run.path).finished and Run(run.path).config.stopped == 2


# --- what is asked --------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """A terminal at which these answers are given, in turn."""
    answers: list[str] = []
    monkeypatch.setattr(stop_key, "at_terminal", lambda: True)
    monkeypatch.setattr(stop_key, "ask", lambda question: answers.pop(0))
    before = signal.getsignal(signal.SIGINT)
    yield answers
    assert signal.getsignal(signal.SIGINT) == before


def test_one_press_asks_and_the_answer_decides(terminal: list[str]) -> None:
    state = State(epoch=12, best_epoch=9)
    with StopKey(40) as should_stop:
        assert not should_stop(state)
        for answer in ("c", "y"):
            terminal.append(answer)
            signal.raise_signal(signal.SIGINT)
            assert should_stop(state) == (answer == "y")
    for answer in ("", "n", "what?"):
        terminal.append(answer)
        with StopKey(40) as should_stop:
            signal.raise_signal(signal.SIGINT)
            with pytest.raises(KeyboardInterrupt):
                should_stop(state)


def test_two_presses_leave_at_once(terminal: list[str]) -> None:
    with StopKey(40):
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_before_the_first_epoch_there_is_nothing_to_keep(
    terminal: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with StopKey(40) as should_stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            should_stop(State())
    assert "no epoch is finished yet" in capsys.readouterr().err


def test_without_a_terminal_one_press_leaves(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop_key, "at_terminal", lambda: False)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    try:
        with StopKey(40), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


# --- at a real terminal ---------------------------------------------------------------------------------------------


class Terminal:
    """`anomaly train cae` at a terminal: what it shows, and keys to press."""

    def __init__(self, cache: Cache) -> None:
        words = [word for text in (*TINY, LONG, "patience=0") for word in ("--set", text)]
        command = [sys.executable, "-m", "anomaly", "train", "cae", "--cache", str(cache.path), *words]
        self.own, other = pty.openpty()
        self.process = subprocess.Popen(
            [*command, "--name", "a", "--workers", "1", "--device", "cpu"],
            stdin=other,
            stdout=other,
            stderr=other,
            start_new_session=True,  # a group of its own, which Ctrl-C reaches as a whole
        )
        os.close(other)
        self.shown = b""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        try:
            while part := os.read(self.own, 65536):
                self.shown += part
        except OSError:  # the other side is closed
            return

    def wait_for(self, text: str, after: int = 0) -> int:
        """Wait until a text is shown; where the terminal is then."""
        end = time.monotonic() + 120
        while text.encode() not in self.shown[after:]:
            assert time.monotonic() < end and self.process.poll() is None, self.shown.decode(errors="replace")
            time.sleep(0.02)
        return len(self.shown)

    def press(self) -> None:
        os.killpg(self.process.pid, signal.SIGINT)

    def type(self, text: str) -> None:
        os.write(self.own, f"{text}\n".encode())

    def status(self) -> int:
        """Wait for the end."""
        status = self.process.wait(timeout=120)
        self._reader.join(timeout=10)
        os.close(self.own)
        return status


@pytest.fixture
def training(cache: Cache) -> Iterator[Terminal]:
    """A long training that has a checkpoint, in a run named "a"."""
    terminal = Terminal(cache)
    try:
        end = time.monotonic() + 120
        while not Path("runs/a/history.csv").is_file():
            assert time.monotonic() < end and terminal.process.poll() is None, terminal.shown.decode()
            time.sleep(0.02)
        yield terminal
    finally:
        if terminal.process.poll() is None:
            os.killpg(terminal.process.pid, signal.SIGKILL)
            terminal.process.wait()


def test_a_person_continues_and_then_stops(training: Terminal) -> None:
    training.press()
    place = training.wait_for("stop now and keep the best checkpoint (epoch ")
    training.type("c")
    training.wait_for("epochs/s", place)  # the bar goes on, and with it the process that prepares batches
    training.press()
    training.wait_for("stop now", place)
    training.type("y")
    assert training.status() == 0, training.shown.decode()
    run = Run(Path("runs/a"))
    assert run.finished and run.config.stopped == len(run.history()) < 2000
    assert b"next: anomaly score runs/a" in training.shown and b"stopped by hand" in training.shown


def test_a_person_who_presses_twice_leaves_and_can_resume(training: Terminal) -> None:
    training.press()
    training.wait_for("stop now")
    training.press()
    assert training.status() == 130
    run = Run(Path("runs/a"))
    assert not run.finished and run.config.stopped is None and run.epochs_done() >= 1
    assert b"the same command resumes it" in training.shown
