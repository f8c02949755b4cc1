"""Circuits: exact sizes, files that are whole or refused, checkpoints."""

import json
import os
import random
import re
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

from edgeprune import ablations
from edgeprune.checkpoint_files import load_checkpoint, write_checkpoint
from edgeprune.circuit import FORMAT, Circuit, edges_at, read_checkpoint
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.models.masked import MaskedModel
from edgeprune.paths import DiskFullError

GRAPH = EdgeGraph(ArchSpec(num_layers=3, num_heads=4, num_kv_heads=2))


def random_scores(seed: int = 0) -> torch.Tensor:
    return torch.randn(GRAPH.shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def circuit() -> Circuit:
    return Circuit.from_scores(GRAPH, random_scores(), sparsity=0.8, header={"model": "tiny", "kl": {"mean": 0.25}})


@pytest.fixture
def saved(circuit: Circuit, tmp_path: Path) -> Path:
    return circuit.save(tmp_path / "circuit.safetensors")


# ------------------------------------------------------------------ sizes
@pytest.mark.parametrize("sparsity", [0, 0.001, 0.1, 1 / 3, 0.5, 0.9, 0.95, 0.99, 0.999, 1])
def test_sparsity_gives_an_exact_number_of_the_best_edges(sparsity: float) -> None:
    scores = random_scores()
    found = Circuit.from_scores(GRAPH, scores, sparsity=sparsity)
    assert found.num_edges == round((1 - sparsity) * GRAPH.num_edges) == edges_at(GRAPH, sparsity)
    assert abs(found.sparsity - sparsity) <= 0.5 / GRAPH.num_edges + 1e-12  # half an edge, and rounding
    closed = GRAPH.exists & ~found.keep
    if found.num_edges and closed.any():
        assert scores[found.keep].min() >= scores[closed].max()


@pytest.mark.parametrize("num_edges", [0, 1, 17, GRAPH.num_edges])
def test_number_of_edges_is_exact_in_spite_of_ties(num_edges: int) -> None:
    tied = Circuit.from_scores(GRAPH, torch.ones(GRAPH.shape), num_edges=num_edges)
    assert tied.num_edges == len(tied.edges()) == num_edges
    assert Circuit.random(GRAPH, num_edges).num_edges == num_edges


def test_edges_that_do_not_exist_are_never_kept() -> None:
    scores = random_scores().masked_fill(~GRAPH.exists, 100.0)
    found = Circuit.from_scores(GRAPH, scores, sparsity=0.5)
    assert not (found.keep & ~GRAPH.exists).any()
    assert found.scores is not None
    assert found.scores[~GRAPH.exists].abs().max() == 0
    assert Circuit(GRAPH, torch.ones(GRAPH.shape)).num_edges == GRAPH.num_edges


@pytest.mark.parametrize("sparsity", [-0.01, 1.01, 95])
def test_sparsity_out_of_range_is_refused(sparsity: float) -> None:
    with pytest.raises(EdgepruneError, match=rf"sparsity must be in \[0, 1\], got {re.escape(str(sparsity))}"):
        Circuit.from_scores(GRAPH, random_scores(), sparsity=sparsity)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give either a sparsity or num_edges"),
        ({"num_edges": 3, "sparsity": 0.5}, "give either a sparsity or num_edges"),
        ({"num_edges": -1}, f"must be 0 to {GRAPH.num_edges}"),
        ({"num_edges": GRAPH.num_edges + 1}, f"must be 0 to {GRAPH.num_edges}"),
    ],
)
def test_impossible_sizes_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        Circuit.from_scores(GRAPH, random_scores(), **options)


def test_random_circuits_follow_their_seed() -> None:
    first = Circuit.random(GRAPH, 30, seed=1)
    assert torch.equal(first.keep, Circuit.random(GRAPH, 30, seed=1).keep)
    assert not torch.equal(first.keep, Circuit.random(GRAPH, 30, seed=2).keep)
    assert first.header == {"method": "random", "seed": 1}


def test_random_circuits_favour_no_edge() -> None:
    runs, share = 400, 0.25
    number = round(share * GRAPH.num_edges)
    counts = sum(Circuit.random(GRAPH, number, seed=seed).keep.float() for seed in range(runs))
    frequency = GRAPH.to_vector(torch.as_tensor(counts) / runs)
    error = (share * (1 - share) / runs) ** 0.5
    assert (frequency - share).abs().max() < 5 * error  # five standard errors


