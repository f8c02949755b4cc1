"""A circuit: the edges that are kept, optionally a score per edge, and a header that says where it came from.

One `.safetensors` file: `keep` bool `[reader, writer]`, optional `scores` float `[reader, writer]`, and the header as
JSON in the file's metadata. With roles both are `[role, reader, writer]`, the header names the roles, the format is
`ROLE_FORMAT`, and there may be `attend` bool `[layer, head, query role, key role]` and `attend_scores` float likewise.
No pickle; written whole or not at all.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from edgeprune import circuit_attention, circuit_roles, circuit_scores, circuit_views, graph_paths, nodes
from edgeprune.checkpoint_files import read_checkpoint as read_checkpoint
from edgeprune.circuit_header import of_a_part
from edgeprune.circuit_scores import edges_at as edges_at
from edgeprune.graph import EdgeGraph, RoleSpec
from edgeprune.sealed import SealedFile

if TYPE_CHECKING:
    import networkx
    import pandas

FORMAT = "edgeprune-circuit/1"
ROLE_FORMAT = "edgeprune-circuit/2"
_TYPES = {"keep": torch.bool, "scores": torch.float32, "attend": torch.bool, "attend_scores": torch.float32}
_FILE = SealedFile(FORMAT, "circuit file", _TYPES, also=(ROLE_FORMAT,))
_ROLE_FILE = replace(_FILE, format=ROLE_FORMAT)


@dataclass(frozen=True, eq=False)
class Circuit:
    """Kept edges of one graph. Existing edges' scores must not be NaN.

    Attributes:
        graph: The graph that the matrices belong to; where it has roles, they are `[role, reader, writer]`.
        keep: Bool `[reader, writer]`, True where an edge is kept.
        scores: Float `[reader, writer]`, the higher the more the edge matters to the method; None if it has none.
        header: Plain values: model, task, method, metrics, versions.
        attend: Bool `[layer, head, query role, key role]`, True where an attention edge is open (`graph.attention`);
            None: all are, as always without roles.
        attend_scores: Float likewise, as `scores`; None if there are none.
    """

    graph: EdgeGraph
    keep: Tensor
    scores: Tensor | None = None
    header: dict[str, Any] = field(default_factory=dict[str, Any])
    attend: Tensor | None = None
    attend_scores: Tensor | None = None

    def __post_init__(self) -> None:
        circuit_scores.check(self.graph, self.keep, self.scores)
        object.__setattr__(self, "keep", self.keep.bool().cpu() & self.graph.exists)
        attend = circuit_attention.checked(self.graph, self.attend, self.attend_scores)
        object.__setattr__(self, "attend", attend)

    # ---------------------------------------------------------------- making
    @classmethod
    def from_edges(cls, graph: EdgeGraph, edges: Iterable[str], header: dict[str, Any] | None = None) -> Self:
        """Keep the named edges. If some are attention edges, these alone are open; if none is, all are."""
        edges, attend = circuit_attention.split_names(graph, edges)
        return cls(graph, graph.keep_matrix(edges), None, header or {}, attend)

    @classmethod
    def from_scores(
        cls,
        graph: EdgeGraph,
        scores: Tensor,
        *,
        sparsity: float | None = None,
        num_edges: int | None = None,
        header: dict[str, Any] | None = None,
    ) -> Self:
        """Keep exactly the best `num_edges` existing edges, or `sparsity`'s share of them, over the whole graph.

        Args:
            graph: The graph.
            scores: Float `[reader, writer]`.
            sparsity: Closed edges / existing edges, in [0, 1].
            num_edges: Edges to keep; give this or `sparsity`.
            header: Plain values to write in the file.
        """
        keep = circuit_scores.highest(graph, scores, sparsity, num_edges)
        return cls(graph, keep, torch.where(graph.exists, scores.detach().float().cpu(), 0.0), header or {})

    @classmethod
    def from_checkpoint(cls, path: str | Path, sparsity: float | None = None, num_edges: int | None = None) -> Self:
        """Read the masks of a Lightning checkpoint, without loading the model.

        Args:
            path: A `.ckpt` file that `edgeprune fit` wrote.
            sparsity: Closed edges / existing edges of the circuit, and of attention edges if they were learned.
            num_edges: Or the number of edges to keep, if they were learned. With neither, gates more open than closed.
        """
        saved = read_checkpoint(path)
        graph = EdgeGraph.from_dict(saved["graph"])
        scores = graph.to_matrix(saved["scores"])
        inside = circuit_attention.of_checkpoint(graph, saved.get("attention"), sparsity)
        sparsity, num_edges = circuit_attention.cut_of_edges(saved, sparsity, num_edges)
        made = cls.from_scores(graph, scores, sparsity=sparsity, num_edges=num_edges, header=saved["header"])
        return replace(made, **inside)

    @classmethod
    def random(cls, graph: EdgeGraph, num_edges: int, seed: int = 0) -> Self:
        """A random circuit of that size: the control for every figure."""
        noise = torch.rand(graph.shape, generator=torch.Generator().manual_seed(seed))
        return cls.from_scores(graph, noise, num_edges=num_edges, header={"method": "random", "seed": seed})

    # ---------------------------------------------------------------- looking
    def edges(self) -> list[str]:
        """Names of the kept edges, by role, reader, then writer."""
        return [self.graph.edge_name(*place) for place in self.keep.nonzero().tolist()]

    @property
    def num_edges(self) -> int:
        """Kept edges."""
        return int(self.keep.sum())

    @property
    def sparsity(self) -> float:
        """Closed edges / existing edges."""
        return 1 - self.num_edges / self.graph.num_edges

    @property
    def ranking(self) -> Tensor | None:
        """What the edges were ranked by when the circuit was made, `[reader, writer]`; None without scores.

        That is the scores, or their absolute values where the header says so: under `selection`, or of ACDC's own rule.
        """
        selection: Any = self.header.get("selection")
        absolute = (selection if isinstance(selection, dict) else self.header).get("absolute")
        return self.scores.abs() if self.scores is not None and absolute is True else self.scores

    @property
    def num_dangling(self) -> int:
        """Kept edges that lie on no path of kept edges from an embedding to the logits."""
        return int(self.graph.dangling(self.keep, self.attend).sum())

    def gates(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """The circuit as a 0/1 gate matrix `[reader, writer]` for a masked model; with roles `[role, reader, writer]`.

        A model then needs `role_of`, the role of each token, which `edgeprune.roles.role_of` finds.
        """
        return self.keep.to(device=device, dtype=dtype)

    def check_fits(self, graph: EdgeGraph, what: str = "the model", *, attention: bool = False) -> None:
        """Refuse another graph than this circuit's own, and closed attention edges unless the caller takes `attention`.

        The first difference is named. Attention edges are not in `gates`.
        """
        circuit_roles.check_same(self.graph, graph, what)
        if not attention:
            circuit_attention.require_open(self.graph, self.attend, what)

    # ---------------------------------------------------------------- attention edges
    def attention_edges(self) -> list[str]:
        """Names of the open attention edges, `a5.h1[END<-S2]`; none where the circuit has none of its own."""
        return [] if self.attend is None else self.graph.attention.names(self.attend)

    def attention_gates(self, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor | None:
        """0/1 gates `[layer, head, query role, key role]` for a masked model, which takes them beside `gates`."""
        return None if self.attend is None else self.graph.attention.gates(self.attend, dtype, device)

    def with_attention(self, attend: Tensor | None, how: dict[str, Any], scores: Tensor | None = None) -> "Circuit":
        """The same edges with other attention edges.

        Args:
            attend: Which are open, bool `[layer, head, query role, key role]`; None: all.
            how: What was done, under `derived` in the header.
            scores: Of them, float likewise.
        """
        return replace(self._part(self.keep, how), attend=attend, attend_scores=scores)

    # ---------------------------------------------------------------- roles
    @property
    def roles(self) -> tuple[str, ...]:
        """Names of the roles that have edges of their own; none where an edge is one for all tokens."""
        return () if self.graph.roles is None else self.graph.roles.names

    def union(self) -> "Circuit":
        """The circuit without roles that keeps an edge if this one does at any role; itself if it has none.

        Its scores are those of the role that ranks the edge highest; its attention edges are open.
        """
        roles = self.graph.roles
        if roles is None:
            return self
        scores = None if self.ranking is None else circuit_roles.best(self.scores, self.ranking)
        how = {"union": list(roles.names), "num_edges": self.num_edges, **circuit_attention.number(self.attend)}
        return self._part(self.keep.any(0), how, self.graph.with_roles(None), scores)

    def with_roles(self, roles: RoleSpec) -> "Circuit":
        """The circuit that keeps each edge of this one at every role, with the same score."""
        self.require_no_roles("giving roles")
        keep, scores = (None if part is None else part.repeat(len(roles), 1, 1) for part in (self.keep, self.scores))
        assert keep is not None
        return self._part(keep, {"roles": list(roles.names)}, self.graph.with_roles(roles), scores)

    def require_no_roles(self, what: str) -> None:
        """Refuse a circuit with roles where `what` is done."""
        circuit_roles.require_none(self.graph, what)

    # ---------------------------------------------------------------- nodes and parts
    def nodes(self) -> list[str]:
        """Embeddings, heads, MLPs and `logits` that a kept edge leaves or enters at any role, in the graph's order.

        A k or v reader that several heads share counts for each of them.
        """
        return nodes.present(self.graph, self.keep)

    def heads(self) -> list[str]:
        """The heads among `nodes`."""
        return [name for name in self.nodes() if nodes.writer_kind(name) == "head"]

    def ancestors(self, node: str) -> list[str]:
        """Nodes from which a path of kept edges leads to `node`, in the graph's order; `node` is not among them.

        Args:
            node: A node such as `a5.h1`, `m3` or `logits`, or one reader of a head, such as `a5.h1.q`.
        """
        self.require_no_roles("following paths")
        return nodes.upstream(self.graph, self.keep, node)

    def descendants(self, node: str) -> list[str]:
        """Nodes to which a path of kept edges leads from `node`; those of a reader include the heads that it is of."""
        self.require_no_roles("following paths")
        return nodes.downstream(self.graph, self.keep, node)

    def subgraph(self, names: Iterable[str]) -> "Circuit":
        """The kept edges from one of these nodes to another one of them.

        Args:
            names: Nodes, as `ancestors` gives them; a reader such as `a5.h1.q` lets in its own edges alone.
        """
        self.require_no_roles("taking a subgraph")
        names = [names] if isinstance(names, str) else list(names)
        return self._part(nodes.within(self.graph, self.keep, names), {"subgraph": names})

    def without_dangling(self) -> "Circuit":
        """The kept edges, and open attention edges, on a path of kept edges from an embedding to the logits."""
        keep = self.keep & ~self.graph.dangling(self.keep, self.attend)
        attend = None if self.attend is None else graph_paths.on_a_path(self.graph, self.keep, self.attend)
        return replace(self._part(keep, {"without_dangling": self.num_dangling}), attend=attend)

    def __and__(self, other: "Circuit") -> "Circuit":
        """Edges in both; scores stay those of the left one, here and in `|` and `-`."""
        made = self._part(self.keep & self._keep_of(other), {"and": other._source()})
        return replace(made, attend=circuit_attention.both(self.attend, other.attend))

    def __or__(self, other: "Circuit") -> "Circuit":
        """Edges in either."""
        made = self._part(self.keep | self._keep_of(other), {"or": other._source()})
        return replace(made, attend=circuit_attention.either(self.attend, other.attend))

    def __sub__(self, other: "Circuit") -> "Circuit":
        """Edges of the left one that the right one has not; with the attention edges of the left one."""
        return self._part(self.keep & ~self._keep_of(other), {"minus": other._source()})

    def _keep_of(self, other: "Circuit") -> Tensor:
        other.check_fits(self.graph, "the other circuit", attention=True)
        return other.keep

    def _source(self) -> dict[str, Any]:
        """What names this circuit in the header of another."""
        known = {name: self.header[name] for name in ("model", "method", "seed", "sha256") if name in self.header}
        return {**known, "num_edges": self.num_edges}

    def with_edges(self, keep: Tensor, how: dict[str, Any]) -> "Circuit":
        """Other edges, which this circuit's scores do not rank; the header says how, and drops what was measured.

        Args:
            keep: Bool `[reader, writer]`.
            how: What was done, under `derived` in the header.
        """
        return replace(self._part(keep, how), scores=None)

    def _part(
        self, keep: Tensor, how: dict[str, Any], graph: EdgeGraph | None = None, scores: Tensor | None = None
    ) -> "Circuit":
        """Other edges with these scores; the header says how, and drops what was measured of the old edges.

        Of another graph, if one is given, whose scores are `scores` then.
        """
        header = of_a_part(self.header, how)
        return Circuit(graph, keep, scores, header) if graph else replace(self, keep=keep, header=header)

    # ---------------------------------------------------------------- in other libraries
    def to_networkx(self, inner: bool = True) -> "networkx.DiGraph[str]":
        """The circuit as a directed graph of networkx, a library of the extra `analysis`.

        Its nodes are `nodes` and the readers that a kept edge enters, with `kind` and `layer` (-1 for an embedding, the
        number of layers for `logits`); its edges are those of the circuit, named as they are, with `score` (if there
        are scores), `layer` and `kind` as in `to_dataframe`.

        Args:
            inner: Also join each reader of a head to its head (`kind="inner"`), a shared one to each of its heads, so
                that paths of the graph are the circuit's paths. Without, the graph has just `num_edges` edges.
        """
        self.require_no_roles("making a graph of networkx")
        return circuit_views.to_networkx(self.graph, self.keep, self.scores, inner)

    def to_dataframe(self) -> "pandas.DataFrame":
        """The kept edges as a table of pandas, a library of the extra `analysis`; in the order of `edges`.

        Columns: `edge`; `score` (NaN without scores); `layer`, the one that reads, the number of layers for `logits`;
        `kind`, such as `head->q`; `writer`; `reader`; of a circuit with roles `role`.
        """
        return circuit_views.to_dataframe(self.graph, self.keep, self.scores)

    def _repr_html_(self) -> str:
        return circuit_views.to_html(self.graph, self.keep, self.scores, self.ranking, self.header)

    def __repr__(self) -> str:
        inside = "" if self.attend is None else f", {int(self.attend.sum()):,} attention edges"
        return (
            f"Circuit({self.num_edges:,} of {self.graph.num_edges:,} edges, sparsity {self.sparsity:.4f}, "
            f"{self.num_dangling} dangling" + (f", roles {', '.join(self.roles)}" if self.roles else "") + f"{inside})"
        )

    # ---------------------------------------------------------------- files
    def save(self, path: str | Path) -> Path:
        """Write the circuit to one file, whole or not at all."""
        rest = {"scores": self.scores, "attend": self.attend, "attend_scores": self.attend_scores}
        found = {name: part.to(_TYPES[name]) for name, part in rest.items() if part is not None}
        header = {
            **self.header,
            "format": FORMAT,
            "graph": self.graph.to_dict(),
            **{name: getattr(self, name) for name in ("num_edges", "sparsity", "num_dangling")},
            **circuit_roles.size_of_union(self.graph, self.keep),
            **circuit_attention.size(self.graph, self.attend),
        }
        return (_ROLE_FILE if self.roles else _FILE).write(path, {"keep": self.keep, **found}, header)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a circuit file; refuse one that is missing, cut short, altered or of another kind."""
        header, tensors = _FILE.read(path)
        try:
            graph = EdgeGraph.from_dict(header["graph"])
            _, scores, *attention = (tensors.get(name) for name in _TYPES)
            return cls(graph, tensors["keep"], scores, header, *attention)
        except (KeyError, ValueError, TypeError) as error:
            raise _FILE.refused(path, error) from None
