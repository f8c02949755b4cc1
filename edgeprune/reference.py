"""Circuits to compare with, from the files in which people keep them: see `edgeprune.formats`."""

from pathlib import Path

from edgeprune.ablations import Ablation
from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.formats import Holds, read_circuit
from edgeprune.formats.eap_ig import EAP_IG_FORMATS
from edgeprune.graph import EdgeGraph
from edgeprune.models.masked import MaskedModel


def read_reference(
    path: str | Path, graph: EdgeGraph, holds: Holds | None = None, what: str = "a comparison with a reference"
) -> Circuit:
    """Read a circuit to compare with, as a circuit of `graph`.

    Where the graph has one embedding writer, token and position embedding are merged into it. Where query heads share a
    k and a v reader, those of a tool that has one per query head become its group's. What that made different is in the
    circuit's header, under `notes`.

    Args:
        path: A file of any format that `edgeprune convert --list` names, recognised by its content.
        graph: The graph that the edges must belong to; for our own files the very same.
        holds: As in `read_circuit`, for a file that does not say whether it holds scores or a circuit.
        what: What it is read for, for the message about attention edges.

    Raises:
        EdgepruneError: The file is missing, damaged or of another kind, has an edge that the graph lacks, or closes
            attention edges.
    """
    circuit = read_circuit(path, graph, holds=holds).circuit
    try:
        circuit.check_fits(circuit.graph, what)
    except EdgepruneError as error:
        raise EdgepruneError(f"{path}: {error}") from None
    return circuit


def ablated_positions(circuit: Circuit, model: MaskedModel, ablation: str) -> str | None:
    """What is wrong with running a circuit of EAP-IG's, where a position embedding stays, or None.

    Args:
        circuit: On the model's graph.
        model: The model.
        ablation: As configs say it. Interchange, resampling and means per position put the same positions in place.
    """
    replacing = Ablation.parse(ablation)
    taken = replacing.kind in ("zero", "optimal") or (replacing.kind == "mean" and not replacing.positional)
    closed = (circuit.graph.exists & ~circuit.keep)[..., 0].any()
    if not (taken and closed) or circuit.graph.arch.split_embedding or not model.family.has_position_embedding:
        return None
    if circuit.header.get("source_format") not in EAP_IG_FORMATS:
        return None
    return f"is EAP-IG's, where the position embedding stays, and ablation {ablation} closes it with the tokens' here"
