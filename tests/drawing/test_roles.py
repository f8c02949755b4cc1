"""Drawings of circuits with roles: columns, what leads between them, the union, and single roles."""

from pathlib import Path

import pytest

from edgeprune.circuit import Circuit
from edgeprune.drawing import NamedCircuit, draw_image, viewer_html, without_roles
from edgeprune.drawing.captions import facts
from edgeprune.drawing.dot import dot
from edgeprune.drawing.layout import flat, lay_out
from edgeprune.errors import EdgepruneError
from tests.drawing.role_circuits import GRAPH, NAMES, PLAIN, ROLES, from_edges, role_circuit
from tests.drawing.test_drawing import data_of

CIRCUIT = role_circuit()
KEPT = ["IO", "S2", "END", "rest"]


# -------------------------------------------------------------------- layout
def test_every_edge_stays_in_the_column_of_its_role() -> None:
    layout = lay_out(GRAPH, CIRCUIT.keep)
    assert [part.name for part in layout.parts] == KEPT
    for place in CIRCUIT.keep.nonzero().tolist():
        row, column = flat(GRAPH, place)
        writer, reader = layout.nodes[layout.leaves[column]], layout.readers[row]
        assert f"{writer.label}->{reader.name}" == GRAPH.edge_name(*place)
        part = layout.parts[writer.part]
        assert part.name == NAMES[place[0]]
        assert part.left <= min(writer.x, reader.x)
        assert max(writer.x, reader.x) <= part.right
        way = layout.curve(row, column)
        assert part.left - 20 < 0.125 * (way.x1 + 3 * way.cx1 + 3 * way.cx2 + way.x2) < part.right + 20


def test_columns_and_boxes_lie_beside_each_other() -> None:
    layout = lay_out(GRAPH, CIRCUIT.keep)
    for one, two in zip(layout.parts, layout.parts[1:], strict=False):
        assert one.left < one.middle < one.right < two.left
    assert layout.parts[-1].right < layout.width
    heights = {(node.label, round(node.y, 3)) for node in layout.nodes}
    assert len(heights) == len({name for name, _ in heights}), "a node has one height in all columns"
    for place, node in enumerate(layout.nodes):
        assert 0 < node.y < layout.height
        for other in layout.nodes[:place]:
            apart = abs(node.x - other.x) >= (node.width + other.width) / 2
            assert apart or abs(node.y - other.y) >= node.height, (node, other)


def test_only_keys_and_values_lead_to_other_roles_and_only_to_those_that_see_them() -> None:
    layout = lay_out(GRAPH, CIRCUIT.keep)
    crossing = 0
    for number, reader in layout.readers.items():
        role, row = divmod(number, len(GRAPH.readers))
        heads = {PLAIN.writers[writer] for writer in PLAIN.behind(row)} or {"logits"}
        leads = {layout.nodes[place].name for place in reader.leads}
        sees = [role] if reader.kind not in "kv" else [other for other in range(5) if ROLES.sees_matrix[other, role]]
        assert leads == {f"{head}@{NAMES[other]}" for head in heads for other in sees} & {n.name for n in layout.nodes}
        crossing += len(leads) > len(reader.nodes)
    assert crossing > 10


def test_of_heads_that_share_a_key_those_are_drawn_that_take_part_anywhere() -> None:
    circuit = from_edges("embed->a1.h0.v@IO", "a1.h1->logits@END", "embed->a2.h1.k@S2")
    layout = lay_out(GRAPH, circuit.keep)
    assert {node.name for node in layout.nodes} == {
        *("embed@IO", "a1.h1@IO", "a1.h1@END", "logits@END"),  # a1.h0 shares the value, and does nothing
        *("embed@S2", "a2.h2@S2", "a2.h3@S2"),  # none of the two does anything: both
    }
    (value,) = (one for one in layout.readers.values() if one.name == "a1.h0.v@IO")
    assert [layout.nodes[place].name for place in value.leads] == ["a1.h1@IO", "a1.h1@END"]


