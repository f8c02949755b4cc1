r"""The same question by instruction and by examples: is it the same circuit?

    python benchmarks/case_study.py accuracies smollm2 gemma3-270m --out accuracies.json
    python benchmarks/case_study.py compare runs/case_study/plural_instruction runs/case_study/plural_few_shot \
      --out plural.json
    python benchmarks/case_study.py tables accuracies.json plural.json --page docs/results/instruction_or_examples.md \
      --plot docs/results/instruction_or_examples.png

`accuracies` asks the full model for words in several relations (`WordPairs`) and for values of Boolean expressions,
both ways. Judged are up to `--pairs` pairs; nothing is sampled. Shares of pairs:

    accuracy   the right answer has a higher logit than the distractor, the right answer of the corrupted prompt
    top-1      the right answer has the highest logit of all tokens

`compare` takes the circuits that `fit` wrote for the two ways, one of each seed:

    overlap    of every two circuits, beside what chance gives and what two seeds of one way have in common
    transfer   every circuit on the test prompts of both ways; the edges in both and in either of a seed's two circuits,
               beside circuits of one way of the same size (cut or grown by their own scores), what two seeds of one way
               have in both and in either, random circuits, the full model and the empty circuit; 95 % intervals over
               pairs
    heads      how much of the first-order effects on the logit difference is theirs, in how many circuits that is
               1 % or more, and what they attend to from the scored position
"""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from case_study_compare import compare, open_ways
from case_study_tables import accuracies_table, counts_table, heads_table, overlap_table, plot, transfer_table
from markdown_tables import fill

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
        sizes: dict[str, Any] = {
            "num_train": 1,
            "num_validation": 1,
            "num_test": number,
            "entities": "shared",
            "relation": relation,
        }
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
    return {"accuracies": found}


# -------------------------------------------------------------------- commands
def compare_ways(options: argparse.Namespace) -> dict[str, Any]:
    """Figures of the circuits of both ways."""
    ways = open_ways((options.instruction, options.few_shot), options.limit, options.device)
    return compare(ways, options.sparsities, options.random)


def show(options: argparse.Namespace) -> None:
    """Tables into the page, or printed; and the plot."""
    tables: dict[str, str] = {}
    for path in options.files:
        found = json.loads(path.read_text())
        if "accuracies" in found:
            tables["accuracies"] = accuracies_table(found)
            continue
        tables |= {"overlap": overlap_table(found), "transfer": transfer_table(found)}
        tables |= {"counts": counts_table(found), "heads": heads_table(found)}
        if options.plot:
            plot(found, options.plot)
    if options.page:
        fill(options.page, tables)
    else:
        print(*tables.values(), sep="\n\n")


def main() -> None:
    """Run the part that is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = parser.add_subparsers(dest="part", required=True)
    part = parts.add_parser("accuracies", help="what the full models make of the tasks, asked both ways")
    part.add_argument("models", nargs="+", help="such as smollm2")
    part.add_argument("--pairs", type=int, default=100, help="how many pairs of each task at most")
    part.add_argument("--batch", type=int, default=25)
    part.set_defaults(run=accuracies)
    part = parts.add_parser("compare", help="circuits found for the two ways, on the prompts of both")
    part.add_argument("instruction", type=Path, help="folder of the fits asked by instruction, with version_*")
    part.add_argument("few_shot", type=Path, help="likewise by examples; a version for the same seed")
    part.add_argument("--sparsities", type=float, nargs="+", default=[0.98, 0.99])
    part.add_argument("--limit", type=int, help="the first so many test pairs; default: all")
    part.add_argument("--random", type=int, default=3, help="random circuits of each size")
    part.add_argument("--device", default="cpu")
    part.set_defaults(run=compare_ways)
    for part in parts.choices.values():
        part.add_argument("--threads", type=int, default=2)
        part.add_argument("--out", type=Path, required=True, help="write the figures here, as JSON")
    part = parts.add_parser("tables", help="tables and plot of what the others wrote")
    part.add_argument("files", type=Path, nargs="+", metavar="FIGURES.json")
    part.add_argument("--page", type=Path, help="put the tables here, between their marks; default: print them")
    part.add_argument("--plot", type=Path, help="write the plot here")
    options = parser.parse_args()
    try:
        if options.part == "tables":
            show(options)
            return
        torch.set_num_threads(options.threads)
        found = {**options.run(options), "torch": torch.__version__}
        options.out.write_text(json.dumps(found, indent=1) + "\n")
    except EdgepruneError as error:
        parser.exit(2, f"{error}\n")


if __name__ == "__main__":
    main()
