"""Reads of some readers alone, against sums and norms written out."""

from typing import Any

import pytest
import torch

from edgeprune.models import open_reads
from edgeprune.models.changes import alike
from edgeprune.models.open_reads import open_sums, projected
from edgeprune.models.rerun import places_of
from tests.methods.small_problems import tiny


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("few", [-1.0, 2.0])
def test_sums_are_those_over_open_edges_in_either_way(dtype: torch.dtype, few: float, monkeypatch: Any) -> None:
    """Readers with no edge, one and all, of the first five of seven writers; whole numbers, so that sums are exact."""
    monkeypatch.setattr(open_reads, "FEW_OPEN", few)
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(-3, 4, (6, 7, 8), generator=generator).to(dtype)
    keep = torch.rand(9, 5, generator=generator) < 0.4
    keep[0], keep[4], keep[8] = False, True, False
    expected = torch.stack([rows[:, :5][:, own].sum(1) for own in keep], 1)
    assert torch.equal(open_sums(rows, keep), expected)
    assert torch.equal(open_sums(rows, keep[:1]), expected[:, :1])


def test_a_sum_does_not_hang_on_other_readers() -> None:
    rows = torch.randn(40, 30, 16, generator=torch.Generator().manual_seed(0))
    keep = torch.rand(12, 30, generator=torch.Generator().manual_seed(1)) < 0.2
    together = open_sums(rows, keep)
    for reader in range(len(keep)):
        assert torch.equal(open_sums(rows, keep[[reader]])[:, 0], together[:, reader])


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_inputs_that_readers_share_are_normed_and_projected_as_the_model_does(name: str) -> None:
    model = tiny(name)
    block, projection = model.blocks[1], model.projections(1)
    inputs = 3 * torch.randn(10, 2, model.width, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) + 1
    rows, place_of = [0, 2, 5, len(projection.weight) - 1], [1, 0, 1, 1]
    found = projected(inputs, place_of, rows, projection)
    for own, row, place in zip(found, rows, place_of, strict=True):
        whole = torch.cat(block.project(block.norm(inputs[None, :, place])), 2)[0]
        torch.testing.assert_close(own, whole[:, row], atol=1e-12, rtol=1e-9)


def test_readers_with_the_same_open_edges_go_by_the_first_of_their_layer() -> None:
    graph = tiny("gpt2").graph
    keep = graph.keep_matrix(["embed->a0.h1.q", "embed->a0.h2.v", "embed->a1.h0.q", "embed->m0", "m0->a1.h1.k"])
    names = dict(zip(graph.readers, (graph.readers[reader] for reader in alike(graph, keep)), strict=True))
    assert (names["a0.h1.q"], names["a0.h2.v"], names["a0.h0.q"], names["a0.h3.v"]) == (
        "a0.h1.q", "a0.h1.q", "a0.h0.q", "a0.h0.q",
    )  # fmt: skip
    assert (names["a1.h0.q"], names["a1.h1.k"], names["m0"], names["logits"]) == ("a1.h0.q", "a1.h1.k", "m0", "logits")


def test_places_are_a_view_where_they_can_be() -> None:
    assert places_of([3, 4, 5]) == slice(3, 6)
    assert places_of([3]) == slice(3, 4)
    assert places_of([3, 5]) == [3, 5]
