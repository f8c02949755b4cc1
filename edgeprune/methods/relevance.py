"""How relevant sources are to what readers take in and to what other writers write: numbers from decomposed runs.

Shapes: B examples, T tokens, D width, S sources of one layer, P parts of prompts, n heads or readers.
"""

from dataclasses import dataclass
from typing import Literal, Self, final

import torch
from torch import Tensor

from edgeprune.graph import EdgeGraph
from edgeprune.methods.decomposition_run import DecomposedRun
from edgeprune.models.block import Projected
from edgeprune.models.outputs import reader_inputs
from edgeprune.models.states import WriterStates

Measure = Literal["dot", "l1"]
Paths = Literal["direct", "all"]


@final
@dataclass(frozen=True, eq=False)
class Relevances:
    """What contextual decomposition says of a model, means over examples, float64.

    Attributes:
        graph: The graph.
        parts: Names of the parts that prompts fall into: the task's roles, then all other tokens.
        nodes: By source positions and writer, `[1 or 1 + P, writer]`: loss without what is relevant to the writer at
            all its tokens (row 0), or at those of a part (further rows, if asked for), minus loss of the full model.
        edges: By part of the reader's token, `[P, reader, writer]`: how much of what a reader takes in is relevant to
            the writer. Parts add up to the whole edge. The row of the logits is a difference of losses as in `nodes`.
        targets: The same of what writers write, `[writer written to, writer]`, at all tokens and through all paths.
    """

    graph: EdgeGraph
    parts: tuple[str, ...]
    nodes: Tensor
    edges: Tensor
    targets: Tensor

    @classmethod
    def zeros(cls, graph: EdgeGraph, parts: tuple[str, ...], *, by_role: bool) -> Self:
        """Nothing found yet."""
        zeros, writers = torch.zeros, len(graph.writers)
        return cls(
            graph,
            parts,
            zeros(1 + by_role * len(parts), writers, dtype=torch.float64),
            zeros(len(parts), *graph.shape, dtype=torch.float64),
            zeros(writers, writers, dtype=torch.float64),
        )

    def over(self, num_examples: int) -> "Relevances":
        """Sums over examples as means."""
        sums = (self.nodes, self.edges, self.targets)
        return Relevances(self.graph, self.parts, *(total / num_examples for total in sums))


class Differences:
    """How far what readers take in, and writers write, is from the ablated run: what `"dot"` compares with.

    Attributes:
        readers: By layer q, k and v as they are projected, `[B, T, n, C]`.
        mlps: By layer what MLPs take in behind their norm, `[B, T, D]`.
        heads: By layer what heads write, `[B, T, n, C]`.
        outputs: By layer what MLPs write, `[B, T, D]`.
    """

    def __init__(self, run: DecomposedRun, ablated: WriterStates) -> None:
        model, clean = run.model, run.clean
        self.readers: list[list[Tensor]] = []
        self.mlps: list[Tensor] = []
        inputs = iter(reader_inputs(model, ablated))
        for layer, block in enumerate(model.blocks):
            other = block.project(block.norm(next(inputs).stream))
            own = (clean["q_proj"][layer], clean["k_proj"][layer], clean["v_proj"][layer])
            self.readers.append([a - b for a, b in zip(own, other, strict=True)])
            if block.has_mlp:
                both = (run.mlp_input(layer), next(inputs).stream)
                normed = both if block.mlp_norm is None else [block.mlp_norm(stream) for stream in both]
                self.mlps.append(normed[0] - normed[1])
        self.heads = [own - other for own, other in zip(clean["head_out"], ablated.heads, strict=True)]
        self.outputs = [] if ablated.mlps is None else [a - b for a, b in zip(run.mlps, ablated.mlps, strict=True)]


