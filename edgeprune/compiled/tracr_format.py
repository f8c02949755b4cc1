"""Read compiled transformers with a known circuit from folders of the format `tracr-circuit-data/1`.

A folder holds `model.json` (shape, vocabulary), `model.safetensors` (weights per head, inputs before outputs),
`circuit.json` (the edges that matter, under several ablations) and `examples.json` (inputs, and pairs of them).
"""

import os
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from edgeprune.compiled.transformer import CompiledConfig, CompiledTransformer
from edgeprune.errors import EdgepruneError
from edgeprune.parsing import parse_json

FORMAT = "tracr-circuit-data/1"
EdgeKind = Literal["causal", "minimal", "structural"]
_NAMES = {"tok": "tok_embed", "pos": "pos_embed", "out": "logits"}


def is_tracr_folder(path: str | Path) -> bool:
    """Whether `path` looks like such a folder (a Hugging Face folder has `config.json` instead)."""
    # os.path is False where Path raises: in a folder that may not be entered
    return os.path.isfile(Path(path) / "model.json") and not os.path.exists(Path(path) / "config.json")  # noqa: PTH110, PTH113


def read_folder(path: str | Path) -> CompiledTransformer:
    """Build the model in a folder.

    Raises:
        EdgepruneError: A file is missing or damaged, the architecture is another, or a tensor does not fit.
    """
    path = Path(path)
    config = _read_config(path)
    model = CompiledTransformer(config)
    weights = list(_weights(config))
    tensors = _read_tensors(path / "model.safetensors", {weight.source: weight.shape for weight in weights})
    model.load_state_dict({weight.target: weight.convert(tensors[weight.source]) for weight in weights})
    return model.eval()


def known_edges(path: str | Path, ablation: str, kind: EdgeKind = "causal") -> tuple[str, ...]:
    """Names of the edges that matter in a folder's model; its graph has token and position embedding apart.

    Args:
        path: The folder.
        ablation: `"zero"`, `"interchange"`, or another that the folder knows.
        kind: `"causal"`: edges that matter when closed alone. `"minimal"`: what is left when edges are closed one
            after the other as long as the output stays. `"structural"`: edges that carry anything.

    Raises:
        EdgepruneError: A file is missing or damaged, or this ablation is not in it.
    """
    if kind not in get_args(EdgeKind):
        raise EdgepruneError(f"kind must be one of {', '.join(get_args(EdgeKind))}, got {kind!r}")
    file = Path(path) / "circuit.json"
    circuit = _read_json(file)
    keys = {name: kind if kind == "structural" else f"{kind}_{name}" for name in circuit.get("pairs") or ()}
    known = [name for name, key in keys.items() if key in circuit]
    if ablation not in known:
        raise EdgepruneError(f"{file} has no circuit for ablation {ablation!r}; it has: {', '.join(known)}")
    try:
        pairs = [(str(writer), str(reader)) for writer, reader in circuit[keys[ablation]]]
    except (TypeError, ValueError) as error:
        raise EdgepruneError(
            f"{file}: {keys[ablation]!r} is no list of edges ({error}); get the folder again"
        ) from None
    return tuple(f"{_NAMES.get(writer, writer)}->{_NAMES.get(reader, reader)}" for writer, reader in pairs)


class Examples(NamedTuple):
    """Stored inputs of a model, as token ids.

    Attributes:
        inputs: Valid inputs.
        pairs: For each kind of pair (`"interchange"`, ...) clean and corrupted inputs of the same length.
        first_output: First position with an output; None: only at the last one.
        categorical: Outputs stand for symbols (else they are numbers).
    """

    inputs: list[tuple[int, ...]]
    pairs: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]]
    first_output: int | None
    categorical: bool

    def positions(self, length: int) -> tuple[int, ...]:
        """Positions with an output in an input of `length` tokens."""
        return tuple(range(length - 1 if self.first_output is None else self.first_output, length))


