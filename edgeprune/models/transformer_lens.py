"""Models of TransformerLens, known by the names of their classes: the library is not imported here."""

import copy
import warnings
from typing import Any

import torch
from torch import nn

from edgeprune.errors import UnsupportedFamilyError
from edgeprune.models.limits import Limits
from edgeprune.models.masked import MaskedModel

TRIED = 8  # tokens on which a model's own logits are compared
_WRAPPED = "_original_component"  # what a bridge's part is put around


def is_of_transformer_lens(model: Any) -> bool:
    """Whether it is one of those that `from_transformer_lens` knows."""
    return _is_a("HookedTransformer", model) or _is_a("TransformerBridge", model)


def from_transformer_lens(model: Any) -> Any | None:
    """What `MaskedModel` takes in place of a `HookedTransformer` or a `TransformerBridge`; None for anything else.

    A bridge (all that version 4 has) is put around a Hugging Face model: that is taken, without the bridge's parts and
    with the same parameters.

    Raises:
        UnsupportedFamilyError: A bridge around another kind of model.
    """
    if _is_a("HookedTransformer", model):
        from edgeprune.models.families.hooked_transformer import HookedModel

        return HookedModel(model)
    if not _is_a("TransformerBridge", model):
        return None
    hf: Any = getattr(model, "original_model", None)
    if not hasattr(getattr(hf, "config", None), "model_type"):
        raise UnsupportedFamilyError(
            f"a TransformerBridge around {type(hf).__name__} has no Hugging Face model to load; give one made by "
            "boot_transformers, or a HookedTransformer of TransformerLens 2 or 3"
        )
    warnings.warn(
        f"a TransformerBridge: its Hugging Face model ({type(hf).__name__}) is loaded instead, with the same weights "
        "and without hooks",
        stacklevel=4,  # of `load_model`'s caller
    )
    return _unwrapped(hf, {})


@torch.no_grad()
def check_same_logits(masked: MaskedModel, model: Any) -> None:
    """Refuse a model that computes something else than its weights alone do, in whatever way: asked on a few tokens.

    Raises:
        UnsupportedFamilyError: The message says by how much.
    """
    limits = Limits.of(masked)
    ids = torch.arange(min(TRIED, limits.num_positions or TRIED), device=masked.device)[None] % limits.num_inputs
    own = model(ids, attention_mask=torch.ones_like(ids), return_type="logits")  # given, or tokens may be taken for one
    off = (masked.full(ids) - own).abs().max() / (1 + own.abs().max())
    if off > torch.finfo(own.dtype).eps ** 0.5:  # not where weights are NaN, which has a message of its own
        raise UnsupportedFamilyError(
            f"the {type(model).__name__} gives other logits than the model that its weights make (by {off:.1g} of the "
            "largest): remove its hooks and SAEs, with reset_hooks(including_permanent=True); without any, it is of a "
            "kind that no adapter knows"
        )


def _is_a(name: str, model: Any) -> bool:
    return any(
        base.__name__ == name and base.__module__.partition(".")[0] == "transformer_lens"
        for base in type(model).__mro__
    )


def _unwrapped(module: nn.Module, seen: dict[nn.Module, nn.Module]) -> nn.Module:
    """A module tree without a bridge's parts. Modules are new, what they hold is not: the bridge stays as it is."""
    while _WRAPPED in module._modules:
        module = module.get_submodule(_WRAPPED)
    if module not in seen:
        seen[module] = twin = copy.copy(module)
        twin._modules = {
            name: None if child is None else _unwrapped(child, seen) for name, child in module._modules.items()
        }
    return seen[module]
