"""Arguments of the light commands, and what several of them do alike."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn, cast, final

from edgeprune.errors import EdgepruneError
from edgeprune.paths import check_writable, write_whole_text

PAGE = (".html", ".htm")


@final
class Arguments(argparse.ArgumentParser):
    """Reports a wrong argument as the other mistakes are reported: one line."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing the usage and leaving."""
        raise EdgepruneError(f"{message}; see {self.prog} --help")


def innermost(error: BaseException) -> BaseException:
    """The user's mistake at the bottom of a chain of causes, or the error itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, EdgepruneError):
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def check_ablation(text: str | None) -> None:
    """Refuse an ablation that cannot be read, before anything slow."""
    if text is not None:
        from edgeprune.ablations import Ablation

        Ablation.parse(text)


def check_least(options: argparse.Namespace, least: Mapping[str, float]) -> None:
    """Refuse options below the least value that they may have."""
    for name, lowest in least.items():
        value = getattr(options, name)
        if value is not None and not value >= lowest:
            raise EdgepruneError(f"--{name.replace('_', '-')} must be at least {lowest}, got {value}")


def check_file(path: Path | None, option: str) -> None:
    """Refuse, before any work is done, a file that could not be written, or whose folder is not there."""
    if path is None:
        return
    check_writable(path, option)
    if not path.parent.is_dir():
        raise EdgepruneError(f"{option} {path}: there is no folder {path.parent}; make it first")


def check_outputs(json: Path | None, report: Path | None) -> None:
    """Refuse files for --json and --report that could not be written, or would not be what they are called."""
    for path, option in ((json, "--json"), (report, "--report")):
        check_file(path, option)
    if report is not None and report.suffix.lower() not in PAGE:
        raise EdgepruneError(f"--report {report}: a page ends in {' or '.join(PAGE)}; name it so")
    if json is not None and json.suffix.lower() in PAGE:
        raise EdgepruneError(f"--json {json} would be a page by its name; pages are written by --report")


def short_names(paths: list[str]) -> list[str]:
    """File names without suffix, with as many folders before them as tell them apart.

    Raises:
        EdgepruneError: Two paths lead to one file.
    """
    files: dict[Path, str] = {}
    for path in paths:
        file = Path(path).resolve()
        if file in files:
            again = "is named twice" if files[file] == path else f"is the same file as {files[file]}"
            raise EdgepruneError(f"{path} {again}; name a circuit once")
        files[file] = path
    parts = [Path(path).with_suffix("").parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-length:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return paths  # they differ in nothing but the suffix


def versions() -> dict[str, str]:
    """Of Python and of what figures depend on."""
    import platform
    from importlib.metadata import version

    from edgeprune import __version__

    others = {package: version(package) for package in ("torch", "transformers")}
    return {"python": platform.python_version(), "edgeprune": __version__, **others}


def show(text: str) -> None:
    """Print a page; in silence if whoever reads it, such as `head`, has seen enough."""
    try:
        print(text, flush=True)  # noqa: T201
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or it is flushed again at the end


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a JSON file, whole or not at all; an entry of a list on a line, for there may be thousands."""
    parts = [f"{json.dumps(key)}: {_json(value)}" for key, value in content.items()]
    write_whole_text(path, "{\n" + ",\n".join(parts) + "\n}\n")


def _json(value: Any) -> str:
    if not isinstance(value, list):
        return json.dumps(value, indent=1)
    return "[\n " + ",\n ".join(json.dumps(item) for item in cast("list[Any]", value)) + "\n]" if value else "[]"
