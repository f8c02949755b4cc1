"""What is known of a program: how to build its model, what it computes, and which edges matter."""

from collections.abc import Callable, Iterable, Mapping
from itertools import product
from typing import Literal, NamedTuple

from edgeprune.compiled.transformer import CompiledTransformer

Ablation = Literal["zero", "interchange"]
Output = Literal["categorical", "numerical"]
Edges = tuple[str, ...]
Case = tuple[tuple[int, ...], tuple[float, ...]]  # token ids; the right outputs at positions 1, 2, ...

BOS, PAD = "BOS", "PAD"


class Program(NamedTuple):
    """A model with everything that is known about it.

    Attributes:
        build: Makes the model.
        cases: Every valid input (a fixed random sample for a trained model) as token ids, each with the right outputs
            at its positions 1, 2, ...: the index of the right logit if outputs are categorical, the number itself if
            they are numerical, `edgeprune.batch.IGNORE` where the program does not say.
        output: `"categorical"`: the largest logit counts, compare by divergence. `"numerical"`: the logit itself is
            the answer, compare by squared error.
        circuits: For each ablation all minimal circuits, the one to aim at first; empty for a trained model.
    """

    build: Callable[[], CompiledTransformer]
    cases: Callable[[], list[Case]]
    output: Output
    circuits: Mapping[Ablation, tuple[Edges, ...]]


def labelled(
    num_symbols: int, lengths: Iterable[int], outputs: Callable[[tuple[int, ...]], Iterable[float]]
) -> list[Case]:
    """All words, shortest first, after BOS, whose id is `num_symbols`; each with its `outputs`."""
    return [((num_symbols, *word), tuple(outputs(word))) for word in words(num_symbols, lengths)]


def words(num_symbols: int, lengths: Iterable[int]) -> list[tuple[int, ...]]:
    """All words over the symbols 0, 1, ..., shortest first."""
    return [word for length in lengths for word in product(range(num_symbols), repeat=length)]
