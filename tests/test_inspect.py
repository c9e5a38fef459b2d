import hashlib
import json
import warnings

import cv2
import numpy as np
import pytest

from preprocessing import InputError
from preprocessing.inspect import format, problems_first, sheet, summarise
from preprocessing.schema import Cache, Header, Row, Writer

SIZE = 32
NAMES = ["a $x_1$/1.png", "b/影^{2}.png", "c/" + "long" * 40 + ".png", "d\n/4.png", "e/5.png"]
FALLBACKS = ["", "mask", "carrier,hand", "", "mask"]


def film(i, shape=(60, 40)):
    """A PNG file with one bright square."""
    pixels = np.zeros(shape, np.uint8)
    pixels[20:40, 10:30] = 100 + i
    return cv2.imencode(".png", pixels)[1].tobytes()


def write(path, variants=("raw", "full-he"), **header):
    values = {
        "variants": variants,
        "size": SIZE,
        "dtype": "uint8",
        "recipe_json": "{}",
        "recipe_digest": "d",
        "source": "films",
        "source_kind": "folder",
        "source_hash": "h",
        "synthetic": True,
        "truth": False,
    }
    scale = SIZE / 60
    with Writer(path, Header(**(values | header)), total=6) as writer:
        for i, (name, fallbacks) in enumerate(zip(NAMES, FALLBACKS, strict=True)):
            row = Row(
                path=name,
                patient=f"p{i // 3}",
                study=f"p{i // 3}/s{i // 2}",
                label=(0, 0, 1, 1, -1)[i],
                split="train" if i else "",
                finding="fracture" if i == 2 else "",
                difficulty="",
                sha256=hashlib.sha256(film(i)).hexdigest(),
                height=60,
                width=40,
                depth=8,
                inverted=i == 4,
                fallbacks=fallbacks,
                carrier=None if "carrier" in fallbacks else [(2, 3), (38, 3), (38, 57), (2, 57)],
                box=None if "hand" in fallbacks else (10, 20, 30, 40),
                matrix_raw=[[scale, 0, 5.3], [0, scale, 0]],
                matrix_crop=[[1.6, 0, -15.7], [0, 1.6, -31.7]],
                grey=None,
                films={variant: np.full((SIZE, SIZE), 10 * i, np.uint8) for variant in variants},
                masks={stage: np.eye(SIZE, dtype=bool) for stage in ("raw", "crop", "full")},
            )
            writer.append(row)
        writer.fail("z.png", "cut short")
        writer.finish()
    return Cache(path)


@pytest.fixture
def cache(tmp_path):
    return write(tmp_path / "t.h5")


class Films:
    """A source of which every film is `film(shift + its number)`."""

    def __init__(self, shift=0):
        self.shift = shift

    def read(self, name):
        return film(NAMES.index(name) + self.shift)


class NoFilms:
    def read(self, name):
        raise FileNotFoundError(name)


def test_a_summary_counts_and_is_plain_data(cache):
    summary = summarise(cache)
    assert json.loads(json.dumps(summary)) == summary
    assert (summary["films"], summary["studies"], summary["patients"]) == (5, 4, 2)
    assert summary["labels"] == {"abnormal": 2, "normal": 2, "unknown": 1}
    assert summary["splits"] == {"train": 4, "none": 1}
    assert summary["findings"] == {"fracture": 1}
    assert summary["depths"] == {"8": 5}
    assert summary["shapes"] == {"40 x 60": 5}
    assert summary["films_per_study"] == {"1": 3, "2": 1}
    assert summary["films_per_patient"] == {"2": 1, "3": 1}
    assert summary["fallbacks"] == {"mask": 2, "carrier": 1, "hand": 1}
    assert [problem["row"] for problem in summary["problems"]] == [2, 1, 4]
    assert summary["failures"] == [{"path": "z.png", "reason": "cut short"}]
    assert (summary["inverted"], summary["truth"]) == (1, 0)


