"""Two circuits of any two models, compared by what their heads attend to: matched heads, and the roles that matter.

Similarity of heads is the cosine of their role vectors (`HeadRoles.vectors`), that of circuits the cosine of their
role-importance vectors (`RoleProfile.importance`). Both come with the same figure of random heads and random circuits.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.json_numbers import json_fields
from edgeprune.reading.attention_roles import HeadRoles, RoleProfile


# -------------------------------------------------------------------- heads
@dataclass(frozen=True)
class HeadMatch:
    """A head of one circuit beside one of another; `similarity` is the cosine of their role vectors."""

    first: str
    second: str
    similarity: float


def match_heads(
    first: RoleProfile,
    second: RoleProfile,
    *,
    one_to_one: bool = True,
    heads: tuple[Sequence[str], Sequence[str]] | None = None,
) -> list[HeadMatch]:
    """Match heads of two circuits by what they attend to.

    Role vectors hold the attention between all parts that both models know.

    Args:
        first: One circuit.
        second: The other.
        one_to_one: The pairs with the largest sum of similarities in which every head of the smaller circuit is taken
            once, by descending similarity. False: to every head of `first` its most similar one, in the order of heads;
            a head of `second` may be taken often.
        heads: Match these heads of the two models instead of the circuits'.
    """
    ours, theirs = (first.heads, second.heads) if heads is None else heads
    queries, keys = common_parts(first.attention, second.attention)
    similarity = first.attention.vectors(ours, queries, keys) @ second.attention.vectors(theirs, queries, keys).T
    if not similarity.numel():
        return []
    if one_to_one:
        rows, columns = (torch.as_tensor(places) for places in linear_sum_assignment(similarity, maximize=True))
        order = similarity[rows, columns].argsort(descending=True, stable=True)
        rows, columns = rows[order], columns[order]
    else:
        rows, columns = torch.arange(len(similarity)), similarity.argmax(1)
    pairs: list[list[int]] = torch.stack((rows, columns), 1).tolist()
    return [HeadMatch(ours[row], theirs[column], float(similarity[row, column])) for row, column in pairs]


def common_parts(first: HeadRoles, second: HeadRoles) -> tuple[list[str], list[str]]:
    """Query and key parts that both know.

    Raises:
        EdgepruneError: They share no role.
    """
    if not set(first.roles) & set(second.roles):
        raise EdgepruneError(
            f"the prompts share no role: {', '.join(first.roles)} against {', '.join(second.roles)}; "
            "run both models on the same task"
        )
    queries, keys = (
        [name for name in ours if name in theirs]
        for ours, theirs in ((first.queries, second.queries), (first.keys, second.keys))
    )
    return queries, keys


def cosine(first: Tensor, second: Tensor) -> float:
    """Cosine of two vectors `[n]`, in [-1, 1]; NaN if one of them is 0."""
    norms = float(first.norm() * second.norm())
    return max(-1.0, min(1.0, float(first @ second) / norms)) if norms else math.nan


@final
@dataclass(frozen=True)
class ImportanceSimilarity:
    """Cosine similarity of two circuits' role-importance vectors, and what chance gives.

    Importance vectors of any two circuits are alike, because most edges of every transformer touch the same classes of
    nodes: read `cosine` beside `random`. `cosine_above_graph` removes that: it compares importance - the importance
    of the model's whole graph, so that random circuits have about 0 on average.

    Attributes:
        cosine: Of the vectors, by kept edges; NaN if a circuit is empty.
        cosine_of_scores: Likewise by absolute scores; NaN where a circuit has none.
        cosine_above_graph: Of the differences to the whole graph's vector; NaN where one has no difference.
        random: `cosine` of two random circuits of these sizes, one value for each seed.
        random_above_graph: `cosine_above_graph` of the same.
        seeds: Of the random circuits; those of the second model are drawn with `seed + 1000`.
    """

    cosine: float
    cosine_of_scores: float
    cosine_above_graph: float
    random: tuple[float, ...]
    random_above_graph: tuple[float, ...]
    seeds: tuple[int, ...]

    def to_dict(self) -> dict[str, Any]:
        """The attributes as plain values, and the means `random_mean` and `random_above_graph_mean`."""
        means = {f"{name}_mean": mean(getattr(self, name)) for name in ("random", "random_above_graph")}
        return json_fields(self, **means)


def mean(values: Iterable[float]) -> float:
    """Mean of the values that are numbers; NaN if none is."""
    return float(torch.tensor(list(values), dtype=torch.float64).nanmean())


SECOND_SEED = 1000  # added to the seeds of the second model, so that equal graphs do not get equal random circuits


def importance_similarity(
    first: RoleProfile, second: RoleProfile, seeds: Sequence[int] = range(10)
) -> ImportanceSimilarity:
    """Cosine similarity of role-importance vectors, with random circuits of the same sizes as a control.

    Args:
        first: One circuit.
        second: The other, of any model on the same task.
        seeds: One pair of random circuits for each.
    """
    graphs = [profile.shares(profile.circuit.graph.exists) for profile in (first, second)]

    def compare(left: Tensor, right: Tensor) -> tuple[float, float]:
        plain = cosine(*_on_common_classes(first, second, left, right))
        above = [
            shares - whole if shares.any() else torch.zeros_like(shares)
            for shares, whole in zip((left, right), graphs, strict=True)
        ]
        above = [difference.where(difference.abs() > 1e-12, 0.0) for difference in above]  # rounding is no difference
        return plain, cosine(*_on_common_classes(first, second, *above))

    def drawn(profile: RoleProfile, seed: int) -> Tensor:
        return profile.shares(Circuit.random(profile.circuit.graph, profile.circuit.num_edges, seed).keep)

    found, above = compare(first.importance, second.importance)
    random = [compare(drawn(first, seed), drawn(second, seed + SECOND_SEED)) for seed in seeds]
    scores, by_score = (first.score_importance, second.score_importance), math.nan
    if scores[0] is not None and scores[1] is not None:
        by_score = compare(scores[0], scores[1])[0]
    return ImportanceSimilarity(
        cosine=found,
        cosine_of_scores=by_score,
        cosine_above_graph=above,
        random=tuple(value for value, _ in random),
        random_above_graph=tuple(value for _, value in random),
        seeds=tuple(seeds),
    )


def _on_common_classes(first: RoleProfile, second: RoleProfile, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Two importance vectors on all classes that either knows; 0 where one does not."""
    names = tuple(dict.fromkeys((*first.class_names, *second.class_names)))
    vectors: list[Tensor] = []
    for profile, shares in ((first, left), (second, right)):
        vector = torch.zeros(len(names), dtype=torch.float64)
        vector[[names.index(name) for name in profile.class_names]] = shares
        vectors.append(vector)
    return vectors[0], vectors[1]


