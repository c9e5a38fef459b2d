"""Whether films are like those of a training: as a set, and whether each shows the same part of the body."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import ks_2samp

from anomaly.data.dataset import FilmSet
from anomaly.evaluation.domain import LEAST_FILMS, MARGIN, SIDE, Domain, thumbnails
from anomaly.evaluation.shift import (
    COMPARED,
    EFFECT,
    FactColumns,
    by_patient,
    differences,
    domain_sentence,
    facts_of,
    shift_sentence,
)
from anomaly.pipeline.film_reference import FilmReference
from preprocessing import InputError
from preprocessing.cache.reader import Cache

Floats = NDArray[np.float64]


def pictures(count: int, kind: str, rng: np.random.Generator, size: int = 48) -> NDArray[np.float32]:
    """Films of a kind: a bright bar down the middle, or two bars across, each a little elsewhere, with noise."""
    y, x = np.mgrid[:size, :size] / size
    out = []
    for _ in range(count):
        move, width = rng.normal(0, 0.03), rng.uniform(0.08, 0.12)
        if kind == "bar":
            film = np.exp(-(((x - 0.5 - move) / width) ** 2))
        else:
            film = np.exp(-(((y - 0.3 - move) / width) ** 2)) + np.exp(-(((y - 0.7 - move) / width) ** 2))
        out.append(np.clip(0.1 + 0.6 * film + rng.normal(0, 0.03, film.shape), 0, 1))
    return np.array(out, np.float32)


def whole(films: NDArray[np.float32]) -> NDArray[np.bool_]:
    return np.ones(films.shape, np.bool_)


# --- domain ---------------------------------------------------------------------------------------------------------


@given(gain=st.floats(0.2, 1.0), offset=st.floats(0.0, 0.3), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_exposure_moves_no_thumbnail(gain: float, offset: float, seed: int) -> None:
    film = 0.6 * pictures(1, "bar", np.random.default_rng(seed))
    assert thumbnails(offset + gain * film, whole(film)) == pytest.approx(thumbnails(film, whole(film)), abs=2e-3)


@given(top=st.integers(0, 16), left=st.integers(0, 16), seed=st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_the_place_of_the_foreground_moves_no_thumbnail(top: int, left: int, seed: int) -> None:
    film = pictures(1, "bar", np.random.default_rng(seed))
    padded, mask = np.zeros((1, 64, 64), np.float32), np.zeros((1, 64, 64), np.bool_)
    padded[:, top : top + 48, left : left + 48], mask[:, top : top + 48, left : left + 48] = film, True
    assert thumbnails(padded, mask) == pytest.approx(thumbnails(film, whole(film)), abs=1e-4)


@given(seed=st.integers(0, 999), share=st.floats(0, 1), side=st.integers(1, 80))
@settings(max_examples=40, deadline=None)
def test_any_film_and_mask_has_a_finite_thumbnail(seed: int, share: float, side: int) -> None:
    rng = np.random.default_rng(seed)
    film = rng.random((2, side, side)).astype(np.float32)
    found = thumbnails(film, rng.random(film.shape) < share)
    assert found.shape == (2, SIDE * SIDE) and np.isfinite(found).all()


def test_another_kind_of_film_is_out_of_domain_and_new_ones_of_the_same_kind_are_not(
    rng: np.random.Generator,
) -> None:
    normals = thumbnails(films := pictures(200, "bar", rng), whole(films))
    domain, distances = Domain.fit(normals, np.arange(200))
    same, other = (thumbnails(films := pictures(100, kind, rng), whole(films)) for kind in ("bar", "bars"))
    assert (domain.distances(other) > domain.limit).all()
    assert (domain.distances(same) > domain.limit).mean() <= 0.03
    assert domain.usual < domain.limit <= MARGIN * distances.max()
    assert (distances <= domain.usual).mean() == pytest.approx(0.95, abs=0.01)


def test_a_film_is_not_compared_with_those_of_its_own_patient(rng: np.random.Generator) -> None:
    films = thumbnails(several := pictures(60, "bar", rng), whole(several))
    twice, patient = np.repeat(films, 6, axis=0), np.repeat(np.arange(60), 6)
    _, distances = Domain.fit(twice, patient)
    _, apart = Domain.fit(twice, np.arange(360))
    assert apart == pytest.approx(0, abs=1e-5)  # five others are the same film
    assert (distances > 0.01).all()


def test_one_odd_film_among_the_normal_ones_does_not_make_it_usual(rng: np.random.Generator) -> None:
    films = np.concatenate([pictures(200, "bar", rng), pictures(1, "bars", rng)])
    domain, _ = Domain.fit(thumbnails(films, whole(films)), np.arange(201))
    other = pictures(20, "bars", rng)
    assert (domain.distances(thumbnails(other, whole(other))) > domain.limit).all()


def test_a_films_distance_does_not_depend_on_those_beside_it(rng: np.random.Generator) -> None:
    normals = rng.normal(size=(80, SIDE * SIDE)).astype(np.float32)
    domain, _ = Domain.fit(normals, np.arange(80))
    films = rng.normal(size=(600, SIDE * SIDE)).astype(np.float32)  # more than one chunk
    assert domain.distances(films)[510:515] == pytest.approx(domain.distances(films[510:515]), rel=1e-9)
    assert len(domain.distances(films[:0])) == 0


@pytest.mark.parametrize(("films", "patients"), [(LEAST_FILMS - 1, LEAST_FILMS - 1), (80, 1)])
def test_too_few_films_or_patients_are_no_domain(films: int, patients: int, rng: np.random.Generator) -> None:
    normals = rng.normal(size=(films, SIDE * SIDE)).astype(np.float32)
    with pytest.raises(ValueError, match="too few for a domain"):
        Domain.fit(normals, np.arange(films) % patients)


# --- shift ----------------------------------------------------------------------------------------------------------


def drawn(rng: np.random.Generator, patients: int, **moved: float) -> dict[str, Floats]:
    """Values of all that is compared, by chance, but for those moved by so many standard deviations."""
    return {name: rng.normal(size=patients) + moved.get(name, 0) for name in COMPARED}


def test_alike_films_are_seldom_called_unlike() -> None:
    """Eleven comparisons in each of 300 sets; of a sound test at most 1 % would be called unlike."""
    rng = np.random.default_rng(0)
    called = [bool(differences(drawn(rng, 100), drawn(rng, patients))) for patients in (8, 30, 300) for _ in range(100)]
    assert np.mean(called) <= 0.03


@pytest.mark.parametrize(("name", "by", "words"), [("brightness", -2, "gray levels darker"), ("score", 2, "higher")])
def test_a_moved_distribution_is_found_with_its_direction(name: str, by: float, words: str) -> None:
    rng = np.random.default_rng(1)
    (found,) = differences(drawn(rng, 100), drawn(rng, 60, **{name: by}))
    assert found.name == name and found.higher == (by > 0) and words in str(found) and found.p_value < 0.01


def test_the_largest_difference_is_named_first_but_another_body_part_before_it() -> None:
    rng = np.random.default_rng(2)
    found = differences(drawn(rng, 200), drawn(rng, 200, brightness=5, size=1.2, content=9))
    assert [one.name for one in found] == ["content", "brightness", "size"]
    sentence = shift_sentence(found, "the training", "calibrate")
    assert sentence.startswith("these films are unlike those of the training (what they show (another body part?) less")
    assert sentence.endswith("p-values and thresholds don't hold; calibrate")


def test_a_share_of_abnormal_films_is_no_shift_of_unlabelled_scores() -> None:
    rng = np.random.default_rng(3)
    normal = rng.normal(size=500)
    mixed = np.concatenate([rng.normal(size=210), rng.normal(5, 1, 90)])  # 30 % far above all normal ones
    assert not differences({"score": normal}, {"score": mixed})
    assert differences({"score": normal}, {"score": mixed}, abnormal=0)  # all said to be normal: a shift
    assert differences({"brightness": normal}, {"brightness": mixed})  # abnormal films aren't brighter
    assert differences({"score": normal}, {"score": rng.normal(5, 1, 300)})  # more than a share
    assert differences({"score": normal}, {"score": rng.normal(-2, 1, 300)})  # abnormal films don't score lower


def test_more_usual_content_is_no_difference() -> None:
    rng = np.random.default_rng(4)
    normal = rng.normal(size=300)
    assert not differences({"content": normal}, {"content": normal - 3})
    assert differences({"content": normal}, {"content": normal + 3})


@given(seed=st.integers(0, 10_000), n=st.integers(16, 60), m=st.integers(16, 60), ties=st.booleans())
@settings(max_examples=60, deadline=None)
def test_the_distance_is_that_of_kolmogorov_and_smirnov(seed: int, n: int, m: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    old, new = rng.normal(size=n), rng.normal(4, 1, m)
    if ties:
        old, new = old.round(), new.round()
    (found,) = differences({"size": old}, {"size": new})
    known = ks_2samp(old, new, method="exact")
    assert found.distance == pytest.approx(known.statistic) and found.higher
    assert found.p_value >= known.pvalue * 0.99  # the asymptotic one errs on the safe side


def test_a_small_difference_does_not_count_however_many_films_show_it() -> None:
    rng = np.random.default_rng(5)
    old, new = rng.normal(size=20_000), rng.normal(0.3, 1, 20_000)
    known = ks_2samp(old, new)
    assert known.pvalue < 1e-20 and known.statistic < EFFECT
    assert not differences({"size": old}, {"size": new})


def test_p_values_are_corrected_as_holm_does() -> None:
    rng = np.random.default_rng(6)
    old = drawn(rng, 200)
    new = drawn(rng, 100, brightness=1.5, size=1.0, depth=0.9)
    found = {one.name: one.p_value for one in differences(old, new)}
    alone = {name: differences({name: old[name]}, {name: new[name]})[0].p_value for name in found}
    for rank, name in enumerate(sorted(found, key=lambda name: alone[name])):
        assert found[name] == pytest.approx(alone[name] * (len(COMPARED) - rank), rel=1e-6)


def test_films_out_of_domain_are_counted_and_the_first_named() -> None:
    names = [f"{number}.png" for number in range(5)]
    said = domain_sentence(names, 14, "the training")
    assert said.startswith("5 of 14 films are unlike the films") and "0.png, 1.png, 2.png, ...;" in said
    assert "1 of 1 film is unlike the films of" in domain_sentence(names[:1], 1, "the training")


# --- facts and the file ---------------------------------------------------------------------------------------------


def test_facts_are_those_of_the_films_however_they_are_read(cache: Cache) -> None:
    films = FilmSet(cache, "full-he", np.arange(20), 64)
    facts = facts_of(films)
    assert set(facts.values) == set(COMPARED) - {"score", "content"}
    by_one = FactColumns(films)
    for place in range(20):
        by_one.add(slice(place, place + 1), films.part(slice(place, place + 1)))
    again = by_one.finish()
    assert (again.thumbnails == facts.thumbnails).all()
    for name, values in facts.values.items():
        assert (again.values[name] == values).all() and np.isfinite(values).all()
    part = films.part(slice(3, 4))
    levels = part.unit()[0][part.mask[0]]
    assert facts.values["brightness"][3] == pytest.approx(levels.mean(), rel=1e-5)
    assert facts.values["bright"][3] == pytest.approx(np.quantile(levels, 0.95), rel=1e-5)
    assert (facts.values["exposure"] == films.trivial_scores()["mean_grey"]).all()


def test_a_patient_counts_once() -> None:
    assert by_patient(np.array([1.0, 5.0, 3.0]), np.array(["b", "a", "b"])).tolist() == [5.0, 2.0]


def test_a_reference_comes_back_from_its_file(cache: Cache, tmp_path: Path) -> None:
    facts = facts_of(FilmSet(cache, "full-he", np.arange(len(cache)), 64))
    many = replace(facts, patient=np.arange(len(cache)))
    for known in (facts, many):
        made = FilmReference.of(known)
        made.write(tmp_path / "films.safetensors")
        read = FilmReference.read(tmp_path / "films.safetensors")
        assert read.limits == made.limits and (read.thumbnails == made.thumbnails).all()
        same_values(read.facts, made.facts)
    (tmp_path / "films.safetensors").write_bytes(b"no tensors")
    with pytest.raises(InputError, match=r"films.safetensors can't be read .*delete it"):
        FilmReference.read(tmp_path / "films.safetensors")


def test_local_films_extend_what_is_usual(cache: Cache, rng: np.random.Generator) -> None:
    facts = facts_of(FilmSet(cache, "full-he", np.arange(8), 64))

    def films_of(kind: str, count: int) -> FilmReference:
        films = thumbnails(some := pictures(count, kind, rng), whole(some))
        patient = np.arange(count)
        values = {name: np.resize(column, count) for name, column in facts.values.items()}
        return FilmReference.of(replace(facts, patient=patient, thumbnails=films, values=values), old.get(kind))

    old: dict[str, FilmReference] = {}
    training = films_of("bar", 100)
    old["bars"] = training
    local = films_of("bars", 60)
    other = thumbnails(some := pictures(20, "bars", rng), whole(some))
    before, after = training.domain, local.domain
    assert before is not None and (before.distances(other) > before.limit).all()
    assert after is not None and (after.distances(other) > after.limit).mean() <= 0.1
    assert len(local.facts["brightness"]) == len(local.facts["content"]) == 60  # of the local films alone


def same_values(one: Mapping[str, Floats], other: Mapping[str, Floats]) -> None:
    assert set(one) == set(other)
    for name, values in one.items():
        assert (values == other[name]).all()
