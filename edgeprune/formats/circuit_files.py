"""Reading and writing circuit files: which formats there are, and which one a file has."""

from dataclasses import replace
from pathlib import Path

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.formats.acdc import AcdcEdges, AcdcSubgraph
from edgeprune.formats.auto_circuit import AutoCircuitEdges, PruneScores
from edgeprune.formats.base import AbstractFormat, ExportOptions, Holds, Imported, Loaded
from edgeprune.formats.eap_ig_json import EapIgJson
from edgeprune.formats.eap_ig_pt import EapIgPt
from edgeprune.formats.edge_list import EdgeList
from edgeprune.formats.edge_pruning import EdgePruningCheckpoint, EdgePruningEdges
from edgeprune.formats.mib_submission import MibCircuits, MibImportances
from edgeprune.formats.native import NativeFile
from edgeprune.formats.plain_values import load_values
from edgeprune.graph import EdgeGraph

# A file has the first format that recognises it.
FORMATS: dict[str, AbstractFormat] = {
    form.name: form
    for form in (
        NativeFile(),
        EapIgJson(),
        EapIgPt(),
        MibImportances(),
        MibCircuits(),
        AcdcSubgraph(),
        AcdcEdges(),
        EdgePruningEdges(),
        EdgePruningCheckpoint(),
        PruneScores(),
        AutoCircuitEdges(),
        EdgeList(),
    )
}


def format_named(name: str) -> AbstractFormat:
    """The format of this name."""
    if name not in FORMATS:
        raise EdgepruneError(f"no format {name!r}; the formats are {', '.join(FORMATS)}")
    return FORMATS[name]


def format_for(path: Path) -> AbstractFormat:
    """The format that a file of this suffix is written in, where only one is."""
    fitting = [form for form in FORMATS.values() if path.suffix in form.suffixes]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        names = ", ".join(form.name for form in fitting)
        raise EdgepruneError(f"{path.name}: several formats end in {path.suffix}; give --to, one of {names}")
    raise EdgepruneError(f"{path.name}: no format ends in {path.suffix!r}; give --to, one of {', '.join(FORMATS)}")


def is_native(path: str | Path) -> bool:
    """Whether `Circuit.load` is to read a file: by its suffix, unless it holds masks of Edge Pruning."""
    path = Path(path)
    return path.suffix in NativeFile.suffixes and not (path.is_file() and load_values(path).kind == "tensors")


def read_circuit(
    path: str | Path, graph: EdgeGraph | None = None, name: str | None = None, holds: Holds | None = None
) -> Imported:
    """Read a circuit from a file of any format.

    Args:
        path: The file, a folder with one file of EAP-IG's, or that of a checkpoint of Edge Pruning.
        graph: The graph that the circuit is wanted on. Formats that do not say which graph they are of need it; for
            others it must be of the same model, and k and v readers are merged or repeated to fit it. No format but
            ours knows roles: of a graph with roles the one without is taken.
        name: The format; None to recognise it by the content.
        holds: `"scores"` or `"circuit"`, for a file that does not say: EAP-IG saves scores, of which every edge is to
            be kept, and a circuit without edges alike.

    Raises:
        EdgepruneError: The file is missing, damaged or of another format, has an edge that the graph lacks, or does not
            say what it holds.
    """
    path = Path(path)
    loaded = replace(load_values(path), holds=holds)
    try:
        form = _recognised(loaded) if name is None else _of_its_kind(format_named(name), loaded)
        found = form.read(loaded, graph if graph is None or isinstance(form, NativeFile) else graph.without_roles)
    except EdgepruneError as error:
        raise EdgepruneError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    notes = {"notes": list(found.notes)} if found.notes else {}
    circuit = found.circuit
    header = {**circuit.header, **notes, **({"source": path.name} if "source" in circuit.header else {})}
    return replace(found, circuit=replace(circuit, header=header))


def write_circuit(
    circuit: Circuit, path: str | Path, name: str | None = None, options: ExportOptions | None = None
) -> list[str]:
    """Write a circuit, whole or not at all.

    Args:
        circuit: The circuit.
        path: The file, or the folder for formats that are written into one.
        name: The format; None for the one of the file's suffix.
        options: What a file may need beside the circuit.

    Returns:
        One sentence for everything about the circuit that the file cannot hold.

    Raises:
        EdgepruneError: The format does not fit the circuit or the suffix.
    """
    path = Path(path)
    form = format_for(path) if name is None else format_named(name)
    if form.suffixes and path.suffix not in form.suffixes:
        raise EdgepruneError(f"{path.name}: files of {form.name} end in {', '.join(form.suffixes)}; name it so")
    if path.is_dir() and not form.folder:
        raise EdgepruneError(f"{path} is a folder; give the circuit a file name")
    if not isinstance(form, NativeFile):
        circuit.require_no_roles(f"a file of {form.name}")
    return form.write(circuit, path, options or ExportOptions())


def _recognised(loaded: Loaded) -> AbstractFormat:
    for form in FORMATS.values():
        if form.recognises(loaded):
            return form
    if loaded.kind == "json":
        kind = type(loaded.value).__name__
        raise EdgepruneError(f"expected a list of edges or EAP-IG's mapping with 'cfg', got a {kind}")
    raise EdgepruneError(
        f"not a whole {loaded.path.suffix} file of a known format: it holds a {type(loaded.value).__name__} of another "
        "kind; see `edgeprune convert --list`"
    )


def _of_its_kind(form: AbstractFormat, loaded: Loaded) -> AbstractFormat:
    """The named format, if the content can be read as that."""
    lists = loaded.kind == "json" and isinstance(loaded.value, list) and FORMATS["edges"].suffixes == form.suffixes
    if form.folder or form.recognises(loaded) or (lists and not isinstance(form, EapIgJson)):
        return form
    try:
        seen = f"; it looks like {_recognised(loaded).name}"
    except EdgepruneError:
        seen = ""
    raise EdgepruneError(f"not a file of {form.name}{seen}")
