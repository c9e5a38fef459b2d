"""What a person sees while work goes on: a bar with rate and remaining time, or lines where there is no terminal."""

import io
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress

LINE_SECONDS, LINE_SHARE, LONGEST_LINE_SECONDS = 10.0, 0.2, 300.0
"""Without a terminal, a line of progress is printed this often: after a fifth of the time that has passed, within these
limits, so that a night's work fills a page and not a book.
"""


SYNTHETIC = (
    "SYNTHETIC FILMS: drawn by this program, not taken from patients; figures from them say nothing about patients"
)
"""What is said wherever the built-in films are spoken of."""


class Advance(Protocol):
    """Says that `count` more are done, with a word on how it stands."""

    def __call__(self, count: int = 1, note: str = "", seconds_left: float | None = None) -> None:
        """Advance the display."""


def plain(text: str) -> str:
    r"""Return text with its control characters written out: names of films must not move the cursor or forge lines.

    >>> plain("a\x1b[31m\nb")
    'a\\x1b[31m\\nb'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def accept_any_encoding() -> None:
    """Let a terminal or a pipe that cannot encode a sign show its code in place of it, rather than end the work."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(text: str = "") -> None:
    """Print one line of a result. A reader that has gone, as of `anomaly train cae | head`, ends no work."""
    hand_over(plain(text) + "\n")


def hand_over(text: str) -> None:
    """Print what a program is to read, sign for sign; a reader that has gone ends no work."""
    try:
        print(text, end="", flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def warn(text: str) -> None:
    """Print one line that is not the result itself."""
    print(f"note: {plain(text)}", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Return a time to read.

    >>> clock(5), clock(75), clock(3700)
    ('5 s', '1 min 15 s', '1 h 01 min')
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@contextmanager
def silent(what: str, total: int, unit: str) -> Iterator[Advance]:
    """Show nothing: in place of `progress` where nobody watches."""

    def advance(count: int = 1, note: str = "", seconds_left: float | None = None) -> None:
        pass

    yield advance


@contextmanager
def progress(what: str, total: int, unit: str, *, start: int = 0) -> Iterator[Advance]:
    """Show how far `total` units of work have come: done, rate, remaining time, a note."""
    show = _bar if sys.stderr.isatty() else _lines
    with show(what, total, unit, start) as advance:
        yield advance


def at_terminal() -> bool:
    """Whether somebody sits at a terminal, who can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def ask(question: str) -> str:
    """Ask whoever sits at the terminal and return the answer, "" where there is none; a bar that runs stands aside."""
    bar = _running[-1] if _running else None
    if bar is not None:
        bar.stop()
    try:
        print(plain(question), end="", file=sys.stderr, flush=True)
        return sys.stdin.readline().strip()
    finally:
        if bar is not None:
            bar.start()


_running: list["Progress"] = []
"""The bars that are on the screen now."""


@contextmanager
def _bar(what: str, total: int, unit: str, start: int) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"))
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(what, total=total, completed=start, state="")
        pace = _Pace(total, start)

        def advance(count: int = 1, note: str = "", seconds_left: float | None = None) -> None:
            bar.update(task, advance=count, state=pace.state(count, unit, note, seconds_left))

        _running.append(bar)
        try:
            yield advance
        finally:
            _running.remove(bar)


@contextmanager
def _lines(what: str, total: int, unit: str, start: int) -> Iterator[Advance]:
    pace = _Pace(total, start)
    printed = time.monotonic()

    def advance(count: int = 1, note: str = "", seconds_left: float | None = None) -> None:
        nonlocal printed
        state = pace.state(count, unit, note, seconds_left)
        now = time.monotonic()
        if now - printed >= min(LONGEST_LINE_SECONDS, max(LINE_SECONDS, LINE_SHARE * (now - pace.began))):
            printed = now
            print(f"{what} {pace.done}/{total}  {state}", file=sys.stderr, flush=True)

    yield advance
    print(f"{what} {pace.done}/{total}  done in {clock(time.monotonic() - pace.began)}", file=sys.stderr, flush=True)


class _Pace:
    def __init__(self, total: int, start: int) -> None:
        self.total, self.start, self.done, self.began = total, start, start, time.monotonic()

    def state(self, count: int, unit: str, note: str, seconds_left: float | None) -> str:
        self.done += count
        if self.done == self.start:  # no unit yet to tell the pace by
            return note if seconds_left is None else f"{clock(seconds_left)} left  {note}".rstrip()
        rate = (self.done - self.start) / max(1e-9, time.monotonic() - self.began)
        left = seconds_left if seconds_left is not None else (self.total - self.done) / rate
        return f"{rate:.3g} {unit}/s  {clock(left)} left  {note}".rstrip()
