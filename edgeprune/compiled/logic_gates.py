"""Two logic gates with two inputs: the smallest models in which circuits are redundant, or are not.

Input: BOS, then 1, 3 or 7 bits (so that 2, 4 or 8 tokens are averaged over: exact in float32). Both heads compute the
same thing, the MLP joins them, and every position p >= 1 gives the same answer, one number. One layer, two heads, not
causal; S is the sum of what the heads write.

    or_gate     h0, h1   8 * average of the bits, BOS being 0: at least 1 if any bit is 1, else 0  -> c[sum]
                m0       1 - relu(1 - S): 1 if either head says so                                 -> c[answer]
    and_gate    h0, h1   average of the bits, BOS being 1: 1 if all bits are 1, else at most 7/8   -> c[sum]
                m0       relu(1 - 8 (2 - S)): 1 if both heads say so                               -> c[answer]

The answers are "any bit is 1" and "all bits are 1". In the OR gate a head carrying zero says "no", and the other still
says "yes" where that is right: under zero ablation either head can be closed, not both, so there are two minimal
circuits. A head carrying another input's value may say "yes" where "no" is right: under interchange both are needed.
The AND gate needs both under both ablations.
"""

from edgeprune.compiled.builder import Columns, Description, Head, Layer, Move, Unit, build
from edgeprune.compiled.program import BOS, PAD, Case, Program, labelled
from edgeprune.compiled.transformer import CompiledTransformer

BITS = ("0", "1")
LENGTHS = (1, 3, 7)

_FIRST = ("tok_embed->a0.h0.v", "a0.h0->m0")
_SECOND = ("tok_embed->a0.h1.v", "a0.h1->m0")
_BOTH = (*_FIRST, *_SECOND, "m0->logits")
_EITHER = ((*_FIRST, "m0->logits"), (*_SECOND, "m0->logits"))
_TOKENS = max(LENGTHS) + 1


def build_or_gate() -> CompiledTransformer:
    """Write the weights.

    >>> import torch
    >>> build_or_gate()(torch.tensor([[2, 0, 1, 0], [2, 0, 0, 0]])).logits[:, 1, 0].tolist()
    [1.0, 0.0]
    """
    layer = Layer([_head(_TOKENS)] * 2, [Unit({"sum": -1.0}, {"answer": -1.0}, bias=1.0)], adds={"answer": 1.0})
    return build("or_gate", _description(layer, bos={}))


def build_and_gate() -> CompiledTransformer:
    """Write the weights.

    >>> import torch
    >>> build_and_gate()(torch.tensor([[2, 1, 1, 1], [2, 1, 0, 1]])).logits[:, 1, 0].tolist()
    [1.0, 0.0]
    """
    layer = Layer([_head(1.0)] * 2, [Unit({"sum": _TOKENS}, {"answer": 1.0}, bias=1.0 - 2 * _TOKENS)])
    return build("and_gate", _description(layer, bos={"bit": 1.0}))


def or_cases() -> list[Case]:
    """Every valid input, with 1 at every position if any bit is 1, else 0: 138 cases."""
    return labelled(len(BITS), LENGTHS, lambda word: [float(any(word))] * len(word))


def and_cases() -> list[Case]:
    """Every valid input, with 1 at every position if all bits are 1, else 0: 138 cases."""
    return labelled(len(BITS), LENGTHS, lambda word: [float(all(word))] * len(word))


def _head(weight: float) -> Head:
    return Head([Move({"bit": 1.0}, {"sum": weight})])


def _description(layer: Layer, bos: Columns) -> Description:
    return Description(
        columns=["bit", "sum", "answer"],
        tokens={"0": {}, "1": {"bit": 1.0}, BOS: bos, PAD: {}},
        positions=[{}] * _TOKENS,
        layers=[layer],
        outputs={"answer": {"answer": 1.0}},
    )


OR_GATE = Program(build_or_gate, or_cases, "numerical", {"zero": _EITHER, "interchange": (_BOTH,)})
AND_GATE = Program(build_and_gate, and_cases, "numerical", {"zero": (_BOTH,), "interchange": (_BOTH,)})
