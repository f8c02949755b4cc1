"""Polishing: known best circuits, what never gets worse, interruptions."""

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.evaluation.brute_force import brute_force
from edgeprune.methods.polish import Polisher, Polishing, polished
from edgeprune.methods.polish_state import FILE, State
from edgeprune.methods.problem import Problem
from edgeprune.objectives.losses import squared_error
from tests.evaluation.test_brute_force import ablated_states, compiled, pairs_of
from tests.methods.small_problems import problem, random_pairs, tiny


def program(name: str, ablation: str, number: int = 12) -> Problem:
    """Pairs of a compiled program in one batch, in double precision."""
    model = compiled(name)
    return Problem(model, [pairs_of(name, number)], ReferenceRuns(model, ablation, 1.0), "squared_error")


def polish(question: Problem, keep: Tensor, held_out: Problem | None = None, **settings: Any) -> State:
    return Polisher(question, keep, Polishing(**settings), held_out).run()


def tiny_problem(metric: Any = "kl", **options: Any) -> Problem:
    return problem(tiny(), metric=metric, **options)


def start(question: Problem, num_edges: int = 40, seed: int = 1) -> Tensor:
    return Circuit.random(question.model.graph, num_edges, seed).keep


# -------------------------------------------------------------------- what is found
@pytest.mark.parametrize("ablation", ["zero", "interchange"])
def test_the_best_circuit_of_every_size_is_found(ablation: str) -> None:
    """From random circuits, in a model whose loss is flat in most single gates."""
    question = program("hist", ablation)
    model, (batch,) = question.model, question.batches
    exhaustive = brute_force(
        model, batch, ablated_states(model, batch, ablation), squared_error, reduce="mean", progress=False
    )
    for point in exhaustive.front()[1:-1]:
        keep = start(question, point.num_edges, seed=point.num_edges)
        found = polish(question, keep, max_passes=400)
        assert int(found.keep.sum()) == point.num_edges
        assert found.loss == pytest.approx(point.error, rel=1e-5, abs=1e-6)
        assert found.loss <= found.start


def test_a_wrong_edge_is_swapped_for_the_one_that_is_missing() -> None:
    question = program("hist", "zero")
    graph = question.model.graph
    (batch,) = question.batches
    front = brute_force(
        question.model,
        batch,
        ablated_states(question.model, batch, "zero"),
        squared_error,
        reduce="mean",
        progress=False,
    ).front()
    best = next(point for point in front if point.error < 1e-9)
    assert best.num_circuits == 1
    wrong = next(edge for edge in Circuit(graph, graph.exists).edges() if edge not in best.circuits[0])
    for missing in best.circuits[0]:
        keep = graph.keep_matrix([*(edge for edge in best.circuits[0] if edge != missing), wrong])
        found = polish(question, keep)
        assert set(Circuit(graph, found.keep).edges()) == set(best.circuits[0])


@pytest.mark.parametrize("metric", ["kl", "squared_error", "logit_difference"])
@pytest.mark.parametrize("ablation", ["interchange", "zero"])
def test_the_loss_falls_and_the_number_of_edges_stays(metric: Any, ablation: str) -> None:
    question = tiny_problem(metric, ablation=ablation)
    keep = start(question)
    found = polish(question, keep, max_passes=30, overshoot=4)
    assert int(found.keep.sum()) == int(keep.sum())
    assert not (found.keep & ~question.model.graph.exists).any()
    before, after = question.mean_loss(keep.double()), question.mean_loss(found.keep.double())
    assert found.start == pytest.approx(before, rel=1e-5)
    assert found.loss == pytest.approx(after, rel=1e-5)
    assert after < before - 0.05 * abs(before)


def test_polishing_ends_where_no_swap_helps() -> None:
    """Of all single swaps, too."""
    question = program("hist", "interchange")
    found = polish(question, start(question, 3, seed=2), max_passes=400)
    assert found.stopped == "no swap helps"
    closed = (question.model.graph.exists & ~found.keep).nonzero().tolist()
    for reader, writer in closed:
        for other in found.keep.nonzero().tolist():
            keep = found.keep.clone()
            keep[reader, writer], keep[tuple(other)] = True, False
            loss = question.mean_loss(keep)
            assert loss >= found.loss - 1e-6 * max(1.0, found.loss)


