"""`edgeprune across A B --config DATA`: circuits of two models, compared by what heads attend to and by performance."""

import argparse
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from edgeprune.cli.arguments import Arguments, check_ablation, check_outputs, write_json
from edgeprune.cli.circuits import add_reading_options, circuit_row
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from rich.table import Table

    from datamodules import PairDataModule
    from edgeprune.cli.circuits import CircuitFiles
    from edgeprune.comparison.across import Candidate
    from edgeprune.comparison.performance import Labels
    from edgeprune.console import Progress

MOST_HEADS = 20  # more matched heads than that are not all in the table
CACHE_GB = 1.0  # memory for the runs that circuits share, of each model


class Side(NamedTuple):
    """One of the two circuit files, its model's name, and the pairs for that model's tokenizer."""

    files: "CircuitFiles"
    model: str
    data: "PairDataModule"


def run(arguments: list[str]) -> None:
    """Compare, print tables, and optionally write JSON."""
    parser = Arguments(prog="edgeprune across", description=__doc__)
    add = parser.add_argument
    add("first", metavar="A", help="circuit file of any format that `edgeprune convert` reads")
    add("second", metavar="B", help="another, of the same or another model")
    add("--config", required=True, help="YAML file with a `data` section, or its name; made for each model's tokenizer")
    add("--models", nargs=2, metavar=("A", "B"), default=(None, None), help="default: those in the files' headers")
    add("--split", choices=["train", "validation", "test"], default="test")
    add("--limit", type=int, help="use the first so many pairs, or all if there are no more")
    add("--measure", default="logit_difference", help="by which performance is compared (default: logit_difference)")
    add("--labels", metavar="NAMES", help="compare figures by these labels of the pairs, with commas between")
    add("--ablation", help="such as interchange, zero or mean; default: what each file says")
    add("--device", default="cpu")
    add_reading_options(parser)
    add("--seeds", type=int, default=5, help="random circuits, and choices of heads, to compare with (default: 5)")
    add("--json", type=Path, help="also write all figures here")
    add("--report", type=Path, help="also write a page here (.html)")
    options = parser.parse_args(arguments[1:])
    from edgeprune.metrics.registry import measure_named  # not for --help: it is slow

    for name in ("limit", "seeds"):
        if (value := getattr(options, name)) is not None and value < 1:
            raise EdgepruneError(f"--{name} must be at least 1, got {value}")
    measure_named(options.measure)
    check_ablation(options.ablation)
    check_outputs(options.json, options.report)
    result = compare_across(options)
    _print(result)
    if options.json:
        write_json(options.json, result)
    if options.report:
        from edgeprune.report.across import write_across

        write_across(result, options.report)


# -------------------------------------------------------------------- figures
def compare_across(options: argparse.Namespace) -> dict[str, Any]:
    """Plain figures: `circuits`, one entry each; what `cross_model` gives; and `transfers` between equal graphs."""
    from edgeprune.comparison.across import cross_model, transfer_circuits
    from edgeprune.console import ProgressReporter

    paths, seeds = (options.first, options.second), range(options.seeds)
    sides = [_open(path, model, options) for path, model in zip(paths, options.models, strict=True)]
    labels = _labels(sides, options)
    with ProgressReporter(stderr=True) as bars:
        pair = [_candidate(name, side, options, bars.report) for name, side in zip("AB", sides, strict=True)]
        found = cross_model(*pair, measure=options.measure, seeds=seeds, labels=labels, same_texts=labels is None)
        if not found.performance.num_units:
            raise EdgepruneError(f"measure {options.measure!r} is not defined on these pairs; give another --measure")
        transfers = []
        if pair[0].circuit.graph == pair[1].circuit.graph:
            circuits, evaluators = ({one.name: getattr(one, what) for one in pair} for what in ("circuit", "evaluator"))
            transfers = transfer_circuits(circuits, evaluators, seeds)
    rows = [
        {
            "name": one.name,
            **circuit_row(path, one.circuit),
            "model": side.model,
            "ablation": one.evaluator.runs.ablation,
            "num_examples": one.evaluator.num_examples,
        }
        for one, side, path in zip(pair, sides, paths, strict=True)
    ]
    about = {"circuits": rows, "config": options.config, "split": options.split, "measure": options.measure}
    return {**about, **found.to_dict(), "transfers": [item.to_dict() for item in transfers]}


def _open(path: str, model: str | None, options: argparse.Namespace) -> Side:
    from edgeprune.cli.circuits import CircuitFiles
    from edgeprune.cli.data import read_data_config

    files = CircuitFiles.open([path], options.holds)
    name = files.model_name(model, "--models")
    data = read_data_config(options.config)
    data.tokenizer = name  # whatever the config names: each model reads its own tokens
    data.setup()
    return Side(files, name, data)


