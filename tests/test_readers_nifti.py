"""NIfTI films come out as displayed."""

import gzip
from collections.abc import Callable

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from preprocessing import InputError
from preprocessing.readers import MAX_PIXELS, peek_depth, read_film
from tests.film_files import bad_floats, check_film, nifti, picture, quickly, sides


def test_nifti_written_like_a_dicom_film_comes_back_as_it_was() -> None:
    for levels, depth in ((picture(), 8), (picture(np.uint16), 16)):
        plain = nifti(levels.T)
        for data in (plain, gzip.compress(plain), nifti(levels.T[:, :, None])):
            check_film(read_film("film.nii", data), levels, depth)
            assert peek_depth("film.nii", data) == depth
    second = nibabel.Nifti2Image(picture().T, np.diag([-1, -1, 1, 1])).to_bytes()
    check_film(read_film("film.nii", second), picture(), 8)


def test_nifti_is_turned_by_its_affine() -> None:
    levels = picture()
    # Identity: the first axis runs to the patient's right, the second to the front; the display to left and back.
    check_film(read_film("r.nii", nifti(levels.T, np.eye(4))), levels[::-1, ::-1], 8)
    # The axes swapped: the first runs to the back, the second to the left.
    swapped = np.array([[0, -1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    check_film(read_film("s.nii", nifti(levels, swapped)), levels, 8)
    # Coronal: columns run to the left, rows to the feet.
    check_film(read_film("c.nii", nifti(levels.T[:, None, :], np.diag([-1, 1, -1, 1]))), levels, 8)
    # Sagittal: columns run to the back, rows to the feet.
    check_film(read_film("g.nii", nifti(levels.T[None], np.diag([1, -1, -1, 1]))), levels, 8)


@quickly
@given(
    arrays(np.float32, sides, elements=st.floats(-(2.0**99), 2.0**99, width=32)),
    st.sampled_from([np.float32, np.float64, np.int32]),
)
def test_nifti_floats_fill_the_range_in_order(values: np.ndarray, dtype: type) -> None:
    values = (np.clip(values, -1e9, 1e9) if dtype == np.int32 else values).astype(dtype)
    film = read_film("f.nii", nifti(values))
    assert film.depth == 16 and film.pixels.dtype == np.uint16
    if values.min() == values.max():
        assert not film.pixels.any()
    else:
        assert film.pixels.min() == 0 and film.pixels.max() == 65535
        order = np.argsort(values.T.ravel(), kind="stable")
        assert (np.diff(film.pixels.ravel()[order].astype(int)) >= 0).all()


def test_nifti_of_huge_floats_does_not_overflow() -> None:
    values = np.zeros((20, 20))
    values[0, 0], values[0, 1] = -1.7e308, 1.7e308
    film = read_film("h.nii", nifti(values))
    assert film.pixels[0, 0] == 0 and film.pixels.max() == 65535 and film.pixels[5, 5] == 32768


def test_nifti_scaled_integers_are_stretched() -> None:
    image = nibabel.Nifti1Image(picture(), np.diag([-1, -1, 1, 1]))
    image.header.set_slope_inter(0.5, 3)
    stream = image.to_bytes()
    assert peek_depth("s.nii", stream) == 16
    assert read_film("s.nii", stream).depth == 16


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (lambda: bad_floats(np.nan), "NaN or infinity in 1 pixel;"),
        (lambda: bad_floats(np.inf), "NaN or infinity in 1 pixel;"),
        (lambda: nifti(np.zeros((20, 20, 5), np.uint8)), "(20, 20, 5)"),
        (lambda: nifti(np.zeros((20, 20, 1, 3), np.uint8)), "(20, 20, 1, 3)"),
        (lambda: nifti(np.zeros((20, 20), np.complex64)), "complex64"),
        (lambda: nifti(np.zeros((20, 20), np.uint8))[:500], "does not decode"),
        (lambda: gzip.compress(nifti(picture()))[:-30], "does not decode"),
        (lambda: gzip.compress(b"hello" * 100), "holds is neither NIfTI nor DICOM"),
        (lambda: nifti_of_shape(30000, 30000), str(MAX_PIXELS)),
    ],
)
def test_nifti_refused(data: Callable[[], bytes], reason: str) -> None:
    with pytest.raises(InputError) as caught:
        read_film("bad.nii.gz", data())
    assert str(caught.value).startswith("bad.nii.gz: ") and reason in str(caught.value)


def nifti_of_shape(width: int, height: int) -> bytes:
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape((width, height))
    header["magic"] = b"n+1"
    header["vox_offset"] = 352
    return gzip.compress(header.binaryblock + b"\0" * 1000)


def test_gzip_bomb_is_unpacked_no_further_than_its_header_says() -> None:
    inside = nifti(picture().T)
    bomb = gzip.compress(inside + b"\0" * 50_000_000)
    check_film(read_film("bomb.nii.gz", bomb), picture(), 8)
