"""Matryoshka Attribution: sizes that are drawn, the step, and runs of `fit`."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.compiled import true_circuit
from edgeprune.errors import EdgepruneError
from edgeprune.gates import sigmoid_top_k, uniform_noise
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.methods import Matryoshka
from tests.methods.fits import fit, only

GRAPH = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2))

# See tests/cli/test_fit.py for both.
pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
]


def build(**options: Any) -> Matryoshka:
    recipe = Matryoshka(**options)
    recipe.build(GRAPH)
    return recipe


def spread(recipe: Matryoshka) -> Matryoshka:
    with torch.no_grad():
        recipe.values.copy_(torch.randn(GRAPH.num_edges, generator=torch.Generator().manual_seed(0)))
    return recipe


# ------------------------------------------------------------------ sizes
def test_sizes_as_published() -> None:
    noise = [uniform_noise(3, step, 1).item() for step in range(50)]
    uniform, log = build(), build(draw="log")
    n = GRAPH.num_edges
    for step, u in enumerate(noise):
        assert uniform.num_kept(3, step, 0) == pytest.approx(1 + (n - 1) * u)
        assert log.num_kept(3, step, 0) == pytest.approx(math.exp(u * math.log(n)))


@pytest.mark.parametrize("draw", ["uniform", "log"])
def test_sizes_stay_between_the_shares(draw: Any) -> None:
    recipe = build(draw=draw, shares=(0.1, 0.4))
    kept = torch.tensor([recipe.num_kept(0, step, 0) for step in range(500)]) / GRAPH.num_edges
    assert kept.min() >= 0.1
    assert kept.max() <= 0.4
    assert kept.min() < 0.11
    assert kept.max() > 0.39
    middle = 0.25 if draw == "uniform" else 0.2
    assert kept.median() == pytest.approx(middle, abs=0.02)


def test_stratified_sizes_come_one_from_each_part_of_the_range() -> None:
    recipe = build(shares=(0.0, 1.0), masks_per_batch=8, stratified=True)
    for step in range(20):
        kept = [(recipe.num_kept(0, step, number) - 1) / (GRAPH.num_edges - 1) for number in range(8)]
        assert sorted(int(8 * share) for share in kept) == list(range(8))
    kept = [recipe.num_kept(0, 0, number) for number in range(8)]
    assert kept != [recipe.num_kept(0, 8, number) for number in range(8)]


def test_a_batch_with_fewer_samples_meets_every_part_of_the_range_in_turn() -> None:
    recipe = build(shares=(0.0, 1.0), masks_per_batch=8, stratified=True)
    first = [(recipe.num_kept(0, step, 0) - 1) / (GRAPH.num_edges - 1) for step in range(8)]
    assert sorted(int(8 * share) for share in first) == list(range(8))


# ------------------------------------------------------------------ the step
def test_samples_are_masks_of_these_sizes_and_repeat() -> None:
    recipe = spread(build(masks_per_batch=3))
    seen: list[Tensor] = []

    def error_of(gates: Tensor) -> Tensor:
        seen.append(gates)
        return gates.square().sum((1, 2)).mean()

    error, mean = recipe.expected_error(error_of, seed=3, step=5)
    (gates,) = seen
    kept = torch.tensor([recipe.num_kept(3, 5, number) for number in range(3)])
    torch.testing.assert_close(gates.detach().sum((1, 2)), kept, rtol=1e-5, atol=1e-4)
    for number in range(3):
        torch.testing.assert_close(gates[number], recipe.sample(3, 5, number))
        (mask,) = sigmoid_top_k(recipe.values, kept[number : number + 1], 0.5)
        torch.testing.assert_close(GRAPH.to_vector(gates[number]), mask)
    torch.testing.assert_close(mean, gates.detach().mean(0))
    (slope,) = torch.autograd.grad(error, recipe.values)
    assert slope.sum().abs() < 1e-5 * slope.abs().sum()
    assert recipe.penalty(gates, 0.3).item() == 0


def test_a_step_without_learning_is_half_way_along_all_gates() -> None:
    """At equal scores all gates are k / n, and the step goes along the centred slopes there, times v / T."""
    recipe = build(learning_rate=0.7, optimizer="sgd")
    weights = torch.randn(GRAPH.num_edges, generator=torch.Generator().manual_seed(1))
    share = recipe.num_kept(0, 0, 0) / GRAPH.num_edges
    optimizer = recipe.make_optimizer()
    error, _ = recipe.expected_error(lambda gates: (GRAPH.to_vector(gates) * weights).sum(), 0, 0)
    error.backward()
    optimizer.step()
    expected = -0.7 * share * (1 - share) / 0.5 * (weights - weights.mean())
    torch.testing.assert_close(recipe.values.detach(), expected, rtol=1e-4, atol=1e-5)


def test_optimizers_as_published() -> None:
    made = build(learning_rate=0.1, betas=(0.9, 0.99), eps=1e-4).make_optimizer()
    (group,) = made.param_groups
    assert isinstance(made, torch.optim.AdamW)
    assert (group["lr"], group["betas"], group["eps"], group["weight_decay"]) == (0.1, (0.9, 0.99), 1e-4, 0.0)
    plain = build(learning_rate=3.0, optimizer="sgd").make_optimizer()
    assert isinstance(plain, torch.optim.SGD)
    assert (plain.param_groups[0]["lr"], plain.param_groups[0]["momentum"]) == (3.0, 0)


def test_circuits_of_every_size_are_cut_from_the_scores() -> None:
    recipe = spread(build(validated_sparsity=0.9))
    ranked = recipe.values.detach().argsort(descending=True)
    for sparsity in (0.1, 0.5, 0.95):
        circuit = recipe.circuit(sparsity)
        best = ranked[: circuit.num_edges].sort().values
        assert torch.equal(GRAPH.to_vector(circuit.keep).nonzero().squeeze(1), best)
    assert recipe.circuit().num_edges == recipe.num_open() == round(0.1 * GRAPH.num_edges)
    assert recipe.circuit().header["method"] == "matryoshka"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"draw": "normal"}, "'uniform' or 'log', got 'normal'"),
        ({"optimizer": "lion"}, "'adam' or 'sgd', got 'lion'"),
        ({"shares": (0.5, 0.5)}, "shares must rise"),
        ({"shares": (0.0, 1.5)}, "shares must rise"),
        ({"temperature": 0.0}, "above 0, got 0.0"),
        ({"learning_rate": 0.0}, "above 0"),
        ({"eps": 0.0}, "above 0"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"masks_per_batch": 0}, "at least 1, got 0"),
        ({"validated_sparsity": 1.0}, "0.95 keeps 5 %"),
    ],
)
def test_impossible_settings_are_refused(options: dict[str, Any], named: str) -> None:
    with pytest.raises(EdgepruneError, match=named):
        build(**options)


# ------------------------------------------------------------------ runs
MATRYOSHKA = ("--model.ablation", "interchange", "--model.recipe", "Matryoshka")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A short run on a compiled model whose circuit has two edges under interchange."""
    folder = tmp_path_factory.mktemp("run")
    assert fit(folder, "ugs", 60, *MATRYOSHKA) == 0
    return folder


