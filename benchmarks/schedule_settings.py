"""Problems and settings of `schedule.py`, and the pairs of its stories model."""

import json
import random
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from ground_truth import Problem as Known
from ground_truth import of_program
from transformers import AutoTokenizer

NUM_TEST = 100
Values = dict[str, Any]


# -------------------------------------------------------------------- problems
@dataclass(frozen=True)
class Problem:
    """A model with pairs, and the setting that others are compared with.

    Attributes:
        config: Shipped config that the rest is taken from.
        base: The setting.
        sparsities: Snapshots to judge.
        model: Name; None: from the command line.
        task: Class and settings; `JSONLTask`: the pairs of `write_stories`.
        ablation: For programs, of which the circuit is known.
        batch_size: Pairs in a step.
    """

    config: str
    base: Values
    sparsities: tuple[float, ...]
    model: str | None
    task: tuple[str, Values]
    ablation: str = "interchange"
    batch_size: int = 8

    def known(self) -> Known | None:
        """The known circuit, if this is a program."""
        if self.model is None or not self.model.startswith("compiled:"):
            return None
        found = of_program(self.model.removeprefix("compiled:"))
        return next(problem for problem in found if problem.ablation == self.ablation)


SPLITS = {"num_train": 400, "num_validation": 10, "num_test": NUM_TEST, "entities": "shared"}
SHORT = {  # the shipped configs/ioi_smollm2.yaml in a third of its steps: three times the rate
    "steps": 200,
    "start": 500.0,
    "end": 1500.0,
    "learning_rate": 0.1,
    "betas": [0.9, 0.99],
    "init_mean": 2.0,
    "masks_per_batch": 8,
}
PROGRAM = {
    "steps": 600,
    "start": 0.02,
    "end": 0.1,
    "learning_rate": 0.05,
    "betas": [0.9, 0.9],
    "init_mean": 5.0,
    "masks_per_batch": 1,
}


def program(name: str, ablation: str) -> Problem:
    """A compiled program, by the pathwise estimator."""
    task = ("CompiledTask", {"program": name})
    return Problem("ground_truth", PROGRAM, (0.5,), f"compiled:{name}", task, ablation, batch_size=64)


PROBLEMS = {
    "reverse": program("reverse", "zero"),
    "reverse_interchange": program("reverse", "interchange"),
    "xproportion": program("xproportion", "zero"),
    "stories": Problem(
        "ioi_smollm2",
        {**SHORT, "steps": 300, "start": 10.0, "end": 300.0},
        (0.8, 0.9, 0.95, 0.97, 0.98),
        None,
        ("JSONLTask", {}),
    ),
    "ioi": Problem(
        "ioi_smollm2",
        SHORT,
        (0.95, 0.98, 0.99),
        "smollm2",
        ("IOI", {**SPLITS, "corruption": "abc", "templates": 1}),
    ),
    **{
        name: Problem("ioi_smollm2", SHORT, (0.95, 0.98, 0.99), "smollm2", (task, settings))
        for name, task, settings in (
            ("pronoun", "GenderedPronoun", SPLITS),
            ("greater_than", "GreaterThan", SPLITS),
            ("agreement", "SubjectVerb", SPLITS),
            ("capitals", "Capitals", {**SPLITS, "num_train": 80}),
        )
    },
}

# -------------------------------------------------------------------- settings
# What each changes of the problem's base setting; those that change nothing there are left out. "price" multiplies the
# penalty's start and end, "price_from" is its start over its end, "fixed" a constant price over the base's end; "share"
# multiplies the number of steps, "rate" the learning rate; "paced": neither price nor rate is set, `Pace` finds them.
PUBLISHED = {
    "penalty_on": "sample",
    "learning_rate": 0.8,
    "learning_rate_warmup": 0.0667,
    "learning_rate_decay": True,
    "weight_decay": 0.01,
    "betas": [0.9, 0.999],
    "init_mean": 10.0,
    "init_std": 0.01,
    "node_gates": True,
    "masks_per_batch": 1,
    "multiplier_rate": 0.8,
    "warmup": 0.8333,
    "clip": 1.0,
}
SETTINGS: dict[str, Values] = {
    "base": {},
    "pace": {"paced": True},
    "pace, steps x 3": {"paced": True, "share": 3.0},
    **{f"init {mean:g}": {"init_mean": mean} for mean in (0.0, 2.0, 4.0, 5.0, 10.0)},
    **{f"rate {rate:g}": {"learning_rate": rate} for rate in (0.01, 0.03, 0.05, 0.1, 0.3)},
    "rate falls to 0": {"learning_rate_decay": True},
    "betas .9 .9": {"betas": [0.9, 0.9]},
    "betas .9 .95": {"betas": [0.9, 0.95]},
    "betas .9 .99": {"betas": [0.9, 0.99]},
    "betas .9 .999": {"betas": [0.9, 0.999]},
    "price / 3": {"price": 1 / 3},
    "price x 3": {"price": 3.0},
    "price constant": {"price_from": 1.0},
    "price from 1/10": {"price_from": 0.1},
    "price from 1/100": {"price_from": 0.01},
    "steps / 4": {"share": 0.25},
    "steps / 2": {"share": 0.5},
    "steps x 2": {"share": 2.0},
    "steps x 2, rate 0.03": {"share": 2.0, "learning_rate": 0.03},
    "steps / 4, rate x 4": {"share": 0.25, "rate": 4.0},
    "penalty on the sample": {"penalty_on": "sample"},
    "1 mask": {"masks_per_batch": 1},
    "2 masks": {"masks_per_batch": 2},
    "2 masks, antithetic": {"masks_per_batch": 2, "antithetic": True},
    "8 masks": {"masks_per_batch": 8},
    "8 masks, antithetic": {"masks_per_batch": 8, "antithetic": True},
    "warm start": {"warm_start": {"magnitude": True}},
    "warm start, 30 % trained": {"warm_start": {"magnitude": True, "keep_below": 0.3}},
    "weight decay .01": {"weight_decay": 0.01},
    # one run per sparsity: the published form at equal and at the published number of steps, and fixed prices
    **{f"Lagrangian to {target:g}": {"target": target} for target in (0.8, 0.9, 0.95, 0.97, 0.98, 0.99)},
    **{
        f"Lagrangian to {target:g}, multipliers x 10": {"target": target, "multiplier_rate": 8.0}
        for target in (0.95, 0.97, 0.98)
    },
    "Lagrangian to 0.98, log, multipliers x 10": {"target": 0.98, "schedule": "log", "multiplier_rate": 8.0},
    **{
        f"published to {target:g}": {**PUBLISHED, "target": target, "steps": 3000} for target in (0.9, 0.95, 0.98, 1.02)
    },
    **{
        f"published / 5 to {target:g}": {**PUBLISHED, "target": target, "steps": 600}
        for target in (0.9, 0.95, 0.98, 1.02)
    },
    **{f"constant price {part:g}": {"fixed": part} for part in (0.03, 0.1, 0.3, 1.0)},
}


