"""How much memory a run will need, before it starts: one named term for each use.

What the terms stand for is in `docs/guides/memory.md`, with the figures they were compared with.
"""

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import final

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from edgeprune.models.masked import MaskedModel
from edgeprune.models.meta import without_values
from edgeprune.models.read_ops import ops_for
from edgeprune.models.reads import input_rows
from edgeprune.models.sharding import storage_key

CHUNKS = 6  # pieces of readers' inputs, with what is worked out from them, that are alive at once
GATE_MATRICES = 8  # float32 tensors per sample of the gates: noise, sample, closed, their gradients
OPTIMIZER_MATRICES = 4  # float32 tensors of the size of the gates: what is learned, its gradient, AdamW's two moments
LOSS_LOGITS = 4.5  # float32 logits: the full model's, and what a loss makes of both beside what autograd keeps
EVALUATION_LOGITS = 7.5  # float32 logits: both models', their log-probabilities, and what a measure makes of these
UNUSED = 0.1  # of what is used, held by the allocator beyond it: pieces freed between others that are in use
LIBRARIES = 400_000_000  # of a process that holds no weights yet
SORTED_COPIES = 3  # of the stream in each layer, at most: what autograd keeps of tokens sorted by role (GPT-2's wiring)
ROLE_COPIES = 5  # of what all heads have of a token, in each layer and role, at most: attention edges
PROBE_TOKENS = 128  # of one example at most, with which the activations per token are found out


@final
@dataclass(frozen=True, kw_only=True)
class BatchShape:
    """What the memory of a batch depends on.

    Attributes:
        batch: Examples.
        seq: Tokens of the longest.
        positions: Scored positions of the example that has most.
        masks: Samples of the gates.
        attention: Attention edges have gates too; the model's graph has roles then.
    """

    batch: int
    seq: int
    positions: int = 1
    masks: int = 1
    attention: bool = False

    @property
    def tokens(self) -> int:
        """With padding."""
        return self.batch * self.seq


@final
@dataclass(frozen=True)
class MemoryPlan:
    """Bytes that a run needs, by what they are for; all that are there at once add up.

    Attributes:
        weights: Of the model.
        process: What the process holds beside the weights before the run.
        terms: What is there at the peak of the step that takes most, by name.
        kept: Reference runs kept in memory, at most.
        available: What this process may take in all; None where the system does not say.
    """

    weights: int
    process: int
    terms: Mapping[str, int]
    kept: int
    available: int | None

    @property
    def parts(self) -> dict[str, int]:
        """All that adds up to `total`."""
        asked = {**self.terms, "kept runs": self.kept}
        unused = int(UNUSED * sum(asked.values()))
        return {"process": self.process, "weights": self.weights, **asked, "allocator": unused}

    @property
    def total(self) -> int:
        """All together."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether there is as much."""
        return self.available is None or self.total <= self.available

    def __str__(self) -> str:
        listed = ", ".join(f"{name} {num_bytes / 1e9:.2f}" for name, num_bytes in self.parts.items())
        available = "unknown" if self.available is None else f"{self.available / 1e9:.1f}"
        return f"memory in GB: at most {self.total / 1e9:.2f} of {available} available ({listed})"


Loss = Callable[[Tensor, Tensor], Tensor]  # of full and circuit logits `[batch, positions, vocab]`


def training_terms(
    model: MaskedModel, shape: BatchShape, activations: int, device: torch.device | None = None
) -> dict[str, int]:
    """Bytes at the peak of a training step, when the backward has just begun.

    Args:
        model: The model.
        shape: Of the batch.
        activations: Bytes per example that autograd keeps: see `activations_per_example`.
        device: Where the model will run; None: where it is.
    """
    buffers, num_gates = _buffers(model, shape, device, backward=True), model.graph.exists.numel()
    num_gates += model.graph.attention.exists.numel() if shape.attention else 0
    return {
        **buffers,
        "its gradient": buffers["stack"],
        "activations": activations * shape.batch,
        "frozen states": _states(model, shape),
        "logits": int(LOSS_LOGITS * _logits(model, shape)),
        "chunks": CHUNKS * ops_for(device or model.device, model.read_ops).chunk_bytes,
        "gates": GATE_MATRICES * shape.masks * num_gates * 4,
        "optimizer": OPTIMIZER_MATRICES * num_gates * 4,
    }


