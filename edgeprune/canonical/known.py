"""The form of a published circuit: its nodes by role, and its edges by rule.

Rules name roles instead of listing hundreds of edges, so they can be read beside the paper. Which edges they stand for
follows from the graph: of a rule's writers and readers, every pair that the graph joins.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph

_EMBEDDINGS = ("embed", "tok_embed", "pos_embed")
_SHAPE = ("num_layers", "num_heads", "num_kv_heads", "has_mlp", "parallel_blocks")


@dataclass(frozen=True)
class Role:
    """What some nodes of a circuit do together.

    Attributes:
        nodes: Heads and MLPs, such as `a9.h9` or `m3`.
        task: What they do, in a few words.
    """

    nodes: tuple[str, ...]
    task: str


@dataclass(frozen=True)
class Link:
    """Every edge from some nodes to others that the graph has.

    Attributes:
        writers: Names of roles or nodes, `"mlps"` for all MLPs of the model, `"heads"` for all heads with a role.
        readers: Likewise, and `"logits"`.
        inputs: Which inputs of heads among the readers.
    """

    writers: tuple[str, ...]
    readers: tuple[str, ...]
    inputs: str = "qkv"


@dataclass(frozen=True)
class CanonicalCircuit:
    """A circuit that people found and published.

    Attributes:
        name: As in `edgeprune.canonical.load`.
        model: The model it is a circuit of.
        arch: The graph that its published count of edges is of.
        parts: Its roles by name. Nodes that stand in none (embeddings, logits, some MLPs) have none in the paper.
        links: The rules of its edges.
        sources: The paper that found it, and where its edges are listed.
    """

    name: str
    model: str
    arch: ArchSpec
    parts: dict[str, Role]
    links: tuple[Link, ...]
    sources: tuple[str, ...]

    @property
    def roles(self) -> dict[str, tuple[str, ...]]:
        """The nodes of each role."""
        return {name: role.nodes for name, role in self.parts.items()}

    @property
    def graph(self) -> EdgeGraph:
        """The graph that the published count of edges is of."""
        return EdgeGraph(self.arch)

    @cached_property
    def nodes(self) -> tuple[str, ...]:
        """Every node that an edge leaves or enters, embeddings and `logits` with them, in the order of the graph."""
        return tuple(self.circuit().nodes())

    @cached_property
    def direct(self) -> tuple[str, ...]:
        """The q, k and v inputs of heads that an edge enters.

        ACDC's graph has an edge of its own behind each of them ("direct computation"), and its counts hold those. The
        five circuits list exactly the ones behind an input with an edge.
        """
        entered = self.circuit().keep.any(1).nonzero().flatten().tolist()
        return tuple(name for name in (self.graph.readers[row] for row in entered) if name[-1] in "qkv")

    def circuit(self, graph: EdgeGraph | None = None) -> Circuit:
        """The circuit on a graph of the model.

        Where the graph has one embedding, it stands for both of a circuit that was published with two; where it has
        two, each stands for the one of a circuit that was published with one.

        Args:
            graph: A graph of the shape of `arch`; None for that of the published count.

        Raises:
            EdgepruneError: The graph is of another shape.
        """
        graph = graph or self.graph
        self.check_fits(graph)
        header = {"method": "published", "circuit": self.name, "model": self.model, "sources": list(self.sources)}
        return Circuit.from_edges(graph, self._edges(graph), header)

    def check_fits(self, graph: EdgeGraph) -> None:
        """Refuse a graph of another shape than the model's, naming the first difference.

        Raises:
            EdgepruneError: As said.
        """
        for field in _SHAPE:
            ours, theirs = getattr(self.arch, field), getattr(graph.arch, field)
            if ours != theirs:
                raise EdgepruneError(
                    f"the published circuit {self.name!r} is one of {self.model}, with {field}={ours}; this graph has "
                    f"{theirs}: use the graph of that model"
                )

    def _edges(self, graph: EdgeGraph) -> Iterator[str]:
        visible = dict(zip(graph.readers, graph.num_visible, strict=True))
        column = {name: index for index, name in enumerate(graph.writers)}
        for link in self.links:
            writers = [name for node in self._members(link.writers) for name in _writers(node, graph)]
            readers = [name for node in self._members(link.readers) for name in _readers(node, link.inputs)]
            yield from (f"{w}->{r}" for r in readers for w in writers if column[w] < visible[r])

    def _members(self, names: tuple[str, ...]) -> Iterator[str]:
        """The nodes that the names of a link stand for."""
        for name in names:
            if name == "mlps":
                yield from (f"m{layer}" for layer in range(self.arch.num_layers))
            elif name == "heads":
                yield from (node for role in self.parts.values() for node in role.nodes if node.startswith("a"))
            else:
                yield from self.parts[name].nodes if name in self.parts else (name,)


def _writers(node: str, graph: EdgeGraph) -> tuple[str, ...]:
    """The writers of a graph that a node stands for: an embedding is one or two of them."""
    if node not in _EMBEDDINGS:
        return (node,)
    if not graph.arch.split_embedding:
        return ("embed",)
    return ("tok_embed", "pos_embed") if node == "embed" else (node,)


def _readers(node: str, inputs: str) -> tuple[str, ...]:
    """The readers of a node: heads have several."""
    return tuple(f"{node}.{letter}" for letter in inputs) if node.startswith("a") else (node,)
