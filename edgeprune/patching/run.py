"""A plain run of the model in which any value on the way can be looked at and replaced.

The masked model closes edges, at every position alike. A single position, a query, or the stream between two layers is
no edge, so patching has a run of its own over the same leaves. It may start at any layer from a stream that is known.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.methods.problem import Problem
from edgeprune.models.masked import MaskedModel

Kind = Literal["residual", "attention_out", "mlp_out", "z", "q", "k", "v"]
Direction = Literal["noising", "denoising"]
HEAD_KINDS = ("z", "q", "k", "v")
Edit = Callable[[Kind, int, Tensor], Tensor]  # kind, layer, value; returns the value to go on with
Values = dict[tuple[Kind, int], Tensor]


def run(
    model: MaskedModel,
    ids: Tensor,
    mask: Tensor | None,
    edit: Edit,
    first: int = 0,
    stream: Tensor | None = None,
) -> Tensor:
    """Run the model and return the stream before the final norm, `[batch, seq, d]`.

    `edit` sees every value in the order of computation: `residual` (the stream before each layer, and the end as layer
    `num_layers`), `attention_out` and `mlp_out` are `[batch, seq, d]`; `q` and `z` are `[batch, seq, head, c]`, with
    one head per reader of the graph in `k` and `v`. Queries and keys are those before rotary positions.

    Args:
        model: The model.
        ids: Tokens, long `[batch, seq]`.
        mask: 1 for a token, 0 for padding, long `[batch, seq]`.
        edit: Looks at a value and returns it or another one.
        first: Layer to begin with.
        stream: The stream before that layer, `[batch, seq, d]`; needed where `first` is not 0.
    """
    family, arch = model.family, model.graph.arch
    _, start, context = model._start(ids, mask)
    stream = start if stream is None else stream
    for layer in range(first, arch.num_layers):
        stream = before = edit("residual", layer, stream)
        flat = model._repeat_kv(family.qkv(layer, family.attention_norm(layer)(stream)))
        sizes = (arch.num_heads, arch.num_kv_readers, arch.num_kv_readers)
        q, k, v = (part.unflatten(-1, (size, -1)) for part, size in zip(flat, sizes, strict=True))
        reads = edit("q", layer, q), edit("k", layer, k), edit("v", layer, v)
        values = edit("z", layer, family.attend(layer, *(part.flatten(2) for part in reads), context))
        stream = stream + edit("attention_out", layer, family.attention_output(layer, values))
        if arch.has_mlp:
            mlp = family.mlp(layer, before if arch.parallel_blocks else stream)
            stream = stream + edit("mlp_out", layer, mlp)
    return edit("residual", arch.num_layers, stream)


def logits_at(model: MaskedModel, stream: Tensor, positions: Tensor) -> Tensor:
    """Logits `[batch, n, vocab]`, in float32 at least, of a final stream `[batch, seq, d]` at `positions`."""
    rows = torch.arange(len(stream), device=stream.device)[:, None]
    logits = model.family.finish(stream[rows, positions])
    return logits if logits.dtype == torch.float64 else logits.float()


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Both runs of one batch: the base, in which sites are replaced, and where the replacements come from.

    Attributes:
        batch: The pairs.
        ids: Tokens of the base run, long `[batch, seq]`.
        mask: 1 for a token of the base run, 0 for padding.
        positions: Where the base run is scored, long `[batch, n]`.
        base: Values of the base run.
        other: Values of the other run, at the positions of the base run.
        clean: Logits of the clean run, `[batch, n, vocab]`.
        corrupted: Logits of the corrupted run, likewise.
    """

    batch: PairBatch
    ids: Tensor
    mask: Tensor
    positions: Tensor
    base: Values
    other: Values
    clean: Tensor
    corrupted: Tensor


def run_pair(
    model: MaskedModel, batch: PairBatch, direction: Direction, base: Collection[Kind], other: Collection[Kind]
) -> Pair:
    """Run both prompts of a batch and keep the values of the kinds asked for."""
    rows, aligned = torch.arange(len(batch), device=batch.clean.device)[:, None], batch.alignment
    at_corrupted = batch.positions if aligned is None else aligned[rows, batch.positions]
    noising = direction == "noising"
    clean, clean_end = _record(model, batch.clean, batch.attention_mask, base if noising else other)
    corrupted, corrupted_end = _record(model, batch.corrupted, batch.corrupted_mask, other if noising else base)
    if aligned is not None:  # noising, as `check` saw to it
        corrupted = {key: value[rows, aligned] for key, value in corrupted.items()}
    return Pair(
        batch=batch,
        ids=batch.clean if noising else batch.corrupted,
        mask=batch.attention_mask if noising else batch.corrupted_mask,
        positions=batch.positions,
        base=clean if noising else corrupted,
        other=corrupted if noising else clean,
        clean=logits_at(model, clean_end, batch.positions),
        corrupted=logits_at(model, corrupted_end, at_corrupted),
    )


def _record(model: MaskedModel, ids: Tensor, mask: Tensor, kinds: Collection[Kind]) -> tuple[Values, Tensor]:
    values: Values = {}

    def keep(kind: Kind, layer: int, value: Tensor) -> Tensor:
        if kind in kinds:
            values[kind, layer] = value
        return value

    return values, run(model, ids, mask, keep)


def check(problem: Problem, direction: str) -> None:
    """Refuse a direction that does not exist, or that the pairs do not allow."""
    if direction not in get_args(Direction):
        raise EdgepruneError(f"direction must be one of {', '.join(get_args(Direction))}, got {direction!r}")
    if problem.runs.ablation != "interchange":
        raise EdgepruneError(
            f"patching takes values from the corrupted run, the ablation is {problem.runs.ablation!r}; "
            "use ablation 'interchange'"
        )
    if direction == "denoising" and any(batch.alignment is not None for batch in problem.batches):
        raise EdgepruneError(
            "denoising needs prompts of equal length: several clean positions may stand for one corrupted one; "
            "use direction 'noising'"
        )


def metric_of(problem: Problem, full: Tensor, logits: Tensor, batch: PairBatch) -> Tensor:
    """The metric of each example, `[batch]`, in its own sign: a loss that is the negative of it is turned round."""
    losses = problem.losses(full, logits, batch).double()
    return -losses if problem.metric == "logit_difference" else losses