# ------------------------------------------------------------------ edges
def test_named_edges() -> None:
    edges = ["embed->a0.h0.q", "a0.h0->m0", "m0->logits"]
    found = Circuit.from_edges(GRAPH, reversed(edges), {"task": "by hand"})
    assert found.edges() == edges
    assert found.scores is None
    assert found.header == {"task": "by hand"}
    assert found.gates(torch.float64).dtype == torch.float64
    assert torch.equal(found.gates(), found.keep.float())
    with pytest.raises(EdgepruneError, match=r"no writer named 'a0\.h9'"):
        Circuit.from_edges(GRAPH, ["a0.h9->logits"])


def test_dangling_edges_are_counted() -> None:
    whole = ["embed->a0.h0.v", "a0.h0->logits"]
    assert Circuit.from_edges(GRAPH, whole).num_dangling == 0
    assert Circuit.from_edges(GRAPH, [*whole, "a1.h0->logits", "embed->m2"]).num_dangling == 2
    assert "2 dangling" in repr(Circuit.from_edges(GRAPH, [*whole, "a1.h0->logits", "embed->m2"]))


def test_dangling_edges_do_nothing_under_interchange_but_may_under_zero() -> None:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=3, n_head=4, n_embd=16, n_positions=8, vocab_size=29, bos_token_id=1, eos_token_id=2)
    hf = GPT2LMHeadModel(config).double()
    for parameter in hf.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)  # biases are random too
    model = MaskedModel(hf)
    clean, corrupted = torch.randint(0, 29, (2, 3, 5))
    found = Circuit.random(model.graph, 60, seed=1)
    dangling = model.graph.dangling(found.keep)
    assert 0 < found.num_dangling < 60
    gates, pruned = found.gates(torch.float64), (found.keep & ~dangling).double()
    change = {
        name: (model(clean, gates, ablated) - model(clean, pruned, ablated)).abs().max().item()
        for name, ablated in (("interchange", model.record(corrupted)), ("zero", ablations.zero(model)))
    }
    assert change["interchange"] < 1e-10  # float64, three layers
    assert change["zero"] > 1e-3  # biases still speak


@pytest.mark.parametrize("name", ["keep", "scores"])
def test_matrices_of_another_graph_are_refused(name: str) -> None:
    matrices: dict[str, Any] = {"keep": GRAPH.exists, "scores": random_scores(), name: torch.zeros(2, 3)}
    with pytest.raises(EdgepruneError, match=rf"{name} has shape \(2, 3\), this graph is \[reader, writer\]"):
        Circuit(GRAPH, **matrices)


def test_a_circuit_fits_its_own_graph_only(circuit: Circuit) -> None:
    circuit.check_fits(EdgeGraph.from_dict(GRAPH.to_dict()))
    other = EdgeGraph.from_dict({**GRAPH.to_dict(), "kv_readers": "head"})
    message = "made for a graph with kv_readers='group', gpt2 has 'head'"
    with pytest.raises(EdgepruneError, match=message) as caught:
        circuit.check_fits(other, "gpt2")
    assert "\n" not in str(caught.value)


# ------------------------------------------------------------------ files
def test_files_come_back_whole(circuit: Circuit, saved: Path) -> None:
    found = Circuit.load(saved)
    assert torch.equal(found.keep, circuit.keep)
    assert found.scores is not None
    assert circuit.scores is not None
    assert torch.equal(found.scores, circuit.scores)
    assert found.graph == GRAPH
    assert found.header["model"] == "tiny"
    assert found.header["kl"] == {"mean": 0.25}
    assert found.header["format"] == FORMAT
    assert found.header["num_edges"] == circuit.num_edges
    assert found.header["sparsity"] == circuit.sparsity
    assert found.header["num_dangling"] == circuit.num_dangling


def test_saving_what_was_loaded_gives_the_same_file(saved: Path, tmp_path: Path) -> None:
    again = Circuit.load(saved).save(tmp_path / "deeper" / "again.safetensors")
    assert again.read_bytes() == saved.read_bytes()


def test_scores_may_be_missing(tmp_path: Path) -> None:
    path = Circuit.from_edges(GRAPH, ["m0->logits"]).save(tmp_path / "c.safetensors")
    found = Circuit.load(path)
    assert found.scores is None
    assert found.edges() == ["m0->logits"]


def test_the_file_is_plain_safetensors(saved: Path) -> None:
    with safe_open(saved, framework="pt") as file:
        assert sorted(file.keys()) == ["keep", "scores"]
        assert file.get_tensor("keep").dtype == torch.bool
        assert json.loads(file.metadata()["edgeprune"])["graph"] == GRAPH.to_dict()


def _full_disk(*_: Any, **__: Any) -> None:
    raise OSError("no space left on device")


