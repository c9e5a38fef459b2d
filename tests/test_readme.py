"""Every command that the README and docs/usage.md show, typed as it stands there, paragraph by paragraph.

The commands are read out of both documents: lines of code blocks, and inline code that begins with a program's name. A
paragraph is a scene: a folder of its own, in which the first code block of docs/usage.md was typed before. A
command that is new in a document is run too, or fails here; what it needs to be small or to be run at all stands in the
tables below, and an entry that no document shows any more fails as well.
"""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from anomaly.cli.app import app
from preprocessing.phantom import write_phantoms

from .test_cli import typed

ROOT = Path(__file__).parents[1]
DOCUMENTS = (ROOT / "README.md", ROOT / "docs/usage.md")
PROGRAMS = ("anomaly", "make", "pip", "torchrun", "python")
BRIEF = "--preset fast --set epochs=1"
GRID = "--cache CACHE --variants full-he --set epochs=1 --jobs 1"

DEMO = "anomaly demo --patients 20 --size 256"  # on fewer and smaller films

PLACEHOLDERS = {
    "FILMS": "films",  # a MURA tree: 16 built-in patients at 64 px
    "XR_HAND": "films/XR_HAND",
    "NEW": "new.png",  # one film
    "TODAY": "new.png",
    "today/": "new.png",
    "normals/": "films",
    "NORMALS": "films",
    "RUN": "runs/cae-1",
    "BUNDLE": "runs/cae-1/bundle",
    "BENCH": "runs/bench-1",
    "CACHE": "the newest file of cache/",
    "tcp://host:8786": "the scheduler of a Dask cluster of two workers on this machine",
    "postgresql://host/studies": "sqlite:///studies.db",
}
"""What words that stand for the reader's own are here."""

APPENDED = {
    "anomaly train cae": BRIEF,
    "anomaly train ssd": f"{BRIEF} --set size=96",
    "anomaly train feature_mixture": BRIEF,
    "anomaly train feature_mixture --variant raw --preset diffuse": "--set components=100",
    "anomaly train synthetic": BRIEF,
    "anomaly train classifier": BRIEF,  # a small net of its own in place of EfficientNet-B0
    "anomaly train cae --track tensorboard": BRIEF,
    "anomaly train cae --variant raw-contrast --set code_channels=2 --set augmentation=none": BRIEF,
    "anomaly tune cae --trials 30 --jobs 2": f"{BRIEF} --trials 2 --jobs 1",
    "anomaly tune cae --study mine --storage postgresql://host/studies": f"{BRIEF} --trials 1",
    "anomaly bench --table": f"{GRID} --models cae,contrast_density",  # else 42 trainings on 300 films of 512 px
    "anomaly bench --cluster tcp://host:8786": f"{GRID} --models contrast_density",
}
"""Command -> what is typed after it, so that seconds do where the document's takes minutes."""

INSTEAD = {
    "make demo": DEMO,  # what the recipe runs
    "anomaly score": "anomaly score runs/classifier-1",  # the verb alone, of the classifier trained just before
    "anomaly heatmap": "anomaly heatmap runs/classifier-1",
    # three normal patients can't tell 2 % or a sensitivity of 90 %
    "anomaly score runs/cae-1 films/ --false-alarms 0.02": "anomaly score runs/cae-1 films/ --false-alarms 0.5",
    "anomaly score runs/cae-1 films/ --sensitivity 0.9": "anomaly score runs/cae-1 films/ --sensitivity 0.5",
    "anomaly score runs/cae-1 --by weighted": "anomaly score runs/cae-2 --by weighted",  # a scene has a runs/cae-1
    "anomaly heatmap runs/cae-1 NEW --formats dicom": "anomaly heatmap runs/cae-1 new.png --formats dicom --as-study",
    "torchrun -m anomaly train cae": f"torchrun --nproc-per-node 1 -m anomaly train cae {BRIEF}",
}
"""Command -> what is run in its place."""

