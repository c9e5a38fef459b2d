import hashlib
import itertools
import json
import warnings

import cv2
import numpy as np
import pytest

from preprocessing import InputError, inspect, steps
from preprocessing.build import BuildOptions, build
from preprocessing.cache.reader import Cache
from preprocessing.cache.schema import BOX_CLASSES, Header, Row
from preprocessing.cache.writer import Writer
from preprocessing.inspect import format, problems_first, sheet, summarise
from preprocessing.recipe import Localization, Nets, Recipe
from preprocessing.sources import open_source

SIZE = 32
NAMES = ["a $\\frac{$/1.png", "b/影^{2}.png", "c/" + "long" * 40 + ".png", "d\n/4.png", "e/صورة अ 😀.png"]
FALLBACKS = ["", "mask", "carrier,hand", "", "mask"]
FAILURES = [
    ("z.png", "cut short"),
    ("y.png", "9 x 12 pixels; a film needs 16"),
    ("x.png", "8 x 7 pixels; a film needs 16"),
    ("w.png", r"no PNG (it begins with b'\x89P\'N')"),
    ("v.png", 'no PNG (it begins with b"it\'s 1")'),
]


def film(i, shape=(60, 40)):
    """A PNG file with one bright square."""
    pixels = np.zeros(shape, np.uint8)
    pixels[20:40, 10:30] = 100 + i
    return cv2.imencode(".png", pixels)[1].tobytes()


def write(path, variants=("raw", "full-he"), names=NAMES, rows=None, **header):
    """A cache of a row for each name; `rows` holds columns that are others than a plain film's, one dict a row."""
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
    rows = [{"fallbacks": fallbacks} for fallbacks in FALLBACKS] if rows is None else rows
    scale = SIZE / 60
    with Writer(path, Header(**(values | header)), total=len(set(names)) + len(FAILURES)) as writer:
        made = []
        for i, (name, told) in enumerate(zip(names, rows, strict=True)):
            fallbacks = told.get("fallbacks", "")
            row = {
                "path": name,
                "patient": f"p{i // 3}",
                "study": f"p{i // 3}/s{i // 2}",
                "label": (0, 0, 1, 1, -1)[i % 5],
                "split": "train" if i else "",
                "finding": "fracture" if i == 2 else "",
                "difficulty": "",
                "sha256": hashlib.sha256(film(i)).hexdigest(),
                "height": 60,
                "width": 40,
                "depth": 8,
                "inverted": i == 4,
                "fallbacks": "",
                "carrier": None if "carrier" in fallbacks else [(2, 3), (38, 3), (38, 57), (2, 57)],
                "box": None if "hand" in fallbacks else (10, 20, 30, 40),
                "matrix_raw": [[scale, 0, 5.3], [0, scale, 0]],
                "matrix_crop": [[1.6, 0, -15.7], [0, 1.6, -31.7]],
                "grey": None,
                "films": {variant: np.full((SIZE, SIZE), 10 * i % 256, np.uint8) for variant in variants},
                "masks": {stage: np.eye(SIZE, dtype=bool) for stage in ("raw", "crop", "full")},
            }
            made.append(Row(**(row | told)))
        for _, film_rows in itertools.groupby(made, key=lambda row: row.path):
            writer.append(*film_rows)
        for failure in FAILURES:
            writer.fail(*failure)
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


@pytest.fixture
def drawn(monkeypatch):
    """What sheets were drawn of: a dict of the films' lines, the columns and the figure, of the last one."""
    last = {}
    figure = inspect._figure

    def recorded(films, columns, heading, side):
        last.update(films=films, columns=columns, heading=heading, figure=figure(films, columns, heading, side))
        return last["figure"]

    monkeypatch.setattr(inspect, "_figure", recorded)
    return last


def words(line):
    return [text for text, _ in line.caption]


def red(line):
    return [text for text, colour in line.caption if colour == "firebrick"]


# Numbers --------------------------------------------------------------------------------------------------------------


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
    assert summary["failures"][0] == {"path": "z.png", "reason": "cut short"}
    assert (summary["inverted"], summary["truth"], summary["boxes"], summary["nets"]) == (1, 0, {}, {})


def test_a_summary_says_step_by_step_what_came_of_it(cache):
    assert summarise(cache)["steps"] == {
        "carrier": {"worked": 4, "fell_back": 0, "failed": 1, "left": 0},
        "inversion": {"worked": 1, "fell_back": 0, "failed": 0, "left": 4},
        "localisation": {"worked": 4, "fell_back": 0, "failed": 1, "left": 0},
        "mask": {"worked": 3, "fell_back": 0, "failed": 2, "left": 0},
    }


