"""A recipe: a method that learns gates by gradient descent. It samples, penalises, ranks; it runs no model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from edgeprune.circuit import Circuit
from edgeprune.graph import EdgeGraph
from edgeprune.methods.attention_gates import AttentionGates
from edgeprune.methods.regrow import Regrowth
from edgeprune.objectives.pace import Pace

ErrorName = Literal["error", "complement"]
FIRST_EXTRA_STREAM = 100  # of the noise of a step's second and further samples


class TrainedGates(nn.Module, ABC):
    """What the Lightning module calls on any gates that are trained, on edges or on weights; mostly nothing to do."""

    def check_started(self) -> None:
        """Refuse to go on without a checkpoint where a file that the parameters should start from is missing."""

    @property
    def pace(self) -> Pace | None:
        """The term whose price is steered, if that is how gates are pushed shut."""
        return None

    def aim(self, sparsities: Sequence[float]) -> None:
        """Be told which sparsities the run is asked for."""
        if self.pace is not None:
            self.pace.aim(sparsities)

    def plan(self, steps: int) -> None:
        """Be told how many steps the run has, before `parameter_groups` is called."""

    def after_backward(self, progress: float) -> None:
        """See the gradients of the whole step, the same on all ranks, before they are clipped and the step is made."""

    @abstractmethod
    def parameter_groups(self) -> list[dict[str, Any]]:
        """Groups for the optimizer, each with `params`, `lr`, `weight_decay` and `maximize`."""

    def make_optimizer(self) -> torch.optim.Optimizer:
        """AdamW over the groups: gates descend, multipliers ascend."""
        return torch.optim.AdamW(self.parameter_groups())

    def learning_rate_factor(self, progress: float) -> float:
        """Factor on the learning rate of every group at `progress` in [0, 1] of the run."""
        del progress
        return 1.0

    def target(self, progress: float) -> float | None:
        """Sparsity aimed at now, if anything is aimed at."""
        del progress

    @abstractmethod
    def state(self, progress: float) -> dict[str, float]:
        """Further numbers to log."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """Plain values for a header."""

    def _settings(self, *names: str) -> dict[str, Any]:
        """Plain values of some settings."""
        values = {name: getattr(self, name) for name in names}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


class AbstractRecipe(TrainedGates):
    """What the Lightning module needs of a method that trains gates on edges.

    `build` makes the parameters once the graph is known; everything else may be called only after it.

    Attributes:
        graph: The graph, after `build`.
        attention: Gates on its attention edges, after `build`; None: these are all open.
        regrowth: What opens closed gates again, after `build`; None: nothing does.
        samples_per_step: Samples of the gates that each example's error is averaged over. Each costs a run.
        masks_per_batch: Groups of equal size that the batch falls into, each with samples of its own. It costs nothing.
        ranks_every_size: Gates are of no size on the way: circuits of all sizes are cut from the scores of the end.
    """

    graph: EdgeGraph
    samples_per_step: int = 1
    masks_per_batch: int = 1
    ranks_every_size: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.attention: AttentionGates | None = None
        self.regrowth: Regrowth | None = None

    @abstractmethod
    def build(self, graph: EdgeGraph) -> None:
        """Make the trainable parameters for `graph`."""

    @abstractmethod
    def sample(self, seed: int, step: int, number: int = 0) -> Tensor:
        """Gates `[reader, writer]`: one of the samples of a step; the same for equal arguments. Differentiable."""

    def expected_error(
        self, error_of: Callable[..., Tensor], seed: int, step: int, name: ErrorName = "error"
    ) -> tuple[Tensor, Tensor]:
        """Mean error of the step's samples, differentiable in the parameters; and their mean `[reader, writer]`.

        Args:
            error_of: Error (scalar) of the model with given gates `[reader, writer]`, or `[group, reader, writer]` for
                groups of the batch; gradients pass through it. Where there are gates on attention edges, it is also
                called with `attention_gates`.
            seed: Of the noise.
            step: Of the run; the noise is a function of both.
            name: Which error it is, for what a recipe remembers from step to step.
        """
        del name
        masks = self.masks_per_batch
        numbers = [range(run * masks, (run + 1) * masks) for run in range(self.samples_per_step)]
        samples = (self._samples(seed, step, own) for own in numbers)
        if len(numbers) > 1:
            return mean_over_samples(error_of, samples, len(self.graph.shape))
        gates = next(samples)
        return error_of(gates), gates.view(-1, *self.graph.shape).mean(0)

    def _samples(self, seed: int, step: int, numbers: Sequence[int]) -> Tensor:
        """One sample `[reader, writer]`, or several `[group, reader, writer]`."""
        samples = [self.sample(seed, step, number) for number in numbers]
        return samples[0] if len(samples) == 1 else torch.stack(samples)

    @abstractmethod
    def penalty(self, gates: Tensor, progress: float) -> Tensor:
        """Loss term (scalar) that pushes gates shut, at `progress` in [0, 1] of the run.

        Args:
            gates: The sample that `expected_error` returned for this step.
            progress: Steps done / all steps.
        """

    @abstractmethod
    def scores(self) -> Tensor:
        """Float `[reader, writer]`: the higher, the later an edge is cut."""

    @abstractmethod
    def num_open(self) -> int:
        """Edges that are more open than closed: the size of the circuit that the gates stand for now."""

    @property
    def sparsity(self) -> float:
        """Edge sparsity of the circuit that the gates stand for now."""
        return 1 - self.num_open() / self.graph.num_edges

    @property
    def paces(self) -> tuple[Pace, ...]:
        """The terms, of edges and of attention edges, whose prices are steered."""
        found = self.pace, None if self.attention is None else self.attention.pace
        return tuple(pace for pace in found if pace is not None)

    def aim(self, sparsities: Sequence[float]) -> None:
        """Be told which sparsities the run is asked for."""
        super().aim(sparsities)
        if self.attention is not None:
            self.attention.aim(sparsities)

    def settles(self, sparsity: float) -> bool:
        """Whether gates stay at that sparsity and are opened again there: the circuit is that of the run's end."""
        return self.regrowth is not None and self.pace is not None and sparsity >= (self.pace.last or 1)

    @property
    def edges_open(self) -> bool:
        """Whether edges stay open, as attention edges alone are learned."""
        return False

    @property
    def passed(self) -> float:
        """The highest sparsity of a circuit that all gates are sparse enough for."""
        found = [] if self.edges_open else [self.sparsity]
        return min(found if self.attention is None else [*found, self.attention.passed])

    def circuit(self, sparsity: float | None = None, header: dict[str, Any] | None = None) -> Circuit:
        """The best edges: as many as `sparsity` leaves, or those that are more open than closed.

        So are attention edges, where they have gates.
        """
        about, own = self.describe() | (header or {}), None if self.edges_open else sparsity
        num_edges = self.num_open() if own is None else None
        found = Circuit.from_scores(self.graph, self.scores(), sparsity=own, num_edges=num_edges, header=about)
        return found if self.attention is None else self.attention.of(found, sparsity)

    def saved(self) -> dict[str, Any]:
        """What `Circuit.from_checkpoint` makes circuits of, but for the header."""
        inside = {} if self.attention is None else {"attention": self.attention.saved(), "edges_open": self.edges_open}
        scores = self.graph.to_vector(self.scores()).cpu()
        return {"graph": self.graph.to_dict(), "scores": scores, "num_open": self.num_open(), **inside}


