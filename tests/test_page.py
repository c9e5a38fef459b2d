"""The pages in a real browser: headless Chromium, told what to do over its debugging pipe.

Skipped where there is no Chromium; on Debian it is the package `chromium`.
"""

import base64
import json
import shutil
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from anomaly.pipeline.open_run import open_run
from anomaly.pipeline.results import write_page
from anomaly.reporting import page as report
from anomaly.runs import Run
from tests.browser import Browser, needs_browser
from tests.test_report import bench_page, classes, context, with_classes

pytestmark = needs_browser


@pytest.fixture(scope="module")
def pages(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of a run, of its wrong films, of a bench, and one whose every text is an attack."""
    mine = Run(Path(shutil.copytree(run.path, tmp_path_factory.mktemp("pages") / "cae")))
    write_page(open_run(mine, "cpu"))
    found = {name: mine.path / f"{name}.html" for name in ("report", "wrong", "bench", "evil")}
    found["bench"].write_text(bench_page())
    found["evil"].write_text(report.render_report(context()))
    return found


@pytest.mark.parametrize("name", ["report", "wrong", "bench", "evil"])
@pytest.mark.parametrize(("width", "dark"), [(1200, False), (390, True)])
def test_a_page_opens_without_a_complaint(browser, pages, name, width, dark):
    browser.open(pages[name], width=width, dark=dark)
    assert browser.complaints() == []
    asked = {event["request"]["url"].partition(":")[0] for event in browser.seen("Network.requestWillBeSent")}
    assert asked <= {"file", "data"}
    asked = [event["request"]["url"] for event in browser.seen("Network.requestWillBeSent")]
    assert [url for url in asked if not url.startswith("data:")] == [pages[name].as_uri()]
    broken = "[...document.images].filter((one) => !(one.complete && one.naturalWidth > 0)).length"
    assert browser.js(broken) == 0
    assert browser.js("document.images.length") > (0 if name != "bench" else -1)
    assert browser.js("document.documentElement.scrollWidth") <= width  # only tables scroll, in their own boxes
    small = "Math.min(...[...document.querySelectorAll('.chart .tick')].map((t) => t.getBoundingClientRect().height))"
    assert not browser.js("document.querySelector('.chart')") or browser.js(small) >= 8  # to be read on a phone, too
    light = np.array(json.loads(browser.js("getComputedStyle(document.body).backgroundColor")[3:].translate(BRACKETS)))
    assert (light < 50).all() if dark else (light > 200).all()


BRACKETS = str.maketrans("()", "[]")
FIRST = "document.querySelector('.film')"


def layers(browser: Browser) -> dict[str, float]:
    """What lies over the first film: name -> opacity."""
    found = f"[...{FIRST}.querySelectorAll('[data-layer]')].map((p) => [p.dataset.layer, +getComputedStyle(p).opacity])"
    return dict(browser.js(found))


@pytest.mark.parametrize("name", ["report", "wrong"])
def test_the_slider_fades_the_layer_by_keyboard(browser, pages, name):
    browser.open(pages[name])
    assert layers(browser)["heatmap"] == 1 and sum(layers(browser).values()) == 1
    browser.js(f"{FIRST}.querySelector('input[type=range]').focus()")
    for _ in range(40):
        browser.press("ArrowLeft")
    assert layers(browser)["heatmap"] == pytest.approx(0.6) and sum(layers(browser).values()) == pytest.approx(0.6)
    told = browser.js(f"{FIRST}.querySelector('input[type=range]').getAttribute('aria-valuetext')")
    assert told == "60 % heatmap" and browser.js(f"{FIRST}.querySelector('output').textContent") == "60 %"
    browser.press("Home")
    assert sum(layers(browser).values()) == 0  # the film alone
    assert browser.complaints() == []


def test_what_lies_over_a_film_is_chosen_by_keyboard(browser, pages):
    browser.open(pages["report"])
    browser.js(f"{FIRST}.querySelector('input[type=radio]').focus()")
    browser.press("ArrowRight")
    assert layers(browser)["reconstruction"] == 1 and layers(browser)["heatmap"] == 0
    others = "[...document.querySelectorAll('.film')].slice(1).every((c) => c.querySelector('.shown').dataset.layer"
    assert browser.js(f"{others} === 'heatmap')")
    browser.press("Tab")
    assert browser.js("document.activeElement.type") == "range"


def test_one_control_moves_all_films(browser, pages):
    browser.open(pages["report"])
    browser.js("document.querySelector('.every input[value=mask]').click()")
    every = "[...document.querySelectorAll('.film .shown')].every((one) => "
    assert browser.js(f"{every} one.dataset.layer === 'mask')")
    browser.js("document.querySelector('.every input[type=range]').focus()")
    browser.press("Home")
    assert browser.js(f"{every} getComputedStyle(one).opacity === '0')")


def test_a_layer_is_seen(browser, pages):
    browser.open(pages["report"])
    box = "(({x, y, width, height}) => ({x: x + scrollX, y: y + scrollY, width, height, scale: 1}))" + (
        f"({FIRST}.querySelector('.stage').getBoundingClientRect())"
    )
    pictures = {}
    for layer in ("reconstruction", "mask"):
        browser.js(f"{FIRST}.querySelector('input[value={layer}]').click()")
        shot = browser("Page.captureScreenshot", clip=browser.js(box), captureBeyondViewport=True)["data"]
        pictures[layer] = cv2.imdecode(np.frombuffer(base64.b64decode(shot), np.uint8), cv2.IMREAD_COLOR).astype(int)
    green = pictures["mask"][..., 1] - pictures["mask"][..., 2]
    assert (green > 30).mean() > 0.02  # what lies outside the mask is green
    assert (abs(pictures["reconstruction"][..., 1] - pictures["reconstruction"][..., 2]) < 12).mean() > 0.98


def test_what_scrolls_is_reached_by_keyboard(browser, pages, tmp_path):
    given = context()
    page = tmp_path / "classifier.html"
    page.write_text(report.render_report(replace(given, evaluation=with_classes(given.evaluation, classes()))))
    for file in (page, pages["report"], pages["bench"]):
        browser.open(file)
        assert browser.js("[...document.querySelectorAll('.wide')].map((one) => one.tabIndex)").count(-1) == 0


def test_names_of_controls_are_there_for_those_who_hear_them(browser, pages):
    browser.open(pages["report"])
    browser("Accessibility.enable")
    nodes = browser("Accessibility.getFullAXTree")["nodes"]
    for role in ("slider", "radio", "image", "link"):
        own = [node for node in nodes if node.get("role", {}).get("value") == role and not node.get("ignored")]
        assert own and all(node.get("name", {}).get("value") for node in own), role
    browser("Accessibility.disable")


def test_no_script_but_its_own_runs(browser, pages):
    browser.open(pages["evil"])
    browser.js("addEventListener('securitypolicyviolation', (event) => { window.stopped = event.violatedDirective; })")
    browser.js(
        "{ const s = document.createElement('script'); s.textContent = 'window.ran = 1'; document.body.append(s); }"
    )
    browser.js("new Promise((done) => setTimeout(done, 50))")
    assert browser.js("window.ran === undefined") and browser.js("window.stopped") == "script-src-elem"


def test_without_scripts_the_first_layer_shows(browser, pages):
    browser("Emulation.setScriptExecutionDisabled", value=True)
    try:
        browser.open(pages["report"])
        assert layers(browser)["heatmap"] == 1
        assert browser.js("getComputedStyle(document.querySelector('.controls')).display") == "none"
    finally:
        browser("Emulation.setScriptExecutionDisabled", value=False)
