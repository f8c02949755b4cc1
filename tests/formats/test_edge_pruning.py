"""Edge Pruning's edge lists and trained checkpoints."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.formats import read_circuit, write_circuit
from edgeprune.formats.edge_pruning import Checkpoint, deterministic_gates, threshold_at
from edgeprune.formats.plain_values import load_values
from edgeprune.graph import EdgeGraph
from tests.formats.circuits import GROUPED, PARALLEL, PLAIN, SPLIT, UNGROUPED, refused, scored, written


# ---------------------------------------------------------------- edges.json
@pytest.mark.parametrize("graph", [SPLIT, PLAIN, GROUPED, PARALLEL])
def test_a_list_comes_back(tmp_path: Path, graph: EdgeGraph) -> None:
    circuit = scored(graph)
    notes = write_circuit(circuit, tmp_path / "edges.json", "edge-pruning")
    assert any("scores left out" in note for note in notes)
    back = read_circuit(tmp_path / "edges.json", graph)
    assert torch.equal(back.circuit.keep, circuit.keep)
    assert back.circuit.header["source_format"] == "edge-pruning"


def test_names_are_edge_prunings(tmp_path: Path) -> None:
    edges = ["tok_embed->a0.h1.k", "pos_embed->m0", "a0.h2->a1.h0.v", "m1->logits"]
    write_circuit(Circuit.from_edges(SPLIT, edges), tmp_path / "edges.json", "edge-pruning")
    assert sorted(load_values(tmp_path / "edges.json").value) == [
        ["a0.h2", "a1.h0.v"],
        ["m1", "resid_post"],
        ["pos_embeds", "m0"],
        ["tok_embeds", "a0.h1.k"],
    ]
    one = Circuit.from_edges(PLAIN, ["embed->m0"])
    notes = write_circuit(one, tmp_path / "edges.json", "edge-pruning")
    assert load_values(tmp_path / "edges.json").value == [["tok_embeds", "m0"], ["pos_embeds", "m0"]]
    assert any("tok_embeds and pos_embeds" in note for note in notes)
    write_circuit(Circuit.from_edges(GROUPED, ["embed->m0"]), tmp_path / "edges.json", "edge-pruning")
    assert load_values(tmp_path / "edges.json").value == [["embeds", "m0"]]


def test_numbers_of_k_and_v_readers_count_key_value_heads(tmp_path: Path) -> None:
    path = written(tmp_path / "edges.json", [["m0", "a1.h1.k"], ["a1.h3", "resid_post"]])
    assert read_circuit(path, GROUPED).circuit.edges() == ["m0->a1.h1.k", "a1.h3->logits"]
    heads = read_circuit(path, UNGROUPED)
    assert heads.circuit.edges() == ["m0->a1.h2.k", "m0->a1.h3.k", "a1.h3->logits"]
    assert any("readers of its own" in note for note in heads.notes)
    notes = write_circuit(Circuit.from_edges(UNGROUPED, ["m0->a1.h2.k"]), path, "edge-pruning")
    assert load_values(path).value == [["m0", "a1.h1.k"]]
    assert any("1 edges had another value" in note for note in notes)


# ---------------------------------------------------------------- checkpoints
def checkpoint(
    graph: EdgeGraph, *, prefix: str = "transformer.h", embeddings: int = 2, seed: int = 0
) -> dict[str, Tensor]:
    """Masks as a trained model has them: some open, some closed, some between; the cells that are no edge near 0."""
    arch, generator = graph.arch, torch.Generator().manual_seed(seed)
    writers = embeddings + arch.num_layers * (arch.num_heads + 1)
    stem = prefix.rpartition(".")[0]

    def drawn(*shape: int) -> Tensor:
        return 6 * torch.randn(shape, generator=generator)

    state = {f"{stem}.final_read_log_alphas": drawn(writers), f"{stem}.ln_f.weight": torch.ones(4)}
    if embeddings:
        state[f"{stem}.token_write_log_alpha"] = torch.tensor([9.0])
    if embeddings == 2:
        state[f"{stem}.pos_write_log_alpha"] = torch.tensor([8.0])
    for layer in range(arch.num_layers):
        name = f"{prefix}.{layer}"
        state[f"{name}.q_read_log_alphas"] = drawn(writers, arch.num_heads)
        state[f"{name}.k_read_log_alphas"] = drawn(writers, arch.num_kv_heads)
        state[f"{name}.v_read_log_alphas"] = drawn(writers, arch.num_kv_heads)
        state[f"{name}.mlp_read_log_alphas"] = drawn(writers)
        state[f"{name}.attn_write_log_alphas"] = drawn(arch.num_heads) + 4
        state[f"{name}.mlp_write_log_alphas"] = drawn(1) + 4
    return state


def slow_gates(log_alphas: list[float]) -> list[float]:
    """The rule of one tensor, number by number."""
    beta = 2 / 3
    zeros = [1 / (1 + math.exp(-(beta * math.log(0.1 / 1.1) - alpha))) for alpha in log_alphas]
    number = round(sum(min(max(zero, 1e-6), 1 - 1e-6) for zero in zeros))
    closed = sorted(range(len(log_alphas)), key=lambda i: log_alphas[i])[:number]
    return [0.0 if i in closed else 1 / (1 + math.exp(-1.2 * alpha)) for i, alpha in enumerate(log_alphas)]


def slow_threshold(gates: list[float]) -> float:
    sparsity, low, high, middle = 1 - sum(gates) / len(gates), 0.0, 1.0, 0.5
    while high - low > 1e-5:
        middle = (low + high) / 2
        if sum(gate <= middle for gate in gates) / len(gates) > sparsity:
            high = middle
        else:
            low = middle
    return middle


def slow_edges(state: dict[str, Tensor], graph: EdgeGraph) -> set[str]:
    """Edge Pruning's circuit of a GPT-2 checkpoint, name by name, from the description of its rule."""
    arch, gate_of, writer_gates = graph.arch, dict[str, float](), dict[str, float]()
    for layer in range(arch.num_layers):
        for letter in "qkv":
            tensor = state[f"transformer.h.{layer}.{letter}_read_log_alphas"]
            gates = slow_gates(tensor.flatten().tolist())
            for w, writer in enumerate(graph.writers):
                for head in range(arch.num_heads):
                    gate_of[f"{writer}->a{layer}.h{head}.{letter}"] = gates[w * arch.num_heads + head]
        for w, gate in enumerate(slow_gates(state[f"transformer.h.{layer}.mlp_read_log_alphas"].tolist())):
            gate_of[f"{graph.writers[w]}->m{layer}"] = gate
        heads = slow_gates(state[f"transformer.h.{layer}.attn_write_log_alphas"].tolist())
        writer_gates |= {f"a{layer}.h{head}": gate for head, gate in enumerate(heads)}
        writer_gates |= {f"m{layer}": slow_gates(state[f"transformer.h.{layer}.mlp_write_log_alphas"].tolist())[0]}
    for w, gate in enumerate(slow_gates(state["transformer.final_read_log_alphas"].tolist())):
        gate_of[f"{graph.writers[w]}->logits"] = gate
    existing = set(Circuit(graph, graph.exists).edges())
    threshold = slow_threshold([gate for edge, gate in gate_of.items() if edge in existing])
    writer_gates["tok_embed"] = slow_gates(state["transformer.token_write_log_alpha"].tolist())[0]
    writer_threshold = slow_threshold(list(writer_gates.values()))  # the position embedding does not count
    writer_gates["pos_embed"] = slow_gates(state["transformer.pos_write_log_alpha"].tolist())[0]
    return {
        edge
        for edge in existing
        if gate_of[edge] > threshold and writer_gates[edge.partition("->")[0]] > writer_threshold
    }


