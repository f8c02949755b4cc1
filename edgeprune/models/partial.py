"""The masked model from one reader on: what lies before it is taken from the clean run, and only what changes is run.

Closing edges from the logits back leaves everything before the reader in question as it is in the full model. With
d_w = ablated_w - clean_w, and c_w = own_w - clean_w for a writer whose output differs from that of the clean run,

    x_reader = stream + sum over closed edges of d_w + sum over open edges of c_w                                  (1)

gives the circuit's state (`DownstreamRun`), once per reader. Closing further edges into that reader adds their d_w to
its input, and from there on each reader's input moves by what its open edges bring:

    x'_reader = x_reader + sum over open edges of (own'_w - own_w)                                                 (2)

for several sets of further edges at once, the copies. Shapes: K copies, B examples, S positions, T = B * S tokens,
P = B * scored positions, D width, H heads, C head width.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, final

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.models.block import Edits, Site, repeat_kv, walk
from edgeprune.models.changes import Changes, LayerChanges, find_changes
from edgeprune.models.masked import MaskedModel, keeping
from edgeprune.models.stack import CHUNK_BYTES
from edgeprune.models.states import WriterStates

_KEPT: tuple[Site, ...] = ("residual", "q_proj", "k_proj", "v_proj", "head_out", "attention_out", "mlp_out")


class LayerValues(NamedTuple):
    """What one layer computed: projected q, k, v `[T, readers, C]`, what heads write `[T, H, C]`, the MLP `[T, D]`."""

    qkv: tuple[Tensor, ...]
    heads: Tensor
    mlp: Tensor | None


class StartingRun(Protocol):
    """What a rerun asks of the run that it starts from.

    Attributes:
        model: The masked model.
        batch: On the model's device.
        delta: `ablated - own` of every writer in that run, `[writer, T, D]`.
        tokens: Scored positions as rows of T, long `[P]`.
    """

    model: MaskedModel
    batch: PairBatch
    delta: Tensor
    tokens: Tensor

    def context(self, copies: int) -> Any:
        """What layers share for some copies of the batch."""
        ...


@final
class CleanRun:
    """The full model on one batch, and how far each ablated writer is from it: what no circuit changes.

    Attributes:
        layers: What each layer computed.
        streams: Input of each layer's attention and MLP, and of the logits, `[T, D]` each.
        delta: `ablated - clean` of every writer, `[writer, T, D]`.
        tokens: Scored positions as rows of T, long `[P]`.
    """

    @torch.no_grad()
    def __init__(self, model: MaskedModel, batch: PairBatch, ablated: WriterStates) -> None:
        model.require_sums("running parts of a circuit anew")
        self.model, self.batch = model, batch
        graph, (size, seq) = model.graph, batch.clean.shape
        embeddings, self.embedded, context = model.start(batch.clean, batch.attention_mask)
        found: dict[str, list[Tensor]] = {}
        edits: Edits = {site: keeping(found.setdefault(site, [])) for site in _KEPT}
        walk(model.blocks, self.embedded, context, edits, graph.arch.kv_readers_per_head)
        flat = {site: [value.flatten(0, 1) for value in values] for site, values in found.items()}
        self.delta = self.embedded.new_empty((len(graph.writers), size * seq, self.embedded.shape[-1]))
        for row, (own, other) in enumerate(zip(embeddings, ablated.embeddings, strict=True)):
            self.delta[row] = (other - own).flatten(0, 1)
        self.streams: list[Tensor] = []
        self.layers: list[LayerValues] = []
        for layer, block in enumerate(model.blocks):
            heads = flat["head_out"][layer]
            other = ablated.heads[layer].expand_as(found["head_out"][layer]).flatten(0, 1)
            rows = self.delta[graph.heads(layer)]
            torch.bmm((other - heads).transpose(0, 1), block.output_weight(), out=rows)
            self.streams.append(flat["residual"][layer])
            mlp = None
            if ablated.mlps is not None:
                self.streams.append(block.mlp_input(flat["residual"][layer], flat["attention_out"][layer]))
                mlp = flat["mlp_out"][layer]
                self.delta[graph.mlp_writer(layer)] = ablated.mlps[layer].expand_as(self.embedded).flatten(0, 1) - mlp
            qkv = tuple(flat[site][layer] for site in ("q_proj", "k_proj", "v_proj"))
            self.layers.append(LayerValues(qkv, heads, mlp))
        self.streams.append(flat["residual"][-1])
        rows = torch.arange(size, device=self.embedded.device)[:, None] * seq
        self.tokens = (rows + batch.positions).flatten()

    def stream(self, reader: int) -> Tensor:
        """What `reader` sees in the full model, `[T, D]`."""
        graph = self.model.graph
        layer = graph.layer_of(reader)
        if layer == graph.arch.num_layers:
            return self.streams[-1]
        return self.streams[layer * (1 + graph.arch.has_mlp) + (reader >= graph.rows(layer).mlp.start)]

    def context(self, copies: int) -> Any:
        """What layers share for some copies of the batch."""
        return self.model.context(self.embedded, self.batch.clean, self.batch.attention_mask, copies)


@dataclass(frozen=True)
class ReferenceState:
    """A state that changes are relative to: inputs of a plan's readers, and what the layers computed."""

    attention: Callable[[int], Tensor]  # of a layer, [readers in the plan, T, D]
    mlps: dict[int, Tensor]  # by layer, [T, D]
    logits: Tensor  # [P, D]
    layers: Sequence[LayerValues]


