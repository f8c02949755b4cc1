"""The plain model with gates on its weights: which parameters are gated, and the run with others in their place."""

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call

from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.models.masked import MaskedModel
from edgeprune.models.places import position_ids


def gated_names(model: MaskedModel, patterns: Sequence[str] | None = None) -> list[str]:
    """Names of the parameters that are gated, in the model's order.

    Args:
        model: The model.
        patterns: Shell patterns such as `*mlp*`; a parameter is gated that fits one of them. None: every matrix inside
            the layers, those of attention and MLP; no biases, norms, embeddings.

    Raises:
        EdgepruneError: A pattern fits no parameter.
    """
    named = dict(model.hf.named_parameters())
    if patterns is None:
        inside = {id(weight) for block in model.blocks for weight in block.module.parameters()}
        return [name for name, weight in named.items() if weight.ndim > 1 and id(weight) in inside]
    for pattern in patterns:
        if not fnmatch.filter(named, pattern):
            raise EdgepruneError(f"no weight of the model fits {pattern!r}; they are named like {next(iter(named))!r}")
    if not patterns:
        raise EdgepruneError("tensors is empty, so no weight would be gated; name some, or leave it out")
    return [name for name in named if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]


def logits_with(model: MaskedModel, weights: Mapping[str, Tensor], batch: PairBatch) -> Tensor:
    """Logits of the plain model with some parameters replaced, at the scored positions, `[batch, positions, vocab]`.

    It is the library's own forward, float32 or better at its end; gradients reach what is put in.

    Args:
        model: The model.
        weights: By name of the parameter, of its shape `[...]`.
        batch: The pairs, of which the clean prompts are run.
    """
    options = {"position_ids": position_ids(batch.clean, batch.attention_mask), "use_cache": False}
    inputs = {"input_ids": batch.clean, "attention_mask": batch.attention_mask, **options}
    run: Any = functional_call(model.hf, dict(weights), (), inputs)
    logits = MaskedModel.at(run.logits, batch.positions)
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