def test_the_rule_of_one_tensor() -> None:
    # P(z = 0) = sigmoid(-1.599 - alpha): .9974 twice and .0002 twice, so 2 of 4 are closed; open ones are soft
    log_alpha = torch.tensor([[7.0, -7.6], [-7.7, 7.1]])
    gates = deterministic_gates(log_alpha)
    assert torch.equal(gates == 0, log_alpha < 0)
    assert gates[0, 0].item() == pytest.approx(torch.tensor(1.2 * 7.0).sigmoid().item())
    assert deterministic_gates(torch.full((8,), 10.0)).count_nonzero() == 8
    assert deterministic_gates(torch.full((8,), -10.0)).count_nonzero() == 0


@pytest.mark.parametrize("sparsity", [0.0, 0.3, 0.5, 0.7, 0.75])
def test_bisection_ends_where_the_sparsity_crosses_its_target(sparsity: float) -> None:
    gates = torch.tensor([0.9, 0.2, 0.6, 0.3])
    threshold = threshold_at(gates, sparsity)
    below, above = ((gates <= threshold + shift).float().mean().item() for shift in (-2e-5, 2e-5))
    assert below <= sparsity < above


@pytest.mark.parametrize("seed", range(5))
def test_a_checkpoint_gives_the_circuit_of_its_own_rule(tmp_path: Path, seed: int) -> None:
    state = checkpoint(SPLIT, seed=seed)
    save_file(state, tmp_path / "model.safetensors")
    circuit = read_circuit(tmp_path / "model.safetensors").circuit
    assert circuit.graph == SPLIT
    assert set(circuit.edges()) == slow_edges(state, SPLIT)
    assert 0 < circuit.num_edges < SPLIT.num_edges
    assert circuit.scores is not None
    log_alpha = state["transformer.h.1.k_read_log_alphas"][SPLIT.writers.index("a0.h2"), 1]
    assert circuit.scores[SPLIT.index("a0.h2->a1.h1.k")] == log_alpha


