"""Edge Pruning's `edges.json`, and the masks in its trained checkpoints.

A checkpoint holds, beside the weights, log-alphas of hard concrete gates: in layer L `q_read_log_alphas` `[writer,
head]` (k and v: `[writer, key/value head]`), `mlp_read_log_alphas` `[writer]`, and of the gates at writers
`attn_write_log_alphas` `[head]` and `mlp_write_log_alphas` `[1]`; for the model `final_read_log_alphas` `[writer]` and,
with embedding nodes, `token_write_log_alpha` and (GPT-2) `pos_write_log_alpha`. Layers are `transformer.h.L` or
`model.layers.L`.

Its own rule gives the circuit (`l0.py`, `vis_fpt2.py`). In each tensor the n smallest gates are 0, with n the expected
number of zeros, cells that are no edge counted in; the others are sigmoid(0.8 log-alpha / temperature). The sparsity of
the edges, 1 - mean gate, is then met by a threshold, found by bisection, and likewise that of the writers. An edge is
kept if its gate and its writer's are above their thresholds. Only the masks of a file are read, and no code in it is
run.
"""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.formats.base import AbstractFormat, ExportOptions, Imported, Loaded, not_held
from edgeprune.formats.edge_list import NO_GRAPH, AbstractEdgeList, Tool, save_list
from edgeprune.formats.views import convert_circuit, on_graph, per_group
from edgeprune.gates.hard_concrete import STRETCH, TEMPERATURE
from edgeprune.graph import ArchSpec, EdgeGraph

__all__ = ["Checkpoint", "EdgePruningCheckpoint", "EdgePruningEdges", "deterministic_gates", "threshold_at"]

_FACTOR = 0.8  # l0.py: sharpens the gates that are not 0
_EPS = 1e-6  # l0.py: probabilities are kept this far from 0 and 1
_PRECISION = 1e-5  # vis_fpt2.py: where bisection stops
_IN_LAYER = re.compile(r"(?:.*\.)?(?:h|layers)\.(\d+)\.(q_read|k_read|v_read|mlp_read|attn_write|mlp_write)_log_alphas")
_MASKS = ("q_read", "k_read", "v_read", "mlp_read", "attn_write", "mlp_write")  # of a layer
_OF_MODEL = re.compile(r"(?:.*\.)?(final_read_log_alphas|token_write_log_alpha|pos_write_log_alpha)")


# -------------------------------------------------------------------- the rule
def deterministic_gates(log_alpha: Tensor) -> Tensor:
    """Gates of one mask tensor (any shape) without noise: the expected number of zeros, the others soft."""
    low, high = STRETCH
    closed = torch.sigmoid(TEMPERATURE * math.log(-low / high) - log_alpha).clamp(_EPS, 1 - _EPS)
    num_closed = int((log_alpha.numel() - (1 - closed).sum()).round())
    gates = torch.sigmoid(log_alpha / TEMPERATURE * _FACTOR).flatten()
    if num_closed > 0:
        gates[gates.topk(num_closed, largest=False).indices] = 0
    return gates.view_as(log_alpha)