def test_problem_films_come_first(cache):
    assert problems_first(cache).tolist() == [2, 1, 4, 0, 3]
    assert problems_first(cache, np.array([3, 4, 0])).tolist() == [4, 3, 0]
    assert problems_first(cache, np.array([], int)).tolist() == []


def test_a_summary_reads_as_lines(cache):
    lines = format(summarise(cache), most=2)
    assert lines[0].endswith("t.h5: 5 films, 4 studies, 2 patients")
    assert lines[1] == "source        films (folder), SYNTHETIC"
    summary = summarise(cache) | {"films": 1, "studies": 1, "patients": 1}
    assert format(summary)[0].endswith("t.h5: 1 film, 1 study, 1 patient")
    assert "labels        abnormal: 2, normal: 2, and 1 more" in lines
    assert "  b/影^{2}.png: no mask found" in lines
    assert "  and 1 more" in lines
    assert "  z.png: cut short" in lines
    assert all("\n" not in line for line in lines)


@pytest.mark.parametrize("variants", [("raw", "full-he"), ("full",)])
@pytest.mark.parametrize("source", [Films(), None], ids=["films", "no films"])
def test_a_sheet_is_drawn_from_films_or_without(tmp_path, variants, source):
    (tmp_path / "new").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = sheet(write(tmp_path / "t.h5", variants), source, tmp_path / "new/sheet.png")
    picture = cv2.imread(str(out))
    assert picture.shape[1] == 1200
    assert picture.std() > 10
    assert [path.name for path in out.parent.iterdir()] == ["sheet.png"]


def colours(path):
    """Pixels drawn in the colours of the outlines: carrier (orange), crop (cyan)."""
    blue, green, red = cv2.imread(str(path)).astype(int).transpose(2, 0, 1)
    return ((red > 240) & (green > 140) & (green < 190) & (blue < 30)).sum(), (
        (red < 30) & (green > 240) & (blue > 240)
    ).sum()


def test_outlines_are_drawn_where_they_were_found(cache, tmp_path):
    orange, cyan = colours(sheet(cache, Films(), tmp_path / "found.png", np.array([0])))
    assert orange > 100 and cyan > 100
    assert colours(sheet(cache, Films(), tmp_path / "none.png", np.array([2]))) == (0, 0)
    orange, cyan = colours(sheet(cache, None, tmp_path / "stored.png", np.array([0])))
    assert orange > 100 and cyan > 100


def test_the_crop_is_outlined_where_it_was_cut(cache):
    from preprocessing.inspect import _crop

    np.testing.assert_allclose(_crop(cache, 0), np.array([(10, 20), (30, 20), (30, 40), (10, 40)]) - 0.5, atol=1e-9)
    assert np.isnan(_crop(cache, 2)).all()


def test_a_film_that_is_gone_or_changed_is_replaced_by_what_is_stored(cache, tmp_path):
    stored = sheet(cache, None, tmp_path / "a.png").read_bytes()
    assert sheet(cache, NoFilms(), tmp_path / "b.png").read_bytes() == stored
    changed = sheet(cache, Films(50), tmp_path / "c.png").read_bytes()
    assert changed != sheet(cache, Films(), tmp_path / "d.png").read_bytes()


def test_bad_requests_are_named(cache, tmp_path):
    with pytest.raises(InputError, match="0 films for a contact sheet; choose 1 to 200"):
        sheet(cache, None, tmp_path / "a.png", np.array([], int))
    with pytest.raises(InputError, match="no variant 'crop'"):
        sheet(cache, None, tmp_path / "a.png", variant="crop")
    with pytest.raises(InputError, match=r"no picture format '\.xyz'; there are: .*png"):
        sheet(cache, None, tmp_path / "a.xyz")
    with pytest.raises(InputError, match=r"there is no folder .*missing; make it, or name another"):
        sheet(cache, None, tmp_path / "missing/a.png")
    assert [path.name for path in tmp_path.iterdir()] == ["t.h5"]


def test_no_figure_stays_behind(cache, tmp_path):
    import matplotlib.pyplot as plt

    sheet(cache, Films(), tmp_path / "a.png")
    assert plt.get_fignums() == []
