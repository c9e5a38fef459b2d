"""The trials of a scenario, and what they came to."""

import re
import shlex
import shutil
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.survival import compare
from benchmarks.survival.scenarios import STATES, Scenario
from benchmarks.survival.shim import FAULTS, Fault, Shim
from benchmarks.survival.trials import Ended, run

_TRACEBACK = re.compile(r"^Traceback \(most recent call last\)|^Exception ignored in", re.MULTILINE)
_TEMPORARY = re.compile(r"tmp/anomaly-.* is left over")
_DRAFT = re.compile(r"(.*/)?\.anomaly-[^/]*\.partial(/.*)? is left over")


@dataclass
class Tally:
    """What the trials of a scenario came to."""

    verb: str
    command: str
    calls: int
    """Changing calls of an undisturbed run."""
    seconds: float
    """An undisturbed run."""
    kills: int = 0
    failures: int = 0
    identical: int = 0
    """Trials after which the same command ended with the same files."""
    different: int = 0
    lost: int = 0
    """Trials after which a file that was there before was gone or changed."""
    tracebacks: int = 0
    signals: int = 0
    """Deaths by signals other than ours, and processes that had to be killed."""
    statuses: int = 0
    """Failing calls that ended with another status than 2, or with anything but one line."""
    faults: list[str] = field(default_factory=list)
    """Every trial with something wrong: call, what was done, what was found."""

    @property
    def failed(self) -> bool:
        """Whether anything was wrong."""
        return bool(self.faults)


class Place:
    """The folders of one worker: the watched one, what scenarios start from, and the logs."""

    def __init__(self, root: Path, watched: Path, shim: Shim) -> None:
        self.watched, self.shim = watched, shim
        self.states, self.logs = root / "states", root / "logs"
        for folder in (self.states, self.logs):
            folder.mkdir()

    def restore(self, state: str) -> None:
        """Make the watched folder what it is in a state."""
        made = self._made(state)
        shutil.rmtree(self.watched)
        shutil.copytree(made, self.watched, symlinks=True)
        (self.watched / "tmp").mkdir(exist_ok=True)

    def run(self, words: Sequence[str], arm: Callable[[int], None] = lambda group: None) -> Ended:
        """Run a command there."""
        return run(words, self.watched, self.logs, arm, self.shim)

    def _made(self, name: str) -> Path:
        folder, state = self.states / name, STATES[name]
        if folder.exists():
            return folder
        if state.after is None:
            folder.mkdir()
            return folder
        self.restore(state.after)
        for command in state.commands:
            ended = self.run(shlex.split(command))
            if ended.status:
                raise RuntimeError(f"anomaly {command}: status {ended.status}: {ended.err}")
        if words := shlex.split(state.killed):
            self.run(words, lambda group: self.shim.count())
            half = self.shim.calls // 2
            self.restore(state.after)
            self.run(words, lambda group: self.shim.kill(half, group))
        for pattern, target in state.copies:
            (self.watched / target).mkdir(exist_ok=True)
            for number, path in enumerate(sorted(self.watched.glob(pattern))):
                shutil.copy2(path, self.watched / target / f"{number}{path.suffix}")
        shutil.copytree(self.watched, folder, symlinks=True)
        return folder


