"""Whether all gates are open is asked where the answer is cheap, or not known."""

from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.metrics.measure import gated_logits
from tests.lit_modules.test_accumulation import edge_pruning, learned
from tests.methods.small_problems import problem, tiny


class Spy:
    """A model on a device, which notes how it is called."""

    def __init__(self, device: str) -> None:
        self.device = torch.device(device)
        self.all_open: bool | None = True

    def __call__(self, *args: Any, all_open: bool | None = None, **options: Any) -> Tensor:
        self.all_open = all_open
        return torch.zeros(1, dtype=torch.float64)


@pytest.mark.parametrize(
    ("device", "sampled", "expected"), [("cuda", True, False), ("cuda", False, None), ("cpu", True, None)]
)
def test_a_gpu_is_not_asked_about_samples(device: str, sampled: bool, expected: bool | None) -> None:
    spy: Any = Spy(device)
    batch = problem(tiny("gpt2")).batches[0]
    assert gated_logits(spy, batch, torch.zeros(1, 1), None, sampled=sampled).dtype == torch.float32  # pyright: ignore
    assert spy.all_open is expected


@pytest.mark.filterwarnings("ignore:.*(treespec, LeafSpec|does not have many workers|in eval mode at the start).*")
def test_training_says_that_gates_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[bool] = []

    def noted(*args: Any, sampled: bool = False, **inside: Any) -> Tensor:
        told.append(sampled)
        return gated_logits(*args, sampled=sampled, **inside)

    monkeypatch.setattr("lit_modules.batch_losses.gated_logits", noted)
    learned(edge_pruning(1), 8, 1)
    assert told == [True] * 4
