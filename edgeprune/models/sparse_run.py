"""Circuits with few edges: only what their open edges change is run; the rest is as with every edge closed.

With e_w what writer w puts out when every edge is closed, a circuit's reader takes in

    x_reader = (sum of all ablated_w) + sum over open edges of (e_w - ablated_w) + sum over open edges of (own_w - e_w)

The first sum is the same for all circuits. The second has few terms where closed edges carry a run of the model on
prompts laid out like the batch's, as in interchange ablation: with every edge closed the writers are then those of that
run, e_w = ablated_w, but for the embeddings. The third has terms only where something changes, which a `Rerun` follows.
Shapes: B examples, S positions, T = B * S tokens, P = B * scored positions, D width.
"""

from dataclasses import replace
from typing import final

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.models.block import repeat_kv
from edgeprune.models.changes import find_changes
from edgeprune.models.clean_run import LayerValues, StartingRun
from edgeprune.models.masked import MaskedModel
from edgeprune.models.rerun import ReferenceState, Rerun
from edgeprune.models.states import WriterStates


@final
class EmptyRun(StartingRun):
    """The model on one batch with every edge closed, ready to run sparse circuits.

    Args:
        model: The masked model.
        batch: On the model's device.
        ablated: What closed edges carry in this batch.
        like_batch: They are a run of this model on prompts laid out like the batch's (same padding, no alignment).
    """

    @torch.no_grad()
    def __init__(self, model: MaskedModel, batch: PairBatch, ablated: WriterStates, *, like_batch: bool) -> None:
        super().__init__(model, batch, "running only what a circuit changes")
        graph, shape = model.graph, self.embedded.shape
        rows = len(self.embeddings) if like_batch else len(graph.writers)
        self.delta = self.embedded.new_zeros((rows, batch.clean.numel(), shape[-1]))
        self.put_embeddings(ablated)
        streams: list[Tensor] = []
        mlps: dict[int, Tensor] = {}
        stream = sum(ablated.embeddings.unbind(), torch.zeros_like(self.embedded))
        for layer, block in enumerate(model.blocks):
            streams.append(stream.flatten(0, 1))
            others = ablated.heads[layer].expand(*shape[:2], *ablated.heads.shape[3:])
            qkv = repeat_kv(block.project(block.norm(stream)), graph.arch.kv_readers_per_head)
            heads = others if like_batch else block.write(block.attend(*block.heads(*qkv), self.first_context))[0]
            attention, mlp, other = block.sum_heads(others), None, None
            if ablated.mlps is not None:
                other = ablated.mlps[layer].expand(shape)
                inputs = block.mlp_input(stream, attention)
                mlp = other if like_batch else block.mlp(inputs)
                mlps[layer] = inputs.flatten(0, 1)
            if not like_batch:
                out = self.delta[graph.heads(layer)]
                torch.bmm((others - heads).flatten(0, 1).transpose(0, 1), block.output_weight(), out=out)
                if mlp is not None and other is not None:
                    self.delta[graph.mlp_writer(layer)] = (other - mlp).flatten(0, 1)
            stream = block.join(stream, attention, other)
            kept = None if mlp is None else mlp.flatten(0, 1)
            self.layers.append(LayerValues(tuple(part.flatten(0, 1) for part in qkv), heads.flatten(0, 1), kept))
        last = stream.flatten(0, 1)[self.tokens]
        self._state = ReferenceState(lambda layer, _: streams[layer][None], mlps, last, self.layers)
        self._moving = (self.delta != 0).flatten(1).any(1).nonzero().flatten().tolist()

    @torch.no_grad()
    def logits(self, keep: Tensor) -> Tensor:
        """Logits of a circuit at the scored positions, float32 `[B, positions, vocab]`.

        Args:
            keep: Bool `[reader, writer]` on the CPU, False where no edge exists.
        """
        graph = self.model.graph
        starts = keep[:, self._moving].any(1)
        changes = find_changes(graph, keep, starts)
        changing = [reader for layer in changes.layers for reader in layer.readers]
        changing += [graph.mlp_reader(layer) for layer, found in enumerate(changes.layers) if found.mlp]
        changing.append(len(graph.readers) - 1)
        apart = [writer for writer in self._moving if keep[changing, writer].any()]
        brings = torch.zeros(len(graph.writers), dtype=torch.bool)
        brings[[*changes.writers, *apart]] = True
        state = replace(self._state, apart={writer: -self.delta[writer] for writer in apart})
        return Rerun(self, keep & brings, changes, state, 1).run({})[0][0]
