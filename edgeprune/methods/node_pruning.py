"""Node pruning at several granularities: gates on heads, head dimensions, neurons and whole blocks together.

After multi-granular node pruning (arXiv 2512.10903): every kind has a price of its own, and what is left of a unit is
the product of its gates. A closed unit writes nothing, so that the result is a mask on weights (`models/units.py`).
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor, nn

from edgeprune.errors import EdgepruneError
from edgeprune.gates import HardConcrete, LogisticGates, uniform_noise
from edgeprune.gates.hard_concrete import TEMPERATURE
from edgeprune.methods.weight_gates import WeightGates, Weights
from edgeprune.models.masked import MaskedModel
from edgeprune.models.units import KINDS, Kind, output_matrices

GateName = Literal["hard_concrete", "logistic"]
BLOCKS: frozenset[Kind] = frozenset({"attention_blocks", "mlp_blocks"})
Gates = HardConcrete | LogisticGates


@final
class NodePruning(WeightGates):
    """One gate for each unit of the kinds that have a price; the others are never closed.

    The penalty is the sum over kinds of price times the expected share of open gates, in nats per (all gates open).
    What a column of an output matrix is multiplied by is the product of the gates that it is under: block, head and
    head dimension, or block and neuron. A block's gate closes its output bias too.

    Deviations from the code of arXiv 2512.10903: closed units write nothing, where theirs write what they do on the
    corrupted prompt; prices are per share instead of per gate; no gates on whole layers or on the columns that an MLP
    writes to; all gates start alike; a gate may be logistic.

    Args:
        heads: Price of heads, all of them; null: heads have no gates. So with the others.
        head_dimensions: Price of the dimensions of the heads' values.
        neurons: Price of the MLPs' hidden units.
        attention_blocks: Price of the attention of whole layers.
        mlp_blocks: Price of whole MLPs.
        gates: `"hard_concrete"` (published), which may be open by half while training, or `"logistic"`, 0 or 1 in every
            run with the gradient of a sigmoid (DiscoGP).
        learning_rate: Of AdamW (published: 0.005).
        init: Initial location of every gate (published: uniform from 1.5 to 2.5); above 0 it is open.
        temperature: Of the gates; null: 2/3 for hard concrete ones (published), 1 for logistic ones.
        masks_per_batch: Samples of the gates in one batch, each for a group of it.

    Attributes:
        graph: The model's graph, after `build`.
        names: Of the gated parameters, after `build`.
        num_gates: Gates of all kinds, after `build`.
    """

    def __init__(
        self,
        *,
        heads: float | None = None,
        head_dimensions: float | None = None,
        neurons: float | None = None,
        attention_blocks: float | None = None,
        mlp_blocks: float | None = None,
        gates: GateName = "hard_concrete",
        learning_rate: float = 0.03,
        init: float = 2.0,
        temperature: float | None = None,
        masks_per_batch: int = 1,
    ) -> None:
        super().__init__()
        given = {"heads": heads, "head_dimensions": head_dimensions, "neurons": neurons}
        given |= {"attention_blocks": attention_blocks, "mlp_blocks": mlp_blocks}
        self.prices: dict[Kind, float] = {kind: price for kind in KINDS if (price := given[kind]) is not None}
        if not self.prices or not all(0 <= price < math.inf for price in self.prices.values()):
            raise EdgepruneError(f"give a price >= 0 to at least one of {', '.join(KINDS)}, got {self.prices}")
        if gates not in get_args(GateName):
            raise EdgepruneError(f"gates must be one of {', '.join(get_args(GateName))}, got {gates!r}")
        if learning_rate <= 0 or masks_per_batch < 1:
            raise EdgepruneError(
                f"need learning_rate > 0 and masks_per_batch >= 1, got {learning_rate} and {masks_per_batch}"
            )
        self.gates: GateName = gates
        self.learning_rate, self.masks_per_batch = learning_rate, masks_per_batch
        self.init = init
        published = TEMPERATURE if gates == "hard_concrete" else 1.0
        self.temperature = published if temperature is None else temperature
        if not (0 < self.temperature < math.inf and math.isfinite(init)):
            raise EdgepruneError(f"need temperature > 0 and a finite init, got {temperature} and {init}")
        self.names: list[str] = []
        self.num_gates = 0

    def build(self, model: MaskedModel) -> None:
        """Make the gates of all units of the model."""
        self.graph = model.graph
        self._matrices = output_matrices(model, list(self.prices))
        self._shapes = {name: weight.shape for name, weight in model.hf.named_parameters()}
        sizes = {kind: [matrix.sizes.get(kind, 0) for matrix in self._matrices] for kind in self.prices}
        self._sizes = sizes
        self.of_kind = nn.ModuleDict({kind: self._new_gates(sum(number)) for kind, number in sizes.items()})
        self.names = list(self._by_parameter(self._open()))
        self.num_gates = sum(map(sum, sizes.values()))

    def _new_gates(self, number: int) -> Gates:
        kind: Callable[..., Gates] = HardConcrete if self.gates == "hard_concrete" else LogisticGates
        return kind(number, init_mean=self.init, init_std=0.0, temperature=self.temperature)

    def _gates(self) -> dict[Kind, Gates]:
        return {kind: self.of_kind[kind] for kind in self.prices}  # pyright: ignore[reportReturnType]

    def trained(self) -> list[nn.Parameter]:
        """The location of every gate, one tensor for each kind."""
        return list(self.of_kind.parameters())

    # ---------------------------------------------------------------- units to weights
    def _by_matrix(self, units: Mapping[Kind, Tensor]) -> list[Tensor]:
        """What the columns of each matrix are multiplied by, `[width]`, from one value per unit of each kind."""
        parts = {kind: values.split(self._sizes[kind]) for kind, values in units.items()}
        found: list[Tensor] = []
        for place, matrix in enumerate(self._matrices):
            under = [matrix.columns(parts[kind][place]) for kind in parts if kind in matrix.sizes]
            found.append(torch.stack(under).prod(0))
        return found

    def _by_parameter(self, units: Mapping[Kind, Tensor]) -> Weights:
        """The same, of a shape that broadcasts over the parameter; biases are under the gates of blocks alone."""
        found: Weights = {}
        for matrix, columns in zip(self._matrices, self._by_matrix(units), strict=True):
            found[matrix.name] = columns.view(matrix.inputs)
        for kind, values in units.items():
            blocks = [matrix for matrix in self._matrices if kind in BLOCKS and kind in matrix.sizes]
            found |= {own.bias: value for own, value in zip(blocks, values, strict=False) if own.bias is not None}
        return found

    def sample(self, weights: Weights, seed: int, step: int, number: int = 0, *, reverse: bool = False) -> Weights:
        """As in `WeightGates`: columns `[...]` times the gates that they are under, or times one minus all that."""
        values: dict[Kind, Tensor] = {}
        for kind, gates in self._gates().items():
            noise = uniform_noise(seed, step, gates.num_gates, stream=number * len(KINDS) + KINDS.index(kind))
            values[kind] = gates.sample(noise)
        gated: Weights = {}
        for name, factor in self._by_parameter(values).items():
            gated[name] = weights[name] * (1 - factor if reverse else factor).to(weights[name].dtype)
        return gated

    @torch.no_grad()
    def kept(self) -> Weights:
        """Weights all of whose gates without noise are above one half: by name of the parameter, bool `[...]`."""
        found = self._by_parameter(self._open())
        return {name: (factor > 0).expand(self._shapes[name]) for name, factor in found.items()}

    def _open(self) -> dict[Kind, Tensor]:
        """1 or 0 for each unit: whether its own gate is open."""
        return {kind: (gates.scores() > 0).float() for kind, gates in self._gates().items()}

    @torch.no_grad()
    def about_kept(self) -> dict[str, Any]:
        """By kind the units of each layer that still write something, and how many there are (`units`)."""
        found: dict[str, dict[str, list[int]]] = {}
        for matrix, columns in zip(self._matrices, self._by_matrix(self._open()), strict=True):
            for kind, size in matrix.sizes.items():
                own = found.setdefault(kind, {"layer": [], "kept": [], "of": []})
                kept = int(columns.view(size, -1).any(1).sum())
                for key, value in (("layer", matrix.layer), ("kept", kept), ("of", size)):
                    own[key].append(value)
        return {"units": found}

    # ---------------------------------------------------------------- price and settings
    def _shares(self) -> dict[Kind, Tensor]:
        """Expected share of open gates of each kind."""
        return {kind: gates.prob_open().mean() for kind, gates in self._gates().items()}

    def penalty(self, progress: float) -> Tensor:
        """Price times expected share of open gates (scalar), summed over kinds; the same all through the run."""
        del progress
        return torch.stack([self.prices[kind] * share for kind, share in self._shares().items()]).sum()

    def parameter_groups(self) -> list[dict[str, Any]]:
        """One group, without weight decay."""
        return [{"params": self.trained(), "lr": self.learning_rate, "weight_decay": 0.0, "maximize": False}]

    def state(self, progress: float) -> dict[str, float]:
        """Expected share of open gates of each kind."""
        del progress
        with torch.no_grad():
            return {f"expected_open_{kind}": share.item() for kind, share in self._shares().items()}

    def describe(self) -> dict[str, Any]:
        """Method and settings."""
        about = self._settings("gates", "learning_rate", "init", "temperature", "masks_per_batch")
        return {"method": "node_pruning", "prices": dict(self.prices), **about}
