"""Every benchmark of speed, one after the other, and what they come to: each ratio beside what is aimed at."""

import json
import subprocess
import sys
from math import nan
from typing import Any

from benchmarks.record import RESULTS

NAMES = (
    "truth",
    "steps",
    "preprocessing",
    "reading",
    "training",
    "data_loading",
    "augmentation",
    "roofline",
    "scoring",
    "startup",
    "ganomaly",
    "scaling",
)
AIMS = {
    "CAE 512 px, a training step: the original's time over ours": ("cae training", "step, ratio", ">= 3.0"),
    "CAE 512 px, end to end: the original's time over ours": ("cae training", "end to end, ratio", ">= 3.0"),
    "CAE 128 px: what an epoch keeps of the bare step's pace": ("data_loading", "cae 128 px, kept", ">= .95"),
    "CAE 512 px: the same": ("data_loading", "cae 512 px, kept", ">= .95"),
    "BiGAN 128 px: the same": ("data_loading", "bigan 128 px, kept", ">= .95"),
    "CAE over GANomaly, films/s at 128 px": ("ganomaly", "cae over ganomaly, step", ">= 20"),
    "BiGAN over GANomaly, per parameter": ("ganomaly", "bigan over ganomaly, step, per parameter", ">= 1"),
    "alpha-GAN over GANomaly, per parameter": ("ganomaly", "alphagan over ganomaly, step, per parameter", ">= 1"),
    "PNG over the cache, warm, plain films": ("reading, plain", "warm, png over uncompressed, 16 at a time", ">= 100"),
    "PNG over the cache, warm, hands": ("reading, hand", "warm, png over uncompressed, 16 at a time", ">= 100"),
    "PNG over the cache in lzf, plain films": ("reading, plain", "warm, png over lzf, 16 at a time", ">= 2"),
    "PNG over the cache in lzf, hands": ("reading, hand", "warm, png over lzf, 16 at a time", ">= 2"),
    "preparing at 512 px, films/s a core": ("preprocessing", "full-he, 1 worker, films_per_second", ">= 15"),
    "preparing, two workers over one": ("preprocessing", "full-he, two_workers_over_one", ">= 1.7"),
    "preparing, peak memory at 16,000 films over 1,000": (
        "scaling, preprocess, 2 workers",
        "peak of all together, MiB, at 16000 over 1000",
        "<= 1.1",
    ),
    "preparing, the process that writes alone": (
        "scaling, preprocess, 2 workers",
        "peak, MiB, at 16000 over 1000",
        "<= 1.1",
    ),
    "scoring, the same": ("scaling, score all", "peak, MiB, at 16000 over 1000", "<= 1.1"),
}
"""What -> benchmark, figure, aim."""


def main() -> None:
    failed = [name for name in NAMES if subprocess.run([sys.executable, "-m", f"benchmarks.{name}"]).returncode]
    latest: dict[str, dict[str, Any]] = {}
    for line in RESULTS.read_text().splitlines():
        result = json.loads(line)
        latest[result["benchmark"]] = result["figures"]
    for what, (benchmark, figure, aim) in AIMS.items():
        found = latest.get(benchmark, {}).get(figure, nan)
        print(f"{what:<60} {found['median'] if isinstance(found, dict) else found:8.2f}   aim {aim}")
    if failed:
        sys.exit(f"failed, so that its line above is an earlier one's: {', '.join(failed)}")


if __name__ == "__main__":
    main()
