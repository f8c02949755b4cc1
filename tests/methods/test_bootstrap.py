"""Bootstrap intervals of scores: by hand, against normal theory, and what circuits make of them."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.console import no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.methods import EAP, EAPIG, Selection
from edgeprune.methods.bootstrap import Bootstrap, Samples, discover_by_batch, filled
from tests.methods.small_problems import problem, random_pairs, tiny

GRAPH = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=4))


def samples_of(values: Tensor, sizes: list[float] | None = None) -> Samples:
    """From scores `[batch, edge]`."""
    matrices = torch.stack([GRAPH.to_matrix(row.double()) for row in values])
    return Samples(matrices, torch.tensor(sizes or [1.0] * len(values), dtype=torch.float64))


def one_edge(values: list[float]) -> Tensor:
    """`[batch, edge]`: the same for every edge."""
    return torch.tensor(values)[:, None].expand(-1, GRAPH.num_edges)


def test_an_interval_by_hand() -> None:
    """Three batches of 1, 1 and 2 examples: all 27 draws are equally likely, and are counted out."""
    values, sizes = [1.0, 4.0, -2.0], [1.0, 1.0, 2.0]
    every = sorted(
        sum(sizes[place] * values[place] for place in draw) / sum(sizes[place] for place in draw)
        for draw in itertools.product(range(3), repeat=3)
    )
    low, high = Bootstrap(resamples=20000, confidence=0.8).intervals(GRAPH, samples_of(one_edge(values), sizes))
    assert low[-1, 0] == pytest.approx(every[2])  # a tenth of 27 lie below
    assert high[-1, 0] == pytest.approx(every[-3])
    assert low[~GRAPH.exists].eq(0).all()


def test_intervals_hold_the_truth_as_often_as_they_say_and_do_not_shrink_with_resamples() -> None:
    generator = torch.Generator().manual_seed(0)
    samples = samples_of(1 + torch.randn(40, GRAPH.num_edges, generator=generator))
    wide = {number: Bootstrap(number).intervals(GRAPH, samples) for number in (200, 2000)}
    low, high = (GRAPH.to_vector(end) for end in wide[2000])
    assert 0.88 < ((low < 1) & (high > 1)).double().mean() < 0.98
    width = [(GRAPH.to_vector(high) - GRAPH.to_vector(low)).mean() for low, high in wide.values()]
    assert width[1] / width[0] == pytest.approx(1, abs=0.05)
    assert width[1] == pytest.approx(2 * 1.96 / 40**0.5, rel=0.05)  # of normal theory


def test_scores_rank_by_the_end_that_is_nearer_to_zero() -> None:
    values = torch.randn(6, GRAPH.num_edges, generator=torch.Generator().manual_seed(1)) / 10
    values[:, 0], values[:, 1], values[:, 2] = 1.0, -2.0, torch.tensor([20.0, -1, -1, -1, -1, -1])
    samples, bootstrap = samples_of(values), Bootstrap(500)
    cautious = GRAPH.to_vector(bootstrap.cautious(GRAPH, samples))
    assert cautious[:3].tolist() == pytest.approx([1, -2, 0])
    mean = GRAPH.to_vector(samples.scores.mean(0))
    assert mean[2] == 2.5  # the highest, and yet it may be chance
    order = filled(cautious, mean)
    sure = cautious != 0
    assert torch.equal(order[sure], cautious[sure])
    assert order[~sure].abs().max() < order[sure].abs().min()
    assert torch.equal(order[~sure].argsort(), mean[~sure].argsort())
    assert torch.equal(filled(torch.zeros(3), torch.tensor([1.0, 2, 3])), torch.tensor([1.0, 2, 3]))


def test_circuits_take_sure_edges_first_and_thresholds_those_alone() -> None:
    values = torch.zeros(6, GRAPH.num_edges)
    values[:, 5], values[:, 6], values[:, 7] = -1.0, 2.0, torch.tensor([20.0, -1, -1, -1, -1, -1])
    samples = samples_of(values)
    mean = samples.scores.mean(0)
    for rule, absolute, expected in (("top_n", True, [5, 6]), ("top_n", False, [6, 7])):
        settings: dict[str, Any] = {"rule": rule, "absolute": absolute, "sparsities": (1 - 2 / GRAPH.num_edges,)}
        (circuit,) = Selection(**settings, bootstrap=Bootstrap(200)).circuits(GRAPH, mean, samples).values()
        assert GRAPH.to_vector(circuit.keep).nonzero().flatten().tolist() == expected
        about = circuit.header["selection"]["bootstrap"]
        assert about == {"resamples": 200, "confidence": 0.95, "seed": 0, "batches": 6, "sure_edges": 2}
        assert circuit.scores is not None
        assert torch.equal(circuit.scores, mean.float())
    sure = Selection(rule="threshold", thresholds=(0.0,), absolute=True, bootstrap=Bootstrap(200))
    (circuit,) = sure.circuits(GRAPH, mean, samples).values()
    assert GRAPH.to_vector(circuit.keep).nonzero().flatten().tolist() == [5, 6]
    with pytest.raises(EdgepruneError, match="scores of single batches"):
        sure.circuits(GRAPH, mean)


@pytest.mark.parametrize("method", [EAP(), EAPIG("local", 2)])
def test_batches_by_themselves_make_the_scores_of_all(method: Any) -> None:
    question = problem(tiny(), cuts=(2, 3))
    whole = method.discover(question, no_progress)
    seen: list[tuple[int, int]] = []
    found, samples = discover_by_batch(method, question, lambda what, done, total: seen.append((done, total)))
    assert found.scores is not None
    torch.testing.assert_close(found.scores, whole.scores, rtol=1e-9, atol=1e-12)
    assert found.about == whole.about
    assert samples.sizes.tolist() == [2, 1, 2]
    assert seen == [(1, 3), (2, 3), (3, 3)]


def test_mistakes_are_named() -> None:
    with pytest.raises(EdgepruneError, match="2 pairs in batches of that size are one"):
        discover_by_batch(EAP(), problem(tiny(), random_pairs(2), cuts=()))
    with pytest.raises(EdgepruneError, match="resamples must be at least 2, got 1"):
        Bootstrap(1)
    with pytest.raises(EdgepruneError, match="confidence must lie in"):
        Bootstrap(confidence=95)
