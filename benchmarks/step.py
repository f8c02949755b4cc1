"""Cost of a training step, and of a step of integrated gradients, against a plain forward and backward, in one process.

    python benchmarks/step.py                      # the table of docs/performance.md: ten minutes
    python benchmarks/step.py --growth             # step time against the number of layers
    python benchmarks/step.py --cases gpt2:32x16:float32 --rounds 3
    python benchmarks/step.py --device cuda        # the same on a GPU; memory is what torch allocates there
    python benchmarks/step.py --cases gpt2:8x16:float32 --roles 10    # a step with gates by role beside one without

Everything scores the last position only. `plain` is the stock Hugging Face body with frozen weights and a gradient to
the input embeddings, then its head on the last position (as `edgeprune selfcheck` has it); `logits_to_keep` the same
by the library's own argument, for which torch copies the head's weight once per example (transformers 5.23); `step` is
record + masked forward + backward + optimizer; `cached` the same without the record; `attribution` the masked forward
and backward with every edge open, which EAP does once and EAP-IG once per integration step; with `--roles`, `cached` by
role, the roles of tokens drawn at random in every prompt, which no two prompts then share, and `attention` the same
with gates of attention edges. The kinds take turns, so a change of the machine's speed hits all of them; ratios are
medians of the ratios of one round. Peak memory is measured in a process of its own per kind.
"""

import argparse
import math
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from edgeprune.gates import HardConcrete, uniform_noise
from edgeprune.graph import EdgeGraph, RoleSpec
from edgeprune.models.masked import MaskedModel
from edgeprune.objectives import kl_divergence
from edgeprune.selfcheck_costs import ratio, steps, timed

SHAPES: dict[str, Any] = {
    "gpt2": GPT2Config(),
    "smollm2": LlamaConfig(
        hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
        vocab_size=49152, tie_word_embeddings=True,
    ),
}  # fmt: skip
CASES = ("gpt2:32x16:float32", "gpt2:32x16:bfloat16", "gpt2:8x16:float32", "smollm2:8x16:float32")
GROWTH = (6, 12, 24, 48)


def growing(layers: int) -> GPT2Config:
    """A GPT-2 of width 256 with 4 heads."""
    return GPT2Config(n_embd=256, n_head=4, n_layer=layers, vocab_size=1000, bos_token_id=0, eos_token_id=0)


