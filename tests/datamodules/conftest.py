"""Tokenizers: a small one built here; those of GPT-2 and Pythia where the folder ../shared has them."""

import re
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from datamodules.tasks.ioi_words import NAMES, OBJECTS, PLACES, TEMPLATES

SHARED = Path(__file__).parents[3] / "shared" / "tokenizers"
TEMPLATE_WORDS = re.findall(r"\w+|[^\w\s{}]", re.sub(r"{\w+}", "", " ".join(TEMPLATES)))


def word_tokenizer(words: list[str], *, bos: bool = False) -> PreTrainedTokenizerBase:
    """One token per word; `[UNK]` for others; `bos` puts `[BOS]` before every text."""
    vocab = {word: i for i, word in enumerate(dict.fromkeys(["[UNK]", "[BOS]", "[PAD]", *words]))}
    backend = Tokenizer(WordLevel(vocab, unk_token="[UNK]"))
    backend.pre_tokenizer = Whitespace()
    if bos:
        backend.post_processor = TemplateProcessing(single="[BOS] $A", special_tokens=[("[BOS]", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]", bos_token="[BOS]", pad_token="[PAD]")


@pytest.fixture(scope="session")
def words() -> PreTrainedTokenizerBase:
    """Knows every word of the IOI task and a few more."""
    digits = [str(i) for i in range(20)]
    return word_tokenizer(["When", *TEMPLATE_WORDS, *NAMES, *PLACES, *OBJECTS, *digits, "=", "+", "foo", "bar"])


@pytest.fixture(scope="session", params=["words", "gpt2", "pythia"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """Each tokenizer that is at hand."""
    return request.getfixturevalue("words") if request.param == "words" else shared_tokenizer(str(request.param))


@pytest.fixture(scope="session")
def gpt2() -> PreTrainedTokenizerBase:
    """GPT-2's own, which joins a space with the word after it."""
    return shared_tokenizer("gpt2")


def shared_tokenizer(name: str) -> PreTrainedTokenizerBase:
    if not (SHARED / name).is_dir():
        pytest.skip(f"no tokenizer at {SHARED / name}")
    return AutoTokenizer.from_pretrained(SHARED / name)
