"""YAML, JSON and tables: read strictly, so that a mistake is one line that names the file and the place.

A key that comes twice is refused, where the libraries' own readers keep the last value without a word.
"""

import csv
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast, final

from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    import yaml

DEEPEST = 100  # mappings and lists within one another; readers that call themselves stop at some 300
_TOKEN = re.compile(r'(?P<key>"(?:[^"\\]|\\.)*")\s*:|"(?:[^"\\]|\\.)*"|[{}]')


# -------------------------------------------------------------------- files
def read_text(path: str | Path) -> str:
    """The text of a file; a byte-order mark is dropped, line ends stay as they are.

    Raises:
        EdgepruneError: There is no such file, it may not be read, or it is not UTF-8.
    """
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise EdgepruneError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise EdgepruneError(f"{str(path)[:200] or repr('')}: {reason}; give the path of a file") from None


def read_options(path: str | Path) -> dict[str, Any]:
    """What a YAML file of options holds, by name.

    Raises:
        EdgepruneError: It cannot be read, is no YAML, or holds something else than names with values.
    """
    content = parse_yaml(read_text(path), str(path))
    if content is None:
        raise EdgepruneError(f"{path} is empty; write options into it, as in configs/quickstart.yaml")
    if not isinstance(content, dict):
        raise EdgepruneError(
            f"{path} must hold options by name (`name: value`), it holds {_kind(content)}; see configs/quickstart.yaml"
        )
    return cast("dict[str, Any]", content)


def _kind(content: object) -> str:
    return "a list" if isinstance(content, list) else f"only {str(content)[:60]!r}"


def read_table(path: Path) -> list[dict[str, str]]:
    """Rows of a CSV file as texts, without what a row leaves empty; none without the file.

    Raises:
        EdgepruneError: It is no CSV file.
    """
    if not path.is_file():
        return []
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [{name: text for name, text in row.items() if text} for row in csv.DictReader(file)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise EdgepruneError(f"{path} is no table: {error}; it was altered, move it away") from None


# -------------------------------------------------------------------- YAML
def parse_yaml(text: str, source: str) -> Any:
    """The value of a YAML document; messages begin with `source`, where it comes from.

    Raises:
        EdgepruneError: It is no YAML, gives a key twice, or nests deeper than `DEEPEST`.
    """
    import yaml

    try:
        check_keys(text, source)
        return yaml.load(text, _loader())
    except EdgepruneError:
        raise
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number of too many digits, a 13th month
        raise EdgepruneError(_no_yaml(error, source)) from None


def check_keys(text: str, source: str) -> None:
    """Refuse a YAML text that gives a key twice, nests deeper than `DEEPEST`, or holds itself.

    Raises:
        EdgepruneError: It does.
        yaml.YAMLError: It is no YAML.
    """
    import yaml

    stack = [_Frame()]
    for event in yaml.parse(text, _loader()):
        if isinstance(event, yaml.CollectionEndEvent):
            stack.pop()
        elif isinstance(event, yaml.NodeEvent):
            _check_node(event, stack, source)
        if isinstance(event, yaml.CollectionStartEvent):
            stack.append(_Frame(isinstance(event, yaml.MappingStartEvent), event.anchor))


def _loader() -> type["yaml.SafeLoader"]:
    import yaml

    return cast("type[yaml.SafeLoader]", getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # the first is 20 times faster


@final
@dataclass
class _Frame:
    """A mapping or list that is being read."""

    mapping: bool = False
    anchor: str | None = None  # its name, by which it could hold itself
    keys: dict[str, int] = field(default_factory=dict[str, int])  # with their lines, so far
    count: int = 0  # keys and values, or items, so far


def _check_node(event: "yaml.NodeEvent", stack: list[_Frame], source: str) -> None:
    import yaml

    frame, line = stack[-1], event.start_mark.line + 1
    if len(stack) > DEEPEST:
        raise EdgepruneError(f"{source}:{line}: more than {DEEPEST} levels within one another; write it flatter")
    if isinstance(event, yaml.AliasEvent) and any(item.anchor == event.anchor for item in stack):
        raise EdgepruneError(f"{source}:{line}: {event.anchor!r} holds itself; take out *{event.anchor}")
    if frame.mapping and frame.count % 2 == 0 and isinstance(event, yaml.ScalarEvent) and event.value != "<<":
        if event.value in frame.keys:
            raise EdgepruneError(_twice(event.value, f"{source}:{line}", line, frame.keys[event.value]))
        frame.keys[event.value] = line
    frame.count += 1


def _no_yaml(error: Exception, source: str) -> str:
    """What is wrong, and where, of what the YAML library reports on up to six lines."""
    from yaml import MarkedYAMLError

    mark = getattr(error, "problem_mark", None)
    problem = ", ".join(part for name in ("context", "problem") if (part := getattr(error, name, None)))
    place = source if mark is None else f"{source}:{mark.line + 1}"
    reason = problem or " ".join(str(error).partition("\n")[0].partition("; use sys.")[0].split())
    remedy = "write `name: value`, indented with spaces" if isinstance(error, MarkedYAMLError) else "take it out"
    return f"{place} is no YAML: {reason}; {remedy}"


# -------------------------------------------------------------------- JSON
def parse_json(text: str, source: str, *, one_line: bool = False) -> Any:
    """The value of a JSON text; messages begin with `source`, where it comes from, which for `one_line` names a line.

    Raises:
        EdgepruneError: It is no JSON, or an object gives a key twice.
    """
    try:
        return json.loads(text, object_pairs_hook=_object)
    except _TwiceError:
        key, line, first = _repeated(text)
        place = source if one_line else f"{source}:{line}"
        raise EdgepruneError(_twice(key, place, line, first)) from None
    except json.JSONDecodeError as error:
        place = source if one_line else f"{source}:{error.lineno}"
        raise EdgepruneError(f"{place}: not JSON ({error.msg}, column {error.colno}); mend it there") from None
    except RecursionError:
        raise EdgepruneError(f"{source}: not JSON, brackets within brackets go on too far; write it flatter") from None
    except ValueError as error:  # a number of too many digits
        raise EdgepruneError(f"{source}: {str(error).partition('; use sys.')[0]}; write a shorter one") from None


class _TwiceError(ValueError):
    """A key comes twice."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise _TwiceError
    return values


def _repeated(text: str) -> tuple[str, int, int]:
    """The first key of a JSON text that its object has already, and the lines of both."""
    objects: list[dict[str, int]] = []
    for token in _TOKEN.finditer(text):
        if token[0] == "{":
            objects.append({})
        elif token[0] == "}":
            objects.pop()
        elif token["key"]:
            key, place = json.loads(token["key"]), token.start()
            if key in objects[-1]:
                return key, text.count("\n", 0, place) + 1, text.count("\n", 0, objects[-1][key]) + 1
            objects[-1][key] = place
    raise AssertionError("no key comes twice")


def _twice(key: str, place: str, line: int, first: int) -> str:
    where = "on that line" if line == first else f"on line {first}"
    return f"{place}: key {key!r} comes twice, first {where}; keep one of them"
