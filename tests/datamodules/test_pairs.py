import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from datamodules import IOI, AbstractTask, JSONLTask, PairDataModule, PromptPair, TokenPair
from datamodules.pairs import collate
from edgeprune.batch import IGNORE, PairBatch
from edgeprune.errors import EdgepruneError

CONFIGS = Path(__file__).parents[2] / "configs" / "data"
SHORT = TokenPair((1, 2), (3, 2), (1,), (7,), (8,))
LONG = TokenPair((1, 2, 3, 4), (5, 2, 3, 4), (1, 3), (6, 7), (9, IGNORE))


@dataclass(frozen=True)
class Ready(AbstractTask):
    """Gives what it is told, as text or as tokens."""

    train: tuple[Any, ...] = (SHORT, LONG, SHORT)
    test: tuple[Any, ...] = (LONG,)

    def splits(
        self, tokenizer: PreTrainedTokenizerBase | None
    ) -> Mapping[str, Sequence[PromptPair] | Sequence[TokenPair]]:
        return {"train": self.train, "test": self.test}


def make(task: AbstractTask, tokenizer: PreTrainedTokenizerBase | None = None, **settings: Any) -> PairDataModule:
    module = PairDataModule(task, **{"cache": False, **settings})
    module.tokenizer_object = tokenizer
    return module


def tensors(batch: PairBatch) -> dict[str, Tensor]:
    """Every tensor of a batch by name."""
    named = {field.name: getattr(batch, field.name) for field in fields(batch) if field.name != "roles"}
    named |= {f"role {name}": spans for name, spans in batch.roles.items()}
    return {name: value for name, value in named.items() if value is not None}


def assert_same(batch: PairBatch, expected: PairBatch) -> None:
    ours, theirs = tensors(batch), tensors(expected)
    assert ours.keys() == theirs.keys()
    for name in ours:
        assert torch.equal(ours[name], theirs[name]), name
        assert ours[name].dtype == theirs[name].dtype, name


def test_collate_by_hand() -> None:
    batch = collate([(4, SHORT), (2, LONG)], pad_id=50)
    expected = PairBatch(
        clean=torch.tensor([[1, 2, 50, 50], [1, 2, 3, 4]]),
        corrupted=torch.tensor([[3, 2, 50, 50], [5, 2, 3, 4]]),
        attention_mask=torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
        positions=torch.tensor([[1, 1], [1, 3]]),
        position_mask=torch.tensor([[True, False], [True, True]]),
        targets=torch.tensor([[7, IGNORE], [6, 7]]),
        distractors=torch.tensor([[8, IGNORE], [9, IGNORE]]),
        index=torch.tensor([4, 2]),
    )
    assert_same(batch, expected)
    assert batch.alignment is None
    assert torch.equal(batch.answers, torch.tensor([[[7], [IGNORE]], [[6], [7]]]))


def test_loaders_cover_the_splits(words: PreTrainedTokenizerBase) -> None:
    module = make(IOI(num_train=20, num_validation=7, num_test=5), words, batch_size=4, eval_batch_size=3)
    module.setup()
    loaders = (module.train_dataloader(), module.val_dataloader(), module.test_dataloader())
    numbers = [torch.cat([batch.index for batch in loader]).tolist() for loader in loaders]
    assert sorted(numbers[0]) == list(range(20))
    assert numbers[0] != sorted(numbers[0])
    assert numbers[1:] == [list(range(7)), list(range(5))]
    assert [len(loader) for loader in loaders] == [5, 3, 2]


def test_rows_are_the_examples_they_name(words: PreTrainedTokenizerBase) -> None:
    module = make(IOI(num_train=20), words, batch_size=6)
    for batch in module.train_dataloader():
        for row, number in enumerate(batch.index.tolist()):
            pair = module.pairs("train")[number]
            length = int(batch.attention_mask[row].sum())
            assert batch.clean[row, :length].tolist() == list(pair.clean)
            assert (batch.clean[row, length:] == words.pad_token_id).all()
            assert batch.clean[row, batch.positions[row, 0]] == pair.clean[-1]


def test_tokens_need_no_tokenizer() -> None:
    [batch] = make(Ready()).train_dataloader()
    assert sorted(batch.index.tolist()) == [0, 1, 2]
    assert "answer      6 7" in make(Ready()).preview(2)


