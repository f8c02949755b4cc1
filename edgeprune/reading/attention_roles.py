"""What heads attend to, in terms of a task's position roles: the common language of models of different shapes.

Heads of two models have no common numbering, but the prompts of a task have parts with names (`IO`, `S2`, `END`). A
head h is described by the attention that it pays, in the full model on clean prompts, from the tokens of a query part
to those of a key part:

    pattern[h, query, key] = mean over examples, and over tokens i of query, of  sum over tokens j of key  A_h[i, j]

The attention A is never written out: see `edgeprune.reading.attention`.

A row of A sums to 1, except in models with attention sinks (gpt-oss): there a head leaves part of its attention to no
token at all, so that parts which cover the prompt once have less than 1 between them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, final

import torch
from torch import Tensor
from torch.nn.functional import normalize

from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.console import Progress, no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.json_numbers import json_fields, json_numbers
from edgeprune.models.masked import MaskedModel
from edgeprune.nodes import node_names, nodes_of_readers
from edgeprune.reading.attention import attention_in, attention_to
from edgeprune.roles import REST, role_names, role_tokens

SCORED = "scored position"  # where the answer is read
FIRST = "first token"  # where attention goes that has nothing to do
MLP, EMBED, LOGITS = "mlp", "embed", "logits"  # classes of the nodes that are no heads


# -------------------------------------------------------------------- attention of heads to roles
@final
@dataclass(frozen=True, eq=False)
class HeadRoles:
    """Attention of every head of a model between the parts of a task's prompts.

    Attributes:
        heads: Names such as `a3.h7`, by layer.
        queries: Parts that attend: `SCORED` first, then the task's roles.
        keys: Parts attended to: the task's roles, then `FIRST`, `SCORED` and `REST`. These three take only tokens
            without a role, and `FIRST` goes before `SCORED`; one without any token in all examples is left out. A token
            with several roles counts for each.
        patterns: Float64 `[head, query, key]`, over the examples that have both parts; NaN where none has.
        sizes: Mean number of tokens of each key part, float64 `[key]`, over the examples that have it.
        num_examples: Examples seen.
    """

    heads: tuple[str, ...]
    queries: tuple[str, ...]
    keys: tuple[str, ...]
    patterns: Tensor
    sizes: Tensor
    num_examples: int

    @property
    def roles(self) -> tuple[str, ...]:
        """The task's own roles."""
        return self.queries[1:]

    @cached_property
    def classes(self) -> dict[str, str]:
        """The class of every head: the key part whose tokens get most attention each at the scored position.

        Per token, because `REST` has so many of them that it would get most of any attention without a direction.
        """
        largest: list[int] = (self.patterns[:, 0] / self.sizes).nan_to_num(-1.0).argmax(-1).tolist()
        return {head: self.keys[key] for head, key in zip(self.heads, largest, strict=True)}

    def vectors(self, heads: Sequence[str], queries: Sequence[str], keys: Sequence[str]) -> Tensor:
        """Role vectors of some heads on some parts, `[head, query * key]` of length 1; 0 where a pattern is NaN."""
        rows, places, columns = (
            [known.index(name) for name in wanted]
            for known, wanted in ((self.heads, heads), (self.queries, queries), (self.keys, keys))
        )
        chosen = self.patterns[rows][:, places][:, :, columns]
        return normalize(chosen.nan_to_num(0.0).flatten(1), dim=-1)


AttentionOf = Callable[[PairBatch, Tensor], Tensor]  # pairs, parts `[batch, seq, part]`: as `attention_to` gives it


@torch.no_grad()
def head_roles(
    model: MaskedModel,
    batches: Sequence[PairBatch],
    progress: Progress = no_progress,
    attention: AttentionOf | None = None,
) -> HeadRoles:
    """Attention of all heads of the model between the parts of clean prompts.

    Args:
        model: Of any family.
        batches: Pairs of a task with roles.
        progress: Gets how many batches are done.
        attention: That of another run of the model, such as a circuit's; None: of the full model.

    Raises:
        EdgepruneError: No prompt has a role.
    """
    names = role_names(batches)
    _check_names(names)
    queries, keys = (SCORED, *names), (*names, FIRST, SCORED, REST)
    heads = [name for name in model.graph.writers if name.startswith("a")]
    total = torch.zeros(len(heads), len(queries), len(keys), dtype=torch.float64)
    count = torch.zeros(len(queries), len(keys), dtype=torch.float64)
    tokens, examples = torch.zeros(2, len(keys), dtype=torch.float64)
    for done, batch in enumerate(batches):
        progress("attention to roles", done, len(batches))
        batch = batch.to(model.device)
        from_, to = _parts(batch, names)
        known = from_.any(-1)[:, :, None] & to.any(-1)[:, None]  # [batch, query, key]
        marks = to.transpose(1, 2)
        found = attention(batch, marks) if attention else attention_to(model, batch.clean, batch.attention_mask, marks)
        share = from_.double() / from_.sum(-1, keepdim=True).clamp(min=1)
        patterns = torch.einsum("bqs,lbshk->lhbqk", share, found.double()) * known
        total += patterns.sum(2).flatten(0, 1).cpu()
        count += known.sum(0).cpu()
        tokens += to.sum((0, 2)).cpu()
        examples += to.any(-1).sum(0).cpu()
    progress("attention to roles", len(batches), len(batches))
    there = examples > 0
    return HeadRoles(
        heads=tuple(heads),
        queries=queries,
        keys=tuple(key for key, found in zip(keys, there.tolist(), strict=True) if found),
        patterns=(total / count)[..., there],
        sizes=(tokens / examples)[there],
        num_examples=sum(map(len, batches)),
    )


