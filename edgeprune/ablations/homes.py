"""Home batches: in which company each example of a split is run, wherever it is met; and which examples are kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from edgeprune.ablations.frozen_store import PLACES, Place
from edgeprune.batch import PairBatch


@final
@dataclass(frozen=True, eq=False)
class Homes:
    """The home batch of every example of a split; a function of the data and its seed alone.

    A run of a model rounds differently in another batch shape. What is kept of an example is therefore always computed
    in its home batch, so that it does not depend on what was run before.

    Attributes:
        batches: Numbers of the examples of each home batch. Every example has one home. The order is that in which
            examples are kept, as long as there is room.
        collate: Makes the batch of some examples, in this order.
        lengths: Tokens of an example's clean prompt, and its scored positions.
    """

    batches: Sequence[Sequence[int]]
    collate: Callable[[Sequence[int]], PairBatch]
    lengths: Callable[[int], tuple[int, int]]


@final
class KeepingPlan:
    """Which examples of a split are kept and where: whole home batches, the first for which there is room.

    Args:
        homes: The home batches.
        size: Bytes of an example, from its tokens and scored positions.
        room: Bytes by place; what is taken is subtracted. Memory is preferred.

    Attributes:
        taken: Bytes by place.
    """

    def __init__(self, homes: Homes, size: Callable[[int, int], int], room: dict[Place, int]) -> None:
        self.homes = homes
        self.taken: dict[Place, int] = dict.fromkeys(PLACES, 0)
        self._places: list[Place] = []  # of the first home batches
        self._home_of: dict[int, int] = {}
        for numbers in homes.batches:
            needed = sum(size(*homes.lengths(number)) for number in numbers)
            place: Place | None = next((place for place in PLACES if needed <= room[place]), None)
            if place is None:
                break
            room[place] -= needed
            self.taken[place] += needed
            self._home_of |= dict.fromkeys(numbers, len(self._places))
            self._places.append(place)

    def __contains__(self, number: int) -> bool:
        """Whether an example is kept."""
        return number in self._home_of

    def home(self, number: int) -> Sequence[int]:
        """Numbers of the examples of the home batch of an example that is kept."""
        return self.homes.batches[self._home_of[number]]

    def place(self, number: int) -> Place:
        """Where an example that is kept lies."""
        return self._places[self._home_of[number]]

    def without(self, place: Place) -> None:
        """Give up keeping examples there."""
        self.taken[place] = 0
        self._home_of = {number: home for number, home in self._home_of.items() if self._places[home] != place}
