"""The command line as a program: all verbs, and how errors end it. Imports nothing heavy: `--help` answers at once."""

import atexit
import gc
import os
import sys
import traceback
from typing import Any, NoReturn

import typer

# Each of these adds its verbs to the app, in the order in which --help lists them.
from anomaly.cli import (  # noqa: F401
    auto,
    benching,
    calibrating,
    demo,
    doctor,
    exporting,
    films,
    runs,
    scoring,
    serving,
    training,
    zoo,
)
from anomaly.cli.declare import app
from anomaly.console import accept_any_encoding, plain
from preprocessing import InputError

INTERRUPTED = 130
RESUMED = {"preprocess", "train", "tune", "bench", "phantom", "demo", "models", "auto", "ensemble"}
"""Verbs that go on where they were interrupted."""
UsageError: Any = (
    typer.BadParameter.__base__
)  # what every misuse of the command line is; typer exports only its children


def main() -> None:
    """Run the command line; an error is one line on stderr, status 2 for what the user can fix and 1 for our own."""
    accept_any_encoding()
    atexit.register(gc.freeze)  # collecting all that torch has imported, once more as the process ends, takes .4 s
    if "--debug" in sys.argv:  # wherever it stands
        sys.argv.remove("--debug")
        os.environ["ANOMALY_DEBUG"] = "1"
    try:
        status = app(standalone_mode=False)
        if status == INTERRUPTED:  # typer turns Ctrl-C into this status
            raise KeyboardInterrupt
        sys.exit(status)
    except UsageError as error:
        if alike := getattr(error, "possibilities", None):  # of an option that there is not
            error.message, error.possibilities = f"{error.message}; did you mean {alike[0]}?", None
        error.show()
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        resumes = RESUMED & set(sys.argv[1:3])
        fail(f"interrupted; {'the same command resumes it' if resumes else 'nothing is lost'}", INTERRUPTED)
    except InputError as error:
        fail(str(error), 2, error)
    except OSError as error:
        fail(f"{error.filename or 'disk'}: {error.strerror or error}", 2, error)
    except Exception as error:
        if "OutOfMemory" in type(error).__name__ or "can't allocate memory" in str(error):
            fail("not enough memory; take a lower --set batch_size= or --size, or fewer --workers", 2, error)
        message = " ".join(str(error).split())[:500]
        fail(f"unexpected {type(error).__name__}: {message}; `anomaly --debug ...` shows where", 1, error)


def fail(message: str, status: int, error: Exception | None = None) -> NoReturn:
    """Say what went wrong in one line and stop; with --debug the traceback comes first."""
    if error is not None and "ANOMALY_DEBUG" in os.environ:
        traceback.print_exception(error)
    print(f"error: {plain(message)}", file=sys.stderr)
    sys.exit(status)