def mean_over_samples(
    error_of: Callable[[Tensor], Tensor], samples: Iterable[Tensor], axes: int = 2
) -> tuple[Tensor, Tensor]:
    """Mean error (scalar) over samples of the gates, differentiable in their parameters; and the mean sample.

    Each sample's backward through the model is done at once, so that the memory is that of one run.

    Args:
        error_of: Error (scalar) of the model with given gates.
        samples: Gates `[reader, writer]`, or `[group, reader, writer]` for groups of the batch, each differentiable.
        axes: Of the gates of one group: 3 with roles.
    """
    errors: list[Tensor] = []
    total: Tensor | None = None
    for gates in samples:
        errors.append(differentiated(error_of, gates))
        total = gates.detach() if total is None else total + gates.detach()
    assert total is not None
    return torch.stack(errors).mean(), total.view(-1, *total.shape[-axes:]).mean(0) / len(errors)


def differentiated(error_of: Callable[[Tensor], Tensor], gates: Tensor) -> Tensor:
    """The error (scalar) of gates, differentiable in what they are made of.

    Its backward through the model is done already, and what that kept in memory is gone.

    Args:
        error_of: Error (scalar) of the model with given gates.
        gates: `[reader, writer]`, or `[group, reader, writer]` for groups of the batch.
    """
    if not gates.requires_grad:
        return error_of(gates)
    leaf = gates.detach().requires_grad_()
    error = error_of(leaf)
    (slope,) = torch.autograd.grad(error, leaf)
    pull = (slope * gates).sum()
    return error.detach() + (pull - pull.detach())


def sample_stream(number: int, *, nodes: bool = False) -> int:
    """Noise stream of a step's sample `number`: 0 and, for its node gates, 1; apart from those of flips."""
    if number == 0:
        return int(nodes)
    return FIRST_EXTRA_STREAM + number if not nodes else -FIRST_EXTRA_STREAM - number
