"""`edgeprune polish CIRCUIT --config X.yaml`: the same number of edges, better chosen."""

import argparse
import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.cli.arguments import Arguments, check_ablation, check_file, check_least, versions
from edgeprune.cli.circuits import add_reading_options
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from datamodules import PairDataModule
    from edgeprune.batch import PairBatch
    from edgeprune.circuit import Circuit
    from edgeprune.cli.circuits import CircuitFiles
    from edgeprune.methods.polish import Polisher, Polishing

LEAST = {"limit": 1, "held_out": 0, "batch_size": 1, "cache_gb": 0}
STATE = ".polishing"  # suffix of the folder beside the result that keeps the state


def run(arguments: list[str]) -> None:
    """Polish a circuit, write the better one, and say what was gained."""
    options = _parse(arguments[1:])
    state = options.out.with_name(options.out.name + STATE)
    _check_out(options, state)
    circuit, polisher = _polish(options, state)
    _write(options, state, circuit, polisher)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = Arguments(prog="edgeprune polish", description=__doc__)
    add = parser.add_argument
    add("circuit", metavar="CIRCUIT", help="circuit file of any format that `edgeprune convert` reads")
    add("--config", required=True, help="YAML file with a `data` section, or the name of one that comes along")
    add("--out", type=Path, help="file to write; default: CIRCUIT with -polished before its suffix")
    add("--overwrite", action="store_true", help="replace that file, and begin anew where a run was interrupted")
    add("--split", choices=["train", "validation", "test"], default="train", help="pairs to polish on (default: train)")
    add("--limit", type=int, default=128, help="the first so many of them, or all if there are no more (default: 128)")
    add(
        "--held-out",
        type=int,
        default=128,
        help="validation pairs on which a swap must help too; 0: none (default: 128)",
    )
    add("--batch-size", type=int, help="pairs in one run; default: the config's batch_size")
    add("--metric", help="what the loss is, such as kl or squared_error; default: the circuit's objective, or else kl")
    add("--ablation", help="such as interchange, zero or mean; default: the circuit's")
    add("--model", help="model to run; default: the one in the circuit's header")
    add("--device", default="cpu")
    add("--cache-gb", type=float, default=2.0, help="memory for runs that are kept (default: 2)")
    add_reading_options(parser)
    add(
        "--max-passes",
        type=float,
        default=100.0,
        help="forward and backward passes over the pairs of a part (default: 100)",
    )
    add("--probes", type=int, default=2, help="backward passes per pair for the curvature of the loss (default: 2)")
    add("--step", type=int, help="edges to swap at once at first; default: one in 64")
    add("--parts", type=int, default=1, help="of the pairs, one in turn after each swap that stays (default: 1)")
    add("--overshoot", type=int, default=32, help="most edges opened before as many close, measured (default: 32)")
    add("--seed", type=int, default=0, help="of the curvature's random functions (default: 0)")
    options = parser.parse_args(arguments)
    check_least(options, LEAST)
    check_ablation(options.ablation)
    if options.out is None:
        path = Path(options.circuit)
        options.out = path.with_name(f"{path.stem}-polished.safetensors")
    return options


def _check_out(options: argparse.Namespace, state: Path) -> None:
    """Refuse a result that could not be written, or is there already."""
    check_file(options.out, "--out")
    if options.out.suffix != ".safetensors":
        raise EdgepruneError(f"--out {options.out}: circuit files end in .safetensors; name it so")
    if options.out.resolve() == Path(options.circuit).resolve():
        raise EdgepruneError(f"--out {options.out} is the circuit to polish; choose another file")
    if options.out.exists() and not options.overwrite:
        raise EdgepruneError(f"--out {options.out} is there already; choose another file, or give --overwrite")
    if options.overwrite:
        shutil.rmtree(state, ignore_errors=True)


