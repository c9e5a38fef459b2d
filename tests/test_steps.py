"""Preprocessing steps on drawn films whose truth is known."""

import time

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from preprocessing import steps
from preprocessing.readers import Film
from preprocessing.recipe import Recipe
from preprocessing.steps import reduction

FLAT = [np.full((16, 16), 0, np.uint8), np.full((40, 24), 255, np.uint8), np.full((300, 20), 4095, np.uint16)]
TYPES = (np.uint8, np.uint16)
quick = settings(max_examples=40, deadline=None)


def draw_hand(shape=(256, 192), *, background=30, soft=120, bone=220, noise=2.0):
    """Draw a palm, five fingers and an arm that leaves the film below: film (H, W) uint8, mask (H, W) bool."""
    height, width = shape
    unit = min(height / 256, width / 192)
    film, mask = np.full(shape, background, np.uint8), np.zeros(shape, np.uint8)
    foot = width / 2, height * 0.6
    for angle, reach in ((-50, 85), (-18, 120), (-4, 128), (10, 120), (26, 95)):
        tip = foot[0] + np.sin(np.deg2rad(angle)) * reach * unit, foot[1] - np.cos(np.deg2rad(angle)) * reach * unit
        for level, thick in ((soft, 17), (bone, 7)):
            cv2.line(film, *(tuple(map(round, point)) for point in (foot, tip)), level, max(1, round(thick * unit)))
        cv2.line(mask, *(tuple(map(round, point)) for point in (foot, tip)), 1, max(1, round(17 * unit)))
    for canvas, level in ((film, (soft + bone) // 2), (mask, 1)):
        cv2.circle(canvas, tuple(map(round, foot)), round(34 * unit), level, -1)
        low, high = (round(foot[0] - 24 * unit), round(foot[1])), (round(foot[0] + 24 * unit), height)
        cv2.rectangle(canvas, low, high, level, -1)
    grain = np.random.default_rng(0).normal(0, noise, shape)
    return np.clip(film + grain, 0, 255).astype(np.uint8), mask > 0


def on_plate(plate, *, angle=0.0, shape=(320, 288), surround=0):
    """Lay a film, turned, on the middle of a larger one: film, corners (4, 2), matrix plate -> film."""
    height, width = plate.shape
    turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -angle, 1.0)
    turn[:, 2] += (shape[1] - width) / 2, (shape[0] - height) / 2
    film = cv2.warpAffine(plate, turn, shape[::-1], borderValue=surround)
    outline = np.array([[0, 0], [width, 0], [width, height], [0, height]]) - 0.5
    return film, (np.c_[outline, np.ones(4)] @ turn.T).astype(np.float32), turn


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def filled(corners, shape):
    return cv2.fillPoly(np.zeros(shape, np.uint8), [np.rint(corners).astype(np.int32)], 1) > 0


def deep(film):
    """Give a 16-bit film of 12-bit levels with the same content."""
    return film.astype(np.uint16) * 16


# Inversion


@pytest.mark.parametrize("background, soft, bone", [(10, 90, 200), (90, 150, 220), (190, 215, 250)])
def test_inversion_goes_by_background_not_by_brightness(background, soft, bone):
    film, _ = draw_hand(background=background, soft=soft, bone=bone, noise=1)
    assert not steps.is_inverted(film)
    assert steps.is_inverted(steps.invert(film))
    assert steps.is_inverted(255 - film)


@pytest.mark.parametrize("surround", [0, 255])
def test_inversion_looks_into_the_exposed_field(surround):
    plate, _ = draw_hand((240, 200), background=180, soft=210, bone=245, noise=1)
    film, _, _ = on_plate(plate, angle=6, surround=surround)
    exposed = on_plate(np.full(plate.shape, 255, np.uint8), angle=6)[0] > 250
    assert not steps.is_inverted(film, exposed=exposed)
    turned, _, _ = on_plate(255 - plate, angle=6, surround=surround)
    assert steps.is_inverted(turned, exposed=exposed)


def test_white_frame_around_a_dark_plate_is_no_inversion():
    film = cv2.copyMakeBorder(draw_hand()[0], 10, 10, 10, 10, cv2.BORDER_CONSTANT, value=255)
    assert not steps.is_inverted(film)


@quick
@given(st.sampled_from(TYPES).flatmap(lambda kind: arrays(kind, st.tuples(st.integers(1, 9), st.integers(1, 9)))))
def test_inverting_twice_changes_nothing(film):
    turned = steps.invert(film)
    assert turned.dtype == film.dtype
    np.testing.assert_array_equal(steps.invert(turned), film)


# Geometry


@pytest.mark.parametrize("angle", [-30, -12, -3, 0, 2, 15, 40])
@pytest.mark.parametrize("background", [40, 170])
def test_carrier_is_found_at_any_turn(angle, background):
    plate, _ = draw_hand((210, 170), background=background, soft=200, bone=250)
    film, corners, _ = on_plate(plate, angle=angle)
    found = steps.find_carrier(film)
    assert found is not None and found.shape == (4, 2) and found.dtype == np.float32
    assert iou(filled(found, film.shape), filled(corners, film.shape)) > 0.94
    tilt = np.rad2deg(np.arctan2(*(found[1] - found[0])[::-1]))
    assert abs(tilt - angle) < 1.5


def test_carrier_of_a_line_frame_and_of_a_light_strip():
    film, _ = draw_hand((256, 224))
    framed = cv2.rectangle(film.copy(), (12, 12), (211, 240), 250, 2)
    framed[242:] = framed[:11] = 2
    inner = steps.find_carrier(framed)
    assert (
        inner is not None
        and iou(filled(inner, film.shape), np.pad(np.ones((229, 200), bool), ((12, 15), (12, 12)))) > 0.9
    )
    striped = film.copy()
    striped[:30] = 250
    below = steps.find_carrier(striped)
    assert below is not None and 28 < below[0, 1] < 34


def test_a_film_filled_by_its_field_has_no_carrier():
    assert steps.find_carrier(draw_hand()[0]) is None


def test_rectify_recovers_a_turned_plate():
    plate = cv2.GaussianBlur(draw_hand((200, 160), noise=0)[0], (0, 0), 2)
    film, corners, turn = on_plate(plate, angle=17)
    upright, matrix = steps.rectify(film, corners)
    assert upright.shape == plate.shape
    inner = np.s_[3:-3, 3:-3]
    assert np.abs(upright[inner].astype(int) - plate[inner]).mean() < 1
    np.testing.assert_allclose(steps.compose(matrix, turn), np.eye(2, 3), atol=1e-3)


def test_rectify_of_an_upright_carrier_is_a_slice():
    film = deep(draw_hand()[0])
    corners = np.array([[9.5, 19.5], [99.5, 19.5], [99.5, 219.5], [9.5, 219.5]], np.float32)
    upright, matrix = steps.rectify(film, corners)
    np.testing.assert_array_equal(upright, film[20:220, 10:100])
    np.testing.assert_array_equal(matrix, [[1, 0, -10], [0, 1, -20]])


def test_rectify_beside_the_film_repeats_it_and_the_mask_says_so():
    film = np.full((40, 40), 77, np.uint8)
    corners = np.array([[-10.5, -0.5], [39.5, -0.5], [39.5, 39.5], [-10.5, 39.5]], np.float32)
    upright, matrix = steps.rectify(film, corners)
    assert upright.shape == (40, 50) and (upright == 77).all()
    mask = steps.warp_mask(np.ones(film.shape, bool), matrix, (40, 50))
    np.testing.assert_array_equal(mask.all(axis=0), np.arange(50) >= 10)


@quick
@given(
    st.integers(40, 90),
    st.integers(40, 90),
    st.sampled_from((16, 33, 64, 120)),
    st.floats(0.4, 0.6),
    st.floats(0.4, 0.6),
)
def test_fit_matrix_maps_a_dot_where_it_lands(height, width, size, down, across):
    x, y = across * (width - 1), down * (height - 1)
    rows, columns = np.mgrid[:height, :width]
    dot = np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / (2 * (min(height, width) / 12) ** 2))
    film, mask, matrix = steps.fit((60000 * dot).astype(np.uint16), dot > 0.2, size)
    coarse = 0.6 * max(1.0, matrix[0, 0])  # a mask of whole pixels has its centre within half of an old one
    for image, tolerance in ((film.astype(float), 0.08), (mask.astype(float), coarse)):
        rows, columns = np.mgrid[:size, :size]
        centre = (image * columns).sum() / image.sum(), (image * rows).sum() / image.sum()
        np.testing.assert_allclose(centre, matrix @ (x, y, 1), atol=tolerance)


