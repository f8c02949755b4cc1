"""Gates on nodes, said in gates on edges: what subnetwork probing and head importance mask.

A node is the q, k or v of a head (of a key/value head where k and v readers are shared), or an MLP. There is one for
every reader but the logits, in the same order. Two readings of one value per node:

- `gates`: every edge into a q, k or v carries that node's gate, every edge out of an MLP carries the MLP's.
- `edge_values`: the edges that a masked node takes away. An edge is absent if it touches a masked node; a head's output
  touches its q, k and v together, so it goes with the last of them.

With 0/1 gates and interchange ablation both are the same function of the tokens: an edge that only the second closes
ends in a node whose output is replaced anyway.
"""

from functools import cached_property
from typing import final

import torch
from torch import Tensor

from edgeprune.graph import EdgeGraph


@final
class NodeMap:
    """Which edges belong to which node of `graph`.

    Attributes:
        names: Node names, the readers without `logits`: `a0.h1.q`, `m3`.
        sizes: How many nodes stand in each gate tensor of the published code: q, k, v and MLP of layer 0, of layer 1...
    """

    def __init__(self, graph: EdgeGraph) -> None:
        self.graph = graph
        self.names = graph.readers[:-1]
        arch = graph.arch
        self.sizes = [*arch.reader_counts, *[1] * arch.has_mlp] * arch.num_layers

    @property
    def num_nodes(self) -> int:
        """Nodes that can be masked."""
        return len(self.names)

    @cached_property
    def behind(self) -> Tensor:
        """Long `[writer, 3]`: the q, k and v that feed a head; an MLP's own node three times; `num_nodes` for none."""
        rows = ((own * 3)[:3] if own else (self.num_nodes,) * 3 for own in self.graph.inputs)
        return torch.tensor(list(rows))

    @cached_property
    def is_mlp(self) -> Tensor:
        """Bool `[writer]`: an MLP. Its three entries of `behind` are one and the same node."""
        return (self.behind[:, 0] == self.behind[:, 1]) & (self.behind[:, 0] < self.num_nodes)

    @cached_property
    def _mlp_nodes(self) -> Tensor:
        return self.behind[self.is_mlp, 0]

    def gates(self, values: Tensor) -> Tensor:
        """Gates `[reader, writer]` for one gate per node `[num_nodes]`; differentiable."""
        one = values.new_ones(1)
        into = torch.cat([values, one]).index_fill(0, self._mlp_nodes.to(values.device), 1.0)
        nodes = torch.where(self.is_mlp, self.behind[:, 0], self.num_nodes).to(values.device)
        out = torch.cat([values, one])[nodes]
        return into[:, None] * out[None, :] * self.graph.exists.to(values)

    def edge_values(self, values: Tensor, top: float) -> Tensor:
        """What each edge inherits from the nodes it touches, `[reader, writer]`: the smallest, of q, k, v the largest.

        Args:
            values: One value per node, `[num_nodes]`; a node is masked where it is low.
            top: For edges that touch no node, at least as large as any value.
        """
        padded = torch.cat([values, values.new_full((1,), top)])
        out = padded[self.behind.to(values.device)].amax(1)
        matrix = torch.minimum(padded[:, None], out[None, :])
        return torch.where(self.graph.exists.to(values.device), matrix, 0.0)


def writer_of_edge(graph: EdgeGraph, device: torch.device) -> Tensor:
    """Place of each edge's writer among all writers, at its role, long `[num_edges]`."""
    *role, _, writer = graph.exists.nonzero().unbind(1)
    of_role = role[0] * len(graph.writers) if role else 0
    return (of_role + writer).to(device)
