"""The recipe: settings, and what it makes of drawn films."""

import json
import warnings

import cv2
import numpy as np
import pytest

from preprocessing import InputError, recipe, steps
from preprocessing.cache.schema import split_variant
from preprocessing.readers import Film
from preprocessing.recipe import STAGES, VARIANTS, Localization, Nets, Recipe
from tests.test_polarity import shaded


def draw(*, angle=8.0, background=60, kind=np.uint8, seed=0):
    """Draw a fork-like hand on a turned plate: Film, hand (H, W) bool, lesion (H, W) bool."""
    plate, hand, lesion = (np.zeros((300, 220), np.uint8) for _ in range(3))
    plate[:] = background
    for x in (60, 95, 130, 165):
        for canvas, level in ((plate, 150), (hand, 1)):
            cv2.line(canvas, (x, 60), (x, 200), level, 18)
        cv2.line(plate, (x, 60), (x, 190), 220, 7)
    for canvas, level in ((plate, 180), (hand, 1)):
        cv2.rectangle(canvas, (52, 150), (173, 230), level, -1)
        cv2.rectangle(canvas, (80, 230), (145, 299), level, -1)
    cv2.circle(plate, (110, 190), 12, 245, -1)
    cv2.circle(lesion, (110, 190), 12, 1, -1)
    grain = np.random.default_rng(seed).normal(0, 2, plate.shape)
    plate = np.clip(plate + grain, 0, 255).astype(np.uint8)
    turn = cv2.getRotationMatrix2D((110, 150), angle, 1.0)
    turn[:, 2] += 70, 40
    pixels, hand, lesion = (cv2.warpAffine(canvas, turn, (360, 380)) for canvas in (plate, hand, lesion))
    if kind == np.uint16:
        grain = np.random.default_rng(seed).integers(0, 16, pixels.shape)
        pixels = pixels.astype(np.uint16) * 16 + grain.astype(np.uint16)
    return Film(pixels=pixels, depth=8 if kind == np.uint8 else 12), hand > 0, lesion > 0


def apply(settings, film, **options):
    """What becomes of a film that shows one hand."""
    (made,) = settings.apply(film, **options)
    return made


def iou(one, other):
    return (one & other).sum() / (one | other).sum()


def same(one, other):
    return all(np.array_equal(one.films[name], other.films[name]) for name in one.films)


def test_names_stand_for_settings():
    assert Recipe().name == "limb" and Recipe().size == 128
    plain = Recipe(name="plain", size=64)
    assert (plain.invert, plain.carrier, plain.hand, plain.mask) == ("auto", "none", "none", "none")
    assert Recipe(name="plain", mask="otsu").mask == "otsu"


@pytest.mark.parametrize(
    "settings, says",
    [
        ({"name": "hnd"}, "no recipe 'hnd'; there are: auto, limb, plain"),
        ({"name": "hand"}, "no recipe 'hand'; there are: auto, limb, plain; `hand` is called `limb` now"),
        (
            {"name": "auto"},
            "recipe 'auto' stands for the one that suits the films; choose it first, or name limb or plain",
        ),
        ({"sise": 64}, "no recipe setting 'sise'; there are: name, size, "),
        ({"size": 8}, "'size' is 8"),
        ({"size": 4096}, "'size' is 4096"),
        ({"mask": "unet"}, "'mask' is 'unet'"),
        ({"margin": float("nan")}, "'margin' is nan"),
        ({"margin": -1}, "'margin' is -1"),
    ],
)
def test_wrong_settings_say_what_there_is(settings, says):
    with pytest.raises(InputError) as caught:
        Recipe(**settings)
    assert says in str(caught.value) and "\n" not in str(caught.value)


def test_json_round_trip():
    for made in (Recipe(), Recipe(name="plain", size=64), Recipe(margin=0.25, mask="otsu")):
        assert Recipe.from_json(made.to_json()) == made
        assert Recipe.from_json(made.to_json()).digest() == made.digest()
    assert list(json.loads(Recipe().to_json())) == sorted(Recipe.model_fields)
    for text in ("{", "[]", '{"name": "hnd"}', '{"name": ["hand"]}'):
        with pytest.raises(InputError):
            Recipe.from_json(text)


