"""What the full model makes of generated tasks: the behaviour that a circuit is later asked to keep.

    python benchmarks/tasks.py IOI GreaterThan GreaterThan:form=short SubjectVerb:attractor=true --out tasks.json

A task is a class of `datamodules` with settings after a colon, as YAML values. Judged are the first test pairs; nothing
is sampled. Means over pairs; the columns:

    > distractor   share of pairs whose answer has a higher logit than the distractor, where there is one
    > every wrong  share of pairs whose answer has a higher logit than each wrong answer, at every scored position
    right > wrong  share of pairs whose right answers are together more probable than the wrong ones, likewise
    by position    the share of scored positions at which that is so
    logit diff.    logit of the answer minus that of the distractor
    PD, PD 2-digit, PD 10   the measures of `edgeprune.metrics.greater_than`

A dash stands where a measure is not defined.
"""

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.table import Table
from torch import Tensor

import datamodules
from datamodules import GreaterThan, PairDataModule
from datamodules.tasks.base import AbstractTask
from edgeprune.batch import IGNORE, PairBatch
from edgeprune.console import report_console
from edgeprune.errors import EdgepruneError
from edgeprune.metrics import greater_than
from edgeprune.metrics.functional import logit_difference
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from edgeprune.tables import Numbers, table

COLUMNS = {
    "accuracy": "> distractor",
    "accuracy_every_wrong": "> every wrong",
    "accuracy_sets": "right > wrong",
    "accuracy_by_position": "by position",
    "logit_difference": "logit diff.",
    "probability_difference": "PD",
    "probability_difference_two_digit": "PD 2-digit",
    "probability_difference_10": "PD 10",
}


def build_task(text: str) -> AbstractTask:
    """The task that `NAME` or `NAME:field=value,field=value` stands for."""
    name, _, settings = text.partition(":")
    found: Any = getattr(datamodules, name, None)
    if not (isinstance(found, type) and issubclass(found, AbstractTask)):
        raise EdgepruneError(f"no task {name!r} in datamodules; give a class name such as IOI")
    pairs = [setting.partition("=") for setting in settings.split(",") if setting]
    try:
        return found(**{field: yaml.safe_load(value) for field, _, value in pairs})
    except TypeError as error:
        raise EdgepruneError(f"{text}: {error}; settings are NAME:field=value,field=value") from None


def at(logits: Tensor, ids: Tensor, absent: float) -> Tensor:
    """Values at each of `[batch, positions, num]`; `absent` where there is none."""
    return logits.gather(-1, ids.clamp(min=0)).masked_fill(ids == IGNORE, absent)


def measures(logits: Tensor, batch: PairBatch, numbers: bool) -> dict[str, Tensor]:
    """Every measure, each `[batch]`."""
    wrong, probs = batch.wrong_answers, logits.softmax(-1)
    target, distractor = (at(logits, ids[..., None], -math.inf) for ids in (batch.targets, batch.distractors))
    compared = batch.position_mask & (wrong != IGNORE).any(-1)
    right = {
        "accuracy": ((target > distractor)[..., 0], batch.position_mask & (batch.distractors != IGNORE)),
        "accuracy_every_wrong": ((target > at(logits, wrong, -math.inf)).all(-1), compared),
        "accuracy_sets": (at(probs, batch.answers, 0.0).sum(-1) > at(probs, wrong, 0.0).sum(-1), compared),
    }
    result = {
        **{
            name: torch.where(where.any(-1), (value | ~where).all(-1).double(), torch.nan)
            for name, (value, where) in right.items()
        },
        "accuracy_by_position": (right["accuracy_sets"][0] & compared).sum(-1) / compared.sum(-1),
        "logit_difference": logit_difference(logits, logits, batch),
    }
    if numbers:
        for name in list(COLUMNS)[len(result) :]:
            result[name] = getattr(greater_than, name)(logits, batch)
    return result


@torch.no_grad()
def judge(model: MaskedModel, task: AbstractTask, options: argparse.Namespace) -> dict[str, Any]:
    """Means over the first test pairs; a measure that is not defined is None."""
    data = PairDataModule(task, options.model, eval_batch_size=options.batch, cache=False)
    values: dict[str, list[Tensor]] = {}
    num_pairs = 0
    start = time.perf_counter()
    for batch in data.test_dataloader():
        if num_pairs >= options.pairs:
            break
        batch = batch.to(model.device)
        num_pairs += len(batch)
        logits = model.full(batch.clean, batch.attention_mask, batch.positions).float()
        for name, value in measures(logits, batch, isinstance(task, GreaterThan)).items():
            values.setdefault(name, []).append(value)
    means = {name: torch.cat(parts)[: options.pairs].nanmean().item() for name, parts in values.items()}
    return {
        **task.description(),
        "pairs": min(num_pairs, options.pairs),
        "seconds": round(time.perf_counter() - start, 1),
        **{name: None if math.isnan(mean) else round(mean, 4) for name, mean in means.items()},
    }


def overview(rows: dict[str, dict[str, Any]]) -> Table:
    """One line per task."""
    columns = ["task", Numbers("pairs"), *map(Numbers, COLUMNS.values())]
    return table(None, columns, [[name, row["pairs"], *map(row.get, COLUMNS)] for name, row in rows.items()])


def main() -> None:
    """Judge every task that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", help="NAME or NAME:field=value,field=value")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--pairs", type=int, default=200, help="how many test pairs at most")
    parser.add_argument("--batch", type=int, default=25)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        tasks = {text: build_task(text) for text in options.tasks}
        model = load_model(options.model)
        rows = {text: judge(model, task, options) for text, task in tasks.items()}
    except EdgepruneError as error:
        parser.exit(2, f"{error}\n")
    report_console().print(overview(rows))
    if options.out:
        record = {"model": options.model, "dtype": "float32", "torch": torch.__version__, "rows": rows}
        options.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
