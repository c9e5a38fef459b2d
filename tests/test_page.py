"""The pages in a real browser: headless Chromium, told what to do over its debugging pipe.

Skipped where there is no Chromium; on Debian it is the package `chromium`.
"""

import base64
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from anomaly.pipeline.open_run import open_run
from anomaly.pipeline.results import write_page
from anomaly.reporting import page as report
from anomaly.runs import Run
from tests.test_report import bench_page, classes, context, with_classes

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
SECONDS = 60
"""The longest wait for an answer."""

ON_THREE_AND_FOUR = """
import fcntl, os, sys
high = [fcntl.fcntl(int(one), fcntl.F_DUPFD, 10) for one in sys.argv[1:3]]
for one, place in zip(high, (3, 4)):
    os.dup2(one, place)
os.execv(sys.argv[3], sys.argv[3:])
"""

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium; on Debian: apt install chromium")


class Browser:
    """A page in Chromium, by its DevTools protocol: JSON ended by a zero byte, to it on pipe 3, from it on pipe 4."""

    def __init__(self, folder: Path) -> None:
        theirs_in, self.to = os.pipe()
        self.back, theirs_out = os.pipe()
        options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
        options += ["--remote-debugging-pipe", f"--user-data-dir={folder}", "about:blank"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", ON_THREE_AND_FOUR, str(theirs_in), str(theirs_out), str(BROWSER), *options],
            pass_fds=(theirs_in, theirs_out),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self.numbers, self.rest, self.session = itertools.count(1), b"", None
        self.events: list[dict[str, Any]] = []
        page = next(target for target in self("Target.getTargets")["targetInfos"] if target["type"] == "page")
        self.session = self("Target.attachToTarget", targetId=page["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self(f"{domain}.enable")

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(SECONDS)
        os.close(self.to)
        os.close(self.back)

    def __call__(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.numbers)
        session = {"sessionId": self.session} if self.session else {}
        os.write(self.to, json.dumps({"id": number, "method": method, "params": params} | session).encode() + b"\0")
        while (answer := self._read()).get("id") != number:
            self.events.append(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def _read(self) -> dict[str, Any]:
        until = time.monotonic() + SECONDS
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.back], [], [], max(0, until - time.monotonic()))
            assert ready, "Chromium does not answer"
            part = os.read(self.back, 1 << 20)
            assert part, "Chromium has ended"
            self.rest += part
        message, _, self.rest = self.rest.partition(b"\0")
        return json.loads(message)

    def open(self, path: Path, *, width: int = 1200, dark: bool = False) -> None:
        self("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=width < 600)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self("Emulation.setEmulatedMedia", features=[scheme])
        self.events.clear()
        self("Page.navigate", url=path.as_uri())
        while not self.seen("Page.loadEventFired"):
            self.events.append(self._read())

    def seen(self, method: str) -> list[dict[str, Any]]:
        return [event["params"] for event in self.events if event.get("method") == method]

    def js(self, expression: str) -> Any:
        answer = self("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        codes = {"ArrowLeft": 37, "ArrowRight": 39, "Home": 36, "Tab": 9}
        for kind in ("rawKeyDown", "keyUp"):
            self("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=codes[key])

    def complaints(self) -> list[Any]:
        self.js("new Promise((done) => setTimeout(done, 50))")  # what is still on its way
        names = ("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Network.loadingFailed")
        return [params for name in names for params in self.seen(name)]


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    one = Browser(tmp_path_factory.mktemp("chromium"))
    yield one
    one.close()


@pytest.fixture(scope="module")
def pages(run: Run, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Of a run, of its wrong films, of a bench, and one whose every text is an attack."""
    mine = Run(Path(shutil.copytree(run.path, tmp_path_factory.mktemp("pages") / "cae")))
    write_page(open_run(mine, torch.device("cpu")))
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
