"""Data sections of configs, for the commands that need no Trainer; and `edgeprune data CONFIG`, which shows pairs."""

from typing import TYPE_CHECKING, Any

from edgeprune.cli.arguments import Arguments
from edgeprune.cli.configs import find_config
from edgeprune.errors import EdgepruneError
from edgeprune.parsing import read_options

if TYPE_CHECKING:
    from datamodules import PairDataModule


def read_data_config(path: str, tokenizer: str | None = None) -> "PairDataModule":
    """Build the data module of a config's `data` section; other sections are left aside.

    Args:
        path: A YAML file with a `data` section: a data config or a whole experiment; or the name of a shipped one.
        tokenizer: Model whose tokenizer to use where the config names none.

    Raises:
        EdgepruneError: The file is missing, is no YAML, has no such section, or the section has a mistake.
    """
    from datamodules import PairDataModule
    from edgeprune.cli.strict_parser import StrictParser, check_numbers

    config = read_options(find_config(path))
    data, model = config.get("data"), config.get("model")
    if not isinstance(data, dict):
        raise EdgepruneError(f"{path} has no section 'data'; add one as in configs/data/ioi.yaml")
    name = (model.get("name") if isinstance(model, dict) else None) or tokenizer
    parser = StrictParser()
    parser.add_class_arguments(PairDataModule, "data")
    try:
        parsed = parser.parse_object({"data": {**data, "tokenizer": data.get("tokenizer") or name}})
        check_numbers(parsed)
    except EdgepruneError as error:
        raise EdgepruneError(f"{path}: {error}") from None
    built: Any = parser.instantiate(parsed)
    return built.data


def run(arguments: list[str]) -> None:
    """Print some pairs of a config."""
    parser = Arguments(prog="edgeprune data", description="Show some pairs of a data config.")
    parser.add_argument("config", help="YAML file with a `data` section, or the name of one that comes along")
    parser.add_argument("--split", choices=["train", "validation", "test"], default="train")
    parser.add_argument("-n", type=int, default=10, help="how many pairs")
    parser.add_argument("--tokenizer", help="model whose tokenizer to use; default: the config's, or else smollm2")
    options = parser.parse_args(arguments[1:])
    if options.n < 1:
        raise EdgepruneError(f"-n must be at least 1, got {options.n}")
    data = read_data_config(options.config)
    data.tokenizer = options.tokenizer or data.tokenizer or ("smollm2" if data.task.needs_tokenizer else None)
    if not data.pairs(options.split):
        raise EdgepruneError(f"{options.config} gives no {options.split} pairs; choose another --split")
    _check_model(options.config, data, options.split)
    _show(data, options.split, options.n)


def _check_model(path: str, data: "PairDataModule", split: str) -> None:
    """Refuse pairs that the model of an experiment cannot take, as far as its config is on this machine."""
    from edgeprune.models.loading import known_limits

    model = read_options(find_config(path)).get("model")
    if isinstance(model, dict) and isinstance(model.get("name"), str) and not model.get("gguf_file"):
        limits = known_limits(model["name"], model.get("revision"))
        if limits is not None:
            data.check(limits, split)


def _show(data: "PairDataModule", split: str, count: int) -> None:
    from rich.console import Console

    from datamodules.preview import overview, rich_preview, role_names
    from datamodules.tasks.base import SPLITS

    console = Console(highlight=False)
    pairs = data.pairs(split)
    roles = role_names(pairs)
    if data.tokenizer is not None:
        console.print(f"tokenizer  {data.tokenizer}", markup=False, soft_wrap=True)
    console.print(overview(pairs, {name: len(data.pairs(name)) for name in SPLITS}, split, roles), markup=False)
    colour = console.is_terminal and not console.no_color
    shown = rich_preview(pairs[:count], data.tokenizer_object, split=split, roles=roles, colour=colour)
    for text in shown:
        console.print(text, soft_wrap=True)
