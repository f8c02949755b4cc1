"""Which edges count: one value per edge, or per node, in each counting convention in use.

Rates such as a false positive rate depend on what is counted. A convention says how many embeddings write, whether the
inputs of heads are counted per query head, per key/value head or as one per head, and whether ACDC's direct edges
(one behind every q, k and v input) count too. Where edges of the graph are one in a convention, that one has the
highest of their values (and is kept if one of them is); where one stands for several, each has its value. A direct edge
has the highest value of the edges into its input: it is of use exactly if one of them is.

The highest of many values is high even if they are noise. So where edges are merged, where there are direct edges, and
for nodes, a random order has no area of 0.5 below its ROC curve. Take the same figure of random scores for comparison,
such as those of `Circuit.random`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph


@dataclass(frozen=True)
class Convention:
    """What counts as an edge.

    Attributes:
        num_embeddings: 0, no embedding; 1; or 2, token and position embedding apart.
        inputs: `"head"`, q, k and v inputs of every query head; `"group"`, k and v of every key/value head; `"one"`,
            one input for every query head.
        direct: Also one edge behind each q, k and v input of a query head.
    """

    num_embeddings: Literal[0, 1, 2]
    inputs: Literal["head", "group", "one"]
    direct: bool = False


# In the order of `EdgeGraph.counts`, which says who counts so.
CONVENTIONS = {
    "one_embedding": Convention(1, "head"),
    "key_value_heads": Convention(1, "group"),
    "two_embeddings": Convention(2, "head"),
    "no_embedding": Convention(0, "head"),
    "acdc": Convention(1, "head", direct=True),
    "acdc_two_embeddings": Convention(2, "head", direct=True),
    "one_input": Convention(1, "one"),
}
_ABSENT = -torch.inf


def convention_of(graph: EdgeGraph, name: str | None = None) -> Convention:
    """A convention by name; None: the edges of the graph as they are.

    Raises:
        EdgepruneError: No such convention.
    """
    if name is None:
        return Convention(2 if graph.arch.split_embedding else 1, graph.arch.kv_readers)
    if name not in CONVENTIONS:
        raise EdgepruneError(
            f"no edge counting convention named {name!r}; the known ones are: {', '.join(CONVENTIONS)}"
        )
    return CONVENTIONS[name]


def edge_values(graph: EdgeGraph, values: Tensor, convention: Convention) -> Tensor:
    """One value for each edge that a convention counts.

    Args:
        graph: The graph of `values`.
        values: Bool or float `[reader, writer]`; entries that do not exist do not matter. Infinities may stand for
            edges that come first or last.
        convention: What counts.

    Returns:
        Float64 `[edges]`.

    Raises:
        EdgepruneError: The shape is another graph's, or a value is NaN.
    """
    exists = _edges(graph, torch.zeros(graph.shape), convention) > _ABSENT
    return _edges(graph, values, convention)[exists]


def node_values(graph: EdgeGraph, values: Tensor, convention: Convention) -> Tensor:
    """One value for each node: the highest of the counted edges that leave or enter it.

    `logits` is left out, as every circuit that does anything has it. An input that several heads share counts for each
    of them. Arguments and errors as for `edge_values`.

    Returns:
        Float64 `[nodes]`: the embeddings that the convention counts, then heads and MLPs in the order of the writers.
    """
    matrix, num_embeddings = _checked(graph, values), graph.arch.num_embeddings
    if not convention.num_embeddings:
        matrix[:, :num_embeddings] = _ABSENT
    leaving, inputs, mlps = matrix.amax(0), *_inputs(graph, matrix)
    entering = torch.cat((inputs.amax((1, 3)), mlps.amax(-1)), 1).flatten()
    embeddings = _embeddings(leaving[None, :num_embeddings], convention)[0]
    return torch.cat((embeddings, leaving[num_embeddings:].maximum(entering)))


Level = Literal["edges", "nodes"]
LEVELS: dict[Level, Callable[[EdgeGraph, Tensor, Convention], Tensor]] = {"edges": edge_values, "nodes": node_values}


def _edges(graph: EdgeGraph, values: Tensor, convention: Convention) -> Tensor:
    """Values of the cells of a convention's matrix, row by row; `_ABSENT` where no edge exists."""
    matrix = _checked(graph, values)
    inputs, mlps = _inputs(graph, matrix)
    arch = graph.arch
    if convention.inputs == "one":
        rows = [inputs.amax(1).flatten(0, 1)]
    elif convention.inputs == "group":
        shared = inputs[:, 1:].unflatten(2, (arch.num_kv_heads, -1)).amax(3)
        rows = [inputs[:, 0].flatten(0, 1), shared.flatten(0, 2)]
    else:
        rows = [inputs.flatten(0, 2)]
    cells = torch.cat((*rows, mlps.flatten(0, 1), matrix[-1:]))
    embeddings = _embeddings(cells[:, : arch.num_embeddings], convention)
    counted = torch.cat((embeddings, cells[:, arch.num_embeddings :]), 1).flatten()
    return torch.cat((counted, inputs.amax(-1).flatten())) if convention.direct else counted


def _checked(graph: EdgeGraph, values: Tensor) -> Tensor:
    """Float64 `[reader, writer]`, `_ABSENT` where no edge exists."""
    if tuple(values.shape) != graph.shape:
        raise EdgepruneError(f"expected [reader, writer] values of shape {graph.shape}, got {tuple(values.shape)}")
    matrix = values.detach().cpu().double().where(graph.exists, _ABSENT)
    if matrix.isnan().any():
        raise EdgepruneError("scores of existing edges must be numbers: NaN cannot be ranked")
    return matrix


def _inputs(graph: EdgeGraph, matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the query heads' q, k and v, `[layer, 3, head, writer]`, and of MLPs, `[layer, 0 or 1, writer]`."""
    arch = graph.arch
    layers = matrix[:-1].unflatten(0, (arch.num_layers, arch.readers_per_layer))
    heads, k, v, mlps = layers.split((*arch.reader_counts, int(arch.has_mlp)), 1)
    share = arch.heads_per_kv_reader
    return torch.stack((heads, k.repeat_interleave(share, 1), v.repeat_interleave(share, 1)), 1), mlps


def _embeddings(columns: Tensor, convention: Convention) -> Tensor:
    """From the columns of the graph's embeddings to those that a convention counts."""
    if convention.num_embeddings == 1:
        return columns.amax(1, keepdim=True)
    return columns.expand(-1, 2) if convention.num_embeddings else columns[:, :0]
