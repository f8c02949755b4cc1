"""Contextual decomposition as a method: exact where models are linear, measures by hand, the loop, roles, resuming."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.console import no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.methods import ContextualDecomposition, decomposition_state
from edgeprune.methods.contextual_decomposition import normalised
from edgeprune.methods.decomposition_loop import keep_among, pruned, rounds
from edgeprune.methods.decomposition_rules import Biases
from edgeprune.methods.decomposition_run import DecomposedRun
from edgeprune.methods.problem import Problem
from edgeprune.methods.relevance import Collector
from edgeprune.models.masked import MaskedModel
from tests.methods.small_problems import linear_model, problem, random_pairs, tiny, without_biases

GRAPH = EdgeGraph(ArchSpec(num_layers=2, num_heads=2, num_kv_heads=2))


def close(found: Tensor, expected: Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(found.double(), expected.double(), atol=atol, rtol=1e-5)


@pytest.mark.parametrize("attention", ["relevant", "frozen"])
@pytest.mark.parametrize("ablation", ["interchange", "zero", "mean"])
def test_a_linear_model_is_ablated_exactly(ablation: str, attention: Any) -> None:
    """Biases that no writer owns stay where they are: all of each is irrelevant, or there are none to split."""
    cases: list[tuple[MaskedModel, Biases]]
    cases = [(linear_model(), "irrelevant"), (without_biases(linear_model()), "split")]
    for model, biases in cases:
        question = problem(model, ablation=ablation)
        question.runs.prepare(question.batches)
        method = ContextualDecomposition(attention=attention, biases=biases, larger=False)
        found = method.relevances(question)
        full = question.mean_loss(model.graph.all_open())
        for writer in range(len(model.graph.writers)):
            edge = found.edges[:, -1, writer].sum()
            for rows, score in ((slice(None), found.nodes[0, writer]), (-1, edge)):
                gates = model.graph.all_open()
                gates[rows, writer] = 0
                effect = question.mean_loss(gates) - full
                assert score.item() == pytest.approx(effect, abs=1e-5)
        assert found.nodes.abs().max() > 0.1


def queries(model: MaskedModel, ids: Tensor) -> Tensor:
    """Those of the first layer `[seq, head, c]`."""
    stream = model.start(ids[None], None)[1]
    return model.blocks[0].project(model.blocks[0].norm(stream))[0][0]


def test_measures_by_hand() -> None:
    """Edges from the embedding to queries of the first layer, prompt by prompt."""
    model, pairs = without_biases(tiny("gpt2")), random_pairs(3)
    layer = model.hf.transformer.h[0]
    expected = torch.zeros(2, 4, dtype=torch.float64)
    for pair in pairs:
        clean, corrupted = torch.tensor(pair.clean), torch.tensor(pair.corrupted)
        embedded, other = (model.start(ids[None], None)[1][0] for ids in (clean, corrupted))
        part = embedded - other
        scale = (embedded.var(-1, unbiased=False, keepdim=True) + layer.ln_1.eps) ** -0.5
        normed = (part - part.mean(-1, keepdim=True)) * scale * layer.ln_1.weight
        relevant = (normed @ layer.attn.c_attn.weight[:, :32]).view(-1, 4, 8)
        total = queries(model, clean)
        difference = total - queries(model, corrupted)
        expected[0] += (relevant * difference).sum((0, 2)) / difference.square().sum((0, 2)) / len(pairs)
        sizes = relevant.abs().sum(-1)
        expected[1] += (sizes / (sizes + (total - relevant).abs().sum(-1))).mean(0) / len(pairs)
    for measure, values in zip(("dot", "l1"), expected, strict=True):
        found = ContextualDecomposition(measure=measure).relevances(problem(model, pairs, cuts=(2,)))
        close(found.edges.sum(0)[:4, 0], values.detach(), 1e-10)
        scores = ContextualDecomposition(measure=measure).scores(found).sum(0)
        close(scores[:4, 0], values.detach() * found.nodes[0, 1:5].abs())
        plain = ContextualDecomposition(measure=measure, weigh=False).scores(found).sum(0)
        close(plain[:4, 0], values.detach())
        assert torch.equal(scores[-1], found.edges.sum(0)[-1])


def test_what_is_written_by_hand() -> None:
    """Heads of the second layer, of which the only difference is what the first layer's heads bring, are all theirs."""
    model = tiny("gpt2")
    found = ContextualDecomposition(paths="all").relevances(problem(model))
    graph = model.graph
    for target in range(len(graph.writers)):
        for writer in range(len(graph.writers)):
            before = graph.num_visible[graph.inputs[target][0]] if graph.inputs[target] else 0
            assert bool(found.targets[target, writer]) == (writer < before), (target, writer)


