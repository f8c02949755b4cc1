"""`edgeprune compare CIRCUIT CIRCUIT...`: what circuits have in common, and what of that chance would give."""

import argparse
import math
from itertools import combinations
from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Any

from edgeprune.cli.arguments import Arguments, check_ablation, check_file, write_json
from edgeprune.cli.circuits import add_reading_options, circuit_row
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from edgeprune.circuit import Circuit
    from edgeprune.cli.circuits import CircuitFiles
    from edgeprune.models.masked import MaskedModel

FULL = "(full model)"
_SHARES = {"precision": "precision", "recall": "recall", "f1": "F1", "jaccard": "Jaccard"}
_MEASURES = ("kl", "squared_error", "logit_difference", "accuracy")


def run(arguments: list[str]) -> None:
    """Compare, print tables, and optionally write JSON."""
    parser = Arguments(prog="edgeprune compare", description=__doc__)
    parser.add_argument(
        "circuits",
        nargs="+",
        metavar="CIRCUIT",
        help="circuit files of any format that `edgeprune convert` reads",
    )
    parser.add_argument("--config", help="YAML file with a `data` section, or its name: also run circuits on its pairs")
    parser.add_argument("--split", choices=["train", "validation", "test"], default="test")
    parser.add_argument("--model", help="model of the circuits; by default the one in the first native file's header")
    parser.add_argument("--ablation", help="such as interchange, zero or mean; default: the first native file's")
    parser.add_argument("--device", default="cpu")
    add_reading_options(parser)
    parser.add_argument("--edges", action="store_true", help="list the edges that only one of two circuits has")
    parser.add_argument(
        "--breakdown", action="store_true", help="by kind of edge and by layer, also for more than two circuits"
    )
    parser.add_argument("--json", type=Path, help="also write all figures here")
    options = parser.parse_args(arguments[1:])
    if len(options.circuits) < 2:
        raise EdgepruneError(f"compare needs two circuits or more, got only {options.circuits[0]}")
    check_file(options.json, "--json")
    check_ablation(options.ablation)
    result = compare_files(options)
    _print(result, options)
    if options.json:
        write_json(options.json, result)


# -------------------------------------------------------------------- figures
def compare_files(options: argparse.Namespace) -> dict[str, Any]:
    """Plain figures: `circuits`, one entry each; `pairs`, one for every two; `core`, the edges that all have."""
    from edgeprune.cli.circuits import CircuitFiles
    from edgeprune.comparison.overlap import common_core, compare_edges, compare_every_two

    files = CircuitFiles.open(options.circuits, options.holds)
    name, model = "", None
    if options.config or options.model or options.split_embedding or not files.native:
        name = files.model_name(options.model)
        runs = bool(options.config)
        model = files.load_model(name, options.device, split_embedding=options.split_embedding, runs=runs)
    circuits = files.circuits(model)
    matched = {pair: _match(circuits[pair[0]], circuits[pair[1]]) for pair in combinations(range(len(circuits)), 2)}
    result: dict[str, Any] = {
        "circuits": [circuit_row(path, circuit) for path, circuit in zip(options.circuits, circuits, strict=True)],
        "pairs": [
            {
                "a": left,
                "b": right,
                **overlap,
                "edges_only_a": _only(circuits[left], circuits[right]),
                "edges_only_b": _only(circuits[right], circuits[left]),
                "matched": None if cut is None else {"edges": cut[0].num_edges, **compare_edges(*cut)},
            }
            for ((left, right), cut), overlap in zip(matched.items(), compare_every_two(circuits), strict=True)
        ],
        "core": common_core(circuits),
        "weight_masks": _weight_masks(files),
    }
    if model is not None and options.config:
        ablation = options.ablation or files.header.get("ablation", "interchange")
        files.warn_of_positions(model, circuits, [ablation])
        _add_measures(result, circuits, matched, model, ablation, name, options)
    return result


def _weight_masks(files: "CircuitFiles") -> dict[str, Any]:
    """Of circuits that were found on masked weights: the share that is kept, and what every two masks have in common.

    `kept` has one value per circuit, None without a mask; `pairs` the Jaccard index of the kept weights, None where the
    masks are of different weights.
    """
    from edgeprune.models.weight_mask import mask_named_in

    masks = [mask_named_in(files.native[path].header, path) if path in files.native else None for path in files.paths]
    pairs = [
        {"a": left, "b": right, "jaccard": first.jaccard(second) if first.weights == second.weights else None}
        for (left, first), (right, second) in combinations(enumerate(masks), 2)
        if first is not None and second is not None
    ]
    return {"kept": [None if mask is None else mask.density for mask in masks], "pairs": pairs}


def _only(circuit: "Circuit", other: "Circuit") -> list[str]:
    """Edges that `other` lacks."""
    return [circuit.graph.edge_name(*entry) for entry in (circuit.keep & ~other.keep).nonzero().tolist()]


