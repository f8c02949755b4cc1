"""Pairs drawn anew: a function of seeds and number, never a held-out pair; shared out and gone on with as others."""

import pickle
import random
from collections import Counter
from itertools import chain
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from transformers import PreTrainedTokenizerBase

from datamodules import PairDataModule
from datamodules.sampler import PairBatchSampler
from datamodules.tasks import (
    IOI,
    AbstractTask,
    BooleanExpressions,
    Capitals,
    CompiledTask,
    Docstring,
    GenderedPronoun,
    GreaterThan,
    Induction,
    SubjectVerb,
)
from edgeprune.batch import PairBatch
from edgeprune.errors import EdgepruneError
from tests.datamodules.test_resume import Recorder
from tests.datamodules.test_resume import pytestmark as pytestmark  # the same warnings of Lightning's

Prompt = tuple[int, ...]
REPEATED = Induction(num_train=14, num_validation=5, num_test=6, length=4, vocab_size=40)


def module(
    task: AbstractTask, tokenizer: PreTrainedTokenizerBase | None = None, batch_size: int = 4, **options: Any
) -> PairDataModule:
    data = PairDataModule(task, batch_size=batch_size, cache=False, stream=True, **options)
    data.tokenizer_object = tokenizer
    data.setup("fit")
    return data


def at(data: PairDataModule, epoch: int, batch: int = 0) -> PairDataModule:
    data.load_state_dict({"epoch": epoch, "batch": batch})
    return data


def prompts(batches: Any) -> list[list[Prompt]]:
    """Clean prompts of each batch, without padding."""
    return [
        [tuple(row[mask.bool()].tolist()) for row, mask in zip(batch.clean, batch.attention_mask, strict=True)]
        for batch in batches
    ]


def epoch_of(data: PairDataModule, epoch: int = 0) -> list[list[Prompt]]:
    return prompts(at(data, epoch).train_dataloader())


def held_out(data: PairDataModule) -> set[Prompt]:
    return {pair.clean for split in ("validation", "test") for pair in data.pairs(split)}


# ------------------------------------------------------------------ what is drawn
def test_the_same_seeds_draw_the_same_pairs_and_others_draw_others() -> None:
    first, again = (epoch_of(module(REPEATED)) for _ in range(2))
    assert first == again
    other = epoch_of(module(REPEATED, seed=1))
    task = epoch_of(module(Induction(**{**vars(REPEATED), "seed": 1})))
    finite = {pair.clean for pair in module(REPEATED).pairs("train")}
    for found in (other, task):
        assert set(chain(*found)).isdisjoint(chain(*first))
    assert finite.isdisjoint(chain(*first))


def test_no_two_epochs_share_pairs() -> None:
    data = module(REPEATED)
    found = [prompt for epoch in range(5) for prompt in chain(*epoch_of(data, epoch))]
    assert len(set(found)) == len(found) == 5 * 12
    numbers = [batch.index.tolist() for epoch in range(2) for batch in at(data, epoch).train_dataloader()]
    assert list(chain(*numbers)) == list(range(24))


@pytest.mark.parametrize("entities", ["disjoint", "shared"])
@pytest.mark.parametrize("kind", [IOI, GenderedPronoun, SubjectVerb, Capitals, Docstring, BooleanExpressions])
def test_validation_and_test_pairs_are_never_drawn(kind: Any, entities: str, words: PreTrainedTokenizerBase) -> None:
    _check_held_out(kind(num_train=60, num_validation=30, num_test=40, entities=entities), words)


def test_held_out_years_are_never_drawn(gpt2: PreTrainedTokenizerBase) -> None:
    _check_held_out(GreaterThan(num_train=60, num_validation=30, num_test=40, entities="shared"), gpt2)


def _check_held_out(task: AbstractTask, tokenizer: PreTrainedTokenizerBase) -> None:
    data = module(task, tokenizer)
    found = {prompt for epoch in range(4) for prompt in chain(*epoch_of(data, epoch))}
    assert found.isdisjoint(held_out(data))
    assert len(found) > 60  # more than the training split holds


