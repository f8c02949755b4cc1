"""The edge graph of a transformer: who writes to the residual stream, who reads it, which edges exist.

A *writer* adds a vector to the residual stream (`embed`, or `tok_embed` and `pos_embed`; `a3.h7`; `m3`). A *reader*
takes the stream in (`a5.h1.q`, `a5.h1.k`, `a5.h1.v`, `m5`, `logits`). An edge joins a writer to every reader that comes
strictly after it, so the writers that a reader sees are always the first `num_visible[reader]` ones.

Writers are ordered by layer, heads before the MLP; readers by layer, all q, all k, all v, then the MLP; `logits` last.
With grouped-query attention and `kv_readers="group"`, `a5.h1.k` is the k reader of *key/value* head 1.

A graph with *roles* has every edge once for each role of the prompts' tokens, `a3.h7->a5.h1.q@S2`: what the reader
takes in from the writer at the tokens of that role. Its matrices are `[role, reader, writer]`. It has attention edges
as well, `a5.h1[END<-S2]` (`graph_attention.py`).
"""

import difflib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from edgeprune import graph_paths
from edgeprune.errors import EdgepruneError
from edgeprune.graph_arch import ArchSpec as ArchSpec
from edgeprune.graph_arch import KVReaders as KVReaders
from edgeprune.graph_arch import LayerRows as LayerRows
from edgeprune.graph_attention import AttentionEdges
from edgeprune.graph_counts import counts
from edgeprune.graph_roles import AT
from edgeprune.graph_roles import RoleSpec as RoleSpec


