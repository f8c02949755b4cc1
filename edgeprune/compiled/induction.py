"""A transformer that continues what it has seen: the token that followed the last time, attention alone.

Input: BOS, then 2 to 8 symbols from {1, 2, 3, 4}, each at most twice and at least one twice. Token ids are 0 for BOS
and n for the symbol n. Output at a position whose symbol occurred before: the symbol that followed it then. Elsewhere
the program does not say. Two layers, one head each, causal, no MLP:

    a0   from the position before, the token                              -> c[previous t]  (previous-token head)
    a1   from the position whose previous token is the own token, its token -> c[output t], times 10  (induction head)

Outputs are numbered as tokens are; the one for BOS reads nothing and stays 0.
"""

from itertools import pairwise

from edgeprune.batch import IGNORE
from edgeprune.compiled.builder import DECISION, FOCUS, Description, Head, Layer, Match, build, copy, equal, one_hot
from edgeprune.compiled.program import BOS, Case, Program, words
from edgeprune.compiled.transformer import CompiledTransformer

SYMBOLS = ("1", "2", "3", "4")
MAX_LENGTH = 2 * len(SYMBOLS)

_TOKEN, _PREVIOUS, _OUTPUT = (one_hot(group, SYMBOLS) for group in ("token", "previous", "output"))
_POSITION = one_hot("position", range(MAX_LENGTH + 1))

ZERO_CIRCUIT = (
    "pos_embed->a0.h0.q",
    "pos_embed->a0.h0.k",
    "tok_embed->a0.h0.v",
    "tok_embed->a1.h0.q",
    "a0.h0->a1.h0.k",
    "tok_embed->a1.h0.v",
    "a1.h0->logits",
)
# Positions, and with them who comes before whom, are the same in another input of the same length.
INTERCHANGE_CIRCUIT = tuple(edge for edge in ZERO_CIRCUIT if not edge.startswith("pos_embed"))


def build_induction() -> CompiledTransformer:
    """Write the weights.

    >>> import torch
    >>> build_induction()(torch.tensor([[0, 3, 1, 4, 3, 1]])).logits.argmax(-1)[0, 4:].tolist()
    [1, 4]
    """
    before = [Match({position: FOCUS}, {earlier: 1.0}) for earlier, position in pairwise(_POSITION)]
    description = Description(
        columns=[*_TOKEN, *_POSITION, *_PREVIOUS, *_OUTPUT],
        tokens={BOS: {}} | {name: {f"token {name}": 1.0} for name in SYMBOLS},
        positions=[{name: 1.0} for name in _POSITION],
        layers=[
            Layer([Head(copy(_TOKEN, _PREVIOUS), before)]),
            Layer([Head(copy(_TOKEN, _OUTPUT, DECISION), equal(_TOKEN, _PREVIOUS))]),
        ],
        outputs={BOS: {}} | {name: {f"output {name}": 1.0} for name in SYMBOLS},
        causal=True,
    )
    return build("induction", description)


def induction_cases() -> list[Case]:
    """Every valid input with what followed each symbol the last time, `IGNORE` at first occurrences."""
    found = words(len(SYMBOLS), range(2, MAX_LENGTH + 1))
    numbered = [tuple(symbol + 1 for symbol in word) for word in found if _is_valid(word)]
    return [((0, *word), tuple(_continuation(word, place) for place in range(len(word)))) for word in numbered]


def _is_valid(word: tuple[int, ...]) -> bool:
    most = max(word.count(symbol) for symbol in word)
    return most == 2


def _continuation(word: tuple[int, ...], place: int) -> int:
    earlier = word[:place]
    return word[earlier.index(word[place]) + 1] if word[place] in earlier else IGNORE


INDUCTION = Program(
    build_induction,
    induction_cases,
    "categorical",
    {"zero": (ZERO_CIRCUIT,), "interchange": (INTERCHANGE_CIRCUIT,)},
)
