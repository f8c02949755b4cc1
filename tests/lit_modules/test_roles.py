"""Gates of edges at roles, trained: right gradients, resumed; where all tokens have one role, the steps of none."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from datamodules import PairDataModule
from datamodules.tasks import Induction
from datamodules.tasks.compiled import CompiledTask
from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.graph import RoleSpec
from edgeprune.memory import BatchShape, activations_per_example, training_terms
from edgeprune.methods import UGS, DiscoGP, EdgePruning, Matryoshka, SubnetworkProbing
from edgeprune.methods.flips import GatedError, RoleFlips, WholeFlips
from edgeprune.methods.signed_scores import soft_gates
from edgeprune.methods.warm_start import WarmStart
from edgeprune.metrics.measure import gated_logits
from edgeprune.models.meta import meta_model
from edgeprune.objectives import OBJECTIVES
from edgeprune.objectives.sparsity import GeometricPenalty
from edgeprune.roles import REST, observed_roles, roles_in
from lit_modules import pruning
from lit_modules.polish import Polish
from lit_modules.pruning import PruningModule
from lit_modules.roles import roles_of_data
from lit_modules.signed import SignedScores
from lit_modules.snapshots import SnapshotCircuits
from tests.lit_modules.trainers import quiet_trainer
from tests.methods.small_problems import problem, tiny
from tests.models.reference import slow_logits
from tests.reading.small import pairs as small_pairs

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*"),
]
NAMES = ["second", "first"]
STEPS = 3


def pairs() -> PairDataModule:
    task = Induction(num_train=12, num_validation=4, num_test=4, length=6, vocab_size=65, first_token=1, bos_token=0)
    return PairDataModule(task, cache=False, batch_size=4)


def edge_pruning(**options: Any) -> EdgePruning:
    settings: dict[str, Any] = {"init_mean": 0.5, "learning_rate": 0.1, "masks_per_batch": 2}
    return EdgePruning(GeometricPenalty(start=0.1, end=0.1), **settings | options)


RECIPES: dict[str, Any] = {
    "pathwise": edge_pruning,
    "sampled penalty": lambda: edge_pruning(penalty_on="sample"),
    "nodes": lambda: edge_pruning(node_gates=True, node_sparsity_term=GeometricPenalty(0.1, 0.1)),
    "local": lambda: edge_pruning(estimator="local", masks_per_batch=1, num_flips=3),
    "matryoshka": lambda: Matryoshka(masks_per_batch=2),
    "probing": lambda: SubnetworkProbing(granularity="edges", learning_rate=0.1, samples_per_step=2),
    "disco": lambda: DiscoGP(masks_per_batch=2),
    "ugs": lambda: UGS(samples_per_step=2, masks_per_batch=2),
}


def module(recipe: Any = None, **options: Any) -> PruningModule:
    return PruningModule("compiled:trained_induction", recipe or edge_pruning(), seed=3, **options)


def learned(own: PruningModule, steps: int = STEPS) -> list[list[Tensor]]:
    """Parameters after each step."""
    found: list[list[Tensor]] = []

    class Note(pl.Callback):
        def on_train_batch_end(self, *arguments: Any, **keywords: Any) -> None:
            found.append([parameter.detach().clone() for parameter in own.recipe.parameters()])

    quiet_trainer(steps, callbacks=[Note()]).fit(own, pairs())
    return found


# -------------------------------------------------------------------- values
@pytest.mark.parametrize(("recipe", "objective"), [*((name, "kl") for name in RECIPES), ("pathwise", "cmd")])
def test_one_role_for_all_tokens_learns_as_none(recipe: str, objective: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit; the local estimator, which runs whole what it runs in parts without roles, to rounding."""
    more: dict[str, Any] = {"objective": objective, "dtype": "float64", "complement_weight": 0.5}
    plain = learned(module(RECIPES[recipe](), **more))
    monkeypatch.setattr(pruning, "roles_of_data", lambda *_: RoleSpec((REST,)))  # pyright: ignore[reportUnknownLambdaType]
    own = module(RECIPES[recipe](), roles=True, **more)
    found = learned(own)
    assert own.recipe.graph.shape == (1, *own.recipe.graph.without_roles.shape)
    assert len(found) == len(plain) == STEPS
    for ours, theirs in zip(found, plain, strict=True):
        for parameter, expected in zip(ours, theirs, strict=True):
            torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-6 if recipe == "local" else 0)
    assert any((last - first).abs().max() > 1e-3 for last, first in zip(found[-1], found[0], strict=True))


