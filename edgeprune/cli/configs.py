"""`edgeprune configs`: the configs that come along, found by name wherever a command takes a config."""

import difflib
import re
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from edgeprune.cli.arguments import Arguments, check_file, show
from edgeprune.errors import EdgepruneError
from edgeprune.paths import write_whole_text

OPTIONS = ("-c", "--config")
_PACKAGE = Path(__file__).parents[1]
_FILE = re.compile(r"[\w./\\-]*\w")  # jsonargparse also takes `-`, `~/`, a URL, and the YAML itself


def folder() -> Path:
    """Where they are: in the package that was installed, or at the top of a checkout."""
    installed = _PACKAGE / "_configs"
    return installed if installed.is_dir() else _PACKAGE.parent / "configs"


def shipped() -> dict[str, Path]:
    """Files by name: the path below `folder()` without its suffix."""
    return {path.relative_to(folder()).with_suffix("").as_posix(): path for path in sorted(folder().rglob("*.yaml"))}


def find_config(given: str | Path) -> Path:
    """A file of the user's; else a config that comes along, by its name or by its path in a checkout.

    Raises:
        EdgepruneError: Neither is there.

    >>> find_config("data/ioi") == find_config("data/ioi.yaml") == folder() / "data" / "ioi.yaml"
    True
    """
    path, known = Path(given), shipped()
    with suppress(OSError):  # a name that is too long is not there either
        if path.exists() and not path.is_dir():
            return path
    name = path.as_posix().removeprefix("configs/").removesuffix(".yaml")
    if name in known:
        return known[name]
    near = [other for other in known if other.rpartition("/")[2] == name.rpartition("/")[2]]
    near += [other for other in difflib.get_close_matches(name, known) if other not in near]
    hint = f"did you mean {' or '.join(near)}?" if near else "give the path of a file."
    raise EdgepruneError(
        f"no config file at {given}, and none of this name comes along; {hint} `edgeprune configs` lists those that do"
    )


def with_paths(arguments: Sequence[str]) -> list[str]:
    """Arguments in which each `--config` has the path of a file.

    Raises:
        EdgepruneError: There is no such file.
    """
    done: list[str] = []
    for word in arguments:
        option, equals, value = word.partition("=")
        if done and done[-1] in OPTIONS:
            word = _path(word)
        elif equals and option in OPTIONS:
            word = f"{option}={_path(value)}"
        done.append(word)
    return done


def _path(value: str) -> str:
    return str(find_config(value)) if _FILE.fullmatch(value) else value


def summary(path: Path) -> str:
    """The first sentence of the comment that a config begins with."""
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# ") or line.startswith("#  "):  # indented: a command
            break
        lines.append(line[2:].strip())
    return re.split(r"(?<=\.)\s", " ".join(lines), maxsplit=1)[0]


def run(arguments: list[str]) -> None:
    """List the configs, show one, or copy one."""
    parser = Arguments(prog="edgeprune configs", description="List the configs that come along; show or copy one.")
    parser.add_argument("name", nargs="?", metavar="NAME", help="as listed; without it, all are listed")
    parser.add_argument("--out", type=Path, metavar="X.yaml", help="copy it here, to edit; without it, it is printed")
    parser.add_argument("--overwrite", action="store_true", help="replace the file that is there")
    options = parser.parse_args(arguments[1:])
    known = shipped()
    if options.name is None:
        if options.out is not None:
            raise EdgepruneError(f"--out {options.out} takes a copy of one config; name it, as in configs quickstart")
        width = max(map(len, known))
        show("\n".join(f"{name:<{width}}  {summary(path)}" for name, path in known.items()))
        return
    source = find_config(options.name)
    text = source.read_text(encoding="utf-8")
    if options.out is None:
        show(text.rstrip())
        return
    _write(text, options.out, options.overwrite)
    print(f"wrote {options.out}; run it with --config {options.out}")  # noqa: T201


def _write(text: str, out: Path, overwrite: bool) -> None:
    check_file(out, "--out")
    if out.exists() and not overwrite:
        raise EdgepruneError(f"--out {out} is there already; choose another name, or give --overwrite")
    write_whole_text(out, text)
