"""Clean/corrupted pairs for training and evaluation."""

from datamodules.pairs import PairDataModule
from datamodules.tasks import IOI, AbstractTask, JSONLTask, PromptPair, TokenPair
from datamodules.tasks.compiled import CompiledTask

__all__ = ["IOI", "AbstractTask", "CompiledTask", "JSONLTask", "PairDataModule", "PromptPair", "TokenPair"]
