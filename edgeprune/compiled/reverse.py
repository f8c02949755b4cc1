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

from itertools import product
from typing import cast

import torch

from edgeprune.compiled.transformer import (
    CompiledAttention,
    CompiledConfig,
    CompiledLayer,
    CompiledMLP,
    CompiledTransformer,
)

SYMBOLS = ("1", "2", "3")
VOCAB = (*SYMBOLS, "BOS", "PAD")
MAX_LENGTH = 5

FOCUS = 20.0  # attention score of the target, 0 elsewhere: a leak of exp(-20), yet gradients live
DECISION = 10.0  # logit of the right token, 0 for the others: a decisive softmax

_GROUPS = (
    [f"token {name}" for name in (*SYMBOLS, "BOS")],
    ["one", "fraction"],
    *([f"{group} {i}" for i in range(MAX_LENGTH)] for group in ("index", "opposite", "target")),
    [f"length {length}" for length in range(1, MAX_LENGTH + 1)],
    [f"output {name}" for name in SYMBOLS],
)
C = {name: column for column, name in enumerate(name for group in _GROUPS for name in group)}

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

    >>> model = build_reverse()
    >>> model(torch.tensor([[3, 0, 0, 2]])).logits.argmax(-1)[0, 1:].tolist()  # BOS 1 1 3 -> 3 1 1
    [2, 0, 0]
    """
    model = CompiledTransformer(_config())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        _write_embeddings(model)
        heads = [cast(CompiledLayer, layer).attn for layer in model.layers]
        mlps = [cast(CompiledMLP, cast(CompiledLayer, layer).mlp) for layer in model.layers]
        _write_fraction(heads[0])
        _write_length(mlps[0])
        _write_opposite(mlps[1])
        _write_target(mlps[2])
        _write_output(heads[3])
    return model.eval()


def reverse_cases() -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Every valid input, and the right output at its positions 1, 2, ...: 363 cases, shortest first."""
    outputs = range(len(SYMBOLS))  # token ids of the symbols are their output indices
    words = [word for length in range(1, MAX_LENGTH + 1) for word in product(outputs, repeat=length)]
    return [((VOCAB.index("BOS"), *word), word[::-1]) for word in words]


def _config() -> CompiledConfig:
    config = CompiledConfig(
        vocab_size=len(VOCAB),
        n_ctx=MAX_LENGTH + 1,
        num_hidden_layers=4,
        num_attention_heads=1,
        head_dim=MAX_LENGTH,
        hidden_size=len(C),
        intermediate_size=MAX_LENGTH * (MAX_LENGTH + 1) // 2,  # m1 is the widest: one unit per (length, index)
        d_out=len(SYMBOLS),
        bos_token_id=VOCAB.index("BOS"),
        pad_token_id=VOCAB.index("PAD"),
        vocab=list(VOCAB),
        output_labels=list(SYMBOLS),
    )
    config.name_or_path = "compiled:reverse"
    return config


def _write_embeddings(model: CompiledTransformer) -> None:
    for token, name in enumerate(VOCAB[:-1]):
        model.tok_embed.weight[token, [C[f"token {name}"], C["one"]]] = 1
    for index in range(MAX_LENGTH):
        model.pos_embed.weight[index + 1, C[f"index {index}"]] = 1
    for output, name in enumerate(SYMBOLS):
        model.unembed.weight[output, C[f"output {name}"]] = 1


def _write_fraction(attn: CompiledAttention) -> None:
    """a0: queries and keys stay zero, so attention is uniform."""
    attn.v_proj.weight[0, C["token BOS"]] = 1
    attn.o_proj.weight[C["fraction"], 0] = 1


def _write_length(mlp: CompiledMLP) -> None:
    """m0: ramp l goes from 0 to 1 in the middle third between 1/(l+2) and 1/(l+1): it says "length <= l".

    A ramp takes two ReLU units; length l is ramp l minus ramp l - 1. Without a fraction (0) no length is on.
    """
    for length in range(1, MAX_LENGTH + 1):
        low, high = 1 / (length + 2), 1 / (length + 1)
        slope = 3 / (high - low)
        for part, sign in ((1, 1), (2, -1)):
            unit = 2 * (length - 1) + part - 1
            mlp.fc_in.weight[unit, C["fraction"]] = slope
            mlp.fc_in.weight[unit, C["one"]] = -(slope * low + part)
            mlp.fc_out.weight[C[f"length {length}"], unit] = sign
            if length < MAX_LENGTH:
                mlp.fc_out.weight[C[f"length {length + 1}"], unit] = -sign


def _write_opposite(mlp: CompiledMLP) -> None:
    """m1: one unit per (length, index) that is on if both are."""
    pairs = [(length, index) for length in range(1, MAX_LENGTH + 1) for index in range(length)]
    for unit, (length, index) in enumerate(pairs):
        mlp.fc_in.weight[unit, [C[f"length {length}"], C[f"index {index}"]]] = 1
        mlp.fc_in.weight[unit, C["one"]] = -1
        mlp.fc_out.weight[C[f"opposite {length - 1 - index}"], unit] = 1


def _write_target(mlp: CompiledMLP) -> None:
    """m2: one unit per index."""
    for index in range(MAX_LENGTH):
        mlp.fc_in.weight[index, C[f"opposite {index}"]] = 1
        mlp.fc_out.weight[C[f"target {index}"], index] = 1


def _write_output(attn: CompiledAttention) -> None:
    """a3: the query asks for an index, keys offer theirs, values are tokens. BOS offers none."""
    for index in range(MAX_LENGTH):
        attn.q_proj.weight[index, C[f"target {index}"]] = FOCUS
        attn.k_proj.weight[index, C[f"index {index}"]] = 1
    for output, name in enumerate(SYMBOLS):
        attn.v_proj.weight[output, C[f"token {name}"]] = 1
        attn.o_proj.weight[C[f"output {name}"], output] = DECISION
