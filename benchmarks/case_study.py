"""The same question by instruction and by examples: is it the same circuit?

    python benchmarks/case_study.py accuracies smollm2 gemma3-270m --out accuracies.json

`accuracies` asks the full model for words in several relations (`WordPairs`) and for values of Boolean expressions,
both ways. Judged are up to `--pairs` pairs; nothing is sampled. Shares of pairs:

    accuracy   the right answer has a higher logit than the distractor, the right answer of the corrupted prompt
    top-1      the right answer has the highest logit of all tokens
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch

from datamodules import BooleanExpressions, PairDataModule, WordPairs
from datamodules.tasks.base import AbstractTask
from datamodules.tasks.word_pairs import Relation
from edgeprune.console import report_console
from edgeprune.errors import EdgepruneError
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from edgeprune.tables import Numbers, table

PROMPTINGS = "instruction", "few_shot"
CHAT = {  # how an instruct model wants to be asked: a line of the user's, and the beginning of the answer
    "smollm2": "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}",
    "gemma3-270m": "<start_of_turn>user\n{question}<end_of_turn>\n<start_of_turn>model\n{answer}",
}
CHAT_LINES = {
    "capital": ("What is the capital of {subject}?", "It is the city of"),
    "nationality": ("What is the adjective for {subject}?", "The adjective is"),
    "opposite": ("Give the opposite. Word: {subject}.", "Opposite:"),
    "past": ("Write the past tense. Present: {subject}.", "Past:"),
    "plural": ("Write the plural. Singular: {subject}.", "Plural:"),
    "sum": ("What is {subject}?", "The number"),
}


# -------------------------------------------------------------------- accuracies
class Asked(NamedTuple):
    """A task asked in one way."""

    task: str
    way: str
    pairs: AbstractTask


def ways_to_ask(model: str, tokenizer: Any, most: int) -> Iterator[Asked]:
    """Every task in every way, with up to `most` test pairs; two are set apart for the splits that are not used."""
    for relation in get_args(Relation):
        task = WordPairs(relation=relation)
        try:
            number = min(most, len(task.vocabulary(tokenizer).questions) - 2)
        except EdgepruneError as error:
            report_console().print(f"{relation}: {error}", highlight=False, markup=False)
            continue
        sizes = {"num_train": 1, "num_validation": 1, "num_test": number, "entities": "shared", "relation": relation}
        for prompting in PROMPTINGS:
            yield Asked(relation, prompting, WordPairs(**sizes, prompting=prompting))
        if model in CHAT:
            question, answer = CHAT_LINES[relation]
            chat = CHAT[model].format(question=question, answer=answer)
            yield Asked(relation, "instruction, chat", WordPairs(**sizes, instruction=chat))
    for operators in (3, 5):
        for prompting in PROMPTINGS:
            task = BooleanExpressions(1, 1, most, "shared", prompting=prompting, num_operators=operators)
            yield Asked(f"Boolean, {operators} operators", prompting, task)


@torch.no_grad()
def accuracy(model: MaskedModel, asked: Asked, data: PairDataModule) -> dict[str, Any]:
    """Shares of the test pairs that the full model answers right, and the mean length of a prompt."""
    above, exact, tokens, count = 0, 0, 0, 0
    for batch in data.test_dataloader():
        batch = batch.to(model.device)
        logits = model.full(batch.clean, batch.attention_mask, batch.positions)[:, 0].float()
        right, wrong = batch.targets[:, :1], batch.distractors[:, :1]
        above += int((logits.gather(1, right) > logits.gather(1, wrong)).sum())
        exact += int((logits.argmax(1, keepdim=True) == right).sum())
        tokens += int(batch.attention_mask.sum())
        count += len(batch)
    return {
        "task": asked.task,
        "way": asked.way,
        "pairs": count,
        "tokens": tokens / count,
        "accuracy": above / count,
        "accuracy_top1": exact / count,
    }


def accuracies(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of every model, task and way."""
    found: dict[str, Any] = {}
    for name in options.models:
        model = load_model(name)
        words = PairDataModule(WordPairs(), name, cache=False)
        words.setup()
        tokenizer = words.tokenizer_object
        rows = found[name] = []
        for asked in ways_to_ask(name, tokenizer, options.pairs):
            data = PairDataModule(asked.pairs, name, eval_batch_size=options.batch, cache=False)
            rows.append(accuracy(model, asked, data))
            print(name, rows[-1], flush=True)
        columns = ["task", "asked by", Numbers("pairs"), Numbers("tokens"), Numbers("accuracy"), Numbers("top-1")]
        report_console().print(table(name, columns, [list(row.values()) for row in rows]))
    return {"accuracies": found, "torch": torch.__version__}


def main() -> None:
    """Run the part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("accuracies", help="what the full models make of the tasks, asked both ways")
    part.add_argument("models", nargs="+", help="such as smollm2")
    part.add_argument("--pairs", type=int, default=100, help="how many pairs of each task at most")
    part.add_argument("--batch", type=int, default=25)
    part.set_defaults(run=accuracies)
    for part in parts.choices.values():
        part.add_argument("--threads", type=int, default=2)
        part.add_argument("--out", type=Path, help="write the figures as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    try:
        found = options.run(options)
    except EdgepruneError as error:
        parser.exit(2, f"{error}\n")
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