@pytest.mark.parametrize("recipe", ["pathwise", "nodes", "ugs"])
def test_gradients_are_those_of_the_sum_over_edges(recipe: str) -> None:
    """The first step's, against a model that sums every reader's input edge by edge, token by token, in float64."""
    own = module(RECIPES[recipe](), roles=NAMES, dtype="float64")
    slopes: list[Tensor] = []
    own.on_before_optimizer_step = lambda optimizer: slopes.extend(  # pyright: ignore[reportAttributeAccessIssue]
        parameter.grad.clone() for parameter in own.recipe.parameters() if parameter.grad is not None
    )
    quiet_trainer(1).fit(own, pairs())
    fresh, model = RECIPES[recipe](), own.masked
    fresh.build(model.graph)
    fresh.plan(1)
    batch: Any = next(iter(pairs().train_dataloader()))
    full = model.full(batch.clean, batch.attention_mask, batch.positions).log_softmax(-1)
    ablated, role_of = model.record(batch.corrupted, batch.attention_mask), roles_in(model.graph, batch)

    def error_of(gates: Tensor) -> Tensor:
        logits = slow_logits(model, batch.clean, gates.double(), ablated, batch.attention_mask, role_of=role_of)
        found = logits.log_softmax(-1).gather(1, batch.positions[..., None].expand(-1, -1, logits.shape[-1]))
        divergence = (full.exp() * (full - found)).sum(-1).masked_fill(~batch.position_mask, 0)
        return (divergence.sum(1) / batch.position_mask.sum(1)).mean()

    error, gates = fresh.expected_error(error_of, 3, 0)
    (error + fresh.penalty(gates, 0.0)).backward()
    expected = [parameter.grad for parameter in fresh.parameters() if parameter.grad is not None]
    assert len(slopes) == len(expected) > 0
    for found, slope in zip(slopes, expected, strict=True):
        torch.testing.assert_close(found, slope, atol=1e-6, rtol=1e-4)
        assert slope.abs().max() > 1e-4


@pytest.mark.parametrize("recipe", RECIPES)
def test_roles_learn_apart(recipe: str) -> None:
    own = module(RECIPES[recipe](), roles=NAMES)
    learned(own)
    names, circuit = [*NAMES, REST], own.circuit(0.5)
    assert list(circuit.roles) == names
    assert circuit.scores is not None
    assert circuit.num_edges == round(0.5 * circuit.graph.num_edges)
    second, first, _ = circuit.scores[:, circuit.graph.without_roles.exists]
    assert not torch.allclose(first, second, atol=1e-2)


def test_flips_run_together_are_flips_run_whole() -> None:
    """In a batch whose circuits fit into one run; those called idle change no bit of the error."""
    given = problem(tiny("gpt2"), small_pairs(), cuts=(3,), metric="kl")
    model = given.model
    model.use_roles(observed_roles(given.batches))
    batch, full, ablated = next(given.batches_with_runs())
    gates = (torch.rand(model.graph.num_edges, generator=torch.Generator().manual_seed(2)) < 0.1).double()

    def error_of(logits: Tensor) -> Tensor:
        return given.losses(full, logits, batch).mean()

    whole = WholeFlips(lambda own: error_of(gated_logits(model, batch, model.graph.to_matrix(own), ablated)), gates)
    found = GatedError(lambda own: own.sum(), error_of, model, batch, ablated).flips(gates)
    assert isinstance(found, RoleFlips)
    torch.testing.assert_close(found.error, whole.error)
    some = torch.randperm(len(gates), generator=torch.Generator().manual_seed(3))[:60]
    expected = whole.errors(some)
    torch.testing.assert_close(found.errors(some), expected, atol=1e-6, rtol=1e-5)
    idle = found.idle(some)
    assert 0 < idle.sum() < len(some)
    assert torch.equal(expected[idle], whole.error.expand(int(idle.sum())))
    assert (expected - whole.error).abs().max() > 1e-4


# -------------------------------------------------------------------- which roles
def test_roles_are_those_of_training_and_validation_prompts() -> None:
    own = module(roles=True)
    learned(own, 1)
    roles = own.masked.graph.roles
    assert roles.names == ("END", "first", "second", REST)  # by name
    assert roles.scored == ("second",)  # the last token, of two roles, is END's
    assert roles.sees_matrix[2, 1]
    assert not roles.sees_matrix[1, 2]


