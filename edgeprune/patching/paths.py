"""Path patching: what a sender does to receivers directly, and what the model makes of that.

Three runs, all exact: nothing is linearised and no norm is frozen. With r the base run and s the sender,

1. both prompts are run and their values kept;
2. the base prompt with s replaced by its output in the other run, and every head that is no receiver held at its value
   in the base run. MLPs in between are computed anew (`mlps="recompute"`, so that a path may pass through them) or held
   as well (`"freeze"`: the edge itself). What the receivers read here is kept;
3. the base prompt with the receivers reading that, and everything after them computed anew.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, cast, get_args

import torch
from torch import Tensor

from edgeprune.console import Progress, no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.methods.problem import Problem
from edgeprune.models.block import Edits, Site
from edgeprune.models.masked import MaskedModel
from edgeprune.patching.result import PatchingResult, Tally
from edgeprune.patching.run import Direction, Pair, Values, check, logits_at, metric_of, run_pair

Between = Literal["recompute", "freeze"]
ALL_HEADS = "heads"
_READS: tuple[Site, ...] = ("q_proj", "k_proj", "v_proj")  # before norms that heads may share: an edge ends there
_KEPT: tuple[Site, ...] = ("residual", *_READS, "head_out", "mlp_out")


@dataclass(frozen=True)
class _Receivers:
    """Which values of the second run go into the third.

    Attributes:
        names: Readers of the graph.
        reads: For the projections to q, k, v: bool `[layer, head]`, the reads that are receivers.
        heads: Bool `[layer, head]`: query heads that attend with one of these reads.
        mlps: Layers whose MLP is a receiver.
        logits: Whether the logits are.
        first: Layer of the first one.
    """

    names: tuple[str, ...]
    reads: dict[Site, Tensor]
    heads: Tensor
    mlps: frozenset[int]
    logits: bool
    first: int


@torch.no_grad()
def path(
    problem: Problem,
    sender: str | Sequence[str],
    receivers: str | Sequence[str],
    mlps: Between = "recompute",
    *,
    direction: Direction = "noising",
    report: Progress = no_progress,
) -> PatchingResult:
    """Patch the direct paths from each sender to the receivers.

    Receivers that are upstream of other receivers are computed anew in the second run, so that the later ones see what
    the earlier ones made of the sender. With one receiver (or several of one layer) and `mlps="freeze"` the result is
    that of closing the edges from the sender to them, which the masked model does at less cost.

    Args:
        problem: Model, pairs and metric. Values come from the corrupted prompts, so the ablation must be interchange.
        sender: A writer (`a3.h7`, `m3`, `embed`), several to be patched one at a time, or `"heads"`: every head. Heads
            before no receiver then have no value (NaN).
        receivers: Readers (`a5.h1.q`, `m5`, `logits`), or heads (`a5.h1`: its q, k and v).
        mlps: MLPs between sender and receivers: `"recompute"` or `"freeze"`.
        direction: `noising`: the sender carries its corrupted value in the clean run. `denoising`: the other way round.
        report: Called with what is being done, how many of it are done, and how many there are.

    Returns:
        The metric per sender; for `"heads"` with axes layer and head.

    Raises:
        EdgepruneError: An unknown name or option, a receiver that reads before the sender writes, or pairs made for
            another model.
    """
    check(problem, direction)
    if mlps not in get_args(Between):
        raise EdgepruneError(f"mlps must be one of {', '.join(get_args(Between))}, got {mlps!r}")
    model, graph = problem.model, problem.model.graph
    named = [receivers] if isinstance(receivers, str) else list(receivers)
    chosen = _receivers(graph, named, model.device)
    senders, dims, labels = _senders(graph, sender, chosen)
    tally = Tally(len(senders))
    writers = [(number, name) for number, name in enumerate(senders) if name is not None]
    done, total = 0, len(writers) * len(problem.batches)
    for batch in problem.batches:
        moved = batch.to(model.device)
        pair = run_pair(problem, moved, direction, _KEPT, ("head_out", "mlp_out"))
        every = torch.ones(len(moved), dtype=torch.bool, device=model.device)
        for number, name in writers:
            logits = _three_runs(model, pair, _Sender.named(name, model, pair, direction), chosen, mlps)
            tally.add(number, (metric_of(problem, pair.clean, logits, moved), *pair.ends), every)
            done += 1
            report("patching paths", done, total)
    about = {"receivers": list(chosen.names), "mlps": mlps}
    return tally.result(problem, dims, labels, f"paths to {', '.join(named)}", direction, about)


# -------------------------------------------------------------------- the runs
@dataclass(frozen=True)
class _Sender:
    """One writer and what it puts out in the other run.

    Attributes:
        site: `head_out` for a head, `mlp_out`, or `residual` for an embedding.
        layer: Where it is.
        head: Its number in the layer, for a head.
        value: `[batch, seq, c or d]`; for an embedding the difference from the base run.
    """

    site: Site
    layer: int
    head: int
    value: Tensor

    @classmethod
    def named(cls, name: str, model: MaskedModel, pair: Pair, direction: Direction) -> "_Sender":
        if name.startswith("a"):
            layer, head = (int(part[1:]) for part in name.split("."))
            return cls("head_out", layer, head, pair.other["head_out", layer][:, :, head])
        if name.startswith("m"):
            return cls("mlp_out", int(name[1:]), 0, pair.other["mlp_out", int(name[1:])])
        batch, row = pair.batch, model.graph.writers.index(name)
        clean = model.start(batch.clean, batch.attention_mask)[0][row]
        corrupted = batch.aligned(model.start(batch.corrupted, batch.corrupted_mask)[0][row])
        return cls("residual", 0, 0, corrupted - clean if direction == "noising" else clean - corrupted)

    def put(self, site: Site, layer: int, value: Tensor) -> Tensor:
        """The value of a site, with this writer's part replaced."""
        if (site, layer) != (self.site, self.layer):
            return value
        if site == "residual":
            return value + self.value
        if site == "mlp_out":
            return self.value
        value = value.clone()
        value[:, :, self.head] = self.value
        return value


