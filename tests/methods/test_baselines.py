"""Random scores and activation magnitudes."""

from typing import Any

import pytest
import torch

from edgeprune.circuit import Circuit
from edgeprune.console import no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.methods import ActivationMagnitude, RandomScores
from edgeprune.methods.selection import top_n
from tests.methods.small_problems import problem, random_pairs, tiny
from tests.models.reference import writer_outputs


@pytest.mark.parametrize("seed", [0, 7])
def test_random_scores_make_the_random_circuits(seed: int) -> None:
    question = problem(tiny())
    graph = question.model.graph
    scores = RandomScores(seed).discover(question, no_progress).scores
    assert scores is not None
    for count in (1, 50, graph.num_edges):
        assert torch.equal(top_n(graph, scores, count), Circuit.random(graph, count, seed).keep)
    assert (scores[~graph.exists] == 0).all()


def test_seeds_differ() -> None:
    question = problem(tiny())
    first, second = (RandomScores(seed).discover(question, no_progress).scores for seed in (0, 1))
    assert first is not None
    assert second is not None
    assert not torch.equal(first, second)


@pytest.mark.parametrize("of", ["difference", "own"])
@pytest.mark.parametrize("ablation", ["interchange", "zero"])
def test_magnitudes_by_hand(of: Any, ablation: Any) -> None:
    pairs = random_pairs(3)
    question = problem(tiny(), pairs, ablation=ablation)
    model = question.model
    expected = torch.zeros(len(model.graph.writers), dtype=torch.float64)
    for pair in pairs:
        own = writer_outputs(model, model.record(torch.tensor([pair.clean])))
        other = writer_outputs(model, model.record(torch.tensor([pair.corrupted])))
        for writer, (clean, corrupted) in enumerate(zip(own, other, strict=True)):
            carried = clean if of == "own" or ablation == "zero" else corrupted - clean
            expected[writer] += carried[0].square().sum(-1).sqrt().mean() / len(pairs)
    scores = ActivationMagnitude(of).discover(question, no_progress).scores
    assert scores is not None
    torch.testing.assert_close(scores, expected * model.graph.exists, atol=1e-9, rtol=0)


def test_an_unknown_magnitude_is_refused() -> None:
    with pytest.raises(EdgepruneError, match="'both'"):
        ActivationMagnitude("both")  # pyright: ignore[reportArgumentType]
