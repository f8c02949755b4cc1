"""A frozen model of which every process holds a part of each weight (FSDP2), one layer whole at a time.

`fully_shard` gathers weights in hooks around a module's forward, which the masked model never calls: it takes the steps
of a layer one by one. So a layer is gathered when a step of it is taken (`Block.module`), and what was gathered before
is let go. Autograd keeps gathered weights as they are, without their memory; the backward gathers them again when it
comes to them. A weight gets no gradient, so nothing but gathering is communicated. All processes have to take the same
steps in the same order, each on a batch of its own.
"""

import functools
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, final

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

from edgeprune.errors import EdgepruneError
from edgeprune.models.weights import sample

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from edgeprune.models.masked import MaskedModel

CPU_SINCE = "2.8"  # FSDP2 of earlier ones asks streams of a CPU for what only a GPU's have
PRESENT_COPIES = 2  # of the part that is gathered: as it comes in, and laid out as weights


def _nothing(argument: Any) -> None:
    """What is done where there is nothing to do."""


@final
class Whole:
    """In the place of `Sharding`, of a model all of whose weights are whole."""

    def __init__(self, hf: nn.Module) -> None:
        self._hf = hf

    @property
    def num_bytes(self) -> int:
        """Of the weights."""
        return sum(weight.nbytes for weight in self._hf.parameters())

    def gather_ends(self) -> None:
        """Do nothing."""

    def keeping(self) -> AbstractContextManager[None]:
        """A context that does nothing."""
        return nullcontext()

    def noting(self, note: Callable[[Tensor], None]) -> AbstractContextManager[None]:
        """A context in which `note` gets each tensor `[...]` that autograd keeps for the backward, but no weights."""
        weights = {storage_key(weight) for weight in self._hf.parameters()}

        def pack(tensor: Tensor) -> Tensor:
            if storage_key(tensor) not in weights:
                note(tensor)
            return tensor

        return torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)


@final
class Sharding:
    """Which part of a model is whole: one of its layers, or what is outside of them (embedding, last norm, head).

    Attributes:
        num_bytes: Of weights in this process at most: its own shards, and the part that is gathered.
        samples: Of each weight by name, what a fingerprint is made of.
    """

    def __init__(
        self,
        hf: nn.Module,
        layers: Sequence[nn.Module],
        mesh: "DeviceMesh",
        fill: Callable[[nn.Module], None] = _nothing,
    ) -> None:
        """Shard a model in place, part by part.

        Args:
            hf: The model.
            layers: Its layers.
            mesh: The processes, in one dimension.
            fill: Gives those weights of a part their values, before it is sharded, that have none yet.

        Raises:
            EdgepruneError: This torch cannot shard on a CPU.
        """
        from torch.distributed.fsdp import fully_shard

        if mesh.device_type == "cpu" and torch.__version__ < CPU_SINCE:
            raise EdgepruneError(
                f"sharding on CPUs needs torch {CPU_SINCE}, this is {torch.__version__}: install a newer one, or set "
                "trainer.strategy to ddp"
            )
        self._parts: list[Any] = [*layers, hf]
        self._note: Callable[[Tensor], None] = _nothing
        self.samples: dict[str, bytes] = {}
        self._slots: list[list[tuple[nn.Module, str]]] = []  # of each part: where its weights are registered
        self._present: int | None = None
        self._addresses: set[int] = set()  # of the weights that are gathered
        prefixes = {module: prefix for prefix, module in hf.named_modules()}
        shards, largest, seen = 0, 0, set[nn.Module]()
        for part in self._parts:
            fill(part)
            owners = [module for module in part.modules() if module not in seen]
            seen.update(owners)
            self._slots.append([(owner, name) for owner in owners for name, _ in owner.named_parameters(recurse=False)])
            weights = {id(weight): weight for weight in self._weights(-1)}
            largest = max(largest, sum(weight.nbytes for weight in weights.values()))
            for owner, name in self._slots[-1]:
                if weights.pop(id(weight := owner.get_parameter(name)), None) is not None:  # a tied one counts once
                    self.samples[f"{prefixes[owner]}.{name}".lstrip(".")] = sample(weight)
            fully_shard(part, mesh=mesh)
            local: dict[int, Any] = {id(weight): weight for weight in self._weights(-1)}
            shards += sum(weight.to_local().nbytes for weight in local.values())
        self.num_bytes = shards + PRESENT_COPIES * largest

    def _weights(self, part: int) -> list[Tensor]:
        """Of a part as they are registered now, shards or whole; a tied one comes twice."""
        return [owner.get_parameter(name) for owner, name in self._slots[part]]

    def gather(self, part: int) -> None:
        """Make the weights of a layer whole, or of the part behind the last; those of any other are let go."""
        if part == self._present and not hasattr(self._weights(part)[0], "to_local"):
            return
        if self._present is not None:
            self._parts[self._present].reshard()
        self._present = part
        with torch.inference_mode(False), torch.no_grad():  # a later run may want gradients
            self._parts[part].unshard()
        self._addresses = {weight.untyped_storage().data_ptr() for weight in self._weights(part)}

    def gather_ends(self) -> None:
        """Make what is outside of the layers whole."""
        self.gather(len(self._parts) - 1)

    def keeping(self) -> AbstractContextManager[None]:
        """A context for runs with gradients: of weights, autograd keeps which part they are of."""
        return torch.autograd.graph.saved_tensors_hooks(self._pack, self._unpack)

    @contextmanager
    def noting(self, note: Callable[[Tensor], None]) -> Generator[None]:
        """A context in which `note` gets each tensor `[...]` that autograd keeps for the backward, but no weights."""
        self._note = note
        try:
            with self.keeping():
                yield
        finally:
            self._note = _nothing

    def _pack(self, tensor: Tensor) -> tuple[int | None, Tensor]:
        if tensor.untyped_storage().data_ptr() in self._addresses:
            return self._present, tensor
        self._note(tensor)
        return None, tensor

    def _unpack(self, kept: tuple[int | None, Tensor]) -> Tensor:
        part, tensor = kept
        if part is not None:
            self.gather(part)
        return tensor


def shard(model: "MaskedModel", mesh: "DeviceMesh", fill: Callable[[nn.Module], None] = _nothing) -> Sharding:
    """Shard a masked model in place. All processes of the mesh must call it.

    Args:
        model: With any gates; it may be trained, run, recorded and measured as before.
        mesh: The processes, in one dimension.
        fill: See `Sharding`.
    """
    layers: list[nn.Module] = [block.module for block in model.blocks]
    model.sharding = sharding = Sharding(model.hf, layers, mesh, fill)
    model.projections.keep_nothing()
    for block in model.blocks:
        block.gather = functools.partial(sharding.gather, block.layer)
    return sharding


def device_of(mesh: "DeviceMesh") -> torch.device:
    """This process's own."""
    if mesh.device_type == "cuda":
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device(mesh.device_type)


def storage_key(tensor: Tensor) -> StorageWeakRef:
    """What tells the memory of tensors `[...]` apart, on every device."""
    return StorageWeakRef(tensor.untyped_storage())
