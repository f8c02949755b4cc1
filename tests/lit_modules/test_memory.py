"""`fit` settles open batch sizes by what memory allows, and refuses what cannot fit."""

import math
from typing import Any

import lightning.pytorch as pl
import pytest

from datamodules import PairDataModule
from datamodules.tasks.compiled import CompiledTask
from edgeprune import memory
from edgeprune.errors import EdgepruneError
from edgeprune.memory import MemoryPlan, plan_of
from edgeprune.methods import EdgePruning
from edgeprune.objectives.sparsity import GeometricPenalty
from lit_modules.memory import plan_fit
from lit_modules.pruning import PruningModule


def parts(data: dict[str, Any], **trainer: Any) -> tuple[PruningModule, PairDataModule, pl.Trainer]:
    module = PruningModule(
        "compiled:reverse", EdgePruning(GeometricPenalty(start=1.0, end=1.0)), objective="squared_error"
    )
    module.configure_model()
    settings: dict[str, Any] = {"check_val_every_n_epoch": None, "val_check_interval": 10, "logger": False} | trainer
    return (
        module,
        PairDataModule(CompiledTask("reverse"), cache=False, **data),
        pl.Trainer(accelerator="cpu", **settings),
    )


def allow(monkeypatch: pytest.MonkeyPatch, size: int, **data: Any) -> None:
    """Let there be just as much memory as training batches of `size` need; the process itself does not grow."""
    monkeypatch.setattr(memory, "resident", lambda: 0)
    monkeypatch.setattr(memory, "spare_memory", lambda: 10**12)
    monkeypatch.setattr("edgeprune.models.read_ops.ReadOps.chunk_bytes", 0)
    monkeypatch.setattr("lit_modules.memory.TOKENS_AT_ONCE", 1)
    needed = plan_fit(*parts({"batch_size": size, "eval_batch_size": 1, **data})).total
    monkeypatch.setattr(memory, "spare_memory", lambda: needed)


@pytest.mark.parametrize(("size", "settled"), [(8, 8), (7, 4), (4, 4), (2, 2), (100, 8)])
def test_an_open_batch_size_is_the_largest_part_of_the_target_that_fits(
    monkeypatch: pytest.MonkeyPatch, size: int, settled: int
) -> None:
    allow(monkeypatch, size)
    module, data, trainer = parts({"batch_size": "auto", "target_batch_size": 8, "eval_batch_size": 1})
    assert plan_fit(module, data, trainer).fits
    assert data.batch_size == settled
    assert trainer.accumulate_grad_batches == 8 // settled
    assert trainer.val_check_interval == 10 * 8 // settled


def test_an_open_evaluation_size_is_as_wide_as_is_fast_and_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    module, data, trainer = parts({"eval_batch_size": "auto"})
    longest = max(data.extent(split)[0] for split in ("train", "validation", "test"))
    assert data.eval_batch_size == 512 // longest
    allow(monkeypatch, 8)
    plan_fit(module, data, trainer)
    assert 1 < data.eval_batch_size < 512 // longest


def test_what_cannot_fit_is_refused_with_what_would(monkeypatch: pytest.MonkeyPatch) -> None:
    allow(monkeypatch, 5)
    module, data, trainer = parts({"batch_size": 12, "eval_batch_size": 1})
    with pytest.raises(
        EdgepruneError, match=r"of 0\.\d available .*set data\.batch_size to 5 or less \(now 12\), or to"
    ):
        plan_fit(module, data, trainer)
    monkeypatch.setattr(memory, "spare_memory", lambda: 1000)
    with pytest.raises(EdgepruneError, match=r"\): lower model\.cache_gb, or set model\.dtype to bfloat16$"):
        plan_fit(module, data, trainer)


@pytest.mark.parametrize("name", ["batch_size", "eval_batch_size"])
def test_a_batch_counts_as_many_examples_as_there_are_pairs(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """However large the number, the plan is that of all pairs; a smaller one that fits is found by halving."""
    monkeypatch.setattr("lit_modules.memory.TOKENS_AT_ONCE", 1)
    module, data, trainer = parts({"batch_size": 1, "eval_batch_size": 1, name: 10**18})
    pairs = len(data.pairs("train" if name == "batch_size" else "validation"))
    plan = plan_fit(module, data, trainer)
    smaller = parts({"batch_size": 1, "eval_batch_size": 1, name: pairs})
    assert plan.terms == plan_fit(*smaller).terms
    asked: list[MemoryPlan] = []

    def count(*arguments: Any) -> MemoryPlan:
        asked.append(plan_of(*arguments))
        return asked[-1]

    allow(
        monkeypatch, 5 if name == "batch_size" else 1, **({"eval_batch_size": 5} if name == "eval_batch_size" else {})
    )
    monkeypatch.setattr("lit_modules.memory.plan_of", count)
    module, data, trainer = parts({"batch_size": 1, "eval_batch_size": 1, name: 10**18})
    with pytest.raises(EdgepruneError, match=rf"set data\.{name} to \d+ or less \(now {10**18}\), or to auto"):
        plan_fit(module, data, trainer)
    assert len(asked) < 3 + math.log2(pairs) + 1


def test_an_open_size_of_a_huge_step_is_a_part_of_it_that_pairs_can_fill() -> None:
    module, data, trainer = parts({"batch_size": "auto", "target_batch_size": 10**15})
    plan_fit(module, data, trainer)
    assert data.batch_size * trainer.accumulate_grad_batches == 10**15
    assert data.batch_size <= len(data.pairs("train"))


def test_kept_runs_count_as_far_as_there_are_pairs() -> None:
    module, data, trainer = parts({})
    few = plan_fit(module, data, trainer).kept
    module.cache_gb = 1e-6
    assert plan_fit(module, data, trainer).kept == 1000 < few < 1e9


def test_an_open_size_and_accumulation_exclude_each_other() -> None:
    module, data, trainer = parts({"batch_size": "auto"}, accumulate_grad_batches=2)
    with pytest.raises(EdgepruneError, match="works out accumulate_grad_batches itself, got 2: leave it at 1"):
        plan_fit(module, data, trainer)


def test_open_sizes_need_fit_and_wrong_ones_are_refused() -> None:
    _, data, _ = parts({"batch_size": "auto"})
    with pytest.raises(EdgepruneError, match="batch_size auto is for `edgeprune fit`"):
        data.train_dataloader()
    wrong: Any = "all"
    for name, value in (("batch_size", wrong), ("eval_batch_size", 0), ("target_batch_size", "auto")):
        with pytest.raises(EdgepruneError, match=f"{name}={value} must be a number of pairs, at least 1"):
            parts({name: value})
    with pytest.raises(EdgepruneError, match="length_windows must be 0 or more, got -1"):
        parts({"length_windows": -1})


@pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec.*")
@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
@pytest.mark.filterwarnings("ignore:.*in eval mode at the start of training.*")
@pytest.mark.parametrize("accumulated", [1, 2])
def test_a_step_gives_its_buffers_back_before_the_next_takes_them(accumulated: int) -> None:
    """Otherwise there would be two of each, which the plan does not know of."""
    seen: list[set[str]] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
            seen.append(set(pl_module.masked.workspace._spare))

    module, data, trainer = parts(
        {"batch_size": 4},
        max_steps=3,
        accumulate_grad_batches=accumulated,
        limit_val_batches=0,
        callbacks=[Watch()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
    )
    trainer.fit(module, data)
    assert len(seen) == 3 * accumulated
    assert all(spare == {"delta", "mixed", "selected", "grad"} for spare in seen[1:])