def test_steps_that_were_not_taken_are_not_counted(tmp_path):
    plain = Recipe(name="plain", size=SIZE, invert="never").to_json()
    rows = [{"carrier": None, "box": None, "inverted": False}] * 2
    assert summarise(write(tmp_path / "a.h5", names=NAMES[:2], rows=rows, recipe_json=plain))["steps"] == {}
    raw = write(tmp_path / "b.h5", ("raw",), names=NAMES[:1], rows=[{}], nets=nets("segmenter", "localizer"))
    assert list(summarise(raw)["steps"]) == ["carrier", "inversion", "localisation"]


def nets(*roles):
    return json.dumps({role: {"name": "net", "run": f"/runs/{role}", "digest": "0" * 12} for role in roles})


@pytest.mark.parametrize("seed", range(4))
def test_a_summary_of_any_cache_counts_what_its_index_says(tmp_path, seed):
    rng = np.random.default_rng(seed)
    rows, names = [], []
    for i in range(12):
        localizer, hand = bool(rng.integers(2)), bool(rng.integers(2))
        mask, segmenter, carrier = (bool(flag) for flag in rng.integers(2, size=3))
        box_given = bool(rng.integers(4) == 0)  # then neither carrier nor hand were looked for
        told = {"carrier": carrier and not box_given, "localizer": localizer and not box_given}
        told |= {"hand": told["localizer"] and hand, "segmenter": segmenter, "mask": segmenter and mask}
        rows.append(
            {
                "fallbacks": ",".join(name for name, found in told.items() if found),
                "carrier": None if told["carrier"] or box_given else np.zeros((4, 2)),
                "box": None if told["hand"] else (1, 2, 3, 4),
                "hand": (0, 0, 1, 2)[i % 4],
                "side": str(rng.choice(["left", "right", ""])),
                "turns": int(rng.integers(4)),
                "markers": int(rng.integers(3)),
                "given": not segmenter and bool(rng.integers(2)),
                "boxes": [(0, 0, 9, 9, number) for number in rng.integers(1, 5, rng.integers(4))],
                "depth": int(rng.choice([8, 12])),
            }
        )
        names.append(f"{i - (i % 4 == 3)}.png")
    cache = write(tmp_path / "t.h5", names=names, rows=rows, nets=nets("localizer", "segmenter"), boxes=True)
    index, summary = cache.index, summarise(cache)
    assert json.loads(json.dumps(summary)) == summary
    assert summary["nets"]["segmenter"]["run"] == "/runs/segmenter"
    assert all(sum(counts.values()) == len(cache) for counts in summary["steps"].values())
    assert list(summary["steps"]) == ["carrier", "inversion", "localisation", "markers", "mask"]
    said = [set(text.split(",")) for text in index["fallbacks"]]
    step = summary["steps"]
    assert step["carrier"]["failed"] == sum("carrier" in names for names in said)
    assert step["carrier"]["worked"] == sum(row["carrier"] is not None for row in rows)
    assert step["localisation"]["failed"] == sum("hand" in names for names in said)
    assert step["localisation"]["fell_back"] == sum("localizer" in names and "hand" not in names for names in said)
    assert step["localisation"]["left"] == step["carrier"]["left"]
    assert step["markers"]["worked"] == (index["markers"] > 0).sum()
    assert step["mask"]["failed"] == sum("mask" in names for names in said)
    assert step["mask"]["fell_back"] == sum("segmenter" in names and "mask" not in names for names in said)
    assert step["mask"]["left"] == summary["given"] == index["given"].sum()
    assert summary["markers"] == index["markers"].sum()
    assert summary["turned"] == {str(n): (index["turns"] == n).sum() for n in (1, 2, 3) if (index["turns"] == n).any()}
    assert all(count == (index["side"] == side).sum() for side, count in summary["sides"].items())
    assert summary["several_hands"] == len(cache) - len(set(index["path"])) == 3
    assert sum(summary["boxes"].values()) == sum(len(row["boxes"]) for row in rows)
    assert set(summary["boxes"]) <= set(BOX_CLASSES)
    assert [problem["name"] for problem in summary["problems"]] == [
        cache.names[row] for row in problems_first(cache) if index["fallbacks"][row]
    ]


