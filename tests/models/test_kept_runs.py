"""What a training step sees of kept runs does not depend on what was run, or kept, before it: bit for bit."""

import os
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from datamodules.collate import collate
from datamodules.sampler import PairBatchSampler
from datamodules.tasks.base import TokenPair
from edgeprune.ablations.fixed_batches import FixedBatches, KeepingPlan
from edgeprune.ablations.reference_cache import Place
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from edgeprune.models.family import registry
from edgeprune.models.masked import MaskedModel
from edgeprune.models.states import WriterStates
from tests.ablations.cases import batch_of, fields
from tests.methods.small_problems import random_pairs
from tests.models.test_conformance import build
from tests.models.test_unequal_lengths import unequal_pair

EPOCHS, BATCH = 3, 4
PAIRS = {"train": random_pairs(13), "validation": random_pairs(5, seed=1)}
SHARE = 0.55  # of the training pairs' room: some batches are kept, some not, most are mixed


@pytest.fixture(scope="module")
def model() -> MaskedModel:
    """In single precision, whose sums depend on the shape of the batch."""
    return MaskedModel(build(registry()["llama"], 1).hf.float())


@pytest.fixture(scope="module")
def sensitive() -> MaskedModel:
    """A model whose values depend on the whole batch with its padding, as rounding does, only far more."""
    model: Any = MaskedModel(build(registry()["llama"], 1).hf.float())
    full, record = model.full, model.record

    def factor(ids: Tensor) -> Tensor:
        places = torch.arange(1, ids.numel() + 1, dtype=torch.float32).view(ids.shape)
        return 1 + 0.1 * (places * (ids + 1)).sum().sin()

    model.full = lambda ids, *rest: full(ids, *rest) * factor(ids)
    model.record = lambda ids, mask: _scaled(record(ids, mask), factor(ids))
    return model


def _scaled(states: WriterStates, factor: Tensor) -> WriterStates:
    assert states.mlps is not None
    return WriterStates(embeddings=states.embeddings, heads=states.heads * factor, mlps=states.mlps * factor)


def sampler(split: str, epoch: int = 0) -> PairBatchSampler:
    seed = 0 if split == "train" else None
    return PairBatchSampler(len(PAIRS[split]), BATCH, seed=seed, position=lambda: (epoch, 0))


def fixed(split: str, pairs: Sequence[TokenPair] | None = None) -> FixedBatches:
    chosen = PAIRS[split] if pairs is None else pairs

    def lengths(number: int) -> tuple[int, int]:
        return len(chosen[number].clean), len(chosen[number].positions)

    return FixedBatches(sampler(split).fixed_batches(), partial(batch_of, chosen), lengths)


def room(model: MaskedModel, ablation: str = "interchange", **options: Any) -> float:
    """GB that all training pairs take."""
    runs = ReferenceRuns(model, ablation, 1.0, **options)
    runs.plan({"train": fixed("train")})
    return planned(runs) / 1e9


def planned(runs: ReferenceRuns, place: Place = "memory") -> int:
    """Bytes that the kept examples of all splits take at most."""
    return sum(plan.taken[place] for plan in runs._plans.values())


def places(model: MaskedModel, ablation: str, folder: Path) -> dict[str, dict[str, Any]]:
    """Options of runs that keep everything, something or nothing."""
    part = SHARE * room(model, ablation)
    disk: dict[str, Any] = {"disk_folder": folder}
    return {
        "memory": {"budget_gb": 1.0},
        "disk": {"disk_gb": 1.0, **disk},
        "nothing": {},
        "some in memory": {"budget_gb": part},
        "some on disk": {"disk_gb": part, **disk},
        "memory, then disk": {"budget_gb": part, "disk_gb": 1.0, **disk},
        "rounded": {"budget_gb": part / 2, "disk_gb": part / 4, "cache_dtype": "bfloat16", **disk},
    }


PLACES = ["memory", "disk", "nothing", "some in memory", "some on disk", "memory, then disk", "rounded"]


def steps(runs: ReferenceRuns, first: int, validate: bool) -> Iterator[tuple[list[int], list[Tensor]]]:
    """Numbers and values of every batch from step `first` on, with validations in between if asked for."""
    batches = [numbers for epoch in range(EPOCHS) for numbers in sampler("train", epoch)]
    for numbers in batches[first:]:
        if validate:
            for evaluated in sampler("validation"):
                runs(batch_of(PAIRS["validation"], evaluated), "validation")
        full, states = runs(batch_of(PAIRS["train"], numbers), "train")
        yield numbers, [full, *fields(states)]


def new_runs(model: MaskedModel, ablation: str, options: Mapping[str, Any]) -> ReferenceRuns:
    runs = ReferenceRuns(model, ablation, **options)
    for split in PAIRS:
        runs.prepare([batch_of(PAIRS[split])], split)
    runs.plan({split: fixed(split) for split in PAIRS})
    return runs