def threshold_at(gates: Tensor, sparsity: float) -> float:
    """The threshold at which a share `sparsity` of `gates` `[n]` is closed, by Edge Pruning's bisection."""
    low, high, threshold = 0.0, 1.0, 0.5
    while high - low > _PRECISION:
        threshold = (low + high) / 2
        if 1 - float((gates > threshold).float().mean()) > sparsity:
            high = threshold
        else:
            low = threshold
    return threshold


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The masks of a checkpoint, by the parts of their names that do not depend on the model.

    Attributes:
        layers: Of each layer, `q_read`, `k_read`, `v_read`, `mlp_read`, `attn_write`, `mlp_write`.
        model: `final_read_log_alphas`, and `token_write_log_alpha`, `pos_write_log_alpha` where it has them.
    """

    layers: list[dict[str, Tensor]]
    model: dict[str, Tensor]

    @classmethod
    def of(cls, tensors: Mapping[Any, Any]) -> "Checkpoint":
        """Sort the mask tensors of a state dict; others are left alone.

        Raises:
            EdgepruneError: A mask is missing, has a shape that fits no graph, or has NaN.
        """
        layers: dict[int, dict[str, Tensor]] = {}
        model: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                continue
            if found := _IN_LAYER.fullmatch(name):
                layers.setdefault(int(found[1]), {})[found[2]] = tensor.detach().float()
            elif found := _OF_MODEL.fullmatch(name):
                model[found[1]] = tensor.detach().float()
        checkpoint = cls([layers.get(index, {}) for index in range(max(layers, default=-1) + 1)], model)
        checkpoint._check()
        return checkpoint

    def _check(self) -> None:
        missing = [
            f"layer {i}: {name}_log_alphas"
            for i, layer in enumerate(self.layers)
            for name in _MASKS
            if name not in layer
        ]
        if not self.layers or "final_read_log_alphas" not in self.model:
            missing.append("final_read_log_alphas")
        if missing:
            raise EdgepruneError(f"no whole set of Edge Pruning's masks: {missing[0]} is missing")
        writers, heads, shared = self.num_writers, self.num_heads, self.num_kv_heads
        shapes = ((writers, heads), (writers, shared), (writers, shared), (writers,), (heads,), (1,))
        named = dict(self.model)
        for index, layer in enumerate(self.layers):
            for name, shape in zip(_MASKS, shapes, strict=True):
                named[mask_name := f"layer {index}: {name}_log_alphas"] = mask = layer[name]
                if tuple(mask.shape) != shape:
                    raise EdgepruneError(f"{mask_name} has shape {tuple(mask.shape)}, expected {shape}")
        for name, mask in named.items():
            if mask.isnan().any():
                raise EdgepruneError(f"{name} has NaN, which no gate can be; use a checkpoint from before that")
        if self.num_embeddings not in (0, 1, 2) or self.num_heads % self.num_kv_heads:
            raise EdgepruneError(f"masks with {self.num_writers} writers fit no model of this many layers and heads")

    @property
    def num_writers(self) -> int:
        """Writers that have masks."""
        return self.model["final_read_log_alphas"].numel()

    @property
    def num_heads(self) -> int:
        """Query heads of a layer."""
        return self.layers[0]["q_read"].shape[-1]

    @property
    def num_kv_heads(self) -> int:
        """Key/value heads of a layer."""
        return self.layers[0]["k_read"].shape[-1]

    @property
    def num_embeddings(self) -> int:
        """Embedding writers with masks: 2 (GPT-2), 1 (Llama), or 0 without embedding nodes."""
        return self.num_writers - len(self.layers) * (self.num_heads + 1)

    @property
    def graph(self) -> EdgeGraph:
        """The graph of the masks; with one embedding where no embedding has any."""
        return EdgeGraph(
            ArchSpec(
                num_layers=len(self.layers),
                num_heads=self.num_heads,
                num_kv_heads=self.num_kv_heads,
                split_embedding=self.num_embeddings == 2,
            )
        )

    # ---------------------------------------------------------------- matrices
    def reads(self) -> Iterator[Tensor]:
        """Log-alphas of the readers' tensors, `[writer, reader]` or `[writer]`, in the order of the graph's rows."""
        for layer in self.layers:
            yield from (layer[name] for name in ("q_read", "k_read", "v_read", "mlp_read"))
        yield self.model["final_read_log_alphas"]

    def writes(self) -> Iterator[Tensor]:
        """Log-alphas of the writers' gates, embeddings first."""
        yield from (self.model[name] for name in ("token_write_log_alpha", "pos_write_log_alpha") if name in self.model)
        for layer in self.layers:
            yield from (layer["attn_write"], layer["mlp_write"])

    def matrix(self, tensors: Iterable[Tensor], embedding: float) -> Tensor:
        """Readers' tensors as `[reader, writer]`; where no embedding has masks, its edges are `embedding`."""
        matrix = torch.cat([tensor.view(self.num_writers, -1).T for tensor in tensors])
        return matrix if self.num_embeddings else torch.nn.functional.pad(matrix, (1, 0), value=embedding)

    def keep(self) -> Tensor:
        """Bool `[reader, writer]`: the circuit by Edge Pruning's own rule."""
        graph = self.graph
        gates = self.matrix((deterministic_gates(tensor) for tensor in self.reads()), embedding=1.0)
        trained = graph.exists.clone()
        trained[:, : 1 - min(self.num_embeddings, 1)] = False
        edges = gates[trained]
        keep = gates > threshold_at(edges, 1 - float(edges.mean()))
        return keep & self._open_writers() & graph.exists

    def _open_writers(self) -> Tensor:
        """Bool `[writer]`: those that their own gates leave open. Position embeddings have no part in the sparsity."""
        gates = torch.cat([deterministic_gates(tensor).flatten() for tensor in self.writes()])
        if len(gates) != self.num_writers:
            raise EdgepruneError(f"masks of {len(gates)} writers' own gates, but of {self.num_writers} writers' edges")
        counted = torch.cat((gates[:1], gates[2:])) if self.num_embeddings == 2 else gates
        is_open = gates > threshold_at(counted, 1 - float(counted.mean()))
        return is_open if self.num_embeddings else torch.cat((torch.ones(1, dtype=torch.bool), is_open))


