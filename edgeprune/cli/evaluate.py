"""`edgeprune evaluate CIRCUIT... --config DATA`: faithfulness of circuit files, beside random ones of their sizes."""

import argparse
import sys
from pathlib import Path
from typing import Any

from edgeprune.cli.arguments import Arguments, check_ablation, check_file, write_json
from edgeprune.errors import EdgepruneError


def run(arguments: list[str]) -> None:
    """Evaluate, print a table, and optionally write JSON."""
    parser = Arguments(prog="edgeprune evaluate", description=__doc__)
    parser.add_argument("circuits", nargs="+", metavar="CIRCUIT", help="circuit files")
    parser.add_argument("--config", required=True, help="YAML file with a `data` section")
    parser.add_argument("--split", choices=["train", "validation", "test"], default="test")
    parser.add_argument("--model", help="model to run; by default the one in the first circuit's header")
    parser.add_argument("--ablation", help="such as interchange, zero or mean; default: the first circuit's own")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--control-seed", type=int, default=0, help="seed of the random circuits")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args(arguments[1:])
    check_file(options.json, "--json")
    check_ablation(options.ablation)
    rows = evaluate_files(options)
    _print(rows)
    if options.json:
        write_json(options.json, rows)


def evaluate_files(options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per circuit: size, measures, and the same measures for a random circuit of that size."""
    from rich.progress import track

    from edgeprune.circuit import Circuit
    from edgeprune.cli.data import read_data_config
    from edgeprune.cli.pairs import prepare_runs
    from edgeprune.metrics.evaluate import evaluate_gates
    from edgeprune.models.loading import fingerprint, load_model
    from edgeprune.models.runs import ReferenceRuns

    circuits = [Circuit.load(path) for path in options.circuits]
    header = circuits[0].header
    name = options.model or header.get("model")
    if name is None:
        raise EdgepruneError(f"{options.circuits[0]} does not say which model it is of; give --model")
    data = read_data_config(options.config, tokenizer=name)
    graph = circuits[0].graph
    loading = {**header.get("model_options", {}), "device": options.device}
    loading |= {"split_embedding": graph.arch.split_embedding, "kv_readers": graph.arch.kv_readers}
    model = load_model(name, **loading)
    weights = fingerprint(model)
    for path, circuit in zip(options.circuits, circuits, strict=True):
        circuit.check_fits(model.graph, f"{name!r}, asked to run {path},")
        if circuit.header.get("model_fingerprint", weights) != weights:
            sys.stderr.write(f"edgeprune: warning: {path} was found on other weights than those of {name!r}\n")
    ablation = options.ablation or header.get("ablation", "interchange")
    runs = ReferenceRuns(model, ablation)
    prepare_runs(runs, data, options.split)
    data.setup()
    loader: Any = data.ordered_dataloader(options.split)
    random = [Circuit.random(circuit.graph, circuit.num_edges, options.control_seed) for circuit in circuits]
    gates = [circuit.gates() for circuit in (*circuits, *random)]
    batches = track(loader, description="evaluating", transient=True)
    measures = evaluate_gates(model, runs, batches, gates, options.split)
    return [
        {
            "circuit": str(path),
            "model": name,
            "ablation": runs.ablation,
            "objective": circuit.header.get("objective", "kl"),
            "split": options.split,
            "sparsity": circuit.sparsity,
            "edges": circuit.num_edges,
            "dangling": circuit.num_dangling,
            **found,
            "random": control,
        }
        for path, circuit, found, control in zip(
            options.circuits, circuits, measures[: len(circuits)], measures[len(circuits) :], strict=True
        )
    ]


def _print(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console

    from edgeprune.metrics.table import MEASURES, TableRow, faithfulness_table

    first = rows[0]
    title = f"{first['model']}, {first['num_examples']:.0f} {first['split']} pairs, {first['ablation']} ablation"
    lines = [
        TableRow(
            Path(row["circuit"]).stem,
            row["sparsity"],
            "",
            row["edges"],
            row["dangling"],
            {name: row[name] for name in MEASURES},
            row["random"],
        )
        for row in rows
    ]
    Console().print(faithfulness_table(title, lines, first["objective"]))
