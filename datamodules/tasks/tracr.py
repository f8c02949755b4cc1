"""Pairs of a ground-truth folder of format `tracr-circuit-data/1`: the inputs in its `examples.json`."""

import random
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch

from datamodules.tasks import files
from datamodules.tasks.base import SPLITS, AbstractTask, TokenPair
from datamodules.tasks.files import check_fractions
from edgeprune.batch import IGNORE
from edgeprune.compiled import tracr_format
from edgeprune.compiled.tracr_format import Examples, read_examples, read_folder
from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@final
@dataclass(frozen=True)
class TracrTask(AbstractTask):
    """The stored pairs of a compiled model, clean and corrupted.

    Scored are all positions with an output; pairs too short to have any are left out. The model's
    outputs are *for* their position, not for the next token: where they stand for symbols, the target is the index of
    the one that the full model gives; where they are numbers there is no target, and faithfulness is the squared error
    (`model.objective: squared_error`).

    Attributes:
        path: The folder.
        pairs: `"interchange"`, or another kind of pair that the folder has. `"none"`: the stored examples, each its own
            corrupted prompt, for ablations that need none (zero). null: interchange where there is any, else none.
        validation_fraction: Share of the pairs to validate on.
        test_fraction: Share of the pairs to test on.
        held_out: Keep the splits apart. False: each of them holds all pairs, which suits a question about *all* inputs
            of a program: what its circuit is.
        seed: Fixes which pair goes to which split.
    """

    sources: ClassVar[tuple[ModuleType, ...]] = (files, tracr_format)

    path: str
    pairs: str | None = None
    validation_fraction: float = 0.15
    test_fraction: float = 0.15
    held_out: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_fractions(self.validation_fraction, self.test_fraction)

    @property
    def needs_tokenizer(self) -> bool:
        """Never: the inputs are token ids."""
        return False

    def splits(self, tokenizer: "PreTrainedTokenizerBase | None") -> dict[str, list[TokenPair]]:
        """Pairs of each split; `tokenizer` is not used."""
        del tokenizer
        pairs = self._pairs()
        if not self.held_out:
            return dict.fromkeys(SPLITS, pairs)
        return self._part(pairs)

    def input_files(self) -> list[Path]:
        """Those of the folder that are there."""
        files = [Path(self.path) / name for name in ("model.json", "model.safetensors", "examples.json")]
        return [file for file in files if file.is_file()]

    def _part(self, pairs: list[TokenPair]) -> dict[str, list[TokenPair]]:
        """Share the pairs out; a clean prompt that occurs more than once stays in one split."""
        prompts = sorted({pair.clean for pair in pairs})
        random.Random(self.seed).shuffle(prompts)
        test, validation = (round(len(prompts) * part) for part in (self.test_fraction, self.validation_fraction))
        split_of = {
            prompt: SPLITS[2] if i < test else SPLITS[1] if i < test + validation else SPLITS[0]
            for i, prompt in enumerate(prompts)
        }
        return {split: [pair for pair in pairs if split_of[pair.clean] == split] for split in SPLITS}

    def _pairs(self) -> list[TokenPair]:
        examples = read_examples(self.path)
        kind = self.pairs or ("interchange" if examples.pairs.get("interchange") else "none")
        if kind == "none":
            prompts = [(ids, ids) for ids in examples.inputs]
        elif kind in examples.pairs:
            prompts = examples.pairs[kind]
        else:
            raise EdgepruneError(
                f"{self.path} has no pairs of kind {kind!r}; it has: {', '.join([*examples.pairs, 'none'])}"
            )
        scored = [pair for pair in prompts if examples.positions(len(pair[0]))]
        if not scored:
            raise EdgepruneError(
                f"{self.path} has no pair of kind {kind!r} with a position that has an output; choose another kind"
            )
        model = read_folder(self.path)
        return [_pair(model, clean, corrupted, examples) for clean, corrupted in scored]


def _pair(model: Any, clean: tuple[int, ...], corrupted: tuple[int, ...], examples: Examples) -> TokenPair:
    positions = examples.positions(len(clean))
    targets: tuple[int, ...] = (IGNORE,) * len(positions)
    if examples.categorical:
        with torch.no_grad():
            best = model(torch.tensor([clean])).logits[0].argmax(-1)
        targets = tuple(best[list(positions)].tolist())
    return TokenPair(clean, corrupted, positions, targets, (IGNORE,) * len(positions))
