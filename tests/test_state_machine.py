"""Films added, changed and removed; prepared, killed, resumed, trained, scored, calibrated, moved: in any order.

Whatever came before: no row is lost, every checksum holds, scores are those of a source prepared and trained in one go,
and what no longer belongs together is named. More than the default, by hand: ANOMALY_STATE_EXAMPLES=1000 pytest THIS.
"""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

import anomaly
from anomaly.manifest import check_files
from anomaly.pipeline.fit import continue_or_create, fit
from anomaly.pipeline.plan import Plan, prepare
from preprocessing import InputError
from preprocessing.build import BuildOptions, build
from preprocessing.cache.reader import Cache
from preprocessing.recipe import Recipe
from preprocessing.sources import open_source

EXAMPLES = int(os.environ.get("ANOMALY_STATE_EXAMPLES", "80"))
SIDE, MOST = 24, 14
SPLITS = ("train", "val", "test", "val", *["train"] * 10)
"""Of film i: nine films to train on are always there, as at least eight are needed."""
GIVEN = frozenset((0, 1, 2, *range(4, 12)))
"""Films that are there at the start; all but these may be removed."""
RECIPE = Recipe(name="plain", size=SIDE)
FILMS = np.random.default_rng(0).integers(0, 256, (MOST, 2, SIDE, SIDE), dtype=np.uint8)
"""(films, versions, side, side)"""

Scores = list[tuple[Any, ...]]
"""Film, score, flag and p-value of each."""
State = frozenset[tuple[int, int]]
"""Number and version of each film of a source."""


class Killed(BaseException):
    """Ends what is under way at whatever place, as nothing catches it."""


