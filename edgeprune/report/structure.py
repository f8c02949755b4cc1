"""Sections on which edges the circuits have: layers and kinds, a known circuit, each two circuits."""

from collections.abc import Sequence
from typing import Any

from edgeprune.comparison.overlap import scientific
from edgeprune.report import plots
from edgeprune.report.axes import Axis
from edgeprune.report.blocks import Block, Cell, Column, Figure, Row, Section, Table
from edgeprune.report.result import Json, Result, cell, entries, items, numbers, part
from edgeprune.report.text import UNDEFINED, finite, number, percent, probability, words

_OWN = "own"  # the convention of this graph
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
    tables = [table for name, caption in captions.items() if (table := _shares(result, name, caption)).rows]
    intro = "How many edges are kept; in colour the share of those that exist, on a scale of square roots."
    return Section("layers", "Where the edges are", intro, tables) if tables else None


def _shares(result: Result, name: str, caption: str) -> Table:
    parts = dict.fromkeys(one for circuit in result.circuits for one in part(circuit, name))
    rows = [
        Row(circuit_name, [_share(part(circuit, name, one), one) for one in parts])
        for circuit_name, circuit in result.named
        if part(circuit, name)
    ]
    return Table(caption, [Column("circuit", numeric=False), *(Column(one) for one in parts)], rows)


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
    return Section("known", "Against a known circuit", intro, blocks) if blocks else None


def _known_blocks(result: Result, name: str) -> list[Block]:
    blocks: list[Block] = [table for table in (_roles(result, name), _shared(result, name)) if table.rows]
    blocks += _rates(result, name)
    roc = [plot for level in ("edges", "nodes") if (plot := _roc(result, name, level)) is not None]
    if roc:
        curves = [bool(part(circuit, "known", name, "roc")) for circuit in result.circuits]
        keys = [plots.key(one, place) for place, one in enumerate(result.names) if curves[place]]
        blocks.append(Figure(f"ROC against {name}. The diagonal is a random order.", roc, keys))
    return blocks


def _roles(result: Result, name: str) -> Table:
    found = [(one, part(circuit, "known", name)) for one, circuit in result.named if part(circuit, "known", name)]
    roles = dict.fromkeys(role for _, about in found for role in part(about, "roles"))
    columns = [Column("role", numeric=False), *(Column(one) for one, _ in found)]
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
    for circuit_name, circuit in result.named:
        about = part(circuit, "known", name)
        both = part(about, "conventions", "own", "edges").get("num_both")
        own = {
            "both": both,
            "node_recall": about.get("node_recall"),
            **part(about, "chance"),
            **part(about, "mib_auroc"),
        }
        if any(finite(own.get(key)) is not None for key in _SHARED):
            found.append((circuit_name, own))
    shown = [key for key in _SHARED if any(finite(own.get(key)) is not None for _, own in found)]
    rows = [
        Row(
            circuit_name,
            [_chance(finite(own.get(key))) if key == "log10_p_value" else cell(own.get(key)) for key in shown],
        )
        for circuit_name, own in found
    ]
    return Table(f"Shared with {name}", [Column("circuit", numeric=False), *map(_SHARED.__getitem__, shown)], rows)


def _rates(result: Result, name: str) -> list[Table]:
    """Rates in this graph, and folded those in other conventions."""
    rows = [
        (circuit_name, convention, level, rates)
        for circuit_name, circuit in result.named
        for convention, levels in part(circuit, "known", name, "conventions").items()
        for level, rates in part(levels).items()
    ]
    own = [(first, [level], rates) for first, convention, level, rates in rows if convention == _OWN]
    others = [
        (first, [words(convention), level], rates) for first, convention, level, rates in rows if convention != _OWN
    ]
    tables = [
        _rate_table(f"Edges and nodes of {name}", ["of"], own),
        _rate_table(f"Edges and nodes of {name} by other conventions", ["convention", "of"], others, folded=True),
    ]
    return [table for table in tables if table.rows]


def _rate_table(
    caption: str, heads: Sequence[str], found: Sequence[tuple[str, Sequence[str], Any]], folded: bool = False
) -> Table:
    shown = [rate for rate in _RATES if any(finite(part(rates).get(rate)) is not None for *_, rates in found)]
    columns = [Column(head, numeric=False) for head in ("circuit", *heads)]
    columns += [Column(_RATES[rate][0], title=_RATES[rate][1]) for rate in shown]
    rows = [
        Row(name, [*(Cell(text, sort=text) for text in texts), *(cell(part(rates).get(rate)) for rate in shown)])
        for name, texts, rates in found
    ]
    return Table(caption, columns, rows, folded=folded)


