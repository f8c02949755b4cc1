"""Subnetwork probing: node gates against masked nodes, the published rule and penalty, and runs of `fit`."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.compiled import true_circuit
from edgeprune.errors import EdgepruneError
from edgeprune.gates import uniform_noise
from edgeprune.gates.hard_concrete import deterministic, prob_open, sample
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.methods import SubnetworkProbing
from edgeprune.methods.hisp import node_edits
from edgeprune.methods.node_gates import NodeMap
from tests.methods.fits import XPROPORTION, fit, only
from tests.models.test_conformance import WIRED, build, prompts

GRAPH = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2))

# See tests/cli/test_fit.py for both.
pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
]


def recipe(graph: EdgeGraph = GRAPH, **options: Any) -> SubnetworkProbing:
    made = SubnetworkProbing(**options)
    made.build(graph)
    return made


def spread(made: SubnetworkProbing, seed: int = 0) -> SubnetworkProbing:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.gates.log_alpha.copy_(2 * torch.randn(made.gates.num_gates, generator=generator))
    return made


def some_open(num_nodes: int, seed: int) -> Tensor:
    return (torch.rand(num_nodes, generator=torch.Generator().manual_seed(seed)) > 0.4).double()


def kept_by_rule(graph: EdgeGraph, masked: set[str]) -> set[str]:
    """The published rule, edge by edge and by name."""

    def absent(edge: str) -> bool:
        writer, reader = edge.split("->")
        if reader in masked or writer in masked:
            return True
        if not writer.startswith("a"):
            return False
        layer, head = writer.split(".h")
        group = int(head) * graph.arch.num_kv_readers // graph.arch.num_heads
        return {f"{writer}.q", f"{layer}.h{group}.k", f"{layer}.h{group}.v"} <= masked

    every = (graph.edge_name(*where) for where in graph.exists.nonzero().tolist())
    return {edge for edge in every if not absent(edge)}


# ------------------------------------------------------------------ nodes as edges
@pytest.mark.parametrize("kv_readers", ["group", "head"])
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_masked_nodes_are_the_corrupted_run_s(family: Any, index: int, kv_readers: str) -> None:
    """Three ways to mask nodes agree: in place of q, k, v and MLP outputs, as gates, and as a circuit's edges."""
    model = build(family, index, kv_readers=kv_readers)
    clean, corrupted = prompts()
    ablated, nodes, theirs = model.record(corrupted), NodeMap(model.graph), dict[int, Tensor]()

    def note(first: int, own: Tensor) -> Tensor:
        theirs[first] = own
        return own

    model.run(corrupted, edits=node_edits(model.graph, note))
    for seed in range(3):
        gates = some_open(nodes.num_nodes, seed)

        def mask(first: int, own: Tensor, gates: Tensor = gates) -> Tensor:
            gate = gates[first : first + own.shape[2], None]
            return gate * own + (1 - gate) * theirs[first]

        expected = model.logits(model.run(clean, edits=node_edits(model.graph, mask)))
        if any(block.qk_norm == "layer" for block in model.blocks):
            continue  # there a node's gate stands behind a norm that other heads move: no edge says that
        torch.testing.assert_close(model(clean, nodes.gates(gates), ablated), expected, atol=1e-10, rtol=0)
        edges = (nodes.edge_values(gates, 1.0) > 0).double()
        if model.graph.arch.coupled_heads:
            continue  # a masked head is scaled by its layer's norm, a closed edge carries it as the other run scaled it
        torch.testing.assert_close(model(clean, edges, ablated), expected, atol=1e-10, rtol=0)
        assert (edges <= nodes.gates(gates)).all()  # the rule takes edges into masked nodes too


@pytest.mark.parametrize(
    "arch",
    [
        ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2),
        ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2, kv_readers="head", split_embedding=True),
        ArchSpec(num_layers=3, num_heads=2, num_kv_heads=2, has_mlp=False),
        ArchSpec(num_layers=2, num_heads=2, num_kv_heads=1, parallel_blocks=True),
    ],
    ids=str,
)
def test_edges_go_by_the_published_rule(arch: ArchSpec) -> None:
    graph = EdgeGraph(arch)
    nodes = NodeMap(graph)
    for seed in range(4):
        gates = some_open(nodes.num_nodes, seed)
        masked = {name for name, gate in zip(nodes.names, gates.tolist(), strict=True) if gate == 0}
        if seed == 0:  # a whole head, so that its output goes too
            masked |= {"a0.h0.q", "a0.h0.k", "a0.h0.v"}
            gates = torch.tensor([0.0 if name in masked else 1.0 for name in nodes.names])
        found = Circuit(graph, nodes.edge_values(gates, 1.0) > 0)
        assert set(found.edges()) == kept_by_rule(graph, masked)


