"""The forward passes of contextual decomposition: which sources go together, and how many fit in memory.

Shapes: B examples, T tokens, S sources of one pass.
"""

from collections.abc import Callable, Iterator
from typing import final

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.methods.decomposition_run import DecomposedRun, Rules, Source
from edgeprune.methods.problem import Problem
from edgeprune.methods.relevance import Collector, Differences, Measure, Paths, Relevances, Unseen
from edgeprune.models.masked import MaskedModel
from edgeprune.roles import parts_of, positions_by_part, role_names, roles_in

Step = Callable[[Relevances], None]
_STREAMS, _HIDDEN = 10, 4  # tensors of the stream's width, and of the widest inside, alive for each source and token
_LOGITS = 3  # tensors of logits


@final
class Passes:
    """All passes over the pairs of a problem, as steps that are taken in order.

    Args:
        problem: Model, pairs, ablation, metric.
        rules: How activations are taken apart.
        measure: Of readers' inputs; see `ContextualDecomposition`.
        paths: Likewise.
        by_role: Sources are also the tokens of each part.
        memory: Bytes for the clean run and what is decomposed at a time.
    """

    def __init__(
        self, problem: Problem, rules: Rules, measure: Measure, paths: Paths, memory: float, *, by_role: bool
    ) -> None:
        self.problem, self.rules, self.by_role, self.memory = problem, rules, by_role, memory
        self.measure: Measure = measure
        self.paths: Paths = paths
        roles = problem.model.graph.roles
        self.roles = role_names(problem.batches) if roles is None else ()
        self.parts = parts_of(self.roles) if roles is None else roles.names
        self.groups = writer_groups(problem.model)

    def zeros(self) -> Relevances:
        """What to add to."""
        return Relevances.zeros(self.problem.model.graph.without_roles, self.parts, by_role=self.by_role)

    def positions(self, batch: PairBatch) -> Tensor:
        """Positions of each part, bool `[part, batch, seq]`."""
        roles = roles_in(self.problem.model.graph, batch)
        if roles is None:
            return positions_by_part(batch, self.roles)
        numbers = torch.arange(len(self.parts), device=roles.device)
        return (roles == numbers[:, None, None]) & batch.attention_mask.bool()

    def __len__(self) -> int:
        """Steps: one for each batch and group of writers."""
        return len(self.problem.batches) * len(self.groups)

    def steps(self, done: int = 0) -> Iterator[Step]:
        """The steps after the first `done`; each adds to sums over examples."""
        for number, batch in enumerate(self.problem.batches):
            first = max(0, done - number * len(self.groups))
            if first >= len(self.groups):
                continue
            size = _examples_at_once(self.problem.model, batch, self.memory)
            pieces = [_Piece(self, piece, keeps=size >= len(batch)) for piece in batch.parts(size)]
            for group in self.groups[first:]:

                def step(sums: Relevances, group: range = group, pieces: list[_Piece] = pieces) -> None:
                    for piece in pieces:
                        piece.add(group, sums)

                yield step


@final
class _Piece:
    """Some examples, and their clean run as long as there is room for it."""

    def __init__(self, passes: Passes, batch: PairBatch, *, keeps: bool) -> None:
        self._passes, self._batch, self._keeps = passes, batch, keeps
        self._made: tuple[DecomposedRun, Differences | None] | None = None

    def _run(self) -> tuple[DecomposedRun, Differences | None]:
        if self._made is not None:
            return self._made
        passes, problem = self._passes, self._passes.problem
        batch = self._batch.to(problem.model.device)
        _, ablated = problem.runs(batch, problem.split)
        run = DecomposedRun(problem.model, batch, ablated, passes.rules)
        made = run, Differences(run, ablated) if passes.measure == "dot" else None
        self._made = made if self._keeps else None
        return made

    @torch.no_grad()
    def add(self, group: range, sums: Relevances) -> None:
        """Decompose for each writer of a group."""
        run, differences = self._run()
        passes, batch = self._passes, run.batch
        parts = passes.positions(batch)
        collector = Collector(run, differences, sums, parts, passes.paths)
        size = _sources_at_once(run, passes.memory)
        for writers in _cut(group, size):
            collector.writers = list(writers)
            stream, direct = run([Source(writer, batch.attention_mask.bool()) for writer in writers], collector)
            effects = self._effects(run, stream)
            sums.nodes[0, collector.writers] += effects.sum(1).cpu()
            collector.logits(effects if passes.paths == "all" else self._effects(run, direct))
        if passes.by_role:
            pairs = [(row, writer) for row in range(len(parts)) for writer in group if parts[row].any()]
            for some in (pairs[start : start + size] for start in range(0, len(pairs), size)):
                stream, _ = run([Source(writer, parts[row]) for row, writer in some], Unseen())
                rows, writers = zip(*some, strict=True)
                sums.nodes[[row + 1 for row in rows], list(writers)] += self._effects(run, stream).sum(1).cpu()

    def _effects(self, run: DecomposedRun, stream: Tensor) -> Tensor:
        """Loss without the relevant part of the last stream minus that of the full model, float64 `[S, B]`."""
        exact = torch.promote_types(stream.dtype, torch.float32)
        total, irrelevant = (values.to(exact) for values in run.logits(stream))
        if not irrelevant.isfinite().all():
            raise EdgepruneError(
                f"relevant and irrelevant parts grew against each other beyond what {stream.dtype} holds, as they may "
                "in gated MLPs, and where attention has a pattern of relevant parts: set larger to true"
            )
        losses = self._passes.problem.losses
        base = losses(total, total, run.batch).double()
        return torch.stack([losses(total, own, run.batch).double() - base for own in irrelevant])


def writer_groups(model: MaskedModel) -> list[range]:
    """Writers that begin at the same place: the embeddings, then those of each layer."""
    graph, arch = model.graph, model.graph.arch
    starts = [graph.first_writer(layer) for layer in range(arch.num_layers)]
    return [range(arch.num_embeddings), *(range(start, start + arch.writers_per_layer) for start in starts)]


def _cut(group: range, size: int) -> Iterator[range]:
    for start in range(0, len(group), size):
        yield group[start : start + size]


def _widest(model: MaskedModel) -> int:
    """The widest activation inside a layer."""
    weights = model.blocks[0].module.parameters()
    return max(size for weight in weights if weight.ndim > 1 for size in weight.shape)


def _examples_at_once(model: MaskedModel, batch: PairBatch, memory: float) -> int:
    """Examples whose clean run, and at least one source, fit in as many bytes."""
    heads, width, arch = model.head_shape[0] * model.head_shape[1], model.width, model.graph.arch
    kept = arch.num_layers * (5 * width + 11 * heads)
    each = (kept + _per_source(model)) * batch.clean.shape[1] * model.dtype.itemsize
    each += 2 * _LOGITS * batch.positions.shape[1] * model.num_outputs * 4
    return max(1, min(len(batch), int(memory / each)))


def _per_source(model: MaskedModel) -> int:
    """Numbers for each source and token."""
    return _STREAMS * model.width + _HIDDEN * _widest(model)


def _sources_at_once(run: DecomposedRun, memory: float) -> int:
    """Sources that fit in as many bytes beside the clean run, at least one."""
    model, batch = run.model, run.batch
    kept = sum(value.nbytes for values in run.clean.values() for value in values) * 2
    each = _per_source(model) * batch.clean.numel() * model.dtype.itemsize
    each += _LOGITS * batch.positions.numel() * model.num_outputs * 4
    return max(1, int((memory - kept) / each))
