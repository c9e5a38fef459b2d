"""The run folder: what is in it, writing it safely, opening it, resuming.

    run.json                 model, settings, seeds, cache, splits, versions: all that made the run; written first, with
                             its own SHA-256
    tensorboard/, mlflow.json   by `--track`: events; which run of MLflow it is
    checkpoint.safetensors   the state after some finished epoch, with its SHA-256; only while the run is unfinished
    history.csv              one line an epoch: seconds, films/s, every loss term, what is watched, validation loss
    samples.png, reconstructions.png   generated films; films beside their reconstructions and maps: drawn at every
                             checkpoint; maps.png for a model that reconstructs nothing
    detections.png           of a network that prepares films: annotated and detected boxes or foregrounds
    weights.safetensors      the chosen checkpoint, with what it remembers of normal films; written when training ends
    warnings.json            what was wrong with the training, from which epoch to which
    learning_curve.png       losses, and what is watched, over the epochs
    films.safetensors        what the normal films of the training look like: new ones are compared with them
    calibration.json         how normal validation films score, thresholds, the one map scale; written last
    calibrations/<name>/     by `anomaly calibrate`: calibration.json, films.safetensors and, with --refit,
                             reference.safetensors, of normal films of another place; source.json says which
    manifest.json            the SHA-256 of each file that numbers are made of, compared when a run is opened
    choices.json             by `anomaly score`: what was chosen there, to be used from then on
    abnormal.json            by `anomaly score --sensitivity`: how abnormal validation films score
    scores.csv               by `anomaly score`: film, study, patient, label, split, every score, flagged, p_value,
                             p_low, p_high (its 95 % interval), q_value (with `--fdr`), synthetic,
                             out_of_domain (shows another body part)
    studies.csv, patients.csv   the same, films put together
    metrics.json             figures with intervals
    report.html, wrong.html  the page to look at, and the films of which the score is most wrong
    reliability.png          of a supervised model: calibration of its probabilities (reliability diagram)
    maps/                    by `anomaly heatmap`: pixel heatmaps
    train/, val/, all/       results of other films than the test split
    new/<date>-<name>/       results of new films, a folder for each set of them: films.json says which
        results.json         the same for programs: `anomaly.pipeline.results_record` says what is in it
        worklist.html, worklist/   the page to go through them, and its pictures

Nothing in it is pickled. Every file is written beside its place and moved there.
"""

import csv
import errno
import hashlib
import io
import json
import os
import platform
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anomaly.console import plain
from anomaly.drafts import aside
from anomaly.formatting import csv_cell, from_csv_cell
from anomaly.names import fitting
from anomaly.sealed import sealed, state_of_tensors, unsealed
from preprocessing import InputError
from preprocessing.locks import file_lock, is_held

M = TypeVar("M", bound=BaseModel)

FORMAT = 5
OLDEST = 4
"""Runs from this format on are read: those of format 4 keep no scores of normal films, and so give no p-values."""
RUNS = Path("runs")
CHECKPOINT = "checkpoint.safetensors"


RESULTS = (
    "scores.csv",
    "studies.csv",
    "patients.csv",
    "metrics.json",
    "report.html",
    "wrong.html",
    "reliability.png",
)
"""What `anomaly score` writes of the test films; of an unfinished run it goes when the training ends."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when a disk can take no more."""
FAILING = (*FULL, errno.EIO, errno.EROFS)
"""The same, or when a disk fails."""
LONGEST_NAME = 100
"""Bytes of a run's name, at most: files of its results carry it."""


class Record(BaseModel):
    """A JSON file of a run folder, or a part of one: read and written whole, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)  # most commands use few of them


class WeightsFile(Record):
    """The pretrained weights that training began with."""

    file: str
    sha256: str


class CacheRecord(Record):
    """The cache that a run was trained on: where it was, what is in it, and how to make it again."""

    path: str
    content_hash: str
    recipe: str
    """The recipe as JSON text."""
    recipe_digest: str
    """Of the recipe, its version and the nets that prepare films."""
    nets: dict[str, dict[str, str]]
    """Part of the recipe ("localizer", "segmenter") -> name, run and digest of the net that did it."""
    dtype: Literal["uint8", "uint16"]
    source: str
    synthetic: bool
    command: str
    """What makes the cache again."""


class BegunWith(Record):
    """The run whose weights a training went on from, by `anomaly train RUN --more-epochs` or `--more-films`."""

    run: str
    """Its folder."""
    weights: str
    """SHA-256 of its weights.safetensors."""
    epochs: int
    """How many epochs it was trained for, those of the runs before it included."""
    more_films: str | None
    """The cache whose films joined those of the run, or None."""


class RunSettings(Record):
    """All settings, as the model's `Config` and `TrainConfig` hold them."""

    model: dict[str, Any]
    training: dict[str, Any]


