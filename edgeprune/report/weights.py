"""How dense a weight mask is, by tensor, head and MLP, for a terminal and the page; and what circuits answer."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from rich import table as rich_table

from edgeprune import tables
from edgeprune.models.weight_mask import WeightMask
from edgeprune.report.blocks import CIRCUIT, Block, Column, Row, Section, Table
from edgeprune.report.result import Json, Result, cell, circuits_with, part
from edgeprune.report.text import UNDEFINED, finite, number, percent

_IN_LAYER = re.compile(r"^(?:.*?\.)(\d+)\.(.+?)(?:\.weight)?$")
_NODE = re.compile(r"^a(\d+)\.(h\d+)$|^(m)(\d+)$")
_BY_TENSOR, _BY_NODE = "Weights kept, by tensor", "Weights kept, of each head's and MLP's own"
_OUTSIDE = "Weights kept outside of the layers"
_UNITS = "Units that still write something"
_PARTS = ("edges", "weights")


def describe_mask(mask: WeightMask) -> dict[str, Any]:
    """A mask's densities as plain values."""
    sizes = {"density": mask.density, "kept": mask.num_kept, "gated": mask.num_weights}
    return {**sizes, "digest": mask.digest, "tensors": mask.densities(), "nodes": mask.nodes}


# -------------------------------------------------------------------- by layer
def _grid(shares: Mapping[str, float], name: re.Pattern[str]) -> tuple[dict[int, dict[str, float]], dict[str, float]]:
    """Shares by layer and by name in it, and those outside of the layers."""
    inside: dict[int, dict[str, float]] = {}
    outside: dict[str, float] = {}
    for key, share in shares.items():
        match = name.match(key)
        if match is None:
            outside[key] = share
        elif name is _NODE and match[3]:
            inside.setdefault(int(match[4]), {})["MLP"] = share
        else:
            inside.setdefault(int(match[1]), {})[match[2]] = share
    return dict(sorted(inside.items())), outside


def _names(grid: Mapping[int, Mapping[str, float]]) -> list[str]:
    return list(dict.fromkeys(name for row in grid.values() for name in row))


def density_tables(mask: WeightMask) -> Iterator[rich_table.Table]:
    """Percent of kept weights, one line a layer."""
    total = f"{mask.num_kept:,} of {mask.num_weights:,}, {percent(mask.density)}"
    for title, shares, pattern in ((_BY_TENSOR, mask.densities(), _IN_LAYER), (_BY_NODE, mask.nodes, _NODE)):
        grid, outside = _grid(shares, pattern)
        names = _names(grid)
        rows: list[list[tables.Value]] = [
            [str(layer), *(None if name not in row else 100 * row[name] for name in names)]
            for layer, row in grid.items()
        ]
        if rows:
            columns = ["layer", *(tables.Numbers(f"{name} %", 2) for name in names)]
            yield tables.table(f"{title} ({total})", columns, rows)
        if outside:
            others: list[list[tables.Value]] = [[name, 100 * share] for name, share in outside.items()]
            yield tables.table(_OUTSIDE, ["tensor", tables.Numbers("%", 2)], others)
    if units := mask.header.get("units"):
        yield _units_table(units)


def _units_table(units: Mapping[str, Mapping[str, list[int]]]) -> rich_table.Table:
    """How many units of each kind still write something, one line a layer."""
    of_layer = {kind: dict(zip(own["layer"], own["kept"], strict=True)) for kind, own in units.items()}
    totals = [f"{kind.replace('_', ' ')} (of {sum(own['of']):,})" for kind, own in units.items()]
    layers = sorted({layer for own in of_layer.values() for layer in own})
    rows: list[list[tables.Value]] = [[str(layer), *(own.get(layer) for own in of_layer.values())] for layer in layers]
    rows.append(["all", *(sum(own.values()) for own in of_layer.values())])
    return tables.table(_UNITS, ["layer", *(tables.Numbers(total, 0) for total in totals)], rows)


# -------------------------------------------------------------------- the page
def weights(result: Result) -> Section | None:
    """How dense the mask on the model's weights is."""
    about = part(result.data, "weights")
    blocks: list[Block] = []
    for title, key, pattern in ((_BY_TENSOR, "tensors", _IN_LAYER), (_BY_NODE, "nodes", _NODE)):
        shares = {name: known for name, value in part(about, key).items() if (known := finite(value)) is not None}
        grid, outside = _grid(shares, pattern)
        names = _names(grid)
        rows = [Row(str(layer), [_share(row.get(name)) for name in names]) for layer, row in grid.items()]
        blocks.append(Table(title, [Column.words("layer"), *map(Column, names)], rows))
        rows = [Row(name, [_share(share)]) for name, share in outside.items()]
        blocks.append(Table(_OUTSIDE, [Column.words("tensor"), Column("kept")], rows))
    intro = (
        f"All circuits were run on masked weights: of the gated ones {percent(about.get('density'))} are kept "
        f"({number(about.get('kept'))} of {number(about.get('gated'))}), the others are 0. The full model of the other "
        "sections has these weights too."
    )
    return Section.of("weights", "Weights", intro, blocks)


def _share(share: float | None) -> Any:
    return cell(share, percent, heat=share)


def functional(result: Result) -> Section | None:
    """Accuracy with what is kept and without it, against the full model and chance."""
    found = circuits_with(result, "functional")
    heads = ("kept", "accuracy", "without it", "full - circuit", "without it - chance", "full model", "chance")
    rows = [_accuracies(name, what, about) for name, about in found for what in _PARTS if part(about, what)]
    intro = (
        "Functional faithfulness: with the circuit alone the accuracy is the full model's. Functional completeness: "
        "without the circuit it is that of a guess. The full model has all its weights; edges are judged on the "
        "weights that are kept, weights with every edge open."
    )
    columns = [CIRCUIT, Column.words("of"), *map(Column, heads)]
    table = Table(f"Accuracies{result.pairs(found)}", columns, rows)
    return Section.of("functional", "Functional faithfulness and completeness", intro, [table])


def _accuracies(name: str, what: str, about: Json) -> Row:
    own = part(about, what)
    figures = (own.get(key) for key in ("circuit", "complement", "below_full", "above_chance"))
    cells = [cell(what), cell(own.get("share"), percent), *map(_figure, figures), _figure(about.get("full"))]
    return Row(name, [*cells, cell(about.get("chance"))])


def _figure(figure: Any) -> Any:
    about = part({"figure": figure}, "figure")
    low, high = (finite(about.get(end)) for end in ("low", "high"))
    return cell(about.get("value"), small=UNDEFINED if low is None else f"{number(low)} to {number(high)}")
