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


@pytest.mark.parametrize("name", ["flips", "advanced"])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_film_and_mask_move_together(name: AugmentationName, dtype: type) -> None:
    films, masks = discs(dtype)
    for seed in range(5):
        film, mask = Augmentation(name)(films, masks, seed)
        assert film.dtype == dtype and mask.dtype == np.bool_ and film.shape == mask.shape == films.shape
        lit = film > np.iinfo(dtype).max // 4
        both, either = (lit & mask).sum(axis=(1, 2)), (lit | mask).sum(axis=(1, 2))
        assert (both / either > 0.9).all()


def test_the_seed_decides_and_what_was_drawn_before_does_not() -> None:
    films, masks = discs()
    one, other = Augmentation("advanced"), Augmentation("advanced")
    first, _ = one(films, masks, 7)
    one(films, masks, 8)
    assert (one(films, masks, 7)[0] == first).all() and (other(films, masks, 7)[0] == first).all()
    assert (one(films, masks, 8)[0] != first).any()


def test_the_films_of_a_batch_are_transformed_apart() -> None:
    films, masks = discs(count=1)
    film, _ = Augmentation("advanced")(films.repeat(12, axis=0), masks.repeat(12, axis=0), 0)
    assert len({one.tobytes() for one in film}) > 8


def test_brightness_reaches_the_model() -> None:
    """Nothing rescales a film after its brightness was changed: the brightest level varies between films."""
    films, masks = discs(count=1)
    film, _ = Augmentation("advanced")(films.repeat(40, axis=0), masks.repeat(40, axis=0), 0)
    peaks = film.max(axis=(1, 2)).astype(float) / films.max()
    assert peaks.min() < 0.9 and peaks.max() > 1.1
    assert 0.3 < (np.abs(peaks - 1) < 0.005).mean() < 0.75  # about half are left as they were


def test_none_changes_nothing() -> None:
    films, masks = discs()
    film, mask = Augmentation("none")(films, masks, 0)
    assert film is films and mask is masks


def test_a_fresh_process_can_take_one_up() -> None:
    """Worker processes that are not forked get it pickled, before they have imported imgaug by our door."""
    code = "import pickle, sys; print(pickle.loads(bytes.fromhex(sys.argv[1])).name)"
    data = pickle.dumps(Augmentation("advanced")).hex()
    done = subprocess.run([sys.executable, "-c", code, data], capture_output=True, text=True, check=True)
    assert done.stdout == "advanced\n"