def test_failures_of_one_kind_stand_together(cache):
    groups = summarise(cache)["reasons"]
    assert [(group["reason"], group["films"], group["examples"]) for group in groups] == [
        ("N x N pixels; a film needs N", 2, ["y.png", "x.png"]),
        ("no PNG (it begins with ...)", 2, ["w.png", "v.png"]),
        ("cut short", 1, ["z.png"]),
    ]
    assert sum(group["films"] for group in groups) == len(cache.failures)
    many = inspect._grouped([(f"{i}.png", f"page {i}") for i in range(5)])
    assert many == [{"reason": "page N", "films": 5, "examples": ["0.png", "1.png", "2.png"]}]
    assert inspect._grouped([("a.png", "page 5"), ("b.png", "page 5")])[0]["reason"] == "page 5"


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
    assert "  b/影^{2}.png: no foreground found" in lines
    assert [line.split() for line in lines if line.startswith(("steps", "  carrier"))] == [
        ["steps", "worked", "fell", "back", "failed", "left"],
        ["carrier", "4", "0", "1", "0"],
    ]
    assert "  and 1 more" in lines
    assert "failures      5" in lines
    assert "  2 films: N x N pixels; a film needs N (y.png, x.png)" in lines
    assert len({len(line) for line in lines if line.startswith(("steps", "  carrier", "  mask"))}) == 1


def test_lines_hold_no_control_characters_whatever_the_names(tmp_path):
    rows = [{"fallbacks": "mask", "finding": "a\n\x1b[2Jb"}]
    lines = format(summarise(write(tmp_path / "t.h5", names=["d\n\x1b[1m.png"], rows=rows, nets=nets("segmenter"))))
    assert "  d??[1m.png: no foreground found" in lines
    assert "segmenter     net 000000000000, trained in /runs/segmenter" in lines
    assert all(line.isprintable() for line in lines)


# The sheet ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variants", [("raw", "full-he"), ("full",)])
@pytest.mark.parametrize("source", [Films(), None], ids=["films", "no films"])
@pytest.mark.parametrize("suffix", ["png", "pdf"])
def test_a_sheet_is_drawn_whatever_the_names(tmp_path, variants, source, suffix):
    (tmp_path / "new").mkdir()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        out = sheet(write(tmp_path / "t.h5", variants), source, tmp_path / f"new/sheet.{suffix}")
    assert out.stat().st_size > 1000
    assert suffix == "pdf" or cv2.imread(str(out)).std() > 10
    assert [path.name for path in out.parent.iterdir()] == [out.name]


def test_a_sheet_has_a_column_for_each_step_taken(cache, tmp_path, drawn):
    sheet(cache, Films(), tmp_path / "a.png")
    assert list(drawn["columns"]) == ["film", "upright", "crop", "mask", "result"]
    assert len(drawn["films"]) == 5
    sheet(write(tmp_path / "b.h5", ("raw",)), Films(), tmp_path / "a.png")
    assert list(drawn["columns"]) == ["film", "upright", "result"]
    sheet(write(tmp_path / "c.h5", ("crop-he",)), Films(), tmp_path / "a.png")
    assert list(drawn["columns"]) == ["film", "upright", "crop", "result"]


def test_a_plain_sheet_has_no_columns_of_steps_that_were_not_taken(tmp_path, drawn):
    plain = Recipe(name="plain", size=SIZE, invert="never").to_json()
    rows = [{"carrier": None, "box": None, "inverted": False}] * 2
    sheet(write(tmp_path / "a.h5", names=NAMES[:2], rows=rows, recipe_json=plain), Films(), tmp_path / "a.png")
    assert list(drawn["columns"]) == ["film", "result"]
    rows[0] = rows[0] | {"box": (10, 20, 30, 40), "given": True}  # both came with the film
    sheet(write(tmp_path / "b.h5", names=NAMES[:2], rows=rows, recipe_json=plain), Films(), tmp_path / "b.png")
    assert list(drawn["columns"]) == ["film", "upright", "crop", "mask", "result"]


def test_without_films_only_what_is_stored_is_shown_and_it_is_said(tmp_path, drawn):
    for variants, columns in ((("raw", "full-he"), ["film", "mask", "result"]), (("full",), ["mask", "result"])):
        cache = write(tmp_path / f"{variants[0]}.h5", variants)
        for source, note in (
            (None, "film not at hand"),
            (NoFilms(), "film not at hand"),
            (Films(50), "film has changed since"),
        ):
            sheet(cache, source, tmp_path / "a.png")
            assert list(drawn["columns"]) == columns
            assert all(red(line)[0] == note for line in drawn["films"])
    sheet(write(tmp_path / "crop.h5", ("crop", "full")), None, tmp_path / "a.png")
    assert list(drawn["columns"]) == ["crop", "mask", "result"]


