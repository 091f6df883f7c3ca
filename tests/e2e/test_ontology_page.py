"""The ontology on the page, in a real browser, at 5,000 edges."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.e2e import chromium
from tests.e2e.test_report_browser import WIDER, complaints, requests
from tests.fixtures.synthetic_ontology import write_ontology
from tests.fixtures.synthetic_run import CLOSING, write_run

from luthier.recipe import Recipe
from luthier.report import page
from luthier.report.ontology import view

PROGRAM = chromium.find()
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium here (Debian package chromium)"),
]
LABELS = "document.querySelectorAll('#tree svg text').length"


@pytest.fixture(scope="module")
def browser() -> Iterator[chromium.Browser]:
    assert PROGRAM is not None
    with chromium.Browser(PROGRAM) as browser:
        yield browser


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = write_run(tmp_path_factory.mktemp("run"))
    write_ontology(run)
    shown = view(run)
    assert (
        shown is not None
        and 4900 < sum(shown["counts"].values()) < 5700
        and min(shown["counts"].values()) > 100
    )
    return page.write(run, Recipe())


def test_a_graph_of_5000_edges_zooms_and_tells_its_documents(browser: chromium.Browser, large: Path) -> None:
    browser.open(large)
    assert complaints(browser.events) == []
    assert browser.run(LABELS) > 20
    places = (
        "document.querySelector('#tree path.right-edge:not(.further)').getAttribute('d').split('M').length"
    )
    whole = browser.run(places)
    assert whole > 2000
    seconds = browser.run("""(() => { const began = performance.now();
        for (let i = 0; i < 4; i++) document.querySelector('[data-tree=in]').click(); return (performance.now() - began) / 4000; })()""")
    assert seconds < 1  # a tenth of that on a quiet machine
    assert browser.run(places) < whole / 2
    browser.run("""(() => { const box = document.getElementById('tree-find'); box.value = 'topic 3';
        box.dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true})); })()""")
    told = browser.run("document.getElementById('tree-node').textContent")
    assert "topic 3" in told and "below" in told and "document" in told and "root →" in told
    assert browser.run("document.querySelectorAll('#tree .chosen-node').length") == 1
    browser.run("document.querySelector('[data-status=\"2\"]').click()")
    assert browser.run("document.querySelectorAll('#tree path.missing-edge').length") == 0
    browser.run("document.querySelector('#tree svg').focus()")
    browser.call("Input.dispatchKeyEvent", type="keyDown", key="0", text="0")
    assert complaints(browser.events) == []


def test_a_click_chooses_the_node_under_it(browser: chromium.Browser, large: Path) -> None:
    browser.open(large)
    x, y = (
        browser.run("""(() => { const svg = document.querySelector('#tree svg'); svg.scrollIntoView({block: 'center'});
        const label = [...document.querySelectorAll('#tree svg text')][0].getBoundingClientRect(); return [label.left + 10, label.top + 6]; })()""")
    )
    wanted = browser.run("document.querySelectorAll('#tree svg text')[0].textContent")
    for kind in ("mousePressed", "mouseReleased"):
        browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
    assert browser.run("document.querySelector('#tree-node h4').textContent") == wanted


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [390, 1280])
def test_hostile_titles_do_nothing(browser: chromium.Browser, tmp_path: Path, width: int, dark: bool) -> None:
    run = write_run(tmp_path)
    write_ontology(run, 60, title=CLOSING)
    file = page.write(run, Recipe())
    browser.open(file, width=width, dark=dark)
    assert complaints(browser.events) == []
    assert requests(browser.events) == {file.resolve().as_uri()}
    assert browser.run("typeof window.harmed") == "undefined"
    assert browser.run(WIDER) == []
    assert browser.run("document.documentElement.scrollWidth") == width
    assert browser.run(LABELS) > 3
