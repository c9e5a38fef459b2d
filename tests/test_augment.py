"""Film and mask move together; the draws depend on the seed alone."""

import pickle
import subprocess
import sys

import numpy as np
import pytest

from anomaly.augment import Augmentation, AugmentationName

RNG = np.random.default_rng(0)


def discs(dtype: type = np.uint8, count: int = 8, size: int = 128) -> tuple[np.ndarray, np.ndarray]:
    """Bright discs on black, and their masks."""
    y, x = np.mgrid[:size, :size]
    centre = RNG.integers(50, 78, (count, 2))
    masks = (x[None] - centre[:, 0, None, None]) ** 2 + (y[None] - centre[:, 1, None, None]) ** 2 < 30**2
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
        found = bounds(foreground)[:, 0, :4]
        there = boxes[:, 0, 4] > 0
        assert there.all() and (np.abs(boxes[:, 0, :4] - found).max() <= 1.5)  # a pixel's edge, rounded
        assert (boxes[:, 0, 4] == bounds(masks)[:, 0, 4]).all()


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
    film, mask, there, foreground = Augmentation("none")(films, masks, 0, boxes, masks)
    assert film is films and mask is masks and there is boxes and foreground is masks


def test_a_fresh_process_can_take_one_up() -> None:
    """Worker processes that are not forked get it pickled, before they have imported imgaug by our door."""
    code = "import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1])).name)"
    data = pickle.dumps(Augmentation("advanced")).hex()
    done = subprocess.run([sys.executable, "-c", code, data], capture_output=True, text=True, check=True)
    assert done.stdout == "advanced\n"