@final
class DownstreamRun:
    """A circuit from one reader on, ready for questions about further closed edges into that reader.

    Args:
        clean: The clean run.
        keep: The circuit, bool `[reader, writer]`; all edges into earlier layers' readers must be open.
        reader: The reader.
    """

    @torch.no_grad()
    def __init__(self, clean: CleanRun, keep: Tensor, reader: int) -> None:
        graph = clean.model.graph
        self.clean, self.reader = clean, reader
        self.keep = keep & graph.exists
        self.open = self.keep.to(clean.delta)
        closed = graph.exists & ~self.keep
        starts = torch.zeros(len(graph.readers), dtype=torch.bool)
        starts[reader] = True
        self.plan = find_changes(graph, self.keep, starts)
        base = find_changes(graph, self.keep, closed.any(1))
        self.logits, self._reference = self._settle(base, closed.to(clean.delta))

    @torch.no_grad()
    def ahead(self, closed: Sequence[int], candidates: Sequence[int]) -> Tensor:
        """Logits with the edges from `closed` and the first 1, 2, ... of `candidates` into the reader closed.

        Returns:
            Float32 `[candidates, batch, positions, vocab]`.
        """
        delta = self.clean.delta
        moves = delta[list(candidates)].cumsum(0) + delta[list(closed)].sum(0)
        rerun = Rerun(self.clean, self.open, self.plan, self._reference, len(candidates))
        return rerun.run({self.reader: moves})[0]

    def _settle(self, base: Changes, closed: Tensor) -> tuple[Tensor, ReferenceState]:
        """The circuit itself, from the clean run by (1): its logits, and its state at the readers of `self.plan`."""
        clean, graph = self.clean, self.clean.model.graph
        rows = [graph.rows(layer).mlp.start for layer in range(len(base.layers))]
        mlps = {layer: self._mixed([rows[layer]], closed)[0] for layer, plan in enumerate(base.layers) if plan.mlp}
        last = self._mixed([len(graph.readers) - 1], closed)[0, clean.tokens]
        start = ReferenceState(lambda layer: self._mixed(base.layers[layer].readers, closed), mlps, last, clean.layers)
        rerun = Rerun(clean, self.open, base, start, 1, wanted=self.plan)
        logits, layers = rerun.run({})
        kept = rerun.inputs
        attention = {
            layer: torch.stack([kept.pop(reader, clean.stream(reader)) for reader in plan.readers])
            for layer, plan in enumerate(self.plan.layers)
            if plan.readers
        }
        mlps = {
            layer: kept.get(rows[layer], clean.stream(rows[layer]))
            for layer, plan in enumerate(self.plan.layers)
            if plan.mlp
        }
        return logits[0], ReferenceState(attention.__getitem__, mlps, rerun.last, layers)

    def _mixed(self, readers: list[int], closed: Tensor) -> Tensor:
        """The clean stream with what closed edges bring, `[readers, T, D]`, for readers that see the same writers."""
        stream, n = self.clean.stream(readers[0]), self.clean.model.graph.num_visible[readers[0]]
        mixed = closed[readers, :n] @ self.clean.delta[:n].view(n, -1)
        return mixed.view(-1, *stream.shape).add_(stream)


