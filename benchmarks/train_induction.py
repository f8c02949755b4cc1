"""Train the model `compiled:trained_induction` from scratch, show where its heads look, and write its weights.

    python benchmarks/train_induction.py --out edgeprune/compiled/trained_induction.safetensors

Cross-entropy of the second half from its second symbol on; Adam, learning rate 3e-3, warm-up over 100 steps (a tenth
of a short run), then a cosine to zero. The length of a half is drawn anew for every batch, so that positions alone do
not tell what to copy.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.functional import cross_entropy

from edgeprune.compiled.trained_induction import FILE, LONGEST, SHORTEST, WEIGHTS, empty_model, sample
from edgeprune.compiled.transformer import CompiledTransformer
from edgeprune.console import ProgressReporter
from edgeprune.errors import EdgepruneError
from edgeprune.models.masked import MaskedModel
from edgeprune.paths import check_writable
from edgeprune.reading.attention import attention_to
from edgeprune.tables import Numbers, table

STEPS = 1500
SEED = 2  # of a few, the one whose previous-token head is clearest
BATCH = 64
LEARNING_RATE = 3e-3
WARM_UP = 100
LEARNED = 0.95  # share of right answers on held-out inputs below which training has failed
HELD_OUT = 512


def train(
    steps: int = STEPS, seed: int = SEED, report: Callable[[int, float], None] = lambda step, loss: None
) -> CompiledTransformer:
    """Train from random weights.

    Args:
        steps: Batches of 64 inputs.
        seed: Fixes weights and inputs; torch's global generator is left as it was.
        report: Called with the step and its loss, in nats per symbol.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = empty_model()
    generator = torch.Generator().manual_seed(seed)
    warm_up = min(WARM_UP, steps // 10 + 1)  # a short run should move too
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98))
    for step in range(steps):
        half = int(torch.randint(SHORTEST, LONGEST + 1, (), generator=generator))
        ids = sample(BATCH, half, generator)
        for group in optimizer.param_groups:
            group["lr"] = LEARNING_RATE * min(1, (step + 1) / warm_up) * 0.5 * (1 + math.cos(math.pi * step / steps))
        loss = cross_entropy(repeat_logits(model, ids).flatten(0, 1), ids[:, half + 2 :].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        report(step, loss.item())
    return model.eval()


def repeat_logits(model: CompiledTransformer, ids: Tensor) -> Tensor:
    """Logits `[batch, half - 1, vocab]` at the symbols of the second half that are followed by another."""
    half = ids.shape[1] // 2
    return cast(Tensor, model(ids).logits)[:, half + 1 : -1]


@torch.no_grad()
def accuracy(model: CompiledTransformer, seed: int = 1) -> float:
    """Share of right answers in the second half of held-out inputs, mean over all lengths of a half."""
    generator = torch.Generator().manual_seed(2**21 + seed)  # far from the seeds that training uses
    shares: list[float] = []
    for half in range(SHORTEST, LONGEST + 1):
        ids = sample(HELD_OUT // (LONGEST - SHORTEST), half, generator)
        right = repeat_logits(model, ids).argmax(-1) == ids[:, half + 2 :]
        shares.append(right.float().mean().item())
    return sum(shares) / len(shares)


@torch.no_grad()
def head_scores(model: CompiledTransformer, half: int = 20, seed: int = 2) -> dict[str, tuple[float, float]]:
    """What each head looks at: name to (share on the previous token, share on the token after the last occurrence).

    Means over 64 held-out inputs: the first over the first half, whose tokens are looked for later, the second over
    the second half, which looks for them.
    """
    ids = sample(64, half, torch.Generator().manual_seed(2**21 + seed))
    scores: dict[str, tuple[float, float]] = {}
    everywhere = torch.eye(ids.shape[1], dtype=torch.bool).expand(len(ids), -1, -1)
    patterns = attention_to(MaskedModel(model, split_embedding=True), ids, torch.ones_like(ids), everywhere)
    for layer, pattern in enumerate(patterns.transpose(2, 3)):  # [batch, head, to, from]
        previous = pattern.diagonal(-1, dim1=-2, dim2=-1)[..., :half].mean((0, -1))
        after = pattern.diagonal(1 - half, dim1=-2, dim2=-1)[..., 2:].mean((0, -1))
        for head in range(pattern.shape[1]):
            scores[f"a{layer}.h{head}"] = previous[head].item(), after[head].item()
    return scores


def main(argv: Sequence[str] | None = None) -> int:
    """Train, show what was learned, and write the weights; 0 if it went well, 2 after a mistake, 1 if it failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=STEPS, help=f"batches of {BATCH} inputs")
    parser.add_argument("--seed", type=int, default=SEED, help="fixes weights and inputs")
    parser.add_argument("--out", type=Path, default=Path(WEIGHTS), help="file to write")
    arguments = parser.parse_args(argv)
    try:
        return _run(arguments.steps, arguments.seed, arguments.out)
    except EdgepruneError as error:
        Console(stderr=True).print(f"error: {error}", highlight=False, markup=False, soft_wrap=True)
        return 2


def _run(steps: int, seed: int, out: Path) -> int:
    if steps < 1:
        raise EdgepruneError(f"--steps must be at least 1, got {steps}")
    if not 0 <= seed < 2**63:
        raise EdgepruneError(f"--seed must lie in 0 to 2^63 - 1, got {seed}")
    check_writable(out, "--out")
    console = Console()
    with ProgressReporter() as bars:
        model = train(steps, seed, lambda step, loss: bars.report("training", step + 1, steps, lambda: {"loss": loss}))
    share = accuracy(model)
    console.print(_table(head_scores(model)))
    console.print(f"accuracy on held-out repeats: {share:.4f}")
    if share < LEARNED:
        Console(stderr=True).print(f"it did not learn: {share:.4f} is below {LEARNED}; raise --steps or change --seed")
        return 1
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    FILE.write(out, model.state_dict(), {"seed": seed, "steps": steps, "accuracy": share, "versions": versions})
    console.print(f"written to {out}")
    return 0


def _table(scores: dict[str, tuple[float, float]]) -> Table:
    columns = [Numbers(name) for name in ("head", "previous token", "after the last occurrence")]
    rows = [(head, previous, after) for head, (previous, after) in scores.items()]
    return table("Where heads look, share of their attention", columns, rows)


if __name__ == "__main__":
    sys.exit(main())
