"""Tasks: one file each."""

from datamodules.tasks.base import AbstractTask, PromptPair, TokenPair
from datamodules.tasks.capitals import Capitals
from datamodules.tasks.gendered_pronoun import GenderedPronoun
from datamodules.tasks.greater_than import GreaterThan
from datamodules.tasks.ioi import IOI
from datamodules.tasks.jsonl import JSONLTask
from datamodules.tasks.subject_verb import SubjectVerb

__all__ = [
    "IOI",
    "AbstractTask",
    "Capitals",
    "GenderedPronoun",
    "GreaterThan",
    "JSONLTask",
    "PromptPair",
    "SubjectVerb",
    "TokenPair",
]
