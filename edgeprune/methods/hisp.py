"""Head importance score for pruning (Michel, Levy and Neubig 2019, arXiv 1905.10650), as a method that ranks edges.

Conmy et al. 2023 (arXiv 2304.14997) score the q, k and v of each head and each MLP, and mask them one after another.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, final, get_args

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.console import Progress
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.methods.attribution import require_slope
from edgeprune.methods.discovery import AbstractDiscovery, DiscoveryResult
from edgeprune.methods.node_gates import NodeMap
from edgeprune.methods.problem import Problem
from edgeprune.models.block import Edits, Site
from edgeprune.models.masked import MaskedModel

Formula = Literal["published_code", "paper"]
Change = Callable[[int, Tensor], Tensor]  # first node, values [batch, seq, nodes, width] -> values

TIE = 1e-5  # scores nearer than this, relative to their size, differ by rounding: q and k of a head from zero
MLP = 3  # place of the MLP in `LayerRows`
SMALLEST_NORM = 1e-6  # of a layer's scores, as in the published code: an idle layer is not divided by 0


@final
@dataclass(frozen=True)
class HISP(AbstractDiscovery):
    """Rank nodes by the loss's slope in their gates, edges by the first masked node that they touch.

    A node's gate g stands behind its projection: q becomes `g * q + (1 - g) * q0`. Its score is the sum over examples
    of `|dL/dg|` at g = 1, which is `|(q - q0) . dL/dq|` summed over positions.

    Edge scores are whole numbers: when an edge goes, if nodes are masked in order of their scores (the lowest
    first, ties, up to rounding, by the lower index in `graph.readers`). The best n edges are the circuit after
    masking k nodes wherever n is one of the `edges_left` of the record; in between, edges that go with the same
    node are tied, and the lower index stays. Losses without a slope at the full model, KL and squared error, are
    refused.

    Attributes:
        formula: `"published_code"`: q0 = 0 whatever the ablation, sums over examples. `"paper"`: q0 is the node's value
            on the corrupted prompt under interchange, 0 under zero ablation, means over examples; other ablations are
            refused, for they say nothing of q, k and v.
        normalize: Divide by the L2 norm of the scores of the node's layer, q, k, v and MLP together (published: yes).
    """

    name = "hisp"

    formula: Formula = "published_code"
    normalize: bool = True

    def __post_init__(self) -> None:
        if self.formula not in get_args(Formula):
            raise EdgepruneError(f"formula must be one of {', '.join(get_args(Formula))}, got {self.formula!r}")

    def discover(self, problem: Problem, report: Progress, folder: Path | None = None) -> DiscoveryResult:
        """One run forward and backward per batch, and one more forward for `"paper"`; nothing to resume."""
        require_slope(problem, "HISP")
        if problem.model.graph.roles is not None:
            raise EdgepruneError("HISP masks nodes at all tokens, so it knows no roles; use EAP, or leave roles out")
        if self.formula == "paper" and problem.runs.spec.kind not in ("interchange", "zero"):
            raise EdgepruneError(
                f"HISP's formula 'paper' compares with the corrupted prompt or with zero, not "
                f"{problem.runs.ablation!r}: use ablation 'interchange' or 'zero', or formula 'published_code'"
            )
        nodes = NodeMap(problem.model.graph)
        total = torch.zeros(nodes.num_nodes, dtype=torch.float64)
        for number, (batch, full, _) in enumerate(problem.batches_with_runs()):
            report("scoring nodes", number, len(problem.batches))
            total += node_slopes(problem, batch, full, self._baseline(problem, batch)).abs().sum(0).double().cpu()
        report("scoring nodes", len(problem.batches), len(problem.batches))
        values = total / problem.num_examples if self.formula == "paper" else total
        return _ranked(nodes, normalized(problem.model, values) if self.normalize else values)

    def _baseline(self, problem: Problem, batch: PairBatch) -> dict[int, Tensor]:
        if self.formula == "published_code" or problem.runs.spec.kind == "zero":
            return {}
        return node_values(problem.model, batch)


def _ranked(nodes: NodeMap, values: Tensor) -> DiscoveryResult:
    """Edges by the node that takes them away, when nodes are masked from the lowest value on."""
    if not values.isfinite().all():
        raise EdgepruneError("a node's score is not finite: the loss has no slope there; use another metric or dtype")
    order = _order(values)
    turn = torch.empty(nodes.num_nodes)
    turn[order] = torch.arange(1.0, nodes.num_nodes + 1)
    scores = nodes.edge_values(turn, nodes.num_nodes + 1.0)
    gone = nodes.graph.to_vector(scores).long().bincount(minlength=nodes.num_nodes + 2)
    left = nodes.graph.num_edges - gone[1:-1].cumsum(0)
    about = {
        "node_order": [nodes.names[index] for index in order.tolist()],
        "node_scores": dict(zip(nodes.names, values.tolist(), strict=True)),
        "edges_left": left.tolist(),
    }
    return DiscoveryResult(scores=scores, about=about)


def _order(values: Tensor) -> Tensor:
    """Nodes from the lowest value on, long `[num_nodes]`; those whose values are one but for rounding go by index."""
    found, nodes = values.sort(stable=True)
    groups = torch.zeros_like(nodes)
    groups[nodes[1:]] = (found.diff() > TIE * found[1:].abs()).cumsum(0)
    return groups.argsort(stable=True)


def normalized(model: MaskedModel, values: Tensor) -> Tensor:
    """Node scores `[num_nodes]` over the L2 norm of their layer's."""
    layers = values.view(model.graph.arch.num_layers, -1)
    return (layers / layers.norm(dim=1, keepdim=True).clamp(min=SMALLEST_NORM)).flatten()


