"""Closed gates that open again where a run stays at its sparsity."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.methods import EdgePruning, Regrow, WarmStart
from edgeprune.methods.regrow import Regrowth
from edgeprune.objectives import GeometricPenalty
from edgeprune.objectives.pace import Pace
from tests.methods.fits import fit, only

# See tests/cli/test_fit.py for both.
pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The dirpath has changed:UserWarning"),
]

GRAPH = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2))
STEPS, NEEDED, OPEN = 300, 20, 24


def worths() -> Tensor:
    """Of each edge: the last ones are needed, the others worth nothing."""
    values = torch.zeros(GRAPH.num_edges)
    values[-NEEDED:] = 1.0
    return values


def first_open() -> Circuit:
    """None of the needed edges."""
    keep = torch.zeros(GRAPH.num_edges, dtype=torch.bool)
    keep[:OPEN] = True
    return Circuit(GRAPH, GRAPH.to_matrix(keep.float()).bool())


@pytest.fixture
def wrong(tmp_path: Path) -> Path:
    return first_open().save(tmp_path / "wrong.safetensors")


def recipe_from(path: Path, **options: Any) -> EdgePruning:
    term = Pace(1 - OPEN / GRAPH.num_edges, hold=0.5)
    start = WarmStart(str(path), closed_at=-12.0)
    given: dict[str, Any] = {"regrow": Regrow(share=0.1), "warm_start": start, "masks_per_batch": 4, **options}
    recipe = EdgePruning(term, **given)
    recipe.build(GRAPH)
    recipe.aim([])
    recipe.plan(STEPS)
    return recipe


class Run:
    """Steps of a recipe on an error that is the worth of what is closed."""

    def __init__(self, recipe: EdgePruning) -> None:
        self.recipe, self.optimizer = recipe, recipe.make_optimizer()

    def go(self, first: int, last: int) -> "Run":
        values = GRAPH.to_matrix(worths())

        def error_of(gates: Tensor) -> Tensor:
            return ((1 - gates) * values).sum((-2, -1)).mean()

        for step in range(first, last):
            self.optimizer.zero_grad()
            error, gates = self.recipe.expected_error(error_of, 0, step)
            (error + self.recipe.penalty(gates, step / (STEPS - 1))).backward()
            self.recipe.after_backward(step / (STEPS - 1))
            self.optimizer.step()
        return self

    @property
    def found(self) -> int:
        return int((self.recipe.edges.scores()[-NEEDED:] > 0).sum())


# ------------------------------------------------------------------ what it is for
def test_edges_that_closed_too_early_open_again_and_idle_ones_close(wrong: Path) -> None:
    run = Run(recipe_from(wrong)).go(0, STEPS)
    assert run.found == NEEDED
    assert NEEDED <= run.recipe.num_open() <= OPEN
    assert run.recipe.regrowth is not None
    assert int(run.recipe.regrowth.opened) >= NEEDED


def test_without_it_they_stay_closed(wrong: Path) -> None:
    assert Run(recipe_from(wrong, regrow=None)).go(0, STEPS).found == 0


def test_edges_that_are_closed_for_good_stay_so(wrong: Path) -> None:
    start = WarmStart(str(wrong), closed_at=-12.0, keep_below=0.5)
    run = Run(recipe_from(wrong, warm_start=start)).go(0, STEPS)
    assert run.recipe.start is not None
    frozen = run.recipe.start.frozen
    assert frozen is not None
    opened = GRAPH.to_vector(run.recipe.circuit().keep)
    assert frozen.any()
    assert not (opened & frozen).any()


def test_nothing_opens_before_the_stay(wrong: Path) -> None:
    """A run that starts with all edges open stays in its second half only."""
    run = Run(recipe_from(wrong, warm_start=None)).go(0, STEPS // 2 - 1)
    assert run.recipe.regrowth is not None
    assert int(run.recipe.regrowth.opened) == 0
    assert run.recipe.num_open() < GRAPH.num_edges


def test_the_probe_reads_slopes_in_the_gates_and_changes_nothing(wrong: Path) -> None:
    with_it, without = (recipe_from(wrong, regrow=regrow) for regrow in (Regrow(), None))
    values = GRAPH.to_matrix(worths())

    def error_of(gates: Tensor) -> Tensor:
        return ((1 - gates) * values).square().sum((-2, -1)).mean()

    errors = [recipe.expected_error(error_of, 0, 0)[0] for recipe in (with_it, without)]
    assert torch.equal(*errors)
    errors[0].backward()
    errors[1].backward()
    assert torch.equal(with_it.edges.log_alpha.grad, without.edges.log_alpha.grad)  # pyright: ignore[reportArgumentType]
    assert with_it.regrowth is not None
    samples = torch.stack([with_it.sample(0, 0, number) for number in range(4)])
    expected = GRAPH.to_vector((-2 * (1 - samples) * values.square()).mean(0))
    torch.testing.assert_close(with_it.regrowth.probe.grad, expected)


def test_a_run_that_goes_on_is_the_same(wrong: Path) -> None:
    whole = Run(recipe_from(wrong)).go(0, STEPS)
    first = Run(recipe_from(wrong)).go(0, 120)
    rest = Run(recipe_from(wrong))
    rest.recipe.load_state_dict(first.recipe.state_dict())
    rest.optimizer.load_state_dict(first.optimizer.state_dict())
    rest.go(120, STEPS)
    assert torch.equal(rest.recipe.edges.log_alpha, whole.recipe.edges.log_alpha)


def test_a_gain_must_be_more_than_chance() -> None:
    growth = Regrowth(Regrow(share=1.0), 2)
    pace = Pace(0.5, hold=0.9)
    pace.build(2, 2)
    pace.begin.fill_(0.5)
    pace.plan(STEPS, 10)
    locations = torch.tensor([-6.0, -6.0])
    noise = torch.randn(STEPS, generator=torch.Generator().manual_seed(0))
    for step in range(11):
        growth.probe.grad = torch.tensor([-1.0, -0.01 + 10 * float(noise[step])])
        growth.step(locations, pace, step / (STEPS - 1), None)
    assert locations.tolist() == [2.0, -6.0]


# ------------------------------------------------------------------ a start that is the circuit
def test_a_circuit_can_be_started_from_as_it_is(tmp_path: Path) -> None:
    scores = torch.randn(GRAPH.shape, generator=torch.Generator().manual_seed(0))
    circuit = Circuit.from_scores(GRAPH, scores, num_edges=OPEN)
    recipe = recipe_from(circuit.save(tmp_path / "circuit.safetensors"), init_mean=3.0)
    start, keep = recipe.edges.log_alpha.detach(), GRAPH.to_vector(circuit.keep)
    assert torch.equal(start > 0, keep)
    assert (start[~keep] == -12).all()
    assert start[keep].min() == 2
    assert start[keep].max() == 4
    assert torch.equal(start[keep].argsort(), GRAPH.to_vector(scores)[keep].argsort())


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_empty_or_whole_circuit_is_no_start(tmp_path: Path, share: float) -> None:
    path = Circuit(GRAPH, GRAPH.exists if share else torch.zeros_like(GRAPH.exists)).save(tmp_path / "c.safetensors")
    with pytest.raises(EdgepruneError, match="edges; give one with some edges open and some closed"):
        recipe_from(path)


# ------------------------------------------------------------------ in a run
def test_the_last_circuit_is_that_of_the_end(tmp_path: Path) -> None:
    recipe = "--model.recipe.init_args"
    settings = {"end": 0.8, "hold": 0.5, "worth": 1e9}
    term = (f"{recipe}.sparsity_term.init_args.{name}={value}" for name, value in settings.items())
    assert fit(tmp_path, "quickstart", 120, *term, f"{recipe}.regrow.share=0.1") == 0
    early, last = (Circuit.load(only(tmp_path, f"sparsity-{size}.safetensors")).header for size in ("0.5000", "0.8000"))
    assert last["step"] == 120
    assert 0 < early["step"] < 120
    assert last["regrow"] == {"share": 0.1, "location": 2.0}


# ------------------------------------------------------------------ bad input
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity_term": GeometricPenalty(1.0, 2.0)}, "set sparsity_term to Pace with a hold"),
        ({"estimator": "local"}, "set estimator to pathwise, not 'local'"),
        ({"attention_edges": "alone"}, "leave regrow out"),
    ],
)
def test_what_it_does_not_go_with_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        EdgePruning(**options, regrow=Regrow())


@pytest.mark.parametrize("options", [{"share": -0.1}, {"share": 1.1}, {"location": 0.0}, {"location": float("nan")}])
def test_impossible_numbers_are_refused(options: dict[str, float]) -> None:
    with pytest.raises(EdgepruneError, match=r"regrow\."):
        Regrow(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"closed_at": 0.5}, "a log-alpha below 0"),
        ({"closed_at": -3.0, "layer_sparsity": 0.9}, "leave one of them out"),
    ],
)
def test_impossible_starts_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        WarmStart("circuit.safetensors", **options)  # pyright: ignore[reportArgumentType]
