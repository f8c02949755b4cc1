"""`edgeprune evaluate CIRCUIT... --config DATA`: how good circuits are, and how sure that is."""

import argparse
import re
import shlex
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.cli.arguments import Arguments, check_ablation, check_least, check_outputs, short_names, write_json
from edgeprune.cli.circuits import add_reading_options
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from datamodules import PairDataModule
    from edgeprune.ablations.runs import ReferenceRuns
    from edgeprune.canonical import CanonicalCircuit
    from edgeprune.circuit import Circuit
    from edgeprune.cli.circuits import CircuitFiles
    from edgeprune.console import Progress
    from edgeprune.evaluation.evaluator import Evaluator
    from edgeprune.formats import Holds
    from edgeprune.graph import EdgeGraph
    from edgeprune.models.masked import MaskedModel
    from edgeprune.report.evaluate import EvaluationOptions
    from edgeprune.statistics.uncertainty import Resampling

ALL = "all"
EVERY_ABLATION = (
    "interchange",
    "resample",
    "zero",
    "mean",
    "mean:corrupted",
    "mean:both",
    "mean:positional",
    "mean:corrupted:positional",
    "mean:both:positional",
    "optimal",
)
TESTS = (
    "controls",
    "completeness",
    "minimality",
    "suffix",
    "hypothesis",
    "functional",
    "mib",
)  # as edgeprune.report.evaluate's
LEAST = {
    "limit": 1,
    "batch_size": 1,
    "seeds": 1,
    "draws": 1,
    "random": 1,
    "test_limit": 1,
    "minimality_edges": 1,
    "reading": 1,
    "reading_edges": 0,
    "cache_gb": 0,
}


def run(arguments: list[str]) -> None:
    """Evaluate, print tables, and optionally write JSON and a page."""
    options = _parse(arguments[1:])
    circuits = evaluate_files(options)
    _print(circuits)
    if options.json:
        write_json(options.json, circuits)
    if options.report:
        from edgeprune.report import write_report

        write_report(circuits, options.report)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Arguments(prog="edgeprune evaluate", description=__doc__)
    add = parser.add_argument
    add("circuits", nargs="+", metavar="CIRCUIT", help="circuit files of any format that `edgeprune convert` reads")
    add("--config", required=True, help="YAML file with a `data` section, or the name of one that comes along")
    add("--split", choices=["train", "validation", "test"], default="test")
    add("--limit", type=int, help="use the first so many pairs, or all if there are no more")
    add("--batch-size", type=int, help="pairs in one run; default: the config's eval_batch_size")
    add("--model", help="model to run; by default the one in the first native file's header")
    add("--device", default="cpu")
    add_reading_options(parser)
    add(
        "--edges-before-norm",
        action="store_true",
        help="where a norm follows the attention: mix heads before it, as EAP-IG and MIB do (slow, for comparison)",
    )
    add("--ablation", help="such as interchange, zero or mean; default: the first native file's")
    names: dict[str, Any] = {"action": "append", "default": []}
    add("--ablations", **names, help="others to show beside it: names with commas between, or all")
    add("--measures", **names, help="names with commas between; default: all that are defined on the first pairs")
    add("--tests", **names, help=f"names with commas between, of {', '.join(TESTS)}; or all")
    add("--test-limit", type=int, default=50, help="the tests run on the first so many pairs (default: 50)")
    add("--minimality-edges", type=int, default=200, help="edges whose own effect is found (default: 200)")
    add("--random", type=int, default=40, help="random circuits and edges that the tests compare with (default: 40)")
    add("--reading", type=int, metavar="N", help="attention, direct attribution, effects by role on the first N pairs")
    add("--reading-edges", type=int, default=40, help="edges whose effects by role are found exactly (default: 40)")
    add("--known", **names, metavar="NAME|FILE", help="a published circuit, or a file of one; may be repeated")
    add("--seeds", type=int, default=5, help="random circuits of the same size (default: 5)")
    add("--no-pairs", dest="pairs", action="store_false", help="do not compare every two circuits")
    add("--draws", type=int, default=1000, help="resamples for an interval (default: 1000)")
    add("--level", type=float, default=0.95, help="share of them inside (default: .95)")
    add(
        "--cache-gb",
        type=float,
        default=2.0,
        help="memory for runs that circuits share, of all ablations together (default: 2)",
    )
    add("--json", type=Path, help="also write all figures here")
    add("--report", type=Path, help="also write a page here (.html)")
    options = parser.parse_args(arguments)
    from edgeprune.metrics.registry import measure_named  # not for --help: it is slow

    _check_outputs(options)
    check_least(options, LEAST)
    options.ablations = _listed(options.ablations, EVERY_ABLATION)
    for ablation in (options.ablation, *options.ablations):
        check_ablation(ablation)
    options.tests = _listed(options.tests, TESTS)
    if unknown := [name for name in options.tests if name not in TESTS]:
        raise EdgepruneError(f"tests are {', '.join(TESTS)}, or all; got {unknown[0]!r}")
    options.measures = _listed(options.measures)
    for name in options.measures:
        measure_named(name)
    for name in options.known:
        _check_known(name)
    options.command = shlex.join(["edgeprune", "evaluate", *arguments])
    return options


