"""ACDC's files: what it counts in ours, and that its own class comes back from our pickle."""

import pickle
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from edgeprune import canonical
from edgeprune.circuit import Circuit
from edgeprune.formats import ExportOptions, read_circuit, write_circuit
from edgeprune.graph import EdgeGraph
from tests.formats.circuits import ATTENTION_ONLY, GPT2, GROUPED, PARALLEL, PLAIN, SPLIT, refused, scored, written

WHOLE = (None,)


class TorchIndex:
    """ACDC's class: what its pickles name, with its two attributes."""

    as_index: tuple[Any, ...]
    hashable_tuple: tuple[int | None, ...]

    def __hash__(self) -> int:
        return hash(self.hashable_tuple)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TorchIndex) and self.hashable_tuple == other.hashable_tuple


@pytest.fixture
def acdc(monkeypatch: pytest.MonkeyPatch) -> None:
    """A package `acdc` with that class, as if it were installed."""
    module = ModuleType("acdc.TLACDCEdge")
    module.TorchIndex = TorchIndex  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, "acdc", ModuleType("acdc"))
    monkeypatch.setitem(sys.modules, "acdc.TLACDCEdge", module)


def is_placeholder(edge: tuple[Any, ...]) -> bool:
    """ACDC's type of an edge follows from its child: a head's result and an MLP's output are joined, not computed."""
    return edge[0].endswith(("attn.hook_result", "hook_mlp_out"))


def is_direct(edge: tuple[Any, ...]) -> bool:
    return edge[0].endswith(("attn.hook_q", "attn.hook_k", "attn.hook_v"))


def subgraph(circuit: Circuit, folder: Path) -> dict[Any, bool]:
    write_circuit(circuit, folder / "acdc.pth")
    return torch.load(folder / "acdc.pth", weights_only=True)


# Published counts: ADDITION and DIRECT edges, arXiv 2304.14997 and its repository.
@pytest.mark.parametrize(
    ("name", "addition", "direct"),
    [
        ("ioi", 963, 78),
        ("greater_than", 235, 27),
        ("docstring", 24, 13),
        ("tracr_reverse", 11, 4),
        ("tracr_xproportion", 7, 3),
    ],
)
def test_acdc_counts_published_circuits_as_their_papers_do(
    tmp_path: Path, name: str, addition: int, direct: int
) -> None:
    circuit = canonical.load(name).circuit()
    content = subgraph(circuit, tmp_path)
    present = [edge for edge, is_present in content.items() if is_present]
    assert sum(not is_placeholder(edge) for edge in present) == addition + direct
    assert sum(is_direct(edge) for edge in present) == direct
    assert torch.equal(read_circuit(tmp_path / "acdc.pth", circuit.graph).circuit.keep, circuit.keep)


def test_the_dict_has_every_edge_of_acdcs_graph(tmp_path: Path) -> None:
    content = subgraph(Circuit(GPT2, GPT2.exists), tmp_path)
    assert len(content) == 33_367
    assert sum(not is_placeholder(edge) for edge in content) == 32_923
    assert all(content.values())
    reader = ("blocks.3.hook_q_input", (None, None, 7))
    assert ("blocks.11.hook_resid_post", WHOLE, "blocks.11.hook_mlp_out", WHOLE) in content
    assert (*reader, "blocks.0.hook_resid_pre", WHOLE) in content
    assert ("blocks.3.attn.hook_q", (None, None, 7), *reader) in content
    assert ("blocks.3.attn.hook_result", (None, None, 7), "blocks.3.attn.hook_q", (None, None, 7)) in content
    assert ("blocks.3.hook_mlp_out", WHOLE, "blocks.3.hook_mlp_in", WHOLE) in content
    assert not any(subgraph(Circuit(PLAIN, ~PLAIN.exists), tmp_path).values())


def test_two_embeddings(tmp_path: Path) -> None:
    content = subgraph(Circuit(SPLIT, SPLIT.exists), tmp_path)
    parents = {edge[2] for edge in content}
    assert {"hook_embed", "hook_pos_embed"} <= parents
    assert "blocks.0.hook_resid_pre" not in parents
    assert len(content) == SPLIT.num_edges + 2 * 18 + 2


