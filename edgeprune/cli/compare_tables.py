"""What `edgeprune compare` prints: tables of circuits, of pairs, and of what two of them have in common by part."""

import math
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

FULL = "(full model)"
_SHARES = {"precision": "precision", "recall": "recall", "f1": "F1", "jaccard": "Jaccard"}
_MEASURES = ("kl", "squared_error", "logit_difference", "accuracy")


def print_tables(result: dict[str, Any], *, parts: bool, edges: bool) -> None:
    """Print the figures of `compare_files`.

    Args:
        result: The figures.
        parts: Show every two circuits by role, kind of edge and layer; a single pair always is.
        edges: List the edges that only one of two circuits has.
    """
    from edgeprune.console import report_console

    console, pairs = report_console(), result["pairs"]
    lines = [f"{_letter(number)}: {row['circuit']}" for number, row in enumerate(result["circuits"])]
    for line in filter(None, [*lines, result["unions"]]):
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    for table in _tables(result):
        console.print(table)
    if len(result["circuits"]) > 2:
        core = "all {} have {num_edges:,} edges in common (by chance {expected:.1f}), of {union:,} that any has"
        console.print(core.format(len(result["circuits"]), **result["core"]), soft_wrap=True, highlight=False)
    unmatched = filter(None, (_unmatched(pair, result["circuits"]) for pair in pairs))
    for note in (*_notes_on_weights(result["weight_masks"]), *unmatched):
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    for pair in pairs:
        _print_pair(console, pair, parts=parts or len(pairs) == 1, edges=edges)


def _tables(result: dict[str, Any]) -> "list[Table]":
    """Of all circuits, and of all pairs."""
    pairs = result["pairs"]
    tables = [_circuit_table(result), _pair_table("Shared edges", pairs)]
    if unions := [{**pair, **pair["union"]} for pair in pairs if "union" in pair]:
        tables.append(_pair_table("Shared edges of the unions: kept at any role", unions))
    if inside := [{**pair, **pair["attention"]} for pair in pairs if "attention" in pair]:
        tables.append(_pair_table("Shared attention edges", inside, jaccard=True))
    tables.append(_share_table(result))
    if any(pair["ranks"]["spearman_all"] is not None for pair in pairs):
        tables.append(_score_table(result))
    if any(pair["matched"] for pair in pairs):
        tables.append(_matched_table(result))
    return tables


def _print_pair(console: "Console", pair: dict[str, Any], *, parts: bool, edges: bool) -> None:
    """Two circuits by kind of edge and by layer, and the edges that only one of them has, where asked for."""
    left, right = _letter(pair["a"]), _letter(pair["b"])
    if parts:
        if "roles" in pair:
            console.print(_role_table(f"{left} and {right} by role", pair, left, right))
        for heading, figures in (("kind of edge", pair["kinds"]), ("layer", pair["layers"])):
            console.print(_part_table(f"{left} and {right} by {heading}", heading, figures, left, right))
    if edges:
        for letter, side in ((left, "a"), (right, "b")):
            names = pair[f"edges_only_{side}"]
            console.print(f"only in {letter} of {left}, {right}: {len(names)} edges", highlight=False)
            for name in names:
                console.print(f"  {name}", highlight=False)


def _notes_on_weights(found: dict[str, Any]) -> list[str]:
    kept = [
        f"{_letter(place)}: on {100 * share:.3g} % of the gated weights"
        for place, share in enumerate(found["kept"])
        if share is not None
    ]
    return [*kept, *map(_note_on_masks, found["pairs"])]


def _note_on_masks(pair: dict[str, Any]) -> str:
    if pair["jaccard"] is None:
        return f"{_pair_name(pair)}: only edges are compared, for the weight masks are of different models' weights"
    return f"{_pair_name(pair)}: Jaccard index of the weights {pair['jaccard']:.3f}"


def _unmatched(pair: dict[str, Any], circuits: list[dict[str, Any]]) -> str | None:
    """Why two circuits are not compared at one size, where there is something to say."""
    sizes = {side: circuits[pair[side]]["edges"] for side in ("a", "b")}
    if pair["matched"] is not None or sizes["a"] == sizes["b"]:
        return None
    larger = _letter(pair[max(sizes, key=sizes.__getitem__)])
    return f"{_pair_name(pair)}: not compared at one size, for {larger} is larger and has no scores to be cut by"


def _score_table(result: dict[str, Any]) -> "Table":
    from edgeprune.tables import Numbers, table

    keys = [f"{name}_{edges}" for name in ("spearman", "kendall") for edges in ("all", "kept")]
    columns = map(Numbers, ("Ruzicka", "same sign", "rho, all", "rho, kept", "tau, all", "tau, kept"))
    rows = [
        [_pair_name(pair), *pair["weights"].values(), *map(pair["ranks"].__getitem__, keys)] for pair in result["pairs"]
    ]
    title = "Scores: shared weight; Spearman's rho and Kendall's tau of all or kept edges"
    return table(title, ["pair", *columns], rows)


