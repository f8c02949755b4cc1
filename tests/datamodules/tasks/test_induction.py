"""Repeated random tokens: form, corruptions, scored positions, vocabularies."""

from itertools import pairwise

import pytest
from transformers import PreTrainedTokenizerBase

from datamodules import Induction, PairDataModule, TokenPair
from datamodules.tasks.induction import ordinary_words
from edgeprune.errors import EdgepruneError
from tests.datamodules.conftest import word_tokenizer

SMALL = {"num_train": 40, "num_validation": 20, "num_test": 20}
PLAIN = {**SMALL, "vocab_size": 50, "length": 6}


def halves(row: tuple[int, ...], length: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return row[-2 * length : -length], row[-length:]


def test_the_clean_prompt_repeats_itself_and_answers_follow_from_it() -> None:
    for pair in Induction(**PLAIN).splits(None)["train"]:
        first, second = halves(pair.clean, 6)
        assert pair.clean == (*first, *second)
        assert first == second
        assert len(set(first)) == 6
        assert pair.positions == (6, 7, 8, 9, 10)
        followers = dict(pairwise(first))
        assert pair.targets == tuple(followers[pair.clean[p]] for p in pair.positions)
        assert pair.targets == tuple(pair.clean[p + 1] for p in pair.positions)


def test_random_brings_a_new_first_half() -> None:
    for pair in Induction(**PLAIN).splits(None)["train"]:
        first, second = halves(pair.corrupted, 6)
        assert second == pair.clean[6:]
        assert len(set(first)) == 6
        assert not set(first) & set(pair.clean)
        assert pair.distractors == first[1:]


@pytest.mark.parametrize("length", [2, 3, 6])
def test_shuffle_keeps_the_tokens_and_breaks_every_succession(length: int) -> None:
    task = Induction(**{**PLAIN, "length": length}, corruption="shuffle")
    for pair in task.splits(None)["train"]:
        first, second = halves(pair.corrupted, length)
        assert second == pair.clean[length:]
        assert sorted(first) == sorted(second)
        assert not set(pairwise(pair.clean[:length])) & set(pairwise(first))
        followers = dict(pairwise(pair.corrupted[: length + 1]))
        assert pair.distractors == tuple(followers[pair.clean[p]] for p in pair.positions)
        assert all(wrong != right for wrong, right in zip(pair.distractors, pair.targets, strict=True))


def test_roles_are_the_halves() -> None:
    for pair in Induction(**PLAIN, bos_token=50).splits(None)["test"]:
        assert pair.roles == {"first": (1, 7), "second": (7, 13), "END": (12, 13)}
        assert pair.clean[0] == pair.corrupted[0] == 50
        assert pair.positions == (7, 8, 9, 10, 11)


def test_only_the_last_answers_can_be_scored() -> None:
    everything = Induction(**PLAIN).splits(None)["train"]
    for full, pair in zip(everything, Induction(**PLAIN, num_scored=2).splits(None)["train"], strict=True):
        assert pair.clean == full.clean
        assert pair.positions == full.positions[-2:]
        assert pair.targets == full.targets[-2:]
        assert pair.distractors == full.distractors[-2:]


def test_words_of_the_tokenizer_are_used(tokenizer: PreTrainedTokenizerBase) -> None:
    known = ordinary_words(tokenizer)
    assert len(set(known)) == len(known) > 200
    assert not set(known) & set(tokenizer.all_special_ids)
    for token in known[:: len(known) // 100]:
        assert tokenizer.decode([token]).strip().isalpha()
    pairs = Induction(**SMALL).splits(tokenizer)["train"]
    assert all(pair.clean[0] == tokenizer.bos_token_id for pair in pairs)
    assert all(len(pair.clean) == 41 for pair in pairs)
    assert {token for pair in pairs for token in (*pair.clean[1:], *pair.corrupted[1:])} <= set(known)


def test_words_of_byte_level_vocabularies_begin_with_a_space(gpt2: PreTrainedTokenizerBase) -> None:
    texts = [gpt2.decode([token]) for token in ordinary_words(gpt2)[::50]]
    assert all(text[0] == " " and text[1:].isalpha() for text in texts)


def test_smollm2_can_be_used(smollm2: PreTrainedTokenizerBase) -> None:
    assert len(Induction(**SMALL).splits(smollm2)["train"]) == 40
    assert all(smollm2.decode([token])[1:].isalpha() for token in ordinary_words(smollm2)[::100])


def test_bos_can_be_left_out(gpt2: PreTrainedTokenizerBase) -> None:
    [pair] = Induction(1, 0, 0, length=5, add_bos=False).splits(gpt2)["train"]
    assert len(pair.clean) == 10
    assert gpt2.bos_token_id not in pair.clean


def test_bos_of_ones_own_is_never_drawn() -> None:
    for pair in Induction(**{**PLAIN, "vocab_size": 13}, first_token=0, bos_token=3).splits(None)["train"]:
        assert 3 not in (*pair.clean[1:], *pair.corrupted[1:])


def test_tokens_lie_in_their_range() -> None:
    splits = Induction(**PLAIN, first_token=30).splits(None)
    drawn = {token for pairs in splits.values() for pair in pairs for token in (*pair.clean, *pair.corrupted)}
    assert drawn == set(range(30, 50))


def test_no_sequence_occurs_twice() -> None:
    splits = Induction(num_train=300, num_validation=100, num_test=100, vocab_size=9, length=4).splits(None)
    assert {name: len(pairs) for name, pairs in splits.items()} == {"train": 300, "validation": 100, "test": 100}
    assert len({pair.clean for pairs in splits.values() for pair in pairs}) == 500


def test_all_sequences_can_be_asked_for_but_not_one_more() -> None:
    settings = {"num_validation": 0, "num_test": 0, "vocab_size": 3, "length": 2, "corruption": "shuffle"}
    assert len({pair.clean for pair in Induction(num_train=6, **settings).splits(None)["train"]}) == 6
    with pytest.raises(EdgepruneError, match="7 different induction prompts were asked for, only about 6"):
        Induction(num_train=7, **settings).splits(None)


def test_seed_decides() -> None:
    assert Induction(**PLAIN, seed=3).splits(None) == Induction(**PLAIN, seed=3).splits(None)
    assert Induction(**PLAIN, seed=3).splits(None) != Induction(**PLAIN, seed=4).splits(None)


def test_batches_need_no_tokenizer() -> None:
    data = PairDataModule(Induction(**PLAIN), batch_size=4, cache=False)
    batch = next(iter(data.train_dataloader()))
    assert batch.clean.shape == batch.corrupted.shape == (4, 12)
    assert batch.positions.shape == batch.targets.shape == (4, 5)
    assert batch.position_mask.all()
    assert (batch.clean.gather(1, batch.positions + 1) == batch.targets).all()


def test_pairs_are_tokens(words: PreTrainedTokenizerBase) -> None:
    assert isinstance(Induction(**SMALL).splits(words)["train"][0], TokenPair)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"length": 1}, "length must be at least 2, .* got 1"),
        ({"num_scored": 20}, "num_scored must be 1..19 with length=20, or null for all, got 20"),
        ({"num_scored": 0}, "num_scored must be 1..19"),
        ({"corruption": "swap"}, "corruption must be one of"),
        ({"first_token": 3}, "first_token=3 goes with vocab_size"),
        ({"first_token": 5, "vocab_size": 5}, "first_token must lie in 0..4"),
        ({"num_train": -1}, "must not be negative"),
        ({"num_train": 10**9}, "1 to 5000000 in all"),
        ({"vocab_size": 10**10}, "vocab_size must be 1..10000000, got 10000000000"),
        ({"vocab_size": 0}, "vocab_size must be 1..10000000, got 0"),
        ({"bos_token": -5}, "bos_token must be a token id, 0 or more, got -5"),
    ],
)
def test_wrong_settings_are_refused(settings: dict, message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        Induction(**settings)


@pytest.mark.parametrize("setting", ["vocab_size", "bos_token"])
def test_ids_that_the_tokenizer_lacks_are_refused(words: PreTrainedTokenizerBase, setting: str) -> None:
    with pytest.raises(EdgepruneError, match=rf"{setting}=99999 asks for token ids beyond 0..{len(words) - 1}"):
        Induction(**{setting: 99999}).splits(words)
    Induction(vocab_size=len(words), bos_token=len(words) - 1).splits(words)


def test_a_vocabulary_is_needed() -> None:
    with pytest.raises(EdgepruneError, match="give the data module a tokenizer, or set vocab_size"):
        Induction().splits(None)


@pytest.mark.parametrize(("corruption", "needed"), [("random", 40), ("shuffle", 20)])
def test_too_few_tokens_are_refused(corruption: str, needed: int) -> None:
    with pytest.raises(EdgepruneError, match=f"5 tokens .* too few: .* needs {needed}"):
        Induction(corruption=corruption, vocab_size=5).splits(None)  # pyright: ignore
    with pytest.raises(EdgepruneError, match="3 tokens to draw from"):
        Induction().splits(word_tokenizer(["foo", "bar", "baz", "1", "+"]))
