"""Small evaluators to read circuits on: tiny random models of every family, prompts of unequal length with roles."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from datamodules.collate import collate
from datamodules.tasks.base import TokenPair
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.circuit import Circuit
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.models.masked import MaskedModel
from tests.models.test_conformance import VOCAB

SPANS = {"IO": (1, 2), "S1": (2, 4), "S2": (3, 5)}  # S1 and S2 share token 3


def pairs(number: int = 5, roles: dict[str, tuple[int, int]] | None = None) -> list[TokenPair]:
    """Prompts of 6 to 8 tokens; every second one is scored at its last two positions."""
    generator = torch.Generator().manual_seed(4)

    def draw(size: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, VOCAB, (size,), generator=generator).tolist())

    found: list[TokenPair] = []
    for index in range(number):
        size = 6 + index % 3
        positions = (size - 1,) if index % 2 else (size - 2, size - 1)
        answers = draw(2 * len(positions))
        given = SPANS if roles is None else roles
        found.append(TokenPair(draw(size), draw(size), positions, answers[::2], answers[1::2], roles=given))
    return found


def evaluator(model: MaskedModel, ablation: str = "interchange", examples: Sequence[TokenPair] | None = None) -> Any:
    """Pairs in batches of three and two."""
    numbered = list(enumerate(pairs() if examples is None else examples))
    batches = [collate(part) for part in (numbered[:3], numbered[3:]) if part]
    return Evaluator(model, ReferenceRuns(model, ablation, 1.0), batches)


def some_edges(model: MaskedModel, share: float = 0.4, seed: int = 0) -> Tensor:
    noise = torch.rand(model.graph.shape, generator=torch.Generator().manual_seed(seed))
    return model.graph.exists & (noise < share)


def circuit_of(model: MaskedModel, share: float = 0.4, seed: int = 0) -> Circuit:
    return Circuit(model.graph, some_edges(model, share, seed))