class Campaign:
    """The trials of one scenario."""

    def __init__(self, scenario: Scenario, place: Place) -> None:
        self.scenario, self.place = scenario, place
        place.restore(scenario.state)
        self.before = compare.exact(place.watched)
        ended = place.run(scenario.words, lambda group: place.shim.count())
        if ended.status or _TRACEBACK.search(ended.err):
            raise RuntimeError(f"anomaly {scenario.command}: status {ended.status}: {ended.err}")
        self.after = compare.tree(place.watched)
        self.tally = Tally(scenario.verb, scenario.command, place.shim.calls, ended.seconds)
        place.restore(scenario.state)
        place.run(scenario.words)
        if unequal := compare.differences(self.after, compare.tree(place.watched)):
            raise RuntimeError(f"anomaly {scenario.command} does not repeat itself undisturbed: {'; '.join(unequal)}")

    def kill(self, call: int) -> None:
        """Kill the command at a call, and type it again."""
        self.tally.kills += 1
        shim = self.place.shim
        self._trial(call, "killed", lambda group: shim.kill(call, group), None)

    def fail(self, call: int, fault: Fault) -> None:
        """Let a call of the command fail, and type it again."""
        self.tally.failures += 1
        shim = self.place.shim
        self._trial(call, str(fault), lambda group: shim.fail(call, fault), fault)

    def _trial(self, call: int, how: str, arm: Callable[[int], None], fault: Fault | None) -> None:
        tally, watched = self.tally, self.place.watched
        self.place.restore(self.scenario.state)
        ended = self.place.run(self.scenario.words, arm)
        wrong = self._wrong_end(ended, fault)
        reached = self.place.shim.what
        if lost := self._lost():
            tally.lost += 1
            wrong.append(f"lost: {'; '.join(lost[:3])}")
        unequal = compare.differences(self.after, compare.tree(watched))
        if ended.status == 0 and unequal and not _immaterial(unequal, ended.err):
            wrong.append(f"status 0, but {'; '.join(unequal[:3])}")
        if unequal:
            again = self.place.run(self.scenario.words)
            wrong += self._wrong_again(again)
            unequal = compare.differences(self.after, compare.tree(watched))
        if unequal:
            tally.different += 1
            wrong.append(f"after the same command again: {'; '.join(unequal[:3])}")
        else:
            tally.identical += 1
        if wrong:
            tally.faults.append(f"call {call} ({reached.replace(str(watched), '.')}) {how}: {' | '.join(wrong)}")

    def _wrong_end(self, ended: Ended, fault: Fault | None) -> list[str]:
        """Return what is wrong with how a disturbed command ended."""
        wrong = self._seen(ended)
        lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
        if fault is None or ended.status == -signal.SIGKILL:
            return wrong
        if ended.status < 0:
            self.tally.signals += 1
            wrong.append(f"signal {-ended.status}")
        elif ended.status not in (0, 2) or (ended.status == 2 and len(lines) != 1):
            self.tally.statuses += 1
            wrong.append(f"status {ended.status}: {ended.err.strip().splitlines()[-1:]}")
        return wrong

    def _wrong_again(self, ended: Ended) -> list[str]:
        wrong = self._seen(ended)
        if ended.status and not (self.scenario.refused and ended.status == 2):
            wrong.append(f"again: status {ended.status}: {ended.err.strip().splitlines()[-1:]}")
        return wrong

    def _seen(self, ended: Ended) -> list[str]:
        wrong = []
        if _TRACEBACK.search(ended.err):
            self.tally.tracebacks += 1
            wrong.append(f"traceback: {ended.err.strip().splitlines()[-1]}")
        if ended.hung:
            self.tally.signals += 1
            wrong.append("hung")
        return wrong

    def _lost(self) -> list[str]:
        """Return what was there before and is neither as it was nor as it is in the end."""
        now, lost = compare.exact(self.place.watched), []
        for name, was in self.before.items():
            if name not in now:
                lost += [f"{name} is gone"] if name in self.after else []
            elif now[name] != was and not self._became_right(name):
                lost.append(f"{name} was changed")
        return lost

    def _became_right(self, name: str) -> bool:
        """Whether a file that changed is what it is in the end, or a manifest on the way there."""
        path = self.place.watched / name
        if compare.digest(path, name) == self.after.get(name):
            return True
        return path.name == compare.MANIFEST and compare.whole_manifest(path)


def _immaterial(unequal: Sequence[str], err: str) -> bool:
    """Whether a command may end well with this left over: drafts, which the next one removes without a word, and a
    folder for temporary files that could not be removed, if it said so.
    """
    others = [line for line in unequal if not _DRAFT.fullmatch(line)]
    return not others or (all(map(_TEMPORARY.fullmatch, others)) and "could not be removed" in err)


def calls_to_try(calls: int, most: int) -> list[int]:
    """Return at most so many calls of 1..calls, evenly spread; the first and the last are among them."""
    if calls <= most:
        return list(range(1, calls + 1))
    return sorted({1 + round(i * (calls - 1) / max(1, most - 1)) for i in range(most)})


def campaign(scenario: Scenario, place: Place, most: int | None) -> Tally:
    """Return what the trials of a scenario came to.

    most  calls that are disturbed, at most, each by a kill and by a fault in turn; None: every call.
    """
    disturbed = Campaign(scenario, place)
    for number, call in enumerate(calls_to_try(disturbed.tally.calls, most or disturbed.tally.calls)):
        disturbed.kill(call)
        disturbed.fail(call, FAULTS[number % len(FAULTS)])
    return disturbed.tally