def _roc(result: Result, name: str, level: str) -> plots.Plot | None:
    series = list[plots.Series]()
    for place, (circuit_name, circuit) in enumerate(result.named):
        curve = part(circuit, "known", name, "roc", level)
        places = zip(numbers(curve, "fpr"), numbers(curve, "tpr"), strict=False)
        points = [plots.Point(fpr, tpr) for fpr, tpr in places]
        if points:
            series.append(plots.Series(plots.key(circuit_name, place), points, line=True, marks=len(points) <= 30))
    if not series:
        return None
    x, y = Axis("false positive rate", 0.0, 1.0), Axis("true positive rate", 0.0, 1.0)
    return plots.draw(f"{name}, {level}", x, y, series, diagonal=True)


# -------------------------------------------------------------------- each two circuits
def overlap(result: Result) -> Section | None:
    """What each two circuits share, and how their figures differ."""
    pairs = entries(result.data, "pairs")
    if not pairs:
        return None
    intro = (
        "Jaccard: shared / in either. The p-value is the probability that random circuits of the two sizes share as "
        "many edges or more. Differences are the first circuit's figure minus the second's on the same examples."
    )
    tables = [_overlap_table(result, pairs)]
    if len(result.circuits) > 2:
        tables.insert(0, _matrix(result, pairs))
    differences = _difference_table(result, pairs)
    return Section("overlap", "Each two circuits", intro, [*tables, *([differences] if differences.rows else [])])


def _name(result: Result, place: Any) -> str:
    if isinstance(place, int) and 0 <= place < len(result.names):
        return result.names[place]
    return str(place)


def _overlap_table(result: Result, pairs: list[Json]) -> Table:
    columns = [Column("circuit", numeric=False), Column("and", numeric=False)]
    columns += [Column("edge Jaccard"), Column("shared edges"), Column("by chance", title="Expected shared edges")]
    columns += [Column("p-value", "of the shared edges"), Column("node Jaccard")]
    rows = [
        Row(
            _name(result, pair.get("a")),
            [
                Cell(second := _name(result, pair.get("b")), sort=second),
                Cell(number(jaccard := finite(pair.get("jaccard"))), sort=jaccard, heat=jaccard),
                *(Cell(number(value), sort=finite(value)) for value in (pair.get("both"), pair.get("expected"))),
                _chance(finite(pair.get("log10_p_value"))),
                Cell(number(shared := finite(part(pair, "nodes").get("jaccard"))), sort=shared, heat=shared),
            ],
        )
        for pair in pairs
    ]
    return Table("Edges and nodes that two circuits share", columns, rows)


def _chance(log10: float | None) -> Cell:
    return Cell(UNDEFINED if log10 is None else scientific(log10), sort=log10)


def _matrix(result: Result, pairs: list[Json]) -> Table:
    found = {(pair.get("a"), pair.get("b")): finite(pair.get("jaccard")) for pair in pairs}
    found |= {(second, first): value for (first, second), value in found.items()}
    rows = list[Row]()
    for a, name in enumerate(result.names):
        values = [1.0 if a == b else found.get((a, b)) for b in range(len(result.names))]
        rows.append(Row(name, [Cell(number(value), sort=value, heat=value) for value in values]))
    return Table("Edge Jaccard", [Column("circuit", numeric=False), *(Column(name) for name in result.names)], rows)


def _difference_table(result: Result, pairs: list[Json]) -> Table:
    taken = dict.fromkeys(name for pair in pairs for name in part(pair, "differences"))
    measures = [name for name in result.main if name in taken] or list(taken)[:6]
    columns = [Column("circuit", numeric=False), Column("minus", numeric=False), *map(result.column, measures)]
    rows = [
        Row(
            _name(result, pair.get("a")),
            [
                Cell(second := _name(result, pair.get("b")), sort=second),
                *(_difference(result, part(pair, "differences"), measure) for measure in measures),
            ],
        )
        for pair in pairs
        if part(pair, "differences")
    ]
    return Table(f"Differences on the same examples, with {result.interval} and p-value", columns, rows)


def _difference(result: Result, differences: Json, measure: str) -> Cell:
    cell, p_value = result.figure(differences, measure), part(differences, measure).get("p_value")
    if cell.sort is None or finite(p_value) is None:
        return cell
    p_text = f"p {'' if probability(p_value).startswith('<') else '= '}{probability(p_value)}"
    return Cell(cell.text, f"{cell.small} {p_text}".strip(), f"{cell.title}, {p_text}", cell.sort)