def test_held_out_prompts_are_left_out_where_nearly_all_are(words: PreTrainedTokenizerBase) -> None:
    """One sentence form: the 100 countries or so are nearly all taken by the splits, so most draws meet some."""
    task = Capitals(num_train=20, num_validation=30, num_test=30, entities="shared", templates=1)
    data = module(task, words)
    found = {prompt for epoch in range(20) for prompt in chain(*epoch_of(data, epoch))}
    assert found.isdisjoint(held_out(data))
    assert len(found) > 20


def test_entities_stay_apart(words: PreTrainedTokenizerBase) -> None:
    task = IOI(num_train=40, num_validation=20, num_test=20)
    drawn = task.stream(words)(40, "any")
    own, others = (
        {pair.labels[name] for pair in pairs for name in ("io", "subject")}
        for pairs in (drawn, chain(*(task.splits(words)[split] for split in ("validation", "test"))))
    )
    assert own.isdisjoint(others)


def test_small_batches_hold_all_sentence_forms(words: PreTrainedTokenizerBase) -> None:
    """Forms come in turn as pairs are made, so that 4 pairs made by themselves would be of the first 4 forms."""
    data = module(IOI(num_train=300, num_validation=8, num_test=8), words)
    lengths = Counter(map(len, chain(*epoch_of(data))))
    finite = Counter(len(pair.clean) for pair in data.pairs("train"))
    assert lengths == finite
    firsts = Counter(len(prompt) for prompt in chain(*epoch_of(data)[:10]))
    assert len(firsts) > len(finite) / 2


# ------------------------------------------------------------------ epochs, batches, ranks, windows
@pytest.mark.parametrize(("num_train", "num_batches"), [(14, 3), (12, 3), (3, 1)])
def test_every_batch_is_full(num_train: int, num_batches: int) -> None:
    data = module(Induction(num_train=num_train, num_validation=2, num_test=2, length=4, vocab_size=40))
    loader = data.train_dataloader()
    assert len(loader) == num_batches
    assert [len(batch) for batch in loader] == [4] * num_batches


def sampler(size: int, rank: int, world_size: int, parts: int) -> list[list[int]]:
    return list(
        PairBatchSampler(26, size, anew=True, rank=rank, world_size=world_size, parts=parts, position=lambda: (2, 0))
    )