@final
@dataclass(frozen=True, eq=False)
class RoleComparison:
    """Two circuits, of any two models, compared by what their heads attend to.

    Attributes:
        first: One circuit.
        second: The other.
        best_of_first: For every head of the first circuit its most similar one in the second.
        best_of_second: The reverse; here too `HeadMatch.first` is the head of the first circuit.
        one_to_one: The matching with the largest sum, by descending similarity.
        random_one_to_one: Mean similarity of a one-to-one matching of as many heads drawn at random from each whole
            model, one value for each seed: what heads of any two circuits have in common.
        importance: Of role-importance vectors.
    """

    first: RoleProfile
    second: RoleProfile
    best_of_first: tuple[HeadMatch, ...]
    best_of_second: tuple[HeadMatch, ...]
    one_to_one: tuple[HeadMatch, ...]
    random_one_to_one: tuple[float, ...]
    importance: ImportanceSimilarity

    def to_dict(self) -> dict[str, Any]:
        """Plain values.

        `queries` and `keys`, the common parts; `profiles`, of both circuits; `best_of_first`, `best_of_second` and
        `one_to_one`, each with `mean_similarity` (None without heads) and `matches`; `random_one_to_one` (values) and
        `random_one_to_one_mean`; `importance`, see `ImportanceSimilarity`.
        """
        queries, keys = common_parts(self.first.attention, self.second.attention)
        matches = {
            name: _plain_matches(getattr(self, name)) for name in ("best_of_first", "best_of_second", "one_to_one")
        }
        return json_fields(
            self,
            "first",
            "second",
            queries=queries,
            keys=keys,
            profiles=[self.first, self.second],
            random_one_to_one_mean=mean(self.random_one_to_one),
            **matches,
        )


def _plain_matches(matches: Sequence[HeadMatch]) -> dict[str, Any]:
    return {"mean_similarity": mean(item.similarity for item in matches), "matches": list(matches)}


def compare_roles(first: RoleProfile, second: RoleProfile, seeds: Sequence[int] = range(10)) -> RoleComparison:
    """Compare two circuits by what their heads attend to.

    Args:
        first: One circuit.
        second: The other, of any model on the same task.
        seeds: Of the random heads and random circuits that serve as controls.

    Raises:
        EdgepruneError: The prompts share no role.
    """
    reverse = match_heads(second, first, one_to_one=False)
    return RoleComparison(
        first=first,
        second=second,
        best_of_first=tuple(match_heads(first, second, one_to_one=False)),
        best_of_second=tuple(HeadMatch(item.second, item.first, item.similarity) for item in reverse),
        one_to_one=tuple(match_heads(first, second)),
        random_one_to_one=tuple(_random_matching(first, second, seed) for seed in seeds),
        importance=importance_similarity(first, second, seeds),
    )


def _random_matching(first: RoleProfile, second: RoleProfile, seed: int) -> float:
    """Mean similarity of the one-to-one matching of random heads; NaN without heads."""
    generator = torch.Generator().manual_seed(seed)

    def draw(profile: RoleProfile) -> list[str]:
        names = profile.attention.heads
        order: list[int] = torch.randperm(len(names), generator=generator).tolist()
        return [names[place] for place in sorted(order[: len(profile.heads)])]

    return mean(item.similarity for item in match_heads(first, second, heads=(draw(first), draw(second))))
