"""Sections on which edges the circuits have: layers and kinds, a known circuit, each two circuits."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from edgeprune.report import plots
from edgeprune.report.axes import Axis
from edgeprune.report.blocks import CIRCUIT, Block, Cell, Column, Plots, Row, Section, Table
from edgeprune.report.result import Json, Result, cell, circuits_with, entries, items, numbers, part
from edgeprune.report.text import UNDEFINED, chance, finite, number, percent, probability, words

_NATIVE = "own"  # the key of this graph's own convention
_RATES = {
    "tpr": ("TPR", "True positive rate of the circuit: share of the known things that it has (recall)"),
    "fpr": ("FPR", "False positive rate: share of all other things that it has"),
    "precision": ("precision", "Share of what it has that is known"),
    "recall": ("recall", "Share of the known things that it has"),
    "f1": ("F1", "Harmonic mean of precision and recall"),
    "auc": ("AUC", "Area below the ROC curve, points joined by straight lines; 0.5 at random"),
    "pessimistic_auc": ("pessimistic AUC", "Area of the staircase below the ROC curve, as ACDC's tables have it"),
    "average_precision": ("average precision", "Area of precision over recall; the share of known things at random"),
}


# -------------------------------------------------------------------- layers and kinds of edges
def layers(result: Result) -> Section | None:
    """How many edges each circuit keeps in each layer, and of each kind."""
    captions = {"layers": "Edges kept by the layer that reads them", "kinds": "Edges kept by kind, writer to reader"}
    intro = "How many edges are kept; in colour the share of those that exist, on a scale of square roots."
    tables = [_shares(result, name, caption) for name, caption in captions.items()]
    return Section.of("layers", "Where the edges are", intro, tables)


def _shares(result: Result, name: str, caption: str) -> Table:
    parts = dict.fromkeys(one for circuit in result.circuits for one in part(circuit, name))
    found = circuits_with(result, name)
    rows = [Row(circuit_name, [_share(part(about, one), one) for one in parts]) for circuit_name, about in found]
    return Table(caption, [CIRCUIT, *map(Column, parts)], rows)


def _share(found: Json, where: str) -> Cell:
    kept, existing = finite(found.get("kept")), finite(found.get("existing"))
    if kept is None or not existing:
        return Cell(UNDEFINED, title=f"{where}: no edges exist")
    share = kept / existing
    title = f"{where}: {number(found['kept'])} of {number(found['existing'])} edges, {percent(share)}"
    return Cell(number(found["kept"]), title=title, sort=kept, heat=min(share, 1.0) ** 0.5)


# -------------------------------------------------------------------- a known circuit
def known(result: Result) -> Section | None:
    """Roles, rates and ROC curves against known circuits."""
    names = dict.fromkeys(name for circuit in result.circuits for name in part(circuit, "known"))
    blocks = [block for name in names for block in _known_blocks(result, name)]
    intro = (
        "Against circuits that are published or true by construction. Conventions are ways to count the same edges: as "
        "this graph has them, or as another tool's coarser one."
    )
    return Section.of("known", "Against a known circuit", intro, blocks)


def _known_blocks(result: Result, name: str) -> list[Block]:
    curves = [bool(part(circuit, "known", name, "roc")) for circuit in result.circuits]
    keys = [plots.key(one, place) for place, one in enumerate(result.names) if curves[place]]
    drawn = [_roc(result, name, level) for level in ("edges", "nodes")]
    roc = Plots.of(f"ROC against {name}. The diagonal is a random order.", drawn, keys)
    return [_roles(result, name), _shared(result, name), *_rates(result, name), roc]


def _roles(result: Result, name: str) -> Table:
    found = circuits_with(result, "known", name)
    roles = dict.fromkeys(role for _, about in found for role in part(about, "roles"))
    columns = [Column.words("role"), *(Column(one) for one, _ in found)]
    rows = [Row(words(role), [_role(part(about, "roles", role)) for _, about in found]) for role in roles]
    if rows and any(about.get("summary") for _, about in found):
        rows.append(Row("roles found", [Cell(str(about.get("summary") or UNDEFINED)) for _, about in found], "end"))
    return Table(f"Nodes found of each role in {name}", columns, rows)


def _role(role: Json) -> Cell:
    hit, missed = ([str(node) for node in items(role, name)] for name in ("nodes_found", "nodes_missed"))
    if not hit and not missed:
        return Cell(UNDEFINED)
    recall = finite(role.get("recall"))
    title = f"found: {', '.join(hit) or 'none'}; missed: {', '.join(missed) or 'none'}"
    return Cell(f"{len(hit)} of {len(hit) + len(missed)}", title=title, sort=recall, heat=recall)


_SHARED = {
    "both": Column("shared edges", title="Edges in both circuits"),
    "expected": Column("by chance", title="Shared edges expected of a random circuit of the same size"),
    "log10_p_value": Column("p-value", "of the shared edges"),
    "node_recall": Column("node recall", title="Share of all nodes with a role that were found"),
    "signed": Column("MIB AUROC", "by score", "Of ten circuits grown from the logits by score; see the glossary"),
    "absolute": Column("MIB AUROC", "by absolute score", "The same by absolute score; means nothing for trained masks"),
}


def _shared(result: Result, name: str) -> Table:
    """What they have in common and would have by chance, the share of roles' nodes, and MIB's areas."""
    found = list[tuple[str, Json]]()
    for circuit_name, about in circuits_with(result, "known", name):
        values = {
            "both": part(about, "conventions", _NATIVE, "edges").get("num_both"),
            "node_recall": about.get("node_recall"),
            **part(about, "chance"),
            **part(about, "mib_auroc"),
        }
        if any(finite(values.get(key)) is not None for key in _SHARED):
            found.append((circuit_name, values))
    shown = [key for key in _SHARED if any(finite(values.get(key)) is not None for _, values in found)]
    rows = [
        Row(
            circuit_name,
            [cell(values.get(key), chance if key == "log10_p_value" else number) for key in shown],
        )
        for circuit_name, values in found
    ]
    return Table(f"Shared with {name}", [CIRCUIT, *(_SHARED[key] for key in shown)], rows)


def _rates(result: Result, name: str) -> list[Table]:
    """Rates in this graph, and folded those in other conventions."""
    rows = [
        (circuit_name, convention, level, rates)
        for circuit_name, conventions in circuits_with(result, "known", name, "conventions")
        for convention, levels in conventions.items()
        for level, rates in part(levels).items()
    ]
    native = [(first, [level], rates) for first, convention, level, rates in rows if convention == _NATIVE]
    others = [
        (first, [words(convention), level], rates) for first, convention, level, rates in rows if convention != _NATIVE
    ]
    return [
        _rate_table(f"Edges and nodes of {name}", ["of"], native),
        _rate_table(f"Edges and nodes of {name} by other conventions", ["convention", "of"], others, folded=True),
    ]


def _rate_table(
    caption: str, heads: Sequence[str], found: Sequence[tuple[str, Sequence[str], Any]], folded: bool = False
) -> Table:
    shown = [rate for rate in _RATES if any(finite(part(rates).get(rate)) is not None for *_, rates in found)]
    columns = [CIRCUIT, *map(Column.words, heads), *(Column(_RATES[rate][0], title=_RATES[rate][1]) for rate in shown)]
    rows = [
        Row(name, [*map(cell, texts), *(cell(part(rates).get(rate)) for rate in shown)]) for name, texts, rates in found
    ]
    return Table(caption, columns, rows, folded=folded)


def _roc(result: Result, name: str, level: str) -> plots.Plot | None:
    def points(_: str, circuit: Json) -> list[plots.Point]:
        curve = part(circuit, "known", name, "roc", level)
        return [plots.Point(*rates) for rates in zip(numbers(curve, "fpr"), numbers(curve, "tpr"), strict=False)]

    series = result.series(points, most_marks=30)
    x, y = Axis("false positive rate", 0.0, 1.0), Axis("true positive rate", 0.0, 1.0)
    return plots.draw(f"{name}, {level}", x, y, series, diagonal=True) if series else None


# -------------------------------------------------------------------- each two circuits
def overlap(result: Result) -> Section | None:
    """What each two circuits share, and how their figures differ."""
    pairs = entries(result.data, "pairs")
    intro = (
        "Jaccard: shared / in either. The p-value is the probability that random circuits of the two sizes share as "
        "many edges or more. Differences are the first circuit's figure minus the second's on the same examples."
    )
    matrix = [_matrix(result, pairs)] if len(result.circuits) > 2 else []
    tables = [*matrix, _overlap_table(result, pairs), _difference_table(result, pairs), _score_table(result, pairs)]
    return Section.of("overlap", "Each two circuits", intro, tables) if pairs else None


def _overlap_table(result: Result, pairs: list[Json]) -> Table:
    columns = [CIRCUIT, Column.words("and")]
    columns += [Column("edge Jaccard"), Column("shared edges"), Column("by chance", title="Expected shared edges")]
    columns += [Column("p-value", "of the shared edges"), Column("node Jaccard")]
    rows = list[Row]()
    for pair in pairs:
        edges, nodes = finite(pair.get("jaccard")), finite(part(pair, "nodes").get("jaccard"))
        cells = [
            cell(result.name_at(pair.get("b"))),
            cell(edges, heat=edges),
            *(cell(pair.get(key)) for key in ("both", "expected")),
            cell(pair.get("log10_p_value"), chance),
            cell(nodes, heat=nodes),
        ]
        rows.append(Row(result.name_at(pair.get("a")), cells))
    return Table("Edges and nodes that two circuits share", columns, rows)


_RANKS = {
    "ruzicka": Column("Ružička", "of weights", "Sum of the smaller / sum of the larger weight of each edge"),
    "same_sign": Column("same sign", "of shared edges", "Share of the edges in both whose scores have one sign"),
    "spearman_all": Column("Spearman", "all edges", "Rank correlation of the scores over all edges of the graph"),
    "kendall_all": Column("Kendall", "all edges", "Tau-b of the scores over all edges of the graph"),
    "spearman_kept": Column("Spearman", "kept edges", "Rank correlation over the edges that one of the two keeps"),
    "kendall_kept": Column("Kendall", "kept edges", "Tau-b over the edges that one of the two keeps"),
}


def _score_table(result: Result, pairs: list[Json]) -> Table:
    """How far the scores of two circuits agree: figures of edges, not of examples, and so without intervals."""
    found = [(pair, {**part(pair, "weights"), **part(pair, "ranks")}) for pair in pairs]
    shown = [key for key in _RANKS if any(finite(values.get(key)) is not None for _, values in found)]
    columns = [CIRCUIT, Column.words("and"), *(_RANKS[key] for key in shown)]
    rows = [
        Row(
            result.name_at(pair.get("a")),
            [cell(result.name_at(pair.get("b"))), *(cell(values.get(key)) for key in shown)],
        )
        for pair, values in found
    ]
    return Table("Scores of two circuits", columns, rows if shown else [])


def _matrix(result: Result, pairs: list[Json]) -> Table:
    found = {(pair.get("a"), pair.get("b")): finite(pair.get("jaccard")) for pair in pairs}
    found |= {(second, first): value for (first, second), value in found.items()}
    rows = list[Row]()
    for a, name in enumerate(result.names):
        values = [1.0 if a == b else found.get((a, b)) for b in range(len(result.names))]
        rows.append(Row(name, [cell(value, heat=value) for value in values]))
    return Table("Edge Jaccard", [CIRCUIT, *map(Column, result.names)], rows)


def _difference_table(result: Result, pairs: list[Json]) -> Table:
    taken = dict.fromkeys(name for pair in pairs for name in part(pair, "differences"))
    measures = [name for name in result.main if name in taken] or list(taken)[:6]
    columns = [CIRCUIT, Column.words("minus"), *map(result.column, measures)]
    rows = [
        Row(
            result.name_at(pair.get("a")),
            [cell(result.name_at(pair.get("b"))), *(_difference(result, differences, measure) for measure in measures)],
        )
        for pair in pairs
        if (differences := part(pair, "differences"))
    ]
    return Table(f"Differences on the same examples, with {result.interval} and p-value", columns, rows)


def _difference(result: Result, differences: Json, measure: str) -> Cell:
    found, p_value = result.figure(differences, measure), part(differences, measure).get("p_value")
    if found.sort is None or finite(p_value) is None:
        return found
    p_text = f"p {'' if probability(p_value).startswith('<') else '= '}{probability(p_value)}"
    return replace(found, small=f"{found.small} {p_text}".strip(), title=f"{found.title}, {p_text}")
