"""The model from one reader on against the masked model."""

import random
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.console import no_progress
from edgeprune.methods.acdc import ACDC, num_ahead, updated_rate
from edgeprune.methods.acdc_losses import DownstreamLosses, PlainLosses
from edgeprune.methods.acdc_order import sender_order
from edgeprune.methods.problem import Problem
from edgeprune.models.changes import find_changes
from edgeprune.models.clean_run import CleanRun
from edgeprune.models.downstream import DownstreamRun
from edgeprune.models.open_reads import projected
from tests.methods.test_acdc import edges_of, random_batches, random_problem, small
from tests.models.test_conformance import WIRED

ABLATIONS = ("interchange", "zero")


def circuit_from(problem: Problem, reader: int, share: float, seed: int) -> Tensor:
    """A circuit as ACDC has it at `reader`: of the edges into later receivers a share is open."""
    graph = problem.model.graph
    noise = torch.rand(graph.shape, generator=torch.Generator().manual_seed(seed))
    tested = torch.arange(len(graph.readers))[:, None] > reader
    return graph.exists & ((noise < share) | ~tested)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("ablation", ABLATIONS)
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_logits_are_those_of_the_masked_model(family: Any, index: int, ablation: Any, share: float) -> None:
    problem = random_problem(family.model_types[0], index, ablation)
    graph = problem.model.graph
    (batch, _, ablated), *_ = problem.batches_with_runs()
    clean = CleanRun(problem.model, batch, ablated)
    rng = random.Random(index)
    for reader in range(len(graph.readers)):
        keep = circuit_from(problem, reader, share, reader)
        writers = rng.sample(range(graph.num_visible[reader]), min(4, graph.num_visible[reader]))
        closed, asked = writers[:-3], writers[-3:]
        downstream = DownstreamRun(clean, keep, reader)
        for number in range(len(asked) + 1):
            gates = keep.double()
            gates[reader, [*closed, *asked[:number]] if number else []] = 0
            expected = problem.model(batch.clean, gates, ablated, batch.attention_mask, batch.positions).float()
            found = downstream.ahead(closed, asked)[number - 1] if number else downstream.logits
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)  # both are rounded to float32


def test_readers_with_the_same_open_edges_are_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """With all edges open each later layer has one input; the receiver in question has one of its own."""
    problem, made = random_problem("gpt2", 0), list[int]()
    graph = problem.model.graph

    def counted(inputs: Tensor, *others: Any) -> Tensor:
        made.append(inputs.shape[1])
        return projected(inputs, *others)

    monkeypatch.setattr("edgeprune.models.rerun.projected", counted)
    losses, reader = DownstreamLosses(problem, 1.0, 8), graph.readers.index("a0.h1.q")
    losses.begin(graph.exists, (reader,))
    assert not made  # nothing differs from the clean run
    losses.prefixes([], [0])
    assert made == [1] * graph.arch.num_layers * len(losses.batches)
    keep = graph.exists.clone()
    keep[graph.readers.index("a1.h2.k"), 0] = False
    losses.begin(keep, (reader,))
    made.clear()
    losses.prefixes([], [0])
    assert made == [1, 2, *[1] * (graph.arch.num_layers - 2)] * len(losses.batches)


@pytest.mark.parametrize("chunk", [1, 5000])
def test_small_pieces_change_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    problem = random_problem("llama", 1)
    reader, graph = problem.model.graph.readers.index("a0.h1.q"), problem.model.graph
    keep = circuit_from(problem, reader, 0.5, 0)
    found = []
    for size in (8 * 2**20, chunk):
        monkeypatch.setattr("edgeprune.models.read_ops.ReadOps.chunk_bytes", size)
        losses = DownstreamLosses(problem, 1.0, 8)
        found.append([losses.begin(keep, (reader,)), *losses.prefixes([], range(graph.num_visible[reader]))])
    assert found[0] == pytest.approx(found[1], abs=1e-6)


@pytest.mark.parametrize("memory_gb", [1e-9, 5.4e-4, 1.0])
def test_less_memory_gives_the_same_losses(memory_gb: float) -> None:
    problem = random_problem("gpt2", 0)
    graph, plain, downstream = problem.model.graph, PlainLosses(problem), DownstreamLosses(problem, memory_gb, 8)
    assert downstream.keeps == (memory_gb == 1.0)
    assert (len(downstream.batches) == problem.num_examples) == (memory_gb == 1e-9)
    for name in ("a1.h2.v", "m0", "logits"):
        reader = graph.readers.index(name)
        keep = circuit_from(problem, reader, 0.5, 1)
        asked = list(range(graph.num_visible[reader]))
        assert downstream.begin(keep, (reader,)) == pytest.approx(plain.begin(keep, (reader,)), abs=1e-6)
        assert downstream.prefixes(asked[:1], asked[1:]) == pytest.approx(
            plain.prefixes(asked[:1], asked[1:]), abs=1e-6
        )
    assert bool(downstream.runs_from_reader) == downstream.keeps


