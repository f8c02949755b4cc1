"""The edge graph: published counts, names, existence by brute force, dangling edges by enumerating paths."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph

ONE = "one embedding writer (EAP-IG, MIB, auto-circuit, DiscoGP)"
GROUPED = "one embedding writer, k and v readers per key/value head"
SPLIT = "token and position embedding apart (Edge Pruning with embedding nodes)"
NO_EMBEDDING = "embeddings are no writers (Edge Pruning without embedding nodes)"
ONE_DIRECT = "one embedding writer + 3 direct edges per head (ACDC)"
SPLIT_DIRECT = "token and position embedding apart + 3 direct edges per head (ACDC)"
UNSPLIT = "one embedding writer, q, k and v of a head read as one"


def spec(layers: int, heads: int, kv_heads: int | None = None, **options: Any) -> ArchSpec:
    return ArchSpec(num_layers=layers, num_heads=heads, num_kv_heads=kv_heads or heads, **options)


SMALL = {
    "plain": spec(3, 4),
    "one head": spec(4, 1),
    "one layer": spec(1, 3),
    "split": spec(2, 3, split_embedding=True),
    "groups": spec(3, 4, 2),
    "one group": spec(2, 4, 1),
    "groups by head": spec(3, 4, 2, kv_readers="head"),
    "attention only": spec(3, 4, has_mlp=False),
    "attention only groups": spec(3, 4, 2, has_mlp=False),
    "parallel": spec(3, 4, parallel_blocks=True),
    "parallel split groups": spec(2, 4, 2, parallel_blocks=True, split_embedding=True),
}
small = pytest.mark.parametrize("arch", SMALL.values(), ids=SMALL.keys())


# ------------------------------------------------------------------ counts
@pytest.mark.parametrize(
    ("arch", "published"),
    [
        pytest.param(spec(12, 12), 32_491, id="GPT-2 small"),
        pytest.param(spec(12, 12, split_embedding=True), 32_936, id="GPT-2 small, split"),
        pytest.param(spec(12, 12, parallel_blocks=True), 32_347, id="Pythia-160m shape"),
        pytest.param(spec(24, 16), 231_877, id="GPT-2 medium"),
        pytest.param(spec(36, 20), 810_703, id="GPT-2 large"),
        pytest.param(spec(48, 25), 2_235_025, id="GPT-2 xl"),
        pytest.param(spec(32, 32, 8, kv_readers="head"), 1_592_881, id="Llama-3.1-8B"),
        pytest.param(spec(26, 8, 4, kv_readers="head"), 74_218, id="Gemma-2-2B"),
        pytest.param(spec(24, 14, 2, kv_readers="head"), 179_749, id="Qwen2.5-0.5B"),
        pytest.param(spec(16, 32, 8, kv_readers="head"), 386_713, id="Llama-3.2-1B"),
        pytest.param(spec(40, 40), 3_877_661, id="CodeLlama-13B"),
        pytest.param(spec(4, 8, has_mlp=False), 1_281, id="attn-only-4l"),
        pytest.param(spec(2, 8, has_mlp=False), 257, id="redwood 2l"),
        pytest.param(spec(4, 1), 77, id="tracr reverse"),
        pytest.param(spec(4, 1, split_embedding=True), 94, id="tracr reverse, split"),
        pytest.param(spec(2, 1), 23, id="tracr xproportion"),
        pytest.param(spec(2, 1, split_embedding=True), 32, id="tracr xproportion, split"),
        pytest.param(spec(30, 9, 3), 70_651, id="SmolLM2-135M, group"),
    ],
)
def test_published_counts(arch: ArchSpec, published: int) -> None:
    graph = EdgeGraph(arch)
    assert graph.num_edges == published
    key = SPLIT if arch.split_embedding else GROUPED if arch.kv_readers == "group" else ONE
    assert graph.counts()[key] == published


@pytest.mark.parametrize(
    ("arch", "convention", "published"),
    [
        (spec(12, 12), ONE, 32_491),
        (spec(12, 12), ONE_DIRECT, 32_923),
        (spec(12, 12), SPLIT, 32_936),
        (spec(12, 12), SPLIT_DIRECT, 33_368),
        (spec(12, 12), NO_EMBEDDING, 32_046),
        (spec(12, 12), UNSPLIT, 11_611),
        (spec(40, 40), NO_EMBEDDING, 3_872_820),
        (spec(40, 40), ONE, 3_877_661),
        (spec(4, 8, has_mlp=False), ONE_DIRECT, 1_377),
        (spec(2, 8, has_mlp=False), ONE_DIRECT, 305),
        (spec(4, 1), ONE, 77),
        (spec(4, 1), SPLIT, 94),
        (spec(4, 1), SPLIT_DIRECT, 106),
        (spec(2, 1), ONE, 23),
        (spec(2, 1), SPLIT, 32),
        (spec(2, 1), SPLIT_DIRECT, 38),
        (spec(32, 32, parallel_blocks=True), UNSPLIT, 542_257),
        (spec(30, 9, 3), GROUPED, 70_651),
    ],
)
def test_counts_in_other_conventions(arch: ArchSpec, convention: str, published: int) -> None:
    assert EdgeGraph(arch).counts()[convention] == published


@small
def test_counts_do_not_depend_on_the_graphs_own_convention(arch: ArchSpec) -> None:
    for embeddings in (False, True):
        for kv_readers in ("group", "head"):
            values = EdgeGraph(arch).to_dict() | {"split_embedding": embeddings, "kv_readers": kv_readers}
            assert EdgeGraph.from_dict(values).counts() == EdgeGraph(arch).counts()


@small
def test_describe_mentions_every_count(arch: ArchSpec) -> None:
    graph = EdgeGraph(arch)
    text = graph.describe()
    assert f"{graph.num_edges:,} edges" in text
    assert f"{len(graph.writers):,} writers" in text
    assert f"{len(graph.readers):,} readers" in text
    for convention, count in graph.counts().items():
        assert re.search(rf"\b{count:,}  {re.escape(convention)}$", text, re.MULTILINE)


def test_describe_names_what_is_special() -> None:
    assert "2 layers, 4 heads (2 key/value heads)\n" in EdgeGraph(spec(2, 4, 2)).describe()
    assert "attention only" in EdgeGraph(SMALL["attention only"]).describe()
    assert "parallel attention and MLP" in EdgeGraph(SMALL["parallel"]).describe()


# ------------------------------------------------------------------ names and existence
def place(name: str) -> tuple[float, str]:
    """Layer and kind of a writer or reader, read off its name alone."""
    if name.endswith("embed"):
        return -1, "embed"
    if name == "logits":
        return float("inf"), "logits"
    layer = float(name[1:].split(".")[0])
    return layer, "mlp" if name.startswith("m") else "head"


def edge_exists(arch: ArchSpec, writer: str, reader: str) -> bool:
    (from_layer, from_kind), (to_layer, to_kind) = place(writer), place(reader)
    within = from_kind == "head" and to_kind == "mlp" and not arch.parallel_blocks
    return from_layer < to_layer or (from_layer == to_layer and within)


@small
def test_existence_by_enumeration(arch: ArchSpec) -> None:
    graph = EdgeGraph(arch)
    expected = [[edge_exists(arch, writer, reader) for writer in graph.writers] for reader in graph.readers]
    assert graph.exists.tolist() == expected
    assert graph.num_edges == sum(map(sum, expected))
    assert list(graph.num_visible) == [sum(row) for row in expected]
    assert graph.shape == graph.exists.shape


def test_names_and_order() -> None:
    graph = EdgeGraph(spec(2, 2, 1, split_embedding=True))
    assert graph.writers == ("tok_embed", "pos_embed", "a0.h0", "a0.h1", "m0", "a1.h0", "a1.h1", "m1")
    assert graph.readers == (
        *("a0.h0.q", "a0.h1.q", "a0.h0.k", "a0.h0.v", "m0"),
        *("a1.h0.q", "a1.h1.q", "a1.h0.k", "a1.h0.v", "m1"),
        "logits",
    )
    by_head = EdgeGraph(spec(1, 2, 1, kv_readers="head", has_mlp=False))
    assert by_head.writers == ("embed", "a0.h0", "a0.h1")
    assert by_head.readers == ("a0.h0.q", "a0.h1.q", "a0.h0.k", "a0.h1.k", "a0.h0.v", "a0.h1.v", "logits")


@small
def test_names_are_unique_and_lead_back(arch: ArchSpec) -> None:
    graph = EdgeGraph(arch)
    edges = [graph.edge_name(*pair) for pair in graph.exists.nonzero().tolist()]
    assert len(set(edges)) == graph.num_edges
    assert [graph.edge_name(*graph.index(edge)) for edge in edges] == edges
    assert torch.equal(graph.keep_matrix(edges), graph.exists)


def test_index_by_hand() -> None:
    graph = EdgeGraph(spec(12, 12))
    assert graph.index("embed->a0.h0.q") == (0, 0)
    assert graph.index(" m11 -> logits ") == (444, 156)
    assert graph.index("a3.h7->a5.h1.q") == (5 * 37 + 1, 1 + 3 * 13 + 7)


@pytest.mark.parametrize(
    ("edge", "message"),
    [
        ("a0.h0", "'a0.h0' is not of the form 'writer->reader'"),
        ("", "'' is not of the form"),
        ("a0.h5->logits", "no writer named 'a0.h5' in this graph; did you mean 'a0.h"),
        ("m0->a1.h1.z", "no reader named 'a1.h1.z' in this graph; did you mean 'a1.h1."),
        ("xyz->logits", "no writer named 'xyz' in this graph; they run from 'embed' to 'm1'"),
        ("m0->???", "no reader named '???' in this graph; they run from 'a0.h0.q' to 'logits'"),
        ("logits->m0", "no writer named 'logits'"),
        ("m0->m0", "'m0->m0' does not exist: m0 is not computed before m0 reads"),
        ("a1.h0->a1.h1.q", "does not exist: a1.h0 is not computed before a1.h1.q reads"),
        ("m1->a0.h0.v", "does not exist"),
    ],
)
def test_wrong_edges_are_refused(edge: str, message: str) -> None:
    with pytest.raises(EdgepruneError, match=re.escape(message)) as caught:
        EdgeGraph(spec(2, 2)).index(edge)
    assert "\n" not in str(caught.value)


def test_parallel_blocks_have_no_edge_from_a_head_to_its_own_mlp() -> None:
    assert EdgeGraph(spec(2, 2)).index("a1.h0->m1") == (13, 4)
    with pytest.raises(EdgepruneError, match="does not exist"):
        EdgeGraph(spec(2, 2, parallel_blocks=True)).index("a1.h0->m1")


# ------------------------------------------------------------------ matrices and vectors
@small
def test_matrix_and_vector_are_inverse(arch: ArchSpec) -> None:
    graph = EdgeGraph(arch)
    values = torch.arange(1.0, graph.num_edges + 1)
    matrix = graph.to_matrix(values)
    assert torch.equal(graph.to_vector(matrix), values)
    assert torch.equal(matrix != 0, graph.exists)
    assert matrix[graph.index("embed->logits" if not arch.split_embedding else "tok_embed->logits")] > 0


def test_vector_runs_row_by_row() -> None:
    graph = EdgeGraph(spec(1, 1))
    rows = graph.to_matrix(torch.arange(1.0, 9.0)).tolist()
    assert rows == [[1, 0, 0], [2, 0, 0], [3, 0, 0], [4, 5, 0], [6, 7, 8]]


def test_gradients_pass_through_the_matrix() -> None:
    graph = EdgeGraph(spec(2, 2))
    values = torch.zeros(graph.num_edges, requires_grad=True)
    weights = torch.arange(float(graph.exists.numel())).view(graph.shape)
    (graph.to_matrix(values) * weights).sum().backward()
    assert values.grad is not None
    assert torch.equal(values.grad, graph.to_vector(weights))


def test_wrong_shapes_are_refused() -> None:
    graph = EdgeGraph(spec(2, 2))
    with pytest.raises(EdgepruneError, match=rf"one value for each of {graph.num_edges} edges, got .*\(3,\)"):
        graph.to_matrix(torch.zeros(3))
    with pytest.raises(EdgepruneError, match=r"shape \(15, 7\), got \(7, 15\)"):
        graph.to_vector(torch.zeros(7, 15))


def test_open_and_closed_gates() -> None:
    graph = EdgeGraph(spec(2, 2))
    assert torch.equal(graph.all_open(torch.float64), graph.exists.double())
    assert graph.all_closed().shape == graph.shape
    assert graph.all_closed().abs().sum() == 0


# ------------------------------------------------------------------ dangling edges
def outputs(arch: ArchSpec, reader: str) -> list[str]:
    """The writers that a reader feeds."""
    if "." not in reader:
        return [reader]  # an MLP writes under the name that it reads under
    layer, number, kind = reader.split(".")
    per_reader = arch.num_heads // arch.num_kv_heads if kind != "q" and arch.kv_readers == "group" else 1
    first = int(number[1:]) * per_reader
    return [f"{layer}.h{head}" for head in range(first, first + per_reader)]


def names(graph: EdgeGraph, keep: Tensor) -> set[str]:
    return {graph.edge_name(*pair) for pair in keep.nonzero().tolist()}


def edges_on_paths(graph: EdgeGraph, keep: Tensor) -> set[str]:
    """Edges of every path of kept edges from an embedding to the logits, one path after the other."""
    on_paths: set[str] = set()

    def walk(writer: str, path: list[str]) -> None:
        for row, reader in enumerate(graph.readers):
            if not keep[row, graph.writers.index(writer)]:
                continue
            longer = [*path, f"{writer}->{reader}"]
            if reader == "logits":
                on_paths.update(longer)
                continue
            for following in outputs(graph.arch, reader):
                walk(following, longer)

    for writer in graph.writers:
        if writer.endswith("embed"):
            walk(writer, [])
    return on_paths


@pytest.mark.parametrize("density", [0.1, 0.25, 0.5])
@small
def test_dangling_edges_lie_on_no_path(arch: ArchSpec, density: float) -> None:
    graph = EdgeGraph(arch)
    generator = torch.Generator().manual_seed(int(100 * density))
    for _ in range(3):
        keep = (torch.rand(graph.shape, generator=generator) < density) & graph.exists
        on_paths = edges_on_paths(graph, keep)
        assert names(graph, graph.dangling(keep)) == names(graph, keep) - on_paths


@small
def test_nothing_dangles_when_all_or_no_edges_are_kept(arch: ArchSpec) -> None:
    graph = EdgeGraph(arch)
    assert not graph.dangling(graph.exists).any()
    assert not graph.dangling(torch.zeros(graph.shape)).any()


def test_dangling_by_hand() -> None:
    graph = EdgeGraph(spec(2, 4, 2))
    # the v reader of group 1 serves query heads 2 and 3, so a0.h1 is not fed; m0 is not heard
    edges = ["embed->a0.h1.v", "a0.h2->logits", "a0.h1->logits", "embed->m0", "a1.h0->logits"]
    dangling = graph.dangling(graph.keep_matrix(edges))
    assert names(graph, dangling) == {"a0.h1->logits", "embed->m0", "a1.h0->logits"}


# ------------------------------------------------------------------ descriptions of graphs
@small
def test_plain_values_rebuild_the_graph(arch: ArchSpec) -> None:
    assert EdgeGraph.from_dict(EdgeGraph(arch).to_dict()) == EdgeGraph(arch)


@pytest.mark.parametrize("values", [{}, {"num_layers": 2}, {**EdgeGraph(spec(2, 2)).to_dict(), "colour": 1}])
def test_other_descriptions_are_refused(values: dict[str, Any]) -> None:
    with pytest.raises(EdgepruneError, match="not the description of a graph"):
        EdgeGraph.from_dict(values)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, 4), "at least one layer and one head"),
        ((2, 4, 3), "num_heads=4 is not a multiple of num_kv_heads=3"),
    ],
)
def test_impossible_shapes_are_refused(arguments: tuple[int, ...], message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        spec(*arguments)


def test_unknown_kv_readers_are_refused() -> None:
    with pytest.raises(EdgepruneError, match="kv_readers must be 'group' or 'head', got 'both'"):
        spec(2, 2, kv_readers="both")


def test_inputs_of_writers() -> None:
    """With shared key/value heads, two query heads read through the same rows."""
    graph = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2, split_embedding=True))
    named = {
        writer: [graph.readers[row] for row in rows] for writer, rows in zip(graph.writers, graph.inputs, strict=True)
    }
    assert named["tok_embed"] == named["pos_embed"] == []
    assert named["a1.h2"] == ["a1.h2.q", "a1.h1.k", "a1.h1.v"]
    assert named["a1.h3"] == ["a1.h3.q", "a1.h1.k", "a1.h1.v"]
    assert named["m0"] == ["m0"]
