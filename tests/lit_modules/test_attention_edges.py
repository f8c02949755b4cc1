"""Gates of attention edges, trained: they find those that a program computes along; right gradients; resumed."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from datamodules import PairDataModule
from datamodules.tasks import Induction
from datamodules.tasks.compiled import CompiledTask
from edgeprune.circuit import Circuit
from edgeprune.circuit_attention import num_at
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.evaluator import Evaluator
from edgeprune.graph import RoleSpec
from edgeprune.memory import BatchShape, activations_per_example, training_terms
from edgeprune.methods import EdgePruning
from edgeprune.methods.warm_start import WarmStart
from edgeprune.metrics.measure import BothGates, gated_logits, gates_of, random_like
from edgeprune.models.meta import meta_model
from edgeprune.objectives import OBJECTIVES, Pace
from edgeprune.objectives.sparsity import GeometricPenalty
from edgeprune.roles import roles_in
from lit_modules.batch_losses import BatchLosses
from lit_modules.compare import CompareToReference
from lit_modules.polish import Polish
from lit_modules.pruning import PruningModule
from lit_modules.signed import SignedScores
from lit_modules.snapshots import SnapshotCircuits
from tests.lit_modules.trainers import quiet_trainer
from tests.methods.small_problems import tiny
from tests.models.reference import slow_logits

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers.*"),
    pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*"),
    pytest.mark.filterwarnings("ignore:.*number of training batches.*"),
]
NAMES = ["second", "first"]


def pairs() -> PairDataModule:
    task = Induction(num_train=12, num_validation=4, num_test=4, length=6, vocab_size=65, first_token=1, bos_token=0)
    return PairDataModule(task, cache=False, batch_size=4)


def edge_pruning(option: Any = True, **options: Any) -> EdgePruning:
    settings: dict[str, Any] = {"init_mean": 0.5, "learning_rate": 0.1, "masks_per_batch": 2, "attention_edges": option}
    term = options.pop("sparsity_term", None) or GeometricPenalty(start=0.1, end=0.1)
    return EdgePruning(term, **settings | options)


def module(recipe: Any = None, **options: Any) -> PruningModule:
    settings: dict[str, Any] = {"seed": 3, "roles": NAMES, **options}
    return PruningModule("compiled:trained_induction", recipe or edge_pruning(), **settings)


def trained(own: PruningModule, steps: int = 2, **options: Any) -> Any:
    trainer = quiet_trainer(steps, **options)
    trainer.fit(own, pairs())
    return trainer


def built(recipe: EdgePruning, **options: Any) -> PruningModule:
    own = module(recipe, **options)
    own.find_roles(pairs())
    own.configure_model()
    return own


# -------------------------------------------------------------------- the truth
@pytest.mark.parametrize("option", [True, "alone"])
def test_those_that_a_program_computes_along_are_found(option: Any, tmp_path: Path) -> None:
    """Reversing three tokens. Closing attention edges one by one says which these are; and no edge is kept too many."""
    data = PairDataModule(CompiledTask("reverse", lengths=(3,)), batch_size=8, cache=False)
    ends: dict[str, Any] = {"sparsity_term": Pace(0.98, worth=0.01)}  # of the attention edges
    if option is True:
        ends = {"sparsity_term": Pace(0.99, worth=0.01), "attention_sparsity": 0.98}
    recipe = EdgePruning(**ends, attention_edges=option, masks_per_batch=4, learning_rate=0.2)
    own = PruningModule("compiled:reverse", recipe, objective="squared_error", roles="positions")
    quiet_trainer(60, callbacks=[SnapshotCircuits([])], default_root_dir=tmp_path).fit(own, data)
    model, edges = own.masked, own.masked.graph.attention
    batch: Any = data.ordered_dataloader("train").collate_fn(list(enumerate(data.pairs("train"))))
    ablated, gates = model.record(batch.corrupted, batch.attention_mask), model.graph.all_open()
    full = model.full(batch.clean, batch.attention_mask, batch.positions)
    needed = torch.zeros(edges.shape, dtype=torch.bool)
    for place in edges.exists.nonzero().tolist():
        keep = edges.exists.clone()
        keep[tuple(place)] = False
        found = gated_logits(model, batch, gates, ablated, attention_gates=edges.gates(keep))
        needed[tuple(place)] = (found - full).abs().max() > 1e-3
    circuit = own.circuit()
    assert edges.names(needed) == circuit.attention_edges() == ["a3.h0[p1<-p3]", "a3.h0[p2<-p2]", "a3.h0[p3<-p1]"]
    true = [f"{edge}@p{place}" for place in (1, 2, 3) for edge in ("tok_embed->a3.h0.v", "a3.h0->logits")]
    if option is True:
        assert circuit.edges() == true
    else:
        assert circuit.num_edges == circuit.graph.num_edges


# -------------------------------------------------------------------- values
def test_open_gates_are_the_run_without_them() -> None:
    """Bit for bit, of the error; and of what it is trained from, the gradients of edges, to rounding."""
    plain, own = built(edge_pruning(False)), built(edge_pruning())
    assert own.recipe.attention is not None
    own.recipe.attention.gates.log_alpha.data.fill_(1e4)
    batch: Any = next(iter(pairs().train_dataloader()))
    found: list[tuple[Tensor, Tensor]] = []
    for each in (plain, own):
        losses = BatchLosses(each.masked, "kl", batch, each.runs(batch, "train"), (0, len(batch)))
        error, _ = each.recipe.expected_error(losses.flippable(), 3, 0)
        error.backward()
        recipe: Any = each.recipe
        found.append((error.detach(), recipe.edges.log_alpha.grad))
    assert torch.equal(found[0][0], found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)
    assert found[0][0] > 0.01


@pytest.mark.parametrize("option", [True, "alone"])
@pytest.mark.parametrize("more", [{}, {"penalty_on": "sample"}, {"antithetic": True}])
def test_gradients_are_those_of_attention_token_by_token(option: Any, more: dict[str, Any]) -> None:
    """The first step's, against a model that looks up keys and values for each query, in float64."""
    own = module(edge_pruning(option, **more), dtype="float64")
    slopes: dict[str, Tensor] = {}
    own.on_before_optimizer_step = lambda optimizer: slopes.update(  # pyright: ignore[reportAttributeAccessIssue]
        {name: each.grad.clone() for name, each in own.recipe.named_parameters() if each.grad is not None}
    )
    trained(own, 1)
    fresh, model = edge_pruning(option, **more), own.masked
    fresh.build(model.graph)
    batch: Any = next(iter(pairs().train_dataloader()))
    full = model.full(batch.clean, batch.attention_mask, batch.positions).log_softmax(-1)
    ablated, role_of = model.record(batch.corrupted, batch.attention_mask), roles_in(model.graph, batch)

    def error_of(gates: Tensor, attention_gates: Tensor) -> Tensor:
        logits = slow_logits(
            *(model, batch.clean, gates.double(), ablated, batch.attention_mask),
            role_of=role_of,
            attention_gates=attention_gates.double(),
        )
        found = logits.log_softmax(-1).gather(1, batch.positions[..., None].expand(-1, -1, logits.shape[-1]))
        divergence = (full.exp() * (full - found)).sum(-1).masked_fill(~batch.position_mask, 0)
        return (divergence.sum(1) / batch.position_mask.sum(1)).mean()

    error, gates = fresh.expected_error(error_of, 3, 0)
    (error + fresh.penalty(gates, 0.0)).backward()
    expected = {name: each.grad for name, each in fresh.named_parameters() if each.grad is not None}
    names = {"attention.gates.log_alpha"} | (set() if option == "alone" else {"edges.log_alpha"})
    assert slopes.keys() == expected.keys() == names
    for name, slope in expected.items():
        assert slope is not None
        torch.testing.assert_close(slopes[name], slope, atol=1e-6, rtol=1e-4)
        assert slope.abs().max() > 1e-4


