"""A circuit against a known one: rates, curves and areas in every counting convention, and the roles that were found.

In conventions that merge edges, and for nodes, random scores have no `auc` of 0.5: compare with the same figure of
random circuits.
"""

from dataclasses import dataclass
from typing import Any, final

import torch

from edgeprune.canonical import CanonicalCircuit, load
from edgeprune.circuit import Circuit
from edgeprune.comparison.conventions import CONVENTIONS, LEVELS, Level, convention_of
from edgeprune.comparison.mib_roc import mib_roc
from edgeprune.comparison.overlap import by_chance, edge_overlap
from edgeprune.comparison.roc import Curve, roc
from edgeprune.json_numbers import json_fields

AS_IS = "own"  # name of the count of the graph's edges as they are
NUM_POINTS = 200  # of a curve in a file: a plot shows no more


# -------------------------------------------------------------------- results
@final
@dataclass(frozen=True, eq=False)
class Match:
    """The edges, or the nodes, of a circuit against those of a known one in one convention.

    `to_dict` has the counts and rates by name; where there are scores also `auc`, `pessimistic_auc` and
    `average_precision`.

    Attributes:
        num_counted: Edges or nodes of the convention.
        num_true: Those in the known circuit.
        num_found: Those in the circuit.
        num_both: Those in both.
        tpr: num_both / num_true; None where nothing is true.
        fpr: Found but not true / not true; None where all are true.
        precision: num_both / num_found; of an empty circuit 0, or 1 if nothing is true.
        recall: num_both / num_true; where nothing is true 0, or 1 if nothing was found.
        f1: 2 num_both / (num_found + num_true); 1 where both are 0.
        curve: ROC curve of the scores; None without scores, or where nothing is to be told apart.
    """

    num_counted: int
    num_true: int
    num_found: int
    num_both: int
    tpr: float | None
    fpr: float | None
    precision: float
    recall: float
    f1: float
    curve: Curve | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values; see the class."""
        areas = () if self.curve is None else ("auc", "pessimistic_auc", "average_precision")
        return json_fields(self, "curve", **{name: getattr(self.curve, name) for name in areas})


@final
@dataclass(frozen=True, eq=False)
class AgainstKnown:
    """All there is to say about a circuit and a known one without running the model.

    `to_dict` has:

    - `name`, and `published`: whether it is one of `edgeprune.canonical`;
    - `summary`: such as "5 of 5 component types"; without roles, how many of the edges were found;
    - `conventions`: for `"own"` (the edges of the graph) and each of `edgeprune.comparison.conventions.CONVENTIONS` the
      `Match` of `edges` and of `nodes`;
    - `chance`: shared edges that a random circuit of the same size would have, and the p-value (`by_chance`);
    - with scores, `roc`: `fpr` and `tpr` of at most 200 points of that curve, for `edges` and `nodes`;
    - with scores, `mib_auroc`: of edges by `signed` and by `absolute` score (`mib_roc`), None where nothing is to be
      told apart;
    - with roles, all that `role_recall` gives: `roles`, `num_roles`, `roles_found`, `roles_complete`, `node_recall`,
      `edges`, `edges_not_dangling`.

    Attributes:
        name: The known circuit.
        published: Whether it is one of `edgeprune.canonical`.
        matches: By convention and level.
        chance: As `by_chance` gives it, for the edges of the graph.
        mib_auroc: By ranking; empty without scores.
        roles: As `role_recall` gives it; None without roles.
    """

    name: str
    published: bool
    matches: dict[str, dict[Level, Match]]
    chance: dict[str, float]
    mib_auroc: dict[str, float | None]
    roles: dict[str, Any] | None

    @property
    def summary(self) -> str:
        """In a few words."""
        as_is = self.matches[AS_IS]["edges"]
        return str(self.roles["summary"]) if self.roles else f"{as_is.num_both:,} of {as_is.num_true:,} edges"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; see the class."""
        found = json_fields(self, "matches", "mib_auroc", "roles", summary=self.summary, conventions=self.matches)
        curves = {level: match.curve for level, match in self.matches[AS_IS].items() if match.curve is not None}
        if curves:
            found["roc"] = {level: plotted(curve) for level, curve in curves.items()}
        if self.mib_auroc:
            found["mib_auroc"] = self.mib_auroc
        return {**(self.roles or {}), **found}


def plotted(curve: Curve, most: int = NUM_POINTS) -> dict[str, list[float]]:
    """`fpr` and `tpr` of points of a curve, both ends among them: those nearest to steps of equal length along it.

    Args:
        curve: The curve.
        most: Points to keep at most.
    """
    fpr, tpr = curve.fpr, curve.tpr
    way = (fpr + tpr).contiguous()
    wanted = torch.linspace(0, float(way[-1]), most, dtype=way.dtype)
    places = torch.searchsorted(way, wanted).clamp(max=len(way) - 1)
    places[-1] = len(way) - 1
    chosen = torch.arange(len(way)) if len(way) <= most else places.unique()
    return {"fpr": fpr[chosen].tolist(), "tpr": tpr[chosen].tolist()}


