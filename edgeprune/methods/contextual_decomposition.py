"""Contextual decomposition of transformers (Hsu et al. 2024, arXiv 2407.00886), for every edge and every family."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.console import Progress, no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.methods.decomposition_loop import keep_among, pruned, rounds
from edgeprune.methods.decomposition_passes import Passes
from edgeprune.methods.decomposition_rules import Biases
from edgeprune.methods.decomposition_run import AttentionRule, Rules
from edgeprune.methods.decomposition_state import DecompositionState
from edgeprune.methods.discovery import AbstractDiscovery, DiscoveryResult
from edgeprune.methods.problem import Problem
from edgeprune.methods.relevance import Measure, Paths, Relevances
from edgeprune.nodes import nodes_of_readers

Normalize = Literal["none", "sizes", "signed"]
WHAT = "layers decomposed"
_CHOICES = {
    "attention": AttentionRule,
    "biases": Biases,
    "measure": Measure,
    "paths": Paths,
    "normalize": Normalize,
}


@final
@dataclass(frozen=True)
class ContextualDecomposition(AbstractDiscovery):
    """Split every activation into what is relevant to a writer and what is not, by one forward pass for each writer.

    The relevant part starts as the difference between what the writer writes and what a closed edge carries, so that
    the ablation of the problem says what is irrelevant: the corrupted run's value, a mean, or nothing. Downstream,
    rules split what each step makes of both parts; `docs/guides/methods.md` has what differs from the published code.
    The score of a writer is the loss without the relevant part of the logits minus that of the full model. That
    of an edge is how much of what its reader takes in (q, k, v as they are projected, an MLP's normed input) is
    relevant to its writer, times the size of the score of the reader's own node. Edges into the logits score like
    writers. All are means over examples.

    Attributes:
        attention: `"frozen"`: the relevant part has the model's own pattern (published for BERT). `"relevant"`: that of
            relevant queries and keys, as published for GPT-2; what the pattern owes to the source is then irrelevant.
        biases: `"split"` by the sizes of both parts, as published, or all `"irrelevant"`.
        larger: Behind MLPs' linear layers and additions to the stream, where both parts have opposed signs the larger
            takes all (published: yes). Models with gated MLPs need it: f(a) u - f(a_I) u_I is quadratic in the parts,
            which grow against each other beyond all bounds without it.
        measure: Of a reader's input: `"dot"`, the share of its difference from the ablated run that is relevant, by
            inner products; or `"l1"`, |relevant| / (|relevant| + |irrelevant|), mean over tokens.
        paths: What is relevant to a writer where the reader reads: along `"all"` paths, or `"direct"`, what it
            writes itself.
        weigh: Multiply by the size of the score of the reader's node (published: no). Readers that heads share have
            the sum of theirs.
        normalize: Divide what writers of a layer are to one reader by their sum: of `"sizes"`, or `"signed"` as
            published, which turns the order of a layer round if it is negative; or by `"none"`.
        by_role: Also score each writer's tokens of each role by themselves: 1 + roles times the passes.
        loop: Grow a circuit of nodes from the logits by so many in each round (published: 2); 0: do not. It goes by the
            node scores and by what is relevant in what heads and MLPs write.
        prune: Of the loop's nodes, drop the one whose removal lowers the loss most, again and again; the first round's
            are protected.
        memory_gb: For the clean run and the sources at a time, in 1e9 bytes.
    """

    name = "contextual_decomposition"

    attention: AttentionRule = "frozen"
    biases: Biases = "split"
    larger: bool = False
    measure: Measure = "dot"
    paths: Paths = "direct"
    weigh: bool = True
    normalize: Normalize = "none"
    by_role: bool = False
    loop: int = 0
    prune: bool = False
    memory_gb: float = 2.0

    def __post_init__(self) -> None:
        for name, known in _CHOICES.items():
            if getattr(self, name) not in get_args(known):
                raise EdgepruneError(f"{name} must be one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")
        if self.loop < 0:
            raise EdgepruneError(f"loop must be at least 0, got {self.loop}: so many nodes are found in each round")
        if self.prune and not self.loop:
            raise EdgepruneError("prune drops nodes of the loop's circuit, and loop is 0; set loop, or leave prune out")
        if not self.memory_gb > 0:
            raise EdgepruneError(f"memory_gb must be above 0, got {self.memory_gb}")

    def discover(self, problem: Problem, report: Progress, folder: Path | None = None) -> DiscoveryResult:
        """Score every edge, and grow the loop's circuit if it is asked for; see `relevances`."""
        graph = problem.model.graph
        if self.loop and graph.roles is not None:
            raise EdgepruneError("the loop makes circuits of nodes without roles; set loop to 0, or leave roles out")
        found, seconds = self._decompose(problem, report, folder)
        circuits, about = self._loop(problem, found) if self.loop else ({}, {})
        rows = found.nodes.tolist()
        named = [dict(zip(graph.writers, row, strict=True)) for row in rows]
        about = {
            "forward_passes": len(graph.writers) * len(problem.batches) * len(rows),
            "node_scores": named[0],
            **({"node_scores_by_role": dict(zip(found.parts, named[1:], strict=True))} if self.by_role else {}),
            **about,
        }
        scores = self.scores(found)
        return DiscoveryResult(scores.sum(0) if graph.roles is None else scores, circuits, about, seconds)

    def relevances(self, problem: Problem, report: Progress = no_progress, folder: Path | None = None) -> Relevances:
        """What each writer is to the logits, to every reader and to what every other writer writes.

        Args:
            problem: Model, pairs, ablation, metric.
            report: Gets how many layers' writers are done, over all batches.
            folder: Where the state is kept; None: it is not.

        Raises:
            EdgepruneError: The folder holds the state of another run, or `by_role` without roles.
        """
        return self._decompose(problem, report, folder)[0]

    def scores(self, found: Relevances) -> Tensor:
        """Scores of the edges by part of the reader's token, float64 `[part, reader, writer]`; they add up to a score.

        Args:
            found: What `relevances` gave.
        """
        graph = found.graph
        edges = normalised(graph, found.edges, self.normalize)
        if self.weigh:
            sizes, nodes = normalised(graph, found.nodes[0], self.normalize).abs(), nodes_of_readers(graph)[:-1]
            weights = torch.stack([sizes[list(own)].sum() for own in nodes])
            edges = torch.cat([edges[:, :-1] * weights[:, None], edges[:, -1:]], 1)
        return edges

    # ---------------------------------------------------------------- the passes
    def _decompose(self, problem: Problem, report: Progress, folder: Path | None) -> tuple[Relevances, float]:
        """Means over examples, and the seconds that all parts of the run took."""
        rules = Rules(self.attention, self.biases, self.larger)
        passes = Passes(problem, rules, self.measure, self.paths, self.memory_gb * 1e9, by_role=self.by_role)
        if self.by_role and len(passes.parts) == 1:
            raise EdgepruneError("the task marks no position roles, so by_role has nothing to tell apart; leave it out")
        state = DecompositionState.start(self._key(problem, passes.zeros().parts), passes.zeros(), folder)
        if state.done:
            report(WHAT, state.done, len(passes))
        try:
            for step in passes.steps(state.done):
                state.take(step)
                report(WHAT, state.done, len(passes))
        finally:
            state.save()
        return state.sums.over(problem.num_examples), state.seconds

    def _key(self, problem: Problem, parts: Sequence[str]) -> str:
        """Hash of everything that the sums depend on but for rounding; `parts` of the prompt are summed apart."""
        chosen = (self.attention, self.biases, self.larger, self.measure, self.paths, self.by_role)
        about = {**problem.identity(), "graph": problem.model.graph.to_dict(), "settings": chosen, "parts": list(parts)}
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    # ---------------------------------------------------------------- the loop
    def _loop(self, problem: Problem, found: Relevances) -> tuple[dict[str, Circuit], dict[str, Any]]:
        """The circuit of nodes, by name; and what each round found."""
        graph = found.graph
        nodes = normalised(graph, found.nodes[0], self.normalize)
        by_round = rounds(graph, nodes, normalised(graph, found.targets, self.normalize), self.loop)
        writers = [writer for best in by_round for writer in best]
        chosen = {"loop": writers}
        if self.prune:
            chosen["loop-pruned"] = pruned(graph, writers, problem.mean_loss, by_round[0] if by_round else ())
        names = {name: [graph.writers[writer] for writer in own] for name, own in chosen.items()}
        circuits = {
            name: Circuit(graph, keep_among(graph, own), None, {**self.describe(), "nodes": names[name]})
            for name, own in chosen.items()
        }
        return circuits, {"rounds": [[graph.writers[writer] for writer in best] for best in by_round]}


def normalised(graph: EdgeGraph, found: Tensor, by: Normalize) -> Tensor:
    """What writers are to something, over the sum for their layer; the embeddings are a layer too.

    Args:
        graph: The graph.
        found: `[..., writer]`; parts of prompts come first, `[part, reader, writer]`, and share one sum.
        by: `"sizes"`, `"signed"` sums, or `"none"`.
    """
    if by == "none":
        return found
    whole = found.sum(0) if found.ndim == 3 else found
    arch, out = graph.arch, torch.zeros_like(found)
    for layer in range(-1, arch.num_layers):
        start = 0 if layer < 0 else graph.first_writer(layer)
        columns = slice(start, start + (arch.num_embeddings if layer < 0 else arch.writers_per_layer))
        own = whole[..., columns]
        total = (own.abs() if by == "sizes" else own).sum(-1, keepdim=True)
        out[..., columns] = torch.where(total != 0, found[..., columns] / total.where(total != 0, 1.0), 0.0)
    return out