@quick
@given(st.integers(1, 300), st.integers(1, 300), st.sampled_from((16, 64, 257)), st.sampled_from(TYPES))
def test_fit_keeps_mask_and_film_in_one_frame(height, width, size, kind):
    film, mask, matrix = steps.fit(np.full((height, width), 200, kind), np.ones((height, width), bool), size)
    assert film.shape == mask.shape == (size, size) and film.dtype == kind and mask.dtype == bool
    np.testing.assert_array_equal(film == 200, mask)  # padding is 0, the film has no seam
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    edges = matrix @ np.array([[-0.5, width - 0.5], [-0.5, height - 0.5], [1, 1]])
    np.testing.assert_allclose(edges[0], (columns[0] - 0.5, columns[-1] + 0.5), atol=1e-9)
    np.testing.assert_allclose(edges[1], (rows[0] - 0.5, rows[-1] + 0.5), atol=1e-9)
    np.testing.assert_array_equal(matrix, steps.fit_matrix((height, width), size))


def test_fit_averages_when_it_shrinks():
    stripes = np.tile(np.array([0, 200], np.uint8), (64, 32))
    film, _, _ = steps.fit(stripes, np.ones(stripes.shape, bool), 32)
    assert (film == 100).all()  # bilinear sampling would alias for other ratios


