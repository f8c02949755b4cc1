"""What a drawing says about a circuit, from its header."""

from collections.abc import Mapping
from typing import Any

from edgeprune.circuit import Circuit
from edgeprune.drawing.edges import AT_ROLE
from edgeprune.report.text import counted, finite, number, percent

_MEASURES = {
    "kl": "KL, nats",
    "squared_error": "squared error",
    "logit_difference": "logit difference",
    "accuracy": "accuracy",
    "exact_match": "exact match",
}


def title(circuit: Circuit) -> str:
    """Model and task, as far as they are known; of a part without roles what it is, and what it leaves out."""
    known = [str(circuit.header["model"])] if "model" in circuit.header else []
    task: Any = circuit.header.get("task")
    task = task.get("task") if isinstance(task, Mapping) else task
    found = " on ".join([*known, *([task] if isinstance(task, str) else [])]) or "Circuit"
    made: Any = (circuit.header.get("derived") or [{}])[-1]
    if AT_ROLE in made:
        found += f", at {made[AT_ROLE]}"
    if "union" in made:
        found += f", union of {len(made['union'])} roles"
    inside = made.get("attention_edges")
    return found if inside is None else f"{found}, without its {counted(inside, 'attention edge')}"


def facts(circuit: Circuit, whole: Circuit | None = None) -> list[tuple[str, str]]:
    """Terms and texts: size, method, measures; of a part also the size of the whole."""
    found = [
        ("edges", f"{circuit.num_edges:,} of {circuit.graph.num_edges:,}"),
        ("sparsity", f"{100 * circuit.sparsity:.2f} %"),
        ("dangling", counted(circuit.num_dangling, "edge")),
    ]
    if circuit.roles:
        union = circuit.union()
        counts = zip(circuit.roles, circuit.keep.sum((1, 2)).tolist(), strict=True)
        found.append(("union of roles", f"{union.num_edges:,} of {union.graph.num_edges:,}"))
        found += [(f"at {name}", counted(number, "edge")) for name, number in counts]
    if circuit.attend is not None:
        found.append(("attention edges", f"{int(circuit.attend.sum()):,} of {circuit.graph.attention.num_edges:,}"))
    if (density := finite(_mask(circuit).get("density"))) is not None:
        found.append(("weights kept", percent(density)))
    found += [] if whole is None else [("part of", f"{whole.num_edges:,} edges")]
    found += [(name, str(circuit.header[name])) for name in ("method", "ablation", "split") if name in circuit.header]
    measures: Any = circuit.header.get("metrics")
    measures = measures if isinstance(measures, Mapping) else {}
    found += [
        (heading, number(measures[name]))
        for name, heading in _MEASURES.items()
        if finite(measures.get(name)) is not None
    ]
    if finite(measures.get("num_examples")) is not None:
        found.append(("measured on", counted(int(measures["num_examples"]), "pair")))
    return found


def _mask(circuit: Circuit) -> Mapping[str, Any]:
    """What the header says of a mask on the model's weights."""
    found: Any = circuit.header.get("weight_mask")
    return found if isinstance(found, Mapping) else {}


def kept_weights(circuit: Circuit) -> dict[str, str]:
    """Share of its own weights that each head and MLP keeps, by name, where there is a mask on weights."""
    nodes: Any = _mask(circuit).get("nodes")
    return {name: percent(share) for name, share in nodes.items()} if isinstance(nodes, Mapping) else {}


def caption(circuit: Circuit, whole: Circuit | None = None) -> str:
    """One line under the title of an image: the circuit's size, and how much of it is drawn if that is a part."""
    all_of = whole or circuit
    text = f"{all_of.num_edges:,} of {all_of.graph.num_edges:,} edges, sparsity {100 * all_of.sparsity:.2f} %"
    text += "" if whole is None else f"; {circuit.num_edges:,} of the {whole.num_edges:,} are drawn"
    return f"{circuit.header['method']}: {text}" if "method" in circuit.header else text