def _letter(number: int) -> str:
    """A, B, ..., Z, A1, B1, ..."""
    return ascii_uppercase[number % 26] + str(number // 26 or "")


def _pair_name(pair: dict[str, Any]) -> str:
    return f"{_letter(pair['a'])}, {_letter(pair['b'])}"


def _shown_measures(result: dict[str, Any]) -> list[str]:
    """Measures that exist for these pairs; the squared error only where outputs are no logits."""
    full = result.get("full_model")
    if full is None:
        return []
    hidden = "squared_error" if not math.isnan(full["kl"]) else "kl"
    return [name for name in _MEASURES if name != hidden and not math.isnan(full[name])]


def _headings(names: list[str]) -> list[str]:
    from edgeprune.metrics.registry import measure_named

    return [measure_named(name).heading for name in names]


def _circuit_table(result: dict[str, Any]) -> "Table":
    from edgeprune.tables import Numbers, table

    shown = _shown_measures(result)
    title = "Circuits"
    if shown:
        number = f"{result['full_model']['num_examples']:.0f}"
        title += f" of {result['model']} on {number} {result['split']} pairs, {result['ablation']} ablation"
    more = [name for name in ("union", "attention_edges") if any(name in row for row in result["circuits"])]
    columns = [Numbers("edges"), Numbers("sparsity", 4)]
    columns += map(Numbers, (*(name.replace("_", " ") for name in more), "dangling", "nodes", *_headings(shown)))
    keys = ("edges", "sparsity", *more, "dangling", "nodes", *shown)
    filled = [{"attention_edges": "all", **row} for row in result["circuits"]]
    rows = [[_letter(number), *map(row.__getitem__, keys)] for number, row in enumerate(filled)]
    full = [[FULL, *[""] * (len(keys) - len(shown)), *map(result["full_model"].__getitem__, shown)]] if shown else []
    return table(title, ["circuit", *columns], [*rows, *full])


def _pair_table(title: str, pairs: list[dict[str, Any]], *, jaccard: bool = False) -> "Table":
    from edgeprune.comparison.overlap import scientific
    from edgeprune.tables import Numbers, table

    names = ("p", "only 1st", "only 2nd", *(["Jaccard"] if jaccard else []))
    columns = ["pair", Numbers("both"), Numbers("by chance", 1), *map(Numbers, names)]
    rows = [
        [
            *(_pair_name(pair), pair["both"], pair["expected"], scientific(pair["log10_p_value"])),
            *(pair["only_found"], pair["only_reference"]),
            *([pair["jaccard"]] if jaccard else []),
        ]
        for pair in pairs
    ]
    return table(title, columns, rows)


def _role_table(title: str, pair: dict[str, Any], left: str, right: str) -> "Table":
    """Edges at each role in either circuit and in both, and of the unions."""
    from edgeprune.tables import Numbers, table

    rows = [
        [name, part["both"] + part["only_found"], part["both"] + part["only_reference"], part["both"], part["jaccard"]]
        for name, part in (*pair["roles"].items(), ("any (union)", pair["union"]))
    ]
    return table(title, ["role", *map(Numbers, (f"in {left}", f"in {right}", "both", "Jaccard"))], rows)


def _share_table(result: dict[str, Any]) -> "Table":
    from edgeprune.tables import Numbers, table

    columns = ["pair", *map(Numbers, (*_SHARES.values(), "Jaccard of nodes"))]
    rows = [[_pair_name(pair), *map(pair.__getitem__, _SHARES), pair["nodes"]["jaccard"]] for pair in result["pairs"]]
    return table("Shares; the 2nd is taken as the truth", columns, rows)


def _matched_table(result: dict[str, Any]) -> "Table":
    """Two lines for every pair, one for each circuit."""
    from edgeprune.comparison.overlap import scientific
    from edgeprune.tables import Numbers, Value, table

    shown = _shown_measures(result)
    rows: list[list[Value]] = []
    for pair in result["pairs"]:
        row = pair["matched"]
        if row is None:
            continue
        common = (row["both"], row["jaccard"], scientific(row["log10_p_value"]))
        for side, (name, *shared) in (("a", (_pair_name(pair), *common)), ("b", ("",) * 4)):
            measures = map(row.get(f"measures_{side}", {}).get, shown)
            rows.append([name, _letter(pair[side]), row["edges"], *shared, *measures])
        rows.append([])
    columns = ["pair", "", *map(Numbers, ("edges", "both", "Jaccard", "p", *_headings(shown)))]
    return table("At the size of the smaller, the larger cut by its scores", columns, rows)


def _part_table(title: str, heading: str, parts: dict[str, Any], left: str, right: str) -> "Table":
    from edgeprune.tables import Numbers, table

    counts = ("both", "only_found", "only_reference")
    rows = [
        [name, *(int(part[key]) for key in counts), part["jaccard"]]
        for name, part in parts.items()
        if any(part[key] for key in counts)
    ]
    return table(title, [heading, *map(Numbers, ("both", f"only {left}", f"only {right}", "Jaccard"))], rows)
