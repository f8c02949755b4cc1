"""Small problems to try methods on: tiny random models and a compiled one that is linear in its residual stream."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datamodules.collate import collate
from datamodules.tasks.base import TokenPair
from datamodules.tasks.compiled import CompiledTask
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.compiled import CompiledConfig, CompiledTransformer
from edgeprune.graph import EdgeGraph
from edgeprune.methods.problem import Metric, Problem
from edgeprune.models.family import registry
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from tests.models.test_conformance import VOCAB, build


def random_pairs(number: int = 5, seed: int = 0) -> list[TokenPair]:
    """Pairs of different lengths, with one or two scored positions."""
    generator = torch.Generator().manual_seed(seed)

    def draw(size: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, VOCAB, (size,), generator=generator).tolist())

    pairs: list[TokenPair] = []
    for index in range(number):
        length = 4 + index % 3
        positions = (length - 1,) if index % 2 else (length - 2, length - 1)
        clean, corrupted, answers = draw(length), draw(length), draw(2 * len(positions))
        pairs.append(TokenPair(clean, corrupted, positions, answers[::2], answers[1::2]))
    return pairs


def problem(
    model: MaskedModel,
    pairs: Sequence[TokenPair] | None = None,
    *,
    cuts: Sequence[int] = (2, 4),
    metric: Metric = "logit_difference",
    ablation: str = "interchange",
) -> Problem:
    """Pairs in batches that end at `cuts` and at the end."""
    examples = list(enumerate(random_pairs() if pairs is None else pairs))
    ends = [*(cut for cut in cuts if cut < len(examples)), len(examples)]
    batches = [collate(examples[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]
    return Problem(model, batches, ReferenceRuns(model, ablation, 1.0), metric)


def tiny(name: str = "gpt2", index: int = 0, **options: Any) -> MaskedModel:
    """A tiny random model in double precision."""
    return build(registry()[name], index, **options)


def linear_model() -> MaskedModel:
    """Three layers of attention without norms or MLPs whose patterns are uniform: linear in every single edge."""
    torch.manual_seed(0)
    config = CompiledConfig(
        vocab_size=VOCAB, d_out=VOCAB, hidden_size=24, num_hidden_layers=3, num_attention_heads=3, intermediate_size=0
    )
    hf = CompiledTransformer(config)
    for parameter in hf.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    for layer in hf.layers:
        for parameter in layer.attn.q_proj.parameters():
            parameter.data.zero_()
    return MaskedModel(hf.double().eval(), split_embedding=True)


def without_biases(model: MaskedModel) -> MaskedModel:
    """The same model with every bias 0, those of norms, experts and bounds of activations too."""
    for name, parameter in model.hf.named_parameters():
        if name.endswith("bias"):
            parameter.data.zero_()
    return model


def compiled_problem(name: str, ablation: str = "interchange", number: int = 40) -> Problem:
    """Pairs of a compiled program, judged by squared error."""
    pairs = CompiledTask(name).splits(None)["train"][:number]
    model = load_model(f"compiled:{name}")
    return problem(model, pairs, cuts=(16, 32), metric="squared_error", ablation=ablation)


def cuts(graph: EdgeGraph, scores: Tensor) -> list[float]:
    """Sums of scores over all edges that cross from before a layer to it and behind it, and into the logits."""
    layers = range(graph.arch.num_layers)
    found = [scores[graph.first_reader(layer) :, : graph.first_writer(layer)].sum().item() for layer in layers]
    return [*found, scores[-1].sum().item()]
