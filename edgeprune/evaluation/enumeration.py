"""The outputs of a compiled transformer under every choice of edges, with all work shared that can be.

Writers are visited in order, and two circuits are told apart only where something differs:

    reader    its input is a sum over writers of this run's or the ablated value, each projected onto what it reads;
              choices that project to equal numbers (a column nobody reads, a position both runs share) are one
    writer    has one output for each different set of inputs of its readers, and equal outputs are one
    state     the outputs of all writers so far: circuits in the same state have the same future

Equal means equal in every bit (by a 128-bit hash), so nothing is approximated.

A choice of f edges is a number below 2^f whose bit i says whether edge i is open. Shapes: B examples, T tokens,
S states, U different inputs or outputs, n visible writers.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor
from torch.nn.functional import linear

from edgeprune.batch import PairBatch
from edgeprune.compiled.transformer import CompiledAttention, CompiledLayer, CompiledMLP, CompiledTransformer
from edgeprune.console import Progress
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates

CHUNK_BYTES = 32 * 2**20  # of projected values worked on at a time


class MemoryBudgetError(Exception):
    """The different values of these examples take more memory than allowed; fewer examples take less."""


class _Budget:
    """Memory that is left for values."""

    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes

    def take(self, example: Tensor, count: int = 1) -> None:
        """Set aside room for `count` tensors like `example`."""
        self._left -= count * example.numel() * example.element_size()
        if self._left < 0:
            raise MemoryBudgetError

    def give_back(self, example: Tensor, count: int) -> None:
        """The opposite of `take`."""
        self._left += count * example.numel() * example.element_size()


class _Distinct:
    """Numbers values `[B, tokens, c]` in the order of their first appearance; equal ones get the same number."""

    def __init__(self, budget: _Budget) -> None:
        self._budget = budget
        self._numbers: dict[bytes, int] = {}
        self._values: list[Tensor] = []

    def add(self, values: Tensor) -> list[int]:
        """Numbers of `[U, B, tokens, c]`."""
        values = values + 0.0  # there are two zeros, which differ in one bit
        found: list[int] = []
        for value in values:
            key = hashlib.blake2b(value.contiguous().numpy().tobytes(), digest_size=16).digest()
            if key not in self._numbers:
                self._budget.take(value)
                self._numbers[key] = len(self._values)
                self._values.append(value.clone())
            found.append(self._numbers[key])
        return found

    def table(self) -> Tensor:
        """All different values, `[different, B, tokens, c]`."""
        table = torch.stack(self._values)
        self._values.clear()
        return table


class _Reader:
    """One reader: which edges may be chosen, and the different values that each writer can show it."""

    def __init__(self, project: Callable[[Tensor], Tensor], constant: Tensor, free: list[int], fixed: Tensor) -> None:
        """`free`: visible writers whose edge may be chosen. `fixed`: bool `[n]`, whether the others are open."""
        self.project = project
        self.constant = constant
        numbers = torch.arange(2 ** len(free))
        self.choices = fixed.repeat(len(numbers), 1)  # [2^f, n]
        for bit, writer in enumerate(free):
            self.choices[:, writer] = (numbers >> bit) % 2 == 1
        self.tables: list[Tensor] = []  # per writer [different, B, tokens, c]
        self.numbers: list[Tensor] = []  # per writer: row of each of its outputs, and of the ablated one at the end

    def inputs(self, states: Tensor) -> "_Inputs":
        """Different inputs over all states `[S, writers]` and choices."""
        visible = self.choices.shape[1]
        clean = torch.stack([self.numbers[writer][states[:, writer]] for writer in range(visible)], dim=1)
        ablated = torch.stack([numbers[-1] for numbers in self.numbers[:visible]])
        rows = torch.where(self.choices, clean[:, None], ablated)  # [S, 2^f, n]
        which, place = _unique(rows.unbind(-1), [len(table) for table in self.tables[:visible]])
        return _Inputs(which, rows.flatten(0, 1)[place], self)

    def sum(self, rows: Tensor) -> Tensor:
        """Inputs `[U, B, tokens, c]` for rows of the tables `[U, n]`."""
        total = self.constant.expand(len(rows), *self.tables[0].shape[1:]).clone()
        for table, row in zip(self.tables, rows.T, strict=False):
            total += table[row]
        return total


class _Inputs(NamedTuple):
    """Different inputs of a reader: which of them each state and choice gives `[S, 2^f]`, and their rows `[U, n]`."""

    which: Tensor
    rows: Tensor
    reader: _Reader

    def values(self) -> Tensor:
        return self.reader.sum(self.rows)


class Enumeration:
    """Walks through a model's writers and keeps, for every choice of the edges so far, the state it leads to.

    Args:
        model: A masked `CompiledTransformer`.
        batch: Clean prompts and scored positions.
        ablated: What closed edges carry.
        free: Bool `[reader, writer]`: edges that may be chosen.
        open_: Bool `[reader, writer]`: which of the other edges are open.
        report: Told how far it is.
        num_bytes: Memory for the different values of writers and readers.

    Raises:
        MemoryBudgetError: It is not enough; with fewer examples it may be.
    """

    def __init__(
        self,
        model: MaskedModel,
        batch: PairBatch,
        ablated: WriterStates,
        free: Tensor,
        open_: Tensor,
        report: Progress,
        num_bytes: int,
    ) -> None:
        self.budget = _Budget(num_bytes)
        self.graph, self.hf = model.graph, cast(CompiledTransformer, model.hf)
        self.free, self.open, self.report = free, open_, report
        self.positions = batch.positions
        self.shape = tuple(batch.clean.shape)
        self.ablated = ablated
        self.allowed = _allowed(batch, self.hf.config.causal)
        self.readers = self._make_readers()
        self.states = torch.zeros(1, 0, dtype=torch.long)
        self.state_of = torch.zeros(1, dtype=torch.long)  # [2^e] for the e edges in `order`
        self.order: list[tuple[int, int]] = []  # (reader, writer), the lowest bit first
        for clean, other in zip(
            model.record(batch.clean, batch.attention_mask).embeddings, ablated.embeddings, strict=True
        ):
            self._add_writer(iter([clean[None]]), other)
            self.states = torch.cat([self.states, torch.zeros(1, 1, dtype=torch.long)], dim=1)

    def run(self, error_of: Callable[[Tensor], Tensor]) -> Tensor:
        """The error, `[U]`, of outputs `[U, B, positions, d_out]`, for every choice, `[2^edges]`.

        Bit i of a choice is the i-th chosen edge in the order of `free.nonzero()`.
        """
        arch = self.graph.arch
        for number, module in enumerate(self.hf.layers):
            layer = cast(CompiledLayer, module)
            for head in range(arch.num_heads):
                self._visit_head(number, head, layer.attn)
            if layer.mlp is not None:
                self._visit_mlp(number, layer.mlp)
        inputs = self._inputs("logits")
        values = [error_of(part) for part in self._chunks("logits", inputs)]
        found = torch.cat(values)[inputs.which][self.state_of]  # [2^e, 2^f]
        return self._in_graph_order(found.T.reshape(-1))

    # ---------------------------------------------------------------- readers
    def _make_readers(self) -> dict[str, _Reader]:
        config = self.hf.config
        readers: dict[str, _Reader] = {}
        shared = self.hf.tok_embed.weight.new_zeros(config.hidden_size)  # attention's output biases have no owner
        for number, module in enumerate(self.hf.layers):
            layer = cast(CompiledLayer, module)
            for kind, projection in zip("qkv", (layer.attn.q_proj, layer.attn.k_proj, layer.attn.v_proj), strict=True):
                for head in range(config.num_attention_heads):
                    rows = slice(head * config.head_dim, (head + 1) * config.head_dim)
                    weight, bias = projection.weight[rows], projection.bias[rows]
                    readers[f"a{number}.h{head}.{kind}"] = self._reader(
                        f"a{number}.h{head}.{kind}", weight, linear(shared, weight, bias)
                    )
            shared = shared + layer.attn.o_proj.bias
            if layer.mlp is not None:
                weight, bias = layer.mlp.fc_in.weight, layer.mlp.fc_in.bias
                readers[f"m{number}"] = self._reader(f"m{number}", weight, linear(shared, weight, bias))
        weight = self.hf.unembed.weight
        readers["logits"] = self._reader("logits", weight, linear(shared, weight), self.positions)
        return readers

    def _reader(self, name: str, weight: Tensor, constant: Tensor, positions: Tensor | None = None) -> _Reader:
        row = self.graph.readers.index(name)
        visible = self.graph.num_visible[row]

        def project(values: Tensor) -> Tensor:
            if positions is None:
                return linear(values, weight)
            index = positions[..., None].expand(len(values), -1, -1, values.shape[-1])
            return linear(values.gather(2, index), weight)

        free = self.free[row, :visible].nonzero().flatten().tolist()
        return _Reader(project, constant, free, self.open[row, :visible])

    def _inputs(self, name: str) -> _Inputs:
        """Inputs of a reader over all states; its edges become the highest bits of a choice."""
        row = self.graph.readers.index(name)
        self.order += [(row, writer) for writer in self.free[row].nonzero().flatten().tolist()]
        return self.readers[name].inputs(self.states)

    def _chunks(self, what: str, inputs: _Inputs) -> Iterator[Tensor]:
        reader = inputs.reader
        for rows in _split(inputs.rows, reader.tables[0][0], what, self.report):
            yield reader.sum(rows)

    # ---------------------------------------------------------------- writers
    def _visit_head(self, layer: int, head: int, attn: CompiledAttention) -> None:
        name = f"a{layer}.h{head}"
        q, k, v = (self._inputs(f"{name}.{kind}") for kind in "qkv")
        shape = (len(self.states), *(part.which.shape[1] for part in (q, k, v)))
        columns = [
            q.which[:, :, None, None].expand(shape),
            k.which[:, None, :, None].expand(shape),
            v.which[:, None, None, :].expand(shape),
        ]
        which, place = _unique(columns, [len(part.rows) for part in (q, k, v)])
        triples = torch.stack([column.flatten()[place] for column in columns], dim=1)
        rooms = [part.reader.tables[0][0] for part in (q, k, v)]
        for part, room in zip((q, k, v), rooms, strict=True):
            self.budget.take(room, len(part.rows))
        values = [part.values() for part in (q, k, v)]
        weight = attn.o_proj.weight[:, head * attn.head_dim : (head + 1) * attn.head_dim]

        def outputs() -> Iterator[Tensor]:
            room = values[0].new_empty(self.shape[0], self.shape[1], self.shape[1] + weight.shape[0])
            for part in _split(triples, room, name, self.report):
                queries, keys, carried = (value[index] for value, index in zip(values, part.T, strict=True))
                scores = queries @ keys.transpose(-1, -2) * attn.scaling
                scores = scores.masked_fill(~self.allowed, torch.finfo(scores.dtype).min)
                yield linear(scores.softmax(-1) @ carried, weight)

        other = linear(self.ablated.heads[layer][..., head, :], weight)
        self._advance(self._add_writer(outputs(), other)[which])
        for part, room in zip((q, k, v), rooms, strict=True):
            self.budget.give_back(room, len(part.rows))

    def _visit_mlp(self, layer: int, mlp: CompiledMLP) -> None:
        inputs = self._inputs(f"m{layer}")
        outputs = (mlp.fc_out(part.relu()) for part in self._chunks(f"m{layer}", inputs))
        assert self.ablated.mlps is not None
        self._advance(self._add_writer(outputs, self.ablated.mlps[layer])[inputs.which])

    def _add_writer(self, outputs: Iterator[Tensor], other: Tensor) -> Tensor:
        """Show a writer's outputs `[U, B, T, d]`, in parts, and the ablated one to all later readers.

        Returns:
            The number of each output, `[U]`: equal if no reader can tell them apart.
        """
        writer = self.states.shape[1]
        later = [
            self.readers[name] for row, name in enumerate(self.graph.readers) if writer < self.graph.num_visible[row]
        ]
        distinct = [_Distinct(self.budget) for _ in later]
        numbers: list[list[int]] = [[] for _ in later]
        for part in outputs:
            for reader, seen, found in zip(later, distinct, numbers, strict=True):
                found += seen.add(reader.project(part))
        columns = [torch.tensor(found) for found in numbers]
        which, place = _unique(columns, [int(column.max()) + 1 for column in columns])
        expanded = other.expand(*self.shape, -1)[None]
        for reader, seen, column in zip(later, distinct, columns, strict=True):
            ablated = seen.add(reader.project(expanded))
            reader.tables.append(seen.table())
            reader.numbers.append(torch.cat([column[place], torch.tensor(ablated)]))
        return which

    def _advance(self, outputs: Tensor) -> None:
        """From states to states with one more writer, whose output for each state and choices is `[S, 2^f, ...]`."""
        old = torch.arange(len(self.states)).view(-1, *[1] * (outputs.dim() - 1)).expand_as(outputs)
        which, place = _unique([old, outputs], [len(self.states), int(outputs.max()) + 1])
        self.states = torch.cat([self.states[old.flatten()[place]], outputs.flatten()[place][:, None]], dim=1)
        found = which[self.state_of]  # [2^e, choices of q, of k, of v]: the last bits shall vary slowest
        self.state_of = found.permute(*reversed(range(found.dim()))).reshape(-1)

    def _in_graph_order(self, values: Tensor) -> Tensor:
        """From bits in the order of visits to bits in the order of `free.nonzero()`."""
        wanted = [(row, writer) for row, writer in self.free.nonzero().tolist()]
        size = len(wanted)
        axes = [size - 1 - self.order.index(edge) for edge in reversed(wanted)]
        return values.view([2] * size).permute(axes).reshape(-1)


def _unique(columns: Sequence[Tensor], sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Number equal tuples alike.

    Args:
        columns: Longs of one shape, each below its entry of `sizes`.
        sizes: As many.

    Returns:
        The number of each tuple, in that shape; and for each number the (flat) place of one tuple that has it.
    """
    code, bound = torch.zeros_like(columns[0]), 1
    for column, size in zip(columns, sizes, strict=True):
        if bound * size >= 2**62:
            code = code.unique(return_inverse=True)[1]
            bound = int(code.max()) + 1
        code, bound = code * size + column, bound * size
    found, which = code.unique(return_inverse=True)
    place = torch.empty(len(found), dtype=torch.long)
    place[which.flatten()] = torch.arange(which.numel())
    return which, place


def _split(rows: Tensor, example: Tensor, what: str, report: Progress) -> Iterator[Tensor]:
    """Rows in parts whose values, each as large as `example`, fill about `CHUNK_BYTES`."""
    size = max(1, CHUNK_BYTES // (example.numel() * example.element_size()))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
        report(f"brute force, {what}", min(start + size, len(rows)), len(rows))


def _allowed(batch: PairBatch, causal: bool) -> Tensor:
    """Bool `[B, T, T]`: which positions each position may look at."""
    length = batch.clean.shape[1]
    allowed = batch.attention_mask.bool()[:, None, :].expand(-1, length, -1)
    return allowed & torch.ones(length, length, dtype=torch.bool).tril() if causal else allowed
