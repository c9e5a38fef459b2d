"""Draw films with `--draw films.h5`; take them to the GPU and measure there with `--films films.h5 --minutes 8`."""

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from anomaly.memory import keep_freed_memory
from anomaly.runs import versions
from anomaly.training.device import make_repeatable
from benchmarks.gpu import correctness, epochs, films, processes, scoring, speed
from benchmarks.gpu.lines import Lines
from benchmarks.gpu.setting import PAPER_MODELS, UNTRAINED, Setting
from benchmarks.record import command_line, machine

PARTS = ("rates", "check", "steps", "epochs", "scoring", "repeat", "two", "kernels", "compile", "low", "full", "arms")
"""By what they tell, most first."""
COMPILING = 40.0
"""Seconds that compiling a model is known to take at least."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__)
    parser.add_argument("--draw", type=Path, metavar="FILE", help="draw the films into this cache, and end")
    parser.add_argument("--patients", type=int, default=60, help="whose films are drawn")
    parser.add_argument("--films", type=Path, default=Path("films.h5"), help="the cache to work on")
    parser.add_argument("--out", type=Path, default=Path("gpu.jsonl"), help="where results are added, a line each")
    parser.add_argument("--minutes", type=float, default=8.0, help="after which nothing new is begun")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", type=int, help="of the largest films, px (512; on a processor 64)")
    parser.add_argument("--check-size", type=int, help="of the films that correctness is checked on (128; 32)")
    parser.add_argument("--batch", type=int, help="films a batch at most (as the preset has it; on a processor 8)")
    parser.add_argument("--preset", choices=("paper", "standard", "fast"), help="(paper; on a processor fast)")
    parser.add_argument("--models", default=",".join((*correctness.MODELS, *UNTRAINED)), help="comma list")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of every training")
    parser.add_argument("--parts", default=",".join(PARTS), help="comma list, in order")
    return parser.parse_args()


class Benchmark:
    """The parts of a run, each a method of its name."""

    def __init__(self, lines: Lines, setting: Setting, check_side: int, models: Sequence[str]) -> None:
        self.lines, self.setting, self.check_side = lines, setting, check_side
        self.cases = {name: setting.case(name) for name in PAPER_MODELS if name in models}
        self.scored = {name: self.cases.get(name) or setting.case(name) for name in models}
        self.fitted = {name: setting.case(name, side=check_side, batch=8) for name in models if name in UNTRAINED}
        models = [name for name in models if name not in UNTRAINED]
        self.checked = {name: setting.case(name, side=check_side, batch=8) for name in models}
        self.rates = speed.Rates(1e12, 1e12, 1e12, 1e12)  # until they are measured

    def measure_rates(self) -> dict[str, Any]:
        """Measure what the device reaches."""
        self.rates = speed.measure_rates(self.setting)
        return {f"{name}_per_second": value for name, value in asdict(self.rates).items()}

    def run(self, part: str) -> None:
        """Do one part."""
        attempt, setting, side = self.lines.attempt, self.setting, self.check_side
        on_gpu = setting.device.type == "cuda"
        if part == "rates":
            attempt("rates", "matrix products, copy", self.measure_rates)
        elif part == "check":
            for name, case in self.checked.items():
                attempt("one step", f"{name}, float32", partial(correctness.one_step, case, "float32"))
                attempt("scores", name, partial(correctness.scores, case, epochs=2))
            for name, case in self.fitted.items():
                attempt("scores", name, partial(correctness.scores, case, epochs=0))
            attempt("augmentation", f"{side} px", partial(correctness.augmentation, setting, side))
        elif part == "low":
            for name, case in self.checked.items() if on_gpu else ():
                for precision in ("bfloat16", "TF32"):
                    attempt("one step", f"{name}, {precision}", partial(correctness.one_step, case, precision))
        elif part in speed.ARMS:
            for arm in speed.ARMS[part] if on_gpu else speed.ON_PROCESSOR.get(part, ()):
                for case in self.cases.values():
                    work = partial(speed.step_time, case, arm, self.rates)
                    attempt("step", f"{case.label}, {arm}", work, needs=COMPILING if part == "compile" else 0.0)
        elif part == "epochs":
            self.epochs()
        elif part == "scoring":
            for case in self.scored.values():
                attempt("scoring", f"{case.name} {case.size} px", partial(scoring.films_a_second, case))
        elif part == "two":
            attempt("two processes", f"cae {side} px", partial(processes.two_as_one, setting, side), needs=5.0)
        elif part == "repeat":
            for name, case in self.checked.items():
                with tempfile.TemporaryDirectory() as folder:
                    work = partial(correctness.repeated_and_resumed, case, Path(folder))
                    attempt("repeated and resumed", name, work)
        else:
            raise SystemExit(f"no part {part!r}")

    def epochs(self) -> None:
        """Whole epochs of the five models, then what they come to for the paper's grid."""
        lines, on_gpu = self.lines, self.setting.device.type == "cuda"
        measured: dict[str, dict[str, Any]] = {}
        for name, case in self.cases.items():
            bare = lines.done.get(("step", f"{case.label}, bfloat16"), {})
            if "films_per_second" not in bare:
                lines.left_out.append(f"epoch: {case.label} (no step was timed)")
                continue
            work = partial(epochs.epoch, case, case.batch / bare["films_per_second"], 1.0 if on_gpu else 0.3)
            if lines.attempt("epoch", case.label, work):
                measured[name] = lines.done["epoch", case.label]
        if measured:
            lines.attempt("grid", "all variants, one seed", partial(epochs.grid, measured, self.setting.preset))


def main() -> None:
    options = arguments()
    big = options.device.startswith("cuda")
    size = options.size or (512 if big else 64)
    if options.draw:
        size = options.size or 512
        print(f"SYNTHETIC films drawn: {films.draw(options.draw, patients=options.patients, size=size)}")
        return
    device = torch.device(options.device)
    setting = Setting(
        options.films,
        device,
        options.preset or ("paper" if big else "fast"),
        size,
        options.batch or (10**6 if big else 8),
        tuple(options.set),
    )
    keep_freed_memory()
    make_repeatable(device)  # before any library starts
    card = torch.cuda.get_device_name(device) if big else f"no GPU: {machine()['processor']}"
    lines = Lines(options.out, options.minutes, card)
    lines.add(
        "machine",
        card,
        {"command": command_line("gpu"), "machine": machine(), "versions": versions(), "preset": setting.preset},
    )
    run = Benchmark(lines, setting, options.check_size or (128 if big else 32), options.models.split(","))
    for part in options.parts.split(","):
        run.run(part)
    not_passed = [f"{s}: {c}" for (s, c), figures in lines.done.items() if figures.get("passed") is False]
    end = {"failed": lines.failed, "not_passed": not_passed, "left_out": lines.left_out}
    lines.add("end", card, end)
    raise SystemExit(1 if lines.failed or not_passed else 0)


if __name__ == "__main__":
    main()
