"""What texts add to a prompt, judged in place."""

import pytest
from transformers import PreTrainedTokenizerBase

from datamodules.tasks.continuations import Continuation, added_tokens, check_ids, single_tokens, texts_of
from edgeprune.errors import EdgepruneError

PROMPT = "Yesterday Anna gave the ring to"


def test_tokens_are_those_that_the_whole_text_has_more(gpt2: PreTrainedTokenizerBase) -> None:
    texts = [" Mary", " Annabelle", ".", "tal"]
    found = added_tokens([Continuation(PROMPT, text, "") for text in texts], gpt2)
    assert found[0] == (gpt2.convert_tokens_to_ids("ĠMary"),)
    assert len(found[1] or ()) > 1
    assert found[2] == (gpt2.convert_tokens_to_ids("."),)
    assert found[3] is None  # "total" is another word


def test_a_space_that_ends_the_prompt_goes_to_the_answer(gpt2: PreTrainedTokenizerBase) -> None:
    [found] = added_tokens([Continuation("1 + 2 = ", "3", "")], gpt2)
    assert found == (gpt2.convert_tokens_to_ids("Ġ3"),)


@pytest.mark.parametrize(
    ("text", "message"), [(" Annabelle", r"f:1: .*' Annabelle' is \d tokens"), ("tal", "changes the")]
)
def test_anything_but_one_token_is_refused(gpt2: PreTrainedTokenizerBase, text: str, message: str) -> None:
    with pytest.raises(EdgepruneError, match=message):
        single_tokens([Continuation(PROMPT, text, "f:1")], gpt2)


def test_unknown_words_are_refused(words: PreTrainedTokenizerBase) -> None:
    with pytest.raises(EdgepruneError, match="f:2: the tokenizer does not know the answer ' Xanthippe'"):
        single_tokens([Continuation("foo bar", " Xanthippe", "f:2")], words)


@pytest.mark.parametrize(
    ("prompt", "text"),
    [(PROMPT, " Mary"), (PROMPT, "."), ("1 + 2 = ", "3"), ("1 + 2 =", " 3"), (PROMPT, " \N{SNOWMAN}")],
)
def test_texts_and_ids_belong_together(gpt2: PreTrainedTokenizerBase, prompt: str, text: str) -> None:
    [ids] = added_tokens([Continuation(prompt, text, "")], gpt2)
    assert ids is not None
    if len(ids) == 1:
        assert texts_of([(prompt, ids[0], "")], gpt2) == [text]
    else:  # a part of a letter's bytes is no text
        with pytest.raises(EdgepruneError, match=r"f:3: token id \d+ .* is not what any text becomes"):
            texts_of([(prompt, ids[0], "f:3")], gpt2)


def test_tokenizers_that_hide_the_space_are_served(words: PreTrainedTokenizerBase) -> None:
    number = words.convert_tokens_to_ids("bar")
    assert texts_of([("foo", number, "")], words) == [" bar"]


def test_ids_outside_the_vocabulary_are_refused(gpt2: PreTrainedTokenizerBase) -> None:
    check_ids([0, len(gpt2) - 1], "f:1", gpt2)
    for bad in (-1, len(gpt2)):
        with pytest.raises(EdgepruneError, match=rf"f:1: token id {bad} is outside 0..{len(gpt2) - 1}"):
            check_ids([0, bad], "f:1", gpt2)


def test_nothing_asked_is_nothing_answered(words: PreTrainedTokenizerBase) -> None:
    assert added_tokens([], words) == []