def test_speculation_evaluates_more_but_decides_alike() -> None:
    problem = random_problem("gpt2", 0)
    settings = ({"max_ahead": 1}, {"max_ahead": 3}, {"max_ahead": 50, "waste": 5.0})
    results = [ACDC((0.01,), evaluation="speculative", **one).discover(problem, no_progress) for one in settings]
    assert len({frozenset(edges_of(found, 0.01)) for found in results}) == 1
    counts = [found.about["tau-0.01"]["evaluated"] for found in results]
    assert counts[0] < counts[1] < counts[2]


def test_more_is_guessed_where_more_goes() -> None:
    assert [num_ahead(rate, 0.15, 8) for rate in (0.0, 0.5, 0.71, 0.86, 0.951, 1.0)] == [1, 1, 2, 3, 7, 8]
    assert [num_ahead(rate, 0.5, 100) for rate in (0.0, 0.51, 0.951, 1.0)] == [2, 3, 21, 100]
    assert num_ahead(1.0, 0.0, 8) == 1
    rate = 0.5
    for _ in range(100):
        rate = updated_rate(rate, removed=True)
    assert 0.99 < rate < 1
    assert updated_rate(rate, removed=False) < rate


def test_what_lies_at_the_threshold_is_decided_by_the_whole_model() -> None:
    """The effect of the first candidate is taken as tau: it is not below, so the edge stays, whatever rounding says."""
    problem = random_problem("edgeprune_compiled", 1)
    graph, plain = problem.model.graph, PlainLosses(problem)
    logits = len(graph.readers) - 1
    first = sender_order(graph, logits, "normal", "normal", seed=0)[0]
    before = plain.begin(graph.exists, (logits,))
    tau = plain.prefixes([], [first])[0] - before
    results = [ACDC((tau,), evaluation=kind).discover(problem, no_progress) for kind in ("plain", "speculative")]
    for found in results:
        assert found.circuits[f"tau-{tau!r}"].keep[logits, first]
    assert edges_of(results[0], tau) == edges_of(results[1], tau)
    assert results[1].about[f"tau-{tau!r}"]["ties"] >= 1


def test_a_plan_follows_open_edges_only() -> None:
    graph = small("gpt2", 0).graph
    keep = graph.keep_matrix(["embed->a0.h1.q", "a0.h1->m0", "m0->m1", "m1->logits", "a0.h2->m0", "a0.h3->a1.h0.k"])
    starts = torch.zeros(len(graph.readers), dtype=torch.bool)
    starts[[graph.readers.index("a0.h1.q"), graph.readers.index("a0.h3.v")]] = True
    changes = find_changes(graph, keep, starts)
    assert [graph.writers[writer] for writer in changes.writers] == ["a0.h1", "m0", "m1"]  # a1.h0 is not heard
    assert changes.everywhere == frozenset()
    keep |= graph.keep_matrix(["m0->a1.h0.k", "a1.h0->logits"])
    changes = find_changes(graph, keep, starts)
    assert [graph.writers[writer] for writer in changes.writers] == ["a0.h1", "a0.h3", "m0", "a1.h0", "m1"]
    assert {graph.writers[writer] for writer in changes.everywhere} == {"a0.h1", "a0.h3", "m0"}


def count_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with every clean run that is made."""
    made: list[int] = []
    init = CleanRun.__init__

    def count(self: CleanRun, *arguments: Any) -> None:
        made.append(1)
        init(self, *arguments)

    monkeypatch.setattr(CleanRun, "__init__", count)
    return made


def test_runs_are_made_once_where_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    made, model = count_runs(monkeypatch), small("gpt2", 0)
    problem = Problem(model, random_batches(), ReferenceRuns(model, "interchange"))
    ACDC((0.05,)).discover(problem, no_progress)
    assert len(made) == len(problem.batches)


def test_runs_are_made_once_for_a_question_where_memory_does_not_allow_more(monkeypatch: pytest.MonkeyPatch) -> None:
    made, problem = count_runs(monkeypatch), random_problem("gpt2", 0)
    losses, exists = DownstreamLosses(problem, 1e-9, 8), problem.model.graph.exists
    losses.begin(exists, (5,))
    assert len(made) == problem.num_examples
    losses.prefixes([], [0, 1, 2])
    assert len(made) == 2 * problem.num_examples
