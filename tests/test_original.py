"""The original's preprocessing rules do what is told of them, slips included, and are measured in the film's pixels."""

import cv2
import numpy as np
import pytest

from benchmarks import original, truth
from preprocessing.phantom import FilmPlan, draw_film
from preprocessing.recipe import Recipe


def plate(shape: tuple[int, int], *boxes: tuple[int, int, int, int], level: int = 120) -> original.Film:
    film = np.full(shape, 5, np.uint8)
    for x0, y0, x1, y1 in boxes:
        film[y0:y1, x0:x1] = level
    return film


def test_the_carrier_is_the_first_quadrilateral_not_the_largest() -> None:
    film = plate((1100, 700), (50, 50, 400, 400), (50, 480, 650, 1050))  # 122,500 and 342,000 pixels
    sizes = []
    for shown in (film, film[::-1].copy()):
        found = original.find_carrier(shown)
        assert found is not None
        first = next(original.quadrilaterals(shown))
        box = cv2.boundingRect(first)
        np.testing.assert_allclose(np.ptp(found, axis=0), [box[2] - 1, box[3] - 1], atol=1)
        sizes.append(cv2.contourArea(found))
    assert max(sizes) > 2 * min(sizes)  # where they lie decides, not how large they are


@pytest.mark.parametrize(("width", "height", "found"), [(400, 240, False), (400, 262, True), (190, 500, False)])
def test_a_carrier_has_a_least_area(width: int, height: int, found: bool) -> None:
    corners = original.find_carrier(plate((512, 512), (5, 5, 5 + width, 5 + height)))
    assert (corners is not None) is found
    if corners is not None:
        outline = [[5, 5], [5 + width, 5], [5 + width, 5 + height], [5, 5 + height]]
        np.testing.assert_allclose(corners, outline, atol=4)


@pytest.mark.parametrize(("lean", "found"), [(120, True), (320, False)])  # cosines of .29 and .62
def test_a_carrier_has_right_angles_nearly(lean: int, found: bool) -> None:
    film = np.zeros((512, 900), np.uint8)
    cv2.fillPoly(film, [np.array([[40, 50], [440, 50], [440 + lean, 450], [40 + lean, 450]], np.int32)], 120)
    assert (original.find_carrier(film) is not None) is found


def test_a_wide_carrier_is_turned_by_270_degrees() -> None:
    film = plate((512, 700), (40, 60, 640, 400))
    film[70:80, 60:70] = 250  # near the top left corner
    corners = original.find_carrier(film)
    assert corners is not None
    crop, matrix = original.cut_carrier(film, corners)
    assert abs(crop.shape[0] - 600) <= 5 and abs(crop.shape[1] - 340) <= 5
    x, y, _ = matrix @ (64.5, 74.5, 1)
    rows, columns = np.nonzero(crop > 200)
    np.testing.assert_allclose((x, y), (columns.mean(), rows.mean()), atol=0.6)
    assert x > crop.shape[1] / 2 and y < crop.shape[0] / 2  # 270 degrees counter-clockwise: left top is now right top
    narrow, _ = original.cut_carrier(film[:, :300], np.array([[40, 60], [239, 60], [239, 399], [40, 399]], np.float32))
    assert narrow.shape == (340, 200) and narrow[15, 25] == 250  # as it was


def test_the_end_of_a_hand_crop_is_wrong_by_its_start() -> None:
    assert original.hand_crop((10, 20, 60, 80), (200, 150)) == (10, 20, 70, 100)
    assert original.hand_crop((40, 90, 120, 180), (200, 150)) == (40, 90, 150, 200)  # clipped to the film
    assert original.hand_crop((0, 0, 60, 80), (200, 150)) == (0, 0, 60, 80)  # nothing to add