def test_a_circuit_is_judged_as_the_model_is_called() -> None:
    own = module(edge_pruning("alone"))
    trained(own)
    circuit, data = own.circuit(0.5), pairs()
    assert circuit.attend is not None
    circuit = circuit.with_attention(circuit.graph.attention.exists & ~circuit.attend, {})  # what matters is closed
    data.setup()
    batches: Any = list(data.ordered_dataloader("validation"))
    gates = gates_of(circuit)
    assert isinstance(gates, BothGates)
    shown = Evaluator(own.masked, own.runs, batches, "validation", ("kl",))([gates, circuit.keep, gates])
    total = 0.0
    for batch in batches:
        full, ablated = own.runs(batch, "validation")
        logits = own.masked(
            *(batch.clean, circuit.gates(), ablated, batch.attention_mask, batch.positions),
            role_of=roles_in(own.masked.graph, batch),
            attention_gates=circuit.attention_gates(),
        )
        total += OBJECTIVES["kl"](full, logits).masked_fill(~batch.position_mask, 0).sum().item()
    first, plain, again = shown.figures()[:, 0].tolist()
    count = sum(int(batch.position_mask.sum()) for batch in batches)
    assert first == pytest.approx(total / count, rel=1e-5)
    assert first == again
    assert plain < 1e-9 < 1e-4 < first  # with all attention edges open nothing is closed
    opened = circuit.with_attention(circuit.graph.attention.exists, {})
    assert isinstance(gates_of(opened), Tensor)


