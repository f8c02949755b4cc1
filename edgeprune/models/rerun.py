"""One pass over what changes when the inputs of some readers move: everything else is taken from a run before it.

    x'_reader = x_reader + sum over open edges of (own'_w - own_w)                                                 (1)

for several sets of moved inputs at once, the copies. Shapes: K copies, B examples, S positions, T = B * S tokens,
P = B * scored positions, D width, H heads, C head width.
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from edgeprune.models.changes import Changes, LayerChanges, alike
from edgeprune.models.clean_run import LayerValues, StartingRun, tokens_by_role
from edgeprune.models.open_reads import open_sums, projected
from edgeprune.models.projections import no_autocast
from edgeprune.models.read_ops import ReadOps


@dataclass(frozen=True)
class ReferenceState:
    """A state that changes are relative to.

    Attributes:
        attention: Inputs of some readers of a layer, `[those readers, T, D]`, or `[1, T, D]` if all have the same. Of
            readers into which the same edges are open, the first is named, whether it changes or not.
        mlps: Inputs of the MLPs that may change, by layer, `[T, D]`.
        logits: Input of the logits, `[P, D]`.
        layers: What each layer computed.
        apart: What open edges from some writers bring beyond these inputs even if nothing changes, `[T, D]`.
    """

    attention: Callable[[int, list[int]], Tensor]
    mlps: Mapping[int, Tensor]
    logits: Tensor
    layers: Sequence[LayerValues]
    apart: Mapping[int, Tensor] = field(default_factory=dict[int, Tensor])


class KeptInputs:
    """Inputs of attention readers, as a `ReferenceState` is asked for them.

    Attributes:
        readers: By layer.
        inputs: Theirs, by layer, `[readers, T, D]`.
    """

    def __init__(self) -> None:
        self.readers: dict[int, list[int]] = {}
        self.inputs: dict[int, Tensor] = {}

    def __call__(self, layer: int, readers: list[int]) -> Tensor:
        """Of some of a layer's readers, `[readers, T, D]`."""
        known = self.readers[layer]
        if readers == known:
            return self.inputs[layer]
        return self.inputs[layer][[known.index(reader) for reader in readers]]