def test_inversion_asks_the_mean_and_the_corners() -> None:
    corners, middle = np.zeros((300, 300), np.uint8), np.full((300, 300), 200, np.uint8)
    for rows in (slice(50), slice(-50, None)):
        for columns in (slice(50), slice(-50, None)):
            corners[rows, columns], middle[rows, columns] = 255, 0
    assert original.is_inverted(corners) and original.is_inverted(corners, corners_only=True)
    assert original.is_inverted(middle) and not original.is_inverted(middle, corners_only=True)  # a tight, bright hand
    dark = original.invert(middle)
    assert int(dark[150, 150]) == 55 and original.is_inverted(dark)  # a film and its negative, both taken for inverted
    corners[0, 0], corners[:50, :50] = 0, 0
    assert original.is_inverted(corners)  # three of four: a mean of 191
    corners[:50] = 0
    assert not original.is_inverted(corners)  # two of four: exactly 127.5 is not more


def test_grabcut_finds_nothing_beside_its_rectangle() -> None:
    film = np.random.default_rng(0).integers(0, 40, (120, 100)).astype(np.uint8)
    film[40:80, 35:65] = 220
    film[100:, :20] = 220
    mask = original.grabcut_demo(film, rectangle=None)
    assert mask[45:75, 40:60].all() and not mask[95:].any() and mask.sum() < 1.2 * 40 * 30
    np.testing.assert_array_equal(mask, original.grabcut_demo(film, rectangle=None))
    film[40:80, 75:] = 220  # runs across the rectangle's right side
    assert not original.grabcut_demo(film, rectangle=None)[:, 75:].any()
    wide = np.zeros((600, 600), np.uint8)
    wide[100:500, 200:500] = 220
    assert not original.grabcut_demo(wide, iterations=1)[25 + 290 :].any()  # the fixed rectangle ends at row 315


def test_the_otsu_filter_keeps_what_is_bright_and_broad() -> None:
    film = np.zeros((200, 200), np.uint8)
    film[60:140, 60:140], film[20:26] = 150, 250
    mask = original.otsu_filter(film)
    assert mask[70:130, 70:130].all() and not mask[20:26].any()  # 6 pixels are lost in a median of 19


def test_a_found_mask_comes_back_to_the_film() -> None:
    film = plate((512, 700), (40, 60, 640, 400))
    film[100:300, 200:450] = 250
    corners = original.find_carrier(film)
    assert corners is not None
    crop, matrix = original.cut_carrier(film, corners)  # turned, too
    back = truth.laid_back(np.ones(crop.shape, np.bool_), matrix, (512, 700))
    assert truth.iou(back, film > 60) > 0.97
    assert truth.iou(truth.laid_back(crop > 180, matrix, (512, 700)), film > 180) > 0.99
    assert truth.iou(truth.laid_back(film > 180, np.eye(2, 3), (512, 700)), film > 180) == 1


def test_differences_are_drawn_by_patient() -> None:
    a, b = [1.0, 1.0, 1.0, 0.0], [0.0, 0.0, 0.0, 0.0]
    alone = truth.difference(a, b, [1, 2, 3, 4])
    together = truth.difference(a, b, [1, 1, 1, 2])
    assert alone["difference"] == together["difference"] == 0.75
    assert together["interval"] == [0.0, 1.0] and alone["interval"][0] > 0
    assert truth.difference(b, a, [1, 2, 3, 4])["interval"] == [-v for v in alone["interval"][::-1]]


def test_both_sides_are_measured_on_the_same_film() -> None:
    film = draw_film(FilmPlan(patient=1, study=1, image=1), size=160)  # too small for the original's carrier
    rules = truth.theirs(film)
    mine = truth.ours(film, Recipe(size=160), None, None)
    assert rules[truth.CROP]["carrier_found"] == 0 and rules[truth.CROP]["hand_kept"] == 1
    assert rules[truth.CROP]["box_iou"] == pytest.approx(
        truth.boxed(truth.hand_boxes(film), film.hand.shape).mean(), abs=1e-9
    )
    assert mine["box_iou"] > rules[truth.CROP]["box_iou"] and mine["mask_iou"] > 0.8
    assert set(truth.COLUMNS) <= set(mine)
    assert all(set(rule) <= {*truth.COLUMNS, "carrier_found"} for rule in rules.values())
