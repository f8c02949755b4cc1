"""Which edges of a circuit matter more than edges that nobody chose: minimality as a test (arXiv 2410.13032).

The effect of an edge of the circuit is held against those of random edges, each on a random path that was added to the
circuit and then removed (`edgeprune.evaluation.random_paths.inflated_circuits`). Two questions are asked of each edge:

- Does it matter more than random edges? Its rank among them gives a p-value, corrected for the number of edges; the
  edges for which it stays high are listed. A low one is good.
- Is it superfluous? The paper's test: the null hypothesis is that it matters more than a random edge with a probability
  of at least q*; p is the binomial tail of how often it does. A low one is bad, and one such edge (Bonferroni) shows
  that the circuit is not minimal.

Deviation: an effect is what the caller measures, in any measure, the larger the more the edge matters; the paper's is
the mean squared difference of the scores with and without the edge, which is large when an edge does harm, too.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final

import torch
from scipy import stats
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.json_numbers import json_value
from edgeprune.statistics.hypothesis_tests import (
    LEVEL,
    QUANTILE,
    HypothesisTest,
    check_share,
)

Correction = Literal["benjamini_hochberg", "bonferroni"]


@final
@dataclass(frozen=True, eq=False)
class EdgeSignificance:
    """Every edge of a circuit against random edges.

    `to_dict` has the keys of `test`, and `correction`, `num_edges`, `num_references`, `num_significant`,
    `least_p_value` (of an edge that beats all references, before correction), `not_significant` (a list of `edge`,
    `effect`, `p_value`, `adjusted`, smallest effect first) and `superfluous` (names of edges that are so at the test's
    level, Bonferroni).

    Attributes:
        test: The paper's, on the circuit as a whole: n counts edges, a rejection says that it is not minimal.
        edges: Names, or places as text.
        effects: Float64 `[edge]`; NaN where not defined: such an edge is in neither list.
        p_values: Share of random edges that matter as much, +1 in both counts, float64 `[edge]`.
        adjusted: The same corrected for the number of edges, float64 `[edge]`.
        superfluous_p_values: The paper's of each edge, not corrected, float64 `[edge]`.
        correction: Of `adjusted`.
        num_references: Random edges.
    """

    test: HypothesisTest
    edges: tuple[str, ...]
    effects: Tensor
    p_values: Tensor
    adjusted: Tensor
    superfluous_p_values: Tensor
    correction: Correction
    num_references: int

    @property
    def significant(self) -> Tensor:
        """Bool `[edge]`: it matters more than random edges, at the level of the test, after correction."""
        return self.adjusted <= self.test.level

    @property
    def superfluous(self) -> Tensor:
        """Bool `[edge]`: the paper's test rejects that it matters, at the level of the test, after Bonferroni."""
        return self.superfluous_p_values * self.test.n <= self.test.level

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        open_question = (~self.significant & ~self.adjusted.isnan()).nonzero().flatten()
        order: list[int] = open_question[self.effects[open_question].argsort(stable=True)].tolist()
        return {
            **self.test.to_dict(),
            "correction": self.correction,
            "num_edges": len(self.edges),
            "num_references": self.num_references,
            "num_significant": int(self.significant.sum()),
            "least_p_value": 1 / (1 + self.num_references),
            "not_significant": [self._edge(place) for place in order],
            "superfluous": [self.edges[place] for place in self.superfluous.nonzero().flatten().tolist()],
        }

    def _edge(self, place: int) -> dict[str, Any]:
        figures = {"effect": self.effects, "p_value": self.p_values, "adjusted": self.adjusted}
        return json_value({"edge": self.edges[place], **{name: part[place] for name, part in figures.items()}})


def minimality_test(
    effects: Tensor,
    references: Tensor,
    edges: Sequence[str] | None = None,
    correction: Correction = "benjamini_hochberg",
    quantile: float = QUANTILE,
    level: float = LEVEL,
) -> EdgeSignificance:
    """Hold the effects of a circuit's edges against those of random edges.

    With few references nothing can be significant: after Bonferroni, E edges need more than E / level of them.

    Args:
        effects: Of knocking out each edge of the circuit, `[edge]`, the larger the more it matters; NaN: not known.
        references: Of knocking out random edges of inflated circuits, `[reference]`; NaN ones are left out.
        edges: Names of the edges; None: their places.
        correction: `"benjamini_hochberg"` bounds the expected share of wrong ones among the significant edges,
            `"bonferroni"` the probability of a single one.
        quantile: q* of the paper.
        level: At which null hypotheses are rejected.
    """
    check_share("quantile", quantile)
    if correction not in _CORRECTIONS:
        raise EdgepruneError(f"correction must be one of {', '.join(_CORRECTIONS)}, got {correction!r}")
    names = tuple(map(str, range(len(effects)) if edges is None else edges))
    if len(names) != len(effects):
        raise EdgepruneError(f"{len(effects)} effects need as many names of edges, got {len(names)}")
    effects, references = effects.double(), references[~references.isnan()].double()
    known = ~effects.isnan() if len(references) else torch.zeros_like(effects, dtype=torch.bool)
    beaten, rivals = _counts(effects[known], references)
    p_values, adjusted, superfluous = (torch.full_like(effects, math.nan) for _ in range(3))
    p_values[known] = (1 + rivals.double()) / (1 + len(references))
    adjusted[known] = _CORRECTIONS[correction](p_values[known])
    superfluous[known] = torch.as_tensor(stats.binom.cdf(beaten.numpy(), len(references), quantile))
    test = _whole_circuit(
        superfluous[known], beaten.double() / max(len(references), 1), quantile, level, len(references)
    )
    return EdgeSignificance(test, names, effects, p_values, adjusted, superfluous, correction, len(references))


def _counts(effects: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """How many references each effect exceeds, and how many are at least as large, long `[edge]` each."""
    ordered = references.sort().values
    beaten = torch.searchsorted(ordered, effects)  # those strictly below
    return beaten, len(references) - beaten


def _whole_circuit(p_values: Tensor, shares: Tensor, quantile: float, level: float, references: int) -> HypothesisTest:
    """Not minimal if any edge is superfluous, from the p-values of the edges that are known."""
    n = len(p_values)
    return HypothesisTest(
        "minimality",
        f"every edge of the circuit matters more than a random edge with a probability of at least {quantile:g}",
        float(shares.min()) if n else math.nan,
        "smallest share, over edges, of random edges that matter less",
        min(1.0, n * float(p_values.min())) if n else math.nan,
        n,
        "the circuit is not minimal, it has an edge that matters no more than random ones",
        "no edge is shown to be superfluous",
        level,
        {"quantile": quantile, "correction": "bonferroni"},
        {"num_references": references, "least_p_value": min(1.0, n * (1 - quantile) ** references)},
    )


def benjamini_hochberg(p_values: Tensor) -> Tensor:
    """P-values adjusted for their number, float64 `[test]`: at a level, the false discovery rate is bounded by it."""
    return torch.as_tensor(stats.false_discovery_control(p_values.numpy()))


def bonferroni(p_values: Tensor) -> Tensor:
    """P-values times their number, at most 1: at a level, the probability of any false rejection is bounded by it."""
    return (p_values * len(p_values)).clamp(max=1)


_CORRECTIONS: dict[Correction, Callable[[Tensor], Tensor]] = {
    "benjamini_hochberg": benjamini_hochberg,
    "bonferroni": bonferroni,
}
