"""Tasks: one file each."""

from datamodules.tasks.base import AbstractTask, PromptPair, TokenPair
from datamodules.tasks.ioi import IOI
from datamodules.tasks.jsonl import JSONLTask

__all__ = ["IOI", "AbstractTask", "JSONLTask", "PromptPair", "TokenPair"]
