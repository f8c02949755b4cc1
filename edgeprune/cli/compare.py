"""`edgeprune compare CIRCUIT CIRCUIT...`: what circuits have in common, and what of that chance would give."""

import argparse
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.cli.arguments import Arguments, check_ablation, check_file, write_json
from edgeprune.cli.circuits import add_reading_options, circuit_row
from edgeprune.cli.compare_tables import print_tables
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from edgeprune.circuit import Circuit
    from edgeprune.cli.circuits import CircuitFiles
    from edgeprune.models.masked import MaskedModel


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
    parser.add_argument(
        "--union", action="store_true", help="of circuits with roles compare the edges kept at any role"
    )
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
    print_tables(result, parts=options.breakdown, edges=options.edges)
    if options.json:
        write_json(options.json, result)


# -------------------------------------------------------------------- figures
def compare_files(options: argparse.Namespace) -> dict[str, Any]:
    """Plain figures: `circuits`, one entry each; `pairs`, one for every two; `core`, the edges that all have."""
    from edgeprune.cli.circuits import CircuitFiles
    from edgeprune.comparison.overlap import common_core, compare_edges, compare_every_two

    files = CircuitFiles.open(options.circuits, options.holds, roles=True, attention=True)
    name, model = "", None
    if options.config or options.model or options.split_embedding or not files.native:
        name = files.model_name(options.model)
        runs = bool(options.config)
        model = files.load_model(name, options.device, split_embedding=options.split_embedding, runs=runs)
    circuits, unions = _comparable(options.circuits, files.circuits(model), union=options.union)
    matched = {pair: _match(circuits[pair[0]], circuits[pair[1]]) for pair in combinations(range(len(circuits)), 2)}
    result: dict[str, Any] = {
        "unions": unions,
        "circuits": [_row(path, circuit) for path, circuit in zip(options.circuits, circuits, strict=True)],
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
        _add_measures(result, files, circuits, matched, model, ablation, name, options)
    return result


def _comparable(paths: list[str], circuits: "list[Circuit]", *, union: bool) -> "tuple[list[Circuit], str | None]":
    """Circuits on one graph: edges at roles if all have the same ones, else unions; and why these, if they are.

    Raises:
        EdgepruneError: Two have different roles, and nobody asked for unions.
    """
    known = {path: one.roles for path, one in zip(paths, circuits, strict=True) if one.roles}
    for path, roles in known.items():
        if not union and roles != known[(first := next(iter(known)))]:
            raise EdgepruneError(
                f"{path} has the roles {', '.join(roles)}, {first} has {', '.join(known[first])}; compare their unions "
                "with --union"
            )
    plain = [path for path in paths if path not in known]
    if not known or not (plain or union):
        return circuits, None
    from edgeprune.circuit_attention import all_open

    why = "as asked" if union else f"for {plain[0]} has no roles"
    closed = not all(all_open(one.graph, one.attend) for one in circuits)
    opened = "; attention edges that they close are open there" if closed else ""
    return [one.union() for one in circuits], f"of circuits with roles, unions are compared, {why}{opened}"


def _row(path: str, circuit: "Circuit") -> dict[str, Any]:
    inside = {} if circuit.attend is None else {"attention_edges": len(circuit.attention_edges())}
    return {**circuit_row(path, circuit), **({"union": circuit.union().num_edges} if circuit.roles else {}), **inside}


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
    """Edges that `other` lacks, and attention edges that are open here and closed there."""
    edges = [circuit.graph.edge_name(*entry) for entry in (circuit.keep & ~other.keep).nonzero().tolist()]
    if other.attend is None:
        return edges
    inside = circuit.graph.attention
    own = inside.exists if circuit.attend is None else circuit.attend
    return edges + inside.names(own & ~other.attend)


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
    files: "CircuitFiles",
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
    from edgeprune.metrics.measure import gates_of, measure_examples
    from edgeprune.models.limits import Limits

    data = read_data_config(options.config, tokenizer=name)
    data.setup()
    data.check(Limits.of(model), options.split)
    loader: Any = data.ordered_dataloader(options.split)
    if circuits[0].roles:  # not where unions are compared
        files.use_roles(model, list(loader))
    runs = ReferenceRuns(model, ablation)
    prepare_runs(runs, data, options.split)
    cuts = [circuit for pair in matched.values() if pair is not None for circuit in pair]
    gates = [model.graph.without_roles.all_open(), *map(gates_of, (*circuits, *cuts))]
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