def test_passes_are_counted_and_bounded() -> None:
    question = tiny_problem()
    few, more = (polish(question, start(question), max_passes=most) for most in (5, 20))
    assert few.stopped == "passes are spent"
    assert few.loss >= more.loss
    assert 5 <= few.passes < 5 + 8
    looks = few.looks * (1 + 2 * 2 / 3)
    assert few.passes == pytest.approx(looks + few.evaluated / 3)


# -------------------------------------------------------------------- held-out pairs
def test_a_swap_stays_only_if_it_helps_on_held_out_pairs_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    question = problem(model, random_pairs(12), metric="kl")
    other = dataclasses.replace(problem(model, random_pairs(12, seed=9), metric="kl"), split="validation")
    other = dataclasses.replace(other, runs=ReferenceRuns(model, "interchange"))
    alone = polish(question, start(question), max_passes=60)
    seen: list[tuple[float, float | None]] = []
    polisher = Polisher(question, start(question), Polishing(max_passes=60), other)
    monkeypatch.setattr(polisher, "_save", lambda: seen.append((polisher.state.loss, polisher.state.held_out)))
    found = polisher.run()
    assert found.accepted > 1
    assert other.mean_loss(found.keep) == pytest.approx(found.held_out)
    assert question.mean_loss(found.keep) == pytest.approx(found.loss)
    for losses in zip(*seen, strict=True):
        assert list(losses) == sorted(losses, reverse=True)  # neither ever rises
    assert other.mean_loss(alone.keep) > found.held_out  # swaps that fit the training pairs alone
    assert alone.loss < found.loss


def test_of_a_line_of_swaps_the_length_that_is_best_on_held_out_pairs_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    question = tiny_problem()
    polisher = Polisher(question, start(question), Polishing(step=4), question)
    polisher.state.loss = polisher.state.held_out = 1.0
    rising = {4: (0.1, 0.9), 2: (0.2, 0.5), 1: (0.3, 0.7)}  # by length: loss on training pairs, and held out

    def swaps_of(circuit: Tensor) -> int:
        return int((circuit & ~polisher.start).sum())

    monkeypatch.setattr(polisher, "_losses", lambda circuits: [rising[swaps_of(each)][0] for each in circuits])
    monkeypatch.setattr(polisher, "_held_out_loss", lambda _, circuit: rising[swaps_of(circuit)][1])
    polisher._round()
    assert swaps_of(polisher.state.keep) == 2
    assert (polisher.state.loss, polisher.state.held_out, polisher.state.step) == (0.2, 0.5, 4)


def test_a_swap_that_does_not_help_is_left_out_of_the_line(monkeypatch: pytest.MonkeyPatch) -> None:
    question = tiny_problem()
    polisher = Polisher(question, start(question), Polishing(step=1, overshoot=0))
    polisher.state.loss = 1.0
    first, second = polisher._look().swaps(2)

    def loss(circuit: Tensor) -> float:
        keep = question.model.graph.to_vector(circuit)
        return 2.0 if keep[first.opened] else 0.5 if keep[second.opened] else 3.0

    monkeypatch.setattr(polisher, "_losses", lambda circuits: list(map(loss, circuits)))
    polisher._round()
    assert (polisher.state.accepted, polisher.state.skipped, polisher.state.stopped) == (0, 1, "")
    polisher._round()
    assert (polisher.state.accepted, polisher.state.skipped, polisher.state.loss) == (1, 0, 0.5)


# -------------------------------------------------------------------- parts
def test_each_swap_that_stays_is_followed_by_the_next_part(monkeypatch: pytest.MonkeyPatch) -> None:
    question = problem(tiny(), random_pairs(12), metric="kl", cuts=range(2, 12, 2))
    parts = question.cut(3)
    assert [part.num_examples for part in parts] == [4, 4, 4]
    polisher = Polisher(question, start(question), Polishing(max_passes=60, parts=3))
    seen: list[tuple[int, Tensor, float]] = []

    def note() -> None:
        seen.append((polisher.state.accepted, polisher.state.keep, polisher.state.loss))

    monkeypatch.setattr(polisher, "_save", note)
    found = polisher.run()
    assert len({accepted for accepted, _, _ in seen}) > 3
    for accepted, keep, loss in seen:
        assert loss == pytest.approx(parts[accepted % 3].mean_loss(keep))
    assert found.start == pytest.approx(question.mean_loss(polisher.start))
    assert found.loss == pytest.approx(question.mean_loss(found.keep))
    assert found.loss < found.start


