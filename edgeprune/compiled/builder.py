"""Write a transformer from a readable description: named residual columns, heads that match and move, ReLU units.

The residual stream has one column per name. A description says which columns each token and position sets, and what
every head and every MLP unit reads and writes:

    head    score(to, from) = sum over `match` of (query columns at `to`) * (key columns at `from`)
            writes, for each entry of `move`, the attention-weighted read columns
    unit    relu(bias + read columns), times what it writes

`build` gives the model the smallest width that the description fits in; everything that is not described is zero.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import NamedTuple, cast

import torch
from torch import Tensor

from edgeprune.compiled.program import BOS, PAD
from edgeprune.compiled.transformer import (
    CompiledAttention,
    CompiledConfig,
    CompiledLayer,
    CompiledMLP,
    CompiledTransformer,
)
from edgeprune.errors import EdgepruneError

Columns = Mapping[str, float]  # residual column -> weight

FOCUS = 20.0  # attention score of what is looked for, 0 elsewhere: a leak of exp(-20), yet gradients live
DECISION = 10.0  # logit of the right output, 0 for the others: a decisive softmax


class Match(NamedTuple):
    """One query/key dimension of a head: its score grows by (query columns) * (key columns)."""

    query: Columns
    key: Columns


class Move(NamedTuple):
    """One value dimension of a head: the read columns, averaged by attention, go into the written ones."""

    reads: Columns
    writes: Columns


@dataclass(frozen=True)
class Head:
    """One attention head; without `match`, attention is uniform."""

    move: Sequence[Move]
    match: Sequence[Match] = ()


@dataclass(frozen=True)
class Unit:
    """One hidden unit of an MLP: `relu(bias + reads)`, times `writes`."""

    reads: Columns
    writes: Columns
    bias: float = 0.0


@dataclass(frozen=True)
class Layer:
    """Heads, then the MLP's units; `adds` is what the MLP writes at every position (its output bias).

    A layer with less than the others has zeros in their place.
    """

    heads: Sequence[Head] = ()
    units: Sequence[Unit] = ()
    adds: Columns = field(default_factory=dict[str, float])


@dataclass(frozen=True, kw_only=True)
class Description:
    """A whole transformer.

    Attributes:
        columns: Names of the residual columns, in order.
        tokens: For each token of the vocabulary the columns that its embedding sets, in the order of their ids. Inputs
            begin with the token `BOS`, and rows are filled with `PAD`, where there are these.
        positions: For each position the columns that its embedding sets: as many as the longest input has tokens.
        layers: From the first to the last.
        outputs: For each logit, by its label, the columns that it adds up; one that reads nothing is always 0.
        causal: Whether a position sees only itself and those before it.
        num_heads: Heads of each layer, at least; those that no layer describes are zero.
    """

    columns: Sequence[str]
    tokens: Mapping[str, Columns]
    positions: Sequence[Columns]
    layers: Sequence[Layer]
    outputs: Mapping[str, Columns]
    causal: bool = False
    num_heads: int = 1


def build(name: str, description: Description) -> CompiledTransformer:
    """Write the weights.

    Args:
        name: Name of the program: the model is called `compiled:NAME`.
        description: What to write.

    Raises:
        EdgepruneError: A column that is not declared, or is never written or never read; a head or unit that reads or
            writes nothing.
    """
    _check(description)
    model = CompiledTransformer(_config(name, description))
    column = {name: index for index, name in enumerate(description.columns)}
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        for row, sets in zip(model.tok_embed.weight, description.tokens.values(), strict=True):
            _fill(row, sets, column)
        for row, sets in zip(model.pos_embed.weight, description.positions, strict=True):
            _fill(row, sets, column)
        for row, reads in zip(model.unembed.weight, description.outputs.values(), strict=True):
            _fill(row, reads, column)
        for target, layer in zip(model.layers, description.layers, strict=True):
            _write_heads(cast(CompiledLayer, target).attn, layer.heads, column)
            if model.config.intermediate_size:
                _write_units(cast(CompiledMLP, cast(CompiledLayer, target).mlp), layer, column)
    return model.eval()


# -------------------------------------------------------------------- helpers for descriptions
def one_hot(group: str, values: Iterable[object]) -> list[str]:
    """Names of columns of which one is 1 and the others are 0: `"group value"`."""
    return [f"{group} {value}" for value in values]


def copy(reads: Sequence[str], writes: Sequence[str], weight: float = 1.0) -> list[Move]:
    """Move each column into its partner, times `weight`."""
    return [Move({source: 1.0}, {target: weight}) for source, target in zip(reads, writes, strict=True)]


def equal(query: Sequence[str], key: Sequence[str]) -> list[Match]:
    """Look where the one-hot `key` columns hold what the one-hot `query` columns ask for."""
    return [Match({wanted: FOCUS}, {found: 1.0}) for wanted, found in zip(query, key, strict=True)]


def table(entries: Mapping[tuple[str, ...], Columns], one: str | None = None) -> list[Unit]:
    """One-hot to one-hot: a unit for each entry that is on if all its columns are 1.

    Args:
        entries: Columns that must all be 1, and what to write then.
        one: Column that is always 1 and serves as the threshold; None for the unit's own bias. Under zero ablation
            the edge that brings `one` then belongs to the circuit.
    """
    return [_unit(dict.fromkeys(columns, 1.0), 1.0 - len(columns), writes, one) for columns, writes in entries.items()]


def ramp(column: str, low: float, high: float, writes: Columns, one: str | None = None) -> list[Unit]:
    """Two units that together write 0 below, `writes` above, and rise in the middle third between `low` and `high`.

    `one` as in `table`.
    """
    slope = 3 / (high - low)
    return [
        _unit({column: slope}, -(slope * low + part), {name: sign * weight for name, weight in writes.items()}, one)
        for part, sign in ((1, 1), (2, -1))
    ]


def levels(column: str, values: Sequence[float], writes: Sequence[Columns], one: str | None = None) -> list[Unit]:
    """Numerical to one-hot: write `writes[i]` where the column holds `values[i]`, and nothing where it holds 0.

    Args:
        column: Where the number is.
        values: Positive and falling. The last must stay clear of 0, the value of a column that is not written: its
            ramp ends at it and begins where the sequence 1/n would go on.
        writes: What to write at each.
        one: As in `table`.
    """
    below = [*values[1:], 1 / (1 / values[-1] + 1)]
    units: list[Unit] = []
    for number, (low, high) in enumerate(zip(below, values, strict=True)):
        following = writes[number + 1] if number + 1 < len(writes) else {}
        units += ramp(column, low, high, {**writes[number], **{name: -w for name, w in following.items()}}, one)
    return units


def _unit(reads: Columns, constant: float, writes: Columns, one: str | None) -> Unit:
    if one is None or not constant:
        return Unit(reads, writes, bias=constant)
    return Unit({**reads, one: constant}, writes)


# -------------------------------------------------------------------- weights
def _config(name: str, description: Description) -> CompiledConfig:
    layers, tokens = description.layers, list(description.tokens)
    config = CompiledConfig(
        vocab_size=len(tokens),
        n_ctx=len(description.positions),
        num_hidden_layers=len(layers),
        num_attention_heads=max(description.num_heads, *(len(layer.heads) for layer in layers)),
        head_dim=max(max(len(head.match), len(head.move)) for layer in layers for head in layer.heads),
        hidden_size=len(description.columns),
        intermediate_size=max(max(len(layer.units), bool(layer.adds)) for layer in layers),
        d_out=len(description.outputs),
        causal=description.causal,
        bos_token_id=tokens.index(BOS) if BOS in tokens else None,
        pad_token_id=tokens.index(PAD) if PAD in tokens else None,
        vocab=tokens,
        output_labels=list(description.outputs),
    )
    config.name_or_path = f"compiled:{name}"
    return config


def _fill(row: Tensor, weights: Columns, column: Mapping[str, int]) -> None:
    for name, weight in weights.items():
        row[column[name]] = weight


def _write_heads(attn: CompiledAttention, heads: Sequence[Head], column: Mapping[str, int]) -> None:
    for number, head in enumerate(heads):
        first = number * attn.head_dim
        for row, match in enumerate(head.match, start=first):
            _fill(attn.q_proj.weight[row], match.query, column)
            _fill(attn.k_proj.weight[row], match.key, column)
        for row, move in enumerate(head.move, start=first):
            _fill(attn.v_proj.weight[row], move.reads, column)
            _fill(attn.o_proj.weight[:, row], move.writes, column)


def _write_units(mlp: CompiledMLP, layer: Layer, column: Mapping[str, int]) -> None:
    for row, unit in enumerate(layer.units):
        _fill(mlp.fc_in.weight[row], unit.reads, column)
        _fill(mlp.fc_out.weight[:, row], unit.writes, column)
        mlp.fc_in.bias[row] = unit.bias
    _fill(mlp.fc_out.bias, layer.adds, column)


# -------------------------------------------------------------------- checks
class _Use(NamedTuple):
    """One mention of columns: where, and which."""

    where: str
    columns: Columns


def _check(description: Description) -> None:
    if not any(layer.heads for layer in description.layers):
        raise EdgepruneError("a description needs at least one head; an MLP alone is no transformer")
    repeated = sorted({name for name in description.columns if list(description.columns).count(name) > 1})
    if repeated:
        raise EdgepruneError(f"column {repeated[0]!r} is declared twice; give every column its own name")
    reads, writes = _reads_and_writes(description.layers)
    for use in (*reads, *writes):
        if not use.columns:
            what = "reads" if use in reads else "writes"
            raise EdgepruneError(f"{use.where} {what} nothing; name at least one column, or leave it out")
    writes += [_Use(f"token {name!r}", sets) for name, sets in description.tokens.items()]
    writes += [_Use(f"position {number}", sets) for number, sets in enumerate(description.positions)]
    writes += [_Use(f"layer {number} adds", layer.adds) for number, layer in enumerate(description.layers)]
    reads += [_Use(f"output {name!r}", sums) for name, sums in description.outputs.items()]
    _check_columns(description.columns, reads, writes)


def _check_columns(known: Sequence[str], reads: Sequence[_Use], writes: Sequence[_Use]) -> None:
    for use in (*reads, *writes):
        for name in use.columns:
            if name not in known:
                near = get_close_matches(name, known, n=1)
                hint = f"did you mean {near[0]!r}?" if near else "declare it among the columns"
                raise EdgepruneError(f"{use.where} names column {name!r}, which is not declared; {hint}")
    for uses, what in ((writes, "written"), (reads, "read")):
        used = {name for use in uses for name in use.columns}
        unused = [name for name in known if name not in used]
        if unused:
            raise EdgepruneError(
                f"column {unused[0]!r} is never {what}; leave it out: the width should be the smallest"
            )


def _reads_and_writes(layers: Sequence[Layer]) -> tuple[list[_Use], list[_Use]]:
    """What heads and units read, and what they write."""
    reads: list[_Use] = []
    writes: list[_Use] = []
    for number, layer in enumerate(layers):
        for index, head in enumerate(layer.heads):
            name = f"a{number}.h{index}"
            for match in head.match:
                reads += [_Use(f"query of {name}", match.query), _Use(f"key of {name}", match.key)]
            reads += [_Use(f"value of {name}", move.reads) for move in head.move or [Move({}, {})]]
            writes += [_Use(name, move.writes) for move in head.move]
        reads += [_Use(f"unit {row} of m{number}", unit.reads) for row, unit in enumerate(layer.units)]
        writes += [_Use(f"unit {row} of m{number}", unit.writes) for row, unit in enumerate(layer.units)]
    return reads, writes