def read_examples(path: str | Path) -> Examples:
    """The inputs in a folder's `examples.json`.

    Raises:
        EdgepruneError: A file is missing, damaged or incomplete, or the model cannot take an input.
    """
    path = Path(path)
    file = path / "examples.json"
    info, content = _read_json(path / "model.json"), _read_json(file, checked=False)
    try:
        pairs = {
            kind: [(tuple(pair["clean_ids"]), tuple(pair["corrupt_ids"])) for pair in rows]
            for kind, rows in content["pairs"].items()
        }
        first = info["first_output_position"] + info["unspecified_leading_outputs"]
        inputs = [tuple(example["ids"]) for example in content["examples"]]
        for ids in chain(inputs, *(pair for rows in pairs.values() for pair in rows)):
            _check_input(ids, len(info["vocab"]), info["n_ctx"], file)
        return Examples(
            inputs=inputs,
            pairs={kind: rows for kind, rows in pairs.items() if rows},
            first_output=None if info.get("output_positions") == "last" else first,
            categorical=info["output"]["kind"] == "categorical",
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise EdgepruneError(f"{file} or model.json beside it is incomplete: {error}; get the folder again") from None


def _check_input(ids: tuple[int, ...], vocab_size: int, longest: int, file: Path) -> None:
    if not 1 <= len(ids) <= longest or not all(token in range(vocab_size) for token in ids):
        raise EdgepruneError(
            f"{file} has the input {list(ids)}, the model takes 1 to {longest} ids from 0 to {vocab_size - 1}; "
            "get the folder again"
        )


# -------------------------------------------------------------------- files
def _read_config(path: Path) -> CompiledConfig:
    info = _read_json(path / "model.json")
    try:
        if info["activation"] != "relu" or info["layer_norm"]:
            raise EdgepruneError(f"{path}: only models with activation 'relu' and without layer norm can be read")
        odd = [key for key, kind in _KINDS.items() if not isinstance(info[key], kind)]
        if odd:
            raise TypeError(f"{odd[0]} is {info[odd[0]]!r}")
        return _config(info, path)
    except (KeyError, TypeError, AttributeError) as error:
        raise EdgepruneError(f"{path / 'model.json'} is incomplete: {error}; get the folder again") from None


def _read_json(file: Path, checked: bool = True) -> dict[str, Any]:
    try:
        content = parse_json(file.read_text(encoding="utf-8"), file.name)
    except OSError as error:
        raise EdgepruneError(f"cannot read {file}: {error.strerror}; is this a folder of format {FORMAT}?") from None
    except ValueError as error:
        raise EdgepruneError(f"{file} is damaged: {error}; get the folder again") from None
    found = content.get("format") if isinstance(content, dict) else None
    if isinstance(content, dict) and not checked:
        return content
    if found != FORMAT:
        raise EdgepruneError(f"{file} has format {found!r}, only {FORMAT!r} can be read")
    return content


def _read_tensors(file: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    try:
        tensors = load_file(file)
    except OSError as error:
        raise EdgepruneError(f"cannot read {file}: {error}; get the folder again") from None
    except SafetensorError as error:
        raise EdgepruneError(f"{file} is damaged: {error}; get the folder again") from None
    if tensors.keys() != shapes.keys():
        odd = sorted(tensors.keys() ^ shapes.keys())
        raise EdgepruneError(f"{file}: tensors missing or unexpected: {', '.join(odd)}; they must match model.json")
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise EdgepruneError(
                f"{file}: {name} has shape {list(tensors[name].shape)}, model.json asks for {list(shape)}"
            )
    return tensors


# -------------------------------------------------------------------- shape and weights
_SIZES = ("n_layers", "n_heads", "d_head", "d_model", "d_mlp", "n_ctx")
_KINDS: dict[str, Any] = {**dict.fromkeys(_SIZES, int), "causal": bool, "attn_scale": (int, float)}


def _config(info: dict[str, Any], path: Path) -> CompiledConfig:
    output = info["output"]
    config = CompiledConfig(
        vocab_size=len(info["vocab"]),
        n_ctx=info["n_ctx"],
        num_hidden_layers=info["n_layers"],
        num_attention_heads=info["n_heads"],
        head_dim=info["d_head"],
        hidden_size=info["d_model"],
        intermediate_size=info["d_mlp"],
        d_out=output["d_out"],
        causal=info["causal"],
        attn_scale=float(info["attn_scale"]),
        vocab=[str(token) for token in info["vocab"]],
        output_labels=[str(label) for label in output["values"] or output["labels"]],
        bos_token_id=info["bos"] and info["bos"]["id"],
        pad_token_id=info["pad"] and info["pad"]["id"],
    )
    config.name_or_path = str(path)
    return config


def _same(tensor: Tensor) -> Tensor:
    return tensor


def _fused_outputs(tensor: Tensor) -> Tensor:
    return tensor.mT.flatten(0, 1)


def _fused_inputs(tensor: Tensor) -> Tensor:
    return tensor.flatten(0, 1).T


class _Weight(NamedTuple):
    """A tensor of the file (inputs first, heads apart), and of the model (outputs first, heads fused)."""

    source: str
    shape: tuple[int, ...]
    target: str
    convert: Callable[[Tensor], Tensor] = _same


def _weights(config: CompiledConfig) -> Iterator[_Weight]:
    d, dh, heads, units = config.hidden_size, config.head_dim, config.num_attention_heads, config.intermediate_size
    yield _Weight("embed.W_E", (config.vocab_size, d), "tok_embed.weight")
    yield _Weight("pos_embed.W_pos", (config.n_ctx, d), "pos_embed.weight")
    yield _Weight("unembed.W_U", (d, config.d_out), "unembed.weight", Tensor.t)
    for layer in range(config.num_hidden_layers):
        source, target = f"blocks.{layer}.attn", f"layers.{layer}.attn"
        for kind in "QKV":
            project = f"{target}.{kind.lower()}_proj"
            yield _Weight(f"{source}.W_{kind}", (heads, d, dh), f"{project}.weight", _fused_outputs)
            yield _Weight(f"{source}.b_{kind}", (heads, dh), f"{project}.bias", Tensor.flatten)
        yield _Weight(f"{source}.W_O", (heads, dh, d), f"{target}.o_proj.weight", _fused_inputs)
        yield _Weight(f"{source}.b_O", (d,), f"{target}.o_proj.bias")
        for end, width, other in (("in", d, units), ("out", units, d)) if units else ():
            yield _Weight(
                f"blocks.{layer}.mlp.W_{end}", (width, other), f"layers.{layer}.mlp.fc_{end}.weight", Tensor.t
            )
            yield _Weight(f"blocks.{layer}.mlp.b_{end}", (other,), f"layers.{layer}.mlp.fc_{end}.bias")
