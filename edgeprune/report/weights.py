"""How dense a weight mask is, by tensor and by head, as tables for a terminal."""

import re
from collections.abc import Iterator

from rich.table import Table

from edgeprune.models.weight_mask import WeightMask
from edgeprune.tables import Numbers, Value, table

_LAYER = re.compile(r"^(?P<before>.*?\.)(?P<layer>\d+)\.(?P<name>.+)$")
_NODE = re.compile(r"^(?:a(?P<layer>\d+)\.h(?P<head>\d+)|m(?P<mlp>\d+))$")


def density_tables(mask: WeightMask) -> Iterator[Table]:
    """Percent of kept weights: of every gated tensor, one line a layer; of every head and MLP likewise."""
    title = f"Weights kept in %: {mask.num_kept:,} of {mask.num_weights:,}, {100 * mask.density:.3g} %"
    found: dict[tuple[int, str], float] = {}
    outside: dict[str, float] = {}
    for name, share in mask.densities().items():
        match = _LAYER.match(name)
        if match is None:
            outside[name] = share
        else:
            found[int(match["layer"]), match["name"].removesuffix(".weight")] = share
    yield from _by_layer(title, found)
    if outside:
        rows: list[list[Value]] = [[name, 100 * share] for name, share in outside.items()]
        yield table("Outside of the layers", ["tensor", Numbers("%", 2)], rows)
    nodes: dict[tuple[int, str], float] = {}
    for name, share in mask.nodes.items():
        match = _NODE.match(name)
        assert match is not None
        nodes[int(match["layer"] or match["mlp"]), "MLP" if match["mlp"] else f"h{match['head']}"] = share
    yield from _by_layer("Weights kept in % of each head's and MLP's own", nodes)


def _by_layer(title: str, found: dict[tuple[int, str], float]) -> Iterator[Table]:
    if not found:
        return
    names = list(dict.fromkeys(name for _, name in found))
    rows: list[list[Value]] = [
        [str(layer), *(100 * found[layer, name] if (layer, name) in found else None for name in names)]
        for layer in sorted({layer for layer, _ in found})
    ]
    yield table(title, ["layer", *(Numbers(name, 2) for name in names)], rows)
