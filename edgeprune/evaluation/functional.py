"""Functional faithfulness and completeness (DiscoGP): the circuit answers as the model does, what is left out guesses.

Accuracy of the circuit should be near the full model's, that of its complement near chance. For edges: the circuit's
edges open, or all others, under the evaluator's ablation. For weights, where a mask lies on them: the kept ones, or of
the gated ones those that it closes, with every edge open. The full model has all its weights.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.evaluation.controls import complement
from edgeprune.evaluation.evaluator import Evaluator, open_edges
from edgeprune.json_numbers import json_fields
from edgeprune.metrics import functional
from edgeprune.metrics.examples import ExampleValues
from edgeprune.models.masked import MaskedModel
from edgeprune.models.weight_mask import applied_mask
from edgeprune.statistics.uncertainty import Estimate, Resampling, bootstrap, bootstrap_of

AMONG, TOP = "accuracy_answers", "accuracy_top1"


@final
@dataclass(frozen=True)
class Part:
    """Circuit and complement, of edges or of weights.

    `to_dict` has the same keys, each figure as `Estimate.to_dict`.

    Attributes:
        share: Of the edges, or of the gated weights, that is kept.
        circuit: Accuracy.
        complement: Accuracy of what is left out.
        below_full: The full model's accuracy minus the circuit's, on the same examples: 0 is faithful.
        above_chance: The complement's accuracy minus chance: 0 is complete.
    """

    share: float
    circuit: Estimate
    complement: Estimate
    below_full: Estimate
    above_chance: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return json_fields(self)


@final
@dataclass(frozen=True)
class FunctionalTest:
    """Accuracies with intervals over examples.

    `to_dict` has the keys of the attributes; `weights` is None without a mask on them.

    Attributes:
        measure: What accuracy is: among the answers, or of all outputs where tasks have no wrong answers.
        ablation: What closed edges carry.
        chance: Accuracy of guesses, mean over examples.
        full: Accuracy of the full model, all its weights.
        edges: Of the circuit, on the weights that are kept.
        weights: Of the mask on weights.
    """

    measure: str
    ablation: str
    chance: float
    full: Estimate
    edges: Part
    weights: Part | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return json_fields(self)


def functional_test(evaluator: Evaluator, keep: Tensor, resampling: Resampling | None = None) -> FunctionalTest:
    """Accuracy of a circuit and of its complement, and of the mask on the model's weights if there is one.

    Args:
        evaluator: Model, pairs and ablation.
        keep: The circuit, bool `[reader, writer]`.
        resampling: How intervals are made.

    Raises:
        EdgepruneError: The circuit is of another graph.
    """
    keep, graph = open_edges(evaluator, keep), evaluator.graph
    first = evaluator([keep, complement(graph, keep)], "circuit and complement", [AMONG, TOP])
    measure = AMONG if bool(first.only([AMONG]).known.any()) else TOP
    rows = [*first.of(measure)]
    applied, model = applied_mask(evaluator.model), evaluator.model
    with nullcontext() if applied is None else applied.lifted():
        full = _of_model(evaluator, measure)
        if applied is not None:
            with applied.mask.complement()(model):
                rows.append(_of_model(evaluator, measure))
    if applied is not None:
        rows.insert(2, _of_model(evaluator, measure))
    chance = torch.cat([_chance(measure, model, batch) for batch in evaluator.batches])
    table = torch.stack([full, chance, *rows])[:, None]
    values = ExampleValues((measure,), table, torch.ones_like(table), first.index)
    parts = [_part(values, 2, keep.sum().item() / graph.num_edges, resampling)]
    if applied is not None:
        parts.append(_part(values, 4, applied.mask.density, resampling))
    figures = bootstrap(values, **_draws(resampling))
    about = (measure, evaluator.runs.ablation, figures.at(1, 0).value, figures.at(0, 0))
    return FunctionalTest(*about, parts[0], parts[1] if applied is not None else None)


def _part(values: ExampleValues, place: int, share: float, resampling: Resampling | None) -> Part:
    """The circuit at `place` of the values and its complement behind it; 0 is the full model, 1 chance."""
    draws = _draws(resampling)
    own = bootstrap(values, **draws)

    def difference(first: int, second: int) -> Estimate:
        rows = values.circuits([first, second])
        return bootstrap_of(rows, _first_minus_second, **draws).at()

    return Part(share, own.at(place, 0), own.at(place + 1, 0), difference(0, place), difference(place + 1, 1))


def _first_minus_second(figures: Tensor) -> Tensor:
    return figures[:, 0, 0] - figures[:, 1, 0]


def _draws(resampling: Resampling | None) -> dict[str, Any]:
    return vars(resampling or Resampling())


@torch.no_grad()
def _of_model(evaluator: Evaluator, measure: str) -> Tensor:
    """A measure of the model with its present weights and every edge open, float64 `[example]`."""
    of: Callable[[Tensor, PairBatch], Tensor] = getattr(functional, measure)
    found: list[Tensor] = []
    for batch in evaluator.counted("the model by its weights"):
        batch = batch.to(evaluator.model.device)
        logits = evaluator.model.full(batch.clean, batch.attention_mask, batch.positions).float()
        found.append(of(logits, batch).double().cpu())
    return torch.cat(found)


def _chance(measure: str, model: MaskedModel, batch: PairBatch) -> Tensor:
    """The accuracy of guesses, float64 `[batch]`."""
    none = torch.zeros((), dtype=torch.float64)
    if measure == AMONG:
        return functional.chance_answers(none, batch)
    known = (batch.position_mask & (batch.targets >= 0)).sum(-1).double()
    return torch.where(known > 0, model.num_outputs**-known, torch.nan)
