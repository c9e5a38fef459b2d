"""Maps keep their numbers, their place, and one color per value."""

from itertools import pairwise

import cv2
import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from anomaly.evaluation.heatmap_scale import map_scale, smooth
from anomaly.reporting import heatmap
from anomaly.reporting.heatmap import CLEAR, REACH, blend, overlay, palette, to_film_space, write_map, write_png


def disc(size: int, radius: float) -> np.ndarray:
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return x**2 + y**2 <= radius**2


def test_smooth_keeps_constants_inside_and_nothing_outside():
    mask = disc(64, 20)
    out = smooth(np.full((64, 64), 0.7), mask, sigma=5)
    assert out[mask] == pytest.approx(0.7, abs=1e-6) and not out[~mask].any()
    assert not smooth(np.ones((8, 8)), np.zeros((8, 8), bool), sigma=2).any()


def test_smooth_does_not_let_the_background_in(rng):
    mask = disc(64, 20)
    map = rng.random((64, 64))
    wild = np.where(mask, map, 1e3)
    assert (smooth(map, mask, 3) == smooth(wild, mask, 3)).all()
    assert smooth(map, mask, 0) == pytest.approx(map * mask)
    inside = smooth(map, mask, 3)[mask]
    assert map[mask].min() < inside.min() and inside.max() < map[mask].max()


@pytest.mark.parametrize(
    ("map", "mask", "sigma", "words"),
    [
        (np.full((4, 4), np.nan), np.ones((4, 4), bool), 1, "finite"),
        (np.ones((4, 4)), np.ones((4, 5), bool), 1, "must both be"),
        (np.ones((4, 4)), np.ones((4, 4)), 1, "mask bool"),
        (np.ones((4, 4)), np.ones((4, 4), bool), -1, "sigma -1"),
    ],
)
def test_smooth_refuses_what_is_no_map(map, mask, sigma, words):
    with pytest.raises(ValueError, match=words):
        smooth(map, mask, sigma)


def test_map_scale_is_one_number_for_all_films_under_their_masks(rng):
    maps = [(rng.random((50, 50)).astype(np.float32) * 1e-3, disc(50, 20)) for _ in range(6)]
    expected = np.quantile(np.concatenate([values[mask] for values, mask in maps]), 0.995)
    assert map_scale(iter(maps)) == pytest.approx(expected, rel=1e-3)
    maps = [(np.where(mask, values, 9.0), mask) for values, mask in maps]
    assert map_scale(maps) == pytest.approx(expected, rel=1e-3)


def test_map_scale_of_empty_maps_is_still_a_scale():
    everywhere = np.ones((40, 40), bool)
    rare = np.zeros((40, 40))
    rare[0, 0] = 0.25
    assert map_scale([(rare, everywhere)]) == pytest.approx(0.25, rel=1e-3)
    assert map_scale([(rare * 0, everywhere)]) == 1
    with pytest.raises(ValueError, match="no pixel"):
        map_scale([])