def test_one_missing_film_leaves_the_columns_of_the_others(cache, tmp_path, drawn):
    class Some(Films):
        def read(self, name):
            return NoFilms().read(name) if name == NAMES[0] else super().read(name)

    sheet(cache, Some(), tmp_path / "a.png")
    assert list(drawn["columns"]) == ["film", "upright", "crop", "mask", "result"]
    assert [line.note for line in drawn["films"]].count("film not at hand") == 1
    texts = [text.get_text() for text in drawn["figure"].axes[0].texts]
    assert texts.count("film not at hand") == 3  # in its caption, and in place of two panels


def test_a_caption_tells_what_the_steps_did(tmp_path, drawn):
    did = {"side": "right", "turns": 1, "markers": 2, "given": True, "inverted": True}
    lost = {"fallbacks": "carrier,localizer,hand,segmenter,mask"}
    both = [{"hand": 1, "side": "left", "markers": 1}, {"hand": 2}]
    out = tmp_path / "a.png"
    for rows, names in (([did, lost], ["a.png", "b.png"]), (both, ["c.png", "c.png"])):
        cache = write(
            tmp_path / f"{names[0]}.h5", names=names, rows=rows, nets=nets("localizer", "segmenter"), recipe_json="{}"
        )
        sheet(cache, None, out)
        if rows[0] is did:
            lines = {words(line)[0]: line for line in drawn["films"]}
            assert {"inverted", "turned by a quarter", "right hand", "2 markers blanked", "mask given"} < set(
                words(lines["a.png"])
            )
            assert red(lines["a.png"]) == ["film not at hand"]
            assert red(lines["b.png"])[1:] == [
                "no carrier found",
                "localizer found nothing, classical way taken",
                "no hand found",
                "segmenter found nothing, classical way taken",
                "no foreground found",
            ]
            assert words(drawn["films"][0])[0] == "b.png", "problem films come first"
        else:
            assert [words(line)[0] for line in drawn["films"]] == ["c.png#1", "c.png#2"]
            assert {"left hand", "1 marker blanked"} < set(words(drawn["films"][0]))
            assert not {"left hand", "right hand"} & set(words(drawn["films"][1]))
    assert inspect._told(["localizer"], {"hand": "none"}) == ["localizer found nothing, nothing else asked"]


@pytest.mark.parametrize("variants", [("raw", "full-he"), ("full",)])
@pytest.mark.parametrize("source", [Films(), NoFilms()], ids=["films", "no films"])
def test_texts_lie_on_the_sheet_and_over_nothing(tmp_path, drawn, variants, source):
    lost = {"fallbacks": "carrier,localizer,hand,segmenter,mask", "finding": "x" * 200, "markers": 3}
    cache = write(tmp_path / "t.h5", variants, rows=[lost, {}, lost, {}, {}], nets=nets("localizer", "segmenter"))
    sheet(cache, source, tmp_path / "a.png")
    figure = drawn["figure"]
    (axes,) = figure.axes
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph|Matplotlib")
        boxes = [text.get_window_extent() for text in axes.texts if text.get_text()]
    width, height = figure.get_size_inches() * figure.dpi
    for box in boxes:
        assert box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height
    for one, other in itertools.combinations(boxes, 2):
        assert min(one.x1, other.x1) - max(one.x0, other.x0) <= 0 or min(one.y1, other.y1) - max(one.y0, other.y0) <= 1
    canvas = axes.images[0].get_array()
    for box in boxes:
        under = canvas[round(height - box.y1) + 2 : round(height - box.y0) - 2, round(box.x0) : round(box.x1)]
        assert np.isin(under, (255, inspect.EMPTY)).all()
    assert all(max(panel.picture.shape) >= 150 for line in drawn["films"] for panel in line.panels.values())


@pytest.mark.parametrize("variants", [("full",), ("raw", "full"), ("raw", "crop", "full")])
def test_the_longest_sheet_can_be_drawn(tmp_path, drawn, variants):
    lost = {"fallbacks": "carrier,localizer,hand,segmenter,mask", "finding": "w" * 99, "markers": 3, "hand": 1}
    lost |= {"inverted": True, "turns": 3, "side": "right", "label": 1}
    rows, names = [lost, lost | {"hand": 2}], ["w" * 99] * 2
    sheet(
        write(tmp_path / "t.h5", variants, names, rows, nets=nets("localizer", "segmenter")), None, tmp_path / "a.png"
    )
    assert drawn["figure"].get_size_inches()[1] / 2 * drawn["figure"].dpi * inspect.SHEET_FILMS < 2**16


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