class Rerun:
    """One pass over what changes, for K copies at once.

    Attributes:
        inputs: Of the readers in `wanted`, `[T, D]`; of those into which the same edges are open, that of the first.
        last: Input of the logits in the first copy, `[P, D]`.
    """

    def __init__(
        self,
        start: StartingRun,
        keep: Tensor,
        changes: Changes,
        reference: ReferenceState,
        copies: int,
        wanted: Changes | None = None,
    ) -> None:
        self.start, self.keep, self.changes, self.reference, self.copies = start, keep, changes, reference, copies
        self.blocks, self.graph = start.model.blocks, start.graph
        self.shape = start.batch.clean.shape
        self.alike = alike(self.graph, keep)
        self.wanted = wanted  # keep the state that these changes start from, at all positions
        self.inputs: dict[int, Tensor] = {}
        self.layers: list[LayerValues] = []
        self.everywhere = frozenset(changes.writers) if wanted else changes.everywhere
        # what changed writers, and those apart, bring beyond the reference: [K, T, writers, D] and [K, P, writers, D]
        self.full_writers = sorted({*self.everywhere, *reference.apart})
        self.scored_writers = sorted({*changes.writers, *reference.apart})
        new, (tokens, width) = start.delta.new_empty, start.delta.shape[1:]
        shape = (copies, tokens, len(self.full_writers), width)
        self._buffer = start.model.workspace.take("delta", math.prod(shape), start.delta)
        self.full = self._buffer[: math.prod(shape)].view(shape)
        self.scored = new((copies, len(start.tokens), len(self.scored_writers), width))
        self.full_row = {writer: row for row, writer in enumerate(self.full_writers)}
        self.scored_row = {writer: row for row, writer in enumerate(self.scored_writers)}
        for writer, brought in reference.apart.items():
            self.full[:, :, self.full_row[writer]] = brought
            self.scored[:, :, self.scored_row[writer]] = brought[start.tokens]

    def run(self, moves: dict[int, Tensor]) -> tuple[Tensor, list[LayerValues]]:
        """Logits `[K, B, positions, vocab]` after the inputs of some readers moved by `[K, T, D]`; the state."""
        context = self.start.context(self.copies) if any(changed.readers for changed in self.changes.layers) else None
        for layer, changes in enumerate(self.changes.layers):
            values = self.reference.layers[layer]
            if changes.readers:
                qkv, heads = self._attention(layer, changes, values, context, moves)
                values = LayerValues(qkv, heads, values.mlp)
            if changes.mlp:
                values = values._replace(mlp=self._mlp(layer, values.mlp, moves))
            if self.wanted is not None:
                self.layers.append(values)
        logits = self._logits(moves)
        self.start.model.workspace.give_back("delta", self._buffer)
        return logits, self.layers

    # ---------------------------------------------------------------- attention
    def _attention(
        self, layer: int, changes: LayerChanges, values: LayerValues, context: Any, moves: dict[int, Tensor]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        qkv = self._project(layer, changes.readers, values.qkv, moves)
        q, k, v = (part.reshape(self.copies * self.shape[0], self.shape[1], *part.shape[2:]) for part in qkv)
        block = self.blocks[layer]
        heads = block.written(block.attend(*block.heads(q, k, v), context))
        heads = heads.reshape(*self.full.shape[:2], *heads.shape[2:])
        self._write_heads(layer, changes.heads, heads, values.heads)
        return tuple(part[0] for part in qkv), heads[0]

    def _project(
        self, layer: int, readers: list[int], before: tuple[Tensor, ...], moves: dict[int, Tensor]
    ) -> list[Tensor]:
        """q, k, v `[K, T, n, C]`, the rows of `readers` made anew, a cache-sized piece of tokens at a time."""
        places: dict[tuple[int, bool], int] = {}  # of different inputs
        different: list[int] = []  # a reader of each
        place_of: list[int] = []
        for reader in readers:
            key = (reader, True) if reader in moves else (self.alike[reader], False)
            if key not in places:
                places[key] = len(different)
                different.append(reader)
            place_of.append(places[key])
        kinds = self._by_kind(layer, readers)
        qkv = [_room(part, self.copies, rows) for part, (rows, _) in zip(before, kinds, strict=True)]
        projection, first = self.start.projection(layer), self.graph.first_reader(layer)
        reference = self.reference.attention(layer, [self.alike[reader] for reader in different])
        for copies, tokens in self._pieces(len(different)):
            inputs = self._read(different, reference, copies, tokens, moves)
            if self.wanted is not None:
                self._keep(layer, different, inputs, tokens)
            with no_autocast(inputs):
                found = projected(inputs.flatten(0, 1), place_of, [reader - first for reader in readers], projection)
            found = found.unflatten(1, inputs.shape[:2]).permute(1, 2, 0, 3)
            for out, (rows, among) in zip(qkv, kinds, strict=True):
                if rows:
                    out[copies, tokens][:, :, places_of(rows)] = found[:, :, among].to(out.dtype)
        return qkv

    def _by_kind(self, layer: int, readers: list[int]) -> list[tuple[list[int], slice]]:
        """For q, k and v: which of its rows change, and where they are among `readers`."""
        kinds, place = list[tuple[list[int], slice]](), 0
        for own in self.graph.rows(layer)[:3]:
            rows = [reader - own.start for reader in readers if own.start <= reader < own.stop]
            kinds.append((rows, slice(place, place + len(rows))))
            place += len(rows)
        return kinds

    def _pieces(self, num_rows: int) -> Iterator[tuple[slice, slice]]:
        """Copies and tokens whose readers' inputs fill about `ReadOps.chunk_bytes`: all tokens, or of one copy."""
        copies, tokens, _, width = self.full.shape
        fit = max(1, ReadOps.chunk_bytes // (num_rows * width * self.full.element_size()))
        together = max(1, fit // tokens)
        size = -(-tokens // -(-tokens // min(fit, tokens)))
        for copy in range(0, copies, together):
            for token in range(0, tokens, size):
                yield slice(copy, min(copy + together, copies)), slice(token, min(token + size, tokens))

    def _read(
        self, readers: list[int], reference: Tensor, copies: slice, tokens: slice, moves: dict[int, Tensor]
    ) -> Tensor:
        """Inputs `[copies, tokens, readers, D]` by (1) of readers that see the same writers.

        `reference` is `[readers or 1, T, D]`.
        """
        start = reference[:, tokens].transpose(0, 1)
        seen = _before(self.full_writers, self.graph.num_visible[readers[0]])
        if seen:
            rows = self.full[copies, tokens]
            with no_autocast(rows):
                inputs = self._open_sums(rows, readers, seen, tokens).add_(start)
        else:
            inputs = start.expand(copies.stop - copies.start, -1, len(readers), -1).clone()
        for place, reader in enumerate(readers):
            if reader in moves:
                inputs[:, :, place] += moves[reader][copies, tokens]
        return inputs

    def _open_sums(self, rows: Tensor, readers: list[int], seen: list[int], tokens: slice | Tensor) -> Tensor:
        """What open edges bring into readers, `[K, N, readers, D]`, from N tokens' rows `[K, N, writers, D]`."""
        role_of = self.start.role_of
        if role_of is None:
            return open_sums(rows.flatten(0, 1), self.keep[readers][:, seen]).unflatten(0, rows.shape[:2])
        found = rows.new_empty((*rows.shape[:2], len(readers), rows.shape[-1]))
        for role, places in tokens_by_role(role_of[tokens if isinstance(tokens, slice) else tokens.cpu()]):
            own = rows[:, places]
            sums = open_sums(own.flatten(0, 1), self.keep[role][readers][:, seen])
            found[:, places] = sums.unflatten(0, own.shape[:2])
        return found

    def _keep(self, layer: int, readers: list[int], inputs: Tensor, tokens: slice) -> None:
        """Note inputs `[1, tokens, readers, D]` of which the state is wanted."""
        assert self.wanted is not None
        wanted = {self.alike[reader] for reader in self.wanted.layers[layer].readers}
        for place, reader in enumerate(self.alike[reader] for reader in readers):
            if reader in wanted:
                kept = self.inputs.setdefault(reader, torch.empty_like(self.start.delta[0]))
                kept[tokens] = inputs[0, :, place]

    def _write_heads(self, layer: int, writers: list[int], own: Tensor, before: Tensor) -> None:
        """What changed heads bring, from values `[K, T, H, C]` and `[T, H, C]`."""
        weight, first, tokens = self.blocks[layer].output_weight(), self.graph.first_writer(layer), self.start.tokens
        everywhere = [writer for writer in writers if writer in self.everywhere]
        elsewhere = [writer for writer in writers if writer not in self.everywhere]
        if everywhere:
            heads = places_of([writer - first for writer in everywhere])
            rows, change = places_of([self.full_row[writer] for writer in everywhere]), (own - before).flatten(0, 1)
            table, values = self.full.flatten(0, 1), change[:, heads].transpose(0, 1)
            if isinstance(rows, slice):
                torch.bmm(values, weight[heads], out=table[:, rows].transpose(0, 1))
            else:
                table[:, rows] = torch.bmm(values, weight[heads]).transpose(0, 1)
        if elsewhere:
            heads = places_of([writer - first for writer in elsewhere])
            change = (own[:, tokens][:, :, heads] - before[tokens][:, heads]).flatten(0, 1)
            rows = places_of([self.scored_row[writer] for writer in elsewhere])
            self.scored.flatten(0, 1)[:, rows] = torch.bmm(change.transpose(0, 1), weight[heads]).transpose(0, 1)
        self._finish(everywhere, elsewhere)

    def _finish(self, everywhere: list[int], elsewhere: list[int]) -> None:
        """Of changed writers, what they bring apart from that, and their rows of the scored positions."""
        apart, tokens = self.reference.apart, self.start.tokens
        for writer in apart.keys() & everywhere:
            self.full[:, :, self.full_row[writer]] += apart[writer]
        for writer in apart.keys() & elsewhere:
            self.scored[:, :, self.scored_row[writer]] += apart[writer][tokens]
        if everywhere:
            rows = self.full[:, tokens[:, None], torch.tensor([self.full_row[writer] for writer in everywhere])]
            self.scored[:, :, places_of([self.scored_row[writer] for writer in everywhere])] = rows

    # ---------------------------------------------------------------- MLP and logits
    def _mlp(self, layer: int, before: Tensor | None, moves: dict[int, Tensor]) -> Tensor:
        """Run the MLP where it counts; its output of the first copy, at all positions if they were run."""
        assert before is not None
        reader, writer, block = self.graph.mlp_reader(layer), self.graph.mlp_writer(layer), self.blocks[layer]
        reference, scored = self.reference.mlps[layer], self.start.tokens
        if writer not in self.everywhere:
            inputs = self._read_scored(reader, reference[scored], moves)
            self.scored[:, :, self.scored_row[writer]] = block.mlp(inputs) - before[scored]
            self._finish([], [writer])
            return before
        inputs = self._read([reader], reference[None], slice(0, self.copies), slice(0, self.full.shape[1]), moves)
        inputs = inputs[:, :, 0]
        if self.wanted is not None and self.wanted.layers[layer].mlp:
            self.inputs[reader] = inputs[0]
        after = block.mlp(inputs.view(-1, self.shape[1], inputs.shape[-1])).view_as(inputs)
        torch.sub(after, before, out=self.full[:, :, self.full_row[writer]])
        self._finish([writer], [])
        return after[0]

    def _read_scored(self, reader: int, reference: Tensor, moves: dict[int, Tensor]) -> Tensor:
        """Input `[K, P, D]` of a reader at the scored positions, by (1); `reference` `[P, D]`."""
        inputs = reference.expand(self.copies, -1, -1)
        seen = _before(self.scored_writers, self.graph.num_visible[reader])
        if seen:
            with no_autocast(inputs):
                inputs = inputs + self._open_sums(self.scored, [reader], seen, self.start.tokens)[:, :, 0]
        return inputs + moves[reader][:, self.start.tokens] if reader in moves else inputs

    def _logits(self, moves: dict[int, Tensor]) -> Tensor:
        inputs = self._read_scored(len(self.graph.readers) - 1, self.reference.logits, moves)
        self.last = inputs[0]
        logits = self.start.model.logits(inputs.reshape(-1, self.start.batch.positions.shape[1], inputs.shape[-1]))
        return logits.unflatten(0, (self.copies, -1)).float()


def places_of(rows: list[int]) -> slice | list[int]:
    """The same places, as a slice if one comes after the other: a view then, and no copy."""
    return slice(rows[0], rows[-1] + 1) if rows == list(range(rows[0], rows[-1] + 1)) else rows


def _before(writers: list[int], num_visible: int) -> list[int]:
    """Those of some writers in their order that a reader sees."""
    return writers[: bisect_left(writers, num_visible)]


def _room(part: Tensor, copies: int, rows: list[int]) -> Tensor:
    """Where q, k or v go of which `rows` are made anew, `[K, T, n, C]`, from `[T, n, C]`."""
    shape = (copies, *part.shape)
    if len(rows) == part.shape[1]:
        return part.new_empty(shape)
    return part.expand(shape).clone() if rows else part.expand(shape)
