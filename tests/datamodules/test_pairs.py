import gc
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, PreTrainedTokenizerBase

from datamodules import IOI, AbstractTask, Induction, JSONLTask, PairDataModule, PromptPair, TokenPair
from datamodules.cache import KeptPairs
from datamodules.collate import collate
from datamodules.tasks.base import SPLITS
from edgeprune.batch import IGNORE, PairBatch
from edgeprune.errors import EdgepruneError
from tests.datamodules.conftest import word_tokenizer

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


def test_collate_of_sets_roles_and_alignments_by_hand() -> None:
    several = TokenPair(
        clean=(1, 2),
        corrupted=(3, 2, 2),
        positions=(1,),
        targets=(7,),
        distractors=(8,),
        answers=((7, 5, 6),),
        wrong_answers=((),),
        roles={"io": (0, 1)},
        alignment=(0, 2),
    )
    other = replace(LONG, roles={"s": (1, 3)}, wrong_answers=((9, 4), ()))
    batch = collate([(4, several), (2, other)], pad_id=50)
    none = IGNORE
    expected = PairBatch(
        clean=torch.tensor([[1, 2, 50, 50], [1, 2, 3, 4]]),
        corrupted=torch.tensor([[3, 2, 2, 50], [5, 2, 3, 4]]),
        attention_mask=torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]]),
        positions=torch.tensor([[1, 1], [1, 3]]),
        position_mask=torch.tensor([[True, False], [True, True]]),
        targets=torch.tensor([[7, none], [6, 7]]),
        distractors=torch.tensor([[8, none], [9, none]]),
        index=torch.tensor([4, 2]),
        answers=torch.tensor([[[7, 5, 6], [none] * 3], [[6, none, none], [7, none, none]]]),
        wrong_answers=torch.tensor([[[none, none], [none, none]], [[9, 4], [none, none]]]),
        corrupted_mask=torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]),
        alignment=torch.tensor([[0, 2, 0, 0], [0, 1, 2, 3]]),
        roles={"io": torch.tensor([[0, 1], [-1, -1]]), "s": torch.tensor([[-1, -1], [1, 3]])},
    )
    assert_same(batch, expected)
    assert collate([(0, several)]).corrupted.shape == (1, 3)


def test_prompts_of_unequal_length(words: PreTrainedTokenizerBase) -> None:
    task = Ready((PromptPair("Mary and John met", "Kate met", " foo", source="mine:1"),), ())
    with pytest.raises(EdgepruneError, match="mine:1: the clean prompt has 4 tokens and the corrupted one 2"):
        make(task, words).pairs("train")
    with pytest.raises(EdgepruneError, match=r"mine:1: roles \(none\)"):
        make(task, words, unequal_lengths="roles").pairs("train")
    [batch] = make(task, words, unequal_lengths="end").train_dataloader()
    assert batch.alignment.tolist() == [[0, 0, 0, 1]]
    assert (batch.attention_mask.tolist(), batch.corrupted_mask.tolist()) == ([[1] * 4], [[1] * 2])