def test_outlines_beside_a_film_do_not_run_into_its_neighbours(tmp_path):
    beside = [(-30, -30), (70, -30), (70, 90), (-30, 90)]
    cache = write(tmp_path / "t.h5", names=NAMES[:1], rows=[{"carrier": beside}])
    assert colours(sheet(cache, Films(), tmp_path / "a.png"))[0] == 0


def test_the_crop_is_outlined_where_it_was_cut(cache):
    np.testing.assert_allclose(
        inspect._crop(cache, 0), np.array([(10, 20), (30, 20), (30, 40), (10, 40)]) - 0.5, atol=1e-9
    )
    assert np.isnan(inspect._crop(cache, 2)).all()


def on_a_plate(tilt=0.0, *, inverted=False, turns=0):
    """A film (300, 260) uint8 with an L and a blob, so that no turn looks like another, on a tilted plate."""
    rng = np.random.default_rng(5)
    plate = np.full((300, 260), 0, np.uint8)
    plate[30:270, 30:230] = 70
    plate[80:270, 110:140] = np.linspace(120, 220, 190)[:, None]
    plate[80:110, 110:190] = np.linspace(220, 150, 80)
    cv2.circle(plate, (90, 150), 18, 170, -1)
    matrix = cv2.getRotationMatrix2D((130, 150), tilt, 1)
    plate = cv2.warpAffine(plate, matrix, (260, 300))
    plate = np.clip(plate + rng.integers(0, 6, plate.shape), 0, 255).astype(np.uint8)
    return np.ascontiguousarray(np.rot90(steps.invert(plate) if inverted else plate, turns))


class Finds:
    """A localizer that finds the same on every film: hands as shares of it as turned."""

    name, run, digest = "ssd", "/runs/ssd", "0" * 12

    def __init__(self, *hands, turns=0, markers=()):
        self.hands, self.turns, self.markers = hands, turns, markers

    def __call__(self, film):
        height, width = film.shape[::-1] if self.turns % 2 else film.shape
        scaled = [
            [(side, tuple(np.array(box) * (width, height, width, height))) for side, box in boxes]
            for boxes in (self.hands, self.markers)
        ]
        return Localization(tuple(scaled[0]), tuple(scaled[1]), self.turns)


HAND = ("right", (0.2, 0.15, 0.9, 0.8))


@pytest.mark.parametrize(
    ("pixels", "localizer"),
    [
        (on_a_plate(), None),
        (on_a_plate(7.0), None),
        (on_a_plate(inverted=True), None),
        (on_a_plate(-5.0, inverted=True, turns=1), Finds(HAND, turns=3)),
        (on_a_plate(4.0, turns=2), Finds(HAND, turns=2)),
        (on_a_plate(turns=3).astype(np.uint16) * 13, Finds(HAND, turns=1)),
        (on_a_plate(), Finds(("left", (0, 0, 0.5, 1)), ("right", (0.5, 0, 1, 1)))),
        (on_a_plate(), Finds(HAND, markers=(("left", (0.7, 0.7, 0.8, 0.78)),))),
    ],
    ids=["upright", "tilted", "inverted", "quarter", "half", "16 bit", "two hands", "markers"],
)
@pytest.mark.parametrize("side", ["same", "larger"])
def test_what_is_shown_is_what_was_done(tmp_path, pixels, localizer, side):
    """The crop redrawn from the film and the index is the crop that is stored, and the mask's outline runs round it."""
    size = 96
    (tmp_path / "films").mkdir()
    cv2.imwrite(str(tmp_path / "films/1.png"), pixels)
    source, recipe = open_source(tmp_path / "films"), Recipe(size=size, mask="otsu")
    build(
        source,
        recipe,
        tmp_path / "t.h5",
        nets=Nets(localizer=localizer),
        options=BuildOptions(variants=("full",), workers=1),
    )
    cache = Cache(tmp_path / "t.h5")
    assert np.isfinite(cache.index["box"]).all()
    for row in range(len(cache)):
        factor = 1 if side == "same" else 2
        panels = inspect._line(cache, row, source, "full", recipe, size * factor).panels
        stored, mask = cache.films("full", np.array([row]))[0], cache.masks("full", np.array([row]))[0]
        x0, y0, x1, y1 = cache.index["box"][row]
        fitted = steps.fit_matrix((int(y1 - y0), int(x1 - x0)), size)
        width, height = round(fitted[0, 0] * (x1 - x0)), round(fitted[1, 1] * (y1 - y0))
        left, top = (round(fitted[i, 2] - fitted[i, i] / 2 + 0.5) for i in (0, 1))
        redrawn = cv2.resize(panels["crop"].picture, (width, height), interpolation=cv2.INTER_AREA)
        inside = mask[top : top + height, left : left + width]
        assert inside.sum() > 0.9 * mask.sum() > 100
        levels = redrawn[inside].astype(float), stored[top : top + height, left : left + width][inside].astype(float)
        assert np.corrcoef(*levels)[0, 1] > 0.98
        longest = max((points for points, _ in panels["mask"].outlines), key=len)
        x, y = np.clip((longest / factor).astype(int), 0, (width - 1, height - 1)).T
        assert inside[y, x].mean() > 0.9
        assert (steps_away(inside)[y, x] <= 2).mean() > 0.9
        assert panels["mask"].picture.shape == panels["crop"].picture.shape


