"""All measures of a circuit by name: what each computes, which way is good, in what unit, and where it comes from.

The figure of a measure is the sum of its `values` / the sum of its `weights` over the examples for which it is defined.
Weights are 1 for a mean over examples; those of `logit_difference_percent` are the full model's differences: it is
a ratio of means, `logit_difference_percent_per_example` a mean of ratios.

>>> MEASURES["kl"].heading, MEASURES["kl"].unit, MEASURES["kl"].higher_is_better
('KL', 'nats', False)
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.metrics import functional, greater_than

Function = Callable[[Tensor, Tensor, PairBatch], Tensor]
STANDARD = ("kl", "squared_error", "logit_difference", "accuracy", "exact_match")  # what is logged and tabulated


def of_circuit(function: Callable[[Tensor, PairBatch], Tensor]) -> Function:
    """A function of (logits, batch) as one of (full, circuit, batch), logits `[batch, positions, vocab]` alike."""

    def values(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
        del full
        return function(circuit, batch)

    return values


def _one_each(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    """Weight of every example in a mean, `[batch]`."""
    del circuit
    return torch.ones(len(batch), dtype=full.dtype, device=full.device)


def _percent_of_full(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    return 100 * functional.logit_difference(full, circuit, batch)


def _difference_of_full(full: Tensor, circuit: Tensor, batch: PairBatch) -> Tensor:
    del circuit
    return functional.logit_difference(full, full, batch)


@dataclass(frozen=True)
class Measure:
    """One measure.

    Attributes:
        name: Under which it is asked for and written to files.
        heading: Of its column in a table.
        values: From logits of the full model and of the circuit, `[batch, positions, vocab]`, and the batch to one
            number per example, `[batch]`; NaN where it is not defined.
        better: Which values are good. `"100"`: those near 100; beyond it the circuit differs from the model again.
        unit: Of the figure; empty for a pure number.
        range: From worst to best, or from lowest to highest where neither end is best.
        definition: One line, in the page of measures.
        source: Where it is used, likewise.
        weights: What examples count, from the same arguments, `[batch]`.
        task: The only task for which it is meant; None: any that has what it needs.
    """

    name: str
    heading: str
    values: Function
    better: Literal["low", "high", "100"]
    unit: str
    range: str
    definition: str
    source: str
    weights: Function = _one_each
    task: str | None = None

    @property
    def higher_is_better(self) -> bool | None:
        """True or False; None where neither direction is better."""
        return {"low": False, "high": True, "100": None}[self.better]


_YEARS = "greater_than"
_EDGE_PRUNING = "Edge Pruning (arXiv 2406.16778)"

_ALL = (
    Measure("kl", "KL", functional.kl, "low", "nats", "∞ to 0",
            "KL(full || circuit): sum over the vocabulary of p_full (log p_full - log p_circuit)",
            f"ACDC (arXiv 2304.14997), {_EDGE_PRUNING}"),
    Measure("kl_reverse", "reverse KL", functional.kl_reverse, "low", "nats", "∞ to 0",
            "KL(circuit || full): punishes what the circuit predicts and the model does not", "the plain definition"),
    Measure("js", "JS", functional.js, "low", "nats", "ln 2 to 0",
            "Jensen-Shannon divergence: mean of the KL of both to their mean", "EAP-IG's code"),
    Measure("kl_answers", "KL answers", functional.kl_answers, "low", "nats", "∞ to 0",
            "KL(full || circuit) among right and wrong answers, renormalised",
            f"{_EDGE_PRUNING}, greater-than"),
    Measure("squared_error", "sq. error", functional.squared_error, "low", "outputs squared", "∞ to 0",
            "squared difference of the raw outputs, summed over outputs", "ACDC, compiled programs"),
    Measure("nll", "loss", of_circuit(functional.nll), "low", "nats", "∞ to 0",
            "negative log-probability of the right answer", "ACDC"),
    Measure("nll_answers", "loss answers", of_circuit(functional.nll_answers), "low", "nats", "∞ to 0",
            "negative log-probability of the right answer among right and wrong ones, renormalised",
            "DiscoGP, faithfulness"),
    Measure("logit_difference", "logit diff.", functional.logit_difference, "high", "logits", "-∞ to ∞",
            "logit of the right answer - logit of the distractor", f"IOI (arXiv 2211.00593), {_EDGE_PRUNING}"),
    Measure("logit_difference_percent", "logit diff. %", _percent_of_full, "100", "%", "-∞ to ∞",
            "100 x mean logit difference of the circuit / mean of the full model's (ratio of means)",
            "IOI, auto-circuit's default", _difference_of_full),
    Measure("logit_difference_percent_per_example", "logit diff. % (per ex.)",
            functional.logit_difference_percent_per_example, "100", "%", "-∞ to ∞",
            "mean of 100 x logit difference of the circuit / the full model's on the same example (mean of ratios)",
            "auto-circuit, `diff_of_means=False`"),
    Measure("logit_difference_sets", "logit diff. (sets)", of_circuit(functional.logit_difference_sets), "high",
            "logits", "-∞ to ∞", "mean logit of all right answers - mean logit of all wrong ones",
            "auto-circuit; EAP-IG, subject-verb agreement"),
    Measure("logit_difference_max", "logit diff. (max)", of_circuit(functional.logit_difference_max), "high", "logits",
            "-∞ to ∞", "logit of the right answer - largest logit of the wrong ones", "ACDC, docstring"),
    Measure("probability_difference", "prob. diff.", of_circuit(functional.probability_difference_sets), "high", "",
            "-1 to 1", "probability of all right answers - that of all wrong ones, over the full softmax",
            "EAP-IG (arXiv 2403.17806)"),
    Measure("accuracy", "accuracy", functional.accuracy, "high", "", "0 to 1",
            "right answer above the distractor, or the most likely token where there is no distractor; every position",
            "ACDC's fraction correct"),
    Measure("accuracy_top1", "top-1 accuracy", of_circuit(functional.accuracy_top1), "high", "", "0 to 1",
            "right answer the most likely token of all, at every position", f"{_EDGE_PRUNING}"),
    Measure("accuracy_answers", "accuracy (answers)", of_circuit(functional.accuracy_answers), "high", "", "0 to 1",
            "a right answer above all wrong ones, at every position that has both", "DiscoGP"),
    Measure("exact_match", "exact match", functional.exact_match, "high", "", "0 to 1",
            "most likely token that of the full model, at every position", f"{_EDGE_PRUNING}"),
    Measure("answer_rank", "rank", of_circuit(functional.answer_rank), "low", "places", "vocabulary to 1",
            "place of the right answer among all tokens, 1 for the most likely; ties share the mean of their places",
            "the plain definition"),
    Measure("kendall_tau", "Kendall tau", functional.kendall_tau, "high", "", "-1 to 1",
            "tau-b of full and circuit logits over the right and wrong answers", f"{_EDGE_PRUNING}"),
    Measure("cosine_similarity", "cosine", functional.cosine_similarity, "high", "", "-1 to 1",
            "cosine of full and circuit logits as they are, not centred", "the plain definition"),
    Measure("cosine_similarity_centred", "cosine (centred)", functional.cosine_similarity_centred, "high", "",
            "-1 to 1", "cosine of the logits minus their mean over the vocabulary, Pearson's correlation",
            "the plain definition, of logits as softmax sees them"),
    Measure("greater_than", "PD", of_circuit(greater_than.probability_difference), "high", "", "-1 to 1",
            "P(end > YY) - P(end <= YY), over the full softmax", "arXiv 2305.00586, ACDC, EAP-IG", task=_YEARS),
    Measure("greater_than_two_digit", "PD 2-digit", of_circuit(greater_than.probability_difference_two_digit), "high",
            "", "-1 to 1", "(P(end > YY) - P(end < YY)) / P(00 <= end <= 99)", f"{_EDGE_PRUNING}", task=_YEARS),
    Measure("greater_than_10", "PD 10", of_circuit(greater_than.probability_difference_10), "high", "", "-1 to 1",
            "(P(YY < end <= YY + 10) - P(YY - 10 <= end < YY)) / P(00 <= end <= 99)", f"{_EDGE_PRUNING}", task=_YEARS),
    Measure("greater_than_kendall_tau", "Kendall tau (years)", greater_than.kendall_tau, "high", "", "-1 to 1",
            "tau-b of full and circuit over the 100 numbers", f"{_EDGE_PRUNING}", task=_YEARS),
)  # fmt: skip
MEASURES: dict[str, Measure] = {measure.name: measure for measure in _ALL}


def measure_named(name: str) -> Measure:
    """The measure of this name.

    Raises:
        EdgepruneError: There is none.
    """
    if name not in MEASURES:
        raise EdgepruneError(f"measure must be one of {', '.join(MEASURES)}, got {name!r}")
    return MEASURES[name]


def measures_for(task: str | None = None) -> tuple[str, ...]:
    """Names of the measures that are meant for any task, and of those for this one."""
    return tuple(measure.name for measure in _ALL if measure.task in (None, task))