@pytest.mark.parametrize("place", ["edgeprune.sealed.save_file", "edgeprune.circuit.Path.replace"])
def test_a_failed_save_leaves_the_old_file_and_nothing_else(
    circuit: Circuit, saved: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()
    monkeypatch.setattr(place, _full_disk)
    with pytest.raises(OSError, match="no space left"):
        Circuit.from_edges(GRAPH, ["m0->logits"]).save(saved)
    assert saved.read_bytes() == before
    assert os.listdir(saved.parent) == [saved.name]  # noqa: PTH208 - the names are what is asked


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _cut_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:20])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _alter(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def flips(size: int, number: int, seed: int = 0) -> list[tuple[int, int]]:
    """Places in a file, all kinds of bytes among them, and what to change there: every bit has its turn."""
    generator = random.Random(seed)
    places = [*range(12), *range(size - 12, size), *(generator.randrange(size) for _ in range(number))]
    return [(place, 1 << number % 8) for number, place in enumerate(places)]


def test_a_flipped_bit_anywhere_and_a_cut_anywhere_are_refused(saved: Path) -> None:
    whole = saved.read_bytes()
    for place, bit in flips(len(whole), 100):
        saved.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        with pytest.raises(EdgepruneError, match="is not a whole circuit file") as caught:
            Circuit.load(saved)
        assert "\n" not in str(caught.value), place
    for length in range(0, len(whole), len(whole) // 50):
        saved.write_bytes(whole[:length])
        with pytest.raises(EdgepruneError, match="is not a whole circuit file"):
            Circuit.load(saved)
    saved.write_bytes(whole)
    assert Circuit.load(saved).num_edges


def test_the_same_bytes_under_another_type_are_refused(saved: Path) -> None:
    saved.write_bytes(saved.read_bytes().replace(b'"F32"', b'"I32"'))
    with pytest.raises(EdgepruneError, match="another type"):
        Circuit.load(saved)


@contextmanager
def small_disk(size: int) -> Iterator[None]:
    """No file may grow beyond so many bytes."""
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, former[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)


def test_a_full_disk_is_said_in_one_line_and_the_old_file_stays(
    circuit: Circuit, saved: Path, checkpoint: Path
) -> None:
    before = {path: path.read_bytes() for path in saved.parent.iterdir()}
    with small_disk(1000):
        for path, write in ((saved, circuit.save), (checkpoint, lambda path: write_checkpoint({"a": "b" * 999}, path))):
            with pytest.raises(DiskFullError, match=f"no room to write {re.escape(str(path))}") as caught:
                write(path)
            assert isinstance(caught.value, EdgepruneError)
            assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in saved.parent.iterdir()} == before


def _foreign(path: Path) -> None:
    save_file({"weight": torch.zeros(3)}, path)


def _text(path: Path) -> None:
    path.write_text("a circuit")


def _rewrite(path: Path, **changes: Any) -> None:
    """Write the same tensors with another header."""
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["edgeprune"]) | changes
        tensors = {name: file.get_tensor(name) for name in ("keep", "scores")}
    save_file(tensors, path, metadata={"edgeprune": json.dumps(header)})


def _other_format(path: Path) -> None:
    _rewrite(path, format="edgeprune-circuit/99")


def _other_graph(path: Path) -> None:
    _rewrite(path, graph=GRAPH.to_dict() | {"num_layers": 2})


@pytest.mark.parametrize(
    "damage",
    [_truncate, _cut_header, _empty, _alter, _foreign, _text, _other_format, _other_graph],
    ids=lambda damage: damage.__name__,
)
def test_damaged_files_are_refused_in_one_line(saved: Path, damage: Callable[[Path], None]) -> None:
    damage(saved)
    with pytest.raises(EdgepruneError, match="is not a whole circuit file of format") as caught:
        Circuit.load(saved)
    assert str(saved) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgepruneError, match=r"no circuit file at .*absent"):
        Circuit.load(tmp_path / "absent.safetensors")
    with pytest.raises(EdgepruneError, match="no circuit file at"):
        Circuit.load(tmp_path)


# ------------------------------------------------------------------ checkpoints
@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    masks = {
        "graph": GRAPH.to_dict(),
        "scores": GRAPH.to_vector(random_scores()),
        "num_open": 42,
        "header": {"method": "edge_pruning", "model": "tiny"},
    }
    path = tmp_path / "last.ckpt"
    torch.save({"edgeprune": masks, "state_dict": {}, "epoch": 3}, path)
    return path


