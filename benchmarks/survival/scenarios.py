"""What each verb starts from, and the command that is disturbed: as small as they can be."""

from dataclasses import dataclass

_PREPARED = "--recipe limb --size 32"
_FLOOR = "train contrast_density --cache c.h5 --device cpu"
_TRAIN = "--cache c.h5 --preset fast --set epochs=2 --set width=4 --set batch_size=8 --device cpu"


@dataclass(frozen=True)
class State:
    """What a folder holds: that of another state, and what commands add."""

    after: str | None
    commands: tuple[str, ...]
    killed: str = ""
    """A command that was killed in the middle of its calls."""
    copies: tuple[tuple[str, str], ...] = ()
    """Files and folders (patterns) that are copied into another folder, after the commands."""


STATES = {
    "empty": State(None, ()),
    "films": State("empty", ("phantom films --patients 8 --size 64",)),
    "cache": State("films", (f"preprocess films {_PREPARED} --workers 1 --out c.h5",)),
    "runs": State(
        "cache",
        (f"train cae {_TRAIN} --out runs/cae", f"{_FLOOR} --out runs/floor"),
        copies=(("films/XR_HAND/patient0000[12]/*/image1.png", "today"),),
    ),
    "interrupted": State("cache", (), killed=f"train cae {_TRAIN} --out runs/cae"),
    "exported": State("runs", ("export runs/floor --out bundle",)),
    "scored": State("runs", ("score runs/cae --workers 1",)),
}


@dataclass(frozen=True)
class Scenario:
    """A command that is disturbed."""

    verb: str
    state: str
    command: str
    refused: bool = False
    """Whether the command is refused where it has done its work already."""
    cost: float = 1.0
    """Trials take so many times as long as others: fewer are made."""

    @property
    def words(self) -> list[str]:
        """Its words."""
        return self.command.split()


SCENARIOS = (
    Scenario("phantom", "empty", "phantom films --patients 4 --size 64"),
    Scenario("preprocess", "films", f"preprocess films {_PREPARED} --workers 1 --out c.h5"),
    Scenario("preprocess, two workers", "films", f"preprocess films {_PREPARED} --workers 2 --out c.h5", cost=4),
    Scenario(
        "preprocess, compressed",
        "films",
        f"preprocess films {_PREPARED} --workers 1 --out c.h5 --variants raw,full-he --compression gzip",
    ),
    Scenario("train cae", "cache", f"train cae {_TRAIN} --out runs/cae"),
    Scenario("train cae, resumed", "interrupted", f"train cae {_TRAIN} --out runs/cae"),
    Scenario("train RUN --more-epochs", "runs", "train runs/cae --more-epochs 1 --out runs/more --device cpu"),
    Scenario("train contrast_density", "cache", f"{_FLOOR} --out runs/floor"),
    Scenario("tune", "cache", f"tune cae {_TRAIN} --trials 2 --study s", cost=8),
    Scenario("bench", "cache", "bench --cache c.h5 --models contrast_density --size 32 --jobs 1 --device cpu", cost=4),
    Scenario("ensemble", "runs", "ensemble runs/cae runs/floor --out runs/both"),
    Scenario("score", "runs", "score runs/cae --workers 1"),
    Scenario("score, again", "scored", "score runs/cae --workers 1 --by mse --false-alarms .5"),
    Scenario("score NEW", "runs", "score runs/cae today --workers 1"),
    Scenario("heatmap", "scored", "heatmap runs/cae --limit 3 --workers 1"),
    Scenario("heatmap NEW, dicom", "runs", "heatmap runs/cae today --workers 1 --formats dicom --as-study", cost=4),
    Scenario("calibrate", "runs", "calibrate runs/cae films/XR_HAND --name north --workers 1"),
    Scenario("calibrate --refit", "runs", "calibrate runs/floor films/XR_HAND --name north --workers 1 --refit"),
    Scenario("report", "scored", "report runs/cae"),
    Scenario("export", "runs", "export runs/floor --out bundle", cost=3),
    Scenario("export, over an older one", "exported", "export runs/floor --out bundle --layout hf", cost=3),
    Scenario("watch --once", "runs", "watch runs/cae today --out results --once", cost=8),
    Scenario("auto", "cache", "auto c.h5 --minutes 60 --choose-by planted --device cpu --workers 1", cost=12),
    Scenario("rm", "runs", "rm runs/floor --yes", refused=True),
)
