"""What this machine has and what it lacks: packages, processor, GPU, memory, disk, weights.

Every line is a fact; one that asks for something to be done says what.
"""

import os
import platform
import shutil
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from anomaly.formatting import size_on_disk
from anomaly.memory import free_memory
from anomaly.processor import processor_name
from preprocessing import InputError

PACKAGE = "xray-anomaly"
SAME_MODULE = {"opencv-python": ("opencv-python-headless", "opencv-contrib-python", "opencv-contrib-python-headless")}
"""Package -> others that bring the same module."""
LITTLE_DISK, LITTLE_MEMORY, LITTLE_SHARED = 2 << 30, 2 << 30, 256 << 20
"""Bytes below which advice is given: for a cache of 4,000 films of 512 px, a training at 512 px, a loader's films."""


@dataclass(frozen=True)
class Fact:
    """One line of the report."""

    section: str
    name: str
    value: str
    advice: str | None = None
    """What to do about it; None where nothing is amiss."""
    needed: bool = False
    """Whether nothing works without the advice being followed."""


def examine() -> list[Fact]:
    """Return all facts, section by section, in the order in which they are shown."""
    return [*_program(), *_packages(), *_machine(), *_places(), *_weights()]


def _program() -> Iterator[Fact]:
    try:
        installed = version(PACKAGE)
    except PackageNotFoundError:
        yield Fact("program", "anomaly", "run from its sources", "pip install -e . in the checkout, for its packages")
    else:
        yield Fact("program", "anomaly", installed)
    yield Fact("program", "Python", f"{platform.python_version()} ({platform.python_implementation()})")
    yield Fact("program", "system", platform.platform())
    encoding = (sys.stdout.encoding or "none").lower()
    lossy = "utf" not in encoding
    advice = "characters that it lacks are shown as escapes; set PYTHONIOENCODING=utf-8" if lossy else None
    yield Fact("program", "terminal", encoding, advice)


def _packages() -> Iterator[Fact]:
    """Yield the packages that are needed, and the extras, as the installed package declares them."""
    try:
        declared = [Requirement(text) for text in metadata(PACKAGE).get_all("Requires-Dist") or ()]
    except PackageNotFoundError:
        return
    extras: dict[str, list[Requirement]] = defaultdict(list)
    for one in declared:
        names = [name for name in _extras() if one.marker and one.marker.evaluate({"extra": name})]
        if not one.marker or one.marker.evaluate({"extra": ""}):
            yield _needed(one)
        for name in names:
            if canonicalize_name(one.name) != PACKAGE:
                extras[name].append(one)
    yield from _working_torchvision()
    for name in sorted(extras):
        missing = [one.name for one in extras[name] if _found(one) is None]
        advice = f"pip install '{PACKAGE}[{name}]', if you want it" if missing else None
        value = f"without {', '.join(missing)}" if missing else "complete"
        yield Fact("extras", name, value, advice)


def _extras() -> list[str]:
    return [name for name in metadata(PACKAGE).get_all("Provides-Extra") or () if name not in ("dev", "docs")]


def _found(wanted: Requirement) -> str | None:
    """Return the installed version of a package, or of one that brings the same module."""
    for name in (wanted.name, *SAME_MODULE.get(wanted.name, ())):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return None


def _needed(wanted: Requirement) -> Fact:
    found, installs = _found(wanted), f"pip install '{wanted.name}{wanted.specifier}'"
    if found is None and _scores_alone():
        return Fact("packages", wanted.name, "missing: this installation scores bundles alone", f"to train: {installs}")
    if found is None:
        return Fact("packages", wanted.name, "missing", installs, needed=True)
    old = not wanted.specifier.contains(found, prereleases=True)
    return Fact("packages", wanted.name, found, f"{installs}: {wanted.specifier} is needed" if old else None, old)


def _scores_alone() -> bool:
    """Whether this is an installation that scores bundles: onnxruntime without torch."""
    return _found(Requirement("torch")) is None and _found(Requirement("onnxruntime")) is not None


