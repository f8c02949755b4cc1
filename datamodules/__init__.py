"""Clean/corrupted pairs for training and evaluation."""

from datamodules import tasks
from datamodules.pairs import PairDataModule
from datamodules.tasks import *  # noqa: F403

__all__ = ["PairDataModule"]
__all__ += tasks.__all__