# -------------------------------------------------------------------- polishing
def _polish(options: argparse.Namespace, state: Path) -> "tuple[Circuit, Polisher]":
    from edgeprune.ablations.runs import ReferenceRuns
    from edgeprune.cli.circuits import CircuitFiles
    from edgeprune.cli.data import read_data_config
    from edgeprune.cli.pairs import pair_batches, prepare_runs
    from edgeprune.console import ProgressReporter
    from edgeprune.methods.polish import Polisher
    from edgeprune.methods.problem import Problem
    from edgeprune.models.limits import Limits
    from edgeprune.models.loading import fingerprint

    settings = _settings(options)
    files = CircuitFiles.open([options.circuit], options.holds, roles=True)
    given = _check_config(options, files)
    name = files.model_name(options.model or given.get("name"))
    metric = options.metric or files.header.get("objective") or given.get("objective") or "kl"
    ablation = options.ablation or files.header.get("ablation") or given.get("ablation") or "interchange"
    data = read_data_config(options.config, tokenizer=name)
    data.setup()
    batches = pair_batches(data, options.split, options.limit, options.batch_size)
    held_out = _held_out(options, data)
    model = files.load_model(name, options.device, split_embedding=options.split_embedding)
    data.check(Limits.of(model), options.split, options.limit)
    data.check(Limits.of(model), "validation", options.held_out)
    files.use_roles(model, [*batches, *held_out])
    (circuit,) = files.circuits(model)
    files.warn_of_positions(model, [circuit], [ablation])
    runs = ReferenceRuns(model, ablation, options.cache_gb)
    problem = Problem(model, batches, runs, metric, options.split)
    others = Problem(model, held_out, runs, metric, "validation") if held_out else None
    with ProgressReporter(stderr=True) as bars:
        prepare_runs(runs, data, options.split, "validation", report=bars.report)
        for batch in (*batches, *held_out):
            runs.check(batch)
        polisher = Polisher(problem, circuit.keep, settings, others, state)
        if polisher.state.rounds:
            bars.print(f"edgeprune: going on after round {polisher.state.rounds} of the interrupted run in {state}")
        try:
            polisher.run(lambda what, done, total: bars.report(what, done, total, lambda: polisher.figures))
        except EdgepruneError:
            if state.is_dir() and not any(state.iterdir()):
                state.rmdir()
            raise
    known = {
        "model": name,
        "model_fingerprint": fingerprint(model),
        "model_options": {name: getattr(model.graph.arch, name) for name in ("kv_readers", "split_embedding")},
        "task": data.describe(),
        "objective": metric,
    }
    header = {**known, **circuit.header, "ablation": runs.ablation, "objective": metric}
    return replace(circuit, header=header), polisher


def _settings(options: argparse.Namespace) -> "Polishing":
    from edgeprune.methods.polish import Polishing

    names = ("max_passes", "probes", "step", "overshoot", "seed", "parts")
    return Polishing(**{name: getattr(options, name) for name in names})


def _held_out(options: argparse.Namespace, data: "PairDataModule") -> "list[PairBatch]":
    """Pairs on which swaps must help too, none of which they are made from."""
    from edgeprune.cli.pairs import pair_batches

    if not options.held_out:
        return []
    if options.split == "validation":
        raise EdgepruneError(
            "--split validation: on these pairs swaps must help too, so polish on others; or give --held-out 0"
        )
    return pair_batches(data, "validation", options.held_out, options.batch_size or data.eval_batch_size)


def _check_config(options: argparse.Namespace, files: "CircuitFiles") -> dict[str, Any]:
    """The config's section `model`, empty if it has none; refuse one that is of another model than the circuit.

    Raises:
        EdgepruneError: Its model or its key/value readers are not those of the circuit.
    """
    from edgeprune.cli.configs import find_config
    from edgeprune.parsing import read_options

    section = read_options(find_config(options.config)).get("model")
    given: dict[str, Any] = section if isinstance(section, dict) else {}
    circuit = files.native.get(options.circuit)
    if circuit is None:
        return given
    own, wanted = circuit.header.get("model"), given.get("name")
    if options.model is None and None not in (own, wanted) and own != wanted:
        raise EdgepruneError(
            f"{options.circuit} was found in model {own!r}, {options.config} is for {wanted!r}; "
            "take the config that the circuit was found with, or name the model to run with --model"
        )
    readers, asked = circuit.graph.arch.kv_readers, given.get("kv_readers")
    if asked is not None and asked != readers:
        raise EdgepruneError(
            f"{options.circuit} has kv_readers {readers!r}, {options.config} asks for {asked!r}: edges are not the "
            "same; take the config that the circuit was found with"
        )
    return given


# -------------------------------------------------------------------- the result
def _write(options: argparse.Namespace, state: Path, circuit: "Circuit", polisher: "Polisher") -> None:
    from edgeprune.console import duration, print_report
    from edgeprune.methods.polish import polished
    from edgeprune.tables import Numbers, table

    made = polished(circuit, polisher)
    about = made.header["derived"][-1]["polished"]
    about |= {"from": str(options.circuit), "from_file_sha256": _file_hash(options.circuit), **versions()}
    made.save(options.out)
    shutil.rmtree(state)
    found = polisher.state
    metric = polisher.problem.metric
    rows = [[f"{polisher.problem.split} pairs", about["num_examples"], found.start, found.loss]]
    if polisher.held_out is not None:
        rows.append(["held-out pairs", about["num_held_out"], found.held_out_start, found.held_out])
    columns = ["", Numbers("pairs"), Numbers(f"{metric} before", 4), Numbers("after", 4)]
    print_report(
        table(f"{options.circuit}, {made.num_edges:,} edges", columns, rows),
        f"{about['swaps']:,} edges swapped in {found.accepted} of {found.rounds} rounds, {found.passes:.1f} passes, "
        f"{duration(found.seconds)}; stopped: {found.stopped}",
        f"polished circuit: {options.out}",
    )


def _file_hash(path: str) -> str | None:
    """SHA-256 of the file's bytes; None for a folder."""
    file = Path(path)
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