def _check_outputs(options: argparse.Namespace) -> None:
    """Refuse files that could not be written, or would not be what they are called."""
    check_outputs(options.json, options.report)
    if options.reading is not None and options.json is None and options.report is None:
        raise EdgepruneError(f"--reading {options.reading} is written to --json or --report; name one of them")


def _check_known(name: str) -> None:
    from edgeprune import canonical

    if name not in canonical.names() and not Path(name).exists():
        raise EdgepruneError(
            f"--known {name} is neither a file nor a published circuit; these are {', '.join(canonical.names())}"
        )


def _listed(texts: list[str], every: tuple[str, ...] = ()) -> tuple[str, ...]:
    """The names in lists with commas, each once; `all` stands for every name there is, where there are some."""
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    return tuple(dict.fromkeys(one for name in names for one in (every if every and name == ALL else (name,))))


# -------------------------------------------------------------------- figures
def evaluate_files(options: argparse.Namespace) -> dict[str, Any]:
    """All figures, as plain values (schema `edgeprune-evaluation/1`)."""
    from edgeprune.cli.arguments import versions
    from edgeprune.cli.circuits import CircuitFiles
    from edgeprune.cli.data import read_data_config
    from edgeprune.cli.pairs import pair_batches
    from edgeprune.console import ProgressReporter
    from edgeprune.evaluation.evaluator import Evaluator
    from edgeprune.models.limits import Limits
    from edgeprune.models.loading import fingerprint
    from edgeprune.report.evaluate import check_tests, evaluate_circuits
    from edgeprune.statistics.uncertainty import Resampling

    start, names = time.perf_counter(), short_names(options.circuits)
    files = CircuitFiles.open(options.circuits, options.holds, roles=True, attention=True)
    check_tests(files.native, options.tests)
    name = files.model_name(options.model)
    resampling = Resampling(options.draws, options.level)
    data = read_data_config(options.config, tokenizer=name)
    data.setup()
    batches = pair_batches(data, options.split, options.limit, options.batch_size or data.eval_batch_size)
    model = files.load_model(name, options.device, split_embedding=options.split_embedding)
    if options.edges_before_norm:
        from edgeprune.models.before_norm import EdgesBeforeNorm

        model = EdgesBeforeNorm(model)
    data.check(Limits.of(model), options.split, options.limit)
    files.use_roles(model, batches)
    circuits = dict(zip(names, files.circuits(model), strict=True))
    main = options.ablation or files.header.get("ablation", "interchange")
    if options.ablation is None:
        _warn_of_other_ablations(files, main)
    ablations = list(dict.fromkeys((main, *options.ablations)))
    files.warn_of_positions(model, list(circuits.values()), ablations)
    questions = _questions(options, data, model.graph.without_roles, sum(map(len, batches)), resampling)
    with ProgressReporter(stderr=True) as bars:
        room = options.cache_gb / len(ablations)
        runs = {text: _prepared(model, text, room, data, options.split, bars.report) for text in ablations}
        measures = _measures(Evaluator(model, runs[main], batches, options.split, progress=bars.report), options, data)
        evaluators = {
            text: Evaluator(model, each, batches, options.split, measures, bars.report) for text, each in runs.items()
        }
        result = evaluate_circuits(evaluators, circuits, questions)
        if options.reading:
            _add_readings(result["circuits"], list(circuits.values()), evaluators[main], options, data)
    for row, path in zip(result["circuits"], options.circuits, strict=True):
        row["path"] = path
    about = {
        "model": name,
        "model_fingerprint": fingerprint(model),
        "graph": model.graph.to_dict(),
        **({"roles": list(model.graph.roles.names)} if model.graph.roles else {}),
        "edges_before_norm": options.edges_before_norm,
        "task": data.describe(),
        "split": options.split,
        "num_examples": evaluators[main].num_examples,
        "ablation": main,
        "ablations": ablations,
        "resampling": resampling.to_dict(),
        "random_seeds": options.seeds,
        "tests": list(options.tests),
        "test_examples": evaluators[main].limited(options.test_limit).num_examples,
        "minimality_edges": options.minimality_edges,
        "reading_pairs": options.reading,
        "versions": versions(),
        "command": options.command,
        "seconds": round(time.perf_counter() - start, 1),
    }
    return {"schema": result.pop("schema"), "about": about, **result}


