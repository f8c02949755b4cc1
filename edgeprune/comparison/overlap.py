"""What circuits of one graph share: edges, nodes, weight and ranks, and how much of that chance would give."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import torch
from scipy.stats import rankdata
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.json_numbers import json_number
from edgeprune.nodes import reader_kind, writer_kind
from edgeprune.statistics.correlation import kendall, spearman

EXACT = 2**20  # numbers of ones up to 2^24 are exact in float32
FEW = 10  # circuits; among more, of the rank correlations only `spearman_all` is made, which takes next to no time


def edge_overlap(found: Tensor, reference: Tensor, exists: Tensor) -> dict[str, float]:
    """Compare the edges of a circuit with those of a reference.

    With B edges in both, F in `found` and R in `reference`: precision is B/F, recall B/R, jaccard B/(F+R-B)
    and f1 2B/(F+R). Where a denominator is 0, the value is 1 if both circuits are empty (they agree), else 0.

    Args:
        found: Bool `[reader, writer]`, the circuit to evaluate.
        reference: Bool `[reader, writer]`, what it is held against.
        exists: Bool `[reader, writer]`; entries outside it do not count.

    Returns:
        `precision`, `recall`, `jaccard`, `f1`, and the edge counts `both`, `only_found`, `only_reference`.
    """
    if not found.shape == reference.shape == exists.shape:
        shapes = ", ".join(str(tuple(matrix.shape)) for matrix in (found, reference, exists))
        raise EdgepruneError(f"found, reference and exists must be matrices of one graph, got shapes {shapes}")
    found, reference = found.bool() & exists.bool(), reference.bool() & exists.bool()
    both, in_found, in_reference = (int(edges.sum()) for edges in (found & reference, found, reference))
    return _shares(both, in_found, in_reference)


def _shares(both: int, in_found: int, in_reference: int) -> dict[str, float]:
    """The measures of `edge_overlap` from the three counts."""
    empty = float(in_found == in_reference == 0)
    return {
        "precision": both / in_found if in_found else empty,
        "recall": both / in_reference if in_reference else empty,
        "jaccard": both / (in_found + in_reference - both) if in_found or in_reference else empty,
        "f1": 2 * both / (in_found + in_reference) if in_found or in_reference else empty,
        "both": both,
        "only_found": in_found - both,
        "only_reference": in_reference - both,
    }


# -------------------------------------------------------------------- chance
def by_chance(both: int, in_found: int, in_reference: int, existing: int) -> dict[str, float]:
    """What circuits of these sizes share when their edges are drawn at random from all that exist.

    The number of shared edges is then hypergeometric. It is summed up in log space, so that the p-value of a large
    overlap, far below the smallest float, keeps its exponent.

    Args:
        both: Edges that the circuits share.
        in_found: Edges of the one.
        in_reference: Edges of the other.
        existing: Edges of the graph.

    Returns:
        `expected`: shared edges by chance. `log10_p_value`: log10 of the probability to share `both` or more;
        `p_value`: the same as a number, 0 where it underflows.
    """
    if not 0 <= both <= min(in_found, in_reference) or max(in_found, in_reference) > existing:
        raise EdgepruneError(f"of {existing} edges, {in_found} and {in_reference} cannot share {both}")
    if both <= in_found + in_reference - existing:  # that many are shared whatever is drawn
        log_p = 0.0
    else:
        shared = torch.arange(both, min(in_found, in_reference) + 1, dtype=torch.float64)
        ways = _log_choose(in_reference, shared) + _log_choose(existing - in_reference, in_found - shared)
        total = _log_choose(existing, torch.tensor(float(in_found), dtype=torch.float64))
        log_p = min(0.0, float((ways - total).logsumexp(0)))
    return {
        "expected": in_found * in_reference / existing if existing else 0.0,
        "log10_p_value": log_p / math.log(10),
        "p_value": math.exp(log_p),
    }


def _log_choose(n: int, k: Tensor) -> Tensor:
    """Log of the binomial coefficients n over k, for float64 k in [0, n]."""
    return math.lgamma(n + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)


def scientific(log10: float) -> str:
    """A probability from its logarithm, in a form that does not underflow: 1.2e-1234."""
    if log10 > -3:
        return f"{10**log10:.3f}"
    exponent = math.floor(log10)
    mantissa = f"{10 ** (log10 - exponent):.1f}"
    return f"1.0e{exponent + 1}" if mantissa == "10.0" else f"{mantissa}e{exponent}"


# -------------------------------------------------------------------- kinds of edges, layers
def edge_kinds(graph: EdgeGraph) -> Iterator[tuple[str, Tensor]]:
    """Each kind of edge that the graph has, such as `head->q` or `mlp->logits`, with its edges `[reader, writer]`."""
    writers, readers = [writer_kind(name) for name in graph.writers], [reader_kind(name) for name in graph.readers]
    for writer in dict.fromkeys(writers):
        for reader in dict.fromkeys(readers):
            edges = torch.tensor([name == reader for name in readers])[:, None]
            edges = edges & torch.tensor([name == writer for name in writers]) & graph.exists
            if edges.any():
                yield f"{writer}->{reader}", edges


def reader_layers(graph: EdgeGraph) -> Iterator[tuple[str, Tensor]]:
    """Each layer, and `logits` at the end, with the edges `[reader, writer]` that are read there."""
    for layer in range(graph.arch.num_layers):
        edges, rows = torch.zeros_like(graph.exists), graph.rows(layer)
        edges[rows.q.start : rows.mlp.stop] = True
        yield str(layer), edges & graph.exists
    edges = torch.zeros_like(graph.exists)
    edges[-1] = True
    yield "logits", edges & graph.exists


# -------------------------------------------------------------------- weights
def edge_weights(circuit: Circuit) -> Tensor:
    """What each edge weighs in a circuit, float64 `[reader, writer]`, in all 1 (0 for a circuit without weight).

    The absolute value of the score of a kept edge, or 1 in a circuit without scores; 0 for the others; divided by the
    sum. Scores that are a location, such as the log-odds that Edge Pruning learns, have no meaningful size or zero:
    read their rank correlation instead.
    """
    weights = circuit.keep.double()
    if circuit.scores is not None:
        weights = circuit.scores.detach().cpu().double().abs().where(circuit.keep, 0.0)
    total = weights.sum()
    return weights / total if total > 0 else weights


def ruzicka(first: Tensor, second: Tensor) -> Tensor:
    """Weighted overlap, `[...]` of weights `[..., edge]`: sum of the smaller weights / sum of the larger.

    NaN if all weights are 0. With equal weights in circuits of one size it is the Jaccard index.

    >>> ruzicka(torch.tensor([0.5, 0.5, 0.0]), torch.tensor([0.5, 0.25, 0.25]))
    tensor(0.6000)
    """
    return torch.minimum(first, second).sum(-1) / torch.maximum(first, second).sum(-1)


def _weight_overlaps(
    circuits: Sequence[Circuit], keeps: Tensor, shared: list[list[int]]
) -> dict[tuple[int, int], dict[str, float | None]]:
    """The `weights` of `compare_circuits` for every two circuits, by their places."""
    exists, unscored = circuits[0].graph.exists, torch.zeros(circuits[0].graph.shape)
    weights = torch.stack([edge_weights(circuit)[exists] for circuit in circuits])
    similar = [ruzicka(row, weights).tolist() for row in weights]
    scores = [unscored if circuit.scores is None else circuit.scores.detach().cpu() for circuit in circuits]
    signs = torch.stack([matrix.sign() for matrix in scores])
    same = [_shared(keeps & (signs == sign), exists) for sign in (-1, 0, 1)]
    weightless = [bool(shared[place][place]) and not row.any() for place, row in enumerate(weights)]
    found: dict[tuple[int, int], dict[str, float | None]] = {}
    for a, b in combinations(range(len(circuits)), 2):
        value = similar[a][b] if shared[a][a] or shared[b][b] else 1.0
        known = shared[a][b] and circuits[a].scores is not None and circuits[b].scores is not None
        found[a, b] = {
            "ruzicka": None if weightless[a] or weightless[b] else value,
            "same_sign": sum(counts[a][b] for counts in same) / shared[a][b] if known else None,
        }
    return found


# -------------------------------------------------------------------- ranks
def _spearman_of_all(rankings: Sequence[Tensor | None], exists: Tensor) -> list[list[float]]:
    """Rank correlation over all edges of every two rankings `[reader, writer]`, `[circuit][circuit]`; NaN for None."""
    none = torch.zeros(int(exists.sum()))
    values = torch.stack([none if ranking is None else ranking[exists].detach().cpu() for ranking in rankings])
    ranks = torch.as_tensor(rankdata(values.double().numpy(), axis=1))
    ranks = ranks - ranks.mean(1, keepdim=True)
    norms = ranks.norm(dim=1)  # 0 where all are equal, whose correlation is 0 / 0
    return (ranks @ ranks.T / torch.outer(norms, norms)).clamp(-1, 1).tolist()


def _rank_correlations(first: Circuit, second: Circuit, spearman_all: float, *, every: bool) -> dict[str, float | None]:
    """The `ranks` of `compare_circuits`."""
    found = {"spearman_all": spearman_all, **dict.fromkeys(("kendall_all", "spearman_kept", "kendall_kept"), math.nan)}
    left, right = first.ranking, second.ranking
    if every and left is not None and right is not None:
        kept, exists = first.keep | second.keep, first.graph.exists
        found["kendall_all"] = kendall(left[exists], right[exists])
        found["spearman_kept"] = spearman(left[kept], right[kept])
        found["kendall_kept"] = kendall(left[kept], right[kept])
    return {name: json_number(value) for name, value in found.items()}


# -------------------------------------------------------------------- two circuits
def compare_circuits(found: Circuit, reference: Circuit) -> dict[str, Any]:
    """All there is to say about two circuits of one graph without running the model.

    Returns:
        The figures of `edge_overlap` and `by_chance`; `nodes`: the former for nodes; `kinds` and `layers`: the former
        for each kind of edge and for each layer that reads. `weights`: `ruzicka` of `edge_weights`, None where a
        circuit with edges has no weight; `same_sign`, the share of common edges whose scores have one sign. `ranks`:
        Spearman's and Kendall's (tau-b) correlation of `Circuit.ranking`, over all edges of the graph (`spearman_all`,
        `kendall_all`) and over those that one of the two keeps (`spearman_kept`, `kendall_kept`); None without scores,
        or where all are equal. Of circuits with roles, edges are those at roles, and there are two more: `roles`, the
        figures of `edge_overlap` for each role, and `union`, with those of `by_chance`, of the edges at any role. If
        one has attention edges of its own, there is `attention`, with the same figures of these.

    Raises:
        EdgepruneError: The circuits are of different graphs.
    """
    return next(compare_every_two([found, reference]))


def compare_every_two(circuits: Sequence[Circuit]) -> Iterator[dict[str, Any]]:
    """`compare_circuits` of every two of these circuits: 0 and 1, 0 and 2, ...

    Of more than `FEW` circuits, all `ranks` but `spearman_all` are None, as they take ten times as long as the rest.

    Raises:
        EdgepruneError: The circuits are of different graphs, or have different roles.
    """
    if not circuits:
        return
    graph, plain = circuits[0].graph, circuits[0].graph.without_roles
    for other in circuits[1:]:
        other.check_fits(graph, "the other one", attention=True)
    keeps = torch.stack([circuit.keep for circuit in circuits])
    shared = _shared(keeps, graph.exists)
    kinds = {name: _shared(keeps, edges.expand(graph.shape)) for name, edges in edge_kinds(plain)}
    layers = {name: _shared(keeps, edges.expand(graph.shape)) for name, edges in reader_layers(plain)}
    roles = {name: _shared(keeps[:, place], plain.exists) for place, name in enumerate(circuits[0].roles)}
    unions = _shared(keeps.any(1), plain.exists) if roles else []
    inside = _shared_attention(circuits)
    nodes = [set(circuit.nodes()) for circuit in circuits]
    weights = _weight_overlaps(circuits, keeps, shared)
    spearman_all = _spearman_of_all([circuit.ranking for circuit in circuits], graph.exists)
    every = len(circuits) <= FEW
    for a, b in combinations(range(len(circuits)), 2):
        yield {
            **_shares(shared[a][b], shared[a][a], shared[b][b]),
            **by_chance(shared[a][b], shared[a][a], shared[b][b], graph.num_edges),
            "nodes": _shares(len(nodes[a] & nodes[b]), len(nodes[a]), len(nodes[b])),
            "kinds": {name: _shares(part[a][b], part[a][a], part[b][b]) for name, part in kinds.items()},
            "layers": {name: _shares(part[a][b], part[a][a], part[b][b]) for name, part in layers.items()},
            "weights": weights[a, b],
            "ranks": _rank_correlations(circuits[a], circuits[b], spearman_all[a][b], every=every),
            **(_by_role(roles, unions, plain.num_edges, a, b) if roles else {}),
            **({"attention": _all_figures(inside, graph.attention.num_edges, a, b)} if inside else {}),
        }


def _shared_attention(circuits: Sequence[Circuit]) -> list[list[int]]:
    """How many open attention edges every two circuits share; nothing where none has any of its own."""
    if all(circuit.attend is None for circuit in circuits):
        return []
    exists = circuits[0].graph.attention.exists
    return _shared(torch.stack([exists if one.attend is None else one.attend for one in circuits]), exists)


def _all_figures(shared: list[list[int]], existing: int, a: int, b: int) -> dict[str, Any]:
    sizes = shared[a][b], shared[a][a], shared[b][b]
    return {**_shares(*sizes), **by_chance(*sizes, existing)}


def _by_role(
    roles: dict[str, list[list[int]]], unions: list[list[int]], existing: int, a: int, b: int
) -> dict[str, Any]:
    """The `roles` and the `union` of `compare_circuits`, from shared edges of every two circuits."""
    return {
        "roles": {name: _shares(part[a][b], part[a][a], part[b][b]) for name, part in roles.items()},
        "union": _all_figures(unions, existing, a, b),
    }


def compare_edges(found: Circuit, reference: Circuit) -> dict[str, float]:
    """The figures of `edge_overlap` and `by_chance` alone, of two circuits of one graph."""
    overlap = edge_overlap(found.keep, reference.keep, found.graph.exists)
    return overlap | by_chance(int(overlap["both"]), found.num_edges, reference.num_edges, found.graph.num_edges)


def _shared(keeps: Tensor, edges: Tensor) -> list[list[int]]:
    """How many of these edges every two circuits `[circuit, reader, writer]` share, and a circuit with itself has."""
    part, number = keeps[:, edges], torch.zeros(len(keeps), len(keeps), dtype=torch.float64)
    for block in part.split(EXACT, dim=1):
        number += block.float() @ block.float().T
    return number.long().tolist()


# -------------------------------------------------------------------- several circuits, parts of one
def common_core(circuits: Sequence[Circuit]) -> dict[str, Any]:
    """Edges that all of several circuits of one graph keep, and how many chance gives.

    With E edges in the graph and n_i in circuit i, drawn at random, an edge is in all of them with probability
    p = prod n_i / E, and two edges are with q = prod n_i (n_i - 1) / (E (E - 1)). Hence a mean of E p and a variance of
    E p + E (E - 1) q - (E p)^2.

    Returns:
        `edges` (names), `num_edges`; `union`: edges that at least one circuit keeps; `jaccard`: num_edges / union, 1
        for empty circuits; `expected` and `deviation` of num_edges by chance; `z`: (num_edges - expected) / deviation,
        None if undefined. The number is not normal: read z as a size, not as a probability.
    """
    graph, keeps = circuits[0].graph, torch.stack([circuit.keep for circuit in circuits])
    existing, sizes = graph.num_edges, [circuit.num_edges for circuit in circuits]
    expected = existing * math.prod(size / existing for size in sizes)
    pairs = existing * (existing - 1)
    of_two = pairs * math.prod(size * (size - 1) / pairs for size in sizes) if pairs else 0.0
    variance = expected + of_two - expected**2
    noise = 1e-12 * expected**2  # rounding of the difference of large numbers, where nothing is left to chance
    deviation = math.sqrt(variance) if variance > noise else 0.0
    edges, union = Circuit(graph, keeps.all(0)).edges(), int(keeps.any(0).sum())
    return {
        "edges": edges,
        "num_edges": len(edges),
        "union": union,
        "jaccard": len(edges) / union if union else 1.0,
        "expected": expected,
        "deviation": deviation,
        "z": (len(edges) - expected) / deviation if deviation else None,
    }


def cut_to(circuit: Circuit, num_edges: int) -> Circuit:
    """The `num_edges` kept edges with the best scores (`Circuit.ranking`), with the same attention edges.

    Ties go to the earlier edge.

    Raises:
        EdgepruneError: The circuit has no scores, or fewer edges.
    """
    ranking = circuit.ranking
    if ranking is None:
        raise EdgepruneError("the circuit has no scores to be cut by; compare it at its own size")
    if num_edges > circuit.num_edges:
        raise EdgepruneError(f"the circuit has {circuit.num_edges} edges, it cannot be cut to {num_edges}")
    kept = circuit.keep.nonzero()
    order = ranking[circuit.keep].double().argsort(descending=True, stable=True)
    keep = torch.zeros_like(circuit.keep)
    keep[tuple(kept[order[:num_edges]].T)] = True
    return replace(circuit, keep=keep)
