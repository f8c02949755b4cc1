"""A quadratic model of the loss around a circuit: what opening closed edges and closing open ones would do.

With d_e = 1 where edge e opens, -1 where it closes and 0 elsewhere,

    loss(circuit + d)  ~  loss(circuit) + slopes . d + |rows d|^2                                                   (1)

The slopes are exact, of open edges and of closed ones. The square is half the Gauss-Newton form of the loss, whose
factor `rows` holds slopes of random functions of the logits (`curvature_probe`, at the circuit's own logits): two
edges that bring the same thing are told from two that add up. Slopes alone do not rank what to close: an edge without
which the circuit breaks down may well have a slope that promises a gain.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, final

import torch
from torch import Tensor

from edgeprune.batch import PairBatch
from edgeprune.gates import uniform_noise
from edgeprune.methods.attribution import curvature_probe, open_gates
from edgeprune.methods.problem import FLAT, Problem
from edgeprune.models.states import WriterStates
from edgeprune.roles import roles_in

CANDIDATES = 8  # edges looked at for each one that may move, those with the best model values of their own
MORE = 64  # and so many on top
_NEVER = torch.inf


class Swap(NamedTuple):
    """An edge to open and one to close, as places among the graph's edges."""

    opened: int
    closed: int


@final
@dataclass(frozen=True, eq=False)
class LossModel:
    """The loss around a circuit, by (1).

    Attributes:
        keep: The circuit, bool `[edge]`.
        slopes: Of the mean loss in each gate, `[edge]`.
        rows: Factor of half its curvature, `[row, edge]`; without rows where the metric is neither KL nor squared
            error, and what closing costs is then taken to be the size of the slope.
        passes: What it took, in forward and backward passes over all pairs.
    """

    keep: Tensor
    slopes: Tensor
    rows: Tensor
    passes: float

    @classmethod
    def around(
        cls, problem: Problem, keep: Tensor, *, probes: int, seed: int = 0, draw: int = 0, memory_gb: float = 1.0
    ) -> "LossModel":
        """Look around a circuit: a forward and a backward pass over all pairs, and a backward pass for each probe.

        Args:
            problem: Model, pairs, ablation, metric.
            keep: The circuit, bool `[..., reader, writer]`.
            probes: Random functions of the logits of each pair; 0: no rows.
            seed: Of these functions, which depend on it, on `draw` and on the number of the pair in its split alone.
            draw: Others with each number.
            memory_gb: For rows, in 1e9 bytes: probed are the first pairs whose rows it holds, one at least.
        """
        exists, gates = problem.model.graph.exists, open_gates(problem.model)
        gates = gates.where(keep.to(gates.device), 0.0)
        probes = probes if problem.metric in FLAT else 0
        row_bytes = int(exists.sum()) * gates.element_size()
        limit = max(1, int(memory_gb * 1e9 / (probes * row_bytes))) if probes else 0
        total, rows, probed = torch.zeros(gates.shape, dtype=torch.float64), list[Tensor](), 0
        for batch, full, ablated in problem.batches_with_runs():
            size = min(len(batch), limit - probed)
            streams = range(draw * probes, (draw + 1) * probes) if size else range(0)
            slopes, *others = _slopes(problem, batch, full, ablated, gates, seed, streams)
            total += slopes.double().sum(0).cpu()
            rows += [one[:size, exists.to(one.device)].cpu() for one in others]
            probed += size
        factor = torch.cat(rows) if rows else gates.new_empty((0, int(exists.sum())), device="cpu")
        mean = (total[exists] / problem.num_examples).to(factor.dtype)
        passes = 1 + 2 / 3 * len(factor) / problem.num_examples
        return cls(keep.cpu()[exists], mean, factor / max(1, len(factor)) ** 0.5, passes)

    # ---------------------------------------------------------------- single edges
    def alone(self) -> Tensor:
        """Change of the loss when each edge alone is opened or closed, `[edge]`."""
        if not len(self.rows):
            return torch.where(self.keep, self.slopes.abs(), self.slopes)
        return torch.where(self.keep, -self.slopes, self.slopes) + self.rows.square().sum(0)

    def best_openings(self, number: int) -> Tensor:
        """Closed edges that promise most, long `[number]`; where they promise the same, in the graph's order."""
        return torch.where(self.keep, _NEVER, self.alone()).argsort(stable=True)[:number]

    def closing_costs(self, keep: Tensor) -> Tensor:
        """Rise of the loss when each open edge of another circuit `[edge]` is closed, `[edge]`; inf for closed ones."""
        if not len(self.rows):
            return torch.where(keep, self.slopes.abs(), _NEVER)
        moved = keep.to(self.rows.dtype) - self.keep.to(self.rows.dtype)
        costs = self.rows.square().sum(0) - self.slopes - 2 * (self.rows @ moved) @ self.rows
        return torch.where(keep, costs, _NEVER)

    # ---------------------------------------------------------------- swaps
    def swaps(self, most: int) -> list[Swap]:
        """Swaps one after the other, each the best one given those before it by (1), while they promise a gain.

        Args:
            most: How many at most.
        """
        alone = self.alone()
        number = CANDIDATES * most + MORE
        closed, opened = int((~self.keep).sum()), int(self.keep.sum())
        to_open = _Candidates(self.rows, alone, torch.where(self.keep, _NEVER, alone), min(number, closed), 1)
        to_close = _Candidates(self.rows, alone, torch.where(self.keep, alone, _NEVER), min(number, opened), -1)
        found: list[Swap] = []
        while len(found) < min(most, closed, opened):
            one, gain = to_open.take()
            to_close.moved(to_open.direction)
            other, cost = to_close.take()
            if not gain + cost < 0:
                break
            to_open.moved(to_open.direction + to_close.direction)
            to_close.moved(to_close.direction)
            found.append(Swap(one, other))
        return found


