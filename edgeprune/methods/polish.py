"""Polishing: at a fixed number of edges, swap open edges for closed ones as long as the loss falls.

A round looks around the circuit (`LossModel`), lines up swaps, each the best given those before it, and runs the
circuit after the first m of them, the first m/2, ...: those that lower the loss over all training pairs are run on
held-out pairs too, and the one that is best there stays if it is lower there as well. The model was made from the
training pairs, so that long lines of swaps fit these and no others; with several `parts` of them a round sees one part,
and the next begins with each swap that stayed. m grows where the longest step was the best, and
shrinks where none helped. A first swap that alone does not help is left out, and the line goes on from the next one,
eight times at most. After that effects are measured instead: open the n edges that promise most, then close n, one
after the other, each the one that costs least. Costs are kept in a heap, those of the model to begin with, and only the
least is measured again after each closing (as in lazy greedy search, Minoux 1978). n is 1, 2, 4, ..., and one success
leads back to the model.
"""

import hashlib
import heapq
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.console import Progress, no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.methods.loss_model import LossModel, Swap
from edgeprune.methods.polish_state import Better, State
from edgeprune.methods.problem import Problem

WHAT = "polishing, passes"
SKIPPED = 8  # swaps at the head of a line, each of which alone did not help
LENGTHS = 3  # of a line of swaps, run together: all, a half, a quarter
FIRST_STEP = 64  # one in so many edges is swapped at first
MEASURED_TOGETHER = 4  # circuits without one of their edges
ROUNDING = {torch.float64: 1e-9}  # relative: a lower loss is one that is lower by more
ROUNDING_ELSE = 1e-6
FORWARD = 1 / 3  # of a forward and backward pass; of circuits with few edges a run takes less

Cost = tuple[float, int, int]  # of closing an edge; its place; number of the closing that it was measured for


@final
@dataclass(frozen=True)
class Polishing:
    """How a circuit is polished.

    Attributes:
        max_passes: Stop after so many forward and backward passes over the training pairs, with `parts` over those of a
            part; a circuit that is run counts a third of one.
        probes: Random functions of the logits for each pair, from which the model of the loss has its curvature.
        step: Edges to swap at once at first; None: one in 64.
        overshoot: The most edges to open before as many are closed by exact effects; 0: none.
        seed: Of the random functions.
        memory_gb: For the model of the loss, in 1e9 bytes.
        parts: Of the training pairs, nearly equal; a round sees one, and after each swap that stays it is the next
            one's turn, so that swaps cannot fit a few pairs.
    """

    max_passes: float = 100.0
    probes: int = 2
    step: int | None = None
    overshoot: int = 32
    seed: int = 0
    memory_gb: float = 1.0
    parts: int = 1

    def __post_init__(self) -> None:
        least = {"probes": 0, "step": 1, "overshoot": 0, "parts": 1}
        for name, lowest in least.items():
            value = getattr(self, name)
            if value is not None and value < lowest:
                raise EdgepruneError(f"{name} must be at least {lowest}, got {value}")
        for name in ("max_passes", "memory_gb"):
            if not 0 < getattr(self, name) < math.inf:
                raise EdgepruneError(f"{name} must be a number above 0, got {getattr(self, name)}")

    def describe(self) -> dict[str, Any]:
        """The settings, plain values for a circuit's header."""
        return asdict(self)