def test_validation_and_test_judge_the_circuit_with_them() -> None:
    own, data = built(edge_pruning("alone")), pairs()
    assert own.recipe.attention is not None
    own.recipe.attention.gates.log_alpha.data[4:] = -1.0
    circuit, trainer = own.circuit(), quiet_trainer(1, limit_val_batches=1.0)
    for run, split, prefix in ((trainer.validate, "validation", "val"), (trainer.test, "test", "test")):
        (values,) = run(own, data, verbose=False)
        batches: Any = list(data.ordered_dataloader(split))
        figures = Evaluator(own.masked, own.runs, batches, split, ("kl",))([gates_of(circuit)]).figures()
        assert values[f"{prefix}/kl"] == pytest.approx(float(figures[0, 0]), rel=1e-4)
        assert figures[0, 0] > 1e-5
        assert values[f"{prefix}/attention_sparsity"] == pytest.approx(own.recipe.attention.sparsity)
        assert own.recipe.attention.sparsity > 0.5


# -------------------------------------------------------------------- circuits of a run
def test_circuits_are_cut_at_one_sparsity_or_at_their_own() -> None:
    for most in (None, 0.3):
        own = module(edge_pruning(attention_sparsity=most))
        trained(own)
        graph = own.masked.graph
        circuit = own.circuit(0.5)
        assert circuit.attend is not None
        assert circuit.attend_scores is not None
        assert circuit.num_edges == round(0.5 * graph.num_edges)
        assert (
            int(circuit.attend.sum())
            == num_at(graph.attention.num_edges, 0.5, most)
            == round((1 - (most or 0.5)) * graph.attention.num_edges)
        )
        kept, others = (
            circuit.attend_scores[circuit.attend],
            circuit.attend_scores[~circuit.attend & graph.attention.exists],
        )
        assert kept.min() >= others.max()
        final = own.circuit()
        assert final.attend is not None
        scores = graph.attention.to_vector(circuit.attend_scores)
        assert torch.equal(graph.attention.to_vector(final.attend), scores > 0)
        random = random_like(circuit, 1)
        assert random.attend is not None
        assert (random.num_edges, int(random.attend.sum())) == (circuit.num_edges, int(circuit.attend.sum()))
        assert not torch.equal(random.attend, circuit.attend)


@pytest.mark.parametrize("option", [True, "alone"])
def test_snapshots_are_written_and_read_with_them(option: Any, tmp_path: Path) -> None:
    own = module(edge_pruning(option))
    callback = SnapshotCircuits([0.5])
    logs: dict[str, Any] = {"logger": CSVLogger(tmp_path, "run", 0), "log_every_n_steps": 1}
    trained(own, callbacks=[callback], **logs, limit_val_batches=1, val_check_interval=1)
    folder = tmp_path / "run" / "version_0"
    (path,) = (folder / "circuits").glob("sparsity*.safetensors")
    circuit = Circuit.load(path)
    assert circuit.attend is not None
    assert circuit.attention_edges() == own.circuit(0.5).attention_edges()
    assert circuit.header["attention"]["num_edges"] == round(0.5 * circuit.graph.attention.num_edges)
    assert circuit.header["attention_edges"] == option
    assert circuit.num_edges == (circuit.graph.num_edges if option == "alone" else round(0.5 * circuit.graph.num_edges))
    assert "attention_edges,attention_sparsity" in (folder / "frontier.csv").read_text().splitlines()[0]
    header = (folder / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"val/attention_sparsity", "snapshot/attention_sparsity", "train/attention_sparsity"} <= set(header)


@pytest.mark.parametrize("option", [True, "alone"])
def test_a_resumed_run_is_the_unbroken_one(option: Any, tmp_path: Path) -> None:
    path, term = tmp_path / "saved.ckpt", {"sparsity_term": Pace(0.6)}
    whole = module(edge_pruning(option, **term))
    trained(whole, 4)
    first = module(edge_pruning(option, **term))
    trained(first, 4, limit_train_batches=2, max_epochs=1).save_checkpoint(path)
    second = module(edge_pruning(option, **term))
    quiet_trainer(4).fit(second, pairs(), ckpt_path=path)
    for found, expected in zip(second.recipe.state_dict().items(), whole.recipe.state_dict().items(), strict=True):
        assert found[0] == expected[0]
        assert torch.equal(found[1], expected[1])
    for sparsity in (None, 0.4):
        saved, circuit = Circuit.from_checkpoint(path, sparsity), first.circuit(sparsity)
        assert saved.edges() == circuit.edges()
        assert saved.attention_edges() == circuit.attention_edges() != []
        assert saved.num_edges == circuit.num_edges
    if option == "alone":
        with pytest.raises(EdgepruneError, match="num_edges=100 cannot be cut from a run of attention edges alone"):
            Circuit.from_checkpoint(path, num_edges=100)
    else:
        assert Circuit.from_checkpoint(path, num_edges=100).num_edges == 100


