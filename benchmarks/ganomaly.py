"""Our CAE, BiGAN and alpha-GAN beside anomalib's GANomaly: the same films of 128 px, side by side; built-in SYNTHETIC.

GANomaly is anomalib's own, installed from the package index into an environment made once for it: its default network
at 128 px, of three channels. Ours are of the preset `standard`. All train on the same normal films in batches of 16,
the default of ours (anomalib's is 32): ours from the cache, GANomaly from PNG files of the same pixels, all on as many
threads as torch takes, none with loader workers. Every side is a process of its own, which stays warm and trains when
it is told to: they take turns, each for about as long.

    step        films/s of the training step, on a batch in memory
    epoch       films/s of an epoch of training by each tool's own loop and loader, without validation; ours augment the
                films, as their preset says, GANomaly takes them as they are, as is its default
    first step  seconds from the command to the end of its first training step: `anomaly train MODEL`, `anomalib fit`,
                each given the films as above and run for one epoch
    peak        memory of that command's process, to its end
    checkpoint  what it leaves to score with: anomalib's model.ckpt, Adam's moments included; our weights.safetensors

GANomaly trains in float32, anomalib's default; as our precision `auto` takes bfloat16 where it pays, a second GANomaly
in Lightning's bf16-mixed shows what that would give. Each side has the allocator that its own tool takes: ours keeps
what is freed. The networks differ in size: "per parameter" compares films/s times the number of trained parameters,
which is how much network is trained on how many films in a second. Parameters are no work, so the operations of a step
stand beside them, and "per operation" compares films/s times operations a film, which is what the processor does.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path
from typing import Any

import cv2
import torch

from anomaly.pipeline.plan import Plan, prepare
from benchmarks.record import record, spread
from preprocessing.build import BuildOptions, build
from preprocessing.phantom import write_phantoms
from preprocessing.recipe import Recipe
from preprocessing.sources import open_source

ENVIRONMENT = Path(__file__).parents[1] / ".benchmarks" / "anomalib"
PACKAGE = "anomalib==2.7.0"
SIZE, BATCH = 128, 16
OURS = ("cae", "bigan", "alphagan")
THEIRS = {"ganomaly": "32-true", "ganomaly bf16": "bf16-mixed"}
TURN = 4.0  # seconds that a side trains before it is the next one's turn, or one step where that takes longer


def environment() -> Path:
    """Return the programs of an environment with anomalib, made if it isn't there: 6 GB, mostly torch and CUDA."""
    stamp = ENVIRONMENT / PACKAGE
    if not stamp.exists():
        venv.create(ENVIRONMENT, clear=True, symlinks=True, with_pip=True)
        subprocess.run([ENVIRONMENT / "bin" / "python", "-m", "pip", "install", "--quiet", PACKAGE], check=True)
        stamp.touch()
    return ENVIRONMENT / "bin"