# Hand and foreground


@pytest.mark.parametrize("kind", TYPES)
@pytest.mark.parametrize("shape", [(64, 48), (256, 192), (900, 700)])
@pytest.mark.parametrize("method", ["local", "grabcut", "otsu"])
def test_hand_and_foreground_match_the_drawing(kind, shape, method):
    film, truth = draw_hand(shape)
    film = film if kind == np.uint8 else deep(film)
    mask = steps.foreground(film, method=method)
    assert mask is not None and mask.shape == shape and mask.dtype == bool
    assert iou(mask, truth) > (0.8 if max(shape) < 100 else 0.88)
    x0, y0, x1, y1 = steps.find_hand(film, margin=0.0)
    box = np.zeros(shape, bool)
    box[y0:y1, x0:x1] = True
    whole = np.zeros(shape, bool)
    rows, columns = np.flatnonzero(truth.any(axis=1)), np.flatnonzero(truth.any(axis=0))
    whole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] = True
    assert iou(box, whole) > 0.8


def test_markers_and_frames_are_no_hand():
    film, truth = draw_hand((256, 240))
    cv2.rectangle(film, (12, 190), (34, 215), 255, -1)
    framed = cv2.copyMakeBorder(film, 6, 6, 6, 6, cv2.BORDER_CONSTANT, value=255)
    mask = steps.foreground(framed)
    assert mask is not None and not mask[196:221, 18:40].any() and not mask[:4].any() and not mask[20:200, :4].any()
    assert iou(mask[6:-6, 6:-6], truth) > 0.85
    x0, _, _, _ = steps.find_hand(framed, margin=0.0)
    assert x0 > 40


@pytest.mark.parametrize("side", range(4))
@pytest.mark.parametrize("ends_early", [False, True])
def test_an_exposure_strip_along_a_side_is_no_hand(side, ends_early):
    film, truth = draw_hand((240, 240), background=10, soft=110)
    strip = np.zeros((240, 240), np.float32)
    strip[:32, 30 * ends_early :] = 42  # fingertips lie on it, or the arm
    strip = np.rot90(cv2.GaussianBlur(strip, (0, 0), 5), side)
    mask = steps.foreground(np.maximum(film, film * 0.8 + strip).astype(np.uint8))
    assert mask is not None and iou(mask, truth) > 0.84