def steps_away(mask):
    """How many pixels each pixel of a mask lies from its edge."""
    return cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L1, 3)[1:-1, 1:-1]


def test_blanked_markers_are_seen_where_the_crop_is_stored(tmp_path):
    (tmp_path / "films").mkdir()
    pixels = on_a_plate()
    pixels[210:230, 180:200] = 250
    cv2.imwrite(str(tmp_path / "films/1.png"), pixels)
    source, recipe = open_source(tmp_path / "films"), Recipe(size=96)
    finds = Finds(("right", (0, 0, 1, 1)), markers=(("left", (0.7, 0.7, 0.9, 0.88)),))
    brightest = {}
    for variants in (("full",), ("crop", "full")):
        path = tmp_path / f"{len(variants)}.h5"
        build(source, recipe, path, nets=Nets(localizer=finds), options=BuildOptions(variants=variants, workers=1))
        cache = Cache(path)
        assert cache.index["markers"].tolist() == [1]
        crop = inspect._line(cache, 0, source, "full", recipe, 96).panels["crop"].picture
        brightest[variants] = crop[crop.shape[0] * 3 // 4 :, crop.shape[1] * 3 // 4 :].max() / np.median(crop)
        legend = inspect._columns(cache, np.array([0]), "full", recipe, at_hand=True)["crop"][1]
        assert legend == ("markers blanked" if "crop" in variants else "markers not blanked yet")
    assert brightest["full",] > 2 * brightest["crop", "full"]


def test_deep_films_have_a_fixed_scale(tmp_path):
    """Black is 0; white is the least full range of 8 to 16 bits that holds the film, not its own brightest level."""
    for white, top in ((255, 100), (4095, 3000), (65535, 40000)):
        panel = inspect._panel(np.array([[0, top]], np.uint16), white, 2, [])
        assert panel.picture.tolist() == [[0, round(255 * top / white)]]
    folder = tmp_path / "films"
    folder.mkdir()
    for name, top in (("a", 3000), ("b", 40000)):
        pixels = np.zeros((40, 40), np.uint16)
        pixels[10:30, 10:30] = top
        cv2.imwrite(str(folder / f"{name}.png"), pixels)
    recipe = Recipe(name="plain", size=32)
    build(open_source(folder), recipe, tmp_path / "t.h5", options=BuildOptions(variants=("raw",), workers=1))
    films = [
        inspect._line(Cache(tmp_path / "t.h5"), row, open_source(folder), "raw", recipe, 40)
        .panels["film"]
        .picture.max()
        for row in (0, 1)
    ]
    assert films == [round(255 * 3000 / 4095), round(255 * 40000 / 65535)]


@pytest.mark.parametrize("window", ["none", "voi"])
def test_a_film_is_shown_through_the_window_that_it_was_prepared_through(tmp_path, drawn, monkeypatch, window):
    asked, read = [], inspect.read_film
    monkeypatch.setattr(inspect, "read_film", lambda *film, window: (asked.append(window), read(*film))[1])
    recipe = Recipe(size=SIZE, window=window).to_json()
    sheet(write(tmp_path / "t.h5", names=NAMES[:1], rows=[{}], recipe_json=recipe), Films(), tmp_path / "a.png")
    assert asked == [window == "voi"]


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