def evaluation_terms(
    model: MaskedModel,
    shape: BatchShape,
    left_over: Mapping[str, int] | None = None,
    device: torch.device | None = None,
) -> dict[str, int]:
    """Bytes at the peak of a forward pass without gradients.

    Args:
        model: The model.
        shape: Of the batch.
        left_over: Terms of training steps that came before: their large buffers are kept, and used again.
        device: Where the model will run; None: where it is.
    """
    terms = {**_buffers(model, shape, device, backward=False), "its gradient": 0}
    kept = {name: max(num_bytes, (left_over or {}).get(name, 0)) for name, num_bytes in terms.items()}
    return {
        **{name: num_bytes for name, num_bytes in kept.items() if num_bytes},
        "frozen states": 2 * _states(model, shape),  # made, and put together
        "logits": int(EVALUATION_LOGITS * _logits(model, shape)),
        "chunks": CHUNKS * ops_for(device or model.device, model.read_ops).chunk_bytes,
    }


def _buffers(model: MaskedModel, shape: BatchShape, device: torch.device | None, *, backward: bool) -> dict[str, int]:
    """Bytes of what stays from one run to the next."""
    graph, arch = model.graph, model.graph.arch
    row = model.width * model.dtype.itemsize  # of one token
    ops = ops_for(device or model.device, model.read_ops)
    rows = input_rows(arch, ops, shape.tokens * row, backward and model.blocks[0].input_spec().eps is not None)
    return {
        "stack": len(graph.writers) * shape.tokens * row,
        "readers' inputs": rows.total * shape.tokens * row,
        "scored tokens": len(graph.writers) * shape.batch * shape.positions * row,
        "readers' weights": model.projections.num_bytes,
    }


def _logits(model: MaskedModel, shape: BatchShape) -> int:
    """Of one model at the scored positions, in float32."""
    return shape.batch * shape.positions * model.num_outputs * 4


def _states(model: MaskedModel, shape: BatchShape) -> int:
    per_token = model.graph.arch.num_embeddings * model.width + model.layer_states
    return per_token * shape.tokens * model.dtype.itemsize


def activations_per_example(model: MaskedModel, shape: BatchShape, loss: Loss) -> int:
    """Bytes that autograd keeps for the backward of one example, found out by running one and two of them.

    Longer examples than `PROBE_TOKENS` are scaled up from that length, except on the meta device, where they cost
    nothing.

    Args:
        model: The model.
        shape: Of the batch; its number of examples does not matter.
        loss: What is differentiated.
    """
    meta = model.device.type == "meta"
    seq = shape.seq if meta else min(shape.seq, PROBE_TOKENS)
    small = replace(shape, seq=seq, positions=min(shape.positions, seq))
    with without_values() if meta else nullcontext():
        one, two = (_kept_by_autograd(model, replace(small, batch=batch), loss) for batch in (1, 2))
    found = (two - one) * shape.seq // seq
    if meta and model.graph.roles is not None:
        found += SORTED_COPIES * model.graph.arch.num_layers * shape.seq * model.width * model.dtype.itemsize
        found += _attention_of_roles(model, shape) if shape.attention else 0
    return found


def _attention_of_roles(model: MaskedModel, shape: BatchShape) -> int:
    """Bytes that autograd keeps of one example's attention, once for each role in it: heads' values and weights."""
    arch, roles = model.graph.arch, model.graph.roles
    pairs = 0 if roles is None else min(len(roles), shape.seq)
    eager = getattr(model.hf.config, "_attn_implementation", None) == "eager"  # keeps weights of every pair of tokens
    per_token = ROLE_COPIES * model.width + (arch.num_heads * shape.seq if eager else 0)
    return pairs * arch.num_layers * shape.seq * per_token * model.dtype.itemsize


