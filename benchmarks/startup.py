"""Start-up: seconds of processor (user + system) and of the clock that commands take as new processes, in turns.

    --help, train --help, models   must not load torch: whether they do is looked up in `sys.modules` as they end
    score RUN FILM                 one film: to the answer, and what that is spent on
    score BUNDLE FILM              the same with onnxruntime
    train cae                      to the end of the first training step, and what that is spent on

The parts of score RUN and train, in seconds of the clock from the moment a process is asked for, come from the same
command in a process that imports torch first, then the command's own modules, and puts a clock around the functions
named here; training is ended after its first step. Built-in SYNTHETIC films, a CAE of preset `fast` trained for an
epoch; a first round, which isn't counted, brings all files into the page cache.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.record import record, spread
from preprocessing.phantom import plan_films, write_phantoms

ANOMALY = str(Path(sys.executable).with_name("anomaly"))
PATIENTS = 12
SIZE = 128
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""Modules are compiled once, as after any installation."""
LIGHT = {"--help": ["--help"], "train --help": ["train", "--help"], "models": ["models"]}


@dataclass(frozen=True)
class Parts:
    """What a command is taken apart into.

    modules   what it imports, beside torch
    timed     owner, function, and the name of its seconds; `apply_steps` ends the process after the first
    """

    modules: tuple[str, ...]
    timed: tuple[tuple[str, str, str], ...]


SCORE = Parts(
    ("anomaly.pipeline.scoring", "anomaly.pipeline.selection", "anomaly.models.cae"),
    (
        ("anomaly.pipeline.open_run", "open_run", "open the model"),
        ("anomaly.pipeline.selection", "build", "prepare the film"),
        ("anomaly.pipeline.scoring", "score_selection", "score it"),
    ),
)
TRAIN = Parts(
    ("anomaly.pipeline.fit", "anomaly.models.cae"),
    (
        ("anomaly.pipeline.plan", "prepare", "check the plan"),
        ("anomaly.pipeline.fit", "Trainer", "make optimizers, loader"),
        ("anomaly.training.trainer:Trainer", "apply_steps", "the first step"),
    ),
)
TIMED = """
import contextlib, importlib, json, os, pkgutil, sys, time

options = json.loads(sys.argv.pop(1))
parts, since = {}, options["begun"]

def lap(name):
    global since
    now = time.monotonic()
    parts[name], since = now - since, now

def answer():
    total = time.monotonic() - options["begun"]
    print(json.dumps(parts | {"the rest": total - sum(parts.values()), "all": total}), file=sys.stderr, flush=True)
    os._exit(0)

def timed(function, name):
    def run(*given, **settings):
        start = time.monotonic()
        try:
            return function(*given, **settings)
        finally:
            parts[name] = parts.get(name, 0.0) + time.monotonic() - start
    return run

def first_of(steps, name):
    def run(trainer, batch):
        start = time.monotonic()
        next(steps(trainer, batch))
        if trainer.device.type == "cuda":
            torch.cuda.synchronize()
        parts[name] = time.monotonic() - start
        answer()
    return run

lap("start Python")
import torch
lap("import torch")
for module in options["modules"]:
    importlib.import_module(module)
lap("import the rest")
for owner, function, name in options["timed"]:
    place = pkgutil.resolve_name(owner)
    setattr(place, function, (first_of if function == "apply_steps" else timed)(getattr(place, function), name))
from anomaly.cli.app import main
with contextlib.suppress(SystemExit):
    main()
answer()
"""
LOADS_TORCH = """
import sys
from anomaly.cli.app import main
try:
    main()
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_phantoms(folder / "films", seed=0, patients=PATIENTS)
        film = folder / "films" / plan_films(seed=0, patients=PATIENTS)[0].path
        cache, run = folder / "films.h5", folder / "run"
        train = ["train", "cae", "--preset", "fast", "--cache", str(cache), "--out"]
        spent(["preprocess", str(folder / "films"), "--size", str(SIZE), "--out", str(cache)])
        spent([*train, str(run), "--set", "epochs=1"])
        spent(["export", str(run)])
        score = ["score", str(run), str(film)]
        whole = LIGHT | {"score": score, "score a bundle": ["score", str(run / "bundle"), str(film)]}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in whole}
        parts: dict[str, list[dict[str, float]]] = {"score": [], "train": []}
        for number in range(options.rounds + 1):
            pairs = {name: spent(words) for name, words in whole.items()}
            taken = {
                "score": taken_apart(score, SCORE),
                "train": taken_apart([*train, str(folder / f"run-{number}")], TRAIN),
            }
            if number:  # the first round warms up
                for name, pair in pairs.items():
                    seconds[name].append(pair)
                for name, each in taken.items():
                    parts[name].append(each)
    figures: dict[str, Any] = {}
    for name, measured in seconds.items():
        cpu, wall = zip(*measured, strict=True)
        figures |= {f"{name}, cpu": spread(cpu), f"{name}, wall": spread(wall)}
    figures["train to first step, wall"] = spread([each["all"] for each in parts["train"]])
    for name, seen in parts.items():
        figures[f"{name}, parts, wall"] = {part: round(median(each[part] for each in seen), 3) for part in seen[0]}
    for name, words in LIGHT.items():
        figures[f"{name} loads torch"] = said(LOADS_TORCH, words).splitlines()[-1] == "True"
    record(
        "startup",
        f"python -m benchmarks.startup --rounds {options.rounds}",
        {"size": SIZE, "model": "cae, fast", "rounds": options.rounds},
        figures,
    )


def spent(words: Sequence[str]) -> tuple[float, float]:
    """Run `anomaly` as a process; seconds of processor and of the clock."""
    start = time.perf_counter()
    quiet: Any = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True, "env": ENVIRONMENT}
    with subprocess.Popen([ANOMALY, *words], **quiet) as child:
        assert child.stderr is not None
        error = child.stderr.read()
        _, status, used = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise RuntimeError(f"anomaly {' '.join(words)}: {error}")
    return used.ru_utime + used.ru_stime, time.perf_counter() - start


def taken_apart(words: Sequence[str], parts: Parts) -> dict[str, float]:
    """Run `anomaly` with clocks in it; seconds of each part, and of `all`."""
    given = json.dumps(asdict(parts) | {"begun": time.monotonic()})  # a clock that all processes share
    return json.loads(said(TIMED, [given, *words]).splitlines()[-1])  # type: ignore[no-any-return]


def said(script: str, words: Sequence[str]) -> str:
    """Run Python text with the words of a command; what it printed on standard error."""
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, env=ENVIRONMENT)
    if done.returncode:
        raise RuntimeError(f"anomaly {' '.join(words)}: {done.stderr}")
    return done.stderr


if __name__ == "__main__":
    main()
