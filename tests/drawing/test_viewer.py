"""The page in headless Chromium: clicked through as a person would."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch

from edgeprune.circuit import Circuit
from edgeprune.drawing import NamedCircuit, write_viewer
from edgeprune.drawing.layout import lay_out
from edgeprune.graph import ArchSpec, EdgeGraph

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
GRAPH = EdgeGraph(ArchSpec(num_layers=4, num_heads=4, num_kv_heads=2))
SVG = "{http://www.w3.org/2000/svg}"


def circuit(num_edges: int, seed: int = 0) -> Circuit:
    scores = torch.randn(GRAPH.shape, generator=torch.Generator().manual_seed(seed))
    return Circuit.from_scores(GRAPH, scores, num_edges=num_edges, header={"metrics": {"kl": 0.125 * (1 + seed)}})


FIRST, SECOND = circuit(60), circuit(90, 1)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with driver.sync_playwright() as running:
        opened = running.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def view(browser: Any, tmp_path: Path) -> Iterator[Any]:
    """The page of both circuits, ready; at its end nothing was said on the console, and nothing asked for."""
    path = tmp_path / "page.html"
    write_viewer([NamedCircuit("first", FIRST), NamedCircuit("second", SECOND)], path)
    page = browser.new_page(viewport={"width": 1200, "height": 800}, color_scheme="light", accept_downloads=True)
    page.set_default_timeout(20_000)
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    until(page, "document.documentElement.dataset.interactive")
    yield page
    page.close()
    assert said == []
    assert [url for url in asked if not url.startswith(("file:", "blob:"))] == []


def until(page: Any, expression: str) -> None:
    """Wait until it holds. The page's policy forbids the driver's own way, an expression evaluated inside."""
    for _ in range(500):
        if page.evaluate(expression):
            return
        page.wait_for_timeout(20)
    raise AssertionError(f"never true: {expression}")


def shown(page: Any) -> int:
    return int(page.get_attribute("html", "data-shown"))


def slide(page: Any, name: str, value: int) -> None:
    page.eval_on_selector(
        f"#{name}", "(one, value) => { one.value = value; one.dispatchEvent(new Event('input')); }", value
    )


def visible(page: Any) -> set[str]:
    return set(page.eval_on_selector_all(".node:not(.off)", "(all) => all.map((one) => one.textContent)"))


def near(page: Any) -> set[str]:
    """Nodes that are not faded."""
    script = "(all) => all.map((one) => one.textContent)"
    return set(page.eval_on_selector_all(".node:not(.off):not(.far)", script))


def exported(page: Any, tmp_path: Path) -> ElementTree.Element:
    with page.expect_download() as download:
        page.click("#export")
    path = tmp_path / "saved.svg"
    download.value.save_as(path)
    return ElementTree.fromstring(path.read_text(encoding="utf-8"))


def curves(tree: ElementTree.Element) -> dict[str, list[float]]:
    """The numbers of each edge's path, by the edge's name."""
    found = {}
    for path in tree.iter(f"{SVG}path"):
        name = str(path.findtext(f"{SVG}title")).split()[0]
        found[name] = [float(part) for part in path.attrib["d"].replace("M", "").replace("C", ",").split(",")]
    return found


# -------------------------------------------------------------------- what is shown
def test_sliders_filters_and_dangling_edges(view: Any) -> None:
    assert shown(view) == 60
    assert "60 edges" in view.inner_text("#status")
    assert "0.125" in view.inner_text("#facts")
    view.check("#dangling")
    assert FIRST.num_dangling > 0
    assert shown(view) == FIRST.without_dangling().num_edges
    assert view.inner_text("#dangling-count") == str(FIRST.num_dangling)
    view.uncheck("#dangling")
    kinds = FIRST.to_dataframe()["reader"].str.extract(r"\.([qkv])$")[0].value_counts()
    for kind in "qkv":
        view.uncheck(f"[data-part={kind}]")
    assert shown(view) == 60 - kinds.sum()
    for kind in "qkv":
        view.check(f"[data-part={kind}]")
    slide(view, "edges", 0)
    assert shown(view) == 10
    assert "whole circuit" in view.inner_text("#status")
    view.keyboard.press("]")
    assert shown(view) > 10
    slide(view, "edges", 1000)
    slide(view, "layer-low", 2)
    frame = FIRST.to_dataframe()
    late = frame["writer"].str.match(r"^[am][23]") & (frame["layer"] >= 2)
    assert shown(view) == int(late.sum())
    slide(view, "layer-high", 1)
    assert view.inner_text("#layers-shown") == "1 to 1"


def test_another_circuit_and_the_difference(view: Any) -> None:
    view.keyboard.press(".")
    assert shown(view) == 90
    assert view.inner_text("#circuit-name") == "second"
    assert "0.250" in view.inner_text("#facts")
    view.select_option("#compare", label="first")
    assert shown(view) == (FIRST | SECOND).num_edges
    view.uncheck("[data-part=both]")
    view.uncheck("[data-part=second]")
    assert shown(view) == (SECOND - FIRST).num_edges
    assert view.inner_text("#part-first") == "only second"
    view.select_option("#compare", label="nothing")
    assert shown(view) == 90


# -------------------------------------------------------------------- nodes
def test_hover_shows_what_is_upstream_and_downstream(view: Any) -> None:
    name = max(FIRST.heads(), key=lambda head: len(FIRST.ancestors(head)) * len(FIRST.descendants(head)))
    view.hover(f".node[aria-label^='{name}']")
    related = {name, *FIRST.ancestors(name), *FIRST.descendants(name)}
    assert near(view) == related & visible(view)
    assert name in view.inner_text("#tip")
    view.mouse.move(3, 3)
    until(view, "!document.querySelector('.node.far')")


def test_search_click_and_keys(view: Any) -> None:
    view.keyboard.press("/")
    view.keyboard.type("m2")
    view.keyboard.press("Enter")
    assert view.inner_text("#detail h2") == "m2"
    into = sum(edge.endswith("->m2") for edge in FIRST.edges())
    assert f"{into} edges in" in view.inner_text("#detail")
    assert view.evaluate("document.activeElement.textContent") == "m2"
    view.keyboard.press("ArrowUp")
    assert view.evaluate("document.activeElement.getAttribute('aria-label')").startswith(("a3.", "m3"))
    view.keyboard.press("Enter")
    held = view.inner_text("#detail h2")
    assert held == view.evaluate("document.activeElement.textContent")
    assert view.get_attribute(".node.held", "aria-pressed") == "true"
    view.keyboard.press("Escape")
    assert view.is_hidden("#detail")
    view.click(".node.logits")
    assert view.inner_text("#detail h2") == "logits"
    view.click(".node.logits")
    assert view.is_hidden("#detail")
    view.fill("#search", "zzz")
    view.press("#search", "Enter")
    assert "No node that is shown is called zzz" in view.inner_text("#status")


def test_pan_zoom_and_fit(view: Any) -> None:
    place = "document.getElementById('moved').getAttribute('transform')"
    before = view.evaluate(place)
    view.mouse.move(30, 400)
    view.mouse.down()
    view.mouse.move(130, 450, steps=3)
    view.mouse.up()
    until(view, f"{place} !== '{before}'")
    view.mouse.wheel(0, -300)
    until(view, f"Number({place}.match(/scale\\((.*)\\)/)[1]) > 1.05 * {before.split('scale(')[1][:-1]}")
    view.keyboard.press("0")
    until(view, f"{place} === '{before}'")


def test_light_and_dark(view: Any) -> None:
    ground = "getComputedStyle(document.body).backgroundColor"
    light = view.evaluate(ground)
    view.emulate_media(color_scheme="dark")
    until(view, f"{ground} !== '{light}'")
    view.click("#theme")
    assert view.evaluate(ground) == light
    view.keyboard.press("d")
    assert view.evaluate(ground) != light


# -------------------------------------------------------------------- export
def test_the_export_has_what_is_shown_where_the_layout_has_it(view: Any, tmp_path: Path) -> None:
    view.uncheck("[data-part=mlp]")
    found = curves(exported(view, tmp_path))
    assert set(found) == {edge for edge in FIRST.edges() if "->m" not in edge}
    layout = lay_out(GRAPH, (FIRST | SECOND).keep)
    for name, numbers in found.items():
        row, column = GRAPH.index(name)
        expected = layout.curve(row, column)
        assert numbers == pytest.approx(list(expected), abs=0.1), name


def test_narrow_windows_scroll_down_and_not_aside(view: Any) -> None:
    view.set_viewport_size({"width": 420, "height": 800})
    assert view.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert view.evaluate("document.documentElement.scrollHeight > innerHeight")
