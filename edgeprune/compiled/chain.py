"""Deep transformers whose circuit is one long chain, in a graph that is mostly idle: `chain-LAYERSxHEADS`.

Input: BOS, then 4 tokens from {0, 1, 2, 3}. Every position has a state, at first its token; part after part changes it:

    before   head: the state of the position before (of the first: of the last)
    look     head: the token at the position whose index is the state
    mix      MLP: the state plus the own token, modulo 4

where index = position - 1. In even layers the first head is a `before` and the MLP a `mix`, in odd ones the first head
is a `look`; all other heads and MLPs are zero. The output at a position is its last state. A chain forgives nothing:
with any of its edges closed, what comes after carries noise.
"""

import re
from functools import cache, partial

from edgeprune.compiled.builder import (
    DECISION,
    FOCUS,
    Description,
    Head,
    Layer,
    Match,
    build,
    copy,
    equal,
    one_hot,
    table,
)
from edgeprune.compiled.program import BOS, Case, Edges, Program, labelled
from edgeprune.compiled.transformer import CompiledTransformer

FAMILY = "chain-LAYERSxHEADS"
SIZE = 4  # of an input, and of its alphabet

_TOKEN, _INDEX = one_hot("token", range(SIZE)), one_hot("index", range(SIZE))
_BEFORE = [Match({own: FOCUS}, {_INDEX[place - 1]: 1.0}) for place, own in enumerate(_INDEX)]


def build_chain(num_layers: int, num_heads: int) -> CompiledTransformer:
    """Write the weights.

    >>> import torch
    >>> model = build_chain(2, 1)
    >>> model(torch.tensor([[4, 1, 0, 3, 3]])).logits.argmax(-1)[0, 1:].tolist()  # 3 1 0 3, 0 1 3 2, tokens there
    [1, 0, 3, 3]
    """
    state, columns, layers = _TOKEN, [*_TOKEN, *_INDEX], list[Layer]()
    for number in range(num_layers):
        moved, mixed = (one_hot(f"{what} {number}", range(SIZE)) for what in ("moved", "mixed"))
        columns += moved
        if number % 2:
            layers.append(Layer([Head(copy(_TOKEN, moved), equal(state, _INDEX))]))
            state = moved
            continue
        columns += mixed
        sums = {(moved[a], _TOKEN[b]): {mixed[(a + b) % SIZE]: 1.0} for a in range(SIZE) for b in range(SIZE)}
        layers.append(Layer([Head(copy(state, moved), _BEFORE)], table(sums)))
        state = mixed
    description = Description(
        columns=columns,
        tokens={str(value): {name: 1.0} for value, name in enumerate(_TOKEN)} | {BOS: {}},
        positions=[{}, *({name: 1.0} for name in _INDEX)],
        layers=layers,
        outputs={str(value): {name: DECISION} for value, name in enumerate(state)},
        num_heads=num_heads,
    )
    return build(f"chain-{num_layers}x{num_heads}", description)


def chain_cases(num_layers: int) -> list[Case]:
    """Every valid input with its last states: 256 cases."""

    def last_states(word: tuple[int, ...]) -> tuple[int, ...]:
        state = word
        for number in range(num_layers):
            if number % 2:
                state = tuple(word[index] for index in state)
            else:
                state = tuple((state[place - 1] + token) % SIZE for place, token in enumerate(word))
        return state

    return labelled(SIZE, [SIZE], last_states)


def chain_circuit(num_layers: int, ablation: str) -> Edges:
    """The edges of the chain; under interchange without positions, which are the same in every input."""
    edges, state = list[str](), "tok_embed"
    for number in range(num_layers):
        head = f"a{number}.h0"
        if ablation == "zero":
            edges += [f"pos_embed->{head}.q"] * (number % 2 == 0) + [f"pos_embed->{head}.k"]
        edges += [f"{state}->{head}.q", f"tok_embed->{head}.v"] if number % 2 else [f"{state}->{head}.v"]
        state = head
        if number % 2 == 0:
            edges += [f"tok_embed->m{number}", f"{head}->m{number}"]
            state = f"m{number}"
    return (*edges, f"{state}->logits")


def chain_program(name: str) -> Program | None:
    """The program that a name such as `chain-10x2` stands for; None if it is no such name."""
    found = re.fullmatch(r"chain-([1-9]\d?)x([1-9]\d?)", name)
    return None if found is None else _program(int(found[1]), int(found[2]))


@cache
def _program(num_layers: int, num_heads: int) -> Program:
    return Program(
        partial(build_chain, num_layers, num_heads),
        partial(chain_cases, num_layers),
        "categorical",
        {"zero": (chain_circuit(num_layers, "zero"),), "interchange": (chain_circuit(num_layers, "interchange"),)},
    )