def attention_by_role(evaluator: Evaluator, circuit: Circuit) -> tuple[HeadRoles, HeadRoles]:
    """Mean attention between the parts of the prompts, in the circuit's run and in the full model's; of all heads.

    Raises:
        EdgepruneError: The circuit is of another graph, or no prompt has a role.
    """
    circuit.check_fits(evaluator.graph)

    def in_circuit(batch: PairBatch, parts: Tensor) -> Tensor:
        return torch.stack(list(attention_in(evaluator, batch, circuit.keep, parts).values()))

    model, batches, progress = evaluator.model, evaluator.batches, evaluator.progress
    return head_roles(model, batches, progress, in_circuit), head_roles(model, batches, progress)


def _check_names(names: Sequence[str]) -> None:
    if not names:
        raise EdgepruneError(
            "the task marks no position roles, so heads cannot be described by what they attend to; "
            "give its prompts `roles`, or compare circuits of one graph edge by edge"
        )
    for name in (SCORED, FIRST, REST, MLP, EMBED, LOGITS):
        if name in names:
            raise EdgepruneError(f"role name {name!r} is taken; rename the task's role")


def _parts(batch: PairBatch, names: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Tokens of each query part, and of each key part: bool `[batch, part, seq]`."""
    real = batch.attention_mask.bool()
    place = torch.arange(real.shape[1], device=real.device)
    roles = [role_tokens(batch.roles.get(name), place, real) for name in names]
    scored = ((place == batch.positions[..., None]) & batch.position_mask[..., None]).any(1)
    free = real & ~torch.stack(roles).any(0)
    first = free & (place == batch.attention_mask.argmax(1)[:, None])
    ends = free & scored & ~first
    return torch.stack([scored, *roles], 1), torch.stack([*roles, first, ends, free & ~first & ~ends], 1)


# -------------------------------------------------------------------- a circuit in terms of roles
@final
@dataclass(frozen=True, eq=False)
class RoleProfile:
    """A circuit in terms of what its heads attend to.

    Classes are the key parts of `attention`, for heads (`HeadRoles.classes`), and `mlp`, `embed` and `logits` for the
    other nodes. An edge touches two nodes, and counts half for the class of each; where heads share a k or v reader,
    its half is divided among them. Shares sum to 1; those of an empty circuit are 0.

    Attributes:
        circuit: The circuit.
        attention: Of all heads of its model.
    """

    circuit: Circuit
    attention: HeadRoles

    @cached_property
    def heads(self) -> tuple[str, ...]:
        """Heads that a kept edge leaves or enters."""
        return tuple(name for name in self.circuit.nodes() if name.startswith("a"))

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes of nodes."""
        return (*self.attention.keys, MLP, EMBED, LOGITS)

    @cached_property
    def _members(self) -> tuple[Tensor, Tensor]:
        """How much of each reader, and of each writer, is of each class: float64 `[node, class]`, rows sum to 1."""
        graph, place = self.circuit.graph, {name: column for column, name in enumerate(self.class_names)}
        names = node_names(graph)
        sides: list[Tensor] = []
        for nodes in (nodes_of_readers(graph), [(node,) for node in range(len(graph.writers))]):
            side = torch.zeros(len(nodes), len(place), dtype=torch.float64)
            for row, owners in enumerate(nodes):
                for node in owners:
                    side[row, place[self._class_of(names[node])]] += 1 / len(owners)
            sides.append(side)
        return sides[0], sides[1]

    def _class_of(self, node: str) -> str:
        if node.startswith("a"):
            return self.attention.classes[node]
        return LOGITS if node == LOGITS else MLP if node.startswith("m") else EMBED

    def shares(self, weights: Tensor) -> Tensor:
        """Share of each class in edges that weigh so much, float64 `[class]`, from `[reader, writer]`, not negative."""
        weights = weights.double().where(self.circuit.graph.exists, 0.0)
        readers, writers = self._members
        touched = weights.sum(1) @ readers + weights.sum(0) @ writers
        total = float(touched.sum())
        return touched / total if total else touched

    @cached_property
    def importance(self) -> Tensor:
        """Role-importance vector: share of each class in the kept edges, float64 `[class]`."""
        return self.shares(self.circuit.keep)

    @cached_property
    def score_importance(self) -> Tensor | None:
        """The same with edges weighing the absolute value of their score; None without scores."""
        scores = self.circuit.scores
        return None if scores is None else self.shares(scores.abs() * self.circuit.keep)

    def to_dict(self) -> dict[str, Any]:
        """Plain values.

        `heads` (name to its `class` and its `attention` from the scored position, by key part), `queries`, `keys`,
        `num_examples`, `importance` and `score_importance` (class to share; the latter None without scores).
        """
        found = self.attention
        heads = {
            name: {
                "class": found.classes[name],
                "attention": json_numbers(found.keys, found.patterns[found.heads.index(name), 0]),
            }
            for name in self.heads
        }
        shares = {"importance": self.importance, "score_importance": self.score_importance}
        return {
            "heads": heads,
            **json_fields(found, "heads", "patterns", "sizes"),
            **{name: None if one is None else json_numbers(self.class_names, one) for name, one in shares.items()},
        }


def role_profile(
    model: MaskedModel, batches: Sequence[PairBatch], circuit: Circuit, progress: Progress = no_progress
) -> RoleProfile:
    """A circuit in terms of what its heads attend to.

    Args:
        model: Whose circuit it is.
        batches: Pairs of a task with roles; the clean prompts are run.
        circuit: The circuit.
        progress: Gets how many batches are done.

    Raises:
        EdgepruneError: The circuit is of another graph, or no prompt has a role.
    """
    circuit.check_fits(model.graph)
    return RoleProfile(circuit, head_roles(model, batches, progress))
