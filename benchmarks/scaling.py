"""Scaling: seconds and peak memory of the commands at 250 to 16,000 films of 128 px; what that says of a million.

The films are 250 built-in ones (SYNTHETIC, 512 px files), repeated by hard links under the names of new patients. Every
stage is the command itself as a process of its own, at each number of films once; scoring, whose peak differs by 5 %
from one time to the next, --scorings times (medians):

    preprocess     recipe limb, variant full-he, uncompressed; once for each of --workers
    train          `cae --preset fast` for one epoch: films loaded, trained, validated, thresholds and map scale found
    score all      `--split all`: every film, no figures
    score test     as typed without a word more: the test split, with figures, pixel truth and the page

Peak memory is the kernel's own mark of what was resident at most (VmHWM), last read up to 20 ms before the end: of the
command's process, of the largest of its workers, and the sum over all of them. `ru_maxrss` would not do: it begins with
what this process, from which they are forked, had at that moment.

Exponents are the slopes of straight lines through the logarithms: over all sizes, and between the last two, where the
seconds of starting matter least. What is said of 100,000 and 1,000,000 films is EXTRAPOLATED: seconds by that last
exponent, or 1 if it is lower; memory and disk on a straight line through all sizes. Nothing of it was measured.
"""

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from anomaly.experiments.supervisor import available_cores
from benchmarks.record import record
from preprocessing.phantom import FilmPlan, plan_films, write_phantoms

ANOMALY = str(Path(sys.executable).with_name("anomaly"))
DRAWN = 250
PATIENTS = 100  # enough for as many films
FLAT_FROM = 1000  # films from which on peak memory is to stay
BEYOND = (100_000, 1_000_000)
MIB = 2**20


@dataclass(frozen=True)
class Took:
    """What a command took: `films` that it was over, seconds, and peak bytes of its process, then of each worker."""

    films: int
    seconds: float
    peaks: list[int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[250, 1000, 4000, 16000])
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--workers", type=int, nargs="+", default=[2, 0], help="of preprocess; 0: every core")
    parser.add_argument("--scorings", type=int, default=3)
    options = parser.parse_args()
    workers = list(dict.fromkeys(number or available_cores() for number in options.workers))
    sizes = sorted(set(options.sizes))
    stages: dict[str, list[Took]] = {}
    disk: dict[str, list[int]] = {"cache": [], "run": []}
    epochs = []
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "drawn"
        write_phantoms(drawn, seed=0, patients=PATIENTS)
        plans = plan_films(seed=0, patients=PATIENTS)[:DRAWN]
        for count in sizes:
            here = Path(folder) / str(count)
            films, cache, run = here / "films", here / "films.h5", here / "run"
            repeat(drawn, plans, films, count)
            for number in workers:
                words = ["preprocess", str(films), "--size", str(options.size), "--workers", str(number), "--force"]
                name = f"preprocess, {number} worker{'s' * (number > 1)}"
                stages.setdefault(name, []).append(took(count, [*words, "--out", str(cache)]))
            train = ["train", "cae", "--preset", "fast", "--set", "epochs=1", "--cache", str(cache), "--out", str(run)]
            stages.setdefault("train", []).append(took(count, train))
            epochs.append(float(rows_of(run / "history.csv")[-1]["seconds"]))
            disk["cache"].append(cache.stat().st_size)
            disk["run"].append(sum(path.stat().st_size for path in run.rglob("*") if path.is_file()))
            for name, more in (("score all", ["--split", "all"]), ("score test", [])):
                tries = [took(count, ["score", str(run), *more]) for _ in range(options.scorings)]
                scored = len(rows_of((run / "all" if more else run) / "scores.csv"))
                peak = round(median(each.peaks[0] for each in tries))
                stages.setdefault(name, []).append(Took(scored, median(each.seconds for each in tries), [peak]))
            shutil.rmtree(here)
            spent = ", ".join(f"{name} {each[-1].seconds:.1f} s" for name, each in stages.items())
            print(f"{count} films: {spent}", flush=True)
    command = "python -m benchmarks.scaling" + "".join(
        f" --{name} {' '.join(map(str, value))}"
        for name, value in (
            ("sizes", sizes),
            ("size", [options.size]),
            ("workers", options.workers),
            ("scorings", [options.scorings]),
        )
    )
    for name, measured in stages.items():
        figures = described(measured, sizes)
        if name == "train":
            figures["the epoch alone, s"] = dict(zip(map(str, sizes), epochs, strict=True))
            figures["the epoch alone, exponent"] = exponent(sizes, epochs)
        record(f"scaling, {name}", command, {"films": sizes, "size": options.size}, figures)
    figures = {f"{name}, bytes": dict(zip(map(str, sizes), found, strict=True)) for name, found in disk.items()}
    figures |= {f"{name}, EXTRAPOLATED GB": on_a_line(sizes, found, 1e9) for name, found in disk.items()}
    record("scaling, disk", command, {"films": sizes, "size": options.size}, figures)


