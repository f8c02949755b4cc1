"""How much memory a run with gates on weights will need: see `memory.py`, whose terms are those of gates on edges."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from edgeprune.batch import PairBatch
from edgeprune.memory import EVALUATION_LOGITS, LOSS_LOGITS, PROBE_TOKENS, BatchShape, Loss
from edgeprune.models.gated_weights import logits_with
from edgeprune.models.masked import MaskedModel
from edgeprune.models.sharding import storage_key

GATE_TENSORS = 4  # float32 tensors with a number for each gate: logits, two gradients, expected density
MOMENTS = 2  # of AdamW, likewise
ALL_LOGITS = 2  # of all positions, in the model's dtype: the library's forward makes them, and their gradient


def training_terms(
    model: MaskedModel, names: Sequence[str], gates: int, shape: BatchShape, activations: int
) -> dict[str, int]:
    """Bytes at the peak of a training step.

    Args:
        model: The model.
        names: Of the gated parameters.
        gates: How many there are.
        shape: Of the batch; `masks` groups of it are run one after the other.
        activations: Bytes per example that autograd keeps: see `activations_per_example`.
    """
    group = -(-shape.batch // shape.masks)
    return {
        **_gates(gates),
        "gradients": (GATE_TENSORS - 1) * 4 * gates,
        "noise": 4 * gates,
        "gated weights": 2 * _weights(model, names),  # and the gradient
        "activations": activations * group,
        "logits": _logits(model, replace(shape, batch=group), LOSS_LOGITS),
    }


def evaluation_terms(
    model: MaskedModel, names: Sequence[str], gates: int, shape: BatchShape, activations: int
) -> dict[str, int]:
    """Bytes at the peak of a run without gradients; arguments as in `training_terms`."""
    return {
        **_gates(gates),
        "gated weights": _weights(model, names),
        "activations": activations * shape.batch // model.graph.arch.num_layers,
        "logits": _logits(model, shape, EVALUATION_LOGITS),
    }


def _gates(number: int) -> dict[str, int]:
    """What stays from step to step."""
    return {"gates": 4 * number, "optimizer": MOMENTS * 4 * number}


def _weights(model: MaskedModel, names: Sequence[str]) -> int:
    named = dict(model.hf.named_parameters())
    return sum(named[name].nbytes for name in names)


def _logits(model: MaskedModel, shape: BatchShape, copies: float) -> int:
    everywhere = ALL_LOGITS * shape.tokens * model.dtype.itemsize
    return model.num_outputs * (everywhere + int(copies * 4) * shape.batch * shape.positions)


def activations_per_example(model: MaskedModel, names: Sequence[str], shape: BatchShape, loss: Loss) -> int:
    """Bytes that autograd keeps for the backward of one example, found out by running one and two of them.

    Args:
        model: The model.
        names: Of the gated parameters.
        shape: Of the batch; its number of examples does not matter. Longer ones are scaled up from 128 tokens.
        loss: What is differentiated.
    """
    seq = min(shape.seq, PROBE_TOKENS)
    small = replace(shape, seq=seq, positions=min(shape.positions, seq))
    one, two = (_kept_by_autograd(model, names, replace(small, batch=batch), loss) for batch in (1, 2))
    return (two - one) * shape.seq // seq


def _kept_by_autograd(model: MaskedModel, names: Sequence[str], shape: BatchShape, loss: Loss) -> int:
    own = dict(model.hf.named_parameters())
    gated = {name: own[name].detach().clone().requires_grad_() for name in names}
    known = {storage_key(tensor) for tensor in (*own.values(), *gated.values(), *model.hf.buffers())}
    found: dict[StorageWeakRef, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if (key := storage_key(tensor)) not in known:
            found[key] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = logits_with(model, gated, _zeros(model, shape))
        kept = loss(logits.detach(), logits).mean()
    del kept
    return sum(found.values())


def _zeros(model: MaskedModel, shape: BatchShape) -> PairBatch:
    """A batch of the shape, its tokens all 0."""
    ids = torch.zeros(shape.batch, shape.seq, dtype=torch.long, device=model.device)
    positions = torch.arange(shape.positions, device=model.device).expand(shape.batch, -1)
    return PairBatch(
        clean=ids,
        corrupted=ids,
        attention_mask=torch.ones_like(ids),
        positions=positions,
        position_mask=torch.ones_like(positions, dtype=torch.bool),
        targets=torch.zeros_like(positions),
        distractors=torch.zeros_like(positions),
        index=torch.arange(shape.batch),
    )