class _Candidates:
    """Edges that may be opened, or that may be closed, and what moving each would do after the moves so far."""

    def __init__(self, rows: Tensor, alone: Tensor, order: Tensor, number: int, sign: int) -> None:
        self.places = order.argsort(stable=True)[:number]
        self.rows = sign * rows[:, self.places]
        self.values = alone[self.places].clone()
        self.direction = rows.new_zeros(len(rows))  # what the last move did, in the space of rows

    def take(self) -> tuple[int, float]:
        """Move the best one: its place among the graph's edges, and what that does to the loss."""
        best = int(self.values.argmin())
        value = self.values[best].item()
        self.values[best] = _NEVER
        self.direction = self.rows[:, best]
        return int(self.places[best]), value

    def moved(self, direction: Tensor) -> None:
        """Something moved, here or among the others, by `direction` `[row]`."""
        self.values += 2 * direction @ self.rows


def _slopes(
    problem: Problem,
    batch: PairBatch,
    full: Tensor,
    ablated: WriterStates,
    gates: Tensor,
    seed: int,
    streams: Sequence[int],
) -> Iterator[Tensor]:
    """Slopes of a batch's losses in the gates, `[batch or 1, *gates.shape]`, then of a random function per stream."""
    leaf = (gates.expand(len(batch), *gates.shape) if streams else gates).detach().clone().requires_grad_()
    with torch.enable_grad():
        roles = roles_in(problem.model.graph, batch)
        logits = problem.model(batch.clean, leaf, ablated, batch.attention_mask, batch.positions, role_of=roles).float()
        (slopes,) = torch.autograd.grad(problem.losses(full, logits, batch).sum(), leaf, retain_graph=bool(streams))
    yield slopes.view(-1, *gates.shape)
    for stream in streams:
        probe = _probe(problem, logits.detach(), batch, seed, stream)
        (slopes,) = torch.autograd.grad(logits, leaf, probe, retain_graph=stream != streams[-1])
        yield slopes


def _probe(problem: Problem, logits: Tensor, batch: PairBatch, seed: int, stream: int) -> Tensor:
    """A random function of each pair's logits, as weights `[batch, positions, outputs]`; 0 where none is scored."""
    weights = torch.zeros_like(logits)
    for row, index in enumerate(batch.index.tolist()):
        real = int(batch.position_mask[row].sum())
        noise = uniform_noise(seed, index, real * logits.shape[-1], stream=stream)
        signs = (noise > 0.5).to(logits).mul(2).sub(1).view(real, -1)
        weights[row, :real] = curvature_probe(problem.metric, logits[row, :real], signs)
    return weights
