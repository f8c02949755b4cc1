"""Names to models and tokenizers: hub id, local folder, what `edgeprune get` fetches, `compiled:NAME`, ground truth."""

import hashlib
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from edgeprune.errors import EdgepruneError
from edgeprune.graph import KVReaders
from edgeprune.models.family import ATTENTION_IMPLEMENTATIONS, find_family
from edgeprune.models.limits import Limits
from edgeprune.models.masked import MaskedModel
from edgeprune.models.pretrained import read_config, read_empty, read_model, read_tokenizer
from edgeprune.models.read_ops import checked_name
from edgeprune.models.sharded_loading import WeightFiles
from edgeprune.models.sharding import device_of, shard
from edgeprune.models.transformer_lens import check_same_logits, from_transformer_lens, is_of_transformer_lens
from edgeprune.models.weight_mask import WeightMask, applied_mask
from edgeprune.models.weights import check_finite, sample

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

COMPILED = "compiled:"
DTYPES = ("auto", "float32", "bfloat16", "float16", "float64")


def load_model(
    name: Any,
    *,
    split_embedding: bool | None = None,
    kv_readers: KVReaders = "group",
    dtype: str = "float32",
    device: str = "cpu",
    gguf_file: str | None = None,
    revision: str | None = None,
    attn_implementation: str | None = None,
    mesh: "DeviceMesh | None" = None,
    read_ops: str | None = None,
    weight_mask: str | None = None,
) -> MaskedModel:
    """Load a model whose edges can be closed.

    Args:
        name: A hub id (`"gpt2"`), a local folder, `"smollm2"` or `"gemma3-270m"` (after `edgeprune get` with that
            name), `"compiled:reverse"`, a folder of format `tracr-circuit-data/1`; or a model that is loaded already, a
            `PreTrainedModel` or TransformerLens' `HookedTransformer` or `TransformerBridge`.
        split_embedding: Token and position embedding are two writers. None: True for compiled models, else False.
        kv_readers: With grouped-query attention, one k and one v reader per key/value head (`"group"`) or per query
            head (`"head"`).
        dtype: `"float32"`, `"bfloat16"`, `"float16"`, `"float64"`, or `"auto"`, the checkpoint's own. Ignored for a
            model that is loaded already.
        device: Where to put it.
        gguf_file: File inside `name` to dequantise (needs the extra `gguf`).
        revision: Branch, tag or commit on the hub.
        attn_implementation: `"sdpa"`, `"eager"`, `"flash_attention_2"`; None for the library's choice.
        mesh: Processes, in one dimension, each of which gets a part of every weight, on its own device; `device` does
            not matter then. All of them must call it, and run the same layers in the same order afterwards, each on a
            batch of its own. Weights come from safetensors, and no process reads more than one layer at a time.
        read_ops: `"host"`, `"cuda"` or `"triton"`; see `MaskedModel`.
        weight_mask: File of a `WeightMask` to put on the weights.

    Raises:
        UnsupportedFamilyError: No adapter for the architecture, or a flag that the adapter does not know; adapters or
            quantised weights in the model; hooks on one of TransformerLens that change what it computes.
        EdgepruneError: The name leads nowhere, or there is no such dtype or device; a file is damaged; a weight is
            missing, of another shape, NaN or infinite. Code that comes with a model is not run.
    """
    if dtype not in DTYPES:
        raise EdgepruneError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}")
    if attn_implementation not in (None, *ATTENTION_IMPLEMENTATIONS):
        known = ", ".join(ATTENTION_IMPLEMENTATIONS)
        raise EdgepruneError(f"attn_implementation must be one of {known}, got {attn_implementation!r}")
    _check_device(device)
    checked_name(read_ops)
    given, files = name, None
    if not isinstance(name, (str, os.PathLike)):
        name, hf = f"the {type(given).__name__} given", _given(given)
    elif (hf := _compiled(str(name))) is not None:
        hf = hf if dtype == "auto" else hf.to(getattr(torch, dtype))
        split_embedding = True if split_embedding is None else split_embedding
    else:
        options: dict[str, Any] = {
            "dtype": dtype if dtype == "auto" else getattr(torch, dtype),
            "gguf_file": gguf_file,
            "revision": revision,
            "attn_implementation": attn_implementation,
        }
        if mesh is None:
            hf = read_model(str(name), _resolve(str(name)), options)
        else:
            hf, files = _empty(str(name), options, mesh)
    model = MaskedModel(hf, split_embedding=bool(split_embedding), kv_readers=kv_readers, read_ops=read_ops)
    if is_of_transformer_lens(given):
        check_same_logits(model, given)
    if mesh is not None:
        if weight_mask is not None:
            raise EdgepruneError("a sharded model takes no weight_mask: set trainer.strategy to ddp, or leave it out")
        shard(model, mesh, *([] if files is None else [files.fill]))
        return model.to(device_of(mesh))
    model = model.to(device)
    check_finite(dict(model.hf.named_parameters()), str(name))
    if weight_mask is not None:
        WeightMask.load(weight_mask).apply(model)
    return model