BEFORE = {
    "anomaly score BUNDLE FILMS": ["anomaly export runs/cae-1"],
    "anomaly calibrate runs/feature_mixture-1 normals/ --name clinic": [f"anomaly train feature_mixture {BRIEF}"],
    "anomaly score runs/feature_mixture-1 NEW": [f"anomaly train feature_mixture {BRIEF}"],
    "anomaly report BENCH": [f"anomaly bench {GRID} --models contrast_density"],
    "anomaly ensemble runs/cae-1 runs/cae-2": [f"anomaly train cae {BRIEF} --seed 1"],
}
"""Command -> what the paragraph takes to be done already."""

AFTER = {
    "anomaly score runs/ssd-1": ["anomaly preprocess FILMS --localizer ssd:runs/ssd-1 --workers 1"],
    "anomaly ensemble runs/cae-1 runs/cae-2": [
        "anomaly score runs/ensemble-1",
        "anomaly heatmap runs/ensemble-1 --limit 2",
    ],
    "anomaly train contrast_density": ["anomaly score runs/contrast_density-1"],
}
"""Command -> what the paragraph says in words can be done then."""

LEFT_OUT = {
    "anomaly demo": "what `make demo` runs",
    "anomaly auto FILMS --minutes 30": "the same",
    "anomaly auto FILMS": "takes half an hour; tests/test_auto.py runs it",
    "anomaly auto FILMS --minutes 120": "takes two hours; tests/test_auto.py goes on with a search",
    "anomaly score runs/cae-1 cache/theirs.h5 --where site=b": "needs another cache; tests/test_external.py runs it",
    "anomaly score runs/cae-1 THEIRS.csv --by-column site --by-column sex": "the same, and a manifest",
    "anomaly runs runs/bench-1/cells": "needs a bench; tests/test_run_list.py runs it",
    "anomaly compare runs/cae-1 runs/vae-1": "needs two scored runs; tests/test_run_list.py runs it",
    "anomaly compare runs/cae-1 runs/cae-2 --shared": "the same",
    "anomaly rm runs/cae-1 runs/bench-1": "asks; tests/test_run_list.py answers",
    "anomaly train runs/cae-1 --more-films cache/may.h5 --name with-may": (
        "needs another cache; tests/test_continuation.py runs it"
    ),
    "anomaly serve runs/feature_mixture-1": "runs until it is stopped; tests/test_service_verbs.py runs it",
    "anomaly serve runs/cae-1": "the same",
    "anomaly serve runs/cae-1 --dicom 11112 --aet ANOMALY --send-to PACS@10.0.0.1:104": (
        "the same; tests/test_dicom_node.py and tests/test_pacs.py"
    ),
    "anomaly watch runs/cae-1 incoming --out results": "the same; tests/test_watch.py",
    "anomaly --install-completion": "writes into the shell's own files",
    "make models": "runs `anomaly models --make`",
    "anomaly models --make": "takes half an hour, and puts its nets in the place of the package's",
    "pip install -e '.[features]'": "installs packages",
    "pip install '.[features]'": "installs packages",
    'python -m benchmarks.features CACHE --set "blocks=4,10" --set components=400': (
        "needs more films than there are here; tests/test_features_benchmark.py runs it"
    ),
    "pip install -e '.[tune]'": "installs packages",
    "pip install -r requirements/score.txt": "installs packages",
    "pip install --no-deps xray-anomaly": "installs packages",
    "pip install 'xray-anomaly[serve]'": "installs packages",
    "pip install -e '.[tensorboard]'": "installs packages",
    "pip install -e '.[mlflow]'": "installs packages",
}
"""Command -> why it is not run."""

ONCE = {"make demo"}
"""Commands that make a folder of their own from nothing: what they do in one scene they do in all."""

FILES = {
    "anomaly inspect --sheet sheet.png": ["sheet.png"],
    "anomaly report RUN": ["runs/cae-1/report.html"],
    "anomaly report BENCH": ["runs/bench-1/index.html"],
    "anomaly bench --table": ["runs/bench-1/table.md"],
    "anomaly train cae --track tensorboard": ["runs/cae-2/tensorboard"],
    "make demo": ["runs/demo/sheet.png", "runs/demo/cae/report.html"],
}
"""Command -> files that must be there then, beside those that a document promises after `->`."""