def test_a_background_that_slopes_is_no_hand_and_no_frame():
    hand, truth = draw_hand(background=5, soft=100, bone=200)
    film = (hand * 0.75 + 60 * np.linspace(1, 0, 256)[:, None] ** 2).astype(np.uint8)
    mask = steps.foreground(film)
    assert mask is not None and iou(mask, truth) > 0.9
    assert abs(steps.find_hand(film, margin=0.0)[1] - np.flatnonzero(truth.any(axis=1))[0]) <= 3


@pytest.mark.parametrize("half", [50, 70, 85])
def test_a_limb_across_the_film_is_no_strip(half):
    rows, columns = np.indices((256, 200))
    limb = np.abs(columns - 100 + (rows - 128) / 20) < half
    film = np.where(limb, 140, 20) + np.random.default_rng(0).normal(0, 2, limb.shape)
    for turned in (film, film.T):
        mask = steps.foreground(turned.astype(np.uint8))
        assert mask is not None and iou(mask, turned > 80) > 0.95


def test_both_hands_are_kept():
    film, truth = draw_hand((200, 150))
    both, twice = np.hstack([film, film[:, ::-1]]), np.hstack([truth, truth[:, ::-1]])
    assert iou(steps.foreground(both), twice) > 0.85
    x0, _, x1, _ = steps.find_hand(both, margin=0.0)
    columns = np.flatnonzero(twice.any(axis=0))
    assert abs(x0 - columns[0]) < 5 and abs(x1 - columns[-1]) < 5


def test_a_plate_is_looked_into():
    plate, truth = draw_hand((200, 150), background=180, soft=215, bone=250)
    film, mask = (np.pad(array, 30) for array in (plate, truth))
    found = steps.foreground(film)
    assert found is not None and iou(found, mask) > 0.75


def test_margin_widens_the_box_within_the_film():
    film, _ = draw_hand()
    boxes = np.array([steps.find_hand(film, margin=margin) for margin in (0.0, 0.1, 1.0)])
    assert (np.diff(boxes[:, :2], axis=0) <= 0).all() and (np.diff(boxes[:, 2:], axis=0) >= 0).all()
    assert boxes[2].tolist() == [0, 0, 192, 256]


@pytest.mark.parametrize("method", ["local", "grabcut"])
def test_foreground_depends_on_the_film_alone(method):
    film, _ = draw_hand(noise=12)
    first = steps.foreground(film, method=method)
    cv2.setRNGSeed(7)
    steps.foreground(draw_hand((300, 200), noise=20)[0], method=method)
    cv2.randu(np.zeros((4, 4), np.uint8), 0, 255)
    np.testing.assert_array_equal(steps.foreground(film, method=method), first)


def test_an_outline_lies_between_the_pixels_of_the_reduced_copy():
    film, truth = draw_hand((1200, 900))
    local, grabcut = (iou(steps.foreground(film, method=method), truth) for method in ("local", "grabcut"))
    assert local > 0.95 and local > grabcut + 0.01


def test_bone_beside_faint_tissue_does_not_move_an_outline():
    for bone in (150, 250):
        film, truth = draw_hand((640, 480), background=10, soft=70, bone=bone)
        assert iou(steps.foreground(film, method="local"), truth) > 0.94


# Levels


@quick
@given(st.data(), st.sampled_from(TYPES))
def test_equalize_is_monotone_and_only_under_the_mask(data, kind):
    shape = data.draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    film = data.draw(arrays(kind, shape))
    mask = data.draw(arrays(bool, shape))
    out = steps.equalize(film, mask)
    assert out.dtype == kind and out.shape == shape and not out[~mask].any()
    before, after = film[mask].astype(int), out[mask].astype(int)
    order = np.argsort(before, kind="stable")
    rises = np.diff(before[order]) > 0
    assert (np.diff(after[order]) >= 0).all() and (np.diff(after[order])[~rises] == 0).all()
    if kind == np.uint16:
        assert (np.diff(after[order])[rises] > 0).all()  # strictly: no level is lost
    if len(np.unique(before)) > 1:
        assert after.min() == 0 and after.max() == np.iinfo(kind).max


