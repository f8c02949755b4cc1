"""ACDC: close edges one after the other, from the logits back, as long as the loss does not rise by tau.

    for each receiver v, in reverse topological order:
        m = loss(circuit)
        for each sender u of v:
            m' = loss(circuit without u->v)
            if m' - m < tau:  remove u->v;  m = m'                      (or |m' - m| < tau)

A receiver whose node nothing reads any more loses all its edges without a test. (Conmy et al., arXiv 2304.14997, with
the order, the rule and the short cut of its published code; with `direct_edges` also its edges from a whole q, k or v.)

The decisions are those of the sequential procedure whatever `evaluation` is; that only says how losses are computed.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.console import Progress
from edgeprune.errors import EdgepruneError
from edgeprune.graph import EdgeGraph
from edgeprune.graph_paths import is_key_or_value, scored_roles, seen_roles
from edgeprune.methods.acdc_losses import AbstractLosses, DownstreamLosses, PlainLosses, Receiver
from edgeprune.methods.acdc_order import Order, receivers_at_roles, sender_order
from edgeprune.methods.acdc_state import State, ThresholdRun
from edgeprune.methods.discovery import AbstractDiscovery, DiscoveryResult
from edgeprune.methods.problem import Problem

Exact = Callable[[Tensor], float]  # loss of a circuit, bool of the graph's shape
Evaluation = Literal["plain", "reuse", "speculative"]
FREE_CHANGE_LIMIT = 3e-3  # what the published code asserts of removals without a test


@final
@dataclass(frozen=True)
class ACDC(AbstractDiscovery):
    """Automatic circuit discovery.

    Attributes:
        taus: Thresholds, in units of the metric; each gives a circuit of its own, from the full model on. The loss of
            the problem must be low for a faithful model, as all its metrics are.
        absolute: Remove where the loss *changes* by less than tau, instead of where it rises by less.
        names: Order of a receiver's senders: `"normal"` (last layer first), `"reverse"` or `"random"`; of the groups
            that share a name in the published code (an MLP, the heads of a layer, an embedding).
        indices: Order of the heads of a layer, likewise; `"normal"` is the last head first.
        seed: Of random orders.
        direct_edges: Before the edges into a layer's heads, test each v, k and q as a whole, as the published code does
            with what it calls edges of direct computation: one that goes takes all edges into it along.
        evaluation: `"plain"`: the whole masked model for each test. `"reuse"`: only what lies downstream of the
            receiver. `"speculative"`: that, and several tests at once on the guess that edges go.
        max_ahead: Largest number of tests at once.
        waste: Share of the evaluations that may turn out void because their guess was wrong. Where several at once cost
            little more than one, as on an idle GPU, more is better.
        memory_gb: Bound on what reuse and speculation keep, in 1e9 bytes.
        tie_margin: A test nearer than this to tau (relative to the loss where that is above 1) is decided by the whole
            masked model, so that reuse cannot change it by rounding.
    """

    name = "acdc"

    taus: tuple[float, ...] = (0.01,)
    absolute: bool = False
    names: Order = "normal"
    indices: Order = "normal"
    seed: int = 0
    direct_edges: bool = False
    evaluation: Evaluation = "speculative"
    max_ahead: int = 8
    waste: float = 0.15
    memory_gb: float = 2.0
    tie_margin: float = 1e-7

    def __post_init__(self) -> None:
        object.__setattr__(self, "taus", tuple(float(tau) for tau in self.taus))
        if not self.taus or len(set(self.taus)) < len(self.taus) or any(map(math.isnan, self.taus)):
            raise EdgepruneError(f"taus must be one or more different numbers, got {self.taus}")
        for name, known in (("names", Order), ("indices", Order), ("evaluation", Evaluation)):
            if getattr(self, name) not in get_args(known):
                raise EdgepruneError(f"{name} must be one of {', '.join(get_args(known))}, got {getattr(self, name)!r}")
        if self.max_ahead < 1:
            raise EdgepruneError(f"max_ahead must be at least 1, got {self.max_ahead}: one edge is tested at a time")
        if not self.waste >= 0:
            raise EdgepruneError(f"waste must be at least 0, got {self.waste}: it is a share of the evaluations")
        if not (self.memory_gb > 0 and self.tie_margin >= 0):
            raise EdgepruneError(
                f"memory_gb must be above 0 and tie_margin at least 0, got {self.memory_gb} and {self.tie_margin}"
            )

    def discover(self, problem: Problem, report: Progress, folder: Path | None = None) -> DiscoveryResult:
        """Find the circuit of each tau.

        Args:
            problem: Model, pairs, ablation, metric.
            report: Called after each receiver with the receivers that are done, and how many there are; where a run
                goes on, first with those that were done.
            folder: Where the state is kept after each receiver; None keeps none.

        Returns:
            Circuits `"tau-0.01"`, ..., each with its effects as scores: the rise of the loss when the edge was tested,
            0 where it was removed without a test. Scores of the whole: with one tau these effects; with several the
            smallest finite tau that removed the edge, or, where none did, the size of its effect at the largest one.

        Raises:
            EdgepruneError: `folder` holds the state of another run.
        """
        graph, losses = problem.model.graph, self._losses(problem)
        receivers = receivers_at_roles(graph)
        identity = {**self._decisive(), "graph": graph.to_dict(), **problem.identity()}
        state = State(identity, []) if folder is None else State.load(folder, identity)
        started = time.monotonic() - state.seconds
        if state.runs:
            report(_what(state.runs[-1]), state.runs[-1].next_receiver, len(receivers))
        for number, tau in enumerate(self.taus):
            if number == len(state.runs):
                effects = torch.zeros(graph.shape, dtype=torch.float64)
                state.runs.append(ThresholdRun(tau, graph.exists.clone(), effects))
            run = state.runs[number]
            while run.next_receiver < len(receivers):
                self._receiver(run, receivers[run.next_receiver], losses)
                run.next_receiver += 1
                self._check(run, receivers, losses)
                state.seconds = time.monotonic() - started
                if folder is not None:
                    state.save(folder)
                report(_what(run), run.next_receiver, len(receivers))
        return replace(self._result(graph, state.runs), seconds=state.seconds)

    # ---------------------------------------------------------------- one receiver
    def _losses(self, problem: Problem) -> AbstractLosses:
        if self.evaluation == "plain":
            return PlainLosses(problem)
        return DownstreamLosses(problem, self.memory_gb, self.max_ahead)

    def _decisive(self) -> dict[str, Any]:
        """Settings that a run must keep. Less memory may be the reason to start again, and changes rounding only."""
        return {name: value for name, value in self.describe().items() if name not in ("method", "memory_gb")}

    def _receiver(self, run: ThresholdRun, receiver: Receiver, losses: AbstractLosses) -> None:
        """Test every edge into `receiver`, or remove them all if nothing reads its node, or it went as a whole."""
        graph = losses.problem.model.graph
        if self.direct_edges:
            for whole in _together(graph, receiver):
                self._direct(run, whole, losses)
        num_visible = graph.num_visible[receiver[-1]]
        went = not run.keep[receiver].any()
        if went or not is_read(graph, run.keep, receiver):
            run.keep[receiver] = False
            run.counts.free += num_visible
            run.unchecked |= not went
            return
        pending = sender_order(graph, receiver[-1], self.names, self.indices, self.seed)
        run.loss = losses.begin(run.keep.clone(), receiver)
        run.counts.evaluated += 1
        closed: list[int] = []
        while pending:
            asked = pending[: self._ahead(run)]
            found = losses.prefixes(closed, asked)
            run.counts.evaluated += len(asked)
            done = self._take(run, receiver, asked, found, losses.exact)
            closed = (~run.keep[receiver][:num_visible]).nonzero().flatten().tolist()
            pending = pending[done:]

    def _direct(self, run: ThresholdRun, receiver: Receiver, losses: AbstractLosses) -> None:
        """Test all edges into `receiver` at once."""
        graph = losses.problem.model.graph
        if not is_read(graph, run.keep, receiver):
            return
        run.loss = losses.begin(run.keep.clone(), receiver)
        *others, last = range(graph.num_visible[receiver[-1]])
        (loss,) = losses.prefixes(others, [last])
        run.counts.evaluated += 2
        effect = loss - run.loss
        if self._is_near(effect, run):
            effect = self._exact_effect(run, (*receiver, slice(None)), losses.exact)
        run.counts.direct_tested += 1
        if self._size(effect) < run.tau:
            run.keep[receiver] = False
            run.loss = loss
            run.counts.direct_removed += 1

    def _ahead(self, run: ThresholdRun) -> int:
        return num_ahead(run.rate, self.waste, self.max_ahead) if self.evaluation == "speculative" else 1

    def _take(self, run: ThresholdRun, receiver: Receiver, asked: list[int], found: list[float], exact: Exact) -> int:
        """Decide on candidates in turn until one is kept: what was evaluated after it took it as removed.

        Returns:
            How many candidates were decided.
        """
        for number, (writer, loss) in enumerate(zip(asked, found, strict=True), start=1):
            effect = loss - run.loss
            if self._is_near(effect, run):
                effect = self._exact_effect(run, (*receiver, writer), exact)
            run.counts.tested += 1
            run.effects[(*receiver, writer)] = effect
            run.rate = updated_rate(run.rate, self._size(effect) < run.tau)
            if not self._size(effect) < run.tau:
                return number
            run.keep[(*receiver, writer)] = False
            run.counts.removed += 1
            run.loss = loss
        return len(asked)

    def _size(self, effect: float) -> float:
        return abs(effect) if self.absolute else effect

    def _is_near(self, effect: float, run: ThresholdRun) -> bool:
        """Whether rounding could decide."""
        return abs(self._size(effect) - run.tau) <= self.tie_margin * max(1.0, abs(run.loss))

    def _exact_effect(self, run: ThresholdRun, edges: tuple[int | slice, ...], exact: Exact) -> float:
        """Rise of the loss by the masked model itself: what lies at the threshold must not hang on rounding."""
        run.counts.ties += 1
        without = run.keep.clone()
        without[edges] = False
        return exact(without) - exact(run.keep)

    def _check(self, run: ThresholdRun, receivers: list[Receiver], losses: AbstractLosses) -> None:
        """After the last receiver of a layer: did removals without a test leave the loss alone?"""
        graph = losses.problem.model.graph
        layers = [graph.layer_of(receiver[-1]) for receiver in receivers[run.next_receiver - 1 :][:2]]
        if not run.unchecked or layers[1:] == layers[:1]:
            return
        change = abs(losses.exact(run.keep) - run.loss)
        run.counts.largest_free_change = max(run.counts.largest_free_change, change)
        run.unchecked = False

    # ---------------------------------------------------------------- the outcome
    def _result(self, graph: EdgeGraph, runs: list[ThresholdRun]) -> DiscoveryResult:
        circuits = {
            f"tau-{run.tau!r}": Circuit(
                graph, run.keep.clone(), run.effects.float(), {**self.describe(), "tau": run.tau}
            )
            for run in runs
        }
        about = {
            f"tau-{run.tau!r}": {
                **asdict(run.counts),
                "kept": int(run.keep.sum()),
                "loss": run.loss,
                "free_changes_are_small": run.counts.largest_free_change < FREE_CHANGE_LIMIT,
            }
            for run in runs
        }
        scores = runs[0].effects if len(runs) == 1 else smallest_taus(runs).where(graph.exists, 0.0)
        return DiscoveryResult(
            scores.float(), circuits, {"scores": "effect" if len(runs) == 1 else "smallest tau", **about}
        )


def _what(run: ThresholdRun) -> str:
    """A run as reports name it."""
    return f"tau {run.tau!r}"


def is_read(graph: EdgeGraph, keep: Tensor, receiver: Receiver) -> bool:
    """Whether an edge of `[..., reader, writer]` leaves the node of `receiver`; of k and v, a head that it serves.

    With roles, at the receiver's role; of k and v, at a role that sees it. The logits are read where they are scored.
    """
    *at, reader = receiver
    if reader == len(graph.readers) - 1:
        return bool(scored_roles(graph)[at].all())
    sees = seen_roles(graph)
    roles = sees[:, at[0]] if at and is_key_or_value(graph, reader) else torch.arange(len(sees)) == (at or [0])[0]
    by_role = keep.reshape(-1, *keep.shape[-2:])
    return bool(by_role[roles][:, :, list(graph.behind(reader))].any())


def smallest_taus(runs: list[ThresholdRun]) -> Tensor:
    """Smallest finite tau that removed each edge `[reader, writer]`; if none did, its effect's size at the largest."""
    finite = sorted((run for run in runs if math.isfinite(run.tau)), key=lambda run: -run.tau)
    scores = (finite or runs)[0].effects.abs()
    for run in finite:
        scores = torch.where(run.keep, scores, run.tau)
    return scores


def _together(graph: EdgeGraph, receiver: Receiver) -> list[Receiver]:
    """The receivers of a layer's heads in the order of tests, if this is the first of them; else none."""
    layer = graph.layer_of(receiver[-1])
    if layer == graph.arch.num_layers or receiver[-1] != (rows := graph.rows(layer).attention).stop - 1:
        return []
    found = [other for other in receivers_at_roles(graph) if rows.start <= other[-1] < rows.stop]
    return found if found[0] == receiver else []


def num_ahead(rate: float, waste: float, most: int) -> int:
    """How many candidates to evaluate at once if each goes with probability `rate`.

    Of K evaluations about (K - 1) (1 - rate) / 2 of a share turn out void, as they lie after the first that is kept.
    """
    return max(1, min(most, int(1 + 2 * waste / max(1 - rate, 1e-9))))


def updated_rate(rate: float, removed: bool) -> float:
    """The share of removals, as the last twenty or so decisions have it."""
    return rate + (removed - rate) / 20
