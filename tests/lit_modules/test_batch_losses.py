"""Objectives of training steps and the complement's term, against the same written out; what a circuit leaves out."""

import math
from dataclasses import dataclass, replace
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor

from datamodules import PairDataModule
from datamodules.tasks.base import AbstractTask, TokenPair
from datamodules.tasks.compiled import CompiledTask
from edgeprune.ablations import zero
from edgeprune.batch import PairBatch
from edgeprune.compiled.builder import DECISION, Description, Head, Layer, build, copy
from edgeprune.compiled.program import BOS, PAD
from edgeprune.errors import EdgepruneError
from edgeprune.methods import UGS, AbstractRecipe, EdgePruning, Matryoshka, SubnetworkProbing
from edgeprune.metrics import functional
from edgeprune.metrics.losses import TrainingObjective, cmd
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from edgeprune.objectives.sparsity import GeometricPenalty
from lit_modules import batch_losses
from lit_modules.batch_losses import BatchLosses
from lit_modules.pruning import PruningModule
from tests.lit_modules.trainers import quiet_trainer

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*"),
]


@dataclass(frozen=True)
class Contrasted(AbstractTask):
    """Inputs of `reverse` with a wrong answer each, at one to five positions."""

    wrong: bool = True

    @property
    def needs_tokenizer(self) -> bool:
        return False

    def splits(self, tokenizer: Any) -> dict[str, list[TokenPair]]:
        found = CompiledTask("reverse", num_train=16, num_validation=4, num_test=4).splits(None)
        return {split: [self._with_wrong(pair) for pair in pairs] for split, pairs in found.items()}

    def _with_wrong(self, pair: TokenPair) -> TokenPair:
        return replace(pair, distractors=tuple((one + 1) % 3 for one in pair.targets)) if self.wrong else pair

    def fingerprint(self) -> None:
        return None


def recipe() -> EdgePruning:
    return EdgePruning(GeometricPenalty(start=0.1, end=0.1), init_mean=0.5, masks_per_batch=2, learning_rate=0.1)


def trained(module: PruningModule, *, steps: int = 1, batch_size: int = 8, parts: int = 1, **task: Any) -> pl.Trainer:
    data = PairDataModule(Contrasted(**task), batch_size=batch_size, cache=False)
    trainer = quiet_trainer(steps, accumulate_grad_batches=parts)
    trainer.fit(module, data)
    return trainer


def first_batch() -> PairBatch:
    data = PairDataModule(Contrasted(), batch_size=8, cache=False)
    data.setup("fit")
    return next(iter(data.train_dataloader()))


OBJECTIVES: list[TrainingObjective] = ["logit_difference", "probability_difference", "nll", "cmd", "kl"]


@pytest.mark.parametrize("weight", [0.0, 0.7])
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_step_is_the_one_written_out(objective: TrainingObjective, weight: float) -> None:
    made = recipe()
    trainer = trained(PruningModule("compiled:reverse", made, objective=objective, complement_weight=weight, seed=3))

    model, batch = load_model("compiled:reverse"), first_batch()
    ablated = model.record(batch.corrupted, batch.attention_mask)
    own = recipe()
    own.build(model.graph)
    gates = torch.stack([own.sample(3, 0, number) for number in (0, 1)])

    def logits(gates: Tensor) -> Tensor:
        return model(batch.clean, gates, ablated, batch.attention_mask, batch.positions)

    full, circuit, empty = (
        model.full(batch.clean, batch.attention_mask, batch.positions),
        logits(gates),
        logits(0 * gates),
    )
    value = {
        "logit_difference": lambda: functional.logit_difference(full, circuit, batch),
        "probability_difference": lambda: functional.probability_difference_sets(circuit, batch),
        "nll": lambda: functional.nll(circuit, batch),
        "cmd": lambda: cmd(full, circuit, empty, batch),
        "kl": lambda: functional.kl(full, circuit, batch),
    }[objective]().mean()
    complement = functional.uniform_cross_entropy(logits(1 - gates), batch).mean()
    sign = -1 if objective.endswith("difference") else 1
    (sign * value + weight * complement + own.penalty(gates, 0.0)).backward()
    own.make_optimizer().step()

    torch.testing.assert_close(made.edges.log_alpha, own.edges.log_alpha, rtol=1e-4, atol=1e-5)
    logged = trainer.callback_metrics
    assert logged[objective].item() == pytest.approx(value.item(), rel=1e-4, abs=1e-5)
    assert ("train/complement" in logged) == (weight > 0)
    if weight:
        assert logged["train/complement"].item() == pytest.approx(complement.item(), rel=1e-4)


def test_a_complement_s_step_in_several_batches_is_the_step_in_one() -> None:
    def learned(batch_size: int, parts: int) -> Tensor:
        made = recipe()
        module = PruningModule("compiled:reverse", made, objective="cmd", complement_weight=0.5, seed=3)
        trained(module, steps=3, batch_size=batch_size, parts=parts)
        return made.edges.log_alpha.detach()

    torch.testing.assert_close(learned(2, 4), learned(8, 1), rtol=1e-4, atol=1e-4)


