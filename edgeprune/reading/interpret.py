"""All that a reading of a circuit holds, and the plain values that `edgeprune evaluate --reading` writes of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, final

from rich.console import Group

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.evaluator import Evaluator, divergence_measure
from edgeprune.json_numbers import json_fields, json_value
from edgeprune.methods.problem import Metric
from edgeprune.metrics.registry import measure_named
from edgeprune.reading.attention import attention_patterns, circuit_heads
from edgeprune.reading.attention_roles import HeadRoles, attention_by_role
from edgeprune.reading.direct import LOGIT_DIFFERENCE, TARGET, DirectAttribution, direct_attribution
from edgeprune.reading.patterns import AttentionPatterns
from edgeprune.reading.role_effects import MAX_EXACT, RoleEffects, role_effects

MAX_HEADS = 12
MAX_PROMPTS = 2
MAX_ROWS = 200  # edges that the JSON lists
Found = TypeVar("Found")


@final
@dataclass(frozen=True, eq=False)
class Reading:
    """A circuit read on some pairs. What could not be made is None, and `notes` says why.

    Attributes:
        attention: Patterns of some of its heads on the first prompts.
        by_role: Mean attention of all heads between parts of the prompts: in the circuit's run, and the full model's.
        direct: What each writer adds to the answer.
        effects: Of edges by position role.
        num_heads: Heads of the circuit.
        chosen: Which of them are shown, in words.
        notes: What is missing, and why.
        num_examples: Pairs read.
    """

    attention: AttentionPatterns | None
    by_role: tuple[HeadRoles, HeadRoles] | None
    direct: DirectAttribution | None
    effects: RoleEffects | None
    num_heads: int
    chosen: str
    notes: tuple[str, ...]
    num_examples: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `by_role` has `queries`, `keys`, and `heads`, by name `circuit` and `full`, `[query][key]`."""
        effects = None if self.effects is None else self.effects.to_dict(MAX_ROWS)
        return json_fields(self, by_role=self._by_role(), effects=effects)

    def _by_role(self) -> dict[str, Any] | None:
        if self.by_role is None or self.attention is None:
            return None
        first = self.by_role[0]
        runs = dict(zip(("circuit", "full"), self.by_role, strict=True))
        heads = {
            head: {name: roles.patterns[roles.heads.index(head)] for name, roles in runs.items()}
            for head in self.attention.heads
        }
        return json_value({"queries": first.queries, "keys": first.keys, "heads": heads})

    @property
    def _parts(self) -> list[AttentionPatterns | DirectAttribution | RoleEffects]:
        return [part for part in (self.attention, self.direct, self.effects) if part is not None]

    def __repr__(self) -> str:
        return f"Reading({'; '.join([*map(repr, self._parts), *self.notes])})"

    def __rich__(self) -> Group:
        return Group(*self._parts, *self.notes)


def interpret_circuit(
    evaluator: Evaluator,
    circuit: Circuit,
    tokenizer: Any = None,
    *,
    max_heads: int = MAX_HEADS,
    max_prompts: int = MAX_PROMPTS,
    max_exact: int = MAX_EXACT,
) -> Reading:
    """Read a circuit: attention of its heads, direct logit attribution, effects of its edges by role.

    The measure is the logit difference, or KL (squared error for models of a single output) where pairs have no
    distractor; direct attribution then goes to the right answer's logit. Heads are ranked by how much hangs on their
    edges (`RoleEffects.weights`), without roles by what they add to the answer.

    Args:
        evaluator: Model, ablation and pairs.
        circuit: The circuit.
        tokenizer: For the labels of tokens.
        max_heads: Heads whose patterns are kept.
        max_prompts: Prompts on which they are.
        max_exact: Edges whose effects are found exactly.

    Raises:
        EdgepruneError: The circuit is of another graph.
    """
    circuit.check_fits(evaluator.graph)
    notes: list[str] = []

    def attempt(what: str, make: Callable[[], Found]) -> Found | None:
        try:
            return make()
        except EdgepruneError as error:
            notes.append(f"{what}: {error}")
            return None

    difference = _has_distractors(evaluator)
    measure: Metric = "logit_difference" if difference else _divergence(evaluator)
    direction = LOGIT_DIFFERENCE if difference else TARGET
    direct = attempt("direct attribution", lambda: direct_attribution(evaluator, circuit, direction))
    effects = attempt("effects by role", lambda: role_effects(evaluator, circuit, measure, max_exact=max_exact))
    heads, chosen = _ranked(circuit, effects, direct)
    few = evaluator.limited(max_prompts)
    attention = attempt("attention", lambda: attention_patterns(few, circuit, heads[:max_heads] or None, tokenizer))
    by_role = attempt("attention by role", lambda: attention_by_role(evaluator, circuit)) if attention else None
    return Reading(
        attention=attention,
        by_role=by_role,
        direct=direct,
        effects=effects,
        num_heads=len(heads),
        chosen=chosen,
        notes=tuple(notes),
        num_examples=evaluator.num_examples,
    )


def _has_distractors(evaluator: Evaluator) -> bool:
    """Whether the logit difference is defined on every pair."""
    return int(evaluator([None], "the full model", [LOGIT_DIFFERENCE]).defined()[0, 0]) == evaluator.num_examples


def _divergence(evaluator: Evaluator) -> Metric:
    return "kl" if measure_named(divergence_measure(evaluator)).name == "kl" else "squared_error"


def _ranked(circuit: Circuit, effects: RoleEffects | None, direct: DirectAttribution | None) -> tuple[list[str], str]:
    """The circuit's heads, those that matter most first, and by what in words."""
    if effects is not None:
        weights = effects.weights()
        how = f"whose edges have the largest first-order effects on {effects.measure}"
    elif direct is not None:
        weights: dict[str, float] = dict(zip(direct.rows, direct.values.mean(1).abs().tolist(), strict=True))
        how = f"that add most to the {direct.direction}"
    else:
        weights, how = {}, "of the earliest layers"
    size = {name: weights.get(name, 0.0) for name in circuit_heads(circuit)}
    return sorted(size, key=size.__getitem__, reverse=True), how