def prepared_films(folder: Path, patients: int) -> tuple[Path, Path]:
    """Return a cache, and anomalib's config of GANomaly on PNG files of the same normal films, train and val."""
    write_phantoms(folder / "films", seed=0, patients=patients)
    cache, pngs = folder / "cache.h5", folder / "png"
    build(
        open_source(folder / "films"),
        Recipe(name="limb", size=SIZE),
        cache,
        options=BuildOptions(variants=("full-he",), workers=1),
    )
    prepared = prepare(Plan(OURS[0], cache))
    for split in ("train", "val"):
        (pngs / split).mkdir(parents=True)
        for row, film in enumerate(prepared.films(split).read().film):
            cv2.imwrite(str(pngs / split / f"{row}.png"), film)
    transforms = [  # anomalib's own but for the size, which has no option of its own
        made("torchvision.transforms.v2.Resize", size=[SIZE, SIZE], antialias=True),
        made("torchvision.transforms.v2.Normalize", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    ]
    transform = made("torchvision.transforms.v2.Compose", transforms=transforms)
    given = {"name": "films", "root": str(pngs), "normal_dir": "train", "normal_test_dir": "val"}
    given |= {"val_split_mode": "same_as_test", "train_batch_size": BATCH, "eval_batch_size": BATCH, "num_workers": 0}
    asked = {
        "model": made(
            "anomalib.models.Ganomaly",
            batch_size=BATCH,
            pre_processor=made("anomalib.pre_processing.PreProcessor", transform=transform),
        ),
        "data": made("anomalib.data.Folder", **given),
        "trainer": {"max_epochs": 1, "devices": 1},
    }
    config = folder / "ganomaly.json"
    config.write_text(json.dumps(asked))
    return cache, config


def made(kind: str, **given: Any) -> dict[str, Any]:
    """Return an object as anomalib's config has it."""
    return {"class_path": kind, "init_args": given}


class Side:
    """A process of `ganomaly_side.py`."""

    def __init__(self, log: Path, python: Path, *arguments: object) -> None:
        self.log = log
        call = [str(part) for part in (python, "-P", Path(__file__).with_name("ganomaly_side.py"), *arguments)]
        with log.open("a") as file:
            self.process = subprocess.Popen(call, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True)
        self.facts = self.answer()

    def answer(self) -> dict[str, Any]:
        """Return what the process says next."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.log.read_text()[-4000:]}\na side ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def films_per_second(self, word: str | int) -> float:
        """Train an "epoch", or a number of steps."""
        assert self.process.stdin
        print(word, file=self.process.stdin, flush=True)
        films = self.facts["films"] if word == "epoch" else self.facts["batch"] * int(word)
        return float(films / self.answer()["seconds"])

    def end(self) -> None:
        """Wait until the process has ended, for want of words."""
        self.process.communicate()


def in_turns(sides: dict[str, Side], rounds: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return films/s of step and epoch of every side, as `spread` has them. A round before the first warms up."""
    found: dict[str, dict[str, list[float]]] = {name: {"step": [], "epoch": []} for name in sides}
    steps: dict[str, int] = {}
    for number in range(rounds + 1):
        for kind in ("step", "epoch"):
            for name, side in sides.items():
                rate = side.films_per_second(steps.get(name, 2) if kind == "step" else kind)
                steps[name] = max(1, round(TURN * rate / BATCH))
                if number:
                    found[name][kind].append(rate)
    return {name: {kind: spread(values) for kind, values in own.items()} for name, own in found.items()}


def commands(folder: Path, programs: Path, cache: Path, config: Path, rounds: int) -> dict[str, dict[str, Any]]:
    """Return first step, peak and checkpoint of each tool's command, in turns."""
    own = Path(sys.executable).parent
    calls: dict[str, tuple[Any, ...]] = {"ganomaly": (programs, "anomalib", "fit", "--config", config)}
    calls |= {name: (own, "anomaly", "train", name, "--cache", cache, "--set=epochs=1") for name in OURS}
    found: dict[str, dict[str, list[float]]] = {name: {} for name in calls}
    for number in range(rounds):
        for name, (where, tool, *rest) in calls.items():
            out = folder / "runs" / f"{name}-{number}"
            rest += ["--out" if name in OURS else "--default_root_dir", out]
            side = Side(folder / "log", where / "python", "command", time.monotonic(), where / tool, *rest)
            side.end()
            (kept,) = (path for path in out.rglob("*") if path.name in ("model.ckpt", "weights.safetensors"))
            for key, value in (side.facts | {"checkpoint_mb": kept.stat().st_size / 1e6}).items():
                found[name].setdefault(key, []).append(value)
            kept.unlink()
    return {name: {key: spread(values) for key, values in each.items()} for name, each in found.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    programs = environment()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log, python = folder / "log", programs / "python"
        cache, config = prepared_films(folder, options.patients)
        found = commands(folder, programs, cache, config, options.rounds)
        sides = {name: Side(log, python, "theirs", config, folder / "theirs", THEIRS[name]) for name in THEIRS}
        sides |= {name: Side(log, Path(sys.executable), "ours", name, cache) for name in OURS}
        rates = in_turns(sides, options.rounds)
        for side in sides.values():
            side.end()
    facts = {name: side.facts for name, side in sides.items()}
    figures: dict[str, Any] = {}
    for name in sides:
        figures[f"{name}, parameters"] = facts[name]["parameters"]
        figures[f"{name}, GFLOP a film"] = facts[name]["gflop"] / facts[name]["batch"]
        figures |= {f"{name}, {kind}, films/s": rate for kind, rate in rates[name].items()}
        figures |= {f"{name}, {key}": value for key, value in found.get(name, {}).items()}
    for other in THEIRS:
        for name in OURS:
            size, work = (facts[name][kind] / facts[other][kind] for kind in ("parameters", "gflop"))
            for kind in ("step", "epoch"):
                ratio = rates[name][kind]["median"] / rates[other][kind]["median"]
                figures[f"{name} over {other}, {kind}"] = ratio
                figures[f"{name} over {other}, {kind}, per parameter"] = ratio * size
                figures[f"{name} over {other}, {kind}, per operation"] = ratio * work
    settings = {"size": SIZE, "batch": BATCH, "films": facts[OURS[0]]["films"], "rounds": options.rounds}
    settings |= {"threads": torch.get_num_threads(), "theirs": facts["ganomaly"]["versions"]}
    settings["precision"] = {name: each["precision"] for name, each in facts.items()}
    command = f"python -m benchmarks.ganomaly --patients {options.patients} --rounds {options.rounds}"
    record("ganomaly", command, settings, figures)


if __name__ == "__main__":
    main()
