"""The report page: read back from its HTML, and in a browser where there is one."""

import copy
import fnmatch
import json
import re
import shutil
import subprocess
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import edgeprune.report
from edgeprune.circuit import Circuit
from edgeprune.cli import main
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.methods.selection import top_n
from edgeprune.models.loading import load_model
from edgeprune.report import report_html, write_report
from edgeprune.report.axes import axis, bin_axis, place_in_bins
from edgeprune.report.plots import HEIGHT, LEFT, RIGHT, TOP, WIDTH, Point, Rule, Series, draw, grey, key
from edgeprune.report.text import UNDEFINED
from edgeprune.statistics.seeds import spread_of_seeds
from tests.report.example_result import example, spread

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
VOID = ("meta", "link", "img", "br")
LABELS = ("labels", "labels_skipped")
# Sections in their order on the page, each with how to take its data away.
SECTIONS: dict[str, Callable[[Json], Any]] = {
    "summary": lambda data: None,
    "frontier": lambda data: [circuit.pop("all_edges") for circuit in data["circuits"]],
    "seeds": lambda data: data.pop("seeds"),
    "ablations": lambda data: [circuit["ablations"].pop("mean") for circuit in data["circuits"]],
    "controls": lambda data: [circuit.pop("controls") for circuit in data["circuits"]],
    "layers": lambda data: [circuit.pop(name) for circuit in data["circuits"] for name in ("layers", "kinds")],
    "reading": lambda data: [circuit.pop("reading", None) for circuit in data["circuits"]],
    "completeness": lambda data: [circuit.pop("completeness", None) for circuit in data["circuits"]],
    "minimality": lambda data: [circuit.pop("minimality", None) for circuit in data["circuits"]],
    "suffix": lambda data: [circuit.pop("suffix", None) for circuit in data["circuits"]],
    "hypothesis": lambda data: [circuit.pop("hypothesis", None) for circuit in data["circuits"]],
    "functional": lambda data: [circuit.pop("functional", None) for circuit in data["circuits"]],
    "mib": lambda data: [circuit.pop("mib", None) for circuit in data["circuits"]],
    "runs": lambda data: data.pop("runs"),
    "known": lambda data: [circuit.pop("known") for circuit in data["circuits"]],
    "overlap": lambda data: data.pop("pairs"),
    "breakdown": lambda data: [circuit.pop(name) for circuit in data["circuits"] for name in LABELS],
    "glossary": lambda data: None,
}


# -------------------------------------------------------------------- reading a page
@dataclass
class Node:
    """An element; `text` is all text inside, in order."""

    tag: str
    attributes: dict[str, str]
    children: list["Node"] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def all(self, tag: str, **attributes: str) -> Iterator["Node"]:
        for child in self.children:
            if child.tag == tag and attributes.items() <= child.attributes.items():
                yield child
            yield from child.all(tag, **attributes)

    def one(self, tag: str, **attributes: str) -> "Node":
        (found,) = self.all(tag, **attributes)
        return found


