import random
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from datamodules.collate import collate
from datamodules.tasks.base import TokenPair
from datamodules.tasks.compiled import CompiledTask
from datamodules.tasks.tracr import TracrTask
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.compiled import minimal_circuits
from edgeprune.compiled.tracr_format import known_edges
from edgeprune.console import no_progress
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.methods.acdc import ACDC
from edgeprune.methods.acdc_order import receiver_order, sender_order
from edgeprune.methods.discovery import DiscoveryResult
from edgeprune.methods.problem import Problem
from edgeprune.models.family import registry
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from tests.files import GROUND_TRUTH
from tests.methods.sequential import sequential
from tests.models.reference import in_float64
from tests.models.test_conformance import build

VOCAB = 29
EVALUATIONS = ("plain", "reuse", "speculative")


def random_batches(sizes: tuple[int, ...] = (2, 1), seed: int = 0) -> list[PairBatch]:
    """Pairs of two lengths, one to three scored positions, with targets and distractors."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(sum(sizes)):
        length = rng.choice([4, 6])
        clean, corrupted = (tuple(rng.choices(range(VOCAB), k=length)) for _ in range(2))
        positions = tuple(sorted(rng.sample(range(1, length), rng.choice([1, 3]))))
        right, wrong = (tuple(rng.choices(range(VOCAB), k=len(positions))) for _ in range(2))
        pairs.append(TokenPair(clean, corrupted, positions, right, wrong))
    batches, start = [], 0
    for size in sizes:
        batches.append(collate(list(enumerate(pairs))[start : start + size]))
        start += size
    return batches


def small(family: str, index: int, **options: Any) -> MaskedModel:
    """A random model of a family, cut to two layers: every edge is tested many times over."""
    model = build(registry()[family], index, **options)
    model.hf.config.num_hidden_layers = min(2, model.graph.arch.num_layers)
    hf = AutoModelForCausalLM.from_config(model.hf.config)
    torch.manual_seed(index)
    for parameter in hf.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return MaskedModel(in_float64(hf).eval(), **options)


def random_problem(
    family: str, index: int, ablation: Any = "interchange", metric: Any = "kl", **options: Any
) -> Problem:
    model = small(family, index, **options)
    return Problem(model, random_batches(), ReferenceRuns(model, ablation, budget_gb=1.0), metric)


def compiled_problem(program: str, ablation: Any, num: int = 24) -> Problem:
    model = load_model(f"compiled:{program}", dtype="float64")
    pairs = [pair for split in CompiledTask(program=program).splits(None).values() for pair in split]
    chosen = random.Random(0).sample(pairs, min(num, len(pairs)))
    batch = collate(list(enumerate(chosen)))
    return Problem(model, [batch], ReferenceRuns(model, ablation, budget_gb=1.0), "squared_error")


def edges_of(found: DiscoveryResult, tau: float) -> set[str]:
    return set(found.circuits[f"tau-{tau!r}"].edges())


def check_equal(problem: Problem, tau: float, **settings: Any) -> None:
    """Every way to evaluate gives the kept edges, and the effect of each test, of the plain procedure."""
    expected, effects = sequential(problem, tau, **settings)
    graph = problem.model.graph
    assert 0 < len(expected) < graph.num_edges  # else the case says little
    matrix = torch.zeros(graph.shape)
    for edge, effect in effects.items():
        matrix[graph.index(edge)] = effect
    for evaluation in EVALUATIONS:
        found = ACDC((tau,), evaluation=evaluation, **settings).discover(problem, no_progress)
        assert edges_of(found, tau) == expected
        assert found.scores is not None
        torch.testing.assert_close(found.scores, matrix, atol=1e-5, rtol=1e-5)  # logits are compared in float32
        assert found.about[f"tau-{tau!r}"]["tested"] == len(effects)


# -------------------------------------------------------------------- order
def test_order_is_that_of_the_published_code() -> None:
    graph = EdgeGraph(ArchSpec(num_layers=2, num_heads=2, num_kv_heads=1, split_embedding=True))
    order = [graph.readers[reader] for reader in receiver_order(graph)]
    assert order[:6] == ["logits", "m1", "a1.h0.v", "a1.h0.k", "a1.h1.q", "a1.h0.q"]
    assert order[6] == "m0"
    reader = graph.readers.index("m1")

    def names(*orders: Any) -> str:
        return " ".join(graph.writers[writer] for writer in sender_order(graph, reader, *orders, seed=3))

    assert names("normal", "normal") == "a1.h1 a1.h0 m0 a0.h1 a0.h0 tok_embed pos_embed"
    assert names("normal", "reverse") == "a1.h0 a1.h1 m0 a0.h0 a0.h1 tok_embed pos_embed"
    assert names("reverse", "normal") == "pos_embed tok_embed a0.h1 a0.h0 m0 a1.h1 a1.h0"
    assert names("random", "random") == names("random", "random")
    assert sorted(names("random", "random").split()) == sorted(names("normal", "normal").split())
    assert len({" ".join(map(str, sender_order(graph, reader, "random", "random", seed))) for seed in range(9)}) > 1


def test_writers_behind_readers() -> None:
    graph = EdgeGraph(ArchSpec(num_layers=2, num_heads=4, num_kv_heads=2))
    behind = {
        name: [graph.writers[writer] for writer in graph.behind(row)] for row, name in enumerate(graph.readers[:-1])
    }
    assert behind["a1.h3.q"] == ["a1.h3"]
    assert behind["a1.h1.k"] == behind["a1.h1.v"] == ["a1.h2", "a1.h3"]
    assert behind["m0"] == ["m0"]


# -------------------------------------------------------------------- against the plain procedure
CASES = [
    ("gpt2", 0, "interchange", "kl", {}, 0.003, {}),
    ("gpt2", 0, "zero", "logit_difference", {"split_embedding": True}, 0.02, {"names": "reverse"}),
    ("gpt2", 1, "interchange", "squared_error", {"kv_readers": "head"}, 1.0, {"indices": "reverse"}),
    ("gpt2", 0, "interchange", "kl", {}, 0.02, {"direct_edges": True}),
    ("llama", 1, "zero", "kl", {}, 0.03, {"direct_edges": True, "absolute": True}),
    ("llama", 1, "interchange", "kl", {}, 0.01, {"absolute": True}),
    ("llama", 1, "zero", "squared_error", {"kv_readers": "head"}, 2.0, {"names": "random", "indices": "random"}),
    ("llama", 3, "interchange", "logit_difference", {}, 0.0, {}),
    ("llama", 2, "zero", "kl", {}, 0.03, {"absolute": True, "names": "random"}),
    ("gpt_neox", 0, "interchange", "kl", {}, 0.01, {}),
    ("gpt_neox", 0, "zero", "logit_difference", {}, 0.02, {"direct_edges": True, "names": "reverse"}),
    ("edgeprune_compiled", 1, "interchange", "kl", {"split_embedding": True}, 0.001, {}),
    ("edgeprune_compiled", 2, "zero", "squared_error", {}, 0.05, {"indices": "random", "seed": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("family", "index", "ablation", "metric", "options", "tau", "settings"), CASES)
def test_equals_the_plain_procedure_on_random_models(
    family: str, index: int, ablation: str, metric: str, options: Any, tau: float, settings: Any
) -> None:
    problem = random_problem(family, index, ablation, metric, **options)
    check_equal(problem, tau, **settings)


@pytest.mark.parametrize(
    ("program", "ablation"), [("sort", "zero"), ("hist", "interchange"), ("reverse", "interchange")]
)
@pytest.mark.parametrize("absolute", [False, True])
def test_equals_the_plain_procedure_on_programs(program: str, ablation: str, absolute: bool) -> None:
    """Many effects are exactly zero there, and tau is zero in effect."""
    check_equal(compiled_problem(program, ablation, 8), 1e-9, absolute=absolute)


# -------------------------------------------------------------------- known circuits
@pytest.mark.parametrize("ablation", ["zero", "interchange"])
@pytest.mark.parametrize("name", ["reverse", "xproportion"])
def test_published_circuits_are_recovered(name: str, ablation: Any) -> None:
    folder = GROUND_TRUTH / name
    pairs = TracrTask(str(folder), pairs="none" if ablation == "zero" else ablation, held_out=False).splits(None)
    batch = collate(list(enumerate(random.Random(0).sample(pairs["train"], 64))))
    model = load_model(folder, dtype="float64")
    problem = Problem(model, [batch], ReferenceRuns(model, ablation, budget_gb=1.0), "squared_error")
    found = ACDC((1e-3,)).discover(problem, no_progress)
    assert edges_of(found, 1e-3) == set(known_edges(folder, ablation))


@pytest.mark.parametrize("ablation", ["zero", "interchange"])
@pytest.mark.parametrize("program", ["reverse", "xproportion", "hist", "sort", "or_gate", "and_gate"])
def test_circuits_of_programs_are_minimal_ones(program: str, ablation: Any) -> None:
    found = ACDC((1e-3,)).discover(compiled_problem(program, ablation, 150), no_progress)
    assert edges_of(found, 1e-3) in [set(edges) for edges in minimal_circuits(program, ablation)]


@pytest.mark.parametrize(("indices", "kept"), [("normal", "h0"), ("reverse", "h1")])
def test_or_gate_drops_the_first_head_tested_and_keeps_the_other(indices: Any, kept: str) -> None:
    found = ACDC((1e-3,), indices=indices).discover(compiled_problem("or_gate", "zero"), no_progress)
    assert edges_of(found, 1e-3) == {f"tok_embed->a0.{kept}.v", f"a0.{kept}->m0", "m0->logits"}


# -------------------------------------------------------------------- the rule
def test_infinite_taus_remove_all_or_nothing() -> None:
    problem = random_problem("gpt2", 0)
    inf = float("inf")
    found = ACDC((inf, -inf)).discover(problem, no_progress)
    assert found.circuits["tau-inf"].num_edges == 0
    assert found.circuits["tau--inf"].num_edges == problem.model.graph.num_edges
    assert ACDC((inf,), absolute=True).discover(problem, no_progress).circuits["tau-inf"].num_edges == 0


@pytest.mark.parametrize("absolute", [False, True])
def test_each_kept_edge_changed_the_loss_by_tau_when_it_was_tested(absolute: bool) -> None:
    found = ACDC((0.01,), absolute=absolute).discover(random_problem("llama", 1), no_progress)
    circuit = found.circuits["tau-0.01"]
    assert circuit.scores is not None
    sizes = circuit.scores.abs() if absolute else circuit.scores
    assert (sizes[circuit.keep] >= 0.01).all()
    assert (sizes[~circuit.keep] < 0.01).all()
    assert 0 < circuit.num_edges < circuit.graph.num_edges


def test_edges_into_readers_that_nothing_hears_go_without_a_test() -> None:
    problem = random_problem("gpt2", 0)
    found = ACDC((0.05,)).discover(problem, no_progress)
    about = found.about["tau-0.05"]
    assert about["free"] > 0
    assert about["tested"] + about["free"] == problem.model.graph.num_edges
    assert about["removed"] + about["free"] + about["kept"] == problem.model.graph.num_edges
    assert about["free_changes_are_small"]
    assert about["largest_free_change"] < 1e-6  # logits are compared in float32
    circuit = found.circuits["tau-0.05"]
    assert circuit.num_dangling == 0 or not circuit.graph.dangling(circuit.keep)[-1].any()
    assert about["loss"] == pytest.approx(problem.mean_loss(circuit.gates(torch.float64)), abs=1e-6)


def test_several_taus_each_start_from_the_full_model() -> None:
    problem = random_problem("edgeprune_compiled", 1)
    taus = (0.001, 0.05, 0.01)
    together = ACDC(taus).discover(problem, no_progress)
    for tau in taus:
        assert edges_of(ACDC((tau,)).discover(problem, no_progress), tau) == edges_of(together, tau)
    assert together.scores is not None
    for name, circuit in together.circuits.items():
        removed = ~circuit.keep & circuit.graph.exists
        assert (together.scores[removed] <= float(name.removeprefix("tau-")) + 1e-9).all()
    kept = together.circuits["tau-0.05"].keep & together.circuits["tau-0.01"].keep & together.circuits["tau-0.001"].keep
    assert kept.any()
    assert (together.scores[kept] >= 0.05).all()
    assert together.about["scores"] == "smallest tau"


def test_examples_count_alike_however_they_are_cut_into_batches() -> None:
    model = small("gpt2", 0)
    results = []
    for sizes in ((3,), (2, 1), (1, 1, 1)):
        problem = Problem(model, random_batches(sizes), ReferenceRuns(model, "interchange"), "kl")
        results.append(ACDC((0.01,)).discover(problem, no_progress))
    assert len({frozenset(edges_of(found, 0.01)) for found in results}) == 1
    assert edges_of(results[0], 0.01) != edges_of(
        ACDC((0.01,)).discover(Problem(model, random_batches((2,)), ReferenceRuns(model, "interchange")), no_progress),
        0.01,
    )


# -------------------------------------------------------------------- going on
class Killed(Exception):
    """Stands for the end of the process."""


def killer(after: int) -> Any:
    calls = iter(range(after))

    def report(what: str, done: int, total: int) -> None:
        if next(calls, None) is None:
            raise Killed

    return report


@pytest.mark.parametrize(("after", "direct_edges"), [(0, False), (7, False), (45, False), (3, True)])
def test_a_killed_run_goes_on_to_the_same_result(
    after: int, direct_edges: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgeprune.methods.acdc.time", SimpleNamespace(monotonic=count().__next__))  # 1 s each time
    problem, method = random_problem("gpt2", 0), ACDC((0.02, 0.005), direct_edges=direct_edges)
    whole = method.discover(problem, no_progress)
    with pytest.raises(Killed):
        method.discover(problem, killer(after), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["acdc.safetensors"]
    reports: list[tuple[str, int]] = []
    rest = method.discover(problem, lambda what, done, total: reports.append((what, done)), tmp_path)
    number, at = divmod(after, len(problem.model.graph.readers))
    assert reports[0] == (f"tau {(0.02, 0.005)[number]}", at + 1)  # where it goes on
    assert len(reports[1:]) == 2 * len(problem.model.graph.readers) - after - 1
    assert rest.seconds == whole.seconds == 2 * len(problem.model.graph.readers)
    assert whole.scores is not None
    assert rest.scores is not None
    assert torch.equal(rest.scores, whole.scores)
    assert rest.about == whole.about
    for name, circuit in whole.circuits.items():
        assert torch.equal(rest.circuits[name].keep, circuit.keep)
        assert circuit.scores is not None
        assert torch.equal(rest.circuits[name].scores, circuit.scores)  # pyright: ignore


def test_another_run_is_refused_in_one_line(tmp_path: Path) -> None:
    problem = random_problem("edgeprune_compiled", 1)
    ACDC((0.02,)).discover(problem, no_progress, tmp_path)
    ACDC((0.02,), memory_gb=1.0).discover(problem, no_progress, tmp_path)  # nothing is left to do, nothing to refuse
    others = {
        "taus": (problem, ACDC((0.03,))),
        "absolute": (problem, ACDC((0.02,), absolute=True)),
        "metric": (Problem(problem.model, problem.batches, problem.runs, "squared_error"), ACDC((0.02,))),
        "data": (Problem(problem.model, random_batches(seed=1), problem.runs), ACDC((0.02,))),
        "ablation": (Problem(problem.model, problem.batches, ReferenceRuns(problem.model, "zero")), ACDC((0.02,))),
    }
    for name, (other, method) in others.items():
        with pytest.raises(EdgepruneError, match=f"another {name}") as error:
            method.discover(other, no_progress, tmp_path)
        assert "\n" not in str(error.value)
    next(problem.model.hf.parameters()).data[0, 0] += 1
    with pytest.raises(EdgepruneError, match="another model"):
        ACDC((0.02,)).discover(problem, no_progress, tmp_path)


def test_a_damaged_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "acdc.safetensors").write_bytes(b"no state")
    with pytest.raises(EdgepruneError, match="remove it to begin anew"):
        ACDC().discover(random_problem("edgeprune_compiled", 1), no_progress, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"taus": ()}, "taus must be one or more"),
        ({"taus": (0.1, 0.1)}, "taus must be one or more"),
        ({"taus": (float("nan"),)}, "taus must be one or more"),
        ({"names": "sideways"}, "names must be one of normal, reverse, random"),
        ({"evaluation": "quick"}, "evaluation must be one of plain"),
        ({"max_ahead": 0}, "max_ahead must be at least 1"),
        ({"waste": -0.1}, "waste must be at least 0"),
        ({"memory_gb": 0.0}, "memory_gb must be above 0"),
    ],
)
def test_wrong_settings_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        ACDC(**settings)


def test_describe_rebuilds_the_method() -> None:
    method = ACDC((0.1, 0.2), absolute=True, names="random", seed=5)
    values = method.describe()
    assert values.pop("method") == "acdc"
    assert ACDC(**values) == method
