import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from datamodules.tasks.tracr import TracrTask
from edgeprune.circuit import Circuit
from edgeprune.compiled import CompiledConfig, CompiledTransformer
from edgeprune.compiled.tracr_format import (
    FORMAT,
    is_tracr_folder,
    known_edges,
    read_examples,
    read_folder,
)
from edgeprune.errors import EdgepruneError
from tests.compiled.slow import graph_of
from tests.files import GROUND_TRUTH, KNOWN_MODELS


def tensors_of(model: CompiledTransformer) -> dict[str, torch.Tensor]:
    """The file's tensors, spelled out head by head (independently of the reader)."""
    config, tensors = model.config, {}
    tensors["embed.W_E"], tensors["pos_embed.W_pos"] = model.tok_embed.weight, model.pos_embed.weight
    tensors["unembed.W_U"] = model.unembed.weight.T
    for number, layer in enumerate(model.layers):
        block, dh = f"blocks.{number}", config.head_dim
        heads = [slice(head * dh, (head + 1) * dh) for head in range(config.num_attention_heads)]
        for kind in "qkv":
            linear = getattr(layer.attn, f"{kind}_proj")
            tensors[f"{block}.attn.W_{kind.upper()}"] = torch.stack([linear.weight[rows].T for rows in heads])
            tensors[f"{block}.attn.b_{kind.upper()}"] = torch.stack([linear.bias[rows] for rows in heads])
        tensors[f"{block}.attn.W_O"] = torch.stack([layer.attn.o_proj.weight[:, rows].T for rows in heads])
        tensors[f"{block}.attn.b_O"] = layer.attn.o_proj.bias
        for end in ("in", "out"):
            linear = getattr(layer.mlp, f"fc_{end}")
            tensors |= {f"{block}.mlp.W_{end}": linear.weight.T, f"{block}.mlp.b_{end}": linear.bias}
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a random model of two heads, in which no two sizes are equal."""
    torch.manual_seed(0)
    config = CompiledConfig(
        vocab_size=5, n_ctx=6, hidden_size=7, intermediate_size=8, head_dim=3, d_out=4, attn_scale=0.3
    )
    model = CompiledTransformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    save_file(tensors_of(model), tmp_path / "model.safetensors")
    info = {
        "format": FORMAT, "activation": "relu", "layer_norm": False, "vocab": [1, 2, 3, "BOS", "PAD"],
        "n_layers": 2, "n_heads": 2, "d_head": 3, "d_model": 7, "d_mlp": 8, "n_ctx": 6,
        "causal": False, "attn_scale": 0.3,
        "first_output_position": 1, "unspecified_leading_outputs": 1, "output_positions": "every position from 1",
        "output": {"kind": "categorical", "d_out": 4, "values": None, "labels": ["w", "x", "y", "z"]},
        "bos": {"id": 3}, "pad": {"id": 4},
    }  # fmt: skip
    (tmp_path / "model.json").write_text(json.dumps(info))
    circuit = {
        "format": FORMAT,
        "pairs": {"zero": 1, "interchange": 0},
        "causal_zero": [["tok", "m0"], ["m0", "out"]],
    }
    (tmp_path / "circuit.json").write_text(json.dumps(circuit))
    examples = {
        "examples": [{"ids": [3, 0, 1]}, {"ids": [3, 2]}],
        "pairs": {"interchange": [{"clean_ids": [3, 0, 1], "corrupt_ids": [3, 1, 1]}], "interchange_pad": []},
    }
    (tmp_path / "examples.json").write_text(json.dumps(examples))
    save_file(dict(model.state_dict()), tmp_path / "expected.safetensors")
    return tmp_path


def test_weights_come_back(folder: Path) -> None:
    model = read_folder(folder)
    expected = load_file(folder / "expected.safetensors")
    assert model.state_dict().keys() == expected.keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    assert model.config.vocab == ["1", "2", "3", "BOS", "PAD"]
    assert model.config.output_labels == ["w", "x", "y", "z"]
    assert (model.config.bos_token_id, model.config.pad_token_id) == (3, 4)
    assert model.config.name_or_path == str(folder)


def test_circuits_get_our_names(folder: Path) -> None:
    assert known_edges(folder, "zero") == ("tok_embed->m0", "m0->logits")
    with pytest.raises(EdgepruneError, match="no circuit for ablation 'interchange'; it has: zero"):
        known_edges(folder, "interchange")


def test_circuits_of_every_ablation(folder: Path) -> None:
    assert Circuit.from_edges(graph_of(read_folder(folder)), known_edges(folder, "zero")).num_edges == 2
    edit_circuit(folder, structural=[["tok", "m0"], ["m0", "out"], ["pos", "out"]])
    assert len(known_edges(folder, "interchange", "structural")) == 3
    with pytest.raises(EdgepruneError, match="kind must be one of causal, minimal, structural, got 'other'"):
        known_edges(folder, "zero", "other")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("edges", "named"),
    [([["tok", "m9"]], "m9"), ([["tok"]], "no list of edges"), (7, "no list of edges"), ([["m1", "m0"]], "m1->m0")],
)
def test_edges_that_cannot_be_are_refused(folder: Path, edges: object, named: str) -> None:
    edit_circuit(folder, causal_zero=edges)
    with pytest.raises(EdgepruneError, match=named):
        Circuit.from_edges(graph_of(read_folder(folder)), known_edges(folder, "zero"))


def edit_circuit(folder: Path, **changes: object) -> None:
    file = folder / "circuit.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_examples(folder: Path) -> None:
    examples = read_examples(folder)
    assert examples.inputs == [(3, 0, 1), (3, 2)]
    assert examples.pairs == {"interchange": [((3, 0, 1), (3, 1, 1))]}
    assert examples.positions(4) == (2, 3)  # position 0 is BOS, and the program says nothing at position 1
    assert examples.categorical
    edit_json(folder, output_positions="last")
    assert read_examples(folder).positions(4) == (3,)


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("{", "examples.json is damaged"),
        ("[]", "format None"),
        ("{}", "incomplete: 'pairs'"),
        ('{"pairs": 3}', "incomplete"),
    ],
)
def test_damaged_examples_are_refused(folder: Path, content: str, named: str) -> None:
    (folder / "examples.json").write_text(content)
    with pytest.raises(EdgepruneError, match=named):
        read_examples(folder)


@pytest.mark.parametrize("ids", [[3, 5], [3, -1], [3] * 7, [], ["BOS"]])
@pytest.mark.parametrize("place", ["input", "corrupted"])
def test_inputs_that_the_model_cannot_take_are_refused(folder: Path, ids: list[object], place: str) -> None:
    good = [3, 0]
    content = {
        "examples": [{"ids": ids if place == "input" else good}],
        "pairs": {"interchange": [{"clean_ids": good, "corrupt_ids": ids if place == "corrupted" else good}]},
    }
    (folder / "examples.json").write_text(json.dumps(content))
    with pytest.raises(EdgepruneError, match=r"examples.json has the input .*, the model takes 1 to 6 ids from 0 to 4"):
        read_examples(folder)


def test_pairs_too_short_to_have_an_output_are_left_out(folder: Path) -> None:
    """This folder's program says nothing at the first position after BOS, and one example has no other."""
    for kind in ("interchange", "none"):
        (pair,) = TracrTask(str(folder), pairs=kind, held_out=False).splits(None)["train"]
        assert (pair.clean, pair.positions) == ((3, 0, 1), (2,))
    edit_json(folder, unspecified_leading_outputs=2)
    with pytest.raises(EdgepruneError, match="has no pair of kind 'interchange' with a position"):
        TracrTask(str(folder)).splits(None)


