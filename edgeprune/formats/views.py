"""One circuit on graphs of the same model that count embeddings, or k and v readers, in different ways.

Every such graph is a coarser view of the finest one, with two embeddings and q, k and v readers of every query head.
Where one edge stands for several, each has its value. Where several are one, it is kept if any is. Its score is the sum
of theirs if they are slopes, which add up where edges are closed together, and else the highest. Slopes that all agree
are copies of one value, which stays: so a file that repeats the scores of shared readers comes back as it was.
"""

from dataclasses import replace

import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.formats.base import Imported
from edgeprune.graph import EdgeGraph

_SHAPE = ("num_layers", "num_heads", "has_mlp", "parallel_blocks")
# Methods, and formats of files that do not name one, whose scores are slopes of the loss.
_SLOPES = frozenset({"eap", "eap_ig", "eap-ig-json", "eap-ig-pt", "auto-circuit"})


def per_head(graph: EdgeGraph, *, split_embedding: bool | None = None) -> EdgeGraph:
    """The graph that counts k and v readers per query head, as most tools do; embeddings as they are, unless given."""
    arch = graph.arch
    split = arch.split_embedding if split_embedding is None else split_embedding
    return EdgeGraph(replace(arch, num_kv_heads=arch.num_heads, kv_readers="group", split_embedding=split))


def per_group(graph: EdgeGraph) -> EdgeGraph:
    """The graph that counts k and v readers per key/value head."""
    return EdgeGraph(replace(graph.arch, kv_readers="group"))


def check_same_model(graph: EdgeGraph, wanted: EdgeGraph) -> None:
    """Refuse a file's graph that cannot be a view of the same model as `wanted`, naming the first difference."""
    ours, theirs = graph.arch, wanted.arch
    for name in _SHAPE:
        if getattr(ours, name) != getattr(theirs, name):
            raise EdgepruneError(
                f"the file is of a graph with {name}={getattr(ours, name)}, wanted one with {getattr(theirs, name)}; "
                "use the same model"
            )
    if ours.num_kv_readers not in (ours.num_heads, theirs.num_kv_heads):
        raise EdgepruneError(
            f"the file is of a graph with num_kv_heads={ours.num_kv_heads}, wanted one with {theirs.num_kv_heads}; "
            "use the same model"
        )


def on_graph(circuit: Circuit, graph: EdgeGraph) -> Imported:
    """The circuit of a file on the graph that is wanted.

    Raises:
        EdgepruneError: The graphs are of different models, or the file has one embedding and the graph two.
    """
    check_same_model(circuit.graph, graph)
    if graph.arch.split_embedding and not circuit.graph.arch.split_embedding:
        raise EdgepruneError(ONE_EMBEDDING)
    return convert_circuit(circuit, graph)


ONE_EMBEDDING = "it has one embedding writer, the graph has tok_embed and pos_embed; use split_embedding=False"


def convert_circuit(circuit: Circuit, graph: EdgeGraph) -> Imported:
    """The circuit on another graph of the same model, and what that made different."""
    source = circuit.graph
    if source.shape == graph.shape:  # graphs of one model and shape have the same readers and writers
        return Imported(Circuit(graph, circuit.keep, circuit.scores, circuit.header))
    keep = convert_matrix(circuit.keep, source, graph)
    scores = None if circuit.scores is None else convert_matrix(circuit.scores.float(), source, graph)
    differed = _differed(circuit, keep, scores, graph)
    is_sum = scores is not None and has_slopes(circuit) and bool(_unlike(circuit, scores, graph).any())
    if is_sum and circuit.scores is not None:
        scores = _summed(circuit.scores, source, graph)
    return Imported(Circuit(graph, keep, scores, circuit.header), tuple(_notes(source, graph, differed, is_sum)))


def has_slopes(circuit: Circuit) -> bool:
    """Whether scores are slopes of the loss, as far as the header shows by the method or the file's format."""
    return circuit.header.get("method", circuit.header.get("source_format")) in _SLOPES


# -------------------------------------------------------------------- an embedding of tokens alone
def with_open_positions(circuit: Circuit) -> Circuit:
    """A circuit whose one embedding is that of tokens alone, on the graph with two; every edge of `pos_embed` is kept.

    Where there are scores, those edges have the largest size of all, so that a cut by score leaves them open.
    """
    graph = EdgeGraph(replace(circuit.graph.arch, split_embedding=True))
    keep = convert_matrix(circuit.keep, circuit.graph, graph)
    keep[:, 1] = True
    scores = circuit.scores
    if scores is not None:
        largest = scores[circuit.graph.exists].abs().max()
        scores = convert_matrix(scores.float(), circuit.graph, graph)
        scores[:, 1] = torch.where(graph.exists[:, 1], largest, 0.0)
    return Circuit(graph, keep, scores, circuit.header)