def kinds(
    config: Any, batch: int, seq: int, dtype: torch.dtype, device: str = "cpu", roles: int = 0
) -> dict[str, Callable[[], None]]:
    """The things to time, by name."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config).to(device, dtype).eval()
    return kinds_of(MaskedModel(hf), batch, seq, roles)


def kinds_of(model: MaskedModel, batch: int, seq: int, roles: int = 0) -> dict[str, Callable[[], None]]:
    """The same of a model that there is."""
    hf, device = model.hf, model.device
    clean, corrupted = torch.randint(0, hf.config.vocab_size, (2, batch, seq), device=device)
    last = torch.full((batch, 1), seq - 1, device=device)
    by_role = model.graph.with_roles(RoleSpec(tuple(f"r{role}" for role in range(roles))) if roles else None)
    role_of = torch.randint(0, max(roles, 1), (batch, seq), device=device)
    reference = model.full(clean, positions=last).float().log_softmax(-1).detach()
    kept = model.record(corrupted)
    difference = kept.minus(model.record(clean))

    def shipped() -> None:
        embeddings = hf.get_input_embeddings()(clean).requires_grad_()
        logits = hf(inputs_embeds=embeddings, logits_to_keep=1).logits
        kl_divergence(reference, logits.float()).mean().backward()

    def steps_of(graph: EdgeGraph, cached: bool, attention: bool = False) -> Callable[[], None]:
        arch = graph.arch
        shape = (arch.num_layers, arch.num_heads, roles, roles) if attention else (0,)
        gates = HardConcrete(graph.num_edges + math.prod(shape), init_mean=2.0).to(device)
        optimizer = torch.optim.Adam([gates.log_alpha], lr=0.1)
        where = None if graph.roles is None else role_of

        def step() -> None:
            ablated = kept if cached else model.record(corrupted)
            z = gates.sample(uniform_noise(0, 0, gates.num_gates))
            edges, inside = z.split([graph.num_edges, math.prod(shape)])
            within = inside.view(shape) if attention else None
            matrix = graph.to_matrix(edges)
            logits = model(clean, matrix, ablated, positions=last, role_of=where, attention_gates=within).float()
            loss = kl_divergence(reference, logits).mean() + gates.prob_open().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    def attribution() -> None:
        open_ = model.graph.all_open(device=device).requires_grad_()
        logits = model(clean, open_, difference, positions=last, relative=True).float()
        torch.autograd.grad(logits[..., 0].sum(), open_)

    return {
        "plain": steps(model, clean, corrupted)["plain"],
        "logits_to_keep": shipped,
        "step": steps_of(model.graph, cached=False),
        "cached": steps_of(model.graph, cached=True),
        **({"roles": steps_of(by_role, cached=True)} if roles else {}),
        **({"attention": steps_of(by_role, cached=True, attention=True)} if roles else {}),
        "attribution": attribution,
    }


def table(cases: list[str], rounds: int, device: str, roles: int = 0) -> None:
    """Print one table of all cases."""
    print("| shape, batch, dtype | kind | seconds | times plain | peak memory, GB | above the loaded model, GB |")
    print("|---|---|---|---|---|---|")
    for case in cases:
        times = timed(kinds(*parsed(case), device, roles), rounds)
        for name, seconds in times.items():
            loaded, peak = memory(case, name, device, roles)
            print(
                f"| {case.replace(':', ', ')} | {name} | {statistics.median(seconds):.4f} | {ratio(times, name):.2f} | "
                f"{peak:.2f} | {peak - loaded:.2f} |",
                flush=True,
            )


def growth(rounds: int, device: str) -> None:
    """Print the times by number of layers, and the exponents of a power law through them."""
    print("| layers | edges | plain, s | cached, s | times plain |")
    print("|---|---|---|---|---|")
    found: dict[str, list[float]] = {"plain": [], "cached": []}
    for layers in GROWTH:
        things = kinds(growing(layers), 16, 16, torch.float32, device)
        times = timed({name: things[name] for name in found}, rounds)
        for name, values in found.items():
            values.append(statistics.median(times[name]))
        edges = MaskedModel(AutoModelForCausalLM.from_config(growing(layers))).graph.num_edges
        plain, cached = (values[-1] for values in found.values())
        print(f"| {layers} | {edges:,} | {plain:.4f} | {cached:.4f} | {ratio(times, 'cached'):.2f} |", flush=True)
    for name, values in found.items():
        print(f"{name}: seconds grow as layers ** {exponent(GROWTH, values):.2f}")


def exponent(sizes: tuple[int, ...], values: list[float]) -> float:
    """Slope of a straight line through logarithms."""
    return statistics.linear_regression([math.log(size) for size in sizes], [math.log(value) for value in values]).slope


def parsed(case: str) -> tuple[Any, int, int, torch.dtype]:
    """`gpt2:32x16:float32` as arguments of `kinds`."""
    shape, size, dtype = case.split(":")
    batch, seq = (int(part) for part in size.split("x"))
    return SHAPES[shape], batch, seq, getattr(torch, dtype)


def memory(case: str, name: str, device: str, roles: int = 0) -> tuple[float, float]:
    """Memory of a process of its own, in 1e9 bytes: with everything loaded, and at the peak of two runs.

    Resident memory on a CPU, memory that torch has allocated on a GPU.
    """
    command = [sys.executable, __file__, "--cases", case, "--only", name, "--device", device]
    command += ["--threads", str(torch.get_num_threads()), "--roles", str(roles)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    loaded, peak = (float(value) for value in done.stdout.split()[-2:])
    return loaded, peak


def only(case: str, name: str, device: str, roles: int) -> None:
    """In a process of its own: run one kind twice and print its memory."""
    things = kinds(*parsed(case), device, roles)
    on_gpu = torch.device(device).type == "cuda"
    loaded = torch.cuda.memory_allocated() / 1e9 if on_gpu else _resident("VmRSS")
    if on_gpu:  # start the peak again: building the model does not count
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")
    things[name]()
    things[name]()
    print(loaded, torch.cuda.max_memory_allocated() / 1e9 if on_gpu else _resident("VmHWM"))


def _resident(field: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e9


def main() -> None:
    """Time every kind in turn, then measure the memory of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=list(CASES), help="shape:BATCHxSEQ:dtype")
    parser.add_argument("--growth", action="store_true", help="time against the number of layers instead")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument("--roles", type=int, default=0, help="also a step with gates for so many roles")
    parser.add_argument("--only", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only:
        only(options.cases[0], options.only, options.device, options.roles)
        return
    where = torch.cuda.get_device_name() if options.device.startswith("cuda") else f"{options.threads} threads"
    print(f"torch {torch.__version__}, {where}, {options.rounds} rounds")
    if options.growth:
        growth(options.rounds, options.device)
    else:
        table(options.cases, options.rounds, options.device, options.roles)


if __name__ == "__main__":
    main()