def test_text_needs_a_tokenizer() -> None:
    with pytest.raises(EdgepruneError, match="Ready gives text, but there is no tokenizer"):
        make(Ready((PromptPair("a", "b", "c"),))).setup()


def test_setup_names_the_split_that_is_empty(words: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    with pytest.raises(EdgepruneError, match="IOI gives no validation pairs; raise the number or fraction"):
        make(IOI(num_validation=0), words).setup("fit")
    make(IOI(num_validation=0), words).setup("test")
    row = '{"clean": "foo <predict>1</predict>", "corrupted": "bar <predict>2</predict>", "split": "train"}'
    (tmp_path / "p.jsonl").write_text(row)
    with pytest.raises(EdgepruneError, match="JSONLTask gives no validation pairs"):
        make(JSONLTask(str(tmp_path / "p.jsonl")), words).setup("fit")


def test_wrong_arguments_are_refused() -> None:
    with pytest.raises(EdgepruneError, match="batch_size=0"):
        make(Ready(), batch_size=0)
    with pytest.raises(EdgepruneError, match="no split named 'val'"):
        make(Ready()).pairs("val")


def test_tokenizer_is_loaded_by_name_once(words: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    loading = ModuleType("edgeprune.models.loading")
    loading.load_tokenizer = lambda name: asked.append(name) or words
    monkeypatch.setitem(sys.modules, "edgeprune.models.loading", loading)
    module = PairDataModule(IOI(), tokenizer="some-model", cache=False)
    module.setup("fit")
    module.setup("test")
    assert asked == ["some-model"]
    assert module.tokenizer_object is words
    assert module.describe()["tokenizer"] == "some-model"


def test_ranks_of_the_trainer_share_the_batches(words: PreTrainedTokenizerBase) -> None:
    def batches(batch_size: int, trainer: Any) -> list[set[int]]:
        module = make(IOI(num_train=20), words, batch_size=batch_size)
        module.trainer = trainer
        return [set(batch.index.tolist()) for batch in module.train_dataloader()]

    ranks = [
        SimpleNamespace(distributed_sampler_kwargs={"rank": rank, "num_replicas": 2}, num_training_batches=0)
        for rank in (0, 1)
    ]
    first, second = (batches(3, trainer) for trainer in ranks)
    assert [a | b for a, b in zip(first, second, strict=True)] == batches(6, None)
    assert not any(a & b for a, b in zip(first, second, strict=True))


def test_describe_tells_tokens_apart(words: PreTrainedTokenizerBase) -> None:
    one, same, other = (make(IOI(seed=seed), words).describe() for seed in (0, 0, 1))
    assert one == same
    assert one["task"] == "IOI"
    assert one["num_pairs"] == {"train": 200, "validation": 100, "test": 200}
    assert all(one["sha256"][split] != other["sha256"][split] for split in ("train", "validation", "test"))


def test_preview_shows_text_answer_and_distractor(words: PreTrainedTokenizerBase) -> None:
    task = Ready((PromptPair("Mary met", "Kate met", " John", " foo"), PromptPair("foo", "bar", " Mary")))
    assert make(task, words).preview().splitlines() == [
        "train 0",
        "  clean       'Mary met'",
        "  corrupted   'Kate met'",
        "  scored at   1",
        "  answer      'John'",
        "  distractor  'foo'",
        "",
        "train 1",
        "  clean       'foo'",
        "  corrupted   'bar'",
        "  scored at   0",
        "  answer      'Mary'",
        "  distractor  -",
    ]
    assert len(make(task, words).preview(1).splitlines()) == 6


def test_cache_is_hit_and_can_be_switched_off(words: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    first = make(IOI(), words, cache=True, cache_dir=str(tmp_path))
    first.setup()
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").iterdir()}
    assert len(times) == 3
    again = make(IOI(), words, cache=True, cache_dir=str(tmp_path))
    assert again.describe() == first.describe()
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "tokens").iterdir()} == times
    make(IOI(seed=1), words, cache=False, cache_dir=str(tmp_path)).setup()
    assert len(list((tmp_path / "tokens").iterdir())) == 3


def test_batch_is_moved() -> None:
    batch = make(Ready()).transfer_batch_to_device(collate([(0, SHORT)]), torch.device("meta"), 0)
    assert {tensor.device.type for tensor in tensors(batch).values()} == {"meta"}