def without_positions(circuit: Circuit) -> Circuit:
    """The other way: `tok_embed` becomes the one embedding, and the edges of `pos_embed` are left out."""
    arch = circuit.graph.arch
    columns = [0, *range(arch.num_embeddings, circuit.graph.shape[1])]
    scores = None if circuit.scores is None else circuit.scores[:, columns]
    return Circuit(one_embedding(circuit.graph), circuit.keep[:, columns], scores, circuit.header)


def one_embedding(graph: EdgeGraph) -> EdgeGraph:
    """The graph that counts both embeddings as one writer."""
    return EdgeGraph(replace(graph.arch, split_embedding=False))


# -------------------------------------------------------------------- matrices
def convert_matrix(matrix: Tensor, source: EdgeGraph, target: EdgeGraph) -> Tensor:
    """Values `[reader, writer]` (bool or float) of `source` on `target`, 0 or False where no edge exists."""
    values = matrix.cpu().to(torch.uint8 if matrix.dtype == torch.bool else matrix.dtype)
    rows, columns = _finest(source)
    fine = values[rows][:, columns]
    rows, columns = _finest(target)
    merged = _highest(_highest(fine, rows, target.shape[0]).T, columns, target.shape[1]).T
    return torch.where(target.exists, merged, torch.zeros_like(merged)).to(matrix.dtype).contiguous()


def _highest(values: Tensor, rows: Tensor, size: int) -> Tensor:
    """Of the rows of `values` that share an index, the highest."""
    out = values.new_zeros((size, values.shape[1]))
    return out.scatter_reduce(0, rows[:, None].expand_as(values), values, "amax", include_self=False)


def _summed(scores: Tensor, source: EdgeGraph, target: EdgeGraph) -> Tensor:
    """Scores of `source` on `target`: of the edges that become one, the sum, each counted once."""
    values = scores.cpu().double()
    for ours, theirs, size in zip(_finest(source), _finest(target), target.shape, strict=True):
        pairs = torch.stack((ours, theirs), 1).unique(dim=0)
        values = values.new_zeros((size, values.shape[1])).index_add(0, pairs[:, 1], values[pairs[:, 0]]).T
    return torch.where(target.exists, values, 0.0).float()


def _finest(graph: EdgeGraph) -> tuple[Tensor, Tensor]:
    """For every reader and every writer of the finest graph, its row and its column in `graph`."""
    arch = graph.arch
    rows: list[int] = []
    for layer in range(arch.num_layers):
        of_heads = graph.inputs[graph.heads(layer)]
        rows += [row for kind in zip(*of_heads, strict=True) for row in kind]
        rows += [graph.mlp_reader(layer)] * arch.has_mlp
    others = range(arch.num_embeddings, graph.shape[1])
    return torch.tensor([*rows, graph.shape[0] - 1]), torch.tensor([0, arch.num_embeddings - 1, *others])


def _notes(ours: EdgeGraph, theirs: EdgeGraph, differed: int, is_sum: bool) -> list[str]:
    """One sentence for each convention that changed."""
    source, target = ours.arch, theirs.arch
    notes: list[str] = []
    agreed = f"{differed:,} edges had another value than their part of it" if differed else "all of them agreed"
    if source.num_embeddings > target.num_embeddings:
        score = "the sum of their scores" if is_sum else "the higher score"
        notes.append(f"tok_embed and pos_embed are one writer there: its edges are kept if either's are, with {score}")
    if source.num_embeddings < target.num_embeddings:
        notes.append("the one embedding writer is written as token and position embedding, with the same values")
    if source.num_kv_readers > target.num_kv_readers:
        score = "the sum of their scores" if is_sum else "the highest score"
        notes.append(
            "k and v readers of query heads that share a key/value head are one reader there: its edges are kept if "
            f"any of theirs are, with {score}"
        )
    if source.num_kv_readers < target.num_kv_readers:
        notes.append("every query head has k and v readers of its own there: each has the values of its key/value head")
    merges = source.num_embeddings > target.num_embeddings or source.num_kv_readers > target.num_kv_readers
    return [*notes, f"of the edges that became one, {agreed}"] if merges else notes


def _differed(circuit: Circuit, keep: Tensor, scores: Tensor | None, graph: EdgeGraph) -> int:
    """Edges of the source that differ once the circuit, with the highest scores, is converted and converted back."""
    wrong = convert_matrix(keep, graph, circuit.graph) != circuit.keep
    return int((wrong if scores is None else wrong | _unlike(circuit, scores, graph)).sum())


def _unlike(circuit: Circuit, scores: Tensor, graph: EdgeGraph) -> Tensor:
    """Bool `[reader, writer]` of the circuit's graph: edges with another score than the one they became part of."""
    assert circuit.scores is not None  # `scores` were made of them
    return (convert_matrix(scores, graph, circuit.graph) != circuit.scores.float()) & circuit.graph.exists
