"""What the conformance suite asks, on a GPU: open gates equal the library bit for bit, closed ones the corrupted run.

    python -m benchmarks.gpu_conformance            # from the root of a checkout; --device cpu where there is no GPU
    python -m benchmarks.gpu                        # three of the families, and what a step costs

Every family's tiny random models: float32, bfloat16 and float16, eager, sdpa and flash attention (in half precision,
where it is installed), lengths 1 to 17, batches 1 to 8, with
padding and without; closed gates against the corrupted run; in float64 fractional gates against explicit sums over
edges, values and gradients. Prints a table of failures and a summary; exit status 1 if anything failed.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from typing import Any

import torch
from transformers.utils import is_flash_attn_2_available

from edgeprune import ablations
from edgeprune.models.masked import MaskedModel
from edgeprune.models.places import position_ids
from tests.models.reference import slow_logits
from tests.models.test_conformance import CASES, VOCAB, build, random_gates

LENGTHS, BATCHES = range(1, 18), range(1, 9)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ROWS: list[tuple[str, ...]] = []
COUNT = {"exact": 0, "closed": 0, "slow": 0, "gradients": 0}


def prompts(batch: int, seq: int, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Clean and corrupted tokens `[batch, seq]`."""
    generator = torch.Generator().manual_seed(17 * batch + seq)
    first, second = torch.randint(0, VOCAB, (2, batch, seq), generator=generator)
    return first.to(device), second.to(device)


def made(case: Any, dtype: torch.dtype, implementation: str, kv_readers: str, device: str) -> MaskedModel:
    """A model of the suite, on the device."""
    family, index = case.values
    return build(family, index, dtype, implementation, kv_readers=kv_readers).to(device)


def kernels(case: Any, dtype: torch.dtype = torch.float32) -> tuple[str, ...]:
    """Attention implementations that its family has in this dtype, here."""
    flash = dtype.itemsize == 2 and torch.cuda.is_available() and is_flash_attn_2_available()
    names = ("eager", "sdpa", *(["flash_attention_2"] if flash else []))
    return tuple(name for name in names if name in case.values[0].attention_implementations)


def readers(case: Any) -> tuple[str, ...]:
    """The ways in which its k and v can be read."""
    config = case.values[0].tiny()[case.values[1]]
    grouped = getattr(config, "num_key_value_heads", None) not in (None, config.num_attention_heads)
    return ("group", "head") if grouped else ("group",)


def fail(*row: Any) -> None:
    """Note a failure: check, model, dtype, attention, readers, size, padding, what, how far off."""
    ROWS.append(tuple(map(str, row)))


@torch.no_grad()
def exact(case: Any, device: str, quick: bool) -> None:
    """Every length with every batch in float32; each of them once in other dtypes, and with padding."""
    kinds = [(dtype, kernel) for dtype in DTYPES for kernel in kernels(case, dtype)]
    for (dtype, implementation), kv in product(kinds, readers(case)):
        model = made(case, dtype, implementation, kv, device)
        opened, zero = model.graph.all_open().to(device), ablations.zero(model)
        some = [(1, 1), (3, 9), (8, 9), (5, 17)] if quick else [(BATCHES[3 * seq % 8], seq) for seq in LENGTHS]
        every = some if quick or dtype != torch.float32 else list(product(BATCHES, LENGTHS))
        cases = [*((size, None) for size in every), *product(some, ("left", "right"))]
        for (batch, seq), side in cases:
            clean, _ = prompts(batch, seq, device)
            mask, options = None, {}
            if side is not None:
                real = torch.arange(seq) >= (torch.arange(batch)[:, None] * 5 % seq)
                mask = (real if side == "left" else real.flip(1)).long().to(device)
                options = {"attention_mask": mask, "position_ids": position_ids(clean, mask)}
            expected = model.hf(clean, **options).logits
            for name, found in (("gates", model(clean, opened, zero, mask)), ("full", model.full(clean, mask))):
                COUNT["exact"] += 1
                if mask is not None:  # rows of padding alone may be anything
                    found, wanted = (logits[mask.bool()] for logits in (found, expected))
                else:
                    wanted = expected
                if not torch.equal(found, wanted):
                    off = (found.float() - wanted.float()).abs().max().item()
                    fail("exact", case.id, dtype, implementation, kv, f"{batch} x {seq}", side, name, f"{off:.1e}")
        for batch, seq in ((3, 9), (8, 5)):  # with gradients, too
            clean, corrupted = prompts(batch, seq, device)
            with torch.enable_grad():
                gates = opened.clone().requires_grad_()
                found = model(clean, gates, model.record(corrupted))
            COUNT["exact"] += 1
            if not torch.equal(found, model.hf(clean).logits):
                fail("exact", case.id, dtype, implementation, kv, f"{batch} x {seq}", None, "with gradients", "")


