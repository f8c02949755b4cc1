"""How much of each task's training batches is padding, with and without windows of lengths, and what mixing that costs.

    python benchmarks/padding.py path/to/gpt2-tokenizer

Of every task, training pairs in batches of 8 and of 32, one epoch: the share of tokens that is padding, and how many
different templates the pairs of a batch have on average, for tasks that tell.
"""

import argparse
import json
from statistics import mean
from typing import Any

from datamodules import (
    IOI,
    BooleanExpressions,
    Capitals,
    Docstring,
    GenderedPronoun,
    GreaterThan,
    PairDataModule,
    SubjectVerb,
)
from datamodules.sampler import PairBatchSampler

NUM = 1600
TASKS: dict[str, Any] = {
    "IOI": lambda: IOI(num_train=NUM),
    "greater-than": lambda: GreaterThan(num_train=NUM),
    "gendered pronoun": lambda: GenderedPronoun(num_train=NUM),
    "subject-verb agreement": lambda: SubjectVerb(num_train=NUM),
    "capitals": lambda: Capitals(),
    "docstring": lambda: Docstring(num_train=NUM),
    "Boolean expressions": lambda: BooleanExpressions(num_train=NUM),
}


def main() -> None:
    """Print one row per task and batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tokenizer")
    parser.add_argument("--windows", type=int, nargs="+", default=[0, 4, 16])
    options = parser.parse_args()
    for name, make in TASKS.items():
        data = PairDataModule(make(), options.tokenizer, cache=False)
        lengths = [len(pair.clean) for pair in data.pairs("train")]
        labels = data.labels("train").get("template", ())
        for batch_size in (8, 32):
            row: dict[str, Any] = {"task": name, "batch": batch_size, "lengths": len(set(lengths))}
            kinds: list[float] = []
            for window in options.windows:
                batches = list(
                    PairBatchSampler(len(lengths), batch_size, seed=0, window=window, length=lengths.__getitem__)
                )
                wide = sum(len(batch) * max(lengths[number] for number in batch) for batch in batches)
                tokens = sum(lengths[number] for batch in batches for number in batch)
                row[f"padding, window {window}"] = round(1 - tokens / wide, 3)
                if labels:
                    kinds.append(mean(len({labels[number] for number in batch}) for batch in batches))
            row["templates per batch"] = [round(value, 1) for value in kinds]
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
