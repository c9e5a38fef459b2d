"""Commands that are printed to be typed next are quoted, and text comes out in any locale."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from .test_cli import refused, typed

ODD = "my films (2), Müller's"
SMALL = ("--recipe", "plain", "--size", 32, "--variants", "raw", "--workers", 1)


def draw(root: Path, *files: str) -> Path:
    """Draw films of noise."""
    rng = np.random.default_rng(0)
    for file in files:
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        encoded = cv2.imencode(".png", rng.integers(0, 255, (40, 40), dtype=np.uint8))[1]
        (root / file).write_bytes(encoded.tobytes())
    return root


def following(out: str) -> list[str]:
    """Return the words of the command that is printed as the next one, or the first of those."""
    line, *_ = [line for line in out.splitlines() if line.startswith("next: ")]
    return shlex.split(line.removeprefix("next: "))


def test_the_way_through_a_folder_of_an_odd_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = draw(tmp_path / ODD / "films", *(f"normal/{n}.png" for n in range(12)), "abnormal/x.png")
    status, out, err = typed(capsys, "preprocess", root, *SMALL, "--out", tmp_path / ODD / "c.h5")
    assert status == 0 and "note: abnormal/: 1 film abnormal; normal/: 12 films normal" in err
    program, *words = following(out)
    assert (program, words) == ("anomaly", ["train", "cae", "--cache", str(tmp_path / ODD / "c.h5")])
    words[1] = "contrast_density"
    status, out, _ = typed(capsys, *words, "--out", tmp_path / ODD / "run $1")
    assert status == 0 and following(out) == ["anomaly", "score", str(tmp_path / ODD / "run $1")]
    message = refused(capsys, *words, "--out", tmp_path / ODD / "run $1")
    assert shlex.split(message.split("`")[1]) == ["anomaly", "score", str(tmp_path / ODD / "run $1")]


def test_what_the_user_says_of_folders_is_in_the_command_that_makes_the_cache_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from preprocessing.cache.reader import Cache

    root = draw(tmp_path / "films", "no fracture/a.png", "no fracture/b.png", "Osteoid/c.png")
    arguments = ("preprocess", root, *SMALL, "--out", tmp_path / "c.h5")
    assert "look like classes; say which is normal, with --normal NAME" in refused(capsys, *arguments)
    said = ("--normal", "no fracture", "--abnormal", "osteo*", "--follow-links")
    assert typed(capsys, *arguments, *said)[0] == 0
    cache = Cache(tmp_path / "c.h5")
    assert cache.index["label"].tolist() == [1, 0, 0]
    words = shlex.split(cache.remake)
    assert [words[words.index(flag) + 1] for flag in ("--normal", "--abnormal")] == ["no fracture", "osteo*"]
    assert "--follow-links" in words
    status, _, err = typed(capsys, "inspect", tmp_path / "c.h5", "--sheet", tmp_path / "sheet.png")
    assert status == 0, err  # it finds the films again without being told what their folders mean


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_text_prints_in_any_locale(tmp_path: Path, encoding: str) -> None:
    root = draw(tmp_path / "Röntgen–α", "normal/ä.png", "normal/β.png")
    (root / "normal" / "γ.png").write_bytes(b"no film")
    environment = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [sys.executable, "-m", "anomaly", "preprocess", root, *map(str, SMALL), "--out", tmp_path / "α.h5"],
        env=environment,
        capture_output=True,
        check=False,
    )
    out, err = done.stdout.decode(encoding), done.stderr.decode(encoding)
    assert done.returncode == 0, err
    assert "\\u03b1.h5" in out and "\\u03b3.png: not a PNG" in err and "Traceback" not in err
