"""The layout, and what the still drawings and the page are made of."""

import fnmatch
import json
import math
import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import matplotlib.image
import pytest
import torch

import edgeprune.drawing
from edgeprune.circuit import Circuit
from edgeprune.drawing import NamedCircuit, draw_image, on_paths, strongest_edges, viewer_html
from edgeprune.drawing.dot import dot
from edgeprune.drawing.edges import edges_of, strengths
from edgeprune.drawing.layout import lay_out
from edgeprune.drawing.palette import LIGHT, line_width, opacity
from edgeprune.drawing.shapes import HEAD_WIDTH, NODE_HEIGHT, READER
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph

ROOT = Path(__file__).parents[2]
SHARED = EdgeGraph(ArchSpec(num_layers=4, num_heads=6, num_kv_heads=2))
OWN = EdgeGraph(ArchSpec(num_layers=3, num_heads=3, num_kv_heads=3, split_embedding=True))
BARE = EdgeGraph(ArchSpec(num_layers=2, num_heads=2, num_kv_heads=1, has_mlp=False))
PARALLEL = EdgeGraph(ArchSpec(num_layers=4, num_heads=3, num_kv_heads=3, parallel_blocks=True))
GRAPHS = pytest.mark.parametrize(
    "graph", [SHARED, OWN, BARE, PARALLEL], ids=["shared", "own", "attention only", "parallel"]
)


def some(graph: EdgeGraph, num_edges: int = 40, seed: int = 0) -> Circuit:
    scores = torch.randn(graph.shape, generator=torch.Generator().manual_seed(seed))
    return Circuit.from_scores(graph, scores, num_edges=num_edges, header={"model": "<m>", "method": "eap"})


# -------------------------------------------------------------------- layout
@GRAPHS
@pytest.mark.parametrize("num_edges", [0, 1, 10, 21])
def test_everything_has_a_place_and_nothing_overlaps(graph: EdgeGraph, num_edges: int) -> None:
    circuit = some(graph, num_edges)
    layout = lay_out(graph, circuit.keep)
    for row, column in circuit.keep.nonzero().tolist():
        writer, reader = layout.nodes[layout.leaves[column]], layout.readers[row]
        assert f"{writer.name}->{reader.name}" == graph.edge_name(row, column)
        way = layout.curve(row, column)
        assert way.y1 > way.y2, "edges run upwards"
    names = [node.name for node in layout.nodes]
    assert len(set(names)) == len(names)
    assert "logits" in names
    for place, node in enumerate(layout.nodes):
        assert node.width / 2 < node.x < layout.width - node.width / 2
        assert node.height / 2 < node.y < layout.height - node.height / 2
        for other in layout.nodes[:place]:
            apart_x = abs(node.x - other.x) >= (node.width + other.width) / 2
            assert apart_x or abs(node.y - other.y) >= NODE_HEIGHT, (node, other)


def test_layers_are_rows_in_order() -> None:
    layout = lay_out(SHARED, SHARED.exists)
    heights = {node.name: node.y for node in layout.nodes}
    for layer in range(4):
        row = {heights[f"a{layer}.h{head}"] for head in range(6)}
        assert len(row) == 1
        assert row.pop() > heights[f"m{layer}"]
    assert heights["embed"] > heights["a0.h0"] > heights["m0"] > heights["a1.h0"] > heights["m3"] > heights["logits"]
    xs = [node.x for node in layout.nodes if node.name.startswith("a2.")]
    assert xs == sorted(xs)
    assert [label.text for label in layout.rows] == ["embed", *(f"layer {layer}" for layer in range(4)), "logits"]


def test_a_shared_reader_is_drawn_once_inside_the_frame_of_its_heads() -> None:
    layout = lay_out(SHARED, SHARED.exists)
    assert len(layout.boxes) == 4 * 2
    reader = layout.readers[SHARED.readers.index("a1.h1.k")]
    assert [layout.nodes[place].name for place in reader.nodes] == ["a1.h3", "a1.h4", "a1.h5"]
    inside = [
        box for box in layout.boxes if box.x < reader.x < box.x + box.width and box.y < reader.y < box.y + box.height
    ]
    assert len(inside) == 1
    places = sorted((reader.x, reader.y) for reader in layout.readers.values() if reader.kind in "qkv")
    near = [math.dist(a, b) for n, a in enumerate(places) for b in places[:n]]
    assert min(near) > READER


def test_only_heads_that_take_part_are_drawn() -> None:
    circuit = Circuit.from_edges(SHARED, ["embed->a1.h0.v", "a1.h1->logits", "embed->a2.h1.k"])
    names = {node.name for node in lay_out(SHARED, circuit.keep).nodes}
    assert names == {"embed", "logits", "a1.h1", "a2.h3", "a2.h4", "a2.h5"}