@dataclass(frozen=True)
class EdgeGraph:
    """Names, order and existence of the edges of one architecture.

    Attributes:
        arch: The architecture.
        roles: Roles of tokens, each with edges of its own; None: an edge is one for all tokens.

    >>> graph = EdgeGraph(ArchSpec(num_layers=12, num_heads=12, num_kv_heads=12))
    >>> len(graph.writers), len(graph.readers), graph.num_edges
    (157, 445, 32491)
    >>> graph.index("a3.h7->a5.h1.q")
    (186, 47)
    """

    arch: ArchSpec
    roles: RoleSpec | None = None

    def with_roles(self, roles: RoleSpec | None) -> Self:
        """The graph of the same architecture with these roles; None: without any."""
        return type(self)(self.arch, roles)

    @cached_property
    def without_roles(self) -> Self:
        """The graph of the same architecture without roles, the same object each time."""
        return self if self.roles is None else self.with_roles(None)

    @cached_property
    def attention(self) -> AttentionEdges:
        """The attention edges, `a5.h1[END<-S2]`; `EdgepruneError` without roles."""
        if self.roles is None:
            raise EdgepruneError("attention edges lead from role to role, and this graph has no roles; give it some")
        return AttentionEdges(self.arch, self.roles)

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
        """Bool `[reader, writer]`, or `[role, reader, writer]`: True where an edge exists, the same at every role."""
        found = torch.arange(len(self.writers)) < torch.tensor(self.num_visible)[:, None]
        return found if self.roles is None else found.repeat(len(self.roles), 1, 1)

    @cached_property
    def num_edges(self) -> int:
        """How many edges exist."""
        return sum(self.num_visible) * (1 if self.roles is None else len(self.roles))

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
    def shape(self) -> tuple[int, ...]:
        """`(readers, writers)`, the shape of every gate matrix; with roles `(roles, readers, writers)`."""
        own = len(self.readers), len(self.writers)
        return own if self.roles is None else (len(self.roles), *own)

    @property
    def axes(self) -> str:
        """What the numbers of `shape` are, for messages."""
        return "[reader, writer]" if self.roles is None else "[role, reader, writer]"

    def all_open(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Gates, of `shape`, that keep every edge: 1 where one exists, 0 elsewhere."""
        return self.exists.to(device=device, dtype=dtype)

    def all_closed(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Gates, of `shape`, that close every edge."""
        return torch.zeros(self.shape, dtype=dtype, device=device)

    def to_matrix(self, values: Tensor) -> Tensor:
        """Spread one value per existing edge (`[num_edges]`, row by row) into a matrix of `shape`, 0 elsewhere."""
        if values.shape != (self.num_edges,):
            raise EdgepruneError(
                f"expected one value for each of {self.num_edges} edges, got shape {tuple(values.shape)}"
            )
        return values.new_zeros(self.shape).masked_scatter(self.exists.to(values.device), values)

    def to_vector(self, matrix: Tensor) -> Tensor:
        """Gather a matrix of `shape` into one value per existing edge, `[num_edges]`: the inverse of `to_matrix`."""
        if tuple(matrix.shape) != self.shape:
            raise EdgepruneError(f"expected a {self.axes} matrix of shape {self.shape}, got {tuple(matrix.shape)}")
        return matrix[self.exists.to(matrix.device)]

    # ---------------------------------------------------------------- edges by name
    def index(self, edge: str) -> tuple[int, ...]:
        """`"a3.h7->a5.h1.q"` to `(reader, writer)`, `"a3.h7->a5.h1.q@S2"` to `(role, reader, writer)`.

        Raises:
            EdgepruneError: The graph has no such edge, or the name has no role where the graph has roles, or the
                reverse.
        """
        named, at, role = (part.strip() for part in edge.partition(AT))
        writer, arrow, reader = (part.strip() for part in named.partition("->"))
        if not arrow:
            raise EdgepruneError(f"edge {edge!r} is not of the form 'writer->reader', such as 'm0->logits'")
        if bool(at) != (self.roles is not None):
            roles = "no roles" if self.roles is None else f"the roles {', '.join(self.roles.names)}"
            remedy = f"leave {AT + role!r} out" if at else f"say at which, as in '{named}{AT}{self._first_role}'"
            raise EdgepruneError(f"edge {edge!r} is of another graph: this one has {roles}; {remedy}")
        column = self._look_up(writer, self._writer_index, "writer")
        row = self._look_up(reader, self._reader_index, "reader")
        if column >= self.num_visible[row]:
            raise EdgepruneError(f"edge {edge!r} does not exist: {writer} is not computed before {reader} reads")
        return (row, column) if self.roles is None else (self.roles.index(role), row, column)

    def edge_name(self, *place: int) -> str:
        """`(reader, writer)` to `"a3.h7->a5.h1.q"`, or `(role, reader, writer)`: the inverse of `index`."""
        *role, reader, writer = place
        name = f"{self.writers[writer]}->{self.readers[reader]}"
        return name if self.roles is None else f"{name}{AT}{self.roles.names[role[0]]}"

    def keep_matrix(self, edges: Iterable[str]) -> Tensor:
        """Bool of `shape` that is True at the named edges."""
        keep = torch.zeros(self.shape, dtype=torch.bool)
        for edge in edges:
            keep[self.index(edge)] = True
        return keep

    @property
    def _first_role(self) -> str:
        return self.roles.names[0] if self.roles else ""

    @staticmethod
    def _look_up(name: str, table: dict[str, int], kind: str) -> int:
        if name not in table:
            raise unknown_name(name, kind, tuple(table))
        return table[name]

    # ---------------------------------------------------------------- paths
    @cached_property
    def links(self) -> tuple[tuple[graph_paths.Link, graph_paths.Link], ...]:
        """By layer, how its attention and its MLP lead from readers to writers."""
        return tuple(graph_paths.links_of(self, layer) for layer in range(self.arch.num_layers))

    def dangling(self, keep: Tensor, attend: Tensor | None = None) -> Tensor:
        """Bool of `shape`: kept edges that lie on no path of kept edges from an embedding to the logits.

        A head is crossed from any of its q, k, v readers to its output, an MLP from its input to its output; coupled
        heads of a layer from any of their readers to any of their outputs. With roles a path stays at its role, but
        leads from a head's k and v to its output at all roles that see theirs, and ends in logits that are scored: an
        edge into a query from which nothing scored hears dangles. `attend`: open attention edges, bool of
        `attention.shape`, along which alone it then leads from k and v; None: all.
        """
        keep = keep.cpu().bool() & self.exists
        by_role = keep.reshape(-1, *keep.shape[-2:])
        fed = graph_paths.fed_by_embedding(self, by_role, attend)
        reaching = graph_paths.reaching_logits(self, by_role, attend)
        return keep & ~(fed[:, None, :] & reaching[..., None]).view(self.shape)

    def reaching_logits(self, keep: Tensor) -> Tensor:
        """Bool `[reader]`, or `[role, reader]`: a path of kept edges leads from it to scored logits."""
        return graph_paths.reaching_logits(self, keep.reshape(-1, *keep.shape[-2:])).view(self.shape[:-1])

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
            f"{self.num_edges:,} edges" + self._of_roles(),
            "The same model in other conventions:",
        ]
        lines += [f"  {count:>12,}  {what}" for what, count in self.counts().items()]
        return "\n".join(lines)

    def _of_roles(self) -> str:
        """How many of the edges there are by role, and how many of those may matter."""
        if self.roles is None:
            return ""
        useful = self.num_edges - int(self.dangling(self.exists).sum())
        each = f"{self.num_edges // len(self.roles):,} at each of {len(self.roles)} roles"
        return (
            f" ({each}: {', '.join(self.roles.names)}), {useful:,} of them on a path to a scored position; "
            f"{self.attention.num_edges:,} attention edges"
        )

    def counts(self) -> dict[str, int]:
        """Edges of this architecture, without roles, under each counting convention in use."""
        return counts(self.arch)

    # ---------------------------------------------------------------- (de)serialisation
    def to_dict(self) -> dict[str, Any]:
        """Plain values that rebuild the graph."""
        values = asdict(self.arch)
        if not self.arch.coupled_heads:
            del values["coupled_heads"]
        return values if self.roles is None else {**values, "roles": self.roles.to_dict()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Rebuild a graph from `to_dict`."""
        values = dict(values)
        try:
            roles = values.pop("roles", None)
            return cls(ArchSpec(**values), None if roles is None else RoleSpec.from_dict(roles))
        except TypeError as error:
            raise EdgepruneError(f"not the description of a graph: {error}") from None


def unknown_name(name: str, kind: str, known: Sequence[str], also: Sequence[str] = ()) -> EdgepruneError:
    """What to raise for a name that a graph does not have: with the nearest that it has, or the first and the last."""
    near = difflib.get_close_matches(name, (*known, *also), n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"they run from {known[0]!r} to {known[-1]!r}"
    return EdgepruneError(f"no {kind} named {name!r} in this graph; {hint}")