def test_positions_and_attention_that_is_not_causal() -> None:
    """Every position of a compiled program sees all, also those after it."""
    data = PairDataModule(CompiledTask("reverse", lengths=(3,)), batch_size=4, cache=False)
    own = PruningModule("compiled:reverse", edge_pruning(), objective="squared_error", roles="positions")
    quiet_trainer(1).fit(own, data)
    roles = own.masked.graph.roles
    assert roles.names == ("p0", "p1", "p2", "p3")
    assert roles.sees_matrix.all()
    assert roles.scored == ("p1", "p2", "p3")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"roles": True}, "the task marks no position roles"),
        ({"roles": "positions"}, "need prompts of one length"),
        ({"roles": ["S2"]}, "no prompt has a role 'S2'; this task's are none"),
    ],
)
def test_a_task_without_such_roles_is_refused(options: dict[str, Any], message: str) -> None:
    data = PairDataModule(CompiledTask("reverse"), batch_size=4, cache=False)
    own = PruningModule("compiled:reverse", edge_pruning(), objective="squared_error", **options)
    with pytest.raises(EdgepruneError, match=message):
        quiet_trainer(1).fit(own, data)


@pytest.mark.filterwarnings("ignore:.*have no `val_dataloader`.*")
def test_other_refusals_are_one_line() -> None:
    with pytest.raises(EdgepruneError, match="roles must be true, a list"):
        module(roles="S2")
    with pytest.raises(EdgepruneError, match="granularity 'nodes' masks a node at all tokens"):
        learned(module(SubnetworkProbing(), roles=True))
    own, data = module(roles=True), pairs()
    with pytest.raises(EdgepruneError, match="give the trainer a data module"):
        quiet_trainer(1).fit(own, data.train_dataloader())


@pytest.mark.filterwarnings("ignore:.*number of training batches.*")
def test_snapshots_are_polished_at_roles(tmp_path: Path) -> None:
    callbacks = [SnapshotCircuits([0.5]), Polish(limit=8, max_passes=5)]
    quiet_trainer(2, callbacks=callbacks, logger=CSVLogger(tmp_path, "run", 0)).fit(module(roles=NAMES), pairs())
    folder = tmp_path / "run" / "version_0"
    (path,) = (folder / "polished").glob("sparsity*.safetensors")
    before, after = Circuit.load(folder / "circuits" / path.name), Circuit.load(path)
    assert list(after.roles) == [*NAMES, REST]
    assert before.num_edges == after.num_edges
    assert after.header["derived"][-1]["polished"]["loss"] <= after.header["derived"][-1]["polished"]["start"]


# -------------------------------------------------------------------- going on, and starting
@pytest.mark.parametrize("recipe", ["pathwise", "local", "ugs"])
def test_a_resumed_run_is_the_unbroken_one(recipe: str, tmp_path: Path) -> None:
    path = tmp_path / "saved.ckpt"
    whole = learned(module(RECIPES[recipe](), roles=NAMES), 6)
    first, trainer = module(RECIPES[recipe](), roles=NAMES), quiet_trainer(2)
    trainer.fit(first, pairs())
    trainer.save_checkpoint(path)
    second = module(RECIPES[recipe](), roles=NAMES)
    quiet_trainer(6).fit(second, pairs(), ckpt_path=path)
    for found, expected in zip(second.recipe.parameters(), whole[-1], strict=True):
        assert torch.equal(found, expected)
    saved = Circuit.from_checkpoint(path)
    assert list(saved.roles) == [*NAMES, REST]
    assert saved.edges() == first.circuit().edges()
    assert torch.load(path, weights_only=True)["state_dict"].keys() == {
        f"recipe.{name}" for name in second.recipe.state_dict()
    }


@pytest.mark.parametrize("roles", [None, ["first"]])
def test_a_checkpoint_of_other_roles_is_refused(roles: Any, tmp_path: Path) -> None:
    trainer = quiet_trainer(1)
    trainer.fit(module(roles=NAMES), pairs())
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    with pytest.raises(EdgepruneError, match=r"masks are for roles .* this run has .*: set model.roles back"):
        quiet_trainer(2).fit(module(roles=roles), pairs(), ckpt_path=tmp_path / "saved.ckpt")


def test_a_circuit_without_roles_starts_all_roles(tmp_path: Path) -> None:
    path = tmp_path / "found.safetensors"
    plain = module()
    plain.configure_model()
    graph = plain.masked.graph
    noise = torch.rand(graph.shape, generator=torch.Generator().manual_seed(1))
    found = Circuit.from_scores(graph, noise, sparsity=0.7)
    found.save(path)
    start = WarmStart(str(path), keep_below=0.5)
    own = module(edge_pruning(warm_start=start), roles=NAMES)
    own.find_roles(pairs())
    own.configure_model()
    recipe: Any = own.recipe
    first = own.masked.graph.to_matrix(recipe.edges.log_alpha.detach())
    expected = module(edge_pruning(warm_start=start))
    expected.configure_model()
    theirs: Any = expected.recipe
    by_role = first[:, graph.exists]
    for role in by_role:
        torch.testing.assert_close(role, theirs.edges.log_alpha.detach(), atol=1e-6, rtol=0)
    frozen = own.masked.graph.to_matrix(recipe.start.frozen.float())
    for role in frozen:
        assert torch.equal(graph.to_vector(role), theirs.start.frozen.float())