# ------------------------------------------------------------------ nodes of the running model
def node_slopes(problem: Problem, batch: PairBatch, full: Tensor, baseline: dict[int, Tensor]) -> Tensor:
    """Slope of each example's loss in each node's gate at 1, `[batch, num_nodes]`.

    Gates stand on what the heads attend with and on what MLPs give, not in the edge matrix: a reader's gate in front of
    a norm scales the norm's input, which the norm undoes, so that with q0 = 0 its slope would be 0. Where queries and
    keys have norms of their own, gates stand behind those.

    Args:
        problem: Model and metric.
        batch: Pairs, on the model's device.
        full: Logits of the full model at the scored positions.
        baseline: Values that a closed node has, by first node of each part; missing ones are 0.
    """
    model = problem.model
    num_nodes = len(model.graph.readers) - 1
    gates = torch.ones(len(batch), num_nodes, dtype=model.dtype, device=model.device, requires_grad=True)

    def gated(first: int, own: Tensor) -> Tensor:
        gate = gates[:, None, first : first + own.shape[2], None]
        closed = gate * own
        return closed + (1 - gate) * baseline[first] if first in baseline else closed

    with torch.enable_grad():
        stream = model.run(batch.clean, batch.attention_mask, node_edits(model.graph, gated))
        circuit = model.logits(stream, batch.positions).float()
        (slopes,) = torch.autograd.grad(problem.losses(full, circuit, batch).sum(), gates)
    return slopes


@torch.no_grad()
def node_values(model: MaskedModel, batch: PairBatch) -> dict[int, Tensor]:
    """Values `[batch, seq, nodes, width]` of q, k, v and MLPs on the corrupted prompts, at the clean positions.

    By the first node of each part.
    """
    found: dict[int, Tensor] = {}

    def keep(first: int, own: Tensor) -> Tensor:
        found[first] = own
        return own

    model.run(batch.corrupted, batch.corrupted_mask, node_edits(model.graph, keep))
    return {first: batch.aligned(values) for first, values in found.items()}


def node_edits(graph: EdgeGraph, change: Change) -> Edits:
    """Edits of a plain run that apply `change` to q, k and v before attention and to what each MLP writes.

    `change` gets the number of the first node of the part, and its values `[batch, seq, nodes, width]`.
    """

    def of_kind(kind: int) -> Callable[[int, Tensor], Tensor]:
        def edit(layer: int, value: Tensor) -> Tensor:
            first = graph.rows(layer)[kind].start
            return change(first, value) if kind < MLP else change(first, value.unsqueeze(-2)).squeeze(-2)

        return edit

    sites: tuple[Site, ...] = ("q", "k", "v", "mlp_out")
    return {site: of_kind(kind) for kind, site in enumerate(sites)}