# -------------------------------------------------------------------- making them
def against_known(circuit: Circuit, truth: CanonicalCircuit | Circuit | str) -> AgainstKnown:
    """Hold a circuit against a known one.

    Args:
        circuit: With scores or without.
        truth: A published circuit or its name (`edgeprune.canonical.names`), which is put on the graph of `circuit`; or
            any circuit on that graph.

    Raises:
        EdgepruneError: The known circuit is of another graph or model, there is none of that name, or a score is NaN.
    """
    known = load(truth) if isinstance(truth, str) else truth
    published = isinstance(known, CanonicalCircuit)
    edges = known.circuit(circuit.graph) if published else known
    circuit.check_fits(edges.graph, "the known circuit")
    matches: dict[str, dict[Level, Match]] = {
        name: {level: _match(circuit, edges, None if name == AS_IS else name, level) for level in LEVELS}
        for name in (AS_IS, *CONVENTIONS)
    }
    as_is = matches[AS_IS]["edges"]
    return AgainstKnown(
        known.name if published else str(known.header.get("circuit", "reference")),
        published,
        matches,
        by_chance(as_is.num_both, as_is.num_found, as_is.num_true, as_is.num_counted),
        _mib_auroc(circuit, edges),
        role_recall(circuit, known) if published and known.roles else None,
    )


def _match(circuit: Circuit, truth: Circuit, convention: str | None, level: Level) -> Match:
    graph, counted = circuit.graph, convention_of(circuit.graph, convention)
    found, true = (LEVELS[level](graph, keep, counted) > 0 for keep in (circuit.keep, truth.keep))
    overlap = edge_overlap(found, true, torch.ones_like(true))
    num_counted, num_true, num_found = true.numel(), int(true.sum()), int(found.sum())
    mixed = 0 < num_true < num_counted
    return Match(
        num_counted,
        num_true,
        num_found,
        int(overlap["both"]),
        _share(overlap["both"], num_true),
        _share(overlap["only_found"], num_counted - num_true),
        overlap["precision"],
        overlap["recall"],
        overlap["f1"],
        roc(circuit, truth, convention, level) if mixed and circuit.scores is not None else None,
    )


def _share(part: float, whole: int) -> float | None:
    return part / whole if whole else None


def _mib_auroc(circuit: Circuit, truth: Circuit) -> dict[str, float | None]:
    if circuit.scores is None:
        return {}
    mixed = 0 < truth.num_edges < truth.graph.num_edges
    rankings = {"signed": False, "absolute": True}
    return {name: mib_roc(circuit, truth, absolute=how).auroc if mixed else None for name, how in rankings.items()}


# -------------------------------------------------------------------- roles
def role_recall(circuit: Circuit, known: CanonicalCircuit) -> dict[str, Any]:
    """Which roles of a published circuit were found.

    A node is found when a kept edge leaves or enters it that is not dangling (that lies on a path of kept edges from an
    embedding to the logits). A role is found when at least one of its nodes is; it is complete when all are.

    Args:
        circuit: The circuit to look at.
        known: The published one, of the same model.

    Returns:
        `roles`: for each role `found` and `complete` (whether), `nodes_found`, `nodes_missed` (names) and `recall`
        (share of its nodes). `num_roles`, `roles_found`, `roles_complete`; `summary`, such as "5 of 5 component types".
        `node_recall`: share of all nodes with a role. `edges`: `edge_overlap` of all kept edges with the published
        ones, on the circuit's graph; `edges_not_dangling`: that of the kept edges that are not dangling.

    Raises:
        EdgepruneError: The circuit's graph is of another shape than the model's.
    """
    truth, graph = known.circuit(circuit.graph), circuit.graph
    useful = Circuit(graph, circuit.keep & ~graph.dangling(circuit.keep))
    present = set(useful.nodes())
    roles = {name: _role(members, present) for name, members in known.roles.items()}
    found = sum(role["found"] for role in roles.values())
    named = [node for members in known.roles.values() for node in members]
    return {
        "roles": roles,
        "num_roles": len(roles),
        "roles_found": found,
        "roles_complete": sum(role["complete"] for role in roles.values()),
        "summary": f"{found} of {len(roles)} component types",
        "node_recall": len(present.intersection(named)) / len(named),
        "edges": edge_overlap(circuit.keep, truth.keep, graph.exists),
        "edges_not_dangling": edge_overlap(useful.keep, truth.keep, graph.exists),
    }


def _role(members: tuple[str, ...], present: set[str]) -> dict[str, Any]:
    found = [node for node in members if node in present]
    return {
        "found": bool(found),
        "complete": len(found) == len(members),
        "nodes_found": found,
        "nodes_missed": [node for node in members if node not in present],
        "recall": len(found) / len(members),
    }
