"""Clean/corrupted pairs for training and evaluation."""

from datamodules.pairs import PairDataModule
from datamodules.tasks import (
    IOI,
    AbstractTask,
    Capitals,
    GenderedPronoun,
    GreaterThan,
    JSONLTask,
    PromptPair,
    SubjectVerb,
    TokenPair,
)
from datamodules.tasks.compiled import CompiledTask

__all__ = [
    "IOI",
    "AbstractTask",
    "Capitals",
    "CompiledTask",
    "GenderedPronoun",
    "GreaterThan",
    "JSONLTask",
    "PairDataModule",
    "PromptPair",
    "SubjectVerb",
    "TokenPair",
]