def repeat(drawn: Path, plans: Sequence[FilmPlan], out: Path, count: int) -> None:
    """Link `count` films into a new folder: those drawn, over and over, each time as other patients."""
    for number in range(count):
        again, which = divmod(number, len(plans))
        plan = plans[which]
        for file in plan.files:
            name = file.replace(f"patient{plan.patient:05d}", f"patient{plan.patient + again * PATIENTS:05d}")
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            os.link(drawn / file, out / name)
    os.link(drawn / "SYNTHETIC.txt", out / "SYNTHETIC.txt")


def took(films: int, words: Sequence[str]) -> Took:
    """Run `anomaly` over so many films as a process, watched."""
    peaks: dict[int, int] = {}
    start = time.perf_counter()
    with (
        tempfile.TemporaryFile("w+") as error,
        subprocess.Popen([ANOMALY, *words], stdout=subprocess.DEVNULL, stderr=error) as child,
    ):
        while child.poll() is None:
            for process in family(child.pid):
                peaks[process] = high_water(process) or peaks.get(process, 0)  # the last: before exec it is another's
            time.sleep(0.02)
        seconds = time.perf_counter() - start
        if child.returncode:
            error.seek(0)
            raise RuntimeError(f"anomaly {' '.join(words)}: {error.read()}")
    own = peaks.pop(child.pid)
    return Took(films, seconds, [own, *peaks.values()])


def family(process: int) -> Iterator[int]:
    """Give a process and all its descendants."""
    yield process
    with suppress(OSError):  # it has ended, or one of its threads
        for task in Path(f"/proc/{process}/task").iterdir():
            for child in (task / "children").read_text().split():
                yield from family(int(child))


def high_water(process: int) -> int:
    """Return the most bytes that were resident in a process since it became what it is; 0 where it has ended."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), 0)


def rows_of(path: Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def described(measured: Sequence[Took], sizes: Sequence[int]) -> dict[str, Any]:
    """Return the figures of one stage over all sizes."""
    films = [each.films for each in measured]
    figures: dict[str, Any] = {}
    for name, values in {
        "seconds": [each.seconds for each in measured],
        "peak, MiB": [each.peaks[0] / MIB for each in measured],
        "peak of the largest worker, MiB": [max(each.peaks[1:], default=0) / MIB for each in measured],
        "peak of all together, MiB": [sum(each.peaks) / MIB for each in measured],
    }.items():
        if name not in ("seconds", "peak, MiB") and any(len(each.peaks) == 1 for each in measured):
            continue  # no workers, or not at each size
        figures[name] = {str(n): round(value, 2) for n, value in zip(films, values, strict=True)}
        figures[f"{name}, exponent"] = exponent(films, values)
        if name == "seconds":
            grows = max(1.0, figures[f"{name}, exponent"].get("last two", 1.0))
            figures["EXTRAPOLATED hours"] = {
                str(n): round(values[-1] * (n / films[-1]) ** grows / 3600, 2) for n in BEYOND
            }
        else:
            figures[f"{name}, EXTRAPOLATED"] = on_a_line(films, values, 1)
            if FLAT_FROM in sizes:
                figures[f"{name}, at {sizes[-1]} over {FLAT_FROM}"] = values[-1] / values[sizes.index(FLAT_FROM)]
    return figures


def exponent(films: Sequence[int], values: Sequence[float]) -> dict[str, float]:
    """Return e of value ~ films ** e: over all sizes by least squares, and between the last two."""
    if len(films) < 2:
        return {}
    x, y = np.log(films), np.log(values)
    parts = {"all": slice(None), "last two": slice(-2, None)}
    return {name: round(float(np.polyfit(x[part], y[part], 1)[0]), 3) for name, part in parts.items()}


def on_a_line(films: Sequence[int], values: Sequence[float], unit: float) -> dict[str, float]:
    """Return, in units, where a straight line through all values, from the last one on, is at BEYOND films.

    It doesn't fall: what peaks differ by from one time to the next is no saving.
    """
    if len(films) < 2:
        return {}
    slope = max(0.0, float(np.polyfit(films, values, 1)[0]))
    return {str(n): round((values[-1] + slope * (n - films[-1])) / unit, 3) for n in BEYOND}


if __name__ == "__main__":
    main()
