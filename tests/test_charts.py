"""Charts: what a scene holds, that both renderers draw all of it, and that neither lets text become markup."""

import re
import warnings
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from anomaly.evaluation.figures import Reliability
from anomaly.reporting.charts.histogram import score_histogram
from anomaly.reporting.charts.learning import learning_curve_png, learning_curves
from anomaly.reporting.charts.png import COLORS, png
from anomaly.reporting.charts.reliability import reliability_diagrams, reliability_png
from anomaly.reporting.charts.roc import RocCurve, roc_chart
from anomaly.reporting.charts.scene import TOP, Axis, Chart, Dot, Panel, log_ticks, ticks
from anomaly.reporting.charts.scene import Path as Line
from anomaly.reporting.charts.svg import svg

EVIL = '<script>alert("x")</script>&\'"><img src=x onerror=y>.png'
STYLESHEET = Path(__file__).parent.parent / "anomaly/reporting/templates/page.css"


def decoded(data: bytes) -> np.ndarray:
    """A PNG file as (H, W, 3) BGR; it must be opaque."""
    picture = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    assert picture.shape[2] == 3 or (picture[..., 3] == 255).all()
    return picture[..., :3]


RELIABILITY = Reliability.model_validate(
    {
        "brier": 0.123,
        "brier_interval": (0.101, 0.147),
        "brier_of_prevalence": 0.25,
        "bins": [
            {"low": 0.1, "high": 0.2, "n": 1, "mean_probability": 0.14, "share": 0.2, "share_interval": (0.05, 0.5)},
            {"low": 0.8, "high": 0.9, "n": 11, "mean_probability": 0.86, "share": 0.75, "share_interval": None},
        ],
    }
)


def one_of_each() -> Chart:
    chart = Chart(Axis(0, 1, EVIL), Axis(0, 10, EVIL), EVIL)
    chart.band([0, 0.5, 1], [1, 2, 3], [4, 5, 6], "three")
    chart.steps([0, 0.2, 0.4], [3, 5], "normal")
    chart.line([0, 0.5, 1, 2], [0, float("nan"), 99, 1], "one", dots=True)
    chart.point(0.5, 5, "two", title=EVIL)
    chart.point(0.5, float("inf"), "two")
    chart.diamond(0.7, 5, "four", title=EVIL)
    chart.segment((0.1, 8), (0.9, 8), "chance")
    chart.row_label(3, EVIL, "strong")
    return chart


# -------------------------------------------------------------------------------------------------------------- scene


def test_a_line_is_broken_where_it_is_not_finite_and_cut_at_the_edge():
    chart = one_of_each()
    line = next(mark for mark in chart.marks if isinstance(mark, Line) and mark.kind == "line")
    assert [len(part) for part in line.parts] == [1, 2]
    assert line.parts[1] == ((chart.right, TOP), (chart.right, chart.place(0, 1)[1]))  # (1, 99), (2, 1)
    assert sum(isinstance(mark, Dot) for mark in chart.marks) == 3 + 1


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3e-9, 2e-9), (0.0831, 0.0833), (1e7, 9e7), (-1, 0)])
def test_ticks_are_few_and_inside(low, high):
    values = ticks(low, high, most=6)
    assert 2 <= len(values) <= 7 and min(values) >= low - 1e-12 and max(values) <= high + 1e-12


@given(st.floats(1e-12, 1e12), st.floats(10, 1e9))
def test_logarithmic_ticks_are_few_and_inside(low, factor):
    values = log_ticks(low, low * factor, most=6)
    assert 2 <= len(values) <= 7 and values == sorted(set(values))
    assert min(values) >= low and max(values) <= low * factor


@given(st.integers(-5, 1000), st.integers(0, 1000))
def test_ticks_of_epochs_are_whole_numbers(low, extent):
    values = Axis(low, low + extent, whole=True).ticks
    assert values and all(value == round(value) for value in values)