@torch.no_grad()
def closed(case: Any, device: str) -> None:
    """All gates closed: the corrupted run."""
    limits = {torch.float64: 1e-10, torch.float32: 2e-4, torch.bfloat16: 0.3, torch.float16: 0.05}
    for dtype, implementation, kv in product(limits, kernels(case), readers(case)):
        model = made(case, dtype, implementation, kv, device)
        for batch, seq in ((1, 1), (3, 9), (8, 16)):
            clean, corrupted = prompts(batch, seq, device)
            found = model(clean, model.graph.all_closed().to(device), model.record(corrupted))
            wanted = model.hf(corrupted).logits
            off = ((found - wanted).abs().max() / wanted.abs().max().clamp(min=1)).item()
            COUNT["closed"] += 1
            if not off <= limits[dtype]:
                fail("closed", case.id, dtype, implementation, kv, f"{batch} x {seq}", None, "", f"{off:.1e}")


def slow(case: Any, device: str) -> None:
    """Fractional gates in float64 against explicit sums over edges, values and gradients."""
    for implementation, kv in product(kernels(case), readers(case)):
        model = made(case, torch.float64, implementation, kv, device)
        clean, corrupted = prompts(3, 7, device)
        ablated = model.record(corrupted)
        for fractional in (True, False):
            gates = random_gates(model, fractional).to(device).requires_grad_()
            found, wanted = model(clean, gates, ablated), slow_logits(model, clean, gates, ablated)
            weights = torch.randn(wanted.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
            weights = weights.to(device)
            (mine,) = torch.autograd.grad((found * weights).sum(), gates)
            (right,) = torch.autograd.grad((wanted * weights).sum(), gates)
            for name, off, limit in (
                ("slow", (found - wanted).abs().max().item(), 1e-10),
                ("gradients", ((mine - right).abs() / right.abs().clamp(min=1)).max().item(), 1e-8),
            ):
                COUNT[name] += 1
                if not off <= limit:
                    fail(
                        name, case.id, torch.float64, implementation, kv, "3 x 7", None, f"{fractional=}", f"{off:.1e}"
                    )


def main() -> None:
    """Check all families and print what failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="four sizes instead of 136")
    options = parser.parse_args()
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        sys.exit("no CUDA device; give --device cpu")
    name = torch.cuda.get_device_name() if options.device.startswith("cuda") else "cpu"
    print(f"torch {torch.__version__}, {name}, TF32 {torch.backends.cuda.matmul.allow_tf32}")
    for case in CASES:
        start = time.perf_counter()
        checks: dict[str, Callable[[], None]] = {
            "exact": partial(exact, case, options.device, options.quick),
            "closed": partial(closed, case, options.device),
            "slow": partial(slow, case, options.device),
        }
        for check, work in checks.items():
            try:
                work()
            except Exception as error:  # a failure like any other: the rest is still to be seen
                fail(check, case.id, "", "", "", "", None, type(error).__name__, str(error).split("\n")[0][:160])
        print(f"{case.id:40s} {time.perf_counter() - start:6.1f} s, failures so far {len(ROWS)}", flush=True)
    by_kind: dict[tuple[str, ...], list[tuple[str, ...]]] = {}
    for row in ROWS:
        by_kind.setdefault(row[:5], []).append(row)
    print("\ncheck | model | dtype | attention | readers | cases | worst | first case")
    for kind, rows in by_kind.items():
        print(" | ".join(kind), "|", len(rows), "|", max(row[8] for row in rows), "|", ", ".join(rows[0][5:8]))
    print(f"\n{len(ROWS)} failures; checked {COUNT}")
    sys.exit(bool(ROWS))


if __name__ == "__main__":
    main()
