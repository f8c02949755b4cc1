"""EAP-IG's JSON and PT: files made by hand from its schema, round trips to the bit, and what cannot be held."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.formats import ExportOptions, read_circuit, write_circuit
from edgeprune.formats.eap_ig import node_names, reader_names
from edgeprune.formats.eap_ig_json import EapIgJson
from edgeprune.formats.eap_ig_pt import EapIgPt
from edgeprune.formats.plain_values import load_values
from edgeprune.graph import EdgeGraph
from tests.formats.circuits import (
    ATTENTION_ONLY,
    GPT2,
    GROUPED,
    ONE_HEAD,
    PARALLEL,
    PLAIN,
    SPLIT,
    UNGROUPED,
    refused,
    same_bits,
    scored,
    written,
)

FORMS = {"eap-ig-json": ".json", "eap-ig-pt": ".pt"}

# One layer, two heads, as EAP-IG describes it: nodes input, a0.h0, a0.h1, m0, logits.
CFG = {"n_layers": 1, "n_heads": 2, "parallel_attn_mlp": False, "d_model": 4}
READERS = ["a0.h0<q>", "a0.h1<q>", "a0.h0<k>", "a0.h1<k>", "a0.h0<v>", "a0.h1<v>", "m0", "logits"]
SOURCES = ["input", "a0.h0", "a0.h1", "m0"]


def by_hand_json() -> dict[str, Any]:
    edges = {f"input->{reader}": {"score": 0.0, "in_graph": False} for reader in READERS}
    edges |= {f"a0.h{head}->{end}": {"score": 0.0, "in_graph": False} for head in (0, 1) for end in ("m0", "logits")}
    edges |= {"m0->logits": {"score": 0.1, "in_graph": True}}
    edges["input->a0.h1<k>"] = {"score": -2.5, "in_graph": True}
    edges["a0.h1->logits"] = {"score": 0.75, "in_graph": True}
    nodes = {name: {"in_graph": name != "a0.h0"} for name in (*SOURCES, "logits")}
    return {"cfg": CFG, "nodes": nodes, "edges": edges}


def by_hand_pt() -> dict[str, Any]:
    scores, members = torch.full((4, 8), float("-inf")), torch.zeros(4, 8, dtype=torch.bool)
    scores[0], scores[1:3, 6:], scores[3, 7] = 0.0, 0.0, 0.1
    scores[0, 3], scores[2, 7] = -2.5, 0.75
    members[0, 3] = members[2, 7] = members[3, 7] = True
    return {
        "cfg": CFG,
        "src_nodes": SOURCES,
        "dst_nodes": READERS,
        "edges_scores": scores,
        "edges_in_graph": members,
        "nodes_in_graph": torch.tensor([True, False, True, True]),
    }


def saved(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def there_and_back(circuit: Circuit, form: str, folder: Path, graph: EdgeGraph | None = None) -> Circuit:
    path = folder / f"circuit{FORMS[form]}"
    write_circuit(circuit, path, form)
    return read_circuit(path, graph).circuit


# ---------------------------------------------------------------- by hand
@pytest.mark.parametrize("form", FORMS)
def test_a_file_made_by_hand(tmp_path: Path, form: str) -> None:
    if form == "eap-ig-json":
        path = written(tmp_path / "a.json", by_hand_json())
    else:
        path = saved(tmp_path / "a.pt", by_hand_pt())
    circuit = read_circuit(path).circuit
    assert circuit.edges() == ["embed->a0.h1.k", "a0.h1->logits", "m0->logits"]
    assert circuit.scores is not None
    named = {edge: circuit.scores[circuit.graph.index(edge)].item() for edge in circuit.edges()}
    assert named == {"embed->a0.h1.k": -2.5, "a0.h1->logits": 0.75, "m0->logits": pytest.approx(0.1, abs=1e-8)}
    assert circuit.scores.isfinite().all()
    assert (circuit.graph.arch.num_layers, circuit.graph.arch.num_heads) == (1, 2)
    assert circuit.header["source_format"] == form
    assert circuit.header["d_model"] == 4


def test_the_two_kinds_of_file_say_the_same(tmp_path: Path) -> None:
    one = EapIgJson().parse(load_values(written(tmp_path / "a.json", by_hand_json())))
    other = EapIgPt().parse(load_values(saved(tmp_path / "a.pt", by_hand_pt())))
    assert torch.equal(one.in_graph, other.in_graph)
    assert torch.equal(one.nodes, other.nodes)
    assert one.cfg == other.cfg == CFG
    assert one.num_edges == one.weighted_edge_count == other.weighted_edge_count == 3


def test_neurons_weigh_the_count(tmp_path: Path) -> None:
    content = by_hand_json()
    content["nodes"]["m0"]["neurons"] = [True, False, False, False]  # one of four: m0->logits counts 1/4
    content["nodes"]["m0"]["neurons_scores"] = [0.5, 0.0, 0.0, 0.0]
    found = read_circuit(written(tmp_path / "a.json", content))
    assert EapIgJson().parse(load_values(tmp_path / "a.json")).weighted_edge_count == 2.25
    assert found.circuit.num_edges == 3
    assert any("neurons are left out" in note and "2.2" in note for note in found.notes)
    matrices = by_hand_pt() | {"neurons_in_graph": torch.ones(4, 4).bool(), "nodes_scores": torch.zeros(4)}
    matrices["neurons_in_graph"][0, 1:] = False
    assert EapIgPt().parse(load_values(saved(tmp_path / "a.pt", matrices))).weighted_edge_count == 2.25


def test_an_edge_that_is_left_out_is_not_in_the_graph(tmp_path: Path) -> None:
    content = by_hand_json()
    del content["edges"]["a0.h1->logits"]
    assert read_circuit(written(tmp_path / "a.json", content)).circuit.edges() == ["embed->a0.h1.k", "m0->logits"]


def test_membership_without_scores(tmp_path: Path) -> None:
    content = by_hand_json()
    content["edges"] = {name: {"in_graph": info["in_graph"]} for name, info in content["edges"].items()}
    circuit = read_circuit(written(tmp_path / "a.json", content)).circuit
    assert circuit.num_edges == 3
    assert circuit.scores is None


@pytest.mark.parametrize("form", FORMS)
def test_scores_before_any_cut_keep_every_edge(tmp_path: Path, form: str) -> None:
    content, matrices = by_hand_json(), by_hand_pt()
    for info in content["edges"].values():
        info["in_graph"] = False
    matrices["edges_in_graph"].zero_()
    path = written(tmp_path / "a.json", content) if form == "eap-ig-json" else saved(tmp_path / "a.pt", matrices)
    found = read_circuit(path, holds="scores")
    assert found.circuit.num_edges == found.circuit.graph.num_edges == 8 + 4 + 1
    assert any("file of scores" in note for note in found.notes)
    # An empty circuit is saved alike
    assert "--holds scores or --holds circuit" in refused(path)
    empty = read_circuit(path, holds="circuit")
    assert empty.circuit.num_edges == 0
    assert same_bits(empty.circuit.scores, found.circuit.scores)
    assert any("a circuit without edges" in note for note in empty.notes)


@pytest.mark.parametrize("form", FORMS)
def test_an_empty_circuit_comes_back_empty(tmp_path: Path, form: str) -> None:
    circuit = scored(PLAIN, num_edges=0)
    back = there_and_back(circuit, form, tmp_path)
    assert back.num_edges == 0
    assert same_bits(back.scores, circuit.scores)
    # what the file says counts, whatever is said of others
    assert read_circuit(tmp_path / f"circuit{FORMS[form]}", holds="scores").circuit.num_edges == 0


def test_a_file_may_say_what_it_holds(tmp_path: Path) -> None:
    content = by_hand_json()
    for info in content["edges"].values():
        info["in_graph"] = False
    for holds, number in (("scores", 13), ("circuit", 0)):
        path = written(tmp_path / "a.json", content | {"cfg": {**CFG, "holds": holds}})
        assert read_circuit(path).circuit.num_edges == number
    assert "expected one of scores, circuit" in refused(
        written(tmp_path / "a.json", content | {"cfg": {**CFG, "holds": 3}})
    )


def test_what_tells_is_read_as_it_says(tmp_path: Path) -> None:
    for holds in ("scores", "circuit"):
        assert read_circuit(written(tmp_path / "a.json", by_hand_json()), holds=holds).circuit.num_edges == 3


def test_json_has_no_infinity(tmp_path: Path) -> None:
    scores = torch.zeros(PLAIN.shape)
    scores[PLAIN.index("m0->m1")] = torch.inf
    with pytest.raises(EdgepruneError, match="no NaN and no infinity"):
        write_circuit(Circuit(PLAIN, PLAIN.exists, scores), tmp_path / "a.json", "eap-ig-json")
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- round trips
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("graph", [PLAIN, PARALLEL, GROUPED, UNGROUPED, ONE_HEAD])
def test_a_circuit_comes_back_to_the_bit(tmp_path: Path, form: str, graph: EdgeGraph) -> None:
    circuit = scored(graph)
    back = there_and_back(circuit, form, tmp_path, graph)
    assert back.graph == graph
    assert torch.equal(back.keep, circuit.keep)
    assert same_bits(back.scores, circuit.scores)


def test_json_and_pt_and_ours_are_one(tmp_path: Path) -> None:
    circuit = scored(PLAIN)
    through_json = there_and_back(circuit, "eap-ig-json", tmp_path)
    through_pt = there_and_back(through_json, "eap-ig-pt", tmp_path)
    through_ours = Circuit.load(through_pt.save(tmp_path / "ours.safetensors"))
    assert same_bits(through_ours.scores, circuit.scores)
    assert torch.equal(through_ours.keep, circuit.keep)
    assert through_ours.graph.arch == PLAIN.arch


@pytest.mark.parametrize("form", FORMS)
def test_a_circuit_without_scores(tmp_path: Path, form: str) -> None:
    circuit = Circuit.random(PLAIN, 17)
    back = there_and_back(Circuit(PLAIN, circuit.keep), form, tmp_path)
    assert back.scores is None
    assert torch.equal(back.keep, circuit.keep)


def test_gpt2_small_has_its_matrix(tmp_path: Path) -> None:
    circuit = scored(GPT2, num_edges=400)
    write_circuit(circuit, tmp_path / "a.pt", "eap-ig-pt")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert content["edges_scores"].shape == content["edges_in_graph"].shape == (157, 445)
    assert content["nodes_in_graph"].shape == (157,)
    assert content["src_nodes"][:3] + content["src_nodes"][-2:] == ["input", "a0.h0", "a0.h1", "a11.h11", "m11"]
    order = content["dst_nodes"]
    assert [order[i] for i in (0, 11, 12, 24, 36, 37, 444)] == [
        "a0.h0<q>",
        "a0.h11<q>",
        "a0.h0<k>",
        "a0.h0<v>",
        "m0",
        "a1.h0<q>",
        "logits",
    ]
    full = Circuit(GPT2, GPT2.exists, circuit.scores)
    write_circuit(full, tmp_path / "b.pt", "eap-ig-pt")
    assert EapIgPt().parse(load_values(tmp_path / "b.pt")).num_edges == 32_491
    assert same_bits(read_circuit(tmp_path / "b.pt").circuit.scores, circuit.scores)


def test_order_and_names_of_json(tmp_path: Path) -> None:
    write_circuit(Circuit.from_edges(PARALLEL, ["embed->a1.h0.v", "a1.h0->logits"]), tmp_path / "a.json", "eap-ig-json")
    loaded = load_values(tmp_path / "a.json").value
    assert loaded["cfg"]["parallel_attn_mlp"] is True
    assert len(loaded["edges"]) == PARALLEL.num_edges
    assert "a0.h0->m0" not in loaded["edges"]
    assert {name for name, info in loaded["edges"].items() if info["in_graph"]} == {
        "input->a1.h0<v>",
        "a1.h0->logits",
    }
    assert {name for name, info in loaded["nodes"].items() if info["in_graph"]} == {"input", "a1.h0", "logits"}
    assert node_names(PARALLEL) == list(loaded["nodes"])[:-1]
    assert reader_names(PARALLEL)[-2:] == ["m1", "logits"]


# ---------------------------------------------------------------- conventions
@pytest.mark.parametrize("form", FORMS)
def test_query_heads_have_the_values_of_their_group(tmp_path: Path, form: str) -> None:
    circuit = Circuit.from_scores(
        GROUPED, torch.arange(float(GROUPED.shape[0] * GROUPED.shape[1])).view(GROUPED.shape), num_edges=40
    )
    path = tmp_path / f"a{FORMS[form]}"
    notes = write_circuit(circuit, path, form)
    assert any("every query head has k and v readers of its own" in note for note in notes)
    alone = read_circuit(path).circuit
    assert (alone.graph.arch.num_kv_heads, len(alone.graph.readers)) == (4, 2 * 13 + 1)
    assert alone.scores is not None
    assert circuit.scores is not None
    for head, group in ((0, 0), (1, 0), (2, 1), (3, 1)):
        here, there = GROUPED.index(f"m0->a1.h{group}.v"), alone.graph.index(f"m0->a1.h{head}.v")
        assert alone.scores[there] == circuit.scores[here]
        assert alone.keep[there] == circuit.keep[here]


def test_slopes_of_heads_that_disagree_are_added_and_it_is_said(tmp_path: Path) -> None:
    circuit = scored(UNGROUPED)
    write_circuit(circuit, tmp_path / "a.pt", "eap-ig-pt")
    found = read_circuit(tmp_path / "a.pt", GROUPED)
    assert circuit.scores is not None
    assert found.circuit.scores is not None
    rows = [UNGROUPED.index(f"m0->a1.h{head}.k") for head in (2, 3)]
    cell = GROUPED.index("m0->a1.h1.k")
    total = sum(circuit.scores[row].double() for row in rows)
    assert isinstance(total, torch.Tensor)
    assert found.circuit.scores[cell] == total.float()
    assert found.circuit.keep[cell] == any(circuit.keep[row] for row in rows)
    same = [UNGROUPED.index("m0->a1.h2.q"), GROUPED.index("m0->a1.h2.q")]
    assert found.circuit.scores[same[1]] == circuit.scores[same[0]]
    assert any("one reader there" in note and "the sum of their scores" in note for note in found.notes)
    assert any("had another value" in note for note in found.notes)
    assert found.circuit.header["notes"] == list(found.notes)


def test_two_embeddings_become_one_and_it_is_said(tmp_path: Path) -> None:
    circuit = Circuit.from_edges(SPLIT, ["pos_embed->m0", "tok_embed->a1.h0.q", "m1->logits"])
    notes = write_circuit(circuit, tmp_path / "a.pt", "auto-circuit")
    assert any("one writer there" in note for note in notes)
    assert any("2 edges had another value" in note for note in notes)
    found = read_circuit(tmp_path / "a.pt", PLAIN).circuit
    assert found.edges() == ["embed->m0", "embed->a1.h0.q", "m1->logits"]
    assert "split_embedding=False" in refused(tmp_path / "a.pt", SPLIT)


def test_slopes_of_two_embeddings_are_added_and_others_are_not(tmp_path: Path) -> None:
    circuit, cell = scored(SPLIT), PLAIN.index("embed->m1")
    assert circuit.scores is not None
    both = circuit.scores[SPLIT.index("tok_embed->m1")], circuit.scores[SPLIT.index("pos_embed->m1")]
    for method, expected, how in (("eap", sum(both), "the sum"), ("edge_pruning", max(both), "the higher score")):
        named = Circuit(SPLIT, circuit.keep, circuit.scores, {"method": method})
        assert any(how in note for note in write_circuit(named, tmp_path / "a.pt", "auto-circuit"))
        found = read_circuit(tmp_path / "a.pt", PLAIN).circuit.scores
        assert found is not None
        assert found[cell] == expected


@pytest.mark.parametrize("form", FORMS)
def test_the_embedding_of_tokens_alone(tmp_path: Path, form: str) -> None:
    circuit, path = scored(PLAIN), tmp_path / f"a{FORMS[form]}"
    write_circuit(circuit, path, form)
    assert any("read it with split_embedding=True" in note for note in read_circuit(path, PLAIN).notes)
    found = read_circuit(path, SPLIT)
    kept = set(found.circuit.edges())
    assert any("all edges of pos_embed are kept" in note for note in found.notes)
    positions = {f"pos_embed->{reader}" for reader in SPLIT.readers}
    assert positions <= kept
    assert kept - positions == {edge.replace("embed->", "tok_embed->") for edge in circuit.edges()}
    assert circuit.scores is not None
    assert found.circuit.scores is not None
    assert same_bits(found.circuit.scores[:, 0], circuit.scores[:, 0])
    assert found.circuit.scores[:, 1].unique().tolist() == [circuit.scores[PLAIN.exists].abs().max().item()]
    # and back: the position embedding, which is never closed there, is left out
    notes = write_circuit(found.circuit, tmp_path / f"b{FORMS[form]}", form)
    assert any("pos_embed is left out" in note and "0 of them are closed" in note for note in notes)
    back = read_circuit(tmp_path / f"b{FORMS[form]}", PLAIN).circuit
    assert torch.equal(back.keep, circuit.keep)
    assert same_bits(back.scores, circuit.scores)


def test_closed_position_edges_are_said_to_be_lost(tmp_path: Path) -> None:
    circuit = Circuit.from_edges(SPLIT, ["pos_embed->m0", "tok_embed->a1.h0.q", "m1->logits"])
    notes = write_circuit(circuit, tmp_path / "a.json", "eap-ig-json")
    assert any(f"here {len(SPLIT.readers) - 1} of them are closed" in note for note in notes)
    assert read_circuit(tmp_path / "a.json", PLAIN).circuit.edges() == ["embed->a1.h0.q", "m1->logits"]


def test_positions_stay_open_where_shared_readers_add_up(tmp_path: Path) -> None:
    split = EdgeGraph(replace(GROUPED.arch, split_embedding=True))
    write_circuit(scored(UNGROUPED), tmp_path / "a.pt", "eap-ig-pt")
    found, alone = (read_circuit(tmp_path / "a.pt", graph).circuit for graph in (split, GROUPED))
    assert found.scores is not None
    assert alone.scores is not None
    others = [0, *range(2, split.shape[1])]
    assert same_bits(found.scores[:, others], alone.scores)
    assert torch.equal(found.keep[:, others], alone.keep)
    assert found.scores[:, 1].min() == alone.scores.abs().max()


def test_what_is_left_out_is_said(tmp_path: Path) -> None:
    circuit = scored(PLAIN)
    notes = write_circuit(circuit, tmp_path / "a.json", "eap-ig-json")
    assert any("header left out (method, model)" in note for note in notes)
    assert any("d_model is 0" in note for note in notes)
    assert any(f"{circuit.num_dangling} dangling edges" in note for note in notes)
    notes = write_circuit(circuit, tmp_path / "a.json", "eap-ig-json", ExportOptions(d_model=6, membership=True))
    assert not any("d_model" in note for note in notes)
    assert any("scores left out" in note for note in notes)
    back = read_circuit(tmp_path / "a.json").circuit
    assert back.scores is None
    assert torch.equal(back.keep, circuit.keep)


# ---------------------------------------------------------------- refusals
def test_a_graph_without_mlps_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgepruneError, match="MLP in every layer"):
        write_circuit(scored(ATTENTION_ONLY), tmp_path / "a.pt", "eap-ig-pt")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"nodes": None}, "'nodes' must be a mapping"),
        ({"edges": []}, "'edges' must be a mapping"),
        ({"cfg": {**CFG, "n_heads": "2"}}, "n_heads=2; expected"),
        ({"cfg": {**CFG, "parallel_attn_mlp": None}}, "parallel_attn_mlp=None"),
        (
            {"cfg": {**CFG, "n_layers": 10**400}},
            "n_layers=10000000000000000000; expected a whole number from 1 to 1000",
        ),
        ({"cfg": 5}, "'cfg' must be a mapping"),
        ({"edges": {"input->a7.h0<q>": {"score": 1.0, "in_graph": True}}}, "no edge 'input->a7.h0<q>'"),
        ({"edges": {"input->a0.h0": {"score": 1.0, "in_graph": True}}}, "no edge 'input->a0.h0'"),
        ({"edges": {"m0->logits": {"score": "1", "in_graph": True}}}, "the score '1'"),
        ({"edges": {"m0->logits": {"score": 1.0, "in_graph": 1}}}, "in_graph=1"),
        ({"edges": {}}, "nodes alone"),
        ({"nodes": {"a3.h0": {"in_graph": True}}}, "no node 'a3.h0'"),
        ({"nodes": {"m0": {"in_graph": True, "neurons": [True]}}}, "d_model=4 values"),
        ({"nodes": {"m0": {"neurons": []}}, "cfg": {**CFG, "d_model": 0}}, "no d_model"),
    ],
)
def test_json_that_does_not_fit(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    text = refused(written(tmp_path / "a.json", by_hand_json() | change))
    assert expected in text
    assert str(tmp_path / "a.json") in text


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"edges_scores": torch.zeros(8, 4)}, "shape (4, 8)"),
        ({"edges_in_graph": None}, "got NoneType"),
        ({"src_nodes": SOURCES[::-1]}, "'src_nodes' is not in the order"),
        ({"dst_nodes": 3}, "'dst_nodes' is not in the order"),
        ({"cfg": {}}, "n_layers=None"),
    ],
)
def test_matrices_that_do_not_fit(tmp_path: Path, change: dict[str, Any], expected: str) -> None:
    assert expected in refused(saved(tmp_path / "a.pt", by_hand_pt() | change))


def test_missing_keys_and_other_models(tmp_path: Path) -> None:
    content = by_hand_pt()
    del content["nodes_in_graph"]
    assert "it has no 'nodes_in_graph'" in refused(saved(tmp_path / "a.pt", content))
    assert "num_layers=1" in refused(saved(tmp_path / "a.pt", by_hand_pt()), PLAIN)
    parallel = EdgeGraph(PARALLEL.arch)
    write_circuit(scored(parallel), tmp_path / "b.json", "eap-ig-json")
    other = EdgeGraph(type(PARALLEL.arch)(num_layers=2, num_heads=2, num_kv_heads=2))
    assert "parallel_blocks=True" in refused(tmp_path / "b.json", other)
