"""The loader of a split: examples one by one, and workers that leave stopping to the run."""

import signal
from collections.abc import Sequence
from typing import Any, final

from torch.utils.data import DataLoader, Dataset

from datamodules.collate import Example
from datamodules.stream import PairStream
from datamodules.tasks.base import TokenPair


@final
class Examples(Dataset[Example]):
    """Pairs with their numbers, read one by one."""

    def __init__(self, pairs: Sequence[TokenPair] | PairStream) -> None:
        self.pairs = pairs

    def __getitem__(self, index: int) -> Example:
        return index, self.pairs[index]


def ignore_terminal_signals(worker: int) -> None:
    """Ignore Ctrl-C and hang-up in a worker: the run saves first, and then ends its workers."""
    for name in ("SIGINT", "SIGHUP"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)


@final
class ResumableLoader(DataLoader[Example]):
    """A loader that Lightning knows to be resumable; the place to resume at is kept by `PairDataModule`."""

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the sampler asks the data module where to begin."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to load."""