def test_every_kind_of_file_of_a_checkpoint(tmp_path: Path) -> None:
    state = checkpoint(SPLIT)
    folder = tmp_path / "run"
    folder.mkdir()
    names = sorted(state)
    save_file({name: state[name] for name in names[:7]}, folder / "model-00001-of-00002.safetensors")
    save_file({name: state[name] for name in names[7:]}, folder / "model-00002-of-00002.safetensors")
    torch.save(state, tmp_path / "pytorch_model.bin")
    sharded, whole = read_circuit(folder).circuit, read_circuit(tmp_path / "pytorch_model.bin").circuit
    assert torch.equal(sharded.keep, whole.keep)
    assert sharded.header["source"] == "run"
    merged = read_circuit(folder, PLAIN)
    assert merged.circuit.graph == PLAIN
    assert any("one writer there" in note for note in merged.notes)


def test_a_llama_checkpoint(tmp_path: Path) -> None:
    with_nodes = checkpoint(GROUPED, prefix="model.layers", embeddings=1)
    save_file(with_nodes, tmp_path / "model.safetensors")
    assert read_circuit(tmp_path / "model.safetensors", GROUPED).circuit.graph == GROUPED
    without = checkpoint(GROUPED, prefix="model.layers", embeddings=0)
    save_file(without, tmp_path / "model.safetensors")
    found = read_circuit(tmp_path / "model.safetensors", GROUPED)
    circuit = found.circuit
    assert circuit.keep[:, 0].all()
    assert circuit.scores is not None
    assert (
        circuit.scores[0, 0]
        == circuit.scores.max()
        == max(float(without[name].max()) for name in without if "read" in name)
    )
    assert circuit.scores[GROUPED.index("m0->logits")] == without["model.final_read_log_alphas"][4]
    assert any("no masks" in note for note in found.notes)
    assert "num_kv_heads" in refused(
        tmp_path / "model.safetensors", EdgeGraph(type(GROUPED.arch)(num_layers=2, num_heads=4, num_kv_heads=1))
    )


def test_a_checkpoint_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(EdgepruneError, match="only read"):
        write_circuit(scored(PLAIN), tmp_path / "model.safetensors", "edge-pruning-checkpoint")
    assert not list(tmp_path.iterdir())


def test_masks_that_do_not_fit(tmp_path: Path) -> None:
    state = checkpoint(SPLIT)
    for change, expected in (
        ({"transformer.h.1.v_read_log_alphas": torch.zeros(3, 3)}, "layer 1: v_read_log_alphas has shape (3, 3)"),
        ({"transformer.h.2.v_read_log_alphas": torch.zeros(10, 3)}, "layer 2: q_read_log_alphas is missing"),
        ({"transformer.final_read_log_alphas": torch.zeros(13)}, "q_read_log_alphas has shape (10, 3)"),
    ):
        torch.save(state | change, tmp_path / "pytorch_model.bin")
        assert expected in refused(tmp_path / "pytorch_model.bin")
    del state["transformer.pos_write_log_alpha"]
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert "own gates" in refused(tmp_path / "pytorch_model.bin")
    with pytest.raises(EdgepruneError, match="final_read_log_alphas is missing"):
        Checkpoint.of({})
