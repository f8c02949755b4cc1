"""Direct logit attribution: what each writer of a circuit adds to the answer itself, past all later layers.

The input of the logits is a sum: of each writer's output where its edge into `logits` is open, of its ablated value
where that is closed, and of the output biases of attention, which no writer owns (docs/decisions/0004). With the scale
s of the final norm frozen at what it is in this run, the logits are linear in that sum,

    logits = A x / s + b,        A x = head of (weight * (x - mean(x)))   (RMSNorm: no mean; no norm: s = 1)        (1)

so that a direction u of the logits, such as e_right - e_wrong, falls apart into one number u . A x_w / s for each
writer, one for the biases of attention, and u . b for those of the norm and head. They sum to u . logits.

`A` and `s` are found from the adapter's `finish` alone: for a norm with s(x)^2 = mean square + eps its derivative at
x = 0 is A / sqrt(eps), exactly, and s is the one number by which that derivative must be scaled to give this run's
logits. A head that is not linear after its norm, such as one with a cap on its logits, is refused.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

import torch
from rich.table import Table
from torch import Tensor

from edgeprune.batch import IGNORE, PairBatch
from edgeprune.circuit import Circuit
from edgeprune.circuit_views import library
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.json_numbers import json_value
from edgeprune.models.circuit_run import CircuitRun
from edgeprune.models.outputs import output_biases
from edgeprune.nodes import writer_kind
from edgeprune.tables import Numbers, table

if TYPE_CHECKING:
    import pandas

LOGIT_DIFFERENCE, TARGET = "logit_difference", "target"
ATTENTION_BIAS, HEAD_BIAS = "attention biases", "final biases"
_COLUMNS = ("writer", "kind", "kept", "own", "ablated", "deviation", "full")
_SHOWN_ROWS = 20


@final
@dataclass(frozen=True, eq=False)
class DirectAttribution:
    """What each writer adds to one direction of the logits, example by example.

    Means over an example's scored positions. Rows are all writers in the graph's order, then `ATTENTION_BIAS` (of all
    layers) and `HEAD_BIAS` (of the final norm and the head). The biases of an MLP are its own.

    Attributes:
        rows: Names, R of them.
        kept: Whether the writer's edge into `logits` is open, bool `[R]`; True for biases.
        values: What the row adds in the circuit, float64 `[R, example]`: the writer's own output where its edge is
            open, its ablated value where it is closed.
        full: What it adds in the full model's run, with the scale of that run, float64 `[R, example]`.
        logits: The direction in the circuit's logits, float64 `[example]`; the sum of `values` up to rounding.
        full_logits: The same of the full model.
        direction: `logit_difference`, `target` or `given`.
        index: Number of each example in its split, long `[example]`.
    """

    rows: tuple[str, ...]
    kept: Tensor
    values: Tensor
    full: Tensor
    logits: Tensor
    full_logits: Tensor
    direction: str
    index: Tensor

    @property
    def own(self) -> Tensor:
        """The part of open edges and biases, `[R, example]`; 0 in the other rows."""
        return self.values * self.kept[:, None]

    @property
    def ablated(self) -> Tensor:
        """The part of closed edges, `[R, example]`; 0 in the other rows."""
        return self.values * ~self.kept[:, None]

    def table(self) -> list[dict[str, Any]]:
        """A row for each writer and bias, those that add most first.

        Returns:
            Each with `writer`, `kind` (`embed`, `head`, `mlp`, `bias`), `kept`, `own`, `ablated` (means over examples;
            one of them is 0), `deviation` (over examples; NaN of a single one) and `full`.
        """
        deviation = self.values.std(1) if self.values.shape[1] > 1 else torch.full((len(self.rows),), math.nan)
        parts = (self.own.mean(1), self.ablated.mean(1), deviation, self.full.mean(1))
        kinds = ["bias" if name in (ATTENTION_BIAS, HEAD_BIAS) else writer_kind(name) for name in self.rows]
        values = zip(self.rows, kinds, self.kept.tolist(), *(part.tolist() for part in parts), strict=True)
        found = [dict[str, Any](zip(_COLUMNS, row, strict=True)) for row in values]
        return sorted(found, key=lambda row: -abs(row["own"] + row["ablated"]))

    def to_dataframe(self) -> "pandas.DataFrame":
        """`table` as a table of pandas, a library of the extra `analysis`."""
        return library("pandas").DataFrame(self.table(), columns=list(_COLUMNS))

    def to_dict(self) -> dict[str, Any]:
        """Plain values: `rows` as in `table`; all others are means, `own` and `ablated` the parts of `logits`."""
        own, ablated = self.own.sum(0), self.ablated.sum(0)
        sums = {"logits": self.logits, "full_logits": self.full_logits, "own": own, "ablated": ablated}
        means = {name: float(values.mean()) for name, values in sums.items()}
        rows = json_value(self.table())
        return {"direction": self.direction, "num_examples": len(self.index), **means, "rows": rows}

    def __repr__(self) -> str:
        logits, own, ablated = (float(part.mean()) for part in (self.logits, self.own.sum(0), self.ablated.sum(0)))
        return (
            f"DirectAttribution({self.direction} {logits:.3f} = {own:.3f} by open edges and biases + {ablated:.3f} by "
            f"closed ones, {len(self.index)} examples)"
        )

    def __rich__(self) -> Table:
        parts = [Numbers("own", signed=True), Numbers("ablated", signed=True)]
        columns = ["writer", *parts, Numbers("deviation"), Numbers("full model", signed=True)]
        rows = [
            [row["writer"], *(row[name] or "" for name in ("own", "ablated")), row["deviation"], row["full"]]
            for row in self.table()[:_SHOWN_ROWS]
        ]
        return table(repr(self), columns, rows)


# -------------------------------------------------------------------- from runs
def direct_attribution(
    evaluator: Evaluator, circuit: Circuit, direction: str | Tensor = LOGIT_DIFFERENCE
) -> DirectAttribution:
    """What each writer adds directly to the answer in a circuit's run.

    Args:
        evaluator: Model, ablation and pairs.
        circuit: The circuit.
        direction: `"logit_difference"` (the right answer's logit minus the distractor's), `"target"` (the right
            answer's logit), or weights of the logits, `[vocab]`.

    Raises:
        EdgepruneError: The circuit is of another graph, the direction is not defined for an example, or the model's
            head is not linear after its norm.
    """
    circuit.require_no_roles("direct attribution")
    circuit.check_fits(evaluator.graph)
    model = evaluator.model
    parts: list[list[Tensor]] = []
    for batch in evaluator.batches:
        batch = batch.to(model.device)
        _, ablated = evaluator.runs(batch, evaluator.split)
        runs = [CircuitRun(model, batch, ablated, keep) for keep in (circuit.keep, model.graph.exists)]
        vectors, weights = _directions(batch, runs[0].logits.shape[-1], direction)
        parts.append([part for run in runs for part in _attribute(run, vectors.to(model.dtype), weights)])
    values, logits, full, full_logits = (torch.cat(some, -1) for some in zip(*parts, strict=True))
    biases = torch.ones(2, dtype=torch.bool)
    return DirectAttribution(
        rows=(*model.graph.writers, ATTENTION_BIAS, HEAD_BIAS),
        kept=torch.cat([circuit.keep[-1], biases]),
        values=values,
        full=full,
        logits=logits,
        full_logits=full_logits,
        direction=direction if isinstance(direction, str) else "given",
        index=torch.cat([batch.index for batch in evaluator.batches]).cpu(),
    )


def _directions(batch: PairBatch, vocab: int, direction: str | Tensor) -> tuple[Tensor, Tensor]:
    """Directions `[batch, positions, vocab]`, and what each position counts, float64 `[batch, positions]`."""
    right, wrong, mask = batch.targets, batch.distractors, batch.position_mask
    if isinstance(direction, Tensor):
        if tuple(direction.shape) != (vocab,):
            raise EdgepruneError(f"a direction has one weight for each of {vocab} logits, got {tuple(direction.shape)}")
        vectors = direction.to(mask.device).expand(*mask.shape, -1)
    elif direction in (LOGIT_DIFFERENCE, TARGET):
        mask = mask & (right != IGNORE)
        vectors = torch.zeros(*mask.shape, vocab, device=mask.device)
        vectors.scatter_(-1, right.clamp(min=0)[..., None], 1.0)
        if direction == LOGIT_DIFFERENCE:
            mask = mask & (wrong != IGNORE)
            vectors.scatter_add_(-1, wrong.clamp(min=0)[..., None], torch.full_like(vectors[..., :1], -1.0))
    else:
        raise EdgepruneError(f"direction must be {LOGIT_DIFFERENCE!r}, {TARGET!r} or a tensor, got {direction!r}")
    if not mask.any(1).all():
        first = int(batch.index[~mask.any(1)][0])
        raise EdgepruneError(
            f"pair {first} has no {'right and wrong' if direction == LOGIT_DIFFERENCE else 'right'} answer, so "
            f"{direction!r} is not defined; give another direction"
        )
    return vectors, mask.double() / mask.sum(1, keepdim=True)


def _attribute(run: CircuitRun, vectors: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Contributions `[row, batch]` and the direction in the logits `[batch]`, float64 on the CPU."""
    slopes, final = _frozen_head(run, vectors)
    outputs = _outputs(run)
    kept = run.keep[-1].to(outputs.device)[:, None, None]
    written = torch.where(kept, outputs, outputs + run.delta[:, run.tokens])
    found = torch.cat([written, output_biases(run.model).sum(0).expand_as(written[:1])])
    added = torch.einsum("rpd,pd->rp", found.double(), slopes)
    added = torch.cat([added, final[None]]).view(len(found) + 1, *weights.shape)
    logits = (run.logits.double() * vectors).sum(-1)
    return ((added * weights).sum(-1).cpu(), (logits * weights).sum(-1).cpu())


def _frozen_head(run: CircuitRun, vectors: Tensor) -> tuple[Tensor, Tensor]:
    """For every scored position u A / s, float64 `[P, D]`, and u b, `[P]`: see (1)."""
    finish, last = run.model.logits, run.last
    vectors = vectors.flatten(0, 1)
    nothing = torch.zeros_like(last).requires_grad_()
    with torch.enable_grad():
        constant = finish(nothing)
    logits = finish(last) - constant.detach()
    towards, slopes = (
        torch.autograd.grad(constant, nothing, one, retain_graph=again)[0].double()
        for one, again in ((logits, True), (vectors, False))
    )
    whole = logits.double().square().sum(-1)
    scale = (whole / (towards * last.double()).sum(-1)).where(whole > 0, 1.0)
    slopes = scale[:, None] * slopes
    found, expected = (slopes * last.double()).sum(-1), (vectors * logits).double().sum(-1)
    allowed = math.sqrt(torch.finfo(last.dtype).eps) * (1 + logits.double().abs().amax(-1) * vectors.abs().sum(-1))
    if not ((found - expected).abs() <= allowed).all():
        raise EdgepruneError(
            "the model's logits are not linear in its final norm's output (a cap on logits, for one), so no direct "
            "attribution sums to them; look at the effects of edges instead"
        )
    return slopes, (vectors * constant.detach()).double().sum(-1)


def _outputs(run: CircuitRun) -> Tensor:
    """What every writer puts out in the run at the scored positions, `[writer, P, D]`."""
    model, tokens = run.model, run.tokens
    embeddings = model.embeddings(run.batch.clean, run.batch.attention_mask)
    outputs: list[Tensor] = [part.flatten(0, 1)[tokens] for part in embeddings]
    for layer, values in enumerate(run.layers):
        heads = values.heads[tokens].transpose(0, 1)
        outputs += list(torch.bmm(heads, model.blocks[layer].output_weight()))
        if values.mlp is not None:
            outputs.append(values.mlp[tokens])
    return torch.stack(outputs)
