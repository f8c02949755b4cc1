"""The adapter between a Hugging Face model and the residual wiring of `MaskedModel`: references, never copies."""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgeprune.errors import EdgepruneError, UnsupportedFamilyError
from edgeprune.graph import ArchSpec, KVReaders
from edgeprune.models.block import Block
from edgeprune.models.unsupported import reason
from edgeprune.models.weights import check_plain

NOTHING: Mapping[str, Any] = {}
ATTENTION_IMPLEMENTATIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3")


class AbstractFamily(ABC):
    """Where one architecture keeps its leaves, and what layers do not: embedding, masks, positions, final norm, head.

    B batch, S seq, D width. A family whose `model_types` is empty is a base of others.

    Attributes:
        model_types: Values of `config.model_type` that the adapter covers.
        attention_implementations: Those that the library's model has and the adapter follows.
        has_position_embedding: Positions are embedded and added to tokens, so the embedding can be split in two.
        causal: A token attends to none after it.
        positions_bound_padding: A batch is at most as long as the position table, padding included.
        hf: The model.
        blocks: Its layers.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    attention_implementations: ClassVar[tuple[str, ...]] = ATTENTION_IMPLEMENTATIONS
    has_position_embedding: ClassVar[bool] = False
    positions_bound_padding: ClassVar[bool] = False
    causal: bool = True
    blocks: Sequence[Block]

    def __init__(self, hf: Any, kv_readers: KVReaders) -> None:
        """Check that `hf` has nothing that the adapter does not know; raise `UnsupportedFamilyError` if it has."""
        self.hf = hf
        self.kv_readers: KVReaders = kv_readers
        self.check_attention(hf.config._attn_implementation)
        check_plain(hf)

    @classmethod
    def check_attention(cls, implementation: str) -> None:
        """Refuse an attention implementation that the library's model does not have, or the adapter does not follow."""
        if implementation not in cls.attention_implementations:
            raise UnsupportedFamilyError(
                f"attention implementation {implementation!r} is not supported by {', '.join(cls.model_types)}; "
                f"load the model with one of {', '.join(cls.attention_implementations)}"
            )

    @classmethod
    @abstractmethod
    def tiny(cls) -> list[Any]:
        """Configs of tiny random models that together cover the adapter: the conformance suite runs on each."""

    @classmethod
    def num_positions(cls, config: Any) -> int | None:
        """Rows of the position table of a model with this config; None: it has none."""
        del config
        return None

    @property
    @abstractmethod
    def num_heads(self) -> int:
        """Query heads of a layer."""

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads of a layer."""
        return self.num_heads

    def arch(self, split_embedding: bool) -> ArchSpec:
        """The edge graph's shape."""
        if split_embedding and not self.has_position_embedding:
            raise UnsupportedFamilyError(
                f"split_embedding=True needs a position embedding, {self.hf.config.model_type} has rotary positions; "
                "set split_embedding to false"
            )
        flags = {(block.has_mlp, block.parallel, block.coupled_heads) for block in self.blocks}
        require(len(flags) == 1, "a model whose layers are wired in different ways")
        ((has_mlp, parallel, coupled),) = flags
        return ArchSpec(
            num_layers=len(self.blocks),
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            split_embedding=split_embedding,
            kv_readers=self.kv_readers,
            parallel_blocks=parallel,
            has_mlp=has_mlp,
            coupled_heads=coupled,
        )

    @abstractmethod
    def embed(self, input_ids: Tensor, position_ids: Tensor) -> list[Tensor]:
        """Embedding parts whose sum, left to right, starts the residual stream, each `[B, S, D]`."""

    @abstractmethod
    def context(self, stream: Tensor, attention_mask: Tensor | None, position_ids: Tensor) -> Any:
        """What all layers share (masks, rotary tables), for a stream `[B, S, D]`."""

    @property
    @abstractmethod
    def last_norm(self) -> nn.Module | None:
        """The norm before the head, of the kind that `Block.spec_of` knows; None: there is none."""

    @abstractmethod
    def head(self, normed: Tensor) -> Tensor:
        """The head behind the final norm: `[..., D]` to logits `[..., vocab]`."""

    def finish(self, stream: Tensor) -> Tensor:
        """Final norm and head: `[..., D]` to logits `[..., vocab]`."""
        norm = self.last_norm
        return self.head(stream if norm is None else norm(stream))


def cached(states: Tensor, config: Any) -> Tensor:
    """Keys or values `[B, K, S, C]` as the model's cache of them, if it uses one, hands them to the kernel."""
    return dense(states) if config.use_cache else states


def registry() -> dict[str, type[AbstractFamily]]:
    """Every adapter under `edgeprune/models/families/`, by model type."""
    from edgeprune.models import families

    for module in pkgutil.iter_modules(families.__path__):
        importlib.import_module(f"{families.__name__}.{module.name}")
    return {name: family for family in _below(AbstractFamily) for name in family.model_types}


def _below(family: type[AbstractFamily]) -> Iterator[type[AbstractFamily]]:
    """All subclasses."""
    for found in family.__subclasses__():
        yield found
        yield from _below(found)


def find_family(model_type: str, values: Mapping[str, Any] = NOTHING) -> type[AbstractFamily]:
    """The adapter for a `config.model_type`; `UnsupportedFamilyError`, with the reason, if there is none.

    Args:
        model_type: The type.
        values: What else the config says: for the reason.
    """
    known = registry()
    if model_type not in known:
        names, why = ", ".join(sorted(known)), reason(model_type, known, values)
        raise UnsupportedFamilyError(
            f"no adapter for model_type {model_type!r}; known: {names}. "
            f"Add edgeprune/models/families/{model_type}.py to support it"
            if why is None
            else f"no adapter for model_type {model_type!r}: {why}; known: {names}"
        )
    return known[model_type]


def require(condition: bool, what: str) -> None:
    """Refuse a model flag that an adapter does not implement."""
    if not condition:
        raise UnsupportedFamilyError(
            f"{what} is not supported by the adapter, so the model is refused rather than approximated"
        )


def dense(tensor: Tensor) -> Tensor:
    """The tensor `[...]` with the strides of a new one, those of axes of length 1 too: a copy unless it has them."""
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
