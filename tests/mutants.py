"""Mutants of sound films: what becomes of them, told as one line of JSON. Run as a program, in limits of its own."""

import json
import resource
import sys
import time
from pathlib import Path

import numpy as np

from preprocessing import InputError
from preprocessing.readers import peek_depth, read_film
from tests.film_files import every_format

MEMORY = 4 * 2**30  # address space; Python with all decoders takes 1 of it


def mutant(sound: bytes, other: bytes, generator: np.random.Generator) -> bytes:
    """Flip bits, cut the end off, cut a piece out, splice pieces of another film in, or write extreme numbers."""
    data = bytearray(sound)
    kind = generator.integers(5)
    # Headers are short, and damage in them matters more: half of it falls on the first 400 bytes.
    place = int(generator.integers(min(len(data), 400) if generator.random() < 0.5 else len(data)))
    if kind == 0:
        for _ in range(int(generator.integers(1, 9))):
            place = int(generator.integers(min(len(data), 400) if generator.random() < 0.5 else len(data)))
            data[place] ^= 1 << int(generator.integers(8))
    elif kind == 1:
        del data[place:]
    elif kind == 2:
        del data[place : place + int(generator.integers(1, 64))]
    elif kind == 3:
        start = int(generator.integers(len(other)))
        data[place : place + 32] = other[start : start + int(generator.integers(1, 200))]
    else:
        data[place : place + 4] = [b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"][place % 4]
    return bytes(data)


def outcome(name: str, data: bytes) -> str:
    """What becomes of a file: read, refused, or the error that should not have been."""
    results = []
    for read in (read_film, peek_depth):
        try:
            read(name, data)
            results.append("read")
        except InputError as error:
            results.append("refused" if "\n" not in str(error) else f"refused in several lines: {error}")
        except BaseException as error:  # the point of the program
            results.append(f"{type(error).__name__}: {error}")
    return max(results, key=lambda result: (result not in ("read", "refused"), result))


def main(count: int, seed: int) -> None:
    """Read so many mutants; print counts of outcomes, the slowest one and the memory needed."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    generator = np.random.default_rng(seed)
    films = sorted(every_format().items())
    for name, data in films:
        read_film(name, data)
    counts: dict[str, int] = {}
    slowest = 0.0, ""
    for number in range(count):
        name, sound = films[number % len(films)]
        data = mutant(sound, films[int(generator.integers(len(films)))][1], generator)
        started = time.process_time()
        result = outcome(name, data)
        counts[result] = counts.get(result, 0) + 1
        slowest = max(slowest, (time.process_time() - started, f"{name} {number}"))
    # Not ru_maxrss, which begins with the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    peak = 1024 * int(status.partition("VmHWM:")[2].split()[0])
    print(json.dumps({"counts": counts, "slowest": slowest, "peak": peak}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