def _empty(name: str, options: dict[str, Any], mesh: "DeviceMesh") -> tuple[Any, WeightFiles]:
    """A Hugging Face model without weights, and the files that they are to be read from."""
    if options.pop("gguf_file") is not None:
        raise EdgepruneError(
            f"a GGUF file in {name!r} cannot be read in shards: load it whole, with trainer.strategy ddp, or save the "
            "model once with save_pretrained"
        )
    hf, folder = read_empty(name, _resolve(name), options)
    files = WeightFiles(hf, folder, name, device_of(mesh))
    files.fill_buffers()
    return hf, files


def _given(model: Any) -> Any:
    """What `MaskedModel` takes in place of a model that is loaded already: mostly that model."""
    hf = from_transformer_lens(model) or model
    if not hasattr(getattr(hf, "config", None), "model_type"):
        raise EdgepruneError(
            f"a model is given by its name or as a PreTrainedModel or HookedTransformer, got {type(model).__name__}"
        )
    return hf


def _check_device(device: str) -> None:
    """Refuse a device that is not there before anything is loaded; torch raises several kinds."""
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0].rstrip(".")
        raise EdgepruneError(f"cannot use device {device!r} ({reason}); 'cpu' is always there") from None


def load_tokenizer(name: Any, revision: str | None = None) -> "PreTrainedTokenizerBase | None":
    """The tokenizer that belongs to a model name, or None for compiled models, whose tasks give tokens.

    A model of TransformerLens has its own, or None.

    Raises:
        NoTokenizerError: The model comes without one.
        EdgepruneError: There is no such folder or name, or a file is damaged.
    """
    if is_of_transformer_lens(name):
        return name.tokenizer
    if name.startswith(COMPILED) or _is_ground_truth(name):
        return None
    return read_tokenizer(name, _resolve(name), revision)


def load_config(name: str, revision: str | None = None) -> "PreTrainedConfig":
    """The Hugging Face config that belongs to a model name; nothing of its weights is read, except of compiled models.

    Raises:
        UnsupportedFamilyError: No adapter for the architecture.
        EdgepruneError: The name leads nowhere, or the config is damaged.
    """
    compiled = _compiled(name)
    return read_config(name, _resolve(name), revision) if compiled is None else compiled.config


def known_limits(name: str, revision: str | None = None) -> Limits | None:
    """What a model takes, from its config alone; None if no adapter or no config of it is on this machine."""
    from transformers import AutoConfig

    compiled, options = _compiled(name), {} if revision is None else {"revision": revision}
    try:
        config: Any = (
            AutoConfig.from_pretrained(_resolve(name), local_files_only=True, trust_remote_code=False, **options)
            if compiled is None
            else compiled.config
        )
        num_positions = find_family(config.model_type).num_positions(config)
    except (OSError, ValueError):  # EdgepruneError is one of the latter
        return None
    return Limits(name, config.vocab_size, getattr(config, "d_out", None) or config.vocab_size, num_positions)


def fingerprint(model: MaskedModel) -> str:
    """Hash of a few numbers of every weight: differs between models of one shape, not between dtypes of one model."""
    digest = hashlib.sha256(json.dumps(model.graph.without_roles.to_dict(), sort_keys=True).encode())
    samples = getattr(model.sharding, "samples", None)  # of a sharded model, taken while its weights were whole
    if samples is None:
        samples = {name: sample(weight) for name, weight in model.hf.named_parameters()}
    for name, numbers in sorted(samples.items()):
        digest.update(name.encode() + numbers)
    if (applied := applied_mask(model)) is not None:  # two masks may agree in the few numbers
        digest.update(applied.mask.digest.encode())
    return digest.hexdigest()[:16]


def _compiled(name: str) -> Any | None:
    """A compiled or ground-truth model, or None if `name` is neither."""
    if name.startswith(COMPILED):
        from edgeprune.compiled import load_compiled

        return load_compiled(name.removeprefix(COMPILED))
    if _is_ground_truth(name):
        from edgeprune.compiled.tracr_format import read_folder

        return read_folder(Path(name))
    return None


def _is_ground_truth(name: str) -> bool:
    if not os.path.isdir(name):  # noqa: PTH112 -- Path raises for a name that is too long
        return False
    from edgeprune.compiled.tracr_format import is_tracr_folder

    return is_tracr_folder(Path(name))


def _resolve(name: str) -> str:
    """What `edgeprune get` fetches to its folder in the cache; everything else stays."""
    from edgeprune.models.fetched import MODELS, is_complete, model_folder

    if name not in MODELS:
        return name
    folder = model_folder(name)
    if not is_complete(name):
        size = round(MODELS[name].download_bytes / 1e6)
        raise EdgepruneError(f"{name} is not at {folder}; run `edgeprune get {name}` once (about {size} MB)")
    return str(folder)