@final
class Polisher:
    """Polishes one circuit.

    Args:
        problem: Model, training pairs, ablation, metric.
        keep: The circuit, bool `[..., reader, writer]`.
        settings: How.
        held_out: The same with other pairs, on which a circuit must be better too, and which decide between those that
            are better on the training pairs; None: the training pairs decide.
        folder: Where the state is kept after each round; None keeps none.

    Attributes:
        state: How far it is.

    Raises:
        EdgepruneError: The circuit has no edge or all edges, its loss is not finite, there are fewer batches than
            parts, or the folder holds another state.
    """

    def __init__(
        self,
        problem: Problem,
        keep: Tensor,
        settings: Polishing | None = None,
        held_out: Problem | None = None,
        folder: Path | None = None,
    ) -> None:
        self.problem, self.held_out, self.folder = problem, held_out, folder
        self.settings = Polishing() if settings is None else settings
        self.parts = problem.cut(self.settings.parts)
        self.graph = problem.model.graph
        self.start = keep.cpu().bool() & self.graph.exists
        num_open = int(self.start.sum())
        if not 0 < num_open < self.graph.num_edges:
            raise EdgepruneError(
                f"a circuit of {num_open:,} of {self.graph.num_edges:,} edges has nothing to swap; "
                "polish one with some edges open and some closed"
            )
        self.most_opened = min(self.settings.overshoot, self.graph.num_edges - num_open)
        self.margin = ROUNDING.get(problem.model.dtype, ROUNDING_ELSE)
        self.identity = self._identity(self.start)
        found = None if folder is None else State.load(folder, self.identity)
        self.state = found or State(self.start, self.settings.step or max(1, num_open // FIRST_STEP))
        self._begun = time.monotonic() - self.state.seconds
        self._model: LossModel | None = None  # of the loss around the present circuit
        self._report = no_progress

    def _identity(self, keep: Tensor) -> dict[str, Any]:
        """What a state must agree with."""
        pairs = None if self.held_out is None else self.held_out.identity()["data"]
        start = hashlib.sha256(keep.numpy().tobytes()).hexdigest()
        return {**self.problem.identity(), **self.settings.describe(), "circuit": start, "held_out": pairs}

    @property
    def key(self) -> str:
        """Hash of all that the result depends on."""
        return hashlib.sha256(json.dumps(self.identity).encode()).hexdigest()

    # ---------------------------------------------------------------- rounds
    def run(self, report: Progress = no_progress) -> State:
        """Polish until nothing helps or the passes are spent.

        Args:
            report: Called with the passes so far, and the most there may be.
        """
        self._report = report
        if not self.state.evaluated:
            self._begin()
        self._spend(0.0)
        while not self.state.stopped:
            self._round()
            self._save()
        if len(self.parts) > 1:
            self.state.loss = self._overall(self.state.keep)
        total = math.ceil(self.settings.max_passes)
        report(WHAT, total, total)
        return self.state

    @property
    def figures(self) -> Mapping[str, float]:
        """What to show beside the progress."""
        held_out = {} if self.state.held_out is None else {"held out": self.state.held_out}
        return {self.problem.metric: self.state.loss, **held_out}

    def _begin(self) -> None:
        state = self.state
        (state.loss,) = self._losses([self.start])
        state.start = self._overall(self.start) if len(self.parts) > 1 else state.loss
        if self.held_out is not None:
            state.held_out = state.held_out_start = self._held_out_loss(self.held_out, self.start)
        for loss, pairs in ((state.start, "pairs to polish on"), (state.held_out, "held-out pairs")):
            if loss is not None and not math.isfinite(loss):
                raise EdgepruneError(
                    f"the circuit's {self.problem.metric} is {loss} over the {pairs}, which nothing can be compared "
                    "with; begin with a circuit of which it is finite, or choose another metric"
                )

    def _round(self) -> None:
        state = self.state
        state.rounds += 1
        better = self._measured_swaps(state.overshoot) if state.overshoot else self._line_of_swaps()
        if better is not None:
            state.keep, state.loss, state.held_out = better.keep, better.loss, better.held_out
            state.accepted += 1
            state.overshoot, state.skipped, self._model = 0, 0, None
            if len(self.parts) > 1:
                (state.loss,) = self._losses([state.keep])
        elif not state.overshoot and state.skipped < SKIPPED and state.swaps_left:
            state.skipped, state.step = state.skipped + 1, 2 ** (LENGTHS - 1)
        elif state.overshoot < self.most_opened:
            state.overshoot, state.step = min(max(1, 2 * state.overshoot), self.most_opened), 1
        else:
            state.stopped = "no swap helps"
        if not state.stopped and state.passes >= self.settings.max_passes:
            state.stopped = "passes are spent"

    def _save(self) -> None:
        self.state.seconds = time.monotonic() - self._begun
        if self.folder is not None:
            self.state.save(self.folder, self.identity)

    # ---------------------------------------------------------------- swaps by the model
    def _look(self) -> LossModel:
        """The model of the loss around the present circuit; made again after an interruption, it is counted once."""
        state, settings = self.state, self.settings
        if self._model is None:
            self._model = LossModel.around(
                self._part,
                state.keep,
                probes=settings.probes,
                seed=settings.seed,
                draw=state.accepted,
                memory_gb=settings.memory_gb,
            )
            if state.looks == state.accepted:
                state.looks += 1
                self._spend(self._model.passes)
        return self._model

    def _line_of_swaps(self) -> Better | None:
        """A better circuit along a line of swaps; None if no length helps."""
        skipped, step = self.state.skipped, self.state.step
        swaps = self._look().swaps(skipped + step)[skipped:]
        length = len(swaps)
        self.state.swaps_left = length == step
        while length:
            lengths = [size for size in (length >> shift for shift in range(LENGTHS)) if size]
            circuits = [self._swapped(swaps[:size]) for size in lengths]
            found = [self._better(*each) for each in zip(circuits, self._losses(circuits), strict=True)]
            better = [(each.deciding, size, each) for size, each in zip(lengths, found, strict=True) if each]
            if better:
                _, size, best = min(better)
                self.state.step = 2 * size
                return best
            length = lengths[-1] // 2
        return None

    def _swapped(self, swaps: Sequence[Swap]) -> Tensor:
        keep = self.graph.to_vector(self.state.keep)
        for swap in swaps:
            keep[swap.opened], keep[swap.closed] = True, False
        return self.graph.to_matrix(keep)

    # ---------------------------------------------------------------- swaps by measured effects
    def _measured_swaps(self, number: int) -> Better | None:
        """A better circuit by opening `number` edges, then closing as many; or None."""
        model, keep = self._look(), self.graph.to_vector(self.state.keep)
        keep[model.best_openings(number)] = True
        (loss,) = self._losses([self.graph.to_matrix(keep)])
        costs = model.closing_costs(keep)
        heap = [(costs[place].item(), place, -1) for place in keep.nonzero().flatten().tolist()]
        heapq.heapify(heap)
        for closing in range(number):
            if self.state.passes >= self.settings.max_passes or not math.isfinite(loss):
                return None
            cost, place = self._cheapest(heap, keep, loss, closing)
            keep[place] = False
            loss += cost
        return self._better(self.graph.to_matrix(keep), loss)

    def _cheapest(self, heap: list[Cost], keep: Tensor, loss: float, closing: int) -> tuple[float, int]:
        """Take the edge that costs least from the heap, once its cost was measured in the present circuit `[edge]`."""
        while heap[0][2] != closing:
            asked = [heapq.heappop(heap)[1]]
            while heap and len(asked) < MEASURED_TOGETHER and heap[0][2] != closing:
                asked.append(heapq.heappop(heap)[1])
            for place, found in zip(asked, self._losses([self._without(keep, place) for place in asked]), strict=True):
                heapq.heappush(heap, (found - loss, place, closing))
        cost, place, _ = heapq.heappop(heap)
        return cost, place

    def _without(self, keep: Tensor, place: int) -> Tensor:
        keep = keep.clone()
        keep[place] = False
        return self.graph.to_matrix(keep)

    # ---------------------------------------------------------------- losses
    def _is_lower(self, loss: float, than: float) -> bool:
        return loss < than - self.margin * max(1.0, abs(than))

    @property
    def _part(self) -> Problem:
        """The training pairs of this round."""
        return self.parts[self.state.accepted % len(self.parts)]

    def _overall(self, circuit: Tensor) -> float:
        """Mean loss over all training pairs."""
        self._spend(FORWARD * len(self.parts))
        return self.problem.mean_loss(circuit)

    def _losses(self, circuits: Sequence[Tensor]) -> list[float]:
        """Mean losses over the training pairs of this round of circuits, bool `[..., reader, writer]`."""
        self.state.evaluated += len(circuits)
        found = self._part.mean_losses(circuits)
        self._spend(FORWARD * len(circuits))
        return found

    def _better(self, circuit: Tensor, loss: float) -> Better | None:
        """A circuit with its losses, the one over the training pairs given, if they are lower than those so far."""
        state = self.state
        if not self._is_lower(loss, state.loss):
            return None
        if self.held_out is None or state.held_out is None:
            return Better(circuit, loss, None)
        held_out = self._held_out_loss(self.held_out, circuit)
        return Better(circuit, loss, held_out) if self._is_lower(held_out, state.held_out) else None

    def _held_out_loss(self, held_out: Problem, circuit: Tensor) -> float:
        loss = held_out.mean_loss(circuit)
        self._spend(FORWARD * held_out.num_examples / self._part.num_examples)
        return loss

    def _spend(self, passes: float) -> None:
        self.state.passes += passes
        total = math.ceil(self.settings.max_passes)
        self._report(WHAT, min(int(self.state.passes), total - 1), total)


def polished(circuit: Circuit, polisher: Polisher) -> Circuit:
    """The circuit that a polisher made of another; the header of that one, and under `polished` what became of it."""
    state, problem, held_out = polisher.state, polisher.problem, polisher.held_out
    names = ("start", "loss", "held_out_start", "held_out", "rounds", "accepted", "passes", "seconds", "stopped")
    about = {
        **polisher.settings.describe(),
        **{name: getattr(state, name) for name in names},
        "swaps": int((state.keep & ~circuit.keep).sum()),
        "metric": problem.metric,
        "ablation": problem.runs.ablation,
        "split": problem.split,
        "num_examples": problem.num_examples,
        "num_held_out": 0 if held_out is None else held_out.num_examples,
        "from_sha256": circuit.header.get("sha256"),
        "key": polisher.key,
    }
    return circuit.with_edges(state.keep, {"polished": about})
