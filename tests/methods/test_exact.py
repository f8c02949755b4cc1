"""Exact edge patching: single effects, resuming, subsets."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.console import no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.methods import ExactEdgePatching
from edgeprune.methods.exact import STATE_FILE, _State  # pyright: ignore[reportPrivateUsage]
from edgeprune.methods.problem import Problem
from tests.methods.small_problems import problem, random_pairs, tiny

EDGES = ("tok_embed->a0.h1.q", "tok_embed->logits", "a0.h0->m0", "m0->a1.h1.v", "a1.h1->logits", "pos_embed->m1")


def question_of(metric: Any = "kl", **options: Any) -> Problem:
    model = tiny("edgeprune_compiled", 0, split_embedding=True)
    return problem(model, random_pairs(3), cuts=(2,), metric=metric, **options)


def scores_of(method: ExactEdgePatching, question: Problem, folder: Path | None = None) -> Tensor:
    scores = method.discover(question, no_progress, folder).scores
    assert scores is not None
    return scores


class Interrupt:
    """Stops a sweep after some passes, and counts them."""

    def __init__(self, after: int | None) -> None:
        self.after, self.seen = after, 0

    def __call__(self, what: str, done: int, total: int) -> None:
        self.seen += 1
        if self.seen == self.after:
            raise KeyboardInterrupt


@pytest.mark.parametrize("metric", ["kl", "logit_difference"])
def test_a_score_of_the_sweep_is_that_of_the_edge_alone(metric: Any) -> None:
    """Published code prunes the graph on the way, so later scores see a smaller one."""
    scores, graph = scores_of(ExactEdgePatching(), question_of(metric)), question_of().model.graph
    baseline = question_of(metric).mean_loss(graph.all_open(torch.float64))
    for edge in EDGES:
        gates = graph.all_open(torch.float64)
        gates[graph.index(edge)] = 0
        alone = question_of(metric).mean_loss(gates) - baseline
        assert scores[graph.index(edge)].item() == pytest.approx(alone, rel=1e-5, abs=1e-7)
    assert (scores[~graph.exists] == 0).all()
    assert (scores[graph.exists] != 0).float().mean() > 0.5


def test_a_subset_scores_as_in_the_whole_sweep_and_the_rest_is_zero() -> None:
    question = question_of()
    whole, some = scores_of(ExactEdgePatching(), question), scores_of(ExactEdgePatching(EDGES), question)
    named = question.model.graph.keep_matrix(EDGES)
    assert torch.equal(some, torch.where(named, whole, 0.0))


def test_examples_count_alike_however_they_are_batched() -> None:
    model, pairs = tiny("edgeprune_compiled", split_embedding=True), random_pairs(5)
    found = [scores_of(ExactEdgePatching(EDGES), problem(model, pairs, cuts=cuts)) for cuts in ((), (4,), (1, 3))]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("after", [1, 5, 9])
def test_an_interrupted_sweep_goes_on_and_ends_the_same(tmp_path: Path, after: int) -> None:
    method, passes = ExactEdgePatching(EDGES), 2 * len(EDGES)
    with pytest.raises(KeyboardInterrupt):
        method.discover(question_of(), Interrupt(after), tmp_path)
    rest = Interrupt(None)
    scores = method.discover(question_of(), rest, tmp_path).scores
    assert rest.seen == 1 + passes - after  # the first says where it goes on
    assert scores is not None
    assert torch.equal(scores, scores_of(method, question_of()))
    assert [path.name for path in tmp_path.iterdir()] == [STATE_FILE]


def test_seconds_of_all_parts_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(now=100.0)
    monkeypatch.setattr("edgeprune.methods.exact.time", SimpleNamespace(monotonic=lambda: clock.now))
    state = _State.start("key", 3, tmp_path)
    clock.now += 7
    state.add(torch.tensor(0.5))
    state.save()
    clock.now += 1000  # nobody runs it
    again = _State.start("key", 3, tmp_path)
    clock.now += 2
    assert again.seconds == 9


@pytest.mark.parametrize("other", ["metric", "edges", "ablation", "alignment"])
def test_the_state_of_another_sweep_is_refused(tmp_path: Path, other: str) -> None:
    scores_of(ExactEdgePatching(EDGES), question_of(), tmp_path)
    question = question_of("squared_error" if other == "metric" else "kl")
    if other == "ablation":
        question = question_of(ablation="zero")
    if other == "alignment":  # closed edges carry values of other positions
        batches = [dataclasses.replace(batch, alignment=batch.clean.argsort(1)) for batch in question.batches]
        question = dataclasses.replace(question, batches=batches)
    method = ExactEdgePatching(EDGES[:3] if other == "edges" else EDGES)
    with pytest.raises(EdgepruneError, match="another model"):
        scores_of(method, question, tmp_path)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    scores_of(ExactEdgePatching(EDGES), question_of(), tmp_path)
    path = tmp_path / STATE_FILE
    path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(EdgepruneError, match="not a whole state"):
        scores_of(ExactEdgePatching(EDGES), question_of(), tmp_path)


def test_edges_are_checked() -> None:
    with pytest.raises(EdgepruneError, match="empty"):
        scores_of(ExactEdgePatching(()), question_of())
    with pytest.raises(EdgepruneError, match="m9"):
        scores_of(ExactEdgePatching(("m9->logits",)), question_of())
