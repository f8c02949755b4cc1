"""A transformer that counts: at every position, how often the letter there occurs in the whole input.

Input: BOS, then 1 to 5 letters from {a, b, c, d}. One layer, one head, not causal.

    a0   over BOS and all positions with the own letter, the average of "is BOS" -> c[fraction] = 1 / (count + 1)
    m0   ramps between the values that 1 / (count + 1) can take                  -> c[count n], one-hot, times 10

Every token embedding brings c[one] = 1, which sets the thresholds of m0.
"""

from edgeprune.compiled.builder import DECISION, FOCUS, Description, Head, Layer, Match, Move, build, levels, one_hot
from edgeprune.compiled.program import BOS, PAD, Case, Program, labelled
from edgeprune.compiled.transformer import CompiledTransformer

LETTERS = ("a", "b", "c", "d")
MAX_LENGTH = 5

_COUNTS = range(1, MAX_LENGTH + 1)
_TOKEN, _COUNT = one_hot("token", LETTERS), one_hot("count", _COUNTS)

ZERO_CIRCUIT = (
    "tok_embed->a0.h0.q",
    "tok_embed->a0.h0.k",
    "tok_embed->a0.h0.v",
    "tok_embed->m0",
    "a0.h0->m0",
    "m0->logits",
)
# BOS, which is averaged over, and the constant are the same in every input.
INTERCHANGE_CIRCUIT = ("tok_embed->a0.h0.q", "tok_embed->a0.h0.k", "a0.h0->m0", "m0->logits")


def build_hist() -> CompiledTransformer:
    """Write the weights.

    >>> import torch
    >>> model = build_hist()
    >>> model(torch.tensor([[4, 0, 1, 0, 0]])).logits.argmax(-1)[0, 1:].tolist()  # BOS a b a a -> 3 1 3 3
    [2, 0, 2, 2]
    """
    same = [Match({name: FOCUS}, {name: 1.0, "token BOS": 1.0}) for name in _TOKEN]
    description = Description(
        columns=[*_TOKEN, "token BOS", "one", "fraction", *_COUNT],
        tokens={name: {f"token {name}": 1.0, "one": 1.0} for name in (*LETTERS, BOS)} | {PAD: {}},
        positions=[{}] * (MAX_LENGTH + 1),
        layers=[
            Layer(
                [Head([Move({"token BOS": 1.0}, {"fraction": 1.0})], same)],
                levels("fraction", [1 / (n + 1) for n in _COUNTS], [{name: DECISION} for name in _COUNT], one="one"),
            )
        ],
        outputs={str(n): {name: 1.0} for n, name in zip(_COUNTS, _COUNT, strict=True)},
    )
    return build("hist", description)


def hist_cases() -> list[Case]:
    """Every valid input with the output index, count - 1, at each position: 1364 cases, shortest first."""
    return labelled(len(LETTERS), _COUNTS, lambda word: (word.count(letter) - 1 for letter in word))


HIST = Program(build_hist, hist_cases, "categorical", {"zero": (ZERO_CIRCUIT,), "interchange": (INTERCHANGE_CIRCUIT,)})
