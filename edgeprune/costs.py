"""What a training step has to compute and to move, counted from a model's shape, and how fast cards could do it.

Multiply-adds per token. Attention scores, norms and activation functions are left out (a few percent at short prompts).

    plain step      all matrices of the layers forward and backward (gradients to inputs, none to weights)
    floor           plain + mixing (edges * width) forward, and twice that in the backward
    built           what the masked model does: besides, heads are written one by one beside the model's own product,
                    inputs that were not kept are mixed again in the backward, and in half precision 1 - gate comes as
                    two terms

Each is for a step whose ablated run is kept; made anew, that is the layers' matrices once more, and so is the full
model's run. The head runs at the scored positions only.
"""

from dataclasses import dataclass
from typing import NamedTuple, final

import torch

from edgeprune.memory import BatchShape
from edgeprune.models.masked import MaskedModel
from edgeprune.models.read_ops import ReadOps, ops_for
from edgeprune.models.reads import input_rows, segments

READER_PASSES = 7  # over readers' inputs: written and read; in the backward again, then the gradient, which two read
REFERENCE_RUNS = 2  # the full model's and the ablated one


class Card(NamedTuple):
    """A graphics card; products are of dense matrices.

    Attributes:
        memory_gb: In 1e9 bytes, as sold.
        bandwidth: Of that memory, 1e12 bytes per second.
        half: Of its tensor cores in bfloat16 and float16, added up in float32, 1e12 operations per second.
        single: In float32 without TF32, which torch leaves off, 1e12 operations per second.
    """

    memory_gb: float
    bandwidth: float
    half: float
    single: float


CARDS = {
    # NVIDIA A100 Tensor Core GPU data sheet, 2021: SXM; 40 GB and 80 GB differ in their memory
    "a100-40gb": Card(40, 1.555, 312, 19.5),
    "a100-80gb": Card(80, 2.039, 312, 19.5),
    # NVIDIA H100 Tensor Core GPU data sheet, SXM: 1,979 with sparsity
    "h100-80gb": Card(80, 3.35, 989.4, 67),
    # NVIDIA H200 Tensor Core GPU data sheet, SXM
    "h200-141gb": Card(141, 4.8, 989.4, 67),
    # NVIDIA Ada GPU architecture white paper, appendix A: GeForce RTX 4090
    "rtx4090-24gb": Card(24, 1.008, 165.2, 82.6),
    # NVIDIA L40S data sheet: 733 with sparsity
    "l40s-48gb": Card(48, 0.864, 362, 91.6),
    # NVIDIA Blackwell architecture technical brief, HGX B200: 4,500 with sparsity
    "b200-192gb": Card(192, 8.0, 2250, 80),
}


@final
@dataclass(frozen=True)
class StepCost:
    """One batch of a training step.

    Attributes:
        edges: Of the graph without roles: a token has the edges of one.
        body: Multiply-adds per token: all matrices of the layers, once.
        heads: Of these, the heads' output projections.
        copies: Beside them: k and v of readers that share a key/value head of the model.
        mixing: Every edge times the width, once.
        head: Multiply-adds per scored position.
        tokens: With padding.
        scored: Scored positions.
        mixings: Products that mixing is made of as built: forward, again where inputs were not kept, and the stack's
            gradient, each in two terms in half precision; the gates'.
        half: Half precision.
        stack_row: Bytes of the stack per token.
        traffic: Bytes per token that the stack and its gradient move: each row is written once, and read by every block
            of layers after it, forward, again in the backward, for the gates' gradient, and twice for the stack's.
        readers_row: Bytes of all readers' inputs per token.
        weights: Bytes of the weights that the body and the head read, once.
        activations: Bytes that autograd keeps.
    """

    edges: int
    body: int
    heads: int
    copies: int
    mixing: int
    head: int
    tokens: int
    scored: int
    mixings: float
    half: bool
    stack_row: int
    traffic: float
    readers_row: int
    weights: int
    activations: int

    @property
    def per_token(self) -> dict[str, int]:
        """Multiply-adds per token by what is done, without the head."""
        plain = 2 * self.body
        floor = plain + 3 * self.mixing
        built = plain + 2 * self.heads + 2 * self.copies + round(self.mixings * self.mixing)
        return {
            "layers once": self.body,
            "mixing once": self.mixing,
            "plain step": plain,
            "floor, ablated run kept": floor,
            "floor": floor + self.body,
            "built, ablated run kept": built,
            "built": built + self.body,
        }

    def operations(self, name: str, runs: int = 0) -> float:
        """Operations of the batch, two for a multiply-add, with the head.

        Args:
            name: One of `per_token`.
            runs: Reference runs made anew besides.
        """
        added = 2 + runs if name != "layers once" else 1
        heads = 0 if name == "mixing once" else added * self.head * self.scored
        return 2.0 * ((self.per_token[name] + runs * self.body) * self.tokens + heads)

    def bytes_moved(self, *, built: bool, runs: int = 0) -> float:
        """Bytes between memory and cores that the batch takes, at least: weights, stack, activations, readers' inputs.

        Args:
            built: Readers' inputs lie in memory; else they never do.
            runs: Reference runs made anew besides.
        """
        moved = (2 + runs) * self.weights + self.traffic * self.tokens + 2 * self.activations
        return moved + READER_PASSES * self.readers_row * self.tokens * built

    def seconds(self, card: Card, *, built: bool, runs: int = 0) -> float:
        """What the batch takes on a card that computes, or moves bytes, as fast as it can, and both at once."""
        name = "built, ablated run kept" if built else "floor, ablated run kept"
        speed = card.half if self.half else card.single
        computing = self.operations(name, runs) / (speed * 1e12)
        return max(computing, self.bytes_moved(built=built, runs=runs) / (card.bandwidth * 1e12))


