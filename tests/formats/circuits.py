"""Graphs and circuits that the tests of the formats share."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.formats import read_circuit
from edgeprune.graph import ArchSpec, EdgeGraph

PLAIN = EdgeGraph(ArchSpec(num_layers=2, num_heads=3, num_kv_heads=3))
SPLIT = EdgeGraph(ArchSpec(num_layers=2, num_heads=3, num_kv_heads=3, split_embedding=True))
PARALLEL = EdgeGraph(ArchSpec(num_layers=2, num_heads=2, num_kv_heads=2, parallel_blocks=True))
GROUPED = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2))
UNGROUPED = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2, kv_readers="head"))
ATTENTION_ONLY = EdgeGraph(ArchSpec(num_layers=2, num_heads=2, num_kv_heads=2, has_mlp=False))
ONE_HEAD = EdgeGraph(ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1))
GPT2 = EdgeGraph(ArchSpec(num_layers=12, num_heads=12, num_kv_heads=12))


def scored(graph: EdgeGraph, num_edges: int | None = None, seed: int = 0) -> Circuit:
    """Scores of both signs and many sizes, with the float32 values that printing is hardest for, and a header."""
    generator = torch.Generator().manual_seed(seed)
    scores = (
        torch.randn(graph.shape, generator=generator)
        * 10 ** torch.randint(-30, 30, graph.shape, generator=generator).float()
    )
    hard = torch.tensor([1e-45, -0.0, 16777217.0, 0.1, 3.4028235e38, -1.1754942e-38])
    scores[-1, : len(hard)] = hard[: graph.shape[1]]
    size = graph.num_edges // 3 if num_edges is None else num_edges
    return Circuit.from_scores(graph, scores, num_edges=size, header={"method": "test", "model": "some-model"})


def same_bits(left: torch.Tensor | None, right: torch.Tensor | None) -> bool:
    """Equal float32 values, zeros by their sign too."""
    assert left is not None
    assert right is not None
    return torch.equal(left.contiguous().view(torch.int32), right.contiguous().view(torch.int32))


def written(path: Path, content: Any) -> Path:
    """Content as JSON."""
    path.write_text(json.dumps(content))
    return path


def refused(path: Path, graph: EdgeGraph | None = None, name: str | None = None) -> str:
    """The error's text, which is one line."""
    with pytest.raises(EdgepruneError) as caught:
        read_circuit(path, graph, name)
    assert "\n" not in str(caught.value)
    return str(caught.value)
