"""The best connected circuit, against all circuits of small graphs."""

import itertools
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from edgeprune.console import no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.methods import EAP, Selection
from edgeprune.methods.connected import connected
from tests.methods.small_problems import compiled_problem

SMALL = [
    ArchSpec(num_layers=1, num_heads=2, num_kv_heads=2, has_mlp=False),
    ArchSpec(num_layers=1, num_heads=2, num_kv_heads=1, kv_readers="group", coupled_heads=True),
    ArchSpec(num_layers=1, num_heads=2, num_kv_heads=1, kv_readers="group", parallel_blocks=True),
    ArchSpec(num_layers=2, num_heads=1, num_kv_heads=1, has_mlp=False),
    ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1, split_embedding=True),
]


@cache
def sets(arch: ArchSpec) -> tuple[EdgeGraph, np.ndarray]:
    """A graph, and every set of its edges in which none dangles, bool `[set, edge]`."""
    graph = EdgeGraph(arch)
    every = torch.tensor(list(itertools.product([False, True], repeat=graph.num_edges)))
    whole = [not graph.dangling(graph.to_matrix(keep)).any() for keep in every]
    return graph, every[torch.tensor(whole)].numpy()


def noise(graph: EdgeGraph, seed: int) -> Tensor:
    return torch.randn(graph.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("arch", SMALL)
def test_no_connected_set_of_that_size_has_a_larger_sum(arch: ArchSpec, absolute: bool) -> None:
    graph, every = sets(arch)
    sizes = every.sum(1)
    for seed, size in enumerate(sorted(set(sizes.tolist()) - {0})):
        scores = noise(graph, seed) * 10.0 ** (seed % 5 - 4)
        values = graph.to_vector(scores.abs() if absolute else scores).numpy()
        found = connected(graph, scores, size, absolute=absolute)
        assert found.gap == 0
        assert found.keep.sum() == size
        assert not graph.dangling(found.keep).any()
        sums = every[sizes == size] @ values
        assert values[graph.to_vector(found.keep).numpy()].sum() == pytest.approx(sums.max(), rel=1e-9)


@pytest.mark.parametrize("arch", SMALL)
def test_the_least_number_of_positive_scores_is_kept(arch: ArchSpec) -> None:
    graph, every = sets(arch)
    scores, size = noise(graph, 7), 5
    values = graph.to_vector(scores).numpy()
    of_size = every[every.sum(1) == size]
    for least in range(1, size + 1):
        enough = of_size[of_size[:, values > 0].sum(1) >= least]
        if not len(enough):
            with pytest.raises(EdgepruneError, match=f"no 5 edges of which {least} score above 0"):
                connected(graph, scores, size, num_positive=least)
            continue
        found = graph.to_vector(connected(graph, scores, size, absolute=True, num_positive=least).keep).numpy()
        assert found[values > 0].sum() >= least
        assert np.abs(values)[found].sum() == pytest.approx((enough @ np.abs(values)).max(), rel=1e-9)


def test_finds_a_circuit_where_single_scores_tie() -> None:
    """Under zero ablation the two heads of `or_gate` score alike, and the best edges by score join none of them."""
    question = compiled_problem("or_gate", "zero", 12)
    graph = question.model.graph
    scores = EAP().discover(question, no_progress).scores
    assert scores is not None
    for size in (1, 3, 4, 6):
        keep = connected(graph, scores, size, absolute=True).keep
        assert not graph.dangling(keep).any()


def test_sizes_that_no_circuit_has_are_refused() -> None:
    graph = EdgeGraph(ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1, has_mlp=False))
    direct = graph.exists.double().neg()
    direct[graph.index("embed->logits")] = 1.0
    assert connected(graph, direct, 2).keep.sum() == 2  # through the head, without the direct edge
    with pytest.raises(EdgepruneError, match="no 2 edges of which 1 score above 0 make a circuit"):
        connected(graph, direct, 2, num_positive=1)


def test_a_search_that_runs_out_of_time_says_so(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    from scipy import optimize

    solve = optimize.milp

    def stopped(*arguments: Any, **options: Any) -> Any:
        found = solve(*arguments, **options)
        found.status, found.mip_gap = 1, 0.25
        return found

    monkeypatch.setattr(optimize, "milp", stopped)
    graph = EdgeGraph(SMALL[0])
    circuits = Selection(rule="connected", sparsities=(0.5,), seconds=0.5).circuits(graph, noise(graph, 1))
    assert circuits["sparsity-0.5000"].header["selection"]["gap"] == 0.25
    line = capsys.readouterr().err
    assert "not proven to be the best within 0.5 s" in line
    assert "0.25 of itself" in line

    def without_result(*arguments: Any, **options: Any) -> Any:
        return optimize.OptimizeResult(x=None, status=1)

    monkeypatch.setattr(optimize, "milp", without_result)
    with pytest.raises(EdgepruneError, match=r"found within 2 s; raise selection\.seconds"):
        connected(graph, noise(graph, 1), 5, seconds=2)
