"""A transformer that counts one letter: at every position, the fraction of x among the letters so far.

Input: BOS, then 1 to 5 letters from {w, x, y, z}. Output at position p >= 1, one number: how many of the letters 1 to p
are x, divided by p. Two layers, one head each, not causal: which letters come before, the positions themselves say.

    m0   "is x"                                                          -> c[is x]
    a1   average over all positions whose index is not above the own one -> c[fraction]

where index = position - 1; BOS has none, so it is never averaged over. Head a0 and MLP m1 are zero.
"""

from edgeprune.compiled.builder import FOCUS, Description, Head, Layer, Match, Move, Unit, build, one_hot
from edgeprune.compiled.program import BOS, PAD, Case, Program, labelled
from edgeprune.compiled.transformer import CompiledTransformer

LETTERS = ("w", "x", "y", "z")
COUNTED = "x"
MAX_LENGTH = 5

_INDEX = one_hot("index", range(MAX_LENGTH))

ZERO_CIRCUIT = (
    "tok_embed->m0",
    "m0->a1.h0.v",
    "pos_embed->a1.h0.q",
    "pos_embed->a1.h0.k",
    "a1.h0->logits",
)
# Positions, and with them who is averaged over, are the same in another input of the same length.
INTERCHANGE_CIRCUIT = ("tok_embed->m0", "m0->a1.h0.v", "a1.h0->logits")


def build_xproportion() -> CompiledTransformer:
    """Write the weights.

    >>> import torch
    >>> model = build_xproportion()
    >>> fractions = model(torch.tensor([[4, 1, 0, 1, 3]])).logits[0, 1:, 0]  # BOS x w x z
    >>> [round(value, 4) for value in fractions.tolist()]
    [1.0, 0.5, 0.6667, 0.5]
    """
    not_after = [Match({_INDEX[i]: FOCUS}, dict.fromkeys(_INDEX[: i + 1], 1.0)) for i in range(MAX_LENGTH)]
    description = Description(
        columns=["is x token", *_INDEX, "is x", "fraction"],
        tokens={letter: {"is x token": 1.0} if letter == COUNTED else {} for letter in LETTERS} | {BOS: {}, PAD: {}},
        positions=[{}, *({name: 1.0} for name in _INDEX)],
        layers=[
            Layer(units=[Unit({"is x token": 1.0}, {"is x": 1.0})]),
            Layer([Head([Move({"is x": 1.0}, {"fraction": 1.0})], not_after)]),
        ],
        outputs={"fraction": {"fraction": 1.0}},
    )
    return build("xproportion", description)


def xproportion_cases() -> list[Case]:
    """Every valid input with its fractions: 1364 cases, shortest first."""
    counted = LETTERS.index(COUNTED)
    return labelled(
        len(LETTERS),
        range(1, MAX_LENGTH + 1),
        lambda word: (word[:end].count(counted) / end for end in range(1, len(word) + 1)),
    )


XPROPORTION = Program(
    build_xproportion,
    xproportion_cases,
    "numerical",
    {"zero": (ZERO_CIRCUIT,), "interchange": (INTERCHANGE_CIRCUIT,)},
)
