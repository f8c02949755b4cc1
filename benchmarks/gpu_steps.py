"""What a step costs on one card: the shapes, the floor, and the kinds that `python -m benchmarks.gpu` times.

Shapes: T tokens (batch x seq), D width.
"""

import functools
import statistics
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig

from benchmarks.step import kinds_of
from edgeprune.models.masked import MaskedModel
from edgeprune.models.stack import Workspace
from edgeprune.objectives import kl_divergence
from edgeprune.selfcheck_costs import gates_at, peak_bytes, timed

Row = dict[str, Any]
SLOW = 2.0  # seconds; what takes longer is timed once


class Case(NamedTuple):
    """A shape, its batch, and the seconds that it may take."""

    config: Any
    batch: int
    seq: int
    seconds: float


class Card(NamedTuple):
    """What a card does at most, as it was measured there."""

    operations: float  # a second, in bfloat16
    bytes: float  # read or written a second


def llama(width: int, mlp: int, layers: int, heads: int, kv: int, vocab: int, head_dim: int = 128) -> LlamaConfig:
    """A Llama; its word embeddings are tied, which changes nothing here and halves what is made."""
    return LlamaConfig(
        hidden_size=width, intermediate_size=mlp, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=kv, head_dim=head_dim, vocab_size=vocab, tie_word_embeddings=True,
    )  # fmt: skip


CASES = {
    "gpt2 32x64": Case(GPT2Config(), 32, 64, 40),
    "gpt2 256x64": Case(GPT2Config(), 256, 64, 50),
    "llama-3.2-1b 32x64": Case(llama(2048, 8192, 16, 32, 8, 128256, 64), 32, 64, 45),
    "gemma-2-2b 32x64": Case(Gemma2Config(), 32, 64, 55),
    "llama-3.1-8b 16x64": Case(llama(4096, 14336, 32, 32, 8, 128256), 16, 64, 70),
    "codellama-13b 16x64": Case(llama(5120, 13824, 40, 40, 40, 32016), 16, 64, 100),
}
TINY = {
    "gpt2 2x8": Case(GPT2Config(n_embd=32, n_head=2, n_layer=2, vocab_size=50), 2, 8, 30),
    "llama 2x8": Case(llama(32, 64, 2, 2, 1, 50, 16), 2, 8, 30),
}


def steps(case: Case, device: str, operations: list[str], card: Card | None, rounds: int) -> Iterator[Row]:
    """Times, memory and the share of the floor of every kind, with each of the read operations.

    `plain`, `step` and `cached` are those of `benchmarks/step.py`; `masked` is the forward and backward of `cached`
    alone, and `graph` the same replayed as a CUDA graph.
    """
    torch.manual_seed(0)
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(case.config, dtype=torch.bfloat16).eval()
    model = MaskedModel(hf)
    plain: float | None = None
    for name in operations:
        room(model, name)
        made = kinds_of(model, case.batch, case.seq)
        kinds = {kind: made[kind] for kind in ("plain", "step", "cached")}
        kinds["masked"] = masked_step(model, case.batch, case.seq)
        if plain is not None:  # once is enough
            del kinds["plain"]
        for kind, work in kinds.items():
            try:
                row = measured(model, case, kind, work, card, rounds)
            except Exception as error:
                yield {"ops": name, "kind": kind, "error": one_line(error)}
                continue
            plain = row["ms"] if kind == "plain" else plain
            yield {"ops": name, "kind": kind, "times plain": None if plain is None else row["ms"] / plain} | row
        del made, kinds
    for name in operations:  # at the end: what cannot be recorded may leave the device in a bad state
        if device == "cpu":
            yield {"ops": name, "kind": "graph", "not recorded": "CUDA graphs are of GPUs alone"}
            continue
        room(model, name)
        try:
            work = replayed(masked_step(model, case.batch, case.seq))
            row = measured(model, case, "graph", work, card, rounds)
        except Exception as error:
            yield {"ops": name, "kind": "graph", "not recorded": one_line(error)}
        else:
            yield {"ops": name, "kind": "graph", "times plain": None if plain is None else row["ms"] / plain} | row