def test_a_circuit_with_roles_starts_the_same_ones(tmp_path: Path) -> None:
    path = tmp_path / "found.safetensors"
    own = module(roles=NAMES)
    learned(own)
    own.circuit(0.5).save(path)
    learned(module(edge_pruning(warm_start=WarmStart(str(path))), roles=NAMES), 1)
    for roles, message in ((None, "take its union"), (["first"], "compare unions, `Circuit.union`")):
        with pytest.raises(EdgepruneError, match=message):
            learned(module(edge_pruning(warm_start=WarmStart(str(path))), roles=roles), 1)


def test_layers_of_roles_are_calibrated_together(tmp_path: Path) -> None:
    """`layer_sparsity` counts the edges that a layer reads, at all roles."""
    path = tmp_path / "found.safetensors"
    plain = module()
    plain.configure_model()
    graph = plain.masked.graph
    Circuit.from_scores(graph, torch.rand(graph.shape), sparsity=0.7).save(path)
    own = module(edge_pruning(warm_start=WarmStart(str(path), layer_sparsity=0.5)), roles=NAMES)
    own.find_roles(pairs())
    own.configure_model()
    matrix = own.masked.graph.to_matrix(own.recipe.edges.log_alpha.detach() > 0)  # pyright: ignore
    counts = matrix.sum((0, 2)).split([graph.arch.readers_per_layer] * graph.arch.num_layers + [1])
    edges = graph.exists.sum(1).split([graph.arch.readers_per_layer] * graph.arch.num_layers + [1])
    for opened, number in zip(counts, edges, strict=True):
        assert int(opened.sum()) == round(0.5 * 3 * int(number.sum()))


# -------------------------------------------------------------------- what comes of it, and what it takes
def test_scores_get_signs_at_each_role(tmp_path: Path) -> None:
    own = module(roles=NAMES)
    quiet_trainer(2, callbacks=[SignedScores()], default_root_dir=tmp_path).fit(own, pairs())
    found = Circuit.load(tmp_path / "circuits" / "signed.safetensors")
    assert list(found.roles) == [*NAMES, REST]
    assert found.scores is not None
    second, first, _ = found.scores[:, found.graph.without_roles.exists].sign()
    assert not torch.equal(first, second)
    sizes, gates = found.scores.abs(), own.circuit().scores
    assert gates is not None
    torch.testing.assert_close(sizes, soft_gates(gates).where(found.graph.exists, 0.0))


def test_memory_is_that_of_gates_at_roles() -> None:
    """Noise, samples, gradients and moments; and copies of tokens sorted by role, also of a model without weights."""
    model, shape = tiny("gpt2"), BatchShape(batch=2, seq=9)
    plain = training_terms(model, shape, 0)
    model.use_roles(RoleSpec(("a", "b", "c")))
    found = training_terms(model, shape, 0)
    for name in ("gates", "optimizer"):
        assert found[name] == 3 * plain[name] > 0
    assert {name for name in plain if found[name] != plain[name]} == {"gates", "optimizer"}
    meta = meta_model(model.hf.config, torch.float64, kv_readers="group", split_embedding=False)
    loss = OBJECTIVES["kl"]
    without = activations_per_example(meta, shape, loss)
    meta.use_roles(model.graph.roles)
    exact, estimate = (activations_per_example(own, shape, loss) for own in (model, meta))
    assert 1.1 * without < 0.99 * exact < estimate < 1.05 * exact


@pytest.mark.parametrize("cache", [True, False])
def test_roles_are_the_same_with_and_without_a_cache(cache: bool, tmp_path: Path) -> None:
    task = Induction(num_train=8, num_validation=4, num_test=4, length=4, vocab_size=16, add_bos=False)
    found = roles_of_data(True, PairDataModule(task, cache=cache, cache_dir=str(tmp_path), batch_size=4))
    assert found is not None
    assert found.names == ("END", "first", "second", "rest")
    assert found.sees[0] == ("END", "first", "second")  # the last token is END's, though it is in `second` too
