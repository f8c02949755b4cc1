from dataclasses import replace
from typing import Any

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
        (PromptPair("Mary \ud83d", "Kate met", " John", source="f:3"), "f:3: 'Mary .ud83d' holds half of a character"),
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


# -------------------------------------------------------------------- answer sets
def test_answer_sets_by_hand(words: PreTrainedTokenizerBase) -> None:
    mary, john, kate, foo, bar = (ids(words, word)[0] for word in ("Mary", "John", "Kate", "foo", "bar"))
    several = PromptPair("foo met", "bar met", " Mary", " John", answer_ids=((mary, kate),), wrong_ids=((john, foo),))
    right = PromptPair("foo met", "bar met", " Mary", answer_ids=((kate, mary, kate),))
    wrong = PromptPair("foo met", "bar met", " Mary foo", " John", wrong_ids=((), (bar,)))
    unset = PromptPair("foo met", "bar met", " Mary foo", wrong_ids=((), (bar,)))
    pairs = encode_pairs([several, right, wrong, unset], words)
    assert [pair.answers for pair in pairs] == [((mary, kate),), ((kate, mary),), (), ()]
    assert [pair.wrong_answers for pair in pairs] == [((john, foo),), (), ((john,), (bar,)), ((), (bar,))]
    assert [pair.targets[0] for pair in pairs] == [mary] * 4


def test_pairs_without_sets_have_none(words: PreTrainedTokenizerBase) -> None:
    [pair] = encode_pairs([PromptPair("foo met", "bar met", " Mary", " John")], words)
    assert pair.answers == pair.wrong_answers == ()


# -------------------------------------------------------------------- roles
def test_roles_cover_every_token_that_holds_one_of_their_characters(words: PreTrainedTokenizerBase) -> None:
    spans = {"io": (0, 4), "both": (5, 12), "part": (6, 7), "space too": (4, 6)}
    pair = PromptPair("Mary and John met", "Kate and Paul met", " foo", roles=spans)
    assert encode_pairs([pair], words)[0].roles == {"io": (0, 1), "both": (1, 3), "part": (1, 2), "space too": (1, 2)}


def test_bos_moves_roles() -> None:
    pair = PromptPair("Mary met", "Kate met", " John", roles={"io": (0, 4)})
    tokenizer = word_tokenizer(["Mary", "Kate", "met", "John"], bos=True)
    assert encode_pairs([pair], tokenizer)[0].roles == {"io": (1, 2)}
    assert encode_pairs([pair], tokenizer, add_special_tokens=False)[0].roles == {"io": (0, 1)}


def test_role_of_a_character_that_is_several_tokens(gpt2: PreTrainedTokenizerBase) -> None:
    pair = PromptPair("I like 🦄 and", "I like 🦅 and", " you", roles={"animal": (7, 8), "and": (9, 12)})
    [encoded] = encode_pairs([pair], gpt2)
    start, end = encoded.roles["animal"]
    assert gpt2.decode(encoded.clean[start:end]).strip() == "🦄"
    assert end - start > 1
    assert encoded.roles["and"] == (end, end + 1)


def test_role_that_ends_in_the_space_given_to_the_answer(gpt2: PreTrainedTokenizerBase) -> None:
    pair = PromptPair("1 + 2 = ", "1 + 4 = ", "3", "5", roles={"sign": (6, 8)}, corrupted_answer="5")
    [encoded] = encode_pairs([pair], gpt2)
    assert encoded.roles == {"sign": (3, 4)}


