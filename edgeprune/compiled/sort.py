"""A transformer that sorts its input: at position p, the p-th smallest token; equal tokens keep their order.

Input: BOS, then 1 to 5 tokens from {1, 2, 3, 4}. Three layers, one head each, not causal.

    m0   (token is t) and (index is i)                                    -> c[key t.i], one-hot
    a1   over BOS and all positions with a smaller key, the average of "is BOS" -> c[fraction] = 1 / (rank + 1)
    m1   ramps between the values that 1 / (rank + 1) can take            -> c[rank r], one-hot
    a2   from the position whose rank is the own index, the token         -> c[output t], times 10

where index = position - 1, and keys are ordered by token, then by index. Head a0 and MLP m2 are zero. Every token
embedding brings c[one] = 1, which sets the thresholds of m0 and m1. BOS has no key, so a1 averages over everything
there: its rank is the length of the input, which is nobody's index.
"""

from edgeprune.compiled.builder import (
    DECISION,
    FOCUS,
    Description,
    Head,
    Layer,
    Match,
    Move,
    build,
    copy,
    equal,
    levels,
    one_hot,
    table,
)
from edgeprune.compiled.program import BOS, PAD, Case, Program, labelled
from edgeprune.compiled.transformer import CompiledTransformer

SYMBOLS = ("1", "2", "3", "4")
MAX_LENGTH = 5

_TOKEN, _OUTPUT = one_hot("token", SYMBOLS), one_hot("output", SYMBOLS)
_INDEX, _RANK = one_hot("index", range(MAX_LENGTH)), one_hot("rank", range(MAX_LENGTH))
_PAIRS = [(symbol, index) for symbol in SYMBOLS for index in range(MAX_LENGTH)]
_KEY = one_hot("key", (f"{symbol}.{index}" for symbol, index in _PAIRS))

ZERO_CIRCUIT = (
    "tok_embed->m0",
    "pos_embed->m0",
    "m0->a1.h0.q",
    "tok_embed->a1.h0.k",
    "m0->a1.h0.k",
    "tok_embed->a1.h0.v",
    "tok_embed->m1",
    "a1.h0->m1",
    "pos_embed->a2.h0.q",
    "m1->a2.h0.k",
    "tok_embed->a2.h0.v",
    "a2.h0->logits",
)
# Positions, BOS and the constant are the same in another input of the same length.
INTERCHANGE_CIRCUIT = (
    "tok_embed->m0",
    "m0->a1.h0.q",
    "m0->a1.h0.k",
    "a1.h0->m1",
    "m1->a2.h0.k",
    "tok_embed->a2.h0.v",
    "a2.h0->logits",
)


def build_sort() -> CompiledTransformer:
    """Write the weights.

    >>> import torch
    >>> model = build_sort()
    >>> model(torch.tensor([[4, 3, 0, 2, 0]])).logits.argmax(-1)[0, 1:].tolist()  # BOS 4 1 3 1 -> 1 1 3 4
    [0, 0, 2, 3]
    """
    smaller = [
        Match({key: FOCUS}, dict.fromkeys(["token BOS", *_KEY[:number]], 1.0)) for number, key in enumerate(_KEY)
    ]
    keys = {(f"token {symbol}", _INDEX[index]): {key: 1.0} for (symbol, index), key in zip(_PAIRS, _KEY, strict=True)}
    ranks = levels("fraction", [1 / (r + 1) for r in range(MAX_LENGTH)], [{name: 1.0} for name in _RANK], one="one")
    description = Description(
        columns=[*_TOKEN, "token BOS", "one", *_INDEX, *_KEY, "fraction", *_RANK, *_OUTPUT],
        tokens={name: {f"token {name}": 1.0, "one": 1.0} for name in (*SYMBOLS, BOS)} | {PAD: {}},
        positions=[{}, *({name: 1.0} for name in _INDEX)],
        layers=[
            Layer(units=table(keys, one="one")),
            Layer([Head([Move({"token BOS": 1.0}, {"fraction": 1.0})], smaller)], ranks),
            Layer([Head(copy(_TOKEN, _OUTPUT, DECISION), equal(_INDEX, _RANK))]),
        ],
        outputs={symbol: {f"output {symbol}": 1.0} for symbol in SYMBOLS},
    )
    return build("sort", description)


def sort_cases() -> list[Case]:
    """Every valid input with its sorted tokens: 1364 cases, shortest first."""
    return labelled(len(SYMBOLS), range(1, MAX_LENGTH + 1), sorted)


SORT = Program(build_sort, sort_cases, "categorical", {"zero": (ZERO_CIRCUIT,), "interchange": (INTERCHANGE_CIRCUIT,)})
