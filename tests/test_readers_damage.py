"""Damaged and hostile files are refused with a line, in little memory and time."""

import json
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing import InputError
from preprocessing.readers import MAX_PIXELS, peek_depth, read_film, read_mask
from tests.film_files import every_format, picture, png, png_header, quickly, refused, tiff


@pytest.mark.parametrize("name", every_format())
def test_truncated_files_are_never_half_decoded(name: str) -> None:
    data = every_format()[name]
    whole = read_film(name, data)
    for end in [*range(0, len(data), max(1, len(data) // 25)), *range(len(data) - 8, len(data))]:
        try:
            film = read_film(name, data[:end])
        except InputError as error:
            assert str(error).startswith(f"{name}: ")
        else:  # nothing but padding, or a directory's last zeros, is missing
            assert end > 0.97 * len(data)
            np.testing.assert_array_equal(film.pixels, whole.pixels)


@quickly
@given(st.data())
def test_damaged_files_raise_nothing_but_input_errors(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(every_format())))
    sound = bytearray(every_format()[name])
    for _ in range(data.draw(st.integers(1, 4))):
        sound[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    for read in (read_film, peek_depth, read_mask):
        try:
            read(name, bytes(sound))
        except InputError as error:
            assert str(error).startswith(f"{name}: ")


@given(st.binary(max_size=400))
def test_noise_is_no_film(data: bytes) -> None:
    refused("noise.png", data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "the file is empty"),
        (b"this is text", "not a PNG, JPEG, JPEG 2000, BMP, TIFF, DICOM or NIfTI file (it begins with b'this is '"),
        (b"GIF89a" + b"\0" * 500, "not a PNG"),
        (png(np.zeros((1, 1), np.uint8)), "1 x 1 pixels; a film needs at least 16"),
        (png(np.zeros((200, 15), np.uint8)), "15 x 200 pixels"),
        (tiff(np.zeros((3, 20, 20), np.uint8), photometric="minisblack"), "3 pages"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
        (b"\xff\xd8\xff\xe0", "truncated"),
    ],
)
def test_what_is_no_film(data: bytes, reason: str) -> None:
    assert reason in refused("film.png", data)


@pytest.mark.parametrize("side", [8001, 9600, 60000])
def test_too_many_pixels_are_refused_from_the_header(side: int) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert str(MAX_PIXELS) in refused("huge.png", png_header(side, side))
        with pytest.raises(InputError, match=str(MAX_PIXELS)):
            read_mask("huge.png", png_header(side, side))


def test_large_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preprocessing.readers.film.MAX_BYTES", 1000)
    assert "limit is 1000" in refused("large.png", png(picture()) + b"\0" * 1000)


@pytest.mark.parametrize("data", [b"II*\0\xff\xff\xff\x7f" + bytes(99), b"\xff\xd8\xff" + b"no film" * 30])
def test_a_broken_file_is_told_by_the_error_alone(
    data: bytes, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    reasons = set()
    for _ in range(2):
        with pytest.raises(InputError) as caught:
            read_film("film", data)
        reasons.add(str(caught.value))
    assert len(reasons) == 1 and " at 0x" not in reasons.pop()
    assert caplog.records == [] and capfd.readouterr() == ("", "")


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are those of Linux")
def test_mutants_of_every_format_are_read_or_refused_in_bounds() -> None:
    """1,000 damaged films of a fixed seed, in a process of its own: a crash of a codec is seen, too."""
    command = [sys.executable, "-m", "tests.mutants", "1000", "0"]
    folder = Path(__file__).parent.parent
    ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0 and ended.stderr == "", ended.stderr
    result = json.loads(ended.stdout)
    assert set(result["counts"]) == {"read", "refused"} and sum(result["counts"].values()) == 1000
    assert result["slowest"][0] < 5 and result["peak"] < 2**30, result
