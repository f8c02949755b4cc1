"""DiscoGP: straight-through logistic gates on weights, on edges, or on both in turn.

The rules and settings called published are those of the authors' code. Two phases, each a run of its own:

1. Weights (`DiscoGPWeights`, `edgeprune fit-weights`): the plain model with gates on its weights; closed ones are 0.
2. Edges (`DiscoGP`, `edgeprune fit`): the masked model, on the weights that the first phase kept where a file is named.
"""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from edgeprune.errors import EdgepruneError
from edgeprune.gates import LogisticGates, uniform_noise
from edgeprune.gates.logistic import check_settings
from edgeprune.gates.logistic import sample as sample_gates
from edgeprune.graph import EdgeGraph
from edgeprune.methods.base import AbstractRecipe, sample_stream
from edgeprune.methods.weight_gates import WeightGates, Weights
from edgeprune.models.gated_weights import gated_names
from edgeprune.models.masked import MaskedModel
from edgeprune.objectives.pace import Pace
from edgeprune.objectives.ramp import RampPenalty
from edgeprune.objectives.sparsity import AbstractSparsityTerm


@final
class DiscoGP(AbstractRecipe):
    """One straight-through logistic gate per existing edge: the run sees circuits of 0/1 gates, never fractions.

    The loss is the objective (published: `model.objective: nll_answers`) plus the sparsity term; with
    `model.complement_weight` (published: 0 or 1) also that of the complement.

    Deviations from the published code: one edge into a group of heads that share keys and values, instead of one per
    query head; the embedding may be split; the complement is that of the same sample, not of a new one; each group of
    examples may have a sample of its own; pairs are shuffled; no decay of the logits.

    Args:
        sparsity_term: Pushes the expected share of open edges down; null: the published `RampPenalty()`.
        masks_per_batch: Samples of the gates in one step, each for a group of the batch (published: 1).
        learning_rate: Of the logits (published: 0.1).
        betas: Of Adam (published: 0.9, 0.999).
        weight_decay: Decoupled, on the logits: it pulls every gate towards P(open) = 1/2 (published: 0.01).
        temperature: Of the gates' slope; P(open) does not depend on it (published: 1).
        init_mean: Mean of the initial logits (published: 1, open with probability .73).
        init_std: Their standard deviation (published: 0.01).
    """

    def __init__(
        self,
        sparsity_term: AbstractSparsityTerm | None = None,
        *,
        masks_per_batch: int = 1,
        learning_rate: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        temperature: float = 1.0,
        init_mean: float = 1.0,
        init_std: float = 0.01,
    ) -> None:
        super().__init__()
        check_settings(temperature, init_mean, init_std)
        _check_training(sparsity_term, masks_per_batch, learning_rate, betas, weight_decay)
        self.sparsity_term = RampPenalty() if sparsity_term is None else sparsity_term
        self.masks_per_batch = masks_per_batch
        self.learning_rate = learning_rate
        self.betas = (float(betas[0]), float(betas[1]))
        self.weight_decay = weight_decay
        self._gate_options: dict[str, Any] = {"temperature": temperature, "init_mean": init_mean, "init_std": init_std}

    def build(self, graph: EdgeGraph) -> None:
        """Make one gate per existing edge."""
        self.graph = graph
        self.edges = LogisticGates(graph.num_edges, **self._gate_options)

    def sample(self, seed: int, step: int, number: int = 0) -> Tensor:
        """Gates `[reader, writer]`, 0 or 1: one of the samples of a step."""
        noise = uniform_noise(seed, step, self.edges.num_gates, stream=sample_stream(number))
        return self.graph.to_matrix(self.edges.sample(noise))

    def penalty(self, gates: Tensor, progress: float) -> Tensor:
        """The sparsity term of the expected share of open edges."""
        return self.sparsity_term(self.edges.prob_open().mean(), progress)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Gates descend, multipliers of the sparsity term ascend."""
        return _groups(self, [self.edges.logits])

    def scores(self) -> Tensor:
        """Logit of each edge, `[reader, writer]`; above 0 it is open."""
        return self.graph.to_matrix(self.edges.scores())

    def num_open(self) -> int:
        """Edges whose gate without noise is open."""
        return int((self.edges.scores() > 0).sum())

    def target(self, progress: float) -> float | None:
        """Sparsity that the term aims at, if it aims."""
        return self.sparsity_term.target(progress)

    def state(self, progress: float) -> dict[str, float]:
        """Weight of the penalty or multipliers, and the share of edges expected to be open."""
        with torch.no_grad():
            expected = self.edges.prob_open().mean().item()
        return {**self.sparsity_term.state(progress), "expected_open": expected}

    def describe(self) -> dict[str, Any]:
        """Method and settings."""
        return {
            "method": "disco_gp",
            "sparsity_term": type(self.sparsity_term).__name__,
            **self._settings("masks_per_batch", "learning_rate", "betas", "weight_decay"),
            **self._gate_options,
        }


@final
class DiscoGPWeights(WeightGates):
    """One straight-through logistic gate per weight of the chosen parameters; closed weights are 0.

    Deviations from the published code: weights are those of the model's files, neither folded nor centred; keys and
    values that heads share have one gate each, not one per query head; biases are gated only if `tensors` names them;
    each group of examples may have a sample of its own; pairs are shuffled; no decay of the logits.

    Args:
        sparsity_term: Pushes the expected share of kept weights down; null: `RampPenalty(1, 1000, 1, 1, 0)`, which
            rises to the end (published).
        tensors: Shell patterns of the gated parameters' names, such as `*mlp*`; null: every matrix of the layers'
            attention and MLP (published: these and their biases).
        masks_per_batch: Samples of the gates in one batch, each for a group of it (published: 1).
        learning_rate: Of the logits (published: 0.1 or 1).
        betas: Of Adam (published: 0.9, 0.999).
        weight_decay: Decoupled, on the logits: it pulls every gate towards P(open) = 1/2 (published: 0.01, at each of
            two steps per batch).
        temperature: Of the gates' slope; P(open) does not depend on it (published: 0.01, so that a gate gets a gradient
            only if it was within about .05 of flipping, up to 25 times as large).
        init_mean: Mean of the initial logits (published: 1).
        init_std: Their standard deviation (published: 0.01).

    Attributes:
        graph: The model's graph, after `build`.
        names: Of the gated parameters, after `build`.
        num_gates: Gated weights, after `build`.
    """

    def __init__(
        self,
        sparsity_term: AbstractSparsityTerm | None = None,
        *,
        tensors: list[str] | None = None,
        masks_per_batch: int = 1,
        learning_rate: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        temperature: float = 0.01,
        init_mean: float = 1.0,
        init_std: float = 0.01,
    ) -> None:
        super().__init__()
        check_settings(temperature, init_mean, init_std)
        _check_training(sparsity_term, masks_per_batch, learning_rate, betas, weight_decay)
        rising = RampPenalty(1.0, 1000.0, 1.0, warmup=1.0, cooldown=0.0)
        self.sparsity_term = rising if sparsity_term is None else sparsity_term
        self.tensors = tensors
        self.masks_per_batch = masks_per_batch
        self.learning_rate = learning_rate
        self.betas = (float(betas[0]), float(betas[1]))
        self.weight_decay = weight_decay
        self.temperature, self.init_mean, self.init_std = temperature, init_mean, init_std
        self.names: list[str] = []
        self.num_gates = 0

    def build(self, model: MaskedModel) -> None:
        """Make one gate per weight of the chosen parameters."""
        self.graph, named = model.graph, dict(model.hf.named_parameters())
        self.names = gated_names(model, self.tensors)
        self.num_gates = sum(named[name].numel() for name in self.names)
        generator = torch.Generator().manual_seed(0)
        self.logits = nn.ParameterList()
        for name in self.names:
            noise = torch.randn(named[name].shape, generator=generator)
            self.logits.append(self.init_mean + self.init_std * noise)

    def sample(self, weights: Weights, seed: int, step: int, number: int = 0, *, reverse: bool = False) -> Weights:
        """As in `WeightGates`: each gated parameter `[...]` times gates of 0 or 1."""
        gated: Weights = {}
        for place, (name, logits) in enumerate(zip(self.names, self.logits, strict=True)):
            noise = uniform_noise(seed, step, logits.numel(), stream=number * len(self.names) + place)
            gates = sample_gates(logits, noise.view(logits.shape).to(logits.device), self.temperature, reverse)
            gated[name] = weights[name] * gates.to(weights[name].dtype)
        return gated

    def trained(self) -> list[nn.Parameter]:
        """The logits, one tensor for each gated parameter."""
        return list(self.logits)

    def penalty(self, progress: float) -> Tensor:
        """The sparsity term (scalar) of the expected share of kept weights."""
        return self.sparsity_term(self._expected(), progress)

    def _expected(self) -> Tensor:
        return torch.stack([torch.sigmoid(part).sum() for part in self.logits]).sum() / self.num_gates

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Gates descend, multipliers of the sparsity term ascend."""
        return _groups(self, list(self.logits))

    @torch.no_grad()
    def kept(self) -> Weights:
        """Weights whose gate without noise is open: by name of the parameter, bool `[...]`."""
        return {name: part > 0 for name, part in zip(self.names, self.logits, strict=True)}

    def target(self, progress: float) -> float | None:
        """Sparsity that the term aims at, if it aims."""
        return self.sparsity_term.target(progress)

    def state(self, progress: float) -> dict[str, float]:
        """Weight of the penalty or multipliers, and the share of weights expected to be kept."""
        with torch.no_grad():
            return {**self.sparsity_term.state(progress), "expected_open": self._expected().item()}

    def describe(self) -> dict[str, Any]:
        """Method and settings."""
        return {
            "method": "disco_gp_weights",
            "sparsity_term": type(self.sparsity_term).__name__,
            **self._settings("tensors", "masks_per_batch", "learning_rate", "betas", "weight_decay"),
            **self._settings("temperature", "init_mean", "init_std"),
        }


def _groups(recipe: DiscoGP | DiscoGPWeights, logits: Sequence[Tensor]) -> list[dict[str, Any]]:
    term = recipe.sparsity_term
    gates = {"params": list(logits), "lr": recipe.learning_rate, "betas": recipe.betas}
    groups: list[dict[str, Any]] = [{**gates, "weight_decay": recipe.weight_decay, "maximize": False}]
    if multipliers := list(term.parameters()):
        groups.append({"params": multipliers, "lr": term.learning_rate, "weight_decay": 0.0, "maximize": True})
    return groups


def _check_training(
    term: AbstractSparsityTerm | None, masks: int, rate: float, betas: tuple[float, float], decay: float
) -> None:
    if isinstance(term, Pace):
        raise EdgepruneError("Pace steers the gates of EdgePruning only; use RampPenalty or another term")
    if masks < 1 or rate <= 0 or decay < 0 or not all(0 <= beta < 1 for beta in betas):
        raise EdgepruneError(
            "need masks_per_batch >= 1, learning_rate > 0, betas in [0, 1) and weight_decay >= 0, got "
            f"{masks}, {rate}, {tuple(betas)} and {decay}"
        )