def test_a_checkpoint_without_them_is_refused(tmp_path: Path) -> None:
    trained(module(edge_pruning(False)), 1).save_checkpoint(tmp_path / "saved.ckpt")
    with pytest.raises(EdgepruneError, match=r"does not fit this recipe: missing .*attention\.gates"):
        quiet_trainer(2).fit(module(), pairs(), ckpt_path=tmp_path / "saved.ckpt")


@pytest.mark.parametrize(("first", "second"), [(True, "alone"), ("alone", True)])
def test_a_checkpoint_of_the_other_option_is_refused(first: Any, second: Any, tmp_path: Path) -> None:
    trained(module(edge_pruning(first)), 1).save_checkpoint(tmp_path / "saved.ckpt")
    with pytest.raises(EdgepruneError, match=f"attention_edges is {second}, .* with {first}: set it back"):
        quiet_trainer(2).fit(module(edge_pruning(second)), pairs(), ckpt_path=tmp_path / "saved.ckpt")


def test_edges_of_a_known_circuit_stay_and_the_others_are_closed(tmp_path: Path) -> None:
    path, plain = tmp_path / "found.safetensors", built(edge_pruning(False), roles=None)
    graph = plain.masked.graph
    known = Circuit.from_scores(
        graph, torch.rand(graph.shape, generator=torch.Generator().manual_seed(1)), sparsity=0.5
    )
    known.save(path)
    start = WarmStart(str(path), keep_below=known.num_edges / graph.num_edges)
    own = module(edge_pruning("alone", warm_start=start))
    trained(own)
    assert torch.equal(own.circuit(0.9).keep, known.keep.expand(own.masked.graph.shape))


def test_a_circuit_that_closes_some_starts_no_run(tmp_path: Path) -> None:
    own = module()
    trained(own, 1)
    path = own.circuit(0.5).save(tmp_path / "found.safetensors")
    with pytest.raises(EdgepruneError, match=r"found\.safetensors: .*\d+ attention edges, which a warm start does not"):
        trained(module(edge_pruning(warm_start=WarmStart(str(path)))), 1)
    with pytest.raises(EdgepruneError, match="attention edges, which a comparison with a reference does not take yet"):
        trained(module(), 1, callbacks=[SnapshotCircuits([]), CompareToReference(str(path))])


# -------------------------------------------------------------------- what it takes, and what is refused
def test_memory_is_that_of_their_gates_and_of_attention_by_role() -> None:
    model, shape = tiny("gpt2"), BatchShape(batch=2, seq=9)
    model.use_roles(RoleSpec(("a", "b", "c")))
    with_them = BatchShape(batch=2, seq=9, attention=True)
    plain, found = (training_terms(model, each, 0) for each in (shape, with_them))
    edges, more = model.graph.exists.numel(), model.graph.attention.exists.numel()
    for name in ("gates", "optimizer"):
        assert found[name] * edges == plain[name] * (edges + more)
    assert {name for name in plain if found[name] != plain[name]} == {"gates", "optimizer"}
    meta = meta_model(model.hf.config, torch.float64, kv_readers="group", split_embedding=False)
    meta.use_roles(model.graph.roles)
    without, exact = (activations_per_example(model, each, OBJECTIVES["kl"]) for each in (shape, with_them))
    estimate = activations_per_example(meta, with_them, OBJECTIVES["kl"])
    assert 1.5 * without < exact < estimate < 1.1 * exact


def test_runs_that_cannot_take_them_are_refused() -> None:
    with pytest.raises(EdgepruneError, match=r"set model\.roles, or leave attention_edges out"):
        module(roles=None)
    with pytest.raises(EdgepruneError, match=r"complement_weight 0\.5 is of edges alone"):
        module(complement_weight=0.5)
    for callback in (SignedScores(), Polish()):
        with pytest.raises(EdgepruneError, match="takes circuits without attention edges"):
            trained(module(), callbacks=[SnapshotCircuits([0.5]), callback])
