"""Methods that score edges, on graphs with roles: what they find beside what they find without, and by slow sums."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.tasks.compiled import CompiledTask
from edgeprune.circuit import Circuit
from edgeprune.compiled import true_circuit
from edgeprune.console import no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.methods import (
    ACDC,
    EAP,
    EAPIG,
    HISP,
    ActivationMagnitude,
    ContextualDecomposition,
    ExactEdgePatching,
    InformationFlowRoutes,
    RandomScores,
)
from edgeprune.methods.acdc import is_read
from edgeprune.methods.acdc_order import receivers_at_roles, sender_order
from edgeprune.methods.backward_rules import BackwardRules
from edgeprune.methods.discovery import AbstractDiscovery
from edgeprune.methods.loss_model import LossModel
from edgeprune.methods.polish import Polisher, Polishing, polished
from edgeprune.methods.problem import Problem
from edgeprune.metrics.measure import gated_logits
from edgeprune.models.loading import load_model
from edgeprune.roles import observed_roles, role_of, roles_of_option
from tests.methods.small_problems import problem, tiny
from tests.methods.test_acdc import small
from tests.reading.small import SPANS, pairs

RULES = BackwardRules(norm="detach", activation="secant", product="half")


def with_roles(
    family: str = "gpt2", metric: Any = "logit_difference", names: Any = None, examples: Any = None, **spans: Any
) -> Problem:
    found = problem(tiny(family), examples or pairs(**spans), cuts=(3,), metric=metric)
    found.model.use_roles(observed_roles(found.batches, names))
    return found


def without(given: Problem) -> Problem:
    """The same problem, its model now without roles."""
    given.model.use_roles(None)
    return given


def scores_of(method: AbstractDiscovery, given: Problem, folder: Path | None = None) -> Tensor:
    scores = method.discover(given, no_progress, folder).scores
    assert scores is not None
    assert tuple(scores.shape) == given.model.graph.shape
    return scores


# -------------------------------------------------------------------- roles add up to what there is without
ADDING = [
    *(EAP(), EAP(rules=RULES), ActivationMagnitude(), ActivationMagnitude(of="own"), InformationFlowRoutes()),
    *(InformationFlowRoutes(threshold=0.1), ContextualDecomposition(), ContextualDecomposition(measure="l1")),
    *(EAPIG(variant, 2) for variant in ("inputs", "activations", "clean_corrupted", "local", "gates")),
]


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("method", ADDING, ids=str)
def test_scores_of_all_roles_add_up_to_the_score_without(method: AbstractDiscovery, family: str) -> None:
    given = with_roles(family)
    by_role = scores_of(method, given)
    whole = scores_of(method, without(given))
    torch.testing.assert_close(by_role.sum(0), whole, rtol=1e-9, atol=1e-10)
    assert (by_role.abs().amax((1, 2)) > 1e-6).all()  # every role has some


@pytest.mark.parametrize("method", [*ADDING, EAP(samples=2), ACDC((0.05,)), ACDC((0.05,), direct_edges=True)], ids=str)
def test_one_role_for_all_tokens_is_the_plain_result(method: AbstractDiscovery) -> None:
    metric = "kl" if isinstance(method, ACDC | EAP) and method != EAP() else "logit_difference"
    examples = [replace(item, roles={"all": (0, len(item.clean))}) for item in pairs()]
    given = with_roles(metric=metric, examples=examples)
    names = given.model.graph.roles.names  # pyright: ignore
    assert names == ("all", "rest")
    found = method.discover(given, no_progress)
    plain = method.discover(without(given), no_progress)
    assert found.scores is not None
    assert plain.scores is not None
    torch.testing.assert_close(found.scores[0], plain.scores, rtol=1e-6, atol=1e-9)
    assert found.scores[1].abs().max() == 0
    for name, circuit in plain.circuits.items():
        assert torch.equal(found.circuits[name].keep[0], circuit.keep)
        assert not found.circuits[name].keep[1].any()


def test_positions_are_roles_of_single_tokens() -> None:
    """Roles of one token each, in another order: the same edges by another name."""
    spans = {f"t{place}": (place, place + 1) for place in (3, 0, 5, 1, 2)}
    given = problem(tiny("gpt2"), [item for item in pairs(6, spans) if len(item.clean) == 6], cuts=(1,))
    positions = roles_of_option("positions", given.batches)
    assert positions is not None
    for method in (EAP(), ExactEdgePatching(("embed->a0.h1.v@p3",))):
        given.model.use_roles(positions)
        found = scores_of(method, given)
        given.model.use_roles(observed_roles(given.batches))
        renamed = ExactEdgePatching(("embed->a0.h1.v@t3",)) if isinstance(method, ExactEdgePatching) else method
        other = scores_of(renamed, given)
        torch.testing.assert_close(found[[3, 0, 5, 1, 2, 4]], other, rtol=1e-9, atol=1e-12)
        assert found.abs().max() > 1e-6


def test_some_roles_leave_the_others_in_rest() -> None:
    every = scores_of(EAP(), with_roles())
    some = scores_of(EAP(), with_roles(names=["S2"]))
    torch.testing.assert_close(some[0] + some[1], every.sum(0), rtol=1e-9, atol=1e-12)
    assert len(some) == 2


# -------------------------------------------------------------------- single edges at roles
def edges_of_each_kind(given: Problem) -> tuple[str, ...]:
    ends = ("embed->a0.h1.q", "a0.h0->m0", "m0->a1.h1.v", "m0->a1.h0.k", "a1.h1->logits", "embed->logits")
    return tuple(f"{edge}@{role}" for edge in ends for role in ("IO", "S2", "rest"))


@pytest.mark.parametrize("metric", ["kl", "logit_difference"])
def test_an_exact_effect_is_that_of_a_masked_run(metric: Any) -> None:
    given = with_roles(metric=metric)
    graph, edges = given.model.graph, edges_of_each_kind(given)
    found = scores_of(ExactEdgePatching(edges), given)
    baseline = given.mean_loss(graph.all_open(torch.float64))
    for edge in edges:
        total = 0.0
        for batch, full, ablated in given.batches_with_runs():
            gates = graph.without_roles.all_open(torch.float64).repeat(*batch.clean.shape, 1, 1)  # of each token
            role, reader, writer = graph.index(edge)
            gates[role_of(batch, graph.roles.names) == role, reader, writer] = 0  # pyright: ignore
            logits = given.model(batch.clean, gates, ablated, batch.attention_mask, batch.positions)
            total += given.losses(full, logits.float(), batch).sum().item()
        alone = total / given.num_examples - baseline
        assert found[graph.index(edge)].item() == pytest.approx(alone, rel=1e-5, abs=1e-7)
    named = graph.keep_matrix(edges)
    assert found[~named].abs().max() == 0
    assert (found[named].abs() > 1e-6).float().mean() > 0.5


def test_an_interrupted_sweep_goes_on_and_knows_its_roles(tmp_path: Path) -> None:
    given = with_roles()
    method = ExactEdgePatching(edges_of_each_kind(given))

    def stop(what: str, done: int, total: int) -> None:
        if done == 23:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.discover(given, stop, tmp_path)
    other = with_roles(roles={**SPANS, "IO": (0, 1)})  # the same names at other tokens
    with pytest.raises(EdgepruneError, match="another model"):
        scores_of(method, other, tmp_path)
    torch.testing.assert_close(scores_of(method, given, tmp_path), scores_of(method, given), rtol=1e-9, atol=1e-12)


def test_a_state_of_acdc_knows_its_roles(tmp_path: Path) -> None:
    given = with_roles(metric="kl")
    method = ACDC((0.05,), evaluation="reuse")

    def stop(what: str, done: int, total: int) -> None:
        if done == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method.discover(given, stop, tmp_path)
    with pytest.raises(EdgepruneError, match="another"):
        method.discover(without(with_roles(metric="kl")), no_progress, tmp_path)
    found, again = method.discover(given, no_progress, tmp_path), method.discover(given, no_progress)
    assert found.circuits["tau-0.05"].edges() == again.circuits["tau-0.05"].edges()


def test_the_problem_is_another_with_roles() -> None:
    given = with_roles()
    with_them = given.identity()
    assert with_them["roles"] == ["IO", "S1", "S2", "rest"]
    plain = without(given).identity()
    assert plain == {name: with_them[name] for name in plain}
    assert "roles" not in plain


def test_the_model_of_the_loss_around_a_circuit_adds_up() -> None:
    """What polishing goes by: slopes and probed slopes of edges at roles."""
    given = with_roles(metric="kl")
    graph = given.model.graph
    plain = graph.without_roles.exists & (torch.rand(graph.shape[1:], generator=torch.Generator().manual_seed(0)) < 0.5)
    found = LossModel.around(given, plain.expand(graph.shape) & graph.exists, probes=2)
    whole = LossModel.around(without(given), plain, probes=2)
    for name in ("slopes", "rows"):
        by_role, expected = getattr(found, name), getattr(whole, name)
        added = by_role.view(*by_role.shape[:-1], len(graph.exists), -1).sum(-2)
        torch.testing.assert_close(added, expected, rtol=1e-6, atol=1e-9)
    assert len(found.rows) == 2 * given.num_examples


@pytest.mark.parametrize("probes", [0, 1])
def test_polishing_swaps_edges_at_roles_and_lowers_the_loss(probes: int, tmp_path: Path) -> None:
    given = with_roles(metric="kl")
    start = Circuit.random(given.model.graph, 300, 0)
    polisher = Polisher(given, start.keep, Polishing(max_passes=12, probes=probes), None, tmp_path)
    state = polisher.run()
    made = polished(start, polisher)
    assert made.num_edges == 300
    assert made.roles == start.roles
    assert state.loss < state.start
    assert given.mean_loss(made.gates()) == pytest.approx(state.loss, rel=1e-6)
    with pytest.raises(EdgepruneError, match="another"):
        Polisher(with_roles(metric="kl", roles={**SPANS, "IO": (0, 1)}), start.keep, polisher.settings, None, tmp_path)


# -------------------------------------------------------------------- ACDC by its slow definition
def slow_acdc(given: Problem, tau: float) -> tuple[Tensor, Tensor]:
    """One masked run for each edge at a role, whatever is downstream of it."""
    graph = given.model.graph
    keep, effects = graph.exists.clone(), torch.zeros(graph.shape, dtype=torch.float64)

    def loss() -> float:
        total = 0.0
        for batch, full, ablated in given.batches_with_runs():
            logits = gated_logits(given.model, batch, keep.double(), ablated)
            total += given.losses(full, logits, batch).double().sum().item()
        return total / given.num_examples

    def heard(role: int, reader: int) -> bool:
        """Whether what the reader's node writes is read at any token that hears of this one."""
        if graph.readers[reader] == "logits":
            return bool(graph.roles.is_scored[role])  # pyright: ignore
        elsewhere = graph.readers[reader][-1] in "kv" and graph.readers[reader][0] == "a"
        sees = graph.roles.sees_matrix  # pyright: ignore
        roles = [r for r in range(len(sees)) if (sees[r, role] if elsewhere else r == role)]
        return any(keep[r, :, writer].any() for r in roles for writer in graph.behind(reader))

    for role, reader in receivers_at_roles(graph):
        if not heard(role, reader):
            keep[role, reader] = False
            continue
        current = loss()
        for writer in sender_order(graph, reader, "normal", "normal", 0):
            keep[role, reader, writer] = False
            effect = loss() - current
            effects[role, reader, writer] = effect
            if effect < tau:
                current += effect
            else:
                keep[role, reader, writer] = True
    return keep, effects