def test_all_sizes_come_from_the_scores_of_the_end(run: Path) -> None:
    folder = only(run, "circuits")
    made = {path.stem: Circuit.load(path) for path in folder.iterdir()}
    assert sorted(made) == ["final", "sparsity-0.5000", "sparsity-0.8000"]
    scores = made["final"].scores
    assert scores is not None
    for circuit in made.values():
        assert circuit.header["step"] == 60
        assert circuit.header["reached"]
        assert circuit.scores is not None
        assert torch.equal(circuit.scores, scores)
        assert torch.equal(
            circuit.keep, Circuit.from_scores(circuit.graph, circuit.scores, num_edges=circuit.num_edges).keep
        )
    assert made["final"].sparsity == pytest.approx(0.95, abs=0.01)


def test_the_ranking_finds_the_true_circuit_first(run: Path) -> None:
    circuit = Circuit.load(only(run, "final.safetensors"))
    assert circuit.scores is not None
    best = Circuit.from_scores(circuit.graph, circuit.scores, num_edges=2)
    assert set(best.edges()) == set(true_circuit("reverse", "interchange"))


def test_a_run_that_goes_on_cuts_all_sizes_anew(run: Path, tmp_path: Path) -> None:
    assert fit(tmp_path, "ugs", 70, *MATRYOSHKA, "--ckpt_path", str(only(run, "last.ckpt"))) == 0
    for name in ("final", "sparsity-0.5000", "sparsity-0.8000"):
        assert Circuit.load(only(tmp_path, f"{name}.safetensors")).header["step"] == 70