def test_an_axis_has_an_extent():
    axis = Axis(1.0, 1.0)
    assert (axis.low, axis.high) == (0.5, 1.5) and axis.share(1.0) == 0.5
    with pytest.raises(ValueError, match="must be above 0"):
        Axis(0, 1, log=True)


def test_a_logarithmic_axis_sets_decades_evenly_apart():
    axis = Axis(1e-3, 1, log=True)
    assert [axis.share(value) for value in (1e-4, 1e-3, 1e-2, 1e-1, 1)] == pytest.approx([0, 0, 1 / 3, 2 / 3, 1])


# ---------------------------------------------------------------------------------------------------------- renderers


def test_svg_escapes_and_has_every_mark():
    markup = str(svg(one_of_each()))
    elements = list(ElementTree.fromstring(markup).iter())
    assert {element.tag for element in elements} == {"svg", "path", "circle", "text", "title"}
    assert [element.text for element in elements].count(EVIL) == 5  # both axes, two tooltips, the row's
    kinds = [element.get("class") for element in elements]
    for kind in ("band three", "area normal", "line one", "dot two", "hollow four", "stroke chance", "row strong"):
        assert kinds.count(kind) == 1
    assert "nan" not in markup and "inf" not in markup
    assert markup == str(svg(one_of_each()))


def test_png_has_every_mark_in_its_color_at_its_place():
    chart = one_of_each()
    picture = decoded(
        png([Panel(EVIL, (chart,), (("one", EVIL), ("muted dashed", "$x$")))], columns=1, synthetic=False)
    )
    assert (picture[0, 0] == 255).all()
    for name in ("one", "two", "three", "four"):
        color = np.array([int(COLORS[name][i : i + 2], 16) for i in (5, 3, 1)])
        blend = 255 - 0.16 * (255 - color) if name == "three" else color  # a band is translucent
        assert (abs(picture - blend).max(axis=-1) < 4).sum() > 10, name
    bare = Chart(chart.x, chart.y, "")
    assert (decoded(png([Panel("", (bare,))], columns=1, synthetic=False)) < 255).any()


def test_a_dot_lies_at_the_same_pixel_in_both():
    chart = Chart(Axis(0, 1), Axis(0, 1), "", width=200, height=100)
    chart.point(0.25, 0.75, "two", radius=4)
    svg_x, svg_y = map(float, re.search(r'cx="(.*?)" cy="(.*?)"', str(svg(chart))).groups())
    picture = decoded(png([Panel("", (chart,))], columns=1, synthetic=False)).astype(int)
    rows, columns = np.nonzero(picture[..., 2] - picture[..., 0] > 100)  # orange
    margin, title, scale = 16, 22, 2
    assert columns.mean() / scale - margin == pytest.approx(svg_x, abs=1)
    assert rows.mean() / scale - margin - title == pytest.approx(svg_y, abs=1)


def test_colors_are_those_of_the_pages_light_theme():
    variables = dict(re.findall(r"--(\w+): (#\w{6})", STYLESHEET.read_text().split("prefers-color-scheme")[0]))
    assert {name: variables[name] for name in COLORS} == COLORS


def test_synthetic_films_are_named_above():
    panels = reliability_diagrams({"film": RELIABILITY})
    real, synthetic = (decoded(png(panels, columns=1, synthetic=synthetic)) for synthetic in (False, True))
    added = len(synthetic) - len(real)
    assert added > 0 and (synthetic[added + 40 :] == real[40:]).all() and (synthetic[:added] < 128).any()


def test_panels_lie_in_columns():
    panels = [Panel("", (Chart(Axis(0, 1), Axis(0, 1), "", width=100, height=60),))] * 5
    shapes = [decoded(png(panels, columns=columns, synthetic=False)).shape[:2] for columns in (1, 2, 5)]
    assert shapes[0][1] < shapes[1][1] < shapes[2][1] and shapes[0][0] > shapes[1][0] > shapes[2][0]
    with pytest.raises(ValueError, match="no panel"):
        png([], columns=1, synthetic=False)


def test_text_without_a_letter_of_the_font_is_drawn_with_a_warning_only():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert decoded(png([Panel("膝 $\\frac$", (one_of_each(),))], columns=1, synthetic=False)).size