@quick
@given(arrays(np.uint8, st.tuples(st.integers(1, 40), st.integers(1, 40))))
def test_equalize_of_8_bit_agrees_with_opencv(film):
    if len(np.unique(film)) > 1:
        ours = steps.equalize(film, np.ones(film.shape, bool)).astype(int)
        assert np.abs(ours - cv2.equalizeHist(film)).max() <= 1  # its scale is a 32-bit number


@pytest.mark.parametrize("kind, depth", [(np.uint8, 8), (np.uint16, 12), (np.uint16, 16)])
def test_equalize_makes_the_histogram_uniform(kind, depth):
    rng = np.random.default_rng(0)
    film = np.clip(rng.gamma(4, 0.06, (256, 256)) * 2**depth, 0, 2**depth - 1).astype(kind)
    mask = rng.random(film.shape) < 0.6
    levels = steps.equalize(film, mask)[mask] / np.iinfo(kind).max
    even = np.histogram(levels, bins=8, range=(0, 1))[0] / levels.size
    assert np.abs(even - 1 / 8).max() < 0.02


def test_equalize_has_room_for_every_level_even_where_all_are_taken():
    film = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    np.testing.assert_array_equal(steps.equalize(film, np.ones(film.shape, bool)), film)


@quick
@given(st.data(), st.sampled_from(TYPES))
def test_stretch_spans_the_range_under_the_mask(data, kind):
    shape = data.draw(st.tuples(st.integers(1, 30), st.integers(1, 30)))
    film, mask = data.draw(arrays(kind, shape)), data.draw(arrays(bool, shape))
    out = steps.stretch(film, mask)
    assert out.dtype == kind and not out[~mask].any()
    inside = film[mask].astype(float)
    if len(np.unique(inside)) < 2:
        assert not out.any()
    else:
        wanted = (inside - inside.min()) / np.ptp(inside) * np.iinfo(kind).max
        np.testing.assert_allclose(out[mask], wanted, atol=0.51)


def textured(shape=(64, 64), *, detail=40.0, seed=0):
    """Draw a shaded film with noise upon it, (H, W) floats of 0 to 255."""
    rows, columns = np.indices(shape)
    shade = 127.5 + 70 * np.sin(rows / 11) * np.cos(columns / 17)
    return np.clip(shade + detail * np.random.default_rng(seed).uniform(-1, 1, shape), 0, 255)


@quick
@given(st.data(), st.sampled_from(TYPES))
def test_contrast_lies_on_its_scale_under_the_mask_whatever_lies_outside(data, kind):
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    film, other = data.draw(arrays(kind, shape)), data.draw(arrays(kind, shape))
    mask = data.draw(arrays(bool, shape))
    out = steps.local_contrast(film, mask)
    assert out.dtype == kind and out.shape == shape and not out[~mask].any()
    np.testing.assert_array_equal(steps.local_contrast(np.where(mask, film, other), mask), out)
    if len(np.unique(film[mask])) < 2:
        assert not out.any()


@quick
@given(st.integers(0, 9), st.integers(1, 200), st.integers(0, 15000), st.sampled_from((16, 40, 64, 128, 300)))
def test_contrast_knows_no_exposure_and_no_depth(seed, gain, offset, side):
    film = textured((side, side), seed=seed).astype(np.uint8)
    mask = np.random.default_rng(seed).random(film.shape) < 0.8
    film[0, :2], mask[0, :2] = (0, 255), True  # every level has its place in 16 bit and in 8: none is rounded
    narrow = steps.local_contrast(film, mask)
    wide = steps.local_contrast(film.astype(np.uint16) * np.uint16(gain) + np.uint16(offset), mask)
    assert np.abs(wide / 257 - narrow).max() <= 0.51


