"""`edgeprune draw FILE...`: circuits as an image, DOT or a page to look around in; results of patching as heat maps."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from edgeprune.cli.arguments import Arguments, check_file
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from edgeprune.drawing import NamedCircuit

RUN, CIRCUIT, PATCHING = "a folder", "edgeprune-circuit/1", "edgeprune-patching/1"
CIRCUIT_WITH_ROLES = "edgeprune-circuit/2"
_SUFFIXES = (".html", ".svg", ".png", ".pdf", ".dot")
UNION = "union"
_START = 2500  # edges: of a run the densest circuit that has no more is shown first


def run(arguments: list[str]) -> None:
    """Draw files of one kind into one file."""
    parser = Arguments(prog="edgeprune draw", description=__doc__)
    parser.add_argument(
        "files",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="circuits, the folder of a run, or results of patching (one panel each)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        help="for circuits .html, .svg, .png, .pdf or .dot, for patching an image; by default the first file's name "
        "with .html or .png",
    )
    parser.add_argument("--diff", metavar="CIRCUIT", help="draw the difference to this circuit, a file of any format")
    parser.add_argument("--max-edges", type=int, help="edges of a circuit to draw, its strongest (10,000)")
    parser.add_argument(
        "--without-dangling",
        action="store_true",
        help="of a circuit, or of its strongest edges, draw those on a path from an embedding to the logits",
    )
    parser.add_argument(
        "--role",
        metavar="ROLE",
        help=f"of circuits with roles draw one, or their {UNION!r}; by default a page begins with all side by side, "
        "and an image is of the union",
    )
    options = parser.parse_args(arguments[1:])
    kinds = {path: _format(path) for path in options.files}
    for path, kind in kinds.items():
        if kind not in _DRAWERS:
            raise EdgepruneError(f"{path} holds {kind}; draw knows {', '.join(_DRAWERS)}")
        if kind != (first := kinds[options.files[0]]):
            raise EdgepruneError(f"{path} holds {kind}, {options.files[0]} holds {first}; draw them apart")
    print(f"drew {_DRAWERS[kinds[options.files[0]]](options)}")  # noqa: T201


def _format(path: Path) -> str:
    """What a folder, or a file of this package, holds."""
    from edgeprune.sealed import format_of

    if path.is_dir():
        return RUN
    if not path.is_file():
        raise EdgepruneError(f"no file at {path}")
    found = format_of(path)
    return CIRCUIT if found == CIRCUIT_WITH_ROLES else found


def _draw_patching(options: argparse.Namespace) -> Path:
    from edgeprune.patching.heatmap import draw_heatmaps
    from edgeprune.patching.result import PatchingResult

    for name in ("diff", "max_edges", "without_dangling", "role"):
        if getattr(options, name) not in (None, False):
            raise EdgepruneError(f"--{name.replace('_', '-')} is for circuits, {options.files[0]} holds {PATCHING}")
    out = options.out or options.files[0].with_suffix(".png")
    check_file(out, "--out")
    return draw_heatmaps([PatchingResult.load(path) for path in options.files], out)


# -------------------------------------------------------------------- circuits
def _draw_circuits(options: argparse.Namespace) -> Path:
    from edgeprune.circuit import Circuit
    from edgeprune.drawing import NamedCircuit

    names = _names(options.files)
    return _draw(
        options, [NamedCircuit(name, Circuit.load(path)) for name, path in zip(names, options.files, strict=True)]
    )


def _draw_run(options: argparse.Namespace) -> Path:
    from edgeprune.drawing import NamedCircuit
    from edgeprune.runs import load_run

    if len(options.files) > 1:
        raise EdgepruneError(f"draw takes one folder at a time, got {len(options.files)}; name circuit files instead")
    found = load_run(options.files[0])
    named = [NamedCircuit(name, circuit) for name, circuit in found.circuits.items()]
    if not named and found.scores is not None:
        named = [NamedCircuit("scores", found.scores)]
    if not named:
        raise EdgepruneError(f"{options.files[0]} holds no circuits to draw")
    return _draw(options, sorted(named, key=lambda one: -one.circuit.num_edges))


def _draw(options: argparse.Namespace, circuits: "list[NamedCircuit]") -> Path:
    from edgeprune.drawing import (
        FORMATS,
        MAX_EDGES,
        draw_image,
        on_paths,
        strongest_edges,
        write_dot,
        write_viewer,
    )

    first = options.files[0]
    out = options.out or (first / "circuits.html" if first.is_dir() else first.with_suffix(".html"))
    check_file(out, "--out")
    if out.suffix not in _SUFFIXES:
        raise EdgepruneError(f"--out {out}: cannot draw a circuit as {out.suffix!r}; it can be {', '.join(_SUFFIXES)}")
    most = MAX_EDGES if options.max_edges is None else options.max_edges
    if most < 1:
        raise EdgepruneError(f"--max-edges must be at least 1, got {most}")
    if len(circuits) > 1 and (options.diff is not None or out.suffix != ".html"):
        what = "--diff" if options.diff is not None else f"a {out.suffix} file"
        raise EdgepruneError(f"{what} is of one circuit, {first} and what follows are {len(circuits)}; name one file")
    circuits = [*circuits, *_other(options, circuits[0])]
    circuits, role = _of_roles(circuits, options, page=out.suffix == ".html")
    circuits = [strongest_edges(one, most) for one in circuits]
    if options.without_dangling and role is None:
        circuits = [on_paths(one) for one in circuits]
    difference = options.diff is not None
    other = circuits[1].circuit if difference else None
    if out.suffix in FORMATS:
        draw_image(circuits[0].circuit, out, other, (circuits[0].name, circuits[-1].name), circuits[0].whole)
    elif out.suffix == ".dot":
        write_dot(circuits[0].circuit, out, other)
    else:
        start = 0 if difference else _start(circuits)
        write_viewer(circuits, out, start, 1 if difference else None, options.role)
    return out


def _of_roles(
    circuits: "list[NamedCircuit]", options: argparse.Namespace, *, page: bool
) -> "tuple[list[NamedCircuit], str | None]":
    """What is drawn of circuits with roles: on a page all of them, in an image the union or one role, which is named.

    Raises:
        EdgepruneError: A page cannot hold them side by side, or none has such a role.
    """
    from edgeprune.drawing import on_paths, without_roles

    first, role = circuits[0], None if options.role == UNION else options.role
    roles = [one.circuit.graph.roles for one in circuits]
    if options.role is not None and not any(roles):
        raise EdgepruneError(f"--role {options.role}: {first.name} has no roles; leave it out")
    if page and all(one == roles[0] for one in roles):
        if role is not None and roles[0] is not None:
            roles[0].index(role)
        return circuits, None
    if page and options.role != UNION:
        other = next(one for one in circuits if one.circuit.graph.roles != roles[0])
        raise EdgepruneError(
            f"{other.name} has {_roles(other)}, {first.name} has {_roles(first)}; compare their unions: --role {UNION}"
        )
    if role is not None and options.without_dangling:  # with all roles: what hears a key is at others
        circuits = [on_paths(one) for one in circuits]
    options.role = None if page else options.role
    return [without_roles(one, role) for one in circuits], role


def _roles(named: "NamedCircuit") -> str:
    return f"the roles {', '.join(named.circuit.roles)}" if named.circuit.roles else "no roles"


def _other(options: argparse.Namespace, first: "NamedCircuit") -> "list[NamedCircuit]":
    """The circuit of `--diff`, in whatever format, if there is one."""
    if options.diff is None:
        return []
    from edgeprune.circuit import Circuit
    from edgeprune.drawing import NamedCircuit
    from edgeprune.formats import is_native
    from edgeprune.reference import read_reference

    if Path(options.diff).is_file() and is_native(options.diff):
        circuit = Circuit.load(options.diff)  # what differs in roles is drawn, or refused, later
    else:
        circuit = read_reference(options.diff, first.circuit.graph)
    name = Path(options.diff).stem
    return [NamedCircuit(name if name != first.name else str(options.diff), circuit)]


def _start(circuits: "list[NamedCircuit]") -> int:
    small = [place for place, one in enumerate(circuits) if one.circuit.num_edges <= _START]
    return small[0] if len(circuits) > 1 and small else 0


def _names(paths: list[Path]) -> list[str]:
    """Their stems, or where those are not unlike, the paths."""
    stems = [path.stem for path in paths]
    return stems if len(set(stems)) == len(stems) else [str(path) for path in paths]


_DRAWERS: dict[str, Callable[[argparse.Namespace], Path]] = {
    PATCHING: _draw_patching,
    CIRCUIT: _draw_circuits,
    RUN: _draw_run,
}