def test_the_same_value_has_the_same_color_in_every_film():
    mask = np.ones((40, 40), bool)
    film = np.full((40, 40), 0.5)
    quiet, loud = np.full((40, 40), 0.01), np.full((40, 40), 0.01)
    loud[20:] = 5.0
    for draw in (blend, overlay):
        first, second = draw(film, quiet, mask, 0.008), draw(film, loud, mask, 0.008)
        rows = np.abs(first.astype(int) - second).sum(axis=(1, 2)) == 0
        assert rows[: len(rows) // 3].all() and not rows.all()


def test_heat_is_clear_below_and_dense_above(rng):
    film, mask = rng.random((1, 200)), np.ones((1, 200), bool)
    map = np.linspace(0, 3, 200)[None]
    picture = blend(film, map, mask, 1.0).astype(int)
    grey = np.rint(film * 255)[..., None]
    assert (picture[map < CLEAR] == grey[map < CLEAR]).all()
    assert (picture != grey).any(-1)[map > 1].all()
    assert (blend(film, map, ~mask, 1.0) == grey).all()  # no heat outside the mask
    top = blend(film * 0, map, mask, 1.0)[map > REACH]
    assert (top == top[0]).all()


def test_colors_rise_in_brightness_so_that_hue_is_not_needed():
    for colors in ("plasma", "viridis", "cividis", "inferno"):
        light = palette(colors) @ [0.2126, 0.7152, 0.0722]
        assert (np.diff(light) > -2).all() and light[-1] > light[0] + 120
    with pytest.raises(ValueError, match="no colors 'jet'; there are: plasma"):
        blend(np.zeros((4, 4)), np.zeros((4, 4)), np.ones((4, 4), bool), 1.0, colors="jet")  # type: ignore[arg-type]


def test_overlay_is_the_blend_with_title_and_bar_around(rng):
    film, map, mask = rng.random((400, 300)), rng.random((400, 300)), np.ones((400, 300), bool)
    picture = overlay(film, map, mask, 0.5, title="patient00001/image1.png\nmse .012", threshold=0.7)
    top = picture.shape[0] - 400
    assert picture.dtype == np.uint8 and picture.shape[1] > 300 and top > 20
    assert (picture[top:, :300] == blend(film, map, mask, 0.5)).all()
    assert (picture == overlay(film, map, mask, 0.5, title="patient00001/image1.png\nmse .012", threshold=0.7)).all()
    assert (picture[:top] > 200).any() and (picture[:, 300:] > 200).any()  # something is written there
    assert (picture != overlay(film, map, mask, 0.5, title="patient00001/image1.png\nmse .012")).any()


@pytest.mark.parametrize("shape", [(16, 16), (16, 200), (200, 16), (128, 128)])
def test_overlay_finds_room_on_small_films_and_for_long_titles(shape):
    film, mask = np.zeros(shape), np.ones(shape, bool)
    picture = overlay(film, film, mask, 1.0, title="a long name / " * 40, unit="a unit with many words in it")
    assert max(picture.shape) >= 384


@given(st.lists(st.text("abc;", min_size=1, max_size=6), min_size=1, max_size=30), st.integers(6, 40))
def test_a_title_is_broken_at_spaces_and_nothing_of_it_is_lost(words: list[str], room: int) -> None:
    lines = heatmap._broken(" ".join(words), room, len)
    assert max(map(len, lines)) <= room
    if len(lines) > 1:
        assert " ".join(lines).split() == words
        joined = [f"{one} {other.split()[0]}" for one, other in pairwise(lines)]
        assert all(len(longer) > room for longer in joined), "a line is as long as it can be"


def test_a_warning_fits_the_smallest_film_and_a_word_too_long_is_cut_in_its_middle() -> None:
    warning = "NOT A MEDICAL DEVICE, for research, trained on SYNTHETIC films; feature_mixture 0.1.0"
    assert " ".join(heatmap._broken(warning, 40, len)) == warning
    (cut,) = heatmap._broken("a/very/long/path/of/a/film.png", 12, len)
    assert len(cut) <= 12 and cut.startswith("a/") and "…" in cut and cut.endswith("png")
    (name,) = heatmap._broken("a name of a film " * 40, 20, len)
    assert len(name) <= 20 and "…" in name
    film, mask = np.zeros((119, 90)), np.ones((119, 90), bool)
    few, more = (overlay(film, film, mask, 1.0, title=text).shape[0] for text in ("one line", warning * 2))
    assert more > few


def test_scale_must_be_one():
    for scale in (0.0, -1.0, np.nan):
        with pytest.raises(ValueError, match="must be above 0"):
            blend(np.zeros((4, 4)), np.zeros((4, 4)), np.ones((4, 4), bool), scale)


@pytest.mark.parametrize("turn", [0.0, 25.0])
def test_a_blob_goes_back_to_where_it_was(turn):
    shape, size = (300, 220), 128
    truth = np.zeros(shape, np.float32)
    cv2.circle(truth, (150, 90), 12, 1.0, -1)  # (x, y)
    matrix = cv2.getRotationMatrix2D((110, 150), turn, 0.4)
    matrix[:, 2] += (size - 1) / 2 - np.array([110, 150])
    cached = cv2.warpAffine(truth, matrix, (size, size), flags=cv2.INTER_AREA)
    back = to_film_space(cached, matrix, shape)
    assert back.shape == shape and back.dtype == np.float32
    y, x = np.nonzero(back > 0.5)
    assert (x.mean(), y.mean()) == (pytest.approx(150, abs=0.7), pytest.approx(90, abs=0.7))
    assert ((back > 0.5) & (truth > 0.5)).sum() / ((back > 0.5) | (truth > 0.5)).sum() > 0.85


def test_the_film_beyond_the_map_is_zero():
    whole = to_film_space(np.ones((10, 10)), np.array([[1.0, 0, -20], [0, 1, -30]]), (60, 50))
    assert whole.sum() == 100 and (whole[30:40, 20:30] == 1).all()


@pytest.mark.parametrize("suffix", [".npy", ".tif", ".tiff"])
def test_written_maps_keep_every_number(tmp_path, suffix, rng):
    path = tmp_path / "maps" / f"image1.v2{suffix}"
    map = rng.random((7, 9)).astype(np.float32)
    write_map(path, map)
    read = np.load(path, allow_pickle=False) if suffix == ".npy" else tifffile.imread(path)
    assert read.dtype == np.float32 and (read == map).all()
    assert [file.name for file in path.parent.iterdir()] == [path.name]  # nothing partial is left


def test_written_pictures_keep_their_colors(tmp_path, rng):
    picture = rng.integers(0, 256, (6, 5, 3), np.uint8)
    write_png(tmp_path / "a.png", picture)
    assert (cv2.imread(str(tmp_path / "a.png"))[..., ::-1] == picture).all()
    with pytest.raises(ValueError, match="must be uint8"):
        write_png(tmp_path / "b.png", picture / 255)
    with pytest.raises(ValueError, match=r"no map format '\.exr'"):
        write_map(tmp_path / "a.exr", np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"must be \(H, W\)"):
        write_map(tmp_path / "a.npy", np.zeros((2, 2, 3)))
    assert [file.name for file in tmp_path.iterdir()] == ["a.png"]