# -------------------------------------------------------------------- the two formats
@final
class EdgePruningCheckpoint(AbstractFormat):
    """A trained checkpoint: `model.safetensors`, `pytorch_model.bin`, or their folder."""

    name: ClassVar[str] = "edge-pruning-checkpoint"
    suffixes: ClassVar[tuple[str, ...]] = ()
    holds: ClassVar[str] = "Edge Pruning: log-alphas of a trained model (.safetensors, .bin, folder); only read"

    def recognises(self, loaded: Loaded) -> bool:
        """Tensors with a mask of Edge Pruning among their names."""
        value: Any = loaded.value
        return (
            loaded.kind in ("tensors", "torch")
            and isinstance(value, dict)
            and any(isinstance(name, str) and _OF_MODEL.fullmatch(name) for name in value)
        )

    def read(self, loaded: Loaded, graph: EdgeGraph | None) -> Imported:
        """The circuit by Edge Pruning's own rule, with the edges' log-alphas as scores."""
        checkpoint = Checkpoint.of(loaded.value)
        there = checkpoint.graph
        best = max(float(tensor.max()) for tensor in checkpoint.reads())
        scores = torch.where(there.exists, checkpoint.matrix(checkpoint.reads(), embedding=best), 0.0)
        header = {"source": loaded.path.name, "source_format": self.name}
        circuit = Circuit(there, checkpoint.keep(), scores, header)
        notes = ["scores are the log-alphas of the edges; the writers' own gates count in which edges are kept alone"]
        if not checkpoint.num_embeddings:
            notes.append("its embeddings have no masks: their edges are kept, with the highest score in the file")
        fitted = Imported(circuit) if graph is None else on_graph(circuit, graph)
        return Imported(fitted.circuit, (*notes, *fitted.notes))

    def write(self, circuit: Circuit, path: Path, options: ExportOptions) -> list[str]:
        """Refuse: a checkpoint is a whole model."""
        raise EdgepruneError(
            f"{self.name} is only read: a checkpoint is a whole model; write edge-pruning's edges.json"
        )


@final
class EdgePruningEdges(AbstractEdgeList):
    """`edges.json` of Edge Pruning (`vis_fpt2.py`)."""

    name: ClassVar[str] = "edge-pruning"
    holds: ClassVar[str] = "Edge Pruning: edges.json, list of kept edges"
    tools: ClassVar[tuple[Tool, ...]] = ("edge-pruning",)

    def write(self, circuit: Circuit, path: Path, options: ExportOptions) -> list[str]:
        """Write `[from, to]` of every kept edge."""
        view = convert_circuit(circuit, per_group(circuit.graph))
        notes = [*not_held(circuit, scores=False), *view.notes]
        arch = circuit.graph.arch
        embeddings = ("tok_embeds", "pos_embeds")
        if not arch.split_embedding and arch.num_kv_heads < arch.num_heads:
            embeddings = ("embeds",)  # only its Llama code shares key/value heads, and that has one embedding
        elif not arch.split_embedding:
            notes.append("the one embedding is written as tok_embeds and pos_embeds, with the same edges")
        save_list(path, [pair for edge in view.circuit.edges() for pair in _edge_pruning(edge, embeddings)])
        return [*notes, NO_GRAPH]


def _edge_pruning(edge: str, embeddings: tuple[str, ...]) -> Iterator[list[str]]:
    writer, _, reader = edge.partition("->")
    names = {"tok_embed": ("tok_embeds",), "pos_embed": ("pos_embeds",), "embed": embeddings}.get(writer, (writer,))
    yield from ([name, "resid_post" if reader == "logits" else reader] for name in names)
