"""First-order effects of closing attention edges."""

import pytest
import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.methods.attention_effects import attention_scores, closing_attention_effects
from edgeprune.methods.attribution import open_gates
from edgeprune.methods.problem import Problem
from edgeprune.metrics.measure import gated_logits
from edgeprune.roles import observed_roles
from tests.methods.small_problems import problem, tiny
from tests.reading.small import pairs


def with_roles(name: str = "gpt2", *, cuts: tuple[int, ...] = (3,)) -> Problem:
    found = problem(tiny(name), pairs(), cuts=cuts, metric="logit_difference")
    found.model.use_roles(observed_roles(found.batches))
    return found


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_scores_are_slopes_of_the_loss(name: str) -> None:
    """Central differences of every single gate, at the full model, mean over examples."""
    given = with_roles(name)
    edges, scores = given.model.graph.attention, attention_scores(given)
    gates, step, places = open_gates(given.model), 1e-3, edges.exists.nonzero().tolist()[::7]

    def loss(inside: Tensor) -> float:
        total = 0.0
        for batch, full, ablated in given.batches_with_runs():
            logits = gated_logits(given.model, batch, gates, ablated, attention_gates=inside)
            total += given.losses(full, logits, batch).double().sum().item()
        return total / given.num_examples

    expected: list[float] = []
    for place in places:
        apart = torch.zeros(edges.shape, dtype=torch.float64)
        apart[tuple(place)] = step
        expected.append((loss(1 - apart) - loss(1 + apart)) / (2 * step))
    found = torch.stack([scores[tuple(place)] for place in places])
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-2, atol=1e-4)
    assert found.abs().max() > 1e-3
    assert scores[~edges.exists].abs().max() == 0


def test_how_pairs_are_cut_into_batches_does_not_matter() -> None:
    one, three = (attention_scores(with_roles(cuts=cuts)) for cuts in ((), (1, 4)))
    torch.testing.assert_close(one, three, rtol=1e-5, atol=1e-7)


def test_they_are_those_at_the_gates_that_are_given() -> None:
    given = with_roles()
    batch, full, ablated = next(given.batches_with_runs())
    edges = given.model.graph.attention
    closed = torch.zeros(edges.shape, dtype=torch.float64)
    effects = closing_attention_effects(given, batch, full, ablated, open_gates(given.model), closed)
    assert effects.shape == edges.shape
    assert (effects / len(batch) - attention_scores(given)).abs().max() > 1e-3


def test_what_has_no_slope_or_no_roles_is_refused() -> None:
    flat = problem(tiny("gpt2"), pairs(), metric="kl")
    with pytest.raises(EdgepruneError, match="scoring attention edges takes the gradient at the full model"):
        attention_scores(flat)
    with pytest.raises(EdgepruneError, match="this graph has no roles"):
        attention_scores(problem(tiny("gpt2"), pairs()))