def test_a_head_without_its_q_still_writes() -> None:
    nodes = NodeMap(GRAPH)
    gates = torch.ones(nodes.num_nodes)
    gates[nodes.names.index("a0.h1.q")] = 0
    circuit = Circuit(GRAPH, nodes.edge_values(gates, 1.0) > 0)
    assert GRAPH.num_edges - circuit.num_edges == 1  # embed->a0.h1.q
    assert "a0.h1->m0" in circuit.edges()


# ------------------------------------------------------------------ the recipe
def test_one_gate_per_node_or_per_edge() -> None:
    assert recipe().gates.num_gates == len(GRAPH.readers) - 1
    assert recipe(granularity="edges").gates.num_gates == GRAPH.num_edges
    assert recipe().gates.deterministic().tolist() == pytest.approx([0.9] * (len(GRAPH.readers) - 1))


def test_the_penalty_counts_every_gate_tensor_alike() -> None:
    made = spread(recipe(penalty_weight=7.0))
    prob = prob_open(made.gates.log_alpha)
    tensors: dict[tuple[str, str], list[Tensor]] = {}
    for name, value in zip(GRAPH.readers[:-1], prob, strict=True):
        layer, _, rest = name.partition(".")
        tensors.setdefault((layer, rest[-1:]), []).append(value)
    assert len(tensors) == 2 * 4
    expected = sum(sum(values) / len(values) for values in tensors.values()) / len(tensors)
    penalties = [made.penalty(torch.zeros(GRAPH.shape), progress) for progress in (0.0, 1.0)]
    torch.testing.assert_close(torch.stack(penalties), torch.stack([7 * torch.as_tensor(expected)] * 2))


def test_the_penalty_on_edges_is_the_expected_number_of_open_ones() -> None:
    made = spread(recipe(granularity="edges", penalty_weight=1.0))
    drawn = [(made.sample(0, step) > 0).sum().item() / GRAPH.num_edges for step in range(100)]
    expected = made.penalty(made.sample(0, 0), 0.0).item()
    assert sum(drawn) / 100 == pytest.approx(expected, abs=0.01)  # four standard errors of 100 x 136 draws


@pytest.mark.parametrize("granularity", ["nodes", "edges"])
def test_samples_are_functions_of_seed_and_step(granularity: Any) -> None:
    made = spread(recipe(granularity=granularity))
    first = made.sample(3, 7)
    assert torch.equal(first, made.sample(3, 7))
    assert not torch.equal(first, made.sample(3, 8))
    assert not torch.equal(first, made.sample(4, 7))
    assert first[~GRAPH.exists].abs().max() == 0
    drawn = sample(made.gates.log_alpha, uniform_noise(3, 7, made.gates.num_gates))
    expected = GRAPH.to_matrix(drawn) if granularity == "edges" else NodeMap(GRAPH).gates(drawn)
    assert torch.equal(first, expected)


def test_several_samples_are_averaged() -> None:
    weights = torch.randn(GRAPH.shape, generator=torch.Generator().manual_seed(1))

    def error_of(gates: Tensor) -> Tensor:
        return (weights * gates).sum().square()

    made = spread(recipe(samples_per_step=3))
    error, mean = made.expected_error(error_of, seed=3, step=5)
    (gradient,) = torch.autograd.grad(error, made.gates.log_alpha)
    noises = [uniform_noise(3, 5, made.gates.num_gates, stream=stream) for stream in (0, 101, 102)]
    samples = [made.nodes.gates(sample(made.gates.log_alpha, noise)) for noise in noises]
    plain = torch.stack([error_of(gates) for gates in samples]).mean()
    (expected,) = torch.autograd.grad(plain, made.gates.log_alpha)
    torch.testing.assert_close(error, plain)
    torch.testing.assert_close(gradient, expected)
    torch.testing.assert_close(mean, torch.stack(samples).mean(0))
    assert not torch.equal(samples[0], samples[1])