def test_contrast_of_a_deep_film_is_that_of_its_8_bit_copy():
    fine, coarse = np.rint(textured() * 16).astype(np.uint16), np.rint(textured()).astype(np.uint8)  # 12 bit, 8 bit
    mask = np.ones(coarse.shape, bool)
    wide, narrow = steps.local_contrast(fine, mask), steps.local_contrast(coarse, mask)
    apart = np.abs(wide / 257 - narrow)
    assert apart.mean() < 2 and apart.max() < 10  # a level rounded away moves a rank in its tile of 64 pixels


@pytest.mark.parametrize("side", [64, 128, 256])
@pytest.mark.parametrize("seed", range(3))
def test_contrast_falls_with_detail(side, seed):
    film = textured((side, side), seed=seed)
    mean = cv2.GaussianBlur(film, (0, 0), 4)
    softer = film.copy()
    softer[:, side // 2 :] = (mean + (film - mean) / 2)[:, side // 2 :]  # the left half keeps the range as it was
    mask = np.ones(film.shape, bool)
    before, after = (steps.local_contrast(levels.astype(np.uint8), mask).astype(int) for levels in (film, softer))
    right, left = np.s_[:, 3 * side // 4 :], np.s_[:, : side // 4]
    assert (after[right] < before[right]).mean() > 0.95
    assert np.abs(after[left] - before[left]).mean() < 2


def test_contrast_of_the_outline_is_none():
    mask = draw_hand()[1]
    film = np.where(mask, 200, 0).astype(np.uint8)
    film[mask] += np.random.default_rng(0).integers(0, 2, mask.sum(), dtype=np.uint8)
    flat = np.full_like(film, 200)
    flat[mask] = film[mask]
    np.testing.assert_array_equal(steps.local_contrast(film, mask), steps.local_contrast(flat, mask))
    shaded = np.where(mask, 40 + np.indices(mask.shape)[0] // 2, 255).astype(np.uint8)
    contrast = steps.local_contrast(shaded, mask)
    depth = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    rim, inner = contrast[mask & (depth < 3)].mean(), contrast[depth > 8].mean()
    assert rim < 1.15 * inner


def test_contrast_is_the_standard_deviation_under_the_window():
    film, mask = textured((24, 20)).astype(np.uint8), draw_hand((24, 20))[1]
    levels = steps.stretch(film, mask)
    filled = np.where(mask, levels, np.rint(levels[mask].mean())).astype(np.uint8)
    made = cv2.createCLAHE(2.0, (4, 4)).apply(filled) / 255
    rows, columns = np.indices(film.shape)
    wanted = np.zeros(film.shape)
    for row, column in np.argwhere(mask):
        weight = np.exp(-((rows - row) ** 2 + (columns - column) ** 2) / (2 * (0.1 * 24) ** 2)) * mask
        mean = np.average(made, weights=weight)
        sd = np.sqrt(np.average((made - mean) ** 2, weights=weight))
        wanted[row, column] = 255 * np.log((sd + 0.01) / 0.01) / np.log(0.51 / 0.01)
    assert np.abs(steps.local_contrast(film, mask, tiles=4, sigma=0.1) - wanted).max() <= 0.6


def test_contrast_of_a_large_film_is_that_of_a_blur_without_cells():
    film, mask = textured((400, 320)).astype(np.uint8), draw_hand((400, 320))[1]
    made = steps.local_contrast(film, mask, clip=4.0, sigma=0.04)
    sigma, levels = 0.04 * 400, steps.stretch(film, mask)
    filled = np.where(mask, levels, np.rint(levels[mask].mean())).astype(np.uint8)
    levels = cv2.createCLAHE(4.0, (8, 8)).apply(filled) / 255
    weight, first, second = (
        cv2.GaussianBlur(mask * field, (0, 0), sigma, borderType=cv2.BORDER_CONSTANT)[mask]
        for field in (np.ones(film.shape), levels, levels**2)
    )
    sd = np.sqrt(second / weight - (first / weight) ** 2)
    assert np.abs(made[mask] - 255 * np.log1p(sd / 0.01) / np.log(51)).max() < 2


@quick
@given(st.data(), st.sampled_from(TYPES), st.integers(1, 9))
def test_clahe_spans_the_range_under_the_mask_whatever_lies_outside(data, kind, tiles):
    shape = data.draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    film, other = data.draw(arrays(kind, shape)), data.draw(arrays(kind, shape))
    mask = data.draw(arrays(bool, shape))
    out = steps.clahe(film, mask, tiles=tiles)
    assert out.dtype == kind and out.shape == shape and not out[~mask].any()
    np.testing.assert_array_equal(steps.clahe(np.where(mask, film, other), mask, tiles=tiles), out)
    if len(np.unique(film[mask])) > 1:
        assert out[mask].min() == 0 and out[mask].max() == np.iinfo(kind).max
        assert not out[mask & (film == film[mask].min())].any()
    else:
        assert not out.any()


@quick
@given(st.data(), st.sampled_from(TYPES))
def test_clahe_of_one_tile_is_monotone(data, kind):
    film = data.draw(arrays(kind, st.tuples(st.integers(1, 30), st.integers(1, 30))))
    mask = data.draw(arrays(bool, film.shape))
    before, after = film[mask].astype(int), steps.clahe(film, mask, tiles=1)[mask].astype(int)
    order = np.argsort(before, kind="stable")
    assert (np.diff(after[order]) >= 0).all()
    assert (np.diff(after[order])[np.diff(before[order]) == 0] == 0).all()


@quick
@given(st.integers(0, 9), st.integers(1, 250), st.integers(0, 1700), st.sampled_from(((16, 40), (64, 64), (150, 90))))
def test_clahe_knows_no_exposure_and_no_depth(seed, gain, offset, shape):
    film, mask = textured(shape, seed=seed).astype(np.uint8), draw_hand(shape)[1]
    shallow = steps.clahe(film, mask)
    wide = steps.clahe(film.astype(np.uint16), mask)
    np.testing.assert_array_equal(steps.clahe(film.astype(np.uint16) * gain + offset, mask), wide)
    np.testing.assert_allclose(wide / 257, shallow, atol=0.51)
    np.testing.assert_array_equal(steps.clahe(film // 2, mask), steps.clahe(film // 2 + 100, mask))


@pytest.mark.parametrize("shape, tiles", [((512, 512), 8), ((256, 320), 4), ((200, 100), 1)])
def test_clahe_of_8_bit_without_a_mask_is_nearly_opencv(shape, tiles):
    film = cv2.GaussianBlur(textured(shape, detail=60), (0, 0), 1.5).astype(np.uint8)
    film[0, :2] = 0, 255
    ours = steps.clahe(film, np.ones(film.shape, bool), tiles=tiles).astype(int)
    # OpenCV reads a curve at the end of a level's bin, and spreads the excess in whole pixels, the darkest bins first.
    above = cv2.createCLAHE(3.0, (tiles, tiles)).apply(film) - ours
    assert 0 < above.mean() < 3 and above.std() < 1.5 and above.min() >= -2 and above.max() <= 7


def test_clahe_is_limited():
    film = (100 + np.random.default_rng(0).integers(0, 4, (64, 64))).astype(np.uint16)
    film[-1, -1] = 1000  # and noise takes a three hundredth of the range
    ones, noise = np.ones(film.shape, bool), np.s_[:-1, :-1]
    rises = {clip: np.ptp(steps.clahe(film, ones, clip=clip, tiles=1)[noise]) for clip in (1.0, 3.0, 256.0)}
    assert all(rises[clip] <= (clip + 1) * 65535 / 300 + 1 for clip in (1.0, 3.0))  # 1 from the excess spread
    assert rises[1.0] < 0.6 * rises[3.0] and rises[256.0] > 30000


def test_clahe_of_a_16_bit_film_takes_no_longer_than_of_8_bit():
    """Levels are counted in 256 bins at any depth; a bin a level would be 256 times as many. Measured 1.2 times."""
    shallow = textured((512, 512)).astype(np.uint8)
    films = shallow, shallow.astype(np.uint16) * 257
    mask, seconds = np.ones(shallow.shape, bool), ([], [])
    for _ in range(9):  # by turns and the best of each, of the process's time: the machine may be busy
        for film, spent in zip(films, seconds, strict=True):
            start = time.process_time()
            steps.clahe(film, mask)
            spent.append(time.process_time() - start)
    assert min(seconds[1]) < 3 * min(seconds[0])


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (3, 2), (7, 7), (2, 300)])
@pytest.mark.parametrize("kind", TYPES)
def test_contrast_of_films_smaller_than_its_tiles(shape, kind):
    film = np.random.default_rng(0).integers(0, np.iinfo(kind).max, shape).astype(kind)
    for mask in (np.ones(shape, bool), film > film.mean(), np.zeros(shape, bool)):
        assert not steps.local_contrast(film, mask)[~mask].any()


def test_16_bit_keeps_more_than_256_levels():
    film = np.random.default_rng(0).integers(0, 4096, (128, 128)).astype(np.uint16)
    mask = np.ones(film.shape, bool)
    for made in (
        steps.stretch(film, mask),
        steps.equalize(film, mask),
        steps.local_contrast(film, mask),
        steps.clahe(film, mask),
        steps.invert(film),
        steps.fit(film, mask, 100)[0],
    ):
        assert made.dtype == np.uint16 and len(np.unique(made)) > 1000


# Degenerate


@pytest.mark.parametrize("film", FLAT, ids=lambda film: f"{film.shape}-{film.max()}")
def test_flat_films_are_valid(film):
    mask = np.ones(film.shape, bool)
    assert not steps.is_inverted(film)
    assert steps.find_carrier(film) is None and steps.find_hand(film) is None and steps.foreground(film) is None
    assert steps.foreground(film, method="none").all()
    for nothing in (mask, ~mask):
        assert not steps.equalize(film, nothing).any() and not steps.stretch(film, nothing).any()
        assert not steps.local_contrast(film, nothing).any() and not steps.clahe(film, nothing).any()
    np.testing.assert_array_equal(steps.invert(film), film)


@quick
@given(arrays(np.uint8, st.tuples(st.integers(16, 20), st.integers(16, 40)), elements=st.sampled_from((0, 3, 90, 255))))
def test_no_small_film_is_too_odd(film):
    carrier = steps.find_carrier(film)
    steps.is_inverted(film), steps.find_field(film)
    if carrier is not None:
        film = steps.rectify(film, carrier)[0]
    box = steps.find_hand(film)
    if box is not None:
        assert 0 <= box[0] < box[2] <= film.shape[1] and 0 <= box[1] < box[3] <= film.shape[0]
    mask = steps.foreground(film)
    assert mask is None or 0 < mask.mean() < 1


def test_steps_leave_their_input_alone():
    film, mask = draw_hand()
    film.flags.writeable = mask.flags.writeable = False
    carrier = np.array([[9.5, 19.5], [99.5, 29.5], [89.5, 119.5], [-0.5, 109.5]], np.float32)
    steps.find_carrier(film), steps.is_inverted(film), steps.invert(film), steps.rectify(film, carrier)
    steps.find_hand(film), steps.foreground(film), steps.fit(film, mask, 64)
    steps.equalize(film, mask), steps.stretch(film, mask), steps.local_contrast(film, mask)
    steps.clahe(film, mask)
    steps.warp_mask(mask, np.eye(2, 3), (9, 9))


def test_a_reduced_copy_is_made_once_for_all_steps(monkeypatch):
    """Of the film itself at 256 pixels: polarity, carrier and hand look at the same one."""
    film, made = draw_hand((600, 400), noise=5)[0], []

    def counted(pixels, side=reduction.REDUCED):
        made.append((pixels.ctypes.data, pixels.shape, side))
        return reduced(pixels, side)

    reduced = reduction.reduced
    monkeypatch.setattr(reduction, "reduced", counted)
    Recipe(size=64, invert="auto", mask="none").apply(Film(film, 8), variants=("crop",))
    assert len(made) == len(set(made)) and sum(side == reduction.REDUCED for *_, side in made) == 1
