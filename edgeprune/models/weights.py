"""Are a model's weights those of its files, all of them, and numbers? Nothing is filled in or left out silently."""

import hashlib
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgeprune.errors import EdgepruneError, UnsupportedFamilyError

SHOWN = 3  # names in a message
# Buffers that earlier releases of transformers kept in their files, and now compute.
_COMPUTED = re.compile(r"(^|\.)(masked_bias|attn\.bias|inv_freq|position_ids|(cos|sin)_cached)$")


def check_complete(hf: Any, found: Mapping[str, Collection[Any]], name: str) -> None:
    """Refuse a model whose files lack a weight, hold one of another shape, or one more than the model has.

    A head of another task (`score.weight`) has no place in a language model and is left out, with a warning.

    Args:
        hf: The model.
        found: What transformers says of loading it: `missing_keys`, `mismatched_keys`, `unexpected_keys`.
        name: Where it comes from.

    Raises:
        EdgepruneError: The message names the weights.
    """
    if missing := found["missing_keys"]:
        raise EdgepruneError(
            f"{name} lacks the weights {_some(missing)}, which its config asks for; nothing is filled in: correct "
            "the config or get the files again"
        )
    if found["mismatched_keys"]:
        shapes = [
            f"{key} is {list(shape)} instead of {list(asked)}" for key, shape, asked in sorted(found["mismatched_keys"])
        ]
        raise EdgepruneError(
            f"{name} has weights of another shape than its config asks for: {_some(shapes)}; correct the config "
            "or get the files again"
        )
    extra = [key for key in found["unexpected_keys"] if not _COMPUTED.search(key)]
    inside = [key for key in extra if _is_of_body(hf, key)]
    if inside:
        raise EdgepruneError(
            f"{name} holds the weights {_some(inside)}, for which its config has no place, so they would be left "
            "out; correct the config or get the files again"
        )
    if extra:
        warnings.warn(f"{name}: a language model has no place for {_some(extra)}, left out", stacklevel=2)


def check_finite(weights: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights that are NaN or infinite, as one forward pass makes all of them.

    Args:
        weights: By name, `[...]`.
        name: Of the model.

    Raises:
        EdgepruneError: The message names the weights.
    """
    odd = [key for key, weight in weights.items() if not _is_finite(weight)]
    if odd:
        dtype = weights[odd[0]].dtype
        raise EdgepruneError(
            f"{name} has weights that are NaN or infinite in {str(dtype).removeprefix('torch.')}: {_some(odd)}; "
            "get the files again" + (", or set dtype to bfloat16 or float32" if dtype == torch.float16 else "")
        )


def check_plain(hf: nn.Module) -> None:
    """Refuse adapters and quantised weights. The weights are looked at: a config may name what is undone by now.

    Raises:
        UnsupportedFamilyError: The message says what to do.
    """
    if any(type(module).__module__.partition(".")[0] == "peft" for module in hf.modules()):
        raise UnsupportedFamilyError(
            f"{type(hf).__name__} holds adapters of PEFT, whose weights are apart; merge them first, with "
            "model.merge_and_unload(), and load what that returns"
        )
    packed = [name for name, weight in hf.named_parameters() if not _is_plain(weight)]
    if packed:
        raise UnsupportedFamilyError(
            f"quantised weights ({_some(packed)}) cannot be split by head; load a copy that is not quantised"
        )


def sample(weight: Tensor) -> bytes:
    """A few numbers of a weight `[...]`, the same in every dtype that bfloat16 can be rounded from."""
    flat = weight.detach().flatten()
    picked = flat[:: max(1, flat.numel() // 16)][:16]
    return picked.to("cpu", torch.bfloat16).contiguous().view(torch.uint8).numpy().tobytes()


def fingerprint_of(hf: nn.Module) -> str:
    """Hash of a few numbers of every weight, whatever the graph is that edges are counted in."""
    digest = hashlib.sha256()
    for name, weight in sorted(hf.named_parameters()):
        digest.update(name.encode() + sample(weight))
    return digest.hexdigest()[:16]


def _is_plain(weight: Tensor) -> bool:
    return type(weight) is nn.Parameter and weight.is_floating_point() and weight.element_size() > 1


def _is_finite(weight: Tensor) -> bool:
    if not weight.numel() or not weight.is_floating_point():
        return True
    return all(bool(end.isfinite()) for end in weight.detach().aminmax())


def _is_of_body(hf: Any, key: str) -> bool:
    """Whether a name lies inside the layers, with the prefix of the base model or (a file of that alone) without."""
    first = key.partition(".")[0]
    return first == hf.base_model_prefix or hasattr(hf.base_model, first)


def _some(names: Iterable[str]) -> str:
    ordered = sorted(names)
    more = f" and {len(ordered) - SHOWN} more" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + more
