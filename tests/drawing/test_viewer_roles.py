"""The page of a circuit with roles in headless Chromium."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgeprune.drawing import NamedCircuit, write_viewer
from tests.drawing.role_circuits import from_edges, role_circuit
from tests.drawing.test_viewer import browser as browser  # a fixture
from tests.drawing.test_viewer import curves, exported, near, shown, slide, until, visible

CIRCUIT = role_circuit(160)


@pytest.fixture
def view(browser: Any, tmp_path: Path) -> Iterator[Any]:
    path = tmp_path / "page.html"
    write_viewer([NamedCircuit("one", CIRCUIT), NamedCircuit("two", role_circuit(100, 3))], path)
    page = browser.new_page(viewport={"width": 1400, "height": 900}, color_scheme="light", accept_downloads=True)
    page.set_default_timeout(20_000)
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(path.as_uri())
    until(page, "document.documentElement.dataset.interactive")
    yield page
    page.close()
    assert said == []


def test_a_head_lists_its_attention_edges_and_paths_follow_them(browser: Any, tmp_path: Path) -> None:
    """One route from IO to END, by a0.h1; closed by the second circuit, which has another edge for the head."""
    edges = ["embed->a0.h0.v@IO", "a0.h1->logits@END"]  # h0.v is that of heads 0 and 1
    circuits = [from_edges(*edges, name) for name in ("a0.h1[END<-IO]", "a0.h1[END<-S2]")]
    path = tmp_path / "page.html"
    write_viewer([NamedCircuit("one", circuits[0]), NamedCircuit("two", circuits[1])], path)
    page = browser.new_page()
    page.goto(path.as_uri())
    until(page, "document.documentElement.dataset.interactive")
    page.fill("#search", "a0.h1@END")
    page.press("#search", "Enter")
    listed = "(all) => all.map((one) => [...one.children].map((part) => part.textContent))"
    assert page.eval_on_selector_all("#detail .attention li", listed) == [["a0.h1[END<-IO]", ""]]
    assert page.inner_text("#dangling-count") == "0" == str(circuits[0].num_dangling)
    page.select_option("#compare", label="two")
    assert page.eval_on_selector_all("#detail .attention li", listed) == [
        ["a0.h1[END<-IO]", "first"],
        ["a0.h1[END<-S2]", "second"],
    ]
    page.select_option("#compare", label="nothing")
    slide(page, "circuit", 1)
    assert page.inner_text("#dangling-count") == "2" == str(circuits[1].num_dangling)
    page.close()


def columns(page: Any) -> list[str]:
    script = "(all) => all.filter((one) => !one.hidden).map((one) => one.textContent)"
    until(page, "document.querySelector('#labels .heading:not([hidden])')")
    return page.eval_on_selector_all("#labels .heading", script)


def labels(page: Any) -> set[str]:
    """Full names of the nodes that are seen."""
    script = "(all) => all.map((one) => one.getAttribute('aria-label').split(':')[0])"
    return set(page.eval_on_selector_all(".node:not(.off)", script))


def test_the_switch_goes_from_all_roles_to_the_union_and_to_one(view: Any) -> None:
    assert shown(view) == 160
    assert columns(view) == ["IO", "S2", "END", "rest"]
    view.check("#dangling")
    useful = CIRCUIT.without_dangling()
    assert 0 < useful.num_edges < 160
    assert shown(view) == useful.num_edges
    assert view.inner_text("#dangling-count") == str(CIRCUIT.num_dangling)
    view.select_option("#role", label="at S2")
    assert shown(view) == int(useful.keep[2].sum())
    assert columns(view) == ["S2"]
    assert {name.partition("@")[2] for name in labels(view)} == {"S2"}
    view.uncheck("#dangling")
    assert shown(view) == int(CIRCUIT.keep[2].sum())
    view.select_option("#role", label="union of all")
    assert shown(view) == CIRCUIT.union().num_edges
    assert visible(view) >= set(CIRCUIT.heads()) & set(CIRCUIT.union().without_dangling().heads())
    assert "An edge of the union" in view.inner_text("#status")
    view.keyboard.press("r")
    assert shown(view) == int(CIRCUIT.keep[0].sum())
    view.select_option("#role", label="side by side")
    view.select_option("#compare", label="two")
    assert shown(view) == (CIRCUIT | role_circuit(100, 3)).num_edges
    slide(view, "edges", 0)
    assert shown(view) < 25


def test_what_is_upstream_of_a_node_is_also_at_other_roles(view: Any) -> None:
    view.fill("#search", "logits@end")
    view.press("#search", "Enter")
    assert view.inner_text("#detail h2") == "logits@END"
    found = CIRCUIT.without_dangling()
    role_of_edge = [edge.rpartition("@")[2] for edge in found.edges()]
    assert len(set(role_of_edge)) > 1
    wanted = {f"{e.partition('->')[0]}@{role}" for e, role in zip(found.edges(), role_of_edge, strict=True)}
    script = "(all) => all.map((one) => one.getAttribute('aria-label').split(':')[0])"
    seen = set(view.eval_on_selector_all(".node:not(.off):not(.far)", script))
    assert wanted <= seen
    assert near(view)
    view.keyboard.press("Escape")
    head = next(edge for edge in found.edges() if ".k@" in edge and not edge.endswith("@END"))
    name, _, role = head.partition("->")[2].partition("@")
    view.fill("#search", f"{name}@{role}".lower())
    view.press("#search", "Enter")
    assert view.inner_text("#detail h2").endswith(f"@{role}")
    assert "keys and values for" in view.inner_text("#detail")


def test_the_export_has_edges_headings_and_dashed_leads(view: Any, tmp_path: Path) -> None:
    tree = exported(view, tmp_path)
    dashed = [path for path in tree.iter("{http://www.w3.org/2000/svg}path") if "stroke-dasharray" in path.attrib]
    assert len(dashed) == int(view.inner_text("label:has([data-part=leads]) output")) > 10
    texts = {text.text for text in tree.iter("{http://www.w3.org/2000/svg}text")}
    assert {"IO", "S2", "END", "rest"} <= texts
    assert not {text for text in texts if text and "@" in text}
    for parent in list(tree.iter()):
        for path in [one for one in parent if one in dashed]:
            parent.remove(path)
    assert set(curves(tree)) == set(CIRCUIT.edges())
