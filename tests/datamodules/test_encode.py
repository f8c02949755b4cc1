import pytest
from transformers import PreTrainedTokenizerBase

from datamodules import IOI, PromptPair, TokenPair
from datamodules.encode import encode_pairs
from edgeprune.batch import IGNORE
from edgeprune.errors import EdgepruneError
from tests.datamodules.conftest import word_tokenizer


def ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def test_one_token_answer_by_hand(words: PreTrainedTokenizerBase) -> None:
    mary, john, kate, met, foo = (ids(words, word)[0] for word in ("Mary", "John", "Kate", "met", "foo"))
    pair = PromptPair("Mary met", "Kate met", " John", " foo")
    assert encode_pairs([pair], words) == [TokenPair((mary, met), (kate, met), (1,), (john,), (foo,))]


def test_answer_of_several_tokens_is_teacher_forced(words: PreTrainedTokenizerBase) -> None:
    mary, john, kate, met, foo, bar = (ids(words, word)[0] for word in ("Mary", "John", "Kate", "met", "foo", "bar"))
    [pair] = encode_pairs([PromptPair("Mary met", "Kate met", " John foo met", " bar met")], words)
    assert pair.clean == (mary, met, john, foo)
    assert pair.corrupted == (kate, met, john, foo)
    assert pair.positions == (1, 2, 3)
    assert pair.targets == (john, foo, met)
    assert pair.distractors == (bar, IGNORE, IGNORE)


def test_no_distractor_is_ignored(words: PreTrainedTokenizerBase) -> None:
    [pair] = encode_pairs([PromptPair("Mary met", "Kate met", " John")], words)
    assert pair.distractors == (IGNORE,)


def test_bos_only_where_the_tokenizer_adds_it() -> None:
    names = ["Mary", "Kate", "John"]
    pair = PromptPair("Mary", "Kate", " John")
    for bos, option, expected in (
        (False, None, (3,)),
        (False, True, (3,)),
        (True, None, (1, 3)),
        (True, False, (3,)),
    ):
        [encoded] = encode_pairs([pair], word_tokenizer(names, bos=bos), add_special_tokens=option)
        assert encoded.clean == expected
        assert encoded.positions == (len(expected) - 1,)


def test_tokens_are_those_of_the_whole_text(gpt2: PreTrainedTokenizerBase) -> None:
    text = PromptPair("The name is", "The game is", " Annabelle Wigglesworth", " Zoe")
    [pair] = encode_pairs([text], gpt2)
    assert [*pair.clean, pair.targets[-1]] == ids(gpt2, text.clean + text.answer)
    assert len(pair.targets) > 2
    assert pair.distractors[0] == ids(gpt2, " Zoe")[0]


def test_space_before_the_answer_goes_where_the_tokenizer_puts_it(gpt2: PreTrainedTokenizerBase) -> None:
    loose = PromptPair("1 + 2 = ", "1 + 4 = ", "3", "5")
    tight = PromptPair("1 + 2 =", "1 + 4 =", " 3", " 5")
    assert encode_pairs([loose, tight], gpt2)[0] == encode_pairs([tight], gpt2)[0]


def test_no_pairs_give_no_tokens(words: PreTrainedTokenizerBase) -> None:
    assert encode_pairs([], words) == []


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (PromptPair("Mary met foo", "Kate met", " John", source="f:3"), "f:3: .* 3 tokens .* 2; reword"),
        (PromptPair("", "Kate met", " John", source="f:3"), "f:3: the clean prompt is empty"),
        (PromptPair("Mary met", " ", " John", source="f:3"), "f:3: the corrupted prompt is empty"),
        (PromptPair("Mary met", "Kate met", "", source="f:3"), "f:3: answer '' has no tokens"),
        (PromptPair("Mary met", "Kate met", " John", " ", source="f:3"), "f:3: distractor ' ' has no tokens"),
        (PromptPair("Mary xyz", "Kate met", " John", source="f:3"), "f:3: 'Mary xyz' .* unknown"),
        (PromptPair("Mary met", "xyz met", " John", source="f:3"), "f:3: 'xyz met' .* unknown"),
        (PromptPair("Mary met", "Kate met", " xyz", source="f:3"), "f:3: ' xyz' .* unknown .*UNK"),
        (PromptPair("Mary met", "Kate met", " John", " xyz", source="f:3"), "f:3: ' xyz' .* unknown"),
        (PromptPair("Mary met", "Mary met", " John", source="f:3"), "f:3: .* identical"),
        (PromptPair("Mary met", "Kate met", " John", " John foo", source="f:3"), "f:3: .* same token"),
        (
            PromptPair("Mary met", "Kate met", "al foo", source="f:3"),
            "f:3: answer 'al foo' changes the tokens",
        ),
        (PromptPair("Mary met", "Mary met", " John"), "pair 'Mary met': .* identical"),
    ],
)
def test_unusable_pairs_are_named(words: PreTrainedTokenizerBase, pair: PromptPair, message: str) -> None:
    good = PromptPair("Mary met", "Kate met", " John")
    with pytest.raises(EdgepruneError, match=message) as caught:
        encode_pairs([good, pair], words)
    assert "\n" not in str(caught.value)


def test_stand_in_for_unknown_is_no_unknown_word(gpt2: PreTrainedTokenizerBase) -> None:
    assert gpt2.unk_token_id == gpt2.eos_token_id
    pair = PromptPair("<|endoftext|>Mary met", "<|endoftext|>Paul met", " John")
    assert encode_pairs([pair], gpt2)[0].clean[0] == gpt2.eos_token_id


def test_each_different_text_is_tokenised_once(words: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = IOI(num_train=500).splits(words)["train"]
    expected = encode_pairs(pairs, words)
    seen: list[str] = []
    call = type(words).__call__
    monkeypatch.setattr(
        type(words), "__call__", lambda self, text, **options: seen.extend(text) or call(self, text, **options)
    )
    assert encode_pairs([*pairs, pairs[0]], words) == [*expected, expected[0]]
    texts = {text for pair in pairs for text in (pair.clean, pair.corrupted)}
    texts |= {pair.clean + text for pair in pairs for text in (pair.answer, pair.distractor or "")}
    texts |= {pair.corrupted + pair.corrupted_answer for pair in pairs if pair.corrupted_answer}
    assert sorted(seen) == sorted(texts)


def test_chunks_make_no_difference(words: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = IOI(num_train=50).splits(words)["train"]
    whole = encode_pairs(pairs, words)
    monkeypatch.setattr("datamodules.encode.CHUNK", 7)
    assert encode_pairs(pairs, words) == whole