def _kept_by_autograd(model: MaskedModel, shape: BatchShape, loss: Loss) -> int:
    ids = torch.zeros(shape.batch, shape.seq, dtype=torch.long, device=model.device)
    positions = torch.arange(shape.positions, device=model.device).expand(shape.batch, -1)
    states, full = model.record(ids), model.full(ids, positions=positions).float()
    known = {storage_key(tensor) for tensor in model.hf.buffers()}
    found: dict[StorageWeakRef, int] = {}

    def note(tensor: Tensor) -> None:
        if (key := storage_key(tensor)) not in known:
            found[key] = tensor.untyped_storage().nbytes()

    graph, role_of = model.graph, None
    if graph.roles is not None and model.device.type != "meta":
        role_of = (torch.arange(shape.seq, device=model.device) % len(graph.roles)).expand_as(ids)
    gate_shape = graph.without_roles.shape if role_of is None else graph.shape
    gates = torch.full(gate_shape, 0.5, device=model.device, requires_grad=True)
    inside = None
    if shape.attention and role_of is not None:
        inside = torch.full(graph.attention.shape, 0.5, device=model.device, requires_grad=True)
    options = {"positions": positions, "role_of": role_of, "attention_gates": inside, "all_open": False}
    with torch.enable_grad(), model.sharding.noting(note):
        logits = model(ids, gates, states, **options)
        loss(full, logits.float()).mean()
    return sum(found.values())


# -------------------------------------------------------------------- the whole plan
def plan_of(
    model: MaskedModel,
    terms: Mapping[str, int],
    kept: int,
    device: torch.device | None = None,
    num_processes: int = 1,
) -> MemoryPlan:
    """The plan of a run.

    Args:
        model: The model, loaded.
        terms: What is there at the peak: see `training_terms` and `evaluation_terms`.
        kept: Bytes of reference runs that are kept, always in the memory of the process.
        device: Where the model will run; None: where it is.
        num_processes: Processes like this one that share what the machine has left.
    """
    weights, here = model.sharding.num_bytes, resident()
    device = device or model.device
    if device.type != "cuda":
        spare = spare_memory()
        available = None if spare is None else here + spare // num_processes
        return MemoryPlan(weights, max(here - weights, LIBRARIES), terms, kept, available)
    there = weights if model.device.type == "cuda" else 0
    return MemoryPlan(weights, 0, terms, 0, torch.cuda.mem_get_info(device)[0] + there)


def resident() -> int:
    """Bytes of memory that this process holds; 0 where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


def spare_memory(root: Path = Path("/")) -> int | None:
    """Bytes that this process can still get: what the machine has left, or less if its control group may have less.

    Args:
        root: Where the system's `proc` and `sys` are.
    """
    left = [_available(root / "proc/meminfo"), *_left_to_groups(root)]
    return min((item for item in left if item is not None), default=None)


def _available(path: Path) -> int | None:
    try:
        lines = dict(line.split(":", 1) for line in path.read_text(encoding="ascii").splitlines())
        return int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        return None


def _left_to_groups(root: Path) -> list[int]:
    """What limits of the second and the first kind of control groups leave; file pages can be taken back."""
    folder = root / "sys/fs/cgroup"
    kinds = (
        (folder, "memory.max", "memory.current", "inactive_file"),
        (folder / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    )
    found: list[int] = []
    for place, limit, usage, reclaimable in kinds:
        try:
            most, used = (int((place / name).read_text(encoding="ascii")) for name in (limit, usage))
            stat = dict(line.split() for line in (place / "memory.stat").read_text(encoding="ascii").splitlines())
        except (OSError, ValueError):  # no such group, or "max"
            continue
        found.append(most - used + int(stat.get(reclaimable, 0)))
    return found
