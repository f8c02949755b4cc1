"""Attention edges of a graph with roles: `a5.h1[END<-S2]`, what the queries of a head at END see at tokens of S2.

An edge of the graph joins a writer to a reader at one token; attention alone leads on to other tokens. An attention
edge is that step of one head: open, its queries at tokens of the query role see its own keys and values at tokens of
the key role; closed, those of its readers with every edge closed. There is one wherever a token of the query role may
attend to one of the key role (`RoleSpec.sees`). All of one graph are `[layer, head, query role, key role]`.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.graph_arch import ArchSpec
from edgeprune.graph_roles import FROM, RoleSpec

_NAME = re.compile(r"\s*a(\d+)\.h(\d+)\s*\[(.*)\]\s*")


def names_attention(edge: str) -> bool:
    """Whether a name is that of an attention edge, rather than of an edge between writer and reader."""
    return "[" in edge and "->" not in edge


@final
@dataclass(frozen=True)
class AttentionEdges:
    """Names and existence of the attention edges of one graph.

    Attributes:
        arch: The architecture.
        roles: Of the graph.

    >>> edges = AttentionEdges(ArchSpec(num_layers=12, num_heads=12, num_kv_heads=12), RoleSpec(("S2", "END")))
    >>> edges.index("a5.h1[END<-S2]"), edges.num_edges
    ((5, 1, 1, 0), 576)
    """

    arch: ArchSpec
    roles: RoleSpec

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Of every matrix of gates."""
        return self.arch.num_layers, self.arch.num_heads, len(self.roles), len(self.roles)

    @cached_property
    def exists(self) -> Tensor:
        """Bool of `shape`: whether a token of the query role may attend to one of the key role."""
        return self.roles.sees_matrix.expand(self.shape).clone()

    @cached_property
    def num_edges(self) -> int:
        """How many exist."""
        return int(self.exists.sum())

    def to_matrix(self, values: Tensor) -> Tensor:
        """One value per existing edge, `[num_edges]`, as `shape`; 1, open, where none exists. Differentiable."""
        open_everywhere = values.new_ones(self.exists.shape)
        return open_everywhere.masked_scatter(self.exists.to(values.device), values)

    def to_vector(self, matrix: Tensor) -> Tensor:
        """The values of existing edges, `[num_edges]`, of a matrix of `shape`."""
        return matrix[self.exists.to(matrix.device)]

    def gates(self, keep: Tensor, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Tensor:
        """Gates of `shape` for a masked model that close the existing edges which `keep` does not keep.

        Where none exists, as no prompt that the roles are from has such tokens, they are open: a closed gate would
        change what other prompts do.
        """
        return (keep.bool().cpu() | ~self.exists).to(device=device, dtype=dtype)

    def index(self, edge: str) -> tuple[int, int, int, int]:
        """`"a5.h1[END<-S2]"` to `(layer, head, query role, key role)`.

        Raises:
            EdgepruneError: There is no such edge.
        """
        found = _NAME.fullmatch(edge)
        query, arrow, key = (part.strip() for part in found[3].partition(FROM)) if found else ("", "", "")
        if found is None or not arrow:
            raise EdgepruneError(f"attention edge {edge!r} is not of the form 'a5.h1[query role{FROM}key role]'")
        layer, head = int(found[1]), int(found[2])
        if layer >= self.arch.num_layers or head >= self.arch.num_heads:
            raise EdgepruneError(
                f"no head named 'a{layer}.h{head}' in this graph; they run from 'a0.h0' to "
                f"'a{self.arch.num_layers - 1}.h{self.arch.num_heads - 1}'"
            )
        place = layer, head, self.roles.index(query), self.roles.index(key)
        if not self.exists[place]:
            raise EdgepruneError(
                f"attention edge {edge!r} does not exist: no token of {query} is at or after one of {key}"
            )
        return place

    def edge_name(self, layer: int, head: int, query: int, key: int) -> str:
        """`(layer, head, query role, key role)` to `"a5.h1[END<-S2]"`: the inverse of `index`."""
        return f"a{layer}.h{head}[{self.roles.names[query]}{FROM}{self.roles.names[key]}]"

    def keep_matrix(self, edges: Iterable[str]) -> Tensor:
        """Bool of `shape` that is True at the named edges."""
        keep = torch.zeros(self.shape, dtype=torch.bool)
        for edge in edges:
            keep[self.index(edge)] = True
        return keep

    def names(self, keep: Tensor) -> list[str]:
        """Names of the edges where `keep`, of `shape`, is True: by layer, head, query role, then key role."""
        return [self.edge_name(*place) for place in keep.nonzero().tolist()]