def _three_runs(model: MaskedModel, pair: Pair, sender: _Sender, receivers: _Receivers, mlps: Between) -> Tensor:
    """Logits `[batch, n, vocab]` of the third run; the first is in `pair`."""
    read: Values = {}

    def second(site: Site, layer: int, value: Tensor) -> Tensor:
        if site in receivers.reads:
            value = torch.where(_column(receivers.reads[site][layer]), value, pair.base[site, layer])
        elif site == "head_out":
            value = torch.where(_column(receivers.heads[layer]), value, pair.base[site, layer])
        elif site == "mlp_out" and mlps == "freeze" and layer not in receivers.mlps:
            value = pair.base[site, layer]
        read[site, layer] = value = sender.put(site, layer, value)
        return value

    def third(site: Site, layer: int, value: Tensor) -> Tensor:
        if site in receivers.reads:
            return torch.where(_column(receivers.reads[site][layer]), read[site, layer], value)
        return read[site, layer] if layer in receivers.mlps else value

    def stream_after(edit: Callable[[Site, int, Tensor], Tensor], sites: Sequence[Site], first: int) -> Tensor:
        edits: Edits = {site: partial(edit, site) for site in sites}
        return model.run(pair.ids, pair.mask, edits, first=first, stream=pair.base["residual", first])

    stream = stream_after(second, _KEPT, sender.layer)
    if not receivers.logits:
        first = max(receivers.first, sender.layer)  # receivers before the sender are untouched by it
        stream = stream_after(third, (*_READS, "mlp_out"), first)
    return logits_at(model, stream, pair.positions)


def _column(heads: Tensor) -> Tensor:
    """Bool `[head]` as `[head, 1]`, to choose among values `[batch, seq, head, c]`."""
    return heads[:, None]


# -------------------------------------------------------------------- names
def _receivers(graph: EdgeGraph, names: Iterable[str], device: torch.device) -> _Receivers:
    arch, first = graph.arch, graph.arch.num_layers
    readers = tuple(dict.fromkeys(reader for name in names for reader in _readers(graph, name)))
    if not readers:
        raise EdgepruneError("there are no receivers; name at least one, such as 'logits'")
    sizes = dict(zip(_READS, arch.reader_counts, strict=True))
    reads: dict[Site, Tensor] = {
        site: torch.zeros(arch.num_layers, size, dtype=torch.bool, device=device) for site, size in sizes.items()
    }
    mlps: set[int] = set()
    for name in readers:
        layer = arch.num_layers if name == "logits" else int(name.split(".")[0][1:])
        first = min(first, layer)
        if name.startswith("m"):
            mlps.add(layer)
        elif name != "logits":
            _, head, kind = name.split(".")
            reads[cast("Site", f"{kind}_proj")][layer, int(head[1:])] = True
    heads = reads["q_proj"].clone()
    for site in ("k_proj", "v_proj"):
        heads |= reads[site].repeat_interleave(arch.heads_per_kv_reader, dim=1)
    return _Receivers(readers, reads, heads, frozenset(mlps), "logits" in readers, first)


def _readers(graph: EdgeGraph, name: str) -> list[str]:
    """A reader by its name, or the three of a head."""
    arch = graph.arch
    if name in graph.writers and name.startswith("a"):
        layer, head = name.split(".")
        shared = arch.kv_reader_of(int(head[1:]))
        return [f"{name}.q", f"{layer}.h{shared}.k", f"{layer}.h{shared}.v"]
    if name not in graph.readers:
        graph.index(f"{graph.writers[0]}->{name}")  # names the nearest reader
    return [name]


def _senders(
    graph: EdgeGraph, sender: str | Sequence[str], receivers: _Receivers
) -> tuple[list[str | None], tuple[str, ...], tuple[tuple[str, ...], ...]]:
    """Writers (None: before no receiver), names of the axes, and their labels."""
    arch = graph.arch
    if sender == ALL_HEADS:
        seen = max(graph.num_visible[graph.readers.index(name)] for name in receivers.names)
        heads = [name for name in graph.writers if name.startswith("a")]
        columns = tuple(map(str, range(arch.num_heads)))
        layers = tuple(map(str, range(arch.num_layers)))
        return [n if graph.writers.index(n) < seen else None for n in heads], ("layer", "head"), (layers, columns)
    senders = [sender] if isinstance(sender, str) else list(sender)
    if not senders or len(set(senders)) < len(senders):
        raise EdgepruneError(f"name one sender or several different ones, got {senders}")
    for name in senders:
        for receiver in receivers.names:
            graph.index(f"{name}->{receiver}")
    return list(senders), ("sender",), (tuple(senders),)