def test_long_edges_between_places_above_each_other_bow_outwards() -> None:
    layout = lay_out(SHARED, SHARED.exists)
    long, short = (layout.curve(*SHARED.index(edge)) for edge in ("m0->m3", "m0->m1"))
    assert long.cx1 - long.x1 > HEAD_WIDTH / 2 > short.cx1 - short.x1
    assert 0.75 * long.cx1 + 0.25 * long.x1 < layout.width


def test_a_layer_with_its_mlp_alone_has_a_lower_row() -> None:
    edges = ["embed->a0.h0.v", "a0.h0->m1", "m1->m2", "m2->a3.h0.v", "a3.h0->logits"]
    layout = lay_out(SHARED, Circuit.from_edges(SHARED, edges).keep)
    heights = {node.name: node.y for node in layout.nodes}
    rows = {label.text: label.y for label in layout.rows}
    assert rows["layer 1"] == heights["m1"]
    assert rows["layer 1"] - rows["layer 2"] < rows["layer 0"] - rows["layer 1"]
    assert rows["layer 1"] - rows["layer 2"] > NODE_HEIGHT
    down = ["embed", "a0.h0", "m1", "m2", "a3.h0", "logits"]
    assert sorted(down, key=lambda name: -heights[name]) == down


# -------------------------------------------------------------------- strength
def test_strengths_run_from_nothing_to_the_strongest() -> None:
    circuit = Circuit.from_scores(
        OWN, torch.where(OWN.exists, torch.arange(OWN.exists.numel()).view(OWN.shape), 0).float(), num_edges=5
    )
    assert strengths(circuit).max() == 1
    assert strengths(circuit)[circuit.keep].min() > 0.9, "all positive: strengths are of the score itself"
    assert strengths(circuit)[~circuit.keep].max() == 0
    below = Circuit(OWN, OWN.exists, -torch.rand(OWN.shape))
    assert strengths(below)[OWN.exists].min() == 0
    assert strengths(Circuit(OWN, OWN.exists))[OWN.exists].min() == 1


def test_stronger_edges_are_wider_and_on_top() -> None:
    edges = edges_of(some(SHARED))
    assert [edge.strength for edge in edges] == sorted(edge.strength for edge in edges)
    assert line_width(1) > line_width(0.2) > line_width(0) > 0
    assert 0 < opacity(0.5, 5000) < opacity(0.5, 50) < opacity(1, 10) <= 1


def test_a_difference_has_three_parts() -> None:
    a, b = some(SHARED, 40, 0), some(SHARED, 60, 1)
    found = {
        name: {SHARED.edge_name(edge.row, edge.column) for edge in edges_of(a, b) if edge.colour == name}
        for name in ("first", "second", "both")
    }
    assert found["both"] == set((a & b).edges())
    assert found["first"] == set((a - b).edges())
    assert found["second"] == set((b - a).edges())


def test_too_many_edges_are_cut_to_the_strongest_or_refused() -> None:
    circuit = some(SHARED, 60)
    cut = strongest_edges(NamedCircuit("x", circuit), 10).circuit
    assert cut.num_edges == 10
    assert cut.scores[cut.keep].min() > circuit.scores[circuit.keep & ~cut.keep].max()
    assert strongest_edges(NamedCircuit("x", circuit), 60).circuit is circuit
    with pytest.raises(EdgepruneError, match="x has 60 edges, more than 10, and no scores"):
        strongest_edges(NamedCircuit("x", Circuit(SHARED, circuit.keep)), 10)


def test_dangling_edges_are_left_out_and_the_whole_is_remembered() -> None:
    circuit = Circuit.from_edges(SHARED, ["embed->m0", "m0->logits", "m1->m2"])
    named = on_paths(NamedCircuit("x", circuit))
    assert named.circuit.edges() == ["embed->m0", "m0->logits"]
    assert named.whole is circuit
    assert on_paths(named) is named
    scored = some(SHARED, 60)
    assert on_paths(strongest_edges(NamedCircuit("x", scored), 10)).whole is scored


# -------------------------------------------------------------------- images and DOT
def test_an_svg_has_the_curves_and_the_names(tmp_path: Path) -> None:
    circuit = some(OWN, 12)
    draw_image(circuit, tmp_path / "x.svg")
    text = (tmp_path / "x.svg").read_text()
    tree = ElementTree.fromstring(text)
    words = {"".join(node.itertext()).strip() for node in tree.iter("{http://www.w3.org/2000/svg}text")}
    assert {"<m>", "logits", *circuit.heads()} <= words
    kinds = {edge.colour for edge in edges_of(circuit)}
    assert all(LIGHT[kind] in text for kind in kinds)
    draw_image(circuit, tmp_path / "again.svg")
    assert (tmp_path / "again.svg").read_text() == text, "the same circuit gives the same file"


