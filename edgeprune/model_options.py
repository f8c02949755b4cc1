"""Options of the model, which `fit` and `discover` share: which one, how it is loaded, what its closed edges carry."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, final

from edgeprune.ablations import Ablation
from edgeprune.graph import KVReaders
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from edgeprune.roles import RoleOption, check_option

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


@final
@dataclass(frozen=True)
class ModelOptions:
    """The model to look into, and what its closed edges carry.

    Attributes:
        name: Model: hub id, local folder, `smollm2`, `compiled:reverse`, or a ground-truth folder.
        ablation: What closed edges carry: `interchange` (the corrupted prompt's values), `zero`, `resample`, `mean`,
            `mean:corrupted:positional`, `optimal`, ...: see `edgeprune.ablations.Ablation`. Means and constants come
            from all training pairs.
        split_embedding: Token and position embedding are two writers; null: only for compiled models.
        kv_readers: `"group"` or `"head"`, for grouped-query attention.
        roles: Edges by the role of tokens: true for all of the task's position roles, a list for these of them,
            `"positions"` for every position where all prompts have one length. Null: an edge is one for all tokens.
        dtype: Of the frozen weights; gates stay float32.
        device: Where to run.
        gguf_file: File inside `name` to dequantise.
        revision: Branch, tag or commit on the hub.
        attn_implementation: `sdpa`, `eager`, `flash_attention_2`; null for the library's choice.
        weight_mask: File of the weights that are kept, as `edgeprune fit-weights` writes it; the others are 0.
        cache_gb: Memory for runs that are kept, in 1e9 bytes. What does not fit goes to disk if there is room for it
            there, or is made anew.
    """

    name: str
    ablation: str = "interchange"
    split_embedding: bool | None = None
    kv_readers: KVReaders = "group"
    roles: RoleOption = None
    dtype: str = "float32"
    device: str = "cpu"
    gguf_file: str | None = None
    revision: str | None = None
    attn_implementation: str | None = None
    weight_mask: str | None = None
    cache_gb: float = 2.0

    def __post_init__(self) -> None:
        Ablation.parse(self.ablation)
        check_option(self.roles)

    @property
    def loading(self) -> dict[str, Any]:
        """Arguments of `load_model` beside name and device, those that are set."""
        names = ("split_embedding", "kv_readers", "dtype", "gguf_file", "revision", "attn_implementation")
        return {name: value for name in names if (value := getattr(self, name)) is not None}

    def load(self, mesh: "DeviceMesh | None" = None) -> MaskedModel:
        """Load the model; on a mesh of processes, this one's part of it (see `load_model`)."""
        return load_model(self.name, device=self.device, mesh=mesh, weight_mask=self.weight_mask, **self.loading)