def test_digest_changes_with_every_setting(monkeypatch):
    others = {
        "size": 64,
        "window": "voi",
        "invert": "never",
        "carrier": "none",
        "hand": "none",
        "margin": 0.1,
        "mask": "otsu",
    }
    assert set(others) | {"name"} == set(Recipe.model_fields)
    digests = {Recipe(**{key: value}).digest() for key, value in others.items()}
    digests |= {Recipe().digest(), Recipe(name="plain").digest()}
    assert len(digests) == len(others) + 2 and all(len(digest) == 12 for digest in digests)
    monkeypatch.setattr(recipe, "RECIPE_VERSION", recipe.RECIPE_VERSION + 1)
    assert Recipe().digest() not in digests


def test_recipes_do_not_change():
    with pytest.raises(Exception, match="frozen"):
        Recipe().size = 64


@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
@pytest.mark.parametrize("angle", [0.0, 8.0, -20.0])
def test_hand_recipe_finds_carrier_hand_and_foreground(kind, angle):
    film, hand, lesion = draw(angle=angle, kind=kind)
    made = apply(Recipe(size=128), film, anomaly=lesion)
    assert made.fallbacks == () and not made.inverted and made.carrier is not None and made.box is not None
    assert set(made.films) == set(VARIANTS) and set(made.masks) == set(STAGES)
    for name, array in made.films.items():
        stage, levels = split_variant(name)
        mask = made.masks[stage]
        assert array.shape == mask.shape == (128, 128) and array.dtype == kind and mask.dtype == bool
        assert array[mask].any() and not array[~mask].any()
        assert levels == "contrast" or (array[mask].min() == 0 and array[mask].max() == np.iinfo(kind).max)
    for stage in ("raw", "crop"):
        scale = np.linalg.norm(made.matrices[stage][:, 0])
        assert made.anomaly[stage].sum() == pytest.approx(lesion.sum() * scale**2, rel=0.15)
        landed = np.argwhere(made.anomaly[stage])[:, ::-1].mean(axis=0)
        expected = made.matrices[stage] @ (*np.argwhere(lesion)[:, ::-1].mean(axis=0), 1)
        np.testing.assert_allclose(landed, expected, atol=0.5)
    truth = steps.warp_mask(hand, made.matrices["crop"], (128, 128))
    assert iou(made.masks["full"], truth) > 0.85
    assert not (made.masks["full"] & ~made.masks["crop"]).any()


def test_matrices_say_where_a_bright_dot_lands():
    film, _, lesion = draw(angle=-14)
    made = apply(Recipe(size=200), film)
    x, y = np.argwhere(lesion)[:, ::-1].mean(axis=0)
    for stage in ("raw", "crop"):
        column, row = np.rint(made.matrices[stage] @ (x, y, 1)).astype(int)
        spot = made.films[stage][row - 2 : row + 3, column - 2 : column + 3]
        assert spot.min() > np.percentile(made.films[stage][made.masks[stage]], 90)


def test_inverted_film_comes_out_like_the_upright_one():
    film, _, _ = draw()
    turned = Film(pixels=255 - film.pixels, depth=8)
    upright, made = apply(Recipe(size=64), film), apply(Recipe(size=64), turned)
    assert made.inverted and not upright.inverted
    assert iou(made.masks["full"], upright.masks["full"]) > 0.95
    assert np.abs(made.films["crop"].astype(int) - upright.films["crop"]).mean() < 6
    assert not apply(Recipe(size=64, invert="never"), turned).inverted


def test_equalised_variants_have_an_even_histogram_under_the_mask():
    film, _, _ = draw(kind=np.uint16)
    made = apply(Recipe(size=256), film)
    for stage in STAGES:
        inside = made.films[f"{stage}-he"][made.masks[stage]] / 65535
        assert np.quantile(inside, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.03)
        plain = made.films[stage][made.masks[stage]]
        order = np.argsort(plain, kind="stable")
        assert (np.diff(inside[order]) >= 0).all()


