"""How much a circuit's nodes, ablated together, move the output, against random nodes and all others.

The output vector is what the logits reader takes in at a scored position: the residual stream before the final norm
and the unembedding. With full that of the full model, and ablated that of the model in which every edge that leaves the
circuit's nodes is closed and all other edges are open,

    relative change |ablated - full| / |full|     norm ratio |ablated| / |full|     cosine of ablated and full

each averaged over the scored positions of an example, then over examples. The same is taken of the logits, and of the
logits minus their mean over the vocabulary, which is all that softmax sees of them. Held against (i) random sets of
nodes with as many heads in every layer, and as many MLPs, as the circuit has, (ii) all other nodes together.

Nodes are heads and MLPs; embeddings are never ablated. Random sets are drawn uniformly from all sets of that profile,
so they may share nodes with the circuit; `overlap` says how much. If the circuit were such a draw, its change would be
as likely as any other to be the largest: the p-value is (1 + random sets with at least its change) / (1 + random sets).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.controls import circuit_nodes, columns, without_nodes
from edgeprune.evaluation.evaluator import Evaluator, open_edges
from edgeprune.evaluation.random_sets import Nodes, draw
from edgeprune.graph import EdgeGraph
from edgeprune.json_numbers import json_fields, json_numbers
from edgeprune.metrics.measure import logits_of_each
from edgeprune.models.masked import MaskedModel

SPACES = ("stream", "logits", "logits_centred")
FIGURES = ("relative_change", "norm_ratio", "cosine")
ROUNDING = 1e-6  # relative: changes of the same set, run beside other circuits, differ by so much in float32


@dataclass(frozen=True, eq=False)
class SuffixAblation:
    """Changes of the output by sets of nodes: set 0 the circuit's, set 1 all others, then one random set per seed.

    `to_dict`: `ablation`; `num_examples`; `heads_only`; `nodes` and `other_nodes`; `seeds` and `overlap` (of the
    random sets); `log10_num_sets` (how many there are to draw from); `circuit`, `others` and `random` (mean over
    seeds): by space (`stream`, `logits`, `logits_centred`) the figures `relative_change`, `norm_ratio` and `cosine`;
    `each_random`: the figures of every seed; `verdict`: by space `ratio`, the circuit's relative change / the mean of
    random sets, and `p_value`. None where a figure is not defined: a full vector of length 0, a cosine with one
    of length 0, a ratio of nothing to nothing.

    Attributes:
        ablation: What closed edges carry.
        heads_only: Whether only heads were ablated, no MLPs.
        sets: The nodes of each set.
        seeds: One per random set.
        log10_num_sets: Sets of the circuit's profile, as a power of ten.
        values: Float64 `[set, space, figure, example]`, in the order of `SPACES` and `FIGURES`; NaN where not defined.
        index: Number of each example in its split, long `[example]`.
    """

    ablation: str
    heads_only: bool
    sets: tuple[Nodes, ...]
    seeds: tuple[int, ...]
    log10_num_sets: float
    values: Tensor
    index: Tensor

    def figures(self) -> Tensor:
        """Means over the examples for which a figure is defined, float64 `[set, space, figure]`."""
        return self.values.nanmean(-1)

    @property
    def overlap(self) -> float:
        """Mean share of the circuit's nodes in a random set; 0 for a circuit without nodes."""
        shares = [len({*self.sets[0]} & {*chosen}) / max(len(self.sets[0]), 1) for chosen in self.sets[2:]]
        return sum(shares) / len(shares)

    def verdict(self) -> dict[str, dict[str, float]]:
        """By space the `ratio` of the circuit's relative change to the mean random one, and its `p_value`."""
        found: dict[str, dict[str, float]] = {}
        for place, space in enumerate(SPACES):
            circuit, _, *drawn = self.figures()[:, place, 0].tolist()
            mean = sum(drawn) / len(drawn)
            as_large = sum(other >= circuit * (1 - ROUNDING) for other in drawn)
            p_value = (1 + as_large) / (1 + len(drawn)) if math.isfinite(circuit + mean) else math.nan
            found[space] = {"ratio": circuit / mean if mean else math.nan, "p_value": p_value}
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values; see the class."""
        figures = self.figures()
        return json_fields(
            self,
            *("sets", "values", "index"),
            num_examples=len(self.index),
            nodes=self.sets[0],
            other_nodes=self.sets[1],
            overlap=self.overlap,
            circuit=_named(figures[0]),
            others=_named(figures[1]),
            random=_named(figures[2:].mean(0)),
            each_random=[_named(row) for row in figures[2:]],
            verdict=self.verdict(),
        )


def _named(figures: Tensor) -> dict[str, dict[str, float | None]]:
    """Figures `[space, figure]` by name."""
    return {space: json_numbers(FIGURES, row) for space, row in zip(SPACES, figures, strict=True)}


@torch.no_grad()
def ablate_suffix(
    evaluator: Evaluator, keep: Tensor, seeds: Iterable[int] = range(20), *, heads_only: bool = False
) -> SuffixAblation:
    """Ablate the circuit's nodes, all others, and random ones; compare the output vectors.

    Args:
        evaluator: Model, pairs and ablation; its measures are not used.
        keep: The circuit, bool `[reader, writer]`.
        seeds: One random set for each.
        heads_only: Ablate heads alone, no MLPs.

    Raises:
        EdgepruneError: The circuit is of another graph, or there is no seed.
    """
    graph, seeds = evaluator.graph, tuple(seeds)
    if not seeds:
        raise EdgepruneError("random sets need at least one seed, got none; give seeds, such as range(20)")
    strata = _strata(graph, heads_only)
    known = {node for stratum in strata for node in stratum}
    nodes = tuple(node for node in circuit_nodes(graph, open_edges(evaluator, keep)) if node in known)
    others = tuple(node for node in graph.writers if node in known.difference(nodes))
    sizes = [len({*nodes}.intersection(stratum)) for stratum in strata]
    sets = (nodes, others, *(draw_like(graph, strata, sizes, seed) for seed in seeds))
    ways = sum(math.log10(math.comb(len(stratum), size)) for stratum, size in zip(strata, sizes, strict=True))
    gates = [graph.exists, *(without_nodes(graph.exists, columns(graph, chosen)) for chosen in sets)]
    parts = list[Tensor]()
    for batch in evaluator.counted("suffix ablation"):
        batch = batch.to(evaluator.model.device)
        ablated = evaluator.runs(batch, evaluator.split)[1]
        streams = logits_of_each(evaluator.model, batch, gates, ablated, head=False)
        outputs = (_spaces(evaluator.model, stream) for stream in streams)
        full = next(outputs)
        parts.append(torch.stack([_changes(full, output, batch) for output in outputs]).cpu())
    index = torch.cat([batch.index.cpu() for batch in evaluator.batches])
    return SuffixAblation(evaluator.runs.ablation, heads_only, sets, seeds, ways, torch.cat(parts, -1), index)


# -------------------------------------------------------------------- sets of nodes
def _strata(graph: EdgeGraph, heads_only: bool) -> list[Nodes]:
    """The heads of each layer, and all MLPs."""
    arch = graph.arch
    layers = range(arch.num_layers)
    strata = [graph.writers[graph.heads(layer)] for layer in layers]
    if arch.has_mlp and not heads_only:
        strata.append(tuple(graph.writers[graph.mlp_writer(layer)] for layer in layers))
    return strata


def draw_like(graph: EdgeGraph, strata: list[Nodes], sizes: list[int], seed: int) -> Nodes:
    """A random set with so many nodes of each stratum, in the order of the writers."""
    generator = torch.Generator().manual_seed(seed)
    drawn = set[str]()
    for stratum, size in zip(strata, sizes, strict=True):
        drawn.update(draw(stratum, size, generator))
    return tuple(node for node in graph.writers if node in drawn)


# -------------------------------------------------------------------- outputs
def _spaces(model: MaskedModel, stream: Tensor) -> tuple[Tensor, ...]:
    """Stream `[batch, positions, d_model]`, its logits `[batch, positions, vocab]`, and those centred; float32."""
    logits = model.logits(stream.to(model.dtype)).float()
    return stream, logits, logits - logits.mean(-1, keepdim=True)


def _changes(full: tuple[Tensor, ...], ablated: tuple[Tensor, ...], batch: PairBatch) -> Tensor:
    """Figures of each space, mean over an example's scored positions, float64 `[space, figure, batch]`."""
    figures = torch.stack([change(*pair) for pair in zip(full, ablated, strict=True)])
    return figures.where(batch.position_mask, torch.nan).nanmean(-1)


def change(full: Tensor, ablated: Tensor) -> Tensor:
    """Relative change, norm ratio and cosine of vectors `[..., d]`, float64 `[3, ...]`; NaN where not defined."""
    full, ablated = full.double(), ablated.double()
    before, after = full.norm(dim=-1), ablated.norm(dim=-1)
    length = before.where(before > 0, torch.nan)
    cosine = (full * ablated).sum(-1) / (length * after)
    return torch.stack([(ablated - full).norm(dim=-1) / length, after / length, cosine])
