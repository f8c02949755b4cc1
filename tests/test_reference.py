import json
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.reference import read_reference
from tests.files import GROUND_TRUTH

MERGED = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=4))
SPLIT = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=4, split_embedding=True))
GROUPED = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2))
UNGROUPED = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2, kv_readers="head"))

WHOLE = (None,)


def head(number: int) -> tuple[None, None, int]:
    return (None, None, number)


# One ACDC edge of every kind, and what it is in our names.
ACDC = {
    ("blocks.1.hook_resid_post", WHOLE, "blocks.1.attn.hook_result", head(3)): "a1.h3->logits",
    ("blocks.1.hook_mlp_in", WHOLE, "blocks.0.hook_mlp_out", WHOLE): "m0->m1",
    ("blocks.1.hook_q_input", head(2), "blocks.0.attn.hook_result", head(1)): "a0.h1->a1.h2.q",
    ("blocks.1.hook_k_input", head(0), "blocks.0.hook_mlp_out", WHOLE): "m0->a1.h0.k",
    ("blocks.0.hook_v_input", head(3), "blocks.0.hook_resid_pre", WHOLE): "embed->a0.h3.v",
    ("blocks.1.attn.hook_q", head(2), "blocks.1.hook_q_input", head(2)): None,
    ("blocks.1.attn.hook_result", head(2), "blocks.1.attn.hook_q", head(2)): None,
    ("blocks.1.hook_mlp_out", WHOLE, "blocks.1.hook_mlp_in", WHOLE): None,
}
OURS = {edge for edge in ACDC.values() if edge}
SPLIT_ACDC = [
    ("blocks.0.hook_q_input", head(0), "hook_embed", WHOLE),
    ("blocks.0.hook_q_input", head(0), "hook_pos_embed", WHOLE),
]


class TorchIndex:
    """Pickles as ACDC's class does: its slices and its plain tuple."""

    def __init__(self, index: tuple[int | None, ...]) -> None:
        self.as_index = tuple(slice(None) if item is None else item for item in index)
        self.hashable_tuple = index