@pytest.mark.parametrize("settings", [{}, {"measure": "l1", "paths": "all"}, {"attention": "frozen", "by_role": True}])
@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_memory_does_not_matter(name: str, settings: dict[str, Any]) -> None:
    question = with_roles(problem(tiny(name), random_pairs(2), cuts=()))
    found = ContextualDecomposition(**settings).relevances(question)
    least = ContextualDecomposition(**settings, memory_gb=1e-9).relevances(question)
    for field in ("nodes", "edges", "targets"):
        close(getattr(least, field), getattr(found, field))
        assert getattr(found, field).abs().max() > 1e-3


# ---------------------------------------------------------------- roles
def with_roles(question: Problem, end: int = 2) -> Problem:
    """Its first tokens are called `start`, and the first of them also `first`."""
    batches = [
        dataclasses.replace(
            batch,
            roles={
                "first": torch.tensor([[0, 1]] * len(batch)),
                "start": torch.tensor([[0, end]] * len(batch)),
            },
        )
        for batch in question.batches
    ]
    return dataclasses.replace(question, batches=batches)


def test_roles_are_parts_of_edges_and_sources_of_their_own() -> None:
    model, pairs = tiny("llama"), random_pairs(4)
    pairs = [dataclasses.replace(pair, corrupted=(pair.clean[0], *pair.corrupted[1:])) for pair in pairs]
    question = problem(model, pairs)
    plain = ContextualDecomposition().relevances(question)
    found = ContextualDecomposition(by_role=True).relevances(with_roles(question))
    assert found.parts == ("first", "start", "rest")
    assert plain.parts == ("rest",)
    close(found.edges.sum(0), plain.edges[0], 1e-12)
    close(found.nodes[0], plain.nodes[0], 1e-12)
    assert (found.edges[:1, :-1] == 0).all()  # nothing differs at the first token
    assert (found.nodes[1] == 0).all()
    assert found.nodes[2:].abs().amax(1).min() > 1e-3
    last = model.graph.heads(2).start  # what the last layer's heads write counts at the scored token alone
    close(found.nodes[3, last : last + 4], found.nodes[0, last : last + 4])
    assert found.edges[2, -1].equal(found.edges.sum(0)[-1])  # as all scored tokens are no role's
    result = ContextualDecomposition(by_role=True).discover(with_roles(question), no_progress)
    assert set(result.about["node_scores_by_role"]) == set(found.parts)


def test_roles_that_the_task_does_not_have_are_refused() -> None:
    with pytest.raises(EdgepruneError, match="marks no position roles"):
        ContextualDecomposition(by_role=True).relevances(problem(tiny()))


# ---------------------------------------------------------------- normalisation, loop
def test_normalised_by_hand() -> None:
    """Embedding, then two layers of two heads and an MLP."""
    found = torch.tensor([4.0, 1, 2, -6, 0, 0, 0])
    assert normalised(GRAPH, found, "none") is found
    close(normalised(GRAPH, found, "sizes"), torch.tensor([1, 1 / 9, 2 / 9, -6 / 9, 0, 0, 0]))
    close(normalised(GRAPH, found, "signed"), torch.tensor([1, -1 / 3, -2 / 3, 2, 0, 0, 0]))  # turned round
    parts = torch.stack([found, found])[:, None]
    close(normalised(GRAPH, parts, "sizes").sum(0)[0], normalised(GRAPH, found, "sizes"))


def test_rounds_by_hand() -> None:
    """embed, a0.h0, a0.h1, m0, a1.h0, a1.h1, m1: the best two for the logits, then the best for both of these."""
    nodes = torch.tensor([9.0, 0, 0, 0, 3, 1, 2])
    targets = torch.zeros(7, 7)
    targets[4, [0, 1, 2]] = torch.tensor([5.0, 1, 2])
    targets[6, [1, 3, 4]] = torch.tensor([2.0, 1, 9])
    assert rounds(GRAPH, nodes, targets, 2) == [[4, 6], [1, 2]]
    assert rounds(GRAPH, nodes, targets, 1) == [[4], [2]]
    assert rounds(GRAPH, -nodes, targets, 1) == []


