"""Run circuits on pairs: every circuit sees the same full and ablated runs, which are made once per batch."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.metrics.faithfulness import faithfulness
from edgeprune.models.masked import MaskedModel
from edgeprune.models.runs import ReferenceRuns
from edgeprune.models.states import WriterStates


def gated_logits(model: MaskedModel, batch: PairBatch, gates: Tensor, ablated: WriterStates) -> Tensor:
    """Logits of the gated model at the scored positions, `[batch, positions, vocab]`, in float32."""
    return model(batch.clean, gates, ablated, batch.attention_mask, batch.positions).float()


@torch.no_grad()
def evaluate_gates(
    model: MaskedModel, runs: ReferenceRuns, batches: Iterable[PairBatch], gates: Sequence[Tensor], split: str
) -> list[dict[str, float]]:
    """Faithfulness of each gate matrix `[reader, writer]` over all batches.

    Returns:
        Per matrix: `kl`, `squared_error`, `logit_difference`, `accuracy`, `exact_match`, and `num_examples`.
    """
    metrics = [faithfulness() for _ in gates]
    num_examples = 0
    for batch in batches:
        batch = batch.to(model.device)
        num_examples += len(batch)
        full, ablated = runs(batch, split)
        for matrix, metric in zip(gates, metrics, strict=True):
            circuit = gated_logits(model, batch, matrix.to(model.device), ablated)
            metric.to(model.device).update(full, circuit, batch)
    return [
        {name: float(value) for name, value in metric.compute().items()} | {"num_examples": num_examples}
        for metric in metrics
    ]
