"""Hundreds of thousands of films in one command, and through a service: is memory flat, and is every file closed?

    python -m benchmarks.soak --films 200000 [--serve] [--run RUN]

A few hundred built-in films (SYNTHETIC) are hard-linked under so many names, a thousand to a folder, and scored by
`anomaly score RUN FOLDER`; with `--serve` they are posted to `anomaly serve` too. Each second the resident memory and
the open descriptors of the process and of its children are noted.

What a film leaves behind legitimately, its name, its line of the index and its scores, is told in bytes a film. Ends
with status 1 where memory grows by more than 5 % and `--bytes` a film, where descriptors do, where the command says
more than `--lines` lines or fails, or where a film is lost. A command goes through phases of different needs: its peak
is compared with that of the same command over a tenth of the films. A service has none: its end is compared with its
memory after the first fifth of the time.
"""

import argparse
import itertools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.record import command_line, record
from benchmarks.service import Load, drive, resident, scored_films
from preprocessing.phantom import write_phantoms

FOLDER_FILMS = 1000
DRAWN = 100  # patients
GROWTH = 1.05
MORE_DESCRIPTORS = 4  # beyond those after the first fifth: a file that is just being written, and the like


@dataclass
class Samples:
    """What a process and its children take, each second."""

    memory: list[tuple[float, float]] = field(default_factory=list)  # MiB: the process, its largest child
    descriptors: list[int] = field(default_factory=list)  # of the process and its children together
    ended: threading.Event = field(default_factory=threading.Event)

    def watch(self, pid: int) -> None:
        """Note them until `ended`."""
        while not self.ended.wait(1.0):
            try:
                children = [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
                count = sum(_open_files(one) for one in (pid, *children))
            except OSError:  # it has ended
                continue
            self.memory.append((resident(pid), max(map(resident, children), default=0.0)))
            self.descriptors.append(count)

    def peak(self) -> float:
        """Return the most that the process took, in MiB."""
        return max((sample[0] for sample in self.memory), default=0.0)

    def figures(self, films: int, most_bytes: float) -> tuple[dict[str, float], list[str]]:
        """Return figures, and what is wrong with them."""
        if len(self.memory) < 10:
            return {}, [f"only {len(self.memory)} samples: take more --films"]
        first, last = len(self.memory) // 5, max(1, len(self.memory) // 10)
        share = 1 - first / len(self.memory)  # of the films, about
        figures, faults = {}, []
        for place, name in enumerate(("process", "largest child")):
            warm = max(sample[place] for sample in self.memory[first - 1 : first + 1])
            end = max(sample[place] for sample in self.memory[-last:])
            each = max(0.0, end - warm) * 2**20 / (films * share)
            figures |= {f"{name}, MiB, warm": warm, f"{name}, MiB, at the end": end, f"{name}, bytes a film": each}
            if end > GROWTH * warm + most_bytes * films * share / 2**20:
                faults.append(f"memory of the {name} grew from {warm:.0f} to {end:.0f} MiB, {each:.0f} bytes a film")
        warm_files, end_files = max(self.descriptors[:first]), max(self.descriptors[-last:])
        figures |= {"descriptors, warm": warm_files, "descriptors, at the end": end_files}
        if end_files > warm_files + MORE_DESCRIPTORS:
            faults.append(f"open descriptors grew from {warm_files} to {end_files}")
        return figures, faults


def _open_files(pid: int) -> int:
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


def link_films(source: Path, out: Path, films: int) -> None:
    """Link the films of a source under so many names, a thousand to a folder."""
    paths = sorted(source.rglob("image*.png"))
    for number, path in enumerate(itertools.islice(itertools.cycle(paths), films)):
        folder = out / f"{number // FOLDER_FILMS:04}"
        if number % FOLDER_FILMS == 0:
            folder.mkdir(parents=True)
        os.link(path, folder / f"film{number:07}.png")


def make_run(folder: Path) -> Path:
    """Train a small run on built-in films."""
    write_phantoms(folder / "trained on", seed=1, patients=24, size=96)
    words = [["preprocess", "trained on", "--recipe", "plain", "--size", "64", "--out", "films.h5"]]
    words += [["train", "cae", "--cache", "films.h5", "--preset", "fast", "--set", "epochs=1", "--out", "run"]]
    for verb in words:
        subprocess.run([sys.executable, "-m", "anomaly", *verb], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return folder / "run"


def soak_score(run: Path, films: Path, options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Score a tenth of the films by one command, then all of them by another."""
    tenth = options.films // 10
    link_films(films.parent / "drawn", films.parent / "tenth", tenth)
    few, faults, _ = _score(run, films.parent / "tenth", tenth, options.lines)
    begun = time.monotonic()
    many, more, lines = _score(run, films, options.films, options.lines)
    seconds, more_films = time.monotonic() - begun, options.films - tenth
    faults += more
    each = max(0.0, many.peak() - few.peak()) * 2**20 / more_films
    if many.peak() > GROWTH * few.peak() + options.bytes * more_films / 2**20:
        faults.append(f"memory grew from {few.peak():.0f} to {many.peak():.0f} MiB, {each:.0f} bytes a film")
    files = max(few.descriptors, default=0), max(many.descriptors, default=0)
    if files[1] > files[0] + MORE_DESCRIPTORS:
        faults.append(f"open descriptors grew from {files[0]} to {files[1]}")
    return {
        "films_per_second": options.films / seconds,
        "lines": lines,
        "peak of a tenth, MiB": few.peak(),
        "peak, MiB": many.peak(),
        "bytes a film": each,
        "descriptors, a tenth and all": files,
    }, faults


def _score(run: Path, films: Path, count: int, most_lines: int) -> tuple[Samples, list[str], int]:
    """Score films by one command: what it took, what is wrong, and how many lines it says."""
    samples, before = Samples(), set(run.glob("new/*"))
    command = [sys.executable, "-m", "anomaly", "score", str(run), str(films), "--device", "cpu"]
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, cwd=films.parent)
        watcher = threading.Thread(target=samples.watch, args=(process.pid,))
        watcher.start()
        status = process.wait()
        samples.ended.set()
        watcher.join()
        said.seek(0)
        lines = said.read().splitlines()
    scored = 0
    for folder in set(run.glob("new/*")) - before:
        with (folder / "scores.csv").open() as file:
            scored += sum(1 for _ in file) - 1
    faults = [] if len(lines) <= most_lines else [f"the command says {len(lines)} lines"]
    if status or scored != count:
        faults.append(f"status {status}, {scored} of {count} films scored: {lines[-1] if lines else ''}")
    return samples, faults, len(lines)


def soak_serve(run: Path, films: Path, options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    """Post all films to a service."""
    spool = films.parent / "spool"
    words = [str(run), "--port", "0", "--spool", str(spool), "--keep", "60", "--device", "cpu"]
    process = subprocess.Popen([sys.executable, "-m", "anomaly", "serve", *words], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = next(line.partition(": ")[0] for line in process.stdout if "/docs" in line)
    samples, load, begun = Samples(), Load(address), time.monotonic()
    watcher = threading.Thread(target=samples.watch, args=(process.pid,))
    watcher.start()
    paths = sorted(films.rglob("*.png"))
    try:
        drive(load, iter(paths), options)
        seconds = time.monotonic() - begun
        lost = len(paths) - len(load.ids)
        late = load.ids[-options.clients :]  # those before may be gone, as they are kept for a minute
        lost += len(late) - scored_films(Load(address, ids=late), options.clients)
    finally:
        samples.ended.set()
        watcher.join()
        process.send_signal(signal.SIGTERM)
        process.wait()
    figures, faults = samples.figures(len(paths), options.bytes)
    if lost:
        faults.append(f"{lost} of {len(paths)} films have no score")
    return {"films_per_second": len(paths) / seconds, "lost": lost, **figures}, faults


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=20000)
    parser.add_argument("--run", type=Path, help="a finished run; one is trained where none is named")
    parser.add_argument("--serve", action="store_true", help="post the films to a service as well")
    parser.add_argument("--bytes", type=float, default=4096.0, help="that a film may leave in memory")
    parser.add_argument("--lines", type=int, default=60)
    parser.add_argument("--folder", type=Path, help="where the films are linked, on a disk of some GB")
    parser.add_argument("--clients", type=int, default=4)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--client", choices=["httpx"], default="httpx")
    options = parser.parse_args()
    wrong: list[str] = []
    with tempfile.TemporaryDirectory(prefix="anomaly-soak-", dir=options.folder) as folder:
        place = Path(folder)
        write_phantoms(place / "drawn", seed=2, patients=DRAWN, size=96)
        link_films(place / "drawn", place / "films", options.films)
        run = place / "copy"
        shutil.copytree(options.run or make_run(place), run)
        for name, soak in (("score", soak_score), ("serve", soak_serve))[: 1 + options.serve]:
            figures, faults = soak(run, place / "films", options)
            record(f"soak, {name}", command_line("soak"), {"films": options.films}, figures)
            wrong += [f"{name}: {fault}" for fault in faults]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
