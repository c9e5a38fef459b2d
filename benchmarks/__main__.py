"""Every benchmark, one after the other."""

import subprocess
import sys

for name in ("truth", "steps", "preprocessing", "training"):
    subprocess.run([sys.executable, "-m", f"benchmarks.{name}"], check=True)
