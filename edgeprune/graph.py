"""The edge graph of a transformer: who writes to the residual stream, who reads it, which edges exist.

A *writer* adds a vector to the residual stream (`embed`, or `tok_embed` and `pos_embed`; `a3.h7`; `m3`). A *reader*
takes the stream in (`a5.h1.q`, `a5.h1.k`, `a5.h1.v`, `m5`, `logits`). An edge joins a writer to every reader that comes
strictly after it, so the writers that a reader sees are always the first `num_visible[reader]` ones.

Writers are ordered by layer, heads before the MLP; readers by layer, all q, all k, all v, then the MLP; `logits` last.
With grouped-query attention and `kv_readers="group"`, `a5.h1.k` is the k reader of *key/value* head 1.
"""

import difflib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, Self

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.graph_arch import ArchSpec as ArchSpec
from edgeprune.graph_arch import KVReaders as KVReaders
from edgeprune.graph_arch import LayerRows as LayerRows


@dataclass(frozen=True)
class EdgeGraph:
    """Names, order and existence of the edges of one architecture.

    >>> graph = EdgeGraph(ArchSpec(num_layers=12, num_heads=12, num_kv_heads=12))
    >>> len(graph.writers), len(graph.readers), graph.num_edges
    (157, 445, 32491)
    >>> graph.index("a3.h7->a5.h1.q")
    (186, 47)
    """

    arch: ArchSpec

    # ---------------------------------------------------------------- names
    @cached_property
    def writers(self) -> tuple[str, ...]:
        """Writer names in column order."""
        names = ["tok_embed", "pos_embed"] if self.arch.split_embedding else ["embed"]
        for layer in range(self.arch.num_layers):
            names += [f"a{layer}.h{head}" for head in range(self.arch.num_heads)]
            names += [f"m{layer}"] * self.arch.has_mlp
        return tuple(names)

    @cached_property
    def readers(self) -> tuple[str, ...]:
        """Reader names in row order."""
        names: list[str] = []
        for layer in range(self.arch.num_layers):
            names += [f"a{layer}.h{head}.q" for head in range(self.arch.num_heads)]
            names += [f"a{layer}.h{head}.{kind}" for kind in "kv" for head in range(self.arch.num_kv_readers)]
            names += [f"m{layer}"] * self.arch.has_mlp
        return (*names, "logits")

    @cached_property
    def _writer_index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.writers)}

    @cached_property
    def _reader_index(self) -> dict[str, int]:
        return {name: index for index, name in enumerate(self.readers)}

    # ---------------------------------------------------------------- existence
    def first_writer(self, layer: int) -> int:
        """Column of the first head of `layer`; also how many writers its attention can see."""
        return self.arch.num_embeddings + layer * self.arch.writers_per_layer

    def heads(self, layer: int) -> slice:
        """Columns of the heads of `layer`."""
        first = self.first_writer(layer)
        return slice(first, first + self.arch.num_heads)

    def mlp_writer(self, layer: int) -> int:
        """Column of the MLP of `layer`."""
        return self.heads(layer).stop

    def first_reader(self, layer: int) -> int:
        """Row of the first q reader of `layer`."""
        return layer * self.arch.readers_per_layer

    def rows(self, layer: int) -> LayerRows:
        """Rows of the readers of `layer`."""
        ends = list(
            itertools.accumulate((*self.arch.reader_counts, self.arch.has_mlp), initial=self.first_reader(layer))
        )
        return LayerRows(*(slice(start, end) for start, end in itertools.pairwise(ends)))

    def mlp_reader(self, layer: int) -> int:
        """Row of the MLP of `layer`."""
        return self.rows(layer).mlp.start

    def layer_of(self, reader: int) -> int:
        """Layer of a reader's row; the number of layers for the logits."""
        return reader // self.arch.readers_per_layer

    @cached_property
    def num_visible(self) -> tuple[int, ...]:
        """For each reader, how many writers come strictly before it (always a prefix of the writers)."""
        counts: list[int] = []
        for layer in range(self.arch.num_layers):
            before = self.first_writer(layer)
            counts += [before] * self.arch.num_attention_readers
            counts += [before if self.arch.parallel_blocks else before + self.arch.num_heads] * self.arch.has_mlp
        return (*counts, len(self.writers))

    @cached_property
    def exists(self) -> Tensor:
        """Bool `[reader, writer]`: True where an edge exists."""
        return torch.arange(len(self.writers)) < torch.tensor(self.num_visible)[:, None]

    @cached_property
    def num_edges(self) -> int:
        """How many edges exist."""
        return sum(self.num_visible)

    @cached_property
    def inputs(self) -> tuple[tuple[int, ...], ...]:
        """For each writer the rows through which it reads: q, k and v of a head, one of an MLP, none of an embedding.

        Heads of a group share rows where `kv_readers` is `"group"`.
        """
        arch = self.arch
        found: list[tuple[int, ...]] = [()] * arch.num_embeddings
        for layer in range(arch.num_layers):
            rows = self.rows(layer)
            for head in range(arch.num_heads):
                shared = arch.kv_reader_of(head)
                found.append((rows.q.start + head, rows.k.start + shared, rows.v.start + shared))
            found += [(rows.mlp.start,)] * arch.has_mlp
        return tuple(found)

    @cached_property
    def _behind(self) -> tuple[tuple[int, ...], ...]:
        found: list[list[int]] = [[] for _ in self.readers]
        for writer, rows in enumerate(self.inputs):
            for row in rows:
                found[row].append(writer)
        for layer in range(self.arch.num_layers if self.arch.coupled_heads else 0):
            heads, rows = self.heads(layer), self.rows(layer).attention
            found[rows] = [list(range(heads.start, heads.stop))] * (rows.stop - rows.start)
        return tuple(map(tuple, found))

    def behind(self, reader: int) -> tuple[int, ...]:
        """The writers that depend on `reader` directly: its MLP, its head, or the heads that share its keys or values.

        All heads of its layer if they are coupled; none for the logits.
        """
        return self._behind[reader]

    @property
    def shape(self) -> tuple[int, int]:
        """`(readers, writers)`, the shape of every gate matrix."""
        return len(self.readers), len(self.writers)

    def all_open(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Gates `[reader, writer]` that keep every edge: 1 where one exists, 0 elsewhere."""
        return self.exists.to(device=device, dtype=dtype)

    def all_closed(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Gates `[reader, writer]` that close every edge."""
        return torch.zeros(self.shape, dtype=dtype, device=device)

    def to_matrix(self, values: Tensor) -> Tensor:
        """Spread one value per existing edge (`[num_edges]`, row by row) into `[reader, writer]`, 0 elsewhere."""
        if values.shape != (self.num_edges,):
            raise EdgepruneError(
                f"expected one value for each of {self.num_edges} edges, got shape {tuple(values.shape)}"
            )
        return values.new_zeros(self.shape).masked_scatter(self.exists.to(values.device), values)

    def to_vector(self, matrix: Tensor) -> Tensor:
        """Gather `[reader, writer]` into one value per existing edge, `[num_edges]`: the inverse of `to_matrix`."""
        if tuple(matrix.shape) != self.shape:
            raise EdgepruneError(f"expected a [reader, writer] matrix of shape {self.shape}, got {tuple(matrix.shape)}")
        return matrix[self.exists.to(matrix.device)]

    # ---------------------------------------------------------------- edges by name
    def index(self, edge: str) -> tuple[int, int]:
        """`"a3.h7->a5.h1.q"` to `(reader, writer)`; refuses names and edges that this graph does not have."""
        writer, arrow, reader = (part.strip() for part in edge.partition("->"))
        if not arrow:
            raise EdgepruneError(f"edge {edge!r} is not of the form 'writer->reader', such as 'm0->logits'")
        column = self._look_up(writer, self._writer_index, "writer")
        row = self._look_up(reader, self._reader_index, "reader")
        if column >= self.num_visible[row]:
            raise EdgepruneError(f"edge {edge!r} does not exist: {writer} is not computed before {reader} reads")
        return row, column

    def edge_name(self, reader: int, writer: int) -> str:
        """`(reader, writer)` to `"a3.h7->a5.h1.q"`: the inverse of `index`."""
        return f"{self.writers[writer]}->{self.readers[reader]}"

    def keep_matrix(self, edges: Iterable[str]) -> Tensor:
        """Bool `[reader, writer]` that is True at the named edges."""
        keep = torch.zeros(self.shape, dtype=torch.bool)
        for edge in edges:
            keep[self.index(edge)] = True
        return keep

    @staticmethod
    def _look_up(name: str, table: dict[str, int], kind: str) -> int:
        if name not in table:
            raise unknown_name(name, kind, tuple(table))
        return table[name]

    # ---------------------------------------------------------------- paths
    def dangling(self, keep: Tensor) -> Tensor:
        """Bool `[reader, writer]`: kept edges that lie on no path of kept edges from an embedding to the logits.

        A head is crossed from any of its q, k, v readers to its output, an MLP from its input to its output; coupled
        heads of a layer from any of their readers to any of their outputs.
        """
        keep = keep.cpu().bool() & self.exists
        fed = self._fed_by_embedding(keep)
        reaching = self.reaching_logits(keep)
        return keep & ~(fed[None, :] & reaching[:, None])

    def _fed_by_embedding(self, keep: Tensor) -> Tensor:
        """Bool `[writer]`: a path of kept edges leads from an embedding to it."""
        fed = torch.zeros(len(self.writers), dtype=torch.bool)
        fed[: self.arch.num_embeddings] = True
        for layer in range(self.arch.num_layers):
            for rows in (self.rows(layer).attention, self.rows(layer).mlp):
                entered = (keep[rows] & fed).any(1).nonzero().flatten() + rows.start
                fed[[writer for row in entered.tolist() for writer in self.behind(row)]] = True
        return fed

    def reaching_logits(self, keep: Tensor) -> Tensor:
        """Bool `[reader]`: a path of kept edges leads from it to the logits."""
        reaching = torch.zeros(len(self.readers), dtype=torch.bool)
        reaching[-1] = True
        heard = keep[-1].clone()  # writers that a reader which reaches the logits reads
        for layer in reversed(range(self.arch.num_layers)):
            for rows in (self.rows(layer).mlp, self.rows(layer).attention):
                found = heard.tolist()
                reaching[rows] = torch.tensor(
                    [any(found[writer] for writer in self.behind(row)) for row in range(rows.start, rows.stop)],
                    dtype=torch.bool,
                )
                heard |= (keep[rows] & reaching[rows, None]).any(0)
        return reaching

    # ---------------------------------------------------------------- description
    def describe(self) -> str:
        """Explain the edge count, and how other tools count the same model."""
        arch = self.arch
        lines = [
            f"{arch.num_layers} layers, {arch.num_heads} heads"
            + (f" ({arch.num_kv_heads} key/value heads)" if arch.num_kv_heads != arch.num_heads else "")
            + (", attention only" if not arch.has_mlp else "")
            + (", parallel attention and MLP" if arch.parallel_blocks else "")
            + (", heads of a layer coupled by a norm" if arch.coupled_heads else ""),
            f"{len(self.writers):,} writers: {arch.num_embeddings} embedding, "
            f"{arch.num_layers * arch.num_heads:,} heads, "
            f"{arch.num_layers * arch.has_mlp} MLPs",
            f"{len(self.readers):,} readers: {arch.num_layers * arch.num_heads:,} q, "
            f"{arch.num_layers * arch.num_kv_readers:,} k, {arch.num_layers * arch.num_kv_readers:,} v, "
            f"{arch.num_layers * arch.has_mlp} MLPs, 1 logits",
            f"{self.num_edges:,} edges",
            "The same model in other conventions:",
        ]
        lines += [f"  {count:>12,}  {what}" for what, count in self.counts().items()]
        return "\n".join(lines)

    def counts(self) -> dict[str, int]:
        """Edges of this architecture under each counting convention in use."""
        arch = self.arch
        direct = 3 * arch.num_layers * arch.num_heads
        return {
            "one embedding writer (EAP-IG, MIB, auto-circuit, DiscoGP)": _count(arch, 1, "head"),
            "one embedding writer, k and v readers per key/value head": _count(arch, 1, "group"),
            "token and position embedding apart (Edge Pruning with embedding nodes)": _count(arch, 2, "head"),
            "embeddings are no writers (Edge Pruning without embedding nodes)": _count(arch, 0, "head"),
            "one embedding writer + 3 direct edges per head (ACDC)": _count(arch, 1, "head") + direct,
            "token and position embedding apart + 3 direct edges per head (ACDC)": _count(arch, 2, "head") + direct,
            "one embedding writer, q, k and v of a head read as one": _count(arch, 1, "none"),
        }

    # ---------------------------------------------------------------- (de)serialisation
    def to_dict(self) -> dict[str, Any]:
        """Plain values that rebuild the graph."""
        values = asdict(self.arch)
        if not self.arch.coupled_heads:
            del values["coupled_heads"]
        return values

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Rebuild a graph from `to_dict`."""
        try:
            return cls(ArchSpec(**values))
        except TypeError as error:
            raise EdgepruneError(f"not the description of a graph: {error}") from None


def unknown_name(name: str, kind: str, known: Sequence[str], also: Sequence[str] = ()) -> EdgepruneError:
    """What to raise for a name that a graph does not have: with the nearest that it has, or the first and the last."""
    near = difflib.get_close_matches(name, (*known, *also), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"they run from {known[0]!r} to {known[-1]!r}"
    return EdgepruneError(f"no {kind} named {name!r} in this graph; {hint}")


def _count(arch: ArchSpec, num_embeddings: int, readers: Literal["head", "group", "none"]) -> int:
    """Closed form of the edge count, written independently of `EdgeGraph.exists`."""
    per_layer, heads = arch.writers_per_layer, arch.num_heads
    attention = {"head": 3 * heads, "group": heads + 2 * arch.num_kv_heads, "none": heads}[readers]
    seen = sum(num_embeddings + layer * per_layer for layer in range(arch.num_layers))
    own_mlp = arch.num_layers * heads if arch.has_mlp and not arch.parallel_blocks else 0
    return (attention + arch.has_mlp) * seen + own_mlp + num_embeddings + arch.num_layers * per_layer
