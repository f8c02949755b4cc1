"""Examples of one batch with gates of their own equal runs of their own."""

from typing import Any

import pytest
import torch

from edgeprune.errors import EdgepruneError
from edgeprune.models.read_ops import ReadOps
from tests.models.test_conformance import WIRED, build, prompts

POSITIONS = torch.tensor([[6, 2], [1, 1], [0, 5], [3, 6]])


@pytest.mark.parametrize("chunk_bytes", [2**23, 600])
@pytest.mark.parametrize("some", [False, True])
@pytest.mark.parametrize("groups", [2, 4])
@pytest.mark.parametrize(("family", "index"), WIRED)
def test_groups_equal_runs_of_their_own(
    family: Any, index: int, groups: int, some: bool, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ReadOps, "chunk_bytes", chunk_bytes)
    model = build(family, index)
    clean, corrupted = prompts(batch=4)
    positions = POSITIONS if some else None
    gates = torch.rand(groups, *model.graph.shape, dtype=torch.float64).requires_grad_()
    together = model(clean, gates, model.record(corrupted), positions=positions)
    size = 4 // groups
    parts = [slice(start, start + size) for start in range(0, 4, size)]
    alone = torch.cat(
        [
            model(clean[part], own, model.record(corrupted[part]), positions=POSITIONS[part] if some else None)
            for part, own in zip(parts, gates, strict=True)
        ]
    )
    torch.testing.assert_close(together, alone, atol=1e-10, rtol=0)
    (found,) = torch.autograd.grad(together.log_softmax(-1)[..., 0].sum(), gates)
    (expected,) = torch.autograd.grad(alone.log_softmax(-1)[..., 0].sum(), gates)
    torch.testing.assert_close(found, expected, atol=1e-8, rtol=1e-8)
    assert (found[0] - found[1]).abs().max() > 1e-6  # each group has a gradient of its own


def test_groups_must_divide_the_batch() -> None:
    model = build(*WIRED[0].values)
    clean, corrupted = prompts(batch=4)
    for count in (3, 0):
        with pytest.raises(EdgepruneError, match=f"4 examples do not fall into {count} groups"):
            model(clean, torch.ones(count, *model.graph.shape), model.record(corrupted))
