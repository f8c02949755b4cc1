"""The adapter between a Hugging Face model and the residual wiring of `MaskedModel`: references, never copies."""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from edgeprune.errors import EdgepruneError, UnsupportedFamilyError
from edgeprune.graph import ArchSpec, KVReaders
from edgeprune.models.weights import check_plain

ATTENTION_IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")


class ReadNorm(NamedTuple):
    """What a norm does: `(x - mean) * (variance + eps)^(-1/2) * weight + bias`, or the same without the mean.

    Attributes:
        eps: None: there is no norm.
        centred: Take the mean away (LayerNorm) or not (RMSNorm).
        weight: `[D]`, or None for 1.
        bias: `[D]`, or None for 0.
    """

    eps: float | None
    centred: bool = False
    weight: Tensor | None = None
    bias: Tensor | None = None


class AbstractFamily(ABC):
    """Where one architecture keeps its leaves. B batch, S seq, D width, H heads, K key/value heads, C head width.

    Attributes:
        model_types: Values of `config.model_type` that the adapter covers.
    """

    model_types: ClassVar[tuple[str, ...]]

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        """Check that `hf` has nothing that the adapter does not know; raise `UnsupportedFamilyError` if it has."""
        self.hf = hf
        self.kv_readers: KVReaders = kv_readers
        implementation = hf.config._attn_implementation
        if implementation not in ATTENTION_IMPLEMENTATIONS:
            raise UnsupportedFamilyError(
                f"attention implementation {implementation!r} is not supported; "
                f"load the model with one of {', '.join(ATTENTION_IMPLEMENTATIONS)}"
            )
        check_plain(hf)

    @classmethod
    @abstractmethod
    def tiny(cls) -> list[Any]:
        """Configs of tiny random models that together cover the adapter: the conformance suite runs on each."""

    @classmethod
    def num_positions(cls, config: Any) -> int | None:
        """Rows of the position table of a model with this config; None: it has none."""
        del config
        return None

    @abstractmethod
    def arch(self, split_embedding: bool) -> ArchSpec:
        """The edge graph's shape."""

    @abstractmethod
    def embed(self, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        """Embedding parts whose sum, left to right, starts the residual stream, each `[B, S, D]`."""

    @abstractmethod
    def context(self, stream: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Any:
        """What all layers share (masks, rotary tables), for a stream `[B, S, D]`."""

    @abstractmethod
    def attention_norm(self, layer: int) -> Callable[[Tensor], Tensor]:
        """The norm before q, k, v."""

    @abstractmethod
    def read_norm(self, layer: int) -> ReadNorm:
        """The same norm as numbers."""

    @abstractmethod
    def qkv(self, layer: int, normed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The model's own fused projections: q `[B, S, H*C]`, k and v `[B, S, K*C]`."""

    @abstractmethod
    def qkv_weights(self, layer: int) -> tuple[Tensor, Tensor, Tensor]:
        """Views of the same weights by head: q `[H, D, C]`, k and v `[K, D, C]`."""

    @abstractmethod
    def attend(self, layer: int, q: Tensor, k: Tensor, v: Tensor, context: Any) -> Tensor:
        """Attention-weighted values `[B, S, H, C]`; k and v may come with one head per query head.

        The kernel gets tensors laid out as in the model's own forward: products of the same numbers laid out otherwise
        may be rounded otherwise.
        """

    def cached(self, states: Tensor) -> Tensor:
        """Keys or values `[B, K, S, C]` as the model's cache of them, if it uses one, hands them to the kernel."""
        return dense(states) if self.hf.config.use_cache else states

    @abstractmethod
    def attention_output(self, layer: int, values: Tensor) -> Tensor:
        """The model's own output projection of `[B, S, H, C]`, bias included, `[B, S, D]`."""

    @abstractmethod
    def output_weight(self, layer: int) -> Tensor:
        """View of the output projection by head, `[H, C, D]`."""

    @abstractmethod
    def mlp(self, layer: int, stream: Tensor) -> Tensor:
        """The MLP of a layer with its norm, `[B, S, D]` to `[B, S, D]`."""

    @abstractmethod
    def finish(self, stream: Tensor) -> Tensor:
        """Final norm and head: `[..., D]` to logits `[..., vocab]`."""


def registry() -> dict[str, type[AbstractFamily]]:
    """Every adapter under `edgeprune/models/families/`, by model type."""
    from edgeprune.models import families

    for module in pkgutil.iter_modules(families.__path__):
        importlib.import_module(f"{families.__name__}.{module.name}")
    return {name: family for family in AbstractFamily.__subclasses__() for name in family.model_types}


def find_family(model_type: str) -> type[AbstractFamily]:
    """The adapter for a `config.model_type`; `UnsupportedFamilyError` if there is none."""
    known = registry()
    if model_type not in known:
        raise UnsupportedFamilyError(
            f"no adapter for model_type {model_type!r}; known: {', '.join(sorted(known))}. "
            f"Add edgeprune/models/families/{model_type}.py to support it"
        )
    return known[model_type]


def require(condition: bool, what: str) -> None:
    """Refuse a model flag that an adapter does not implement."""
    if not condition:
        raise UnsupportedFamilyError(
            f"{what} is not supported by the adapter, so the model is refused rather than approximated"
        )


def dense(tensor: Tensor) -> Tensor:
    """The tensor with the strides of a new one, those of axes of length 1 included: a copy unless it has them."""
    usual = torch.empty(tensor.shape, device="meta").stride()
    return tensor if tensor.stride() == usual else tensor.clone(memory_format=torch.contiguous_format)


def by_head(weight: Tensor, num_heads: int) -> Tensor:
    """View an `nn.Linear` weight `[heads * C, D]` as `[heads, D, C]`."""
    return weight.view(num_heads, -1, weight.shape[-1]).transpose(1, 2)


def require_plain(module: nn.Module, kind: type[nn.Module], name: str) -> None:
    """Refuse wrapped or quantised projections, whose weights could not be split by head."""
    if type(module) is not kind:
        raise EdgepruneError(
            f"{name} is a {type(module).__name__}, expected a plain {kind.__name__}; merge adapters first, or "
            "load a copy that is not quantised"
        )