@pytest.mark.parametrize(
    ("family", "tau", "evaluations"),
    [
        ("gpt2", 0.02, ("plain", "reuse", "speculative")),
        ("llama", 0.02, ("speculative",)),
        ("gemma2", 0.005, ("reuse",)),
    ],
)
def test_acdc_equals_its_slow_definition(family: str, tau: float, evaluations: Any) -> None:
    given = problem(small(family, 0), pairs(3), cuts=(2,), metric="kl")
    given.model.use_roles(observed_roles(given.batches, ["IO", "S2"]))
    keep, effects = slow_acdc(given, tau)
    assert 0 < keep.sum() < given.model.graph.num_edges
    assert not torch.equal(keep[1], keep[2])
    for evaluation in evaluations:
        found = ACDC((tau,), evaluation=evaluation).discover(given, no_progress)
        assert torch.equal(found.circuits[f"tau-{tau!r}"].keep, keep), evaluation
        assert found.scores is not None
        torch.testing.assert_close(found.scores.double(), effects, atol=1e-5, rtol=1e-5)
        about = found.about[f"tau-{tau!r}"]
        assert about["largest_free_change"] < 1e-6
        assert about["free"] > 0


# -------------------------------------------------------------------- programs whose positions are known
def of_positions(program: str, ablation: str, lengths: tuple[int, ...]) -> Problem:
    found = CompiledTask(program, lengths=lengths).splits(None)["train"][:12]
    model = load_model(f"compiled:{program}", dtype="float64")
    given = problem(model, found, cuts=(), metric="squared_error", ablation=ablation)
    given.model.use_roles(roles_of_option("positions", given.batches))
    return given


