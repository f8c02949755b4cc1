"""Masks on weights: which weights of a model are kept, the others being 0; a file of one bit per weight.

`with mask(model):` runs something on the masked weights, which are bit for bit what they were when it ends;
`mask.apply(model)` changes them for good.
"""

import hashlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self, final

import numpy as np
import torch
from torch import Tensor, nn

from edgeprune.errors import EdgepruneError
from edgeprune.models.masked import MaskedModel
from edgeprune.models.sharding import Whole
from edgeprune.models.weights import fingerprint_of
from edgeprune.sealed import SealedFile

FORMAT = "edgeprune-weight-mask/1"
FILE = SealedFile(FORMAT, "weight mask file")
_MARK = "_edgeprune_weight_mask"  # attribute of a model with a mask on it
Numbers = dict[str, float]


# -------------------------------------------------------------------- the mask
@final
@dataclass(frozen=True, eq=False)
class WeightMask:
    """Kept weights of one model.

    Attributes:
        keep: By name of the parameter, bool of its shape; parameters without an entry are kept whole.
        weights: Fingerprint of the weights that it was made for.
        nodes: Share of the gated weights that is kept, by head and MLP: `a0.h1`, `m0`. Keys and values that several
            heads share count in each.
        header: Plain values: model, method, settings. After `load`, `sha256` and `file` too.
    """

    keep: Mapping[str, Tensor]
    weights: str
    nodes: Numbers = field(default_factory=Numbers)
    header: dict[str, Any] = field(default_factory=dict[str, Any])

    @classmethod
    def of(cls, model: MaskedModel, keep: Mapping[str, Tensor], header: dict[str, Any] | None = None) -> Self:
        """A mask of this model's weights.

        Args:
            model: The model, no mask on its weights.
            keep: By name of the parameter, bool of its shape `[...]`.
            header: Plain values to write in the file.
        """
        keep = {name: part.detach().bool().cpu() for name, part in keep.items()}
        mask = cls(keep, fingerprint_of(model.hf), {}, header or {})
        mask._check(model)
        return cls(keep, mask.weights, _by_node(model, keep), mask.header)

    # ---------------------------------------------------------------- looking
    @property
    def num_weights(self) -> int:
        """Gated weights."""
        return sum(part.numel() for part in self.keep.values())

    @property
    def num_kept(self) -> int:
        """Kept weights among them."""
        return sum(int(part.sum()) for part in self.keep.values())

    @property
    def density(self) -> float:
        """Kept weights / gated weights."""
        return self.num_kept / max(1, self.num_weights)

    @cached_property
    def digest(self) -> str:
        """Hash of what is kept."""
        digest = hashlib.sha256(self.weights.encode())
        for name in sorted(self.keep):
            digest.update(name.encode() + _packed(self.keep[name]).tobytes())
        return digest.hexdigest()[:16]

    def densities(self) -> Numbers:
        """Share of kept weights by name of the parameter."""
        return {name: part.double().mean().item() for name, part in self.keep.items()}

    def jaccard(self, other: "WeightMask") -> float:
        """Weights that both keep / weights that either keeps; a parameter that one does not gate is kept by it.

        Raises:
            EdgepruneError: The masks are of different models.
        """
        if self.weights != other.weights:
            raise EdgepruneError(f"the weight masks are of different weights, {self.weights} and {other.weights}")
        both = either = 0
        for name in dict.fromkeys([*self.keep, *other.keep]):
            own, theirs = (mask.keep.get(name) for mask in (self, other))
            shape = (theirs if own is None else own).shape  # pyright: ignore[reportOptionalMemberAccess]
            own, theirs = (torch.ones(shape, dtype=torch.bool) if part is None else part for part in (own, theirs))
            both, either = both + int((own & theirs).sum()), either + int((own | theirs).sum())
        return both / max(1, either)

    def complement(self) -> "WeightMask":
        """Of the gated weights those that this mask closes; all others stay."""
        keep = {name: ~part for name, part in self.keep.items()}
        return WeightMask(keep, self.weights, {}, {**self.header, "complement": True})

    # ---------------------------------------------------------------- on a model
    def apply(self, model: Any) -> "AppliedMask":
        """Set the weights that are not kept to 0, in place; what is returned can take that back.

        Args:
            model: A `MaskedModel` or the Hugging Face model alone, with the weights that the mask was made for.

        Raises:
            EdgepruneError: It has other weights.
        """
        self._check(model)
        return AppliedMask(self, _hf(model))

    @contextmanager
    def __call__(self, model: Any) -> Generator[None]:
        """Run something with the mask on the model's weights, which are what they were when that ends, however it does.

        Arguments and errors are those of `apply`.
        """
        applied = self.apply(model)
        try:
            yield
        finally:
            applied.restore()

    def _check(self, model: Any) -> None:
        if not isinstance(getattr(model, "sharding", None), Whole | None):
            raise EdgepruneError("a sharded model takes no weight mask: load it whole, with trainer.strategy ddp")
        hf = _hf(model)
        if applied_mask(hf) is not None:
            raise EdgepruneError("there is a weight mask on the model already; take it off first")
        named = dict(hf.named_parameters())
        for name, part in self.keep.items():
            if name not in named or named[name].shape != part.shape:
                raise EdgepruneError(
                    f"the weight mask has a tensor {name} {list(part.shape)}, which the model has not; load the model "
                    f"it was made for, {self.header.get('model', 'unknown')}"
                )
        if (found := fingerprint_of(hf)) != self.weights:
            raise EdgepruneError(
                f"the weight mask belongs to weights with fingerprint {self.weights}, this model has {found}: load "
                f"{self.header.get('model', 'the model it was made for')}, without a mask on it"
            )

    # ---------------------------------------------------------------- files
    def save(self, path: str | Path) -> Path:
        """Write the mask to one file, one bit per weight, whole or not at all."""
        header = {
            **{key: value for key, value in self.header.items() if key not in ("sha256", "file")},
            "shapes": {name: list(part.shape) for name, part in self.keep.items()},
            "weights_fingerprint": self.weights,
            "nodes": self.nodes,
            "density": self.density,
        }
        tensors = {name: torch.from_numpy(_packed(part)) for name, part in self.keep.items()}
        return FILE.write(path, tensors, header)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a weight mask file; refuse one that is missing, cut short, altered or of another kind."""
        header, tensors = FILE.read(path)
        try:
            keep = {name: _unpacked(tensors[name], shape) for name, shape in header["shapes"].items()}
            about = {**header, "file": str(Path(path).resolve())}
            return cls(keep, header["weights_fingerprint"], header["nodes"], about)
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            raise FILE.refused(path, error) from None

    def __repr__(self) -> str:
        return f"WeightMask({self.num_kept:,} of {self.num_weights:,} weights, density {self.density:.4f})"


@final
class AppliedMask:
    """A mask on the weights of a Hugging Face model, with the values that it took away.

    Attributes:
        mask: The mask.
    """

    def __init__(self, mask: WeightMask, hf: nn.Module) -> None:
        self.mask, self._hf = mask, hf
        self._closed: dict[str, Tensor] = {}
        self.lower()

    @torch.no_grad()
    def lower(self) -> None:
        """Set the weights to 0, unless they are."""
        if self._closed:
            return
        setattr(self._hf, _MARK, self)
        try:
            for name, weight, closed in self._tensors():
                self._closed[name] = weight[closed]
                weight[closed] = 0
        except BaseException:
            self.restore()
            raise

    @torch.no_grad()
    def restore(self) -> None:
        """Give the weights the values that they had, unless they have them."""
        for name, weight, closed in self._tensors() if self._closed else ():
            if name in self._closed:  # not where an interruption came in between
                weight[closed] = self._closed[name].to(weight)
        self._closed = {}
        setattr(self._hf, _MARK, None)

    @contextmanager
    def lifted(self) -> Generator[None]:
        """Run something on the model's own weights."""
        self.restore()
        try:
            yield
        finally:
            self.lower()

    def _tensors(self) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Name, weight `[...]` and which of it is closed, bool of its shape."""
        weights = dict(self._hf.named_parameters())
        for name, keep in self.mask.keep.items():
            yield name, weights[name], ~keep.to(weights[name].device)


def applied_mask(model: Any) -> AppliedMask | None:
    """The mask that lies on the weights of a `MaskedModel` or a Hugging Face model, if there is one."""
    return getattr(_hf(model), _MARK, None)


def mask_header(model: Any) -> dict[str, Any]:
    """What the header of a circuit says of the mask on its model's weights; nothing where there is none."""
    applied = applied_mask(model)
    return {} if applied is None else named_in_header(applied.mask)