def test_without_an_edge_all_columns_are_there() -> None:
    assert [part.name for part in lay_out(GRAPH, from_edges().keep).parts] == list(NAMES)


# -------------------------------------------------------------------- the page
def test_the_page_holds_roles_and_the_union() -> None:
    two = [NamedCircuit("one", CIRCUIT), NamedCircuit("two", role_circuit(80, 1))]
    data = data_of(viewer_html(two, role="S2"))
    assert (data["role"], data["existing"], data["union"]["existing"]) == ("S2", GRAPH.num_edges, PLAIN.num_edges)
    assert data["scored"] == ["END"]
    assert [part[0] for part in data["parts"]] == KEPT
    for scene, circuits in (
        (data, [one.circuit for one in two]),
        (data["union"], [one.circuit.union() for one in two]),
    ):
        pairs = zip(scene["edges"][::2], scene["edges"][1::2], strict=True)
        names = [
            f"{scene['nodes'][scene['writers'][writer]][0].partition('@')[0]}->{scene['readers'][reader][0]}"
            for reader, writer in pairs
        ]
        for order, circuit in zip(scene["order"], circuits, strict=True):
            assert {names[place] for place in order} == set(circuit.edges())
            assert circuit.scores is not None
            found = [circuit.scores[circuit.graph.index(names[place])].item() for place in order]
            assert found == sorted(found, reverse=True)
    for part, (name, *_) in enumerate(data["parts"]):
        single = data["single"][name]
        assert len(single["nodes"]) == sum(node[-1] == part for node in data["nodes"])
        assert len(single["readers"]) == sum(reader[0].endswith(f"@{name}") for reader in data["readers"])


def test_a_page_without_roles_has_no_switch() -> None:
    data = data_of(viewer_html([NamedCircuit("x", CIRCUIT.union())]))
    assert not {"union", "role", "single", "leads"} & set(data)
    assert "next role" not in viewer_html([NamedCircuit("x", CIRCUIT.union())])
    assert "next role" in viewer_html([NamedCircuit("x", CIRCUIT)])


def test_facts_tell_the_union_and_each_role() -> None:
    found = dict(facts(CIRCUIT))
    assert found["edges"] == f"120 of {GRAPH.num_edges:,}"
    assert found["union of roles"] == f"{CIRCUIT.union().num_edges:,} of {PLAIN.num_edges:,}"
    counts = [int(found[f"at {name}"].split()[0]) for name in NAMES]
    assert counts == CIRCUIT.keep.sum((1, 2)).tolist()
    assert sum(counts) == 120


# -------------------------------------------------------------------- images
def test_one_role_and_the_union_are_drawn_as_circuits_without_roles(tmp_path: Path) -> None:
    named = NamedCircuit("x", CIRCUIT)
    at_role, union = without_roles(named, "S2"), without_roles(named)
    assert [f"{edge}@S2" for edge in at_role.circuit.edges()] == [e for e in CIRCUIT.edges() if e.endswith("@S2")]
    assert at_role.whole is CIRCUIT
    assert union.circuit.edges() == CIRCUIT.union().edges()
    assert dot(at_role.circuit).count(' class="') == at_role.circuit.num_edges
    draw_image(at_role.circuit, tmp_path / "x.svg", whole=at_role.whole)
    text = (tmp_path / "x.svg").read_text()
    assert "m, at S2" in text
    assert f"{at_role.circuit.num_edges} of the 120 are drawn" in text
    draw_image(union.circuit, tmp_path / "u.svg")
    assert "m, union of 5 roles" in (tmp_path / "u.svg").read_text()
    with pytest.raises(EdgepruneError, match="no role named 'S3'; the roles are IO, S1"):
        without_roles(named, "S3")
    with pytest.raises(EdgepruneError, match="x has no roles, so none is 'S2'"):
        without_roles(NamedCircuit("x", Circuit.random(PLAIN, 5)), "S2")