def resolved(problem: Problem, name: str) -> Values:
    """All values of a setting: those of the recipe, `steps`, `clip` and those of the sparsity term."""
    change = dict(SETTINGS[name])
    values = {**problem.base, **change}
    factors = {key: values.pop(key, None) for key in ("price", "price_from", "share", "rate", "fixed")}
    if factors["share"]:
        values["steps"] = round(values["steps"] * factors["share"])
    if factors["rate"]:
        values["learning_rate"] *= factors["rate"]
    if factors["price"]:
        values["start"], values["end"] = (factors["price"] * values[key] for key in ("start", "end"))
    if factors["price_from"]:
        values["start"] = factors["price_from"] * values["end"]
    if factors["fixed"]:
        values["start"] = values["end"] = factors["fixed"] * values["end"]
    if "target" in values:
        del values["start"], values["end"]
    return values


def is_new(problem: Problem, name: str) -> bool:
    """Whether a setting differs from the base."""
    return name == "base" or resolved(problem, name) != resolved(problem, "base")


# -------------------------------------------------------------------- pairs of the stories model
GIRLS = ["Lily", "Sue", "Mia", "Amy", "Anna", "Lucy", "Jane", "Emma", "Sara", "Molly", "Ella"]
BOYS = ["Tim", "Tom", "Ben", "Max", "Sam", "Jack", "Bob", "Billy", "Timmy", "John", "Leo", "Joe"]
FEELINGS = ["sad", "happy", "scared", "tired", "angry", "hungry", "excited", "curious"]
PLACES = ["park", "house", "garden", "room", "store", "forest", "kitchen", "water"]
THINGS = ["dog", "cat", "tree", "ball", "bird", "box", "car", "fish"]
STORIES = (  # sentence, words, whether the pronoun begins a sentence
    ("{name} was {word} because", FEELINGS, False),
    ("{name} was in the {word}.", PLACES, True),
    ("One day, {name} went to the {word}.", PLACES, True),
    ("{name} liked to play with the {word}.", THINGS, True),
)


def write_stories(path: Path, tokenizer: str, *, validation: int = 20) -> None:
    """Pairs for `JSONLTask`: a name, and a pronoun that fits; corrupted: a name of the other gender and equal length.

    No clean prompt occurs twice. The first 100 are for testing, the next ones for validation.
    """
    words = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    length = {name: len(words.tokenize(f" {name}")) for name in (*GIRLS, *BOYS)}
    rng = random.Random(0)
    lines: list[Values] = []
    for (sentence, fillings, begins), own in product(STORIES, (GIRLS, BOYS)):
        answers = ("She", "He") if begins else ("she", "he")
        right, wrong = answers if own is GIRLS else answers[::-1]
        for word, name in product(fillings, own):
            others = [other for other in (BOYS if own is GIRLS else GIRLS) if length[other] == length[name]]
            if others:
                clean, corrupted = (sentence.format(name=each, word=word) for each in (name, rng.choice(others)))
                lines.append(
                    {
                        "clean": f"{clean}<predict> {right}</predict>",
                        "corrupted": f"{corrupted}<predict> {wrong}</predict>",
                    }
                )
    rng.shuffle(lines)
    for number, line in enumerate(lines):
        line["split"] = "test" if number < NUM_TEST else "validation" if number < NUM_TEST + validation else "train"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