class Reader(HTMLParser):
    """Builds the tree; fails where tags do not match."""

    def __init__(self) -> None:
        super().__init__()
        self.open = [Node("page", {})]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in VOID:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.open[-1].children.append(Node(tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        for node in self.open:
            node.texts.append(data)


def read(page: str) -> Node:
    reader = Reader()
    reader.feed(page.replace("<!DOCTYPE html>", ""))
    (root,) = reader.open
    return root


def rows(table: Node) -> dict[str, list[Node]]:
    """The cells of each row by its head; of equal heads the first."""
    found: dict[str, list[Node]] = {}
    for row in table.one("tbody").all("tr"):
        found.setdefault(next(row.all("th")).text, list(row.all("td")))
    return found


def table(page: Node, section: str, place: int = 0) -> Node:
    return list(page.one("section", id=section).all("table"))[place]


def headings(found: Node) -> list[str]:
    return [head.text for head in found.one("thead").all("th")]


@pytest.fixture(scope="module")
def page() -> Node:
    return read(report_html(example()))


# -------------------------------------------------------------------- the whole page
def test_sections_and_their_order(page: Node) -> None:
    assert [section.attributes["id"] for section in page.all("section")] == list(SECTIONS)
    links = [link.attributes["href"] for link in page.one("nav").all("a")]
    assert links == [f"#{name}" for name in SECTIONS]


@pytest.mark.parametrize("name", [name for name in SECTIONS if name not in ("summary", "glossary")])
def test_a_section_without_data_is_left_out(name: str) -> None:
    data = example()
    SECTIONS[name](data)
    left = [section.attributes["id"] for section in read(report_html(data)).all("section")]
    assert left == [section for section in SECTIONS if section != name]


def test_a_result_with_nothing_in_it() -> None:
    found = read(report_html({"schema": "edgeprune-evaluation/1"}))
    assert not list(found.all("section"))
    assert found.one("h1").text == "Circuits"


def test_circuits_without_anything_but_a_name() -> None:
    found = read(report_html({"schema": "edgeprune-evaluation/1", "circuits": [{"name": "bare"}, {}]}))
    assert list(rows(table(found, "summary"))) == ["bare", "circuit 2"]


def test_another_schema_is_refused() -> None:
    with pytest.raises(EdgepruneError, match="schema 'edgeprune-evaluation/1', got 'other/3'"):
        report_html({"schema": "other/3"})


def test_the_page_is_a_function_of_the_json(tmp_path: Path) -> None:
    data = example()
    original = copy.deepcopy(data)
    write_report(data, tmp_path / "made" / "out.html")
    again = report_html(json.loads(json.dumps(data)))
    assert (tmp_path / "made" / "out.html").read_text(encoding="utf-8") == again
    assert data == original


def test_nothing_is_loaded(page: Node) -> None:
    text = report_html(example())
    assert re.findall("http[^ ]*", text) == ['http-equiv="Content-Security-Policy"']
    assert "url(" not in text
    assert "@import" not in text
    policy = next(page.all("meta", **{"http-equiv": "Content-Security-Policy"})).attributes["content"]
    assert policy.startswith("default-src 'none'")
    everything = _nodes(page)
    assert not [node for node in everything if "src" in node.attributes]
    links = [node.attributes["href"] for node in everything if "href" in node.attributes]
    assert links
    assert all(link.startswith("#") for link in links)


def _nodes(node: Node) -> list[Node]:
    return [found for child in node.children for found in (child, *_nodes(child))]


def test_tables_and_plots_can_be_read_aloud(page: Node) -> None:
    tables, plots = list(page.all("table")), list(page.all("svg"))
    assert all(found.one("caption").text for found in tables)
    assert all(head.attributes.get("scope") for found in tables for head in found.all("th"))
    named = [plot for plot in plots if "aria-hidden" not in plot.attributes]
    assert len(named) == 10, "3 frontiers, 2 heads read, completeness, minimality, 2 of MIB, ROC of edges"
    assert all(plot.attributes["role"] == "img" and plot.attributes["aria-label"] for plot in named)


def test_rows_are_as_long_as_their_heads(page: Node) -> None:
    for found in page.all("table"):
        count = len(headings(found))
        for row in found.one("tbody").all("tr"):
            cells = [cell for cell in row.children if cell.tag in ("td", "th")]
            assert len(cells) == count, found.one("caption").text


def test_names_are_text() -> None:
    data = example()
    data["circuits"][0]["name"] = "<b>x</b>"
    data["circuits"][1]["method"] = "</script><script>alert(1)</script>"
    data["circuits"][0]["minimality"]["edges"][0]["edge"] = '"><img src=x>'
    data["measures"]["kl"]["heading"] = "<i>KL</i>"
    text = report_html(data)
    found = read(text)
    assert "<b>x</b>" in rows(table(found, "summary"))
    assert "<b>" not in text
    assert "<i>" not in text
    assert "<img" not in text
    assert text.count("<script") == 1


@pytest.mark.parametrize("bad", [None, float("nan"), float("inf")])
def test_numbers_that_are_not_defined(bad: float | None) -> None:
    """Whatever number is missing, the page has a dash in its place."""
    found = read(report_html(_with(example(), bad)))
    assert rows(table(found, "layers"))["pruned_95"][0].text == UNDEFINED
    assert not re.search(r"\b(nan|None|inf)\b", found.one("body").text.split("use strict")[0])


def _with(data: Any, bad: float | None) -> Any:
    if isinstance(data, dict):
        return {name: value if name in ("a", "b") else _with(value, bad) for name, value in data.items()}
    if isinstance(data, list):
        return [_with(value, bad) for value in data]
    return bad if isinstance(data, int | float) else data


# -------------------------------------------------------------------- what the sections say
def test_header(page: Node) -> None:
    facts = {row.one("dt").text: row.one("dd").text for row in page.one("header").all("div")}
    assert facts["model"] == "gpt2 (fingerprint of the weights 0123abcd)"
    assert facts["pairs"] == "200"
    assert facts["intervals"] == "95 % intervals, bootstrap over examples, 1,000 draws, seed 0"
    assert facts["task"] == f"IOITask, names 100, SHA-256 of the tokens {'b' * 16}"
    assert facts["random circuits"] == "5 of the size of each circuit"
    assert facts["tests"].endswith("mib (on the first 64 pairs; minimality closes 4 edges at most)")
    assert facts["command"].startswith("edgeprune evaluate")
    assert {"test examples", "minimality edges"}.isdisjoint(facts)


def test_header_without_tests() -> None:
    data = example()
    data["about"]["tests"] = []
    assert "tests" not in {term.text for term in read(report_html(data)).one("header").all("dt")}


def test_summary_has_figures_intervals_and_controls(page: Node) -> None:
    found = table(page, "summary")
    lines = rows(found)
    assert list(lines)[:3] == ["full model", "pruned_95", "random, size of pruned_95"]
    assert list(lines)[-1] == "empty circuit"
    place = headings(found).index("KL nats ↓") - 1
    cell = lines["pruned_95"][place]
    assert cell.text == "0.200 [0.180, 0.220]"
    assert cell.attributes["title"] == "KL (nats) 0.2, 95 % interval 0.18 to 0.22, 200 examples"
    assert cell.attributes["data-sort"] == "0.2"
    assert lines["random, size of pruned_95"][place].text == "3.500 ± 0.100"
    assert "from 3.300 to 3.700, 5 seeds" in lines["random, size of pruned_95"][place].attributes["title"]
    assert lines["empty circuit"][place].text.startswith("4.000")
    assert [cell.text for cell in lines["pruned_95"][:5]] == ["edge_pruning", "40 of 800", "95 %", "3", "9"]
    assert "sq. error" not in " ".join(headings(found)), "a measure without any value takes no column"


def test_seeds_have_their_mean_and_deviation(page: Node) -> None:
    found = table(page, "seeds")
    ((name, cells),) = rows(found).items()
    assert name == "pruned_95, eap"
    assert [cell.text for cell in cells[:3]] == ["edge_pruning", "2", "40 to 42"]
    assert cells[1].attributes["title"] == "seeds 0, 3"
    place = headings(found).index("KL nats ↓") - 1
    assert cells[place].text == "0.550 ± 0.200"
    assert cells[place].attributes["title"] == "mean KL (nats) 0.55, from 0.350 to 0.750, 2 seeds"


def test_seeds_with_attention_edges_say_how_many_are_open() -> None:
    data = example()
    data["seeds"][0]["attention_edges"] = [7, 7]
    found = table(read(report_html(data)), "seeds")
    (cells,) = rows(found).values()
    assert headings(found)[3:5] == ["edges", "attention edges"]
    assert [cell.text for cell in cells[2:4]] == ["40 to 42", "7"]


def test_scores_of_two_circuits_are_correlated_where_they_have_some(page: Node) -> None:
    (found,) = (one for one in page.one("section", id="overlap").all("table") if "Scores" in one.one("caption").text)
    assert headings(found)[2:] == ["Ružička of weights", "Spearman all edges", "Spearman kept edges"]
    assert [cell.text for cell in next(iter(rows(found).values()))] == ["pruned_98", "0.250", "0.750", UNDEFINED]
    data = example()
    for pair in data["pairs"]:
        del pair["ranks"], pair["weights"]
    assert "Scores of two" not in report_html(data)


def test_areas_over_sizes_have_intervals(page: Node) -> None:
    for section in ("mib", "runs"):
        found = table(page, section)
        place = headings(found).index("CPR ↑ requested size") - 1
        assert re.fullmatch(r"[\d.]+ \[[\d.]+, [\d.]+\]", next(iter(rows(found).values()))[place].text), section


def test_measures_beyond_the_main_ones_are_folded() -> None:
    data = example()
    for number in range(4):
        for circuit in data["circuits"]:
            figure = {"value": 0.5, "low": 0.4, "high": 0.6, "num_examples": 200}
            circuit["ablations"]["interchange"]["measures"][f"extra_{number}"] = figure
    found = read(report_html(data)).one("section", id="summary")
    first, second = found.all("table")
    assert sum(heading.startswith("extra") for heading in headings(first)) == 2
    assert headings(second) == ["circuit", "extra_2", "extra_3"]
    assert list(found.one("details").all("table")) == [second]


def test_circuits_of_one_name_are_told_apart() -> None:
    data = example()
    for circuit in data["circuits"]:
        circuit["name"] = "same"
    data["circuits"][1]["path"] = data["circuits"][2]["path"] = "twice.safetensors"
    lines = rows(table(read(report_html(data)), "summary"))
    names = [name for name in lines if not name.startswith("random")]
    assert names[1:4] == ["runs/pruned_95.safetensors", "twice.safetensors (2)", "twice.safetensors (3)"]


def test_frontier_has_a_point_per_circuit_and_joins_methods(page: Node) -> None:
    first = next(page.one("section", id="frontier").all("svg", role="img"))
    titles = [mark.one("title").text for mark in first.all("path")]
    assert titles == [
        *(f"random, size of {name} % of edges: 3.500" for name in ("pruned_95, 5", "pruned_98, 2", "eap, 5")),
        "pruned_98, 2 % of edges: 0.500",
        "pruned_95, 5 % of edges: 0.200",
        "eap, 5 % of edges: 0.900",
    ]
    (line,) = first.all("polyline")
    assert len(line.attributes["points"].split()) == 2
    legend = [item.text for item in page.one("section", id="frontier").all("li")]
    assert legend == ["edge_pruning", "eap", "random circuits of the same size"]


def test_ablations_are_coloured_by_normalised_faithfulness(page: Node) -> None:
    lines = rows(table(page, "ablations"))
    assert lines["pruned_95"][0].text == "0.950 0.200 [0.180, 0.220]; random 3.500"
    assert lines["pruned_95"][0].attributes["style"] == "--heat:0.950"
    assert lines["pruned_95"][1].text == "0.900 0.400 [0.380, 0.420] n = 150; random 4.500"
    beyond = rows(table(page, "ablations", 1))["eap"][1]
    assert beyond.text.startswith("1.040")
    assert beyond.attributes["style"] == "--heat:1.000"
    unknown = rows(table(page, "ablations", 2))["eap"][0]
    assert unknown.text.startswith(UNDEFINED)
    assert "style" not in unknown.attributes
    assert "data-sort" not in unknown.attributes


def test_controls_stand_beside_their_circuit(page: Node) -> None:
    found = table(page, "controls")
    assert found.one("caption").text == "Each circuit beside its controls, first 64 of 200 pairs"
    lines = [[cell.text for cell in row.children][:6] for row in found.one("tbody").all("tr")]
    assert lines[:4] == [
        ["full model", "", "", "", "0", "3.000"],
        ["pruned_95", "circuit", "40", "0 %", "0.200", "2.800"],
        ["pruned_95", "complement", "760", "100 %", "2.900", "0.200"],
        ["pruned_95", "random degrees 2 seeds", "40", "37.5 %", "3.125 ± 0.177", UNDEFINED],
    ]
    assert lines[-1] == ["empty circuit", "", "", "", "4.000", "-3.000"]
    random = list(list(found.one("tbody").all("tr"))[3].all("td"))
    assert random[2].attributes["title"] == "25 % to 50 % of the circuit's edges are closed, by seed"
    assert random[3].attributes["title"] == (
        "mean KL (nats) 3.125, from 3.000 to 3.250, 2 seeds; normalised faithfulness 0.250"
    )
    assert "all edges but the circuit's" in page.one("section", id="controls").text


def test_layers_show_counts_and_shares(page: Node) -> None:
    cell = rows(table(page, "layers"))["pruned_95"][0]
    assert cell.text == "10"
    assert cell.attributes["title"] == "0: 10 of 200 edges, 5 %"
    assert cell.attributes["style"] == f"--heat:{0.05**0.5:.3f}"
    assert rows(table(page, "layers", 1))["pruned_95"][1].text == UNDEFINED, "no such edges exist"


def test_completeness(page: Node) -> None:
    section = page.one("section", id="completeness")
    first = table(page, "completeness")
    assert first.one("caption").text == "Completeness scores, first 64 of 200 pairs"
    lines = [[cell.text for cell in row.children] for row in first.one("tbody").all("tr")]
    assert lines[0] == ["pruned_95", "all", "logit diff.", "4", "", "3.000"]
    assert lines[1] == ["pruned_95", "random nodes", "logit diff.", "1", "0.500", "0.500"]
    assert lines[3] == ["pruned_95", "roles", "logit diff.", "1", UNDEFINED, UNDEFINED]
    worst = rows(table(page, "completeness", 1))["pruned_95"]
    assert worst[0].text == "greedy search"
    assert worst[1].text.endswith("a1.h7 and 4 more")
    assert len(list(section.one("svg", role="img").all("path"))) == 3, "the role without a score has no point"
    assert "pruned_95: duplicate_token" in section.text


def test_minimality_lists_the_least_edges_first(page: Node) -> None:
    found = table(page, "minimality")
    assert found.one("caption").text == "Edges closed and redundant, first 64 of 200 pairs"
    assert [cell.text for cell in rows(found)["pruned_95"]] == [
        "KL", "the 4 with the lowest scores", "12", "1", "4", "1", "2", "0.010",
    ]  # fmt: skip
    edges = [
        [row.one("th").text, *(cell.text for cell in row.all("td"))]
        for row in table(page, "minimality", 2).one("tbody").all("tr")
    ]
    assert edges == [
        ["pruned_95", "a0.h0->a1.h0.q", "-0.004", "0.002", "superfluous p 1.000"],
        ["pruned_95", "a0.h1->a1.h0.k not run", "0", "0.002", "superfluous p 1.000"],
        ["pruned_95", "m0->logits", "0.031", "0.002", "not significant p 0.250"],
        ["pruned_95", "a1.h0->logits", "1.200", "0.002", "significant"],
    ]
    bars = [bar for bar in _nodes(page.one("section", id="minimality")) if bar.tag == "rect"]
    assert [bar.one("title").text for bar in bars] == [
        "-0.1 to 0.3: 3 edges",
        "0.3 to 0.7: 0 edges",
        "0.7 to 1.1: 0 edges",
        "1.1 to 1.5: 1 edge",
    ]
    assert [float(bar.attributes["height"]) > 0 for bar in bars] == [True, False, False, True]


def test_minimality_against_random_edges(page: Node) -> None:
    cells = rows(table(page, "minimality", 1))["pruned_95"]
    assert [cell.text for cell in cells] == ["4", "1 Benjamini-Hochberg", "2", "40", "4.0e-04", "not minimal"]
    assert cells[2].attributes["title"] == "a0.h0->a1.h0.q, a0.h1->a1.h0.k"
    assert "the least p-value of an edge is 0.024" in cells[4].attributes["title"]
    data = example()
    del data["circuits"][0]["minimality"]["significance"]
    found = read(report_html(data))
    assert "Edges against random edges" not in found.text
    last = rows(table(found, "minimality", 1))["pruned_95"][-1]
    assert last.text == UNDEFINED, "nothing is said of an edge that was not tested"


def test_suffix_has_a_line_for_each_space(page: Node) -> None:
    changes = table(page, "suffix")
    assert changes.one("caption").text == "Relative change of the output, first 64 of 200 pairs"
    lines = [[cell.text for cell in row.all("td")] for row in changes.one("tbody").all("tr")]
    assert lines == [
        ["final residual stream", "0.500", "0.250 ± 0.177", "0.625", "2.000", "0.333"],
        ["logits", "0.625", "0.375 ± 0.177", "0.750", "2.000", "0.333"],
        ["logits minus their mean", "0.750", "0.500 ± 0.177", "0.875", "2.000", "0.333"],
    ]
    nodes = [cell.text for cell in rows(table(page, "suffix", 1))["pruned_95"]]
    assert nodes == ["2", "a0.h0, m1", "4", "2", "25 %", "32"]
    shapes = [cell.text for cell in rows(table(page, "suffix", 2))["pruned_95"]]
    assert shapes == ["final residual stream", *["0.750"] * 3, *[UNDEFINED] * 3]


def test_hypotheses_have_their_readings(page: Node) -> None:
    found = table(page, "hypothesis")
    assert found.one("caption").text == "Tests of each circuit, first 64 of 200 pairs"
    first, second = [[cell.text for cell in row.all("td")] for row in found.one("tbody").all("tr")]
    null = "as good on half of the examples"
    assert first == ["equivalence", null, "0.250", "0.005 least 0.001", "64", "rejected at 5 %: worse"]
    assert second[3:] == [f"{UNDEFINED} least 0.001", "0", "not tested"]
    facts = {
        row.one("dt").text: row.one("dd").text
        for row in page.one("section", id="hypothesis").all("div")
        if list(row.all("dt"))
    }
    assert facts["scores"] == "logit diff., for equivalence and independence"
    assert facts["faithfulness"] == "KL, for sufficiency and partial necessity"


def test_accuracies_with_and_without_the_circuit_have_their_intervals(page: Node) -> None:
    cells = [cell.text for cell in rows(table(page, "functional"))["pruned_95"]]
    assert cells[:4] == ["edges", "5 %", "0.938 0.917 to 0.958", "0.562 0.542 to 0.583"]


def test_a_mask_on_weights_is_shown_by_layer() -> None:
    data = example()
    data["weights"] = {
        "density": 0.25, "kept": 100, "gated": 400, "digest": "0123",
        "tensors": {"model.layers.1.mlp.up_proj.weight": 0.5, "model.embed.weight": 0.125},
        "nodes": {"a0.h1": 0.75, "m1": 0.5},
    }  # fmt: skip
    page = read(report_html(data))
    assert rows(table(page, "weights"))["1"][0].text == "50 %"
    assert rows(table(page, "weights", 1))["model.embed.weight"][0].text == "12.5 %"
    nodes = rows(table(page, "weights", 2))
    assert (nodes["0"][0].text, nodes["1"][1].text) == ("75 %", "50 %")


def test_mib_has_both_orders_of_the_scores(page: Node) -> None:
    section = page.one("section", id="mib")
    lines = [[cell.text for cell in row.all("td")] for row in table(page, "mib").one("tbody").all("tr")]
    values = [(0.94, "0.940"), (0.06, "0.060"), (0.95, "0.950"), (0.05, "0.050"), (0.63, "0.630"), (0.75, "0.750")]
    areas = ["logit diff.", *(f"{text} [{value - 0.02:.3f}, {value + 0.02:.3f}]" for value, text in values)]
    assert lines[:2] == [["signed", *areas], ["absolute no meaning for a trained mask", *areas]]
    assert len(lines) == 4, "a circuit without scores has no line"
    plots = [len(list(plot.all("path"))) for plot in section.all("svg", role="img")]
    assert plots == [8, 8]
    points = rows(table(page, "mib", 1))["pruned_95"]
    assert [cell.text for cell in points] == ["signed", "0.1 %", "0", "0", "3.000", "0", "0.500"]
    assert "800 (one embedding; MIB counts otherwise: 900)" in section.text


@pytest.mark.parametrize(
    ("method", "trained"), [("edge_pruning", True), ("subnetwork_probing", True), ("ugs", True), ("eap", False)]
)
def test_absolute_order_of_trained_masks_means_nothing(method: str, trained: bool) -> None:
    data = example()
    del data["circuits"][1:]
    data["circuits"][0]["method"] = method
    found = read(report_html(data)).one("section", id="mib")
    assert ("pruned_95: scores of trained masks" in found.text) == trained
    assert ("no meaning for a trained mask" in found.text) == trained


def test_circuits_of_one_run(page: Node) -> None:
    cells = [cell.text for cell in rows(table(page, "runs"))["edge_pruning, seed 0"]]
    assert cells[:4] == ["2", "logit diff.", "0.940 [0.920, 0.960]", "0.060 [0.040, 0.080]"]
    assert cells[-4:] == ["0.750 [0.730, 0.770]", "0.875", "0.050", "0.812"]
    steps = [cell.text for cell in rows(table(page, "runs", 1))["edge_pruning, seed 0"]]
    assert steps == ["pruned_98", "pruned_95", "0.875", "0.050", "1.0e-12"]


def test_known_circuits(page: Node) -> None:
    roles = rows(table(page, "known"))
    assert roles["name mover"][0].text == "1 of 2"
    assert roles["name mover"][0].attributes["title"] == "found: a1.h0; missed: a1.h2"
    assert roles["roles found"][0].text == "2 of 2 component types"
    legend = [item.text for item in page.one("section", id="known").all("li")]
    assert legend == ["pruned_95", "pruned_98"], "a circuit without a curve has no line in the legend"
    shared = table(page, "known", 1)
    assert headings(shared)[1:4] == ["shared edges", "by chance", "p-value of the shared edges"]
    assert headings(shared)[4:] == ["node recall", "MIB AUROC by score"], "a column without any value is left out"
    assert [cell.text for cell in rows(shared)["pruned_95"]] == ["15", "1.500", "1.0e-4", "0.667", "0.875"]
    own, others = table(page, "known", 2), table(page, "known", 3)
    assert [cell.text for cell in rows(own)["pruned_95"]][:3] == ["edges", "0.750", "0.013"]
    assert [cell.text for cell in rows(others)["pruned_95"]][:3] == ["acdc", "edges", "0.750"]


def test_overlap(page: Node) -> None:
    assert rows(table(page, "overlap"))["eap"][0].text == "0.250"
    pair = rows(table(page, "overlap", 1))["pruned_95"]
    assert [cell.text for cell in pair] == ["pruned_98", "0.400", "20", "2.500", "3.2e-1235", "0.800"]
    assert rows(table(page, "overlap", 2))["pruned_95"][1].text == "-0.300 [-0.400, -0.200] p = 1.0e-04"


def test_breakdown_and_glossary(page: Node) -> None:
    line = rows(table(page, "breakdown"))["pruned_95"]
    assert [cell.text for cell in line[:3]] == ["ABBA", "80", "0.100 [0.080, 0.120]"]
    assert "indirect object (97 values): too many" in page.one("section", id="breakdown").text
    glossary = rows(table(page, "glossary"))
    assert [cell.text for cell in glossary["KL"]] == ["kl", "KL(full || circuit)", "nats", "lower", "a paper"]
    assert "CPR" in page.one("section", id="glossary").text
    data = example()
    SECTIONS["mib"](data)
    assert "CPR" not in read(report_html(data)).one("section", id="glossary").text


def test_reading_has_patterns_bars_and_effects(page: Node) -> None:
    section = page.one("section", id="reading")
    assert "first 10 of 200 pairs" in next(section.all("p")).text
    first, _ = section.all("svg", role="img")
    assert first.attributes["aria-label"].startswith("a1.h0: attention from each of 3 tokens to each, in circuit and")
    cells = [cell for cell in first.all("rect") if cell.attributes["class"] == "cell"]
    told = [(cell.one("title").text, cell.attributes["fill-opacity"]) for cell in cells]
    assert len(cells) == 6 + 6, "what is below a hundredth is not drawn"
    assert told[4] == ("0.90 from 2 ·to END to 1 ·Mary IO", "0.90")
    assert told[6] == ("1.00 from 0 When to 0 When", "1.00")
    assert [text.text for text in first.all("text")][:3] == ["When", "·Mary IO", "·to END"]
    numbers = table(page, "reading")
    lines = [[cell.text for cell in row.all("td")] for row in numbers.one("tbody").all("tr")]
    assert ["3", "2 ·to END", "1 ·Mary IO", "0.90", "0.30"] in lines
    assert len(lines) == 6 + 6
    shares = rows(table(page, "reading", 1))["a1.h0"]
    assert [cell.text for cell in shares] == ["0.80 0.60", "0.20 0.40"]
    assert shares[0].attributes["style"] == "--heat:0.800"
    assert rows(table(page, "reading", 2))["a0.h0"][0].text == "scored position"


def test_bars_and_signs_of_a_reading(page: Node) -> None:
    direct = table(page, "reading", 3)
    assert direct.one("caption").text == (
        "Direct attribution to the logit difference: 1.125 = 2.125 by open edges and biases + -1.000 by closed; "
        "full model 2.625"
    )
    head, mlp, bias = (rows(direct)[name] for name in ("a1.h0", "m1", "attention biases"))
    assert [cell.text for cell in head] == ["+2.000", "0.500", "open", "+3.000"]
    assert [cell.text for cell in mlp] == ["-1.000", "0.250", "closed: ablated value", "-0.500"]
    assert bias[2].text == "no owner"
    bars = [cells[0].one("span").attributes for cells in (head, mlp)]
    assert bars[0] == {"class": "length", "style": "--length:0.667"}
    assert bars[1] == {"class": "length other", "style": "--length:0.333"}
    exact = rows(table(page, "reading", 4))
    assert list(exact) == ["a0.h0->a1.h0.q"]
    io, end, other, whole = exact["a0.h0->a1.h0.q"]
    assert [cell.text for cell in (io, end, other, whole)] == ["0 0", "+0.750 +0.500", "-0.250 -0.100", "+0.375 +0.400"]
    assert (end.attributes["class"], other.attributes["class"]) == ("number heat", "number heat other")
    assert end.attributes["style"] == "--heat:1.000"
    assert list(rows(table(page, "reading", 5))) == ["a0.h0->a1.h0.q", "m0->logits"]
    notes = page.one("section", id="reading").one("dl")
    assert (notes.one("dt").text, notes.one("dd").text) == ("Not shown", "something: is not there")


# -------------------------------------------------------------------- a computed result
# Dicts whose keys are names of something, not of the schema.
NAMED = re.compile(
    r"about\.(task|versions)|measures|ends|circuits\.(layers|kinds|known|labels|labels\.\*|labels_skipped|ablations)"
    r"|(ends\.\*\.(full|empty)|circuits\.ablations\.\*\.(measures|normalised|random)|circuits\.labels\.\*\.\*\.measures)"
    r"|circuits\.known\.\*\.(roles|conventions)|pairs\.(kinds|layers|differences)"
    r"|circuits\.controls\.(full|empty|controls|controls\.\*\.(figures|faithfulness|each))|circuits\.completeness\.summary"
    r"|circuits\.reading\.(attention\.prompts\.roles|by_role\.heads|effects\.total)"
    r"|circuits\.reading\.effects\.edges\.(first_order|exact|standard_error)"
    r"|circuits\.(hypothesis\.tests|hypothesis\.tests\.\*\.(settings|details)|minimality\.significance\.(settings|details))"
)


def keys(data: Any, path: str = "") -> set[str]:
    """The keys inside by their path; names as a star, list places left out."""
    if isinstance(data, list):
        return {key for item in data for key in keys(item, path)}
    found = set[str]()
    if isinstance(data, dict) and path != "about.task":
        for name, value in data.items():
            inside = f"{path}.{'*' if NAMED.fullmatch(path) else name}".lstrip(".")
            found |= {inside} | keys(value, inside)
    return found


@pytest.fixture(scope="module")
def computed(tmp_path_factory: pytest.TempPathFactory) -> Json:
    """A result of `edgeprune evaluate` with everything in it but labels."""
    folder = tmp_path_factory.mktemp("computed")
    task = {"class_path": "CompiledTask", "init_args": {"program": "reverse", "lengths": [3]}}
    (folder / "data.yaml").write_text(yaml.safe_dump({"data": {"task": task, "eval_batch_size": 8}}))
    graph = load_model("compiled:reverse").graph
    header = {"model": "compiled:reverse", "ablation": "zero", "method": "edge_pruning"}
    scores = graph.exists * torch.arange(float(graph.exists.numel())).view(graph.shape)
    paths = [folder / f"{size}.safetensors" for size in (30, 60)]
    for path, size in zip(paths, (30, 60), strict=True):
        Circuit(graph, top_n(graph, scores, size), scores, header).save(path)
    quick = ["--limit", "3", "--seeds", "2", "--draws", "5", "--random", "2", "--minimality-edges", "3"]
    quick += ["--reading", "2", "--reading-edges", "3"]
    more = ["--tests", "all", "--known", "tracr_reverse", "--json", str(folder / "out.json")]
    assert main(["evaluate", *map(str, paths), "--config", str(folder / "data.yaml"), *quick, *more]) == 0
    return json.loads((folder / "out.json").read_text())


def test_the_example_has_the_keys_of_a_computed_result(computed: Json) -> None:
    """Labels and readings are looked at elsewhere: a compiled task has neither labels nor roles."""
    unknown = keys(example()) - keys(computed)
    assert not [key for key in unknown if not key.startswith(("circuits.labels", "circuits.reading.", "seeds"))]
    assert computed["circuits"][0]["reading"]["direct"]["direction"] == "target"


def test_the_example_s_seeds_have_the_keys_of_computed_ones(computed: Json) -> None:
    graph = EdgeGraph(ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1))
    two = [Circuit.from_edges(graph, ["embed->m0"], {"method": "eap", "seed": seed}) for seed in (0, 1)]
    (found,) = spread_of_seeds(two, [computed["circuits"][0]] * 2)
    (example_of,) = example()["seeds"]
    assert set(example_of) == set(found)
    assert set(example_of["ablations"]["interchange"]) == set(found["ablations"]["zero"])


def test_a_computed_result_has_all_sections_but_those_without_data(computed: Json) -> None:
    found = [section.attributes["id"] for section in read(report_html(computed)).all("section")]
    assert found == [name for name in SECTIONS if name not in ("seeds", "ablations", "breakdown")]


# -------------------------------------------------------------------- plots
def test_axes_have_round_ticks_inside_their_ends() -> None:
    assert [value for value, _ in axis("x", [0.0, 4.2], zero=True).ticks()] == [0, 1, 2, 3, 4]
    assert [label for _, label in axis("x", [0.2, 40.0], log=True).ticks()] == [
        "0.2",
        "0.5",
        "1",
        "2",
        "5",
        "10",
        "20",
        "50",
    ]
    assert next(label for _, label in axis("x", [1e-6, 100.0], log=True).ticks()) == "1e-06"
    for values in ([3.0], [0.0], [-2.0, -2.0], [5e-324, 1.0], [7.0, 7.0001]):
        found = axis("x", values)
        assert found.low < found.high
        assert len(found.ticks()) >= 2
        assert all(found.holds(value) for value, _ in found.ticks())


def test_points_are_placed_by_both_axes() -> None:
    x, y = axis("x", [1.0, 100.0], log=True), axis("y", [0.0, 1.0])
    points = [Point(10.0, 0.5, "middle", 0.0, 1.0), Point(0.0, 0.5), Point(10.0, 9.0)]
    plot = draw("title", x, y, [Series(key("one", 0), points, line=True)], rules=[Rule("above", y=5.0)])
    (mark,) = plot.marks
    assert (mark.x, mark.y) == pytest.approx(((LEFT + WIDTH - RIGHT) / 2, (TOP + plot.bottom) / 2), abs=0.1)
    (interval,) = plot.segments
    assert interval.x1 == interval.x2 == mark.x
    assert interval.y1 > mark.y > interval.y2
    assert not plot.paths, "one point makes no line"
    assert plot.bottom < HEIGHT
    low, high = draw("", x, y, [Series(key("two", 1), [Point(1.0, 0.0), Point(100.0, 1.0)])]).marks
    assert LEFT < low.x < mark.x < high.x < WIDTH - RIGHT
    assert plot.bottom > low.y > mark.y > high.y > TOP, "y grows downwards in SVG"


def test_bins_are_equally_wide_and_their_ticks_symmetrical() -> None:
    bounds = [*(-(10.0**-power) for power in range(13)), *(10.0**-power for power in reversed(range(13)))]
    found = bin_axis("effect", bounds)
    values = [value for value, _ in found.ticks()]
    assert values == [25 - value for value in reversed(values)]
    assert (values[0], values[-1]) == (0, 25)
    assert place_in_bins(0.0, bounds) == 12.5
    assert place_in_bins(1.5, bounds) is None
    assert [label for _, label in bin_axis("effect", [0, 1, 2]).ticks()] == ["0", "1", "2"]


def test_far_apart_divergences_get_a_logarithmic_axis() -> None:
    data = example()
    for circuit, value in zip(data["circuits"], (0.01, 0.1, 1.0), strict=True):
        circuit["ablations"]["interchange"]["measures"]["kl"] = {"value": value, "low": 0.0, "high": 2 * value}
        circuit["ablations"]["interchange"]["random"]["kl"] = spread(3.0)
    first, second, _ = read(report_html(data)).one("section", id="frontier").all("svg", role="img")
    assert {"0.01", "0.1", "1"} <= {text.text for text in first.all("text")}
    assert len(list(first.all("path"))) == 6
    assert "0.1" not in {text.text for text in second.all("text")}, "logit differences keep a linear axis"
    assert grey("random").colour == "grey"


# -------------------------------------------------------------------- files and browser
def test_files_of_the_page_are_in_the_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["edgeprune"]
    folder = Path(edgeprune.report.__file__).parent
    files = [path for path in folder.iterdir() if path.is_file() and path.suffix != ".py"]
    assert {path.name for path in files} == {"report.html.j2", "report.css", "report.js"}
    for path in files:
        name = path.relative_to(ROOT / "edgeprune").as_posix()
        assert any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns), name


CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
def test_in_a_browser(tmp_path: Path) -> None:
    """It renders without a word on the console, stays inside a narrow window, and sorts on click."""
    click = """
    <script>
    const head = document.querySelectorAll("#summary th button")[6];
    const order = () => [...document.querySelectorAll("#summary tbody th")].map((cell) => cell.textContent).join("|");
    const told = [head.textContent];
    head.click(); told.push(order(), head.parentElement.getAttribute("aria-sort"));
    head.click(); told.push(order(), head.parentElement.getAttribute("aria-sort"));
    told.push(document.documentElement.scrollWidth <= innerWidth);
    document.body.dataset.told = JSON.stringify(told);
    </script>
    """
    data = example()
    for name in ("pruned_95", "pruned_98", "eap"):
        next(one for one in data["circuits"] if one["name"] == name)["ablations"]["interchange"].pop("random")
    data["circuits"][1]["ablations"]["interchange"]["measures"]["kl"]["value"] = None
    path = tmp_path / "page.html"
    path.write_text(report_html(data).replace("</body>", f"{click}</body>"), encoding="utf-8")
    flags = ("--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--window-size=500,800")
    profile = f"--user-data-dir={tmp_path / 'profile'}"
    command = [str(CHROMIUM), *flags, profile, "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert "CONSOLE" not in done.stderr
    told = json.loads(read(done.stdout).one("body").attributes["data-told"])
    assert told == [
        "KL nats ↓",
        "full model|pruned_95|eap|empty circuit|pruned_98", "ascending",
        "empty circuit|eap|pruned_95|full model|pruned_98", "descending",
        True,
    ]  # fmt: skip