# ------------------------------------------------------------------------------------------------------- single charts


def test_training_and_validation_share_a_panel_where_both_were_measured():
    columns = {"epoch": [0, 1], "net.loss": [2.0, 1.0], "validation": [2.0, 1.5], "seconds": [9.0, 8.0]}
    measured = {"accuracy": [0.5, 0.6], "validation_accuracy": [0.5, 0.55], "validation_gap": [0.1, 0.2]}
    panels = learning_curves(columns | measured)
    assert [panel.title for panel in panels] == ["net.loss", "validation", "accuracy", "validation_gap"]
    assert [panel.charts[0].x.label for panel in panels] == ["epoch"] * 4
    assert panels[2].legend == (("one", "training"), ("two", "validation"))
    assert not panels[0].legend
    assert len(decoded(learning_curve_png(columns | measured, synthetic=True)))


def test_losses_that_span_a_decade_above_0_have_a_logarithmic_axis():
    wide, narrow, crossing = [1.0, 0.1, 0.01], [1.0, 0.9, 0.8], [100.0, 1.0, -1.0]
    history = {"epoch": [1, 2, 3], "net.wide": wide, "net.narrow": narrow, "net.crossing": crossing}
    history |= {"validation": wide, "accuracy": wide}
    axes = {panel.title: panel.charts[0].y for panel in learning_curves(history)}
    assert {title for title, axis in axes.items() if axis.log} == {"net.wide", "validation"}
    for title, axis in axes.items():
        assert axis.low < min(history[title]) and max(history[title]) < axis.high


def test_values_that_are_missing_leave_a_gap():
    (panel,) = learning_curves({"epoch": [1, 2, 3, 4], "roc_auc": [0.5, None, 0.6, float("nan")], "never": [None] * 4})
    assert panel.title == "roc_auc"
    assert sum(isinstance(mark, Dot) for mark in panel.charts[0].marks) == 2


def test_a_run_of_one_epoch_has_curves():
    (panel,) = learning_curves({"epoch": [1], "loss": [0.0]})
    assert panel.charts[0].x.ticks == [1] and decoded(learning_curve_png({"loss": [1.0]}, synthetic=False)).size


def test_the_reliability_diagram_is_the_same_on_the_page_and_in_the_file():
    reliabilities = dict.fromkeys(("film", "study", "patient"), RELIABILITY)
    panels = reliability_diagrams(reliabilities)
    assert [panel.title for panel in panels] == [
        f"By {unit}, Brier score .123 [.101, .147]" for unit in ("film", "study")
    ]
    assert reliability_png(reliabilities, synthetic=True) == png(panels, columns=2, synthetic=True)
    assert reliability_png({}, synthetic=True) is None
    titles = [mark.title for mark in panels[0].charts[0].marks if isinstance(mark, Dot)]
    assert titles == ["1 film at 0.14: .200 [.050, .500]", "11 films at 0.86: .750"]


def test_the_main_roc_curve_is_on_top_and_first_in_the_legend():
    x = np.array([0.0, 0.5, 1.0])
    curves = [RocCurve("mse", x, x**0.5, 0.7, (0.6, 0.8)), RocCurve("mean_grey", x, x, 0.5, None, trivial=True)]
    panel = roc_chart("film", curves, (x, x * 0.9, x))
    assert panel.legend == (("one", "mse .700 [.600, .800]"), ("muted dashed", "mean_grey .500"))
    assert [mark.style for mark in panel.charts[0].marks] == ["one", "chance", "muted dashed", "one thick"]


def test_the_histogram_holds_every_film_once():
    random = np.random.default_rng(0)
    labels, scores = np.repeat([0, 1, -1], 50), random.standard_cauchy(150)
    panel = score_histogram("mse", labels, scores, threshold=1e3)
    assert panel.legend[:2] == (("normal", "normal (50)"), ("abnormal", "abnormal (50)"))
    assert panel.charts[0].x.high > 1e3
