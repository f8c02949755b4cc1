"""MIB's AUROC: ten circuits that one ranking of the edges gives, held against a known circuit.

`edgeprune.comparison.roc` has the area of the ranking itself, with a point for every score instead of ten.

Source: MIB (arXiv 2504.13151), InterpBench, and its repository hannamw/MIB-circuit-track,
`MIB_circuit_track/evaluation.py` (rates) and `print_results.py` (area).
"""

import math
from dataclasses import dataclass
from typing import Any, Literal, final

import torch

from edgeprune.circuit import Circuit
from edgeprune.comparison.roc import Curve
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.mib_circuits import SHARES, Rule, chosen_edges, counted_edges, rule_for
from edgeprune.graph import EdgeGraph
from edgeprune.json_numbers import json_fields


@final
@dataclass(frozen=True, eq=False)
class MibRoc:
    """How the ten circuits of a ranking compare with a known one, and MIB's AUROC.

    `to_dict` has `auroc`; `rule`, `ranking`, `pruned` (whether dangling edges were dropped); `num_edges`, `num_true`,
    `edges` (which were counted, in words); and `points`: `requested`, `num_asked`, `num_kept`, `tpr`, `fpr` and
    `precision` of each circuit.

    Attributes:
        graph: Its edges are those that were counted.
        curve: True and false edges kept at each share.
        sizes: Edges asked for at each share.
        rule: How edges were chosen.
        ranking: By what.
        pruned: Whether dangling edges were dropped.
    """

    graph: EdgeGraph
    curve: Curve
    sizes: tuple[int, ...]
    rule: Rule
    ranking: Literal["signed", "absolute"]
    pruned: bool

    @property
    def auroc(self) -> float:
        """Area below straight lines between the ten points of true against false positive rate."""
        return self.curve.auc

    def to_dict(self) -> dict[str, Any]:
        """Plain values; see the class."""
        kept = self.curve.true_positives + self.curve.false_positives
        rates = (values.tolist() for values in (kept, self.curve.tpr, self.curve.fpr, self.curve.precision))
        names = ("requested", "num_asked", "num_kept", "tpr", "fpr", "precision")
        return json_fields(
            self,
            *("graph", "curve", "sizes"),
            auroc=self.auroc,
            num_edges=self.graph.num_edges,
            num_true=self.curve.num_true,
            edges=counted_edges(self.graph),
            points=[dict(zip(names, point, strict=True)) for point in zip(SHARES, self.sizes, *rates, strict=True)],
        )


def mib_roc(
    circuit: Circuit, truth: Circuit, *, rule: Rule = "greedy", absolute: bool = True, prune: bool = True
) -> MibRoc:
    """Hold a ranking against a known circuit as MIB does with the models of InterpBench.

    For each share p the circuit of p |E| edges, rounded up, gives a true and a false positive rate. The area starts at
    the first of the ten points, not at (0, 0); at the last one all edges are kept. The grid is coarse: unless the known
    circuit has just the size of one of the ten, a perfect ranking stays a little below 1.

    Deviation: where a file lacks an edge, MIB's code counts it as a hit if it is true, as a false alarm if not. Here an
    edge that a circuit does not have is a miss, or rightly left out.

    Args:
        circuit: A circuit with scores.
        truth: The known circuit, on the same graph.
        rule: MIB's is `"greedy"`, grown from the logits.
        absolute: Rank edges by absolute score, as MIB does.
        prune: Drop dangling edges, as MIB does. A random ranking then has no area of 0.5.

    Raises:
        EdgepruneError: A circuit of another graph, one without scores, no such rule, or a known circuit with all edges
            or with none.
    """
    graph = truth.graph
    circuit.check_fits(graph, "the known one")
    if truth.num_edges in (0, graph.num_edges):
        raise EdgepruneError(
            f"the known circuit has {truth.num_edges} of {graph.num_edges} edges: rates need some that are in it and "
            "some that are not"
        )
    chosen = rule_for(circuit, rule)
    sizes = tuple(min(math.ceil(share * graph.num_edges), graph.num_edges) for share in SHARES)
    keeps = list(chosen_edges(circuit, sizes, chosen, absolute, prune=prune))
    true, false = (
        torch.tensor([int((keep & edges).sum()) for keep in keeps])
        for edges in (truth.keep, graph.exists & ~truth.keep)
    )
    return MibRoc(graph, Curve(true, false), sizes, chosen, "absolute" if absolute else "signed", prune)