def test_passes_are_over_the_pairs_of_a_part() -> None:
    question = problem(tiny(), random_pairs(12), metric="kl", cuts=range(2, 12, 2))
    found = polish(question, start(question), max_passes=20, parts=3)
    looks = found.looks * (1 + 2 * 2 / 3)
    assert found.passes == pytest.approx(looks + found.evaluated / 3 + 2 * 3 / 3)  # all pairs, before and after


def test_fewer_batches_than_parts_are_refused() -> None:
    question = tiny_problem()
    count = len(question.batches)
    with pytest.raises(
        EdgepruneError, match=f"the pairs are in {count} batch.*, which cannot be cut into {count + 1} parts"
    ):
        Polisher(question, start(question), Polishing(parts=count + 1))


# -------------------------------------------------------------------- interruptions
class Killed(Exception):
    """What ends a run."""


@pytest.mark.parametrize("parts", [1, 3])
def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path: Path, parts: int) -> None:
    question = tiny_problem()
    keep, settings = start(question), Polishing(max_passes=25, overshoot=4, parts=parts)
    whole = Polisher(question, keep, settings).run()
    left = 0

    def report(what: str, done: int, total: int) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Killed

    kills = 0
    found = None
    while found is None:
        left = 4 + 2 * kills  # further every time, or a round that takes longer would never be done
        try:
            found = Polisher(question, keep, settings, folder=tmp_path).run(report)
        except Killed:
            kills += 1
    assert kills > 1
    for name in (item.name for item in dataclasses.fields(State) if item.name != "seconds"):
        one, other = getattr(found, name), getattr(whole, name)
        assert torch.equal(one, other) if isinstance(one, Tensor) else one == other, name


def test_the_state_of_another_run_is_refused(tmp_path: Path) -> None:
    question = tiny_problem()
    Polisher(question, start(question), Polishing(max_passes=4), folder=tmp_path).run()
    for other, settings, what in (
        (start(question, seed=2), Polishing(max_passes=4), "circuit"),
        (start(question), Polishing(max_passes=4, probes=1), "probes"),
    ):
        with pytest.raises(EdgepruneError, match=rf"polish\.safetensors was made with another {what}"):
            Polisher(question, other, settings, folder=tmp_path)
    (tmp_path / FILE).write_bytes(b"no file")
    with pytest.raises(EdgepruneError, match="is not a whole state of polishing"):
        Polisher(question, start(question), Polishing(max_passes=4), folder=tmp_path)


def test_runs_with_one_seed_agree_and_seeds_differ() -> None:
    question = tiny_problem()
    one, same, other = (polish(question, start(question), max_passes=12, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.keep, same.keep)
    assert one.loss == same.loss
    assert not torch.equal(one.keep, other.keep)


# -------------------------------------------------------------------- results and mistakes
def test_the_header_says_where_a_polished_circuit_comes_from(tmp_path: Path) -> None:
    question = tiny_problem()
    graph = question.model.graph
    header = {"method": "eap", "metrics": {"kl": 9.0}, "model": "tiny"}
    Circuit.from_scores(graph, torch.rand(graph.shape), num_edges=40, header=header).save(
        tmp_path / "start.safetensors"
    )
    first = Circuit.load(tmp_path / "start.safetensors")
    polisher = Polisher(question, first.keep, Polishing(max_passes=10))
    polisher.run()
    polished(first, polisher).save(tmp_path / "polished.safetensors")
    made = Circuit.load(tmp_path / "polished.safetensors")
    (how,) = made.header["derived"]
    about = how["polished"]
    assert about["from_sha256"] == first.header["sha256"]
    assert about["swaps"] == int((made.keep & ~first.keep).sum()) > 0
    assert about["start"] > about["loss"] == pytest.approx(question.mean_loss(made.keep.double()), rel=1e-5)
    assert made.header["model"] == "tiny"
    assert "metrics" not in made.header
    assert made.scores is None


def test_circuits_without_a_swap_are_refused() -> None:
    question = tiny_problem()
    graph = question.model.graph
    for keep in (torch.zeros(graph.shape, dtype=torch.bool), graph.exists):
        with pytest.raises(EdgepruneError, match=r"edges has nothing to swap; polish one with some edges open"):
            Polisher(question, keep)


@pytest.mark.parametrize(
    "settings",
    [
        {"probes": -1},
        {"step": 0},
        {"overshoot": -1},
        {"parts": 0},
        {"max_passes": 0.0},
        {"memory_gb": math.nan},
        {"max_passes": math.inf},
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(EdgepruneError, match=f"{name} must be"):
        Polishing(**settings)
