"""Short help pages of the commands whose options are arguments of classes.

They are read from the source: importing those classes, only to show their docstrings, takes seconds.
"""

import argparse
import ast
import builtins
import re
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple, final

CONFIG = "YAML file, or the name of one that comes along; may be repeated, the later one wins"
PRINT = "print the whole config that results, and leave"
EPILOG = """\
All of them may be in a config, nested as their dots say, or on the line, which wins: --trainer.max_steps 300.
`edgeprune configs` lists the configs that come along. Where an option names a class, that class's own options follow
its name: {inside}; {example} tells them.
`edgeprune {command} --help-all` lists everything else that can be set; it takes some seconds.
"""
EXAMPLES = {
    "fit": ("--data.task.num_train 100", "--data.task.help IOI"),
    "fit-weights": ("--model.recipe.learning_rate 0.1", "--data.task.help IOI"),
    "discover": ("--method.samples 4", "--method.help EAP"),
}
SEEDED = ("model.seed", "data.seed")  # of training: they follow from seed_everything
BASES = {  # of the classes that an option may name
    "model.recipe": ("edgeprune.methods.base", "AbstractRecipe"),
    "data.task": ("datamodules.tasks.base", "AbstractTask"),
    "method": ("edgeprune.methods.discovery", "AbstractDiscovery"),
}
WEIGHT_GATES = ("edgeprune.methods.weight_gates", "WeightGates")  # what `model.recipe` of `fit-weights` is made from


@final
class Option(NamedTuple):
    """An option: its name without dashes, what its value may be (nothing for a flag), and what it is for."""

    name: str
    value: str
    text: str = ""


@final
class Group(NamedTuple):
    """Options under one heading."""

    heading: str
    options: Sequence[Option]


# -------------------------------------------------------------------- the pages
def short_page(command: str, what: str) -> str:
    """The page of `fit`, `validate`, `test` or `discover`; `what` is what that does, in a line."""
    inside, example = EXAMPLES.get(command, EXAMPLES["fit"])
    parser = argparse.ArgumentParser(
        usage=f"edgeprune {command} --config X.yaml [--OPTION VALUE ...]",
        description=what[0].upper() + what[1:],
        epilog=EPILOG.format(command=command, inside=inside, example=example),
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=32),
        add_help=False,
    )
    for group in groups(command):
        section = parser.add_argument_group(group.heading)
        for option in group.options:
            shown = section.add_argument(f"--{option.name}", metavar=option.value, help=option.text.replace("%", "%%"))
            shown.nargs = None if option.value else 0
    return parser.format_help().rstrip()


def groups(command: str) -> list[Group]:
    """The options of a command."""
    data = _of_class("data", "datamodules.pairs", "PairDataModule")
    model = _of_class("model", "edgeprune.model_options", "ModelOptions")
    if command == "discover":
        home = "edgeprune.cli.discover"
        added = [_added(call, home) for call in ast.walk(_module(home)) if isinstance(call, ast.Call) and _adds(call)]
        method = Option("method", "NAME", f"how to find circuits: {', '.join(kinds('method'))}")
        run = [Option("config", "FILE", CONFIG), method, *(one for one in added if one.name != "config")]
        return [Group("run", [*run, Option("print_config", "", PRINT)]), Group("model", model), Group("data", data)]
    if command == "fit-weights":
        model = _of_class("model", "lit_modules.weight_pruning", "WeightPruningModule")
        which = f"which gates, and how they are learned: {', '.join(_kinds(*WEIGHT_GATES))}"
        model = [one if one.name != "model.recipe" else Option(one.name, "NAME", which) for one in model]
    else:
        trained = _of_class("model", "lit_modules.pruning", "PruningModule")
        model = [*trained, *(one for one in model if one.name not in ("model.name", "model.device"))]
    then = Option("then", "FILE", "config of a fit of edges that follows, on the weights that are kept")
    run = [
        Option("config", "FILE", CONFIG),
        *([then] if command == "fit-weights" else []),
        Option("ckpt_path", "FILE", "checkpoint to go on from, or to judge; last: that of the newest run"),
        Option("seed_everything", "int", "of gate noise and the order of pairs (default: 0)"),
        Option("print_config", "", PRINT),
    ]
    trainer = [
        Option("trainer.max_steps", "int", "steps to train"),
        Option("trainer.callbacks", "LIST", "such as SnapshotCircuits and CompareToReference"),
        *_defaults("trainer", "TRAINER_DEFAULTS"),
    ]
    return [
        Group("run", run),
        Group("model", [one for one in model if one.name not in SEEDED]),
        Group("data", [one for one in data if one.name not in SEEDED]),
        Group("trainer (Lightning's; shown are the defaults that differ here)", trainer),
        Group("checkpoint (Lightning's, likewise)", _defaults("checkpoint", "CHECKPOINT_DEFAULTS")),
        Group("progress", _of_class("progress", "lit_modules.progress", "RunProgress")),
        Group("Weights & Biases", _of_class("upload_circuits", "lit_modules.tracking", "UploadCircuits")),
    ]


