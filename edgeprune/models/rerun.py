"""One pass over what changes when the inputs of some readers move: everything else is taken from a run before it.

    x'_reader = x_reader + sum over open edges of (own'_w - own_w)                                                 (1)

for several sets of moved inputs at once, the copies. Shapes: K copies, B examples, S positions, T = B * S tokens,
P = B * scored positions, D width, H heads, C head width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgeprune.models.block import repeat_kv, weights_per_reader
from edgeprune.models.changes import Changes, LayerChanges
from edgeprune.models.clean_run import LayerValues, StartingRun
from edgeprune.models.read_ops import ReadOps
from edgeprune.models.reads import segments

SEGMENT_READERS = 32  # that change, of layers that are run again together, about


@dataclass(frozen=True)
class ReferenceState:
    """A state that changes are relative to: inputs of the readers that may change, and what the layers computed."""

    attention: Callable[[int], Tensor]  # of a layer, [those readers, T, D], or [1, T, D] if it is the same for all
    mlps: dict[int, Tensor]  # by layer, [T, D]
    logits: Tensor  # [P, D]
    layers: Sequence[LayerValues]


class Rerun:
    """One pass over what changes, for K copies at once. `moved` holds own' - own of changed writers."""

    def __init__(
        self,
        start: StartingRun,
        open_: Tensor,
        changes: Changes,
        reference: ReferenceState,
        copies: int,
        wanted: Changes | None = None,
    ) -> None:
        self.start, self.open, self.changes, self.reference, self.copies = start, open_, changes, reference, copies
        self.blocks, self.graph = start.model.blocks, start.model.graph
        self.shape = start.batch.clean.shape
        self.wanted = wanted  # keep the state that these changes start from, at all positions
        self.inputs: dict[int, Tensor] = {}
        self.layers: list[LayerValues] = []
        everywhere = set(changes.writers) if wanted else changes.everywhere
        self.full_writers = [writer for writer in changes.writers if writer in everywhere]
        new = start.delta.new_empty
        width = start.delta.shape[-1]
        self.full = new((len(self.full_writers), copies, start.delta.shape[1], width))
        self.scored = new((len(changes.writers), copies, len(start.tokens), width))
        self.full_row = {writer: row for row, writer in enumerate(self.full_writers)}
        self.scored_row = {writer: row for row, writer in enumerate(changes.writers)}
        self.early = new(0)  # what the present segment's readers get from the writers before it, [readers, T, D]
        self.early_row: dict[int, int] = {}
        self.num_early = 0  # of `full_writers`

    def run(self, moves: dict[int, Tensor]) -> tuple[Tensor, list[LayerValues]]:
        """Logits `[K, B, positions, vocab]` after the inputs of some readers moved by `[K, T, D]`; the state."""
        context = self.start.context(self.copies) if any(changed.readers for changed in self.changes.layers) else None
        ends = self._segments()
        for layer, changes in enumerate(self.changes.layers):
            if layer in ends:
                self._begin_segment(layer, ends[layer])
            values = self.reference.layers[layer]
            if changes.readers:
                qkv, heads = self._attention(layer, changes, values, context, moves)
                values = LayerValues(qkv, heads, values.mlp)
            if changes.mlp:
                values = values._replace(mlp=self._mlp(layer, values.mlp, moves))
            if self.wanted is not None:
                self.layers.append(values)
        return self._logits(moves), self.layers

    # ---------------------------------------------------------------- segments
    def _segments(self) -> dict[int, int]:
        """Of one copy, layers whose readers take in what comes before them at once: first layer to the end."""
        layers = self.changes.layers
        if self.copies > 1 or not layers:
            return {}
        num_readers = sum(len(layer.readers) + layer.mlp for layer in layers)
        return dict(segments(len(layers), max(1, num_readers // len(layers)), SEGMENT_READERS))

    def _begin_segment(self, first: int, end: int) -> None:
        """Add up, for the readers that change in some layers, what changed writers before these layers bring."""
        self.num_early = sum(writer < self.graph.first_writer(first) for writer in self.full_writers)
        readers: list[int] = []
        for layer in range(first, end):
            found = self.changes.layers[layer]
            readers += [*found.readers, *[self.graph.mlp_reader(layer)] * found.mlp]
        if not readers or not self.num_early:
            self.num_early = 0
            return
        self.early_row = {reader: row for row, reader in enumerate(readers)}
        moved = self.full[: self.num_early]
        brings = self.open[readers][:, self.full_writers[: self.num_early]]
        self.early = (brings @ moved.view(self.num_early, -1)).view(len(readers), *moved.shape[2:])

    # ---------------------------------------------------------------- attention
    def _attention(
        self, layer: int, changes: LayerChanges, values: LayerValues, context: Any, moves: dict[int, Tensor]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        tokens = self.full.shape[2]
        kinds = self._by_kind(layer, changes.readers)
        qkv = [
            part.expand(self.copies, *part.shape).clone() if rows else part.expand(self.copies, *part.shape)
            for part, (rows, _) in zip(values.qkv, kinds, strict=True)
        ]
        self._project(layer, changes.readers, kinds, qkv, moves)
        q, k, v = (part.reshape(self.copies * self.shape[0], self.shape[1], *part.shape[2:]) for part in qkv)
        block = self.blocks[layer]
        heads = block.write(block.attend(*block.heads(q, k, v), context))[0]
        heads = heads.reshape(self.copies, tokens, *heads.shape[2:])
        if changes.heads:
            self._write_heads(layer, changes.heads, heads, values.heads)
        return tuple(part[0] for part in qkv), heads[0]

    def _by_kind(self, layer: int, readers: list[int]) -> list[tuple[list[int], int]]:
        """For q, k and v: which of its rows change, and where they begin among `readers`."""
        kinds, place = list[tuple[list[int], int]](), 0
        for own in self.graph.rows(layer)[:3]:
            rows = [reader - own.start for reader in readers if own.start <= reader < own.stop]
            kinds.append((rows, place))
            place += len(rows)
        return kinds

    def _project(
        self,
        layer: int,
        readers: list[int],
        kinds: list[tuple[list[int], int]],
        qkv: list[Tensor],
        moves: dict[int, Tensor],
    ) -> None:
        """Write the changed rows of q, k, v `[K, T, readers, C]`, a cache-sized piece of tokens at a time."""
        norm = self.blocks[layer].norm
        all_weights = weights_per_reader(self.blocks[layer], self.graph.arch.kv_readers_per_head)
        weights = [
            part if len(rows) == len(part) else part[rows] for part, (rows, _) in zip(all_weights, kinds, strict=True)
        ]
        biases, reference = self._biases(layer), self.reference.attention(layer)
        for copies, tokens in self._pieces(len(readers)):
            inputs = self._read(readers, reference, copies, tokens, moves)
            normed = norm(inputs).flatten(1, 2)
            for (rows, place), weight, bias, out in zip(kinds, weights, biases, qkv, strict=True):
                if not rows:
                    continue
                found = torch.bmm(normed[place : place + len(rows)], weight).view(len(rows), *inputs.shape[1:3], -1)
                out[copies, tokens][:, :, rows] = found.permute(1, 2, 0, 3) + bias[0, 0, rows]

    def _biases(self, layer: int) -> tuple[Tensor, ...]:
        """What the projections give for no input, `[1, 1, readers, C]`."""
        nothing = self.start.delta.new_zeros(1, 1, self.start.delta.shape[-1])
        return repeat_kv(self.blocks[layer].project(nothing), self.graph.arch.kv_readers_per_head)

    def _pieces(self, num_rows: int) -> Iterator[tuple[slice, slice]]:
        """Copies and tokens whose readers' inputs fill about `ReadOps.chunk_bytes`."""
        _, copies, tokens, width = self.full.shape
        fit = max(1, ReadOps.chunk_bytes // (num_rows * width * self.full.element_size()))
        together = max(1, fit // tokens)
        size = -(-tokens // -(-tokens // min(fit, tokens)))
        for copy in range(0, copies, together):
            for token in range(0, tokens, size):
                yield slice(copy, min(copy + together, copies)), slice(token, min(token + size, tokens))

    def _read(
        self, readers: list[int], reference: Tensor, copies: slice, tokens: slice, moves: dict[int, Tensor]
    ) -> Tensor:
        """Inputs `[readers, copies, tokens, D]` by (1); `reference` `[readers or 1, T, D]`."""
        num, start = copies.stop - copies.start, reference[:, None, tokens]
        if self.num_early:
            row = self.early_row[readers[0]]  # a layer's readers lie there one after the other
            start = start + self.early[row : row + len(readers), None, tokens]
        before = [writer for writer in self.full_writers if writer < self.graph.num_visible[readers[0]]]
        before = before[self.num_early :]
        if before:
            moved = self.full[self.num_early : self.num_early + len(before), copies, tokens]
            shape, brings = (len(readers), *moved.shape[1:]), self.open[readers][:, before]
            moved = moved.reshape(len(before), -1)
            if num == 1:  # one pass less over memory
                inputs = torch.addmm(start.flatten(1), brings, moved).view(shape)
            else:
                inputs = (brings @ moved).view(shape).add_(start)
        else:
            inputs = start.expand(len(readers), num, -1, -1)
        started = [(place, reader) for place, reader in enumerate(readers) if reader in moves]
        if started:
            inputs = inputs if before else inputs.clone()
            for place, reader in started:
                inputs[place] += moves[reader][copies, tokens]
        if self.wanted is not None:
            self._keep(readers, inputs, tokens)
        return inputs

    def _keep(self, readers: list[int], inputs: Tensor, tokens: slice) -> None:
        """Note the input of each reader of which the state is wanted."""
        assert self.wanted is not None
        layer = self.wanted.layers[self.graph.layer_of(readers[0])]
        for place, reader in enumerate(readers):
            if reader in layer.readers:
                kept = self.inputs.setdefault(reader, torch.empty_like(self.start.delta[0]))
                kept[tokens] = inputs[place, 0]

    def _write_heads(self, layer: int, writers: list[int], own: Tensor, before: Tensor) -> None:
        """Changes of heads, from values `[K, T, H, C]` and `[T, H, C]`."""
        weight, first = self.blocks[layer].output_weight(), self.graph.first_writer(layer)
        everywhere = [writer for writer in writers if writer in self.full_row]
        elsewhere = [writer for writer in writers if writer not in self.full_row]
        if everywhere:
            heads = [writer - first for writer in everywhere]
            change = (own[:, :, heads] - before[:, heads]).permute(2, 0, 1, 3).flatten(1, 2)
            start = self.full_row[everywhere[0]]
            rows = self.full[start : start + len(heads)]
            torch.bmm(change, weight[heads], out=rows.view(len(heads), -1, rows.shape[-1]))
            self.scored[[self.scored_row[writer] for writer in everywhere]] = rows[:, :, self.start.tokens]
        if elsewhere:
            heads = [writer - first for writer in elsewhere]
            change = own[:, self.start.tokens][:, :, heads] - before[self.start.tokens][:, heads]
            change = torch.bmm(change.permute(2, 0, 1, 3).flatten(1, 2), weight[heads])
            shape = (len(heads), *self.scored.shape[1:])
            self.scored[[self.scored_row[writer] for writer in elsewhere]] = change.view(shape)

    # ---------------------------------------------------------------- MLP and logits
    def _mlp(self, layer: int, before: Tensor | None, moves: dict[int, Tensor]) -> Tensor:
        """Run the MLP where it counts; its output of the first copy, at all positions if they were run."""
        assert before is not None
        reader, writer, block = self.graph.mlp_reader(layer), self.graph.mlp_writer(layer), self.blocks[layer]
        reference = self.reference.mlps[layer]
        if writer not in self.full_row:
            inputs = self._read_scored(reader, reference[self.start.tokens], moves)
            self.scored[self.scored_row[writer]] = block.mlp(inputs) - before[self.start.tokens]
            return before
        inputs = self._read([reader], reference[None], slice(0, self.copies), slice(0, self.full.shape[2]), moves)[0]
        if self.wanted is not None and self.wanted.layers[layer].mlp:
            self.inputs[reader] = inputs[0]
        after = block.mlp(inputs.reshape(-1, self.shape[1], inputs.shape[-1])).view_as(inputs)
        row = self.full[self.full_row[writer]]
        torch.sub(after, before, out=row)
        self.scored[self.scored_row[writer]] = row[:, self.start.tokens]
        return after[0]

    def _read_scored(self, reader: int, reference: Tensor, moves: dict[int, Tensor]) -> Tensor:
        """Input `[K, P, D]` of a reader at the scored positions, by (1); `reference` `[P, D]`."""
        inputs = reference.expand(self.scored.shape[1:])
        before = [writer for writer in self.changes.writers if writer < self.graph.num_visible[reader]]
        if before:
            moved = self.scored[: len(before)].view(len(before), -1)
            inputs = inputs + (self.open[reader, before] @ moved).view_as(inputs)
        return inputs + moves[reader][:, self.start.tokens] if reader in moves else inputs

    def _logits(self, moves: dict[int, Tensor]) -> Tensor:
        inputs = self._read_scored(len(self.graph.readers) - 1, self.reference.logits, moves)
        self.last = inputs[0]
        logits = self.start.model.logits(inputs.reshape(-1, self.start.batch.positions.shape[1], inputs.shape[-1]))
        return logits.unflatten(0, (self.copies, -1)).float()
