"""Circuits of compiled programs at positions: what is left when all else is closed, and that training finds it."""

import itertools
from functools import partial
from typing import Any

import pytest
import torch

from datamodules import PairDataModule
from datamodules.collate import collate
from datamodules.tasks.base import TokenPair
from datamodules.tasks.compiled import CompiledTask
from edgeprune.ablations import zero
from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.compiled import cases, minimal_circuits
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.at_roles import TOLERANCE, closed_where_possible, largest_change
from edgeprune.methods import EdgePruning
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates
from edgeprune.objectives.sparsity import GeometricPenalty
from edgeprune.roles import role_of, roles_of_option
from lit_modules.pruning import PruningModule
from tests.lit_modules.trainers import quiet_trainer

Setting = tuple[MaskedModel, PairBatch, WriterStates, Circuit]
CASES = [
    (name, size, kind)
    for name, size in (("reverse", 2), ("xproportion", 2), ("hist", 2))
    for kind in ("zero", "interchange")
]


def setting(name: str, length: int, ablation: str) -> Setting:
    """A program on all inputs of one length, each against all others under interchange; its circuit at positions."""
    inputs = [ids for ids, _ in cases(name) if len(ids) == length + 1]
    places = tuple(range(1, length + 1))
    unknown = (-100,) * length
    others = itertools.permutations(inputs, 2) if ablation == "interchange" else ((ids, ids) for ids in inputs)
    pairs = [TokenPair(clean, corrupted, places, unknown, unknown) for clean, corrupted in others]
    batch = collate(list(enumerate(pairs)))
    model = load_model(f"compiled:{name}", dtype="float64")
    plain = Circuit.from_edges(model.graph, minimal_circuits(name, ablation)[0])  # pyright: ignore[reportArgumentType]
    model.use_roles(roles_of_option("positions", [batch]))
    ablated = zero(model) if ablation == "zero" else model.record(batch.corrupted, batch.attention_mask)
    return model, batch, ablated, closed_where_possible(model, batch, ablated, plain)


def repeated(field: torch.Tensor, times: int) -> torch.Tensor:
    return field.repeat(1, times, *[1] * (field.dim() - 2))


@pytest.mark.parametrize(("name", "length", "ablation"), CASES)
def test_exactly_its_edges_matter_alone(name: str, length: int, ablation: str) -> None:
    """All others, of the whole graph, can be closed one by one and together; the union is the circuit without roles."""
    model, batch, ablated, circuit = setting(name, length, ablation)
    graph = model.graph
    assert largest_change(model, batch, ablated, circuit.keep) <= TOLERANCE
    for place in graph.exists.nonzero().tolist():
        keep = graph.exists.clone()
        keep[tuple(place)] = False
        change = largest_change(model, batch, ablated, keep)
        assert change >= 0.01 if circuit.keep[tuple(place)] else change <= TOLERANCE
    assert set(circuit.union().edges()) == set(minimal_circuits(name, ablation)[0])  # pyright: ignore[reportArgumentType]
    assert circuit.num_edges < len(circuit.union().edges()) * (length + 1)  # BOS has none of some edges
    assert circuit.num_dangling == 0


def test_no_other_circuit_is_minimal_by_brute_force() -> None:
    """Over edges at positions: the circuit's eight, and three of those that were closed."""
    model, batch, ablated, circuit = setting("hist", 2, "interchange")
    others = (model.graph.exists & ~circuit.keep).nonzero()
    chosen = others[torch.randperm(len(others), generator=torch.Generator().manual_seed(2))[:3]]
    places = torch.cat([circuit.keep.nonzero(), chosen])
    bits = torch.arange(2 ** len(places))[:, None] >> torch.arange(len(places)) & 1
    roles = role_of(batch, circuit.roles)
    full = model.full(batch.clean, batch.attention_mask, batch.positions)
    good: list[torch.Tensor] = []
    for part in bits.split(256):
        gates = torch.zeros(len(part), *model.graph.shape, dtype=torch.float64)
        gates[:, *places.unbind(1)] = part.double()
        rows = [tensor.repeat(len(part), 1) for tensor in (batch.clean, batch.attention_mask, batch.positions, roles)]
        states = ablated.map(partial(repeated, times=len(part)))
        with torch.no_grad():
            found = model(rows[0], gates, states, rows[1], rows[2], role_of=rows[3])
        differences = (found.view(len(part), *full.shape) - full).abs().flatten(1).amax(1)
        good.append(differences <= TOLERANCE)
    sufficient = bits[torch.cat(good)].bool()
    size = circuit.num_edges
    assert sufficient[:, :size].all()  # each has all eight
    assert len(sufficient) == 2 ** len(chosen)  # and no other edge spoils it


def test_a_circuit_that_is_not_sufficient_is_refused() -> None:
    model, batch, ablated, circuit = setting("hist", 2, "zero")
    first = circuit.keep.nonzero()[0].tolist()
    keep = circuit.keep.clone()
    keep[tuple(first)] = False
    with pytest.raises(EdgepruneError, match="it is not sufficient here"):
        closed_where_possible(model, batch, ablated, circuit.with_edges(keep, {}))


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*")
@pytest.mark.parametrize("ablation", ["zero", "interchange"])
def test_edge_pruning_finds_exactly_these_edges(ablation: str) -> None:
    """With the setting of `configs/ground_truth.yaml`."""
    task = CompiledTask("hist", lengths=(2,), num_train=14, num_validation=1, num_test=1)
    options: dict[str, Any] = {"estimator": "local", "learning_rate": 0.1, "betas": (0.9, 0.9), "init_mean": 5.0}
    recipe = EdgePruning(GeometricPenalty(0.02, 0.1), **options)
    module = PruningModule(
        "compiled:hist", recipe, objective="squared_error", ablation=ablation, roles="positions", seed=0
    )
    quiet_trainer(300).fit(module, PairDataModule(task, batch_size=64))
    assert set(module.circuit().edges()) == set(setting("hist", 2, ablation)[3].edges())