def _working_torchvision() -> Iterator[Fact]:
    """Yield a fact where the two are builds that don't fit: torchvision then fails at its first use."""
    if _found(Requirement("torch")) is None:
        return
    try:
        import torchvision.ops  # noqa: F401
    except Exception as error:  # whatever a library that doesn't fit raises
        reason = " ".join(str(error).split())[:160]
        advice = "install both together: pip install --force-reinstall torch torchvision"
        yield Fact("packages", "torch and torchvision", f"do not fit ({reason})", advice, needed=True)


def _machine() -> Iterator[Fact]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Fact("machine", "processor", f"{processor_name()}, {usable} of {os.cpu_count()} cores usable")
    free = free_memory()
    if free is not None:
        little = free < LITTLE_MEMORY
        advice = "take a lower --set batch_size= or --size, and --workers 1" if little else None
        yield Fact("machine", "memory left", size_on_disk(free), advice)
    yield from _accelerator()


def _accelerator() -> Iterator[Fact]:
    try:
        import torch

        from anomaly.training import measured
        from anomaly.training.device import choose_device, choose_precision, has_avx512_bf16
    except ImportError:
        yield Fact("machine", "training", "not possible: torch is missing")
        return
    device = choose_device("auto")
    for number in range(torch.cuda.device_count()):
        left, total = torch.cuda.mem_get_info(number)
        name = torch.cuda.get_device_name(number)
        yield Fact("machine", f"GPU {number}", f"{name}, {size_on_disk(left)} of {size_on_disk(total)} free")
    if device.type == "cpu":
        driver = Path("/proc/driver/nvidia/version").exists()
        built = f"this torch is built for {torch.version.cuda}" if torch.version.cuda else "this torch has no CUDA"
        advice = f"{built}: install the build that fits the driver, or update the driver" if driver else None
        yield Fact("machine", "GPU", "an NVIDIA driver, but torch can't use it" if driver else "none", advice)
    yield Fact("machine", "training", f"on {device.type}; {torch.get_num_threads()} threads")
    if device.type != "cpu":
        precision = choose_precision("auto", device, pays=True)
        yield Fact("machine", "precision", f"--precision auto trains in {precision} where it pays")
    elif not measured.is_on():
        has = "has" if has_avx512_bf16() else "has no"
        yield Fact("machine", "precision", f"not measured ({measured.SWITCH}=0): the processor {has} AVX512-bf16")
    elif found := measured.kept():
        for name, said in found.lines().items():
            yield Fact("machine", name, f"{said} (measured {found.date}, kept in {measured.place()})")
    else:
        yield Fact("machine", "precision", "not measured yet: the first training does, or `anomaly doctor --measure`")


def measure_machine() -> None:
    """Measure anew what training goes by on this machine, keep it and say so; InputError where nothing trains here."""
    try:
        from anomaly.training import measured
    except ImportError:
        raise InputError("there is nothing to measure: torch is missing, and nothing can be trained here") from None
    measured.measure()


def _places() -> Iterator[Fact]:
    for name, place in (("here", Path.cwd()), ("temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(place).free
        if not os.access(place, os.W_OK):
            yield Fact("places", name, f"{place}, not writable", "work in a folder of your own, or set TMPDIR")
        else:
            advice = "caches and films that are prepared may not fit" if free < LITTLE_DISK else None
            yield Fact("places", name, f"{place}, {size_on_disk(free)} free", advice)
    shared = Path("/dev/shm")  # nosec B108 # looked at, nothing is written
    if shared.is_dir():
        size = shutil.disk_usage(shared).total
        advice = "films pass between processes there: docker run --shm-size=1g, or --workers 0"
        yield Fact("places", "shared memory", size_on_disk(size), advice if size < LITTLE_SHARED else None)


def _weights() -> Iterator[Fact]:
    try:
        from anomaly.models.pretrained import packaged_file

        yield Fact("weights", "lite0", str(packaged_file("lite0")))
    except ImportError:
        return
    except (InputError, OSError) as error:
        yield Fact("weights", "lite0", "none: feature_mixture and synthetic begin from random weights", str(error))