def room(model: MaskedModel, name: str) -> None:
    """Take these read operations, without buffers of others."""
    model.read_ops, model.workspace = name, Workspace()
    if model.device.type == "cuda":
        torch.cuda.empty_cache()


def measured(
    model: MaskedModel, case: Case, kind: str, work: Callable[[], None], card: Card | None, rounds: int
) -> Row:
    """Of one kind: milliseconds, tokens, memory, share of the floor."""
    loaded, tokens = allocated(model.device), case.batch * case.seq
    peak = peak_bytes(work, model.device)
    times = timed({kind: work}, 1)[kind]
    if times[0] < SLOW:
        times += timed({kind: work}, rounds - 1)[kind]
    seconds = statistics.median(times)
    floor = None if card is None else floor_seconds(model, tokens, kind, card)
    return {
        "ms": seconds * 1e3,
        "tokens/s": tokens / seconds,
        "peak GB": None if peak is None else (loaded + peak) / 1e9,
        "share of floor": None if floor is None else floor / seconds,
    }


def masked_step(model: MaskedModel, batch: int, seq: int) -> Callable[[], None]:
    """Forward and backward with fixed gates and ablated states, the gradient left where it was before."""
    generator = torch.Generator().manual_seed(0)
    clean, corrupted = torch.randint(0, model.num_outputs, (2, batch, seq), generator=generator).to(model.device)
    last = torch.full((batch, 1), seq - 1, device=model.device)
    ablated = model.record(corrupted)
    with torch.no_grad():
        reference = model.full(clean, positions=last).float().log_softmax(-1)
    gates = gates_at(model, 0.8).requires_grad_()
    gates.grad = torch.zeros_like(gates)

    def masked() -> None:
        logits = model(clean, gates, ablated, positions=last, all_open=False)
        kl_divergence(reference, logits.float()).mean().backward()

    return masked


def replayed(work: Callable[[], None]) -> Callable[[], None]:
    """The same, recorded as a CUDA graph."""
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(beside)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def floor_seconds(model: MaskedModel, tokens: int, kind: str, card: Card) -> float:
    """Seconds that the operations alone take, or the memory traffic alone, whichever is more.

    Operations: two for each multiply-add of the layers' matrices, once forward and once backward, once more to record
    the ablated run; of mixing, an edge times the width, once forward and twice backward. Traffic: the layers' weights
    in each of these passes; the stack of deltas is written once, read twice, and its gradient read and written. Scores
    of attention, norms and the head at the last position are left out.
    """
    weights = sum(part.numel() for block in model.blocks for part in block.module.parameters())
    passes = 3 if kind == "step" else 2
    mixing, stack = (0, 0) if kind == "plain" else (3 * model.graph.num_edges * model.width, len(model.graph.writers))
    operations = 2 * tokens * (passes * weights + mixing)
    moved = model.dtype.itemsize * (passes * weights + 5 * stack * tokens * model.width)
    return max(operations / card.operations, moved / card.bytes)


def measured_card(device: str, size: int) -> Iterator[Row]:
    """What a product of square matrices and a copy reach, with `size` rows."""
    one, other = torch.randn(2, size, size, device=device).to(torch.bfloat16)
    seconds = statistics.median(timed({"plain": functools.partial(torch.mm, one, other)})["plain"])
    yield {"what": "bfloat16 product", "size": size, "operations a second": 2 * size**3 / seconds}
    source = torch.zeros(size * size * 8, dtype=torch.bfloat16, device=device)
    target = torch.empty_like(source)
    seconds = statistics.median(timed({"plain": lambda: target.copy_(source)})["plain"])
    moved = 2 * source.numel() * source.element_size()
    yield {"what": "copy", "size": source.numel(), "bytes a second": moved / seconds}


def allocated(device: torch.device) -> int:
    """Bytes that torch has given out on a card; 0 on a CPU."""
    return torch.cuda.memory_allocated(device) if device.type == "cuda" else 0


def one_line(error: BaseException) -> str:
    """What went wrong."""
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