@contextmanager
def killed_at(step: int) -> Iterator[None]:
    """Let the move of a file into its place end what is under way: that of this number, counted from 0."""
    number, replace = count(), Path.replace

    def dying(path: Path, target: Path) -> Path:
        if next(number) == step:
            raise Killed
        return replace(path, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", dying)
        yield


def write_source(folder: Path, films: State) -> None:
    """Make a folder hold these films and no others; those that it has are left untouched."""
    folder.mkdir(exist_ok=True)
    for number, version in films:
        data = cv2.imencode(".png", FILMS[number, version])[1].tobytes()
        file = folder / f"{number:02}.png"
        if not file.exists() or file.read_bytes() != data:
            file.write_bytes(data)
    for file in folder.glob("*.png"):
        if int(file.stem) not in {number for number, _ in films}:
            file.unlink()
    lines = [f"{number:02}.png,p{number},normal,{SPLITS[number]}" for number, _ in sorted(films)]
    (folder / "manifest.csv").write_text("\n".join(["path,patient,label,split", *lines]) + "\n")


def prepared(source: Path, cache: Path, stop_after: int = -1) -> Cache:
    def on_progress(progress: Any) -> None:
        if progress.phase == "films" and progress.done == stop_after:
            raise Killed

    options = BuildOptions(variants=("raw",), workers=1, force=cache.exists())
    return Cache(build(open_source(source), RECIPE, cache, options=options, on_progress=on_progress).path)


def trained(cache: Path, out: Path) -> Path:
    """Train, or resume what is there: the same command twice is the same run."""
    plan = prepare(Plan("contrast_density", cache, "raw", settings=("batch_size=2",), device="cpu"))
    run = continue_or_create(plan, out, resume=(out / "run.json").is_file())
    return fit(plan, run, workers=0, on_epoch=lambda report: None).path


def scores(run: Path, cache: Path | None = None, calibration: str = "own") -> Scores:
    result = anomaly.load(run, cache=cache, calibration=calibration, device="cpu").score(split="all")
    return [(film.id, film.score, film.flagged, film.p_value) for film in result]


def calibrated(run: Path, source: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some of the films are those of the training
        anomaly.load(run, calibration="own", device="cpu").calibrate(source, "here", replace=True)


@cache
def fresh_content(films: State) -> str:
    """Return the content hash of the cache of a source that is prepared in one go."""
    with tempfile.TemporaryDirectory() as folder:
        write_source(Path(folder, "films"), films)
        return prepared(Path(folder, "films"), Path(folder, "films.h5")).content_hash


@cache
def fresh_scores(films: State) -> tuple[Scores, Scores]:
    """Return the scores of films that are prepared and trained on in one go, by their own calibration and on them."""
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        make_run(place, films)
        own = scores(place / "run")
        calibrated(place / "run", place / "films")
        return own, scores(place / "run", calibration="here")


def make_run(place: Path, films: State) -> None:
    """Make source, cache and run."""
    write_source(place / "films", films)
    prepared(place / "films", place / "films.h5")
    trained(place / "films.h5", place / "run")


@pytest.fixture(scope="module", autouse=True)
def _template(tmp_path_factory: pytest.TempPathFactory) -> None:
    """What most examples begin with, made once; a run made elsewhere, whose cache has moved."""
    Life.template = tmp_path_factory.mktemp("template")
    make_run(Life.template, frozenset((number, 0) for number in GIVEN))


class Life(RuleBasedStateMachine):
    """A source, a cache and a run, and what is done to them."""

    template: Path

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="life-"))
        self.source, self.cache, self.run = self.folder / "films", self.folder / "films.h5", self.folder / "run"
        self.films: State = frozenset((number, 0) for number in GIVEN)
        self.cached: State | None = None  # what the finished cache holds
        self.learned: State | None = None  # what the finished run was trained on
        self.begun: State | None = None  # what an unfinished run is of
        self.calibrated: State | None = None
        self.trained_at = self.cache  # where the cache was when the run was trained

    def teardown(self) -> None:
        shutil.rmtree(self.folder)

    @initialize(has=st.sampled_from(("films", "cache", "run")))
    def begin(self, has: str) -> None:
        """Begin with films alone, with a cache of them, or with a run that was trained elsewhere on that."""
        write_source(self.source, self.films)
        if has != "films":
            shutil.copy(self.template / "films.h5", self.cache)
            self.cached = self.films
        if has == "run":
            shutil.copytree(self.template / "run", self.run)
            self.learned, self.trained_at = self.films, self.template / "films.h5"

    # --- the source ---

    @rule(number=st.sampled_from((0, 1, 3, 5, 12, 13)), version=st.integers(0, 1))
    def put(self, number: int, version: int) -> None:
        """Add a film, or change one."""
        self.films = frozenset({one for one in self.films if one[0] != number} | {(number, version)})
        write_source(self.source, self.films)

    @rule(number=st.sampled_from(sorted(set(range(MOST)) - GIVEN)))
    def remove(self, number: int) -> None:
        self.films = frozenset(one for one in self.films if one[0] != number)
        write_source(self.source, self.films)

    # --- the cache ---

    @rule()
    def preprocess(self) -> None:
        cache = prepared(self.source, self.cache)
        self.cached = self.films
        assert cache.content_hash == fresh_content(self.films)
        assert cache.index["path"].tolist() == [f"{number:02}.png" for number, _ in sorted(self.films)]
        assert not cache.failures and not cache.verify()

    @rule(after=st.integers(0, MOST))
    def preprocess_and_die(self, after: int) -> None:
        """The older cache stays whole, and the next call goes on."""
        try:
            prepared(self.source, self.cache, after)
            self.cached = self.films
        except Killed:
            pass

    @rule()
    def die_before_the_cache_is_in_its_place(self) -> None:
        with killed_at(0), pytest.raises(Killed):
            prepared(self.source, self.cache)

    @precondition(lambda self: self.cached is not None)
    @rule()
    def verify(self) -> None:
        cache = Cache(self.cache)
        assert not cache.verify() and cache.content_hash == fresh_content(self.cached)

    @precondition(lambda self: self.cached is not None and self.cached != self.films)
    @rule()
    def a_stale_cache_is_named(self) -> None:
        options = BuildOptions(variants=("raw",), workers=1)
        with pytest.raises(InputError, match=r"films\.h5"):
            build(open_source(self.source), RECIPE, self.cache, options=options)

    @precondition(lambda self: self.cached is not None)
    @rule()
    def move_the_cache(self) -> None:
        self.cache = self.cache.rename(self.folder / f"{'x' * (len(self.cache.name) % 9)}films.h5")

    # --- the run ---

    @precondition(lambda self: self.cached is not None)
    @rule(dies_at=st.none() | st.integers(0, 9))
    def train(self, dies_at: int | None) -> None:
        """In a new folder, or in that of the unfinished run, where the films are still those."""
        if self.begun != self.cached or self.trained_at != self.cache:
            shutil.rmtree(self.run, ignore_errors=True)
        self.learned = self.calibrated = None
        self.begun, self.trained_at = self.cached, self.cache
        try:
            with killed_at(-1 if dies_at is None else dies_at):
                trained(self.cache, self.run)
        except Killed:
            return
        self.learned, self.begun = self.cached, None
        assert check_files(self.run, "") >= {"run.json", "weights.safetensors", "calibration.json"}
        self.score()

    @property
    def moved(self) -> Path | None:
        """Where the cache is, if not where the run was trained on it."""
        return self.cache if self.cache != self.trained_at else None

    @precondition(lambda self: self.learned is not None)
    @rule()
    def move_the_run(self) -> None:
        self.run = self.run.rename(self.folder / f"run-{'x' * (len(self.run.name) % 9)}")

    @precondition(lambda self: self.learned is not None)
    @rule()
    def score(self) -> None:
        """The films of its cache score as in one go, wherever cache and run are now; another cache is named."""
        moved = self.moved
        if self.cached == self.learned:
            assert scores(self.run, moved) == fresh_scores(self.learned)[0]
            return
        with pytest.raises(InputError, match=r"films.h5 is not the cache that .*run\S* was trained on"):
            scores(self.run, moved)

    @precondition(lambda self: self.learned is not None)
    @rule()
    def an_unknown_place_is_named(self) -> None:
        if not self.trained_at.exists():
            with pytest.raises(InputError, match=r"films.h5 of .* is gone; give its new place with --cache"):
                scores(self.run)

    @precondition(lambda self: self.learned is not None)
    @rule(dies_at=st.none() | st.integers(0, 9))
    def calibrate(self, dies_at: int | None) -> None:
        """On the films as they are now. A calibration that is cut short leaves the one before, or what is named."""
        try:
            with killed_at(-1 if dies_at is None else dies_at):
                calibrated(self.run, self.source)
        except Killed:
            self.calibrated = None
            calibrated(self.run, self.source)
        self.calibrated = self.films
        if self.cached == self.learned == self.films:
            assert scores(self.run, self.moved, "here") == fresh_scores(self.films)[1]


Life.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=10,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
)
TestLife: Callable[..., Any] = Life.TestCase