def test_contrast_is_that_of_the_film_on_one_scale():
    film, _, _ = draw()
    made = apply(Recipe(size=96), film)
    for stage in STAGES:
        found = steps.local_contrast(made.films[stage], made.masks[stage])
        np.testing.assert_array_equal(made.films[f"{stage}-contrast"], found)
    veiled = Film(pixels=film.pixels // 2 + 60, depth=8)  # half the range, brighter: the exposure is no contrast
    again = apply(Recipe(size=96), veiled, variants=("raw-contrast",)).films["raw-contrast"]
    assert np.abs(again.astype(int) - made.films["raw-contrast"]).mean() < 8


def test_variants_keep_their_order():
    assert VARIANTS[:6] == ("raw", "raw-he", "crop", "crop-he", "full", "full-he")
    assert VARIANTS[6:9] == ("raw-contrast", "crop-contrast", "full-contrast")
    assert VARIANTS[9:] == ("raw-clahe", "crop-clahe", "full-clahe")
    assert {split_variant(name) for name in VARIANTS} == {(s, levels) for s in STAGES for levels in recipe.SPREADS}


def test_16_bit_stays_16_bit_and_types_can_be_chosen():
    film, _, _ = draw(kind=np.uint16)
    wide = apply(Recipe(size=256), film)
    assert all(len(np.unique(array)) > 1000 for array in wide.films.values())
    narrow = apply(Recipe(size=256), film, dtype=np.uint8)
    for name, array in narrow.films.items():
        assert array.dtype == np.uint8 and (array.max() == 255 or name.endswith("-contrast"))
        assert np.abs(array.astype(int) - wide.films[name] / 257).max() <= 0.51
    grown = apply(Recipe(size=100), draw()[0], dtype="uint16")
    assert all(array.dtype == np.uint16 for array in grown.films.values())
    assert all(array.max() == 65535 for name, array in grown.films.items() if not name.endswith("-contrast"))
    assert len(np.unique(grown.films["raw"])) > 300  # averaged in 16 bit, not in 8


def test_variants_agree_whichever_are_asked_for():
    film, _, _ = draw()
    every = apply(Recipe(size=96), film)
    for name in VARIANTS:
        alone = apply(Recipe(size=96), film, variants=(name,))
        stage, _ = split_variant(name)
        assert list(alone.films) == [name] and list(alone.masks) == [stage]
        np.testing.assert_array_equal(alone.films[name], every.films[name])
        np.testing.assert_array_equal(alone.masks[stage], every.masks[stage])
        for key, matrix in every.matrices.items():
            np.testing.assert_array_equal(alone.matrices[key], matrix)


def test_the_same_film_gives_the_same_bytes_whatever_came_before():
    film, _, _ = draw(seed=1)
    first = apply(Recipe(size=64), film)
    for seed in (2, 3):
        apply(Recipe(size=64), draw(seed=seed, angle=seed)[0])
    cv2.setRNGSeed(99)
    again = apply(Recipe(size=64), film)
    assert same(first, again) and all(np.array_equal(first.masks[stage], again.masks[stage]) for stage in STAGES)


def test_plain_recipe_keeps_the_whole_film():
    film = Film(pixels=shaded((380, 200)), depth=8, polarity_known=True)
    made = apply(Recipe(name="plain", size=64), film)
    assert not made.inverted and made.carrier is None and made.box is None and made.fallbacks == ()
    assert made.masks["raw"].sum() == 64 * round(64 * 200 / 380)
    for stage in ("crop", "full"):
        np.testing.assert_array_equal(made.films[stage], made.films["raw"])
        np.testing.assert_array_equal(made.films[f"{stage}-he"], made.films["raw-he"])
        np.testing.assert_array_equal(made.films[f"{stage}-contrast"], made.films["raw-contrast"])
        np.testing.assert_array_equal(made.masks[stage], made.masks["raw"])
    np.testing.assert_array_equal(made.matrices["raw"], made.matrices["crop"])


def test_a_given_box_and_mask_replace_the_steps(monkeypatch):
    for name in ("find_carrier", "find_hand", "foreground"):
        monkeypatch.setattr(steps, name, None)  # asking any of them would fail
    film, hand, _ = draw()
    made = apply(Recipe(size=100), film, box=(100.0, 50.0, 300.0, 250.0), mask=hand)
    assert made.box == (100, 50, 300, 250) and made.carrier is None and made.fallbacks == ()
    np.testing.assert_array_equal(made.masks["full"], steps.fit_mask(hand[50:250, 100:300], 100))
    np.testing.assert_array_equal(made.matrices["crop"], [[0.5, 0, -50.25], [0, 0.5, -25.25]])
    with pytest.raises(InputError, match="lies beside the film of 360 x 380"):
        apply(Recipe(), film, box=(400, 10, 500, 20))


def pair():
    """Draw two hands side by side, the right one higher, on a film that has no carrier."""
    pixels = np.random.default_rng(0).normal(40, 2, (300, 400)).clip(0, 255).astype(np.uint8)
    for x, y in ((70, 60), (250, 20)):
        for finger in range(4):
            cv2.rectangle(pixels, (x + 22 * finger, y), (x + 22 * finger + 10, y + 120), 150, -1)
        cv2.rectangle(pixels, (x, y + 100), (x + 76, y + 200), 180 if x < 200 else 200, -1)
    return pixels


LEFT, RIGHT = ("left", (250, 20, 327, 221)), ("right", (70, 60, 147, 261))  # the second lies left on the film


def finding(*hands, markers=(), turns=0):
    """A localizer that finds the same on every film."""
    return lambda film: Localization(hands, markers, turns)


def test_trained_nets_are_asked_first_and_fall_back_by_name():
    film, _, _ = draw()
    shapes = []

    def segment(crop):
        shapes.append(crop.shape)
        return np.arange(crop.size).reshape(crop.shape) < crop.size / 2

    localizer = finding(("left", (10.2, 20.0, 90.0, 1000.0)))
    made = apply(Recipe(size=64, margin=0), film, nets=Nets(localizer=localizer, segmenter=segment))
    assert made.fallbacks == () and made.box[:3] == (10, 20, 90) and shapes == [(made.box[3] - 20, 80)]
    assert (made.side, made.hand, made.turns, made.markers) == ("left", 0, 0, 0)
    assert made.masks["full"].sum() == pytest.approx(made.masks["crop"].sum() / 2, rel=0.1)
    classical = apply(Recipe(size=64), film)
    assert (classical.side, classical.hand, classical.turns, classical.markers) == ("", 0, 0, 0)
    beside = [finding(("right", box), turns=1) for box in ((5000.0, 0.0, 6000.0, 10.0), (float("nan"),) * 4)]
    for localizer in (*beside, finding(), lambda film: None):
        made = apply(Recipe(size=64), film, nets=Nets(localizer=localizer, segmenter=lambda crop: None))
        assert made.fallbacks == ("localizer", "segmenter") and same(made, classical)
        assert (made.side, made.turns) == ("", 0)


def test_a_localizers_box_is_widened_by_the_margin():
    film = Film(pixels=pair(), depth=8)
    localizer = finding(("", (40.0, 60.0, 90.0, 160.0)))
    for margin, box in ((0, (40, 60, 90, 160)), (0.1, (30, 50, 100, 170)), (1, (0, 0, 190, 260))):
        assert apply(Recipe(carrier="none", margin=margin), film, nets=Nets(localizer=localizer)).box == box


def test_a_localizer_sees_the_upright_carrier_and_is_not_asked_for_raw_films():
    film, _, _ = draw(angle=10)
    seen = []
    for pixels in (film.pixels, 255 - film.pixels):
        apply(Recipe(size=64), Film(pixels=pixels, depth=8), nets=Nets(localizer=seen.append))
    upright, _ = steps.rectify(film.pixels, apply(Recipe(size=64), film).carrier)
    np.testing.assert_array_equal(seen[0], upright)
    assert np.median(seen[1]) == pytest.approx(np.median(upright), abs=9)  # inverted, then shown
    alone = apply(Recipe(size=64), film, variants=("raw", "raw-he"))
    made = apply(Recipe(size=64), film, nets=Nets(localizer=seen.append), variants=("raw", "raw-he"))
    assert len(seen) == 2 and same(made, alone) and made.fallbacks == ()


@pytest.mark.parametrize("turns", [0, 1, 2, 3, 5])
def test_a_film_is_turned_and_truth_and_matrices_follow(turns):
    pixels, truth, number = pair(), np.zeros((300, 400), bool), np.arange(120_000).reshape(300, 400)
    truth[150:170, 270:290] = True
    recipe = Recipe(size=100, carrier="none")
    upright = apply(recipe, Film(pixels=pixels, depth=8), nets=Nets(localizer=finding(LEFT)), anomaly=truth)
    pixels, truth, turned = (np.ascontiguousarray(np.rot90(array, -turns)) for array in (pixels, truth, number))
    made = apply(recipe, Film(pixels=pixels, depth=8), nets=Nets(localizer=finding(LEFT, turns=turns)), anomaly=truth)
    assert made.turns == turns % 4 and made.side == "left"
    assert made.box == upright.box and made.frame == upright.frame
    for name in made.films:
        if not name.startswith("raw"):
            np.testing.assert_array_equal(made.films[name], upright.films[name])
    assert upright.anomaly["crop"].any()
    np.testing.assert_array_equal(made.anomaly["crop"], upright.anomaly["crop"])
    plain = apply(recipe, Film(pixels=pixels, depth=8), variants=("raw",))
    np.testing.assert_array_equal(made.films["raw"], plain.films["raw"])  # the film as it was read
    for x, y in ((0, 0), (399, 0), (17, 250)):
        row, column = np.argwhere(turned == number[y, x])[0]  # where this pixel of the upright film was
        landed = made.matrices["crop"] @ (column, row, 1)
        np.testing.assert_allclose(landed, upright.matrices["crop"] @ (x, y, 1), atol=1e-9)


@pytest.mark.parametrize("angle", [0.0, 11.0])
def test_a_tilted_carrier_is_turned_as_well(angle):
    film, _, lesion = draw(angle=angle)

    def localize(carrier):
        height, width = carrier.shape
        return Localization(hands=(("", (0, 0, height, width)),), turns=3)

    made = apply(Recipe(size=200), film, nets=Nets(localizer=localize), anomaly=lesion)
    assert made.turns == 3 and made.carrier is not None
    landed = np.argwhere(made.anomaly["crop"])[:, ::-1].mean(axis=0)
    expected = made.matrices["crop"] @ (*np.argwhere(lesion)[:, ::-1].mean(axis=0), 1)
    np.testing.assert_allclose(landed, expected, atol=0.5)
    upright = apply(Recipe(size=200, hand="none"), film)
    assert np.abs(np.rot90(upright.films["crop"], 3).astype(int) - made.films["crop"]).mean() < 1


def test_two_hands_become_two_films_from_left_to_right():
    film, truth = Film(pixels=pair(), depth=8), np.zeros((300, 400), bool)
    truth[180:200, 90:110] = True  # in the hand that lies left
    recipe = Recipe(size=100, carrier="none")
    made = recipe.apply(film, nets=Nets(localizer=finding(LEFT, RIGHT)), anomaly=truth)
    assert [(one.hand, one.side, one.box[0]) for one in made] == [(1, "right", 59), (2, "left", 239)]
    assert [bool(one.anomaly["crop"].any()) for one in made] == [True, False]
    assert all(one.anomaly["raw"].any() for one in made)
    for one, hand in zip(made, (RIGHT, LEFT), strict=True):
        alone = apply(recipe, film, nets=Nets(localizer=finding(hand)))
        assert alone.hand == 0 and same(alone, one) and alone.box == one.box  # raw too: it is the same film in both
    assert apply(recipe, film, nets=Nets(localizer=finding(LEFT, RIGHT)), variants=("raw",)).hand == 0
    assert (
        apply(recipe, film, nets=Nets(localizer=finding(LEFT, ("right", (900, 0, 950, 50))))).hand == 0
    )  # beside the film
    third = ("left", (0.0, 0.0, 9.0, 9.0))
    assert [one.box for one in recipe.apply(film, nets=Nets(localizer=finding(LEFT, RIGHT, third)))] == [
        one.box for one in made
    ]


def test_what_is_close_to_the_hand_is_never_blanked():
    """A marker's box whose corner reaches onto a fingertip: the tip stays, the rest of the box goes."""
    film = np.full((300, 200), 20, np.uint8)
    film[60:, 60:140] = 150  # the hand
    film[30:46, 20:44] = 240  # the marker
    box = ("left", (18.0, 28.0, 62.0, 62.0))
    localizer = finding(("left", (0.0, 0.0, 200.0, 300.0)), markers=(box,))
    recipe = Recipe(size=300, carrier="none", invert="never", margin=0.0)
    (made,) = recipe.apply(Film(film, 8), nets=Nets(localizer=localizer), variants=("crop",))
    shown = made.films["crop"][:, 50:250]  # beside it is padding
    assert made.markers == 1 and (shown[60:, 60:140] == shown[200, 100]).all()
    assert shown[30:46, 20:44].max() == shown[10, 190] < shown[200, 100]


def test_markers_are_blanked_beside_the_hand_alone():
    pixels = pair()
    pixels[20:40, 10:34] = 255
    hand, marker = ("right", (0.0, 0.0, 170.0, 290.0)), ("right", (8.5, 18.0, 35.5, 42.0))
    elsewhere = ("left", (390.0, 290.0, 399.0, 299.0))
    wrong = ("left", (75.0, 170.0, 100.0, 190.0)), ("left", (140.0, 200.0, 165.0, 225.0))  # on the palm, on its rim
    film, recipe = Film(pixels=pixels, depth=8), Recipe(size=290, carrier="none", margin=0)
    plain = apply(recipe, film, nets=Nets(localizer=finding(hand)))
    made = apply(recipe, film, nets=Nets(localizer=finding(hand, markers=(marker, elsewhere, *wrong))))
    assert (plain.markers, made.markers) == (0, 1)
    left = int(made.frame[0])
    blank = np.zeros((290, 290), bool)
    blank[18:42, left + 8 : left + 36] = True
    assert plain.films["crop"][blank].max() == 255 and np.ptp(made.films["crop"][blank]) == 0
    around = np.median(plain.films["crop"][60:, left : left + 60])
    assert abs(made.films["crop"][blank][0] / made.films["crop"].max() - around / 200) < 0.1
    levels = made.films["crop"].astype(float)[~blank & made.masks["crop"]]
    assert np.corrcoef(levels, plain.films["crop"][~blank & made.masks["crop"]])[0, 1] > 0.999
    np.testing.assert_array_equal(made.films["raw"], plain.films["raw"])
    flat = Film(pixels=np.full((100, 100), 90, np.uint8), depth=8)
    localizer = finding(("", (0.0, 0.0, 100.0, 100.0)), markers=(marker,))
    assert apply(recipe, flat, nets=Nets(localizer=localizer)).markers == 0  # where the hand is cannot be told


def test_the_frame_is_where_the_crop_lies():
    film, _, _ = draw(angle=0)
    made = apply(Recipe(size=100), film, box=(100, 50, 200, 250))
    assert made.frame == pytest.approx((25, 0, 75, 100))
    made = apply(Recipe(size=64), film, box=(100, 50, 201, 93))
    x0, y0, x1, y1 = (round(side) for side in made.frame)
    expected = np.zeros((64, 64), bool)
    expected[y0:y1, x0:x1] = True
    np.testing.assert_array_equal(made.masks["crop"], expected)


@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("shape", [(16, 16), (16, 400), (300, 200)])
@pytest.mark.parametrize("name", ["limb", "plain"])
def test_flat_films_work(level, shape, name):
    film = Film(pixels=np.full(shape, level, np.uint8), depth=8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = apply(Recipe(name=name, size=64), film, anomaly=np.zeros(shape, bool))
    assert made.fallbacks == ("polarity", *(("carrier", "hand", "mask") if name == "limb" else ()))
    assert not any(array.any() for array in made.films.values())
    assert all(mask.any() for mask in made.masks.values()) and not made.anomaly["crop"].any()


def test_an_empty_given_mask_is_a_named_fallback():
    film, hand, _ = draw()
    made = apply(Recipe(size=64), film, mask=np.zeros_like(hand))
    assert made.fallbacks == ("mask",)
    np.testing.assert_array_equal(made.masks["full"], made.masks["crop"])


def test_what_cannot_be_made_is_refused():
    film, hand, _ = draw()
    with pytest.raises(InputError, match="no variant 'full-eq'; there are: raw, raw-he, crop"):
        apply(Recipe(), film, variants=("raw", "full-eq"))
    with pytest.raises(InputError, match="no variant"):
        apply(Recipe(), film, variants=())
    with pytest.raises(InputError, match="float32"):
        apply(Recipe(), film, dtype=np.float32)
    with pytest.raises(InputError, match="mask has shape"):
        apply(Recipe(), film, mask=hand[:-1])
    with pytest.raises(InputError, match="anomaly mask has shape"):
        apply(Recipe(), film, anomaly=hand[:-1])


def test_the_film_is_left_alone():
    film, hand, lesion = draw()
    for array in (film.pixels, hand, lesion):
        array.flags.writeable = False
    for name in ("limb", "plain"):
        apply(Recipe(name=name, size=64), film, mask=hand, anomaly=lesion)


@pytest.mark.parametrize("name", ["limb", "plain"])
@pytest.mark.parametrize("level", [0, 255])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_an_unexposed_rim_is_off_the_mask_and_out_of_the_levels(name, level, kind):
    pixels = shaded((120, 160))
    pixels[:, :24] = level
    scale = 1 if kind == np.uint8 else 16
    film = Film(pixels.astype(kind) * kind(scale), depth=8 if kind == np.uint8 else 12, polarity_known=True)
    made = apply(Recipe(name=name, size=160, hand="none", mask="none"), film)
    for stage in STAGES:
        frame = made.masks[stage].any(axis=0)
        x0, x1 = np.flatnonzero(frame)[[0, -1]]
        edges = made.matrices["raw" if stage == "raw" else "crop"] @ np.array([[24, 159], [0, 0], [1, 1]])
        assert edges[0, 0] - 0.6 <= x0 <= edges[0, 0] + 5 and abs(x1 - edges[0, 1]) < 4
        inside = made.films[stage][made.masks[stage]]
        assert inside.max() == np.iinfo(kind).max and not made.films[stage][~made.masks[stage]].any()
        # A black rim is the level that becomes 0 beside it: whether it is found does not change the levels of the rest.
        assert bool(inside.min() == 0) is (level > 0 or stage == "full")
        low, high = made.grey[stage]
        assert 0.35 < low < 0.6 and 0.1 < high < 0.3  # of the shades alone


@pytest.mark.parametrize("name", ["limb", "plain"])
def test_padding_that_the_file_names_never_counts(name):
    pixels, exposed = draw()[0].pixels, np.ones((380, 360), bool)
    exposed[:50] = exposed[:, 330:] = False
    films = {}
    for padding in (0, 77, 255):
        filled = np.where(exposed, pixels, padding).astype(np.uint8)
        made = apply(Recipe(name=name, size=96), Film(filled, 8, polarity_known=True, exposed=exposed))
        films[padding] = made
        for stage in STAGES:
            kept = steps.warp_mask(exposed, made.matrices["raw" if stage == "raw" else "crop"], (96, 96))
            assert (made.masks[stage] & ~kept).sum() < 100  # the border's own pixels
    for stage in STAGES:
        np.testing.assert_array_equal(films[0].masks[stage], films[255].masks[stage])


def test_a_box_beside_the_exposed_field_is_a_named_fallback():
    film, exposed = draw()[0], np.zeros((380, 360), bool)
    exposed[:, :100] = True
    made = apply(Recipe(size=64), Film(film.pixels, 8, exposed=exposed), box=(200, 50, 300, 250))
    assert "exposed field" in made.fallbacks and made.masks["crop"].any()
    nothing = Film(film.pixels, 8, exposed=np.zeros((380, 360), bool))
    assert "exposed field" in apply(Recipe(size=64), nothing).fallbacks
    with pytest.raises(InputError, match="exposed field has shape"):
        apply(Recipe(), Film(film.pixels, 8, exposed=exposed[1:]))


@pytest.mark.parametrize("name", ["limb", "plain"])
def test_a_polarity_that_the_file_states_is_never_guessed(name):
    film, _, _ = draw()
    turned = Film(pixels=255 - film.pixels, depth=8)
    assert apply(Recipe(name=name, size=64), turned).inverted
    known = Film(pixels=255 - film.pixels, depth=8, polarity_known=True)
    assert not apply(Recipe(name=name, size=64), known).inverted
    flat = Film(np.full((64, 64), 9, np.uint8), 8, polarity_known=True)
    assert "polarity" not in apply(Recipe(name=name, size=64), flat).fallbacks


@pytest.mark.parametrize("aspect", [0.5, 2.0, 1.25])
@pytest.mark.parametrize("name", ["limb", "plain"])
def test_anatomy_keeps_its_shape_where_pixels_are_not_square(aspect, name):
    film, _, lesion = draw(angle=0)
    height, width = film.pixels.shape
    size = (width, round(height / aspect)) if aspect > 1 else (round(width * aspect), height)
    squeezed = [
        cv2.resize(array.astype(np.uint8), size, interpolation=cv2.INTER_AREA) for array in (film.pixels, lesion)
    ]
    pixels, truth = squeezed[0], squeezed[1] > 0
    upright = apply(Recipe(name=name, size=128), film, anomaly=lesion)
    made = apply(Recipe(name=name, size=128), Film(pixels, 8, aspect=aspect), anomaly=truth)
    assert iou(made.masks["full"], upright.masks["full"]) > 0.9
    assert np.abs(made.films["raw"].astype(int) - upright.films["raw"]).mean() < 8
    for stage in ("raw", "crop"):
        landed = np.argwhere(made.anomaly[stage])[:, ::-1].mean(axis=0)
        expected = made.matrices[stage] @ (*np.argwhere(truth)[:, ::-1].mean(axis=0), 1)
        np.testing.assert_allclose(landed, expected, atol=0.7)
    across, down = size[0] / width, size[1] / height
    boxed = apply(
        Recipe(name=name, size=100),
        Film(pixels, 8, aspect=aspect),
        box=(100 * across, 50 * down, 300 * across, 250 * down),
    )
    np.testing.assert_allclose(boxed.box, (100, 50, 300, 250), atol=1)
    x, y = boxed.matrices["crop"] @ (200 * across - 0.5, 150 * down - 0.5, 1)
    np.testing.assert_allclose((x, y), (49.5, 49.5), atol=0.7)


def test_pixels_of_no_plausible_shape_are_refused():
    with pytest.raises(InputError, match="its pixels are 20 times as high as wide"):
        apply(Recipe(), Film(draw()[0].pixels, 8, aspect=20.0))


def test_a_trunk_is_left_whole():
    """Bright bones in grey tissue that nearly fills the film, air beside: half of it must not become background."""
    rows, columns = np.indices((256, 256))
    y, x = rows / 128 - 1, columns / 128 - 1
    trunk = np.abs(x) < 0.8 - 0.15 * np.cos(3 * y)
    film = np.where(trunk, 60.0 + 25 * np.cos(4 * x), 4 + 14 * (columns > 128))
    film[(np.abs(x) < 0.45) & trunk] += 90
    film = cv2.GaussianBlur(film, (0, 0), 2) + np.random.default_rng(0).normal(0, 1, film.shape)
    made = apply(Recipe(size=128), Film(np.clip(film, 0, 255).astype(np.uint8), 8), variants=("full",))
    kept = steps.warp_mask(trunk, made.matrices["crop"], (128, 128))
    assert (made.masks["full"] & kept).sum() > 0.9 * kept.sum()  # half of it, where bone alone is taken


@pytest.mark.parametrize("turns", range(4))
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_ramp_has_no_border_and_so_no_field(turns, kind):
    """Levels that fall away from a side as fast beyond a line as before it have no rim there, bright or dark."""
    top = np.iinfo(kind).max
    for across in (0.0, 0.1, 0.4):
        rows, columns = np.mgrid[:96, :128]
        ramp = np.rot90(np.rint(top * ((1 - across) * rows / 95 + across * columns / 127)).astype(kind), turns)
        assert steps.find_field(ramp) is None


@pytest.mark.parametrize("variant", ["raw", "crop"])
def test_padding_leaves_tissue_the_levels_that_it_has_beside_black(variant):
    """A film whose file names its padding, and the same film with black there and nothing named, are one film."""
    pixels, exposed = shaded((96, 96)), np.zeros((96, 96), bool)
    exposed[((np.mgrid[:96, :96] - 47.5) ** 2).sum(axis=0) < 40**2] = True  # round: no border is found
    pixels[~exposed] = 0
    recipe = Recipe(name="plain", size=96)
    named = apply(recipe, Film(pixels, depth=8, polarity_known=True, exposed=exposed))
    bare = apply(recipe, Film(pixels, depth=8, polarity_known=True))
    assert (named.films[variant] == bare.films[variant]).all()
    assert named.masks[variant].sum() == exposed.sum() and bare.masks[variant].all()
