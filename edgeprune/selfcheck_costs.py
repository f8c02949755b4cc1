"""What a step of pruning costs in time and memory, next to one of the library's own model."""

import contextlib
import ctypes
import gc
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from edgeprune.memory import resident
from edgeprune.models.masked import MaskedModel
from edgeprune.objectives import kl_divergence

ROUNDS = 5


def steps(model: MaskedModel, clean: Tensor, corrupted: Tensor) -> dict[str, Callable[[], None]]:
    """A step of each kind, forward and backward, the loss on the last position.

    `plain`: the library's body with frozen weights and a gradient to the input embeddings, its head on the last
    position. `step`: the corrupted prompts are recorded, then the masked model with a gradient to the gates.
    """
    last = torch.full((len(clean), 1), clean.shape[1] - 1, device=clean.device)
    reference = model.full(clean, positions=last).float().log_softmax(-1).detach()
    hf = model.hf

    def plain() -> None:
        embedding = hf.get_input_embeddings()
        hook = embedding.register_forward_hook(_with_gradient)
        try:
            if hf.base_model is hf:  # a model of ours: no body apart from the head
                logits = hf(clean).logits[:, -1:]
            else:
                stream = hf.base_model(clean).last_hidden_state[:, -1].contiguous()
                logits = hf.get_output_embeddings()(stream)[:, None]
        finally:
            hook.remove()
        kl_divergence(reference, logits.float()).mean().backward()

    def step() -> None:
        gates = gates_at(model, 0.8).requires_grad_()
        logits = model(clean, gates, model.record(corrupted), positions=last)
        kl_divergence(reference, logits.float()).mean().backward()

    return {"plain": plain, "step": step}


def _with_gradient(module: torch.nn.Module, inputs: Any, found: Tensor) -> Tensor:
    """A hook behind the embedding, from which gradients are taken."""
    return found.detach().requires_grad_()


def timed(tasks: Mapping[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, list[float]]:
    """Seconds of each kind in each round, in which all take their turn; one round before goes uncounted."""
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for number in range(rounds + 1):
        for name, task in tasks.items():
            start = time.perf_counter()
            task()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if number:
                times[name].append(time.perf_counter() - start)
    return times


def ratio(times: dict[str, list[float]], name: str) -> float:
    """Median over rounds of a kind's time over that of `plain` in the same round."""
    return statistics.median(a / b for a, b in zip(times[name], times["plain"], strict=True))


def peak_bytes(task: Callable[[], None], device: torch.device) -> int | None:
    """Bytes that one run takes at its peak beyond what was there; None where that cannot be measured."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        task()
        return torch.cuda.max_memory_allocated(device) - before
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # memory that was freed goes back to the system, or is not seen
        ctypes.CDLL(None).malloc_trim(0)
    if not (before := resident()):
        return None
    done, most = threading.Event(), [before]

    def watch() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], resident())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        task()
    finally:
        done.set()
        watcher.join()
    return max(most[0], resident()) - before


def gates_at(model: MaskedModel, value: float) -> Tensor:
    """Gates `[reader, writer]` that all have one value."""
    return torch.full(model.graph.shape, value, device=model.device)
