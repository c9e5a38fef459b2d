"""The campaign of kills and failing system calls: it notices what it is for, and a small verb survives it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.survival.campaign import calls_to_try
from benchmarks.survival.shim import compile_shim, environment

from .conftest import on_path

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.skipif(
    shutil.which("cc") is None or not sys.platform.startswith("linux"), reason="needs Linux and a C compiler"
)
CAMPAIGN = """
import dataclasses, json, os, sys
from pathlib import Path
import anomaly.cli.app as app
import preprocessing.phantom.write
from anomaly.runs import write_atomic
from benchmarks.survival.campaign import Campaign, Place, calls_to_try
from benchmarks.survival.scenarios import STATES, Scenario, State
from benchmarks.survival.shim import FAULTS, FOLDER, Shim
from benchmarks.survival.trials import adopt_orphans

run, folder, kind = app.main, Path(sys.argv[1]), ""

def main():
    if sys.argv[1] == "phantom":
        run()
    write = write_atomic if kind == "careful" else Path.write_text
    write(Path("kept"), "old" if sys.argv[1] == "make" else "new")
    write(Path("other"), "more")
    sys.exit(0)

app.main = main
STATES["made"] = State("empty", ("make",))
adopt_orphans()
place, tallies = Place(folder, Path(os.environ[FOLDER]), Shim()), {}
for kind, trials in (("careless", 100), ("careful", 100), ("phantom", 2)):
    scenario = Scenario(kind, "made", "change")
    if kind == "phantom":
        scenario = Scenario(kind, "empty", "phantom films --patients 4 --size 64")
    campaign = Campaign(scenario, place)
    for number, call in enumerate(calls_to_try(campaign.tally.calls, trials)):
        campaign.kill(call)
        campaign.fail(call, FAULTS[number % len(FAULTS)])
    tallies[kind] = dataclasses.asdict(campaign.tally)
print(json.dumps(tallies))
"""


@pytest.fixture(scope="module")
def tallies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the trials of three commands came to, in one process: it takes long to start."""
    folder = tmp_path_factory.mktemp("survival")
    watched = folder / "watched"
    (watched / "tmp").mkdir(parents=True)
    variables = environment(compile_shim(folder), watched, folder / "control")
    variables["PYTHONPATH"] = on_path(ROOT)["PYTHONPATH"]
    words = [sys.executable, "-c", CAMPAIGN, str(folder)]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])  # type: ignore[no-any-return]


Tallies = dict[str, dict[str, Any]]


def test_a_command_that_writes_in_place_is_noticed(tallies: Tallies) -> None:
    tally = tallies["careless"]
    assert tally["lost"] and tally["tracebacks"] and tally["faults"]
    assert any("kept was changed" in fault for fault in tally["faults"])


def test_a_command_that_writes_beside_and_moves_survives_every_call(tallies: Tallies) -> None:
    tally = tallies["careful"]
    assert tally["calls"] == tally["kills"] == tally["failures"] >= 8  # open, write, fsync, rename of each file
    assert tally["identical"] == tally["kills"] + tally["failures"] and not tally["lost"] + tally["different"]


def test_a_verb_survives_kills_and_failing_calls(tallies: Tallies) -> None:
    tally = tallies["phantom"]
    assert (tally["kills"], tally["failures"], tally["identical"]) == (2, 2, 4)
    assert tally["faults"] == []


def test_calls_are_spread_from_the_first_to_the_last() -> None:
    assert calls_to_try(3, 5) == [1, 2, 3]
    assert calls_to_try(100, 4) == [1, 34, 67, 100]