def written(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def edges_of(path: Path, graph: EdgeGraph) -> set[str]:
    return set(read_reference(path, graph).edges())


def message(path: Path, graph: EdgeGraph) -> str:
    """The error's text, which is one line."""
    with pytest.raises(EdgepruneError) as caught:
        read_reference(path, graph)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---------------------------------------------------------------- own files and lists of edges
def test_own_file(tmp_path: Path) -> None:
    circuit = Circuit.random(MERGED, 20)
    path = circuit.save(tmp_path / "circuit.safetensors")
    assert torch.equal(read_reference(path, MERGED).keep, circuit.keep)
    assert "split_embedding=False" in message(path, SPLIT)


def test_every_edge_returns_from_json(tmp_path: Path) -> None:
    edges = [MERGED.edge_name(row, column) for row, column in MERGED.exists.nonzero().tolist()]
    path = written(tmp_path / "edges.json", edges)
    assert torch.equal(read_reference(str(path), MERGED).keep, MERGED.exists)
    path = written(path, [edge.split("->") for edge in edges])
    assert torch.equal(read_reference(path, MERGED).keep, MERGED.exists)


@pytest.mark.parametrize(
    ("token", "position", "end"),
    [("tok_embeds", "pos_embeds", "resid_post"), ("tok", "pos", "out"), ("tok_embed", "pos_embed", "logits")],
)
def test_names_of_others(tmp_path: Path, token: str, position: str, end: str) -> None:
    path = written(tmp_path / "edges.json", [[token, "m0"], [position, "a1.h2.k"], ["a0.h1", end], ["m1", end]])
    rest = {"a0.h1->logits", "m1->logits"}
    assert edges_of(path, SPLIT) == {"tok_embed->m0", "pos_embed->a1.h2.k"} | rest
    assert edges_of(path, MERGED) == {"embed->m0", "embed->a1.h2.k"} | rest


def test_empty_list_is_an_empty_circuit(tmp_path: Path) -> None:
    assert read_reference(written(tmp_path / "edges.json", []), MERGED).num_edges == 0


def test_ground_truth_agrees_with_the_published_list(tmp_path: Path) -> None:
    truth = json.loads((GROUND_TRUTH / "reverse" / "circuit.json").read_text())
    graph = EdgeGraph(ArchSpec(num_layers=4, num_heads=1, num_kv_heads=1, split_embedding=True))
    pairs = written(tmp_path / "pairs.json", truth["causal_zero"])
    arrows = written(tmp_path / "arrows.json", truth["canonical"]["lists"]["acdc"])
    assert edges_of(pairs, graph) == edges_of(arrows, graph)
    assert len(edges_of(pairs, graph)) == 11
    merged = EdgeGraph(ArchSpec(num_layers=4, num_heads=1, num_kv_heads=1))
    assert len(edges_of(pairs, merged)) == 10


# ---------------------------------------------------------------- ACDC
def test_acdc_json(tmp_path: Path) -> None:
    assert edges_of(written(tmp_path / "acdc.json", list(ACDC)), MERGED) == OURS


def test_acdc_pth_keeps_the_present_edges(tmp_path: Path) -> None:
    absent = ("blocks.1.hook_resid_post", WHOLE, "blocks.0.hook_mlp_out", WHOLE)
    torch.save(OrderedDict({**dict.fromkeys(ACDC, True), absent: False}), tmp_path / "acdc.pth")
    assert edges_of(tmp_path / "acdc.pth", MERGED) == OURS


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_acdc_pkl(tmp_path: Path, protocol: int) -> None:
    edges = [((child, TorchIndex(i), parent, TorchIndex(j)), 0.5) for child, i, parent, j in ACDC]
    (tmp_path / "acdc.pkl").write_bytes(pickle.dumps(edges, protocol))
    assert edges_of(tmp_path / "acdc.pkl", MERGED) == OURS


def test_acdc_embeddings(tmp_path: Path) -> None:
    path = written(tmp_path / "acdc.json", SPLIT_ACDC)
    assert edges_of(path, SPLIT) == {"tok_embed->a0.h0.q", "pos_embed->a0.h0.q"}
    assert edges_of(path, MERGED) == {"embed->a0.h0.q"}
    assert "split_embedding=False" in message(written(path, list(ACDC)), SPLIT)


def test_acdc_heads_of_a_group_share_its_readers(tmp_path: Path) -> None:
    edges = [
        (f"blocks.1.hook_{kind}_input", head(h), "blocks.0.hook_mlp_out", WHOLE) for kind in "qk" for h in range(4)
    ]
    path = written(tmp_path / "acdc.json", edges)
    queries = {f"m0->a1.h{h}.q" for h in range(4)}
    assert edges_of(path, GROUPED) == queries | {"m0->a1.h0.k", "m0->a1.h1.k"}
    assert edges_of(path, UNGROUPED) == queries | {f"m0->a1.h{h}.k" for h in range(4)}
    one = written(path, [("blocks.1.hook_v_input", head(2), "blocks.0.attn.hook_result", head(3))])
    assert edges_of(one, GROUPED) == {"a0.h3->a1.h1.v"}


# ---------------------------------------------------------------- refusals
class Calls:
    """A pickle that runs a command when a careless reader loads it."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (self.command,)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    for name, write in (("bad.pkl", pickle.dump), ("bad.pth", torch.save)):
        with (tmp_path / name).open("wb") as file:
            write([Calls(f"touch {trace}")], file)
        assert name in message(tmp_path / name, MERGED)
    assert "system" in message(tmp_path / "bad.pkl", MERGED)
    assert "weights_only" not in message(tmp_path / "bad.pth", MERGED)
    assert not trace.exists()


@pytest.mark.parametrize("suffix", [".safetensors", ".json", ".pth", ".pkl"])
@pytest.mark.parametrize("content", [b"", b"\x00\xff\xfe not a circuit", b"["])
def test_damaged(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(content)
    assert str(path) in message(path, MERGED)


def test_a_folder_is_no_circuit(tmp_path: Path) -> None:
    assert "is a folder; name one file" in message(tmp_path, MERGED)


def test_files_of_another_kind(tmp_path: Path) -> None:
    assert "no reference circuit" in message(tmp_path / "absent.json", MERGED)
    assert "got a dict" in message(written(tmp_path / "graph.json", {"edges": []}), MERGED)
    assert ".safetensors, .json, .pth, .pkl" in message(written(tmp_path / "edges.csv", []), MERGED)
    torch.save(torch.zeros(2), tmp_path / "tensor.pth")
    assert "not a whole .pth" in message(tmp_path / "tensor.pth", MERGED)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        (["m0", "a7.h0.q"], "no reader named 'a7.h0.q'"),
        (["input", "m0"], "no writer named 'input'"),
        (["m1", "m0"], "'m1->m0' does not exist"),
        ("m0 m1", "m0 m1"),
        (["m0"], "is no edge"),
        (7, "is no edge"),
        (["embed", 0, 1], "is no edge"),
        (
            ["blocks.1.hook_z", [None], "blocks.0.hook_mlp_out", [None]],
            "no reader of ACDC is named 'blocks.1.hook_z'",
        ),
        (
            ["blocks.1.hook_mlp_in", [None], "blocks.0.hook_z", [None]],
            "no writer of ACDC is named 'blocks.0.hook_z'",
        ),
        (
            ["blocks.1.hook_mlp_in", [None], "blocks.0.attn.hook_result", [None]],
            "hook_result' with index [None]",
        ),
        (["blocks.1.hook_mlp_in", head(0), "blocks.0.hook_mlp_out", [None]], "hook_mlp_in' with index"),
        (["blocks.1.hook_mlp_in", [None, 3], "blocks.0.hook_mlp_out", [None]], "has index [None, 3]"),
        (["blocks.0.hook_resid_post", [None], "blocks.0.hook_mlp_out", [None]], "2 layers"),
        (["blocks.1.hook_k_input", head(4), "blocks.0.hook_mlp_out", [None]], "no reader named 'a1.h4.k'"),
    ],
)
def test_edges_that_the_graph_lacks(tmp_path: Path, entry: Any, expected: str) -> None:
    path = written(tmp_path / "edges.json", [["m0", "m1"], entry])
    text = message(path, MERGED)
    assert expected in text
    assert str(path) in text
