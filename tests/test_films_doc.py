"""Every example of docs/films.md is run on films drawn for it, and its tables hold every name that is read."""

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom.uid import ExplicitVRLittleEndian

from preprocessing.sources.columns import ALIASES
from preprocessing.sources.names import ABNORMAL, NORMAL, NOT_FILMS, SPLITS, UNLABELLED
from preprocessing.wording import squeezed

from .test_cli import typed

PAGE = (Path(__file__).parents[1] / "docs/films.md").read_text(encoding="utf-8")
SMALL = ("--recipe", "plain", "--size", "32", "--variants", "raw", "--workers", "1", "--force")


@dataclass
class Example:
    """A tree of films, tables in it, and commands with the lines that must be in what they print."""

    title: str
    files: list[str] = field(default_factory=list)
    tables: dict[str, str] = field(default_factory=dict)
    commands: list[tuple[str, list[str]]] = field(default_factory=list)


def examples() -> list[Example]:
    """Read the examples out of the page: each begins with a block of files."""
    found: list[Example] = []
    title = ""
    for heading, kind, name, text in re.findall(
        r'^## ([^\n]+)$|^```(\w+)(?: title="(\S*)")?\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL
    ):
        if heading:
            title = heading
        elif kind == "files":
            found.append(Example(title, text.split("\n")[:-1]))
        elif kind == "csv":
            found[-1].tables[name] = text
        else:
            for block in text.split("$ ")[1:]:
                command, *lines = block.rstrip("\n").split("\n")
                found[-1].commands.append((command, lines))
    return found


def draw(file: Path, seed: int) -> None:
    """Draw a film of noise in the format that its name says, and anything else as text."""
    file.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 255, (40, 40), dtype=np.uint8)
    if file.suffix in (".IMG", ""):
        dataset = pydicom.Dataset()
        dataset.file_meta = pydicom.dataset.FileMetaDataset()
        dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1.1"
        dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = f"1.2.{seed}"
        dataset.Rows, dataset.Columns = pixels.shape
        dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 8, 8, 7, 0
        dataset.PixelData = pixels.tobytes()
        dataset.save_as(file, enforce_file_format=True)
    elif file.suffix == ".png":
        file.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())
    else:
        file.write_text("{}")


EXAMPLES = examples()


@pytest.mark.parametrize("example", EXAMPLES, ids=[f"{n} {example.title}" for n, example in enumerate(EXAMPLES)])
def test_example(example: Example, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, file in enumerate(example.files):
        draw(tmp_path / file, seed)
    for file, text in example.tables.items():
        (tmp_path / file).write_text(text, encoding="utf-8")
    assert example.commands
    for command, lines in example.commands:
        program, *words = shlex.split(command)
        assert program == "anomaly"
        status, out, err = typed(capsys, *words, *SMALL)
        printed = [line.replace(f"{tmp_path}/", "") for line in (out + err).splitlines()]
        assert status == (2 if any(line.startswith("error:") for line in lines) else 0), printed
        assert lines and not [line for line in lines if line not in printed], printed


def quoted(text: str) -> set[str]:
    return {squeezed(name) for name in re.findall(r"`([^`\n]+)`", text)}


def row(first: str) -> set[str]:
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {first} ")]
    return quoted(line.split(" | ")[1])


def test_the_page_has_examples_for_every_part() -> None:
    titles = re.findall(r"^## (.+)$", PAGE, re.MULTILINE)
    assert {example.title for example in EXAMPLES} == {*titles}


@pytest.mark.parametrize(
    ("first", "names"),
    [("normal (label 0)", NORMAL), ("abnormal (label 1)", ABNORMAL), ("unknown (label -1)", UNLABELLED)],
)
def test_names_of_classes_are_those_that_are_read(first: str, names: frozenset[str]) -> None:
    assert row(first) == names


@pytest.mark.parametrize("fields", ALIASES)
def test_names_of_columns_are_those_that_are_read(fields: str) -> None:
    assert row(fields) == {*ALIASES[fields]}


def test_names_of_splits_and_of_what_is_no_film_are_all_there() -> None:
    everything = quoted(PAGE)
    assert {*SPLITS} <= everything and {*NOT_FILMS} - {"groundtruth"} <= everything