@pytest.mark.parametrize("ablation", ["interchange", "resample", "zero", "mean:positional"])
@pytest.mark.parametrize("place", PLACES)
def test_a_resumed_run_sees_the_same_values(sensitive: MaskedModel, ablation: str, place: str, tmp_path: Path) -> None:
    options = places(sensitive, ablation, tmp_path)[place]
    whole = list(steps(new_runs(sensitive, ablation, options), 0, validate=False))
    for first in (1, 4, 6):
        resumed = list(steps(new_runs(sensitive, ablation, options), first, validate=first == 4))
        for (numbers, values), (expected_numbers, expected) in zip(resumed, whole[first:], strict=True):
            assert numbers == expected_numbers
            for value, wanted in zip(values, expected, strict=True):
                assert torch.equal(value, wanted)


@pytest.mark.parametrize("place", PLACES)
def test_values_are_those_of_runs_that_keep_nothing(model: MaskedModel, place: str, tmp_path: Path) -> None:
    options = places(model, "interchange", tmp_path)[place]
    rounds = "cache_dtype" in options
    tolerance = {"atol": 0.02, "rtol": 0.02} if rounds else {"atol": 1e-5, "rtol": 1e-5}  # bfloat16: 8 bits; float32
    kept = list(steps(new_runs(model, "interchange", options), 0, validate=True))
    fresh = ReferenceRuns(model, "interchange")
    changed = False
    for numbers, (full, embeddings, *states) in kept:
        batch = batch_of(PAIRS["train"], numbers)
        expected_full, expected = fresh(batch, "train")
        torch.testing.assert_close(full, expected_full, atol=1e-5, rtol=1e-5)
        assert torch.equal(embeddings, expected.embeddings)  # looked up, never rounded
        real = batch.attention_mask.bool()
        for value, wanted in zip(states, fields(expected)[1:], strict=True):
            torch.testing.assert_close(value[:, real], wanted[:, real], **tolerance)
            changed |= not torch.equal(value[:, real], wanted[:, real])
    assert not rounds or changed


def test_without_a_plan_values_depend_on_where_a_run_begins(sensitive: MaskedModel) -> None:
    runs = (ReferenceRuns(sensitive, "interchange", 1.0) for _ in range(2))
    first, second = (list(steps(own, start, validate=False)) for own, start in zip(runs, (0, 4), strict=True))
    pairs = list(zip(first[4:], second, strict=True))
    assert not all(torch.equal(a, b) for (_, old), (_, new) in pairs for a, b in zip(old, new, strict=True))


@pytest.mark.parametrize("name", sorted({family.model_types[0] for family in registry().values() if family.tiny()}))
@pytest.mark.parametrize("ablation", ["interchange", "resample"])
def test_kept_values_of_the_fixed_batch_are_fresh_ones(name: str, ablation: str) -> None:
    """Bit for bit, embeddings too, in every family and with corrupted prompts of other lengths."""
    for pairs in (random_pairs(6), [unequal_pair(number) for number in range(4)]):
        tiny, batch = build(registry()[name], 0), batch_of(pairs)
        kept, fresh = ReferenceRuns(tiny, ablation, 1.0), ReferenceRuns(tiny, ablation)
        for runs in (kept, fresh):
            runs.prepare([batch])
        real = batch.attention_mask.bool()
        for _ in range(2):
            found, expected = kept(batch, "train"), fresh(batch, "train")
            assert len(kept.store) == len(pairs)
            assert torch.equal(found[0], expected[0])
            for value, wanted in zip(fields(found[1]), fields(expected[1]), strict=True):
                assert torch.equal(value[:, real], wanted[:, real])


@pytest.mark.parametrize("ablation", ["interchange", "zero"])
@pytest.mark.parametrize("name", sorted({family.model_types[0] for family in registry().values() if family.tiny()}))
def test_the_room_of_an_example_is_known_before_it_is_run(name: str, ablation: str) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        runs = ReferenceRuns(MaskedModel(build(registry()[name], 0).hf.to(dtype)), ablation, 1.0)
        for number in range(3):
            before = runs.store.free["memory"]
            runs(batch_of(PAIRS["train"], [number]), "train")
            pair = PAIRS["train"][number]
            most = runs.bytes_of(len(pair.clean), len(pair.positions))
            assert 0 <= most - (before - runs.store.free["memory"]) <= 3 * 64