def _match(left: "Circuit", right: "Circuit") -> "tuple[Circuit, Circuit] | None":
    """Both at the size of the smaller; None where they have one size, or the larger has no scores to be cut by."""
    from edgeprune.comparison.overlap import cut_to

    size = min(left.num_edges, right.num_edges)
    larger = left if left.num_edges > right.num_edges else right
    if left.num_edges == right.num_edges or larger.scores is None:
        return None
    return cut_to(left, size) if larger is left else left, cut_to(right, size) if larger is right else right


def _add_measures(
    result: dict[str, Any],
    circuits: "list[Circuit]",
    matched: "dict[tuple[int, int], tuple[Circuit, Circuit] | None]",
    model: "MaskedModel",
    ablation: Any,
    name: str,
    options: argparse.Namespace,
) -> None:
    """Run every circuit, at its own and at its matched size, on the same pairs, and add the measures."""
    from edgeprune.ablations.runs import ReferenceRuns
    from edgeprune.cli.data import read_data_config
    from edgeprune.cli.pairs import prepare_runs
    from edgeprune.console import ProgressReporter, counted
    from edgeprune.metrics.measure import measure_examples
    from edgeprune.models.limits import Limits

    data = read_data_config(options.config, tokenizer=name)
    data.setup()
    data.check(Limits.of(model), options.split)
    runs = ReferenceRuns(model, ablation)
    prepare_runs(runs, data, options.split)
    cuts = [circuit for pair in matched.values() if pair is not None for circuit in pair]
    gates = [model.graph.all_open(), *(circuit.gates() for circuit in (*circuits, *cuts))]
    loader: Any = data.ordered_dataloader(options.split)
    with ProgressReporter(stderr=True) as bars:
        batches = counted(loader, "running circuits", bars.report, len(loader))
        full, *measured = measure_examples(model, runs, batches, gates, options.split).as_dicts()
    result |= {"model": name, "ablation": runs.ablation, "split": options.split, "full_model": full}
    measures = iter(measured)
    for row in result["circuits"]:
        row |= next(measures)
    for row in result["pairs"]:
        if row["matched"] is not None:
            row["matched"] |= {side: next(measures) for side in ("measures_a", "measures_b")}


# -------------------------------------------------------------------- tables
def _print(result: dict[str, Any], options: argparse.Namespace) -> None:
    from edgeprune.console import report_console

    tables = [_circuit_table(result), _pair_table(result), _share_table(result)]
    if any(pair["ranks"]["spearman_all"] is not None for pair in result["pairs"]):
        tables.append(_score_table(result))
    if any(pair["matched"] for pair in result["pairs"]):
        tables.append(_matched_table(result))
    console = report_console()
    for number, row in enumerate(result["circuits"]):
        console.print(f"{_letter(number)}: {row['circuit']}", soft_wrap=True, highlight=False, markup=False)
    for table in tables:
        console.print(table)
    if len(result["circuits"]) > 2:
        core = "all {} have {num_edges:,} edges in common (by chance {expected:.1f}), of {union:,} that any has"
        console.print(core.format(len(result["circuits"]), **result["core"]), soft_wrap=True, highlight=False)
    for note in _notes_on_weights(result["weight_masks"]):
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    for note in filter(None, (_unmatched(pair, result["circuits"]) for pair in result["pairs"])):
        console.print(note, soft_wrap=True, highlight=False, markup=False)
    for pair in result["pairs"]:
        _print_pair(console, pair, parts=options.breakdown or len(result["pairs"]) == 1, edges=options.edges)


def _print_pair(console: "Console", pair: dict[str, Any], *, parts: bool, edges: bool) -> None:
    """Two circuits by kind of edge and by layer, and the edges that only one of them has, where asked for."""
    left, right = _letter(pair["a"]), _letter(pair["b"])
    if parts:
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
    columns = [Numbers("edges"), Numbers("sparsity", 4), *map(Numbers, ("dangling", "nodes", *_headings(shown)))]
    keys = ("edges", "sparsity", "dangling", "nodes", *shown)
    rows = [[_letter(number), *map(row.__getitem__, keys)] for number, row in enumerate(result["circuits"])]
    full = [[FULL, "", "", "", "", *map(result["full_model"].__getitem__, shown)]] if shown else []
    return table(title, ["circuit", *columns], [*rows, *full])


def _pair_table(result: dict[str, Any]) -> "Table":
    from edgeprune.comparison.overlap import scientific
    from edgeprune.tables import Numbers, table

    columns = ["pair", Numbers("both"), Numbers("by chance", 1), *map(Numbers, ("p", "only 1st", "only 2nd"))]
    rows = [
        [
            *(_pair_name(pair), pair["both"], pair["expected"], scientific(pair["log10_p_value"])),
            *(pair["only_found"], pair["only_reference"]),
        ]
        for pair in result["pairs"]
    ]
    return table("Shared edges", columns, rows)


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
