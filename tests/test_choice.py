"""Which recipe suits which films, on drawn ones."""

import cv2
import numpy as np
import pytest

from preprocessing.choice import SAMPLE, Choice, choose_recipe, limb_evidence
from preprocessing.phantom import draw_film, plan_films
from preprocessing.readers import Film
from preprocessing.sources import open_source
from tests.test_polarity import draw_chest
from tests.test_steps import draw_hand


def write(folder, **films):
    """Write films as a source: name -> pixels."""
    folder.mkdir(exist_ok=True)
    for name, pixels in films.items():
        cv2.imwrite(str(folder / f"{name}.png"), pixels)
    return open_source(folder)


def limbs(count):
    return {f"limb{n:03d}": draw_hand((128, 96), background=20 + n % 9)[0] for n in range(count)}


def chests(count):
    return {f"chest{n:03d}": draw_chest((128, 128), seed=n) for n in range(count)}


@pytest.mark.parametrize("gain, offset", [(1, 0), (100, 3000)])
def test_a_limb_on_a_background_is_told_from_what_fills_the_frame(gain, offset):
    for drawn, limb in ((draw_hand()[0], True), (draw_hand((128, 96))[0], True), (draw_chest(), False)):
        pixels = drawn if gain == 1 else (drawn.astype(float) * gain + offset).astype(np.uint16)
        for turned in (pixels, pixels.max() - pixels):
            assert (limb_evidence(Film(turned, 8 if gain == 1 else 16)) > 1) == limb
    assert limb_evidence(Film(np.full((40, 40), 7, np.uint8), 8)) == 0


def test_built_in_films_show_limbs():
    films = [draw_film(plan, seed=3, size=256).pixels for plan in plan_films(seed=3, patients=6)]
    assert sum(limb_evidence(Film(pixels, 8)) > 0 for pixels in films) >= 0.9 * len(films)


@pytest.mark.parametrize("many", [1, 2, 5])
def test_a_source_of_any_size_gets_a_recipe_and_a_reason(tmp_path, many):
    choice = choose_recipe(write(tmp_path / "limbs", **limbs(many)))
    films = "1 film sampled shows" if many == 1 else f"{many} films sampled show"
    assert choice.recipe == "limb" and choice.reason() == f"recipe limb: {many} of {films} a limb on a background"
    choice = choose_recipe(write(tmp_path / "chests", **chests(many)))
    assert choice.recipe == "plain" and choice.reason() == f"recipe plain: {many} of {films} what fills the frame"
    assert choice.misfit_notes("plain") == ()


def test_films_that_do_not_fit_are_counted_and_named(tmp_path):
    choice = choose_recipe(write(tmp_path / "films", **limbs(9), **chests(4)))
    assert choice.recipe == "limb" and "9 of 13 films sampled show a limb" in choice.reason()
    (note,) = choice.misfit_notes("limb")
    assert note.startswith("4 of 13 films sampled do not fit the recipe limb: they show what fills the frame")
    assert "(--recipe plain): chest" in note and note.endswith(", ...") and note.count("chest") == 3
    (note,) = choice.misfit_notes("plain")
    assert note.startswith("9 of 13 films sampled do not fit the recipe plain: they show a limb on a background")


def test_a_mixed_source_is_said_to_be_mixed(tmp_path):
    choice = choose_recipe(write(tmp_path / "films", **limbs(3), **chests(3)))
    assert choice.recipe == "limb" and "3 of 6 films" in choice.reason() and "the films are mixed" in choice.reason()


def test_a_sample_is_spread_evenly_and_always_the_same(tmp_path):
    source = write(tmp_path / "films", **{f"film{n:03d}": np.full((20, 20), n, np.uint8) for n in range(2 * SAMPLE)})
    read = []

    class Reading:
        records = source.records

        def read(self, path):
            read.append(path)
            return source.read(path)

    first, again = choose_recipe(Reading()), choose_recipe(Reading())
    assert first == again and len(read) == 2 * SAMPLE and len(set(read)) == SAMPLE
    numbers = [int(path[4:7]) for path in read[:SAMPLE]]
    assert numbers[0] == 0 and numbers[-1] == 2 * SAMPLE - 1 and set(np.diff(numbers)) <= {2, 3}


def test_films_that_cannot_be_read_are_passed_over(tmp_path):
    source = write(tmp_path / "films", **chests(2))
    (tmp_path / "films" / "broken.png").write_bytes(b"no film")
    assert choose_recipe(open_source(tmp_path / "films")).reason().startswith("recipe plain: 2 of 2 films")
    nothing = Choice("limb", {}, 3)
    assert nothing.reason() == "recipe limb: none of the films looked at can be read"
    assert nothing.misfit_notes("limb") == () and source.records
