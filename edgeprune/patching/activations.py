"""Activation patching: one site at a time takes the other run's value, and all that follows is computed anew."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import get_args

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.console import Progress, no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.methods.problem import Problem
from edgeprune.models.masked import MaskedModel
from edgeprune.patching.result import PatchingResult, Tally
from edgeprune.patching.run import HEAD_KINDS, Direction, Kind, Pair, check, logits_at, metric_of, run_pair

ROWS = 128  # prompts in one run: several sites are patched side by side, each in its own copy of the batch
DIMS = ("layer", "head", "position", "role")


@dataclass(frozen=True)
class _Axes:
    """The sites to patch: what each axis runs over."""

    layers: list[list[int]]
    heads: list[int | None]  # None: all heads
    places: list[int | str | None]  # a position, a role; None: all positions


@torch.no_grad()
def activation(
    problem: Problem,
    what: Kind = "residual",
    by: Sequence[str] | None = None,
    *,
    direction: Direction = "noising",
    report: Progress = no_progress,
) -> PatchingResult:
    """Patch every site of one kind, one at a time.

    Args:
        problem: Model, pairs and metric. Values come from the corrupted prompts, so the ablation must be interchange.
        what: `residual` (the stream before each layer, and at the end), `attention_out`, `mlp_out`, or a value of the
            heads: `z` (what a head gives to the output projection), `head_out` (what it writes: `z` unless a norm
            follows the attention, then times the scale of that norm), `q`, `k`, `v` (after a norm of queries and keys,
            before rotary positions). Keys and values have one head per reader of the graph: key/value heads with
            `kv_readers="group"`.
        by: Axes of the result, of `layer`, `head` (only for heads' values) and one of `position` and `role` (named
            parts of the clean prompt). Along an axis that is left out, everything is patched at once. By default layer
            and head for heads' values, else layer and position.
        direction: `noising`: corrupted values in the clean run. `denoising`: clean values in the corrupted run.
        report: Called with what is being done, how many of it are done, and how many there are.

    Returns:
        The metric per site, its axes in the order layer, head, position or role.

    Raises:
        EdgepruneError: An unknown kind, axis or direction; an axis that the kind or the pairs do not have; pairs made
            for another model.
    """
    check(problem, direction)
    model = problem.model
    dims = _dims(what, by, problem)
    axes, labels = _axes(model, what, dims, problem.batches)
    sites = [(heads, place) for heads in axes.heads for place in axes.places]
    tally = Tally(len(axes.layers) * len(sites))
    done, total = 0, len(axes.layers) * len(problem.batches)
    for batch in problem.batches:
        moved = batch.to(model.device)
        pair = run_pair(problem, moved, direction, {"residual"}, {what})
        wheres = [_where(moved, place) for _, place in sites]
        held = [number for number, where in enumerate(wheres) if where.any()]
        size = max(1, ROWS // len(moved))
        for row, layers in enumerate(axes.layers):
            for numbers in (held[start : start + size] for start in range(0, len(held), size)):
                chosen = [(sites[number][0], wheres[number]) for number in numbers]
                for number, logits in zip(numbers, _patched(model, pair, what, layers, chosen), strict=True):
                    metric = metric_of(problem, pair.clean, logits, moved)
                    tally.add(row * len(sites) + number, (metric, *pair.ends), wheres[number].any(1))
            done += 1
            report(f"patching {what}", done, total)
    return tally.result(problem, dims, labels, what, direction)


def _patched(
    model: MaskedModel, pair: Pair, what: Kind, layers: Sequence[int], sites: Sequence[tuple[int | None, Tensor]]
) -> Tensor:
    """Logits `[site, batch, n, vocab]` with each site (head or None, positions `[batch, seq]`) patched by itself."""
    num, first = len(sites), layers[0]
    where = torch.stack([where for _, where in sites])  # [site, batch, seq]

    def edit(layer: int, value: Tensor) -> Tensor:
        if layer not in layers:
            return value
        copies = value.unflatten(0, (num, -1))
        chosen = where[..., None]
        if what in HEAD_KINDS:
            chosen = chosen[..., None] & _one_head([head for head, _ in sites], value.shape[2], value.device)
        return torch.where(chosen, pair.other[what, layer], copies).flatten(0, 1)

    stream = _copies(pair.base["residual", first], num)
    if first == model.graph.arch.num_layers:
        stream = edit(first, stream)
    else:
        ids, mask = _copies(pair.ids, num), _copies(pair.mask, num)
        stream = model.run(ids, mask, {what: edit}, first=first, stream=stream)
    return logits_at(model, stream, _copies(pair.positions, num)).unflatten(0, (num, -1))


def _copies(tensor: Tensor, num: int) -> Tensor:
    """`num` copies of a batch, one below the other."""
    return tensor.repeat(num, *[1] * (tensor.dim() - 1))


def _one_head(heads: Sequence[int | None], num_heads: int, device: torch.device) -> Tensor:
    """Bool `[site, 1, 1, head, 1]`: the head of each site, or all of them."""
    rows = [[head is None or head == number for number in range(num_heads)] for head in heads]
    return torch.tensor(rows, device=device)[:, None, None, :, None]


def _where(batch: PairBatch, place: int | str | None) -> Tensor:
    """Bool `[batch, seq]`: the real tokens of the clean prompts that a place means."""
    real = batch.attention_mask.bool()
    if place is None:
        return real
    if isinstance(place, int):  # counted from the first token, wherever the padding is
        return real & (real.cumsum(1) == place + 1)
    if place not in batch.roles:
        return torch.zeros_like(real)
    columns = torch.arange(batch.clean.shape[1], device=batch.clean.device)[None]
    first, last = batch.roles[place].to(columns.device).unbind(1)
    return real & (first[:, None] <= columns) & (columns < last[:, None])


# -------------------------------------------------------------------- axes
def _dims(what: Kind, by: Sequence[str] | None, problem: Problem) -> tuple[str, ...]:
    """The axes of the result, checked and in order."""
    if what not in get_args(Kind):
        raise EdgepruneError(f"what must be one of {', '.join(get_args(Kind))}, got {what!r}")
    if what == "mlp_out" and not problem.model.graph.arch.has_mlp:
        raise EdgepruneError("this model has no MLPs, so there is no mlp_out to patch; choose another site")
    if by is None:
        return ("layer", "head") if what in HEAD_KINDS else ("layer", "position")
    given = [by] if isinstance(by, str) else list(by)
    wrong = [name for name in given if name not in DIMS]
    if wrong or not given or len(set(given)) < len(given):
        raise EdgepruneError(f"by must name different axes among {', '.join(DIMS)}, got {given}")
    if "head" in given and what not in HEAD_KINDS:
        raise EdgepruneError(f"{what} has no heads; leave 'head' out of by, or patch one of {', '.join(HEAD_KINDS)}")
    if {"position", "role"} <= set(given):
        raise EdgepruneError("a role is a set of positions: give 'position' or 'role' in by, not both")
    if "role" in given and not any(batch.roles for batch in problem.batches):
        raise EdgepruneError("these pairs have no roles; use 'position' in by, or a task that names parts of a prompt")
    return tuple(name for name in DIMS if name in given)


def _axes(
    model: MaskedModel, what: Kind, dims: Sequence[str], batches: Sequence[PairBatch]
) -> tuple[_Axes, tuple[tuple[str, ...], ...]]:
    """What the axes run over, and the labels of those in `dims`."""
    arch = model.graph.arch
    layers = list(range(arch.num_layers + (what == "residual")))
    num_heads = arch.num_kv_readers if what in ("k", "v") else arch.num_heads
    length = max(batch.clean.shape[1] for batch in batches)
    choices: dict[str, list[int] | list[str]] = {
        "layer": layers,
        "head": list(range(num_heads)),
        "position": list(range(length)),
        "role": list(dict.fromkeys(name for batch in batches for name in batch.roles)),
    }
    place = next((choices[name] for name in ("position", "role") if name in dims), [None])
    axes = _Axes(
        layers=[[layer] for layer in layers] if "layer" in dims else [layers],
        heads=list(range(num_heads)) if "head" in dims else [None],
        places=list(place),
    )
    names = {name: tuple(map(str, values)) for name, values in choices.items()}
    if what == "residual":
        names["layer"] = (*names["layer"][:-1], "end")
    return axes, tuple(names[name] for name in dims)