@pytest.mark.parametrize("final", ["deterministic", "sample"])
@pytest.mark.parametrize("granularity", ["nodes", "edges"])
def test_the_circuit_has_the_edges_whose_gates_are_above_one_half(granularity: Any, final: Any) -> None:
    made = spread(recipe(granularity=granularity, final=final, final_seed=4))
    alpha = made.gates.log_alpha.detach()
    drawn = sample(alpha, uniform_noise(4, 0, made.gates.num_gates, stream=3))
    gates = deterministic(alpha) if final == "deterministic" else drawn
    open_ = (gates >= 0.5).float()
    expected = GRAPH.to_matrix(open_) if granularity == "edges" else made.nodes.edge_values(open_, 1.0)
    circuit = made.circuit()
    assert torch.equal(circuit.keep, expected > 0)
    assert made.num_open() == circuit.num_edges
    assert 0 < circuit.num_edges < GRAPH.num_edges
    assert circuit.header["final"] == final


def test_a_smaller_circuit_masks_more_nodes() -> None:
    made = spread(recipe())
    order = made.gates.log_alpha.detach().argsort()
    for num_masked in (5, 12, 20):
        masked = {made.nodes.names[index] for index in order[:num_masked].tolist()}
        kept = kept_by_rule(GRAPH, masked)
        circuit = Circuit.from_scores(GRAPH, made.scores(), num_edges=len(kept))
        assert set(circuit.edges()) == kept


def test_edges_that_touch_no_node_stay_when_all_are_masked() -> None:
    made = recipe(init=-5.0)
    assert made.circuit().edges() == ["embed->logits"]


def test_what_is_logged_and_trained() -> None:
    made = recipe(learning_rate=0.2)
    (group,) = made.parameter_groups()
    assert (group["lr"], group["weight_decay"], group["maximize"]) == (0.2, 0.0, False)
    assert made.state(0.5)["expected_open"] == pytest.approx(prob_open(torch.tensor(1.6094379)).item())
    assert made.target(0.5) is None
    assert made.learning_rate_factor(0.3) == 1


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"granularity": "heads"}, "'heads'"),
        ({"final": "mean"}, "'mean'"),
        ({"learning_rate": 0.0}, "learning_rate > 0"),
        ({"penalty_weight": -1.0}, "penalty_weight >= 0"),
        ({"samples_per_step": 0}, "samples_per_step >= 1"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(EdgepruneError, match=named):
        SubnetworkProbing(**options)


# ------------------------------------------------------------------ runs
@pytest.mark.parametrize("config", ["subnetwork_probing", "edge_probing", "ugs"])
def test_a_resumed_run_is_the_run_that_was_not_stopped(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["edgeprune"])
    assert fit(tmp_path / "whole", config, 6) == 0
    assert fit(tmp_path / "half", config, 3) == 0
    checkpoint = only(tmp_path / "half", "last.ckpt")
    assert fit(tmp_path / "rest", config, 6, "--ckpt_path", str(checkpoint)) == 0
    whole, rest, half = (
        torch.load(only(tmp_path / name, "last.ckpt"), weights_only=True)["state_dict"]
        for name in ("whole", "rest", "half")
    )
    for name, value in whole.items():
        assert torch.equal(value, rest[name])
        assert not torch.equal(value, half[name])


@pytest.mark.parametrize(
    ("config", "price"),
    [
        ("subnetwork_probing", "--model.recipe.init_args.penalty_weight=0.1"),
        ("edge_probing", "--model.recipe.init_args.penalty_weight=0.05"),
        ("ugs", "--model.recipe.init_args.edge_weight=0.0005"),
    ],
)
def test_recipes_find_the_circuit_of_xproportion(
    config: str, price: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """200 steps suffice; nodes are all that a mask on nodes can find, so that it keeps every edge among them."""
    monkeypatch.setattr(sys, "argv", ["edgeprune"])
    assert fit(tmp_path, config, 200, *XPROPORTION, price) == 0
    found = Circuit.load(only(tmp_path, "final.safetensors"))
    expected = set(true_circuit("xproportion", "zero"))
    if config == "subnetwork_probing":
        needed = {end for edge in expected for end in edge.split("->")}
        masked = {name for name in found.graph.readers[:-1] if name not in needed}
        expected = kept_by_rule(found.graph, masked)
    assert set(found.edges()) == expected
