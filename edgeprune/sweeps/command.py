"""The command of a trial, built from a sweep file word for word as `wandb agent` builds it."""

import json
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from edgeprune.errors import EdgepruneError
from edgeprune.paths import write_whole_text

_VARIABLE = re.compile(r"\$\{envvar:([A-Z0-9_]*)\}")
_MACRO = re.compile(r"\$\{([^}]*)\}")
PROGRAMS = ("edgeprune", "edgeprune.exe")


def trial_command(words: Sequence[str], program: str, values: Mapping[str, Any], json_file: Path) -> list[str]:
    """The words to run, from `command` and `program` of the file.

    Args:
        words: The file's `command`.
        program: Its `program`.
        values: Parameters of the trial, nested as the file nests them.
        json_file: Where `${args_json_file}` is to be; written if the command has it.

    >>> trial_command(["${program}", "fit", "${args}"], "edgeprune", {"seed_everything": 1}, Path("x.json"))
    ['edgeprune', 'fit', '--seed_everything=1']
    """
    macros = _macros(program, values, json_file)
    if "${args_json_file}" in words:
        write_whole_text(json_file, json.dumps(dict(values)))
    done: list[str] = []
    for word in words:
        filled = _VARIABLE.sub(lambda match: os.environ.get(match[1], match[1]), word)
        macro = _MACRO.fullmatch(filled)
        done += [filled] if macro is None else macros.get(macro[1], [])
    return done


def fit_arguments(words: Sequence[str]) -> list[str]:
    """What follows `edgeprune` in a command.

    Raises:
        EdgepruneError: If the command does not run `edgeprune fit`: only that leaves a trial's results behind.
    """
    places = [place for place, word in enumerate(words) if Path(word).name in PROGRAMS]
    arguments = list(words[places[0] + 1 :]) if places else []
    if not arguments or arguments[0] != "fit":
        raise EdgepruneError(
            f"the command of a trial is {' '.join(words)!r}, which does not run `edgeprune fit`; set program: "
            "edgeprune and command: ['${env}', '${program}', fit, --config, X.yaml, '${args}']"
        )
    return arguments


def _macros(program: str, values: Mapping[str, Any], json_file: Path) -> dict[str, list[str]]:
    """Words that each macro stands for."""
    return {
        "env": ["/usr/bin/env"] if os.name != "nt" else [],
        "interpreter": ["python"],
        "program": [program] if program else [],
        "args": [f"--{name}={value}" for name, value in values.items()],
        "args_no_equals": [word for name, value in values.items() for word in (f"--{name}", str(value))],
        "args_no_hyphens": [f"{name}={value}" for name, value in values.items()],
        "args_no_boolean_flags": [_flag(name, value) for name, value in values.items() if value is not False],
        "args_append_hydra": [f"+{name}={value}" for name, value in values.items()],
        "args_override_hydra": [f"++{name}={value}" for name, value in values.items()],
        "args_json": [json.dumps(dict(values))],
        "args_json_file": [str(json_file)],
    }


def unknown_macros(words: Sequence[str]) -> list[str]:
    """Macros that W&B would drop without a word."""
    found = [match[1] for match in map(_MACRO.fullmatch, words) if match and not match[1].startswith("envvar:")]
    return [name for name in found if name not in _macros("", {}, Path())]


def _flag(name: str, value: Any) -> str:
    return f"--{name}" if value is True else f"--{name}={value}"
