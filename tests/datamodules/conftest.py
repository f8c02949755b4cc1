"""Tokenizers: a small one built here; those of GPT-2 and Pythia from outside the project."""

import re

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from datamodules.tasks import capitals, gendered_pronoun, greater_than, subject_verb, word_lists
from datamodules.tasks.boolean import INSTRUCTION
from datamodules.tasks.docstring import ARGUMENTS, DESCRIPTIONS, FUNCTIONS
from datamodules.tasks.greater_than import FORMS
from datamodules.tasks.ioi import NAMES, OBJECTS, PLACES, TEMPLATES
from datamodules.tasks.word_lists import SENTENCES
from edgeprune.models.fetched import is_complete, model_folder
from tests.files import outside

TEMPLATE_WORDS = re.findall(r"\w+|[^\w\s{}]", re.sub(r"{\w+}", "", " ".join(TEMPLATES)))


def words_in(listed: object) -> list[str]:
    """Words and marks of texts however nested, without their slots."""
    if isinstance(listed, str):
        return re.findall(r"\w+|[^\w\s]", re.sub(r"{\w+}", " ", listed))
    return [word for item in listed for word in words_in(item)] if isinstance(listed, tuple) else []


# What the tasks beside IOI are made of; digits aside.
TASK_WORDS = words_in(
    tuple(
        value
        for module in (capitals, gendered_pronoun, greater_than, subject_verb, word_lists)
        for name, value in vars(module).items()
        if name.isupper()
    )
)
TASK_WORDS += ["he", "she", *words_in(tuple(FORMS.values()))]


DOCSTRING_MARKS = ["def", "(", "self", ",", "):", '"""', ":", "param"]
TASK_WORDS += [*DOCSTRING_MARKS, *ARGUMENTS, *FUNCTIONS, *DESCRIPTIONS]
TASK_WORDS += ["True", "False", "and", "or", "not", "(", ")", "is", *words_in(INSTRUCTION)]
TASK_WORDS += ["*", *words_in(tuple(SENTENCES.values()))]


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
    """Knows every word of the generated tasks and a few more."""
    digits = [str(i) for i in range(20)]
    own = ["When", *TEMPLATE_WORDS, *NAMES, *PLACES, *OBJECTS, *digits, "=", "+", "foo", "bar"]
    return word_tokenizer([*own, *TASK_WORDS])


@pytest.fixture(scope="session", params=["words", "gpt2", "pythia"])
def tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """Each tokenizer that is at hand."""
    return request.getfixturevalue("words") if request.param == "words" else shared_tokenizer(str(request.param))


@pytest.fixture(scope="session", params=["words", "gpt2", "pythia", "smollm2"])
def task_tokenizer(request: pytest.FixtureRequest) -> PreTrainedTokenizerBase:
    """Each tokenizer that is at hand, with that of the model which is downloaded."""
    fixture = request.param in ("words", "smollm2")
    return request.getfixturevalue(request.param) if fixture else shared_tokenizer(request.param)


@pytest.fixture(scope="session")
def gpt2() -> PreTrainedTokenizerBase:
    """GPT-2's own, which joins a space with the word after it."""
    return shared_tokenizer("gpt2")


@pytest.fixture(scope="session")
def smollm2() -> PreTrainedTokenizerBase:
    """SmolLM2's own, to which every digit is a token."""
    folder = model_folder("smollm2")
    if not is_complete("smollm2"):
        pytest.skip(f"SmolLM2 is not at {folder}; `edgeprune get smollm2` fetches it")
    return AutoTokenizer.from_pretrained(folder)


def shared_tokenizer(name: str) -> PreTrainedTokenizerBase:
    return AutoTokenizer.from_pretrained(outside(f"tokenizers/{name}"))