def test_masks_come_out_of_a_checkpoint(checkpoint: Path) -> None:
    found = Circuit.from_checkpoint(checkpoint)
    assert found.num_edges == 42
    assert found.header == {"method": "edge_pruning", "model": "tiny"}
    expected = Circuit.from_scores(GRAPH, random_scores(), num_edges=42)
    assert torch.equal(found.keep, expected.keep)
    assert Circuit.from_checkpoint(checkpoint, sparsity=0.9).num_edges == edges_at(GRAPH, 0.9)
    assert Circuit.from_checkpoint(checkpoint, num_edges=7).num_edges == 7


def _foreign_checkpoint(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


def _object_checkpoint(path: Path) -> None:
    torch.save({"edgeprune": _truncate}, path)  # would run code on loading: never unpickled


def test_a_sealed_checkpoint_is_refused_whatever_bit_of_it_is_flipped(checkpoint: Path) -> None:
    content = load_checkpoint(checkpoint)  # torch's own, without a seal
    write_checkpoint(content, checkpoint)
    assert torch.load(checkpoint, weights_only=True).keys() == content.keys() | {"sealed"}
    assert torch.equal(load_checkpoint(checkpoint)["edgeprune"]["scores"], content["edgeprune"]["scores"])
    whole = checkpoint.read_bytes()
    silent = 0
    for place, bit in flips(len(whole), 150):
        checkpoint.write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
        with pytest.raises(EdgepruneError, match="is not a whole checkpoint: ") as caught:
            Circuit.from_checkpoint(checkpoint)
        assert "\n" not in str(caught.value), place
        with suppress(Exception):
            silent += bool(torch.load(checkpoint, weights_only=True))
    assert silent > 10  # torch alone would have taken many of them
    for length in range(0, len(whole), len(whole) // 50):
        checkpoint.write_bytes(whole[:length])
        with pytest.raises(EdgepruneError, match="is not a whole checkpoint: "):
            load_checkpoint(checkpoint)


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.getcwd, ()


def test_a_checkpoint_with_code_is_refused_in_the_projects_words(tmp_path: Path) -> None:
    """Torch's own advise to run it."""
    torch.save({"state_dict": Code()}, tmp_path / "a.ckpt")
    with pytest.raises(EdgepruneError, match="holds more than tensors and plain values; use another one") as caught:
        load_checkpoint(tmp_path / "a.ckpt")
    assert "weights_only" not in str(caught.value)
    assert "torch.load" not in str(caught.value)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_truncate, "is not a whole checkpoint: "),
        (_empty, "is not a whole checkpoint: "),
        (_text, "is not a whole checkpoint: "),
        (_object_checkpoint, "is not a whole checkpoint: "),
        (_foreign_checkpoint, "is a checkpoint, but not one of edgeprune: it holds no masks"),
        (Path.unlink, "no checkpoint at "),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_damaged_checkpoints_are_refused(checkpoint: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(checkpoint)
    with pytest.raises(EdgepruneError, match=message) as caught:
        read_checkpoint(checkpoint)
    assert str(checkpoint) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_scores_that_cannot_be_ranked_are_refused() -> None:
    scores = random_scores()
    scores[-1, 0] = float("nan")
    with pytest.raises(EdgepruneError, match="must be finite"):
        Circuit.from_scores(GRAPH, scores, num_edges=3)
    with pytest.raises(EdgepruneError, match=r"the score of embed->logits is NaN, as that of 1 edges in all"):
        Circuit(GRAPH, GRAPH.exists, scores)
    scores[-1, 0] = 1.0
    scores[~GRAPH.exists] = float("nan")  # no edge, so no score
    assert Circuit(GRAPH, GRAPH.exists, scores).num_edges == GRAPH.num_edges


def test_a_circuit_file_with_a_score_that_is_no_number_is_refused(circuit: Circuit, saved: Path) -> None:
    """As an earlier version wrote it: whole, and under its seal."""
    assert circuit.scores is not None
    circuit.scores[-1, 0] = float("nan")
    circuit.save(saved)
    with pytest.raises(EdgepruneError, match=r"is not a whole circuit file .* embed->logits is NaN") as caught:
        Circuit.load(saved)
    assert "\n" not in str(caught.value)


def test_an_altered_header_is_refused(tmp_path: Path) -> None:
    path = Circuit.from_edges(GRAPH, ["m0->logits"], {"task": "one"}).save(tmp_path / "c.safetensors")
    path.write_bytes(path.read_bytes().replace(b'"one', b'"two').replace(b'one\\"', b'two\\"'))
    with pytest.raises(EdgepruneError, match="not a whole circuit file"):
        Circuit.load(path)