@final
class Collector:
    """Adds up how relevant the sources of a run are to what it sees; a `Looker`.

    Args:
        run: The run.
        differences: Of the same batch; None under `"l1"`.
        into: Sums over examples, to which is added.
        parts: Tokens of each part, bool `[P, B, T]`.
        paths: `"all"`: all that is relevant where a reader reads. `"direct"`: what the source itself writes.
    """

    def __init__(
        self, run: DecomposedRun, differences: Differences | None, into: Relevances, parts: Tensor, paths: Paths
    ) -> None:
        self._run, self._differences, self._into, self._paths = run, differences, into, paths
        self._parts = parts.double()
        tokens = self._parts.sum(0)
        self._tokens = tokens / tokens.sum(1, keepdim=True)  # each token's weight in its example
        self._mask = tokens
        self.writers: list[int] = []  # of the sources under way

    def attention(self, layer: int, qkv: Projected, direct: Tensor) -> None:
        """See `Looker`."""
        if self._paths == "direct":
            qkv = self._run.project(layer, direct)
        graph, clean = self._run.model.graph, self._run.clean
        totals = (clean["q_proj"][layer], clean["k_proj"][layer], clean["v_proj"][layer])
        known = [None] * 3 if self._differences is None else self._differences.readers[layer]
        copies, rows = graph.arch.kv_readers_per_head, graph.rows(layer)
        for kind, (part, total, other) in enumerate(zip(qkv, totals, known, strict=True)):
            found = self._by_part(part, total, other)
            self._add(rows[kind], found if kind == 0 else found.repeat_interleave(copies, -1))

    def heads(self, layer: int, written: Tensor) -> None:
        """See `Looker`."""
        known = None if self._differences is None else self._differences.heads[layer]
        found = self._by_part(written, self._run.clean["head_out"][layer], known).sum(0)
        self._into.targets[self._run.model.graph.heads(layer), self.writers] += found.T.cpu()

    def mlp(self, layer: int, normed: Tensor, out: Tensor, direct: Tensor) -> None:
        """See `Looker`."""
        run, graph, known = self._run, self._run.model.graph, self._differences
        if self._paths == "direct":
            normed = run.mlp_normed(layer, direct)
        total = run.mlp_total(layer)
        found = self._of_mlp(normed, total, None if known is None else known.mlps[layer])
        self._add(graph.rows(layer).mlp, found)
        written = self._of_mlp(out, run.mlps[layer], None if known is None else known.outputs[layer])
        self._into.targets[graph.mlp_writer(layer), self.writers] += written.sum(0)[:, 0].cpu()

    def logits(self, effects: Tensor) -> None:
        """Add differences of losses `[S, B]` of edges into the logits: to the parts of the scored positions."""
        batch = self._run.batch
        scored = self._parts.gather(2, batch.positions.expand(len(self._parts), -1, -1)) * batch.position_mask
        weights = scored.sum(2) / batch.position_mask.sum(1)
        self._into.edges[:, -1, self.writers] += torch.einsum("pb,sb->ps", weights, effects.double()).cpu()

    def _add(self, rows: slice, found: Tensor) -> None:
        """Add to the edges from the sources into some readers what was found, `[P, S, n]`."""
        self._into.edges[:, rows, self.writers] += found.transpose(1, 2).cpu()

    def _of_mlp(self, relevant: Tensor, total: Tensor, difference: Tensor | None) -> Tensor:
        """`_by_part` of what has one row of width D, not heads."""
        other = None if difference is None else difference[..., None, :]
        return self._by_part(relevant[..., None, :], total[..., None, :], other)

    def _by_part(self, relevant: Tensor, total: Tensor, difference: Tensor | None) -> Tensor:
        """Sum over examples of the relevant share at the tokens of each part, `[P, S, n]`.

        Args:
            relevant: `[S, B, T, n, C]`.
            total: `[B, T, n, C]`.
            difference: From the ablated run, `[B, T, n, C]`, for `"dot"`; None: `"l1"`.
        """
        if difference is None:
            size = relevant.abs().sum(-1, dtype=torch.float64)
            whole = size + (total - relevant).abs().sum(-1, dtype=torch.float64)
            share = torch.where(whole > 0, size / whole.where(whole > 0, 1.0), 0.0) * self._tokens[..., None]
        else:
            squares = difference.square().sum(-1, dtype=torch.float64)
            whole = (squares * self._mask[..., None]).sum(1, keepdim=True)
            share = (relevant * difference).sum(-1, dtype=torch.float64)
            share = torch.where(whole > 0, share / whole.where(whole > 0, 1.0), 0.0)
        return torch.einsum("sbtn,pbt->psn", share, self._parts)


@final
class Unseen:
    """A `Looker` that looks at nothing."""

    def attention(self, layer: int, qkv: Projected, direct: Tensor) -> None:
        """Do nothing with `[S, B, T, n, C]`."""

    def heads(self, layer: int, written: Tensor) -> None:
        """Do nothing with `[S, B, T, n, C]`."""

    def mlp(self, layer: int, normed: Tensor, out: Tensor, direct: Tensor) -> None:
        """Do nothing with `[S, B, T, D]`."""