class Rerun:
    """One pass over what a plan says changes, for K copies at once. `moved` holds own' - own of changed writers."""

    def __init__(
        self,
        start: StartingRun,
        open_: Tensor,
        plan: Changes,
        reference: ReferenceState,
        copies: int,
        wanted: Changes | None = None,
    ) -> None:
        self.start, self.open, self.plan, self.reference, self.copies = start, open_, plan, reference, copies
        self.blocks, self.graph = start.model.blocks, start.model.graph
        self.shape = start.batch.clean.shape
        self.wanted = wanted  # keep the state that this plan needs, at all positions
        self.inputs: dict[int, Tensor] = {}
        self.layers: list[LayerValues] = []
        everywhere = set(plan.writers) if wanted else plan.everywhere
        self.full_writers = [writer for writer in plan.writers if writer in everywhere]
        new = start.delta.new_empty
        width = start.delta.shape[-1]
        self.full = new((len(self.full_writers), copies, start.delta.shape[1], width))
        self.scored = new((len(plan.writers), copies, len(start.tokens), width))
        self.full_row = {writer: row for row, writer in enumerate(self.full_writers)}
        self.scored_row = {writer: row for row, writer in enumerate(plan.writers)}

    def run(self, moves: dict[int, Tensor]) -> tuple[Tensor, list[LayerValues]]:
        """Logits `[K, B, positions, vocab]` after the inputs of some readers moved by `[K, T, D]`; the state."""
        context = self.start.context(self.copies) if any(plan.readers for plan in self.plan.layers) else None
        for layer, plan in enumerate(self.plan.layers):
            values = self.reference.layers[layer]
            if plan.readers:
                qkv, heads = self._attention(layer, plan, values, context, moves)
                values = LayerValues(qkv, heads, values.mlp)
            if plan.mlp:
                values = values._replace(mlp=self._mlp(layer, values.mlp, moves))
            if self.wanted is not None:
                self.layers.append(values)
        return self._logits(moves), self.layers

    # ---------------------------------------------------------------- attention
    def _attention(
        self, layer: int, plan: LayerChanges, values: LayerValues, context: Any, moves: dict[int, Tensor]
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        tokens = self.full.shape[2]
        kinds = self._by_kind(layer, plan.readers)
        qkv = [
            part.expand(self.copies, *part.shape).clone() if rows else part.expand(self.copies, *part.shape)
            for part, (rows, _) in zip(values.qkv, kinds, strict=True)
        ]
        self._project(layer, plan.readers, kinds, qkv, moves)
        q, k, v = (part.reshape(self.copies * self.shape[0], self.shape[1], *part.shape[2:]) for part in qkv)
        block = self.blocks[layer]
        heads = block.write(block.attend(*block.heads(q, k, v), context))[0]
        heads = heads.reshape(self.copies, tokens, *heads.shape[2:])
        if plan.heads:
            self._write_heads(layer, plan.heads, heads, values.heads)
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
        weights = [self._weights(weight, rows) for weight, (rows, _) in zip(self._qkv(layer), kinds, strict=True)]
        biases, reference = self._biases(layer), self.reference.attention(layer)
        for copies, tokens in self._pieces(len(readers)):
            inputs = self._read(readers, reference, copies, tokens, moves)
            normed = norm(inputs).flatten(1, 2)
            for (rows, place), weight, bias, out in zip(kinds, weights, biases, qkv, strict=True):
                if not rows:
                    continue
                found = torch.bmm(normed[place : place + len(rows)], weight).view(len(rows), *inputs.shape[1:3], -1)
                out[copies, tokens][:, :, rows] = found.permute(1, 2, 0, 3) + bias[0, 0, rows]

    def _qkv(self, layer: int) -> tuple[Tensor, ...]:
        """Projections by reader: q, k, v `[readers of the kind, D, C]`."""
        q, k, v = self.blocks[layer].qkv_weights()
        times = self.graph.arch.kv_readers_per_head
        return q, *(part if times == 1 else part.repeat_interleave(times, 0) for part in (k, v))

    @staticmethod
    def _weights(weight: Tensor, rows: list[int]) -> Tensor:
        return weight if len(rows) == len(weight) else weight[rows]

    def _biases(self, layer: int) -> tuple[Tensor, ...]:
        """What the projections give for no input, `[1, 1, readers, C]`."""
        nothing = self.start.delta.new_zeros(1, 1, self.start.delta.shape[-1])
        return repeat_kv(self.blocks[layer].project(nothing), self.graph.arch.kv_readers_per_head)

    def _pieces(self, num_rows: int) -> Iterator[tuple[slice, slice]]:
        """Copies and tokens whose readers' inputs fill about `CHUNK_BYTES`."""
        _, copies, tokens, width = self.full.shape
        fit = max(1, CHUNK_BYTES // (num_rows * width * self.full.element_size()))
        together = max(1, fit // tokens)
        size = -(-tokens // -(-tokens // min(fit, tokens)))
        for copy in range(0, copies, together):
            for token in range(0, tokens, size):
                yield slice(copy, min(copy + together, copies)), slice(token, min(token + size, tokens))

    def _read(
        self, readers: list[int], reference: Tensor, copies: slice, tokens: slice, moves: dict[int, Tensor]
    ) -> Tensor:
        """Inputs `[readers, copies, tokens, D]` by (2); `reference` `[readers, T, D]`."""
        num, start = copies.stop - copies.start, reference[:, None, tokens]
        before = [writer for writer in self.full_writers if writer < self.graph.num_visible[readers[0]]]
        if before:
            moved = self.full[: len(before), copies, tokens]
            shape, brings = (len(readers), *moved.shape[1:]), self.open[readers][:, before]
            moved = moved.reshape(len(before), -1)
            if num == 1:  # one pass less over memory
                inputs = torch.addmm(start.flatten(1), brings, moved).view(shape)
            else:
                inputs = (brings @ moved).view(shape).add_(start)
        else:
            inputs = start.expand(-1, num, -1, -1)
        started = [(place, reader) for place, reader in enumerate(readers) if reader in moves]
        if started:
            inputs = inputs if before else inputs.clone()
            for place, reader in started:
                inputs[place] += moves[reader][copies, tokens]
        if self.wanted is not None:
            self._keep(readers, inputs, tokens)
        return inputs

    def _keep(self, readers: list[int], inputs: Tensor, tokens: slice) -> None:
        """Note the input of each reader that the wanted plan will ask for."""
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
        """Input `[K, P, D]` of a reader at the scored positions, by (2); `reference` `[P, D]`."""
        inputs = reference.expand(self.scored.shape[1:])
        before = [writer for writer in self.plan.writers if writer < self.graph.num_visible[reader]]
        if before:
            moved = self.scored[: len(before)].view(len(before), -1)
            inputs = inputs + (self.open[reader, before] @ moved).view_as(inputs)
        return inputs + moves[reader][:, self.start.tokens] if reader in moves else inputs

    def _logits(self, moves: dict[int, Tensor]) -> Tensor:
        inputs = self._read_scored(len(self.graph.readers) - 1, self.reference.logits, moves)
        self.last = inputs[0]
        logits = self.start.model.logits(inputs.reshape(-1, self.start.batch.positions.shape[1], inputs.shape[-1]))
        return logits.unflatten(0, (self.copies, -1)).float()