def _labels(sides: Sequence[Side], options: argparse.Namespace) -> "Labels | None":
    """The labels asked for, of every pair; None where both models get the same prompts, to be compared one by one."""
    known = [side.data.labels(options.split) for side in sides]
    common = [name for name in known[0] if name in known[1]]
    if options.labels is None:
        left, right = (
            [(pair.clean, pair.corrupted) for pair in islice(splits[options.split], options.limit)]
            for splits in (side.data.task.splits(side.data.tokenizer_object) for side in sides)
        )
        if left != right:
            remedy = f"give --labels, of {', '.join(common)}" if common else "give a --config of fixed prompts"
            raise EdgepruneError(
                f"the task's {options.split} prompts for {sides[0].model} and {sides[1].model} are not the same, so "
                f"examples cannot be compared one by one; {remedy}"
            )
        return None
    names = [name.strip() for name in options.labels.split(",")]
    if unknown := [name for name in names if name not in common]:
        raise EdgepruneError(f"--labels {unknown[0]}: the pairs' labels are {', '.join(common) or 'none'}")
    first, second = (
        [" ".join(values) for values in islice(zip(*(one[name] for name in names), strict=True), options.limit)]
        for one in known
    )
    return first, second


def _candidate(name: str, side: Side, options: argparse.Namespace, report: "Progress") -> "Candidate":
    from edgeprune.ablations.runs import ReferenceRuns
    from edgeprune.cli.pairs import pair_batches, prepare_runs
    from edgeprune.comparison.across import Candidate
    from edgeprune.evaluation.evaluator import Evaluator
    from edgeprune.models.limits import Limits

    files, data = side.files, side.data
    model = files.load_model(side.model, options.device, split_embedding=options.split_embedding)
    data.check(Limits.of(model), options.split, options.limit)
    (circuit,) = files.circuits(model)
    ablation = options.ablation or files.header.get("ablation", "interchange")
    files.warn_of_positions(model, [circuit], [ablation])
    runs = ReferenceRuns(model, ablation, CACHE_GB)
    prepare_runs(runs, data, options.split, report=report)
    batches = pair_batches(data, options.split, options.limit, data.eval_batch_size)
    return Candidate(name, circuit, Evaluator(model, runs, batches, options.split, (options.measure,), report))


# -------------------------------------------------------------------- tables
def _print(result: dict[str, Any]) -> None:
    from edgeprune.console import report_console

    console = report_console()
    for row in result["circuits"]:
        line = "{name}: {circuit}, {edges:,} edges of {model}, {ablation} ablation, {num_examples:,} pairs"
        console.print(line.format(**row), soft_wrap=True, highlight=False, markup=False)
    for part in (*_overlap(result["overlap"]), *_roles(result["roles"]), *_performance(result)):
        console.print(part, soft_wrap=True, highlight=False, markup=False)


def _overlap(found: dict[str, Any] | None) -> "Iterator[Table | str]":
    from edgeprune.comparison.overlap import scientific

    if found is None:
        yield "the graphs differ: edges are not compared, and no circuit is run in the other model"
        return
    shared = "{both:,} edges in common (by chance {expected:.1f}, p = {p}), Jaccard {jaccard:.3f}"
    yield shared.format(p=scientific(found["log10_p_value"]), **found)


def _roles(found: dict[str, Any] | None) -> "Iterator[Table | str]":
    """The matched heads, and the importance of roles."""
    from edgeprune.tables import Numbers, number, table

    if found is None:
        yield "the task marks no roles: heads are not matched"
        return
    first, second = (profile["heads"] for profile in found["profiles"])
    matches, importance = found["one_to_one"]["matches"], found["importance"]
    title = "Heads matched by what they attend to"
    if len(matches) > MOST_HEADS:
        title += f" ({MOST_HEADS} of {len(matches)}; --json has all)"
    heads = [
        (a := one["first"], first[a]["class"], b := one["second"], second[b]["class"], one["similarity"])
        for one in matches[:MOST_HEADS]
    ]
    yield table(title, ["head of A", "attends to", "head of B", "attends to", Numbers("similarity")], heads)
    mean, random = found["one_to_one"]["mean_similarity"], found["random_one_to_one_mean"]
    yield f"mean similarity {number(mean)}, of random heads {number(random)}"
    left, right = (profile["importance"] for profile in found["profiles"])
    roles = [(name, left.get(name), right.get(name)) for name in {**left, **right}]
    yield table("Share of each role in the ends of kept edges", ["role", Numbers("A"), Numbers("B")], roles)
    for what, name in (("shares", "cosine"), ("shares - the whole graph's", "cosine_above_graph")):
        mean = importance[f"{name.replace('cosine', 'random')}_mean"]
        yield f"cosine of {what}: {number(importance[name])}, of random circuits {number(mean)}"


def _performance(result: dict[str, Any]) -> "Iterator[Table | str]":
    """Each circuit in its own model, and in the other one where that is possible."""
    from edgeprune.metrics.registry import measure_named
    from edgeprune.tables import Numbers, number, table

    found, heading = result["performance"], measure_named(result["measure"]).heading
    rows = [(heading, *found["figures"]), ("faithfulness", *found["faithfulness"])]
    yield table("Performance, each in its own model", ["", Numbers("A"), Numbers("B")], rows)
    values = [number(found[name]) for name in ("pearson", "spearman", "pearson_full", "spearman_full")]
    units = f"{found['num_units']:,} {found['unit']}s"
    yield "correlation over {}: Pearson {}, Spearman {}; of the full models {}, {}".format(units, *values)
    keys = ("figures", "faithfulness", "original_faithfulness", "random_faithfulness")
    rows = [
        (one["circuit"], one["place"], *(one[key][result["measure"]] for key in keys)) for one in result["transfers"]
    ]
    if rows:
        columns = map(Numbers, (heading, "faithfulness", "that found there", "random ones"))
        yield table("Transfer: each circuit in each model", ["circuit", "model", *columns], rows)
