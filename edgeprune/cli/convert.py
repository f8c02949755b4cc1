"""`edgeprune convert IN OUT`: circuits to and from the files of other tools."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.cli.arguments import Arguments
from edgeprune.cli.circuits import HOLDS
from edgeprune.errors import EdgepruneError
from edgeprune.paths import check_writable

if TYPE_CHECKING:
    from edgeprune.circuit import Circuit
    from edgeprune.formats import Imported
    from edgeprune.graph import EdgeGraph


NATIVE = "edgeprune"  # the format that has roles


def run(arguments: list[str]) -> None:
    """Convert, list the formats, or validate a submission."""
    options = _parser().parse_args(arguments[1:])
    if options.list:
        _list()
    elif options.validate is not None:
        _validate(options.validate)
    elif options.source is None or options.target is None:
        raise EdgepruneError("convert needs IN and OUT, or --list, or --validate FOLDER; see edgeprune convert --help")
    else:
        _convert(options)


def _parser() -> Arguments:
    parser = Arguments(prog="edgeprune convert", description=__doc__)
    parser.add_argument("source", nargs="?", type=Path, metavar="IN", help="a circuit in any format")
    parser.add_argument("target", nargs="?", type=Path, metavar="OUT", help="file, or folder for a submission to MIB")
    parser.add_argument("--from", dest="form", metavar="FORMAT", help="format of IN; default: told by its content")
    parser.add_argument("--to", metavar="FORMAT", help="format of OUT; default: the one of its suffix, if only one is")
    parser.add_argument("--model", help="model of the circuit, where IN does not say which graph it is of")
    parser.add_argument(
        "--like", type=Path, metavar="CIRCUIT", help="take the graph of this circuit file, not --model's"
    )
    parser.add_argument(
        "--split-embedding", action="store_true", help="with --model: token and position embedding apart"
    )
    parser.add_argument(
        "--kv-readers", choices=["group", "head"], default="group", help="with --model: k and v readers"
    )
    parser.add_argument(
        "--holds", choices=HOLDS, help="what IN holds, where it does not tell: EAP-IG's without an edge in the graph"
    )
    parser.add_argument("--membership", action="store_true", help="write which edges are kept, without their scores")
    parser.add_argument(
        "--union", action="store_true", help="of a circuit with roles write the edges kept at any, in every format"
    )
    parser.add_argument("--list", action="store_true", help="list the formats")
    parser.add_argument("--validate", type=Path, metavar="FOLDER", help="list every problem of a submission to MIB")
    return parser


# -------------------------------------------------------------------- converting
def _convert(options: argparse.Namespace) -> None:
    from edgeprune.formats import ExportOptions, format_for, format_named, read_circuit, write_circuit

    if options.like is not None and options.model is not None:
        raise EdgepruneError("--like and --model both name a graph; give one of them")
    form = format_for(options.target) if options.to is None else format_named(options.to)
    check_writable(options.target, "OUT", folder=form.folder)
    graph, width = _graph(options)
    found = read_circuit(options.source, graph, options.form, options.holds)
    circuit = _union(found.circuit, options, form.name) if found.circuit.roles else found.circuit
    notes = write_circuit(circuit, options.target, form.name, ExportOptions(width, options.membership))
    _report(found, notes, options.target, form.name)


def _union(circuit: "Circuit", options: argparse.Namespace, form: str) -> "Circuit":
    """What is written of a circuit with roles: itself in our format, elsewhere the union, if that is asked for."""
    from edgeprune.console import warn

    names = ", ".join(circuit.roles)
    if not options.union:
        if form == NATIVE:
            return circuit
        raise EdgepruneError(
            f"{options.source} has the roles {names}, and files of {form} have none; write the edges kept at any with "
            "--union"
        )
    union = circuit.union()
    lost = "" if circuit.attend is None else ", as are its attention edges: all are open"
    warn(
        f"{circuit.num_edges:,} edges at the roles {names} are written as the {union.num_edges:,} of their union; at "
        f"which roles they are kept is lost{lost}"
    )
    return union


def _graph(options: argparse.Namespace) -> "tuple[EdgeGraph | None, int | None]":
    """The graph that is wanted, and the width of its model; None where nothing says."""
    from edgeprune.circuit import Circuit

    if options.like is not None:
        return Circuit.load(options.like).graph, None
    if options.model is None:
        return None, None
    from edgeprune.models.loading import load_model

    split = True if options.split_embedding else None
    model = load_model(options.model, split_embedding=split, kv_readers=options.kv_readers)
    return model.graph, int(model.hf.get_input_embeddings().weight.shape[1])


def _report(found: "Imported", notes: list[str], target: Path, form: str) -> None:
    circuit: Circuit = found.circuit
    kept = f"{circuit.num_edges:,} of {circuit.graph.num_edges:,} edges, {circuit.num_dangling:,} dangling"
    scores = "with scores" if circuit.scores is not None else "without scores"
    print(f"read {kept}, {scores}")  # noqa: T201
    for note in found.notes:
        print(f"  read: {note}")  # noqa: T201
    print(f"wrote {target} ({form})")  # noqa: T201
    for note in notes:
        print(f"  wrote: {note}")  # noqa: T201


# -------------------------------------------------------------------- listing and validating
def _list() -> None:
    from edgeprune.formats import FORMATS

    for name, form in FORMATS.items():
        written = "folder" if form.folder else ", ".join(form.suffixes) or "-"
        print(f"{name:<24}{written:<14}{form.holds}")  # noqa: T201


def _validate(folder: Path) -> None:
    from edgeprune.formats.mib_submission import validate

    problems = validate(folder)
    for problem in problems:
        print(problem)  # noqa: T201
    if problems:
        raise EdgepruneError(f"{folder} has {len(problems)} problems, listed above; mend them and validate it again")
    print(f"{folder} is a whole submission")  # noqa: T201