@pytest.mark.parametrize(("size", "world_size", "parts"), [(4, 2, 1), (2, 2, 2), (1, 8, 1), (1, 1, 8)])
def test_ranks_and_parts_share_out_what_one_process_draws(size: int, world_size: int, parts: int) -> None:
    whole = sampler(8, 0, 1, 1)
    assert list(chain(*whole)) == list(range(48, 72))  # of the third epoch; 2 of 26 would make no whole step
    ranks = [sampler(size, rank, world_size, parts) for rank in range(world_size)]
    for step, numbers in enumerate(whole):
        shares = [list(chain(*batches[step * parts : (step + 1) * parts])) for batches in ranks]
        assert sorted(chain(*shares)) == numbers  # so no two ranks have one in common
        assert all(len(share) == 8 // world_size for share in shares)


def test_ranks_of_a_run_draw_different_pairs() -> None:
    class Ranked:
        accumulate_grad_batches = 1
        num_training_batches = 0

        def __init__(self, rank: int, number: int) -> None:
            self.distributed_sampler_kwargs = {"rank": rank, "num_replicas": number}

    def of(rank: int, number: int, batch_size: int) -> list[list[Prompt]]:
        data = module(REPEATED, batch_size=batch_size)
        data.trainer = Ranked(rank, number)  # pyright: ignore[reportAttributeAccessIssue]
        return prompts(data.train_dataloader())

    alone, first, second = of(0, 1, 4), of(0, 2, 2), of(1, 2, 2)
    assert len(first) == len(second) == len(alone) == 3
    for whole, one, other in zip(alone, first, second, strict=True):
        assert whole[::2] == one
        assert whole[1::2] == other


def test_windows_of_lengths_lose_no_pair_and_save_padding(words: PreTrainedTokenizerBase) -> None:
    task = IOI(num_train=96, num_validation=8, num_test=8)
    plain, windows = (module(task, words, length_windows=size) for size in (0, 4))

    def padding(data: PairDataModule) -> float:
        masks = [batch.attention_mask for epoch in range(4) for batch in at(data, epoch).train_dataloader()]
        return 1 - sum(mask.sum().item() for mask in masks) / sum(mask.numel() for mask in masks)

    assert padding(windows) < 0.7 * padding(plain)
    for start in range(0, 24, 4):  # the pairs of a window, whole windows through all blocks
        both = [set(chain(*epoch_of(data)[start : start + 4])) for data in (plain, windows)]
        assert both[0] == both[1]
    longest = [max(map(len, batch)) for batch in epoch_of(windows)]
    assert any(longest[start : start + 4] != sorted(longest[start : start + 4]) for start in range(0, 24, 4))


def test_a_window_is_no_longer_than_an_epoch() -> None:
    stream: Any = module(REPEATED, length_windows=100).train_dataloader().dataset
    assert stream.pairs.block_size == 12


def test_pairs_can_be_asked_for_in_any_order_and_in_another_process() -> None:
    stream: Any = module(REPEATED).train_dataloader().dataset
    expected = [stream[number] for number in range(60)]
    order = random.Random(0).sample(range(60), 60)
    other = pickle.loads(pickle.dumps(stream))
    assert [other[number] for number in order] == [expected[number] for number in order]


# ------------------------------------------------------------------ resuming
class Prompts(Recorder):
    """Notes the prompts themselves."""

    def training_step(self, batch: PairBatch, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.seen[-1] = prompts([batch])[0]  # pyright: ignore[reportArgumentType, reportCallIssue]
        return loss


def fit(folder: Path, *, workers: int = 0, resume: str | None = None, windows: int = 0, **options: Any) -> list[Any]:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=3,
        callbacks=[ModelCheckpoint(folder, filename="{step}", save_top_k=-1, every_n_train_steps=1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
        **options,
    )
    model = Prompts()
    data = PairDataModule(REPEATED, batch_size=2, num_workers=workers, cache=False, length_windows=windows, stream=True)
    trainer.fit(model, data, ckpt_path=resume and str(folder / resume))
    return model.seen


@pytest.mark.parametrize("options", [{}, {"workers": 2}, {"windows": 2, "accumulate_grad_batches": 2}])
def test_a_resumed_run_draws_what_the_unbroken_one_draws(tmp_path: Path, options: dict[str, Any]) -> None:
    """An epoch has 7 batches of 2, or 3 steps of two batches."""
    parts: int = options.get("accumulate_grad_batches", 1)
    seen = fit(tmp_path / "unbroken", **options)
    assert len({prompt for batch in seen for prompt in batch}) == 2 * len(seen)
    for step in (10,) if "workers" in options else (1, 4, 8) if parts == 2 else (3, 7, 10):
        again = fit(tmp_path / "unbroken", resume=f"step={step}.ckpt", **options)
        assert again == seen[step * parts :]


def test_max_epochs_is_as_many_steps_as_without_a_stream(tmp_path: Path) -> None:
    assert len(fit(tmp_path)) == 3 * 7


# ------------------------------------------------------------------ records and refusals
def test_the_record_says_that_pairs_were_drawn_anew() -> None:
    data = module(REPEATED)
    assert data.describe()["stream"] is True
    data.stream = False
    assert "stream" not in data.describe()


def test_pairs_of_a_stream_have_no_fixed_batches() -> None:
    data = module(REPEATED)
    assert not data.fixed_batches("train").batches
    assert list(chain(*data.fixed_batches("validation").batches)) == list(range(5))


def test_tasks_with_no_other_pairs_are_refused() -> None:
    with pytest.raises(EdgepruneError, match="CompiledTask has only those of its splits: leave stream out"):
        module(CompiledTask("reverse")).train_dataloader()


def test_words_that_are_used_up_are_refused() -> None:
    task = Induction(num_train=10, num_validation=6, num_test=6, length=2, vocab_size=5, corruption="shuffle")
    with pytest.raises(EdgepruneError, match=r"induction prompts were asked for|only \d+ turned up"):
        list(module(task, batch_size=20).train_dataloader())