def test_pruning_by_hand() -> None:
    """Each node costs what it costs: the dearest goes first, as long as it lowers the loss; the first one may not."""
    prices = {1: 5.0, 2: -1.0, 4: 2.0}
    asked: list[Tensor] = []

    def loss_of(gates: Tensor) -> float:
        asked.append(gates)
        return sum(price for writer, price in prices.items() if gates[-1, writer])

    assert pruned(GRAPH, [4, 1, 2], loss_of) == [2]
    assert pruned(GRAPH, [4, 1, 2], loss_of, protected=[1]) == [1, 2]
    assert asked[0].equal(keep_among(GRAPH, [4, 1, 2]).float())
    names = {name for edge in keep_among(GRAPH, [4]).nonzero().tolist() for name in [GRAPH.edge_name(*edge)]}
    assert names == {"embed->a1.h0.q", "embed->a1.h0.k", "embed->a1.h0.v", "embed->logits", "a1.h0->logits"}


def test_the_loop_makes_circuits() -> None:
    question = problem(tiny(), metric="kl")
    result = ContextualDecomposition(loop=2, prune=True, normalize="sizes").discover(question, no_progress)
    chosen = [node for best in result.about["rounds"] for node in best]
    assert set(result.circuits) == {"loop", "loop-pruned"}
    assert result.circuits["loop"].header["nodes"] == chosen
    assert set(result.circuits["loop"].nodes()) == {"embed", "logits", *chosen}
    assert set(result.circuits["loop-pruned"].header["nodes"]) >= set(result.about["rounds"][0])
    losses = [question.mean_loss(circuit.gates()) for circuit in result.circuits.values()]
    assert losses[1] <= losses[0]
    assert result.scores is not None


# ---------------------------------------------------------------- interruptions, mistakes
class Stop(Exception):
    """What stops a run."""


def stopping(after: int) -> Callable[[str, int, int], None]:
    def report(what: str, done: int, total: int) -> None:
        if done == after:
            raise Stop

    return report


def test_a_run_goes_on_where_it_stopped(tmp_path: Path) -> None:
    question, method = with_roles(problem(tiny())), ContextualDecomposition(by_role=True)
    with pytest.raises(Stop):
        method.discover(question, stopping(6), tmp_path)
    said: list[tuple[int, int]] = []
    result = method.discover(question, lambda what, done, total: said.append((done, total)), tmp_path)
    assert said == [(done, 12) for done in range(6, 13)]  # three batches, the embedding and three layers
    whole = method.discover(question, no_progress)
    assert result.scores is not None
    assert whole.scores is not None
    assert torch.equal(result.scores, whole.scores)
    assert result.about == whole.about
    with pytest.raises(EdgepruneError, match="another model, other pairs, settings"):
        ContextualDecomposition().discover(question, no_progress, tmp_path)
    file = tmp_path / "contextual_decomposition.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(EdgepruneError, match="remove it to begin anew"):
        method.discover(question, no_progress, tmp_path)


def test_parts_beyond_all_bounds_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = DecomposedRun.logits

    def overflowing(run: DecomposedRun, stream: Tensor) -> tuple[Tensor, Tensor]:
        total, irrelevant = logits(run, stream)
        return total, irrelevant * torch.inf

    monkeypatch.setattr(DecomposedRun, "logits", overflowing)
    with pytest.raises(EdgepruneError, match="set larger to true"):
        ContextualDecomposition(larger=False).relevances(problem(tiny("llama")))


@pytest.mark.parametrize("seconds", [0.0, 1e9])
def test_half_a_step_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Stopped while the sums hold a part of a step: whether or not an earlier state was saved, none of it counts."""
    question, method = problem(tiny(), random_pairs(2), cuts=()), ContextualDecomposition()
    logits, calls = Collector.logits, 0

    def stopping_logits(collector: Collector, effects: Tensor) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise Stop
        logits(collector, effects)

    with monkeypatch.context() as patch:
        patch.setattr(Collector, "logits", stopping_logits)
        patch.setattr(decomposition_state, "SAVE_SECONDS", seconds)
        with pytest.raises(Stop):
            method.discover(question, no_progress, tmp_path)
    result, whole = method.discover(question, no_progress, tmp_path), method.discover(question, no_progress)
    assert result.scores is not None
    assert whole.scores is not None
    assert torch.equal(result.scores, whole.scores)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attention": "mine"}, "attention must be one of relevant, frozen, got 'mine'"),
        ({"measure": "l2"}, "measure must be one of dot, l1, got 'l2'"),
        ({"loop": -1}, "loop must be at least 0, got -1"),
        ({"prune": True}, "set loop, or leave prune out"),
        ({"memory_gb": 0.0}, "memory_gb must be above 0, got 0"),
    ],
)
def test_mistakes_are_named(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        ContextualDecomposition(**settings)
