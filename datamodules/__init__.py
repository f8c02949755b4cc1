"""Clean/corrupted pairs for training and evaluation."""

from datamodules.pairs import PairDataModule
from datamodules.tasks import IOI, AbstractTask, JSONLTask, PromptPair, TokenPair

__all__ = ["IOI", "AbstractTask", "JSONLTask", "PairDataModule", "PromptPair", "TokenPair"]