def test_a_circuit_may_be_empty(folder: Path) -> None:
    """As that of `length` under interchange: nothing depends on which tokens there are."""
    edit_circuit(folder, causal_interchange=[])
    assert known_edges(folder, "interchange") == ()
    circuit = Circuit.from_edges(graph_of(read_folder(folder)), known_edges(folder, "interchange"))
    assert (circuit.num_edges, circuit.sparsity) == (0, 1.0)


def test_folders_are_recognised(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert is_tracr_folder(folder)
    hugging_face = tmp_path_factory.mktemp("hf")
    (hugging_face / "config.json").write_text("{}")
    assert not is_tracr_folder(hugging_face)
    assert not is_tracr_folder(folder / "absent")


def edit_json(folder: Path, **changes: object) -> None:
    file = folder / "model.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def drop_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["blocks.1.mlp.b_in"]
    save_file(tensors, folder / "model.safetensors")


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


DAMAGES = {
    "no json": (lambda folder: (folder / "model.json").unlink(), "cannot read .*model.json: No such file"),
    "broken json": (lambda folder: (folder / "model.json").write_text("{"), "model.json is damaged"),
    "a list": (lambda folder: (folder / "model.json").write_text("[]"), "has format None, only"),
    "other format": (
        lambda folder: edit_json(folder, format="tracr-circuit-data/2"),
        "circuit-data/2', only",
    ),
    "other activation": (
        lambda folder: edit_json(folder, activation="gelu"),
        "only models with activation 'relu'",
    ),
    "no vocab": (lambda folder: edit_json(folder, vocab=None), "model.json is incomplete"),
    "a word as size": (lambda folder: edit_json(folder, n_layers="2"), "model.json is incomplete: n_layers is '2'"),
    "a word as scale": (lambda folder: edit_json(folder, attn_scale="x"), "incomplete: attn_scale is 'x'"),
    "a word as switch": (lambda folder: edit_json(folder, causal="yes"), "incomplete: causal is 'yes'"),
    "other shape": (
        lambda folder: edit_json(folder, n_ctx=9),
        r"W_pos has shape \[6, 7\], .* asks for \[9, 7\]",
    ),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "cannot read .*model.safetensors"),
    "lost tensor": (drop_tensor, "missing or unexpected: blocks.1.mlp.b_in"),
    "cut off": (truncate, "model.safetensors is damaged"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_folders_are_refused_in_one_line(folder: Path, damage: str) -> None:
    harm, message = DAMAGES[damage]
    harm(folder)
    with pytest.raises(EdgepruneError, match=message) as caught:
        read_folder(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("folder", KNOWN_MODELS, ids=lambda folder: folder.name)
def test_known_models_compute_their_stored_outputs(folder: Path) -> None:
    model = read_folder(folder).requires_grad_(False)
    # and_gate multiplies a difference near 1 by 1e5, which turns one rounding of float32 (6e-8) into 6e-3
    tolerance = 1e-2 if folder.name == "and_gate" else 1e-5
    examples = json.loads((folder / "examples.json").read_text())["examples"]
    assert examples
    for example in examples:
        logits = model(torch.tensor([example["ids"]])).logits[0]
        torch.testing.assert_close(logits, torch.tensor(example["raw"]), rtol=0, atol=tolerance)


@pytest.mark.parametrize("folder", KNOWN_MODELS, ids=lambda folder: folder.name)
def test_known_circuits_are_edges_of_our_graph(folder: Path) -> None:
    circuit = json.loads((folder / "circuit.json").read_text())
    graph = graph_of(read_folder(folder))
    assert graph.num_edges == circuit["n_edges_total"]
    edges = known_edges(folder, "zero")
    assert graph.keep_matrix(edges).sum() == len(edges) == len(circuit["causal_zero"]) > 0


@pytest.mark.parametrize("ablation", ["zero", "interchange"])
def test_our_reverse_has_the_circuit_of_the_known_one(ablation: str) -> None:
    from edgeprune.compiled import true_circuit

    assert set(known_edges(GROUND_TRUTH / "reverse", ablation)) == set(true_circuit("reverse", ablation))