def test_the_cache_keeps_alignments_apart(words: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    row = '{"clean": "Mary foo <predict>1</predict>", "corrupted": "foo <predict>2</predict>", "split": "train"}'
    (tmp_path / "p.jsonl").write_text(row)
    task, settings = JSONLTask(str(tmp_path / "p.jsonl")), {"cache": True, "cache_dir": str(tmp_path)}
    assert make(task, words, unequal_lengths="end", **settings).pairs("train")[0].alignment == (0, 0)
    with pytest.raises(EdgepruneError, match="2 tokens and the corrupted one 1"):
        make(task, words, **settings).pairs("train")


@dataclass(frozen=True)
class OneToken(Ready):
    """Says that its answers are single tokens."""

    single_token_answers = True


def test_single_token_answers_are_asked_for_by_the_task(words: PreTrainedTokenizerBase) -> None:
    pairs = (PromptPair("Mary met", "Kate met", " John foo"),)
    assert len(make(Ready(pairs), words).pairs("train")) == 1
    with pytest.raises(EdgepruneError, match="answer ' John foo' is 2 tokens after the prompt, this task needs one"):
        make(OneToken(pairs), words).pairs("train")


@pytest.mark.filterwarnings("ignore:.*worker processes in total.*")  # on a single core
def test_workers_read_the_same_batches_from_the_files(words: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    task = IOI(num_train=20)
    listed = [make(task, words).train_dataloader()]
    for workers in (0, 2):
        module = make(task, words, cache=True, cache_dir=str(tmp_path), num_workers=workers)
        assert isinstance(module.pairs("train"), KeptPairs)
        listed.append(module.train_dataloader())
    for batches in zip(*listed, strict=True):
        assert_same(batches[0], batches[1])
        assert_same(batches[0], batches[2])


def test_the_loader_reads_no_pair_before_it_is_drawn() -> None:
    class Counting(Sequence[TokenPair]):
        drawn = 0

        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, index: Any) -> Any:
            self.drawn += 1
            return SHORT

    module, pairs = make(Ready(), eval_batch_size=3), Counting()
    module._pairs = {"test": pairs}
    loader = module.test_dataloader()
    assert (len(loader), pairs.drawn) == (-(-(10**9) // 3), 0)


def test_garbage_is_collected_again(words: PreTrainedTokenizerBase) -> None:
    make(IOI(), words).setup()
    with pytest.raises(EdgepruneError, match="2 tokens"):
        make(OneToken((PromptPair("Mary met", "Kate met", " John foo"),)), words).pairs("train")
    assert gc.isenabled()


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


def test_labels_go_with_the_pairs(words: PreTrainedTokenizerBase) -> None:
    module = make(IOI(num_train=2, num_validation=2, num_test=6, templates=2), words)
    found = module.labels("test")
    assert set(found) == {"template", "order", "io", "subject"}
    assert [len(values) for values in found.values()] == [6] * 4
    assert set(found["template"]) == {"0", "1"}
    text = [words.decode(pair.clean) for pair in module.pairs("test")]
    assert all(name in prompt for name, prompt in zip(found["io"], text, strict=True))
    assert make(Ready()).labels("train") == {}


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
    with pytest.raises(EdgepruneError, match="num_workers must be 0 or more, got -1"):
        make(Ready(), num_workers=-1)
    with pytest.raises(EdgepruneError, match="unequal_lengths must be one of error, end, roles, got 'left'"):
        make(Ready(), unequal_lengths="left")
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


# -------------------------------------------------------------------- two BOS
def write_pairs(folder: Path, clean: str, corrupted: str) -> str:
    path = folder / "pairs.jsonl"
    rows = [
        {"clean": f"{clean} {end}<predict> John</predict>", "corrupted": f"{corrupted} {end}<predict> a</predict>"}
        | {"split": split}
        for end, split in zip("abc", SPLITS, strict=True)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


BOS_WORDS = ["Mary", "Kate", "met", "John", "a", "b", "c"]


@pytest.mark.parametrize("cached", [False, True])
def test_a_prompt_with_the_bos_that_the_tokenizer_adds_is_said(tmp_path: Path, cached: bool) -> None:
    task = JSONLTask(write_pairs(tmp_path, "[BOS] Mary met", "[BOS] Kate met"))
    for _ in range(2):  # the second time from the cache
        data = PairDataModule(task, cache=cached, cache_dir=str(tmp_path))
        data.tokenizer_object = word_tokenizer(BOS_WORDS, bos=True)
        with pytest.warns(UserWarning, match=r"^3 of 3 pairs begin with '\[BOS\]' twice: .*add_special_tokens") as said:
            data.setup()
        assert len(said) == 1
        assert data.pairs("train")[0].clean[:3] == (1, 1, 3)


@pytest.mark.parametrize(
    ("clean", "corrupted", "bos", "add"),
    [
        ("Mary met", "Kate met", True, None),
        ("[BOS] Mary met", "[BOS] Kate met", True, False),
        ("[BOS] Mary met", "[BOS] Kate met", False, None),
        ("[BOS] [BOS] Mary met", "[BOS] [BOS] Kate met", False, None),
        ("Mary [BOS] [BOS] met", "Kate [BOS] [BOS] met", True, None),
    ],
)
def test_one_bos_or_those_of_the_text_alone_are_right(
    tmp_path: Path, clean: str, corrupted: str, bos: bool, add: bool | None, recwarn: pytest.WarningsRecorder
) -> None:
    data = PairDataModule(JSONLTask(write_pairs(tmp_path, clean, corrupted)), cache=False, add_special_tokens=add)
    data.tokenizer_object = word_tokenizer(BOS_WORDS, bos=bos)
    data.setup()
    assert not recwarn.list


# -------------------------------------------------------------------- no tokenizer
def test_a_model_without_a_tokenizer_is_named_where_the_task_gives_text(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path)
    for task in (JSONLTask(write_pairs(tmp_path, "Mary met", "Kate met")), IOI(num_train=2)):
        with pytest.raises(EdgepruneError, match=r"^no tokenizer at '[^']*': it has no files with a vocabulary, "):
            PairDataModule(task, tokenizer=str(tmp_path), cache=False).setup()


def test_a_model_without_a_tokenizer_does_where_the_task_gives_tokens(tmp_path: Path) -> None:
    GPT2Config().save_pretrained(tmp_path)
    data = PairDataModule(Induction(vocab_size=60), tokenizer=str(tmp_path), cache=False)
    data.setup()
    assert data.tokenizer_object is None
    with pytest.raises(EdgepruneError, match="20 tokens to draw from are too few"):  # its own mistake, not this one
        PairDataModule(Induction(vocab_size=20), tokenizer=str(tmp_path), cache=False).setup()
