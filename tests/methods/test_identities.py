"""Identities that scores and circuits must satisfy, on models small enough to know every answer."""

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.compiled.builder import Description, Head, Layer, Move, Unit, build
from edgeprune.console import no_progress
from edgeprune.methods import ACDC, EAP, EAPIG, EdgePruning, ExactEdgePatching
from edgeprune.methods.attribution import closing_effects
from edgeprune.methods.problem import Problem
from edgeprune.metrics.functional import logit_difference
from edgeprune.metrics.measure import gated_logits
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import FixedOutputs, WriterStates
from edgeprune.objectives import GeometricPenalty
from tests.methods.small_problems import problem, random_pairs, tiny

HEADS = ("a0.h0->m0", "a0.h1->m0")


def scores_of(method: Any, question: Any) -> Tensor:
    scores = method.discover(question, no_progress).scores
    assert scores is not None
    return scores


# ---------------------------------------------------------------- gates with two inputs, every answer by hand
class Output:
    """A problem whose loss is minus the model's only output, with zero ablation; or its squared error."""

    metric, split, num_examples = "logit_difference", "train", 1  # the answer against nothing

    def __init__(self, unit: Unit, adds: float, *, squared: bool = False) -> None:
        heads = [Head([Move({"one": 1.0}, {"sum": 1.0})])] * 2
        description = Description(
            columns=["one", "sum", "answer"],
            tokens={"on": {"one": 1.0}},
            positions=[{}],
            layers=[Layer(heads, [unit], adds={"answer": adds})],
            outputs={"answer": {"answer": 1.0}},
        )
        self.model = MaskedModel(build("gate", description).double(), split_embedding=True)
        ones, unknown = torch.ones(1, 1, dtype=torch.long), torch.full((1, 1), -100)
        batch = PairBatch(
            clean=0 * ones,
            corrupted=0 * ones,
            attention_mask=ones,
            positions=0 * ones,
            position_mask=ones.bool(),
            targets=unknown,
            distractors=unknown,
            index=torch.zeros(1, dtype=torch.long),
        )
        self.batches, self.runs, self.squared = [batch], ReferenceRuns(self.model, "zero"), squared

    def batches_with_runs(self) -> Iterator[tuple[PairBatch, Tensor, WriterStates]]:
        for batch in self.batches:
            yield batch, *self.runs(batch, self.split)

    identity, _roles = Problem.identity, Problem._roles
    _data_hash = Problem._data_hash

    def losses(self, full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
        return (circuit - full).square()[:, 0, 0] if self.squared else -circuit[:, 0, 0]

    def loss(self, gates: Tensor) -> Tensor:
        ((batch, full, ablated),) = self.batches_with_runs()
        return self.losses(full, gated_logits(self.model, batch, gates, ablated), batch)[0]

    def closed(self, *edges: str) -> float:
        """Loss with some edges closed."""
        gates = self.model.graph.all_open(torch.float64)
        for edge in edges:
            gates[self.model.graph.index(edge)] = 0
        return self.loss(gates).item()

    def at(self, scores: Tensor, edges: Sequence[str]) -> list[float]:
        return [scores[self.model.graph.index(edge)].item() for edge in edges]

    def real(self) -> Problem:
        """As a problem of the library, by squared error."""
        return Problem(self.model, self.batches, self.runs, "squared_error")


def or_gate(**more: Any) -> Output:
    """1 - relu(1 - S), S being the number of heads that write 1."""
    return Output(Unit({"sum": -1.0}, {"answer": -1.0}, bias=1.0), 1.0, **more)


def and_gate(**more: Any) -> Output:
    """relu(S - 1)."""
    return Output(Unit({"sum": 1.0}, {"answer": 1.0}, bias=-1.0), 0.0, **more)


def test_or_gate_by_hand() -> None:
    gate = or_gate()
    assert gate.closed() == -1
    assert gate.closed(HEADS[0]) == gate.closed(HEADS[1]) == -1
    assert gate.closed(*HEADS) == 0
    assert gate.at(scores_of(ExactEdgePatching(), gate), HEADS) == [0, 0]
    assert gate.at(scores_of(EAP(), gate), HEADS) == [0, 0]


def test_both_heads_of_an_or_gate_share_one_half_each_on_the_way_to_none() -> None:
    """Only the two edges go from closed to open: relu(1 - 2 s) has its slope for s below one half."""
    gate, steps = or_gate(), 200
    ((batch, full, ablated),) = gate.batches_with_runs()
    total = torch.zeros(gate.model.graph.shape, dtype=torch.float64)
    for step in range(steps):
        gates = gate.model.graph.all_open(torch.float64)
        for edge in HEADS:
            gates[gate.model.graph.index(edge)] = (step + 0.5) / steps
        total += closing_effects(gate, batch, full, ablated, gates) / steps  # pyright: ignore[reportArgumentType]
    assert gate.at(total, HEADS) == pytest.approx([0.5, 0.5], abs=1e-9)


def test_all_gates_of_an_or_gate_on_the_way_together() -> None:
    """Shares s: the heads bring 2 s^2, capped at 1 where s = 1/sqrt(2), and the output s times that."""
    gate, turn = or_gate(), 0.5**0.5
    scores = scores_of(EAPIG("gates", 400), gate)
    head, mlp = turn**3 / 3, 2 * turn**3 / 3 + 1 - turn
    assert gate.at(scores, (*HEADS, "tok_embed->a0.h0.v")) == pytest.approx([head] * 3, abs=1e-3)
    assert gate.at(scores, ["m0->logits"]) == pytest.approx([mlp], abs=1e-3)
    assert scores.sum().item() == pytest.approx(1, abs=1e-3)
    assert 4 * head + mlp == pytest.approx(1)


@pytest.mark.parametrize(("indices", "kept"), [("normal", HEADS[0]), ("reverse", HEADS[1])])
def test_acdc_keeps_the_head_of_an_or_gate_that_it_tests_last(indices: Any, kept: str) -> None:
    (circuit,) = ACDC((0.5,), indices=indices).discover(or_gate().real(), no_progress).circuits.values()
    assert [edge for edge in circuit.edges() if edge in HEADS] == [kept]


def test_an_and_gate_needs_both_heads() -> None:
    gate = and_gate()
    assert [gate.closed(), gate.closed(HEADS[0]), gate.closed(HEADS[1]), gate.closed(*HEADS)] == [-1, 0, 0, 0]
    for method in (ExactEdgePatching(), EAP()):
        assert gate.at(scores_of(method, gate), HEADS) == [1, 1]
    (circuit,) = ACDC((0.5,)).discover(gate.real(), no_progress).circuits.values()
    assert set(HEADS) <= set(circuit.edges())


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("make", [or_gate, and_gate])
def test_a_learned_mask_keeps_what_the_gate_needs(make: Any, seed: int) -> None:
    gate, steps = make(squared=True), 250
    recipe = EdgePruning(GeometricPenalty(0.1, 1.0), learning_rate=0.3, init_mean=2.0)
    recipe.build(gate.model.graph)
    optimizer = torch.optim.AdamW(recipe.parameter_groups())
    for step in range(steps):
        error, gates = recipe.expected_error(gate.loss, seed, step)
        optimizer.zero_grad()
        (error + recipe.penalty(gates, step / steps)).backward()
        optimizer.step()
    circuit = recipe.circuit()
    assert gate.loss(circuit.gates(torch.float64)) == pytest.approx(0, abs=1e-12)
    needed = sum(edge in circuit.edges() for edge in HEADS)
    assert needed >= 1 if make is or_gate else needed == 2
    assert circuit.num_edges < circuit.graph.num_edges / 2


# ---------------------------------------------------------------- first order where it is exact, and sums
@pytest.mark.parametrize(
    ("name", "norm"),
    [("gpt2", "transformer.ln_f"), ("llama", "model.norm"), ("gpt_neox", "gpt_neox.final_layer_norm")],
)
def test_edges_into_the_logits_are_exact_in_a_deep_model_with_a_frozen_final_norm(name: str, norm: str) -> None:
    model = tiny(name)
    parent, _, child = norm.rpartition(".")
    width = model.hf.get_input_embeddings().embedding_dim
    frozen = nn.Linear(width, width).double().requires_grad_(False)  # a norm whose scale does not move is linear
    setattr(model.hf.get_submodule(parent), child, frozen)
    question = problem(MaskedModel(model.hf), random_pairs(3))
    eap, exact = scores_of(EAP(), question), scores_of(ExactEdgePatching(), question)
    torch.testing.assert_close(eap[-1], exact[-1], rtol=1e-4, atol=1e-6)
    assert (exact[-1].abs() > 1e-4).all()
    assert (eap[:-1] - exact[:-1]).abs().max() > 1e-3  # elsewhere the model is not linear


@pytest.mark.parametrize("kv_readers", ["group", "head"])
@pytest.mark.parametrize("writer", ["embed", "m0", "m1"])
@pytest.mark.parametrize("name", ["gpt2", "llama", "gpt_neox"])
def test_scores_of_a_writer_sum_to_its_node_attribution(name: str, writer: str, kv_readers: Any) -> None:
    """Heads are in `test_eap.py`."""
    question, step = problem(tiny(name, kv_readers=kv_readers)), 1e-5
    model, slope = question.model, 0.0
    for batch, full, ablated in question.batches_with_runs():
        own = model.record(batch.clean, batch.attention_mask)
        difference = ablated.minus(own)

        def fixed(share: float, own: WriterStates = own, difference: WriterStates = difference) -> FixedOutputs:
            if writer == "embed":
                return FixedOutputs(embeddings=own.embeddings + share * difference.embeddings)
            layer = int(writer[1:])
            assert own.mlps is not None
            assert difference.mlps is not None
            return FixedOutputs(mlps={layer: own.mlps[layer] + share * difference.mlps[layer]})

        gates = model.graph.all_open(torch.float64)
        for sign in (-1, 1):
            with torch.no_grad():
                logits = model(
                    batch.clean, gates, ablated, batch.attention_mask, batch.positions, fixed=fixed(sign * step)
                )
            slope -= sign * logit_difference(full, logits, batch).sum().item() / (2 * step)
    total = scores_of(EAP(), question)[:, model.graph.writers.index(writer)].sum().item()
    assert total == pytest.approx(slope / question.num_examples, rel=1e-4)
    assert abs(total) > 1e-4


# ---------------------------------------------------------------- one model, several graphs
FIRST_ORDER = {
    "EAP": EAP(),
    **{f"EAPIG, {variant}": EAPIG(variant, 2) for variant in ("inputs", "activations", "clean_corrupted")},
}


@pytest.mark.parametrize("ablation", ["interchange", "zero"])
@pytest.mark.parametrize("method", FIRST_ORDER.values(), ids=FIRST_ORDER)
def test_heads_of_a_group_share_the_score_of_its_reader(method: Any, ablation: Any) -> None:
    """Closing a shared k or v reader's edge is closing that of every head that uses it."""
    group, head = (
        problem(tiny("llama", 1, kv_readers=readers), random_pairs(3), ablation=ablation)
        for readers in ("group", "head")
    )
    arch = group.model.graph.arch
    assert arch.num_kv_heads < arch.num_heads
    found, parts = scores_of(method, group), scores_of(method, head)
    expected = torch.zeros_like(found)
    for row, name in enumerate(head.model.graph.readers):
        place, _, kind = name.rpartition(".")
        if kind in ("k", "v"):
            layer, number = place.split(".h")
            name = f"{layer}.h{int(number) * arch.num_kv_heads // arch.num_heads}.{kind}"
        expected[group.model.graph.readers.index(name)] += parts[row]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("ablation", ["interchange", "zero"])
@pytest.mark.parametrize("method", FIRST_ORDER.values(), ids=FIRST_ORDER)
def test_two_embeddings_share_the_score_of_one(method: Any, ablation: Any) -> None:
    one, two = (
        scores_of(method, problem(tiny("gpt2", split_embedding=split), random_pairs(3), ablation=ablation))
        for split in (False, True)
    )
    torch.testing.assert_close(one, torch.cat([two[:, :2].sum(1, keepdim=True), two[:, 2:]], 1), rtol=1e-5, atol=1e-6)
    assert (two[:, 1].abs().max() > 1e-4) == (ablation == "zero")  # positions are the same in both prompts


@pytest.mark.parametrize(("method", "runs"), [(EAP(), 1), (EAPIG("inputs", 4), 4), (EAPIG("gates", 3), 3)])
def test_one_run_per_step_and_batch(method: Any, runs: int) -> None:
    question, made = problem(tiny()), []
    handle = question.model.register_forward_hook(lambda *_: made.append(1))
    scores_of(method, question)
    handle.remove()
    assert len(made) == runs * len(question.batches)
