"""EAP-IG: completeness, agreement with definitions written slowly, and invariances."""

import itertools
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from edgeprune.console import no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.methods import EAP, EAPIG, ExactEdgePatching
from edgeprune.methods.eap_ig import Variant
from edgeprune.methods.problem import Problem
from edgeprune.metrics.functional import logit_difference
from edgeprune.models.states import FixedOutputs, WriterStates
from tests.methods.small_problems import compiled_problem, cuts, linear_model, problem, random_pairs, tiny
from tests.models.reference import slow_logits
from tests.models.test_conformance import WIRED, build

VARIANTS = get_args(Variant)
ALONG_RUNS = [name for name in VARIANTS if name not in ("gates", "local")]


def scores_of(method: EAPIG, question: Problem) -> Tensor:
    scores = method.discover(question, no_progress).scores
    assert scores is not None
    return scores


def published_runs(variant: str, steps: int, own: WriterStates, other: WriterStates) -> Iterator[FixedOutputs]:
    """The runs of the paper and its code, from the two ends (a shared end is expanded)."""
    if variant == "clean_corrupted":
        yield from (FixedOutputs(embeddings=own.embeddings), FixedOutputs(embeddings=other.embeddings))
    elif variant == "inputs":
        for k in range(steps):
            yield FixedOutputs(embeddings=other.embeddings + k / steps * (own.embeddings - other.embeddings))
    else:
        for k in range(1, steps + 1):
            assert own.mlps is not None
            assert other.mlps is not None
            share = k / steps
            yield FixedOutputs(embeddings=share * own.embeddings + (1 - share) * other.embeddings)
            for layer in range(len(own.heads)):
                yield FixedOutputs(heads={layer: share * own.heads[layer] + (1 - share) * other.heads[layer]})
                yield FixedOutputs(mlps={layer: share * own.mlps[layer] + (1 - share) * other.mlps[layer]})


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
@pytest.mark.parametrize("variant", ALONG_RUNS)
def test_is_the_average_gradient_at_readers_times_the_clean_run_s_differences(variant: Any, name: str) -> None:
    question, steps = problem(tiny(name), cuts=()), 3
    ((batch, full, other),) = question.batches_with_runs()
    own = question.model.record(batch.clean, batch.attention_mask)
    gates = question.model.graph.all_open(torch.float64).requires_grad_()
    found: list[Tensor] = []
    for fixed in published_runs(variant, steps, own, other):
        logits = slow_logits(
            question.model, batch.clean, gates, other.minus(own), batch.attention_mask, fixed, relative=True
        )
        scored = logits[torch.arange(len(batch))[:, None], batch.positions]
        loss = -logit_difference(full, scored, batch).mean()
        found.append(-torch.autograd.grad(loss, gates)[0])
    expected = torch.stack(found).mean(0)
    torch.testing.assert_close(scores_of(EAPIG(variant, steps), question), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_local_scores_are_steps_of_outputs_times_gradients_halfway(name: str) -> None:
    question, steps = problem(tiny(name), cuts=()), 3
    ((batch, full, other),) = question.batches_with_runs()
    own = question.model.record(batch.clean, batch.attention_mask)
    gates = question.model.graph.all_open(torch.float64).requires_grad_()

    def between(share: float) -> Tensor:
        return other.embeddings + share * (own.embeddings - other.embeddings)

    ends = [question.model.record(batch.clean, batch.attention_mask, between(k / steps)) for k in range(steps + 1)]
    real = batch.attention_mask.bool()
    for field in ("embeddings", "heads", "mlps"):
        first, last = (getattr(end, field)[:, real] for end in (ends[0], ends[-1]))
        torch.testing.assert_close(first, getattr(other, field)[:, real].double(), rtol=1e-5, atol=1e-6)
        assert torch.equal(last, getattr(own, field)[:, real])
    expected = torch.zeros(gates.shape, dtype=torch.float64)
    for k in range(steps):
        fixed = FixedOutputs(embeddings=between((k + 0.5) / steps))
        moved = ends[k].minus(ends[k + 1])
        logits = slow_logits(question.model, batch.clean, gates, moved, batch.attention_mask, fixed, relative=True)
        scored = logits[torch.arange(len(batch))[:, None], batch.positions]
        expected -= torch.autograd.grad(-logit_difference(full, scored, batch).mean(), gates)[0]
    torch.testing.assert_close(scores_of(EAPIG("local", steps), question), expected, rtol=1e-5, atol=1e-6)


def effect_of_embeddings(question: Problem) -> float:
    """Loss from ablated embeddings minus loss of the full model, of a single batch."""
    ((batch, full, other),) = question.batches_with_runs()
    model, gates = question.model, question.model.graph.all_open(torch.float64)
    own = model.record(batch.clean, batch.attention_mask)
    losses: list[float] = []
    for embeddings in (other.embeddings.expand_as(own.embeddings), own.embeddings):
        fixed = FixedOutputs(embeddings=embeddings)
        logits = model(batch.clean, gates, own, batch.attention_mask, batch.positions, fixed=fixed)
        losses.append(question.losses(full.double(), logits, batch).mean().item())
    return losses[0] - losses[1]


def extrapolated(values: list[Tensor]) -> Tensor:
    """Limit of a rule whose error is a series in 1 / steps squared, from 1, 2, 4, ... steps (Romberg)."""
    for power in range(1, len(values)):
        values = [(4**power * finer - coarser) / (4**power - 1) for coarser, finer in itertools.pairwise(values)]
    return values[0]


# On these pairs a token of Olmoe changes experts on the way, where the loss jumps, and a unit of Nemotron has its kink.
SMOOTH = [case for case in WIRED if not str(case.id).startswith(("Olmoe", "Nemotron"))]


@pytest.mark.parametrize(("family", "index"), SMOOTH)
def test_local_scores_across_every_cut_sum_to_the_effect_of_the_embeddings(family: Any, index: int) -> None:
    """In the limit of many steps; tokens are close to each other here, so that 1, 2, 4 and 8 steps tell it."""
    model = build(family, index)
    tokens = model.hf.get_input_embeddings().weight.data
    tokens.lerp_(tokens[:1].clone(), 0.95)
    question = problem(model, random_pairs(1), cuts=())
    whole = effect_of_embeddings(question)
    sums = [
        torch.tensor(cuts(model.graph, scores_of(EAPIG("local", steps), question)), dtype=torch.float64)
        for steps in (1, 2, 4, 8)
    ]
    errors = [(found - whole).abs().max().item() for found in (*sums, extrapolated(sums))]
    assert errors[-1] < 1e-9
    assert errors[-1] < 1e-5 * errors[0]
    assert errors[3] < errors[2] / 3.5 < errors[1] / 12  # by the square of the steps


def test_local_increments_are_nearer_to_complete_than_whole_differences() -> None:
    question = problem(tiny(), random_pairs(2), cuts=())
    whole = effect_of_embeddings(question)
    errors = {
        variant: max(abs(found - whole) for found in cuts(question.model.graph, scores_of(method, question)))
        for variant, method in {"inputs": EAPIG("inputs", 16), "local": EAPIG("local", 16)}.items()
    }
    assert errors["local"] < errors["inputs"] / 10


@pytest.mark.parametrize("metric", ["kl", "logit_difference", "squared_error"])
def test_gate_scores_sum_to_the_loss_of_closing_everything(metric: Any) -> None:
    question = problem(tiny(), random_pairs(2), metric=metric)
    graph = question.model.graph
    whole = question.mean_loss(graph.all_closed(torch.float64)) - question.mean_loss(graph.all_open(torch.float64))
    errors = [abs(scores_of(EAPIG("gates", steps), question).sum().item() - whole) for steps in (2, 8, 32)]
    assert errors[2] < 2e-3 * max(1, abs(whole))
    assert errors[2] < errors[1] / 8  # the midpoint rule's error falls with the square of the steps


@pytest.mark.parametrize("variant", [*ALONG_RUNS, "local"])
def test_equals_eap_and_exact_patching_in_a_linear_model(variant: Any) -> None:
    question = problem(linear_model(), random_pairs(2), cuts=())
    scores = scores_of(EAPIG(variant, 3), question)
    others = [method.discover(question, no_progress).scores for method in (EAP(), ExactEdgePatching())]
    for other in others:
        assert other is not None
        # Holding a group's output cuts the paths through it, so upstream "activations" misses a share, as published.
        rows = slice(-1, None) if variant == "activations" else slice(None)
        torch.testing.assert_close(scores[rows], other[rows], rtol=1e-4, atol=1e-5)
        if variant == "activations":
            assert (scores - other).abs().max() > 1e-3


def test_differs_from_eap_where_the_model_is_not_linear() -> None:
    question = problem(tiny(), random_pairs(2))
    first = EAP().discover(question, no_progress).scores
    assert first is not None
    found = [scores_of(EAPIG(variant, 3), question) for variant in VARIANTS]
    for number, scores in enumerate(found):
        assert all((scores - other).abs().max() > 1e-3 for other in [first, *found[:number]])


@pytest.mark.parametrize("variant", VARIANTS)
def test_scores_do_not_depend_on_batches(variant: Any) -> None:
    model = tiny()
    whole, cut = (scores_of(EAPIG(variant, 2), problem(model, cuts=cuts)) for cuts in ((), (2, 4)))
    torch.testing.assert_close(cut, whole, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("ablation", ["interchange", "zero"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_two_embedding_writers_and_both_ablations(variant: Any, ablation: Any) -> None:
    question = problem(tiny(split_embedding=True), metric="kl", ablation=ablation)
    scores = scores_of(EAPIG(variant, 2), question)
    assert scores.isfinite().all()
    assert (scores[:, 0] != 0).all()  # the token embedding differs at every reader
    if ablation == "interchange":
        assert (scores[:, 1] == 0).all()  # the position embedding is the same in both runs


def test_gates_share_the_credit_of_an_or_gate() -> None:
    """Closing one head's edge does nothing, so only a path on which both close sees them."""
    question = compiled_problem("or_gate", "zero", 12)
    graph = question.model.graph
    either = [graph.index(edge) for edge in ("a0.h0->m0", "a0.h1->m0")]
    exact = ExactEdgePatching().discover(question, no_progress).scores
    assert exact is not None
    shared = scores_of(EAPIG("gates", 50), question)
    assert [exact[edge].item() for edge in either] == [0, 0]
    assert shared[either[0]] == pytest.approx(shared[either[1]].item(), abs=1e-6)
    assert shared[either[0]] > 0.01


def test_reports_every_run() -> None:
    seen: list[tuple[int, int]] = []
    question = problem(tiny())
    found = EAPIG("activations", 2).discover(question, lambda what, done, total: seen.append((done, total)))
    runs = 3 * 2 * (1 + 2 * question.model.graph.arch.num_layers)  # batches, steps, groups
    assert seen == [(done, runs) for done in range(1, runs + 1)]
    assert found.about["backward_passes"] == runs


def test_settings_are_checked_and_described() -> None:
    with pytest.raises(EdgepruneError, match="'nope'"):
        EAPIG("nope")  # pyright: ignore[reportArgumentType]
    with pytest.raises(EdgepruneError, match="got 0"):
        EAPIG(steps=0)
    assert EAPIG("gates", 7).describe() == {"method": "eap_ig", "variant": "gates", "steps": 7}