def test_an_image_of_a_part_tells_the_size_of_the_whole(tmp_path: Path) -> None:
    whole = some(OWN, 12)
    draw_image(strongest_edges(NamedCircuit("x", whole), 5).circuit, tmp_path / "x.svg", whole=whole)
    text = (tmp_path / "x.svg").read_text()
    assert f"eap: 12 of {OWN.num_edges} edges" in text
    assert "; 5 of the 12 are drawn" in text
    draw_image(whole, tmp_path / "whole.svg")
    assert "are drawn" not in (tmp_path / "whole.svg").read_text()


def test_a_difference_as_png_and_pdf(tmp_path: Path) -> None:
    a, b = some(OWN, 12), some(OWN, 12, 1)
    draw_image(a, tmp_path / "x.png", b, ("a", "b"))
    image = matplotlib.image.imread(tmp_path / "x.png")[..., :3]
    wanted = torch.tensor([int(LIGHT["first"][place : place + 2], 16) / 255 for place in (1, 3, 5)])
    assert (torch.from_numpy(image) - wanted).abs().sum(-1).min() < 0.3, "edges of the first alone are seen"
    draw_image(a, tmp_path / "x.pdf", b, ("a", "b"))
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")


def test_circuits_of_two_graphs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgepruneError, match="num_layers"):
        draw_image(some(OWN), tmp_path / "x.png", some(SHARED))
    assert not list(tmp_path.iterdir())


@GRAPHS
def test_dot_has_each_edge_once(graph: EdgeGraph) -> None:
    circuit = some(graph, 20)
    text = dot(circuit)
    drawn = re.findall(r'"([^"]+)" -> "([^"]+)" \[color="[^"]+", penwidth=[\d.]+, class="(\w+)"\]', text)
    pairs = [edge.split("->") for edge in circuit.edges()]
    kinds = [(writer, "mlp" if reader.startswith("m") else reader.rpartition(".")[2]) for writer, reader in pairs]
    assert sorted((writer, kind) for writer, _, kind in drawn) == sorted(kinds)
    if graph is OWN:
        ends = [(writer, reader.rpartition(".")[0] or reader) for writer, reader in pairs]
        assert sorted((writer, end) for writer, end, _ in drawn) == sorted(ends)
    assert text.count("{") == text.count("}")


def test_dot_of_a_shared_reader() -> None:
    circuit = Circuit.from_edges(SHARED, ["embed->a2.h1.k"])
    text = dot(circuit)
    assert '"embed" -> "a2.h1.k"' in text
    assert [f'"a2.h1.k" -> "a2.h{head}" [style=dashed' in text for head in range(6)] == [False] * 3 + [True] * 3


# -------------------------------------------------------------------- the page
def data_of(page: str) -> dict:
    (found,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page)
    return json.loads(found)


def test_the_page_holds_every_circuit() -> None:
    named = [NamedCircuit(f"c{seed}", some(SHARED, 30 + 10 * seed, seed)) for seed in range(3)]
    data = data_of(viewer_html(named, 1, 2))
    assert (data["start"], data["compare"], data["existing"]) == (1, 2, SHARED.num_edges)
    nodes, readers = data["nodes"], data["readers"]
    pairs = zip(data["edges"][::2], data["edges"][1::2], strict=True)
    edges = [f"{nodes[data['writers'][writer]][0]}->{readers[reader][0]}" for reader, writer in pairs]
    for one, order, scores, share in zip(named, data["order"], data["scores"], data["shares"], strict=True):
        assert {edges[place] for place in order} == set(one.circuit.edges())
        assert scores == sorted(scores, reverse=True)
        best = one.circuit.scores[SHARED.index(edges[order[0]])]
        assert scores[0] == pytest.approx(float(best), rel=1e-3)
        assert share[0] == 1


def test_a_circuit_without_scores_has_none_on_the_page() -> None:
    data = data_of(viewer_html([NamedCircuit("x", Circuit(BARE, BARE.exists))]))
    assert (data["scores"], data["shares"]) == ([None], [None])
    assert len(data["order"][0]) == BARE.num_edges


def test_the_page_loads_nothing_and_names_are_text() -> None:
    circuit = some(SHARED)
    circuit.header["method"] = "</script><script>alert(1)</script>"
    page = viewer_html([NamedCircuit("<b>", circuit)])
    assert page.count("</script>") == 2
    assert "<title>&lt;m&gt;: circuit</title>" in page
    assert "<b>" not in page
    hosts = set(re.findall(r"https?://[^\"' ]*", page))
    assert hosts == {"http://www.w3.org/2000/svg"}, "the name of SVG's elements is no address that is loaded"
    assert "default-src 'none'" in page
    assert not re.search(r"\b(src|href)=|url\(|@import", page)


def test_files_of_the_page_are_in_the_wheel() -> None:
    patterns = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]["edgeprune"]
    files = [
        path for path in Path(edgeprune.drawing.__file__).parent.iterdir() if path.is_file() and path.suffix != ".py"
    ]
    assert {path.name for path in files} == {"viewer.html.j2", "viewer.css", "viewer.js"}
    for path in files:
        assert any(fnmatch.fnmatchcase(f"drawing/{path.name}", pattern) for pattern in patterns)
