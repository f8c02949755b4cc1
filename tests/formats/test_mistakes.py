"""What no file of any format may hold: a score that is NaN, an edge that is listed twice."""

import json
import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from edgeprune.formats import read_circuit, write_circuit
from edgeprune.formats.acdc import hook_edges
from edgeprune.formats.plain_values import load_values
from tests.formats.circuits import PLAIN, SPLIT, refused, scored, written
from tests.formats.test_edge_pruning import checkpoint

NAN = float("nan")


# ---------------------------------------------------------------- NaN
def _eap_ig_json(path: Path) -> Path:
    write_circuit(scored(PLAIN), path.with_suffix(".json"), "eap-ig-json")
    content = load_values(path.with_suffix(".json")).value
    content["edges"]["a0.h1->m1"]["score"] = NAN
    return written(path.with_suffix(".json"), content)


def _spoilt(path: Path, spoil: Callable[[dict[str, Any]], Any]) -> Path:
    content = torch.load(path, weights_only=True)
    spoil(content)
    torch.save(content, path)
    return path


def _eap_ig_pt(path: Path) -> Path:
    write_circuit(scored(PLAIN), path.with_suffix(".pt"), "eap-ig-pt")
    return _spoilt(path.with_suffix(".pt"), lambda content: content["edges_scores"][0].fill_(NAN))


def _auto_circuit(path: Path) -> Path:
    write_circuit(scored(PLAIN), path.with_suffix(".pt"), "auto-circuit")
    return _spoilt(path.with_suffix(".pt"), lambda content: content["blocks.1.hook_mlp_in"][:1].fill_(NAN))


def _acdc_edges(path: Path) -> Path:
    entries = [edge[:4] for edge in hook_edges(PLAIN) if edge.column is not None][:5]
    path.with_suffix(".pkl").write_bytes(pickle.dumps([(entry, NAN) for entry in entries]))
    return path.with_suffix(".pkl")


@pytest.mark.parametrize("made", [_eap_ig_json, _eap_ig_pt, _auto_circuit, _acdc_edges])
def test_a_score_that_is_nan_is_refused_in_one_line(made: Callable[[Path], Path], tmp_path: Path) -> None:
    path = made(tmp_path / "scores")
    for graph in (None, PLAIN) if path.suffix != ".pkl" else (PLAIN,):
        line = refused(path, graph)
        assert line.startswith(f"{path}: ")
        assert re.search(r"the score of \S+->\S+ is NaN, as that of|scores cannot be ranked, such as nan", line)


@pytest.mark.parametrize("mask", ["transformer.h.1.q_read_log_alphas", "transformer.final_read_log_alphas"])
def test_a_mask_that_is_nan_is_refused_in_one_line(mask: str, tmp_path: Path) -> None:
    state = checkpoint(SPLIT)
    state[mask].flatten()[3] = NAN
    torch.save(state, tmp_path / "pytorch_model.bin")
    assert f"{mask.rpartition('.')[2]} has NaN" in refused(tmp_path / "pytorch_model.bin")


# ---------------------------------------------------------------- twice
MLP = ["blocks.1.hook_mlp_in", [None], "blocks.0.hook_mlp_out", [None]]
LISTS = {
    "own": (["m0->m1", "m1->logits", ["m0", "m1"]], "m0->m1"),
    "own, another spelling": (["m0 -> logits", "m0->out"], "m0->logits"),
    "edge-pruning": ([["m0", "resid_post"], ["tok_embeds", "m0"], ["m0", "resid_post"]], "m0->logits"),
    "auto-circuit": (["A0.1->MLP 1", "A0.1->Resid End", "A0.1->MLP 1"], "A0.1->MLP 1"),
    "acdc": ([MLP, MLP], "blocks.1.hook_mlp_in"),
}


@pytest.mark.parametrize("name", LISTS)
def test_an_edge_that_is_listed_twice_is_refused_in_one_line(name: str, tmp_path: Path) -> None:
    entries, edge = LISTS[name]
    path = written(tmp_path / "edges.json", entries)
    line = refused(path, PLAIN)
    assert edge in line
    assert "is listed twice; list each edge once" in line
    read_circuit(written(path, entries[:-1]), PLAIN)  # once is right


def test_two_edges_that_a_coarser_graph_has_as_one_are_not_the_same_twice(tmp_path: Path) -> None:
    path = written(tmp_path / "edges.json", [["tok_embeds", "m0"], ["pos_embeds", "m0"]])
    assert read_circuit(path, PLAIN).circuit.edges() == ["embed->m0"]


def test_an_edge_twice_in_a_pickle_of_acdc_is_refused(tmp_path: Path) -> None:
    entry = next(hook_edges(PLAIN))[:4]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps([(entry, 0.5), (entry, 0.25)]))
    assert "is listed twice" in refused(tmp_path / "a.pkl", PLAIN)


@pytest.mark.parametrize("part", ["edges", "nodes"])
def test_a_name_twice_in_eap_igs_json_is_refused(part: str, tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_circuit(scored(PLAIN), path, "eap-ig-json")
    name, value = next(iter(load_values(path).value[part].items()))
    again = f"{json.dumps(name)}: {json.dumps(value)}"
    path.write_text(path.read_text().replace(f'"{part}": {{', f'"{part}": {{{again}, '))
    line = refused(path)
    assert repr(name) in line or name in line
    assert "twice" in line
