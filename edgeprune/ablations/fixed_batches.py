"""The batch in which each example of a split is always run, and which examples are kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from edgeprune.ablations.reference_cache import PLACES, Place
from edgeprune.batch import PairBatch


@final
@dataclass(frozen=True, eq=False)
class FixedBatches:
    """The fixed batch of every example of a split; a function of the data and its seed alone.

    A run of a model rounds differently in another batch shape. What is kept of an example is therefore always computed
    in its fixed batch, so that it does not depend on what was run before.

    Attributes:
        batches: Numbers of the examples of each fixed batch. Every example is in one. The order is that in which
            examples are kept, as long as there is room.
        collate: Makes the batch of some examples, in this order.
        lengths: Tokens of an example's clean prompt, and its scored positions.
    """

    batches: Sequence[Sequence[int]]
    collate: Callable[[Sequence[int]], PairBatch]
    lengths: Callable[[int], tuple[int, int]]


@final
class KeepingPlan:
    """Which examples of a split are kept and where: whole fixed batches, the first for which there is room.

    Args:
        fixed: The fixed batches.
        size: Bytes of an example, from its tokens and scored positions.
        room: Bytes by place; what is taken is subtracted. Memory is preferred.

    Attributes:
        taken: Bytes by place.
    """

    def __init__(self, fixed: FixedBatches, size: Callable[[int, int], int], room: dict[Place, int]) -> None:
        self.fixed = fixed
        self.taken: dict[Place, int] = dict.fromkeys(PLACES, 0)
        self._places: list[Place] = []  # of the first fixed batches
        self._place_of: dict[int, int] = {}
        for numbers in fixed.batches:
            needed = sum(size(*fixed.lengths(number)) for number in numbers)
            place: Place | None = next((place for place in PLACES if needed <= room[place]), None)
            if place is None:
                break
            room[place] -= needed
            self.taken[place] += needed
            self._place_of |= dict.fromkeys(numbers, len(self._places))
            self._places.append(place)

    def __contains__(self, number: int) -> bool:
        """Whether an example is kept."""
        return number in self._place_of

    def batch_of(self, number: int) -> Sequence[int]:
        """Numbers of the examples of the fixed batch of an example that is kept."""
        return self.fixed.batches[self._place_of[number]]

    def place(self, number: int) -> Place:
        """Where an example that is kept lies."""
        return self._places[self._place_of[number]]

    def without(self, place: Place) -> None:
        """Give up keeping examples there."""
        self.taken[place] = 0
        self._place_of = {number: index for number, index in self._place_of.items() if self._places[index] != place}
