"""Film and mask are transformed alike; draws depend on the seed alone; on a device they have the same distribution."""

import pickle
import subprocess
import sys
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from anomaly.data import augment
from anomaly.data.augment import SETS, Augmentation, AugmentationName, DeviceAugmentation, Draws, to_source, warp


def discs(dtype: type = np.uint8, count: int = 8, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Bright discs on black, and their masks."""
    y, x = np.mgrid[:size, :size]
    center = np.random.default_rng(0).integers(50, 78, (count, 2))
    masks = (x[None] - center[:, 0, None, None]) ** 2 + (y[None] - center[:, 1, None, None]) ** 2 < 30**2
    return (masks * np.asarray(np.iinfo(dtype).max * 3 // 5)).astype(dtype), masks


@pytest.mark.parametrize("name", ["flips", "advanced", "upright", "mirrored"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_film_and_mask_move_together(name: AugmentationName, dtype: type) -> None:
    films, masks = discs(dtype)
    for seed in range(5):
        film, mask, boxes, foreground = Augmentation(name)(films, masks, seed)
        assert boxes is None and foreground is None
        assert film.dtype == dtype and mask.dtype == np.bool_ and film.shape == mask.shape == films.shape
        lit = film > np.iinfo(dtype).max // 4
        both, either = (lit & mask).sum(axis=(1, 2)), (lit | mask).sum(axis=(1, 2))
        assert (both / either > 0.9).all()


def bounds(masks: np.ndarray) -> np.ndarray:
    """The boxes around masks, of classes 1, 2, ...: (N, H, W) -> (N, 2, 5), the second of each none."""
    out = np.zeros((len(masks), 2, 5), np.float32)
    for i, mask in enumerate(masks):
        rows, columns = mask.any(axis=1).nonzero()[0], mask.any(axis=0).nonzero()[0]
        out[i, 0] = columns[0], rows[0], columns[-1] + 1, rows[-1] + 1, 1 + i % 4
    return out


@pytest.mark.parametrize("name", ["flips", "upright"])
def test_boxes_and_foreground_move_with_the_film(name: AugmentationName) -> None:
    films, masks = discs()
    for seed in range(5):
        whole = np.ones_like(masks)
        _, _, boxes, foreground = Augmentation(name)(films, whole, seed, bounds(masks), masks)
        assert boxes is not None and foreground is not None
        assert boxes.dtype == np.float32 and (boxes[:, 1] == 0).all()
        expected = bounds(foreground)[:, 0, :4]
        assert (boxes[:, 0, 4] > 0).all() and (
            np.abs(boxes[:, 0, :4] - expected).max() <= 1.5
        )  # a pixel's edge, rounded
        assert (boxes[:, 0, 4] == bounds(masks)[:, 0, 4]).all()


@pytest.mark.parametrize("name", ["flips", "advanced", "upright", "mirrored"])
def test_films_are_moved_alike_with_boxes_and_without(name: AugmentationName) -> None:
    """Boxes go through imgaug's own affine augmenter, films alone through ours: with the draws of the same seed."""
    films, masks = discs()
    shaded = (films * np.linspace(0.5, 1, films.shape[2])).astype(films.dtype)
    for seed in range(5):
        alone, alone_mask, _, _ = Augmentation(name)(shaded, masks, seed)
        beside, beside_mask, _, _ = Augmentation(name)(shaded, masks, seed, bounds(masks))
        assert np.abs(alone.astype(float) - beside).mean() < 0.5  # of 255 levels
        assert (alone_mask & beside_mask).sum() / (alone_mask | beside_mask).sum() > 0.97


def test_a_box_of_which_little_is_left_is_none() -> None:
    films = np.zeros((40, 64, 64), np.uint8)
    boxes = np.zeros((40, 1, 5), np.float32)
    boxes[:, 0] = 60, 20, 64, 30, 3
    whole = np.ones(films.shape, bool)
    moved = Augmentation("upright")(films, whole, 0, boxes)[2]
    assert moved is not None
    kept = moved[:, 0, 4] > 0
    assert 5 < kept.sum() < 40  # some were shifted out of the film
    assert (moved[~kept] == 0).all() and (moved[kept, 0, :4] >= 0).all() and (moved[kept, 0, :4] <= 64).all()
    assert (moved[kept, 0, 2] > moved[kept, 0, 0]).all()


def test_mirrored_turns_by_ten_degrees_at_most_and_never_upside_down() -> None:
    bar = np.zeros((200, 65, 65), np.uint8)
    bar[:, :33, 32] = 255  # from the middle up
    turned, _, _, _ = Augmentation("mirrored")(bar, np.ones(bar.shape, bool), 0)
    y, x = np.mgrid[:65, :65] - 32
    angle = [np.degrees(np.arctan2((film * x).sum(), -(film * y).sum())) for film in turned.astype(float)]
    assert 8 < np.abs(angle).max() < 10.5 and abs(np.mean(angle)) < 1.5


def test_upright_keeps_left_and_right() -> None:
    """A film brighter on its left is so after it: nothing mirrors it or turns it over."""
    film = np.tile(np.linspace(200, 20, 64).astype(np.uint8), (20, 64, 1))
    film[:, :32] //= 2
    out = Augmentation("upright")(film, np.ones(film.shape, bool), 1)[0].astype(float)
    inner = out[:, 16:48, 16:48]
    assert (inner[:, :, :8].mean(axis=(1, 2)) > inner[:, :, -8:].mean(axis=(1, 2))).all()
    assert (inner[:, :8].mean(axis=(1, 2)) < inner[:, -8:].mean(axis=(1, 2))).all()


def test_the_seed_decides_and_what_was_drawn_before_does_not() -> None:
    films, masks = discs()
    one, other = Augmentation("advanced"), Augmentation("advanced")
    first = one(films, masks, 7)[0]
    one(films, masks, 8)
    assert (one(films, masks, 7)[0] == first).all() and (other(films, masks, 7)[0] == first).all()
    assert (one(films, masks, 8)[0] != first).any()


def test_the_films_of_a_batch_are_transformed_apart() -> None:
    films, masks = discs(count=1)
    film, *_ = Augmentation("advanced")(films.repeat(12, axis=0), masks.repeat(12, axis=0), 0)
    assert len({one.tobytes() for one in film}) > 8


def test_brightness_reaches_the_model() -> None:
    """Nothing rescales a film after its brightness was changed: the brightest level varies between films."""
    films, masks = discs(count=1)
    film, *_ = Augmentation("advanced")(films.repeat(40, axis=0), masks.repeat(40, axis=0), 0)
    peaks = film.max(axis=(1, 2)).astype(float) / films.max()
    assert peaks.min() < 0.9 and peaks.max() > 1.1
    assert 0.3 < (np.abs(peaks - 1) < 0.005).mean() < 0.75  # about half are left as they were


def test_none_changes_nothing() -> None:
    films, masks = discs()
    boxes = np.ones((len(films), 1, 5), np.float32)
    film, mask, moved, foreground = Augmentation("none")(films, masks, 0, boxes, masks)
    assert film is films and mask is masks and moved is boxes and foreground is masks


def test_a_fresh_process_can_unpickle_one() -> None:
    """Worker processes that are not forked get it pickled, before they have imported imgaug."""
    code = "import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1])).name)"
    data = pickle.dumps(Augmentation("advanced")).hex()
    done = subprocess.run([sys.executable, "-c", code, data], capture_output=True, text=True, check=True)
    assert done.stdout == "advanced\n"


# --- on the device --------------------------------------------------------------------------------------------------

# Flip, zoom, shift and turn of one film: what to_source takes, and the imgaug objects of the same constants.
FIXED: dict[str, tuple[dict[str, Any], list[tuple[str, Any]]]] = {
    "mirror": ({"sign": (-1, 1)}, [("Fliplr", 1.0)]),
    "overturn": ({"sign": (1, -1)}, [("Flipud", 1.0)]),
    "zoom": ({"zoom": (0.85, 1.15)}, [("Affine", {"scale": {"x": 0.85, "y": 1.15}})]),
    "shift": ({"shift": (0.07, -0.04)}, [("Affine", {"translate_percent": {"x": 0.07, "y": -0.04}})]),
    "zoom and shift": (
        {"zoom": (0.85, 1.1), "shift": (0.07, -0.04)},
        [("Affine", {"scale": {"x": 0.85, "y": 1.1}, "translate_percent": {"x": 0.07, "y": -0.04}})],
    ),
    "turn": ({"turn": 10.0}, [("Affine", {"rotate": 10})]),
    "turn the whole": ({"turn": 17.0, "whole": True}, [("Whole", 17)]),
    "turn the whole a little back": ({"turn": -3.0, "whole": True}, [("Whole", -3)]),
    "mirror, zoom, turn": (
        {"sign": (-1, 1), "zoom": (1.2, 0.9), "turn": -19.0, "whole": True},
        [("Fliplr", 1.0), ("Affine", {"scale": {"x": 1.2, "y": 0.9}}), ("Whole", -19)],
    ),
    "overturn, zoom, shift, turn": (
        {"sign": (1, -1), "zoom": (1.1, 0.9), "shift": (-0.1, 0.05), "turn": 14.0, "whole": True},
        [
            ("Flipud", 1.0),
            ("Affine", {"scale": {"x": 1.1, "y": 0.9}, "translate_percent": {"x": -0.1, "y": 0.05}}),
            ("Whole", 14),
        ],
    ),
}


def lumps(size: int) -> tuple[np.ndarray, np.ndarray]:
    """A film nowhere black, of three lumps without symmetry, uint8; and the mask of the lumps."""
    y, x = (np.mgrid[:size, :size] + 0.5) / size
    film = sum(
        h * np.exp(-((x - a) ** 2 + (y - b) ** 2) / r**2)
        for a, b, r, h in ((0.3, 0.35, 0.2, 0.6), (0.7, 0.6, 0.16, 0.5), (0.35, 0.75, 0.1, 0.4))
    )
    return (30 + 200 * film).astype(np.uint8), film > 0.15


def by_imgaug(steps: list[tuple[str, Any]], film: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    iaa = augment.import_augmenters()

    def made(name: str, how: Any) -> Any:
        if name == "Whole":
            return iaa.KeepSizeByResize(iaa.Affine(rotate=how, fit_output=True), interpolation="linear")
        return iaa.Affine(**how) if name == "Affine" else getattr(iaa, name)(how)

    both = {"images": film[None, ..., None], "segmentation_maps": mask[None, ..., None]}
    out, turned = iaa.Sequential([made(*step) for step in steps])(**both)
    return np.asarray(out)[0, ..., 0], np.asarray(turned)[0, ..., 0]


def by_matrix(how: dict[str, Any], film: np.ndarray, mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    still = {"sign": (1, 1), "zoom": (1, 1), "shift": (0, 0), "turn": 0.0}
    given = {key: torch.tensor([how.get(key, value)], dtype=torch.float64) for key, value in still.items()}
    matrix, window = to_source(len(film), **given, whole=how.get("whole", False))
    batch = torch.from_numpy(film).float()[None, None] / 255, torch.from_numpy(mask)[None, None]
    out, moved = warp(*batch, matrix.float(), window.float())
    return out[0, 0].numpy() * 255, moved[0, 0].numpy()


def overlap(one: np.ndarray, other: np.ndarray) -> float:
    return float((one & other).sum() / (one | other).sum())


@pytest.mark.parametrize("size", [225, 256])
@pytest.mark.parametrize("name", FIXED)
def test_a_fixed_transform_is_that_of_imgaug(name: str, size: int) -> None:
    how, steps = FIXED[name]
    film, mask = lumps(size)
    theirs, moved = by_imgaug(steps, film, mask)
    ours, _ = by_matrix(how, film, np.ones_like(mask))  # nowhere black, so what the zoom cut off is seen
    masked, covered = by_matrix(how, film, mask)
    assert np.abs(ours - theirs).mean() < 0.5  # of 255 levels; imgaug rounds at each step
    assert (masked == ours * covered).all()
    assert overlap(covered, moved) > 0.97
    # imgaug's masks drift by half a pixel where a canvas shrinks. Moved as a film, a mask doesn't drift, nor does ours.
    assert overlap(covered, by_imgaug(steps, mask * np.uint8(255), mask)[0] > 127) > 0.99


def test_brightness_is_that_of_imgaug(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SETS, "advanced", Draws(brightened=1.0, brightness=(1.2, 1.2)))
    film = np.linspace(0, 255, 32 * 32).reshape(1, 32, 32).astype(np.uint8)
    whole = np.ones_like(film, bool)
    theirs = Augmentation("advanced")(film, whole, 0)[0]
    batch = torch.from_numpy(film)[:, None] / 255, torch.from_numpy(whole)[:, None]
    ours = DeviceAugmentation("advanced")(*batch, 0)[0].numpy()[:, 0] * 255
    assert np.abs(ours - theirs).max() <= 1.01 and (ours >= theirs - 0.01).all()  # imgaug rounds down
    assert ours.max() <= 255.0 and (ours > 254.9).sum() > 100


DRAWN = 1200
SIDE = 64


@cache
def bar() -> tuple[np.ndarray, np.ndarray]:
    """A slanted bar off the middle, one end brighter: film uint8 and mask."""
    y, x = np.mgrid[:SIDE, :SIDE] - SIDE / 2
    along, across = ((x - 4) + (y + 3)) / 2**0.5, ((x - 4) - (y + 3)) / 2**0.5
    mask = (np.abs(along) < 17) & (np.abs(across) < 7)
    return (mask * np.where(along > 6, 160, 80)).astype(np.uint8), mask


def measures(film: np.ndarray, mask: np.ndarray, frame: np.ndarray) -> dict[str, np.ndarray]:
    """What is compared, a number a film: films (N, S, S) in [0, 1], masks of the bar and of the whole film."""
    at = np.arange(SIDE) - (SIDE - 1) / 2
    area, light = mask.sum(axis=(1, 2)), film.sum(axis=(1, 2))
    columns, rows = film.sum(axis=1), film.sum(axis=2)
    mean_x, mean_y = columns @ at / light, rows @ at / light
    xx, yy = columns @ at**2 / light - mean_x**2, rows @ at**2 / light - mean_y**2
    xy = film @ at @ at / light - mean_x * mean_y
    ends_x, ends_y = mean_x - mask.sum(axis=1) @ at / area, mean_y - mask.sum(axis=2) @ at / area
    bright = film.max(axis=(1, 2)) / (bar()[0].max() / 255)
    slant = np.degrees(np.arctan2(2 * xy, xx - yy)) / 2
    return {
        "area": area,
        "frame": frame.mean(axis=(1, 2)),
        "x": mean_x,
        "y": mean_y,
        "xx": xx,
        "yy": yy,
        "xy": xy,
        "slant": slant,
        "slant from the diagonal": np.abs(slant) - 45,
        "light": light / area,
        "brightness": bright,
        "brightness kept": np.abs(bright - 1) < 0.01,
        "mirrored": ends_x < 0,
        "overturned": ends_y < 0,
    }


@cache
def drawn_by_imgaug(name: AugmentationName) -> dict[str, np.ndarray]:
    film, mask = (one[None].repeat(DRAWN, axis=0) for one in bar())
    film, mask, _, frame = Augmentation(name)(film, mask, 0, foreground=np.ones_like(mask))
    assert frame is not None
    return measures(film / 255, mask, frame)


def drawn_on_device(name: AugmentationName) -> dict[str, np.ndarray]:
    film, mask = (torch.from_numpy(one).expand(DRAWN, 1, SIDE, SIDE) for one in bar())
    made = DeviceAugmentation(name)
    whole, frame = made(film / 255, torch.ones_like(mask), 0)
    return measures(*(one[:, 0].numpy() for one in (whole, made(film / 255, mask, 0)[1], frame)))


def moments(values: np.ndarray) -> list[tuple[float, float]]:
    """Mean and standard deviation, each with its standard error."""
    off = values - values.mean()
    spread, fourth = (off**2).mean() ** 0.5, (off**4).mean()
    error = ((fourth - spread**4) / len(values)) ** 0.5 / (2 * spread) if spread else 0.0
    return [(values.mean(), spread / len(values) ** 0.5), (spread, error)]


def told_apart(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> set[str]:
    """The measures whose mean or standard deviation differs by more than four standard errors.

    Beyond half a hundredth of it, that is, and a thousandth: interpolating once and rounding nowhere is no other draw.
    """
    return {
        name
        for name in one
        for (a, error_a), (b, error_b) in zip(
            moments(one[name].astype(float)), moments(other[name].astype(float)), strict=True
        )
        if abs(a - b) > 4 * (error_a**2 + error_b**2) ** 0.5 + 0.005 * max(abs(a), abs(b)) + 0.001
    }


@pytest.mark.parametrize("name", ["flips", "advanced", "upright", "mirrored"])
def test_a_device_draws_what_imgaug_draws(name: AugmentationName) -> None:
    assert told_apart(drawn_on_device(name), drawn_by_imgaug(name)) == set()


@pytest.mark.parametrize(
    ("other", "seen"),
    [
        ({"turn": (-15, 15)}, {"slant from the diagonal", "frame"}),
        ({"whole": False}, {"frame"}),
        ({"zoom": (0.9, 1.1)}, {"area"}),
        ({"mirrored": 0.4}, {"mirrored"}),
        ({"brightness": (0.9, 1.1)}, {"brightness", "light"}),
        ({"brightened": 0.4}, {"brightness kept"}),
    ],
)
def test_other_draws_would_be_noticed(other: dict[str, Any], seen: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = drawn_by_imgaug("advanced")
    monkeypatch.setitem(SETS, "advanced", replace(SETS["advanced"], **other))
    assert seen <= told_apart(drawn_on_device("advanced"), theirs)


def test_one_zoom_for_both_axes_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def alike(size: int, sign: Any, zoom: Any, *others: Any, whole: bool) -> Any:
        return to_source(size, sign, zoom[:, :1].expand(-1, 2), *others, whole=whole)

    theirs = drawn_by_imgaug("advanced")
    monkeypatch.setattr(augment, "to_source", alike)
    assert "area" in told_apart(drawn_on_device("advanced"), theirs)


@pytest.mark.parametrize("name", ["flips", "advanced", "upright", "mirrored"])
def test_on_a_device_the_seed_decides_and_films_are_transformed_apart(name: AugmentationName) -> None:
    film, mask = (torch.from_numpy(one).expand(24, 1, SIDE, SIDE) for one in bar())
    made, film = DeviceAugmentation(name), film / 255
    torch.manual_seed(0)
    first, first_mask = made(film, mask, 7)
    assert first.shape == first_mask.shape == film.shape
    assert first.dtype == torch.float32 and first_mask.dtype == torch.bool
    torch.manual_seed(1)
    made(film, mask, 8)
    again, again_mask = DeviceAugmentation(name)(film, mask, 7)
    assert (again == first).all() and (again_mask == first_mask).all()
    assert (made(film, mask, 8)[0] != first).any()
    assert len({one.numpy().tobytes() for one in first}) >= (4 if name == "flips" else 12)
    assert not first[~first_mask].any() and float(first.min()) >= 0 and float(first.max()) <= 1
    assert (film.numpy()[:, 0] * 255 == bar()[0]).all()  # what came in was left alone


def test_none_on_a_device_returns_its_input() -> None:
    film, mask = torch.rand(2, 1, 8, 8), torch.ones(2, 1, 8, 8, dtype=torch.bool)
    out = DeviceAugmentation("none")(film, mask, 0)
    assert out[0] is film and out[1] is mask
