"""The tiny models and pairs that other programs were run on, and their numbers on our graphs."""

import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.graph import EdgeGraph, KVReaders
from edgeprune.methods.problem import Metric, Problem
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel

FOLDER = Path(__file__).parent
FILES = FOLDER / "files"
MODELS = ("gpt2", "llama")


@cache
def numbers(name: str) -> Any:
    """A file of numbers."""
    return json.loads((FOLDER / f"{name}.json").read_text())


@cache
def model(name: str, *, kv_readers: KVReaders = "head", split: bool = False) -> MaskedModel:
    """A tiny model in double precision, by default on the graph that other programs count."""
    return load_model(
        str(FOLDER / f"tiny_{name}"), dtype="float64", kv_readers=kv_readers, split_embedding=split and name == "gpt2"
    )


def pairs() -> PairBatch:
    """The 16 pairs, scored at their last token."""
    content = numbers("pairs")
    clean = torch.tensor(content["clean"])
    last = torch.full((len(clean), 1), clean.shape[1] - 1)
    return PairBatch(
        clean=clean,
        corrupted=torch.tensor(content["corr"]),
        attention_mask=torch.ones_like(clean),
        positions=last,
        position_mask=torch.ones_like(last).bool(),
        targets=torch.tensor(content["right"])[:, None],
        distractors=torch.tensor(content["wrong"])[:, None],
        index=torch.arange(len(clean)),
    )


def problem(model: MaskedModel, metric: Metric = "logit_difference", ablation: str = "interchange") -> Problem:
    """The pairs in one batch."""
    found = Problem(model, [pairs()], ReferenceRuns(model, ablation), metric)
    found.runs.prepare(found.batches, "train")
    return found


def our_name(edge: str) -> str:
    """`input->a0.h1<q>` as `embed->a0.h1.q`."""
    writer, _, reader = edge.partition("->")
    return f"{'embed' if writer == 'input' else writer}->{reader.replace('<', '.').removesuffix('>')}"


def matrix(graph: EdgeGraph, file: str, key: str) -> Tensor:
    """Scores of a file, float64 `[reader, writer]` of a graph with one embedding and k and v per query head."""
    content: Mapping[str, Any] = numbers(file)
    edges: Sequence[str] = content["edges"]
    found = torch.zeros(graph.shape, dtype=torch.float64)
    for edge, value in zip(edges, content["scores"][key], strict=True):
        found[graph.index(our_name(edge))] = value
    return found


def tokens_alone(scores: Tensor, graph: EdgeGraph) -> Tensor:
    """Scores of a graph with two embeddings without those of positions; other scores as they are."""
    return scores[:, [0, *range(2, scores.shape[1])]] if graph.arch.split_embedding else scores


def close(found: Tensor, expected: Tensor, atol: float) -> None:
    """The two agree to `atol`, and are not nothing."""
    assert expected.abs().max() > 1000 * atol
    torch.testing.assert_close(found.double(), expected.double(), atol=atol, rtol=0)
