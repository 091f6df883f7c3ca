"""The page in a real browser: nothing in the data runs, nothing is fetched, nothing is wider than a phone."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e import chromium
from tests.fixtures.synthetic_run import CLOSING, IMAGE, SCRIPT, write_run

from luthier.check.runner import Report
from luthier.recipe import Recipe
from luthier.records import Finding, Row
from luthier.report import curves, page

PROGRAM = chromium.find()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium here (Debian package chromium)"),
]
WIDER = """[...document.querySelectorAll('main *')].filter(e => !e.closest('svg') && e.getBoundingClientRect().right > innerWidth + 1)
    .map(e => e.tagName + '.' + e.className).slice(0, 5)"""
PLACE = """(() => { const svg = document.querySelector('[data-chart=loss] svg'); svg.scrollIntoView({block: 'center'});
    const frame = svg.getBoundingClientRect(); return [frame.left, frame.top, frame.width, frame.height]; })()"""
RANGE = "document.querySelector('[data-chart=loss] svg').getAttribute('aria-label')"


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Browser]:
    assert PROGRAM is not None
    with chromium.Browser(PROGRAM) as browser:
        yield browser


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("run"), hostile=True)
    curves.draw(run, 21)
    text = ["<s>", IMAGE, CLOSING, SCRIPT, "x" * 3000]
    row = Row(CLOSING, "g", range(5), [0, 0, 0.5, 1, 1], [0, 0, 1, 1, 1], [IMAGE, "t" * 500], 2, "", 0)
    recipe = Recipe(name="a" * 300, description=SCRIPT + "word" * 200)
    return page.write(run, recipe, rows_shown=[page.ShownRow(row, text)])


def complaints(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    kinds = ("Runtime.exceptionThrown", "Log.entryAdded", "Runtime.consoleAPICalled")
    return [event for event in events if event["method"] in kinds]


def requests(events: list[dict[str, Any]]) -> set[str]:
    urls = {
        event["params"]["request"]["url"]
        for event in events
        if event["method"] == "Network.requestWillBeSent"
    }
    return {url for url in urls if not url.startswith("data:")}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_data_does_nothing(browser: chromium.Browser, hostile: Path, width: int, dark: bool) -> None:
    browser.open(hostile, width=width, dark=dark)
    assert complaints(browser.events) == []
    assert requests(browser.events) == {hostile.resolve().as_uri()}
    assert browser.run("typeof window.harmed") == "undefined"
    assert browser.run("[document.scripts.length, document.querySelectorAll('main img').length]") == [2, 0]
    assert browser.run(WIDER) == []
    assert browser.run("document.documentElement.scrollWidth") == width
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == dark


def test_even_unescaped_markup_could_not_run_or_fetch(
    browser: chromium.Browser, hostile: Path, tmp_path: Path
) -> None:
    """The second lock: the page's own policy, tried with the first one broken."""
    html = hostile.read_text(encoding="utf-8")
    broken = tmp_path / "broken.html"
    broken.write_text(
        html.replace("</main>", SCRIPT + IMAGE + '<img src="http://127.0.0.1:9/x.png"></main>'),
        encoding="utf-8",
    )
    browser.open(broken)
    assert browser.run("document.querySelectorAll('main img').length") == 2  # the markup is there
    assert browser.run("typeof window.harmed") == "undefined"
    assert "violates" in str(complaints(browser.events))


def test_the_charts_zoom_by_mouse_and_keyboard(browser: chromium.Browser, tmp_path: Path) -> None:
    run = write_run(tmp_path)
    browser.open(page.write(run, Recipe()))
    assert browser.run("document.querySelectorAll('.chart path').length") == 7
    assert browser.run("document.querySelectorAll('circle').length") == 11
    left, top, width, height = browser.run(PLACE)

    def mouse(kind: str, share: float) -> None:
        browser.call("Input.dispatchMouseEvent", type=kind, x=left + share * width, y=top + height / 2, button="left",
                     buttons=int(kind != "mouseReleased"), clickCount=1)  # fmt: skip

    mouse("mousePressed", 0.3)
    mouse("mouseMoved", 0.4)
    mouse("mouseMoved", 0.5)
    assert browser.run("document.getElementById('readout').textContent").startswith("step ")
    mouse("mouseReleased", 0.5)
    low, high = (int(word) for word in browser.run(RANGE).split() if word.isdigit())
    assert 100 < low < high < 350
    for name in ("norm", "rate", "speed", "memory"):
        label = browser.run(f"document.querySelector('[data-chart={name}] svg').getAttribute('aria-label')")
        assert f"steps {low} to {high}" in label
    browser.run("document.querySelector('[data-chart=loss] svg').focus()")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="0", text="0")
    assert browser.run(RANGE).endswith("steps 0 to 600")
    assert complaints(browser.events) == []


@pytest.mark.parametrize("stage", ["prepare", "check", "stopped", "train"])
def test_an_unfinished_run_has_a_page_without_complaints(
    browser: chromium.Browser, tmp_path: Path, stage: str
) -> None:
    browser.open(page.write(write_run(tmp_path, stage=stage), Recipe()), width=390)
    assert complaints(browser.events) == []
    assert browser.run("document.documentElement.scrollWidth") == 390


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_page_of_findings_alone(
    browser: chromium.Browser, tmp_path: Path, width: int, dark: bool
) -> None:
    findings = [Finding("loss-scale", "error", SCRIPT, "x" * 300, IMAGE, measured=12.0), Finding("bos", "note", CLOSING, "", "")]  # fmt: skip
    report = Report(findings, ["stop-token"], [{"check": "padding", "why": SCRIPT}], seconds={"bos": 0.1})
    browser.open(report.write_html(tmp_path / "audit.html"), width=width, dark=dark)
    assert complaints(browser.events) == []
    assert browser.run("typeof window.harmed") == "undefined"
    browser.run("document.querySelector('details').open = true")
    assert browser.run(WIDER) == []
    assert browser.run("document.documentElement.scrollWidth") == width
    background = browser.run("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, background[4:-1].split(","))) < 200) == dark


def test_without_javascript_the_figure_stands_for_the_charts(
    browser: chromium.Browser, hostile: Path, tmp_path: Path
) -> None:
    browser.open(hostile, script=False)
    assert browser.run("document.querySelector('noscript img').naturalWidth") == 1600
