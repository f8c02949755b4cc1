from collections import defaultdict
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from edgeprune.compiled import CompiledTransformer, cases, load_compiled, programs, true_circuit
from edgeprune.errors import EdgepruneError
from tests.compiled.slow import forward, graph_of


@pytest.fixture(scope="module")
def model() -> CompiledTransformer:
    return load_compiled("reverse").double().requires_grad_(False)


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    """All valid inputs, one batch per length."""
    by_length: dict[int, list[tuple[int, ...]]] = defaultdict(list)
    for ids, _ in cases("reverse"):
        by_length[len(ids)].append(ids)
    return [torch.tensor(rows) for rows in by_length.values()]


class Runs(NamedTuple):
    """Inputs of one length `[batch, seq]`, their full output, and what closed edges carry (None: zero)."""

    ids: Tensor
    full: Tensor
    ablated: dict[str, Tensor] | None


def all_runs(model: CompiledTransformer, batches: list[Tensor], ablation: str) -> list[Runs]:
    """Every batch; under interchange, with two pairings of the inputs."""
    if ablation == "zero":
        return [Runs(ids, forward(model, ids)[0], None) for ids in batches]
    return [
        Runs(ids, forward(model, ids)[0], forward(model, other)[1])
        for ids in batches
        for other in (ids.flip(0), ids.roll(1, 0))
    ]


def change(model: CompiledTransformer, runs: list[Runs], closed: set[str]) -> float:
    """Largest change of any output behind BOS."""
    return max(
        (forward(model, ids, closed, ablated)[0] - full)[:, 1:].abs().max().item() for ids, full, ablated in runs
    )


def test_valid_inputs_are_all_words_of_up_to_five_symbols() -> None:
    inputs = [ids for ids, _ in cases("reverse")]
    assert len(set(inputs)) == len(inputs) == 3 + 9 + 27 + 81 + 243
    assert {ids[0] for ids in inputs} == {3}
    assert {token for ids in inputs for token in ids[1:]} == {0, 1, 2}


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_every_input_is_reversed(implementation: str) -> None:
    model = load_compiled("reverse").requires_grad_(False)
    model.set_attn_implementation(implementation)
    rows, outputs = zip(*cases("reverse"), strict=True)
    pad = model.config.pad_token_id
    ids = torch.tensor([row + (pad,) * (6 - len(row)) for row in rows])  # all lengths in one padded batch
    logits = model(ids, attention_mask=(ids != pad).long()).logits
    for row, expected in zip(logits, outputs, strict=True):
        probabilities = row[1 : len(expected) + 1].softmax(-1)
        assert probabilities.argmax(-1).tolist() == list(expected)
        assert probabilities.max(-1).values.min() > 0.999


@pytest.mark.parametrize(("ablation", "size"), [("zero", 11), ("interchange", 2)])
def test_exactly_the_true_edges_matter(
    model: CompiledTransformer, batches: list[Tensor], ablation: str, size: int
) -> None:
    graph = graph_of(model)
    edges = [graph.edge_name(*index) for index in graph.exists.nonzero().tolist()]
    assert len(edges) == 94
    runs = all_runs(model, batches, ablation)
    changes = {edge: change(model, runs, {edge}) for edge in edges}
    matter = {edge for edge, effect in changes.items() if effect >= 0.01}
    assert matter == set(true_circuit("reverse", ablation))
    assert len(matter) == size
    assert max(changes[edge] for edge in set(edges) - matter) <= 1e-5
    assert change(model, runs, set(edges) - matter) <= 1e-5  # all others closed at once


@pytest.mark.parametrize("ablation", ["zero", "interchange"])
def test_closing_a_true_edge_is_clear_in_the_divergence(
    model: CompiledTransformer, batches: list[Tensor], ablation: str
) -> None:
    runs = all_runs(model, batches[1:], ablation)  # one token alone has nothing to reverse
    for edge in true_circuit("reverse", ablation):
        divergences = []
        for ids, full, ablated in runs:
            log_p = full[:, 1:].log_softmax(-1)
            log_q = forward(model, ids, {edge}, ablated)[0][:, 1:].log_softmax(-1)
            divergences.append((log_p.exp() * (log_p - log_q)).sum(-1).mean().item())
        assert min(divergences) > 0.1, edge  # nats


def test_the_model_says_what_it_is(model: CompiledTransformer) -> None:
    assert programs() == ("reverse",)
    assert model.config.name_or_path == "compiled:reverse"
    assert model.config.vocab[model.config.bos_token_id] == "BOS"


def test_unknown_names_are_refused() -> None:
    with pytest.raises(EdgepruneError, match="no compiled program named 'sort'; the known ones are: reverse"):
        load_compiled("sort")
    with pytest.raises(EdgepruneError, match="'mean'; use one of zero, interchange"):
        true_circuit("reverse", "mean")