def named_in_header(mask: WeightMask) -> dict[str, Any]:
    """What the header of a circuit says of a mask."""
    about = {"file": mask.header.get("file"), "digest": mask.digest, "density": mask.density, "nodes": mask.nodes}
    return {"weight_mask": about}


def mask_named_in(header: Mapping[str, Any], circuit: str | Path) -> WeightMask | None:
    """The mask that a circuit's header names, from where it says or from beside the circuit; None if it names none.

    Args:
        header: Of the circuit.
        circuit: Its file. The mask may also be in the folder above: that of the run.

    Raises:
        EdgepruneError: The file is not there, or holds another mask than the circuit was found with.
    """
    about = header.get("weight_mask")
    if about is None:
        return None
    named, folder = Path(str(about["file"])), Path(circuit).absolute().parent
    places = [named, folder / named.name, folder.parent / named.name]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        raise EdgepruneError(f"{circuit} needs its weight mask, {named}, which is not there; put it beside the circuit")
    mask = WeightMask.load(found)
    if mask.digest != about["digest"]:
        raise EdgepruneError(
            f"{found} holds another weight mask (digest {mask.digest}) than {circuit} was found with "
            f"({about['digest']}); put the right one beside the circuit"
        )
    return mask


def _hf(model: Any) -> nn.Module:
    return getattr(model, "hf", model)


