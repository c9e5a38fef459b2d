"""Kills and failing system calls, verb by verb: what was lost, and what differs after the same command again.

    python -m benchmarks.survival [--full] [--verbs 'score,train cae'] [--trials 34] [--jobs 2] [--out FILE.json]

Each job has a folder of its own, in which every command is typed as a user types it. Exit status 1 where anything was
wrong, 2 where nothing could be tried.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from queue import Empty, Queue
from typing import Any

from benchmarks.survival.scenarios import SCENARIOS, Scenario
from benchmarks.survival.shim import FOLDER, NoCompiler, compile_shim, environment

ROOT = Path(__file__).parents[2]
TRIALS = 34
"""Calls that are disturbed of a verb whose trials cost no more than others'."""
COLUMNS = ("calls", "kills", "failures", "identical", "different", "lost", "tracebacks", "signals", "statuses")


def main() -> int:
    """Run the campaign and return its exit status."""
    options = _options()
    if options.worker:
        _work(Path(options.worker))
        return 0
    chosen = [one for one in SCENARIOS if not options.verbs or one.verb in options.verbs.split(",")]
    if not chosen:
        print(
            f"error: no verb {options.verbs!r}; there are: {', '.join(one.verb for one in SCENARIOS)}", file=sys.stderr
        )
        return 2
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="survival-") as folder:
        try:
            library = compile_shim(Path(folder))
        except NoCompiler as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
        print(f"{'verb':<28}" + "".join(f"{name:>11}" for name in COLUMNS))
        tallies = _run(chosen, options, Path(folder), library)
    sums = {name: sum(tally[name] for tally in tallies) for name in COLUMNS}
    print(_row("all", sums))
    faults = sum(len(tally["faults"]) for tally in tallies)
    print(f"{faults} trials with a fault" if faults else "nothing lost or different, no traceback, no signal")
    out = Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(tallies, indent=2) + "\n")
    print(f"{out}: every verb with its command and faults; {(time.monotonic() - started) / 60:.1f} minutes")
    if len(chosen) == len(SCENARIOS) and len(tallies) == len(chosen):
        from benchmarks.record import command_line, record

        record("survival", command_line("survival"), {"trials": None if options.full else options.trials}, sums)
    return 1 if faults or len(tallies) < len(chosen) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.survival", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--full", action="store_true", help="every call of every verb: hours")
    parser.add_argument("--verbs", default="", help="comma list; default: all")
    parser.add_argument("--trials", type=int, default=TRIALS, help="calls to disturb of a verb, fewer of slow ones")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--out", default=".benchmarks/survival.json", help="JSON file of all that was found")
    parser.add_argument("--worker", default="", help=argparse.SUPPRESS)
    return parser.parse_args()


def _run(
    chosen: Sequence[Scenario], options: argparse.Namespace, folder: Path, library: Path
) -> list[Mapping[str, Any]]:
    """Hand the scenarios to the workers, the longest first, and return their tallies."""
    waiting: Queue[tuple[Scenario, int | None]] = Queue()
    for scenario in sorted(chosen, key=lambda one: -one.cost):
        most = None if options.full else max(2, round(options.trials / scenario.cost))
        waiting.put((scenario, most))
    with ThreadPoolExecutor(options.jobs) as threads:
        parts = [threads.submit(_hand_out, waiting, folder / str(number), library) for number in range(options.jobs)]
    return [tally for part in parts for tally in part.result()]


def _hand_out(waiting: "Queue[tuple[Scenario, int | None]]", root: Path, library: Path) -> list[Mapping[str, Any]]:
    """Keep one worker busy."""
    watched = root / "watched"
    (watched / "tmp").mkdir(parents=True)
    variables = environment(library, watched, root / "control") | {
        "TMPDIR": str(watched / "tmp"),
        "MPLCONFIGDIR": str(root / "matplotlib"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    words = [sys.executable, "-m", "benchmarks.survival", "--worker", str(root)]
    tallies = []
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables) as worker:
        assert worker.stdin is not None and worker.stdout is not None
        while True:
            try:
                scenario, most = waiting.get_nowait()
            except Empty:
                break
            worker.stdin.write(json.dumps([scenario.verb, most]) + "\n")
            worker.stdin.flush()
            line = worker.stdout.readline()
            if not line:
                print(f"{scenario.verb}: the process that tries it ended", file=sys.stderr)
                break
            tally = json.loads(line)
            if "error" in tally:
                print(f"{scenario.verb}: {tally['error']}", file=sys.stderr)
                continue
            tallies.append(tally)
            print("\n".join([_row(scenario.verb, tally), *(f"    {fault}" for fault in tally["faults"])]), flush=True)
        worker.stdin.close()
    return tallies


def _row(name: str, tally: Mapping[str, Any]) -> str:
    return f"{name:<28}" + "".join(f"{tally[column]:>11}" for column in COLUMNS)


def _work(root: Path) -> None:
    """In a worker: try the scenarios that come, a line each, until no more come."""
    from benchmarks.survival.campaign import Place, campaign
    from benchmarks.survival.shim import Shim
    from benchmarks.survival.trials import adopt_orphans, import_everything

    answers = os.fdopen(os.dup(1), "w")  # what else prints must not get between the lines
    os.dup2(2, 1)
    adopt_orphans()
    import_everything()
    place = Place(root, Path(os.environ[FOLDER]), Shim())
    scenarios = {scenario.verb: scenario for scenario in SCENARIOS}
    for line in sys.stdin:
        verb, most = json.loads(line)
        try:
            answer = asdict(campaign(scenarios[verb], place, most))
        except RuntimeError as error:
            answer = {"error": str(error)}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    sys.exit(main())