class RunConfig(Record):
    """run.json: all that made the run."""

    format: int = FORMAT
    model: str
    preset: str
    settings: RunSettings
    size: int
    """Side of the films in pixels, as the model takes them."""
    variant: str
    seed: int | str
    """Of the training; those of its members, joined by commas, for an ensemble."""
    split_seed: int
    split_rule: Literal["given", "paper", "paper, labelled", "70/20/10"]
    split_hash: str
    weights: WeightsFile | None
    precision: str
    """float32 or bfloat16; those of its members, joined by commas, for an ensemble."""
    device: str
    cache: CacheRecord
    versions: dict[str, str]
    films: dict[str, int]
    """How many films "train" and "val" have that the model learns from, and how many of "train" are "abnormal"."""
    members: list[str] = Field(default_factory=list)
    """The run folders an ensemble was made of."""
    where: list[str] = Field(default_factory=list)
    """Which films of the cache it knows, as `--where` chose them; empty: all."""
    begun_with: BegunWith | None = None
    """The run that it goes on from; None: it began anew."""
    stopped: int | None = None
    """The epoch after which it was stopped, by hand or at a deadline; None: it trained to its end."""
    threads: list[int] = Field(default_factory=list)
    """Of the processor, that it was trained on: a number more wherever it was resumed on others."""
    created: str = ""
    """UTC, ISO 8601."""


class EpochWarning(Record):
    """Something wrong with a training, and when."""

    text: str
    first: int
    """The first epoch it was so."""
    last: int
    """The last one."""


class Warnings(Record):
    """warnings.json."""

    warnings: list[EpochWarning]


class DiskFull(InputError):
    """A file could not be written for want of room, or as the disk fails: whatever comes next would fail as well."""


def write_atomic(path: Path, content: bytes | str | Iterator[str]) -> None:
    """Write `content`, whole or piece by piece, beside `path` and move it there: a reader sees the old file or the new
    one, never half of one.

    Any number of processes may write the same file at once: one of them is the last.
    """
    whole = content.encode() if isinstance(content, str) else content
    pieces = [whole] if isinstance(whole, bytes) else map(str.encode, whole)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = aside(path)
    try:
        with beside.open("xb") as file:
            file.writelines(pieces)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        if error.errno in FULL:
            size = f"{len(whole) / 1e6:.1f} MB or more" if isinstance(whole, bytes) else "some"
            raise DiskFull(f"{path}: the disk is full; free {size} and type the same command again") from error
        error.filename = str(path)  # not the hidden name that nobody knows
        raise
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def now() -> str:
    """Return the time in UTC, ISO 8601, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def to_json(value: Any) -> str:
    """Return `value` as indented JSON; NaN, which JSON lacks, is refused rather than written."""
    return json.dumps(value, indent=2, allow_nan=False) + "\n"


def to_csv(columns: Mapping[str, Sequence[Any]]) -> str:
    """Return columns of equal length as CSV with a header; floats keep every digit, texts are never formulas."""
    return "".join(map(_csv_line, [tuple(columns), *zip(*columns.values(), strict=True)]))


def _csv_line(cells: Sequence[Any]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(map(csv_cell, cells))  # so that it quotes carriage returns too
    return out.getvalue().removesuffix("\r\n") + "\n"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_csv(path: Path, remake: str = "") -> list[dict[str, str]]:
    """Return the lines of a file that `to_csv` made, by the names of its header; InputError where it is damaged.

    remake  the command that makes it anew; without one, only training does.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            lines = [[from_csv_cell(cell) for cell in line] for line in csv.reader(file, strict=True)]
        if not lines:
            raise ValueError("it is empty")
        head = lines[0]
        for number, line in enumerate(lines, 1):
            if len(line) != len(head):
                raise ValueError(f"line {number} has {len(line)} of {len(head)} cells")
        return [dict(zip(head, line, strict=True)) for line in lines[1:]]
    except (ValueError, csv.Error) as error:
        remedy = f"run `{remake}` to make it again" if remake else "put the right file back, or train again"
        raise InputError(f"{path} is damaged ({' '.join(str(error).split())}); {remedy}") from None


