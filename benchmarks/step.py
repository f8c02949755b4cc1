"""Cost of one training step against a plain Hugging Face forward and backward of the same batch, in one process.

    python benchmarks/step.py --shape gpt2 --batch 32 --seq 16

Both sides score the last position only. The plain side is the stock model with frozen weights and a gradient to its
input embeddings; `step` is record + masked forward + backward + optimizer; `cached` is the same without the record. The
kinds take turns, so a change of the machine's speed hits all of them; ratios are medians of the ratios of one round.
Peak memory is measured in a process of its own per kind.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from edgeprune.gates import HardConcrete, uniform_noise
from edgeprune.models.masked import MaskedModel
from edgeprune.objectives import kl_divergence

SHAPES = {
    "gpt2": GPT2Config(),
    "smollm2": LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True,
    ),
}  # fmt: skip


def kinds(shape: str, batch: int, seq: int, dtype: torch.dtype) -> dict[str, Callable[[], None]]:
    """The things to time, by name."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(SHAPES[shape]).to(dtype).eval()
    model = MaskedModel(hf)
    clean, corrupted = torch.randint(0, hf.config.vocab_size, (2, batch, seq))
    last = torch.full((batch, 1), seq - 1)
    gates = HardConcrete(model.graph.num_edges, init_mean=2.0)
    optimizer = torch.optim.Adam([gates.log_alpha], lr=0.1)
    reference = model.full(clean, positions=last).log_softmax(-1).detach()
    kept = model.record(corrupted)

    def plain() -> None:
        embeddings = hf.get_input_embeddings()(clean).requires_grad_()
        logits = hf(inputs_embeds=embeddings, logits_to_keep=1).logits
        kl_divergence(reference, logits).mean().backward()

    def step(cached: bool) -> None:
        ablated = kept if cached else model.record(corrupted)
        z = gates.sample(uniform_noise(0, 0, gates.num_gates))
        logits = model(clean, model.graph.to_matrix(z), ablated, positions=last)
        loss = kl_divergence(reference, logits).mean() + gates.prob_open().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return {"plain": plain, "step": lambda: step(False), "cached": lambda: step(True)}


def main() -> None:
    """Time every kind in turn, then measure the memory of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="gpt2")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--seq", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    things = kinds(options.shape, options.batch, options.seq, getattr(torch, options.dtype))
    if options.only:
        loaded = _resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # start the peak again: building the model does not count
        things[options.only]()
        things[options.only]()
        print(loaded, _resident("VmHWM"))
        return
    times: dict[str, list[float]] = {name: [] for name in things}
    for round_ in range(options.rounds + 2):
        for name in times:
            start = time.perf_counter()
            things[name]()
            if round_ >= 2:
                times[name].append(time.perf_counter() - start)
    memory = {name: _memory(name) for name in times}
    rows = {
        name: {
            "seconds": round(statistics.median(seconds), 3),
            "ratio": round(statistics.median(a / b for a, b in zip(seconds, times["plain"], strict=True)), 2),
            "peak_gb": round(memory[name][1], 2),
            "above_loaded_gb": round(memory[name][1] - memory[name][0], 2),
        }
        for name, seconds in times.items()
    }
    print(json.dumps({"options": vars(options), "torch": torch.__version__, "rows": rows}, indent=1))


def _memory(name: str) -> tuple[float, float]:
    """Resident memory of a process of its own, in 1e9 bytes: with everything loaded, and at the peak of two runs."""
    done = subprocess.run(
        [sys.executable, __file__, *sys.argv[1:], "--only", name], capture_output=True, text=True, check=True
    )
    loaded, peak = (float(value) for value in done.stdout.split()[-2:])
    return loaded, peak


def _resident(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e9


if __name__ == "__main__":
    main()
