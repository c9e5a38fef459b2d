"""One bit flipped, or the end cut off, in every kind of file that numbers are made of: who notices?

Small folders of every kind are made once (SYNTHETIC films). Then, file by file and in a copy of its folder: one bit at
a random place, or a cut at each twentieth; what the package makes of the folder is compared with what it makes of the
intact one. An outcome is

    noticed    one line (InputError: exit status 2) that names a file of the folder
    said       another result, and a line that names the file or the folder and was not there before
    harmless   the same result to the last digit
    SILENT     another result, and nothing said
    CRASH      any other error: a traceback, as a user sees it

Ends with status 1 where one is SILENT or a CRASH, or less than `--flips` bits were flipped.
"""

import argparse
import gc
import json
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.damage_world import KINDS, USES, WORLD, Kind, files_of, make_world
from preprocessing import InputError

OUTCOMES = ("noticed", "said", "harmless", "SILENT", "CRASH")
BAD = ("SILENT", "CRASH")
TWENTIETHS = 20


@dataclass(frozen=True)
class Damage:
    """What is done to a file."""

    file: str
    bit: int | None = None  # counted from the first of the file
    length: int | None = None  # bytes that are kept

    def of(self, data: bytes) -> bytes:
        """Return a file's content damaged."""
        if self.length is not None:
            return data[: self.length]
        assert self.bit is not None
        damaged = bytearray(data)
        damaged[self.bit // 8] ^= 1 << self.bit % 8
        return bytes(damaged)

    def __str__(self) -> str:
        return f"{self.file} " + (f"bit {self.bit}" if self.length is None else f"cut to {self.length} bytes")


def damages(kind: Kind, share: float, seed: int) -> list[Damage]:
    """Return what is done to the files of a kind: `share` of its flips, at random places, and twenty cuts of each."""
    random, made = np.random.default_rng(seed), []
    for file in files_of(kind):
        size = (WORLD / kind.folder / file).stat().st_size
        places = random.integers(8 * size, size=max(1, round(kind.flips * share)))
        made += [Damage(file, bit=int(place)) for place in places]
        made += [Damage(file, length=size * part // TWENTIETHS) for part in range(TWENTIETHS)]
    return made


def used(name: str, folder: Path) -> tuple[Any, set[str]]:
    """Return what a use makes of a folder, and the lines that it says beside it."""
    said = StringIO()
    with warnings.catch_warnings(record=True) as caught, redirect_stderr(said), redirect_stdout(said):
        warnings.simplefilter("always")
        result = USES[name](folder)
    lines = set(said.getvalue().splitlines()) | {str(one.message) for one in caught}
    return result, lines


def examine(name: str, share: float, seed: int) -> list[dict[str, str]]:
    """Return what became of every damage to a kind: file, kind of damage, outcome, by whom, detail."""
    kind = KINDS[name]
    # A folder of the same depth and name as where it is made: what a run records of its place stays true.
    place = Path(f"trial-{re.sub('[^a-z]+', '-', name)}") / kind.folder
    origin = WORLD / kind.folder
    intact = {}
    for use in kind.uses:
        _renew(origin, place)
        intact[use] = used(use, place)
    found = []
    for damage in damages(kind, share, seed):
        outcome, by, detail = "harmless", "", ""
        for use in kind.uses:
            _renew(origin, place)
            file = place / damage.file
            file.write_bytes(damage.of(file.read_bytes()))
            outcome, detail = judge(use, place, damage, intact[use])
            gc.collect()  # closes what HDF5 has open
            if outcome != "harmless":
                by = use
                break
        how = "cut" if damage.bit is None else "flip"
        found.append({"kind": name, "file": damage.file, "damage": how, "outcome": outcome, "by": by, "detail": detail})
        if outcome in BAD:
            print(f"{outcome}: {name}: {damage} ({by}): {detail}", flush=True)
    shutil.rmtree(place.parent)
    return found


def judge(use: str, place: Path, damage: Damage, intact: tuple[Any, set[str]]) -> tuple[str, str]:
    """Return what becomes of a damaged folder: outcome and detail."""
    try:
        result, lines = used(use, place)
    except InputError as error:
        text = str(error)
        named = str(place) in text and "\n" not in text
        return ("noticed", text) if named else ("CRASH", f"an error that names no file of the folder: {text}")
    except Exception as error:
        return "CRASH", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if _same(result, intact[0]):
        return "harmless", ""
    new = [line for line in lines - intact[1] if str(place) in line or Path(damage.file).name in line]
    return ("said", new[0]) if new else ("SILENT", "")


def _same(one: Any, other: Any) -> bool:
    return repr(one) == repr(other)  # NaN is NaN


def _renew(origin: Path, place: Path) -> None:
    shutil.rmtree(place.parent, ignore_errors=True)
    shutil.copytree(origin, place)


def begin(folder: str) -> None:
    """Begin a process: in the folder of the world, on one thread."""
    import torch

    os.chdir(folder)
    torch.set_num_threads(1)


def table(found: list[dict[str, str]]) -> str:
    """Return a line for every kind and file: how many damages, and what became of them."""
    lines = [f"{'kind':<26} {'file':<34} {'flips':>5} {'cuts':>4}  " + " ".join(f"{name:>8}" for name in OUTCOMES)]
    for kind, file in dict.fromkeys((one["kind"], one["file"]) for one in found):
        mine = [one for one in found if (one["kind"], one["file"]) == (kind, file)]
        how, outcome = Counter(one["damage"] for one in mine), Counter(one["outcome"] for one in mine)
        counts = " ".join(f"{outcome[name]:>8}" for name in OUTCOMES)
        lines.append(f"{kind:<26} {file:<34} {how['flip']:>5} {how['cut']:>4}  {counts}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=float, default=1.0, help="of the flips of each kind; 10 for a long night")
    parser.add_argument("--kinds", nargs="*", default=list(KINDS), choices=list(KINDS), metavar="KIND")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes")
    parser.add_argument("--flips", type=int, default=1000, help="at least so many, or the status is 1")
    parser.add_argument("--json", type=Path, default=Path(".benchmarks/damage.json"))
    options = parser.parse_args()
    start, out = time.monotonic(), options.json.resolve()
    with tempfile.TemporaryDirectory() as folder:
        begin(folder)
        make_world()
        print(f"made in {time.monotonic() - start:.0f} s", flush=True)
        context = get_context("spawn")
        with ProcessPoolExecutor(options.jobs, context, initializer=begin, initargs=(folder,)) as pool:
            waiting = [pool.submit(examine, name, options.share, options.seed) for name in options.kinds]
            found = []
            for each in waiting:  # a kind as soon as it is done: all of them take minutes
                found += each.result()
                print(table(each.result()), flush=True)
        os.chdir(out.anchor)
    total = Counter((one["damage"], one["outcome"]) for one in found)
    flips = {name: total["flip", name] for name in OUTCOMES}
    cuts = {name: total["cut", name] for name in OUTCOMES}
    for how, counts in (("flips", flips), ("cuts", cuts)):
        print(f"{sum(counts.values())} {how}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))
    seconds = round(time.monotonic() - start)
    print(f"seed {options.seed}, {seconds} s")
    out.parent.mkdir(parents=True, exist_ok=True)
    summary = {"seed": options.seed, "seconds": seconds, "flips": flips, "cuts": cuts, "damages": found}
    out.write_text(json.dumps(summary, indent=1) + "\n")
    if sum(counts[name] for counts in (flips, cuts) for name in BAD) or sum(flips.values()) < options.flips:
        sys.exit(1)


if __name__ == "__main__":
    main()
