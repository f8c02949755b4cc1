"""Data sections of configs, for the commands that need no Trainer; and `edgeprune data CONFIG`, which shows pairs."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from datamodules import PairDataModule


def read_data_config(path: str, tokenizer: str | None = None) -> "PairDataModule":
    """Build the data module of a config's `data` section; other sections are left aside.

    Args:
        path: A YAML file with a `data` section: a data config or a whole experiment.
        tokenizer: Model whose tokenizer to use where the config names none.
    """
    import yaml
    from jsonargparse import ArgumentParser

    from datamodules import PairDataModule

    if not Path(path).is_file():
        raise EdgepruneError(f"no config file at {path}")
    try:
        config: Any = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as error:
        raise EdgepruneError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(config, dict) or "data" not in config:
        raise EdgepruneError(f"{path} has no section 'data'")
    data: dict[str, Any] = config["data"]
    name = config.get("model", {}).get("name") or tokenizer
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PairDataModule, "data")
    try:
        parsed = parser.parse_object({"data": {**data, "tokenizer": data.get("tokenizer") or name}})
    except Exception as error:  # jsonargparse has no public common base for what it raises here
        raise EdgepruneError(f"{path}: {error}") from None
    built: Any = parser.instantiate_classes(parsed)
    return built.data


def run(arguments: list[str]) -> None:
    """Print some pairs of a config."""
    parser = argparse.ArgumentParser(prog="edgeprune data", description="Show some pairs of a data config.")
    parser.add_argument("config", help="YAML file with a `data` section")
    parser.add_argument("--split", choices=["train", "validation", "test"], default="train")
    parser.add_argument("-n", type=int, default=10, help="how many pairs")
    options = parser.parse_args(arguments[1:])
    print(read_data_config(options.config).preview(options.n, options.split))  # noqa: T201