def _packed(part: Tensor) -> Any:
    return np.packbits(part.flatten().numpy())


def _unpacked(bits: Tensor, shape: list[int]) -> Tensor:
    number = int(np.prod(shape))
    if bits.dtype != torch.uint8 or bits.numel() != -(-number // 8):
        raise ValueError(f"{bits.numel()} bytes are not the bits of a tensor {shape}")
    return torch.from_numpy(np.unpackbits(bits.numpy(), count=number).astype(bool)).view(shape)


# -------------------------------------------------------------------- density by node
@torch.no_grad()
def _by_node(model: MaskedModel, keep: Mapping[str, Tensor]) -> Numbers:
    """Share of the gated weights that is kept, by head and MLP; nodes without gated weights are left out."""
    names = {id(weight): name for name, weight in model.hf.named_parameters()}
    arch, found = model.graph.arch, Numbers()
    for block in model.blocks:
        own = {names[id(weight)]: weight for weight in block.module.parameters()}
        attention = _attention(block, own)
        kept, gated = (_heads(block, {name: own[name] for name in attention}, keep, ones) for ones in (False, True))
        for head in range(arch.num_heads):
            if gated[head]:
                found[f"a{block.layer}.h{head}"] = kept[head] / gated[head]
        mlp = [keep[name] for name, weight in own.items() if weight.ndim > 1 and name in keep and name not in attention]
        if mlp and block.has_mlp:
            found[f"m{block.layer}"] = sum(int(part.sum()) for part in mlp) / sum(part.numel() for part in mlp)
    return found


def _attention(block: Any, own: Mapping[str, Tensor]) -> list[str]:
    """Names of the weights of a layer's attention: those of the module that the query weight is in."""
    storage = block.qkv_weights()[0].untyped_storage().data_ptr()
    query = next(name for name, weight in own.items() if weight.untyped_storage().data_ptr() == storage)
    module = query.removesuffix(".weight").rpartition(".")[0]
    return [name for name, weight in own.items() if name.startswith(f"{module}.") and weight.ndim > 1]


def _heads(block: Any, own: Mapping[str, Tensor], keep: Mapping[str, Tensor], ones: bool) -> list[int]:
    """Kept weights of each head, or with `ones` its gated ones: the mask is put where the weights are, and looked up.

    The views that say which weights are a head's are those of the model's family.
    """
    values = {name: weight.data for name, weight in own.items()}
    try:
        for name, weight in own.items():
            part = keep.get(name)
            mask = torch.zeros_like(weight) if part is None else part.to(weight)
            weight.data = torch.ones_like(weight) if ones and part is not None else mask
        q, k, v = ([int(head.count_nonzero()) for head in part] for part in block.qkv_weights())
        out = [int(head.count_nonzero()) for head in block.projection_weight()]
    finally:
        for name, weight in own.items():
            weight.data = values[name]
    groups = len(q) // len(k)
    return [q[head] + k[head // groups] + v[head // groups] + out[head] for head in range(len(q))]
