"""The option parser of `fit` and `discover`: YAML is read strictly, and a mistake is one sentence.

Classes named by an option have parsers of their own, which jsonargparse makes while it reads. What such a parser has to
say reaches the outer one as a part of its report; it is marked there, so that it comes out as it went in.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn, final, get_args

import yaml
from jsonargparse import ActionConfigFile, ArgumentParser, Namespace, get_loader, set_loader

from edgeprune.cli.parser_errors import INNER, one_sentence, unknown_arguments, unknown_option
from edgeprune.errors import EdgepruneError
from edgeprune.parsing import check_keys, parse_yaml, read_options

MODE = "edgeprune"  # of reading values and configs
STDIN = "-"  # a config that is read from there


@final
class _Config(ActionConfigFile):
    """A config is the path of a file, or, as everywhere in jsonargparse, the YAML itself on the line."""

    def __call__(self, parser: Any, cfg: Any, values: Any, option_string: str | None = None) -> None:
        if not (values == STDIN or _is_file(values) or isinstance(parse_yaml(values, "config"), dict)):
            read_options(values)  # says what is wrong with it
        super().__call__(parser, cfg, values, option_string)


def _is_file(path: str) -> bool:
    try:
        file = Path(path).expanduser()
        return file.is_file() and os.access(file, os.R_OK)
    except (OSError, ValueError, RuntimeError):  # too long a name, a NUL in it, the home of nobody
        return False


class StrictParser(ArgumentParser):
    """Reads configs strictly and reports a bad argument or config on one line instead of sixty lines of usage."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("parser_mode", MODE)
        super().__init__(*args, **kwargs)

    def add_argument(self, *args: Any, **kwargs: Any) -> Any:
        """Let an option that names a config read it strictly too."""
        if kwargs.get("action") in ("config", ActionConfigFile):
            kwargs["action"] = _Config
        return super().add_argument(*args, **kwargs)

    def parse_path(self, path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Refuse a config that cannot be read, or holds no options by name; then read it."""
        if str(path) != STDIN:
            read_options(Path(str(path)).expanduser())
        return super().parse_path(path, *args, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise what the command line prints: the innermost reason, which names the key."""
        parser: StrictParser = getattr(ex, "subcommand_parser", self)
        within = not self.exit_on_error  # as jsonargparse makes parsers of classes
        if isinstance(ex, KeyError):
            sentence = unknown_option(ex, parser.names(), within=within)
        elif ex is None:
            sentence = unknown_arguments(message, parser.names())
        else:
            sentence = one_sentence(message or str(ex), parser.classes(), within=within)
        if not within:
            raise EdgepruneError(sentence)
        super().error(f"{INNER}{sentence}{INNER}", ex)

    def names(self) -> list[str]:
        """Options that there are, with the names of their groups."""
        known = dict.fromkeys(action.dest for action in self._actions)
        return [name for name in known if name.rpartition(".")[2] not in ("help", "config", "print_config")]

    def classes(self) -> dict[str, tuple[type, ...]]:
        """For options that name classes, their bases."""
        found = {action.dest: tuple(_classes(getattr(action, "_typehint", None))) for action in self._actions}
        return {name: bases for name, bases in found.items() if bases}


def _classes(hint: Any) -> Iterator[type]:
    """Classes in a type such as `list[Callback] | Callback | None`, those of plain values left aside."""
    if isinstance(hint, type) and hint.__module__ not in ("builtins", "datetime", "pathlib", "typing"):
        yield hint
    for part in get_args(hint):
        yield from _classes(part)


def check_numbers(config: Any, key: str = "") -> None:
    """Refuse an option that is not a number (`.nan` in YAML), or infinite, unless it is one of Lightning's."""
    if isinstance(config, float) and not (math.isfinite(config) or (math.isinf(config) and key.startswith("trainer."))):
        raise EdgepruneError(f"{key} must be a finite number, got {config}; give one, or leave the option out")
    if isinstance(config, Namespace | dict):
        for name, value in vars(config).items() if isinstance(config, Namespace) else config.items():
            check_numbers(value, f"{key}.{name}".strip("."))
    elif isinstance(config, list | tuple):
        for value in config:
            check_numbers(value, key)


def _load(text: str, path: str = "") -> Any:
    """Jsonargparse's own reading, of what `check_keys` lets pass."""
    try:
        check_keys(text, path or "value")
        return get_loader("yaml")(text)
    except EdgepruneError as error:
        raise EdgepruneError(f"{INNER}{error}{INNER}") from None
    except ValueError as error:  # a number of too many digits
        reason = str(error).partition("; use sys.")[0]
        raise EdgepruneError(f"{INNER}: {reason}; write a shorter one{INNER}") from None


set_loader(MODE, _load, (yaml.YAMLError, UnicodeDecodeError))
