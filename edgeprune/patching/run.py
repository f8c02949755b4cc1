"""The two runs that patching takes values from, and what is measured.

The masked model closes edges, at every position alike. A single position, a query, or the stream between two layers is
no edge, so patching edits a plain run of the model: see `edgeprune.models.block.walk`.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.methods.problem import Problem
from edgeprune.models.block import Site, keeping
from edgeprune.models.masked import MaskedModel

Kind = Literal["residual", "attention_out", "mlp_out", "z", "head_out", "q", "k", "v"]
Direction = Literal["noising", "denoising"]
HEAD_KINDS = ("z", "head_out", "q", "k", "v")
Values = dict[tuple[Site, int], Tensor]


def logits_at(model: MaskedModel, stream: Tensor, positions: Tensor) -> Tensor:
    """Logits `[batch, n, vocab]`, in float32 at least, of a final stream `[batch, seq, d]` at `positions`."""
    logits = model.logits(stream, positions)
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
        ends: The metric of the clean and of the corrupted run, `[batch]`.
    """

    batch: PairBatch
    ids: Tensor
    mask: Tensor
    positions: Tensor
    base: Values
    other: Values
    clean: Tensor
    ends: list[Tensor]


def run_pair(
    problem: Problem, batch: PairBatch, direction: Direction, base: Collection[Site], other: Collection[Site]
) -> Pair:
    """Run both prompts of a batch, which is on the model's device, and keep the values of some sites of each."""
    model = problem.model
    problem.runs.check(batch)
    at_corrupted = batch.positions if batch.alignment is None else batch.alignment.gather(1, batch.positions)
    noising = direction == "noising"
    clean, clean_end = _record(model, batch.clean, batch.attention_mask, base if noising else other)
    corrupted, corrupted_end = _record(model, batch.corrupted, batch.corrupted_mask, other if noising else base)
    corrupted = {key: batch.aligned(value) for key, value in corrupted.items()}  # noising, as `check` saw to it
    ends = logits_at(model, clean_end, batch.positions), logits_at(model, corrupted_end, at_corrupted)
    return Pair(
        batch=batch,
        ids=batch.clean if noising else batch.corrupted,
        mask=batch.attention_mask if noising else batch.corrupted_mask,
        positions=batch.positions,
        base=clean if noising else corrupted,
        other=corrupted if noising else clean,
        clean=ends[0],
        ends=[metric_of(problem, ends[0], logits, batch) for logits in ends],
    )


def _record(model: MaskedModel, ids: Tensor, mask: Tensor, sites: Collection[Site]) -> tuple[Values, Tensor]:
    kept: dict[Site, list[Tensor]] = {site: [] for site in sites}
    stream = model.run(ids, mask, {site: keeping(values) for site, values in kept.items()})
    return {(site, layer): value for site, values in kept.items() for layer, value in enumerate(values)}, stream


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