def named_at(positions: Sequence[int], *edges: str) -> set[str]:
    return {f"{edge}@p{position}" for edge in edges for position in positions}


def acdc_edges(given: Problem) -> set[str]:
    circuit = ACDC((1e-6,)).discover(given, no_progress).circuits["tau-1e-06"]
    assert given.mean_loss(circuit.gates()) == pytest.approx(0, abs=1e-9)
    return set(circuit.edges())


def test_acdc_finds_at_which_positions_a_program_reads() -> None:
    """The value that heads count by is at the first token alone; that token is asked for nothing itself."""
    tokens = range(1, 4)
    everywhere = {*true_circuit("reverse", "zero")} - {"tok_embed->a0.h0.v"}
    expected = named_at(tokens, *everywhere) | {"tok_embed->a0.h0.v@p0"}
    assert acdc_edges(of_positions("reverse", "zero", (3,))) == expected

    tokens = range(1, 6)
    read = ("tok_embed->a0.h0.q", "tok_embed->m0", "a0.h0->m0", "m0->logits")
    expected = named_at(tokens, *read) | named_at((0, *tokens), "tok_embed->a0.h0.k") | {"tok_embed->a0.h0.v@p0"}
    assert acdc_edges(of_positions("hist", "zero", (5,))) == expected


