"""Normalised faithfulness: where a circuit stands between the model without any edge and the whole model.

    f = (m(C) - m(empty)) / (m(full) - m(empty))

for any measure m whose figure is known for the circuit C, for the model with every edge closed (empty) and with every
edge open (full): 0 is the empty circuit, 1 the full model. For a divergence from the full model m(full) = 0, and the
same formula reads f = 1 - m(C) / m(empty). Figures are means over examples, so f is a ratio of means; it is not
clipped: above 1 the circuit has more of the measure than the model, below 0 less than no edges at all.

Source: MIB (arXiv 2504.13151), faithfulness; CD-T (arXiv 2407.00886) has the same with mean ablation.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.json_numbers import json_number
from edgeprune.metrics.examples import ExampleValues

ROUNDING = 1e-6  # share of the larger end below which full and empty do not differ: float32 logits are no finer


def normalise(figures: Tensor, ends: Tensor) -> Tensor:
    """Normalised faithfulness from figures alone, for any number of samples of examples at once.

    Args:
        figures: Of circuits, `[..., circuit, measure]`.
        ends: Of the full model and of the empty circuit, `[..., 2, measure]`, as `Evaluator.ends` has them.

    Returns:
        `[..., circuit, measure]`; NaN where the ends do not differ or a figure is not defined.
    """
    full, empty = ends[..., :1, :], ends[..., 1:, :]
    room = full - empty
    room = room.where(room.abs() > ROUNDING * torch.maximum(full.abs(), empty.abs()), torch.nan)
    return (figures - empty) / room


@dataclass(frozen=True, eq=False)
class NormalisedFaithfulness:
    """Normalised faithfulness of circuits, with the figures it is made of.

    `to_dict`: `definition`; `num_examples`; `measures`: by name `full` and `empty` (the figures at the ends),
    `circuits` (the figure of each), `faithfulness` (f of each; None where the ends do not differ or a figure is not
    defined) and `defined` (for each circuit, for how many examples the measure is defined in the least defined of the
    three).

    Attributes:
        measures: Names of the measures.
        num_examples: Examples.
        figures: Of the circuits, float64 `[circuit, measure]`.
        ends: Of the full model and the empty circuit, float64 `[2, measure]`.
        defined: Long `[circuit, measure]`.
    """

    measures: tuple[str, ...]
    num_examples: int
    figures: Tensor
    ends: Tensor
    defined: Tensor

    @property
    def values(self) -> Tensor:
        """Normalised faithfulness, float64 `[circuit, measure]`; NaN where it is not defined."""
        return normalise(self.figures, self.ends)

    def value(self, measure: str, circuit: int = 0) -> float | None:
        """One of them."""
        if measure not in self.measures:
            raise EdgepruneError(f"measure {measure!r} was not taken; there are {', '.join(self.measures)}")
        return json_number(float(self.values[circuit, self.measures.index(measure)]))

    def to_dict(self) -> dict[str, Any]:
        """Plain values; see the class."""
        values = self.values
        return {
            "definition": "(m(circuit) - m(empty)) / (m(full) - m(empty)), ratio of means over examples, not clipped",
            "num_examples": self.num_examples,
            "measures": {
                name: {
                    "full": json_number(float(self.ends[0, place])),
                    "empty": json_number(float(self.ends[1, place])),
                    "circuits": [json_number(value) for value in self.figures[:, place].tolist()],
                    "faithfulness": [json_number(value) for value in values[:, place].tolist()],
                    "defined": self.defined[:, place].tolist(),
                }
                for place, name in enumerate(self.measures)
            },
        }


def normalised_faithfulness(circuits: ExampleValues, ends: ExampleValues) -> NormalisedFaithfulness:
    """Normalised faithfulness of each circuit by each measure.

    Args:
        circuits: Values of the circuits.
        ends: Values of the full model (circuit 0) and of the empty circuit (circuit 1): `Evaluator.ends`.

    Raises:
        EdgepruneError: The ends are of other measures or other examples.
    """
    if ends.num_circuits != 2:
        raise EdgepruneError(f"ends must hold the full model and the empty circuit, got {ends.num_circuits} circuits")
    if circuits.measures != ends.measures:
        raise EdgepruneError(
            f"circuits were measured by {', '.join(circuits.measures)}, the ends by {', '.join(ends.measures)}: "
            "take both with the same evaluator and measures"
        )
    if not torch.equal(circuits.index, ends.index):
        raise EdgepruneError("circuits and ends were measured on different examples: take both with the same evaluator")
    least = torch.minimum(circuits.defined(), ends.defined().amin(0))
    return NormalisedFaithfulness(circuits.measures, circuits.num_examples, circuits.figures(), ends.figures(), least)