RECIPES: dict[str, AbstractRecipe] = {
    "flips": EdgePruning(GeometricPenalty(start=0.1, end=0.1), estimator="local", num_flips=94),
    "several samples": UGS(samples_per_step=2),
    "nodes": SubnetworkProbing(granularity="nodes"),
    "ranking": Matryoshka(),
}


@pytest.mark.parametrize("own", RECIPES.values(), ids=RECIPES)
def test_every_recipe_can_have_a_complement_s_term(own: AbstractRecipe) -> None:
    module = PruningModule("compiled:reverse", own, complement_weight=1.0)
    logged = trained(module, steps=2).callback_metrics
    assert logged["train/complement"].item() >= math.log(2) - 1e-6
    assert all(parameter.std() > 0 for parameter in own.parameters())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"objective": "logit_difference"}, "objective 'logit_difference' is not defined for some pairs"),
        ({"objective": "cmd"}, "objective 'cmd' is not defined for some pairs"),
        ({"complement_weight": 1.0}, "the complement's loss is not defined .* leave complement_weight out"),
    ],
)
def test_pairs_without_a_wrong_answer_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(EdgepruneError, match=named):
        trained(PruningModule("compiled:reverse", recipe(), **options), wrong=False)


def test_all_pairs_are_looked_at_once_for_each_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[str] = []
    monkeypatch.setattr(batch_losses, "require_defined", lambda values, what, remedy: looked.append(what))
    data = PairDataModule(Contrasted(), cache=False)
    first, second = (PruningModule("compiled:reverse", recipe(), objective=name) for name in ("nll", "cmd"))
    for module in (first, second):
        module.configure_model()
    for module in (first, first):
        batch_losses.check_pairs(module, data)
    assert looked == ["objective 'nll'"] * 2  # 16 pairs, eight at once
    batch_losses.check_pairs(second, data)
    assert looked[2:] == ["objective 'cmd'"] * 2


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_impossible_weights_are_refused(weight: float) -> None:
    with pytest.raises(EdgepruneError, match="complement_weight must be a number >= 0, got"):
        PruningModule("compiled:reverse", recipe(), complement_weight=weight)


# ------------------------------------------------------------------ what a circuit leaves out
def twins() -> tuple[MaskedModel, PairBatch]:
    """Two heads that each copy a bit to the output, so that one is enough; and both inputs, eight times."""
    bits, outputs = ["bit 0", "bit 1"], ["output 0", "output 1"]
    description = Description(
        columns=[*bits, *outputs],
        tokens={"0": {"bit 0": 1.0}, "1": {"bit 1": 1.0}, BOS: {}, PAD: {}},
        positions=[{}] * 2,
        layers=[Layer([Head(copy(bits, outputs, DECISION))] * 2)],
        outputs={name: {f"output {name}": 1.0} for name in "01"},
    )
    model = MaskedModel(build("twins", description), split_embedding=True)
    bit = torch.tensor([[0], [1]]).repeat(8, 1)
    ids = torch.cat([torch.full_like(bit, 2), bit], 1)
    ones = torch.ones_like(bit)
    return model, PairBatch(
        clean=ids,
        corrupted=ids.flip(0),
        attention_mask=torch.ones_like(ids),
        positions=ones,
        position_mask=ones.bool(),
        targets=bit,
        distractors=1 - bit,
        index=torch.arange(len(ids)),
    )


@pytest.mark.parametrize(("weight", "heads", "left_out"), [(0.0, 1, 1.0), (1.0, 2, 0.0)])
def test_a_circuit_holds_all_that_does_the_task_if_its_complement_must_not(
    weight: float, heads: int, left_out: float
) -> None:
    """Of two heads, one of which is enough, the other goes; with the complement's term it may not."""
    model, batch = twins()
    runs = model.full(batch.clean, positions=batch.positions), zero(model)
    losses = BatchLosses(model, "kl", batch, runs, (0, len(batch)))
    own = EdgePruning(GeometricPenalty(start=3.0, end=3.0), learning_rate=0.1, masks_per_batch=8)
    own.build(model.graph)
    optimizer = own.make_optimizer()
    for step in range(150):
        optimizer.zero_grad()
        error, gates = own.expected_error(losses.error, 0, step)
        complement, _ = own.expected_error(losses.complement, 0, step)
        (error + weight * complement + own.penalty(gates, 0.0)).backward()
        optimizer.step()
    circuit = own.circuit()
    assert circuit.num_edges == 2 * heads
    for keep, accuracy in ((circuit.keep.float(), 1.0), (1 - circuit.keep.float(), left_out)):
        logits = model(batch.clean, keep, runs[1], positions=batch.positions)
        assert functional.accuracy(runs[0], logits, batch).mean().item() == accuracy