@pytest.mark.parametrize("suffix", [".pth", ".pkl"])
@pytest.mark.parametrize("graph", [PLAIN, SPLIT, GROUPED, PARALLEL, ATTENTION_ONLY])
def test_round_trip(tmp_path: Path, suffix: str, graph: EdgeGraph) -> None:
    circuit = scored(graph)
    path = tmp_path / f"acdc{suffix}"
    write_circuit(circuit, path)
    back = read_circuit(path, graph).circuit
    assert torch.equal(back.keep, circuit.keep)
    if suffix == ".pkl":
        assert back.scores is not None
        assert circuit.scores is not None
        assert torch.equal(back.scores, circuit.scores * circuit.keep)


@pytest.mark.usefixtures("acdc")
def test_the_pickle_is_acdcs_own(tmp_path: Path) -> None:
    circuit = scored(PLAIN)
    write_circuit(circuit, tmp_path / "acdc.pkl")
    loaded = pickle.loads((tmp_path / "acdc.pkl").read_bytes())
    assert {type(part) for (_, index, _, other), _ in loaded for part in (index, other)} == {TorchIndex}
    indices = {index for (_, index, _, _), _ in loaded}
    for index in indices:
        assert index.as_index == tuple(slice(None) if part is None else part for part in index.hashable_tuple)
    plain = {(child, i.hashable_tuple, parent, j.hashable_tuple): effect for (child, i, parent, j), effect in loaded}
    assert not any(is_placeholder(edge) for edge in plain)
    content = subgraph(circuit, tmp_path)
    assert set(plain) == {edge for edge, present in content.items() if present and not is_placeholder(edge)}
    assert circuit.scores is not None
    effects = [effect for edge, effect in plain.items() if not is_direct(edge)]
    assert sorted(effects) == sorted(circuit.scores[circuit.keep].tolist())
    assert all(effect is None for edge, effect in plain.items() if is_direct(edge))


@pytest.mark.usefixtures("acdc")
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_of_acdc_is_read(tmp_path: Path, protocol: int) -> None:
    def index(*parts: int | None) -> TorchIndex:
        made = TorchIndex()
        made.as_index = tuple(slice(None) if part is None else part for part in parts)
        made.hashable_tuple = parts
        return made

    TorchIndex.__module__, before = "acdc.TLACDCEdge", TorchIndex.__module__
    try:
        content = [
            (("blocks.1.hook_q_input", index(None, None, 2), "blocks.0.hook_mlp_out", index(None)), 0.25),
            (("blocks.1.attn.hook_q", index(None, None, 2), "blocks.1.hook_q_input", index(None, None, 2)), 0.5),
            (("blocks.1.hook_resid_post", index(None), "blocks.1.attn.hook_result", index(None, None, 2)), 0.125),
        ]
        (tmp_path / "acdc.pkl").write_bytes(pickle.dumps(content, protocol))
    finally:
        TorchIndex.__module__ = before
    circuit = read_circuit(tmp_path / "acdc.pkl", PLAIN).circuit
    assert set(circuit.edges()) == {"m0->a1.h2.q", "a1.h2->logits"}
    assert circuit.scores is not None
    assert circuit.scores[PLAIN.index("m0->a1.h2.q")] == 0.25
    assert circuit.scores.count_nonzero() == 2


def test_effects_are_left_out_where_membership_is_wanted(tmp_path: Path) -> None:
    notes = write_circuit(scored(PLAIN), tmp_path / "a.pkl", options=ExportOptions(membership=True))
    assert any("scores left out" in note for note in notes)
    assert read_circuit(tmp_path / "a.pkl", PLAIN).circuit.scores is None
    assert any("scores left out" in note for note in write_circuit(scored(PLAIN), tmp_path / "a.pth"))
    assert any("join heads to the MLP" in note for note in write_circuit(scored(PARALLEL), tmp_path / "a.pth"))


def test_what_is_refused(tmp_path: Path) -> None:
    torch.save({("a", (None,), "b", (None,)): 1}, tmp_path / "a.pth")
    assert "true and false alone" in refused(tmp_path / "a.pth", PLAIN)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([1, 2]))
    assert "no pair of edge and effect" in refused(tmp_path / "a.pkl", PLAIN)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([(("a", "b"), 0.5)]))
    assert "no edge of ACDC" in refused(tmp_path / "a.pkl", PLAIN)
    assert "give the model (--model)" in refused(written(tmp_path / "a.json", [["m0", "m1"]]))
