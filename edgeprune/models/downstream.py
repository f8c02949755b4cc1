"""The masked model from one reader on: what lies before it is taken from the clean run, and only what changes is run.

Closing edges from the logits back leaves everything before the reader in question as it is in the full model. With
d_w = ablated_w - clean_w, and c_w = own_w - clean_w for a writer whose output differs from that of the clean run,

    x_reader = stream + sum over closed edges of d_w + sum over open edges of c_w                                  (1)

gives the circuit's state, once per reader. Closing further edges into that reader adds their d_w to its input; what
follows is a `Rerun`. Shapes: B examples, S positions, T = B * S tokens, D width.
"""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from edgeprune.models.changes import Changes, find_changes
from edgeprune.models.clean_run import CleanRun
from edgeprune.models.rerun import KeptInputs, ReferenceState, Rerun


@final
class DownstreamRun:
    """A circuit from one reader on, ready for questions about further closed edges into that reader.

    Args:
        clean: The clean run.
        keep: The circuit, bool of the shape of the model's graph; all edges into earlier layers' readers must be open.
        reader: The reader.
    """

    @torch.no_grad()
    def __init__(self, clean: CleanRun, keep: Tensor, reader: int) -> None:
        graph = clean.graph
        self.clean, self.reader = clean, reader
        self.keep = keep & graph.exists
        closed = graph.exists & ~self.keep
        starts = torch.zeros(len(graph.readers), dtype=torch.bool)
        starts[reader] = True
        at_any, moved = (matrix.reshape(-1, *graph.shape).any(0) for matrix in (self.keep, closed))
        self.changes = find_changes(graph, at_any, starts)
        base = find_changes(graph, at_any, moved.any(1))
        self.logits, self._reference = self._settle(base, closed.to(clean.delta))

    @torch.no_grad()
    def ahead(self, closed: Sequence[int], candidates: Sequence[int], role: int | None = None) -> Tensor:
        """Logits with the edges from `closed` and the first 1, 2, ... of `candidates` into the reader closed.

        Args:
            closed: Writers.
            candidates: Writers.
            role: Closed at this role alone; None: there are no roles.

        Returns:
            Float32 `[candidates, batch, positions, vocab]`.
        """
        delta = self.clean.delta
        moves = delta[list(candidates)].cumsum(0) + delta[list(closed)].sum(0)
        if self.clean.role_of is not None:
            moves *= (self.clean.role_of == role).to(moves)[:, None]
        rerun = Rerun(self.clean, self.keep, self.changes, self._reference, len(candidates))
        return rerun.run({self.reader: moves})[0]

    def _settle(self, base: Changes, closed: Tensor) -> tuple[Tensor, ReferenceState]:
        """The circuit itself, from the clean run by (1): its logits, and its state at the readers of `self.changes`."""
        clean, graph = self.clean, self.clean.graph
        rows = [graph.rows(layer).mlp.start for layer in range(len(base.layers))]
        mlps = {
            layer: self._mixed([rows[layer]], closed)[0] for layer, changed in enumerate(base.layers) if changed.mlp
        }
        last = self._mixed([len(graph.readers) - 1], closed)[0, clean.tokens]
        start = ReferenceState(lambda _, readers: self._mixed(readers, closed), mlps, last, clean.layers)
        rerun = Rerun(clean, self.keep, base, start, 1, wanted=self.changes)
        logits, layers = rerun.run({})
        kept = rerun.inputs
        attention = KeptInputs()
        for layer, changed in enumerate(self.changes.layers):
            if changed.readers:
                names = list(dict.fromkeys(rerun.alike[reader] for reader in changed.readers))
                attention.readers[layer] = names
                attention.inputs[layer] = torch.stack([kept.pop(name, clean.stream(name)) for name in names])
        mlps = {
            layer: kept.get(rows[layer], clean.stream(rows[layer]))
            for layer, changed in enumerate(self.changes.layers)
            if changed.mlp
        }
        return logits[0], ReferenceState(attention, mlps, rerun.last, layers)

    def _mixed(self, readers: list[int], closed: Tensor) -> Tensor:
        """Inputs `[readers, T, D]` by (1) of readers before which nothing changed, and that see the same writers."""
        return self.clean.mixed(readers, closed, self.clean.stream(readers[0]))
