"""Which way round a film is, and its exposed field, on drawn films."""

import cv2
import numpy as np
import pytest

from preprocessing import steps
from preprocessing.steps import polarity
from tests.test_steps import draw_hand


def draw_chest(shape=(224, 224), *, seed=0):
    """Draw a trunk that fills the frame: dark lungs beside a bright spine, ribs across, a bright abdomen."""
    height, width = shape
    rows, columns = np.indices(shape)
    x, y = columns / width - 0.5, rows / height - 0.45
    film = np.full(shape, 120.0) - 60 * (np.abs(x) > 0.47)
    lungs = sum(((x - side * 0.22) / 0.15) ** 2 + (y / 0.33) ** 2 < 1 for side in (-1, 1))
    film -= 70 * lungs
    film += 22 * ((rows + 30 * np.abs(x)) % 22 < 3) + 70 * np.exp(-((x / 0.06) ** 2)) + 60 * (y > 0.36)
    rng = np.random.default_rng(seed)
    film += 40 * cv2.GaussianBlur(rng.normal(0, 1, shape), (0, 0), 3) * 6 + rng.normal(0, 3, shape)
    return np.clip(cv2.GaussianBlur(film, (0, 0), 1), 0, 255).astype(np.uint8)


def shaded(shape=(224, 200)):
    """Draw a film that fills its frame, levels 50 to 190."""
    rows, columns = np.indices(shape)
    return (120 + 35 * np.sin((rows + columns) / 9) + 35 * np.cos((rows - columns) / 13)).astype(np.uint8)


DRAWN = {"hand": lambda: draw_hand()[0], "small hand": lambda: draw_hand((64, 48))[0], "chest": draw_chest}


@pytest.mark.parametrize("name", DRAWN)
def test_each_piece_of_evidence_changes_its_sign_with_the_film(name):
    film = DRAWN[name]()
    right, wrong = polarity.evidence(film), polarity.evidence(255 - film)
    assert set(right) == set(wrong) == set(polarity.WEIGHTS)
    for key, value in right.items():
        assert wrong[key] == pytest.approx(-value, abs=0.05), key
    assert steps.polarity_odds(film) > 1 and steps.polarity_odds(255 - film) < -1


@pytest.mark.parametrize("name", DRAWN)
@pytest.mark.parametrize("gain, offset", [(0.5, 0), (0.5, 100), (16, 0), (100, 3000), (257, 0)])
def test_polarity_knows_no_exposure_and_no_depth(name, gain, offset):
    film = DRAWN[name]()
    other = (film.astype(float) * gain + offset).astype(np.uint8 if gain <= 1 else np.uint16)
    assert steps.polarity_odds(other) == pytest.approx(steps.polarity_odds(film), abs=0.6)
    assert not steps.is_inverted(other) and steps.is_inverted(steps.invert(other))


@pytest.mark.parametrize("film", [np.full((40, 30), level, np.uint8) for level in (0, 90, 255)])
def test_a_flat_film_has_no_polarity(film):
    assert steps.polarity_odds(film) == 0 and set(polarity.evidence(film).values()) == {0.0}


def test_what_lies_beyond_the_exposed_field_has_no_say():
    hand, _ = draw_hand()
    exposed = np.zeros((316, 292), bool)
    exposed[30:286, 50:242] = True
    odds = set()
    for rim in (0, 255, 128):
        film = np.full(exposed.shape, rim, np.uint8)
        film[30:286, 50:242] = hand
        odds.add(steps.polarity_odds(film, exposed=exposed))
    assert odds == {steps.polarity_odds(hand)}
    assert steps.polarity_odds(hand, exposed=np.zeros(hand.shape, bool)) == steps.polarity_odds(
        hand
    )  # no field is no help


# The exposed field


@pytest.mark.parametrize("side", range(4))
@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("deep", [False, True])
def test_a_rim_at_any_side_is_beyond_the_field(side, level, deep):
    film = np.rot90(shaded(), side).copy()
    film[:24] = level
    film = np.rot90(film, -side)
    if deep:
        film = film.astype(np.uint16) * 16
    field = steps.find_field(np.ascontiguousarray(film))
    assert field is not None and field.shape == film.shape and field.dtype == bool
    turned = np.rot90(field, side)
    assert not turned[:24].any() and turned[28:].all()


def test_a_slanting_rim_and_a_frame_are_beyond_the_field():
    film = shaded()
    rows, columns = np.indices(film.shape)
    beyond = rows < 20 + 0.08 * columns
    film[beyond] = 255
    field = steps.find_field(film)
    assert field is not None and (field ^ ~beyond).mean() < 0.02 and (field & beyond).sum() <= film.shape[1]
    framed = cv2.copyMakeBorder(shaded(), 20, 12, 30, 16, cv2.BORDER_CONSTANT, value=0)
    inner = np.zeros(framed.shape, bool)
    inner[20:-12, 30:-16] = True
    field = steps.find_field(framed)
    assert field is not None and not (field & ~inner).any() and (inner & ~field).mean() < 0.03


@pytest.mark.parametrize("text", ["R", "L"])
def test_a_marker_on_the_rim_does_not_hide_it(text):
    film = shaded()
    film[:40] = 0
    cv2.putText(film, text, (10, 30), cv2.FONT_HERSHEY_SIMPLEX, 0.5, 255, 1)
    field = steps.find_field(film)
    assert field is not None and not field[:40].any()


def test_air_and_limbs_at_a_side_are_no_rim():
    for background in (0, 30):
        for film in (draw_hand(background=background)[0], draw_hand((320, 200), background=background, noise=0)[0]):
            assert steps.find_field(film) is None
    assert steps.find_field(draw_chest()) is None
    saturated = draw_hand(soft=255, bone=255, noise=0)[0]
    assert steps.find_field(saturated) is None and steps.find_field(np.rot90(saturated).copy()) is None


def test_a_film_that_is_nearly_all_rim_has_no_field():
    film = np.zeros((200, 200), np.uint8)
    film[90:110, 90:110] = 120
    assert steps.find_field(film) is None
