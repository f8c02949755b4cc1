"""auto-circuit's prune scores and names of edges."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.formats import ExportOptions, read_circuit, write_circuit
from edgeprune.formats.auto_circuit import auto_circuit_name
from edgeprune.formats.plain_values import load_values
from edgeprune.graph import ArchSpec, EdgeGraph
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

GRAPHS = [PLAIN, PARALLEL, GROUPED, UNGROUPED, ATTENTION_ONLY, ONE_HEAD]

# One layer, two heads: sources Resid Start, A0.0, A0.1, MLP 0.
BY_HAND = {
    "blocks.0.hook_q_input": torch.tensor([[0.5], [0.0]]),
    "blocks.0.hook_k_input": torch.tensor([[0.0], [-3.0]]),
    "blocks.0.hook_v_input": torch.tensor([[0.25], [0.0]]),
    "blocks.0.hook_mlp_in": torch.tensor([0.0, 0.125, 0.0]),
    "blocks.0.hook_resid_post": torch.tensor([0.0, 0.0, 2.0, 7.0]),
}


def saved(path: Path, content: dict[str, Tensor]) -> Path:
    torch.save(content, path)
    return path


# ---------------------------------------------------------------- scores
def test_a_file_made_by_hand(tmp_path: Path) -> None:
    found = read_circuit(saved(tmp_path / "a.pt", BY_HAND))
    circuit = found.circuit
    assert (circuit.graph.arch.num_heads, circuit.graph.arch.parallel_blocks, circuit.num_edges) == (2, False, 13)
    assert circuit.scores is not None
    named = {name: circuit.scores[circuit.graph.index(name)].item() for name in circuit.edges()}
    assert {name: score for name, score in named.items() if score} == {
        "embed->a0.h0.q": 0.5,
        "embed->a0.h1.k": -3.0,
        "embed->a0.h0.v": 0.25,
        "a0.h0->m0": 0.125,
        "a0.h1->logits": 2.0,
        "m0->logits": 7.0,
    }
    assert any("file of scores" in note for note in found.notes)


def test_a_circuit_of_zeros_and_ones(tmp_path: Path) -> None:
    for content in (
        {name: (scores != 0).float() for name, scores in BY_HAND.items()},
        {name: scores != 0 for name, scores in BY_HAND.items()},
    ):
        circuit = read_circuit(saved(tmp_path / "a.pt", content)).circuit
        assert circuit.scores is None
        assert circuit.num_edges == 6


def test_positions_and_heads_that_are_read_as_one(tmp_path: Path) -> None:
    merged = {"blocks.0.hook_attn_in": torch.tensor([[[0.5], [-1.0]], [[0.25], [-2.0]]])}  # [position, head, source]
    merged |= {
        name: torch.stack((BY_HAND[name] - 1, BY_HAND[name])) for name in BY_HAND if name.endswith(("in", "post"))
    }
    found = read_circuit(saved(tmp_path / "a.pt", merged))
    assert found.circuit.scores is not None
    for letter in "qkv":
        rows = [found.circuit.graph.index(f"embed->a0.h{head}.{letter}") for head in (0, 1)]
        assert [found.circuit.scores[row].item() for row in rows] == [0.75, -3.0]  # slopes add up
    assert found.circuit.scores[found.circuit.graph.index("m0->logits")] == 13.0
    assert any("positions are merged: an edge has the sum" in note for note in found.notes)
    assert any("q, k and v of a head are one reader" in note for note in found.notes)


def test_membership_at_any_position_is_membership(tmp_path: Path) -> None:
    content = {name: torch.stack((scores != 0, torch.ones_like(scores).bool())) for name, scores in BY_HAND.items()}
    for kind in (torch.bool, torch.float32):
        found = read_circuit(saved(tmp_path / "a.pt", {name: scores.to(kind) for name, scores in content.items()}))
        assert found.circuit.scores is None
        assert found.circuit.num_edges == 13
        assert any("the highest of its positions" in note for note in found.notes)


# ---------------------------------------------------------------- thresholds of ACDC
def thresholds() -> dict[str, Tensor]:
    """Edges of `BY_HAND` that score 0 go at .01, the negative one at .25; no threshold removes the others."""
    return {
        name: torch.where(scores > 0, torch.inf, torch.where(scores < 0, 0.25, 0.01))
        for name, scores in BY_HAND.items()
    }


def test_edges_that_score_infinity_are_acdcs_circuit(tmp_path: Path) -> None:
    found = read_circuit(saved(tmp_path / "a.pt", thresholds()))
    circuit, scores = found.circuit, found.circuit.scores
    assert set(circuit.edges()) == {
        "embed->a0.h0.q",
        "embed->a0.h0.v",
        "a0.h0->m0",
        "a0.h1->logits",
        "m0->logits",
    }
    assert any("5 edges score inf" in note and "0.25" in note for note in found.notes)
    assert scores is not None
    assert scores[circuit.graph.index("embed->a0.h1.k")] == 0.25
    assert scores[circuit.keep].unique().tolist() == [torch.nextafter(torch.tensor(0.25), torch.tensor(1.0)).item()]
    assert circuit.header["method"] == "acdc"
    for name, path in (("eap-ig-json", tmp_path / "b.json"), ("edges", tmp_path / "c.json")):
        write_circuit(circuit, path, name)
        assert "Infinity" not in path.read_text()
        assert torch.equal(read_circuit(path, circuit.graph).circuit.keep, circuit.keep)
    write_circuit(circuit, tmp_path / "d.pt", "auto-circuit")
    assert same_bits(read_circuit(tmp_path / "d.pt").circuit.scores, scores)


def test_thresholds_of_positions_and_shared_readers_are_not_added(tmp_path: Path) -> None:
    content = {name: torch.stack((torch.full_like(scores, 0.01), scores)) for name, scores in thresholds().items()}
    found = read_circuit(saved(tmp_path / "a.pt", content))
    alone = read_circuit(saved(tmp_path / "b.pt", thresholds()))
    assert torch.equal(found.circuit.keep, alone.circuit.keep)
    assert same_bits(found.circuit.scores, alone.circuit.scores)
    assert any("the highest of its positions" in note for note in found.notes)
    shared = EdgeGraph(ArchSpec(num_layers=1, num_heads=2, num_kv_heads=1))
    merged = read_circuit(tmp_path / "b.pt", shared)
    assert merged.circuit.scores is not None
    assert merged.circuit.scores[shared.index("embed->a0.h0.k")] == 0.25
    assert any("the highest score" in note for note in merged.notes)


def test_thresholds_that_remove_nothing(tmp_path: Path) -> None:
    content = {name: torch.full_like(scores, torch.inf) for name, scores in BY_HAND.items()}
    circuit = read_circuit(saved(tmp_path / "a.pt", content)).circuit
    assert (circuit.num_edges, circuit.scores) == (13, None)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_scores_that_cannot_be_ranked(tmp_path: Path, value: float) -> None:
    content = BY_HAND | {"blocks.0.hook_mlp_in": torch.tensor([0.0, value, 0.0])}
    assert f"1 scores cannot be ranked, such as {value}" in refused(saved(tmp_path / "a.pt", content))


@pytest.mark.parametrize("graph", GRAPHS)
def test_scores_come_back_to_the_bit(tmp_path: Path, graph: EdgeGraph) -> None:
    circuit = scored(graph)
    notes = write_circuit(circuit, tmp_path / "a.pt", "auto-circuit")
    assert any("which edges are kept is left out" in note for note in notes)
    assert any("absolute value" in note for note in notes)
    back = read_circuit(tmp_path / "a.pt", graph).circuit
    assert same_bits(back.scores, circuit.scores)
    assert torch.equal(back.keep, graph.exists)


@pytest.mark.parametrize("graph", GRAPHS)
def test_membership_comes_back(tmp_path: Path, graph: EdgeGraph) -> None:
    circuit = scored(graph)
    notes = write_circuit(circuit, tmp_path / "a.pt", "auto-circuit", ExportOptions(membership=True))
    assert any("scores left out" in note for note in notes)
    back = read_circuit(tmp_path / "a.pt", graph).circuit
    assert torch.equal(back.keep, circuit.keep)
    assert back.scores is None


def test_shapes_of_gpt2_small(tmp_path: Path) -> None:
    write_circuit(Circuit(GPT2, GPT2.exists), tmp_path / "a.pt", "auto-circuit")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert sum(scores.numel() for scores in content.values()) == 32_491
    assert content["blocks.11.hook_v_input"].shape == (12, 144)
    assert content["blocks.11.hook_mlp_in"].shape == (156,)
    assert content["blocks.11.hook_resid_post"].shape == (157,)
    assert len(content) == 12 * 4 + 1


def test_modules_that_do_not_fit(tmp_path: Path) -> None:
    def text(change: dict[str, Tensor]) -> str:
        return refused(saved(tmp_path / "a.pt", BY_HAND | change))

    assert "'blocks.0.hook_z' is no module" in text({"blocks.0.hook_z": torch.zeros(1)})
    assert "shape (2, 2), expected (2, 1)" in text({"blocks.0.hook_v_input": torch.zeros(2, 2)})
    assert "is missing or too much" in text({"blocks.1.hook_v_input": torch.zeros(2, 1)})
    assert "expected [head, source] or [source]" in text({"blocks.0.hook_mlp_in": torch.zeros(1, 2, 3)})
    assert "no whole set" in refused(saved(tmp_path / "b.pt", {"blocks.0.hook_mlp_in": torch.zeros(3)}))


# ---------------------------------------------------------------- names
def test_names() -> None:
    ours = ["embed", "a3.h11", "m2", "a3.h0.q", "logits"]
    assert [auto_circuit_name(name) for name in ours] == ["Resid Start", "A3.11", "MLP 2", "A3.0.Q", "Resid End"]


def test_names_made_by_hand(tmp_path: Path) -> None:
    names = ["Resid Start->A0.1.V", "A0.1->MLP 1", "MLP 1->Resid End", "MLP 0->A1.2"]
    found = read_circuit(written(tmp_path / "a.json", names), PLAIN).circuit
    assert set(found.edges()) == {
        "embed->a0.h1.v",
        "a0.h1->m1",
        "m1->logits",
        *(f"m0->a1.h2.{letter}" for letter in "qkv"),
    }
    assert found.header["source_format"] == "auto-circuit-edges"
    assert "split_embedding=False" in refused(tmp_path / "a.json", SPLIT)
    assert "'A0.1.X'" in refused(written(tmp_path / "a.json", ["MLP 0->A0.1.X"]), PLAIN)


@pytest.mark.parametrize("graph", GRAPHS)
def test_names_come_back(tmp_path: Path, graph: EdgeGraph) -> None:
    circuit = scored(graph)
    write_circuit(circuit, tmp_path / "a.json", "auto-circuit-edges")
    assert all("->" in name for name in load_values(tmp_path / "a.json").value)
    assert torch.equal(read_circuit(tmp_path / "a.json", graph).circuit.keep, circuit.keep)
