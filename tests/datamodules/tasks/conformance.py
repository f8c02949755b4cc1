"""What every generated task must give, whatever its settings and the tokenizer."""

from collections.abc import Callable
from itertools import combinations

from transformers import PreTrainedTokenizerBase

from datamodules.encode import encode_pairs
from datamodules.tasks.base import SPLITS, PromptPair, TokenPair
from datamodules.tasks.generated import GeneratedTask

Entities = Callable[[PromptPair], set[str]]


def check_task(
    task: GeneratedTask, tokenizer: PreTrainedTokenizerBase, entities: Entities, same_roles: tuple[str, ...] = ("END",)
) -> dict[str, list[PromptPair]]:
    """Check the pairs of `task` as text and as tokens, and return them.

    Args:
        task: The task.
        tokenizer: Any tokenizer that it can work with.
        entities: What must not occur in two splits of a pair.
        same_roles: Roles that say the same in the clean and the corrupted prompt.
    """
    splits = task.splits(tokenizer)
    assert splits == task.splits(tokenizer), "the same seed gives the same pairs"
    assert [len(splits[name]) for name in SPLITS] == list(task.sizes)
    prompts = [pair.clean for pairs in splits.values() for pair in pairs]
    assert len(set(prompts)) == len(prompts), "no prompt occurs twice"
    if task.entities == "disjoint":
        check_disjoint(splits, entities)
    for pairs in splits.values():
        tokens = encode_pairs(pairs, tokenizer, single_token_answers=task.single_token_answers)
        for pair, ids in zip(pairs, tokens, strict=True):
            check_pair(pair, same_roles)
            check_tokens(pair, ids, tokenizer)
    return splits


def check_disjoint(splits: dict[str, list[PromptPair]], entities: Entities) -> None:
    seen = [set[str]().union(*(entities(pair) for pair in pairs)) for pairs in splits.values()]
    assert all(seen)
    assert not any(first & second for first, second in combinations(seen, 2))


def check_pair(pair: PromptPair, same_roles: tuple[str, ...]) -> None:
    assert pair.clean != pair.corrupted
    assert pair.distractor not in (None, pair.answer)
    assert pair.corrupted_answer != pair.answer
    assert pair.source
    assert pair.labels
    assert pair.roles.keys() == pair.corrupted_roles.keys()
    assert pair.roles["END"] == (len(pair.clean) - 1, len(pair.clean))
    assert pair.corrupted_roles["END"] == (len(pair.corrupted) - 1, len(pair.corrupted))
    for role in same_roles:
        assert role_text(pair, role) == role_text(pair, role, corrupted=True)


def check_tokens(pair: PromptPair, ids: TokenPair, tokenizer: PreTrainedTokenizerBase) -> None:
    assert len(ids.clean) == len(ids.corrupted)
    assert not ids.alignment
    num_prompt = len(ids.clean) - len(ids.targets) + 1
    assert ids.roles["END"] == (num_prompt - 1, num_prompt)
    for role, (start, end) in ids.roles.items():
        # A word tokenizer puts spaces between digits and for line ends; a role of one character stands for its token.
        text, said = ("".join(part.split()) for part in (tokenizer.decode(ids.clean[start:end]), role_text(pair, role)))
        assert said in text if len(said) == 1 else said == text
    if pair.answer_ids:
        for target, right, wrong in zip(ids.targets, ids.answers, ids.wrong_answers, strict=True):
            assert target in right
            assert wrong
            assert not set(right) & set(wrong)
        assert (ids.answers, ids.wrong_answers) == (pair.answer_ids, pair.wrong_ids)


def role_text(pair: PromptPair, role: str, *, corrupted: bool = False) -> str:
    text, roles = (pair.corrupted, pair.corrupted_roles) if corrupted else (pair.clean, pair.roles)
    return text[slice(*roles[role])]


def clean_prompts(task: GeneratedTask, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    return [pair.clean for pairs in task.splits(tokenizer).values() for pair in pairs]