def step_cost(
    model: MaskedModel, shape: BatchShape, activations: int = 0, device: torch.device | None = None
) -> StepCost:
    """What a batch of a training step takes.

    Args:
        model: The model; one without weights will do.
        shape: Of the batch.
        activations: Bytes per example that autograd keeps.
        device: Where it will run; None: where the model is.
    """
    graph, arch, ops = model.graph.without_roles, model.graph.arch, ops_for(device or model.device)
    num_heads, head_dim, width = model.blocks[0].projection_weight().shape
    row, half = width * model.dtype.itemsize, model.dtype.itemsize < 4
    body, read = _layers(model)
    copies = 2 * (arch.num_kv_readers - arch.num_kv_heads) * head_dim * width * arch.num_layers
    found = segments(arch.num_layers, arch.readers_per_layer, ops.segment_readers)
    rows = sum(graph.first_writer(first) + (end - first - 1) * arch.writers_per_layer / 2 for first, end in found)
    head = model.num_outputs * width
    return StepCost(
        edges=graph.num_edges,
        body=body,
        heads=arch.num_layers * num_heads * head_dim * width,
        copies=copies,
        mixing=graph.num_edges * width,
        head=head,
        tokens=shape.tokens,
        scored=shape.batch * shape.positions,
        mixings=(2 + _mixed_again(model, ops, shape.tokens * row)) * (1 + half) + 1,
        half=half,
        stack_row=len(graph.writers) * row,
        traffic=row * (len(graph.writers) + 5 * rows),
        readers_row=len(graph.readers) * row,
        weights=read + head * model.dtype.itemsize,
        activations=activations * shape.batch,
    )


def _mixed_again(model: MaskedModel, ops: ReadOps, row_bytes: int) -> float:
    """Share of the edges that are mixed a second time, in the backward, since there was no room to keep inputs."""
    arch, exists = model.graph.arch, model.graph.without_roles.exists
    if model.blocks[0].input_spec().eps is None:
        return 0.0
    if ops.fused:
        return 1.0
    kept, per_layer = input_rows(arch, ops, row_bytes).own, arch.readers_per_layer
    found = segments(arch.num_layers, per_layer, ops.segment_readers)
    again = [own for number, own in enumerate(found[:-1]) if number not in kept]
    return sum(int(exists[first * per_layer : end * per_layer].sum()) for first, end in again) / int(exists.sum())


def _layers(model: MaskedModel) -> tuple[int, int]:
    """Of all layers: multiply-adds per token, for which experts that a token goes to count; bytes of the weights."""
    config, body, read = model.hf.config, 0, 0
    experts = next((getattr(config, name) for name in ("num_local_experts", "num_experts") if hasattr(config, name)), 0)
    for block in model.blocks:
        for weight in block.module.parameters():
            own = weight.numel() if weight.ndim > 1 else 0
            if weight.ndim == 3 and experts and len(weight) == experts:
                own = own * config.num_experts_per_tok // experts
            body, read = body + own, read + weight.nbytes
    return body, read
