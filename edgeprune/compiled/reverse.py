"""A transformer that reverses its input, written by hand: which edges it computes through is known.

Input: BOS, then 1 to 5 tokens from {1, 2, 3}. Output at position p >= 1: the token at position len + 1 - p.
Four layers, one head each, not causal. `c` stands for the columns of the residual stream:

    a0   average over all positions of "is BOS"                    -> c[fraction] = 1 / (len + 1)
    m0   ramps between the values that 1 / (len + 1) can take      -> c[length l], one-hot
    m1   (length is l) and (index is i), for all i < l             -> c[opposite l - 1 - i]
    m2   copies c[opposite j]                                      -> c[target j]
    a3   from the position whose index is the target, the token    -> c[output t], times 10

where index = position - 1. Heads a1, a2 and MLP m3 are all zero. Every token embedding brings c[one] = 1.
"""

from edgeprune.compiled.builder import (
    DECISION,
    Description,
    Head,
    Layer,
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

SYMBOLS = ("1", "2", "3")
MAX_LENGTH = 5

_LENGTHS = range(1, MAX_LENGTH + 1)
_TOKEN, _OUTPUT = one_hot("token", SYMBOLS), one_hot("output", SYMBOLS)
_INDEX, _OPPOSITE, _TARGET = (one_hot(group, range(MAX_LENGTH)) for group in ("index", "opposite", "target"))
_LENGTH = one_hot("length", _LENGTHS)

ZERO_CIRCUIT = (
    "tok_embed->a0.h0.v",
    "tok_embed->m0",
    "a0.h0->m0",
    "tok_embed->m1",
    "pos_embed->m1",
    "m0->m1",
    "m1->m2",
    "m2->a3.h0.q",
    "pos_embed->a3.h0.k",
    "tok_embed->a3.h0.v",
    "a3.h0->logits",
)
# Another input of the same length shares positions, BOS, the constant and all that follows from the length.
INTERCHANGE_CIRCUIT = ("tok_embed->a3.h0.v", "a3.h0->logits")


def build_reverse() -> CompiledTransformer:
    """Write the weights.

    >>> import torch
    >>> model = build_reverse()
    >>> model(torch.tensor([[3, 0, 0, 2]])).logits.argmax(-1)[0, 1:].tolist()  # BOS 1 1 3 -> 3 1 1
    [2, 0, 0]
    """
    fraction = Head([Move({"token BOS": 1}, {"fraction": 1})])
    length = levels("fraction", [1 / (n + 1) for n in _LENGTHS], [{name: 1} for name in _LENGTH], one="one")
    opposite = {
        (_LENGTH[n - 1], _INDEX[index]): {_OPPOSITE[n - 1 - index]: 1.0} for n in _LENGTHS for index in range(n)
    }
    target = {(source,): {goal: 1.0} for source, goal in zip(_OPPOSITE, _TARGET, strict=True)}
    output = Head(copy(_TOKEN, _OUTPUT, DECISION), equal(_TARGET, _INDEX))
    description = Description(
        columns=[*_TOKEN, "token BOS", "one", "fraction", *_INDEX, *_OPPOSITE, *_TARGET, *_LENGTH, *_OUTPUT],
        tokens={name: {f"token {name}": 1, "one": 1} for name in (*SYMBOLS, BOS)} | {PAD: {}},
        positions=[{}, *({name: 1} for name in _INDEX)],
        layers=[
            Layer([fraction], length),
            Layer(units=table(opposite, one="one")),
            Layer(units=table(target, one="one")),
            Layer([output]),
        ],
        outputs={name: {f"output {name}": 1} for name in SYMBOLS},
    )
    return build("reverse", description)


def reverse_cases() -> list[Case]:
    """Every valid input, and the right output at its positions 1, 2, ...: 363 cases, shortest first."""
    return labelled(len(SYMBOLS), _LENGTHS, reversed)  # token ids of the symbols are their output indices


REVERSE = Program(
    build_reverse, reverse_cases, "categorical", {"zero": (ZERO_CIRCUIT,), "interchange": (INTERCHANGE_CIRCUIT,)}
)