def test_the_splits_share_the_room(model: MaskedModel) -> None:
    """Validation takes a quarter at most, fixed batches are kept whole, and nobody passes the bound."""
    for share in (0.0, 0.1, 0.3, 0.6, 1.0):
        budget = 1.4 * share * room(model)
        runs = ReferenceRuns(model, "interchange", budget)
        runs.plan({split: fixed(split) for split in ("train", "validation")})
        plans = runs._plans
        assert planned(runs) <= budget * 1e9
        assert plans["validation"].taken["memory"] <= budget * 1e9 / 4
        assert runs.store.free["memory"] == int(budget * 1e9) - planned(runs)
        for split, plan in plans.items():
            kept = [[number in plan for number in numbers] for numbers in plan.fixed.batches]
            assert all(len(set(numbers)) == 1 for numbers in kept)
            assert [numbers[0] for numbers in kept] == sorted((numbers[0] for numbers in kept), reverse=True), split
        if share == 1.0:
            assert all(number in plans["train"] for number in range(13))


def test_memory_comes_before_disk_and_what_fits_nowhere_is_not_kept() -> None:
    lengths = dict.fromkeys(range(6), (1, 1))
    some = FixedBatches([[0, 1], [2, 3], [4, 5]], batch_of_none, lengths.__getitem__)
    space: Any = {"memory": 20, "disk": 20}
    plan = KeepingPlan(some, lambda tokens, positions: 10 * tokens, space)
    assert [number in plan for number in range(6)] == [True] * 4 + [False] * 2
    assert [plan.place(number) for number in range(4)] == ["memory", "memory", "disk", "disk"]
    assert (space, plan.taken) == ({"memory": 0, "disk": 0}, {"memory": 20, "disk": 20})
    plan.without("disk")
    assert [number in plan for number in range(6)] == [True] * 2 + [False] * 4


def batch_of_none(numbers: Sequence[int]) -> PairBatch:
    raise AssertionError(f"the batch of {numbers} is not asked for")


def test_half_precision_takes_half_the_room_of_states(model: MaskedModel) -> None:
    exact, rounded = (ReferenceRuns(model, "interchange", cache_dtype=kind) for kind in (None, "bfloat16"))
    more = [runs.bytes_of(8, 1) - runs.bytes_of(7, 1) for runs in (exact, rounded)]
    assert more[0] == 2 * more[1]
    assert exact.bytes_of(0, 1) == rounded.bytes_of(0, 1)


def test_the_file_has_no_name(model: MaskedModel, tmp_path: Path) -> None:
    runs = new_runs(model, "interchange", {"disk_gb": 1.0, "disk_folder": tmp_path})
    runs(batch_of(PAIRS["train"], [0, 1]), "train")
    assert planned(runs, "disk") > 0
    assert [path.name for path in tmp_path.rglob("*")] == ["frozen"]


def test_a_full_disk_is_told_of_and_nothing_is_kept_there(
    model: MaskedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int, offset: int, length: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    runs = ReferenceRuns(model, "interchange", disk_gb=1.0, disk_folder=tmp_path)
    with pytest.warns(UserWarning, match=r"no room on disk .* of train pairs .*No space left.*lower disk_gb"):
        runs.plan({"train": fixed("train")})
    nothing = new_runs(model, "interchange", {})
    for (_, found), (_, expected) in zip(
        steps(runs, 0, validate=False), steps(nothing, 0, validate=False), strict=True
    ):
        assert all(torch.equal(value, wanted) for value, wanted in zip(found, expected, strict=True))
    assert len(runs.store) == 0


def test_values_kept_in_inference_mode_serve_training(model: MaskedModel) -> None:
    runs = new_runs(model, "interchange", {"budget_gb": 1.0})
    with torch.inference_mode():
        runs(batch_of(PAIRS["train"], [3, 1]), "train")
    batch = collate([(number, PAIRS["train"][number]) for number in (1, 3)])
    gates = torch.full(model.graph.shape, 0.5, requires_grad=True)
    _, states = runs(batch, "train")
    model(batch.clean, gates, states, batch.attention_mask, batch.positions).square().sum().backward()
    assert gates.grad is not None
    assert gates.grad.abs().max() > 0


def test_wrong_room_is_refused(model: MaskedModel) -> None:
    with pytest.raises(EdgepruneError, match=r"room of at least 0 GB .* got 1.0 GB in memory, -1 GB on disk"):
        ReferenceRuns(model, "zero", 1.0, disk_gb=-1)
    for size in (float("nan"), float("inf")):
        for memory, disk in ((size, 0.0), (0.0, size)):
            with pytest.raises(EdgepruneError, match=f"room of at least 0 GB .* got .*{size} GB"):
                ReferenceRuns(model, "zero", memory, disk_gb=disk)
    wrong: Any = "float16"
    with pytest.raises(EdgepruneError, match=r"dtype among float32, bfloat16, got .* dtype 'float16'"):
        ReferenceRuns(model, "zero", cache_dtype=wrong)
