"""Predicted and measured peak memory of training steps and evaluations, each in a process of its own.

    python benchmarks/memory.py                       # all cases
    python benchmarks/memory.py --case gpt2

Models have random weights. A case makes some training steps of Edge Pruning on random pairs with kept runs, as `fit`
does, or judges one circuit. `predicted` is what the memory plan says once the model is loaded; `measured` is the peak
of the process's resident memory since then.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from datamodules.collate import collate
from datamodules.sampler import PairBatchSampler
from datamodules.tasks.base import TokenPair
from edgeprune.ablations.fixed_batches import FixedBatches
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.memory import (
    BatchShape,
    MemoryPlan,
    activations_per_example,
    evaluation_terms,
    plan_of,
    training_terms,
)
from edgeprune.methods import EdgePruning
from edgeprune.metrics.faithfulness import faithfulness
from edgeprune.metrics.measure import gated_logits
from edgeprune.models.masked import MaskedModel
from edgeprune.objectives import masked_mean
from edgeprune.objectives.losses import kl_divergence
from edgeprune.objectives.sparsity import GeometricPenalty

SMOLLM2 = LlamaConfig(
    hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3,
    vocab_size=49152, tie_word_embeddings=True,
)  # fmt: skip
DEEP = LlamaConfig(
    hidden_size=256, intermediate_size=1024, num_hidden_layers=24, num_attention_heads=8, num_key_value_heads=8,
    vocab_size=8192,
)  # fmt: skip

WIDE_VOCABULARY = LlamaConfig(
    hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=256_000, tie_word_embeddings=True,
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A model, a batch, and what is done with it."""

    config: Any
    shape: BatchShape
    dtype: str = "float32"
    cache_gb: float = 0.5
    train: bool = True


CASES = {
    "gpt2": Case(GPT2Config(), BatchShape(batch=32, seq=16)),
    "smollm2": Case(SMOLLM2, BatchShape(batch=8, seq=16, masks=8)),
    "deep": Case(DEEP, BatchShape(batch=16, seq=64), "bfloat16"),
    "gpt2 small": Case(GPT2Config(), BatchShape(batch=4, seq=16), cache_gb=0.0),
    "gpt2, evaluation": Case(GPT2Config(), BatchShape(batch=128, seq=16), train=False),
    "wide vocabulary": Case(WIDE_VOCABULARY, BatchShape(batch=32, seq=16)),
    "wide vocabulary, several positions": Case(WIDE_VOCABULARY, BatchShape(batch=16, seq=16, positions=4)),
    "wide vocabulary, bfloat16": Case(WIDE_VOCABULARY, BatchShape(batch=32, seq=16), "bfloat16"),
    "wide vocabulary, evaluation": Case(WIDE_VOCABULARY, BatchShape(batch=128, seq=16), train=False),
    "smollm2, evaluation": Case(SMOLLM2, BatchShape(batch=32, seq=16), train=False),
}


def measure(case: Case) -> dict[str, Any]:
    """Do what the case says; the plan, and the peak."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(case.config).to(getattr(torch, case.dtype)).eval()
    model, shape = MaskedModel(hf), case.shape
    number = 4 * shape.batch
    tokens = torch.randint(0, hf.config.vocab_size, (number, 2, shape.seq)).tolist()
    scored = tuple(range(shape.seq - shape.positions, shape.seq))
    answers = (1,) * shape.positions
    pairs = [TokenPair(tuple(clean), tuple(other), scored, answers, answers) for clean, other in tokens]
    runs = ReferenceRuns(model, "interchange", case.cache_gb)
    batch_of = partial(_batch, pairs)
    sampler = PairBatchSampler(number, shape.batch, seed=0)
    runs.plan({"train": FixedBatches(sampler.fixed_batches(), batch_of, lambda _: (shape.seq, shape.positions))})
    if case.train:
        terms = training_terms(model, shape, activations_per_example(model, shape, kl_divergence))
    else:
        terms = evaluation_terms(model, shape)
    plan = plan_of(model, terms, int(case.cache_gb * 1e9) - runs.store.free["memory"])
    Path("/proc/self/clear_refs").write_text("5")  # start the peak again: building the model does not count
    if case.train:
        _train(model, runs, [batch_of(numbers) for numbers in sampler], shape)
    else:
        _evaluate(model, runs, [batch_of(numbers) for numbers in sampler])
    return _row(plan, _resident("VmHWM"))


def _batch(pairs: list[TokenPair], numbers: Sequence[int]) -> PairBatch:
    return collate([(number, pairs[number]) for number in numbers])


def _train(model: MaskedModel, runs: ReferenceRuns, batches: list[Any], shape: BatchShape) -> None:
    recipe = EdgePruning(GeometricPenalty(start=1.0, end=1.0), masks_per_batch=shape.masks)
    recipe.build(model.graph)
    optimizer = torch.optim.AdamW(recipe.parameter_groups())
    for step, batch in enumerate(batches):
        _step(model, runs, recipe, batch, step)
        optimizer.step()
        optimizer.zero_grad()


def _step(model: MaskedModel, runs: ReferenceRuns, recipe: EdgePruning, batch: Any, step: int) -> None:
    full, ablated = runs(batch, "train")

    def error_of(gates: torch.Tensor) -> torch.Tensor:
        return masked_mean(kl_divergence(full, gated_logits(model, batch, gates, ablated)), batch.position_mask)

    error, gates = recipe.expected_error(error_of, 0, step)
    (error + recipe.penalty(gates, 0.0)).backward()


@torch.no_grad()
def _evaluate(model: MaskedModel, runs: ReferenceRuns, batches: list[Any]) -> None:
    gates, measures = model.graph.all_closed().float(), faithfulness()
    for batch in batches:
        full, ablated = runs(batch, "train")
        measures.update(full, gated_logits(model, batch, gates, ablated), batch)


def _row(plan: MemoryPlan, peak: float) -> dict[str, Any]:
    loaded = plan.weights + plan.process
    return {
        "predicted_gb": round(plan.total / 1e9, 3),
        "measured_gb": round(peak / 1e9, 3),
        "predicted / measured": round(plan.total / peak, 3),
        "above loaded": round((plan.total - loaded) / (peak - loaded), 3),
        "parts_gb": {name: round(num_bytes / 1e9, 3) for name, num_bytes in plan.parts.items()},
    }


def _resident(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


def main() -> None:
    """Measure each case in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, action="append")
    parser.add_argument("--batch", type=int, help="other than the case's")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    names = options.case or list(CASES)
    if options.inside:
        case = CASES[names[0]]
        shape = replace(case.shape, batch=options.batch or case.shape.batch)
        print(json.dumps(measure(replace(case, shape=shape))))
        return
    for name in names:
        command = [sys.executable, __file__, "--inside", "--case", name, "--threads", str(options.threads)]
        command += [] if options.batch is None else ["--batch", str(options.batch)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        print(name, json.dumps(json.loads(done.stdout.splitlines()[-1]), indent=1), flush=True)


if __name__ == "__main__":
    main()