# -------------------------------------------------------------------- options in the source
def _of_class(section: str, home: str, name: str) -> list[Option]:
    """Options that the arguments of a class make."""
    found = next(node for node in _module(home).body if isinstance(node, ast.ClassDef) and node.name == name)
    texts = _first_sentences(ast.get_docstring(found) or "")
    options: list[Option] = []
    for argument, annotation, default in _arguments(found):
        option = f"{section}.{argument}"
        text = texts[argument][0].lower() + texts[argument][1:]
        known = f": {', '.join(kinds(option))}" if option in BASES else ""
        options.append(Option(option, _value(annotation, home), text + known + _default(default)))
    return options


def _arguments(found: ast.ClassDef) -> Iterator[tuple[str, ast.expr | None, ast.expr | None]]:
    """Name, type and default of what a class is made from; a dataclass is made from its fields."""
    for node in found.body:
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            given = node.args.args[1:]
            defaults = [*[None] * (len(given) - len(node.args.defaults)), *node.args.defaults]
            pairs = [*zip(given, defaults, strict=True), *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True)]
            yield from ((argument.arg, argument.annotation, default) for argument, default in pairs)
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield node.target.id, node.annotation, node.value


def _first_sentences(docstring: str) -> dict[str, str]:
    """The first sentence about each argument, or attribute, of a docstring in Google's style."""
    entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", docstring, re.MULTILINE)
    return {name: re.split(r"\.(?:\s|$)", " ".join(text.split()), maxsplit=1)[0] for name, text in reversed(entries)}


def _adds(call: ast.Call) -> bool:
    return isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"


def _added(call: ast.Call, home: str) -> Option:
    """The option of a call of `add_argument`."""
    words = {keyword.arg: keyword.value for keyword in call.keywords}
    name, text = (str(ast.literal_eval(node)) for node in (call.args[0], words["help"]))
    if "action" in words:
        return Option(name.removeprefix("--"), "", text)
    return Option(name.removeprefix("--"), _value(words["type"], home), text + _default(words["default"]))


def _defaults(section: str, name: str) -> list[Option]:
    """Options whose defaults a dictionary of the training command sets, each with its default as value."""
    for node in _module("edgeprune.cli.training").body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name and isinstance(node.value, ast.Dict):
            items = zip(node.value.keys, node.value.values, strict=True)
            return [Option(f"{section}.{ast.literal_eval(key)}", _shown(value)) for key, value in items if key]
    raise LookupError(name)


def _value(annotation: ast.expr | None, home: str) -> str:
    """What an option's value may be: a type, or the texts that it takes."""
    if isinstance(annotation, ast.BinOp):
        return f"{_value(annotation.left, home)}|{_value(annotation.right, home)}"
    if isinstance(annotation, ast.Constant) and annotation.value is None:
        return "null"
    if isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "Literal":
        values = annotation.slice.elts if isinstance(annotation.slice, ast.Tuple) else [annotation.slice]
        return "|".join(_value(one, home) if isinstance(one, ast.Name) else ast.literal_eval(one) for one in values)
    if isinstance(annotation, ast.Name):
        return annotation.id if hasattr(builtins, annotation.id) else _alias(annotation.id, home)
    return "VALUE"


def _alias(name: str, home: str) -> str:
    """What is behind the name of a type."""
    for node in _module(home).body:
        if isinstance(node, ast.ImportFrom) and node.module and any(alias.name == name for alias in node.names):
            return _alias(name, node.module)
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return _value(node.value, home)
        if isinstance(node, ast.ClassDef) and node.name == name:
            return "NAME"
    raise LookupError(name)


def _default(node: ast.expr | None) -> str:
    return "" if node is None or (shown := _shown(node)) == "null" else f" (default: {shown})"


def _shown(node: ast.expr) -> str:
    """A value as YAML writes it, and of a call the class that is built."""
    if isinstance(node, ast.Call):
        return ast.unparse(node.args[0])
    value = ast.literal_eval(node)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


# -------------------------------------------------------------------- files of the source
@cache
def _module(name: str) -> ast.Module:
    """A module of this project, parsed but not imported."""
    path = _folder(name).joinpath(name.rpartition(".")[2])
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    return ast.parse(file.read_text(encoding="utf-8"))


def _folder(name: str) -> Path:
    """Where a module is. Only packages at the top are looked up, which imports nothing."""
    package, *inside = name.split(".")[:-1]
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent.joinpath(*inside)


def kinds(option: str) -> tuple[str, ...]:
    """Names of the classes that an option may name, in order: those that no other class is made from."""
    return _kinds(*BASES[option])


@cache
def _kinds(home: str, base: str) -> tuple[str, ...]:
    above = {
        node.name: {re.split(r"[\[.]", ast.unparse(item))[0] for item in node.bases}
        for file in sorted(_folder(home).glob("*.py"))
        for node in ast.parse(file.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    }
    found = {base}
    while more := {name for name, bases in above.items() if bases & found} - found:
        found |= more
    return tuple(sorted(name for name in found if not any(name in bases for bases in above.values())))
