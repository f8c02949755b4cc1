"""Operations and memory traffic of one training step, counted from a model's shape.

    python benchmarks/count.py

Multiply-adds per token, in millions; attention scores, norms and activation functions are left out (a few percent at
short prompts), as is the head, which is run at the scored positions only. `body` is all matrices of the layers once.

    plain step      body forward and backward (gradients to inputs, none to weights)
    floor           plain + mixing (edges * width), whose backward is twice that
    built           what the masked model does: besides the floor, heads are written one by one, and inputs mixed again
    record          the ablated run's forward, where it is not kept

Traffic is that of the stack and its gradient, in bytes of float32 per token: each row is written once, and read by
every block of layers after it, forward, again in the backward, for the gates' gradient, and twice for the stack's.
"""

import argparse
from dataclasses import dataclass

from transformers import GPT2Config, LlamaConfig

from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.models.reads import segments


@dataclass(frozen=True)
class Shape:
    """What the count needs to know of a model."""

    arch: ArchSpec
    width: int
    head_dim: int
    mlp: int  # weights of a layer's MLP


def gpt2() -> Shape:
    """GPT-2 small."""
    config = GPT2Config()
    arch = ArchSpec(num_layers=config.n_layer, num_heads=config.n_head, num_kv_heads=config.n_head)
    return Shape(arch, config.n_embd, config.n_embd // config.n_head, 8 * config.n_embd**2)


def llama(config: LlamaConfig) -> Shape:
    """A Llama."""
    arch = ArchSpec(
        num_layers=config.num_hidden_layers,
        num_heads=config.num_attention_heads,
        num_kv_heads=config.num_key_value_heads or config.num_attention_heads,
    )
    mlp = 3 * config.hidden_size * config.intermediate_size
    return Shape(arch, config.hidden_size, config.hidden_size // config.num_attention_heads, mlp)


SHAPES = {
    "GPT-2 small": gpt2(),
    "SmolLM2-135M": llama(
        LlamaConfig(
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
        )
    ),
    "CodeLlama-13B": llama(
        LlamaConfig(hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40)
    ),
}


def counted(shape: Shape) -> dict[str, float]:
    """Multiply-adds per token, and bytes of the stack's traffic."""
    arch, graph = shape.arch, EdgeGraph(shape.arch)
    qkv = shape.width * shape.head_dim * arch.num_attention_readers
    heads = shape.width * shape.head_dim * arch.num_heads
    body = arch.num_layers * (qkv + heads + shape.mlp)
    mixing = graph.num_edges * shape.width
    plain = 2 * body
    forward = body + arch.num_layers * heads + mixing
    backward = body + arch.num_layers * heads + 3 * mixing
    rows = sum(
        graph.first_writer(first) + (end - first - 1) * (graph.first_writer(1) - graph.first_writer(0)) / 2
        for first, end in segments(arch.num_layers, arch.readers_per_layer)
    )
    passes = len(graph.writers) + 5 * rows
    return {
        "edges": graph.num_edges,
        "body": body / 1e6,
        "mixing": mixing / 1e6,
        "plain step": plain / 1e6,
        "floor / plain, cached": (plain + 3 * mixing) / plain,
        "floor / plain": (plain + 3 * mixing + body) / plain,
        "built / plain, cached": (forward + backward) / plain,
        "built / plain": (forward + backward + body) / plain,
        "stack, kB per token": 4 * shape.width * len(graph.writers) / 1e3,
        "traffic, MB per token": 4 * shape.width * passes / 1e6,
    }


def main() -> None:
    """Print one table."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    columns = {name: counted(shape) for name, shape in SHAPES.items()}
    print("| | " + " | ".join(columns) + " |")
    print("|---|" + "---|" * len(columns))
    for name in next(iter(columns.values())):
        digits = 0 if name == "edges" else 2
        print(f"| {name} | " + " | ".join(f"{column[name]:,.{digits}f}" for column in columns.values()) + " |")


if __name__ == "__main__":
    main()