def test_no_smaller_circuit_of_positions_does_what_the_program_does() -> None:
    given = of_positions("reverse", "interchange", (3,))
    graph, union = given.model.graph, sorted(true_circuit("reverse", "interchange"))
    edges = sorted(named_at(range(4), *union))
    circuits = [set(some) for size in range(len(edges) + 1) for some in combinations(edges, size)]
    losses = given.mean_losses([graph.keep_matrix(some).double() for some in circuits])
    good = [some for some, loss in zip(circuits, losses, strict=True) if loss < 1e-6]
    minimal = [some for some in good if not any(other < some for other in good)]
    assert minimal == [acdc_edges(given)] == [named_at((1, 2, 3), *union)]


def test_what_is_read_of_a_receiver_depends_on_its_role() -> None:
    graph = with_roles().model.graph
    sees = graph.roles.sees_matrix  # pyright: ignore
    assert not sees[0, 2]  # IO comes before S2
    keep = graph.keep_matrix(["a0.h1->m0@IO"])
    row = {name: graph.readers.index(f"a0.h1.{name}") for name in "qkv"}
    assert [is_read(graph, keep, (role, row["q"])) for role in range(4)] == [True, False, False, False]
    assert [is_read(graph, keep, (role, row["k"])) for role in range(4)] == sees[0].tolist()
    logits = len(graph.readers) - 1
    assert [is_read(graph, keep, (role, logits)) for role in range(4)] == [*graph.roles.is_scored.tolist()]  # pyright: ignore


# -------------------------------------------------------------------- what is refused, and chance
def test_methods_of_whole_nodes_know_no_roles() -> None:
    with pytest.raises(EdgepruneError, match="HISP masks nodes at all tokens"):
        scores_of(HISP(), with_roles())
    with pytest.raises(EdgepruneError, match="circuits of nodes without roles"):
        scores_of(ContextualDecomposition(loop=2), with_roles())


def test_random_scores_are_those_of_random_circuits() -> None:
    given = with_roles()
    scores = scores_of(RandomScores(3), given)
    assert (scores[given.model.graph.exists] > 0).all()
    assert scores[~given.model.graph.exists].abs().max() == 0
