"""Models without weights, on torch's meta device: they have every shape and dtype, and what they run takes no memory.

A question about values (is anything masked? is a token unknown?) gets the answer that plain prompts give.
"""

from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.functional import scaled_dot_product_attention
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from edgeprune.errors import EdgepruneError
from edgeprune.graph import KVReaders
from edgeprune.models.family import find_family
from edgeprune.models.masked import MaskedModel
from edgeprune.models.quiet import quiet
from edgeprune.parsing import parse_json, read_text

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# Of well-known models, from the `config.json` that each comes with.
SHAPES: dict[str, dict[str, Any]] = {
    "gpt2": {"model_type": "gpt2"},
    "smollm2-135m": {
        "model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    },
    "gemma-2-2b": {
        "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "vocab_size": 256000,
    },
    "llama-3.2-1b": {
        "model_type": "llama", "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "tie_word_embeddings": True,
        "max_position_embeddings": 131072,
    },
    "llama-3.1-8b": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    },
    "codellama-13b": {
        "model_type": "llama", "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40,
        "num_attention_heads": 40, "vocab_size": 32016, "max_position_embeddings": 16384,
    },
}  # fmt: skip


def shape_config(given: str) -> "PreTrainedConfig":
    """The Hugging Face config of a model's shape.

    Args:
        given: One of `SHAPES`, or a file like a model's `config.json`.

    Raises:
        EdgepruneError: There is no such file or shape, or it names no architecture that is known here.
    """
    from transformers import AutoConfig

    if given in SHAPES:
        values = SHAPES[given]
    elif not Path(given).is_file():
        raise EdgepruneError(f"{given!r} is no file and no known shape; give a config.json, or {', '.join(SHAPES)}")
    else:
        values = parse_json(read_text(given), given)
    if not isinstance(values, dict) or not isinstance(values.get("model_type"), str):
        raise EdgepruneError(f"{given} names no model_type; give the config.json that a model comes with")
    options = dict(cast("dict[str, Any]", values))
    find_family(options["model_type"], options)
    try:
        with quiet():
            return AutoConfig.for_model(options.pop("model_type"), **options)
    except Exception as error:  # of the checks of two libraries
        raise EdgepruneError(f"{given}: {' '.join(str(error).split())[:200]}; mend the config") from None


def meta_model(
    config: Any,
    dtype: torch.dtype = torch.float32,
    *,
    split_embedding: bool = False,
    kv_readers: KVReaders = "group",
    attn_implementation: str | None = None,
) -> MaskedModel:
    """A masked model that has no weights, only their shapes.

    Args:
        config: A Hugging Face config.
        dtype: Of the weights.
        split_embedding: As in `MaskedModel`.
        kv_readers: As in `MaskedModel`.
        attn_implementation: As in `load_model`.

    Raises:
        UnsupportedFamilyError: No adapter for the architecture, or a flag that the adapter does not know.
        EdgepruneError: The library cannot build such a model.
    """
    from transformers import AutoModelForCausalLM

    options = {} if attn_implementation is None else {"attn_implementation": attn_implementation}
    find_family(config.model_type)
    try:
        with quiet(), torch.device("meta"):
            hf = AutoModelForCausalLM.from_config(config, dtype=dtype, **options)
    except Exception as error:  # whatever the library stumbles over
        reason = " ".join(str(error).split())[:200]
        raise EdgepruneError(f"cannot build a model of type {config.model_type}: {reason}; mend its config") from None
    return MaskedModel(hf, split_embedding=split_embedding, kv_readers=kv_readers)


# -------------------------------------------------------------------- runs
@contextmanager
def without_values() -> Generator[None]:
    """Let a model on the meta device run, and save for a backward what it would save with values."""
    with _Answers(), _FusedAttention():
        yield


class _Answers(TorchDispatchMode):
    """Answers about values that are not there: all of them hold, none is otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self._true: set[StorageWeakRef] = set()  # results of `all`

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        aten, name = torch.ops.aten, func.overloadpacket
        if name is aten._local_scalar_dense:
            return StorageWeakRef(args[0].untyped_storage()) in self._true
        if name is getattr(aten, "_grouped_mm", None):  # of experts; with shapes alone it takes no other than bfloat16
            return args[0].new_empty(len(args[0]), args[1].shape[-1])
        found = func(*args, **(kwargs or {}))
        if name is aten.all:
            self._true.add(StorageWeakRef(found.untyped_storage()))
        return found


class _FusedAttention(TorchFunctionMode):
    """Attention keeps what fused kernels keep; the meta device itself has the one that keeps every weight."""

    def __torch_function__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is scaled_dot_product_attention:
            return _Fused.apply(*args[:3], (kwargs or {}).get("attn_mask"))
        return func(*args, **(kwargs or {}))


class _Fused(torch.autograd.Function):
    """Shapes of `scaled_dot_product_attention`: q, k, v `[B, n, S, C]`, the mask as numbers, and sums are kept."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out, sums = q.new_empty(*q.shape[:-1], v.shape[-1]), q.new_empty(q.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(q, k, v, out, sums, None if mask is None else mask.to(q.dtype))
        return out


def storage_key(tensor: Tensor) -> StorageWeakRef:
    """What tells the memory of tensors `[...]` apart, on every device."""
    return StorageWeakRef(tensor.untyped_storage())