def _add_readings(
    rows: list[dict[str, Any]],
    circuits: "list[Circuit]",
    evaluator: "Evaluator",
    options: argparse.Namespace,
    data: "PairDataModule",
) -> None:
    """What each circuit does on the first pairs, under the main ablation."""
    from edgeprune.console import warn
    from edgeprune.reading import interpret_circuit

    first = evaluator.limited(options.reading)
    for row, circuit in zip(rows, circuits, strict=True):
        try:
            with first.on_graph_of(circuit):
                found = interpret_circuit(first, circuit, data.tokenizer_object, max_exact=options.reading_edges)
            row["reading"] = found.to_dict()
        except EdgepruneError as error:
            if not circuit.roles:
                raise
            warn(f"{row['name']} has no reading: {error}")


def _prepared(
    model: "MaskedModel", ablation: str, cache_gb: float, data: "PairDataModule", split: str, progress: "Progress"
) -> "ReferenceRuns":
    from edgeprune.ablations.runs import ReferenceRuns
    from edgeprune.cli.pairs import prepare_runs

    runs = ReferenceRuns(model, ablation, cache_gb)
    progress(f"values of ablation {ablation}", 0, 1)
    prepare_runs(runs, data, split, report=progress)
    return runs


def _warn_of_other_ablations(files: "CircuitFiles", main: str) -> None:
    from edgeprune.console import warn

    for path, circuit in files.native.items():
        other = circuit.header.get("ablation", main)
        if other != main:
            warn(
                f"{path} was found under ablation {other} and is run under {main} as the others are; "
                f"`--ablations {other}` shows both"
            )


def _measures(evaluator: "Evaluator", options: argparse.Namespace, data: "PairDataModule") -> tuple[str, ...]:
    """The measures asked for; without any, those meant for the task that have a value on the first pairs.

    Raises:
        EdgepruneError: One asked for has no value on any pair.
    """
    from edgeprune.metrics.registry import measures_for

    task = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", type(data.task).__name__).lower()
    first = replace(evaluator, batches=evaluator.batches[:1])
    defined = _with_values(first, measures_for(task))
    missing = tuple(name for name in options.measures if name not in defined)
    if missing:
        found = _with_values(evaluator, missing)
        for name in missing:
            if name not in found:
                raise EdgepruneError(
                    f"measure {name!r} is not defined on any of the {evaluator.num_examples} pairs; "
                    f"defined are {', '.join(defined)}"
                )
    return options.measures or defined


def _with_values(evaluator: "Evaluator", names: tuple[str, ...]) -> tuple[str, ...]:
    """Measures that have a value on some pair."""
    found = evaluator([None], "the full model", names).defined()[0].tolist()
    return tuple(name for name, number in zip(names, found, strict=True) if number)


def _questions(
    options: argparse.Namespace, data: "PairDataModule", graph: "EdgeGraph", num_examples: int, resampling: "Resampling"
) -> "EvaluationOptions":
    from edgeprune.report.evaluate import EvaluationOptions

    labels = {name: values[:num_examples] for name, values in data.labels(options.split).items()}
    return EvaluationOptions(
        tests=options.tests,
        pairs=options.pairs,
        seeds=options.seeds,
        resampling=resampling,
        labels=labels,
        known=_known(options.known, graph, options.holds),
        num_test_examples=options.test_limit,
        num_minimality_edges=options.minimality_edges,
        num_random=options.random,
    )


def _known(asked: list[str], graph: "EdgeGraph", holds: "Holds | None") -> "Mapping[str, CanonicalCircuit | Circuit]":
    from edgeprune import canonical
    from edgeprune.reference import read_reference

    return {
        name: canonical.load(name) if name in canonical.names() else read_reference(name, graph, holds)
        for name in asked
    }


# -------------------------------------------------------------------- tables
def _print(result: dict[str, Any]) -> None:
    from edgeprune.console import print_report
    from edgeprune.report.terminal import notes, tables

    print_report(*tables(result), *notes(result))