UNITS = "film|patient|epoch|run|model|variant|seed|training|trial|cell|fault|member|worker|hour|other"
ONE_OF_MANY = re.compile(rf"(?<![\w./,-])1 (?:[a-z]+ )?(?:(?:{UNITS})s|studies|processes|boxes)\b(?!/s)")


@dataclass(frozen=True)
class Shown:
    """A command as a document shows it."""

    text: str
    promised: tuple[str, ...] = ()  # files after "->"


def scenes(text: str) -> dict[str, list[Shown]]:
    """The commands of each paragraph, list item and code block, by its number and first words."""
    found = {}
    for number, block in enumerate(re.split(r"\n\s*\n|\n(?=- )", text)):
        shown = []
        if re.match("    |```", block):
            for line in block.splitlines():
                words, _, comment = line.strip().partition(" #")
                if words.startswith(tuple(f"{name} " for name in PROGRAMS)):
                    promise = re.split("[;:]", comment.partition("->")[2])[0]
                    names = re.findall(r"[\w<>-]+(?:/[\w<>.-]*)+|[\w<>-]+\.[a-z0-9]+", promise)
                    shown.append(Shown(" ".join(words.split()), tuple(names)))
        else:
            codes = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", block)]
            shown += [Shown(code) for code in codes if code.startswith(tuple(f"{name} " for name in PROGRAMS))]
        if shown:
            title = re.sub(r"[^\w ]", "", " ".join(block.split())).split()[:3]
            found[f"{number} {' '.join(title)}"] = shown
    return found


SCENES = {
    f"{document.name} {name}": shown for document in DOCUMENTS for name, shown in scenes(document.read_text()).items()
}
FIRST = next(
    name
    for name, shown in SCENES.items()
    if name.startswith("usage.md") and shown[0].text == "anomaly preprocess FILMS"
)
"""The code block from which docs/usage.md starts, typed before every other scene."""