def test_a_tokenizer_without_offsets_gives_no_roles(
    words: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = type("Slow", (), {"encodings": None, "__getitem__": lambda self, key: self.ids})
    call = type(words).__call__

    def slow(self: PreTrainedTokenizerBase, text: list[str], **options: Any) -> Any:
        batch = without()
        batch.ids = call(self, text, **options)["input_ids"]
        return batch

    monkeypatch.setattr(type(words), "__call__", slow)
    pair = PromptPair("Mary met", "Kate met", " John", roles={"io": (0, 4)}, corrupted_roles={"io": (0, 4)})
    assert encode_pairs([pair], words)[0].roles == {}
    with pytest.raises(EdgepruneError, match="does not say where its tokens lie"):
        encode_pairs([pair], words, unequal_lengths="roles")


# -------------------------------------------------------------------- unequal lengths
def test_alignment_at_the_end(words: PreTrainedTokenizerBase) -> None:
    shorter = PromptPair("foo Mary and John met", "Kate met", " foo bar")
    longer = PromptPair("Kate met", "foo Mary and John met", " foo bar")
    equal = PromptPair("Kate met", "John met", " foo bar")
    pairs = encode_pairs([shorter, longer, equal], words, unequal_lengths="end")
    assert [pair.alignment for pair in pairs] == [(0, 0, 0, 0, 1, 2), (3, 4, 5), ()]
    for pair in pairs:  # the teacher-forced token comes last in both, and is scored
        assert pair.clean[-1] == pair.corrupted[-1] == pair.targets[0]
    assert pairs[0].positions == (4, 5)
    assert pairs[0].corrupted == (*ids(words, "Kate met"), *ids(words, "foo"))


def test_bos_faces_itself() -> None:
    tokenizer = word_tokenizer(["Mary", "Kate", "and", "met", "foo"], bos=True)
    longer = PromptPair("Mary met", "Kate and Mary met", " foo")
    shorter = PromptPair("Mary and Kate met", "Kate met", " foo")
    pairs = encode_pairs([longer, shorter], tokenizer, unequal_lengths="end")
    assert [pair.alignment for pair in pairs] == [(0, 3, 4), (0, 1, 1, 1, 2)]


def test_alignment_by_roles(words: PreTrainedTokenizerBase) -> None:
    pair = PromptPair(
        "When Mary and John met",
        "When foo and Kate Paul and bar met",
        " foo",
        roles={"io": (5, 9), "s": (14, 18)},
        corrupted_roles={"io": (13, 22), "s": (27, 30)},
    )
    [encoded] = encode_pairs([pair], words, unequal_lengths="roles")
    assert encoded.alignment == (2, 4, 5, 6, 7)
    assert encoded.roles == {"io": (1, 2), "s": (3, 4)}


def test_prompts_of_equal_length_by_roles(words: PreTrainedTokenizerBase) -> None:
    moved = PromptPair("Mary met John", "foo Kate met", " foo", roles={"io": (0, 4)}, corrupted_roles={"io": (4, 8)})
    same = PromptPair("Mary met John", "Kate met foo", " foo", roles={"io": (0, 4)}, corrupted_roles={"io": (0, 4)})
    unmarked = PromptPair("Mary met John", "Kate met foo", " foo", roles={"io": (0, 4)})
    pairs = encode_pairs([moved, same, unmarked], words, unequal_lengths="roles")
    assert [pair.alignment for pair in pairs] == [(1, 2, 2), (), ()]
    assert encode_pairs([moved], words)[0].alignment == encode_pairs([moved], words, unequal_lengths="end")[0].alignment


# -------------------------------------------------------------------- refusals
GOOD = PromptPair("Mary met", "Kate met", " John", " foo", source="f:3")
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "answer is the corrupted one": ({"corrupted_answer": " John foo"}, "corrupted_answer ' John foo' start with"),
    "corrupted answer unknown": ({"corrupted_answer": " xyz"}, "' xyz' holds a word unknown"),
    "corrupted answer joins": ({"corrupted_answer": "al"}, "corrupted_answer 'al' changes the tokens"),
    "right and wrong": ({"answer_ids": ((4, 5),), "wrong_ids": ((5, 6),)}, "token 5 is both a right and a wrong"),
    "distractor is right": ({"answer_ids": ((4, 7),)}, "token 7 is both a right and a wrong"),
    "answer is wrong": ({"wrong_ids": ((4,),)}, "token 4 is both a right and a wrong"),
    "answer is not right": ({"answer_ids": ((5, 6),)}, "' John' has the token 4, which is not among its answer_ids"),
    "one set too many": ({"wrong_ids": ((5,), (6,))}, "wrong_ids has 2 sets for an answer of 1 tokens"),
    "no such id": ({"answer_ids": ((4, 400),)}, r"answer_ids \(4, 400\) must lie in 0..8"),
    "negative id": ({"wrong_ids": ((-100,),)}, r"wrong_ids \(-100,\) must lie in 0..8"),
    "role past the end": ({"roles": {"io": (5, 9)}}, "role 'io' covers characters 5 to 9 of the clean prompt.* 8;"),
    "role before the start": ({"roles": {"io": (-3, 4)}}, "role 'io' covers characters -3 to 4"),
    "empty role": ({"roles": {"io": (4, 4)}}, "role 'io' covers characters 4 to 4"),
    "role outside the corrupted prompt": ({"corrupted_roles": {"io": (0, 9)}}, "of the corrupted prompt, which has 8"),
    "role without a token": ({"roles": {"io": (4, 5)}}, "role 'io' covers no token of the clean prompt, only ' '"),
}


@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_compared_is_refused(change: dict[str, Any], message: str) -> None:
    tokenizer = word_tokenizer(["Mary", "John", "Kate", "met", "foo", "bar"])  # from 3 on
    with pytest.raises(EdgepruneError, match=f"^f:3: .*{message}") as caught:
        encode_pairs([GOOD, replace(GOOD, **change)], tokenizer)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (PromptPair("Mary met", "Kate met", " John foo", source="f:3"), "f:3: answer ' John foo' is 2 tokens"),
        (PromptPair("Mary met", "Kate met", " John", " foo bar", source="f:3"), "f:3: distractor ' foo bar' is 2"),
    ],
)
def test_one_token_where_the_task_says_so(words: PreTrainedTokenizerBase, pair: PromptPair, message: str) -> None:
    assert len(encode_pairs([GOOD, pair], words)) == 2
    assert len(encode_pairs([GOOD], words, single_token_answers=True)) == 1
    with pytest.raises(EdgepruneError, match=message):
        encode_pairs([GOOD, pair], words, single_token_answers=True)


def test_roles_that_are_missing_are_refused(words: PreTrainedTokenizerBase) -> None:
    pair = PromptPair("Mary met foo", "Kate met", " John", roles={"io": (0, 4)}, source="f:3")
    with pytest.raises(EdgepruneError, match=r"f:3: roles io of the clean prompt and \(none\) of the corrupted one"):
        encode_pairs([GOOD, pair], words, unequal_lengths="roles")
