"""Clean/corrupted pairs for training and evaluation."""

from datamodules.pairs import PairDataModule
from datamodules.tasks import (
    IOI,
    AbstractTask,
    AutoCircuitTask,
    BooleanExpressions,
    Capitals,
    Docstring,
    EAPCSVTask,
    GenderedPronoun,
    GreaterThan,
    HFDatasetTask,
    Induction,
    JSONLTask,
    PromptPair,
    SubjectVerb,
    TokenPair,
)
from datamodules.tasks.compiled import CompiledTask
from datamodules.tasks.tracr import TracrTask

__all__ = [
    "IOI",
    "AbstractTask",
    "AutoCircuitTask",
    "BooleanExpressions",
    "Capitals",
    "CompiledTask",
    "Docstring",
    "EAPCSVTask",
    "GenderedPronoun",
    "GreaterThan",
    "HFDatasetTask",
    "Induction",
    "JSONLTask",
    "PairDataModule",
    "PromptPair",
    "SubjectVerb",
    "TokenPair",
    "TracrTask",
]