class Reader:
    """Types commands in a folder, and looks at what comes of each."""

    def __init__(self, capsys: pytest.CaptureFixture[str], place: Callable[[str], str], typed_before: set[str]) -> None:
        self.capsys, self.place, self.typed_before = capsys, place, typed_before

    def type(self, command: str) -> None:
        """Run one command: status 0, no fault of ours on the way, no "1 films"."""
        words = [
            re.sub("|".join(map(re.escape, PLACEHOLDERS)), lambda m: self.place(m[0]), word)
            for word in shlex.split(command)
        ]
        program, *rest = words
        if program == "anomaly":
            status, out, err = typed(self.capsys, *rest)
        elif program == "torchrun":
            done = subprocess.run(
                [sys.executable, "-m", "torch.distributed.run", *rest], capture_output=True, text=True, timeout=300
            )
            status, out, err = done.returncode, done.stdout, done.stderr
        else:
            pytest.fail(f"`{command}` of the documents is neither run nor in LEFT_OUT")
        assert status == 0, f"`{command}` ended with status {status}\n{err}"
        assert "unexpected" not in err and "Traceback" not in err, f"`{command}`\n{err}"
        assert not (wrong := ONE_OF_MANY.search(out + err)), f"`{command}` says {wrong[0]!r}"

    def follow(self, shown: list[Shown]) -> None:
        """Run the commands of a scene."""
        for one in shown:
            if one.text in LEFT_OUT or one.text in ONCE & self.typed_before:
                continue
            self.typed_before.add(one.text)
            for command in BEFORE.get(one.text, []):
                self.type(command)
            given = INSTEAD.get(one.text, one.text)
            self.type(f"{given} {APPENDED.get(one.text, '')}".strip())
            runs = [Path(word) for word in given.split() if word.startswith("runs/")]
            for name in (*one.promised, *FILES.get(one.text, ())):
                pattern = re.sub("<[^>]*>", "*", name.rstrip("/"))
                assert any(list(folder.glob(pattern)) for folder in (Path(), *runs)), f"`{one.text}` left no {name}"
            for command in AFTER.get(one.text, []):
                self.type(command)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with films; the scenes begin from what the first of them leaves in it."""
    folder = tmp_path_factory.mktemp("readme") / "home"
    write_phantoms(folder / "films", seed=1, patients=16, size=64)
    shutil.copy(next(folder.glob("films/**/*positive/*.png")), folder / "new.png")
    return folder


@pytest.fixture(scope="module")
def typed_before() -> set[str]:
    return set()


@pytest.fixture
def reader(
    request: pytest.FixtureRequest,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    typed_before: set[str],
) -> Reader:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr("anomaly.pipeline.preprocess.DEFAULT", 12)  # patients drawn unasked: 300 take minutes

    def place(name: str) -> str:
        if name == "tcp://host:8786":
            address, _ = request.getfixturevalue("cluster")
            return str(address)
        if name == "CACHE":
            return str(max(Path("cache").glob("*.h5"), key=lambda path: path.stat().st_mtime))
        return PLACEHOLDERS[name]

    return Reader(capsys, place, typed_before)


@pytest.mark.parametrize("scene", SCENES)
def test_what_the_documents_show_runs(
    scene: str, home: Path, reader: Reader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    if not Path("runs").exists():
        reader.follow(SCENES[FIRST])
    if scene == FIRST:
        return
    shutil.copytree(home, tmp_path / "scene")
    monkeypatch.chdir(tmp_path / "scene")
    reader.follow(SCENES[scene])


def test_the_python_of_the_readme_runs(home: Path, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    if not Path("runs").exists():
        reader.follow(SCENES[FIRST])
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENTS[0].read_text(), re.DOTALL)
    brief = code.replace("cache.path)", 'cache.path, preset="fast")')
    assert brief != code
    exec(brief, {})
    assert Path("heatmap.png").is_file()


def test_the_tables_are_of_these_documents() -> None:
    shown = {one.text for scene in SCENES.values() for one in scene}
    tables = {
        "APPENDED": APPENDED,
        "INSTEAD": INSTEAD,
        "BEFORE": BEFORE,
        "AFTER": AFTER,
        "LEFT_OUT": LEFT_OUT,
        "ONCE": ONCE,
        "FILES": FILES,
    }
    stale = [f"{name}: {command}" for name, table in tables.items() for command in table if command not in shown]
    assert not stale, "no longer shown"


def test_every_option_the_documents_name_is_one() -> None:
    group = typer.main.get_command(app)
    verbs = group.commands  # type: ignore[attr-defined]
    options = {name for verb in (group, *verbs.values()) for parameter in verb.params for name in parameter.opts}
    options |= {"--help"}
    code = [text for document in DOCUMENTS for text in re.findall(r"`([^`]+)`", document.read_text())]
    named = {
        name for text in code if text.startswith(("-", "anomaly ")) for name in re.findall(r"(?<![\w-])--[\w-]+", text)
    }
    assert len(named) > 15 and named <= options, named - options


def test_commands_are_found_wherever_they_stand() -> None:
    text = """Type `anomaly
train cae` or
`--set x=1`.

- one `make demo`
- two

    anomaly score RUN  # -> a.csv, maps/: PNG
    other

```sh
anomaly models
```
"""
    found = [(one.text, one.promised) for scene in scenes(text).values() for one in scene]
    assert found == [
        ("anomaly train cae", ()),
        ("make demo", ()),
        ("anomaly score RUN", ("a.csv", "maps/")),
        ("anomaly models", ()),
    ]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        *((text, True) for text in ("1 films", "of at most 1 epochs", "1 validation films", "1 studies")),
        *((text, False) for text in ("11 films", "1 film", "0.1 films", "1 films/s", "18/1 films", "runs/cae-1 films")),
    ],
)
def test_one_of_many_is_told(text: str, wrong: bool) -> None:
    assert bool(ONE_OF_MANY.search(text)) == wrong