def inside(folder: Path, relative: str) -> Path:
    """Return `folder / relative`, refusing a path that leaves the folder: names come from manifests and archives.

    What is too long for a name is cut as `fitting` does.
    """
    path = (folder / fitting(relative)).resolve()
    if not path.is_relative_to(folder.resolve()):
        raise InputError(f"{relative!r} leaves {folder}; rename it in the source")
    return path


def versions(package: str | None = None) -> dict[str, str]:
    """Return the versions that a result may depend on, "" of what isn't installed; `package` is that of a model that
    isn't built in.
    """
    names = ("xray-anomaly", "torch", "torchvision", "numpy", "opencv-python", "scikit-learn", "imgaug", "h5py")
    others = () if package is None else (package,)
    return {"python": platform.python_version()} | {name: _version(name) for name in (*names, *others)}


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:  # run from its sources, or with another build of a library, as opencv-python-headless
        return ""


class Run:
    """An existing run folder."""

    def __init__(self, path: Path) -> None:
        """Open it; what is not a run folder of this format is refused with the reason."""
        self.path = path
        file = path / "run.json"
        if not file.is_file():
            raise InputError(
                f"{path} is not a run folder (no run.json); `anomaly train cae` makes one{_existing(path)}"
            )
        try:
            content = unsealed(file.read_bytes())
        except ValueError as error:
            raise InputError(f"{file} is damaged ({error}); train again with another --out") from None
        version = content.get("format") if isinstance(content, dict) else None
        if isinstance(version, int) and not OLDEST <= version <= FORMAT:
            raise InputError(
                f"{file} has format {version}, this version reads {OLDEST} to {FORMAT}; train again: "
                f"`{_remake(content)}` (with the settings in that file)"
            )
        try:
            self.config = RunConfig.model_validate(content)
        except ValidationError as error:
            raise InputError(f"{file} is damaged ({first_error(error)}); train again with another --out") from None

    @property
    def finished(self) -> bool:
        """Whether training ended and the weights are there."""
        return (self.path / "calibration.json").is_file()

    @property
    def ended(self) -> bool:
        """Whether nothing of the training is left to do: a kill may come between its last two steps."""
        return self.finished and not (self.path / CHECKPOINT).is_file()

    def epochs_done(self) -> int:
        """Return how many epochs an interrupted training has behind it."""
        path = self.path / CHECKPOINT
        if self.finished or not path.is_file():
            return 0
        return int(checkpoint_state(path)["epoch"])

    def history(self) -> list[dict[str, str]]:
        """Return history.csv, a mapping an epoch; an ensemble, which isn't trained, has none."""
        if not (self.path / "history.csv").is_file():
            return []
        return read_csv(self.path / "history.csv")

    def warnings(self) -> list[str]:
        """Return what was wrong with the training, a sentence each; an ensemble has none."""
        if not (self.path / "warnings.json").is_file():
            return []
        return [
            f"{f'epochs {w.first} to {w.last}' if w.last > w.first else f'epoch {w.first}'}: {w.text}"
            for w in self.read("warnings.json", Warnings).warnings
        ]

    def busy(self) -> bool:
        """Whether a process is training in the folder now."""
        return is_held(self.path / ".lock")

    def write(self, name: str, content: bytes | str) -> Path:
        """Write one file of the folder safely and return its path."""
        write_atomic(self.path / name, content)
        return self.path / name

    def update(self, **changes: Any) -> None:
        """Change what run.json says."""
        self.config = self.config.model_copy(update=changes)
        self.write("run.json", sealed(self.config.model_dump()))

    def read(self, name: str, kind: type[M], remake: str = "", *, remedy: str = "") -> M:
        """Return a JSON file of the folder as its record; raises InputError where it is missing, damaged or older.

        remake  the command that makes it anew; without one, only training does.    remedy  what to do where it is
        neither.
        """
        path = self.path / name
        try:
            return kind.model_validate_json(path.read_bytes())
        except OSError as error:
            reason = error.strerror or str(error)
        except ValidationError as error:
            reason = first_error(error)
        if not remedy:
            remedy = f"run `{remake}` to make it again" if remake else f"delete {self.path} and train again"
        raise InputError(f"{path} can't be read ({reason}); {remedy}")

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for training: two processes in one run would overwrite each other."""
        with file_lock(self.path / ".lock") as held:
            if not held:
                raise InputError(
                    f"{self.path} is being trained by another process; wait for it or choose another --out"
                )
            yield


def run_and_score(text: Path) -> tuple[Run, str | None]:
    """Return the run and the score of RUN or RUN:SCORE; a folder whose name has a colon is that folder."""
    folder, colon, score = str(text).rpartition(":")
    if text.exists() or not colon:
        return Run(text), None
    return Run(Path(folder)), score


def checkpoint_state(path: Path) -> dict[str, Any]:
    """Return what a checkpoint says of itself beside its tensors, once all of it is compared with its SHA-256."""
    return state_of_tensors(path, "put the right file back, or delete it: then this training starts again")


def _existing(path: Path) -> str:
    folder = path.parent if path.parent.is_dir() else RUNS
    names = sorted(str(p.parent) for p in folder.glob("[!.]*/run.json"))
    return f"; there are: {', '.join(names[-5:])}" if names else ""


def _remake(content: Mapping[str, Any]) -> str:
    """Return the command that trains what a run.json of another format is of, as far as it says what that is."""
    cache = content.get("cache")
    words = ["anomaly", "train", str(content.get("model", "MODEL"))]
    words += ["--cache", str(cache["path"])] if isinstance(cache, dict) and "path" in cache else []
    flags = {f"--{key.replace('_', '-')}": content.get(key) for key in ("variant", "preset", "seed", "split_seed")}
    words += [word for flag, value in flags.items() if value not in (None, "", 0) for word in (flag, str(value))]
    return shlex.join([*words, "--out", "NEW"])


def first_error(error: ValidationError) -> str:
    """Return the first of the errors that pydantic found, on one line: where, and what."""
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return " ".join(f"{where}: {first['msg']}".removeprefix(": ").split())


def create(path: Path, config: RunConfig) -> Run:
    """Make a run folder with its run.json; one that exists is refused."""
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} exists; choose another --out")
    # Made beside and moved into place: a folder of this name is a run from the first moment on.
    beside = aside(path)
    write_atomic(beside / "run.json", sealed(config.model_dump()))
    try:
        beside.replace(path)
    except OSError as error:
        shutil.rmtree(beside, ignore_errors=True)
        raise InputError(f"{path} can't be made ({error.strerror}); choose another --out") from None
    return Run(path)


def named(name: str, folder: Path = RUNS) -> Path:
    """Return the folder of a run that a user names; raises InputError for what isn't one plain name.

    >>> named("knees of May").as_posix()
    'runs/knees of May'
    """
    if not name.isprintable() or len(name.encode()) > LONGEST_NAME or name != name.strip():
        raise InputError(f"--name {plain(name)[:40]!r}: take 1 to {LONGEST_NAME} printable characters, no space around")
    if not name or name.startswith((".", "-")) or {"/", "\\"} & set(name):
        raise InputError(f"--name {name!r} is no plain name; without / and not begun by . or -, or take --out PATH")
    return folder / name


def numbered(model: str, folder: Path = RUNS) -> list[Path]:
    """Return the folders `folder/<model>-<number>` in the order of their numbers."""
    found = [
        (int(m[1]), p) for p in folder.glob(f"{model}-*") if (m := re.fullmatch(rf"{re.escape(model)}-(\d+)", p.name))
    ]
    return [p for _, p in sorted(found)]


def newest(folder: Path = RUNS) -> Path:
    """Return the run or bench that was made last; raises InputError where there is none."""
    made = [p for name in ("run.json", "bench.json") for p in folder.glob(f"[!.]*/{name}")]
    if not made:
        raise InputError(f"{folder}/ has no run and no bench; `anomaly train cae` or `anomaly bench --table` makes one")
    return max(made, key=lambda file: file.stat().st_mtime).parent


def next_path(model: str, folder: Path = RUNS) -> Path:
    """Return the first free `folder/<model>-<number>`, counted from 1."""
    taken = numbered(model, folder)
    return folder / f"{model}-{int(taken[-1].name.rpartition('-')[2]) + 1 if taken else 1}"


def differences(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return "key: old -> new" for every leaf in which two nested mappings differ.

    >>> differences({"a": {"b": 1}, "c": 2}, {"a": {"b": 3}, "c": 2})
    ['a.b: 1 -> 3']
    """
    out = []
    for key in sorted({*old, *new}):
        a, b = old.get(key), new.get(key)
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            out += differences(a, b, f"{prefix}{key}.")
        elif a != b:
            out.append(f"{prefix}{key}: {a} -> {b}")
    return out
