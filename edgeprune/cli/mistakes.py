"""What jsonargparse reports of a user's mistake, in one sentence.

Its report has a line for every type that a value did not fit, and names classes of this project. Of that the key, the
rule and the value are kept; where no class has the given name, the names that there are come instead.
"""

import inspect
import re
from collections.abc import Iterator, Mapping

_KEY = re.compile(r'Parser key "([^"]+)":\s*')
_GIVEN = re.compile(r"Given value: (.*)")
_ONE_OF = re.compile(r"Expected a typing\.Literal\[(.+)\]\. Got value: (.*)")
_TYPE = re.compile(r"Expected a <class '([\w.]+)'>(?:\. Got value: (.*))?")
_NO_CLASS = re.compile(r"Expected a dot import path|Import path|.* is abstract$")
_NO_OPTION = re.compile(r"Option '(.+)' is not accepted")
_OF_OPTION = re.compile(r"\w+ must be ")
_MISSING = re.compile(r"the following arguments are required: (.+)")
_NOISE = (
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "Expected a path but",
    "Problem with given class_path",
    "Expected a <class 'NoneType'>",
)
_TYPES = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "a text",
    "tuple": "a list such as [1, 2]",
    "list": "a list such as [1, 2]",
    "dict": "a mapping such as {a: 1}",
    "collections.abc.Iterable": "a list such as [1, 2]",
}


def one_sentence(report: str, kinds: Mapping[str, type] | None = None) -> str:
    """Say what is wrong.

    Args:
        report: What jsonargparse reports, on one or more lines.
        kinds: For options that name a class, its base: `{"method": AbstractDiscovery}`.

    >>> one_sentence("unrecognized arguments: --depth 3")
    'unrecognized arguments: --depth 3; see --help'
    """
    key, given, begins = "", "", True
    reasons: list[str] = []
    for text in report.splitlines():
        begins = begins or text.strip().startswith("- ")
        line = text.strip(" -")
        if match := _KEY.match(line):
            key = _joined(key, match[1])
            line = line[match.end() :]
        if match := _GIVEN.match(line):
            given = match[1]
        elif line and not line.startswith(_NOISE):
            if begins:
                reasons.append(line)
            else:
                reasons[-1] += f" {line}"
            begins = False
    said = dict.fromkeys(_said(reason, key, given, kinds or {}) for reason in reasons)
    return "; or ".join(said) or " ".join(report.split())


def known(base: type) -> list[str]:
    """Names of the classes of a kind that can be made, in order."""
    return sorted(item.__name__ for item in _subclasses(base) if not inspect.isabstract(item))


def _subclasses(base: type) -> Iterator[type]:
    for item in base.__subclasses__():
        yield item
        yield from _subclasses(item)


def _joined(outer: str, inner: str) -> str:
    """The key of a value inside the value of another; reports name it with or without the outer one."""
    return inner if not outer or inner.startswith(f"{outer}.") else f"{outer}.{inner}"


def _said(reason: str, key: str, given: str, kinds: Mapping[str, type]) -> str:
    if match := _ONE_OF.fullmatch(reason):
        return f"{key} must be one of {match[1].replace(chr(39), '')}, got {match[2]}"
    if match := _TYPE.fullmatch(reason):
        return f"{key} must be {_TYPES.get(match[1], match[1])}, got {match[2] or given}"
    if _NO_CLASS.match(reason):
        return _no_class(reason.partition(": ")[2] or given, key, kinds.get(key))
    if match := _NO_OPTION.fullmatch(reason):
        return f"{key} has no option {match[1]!r}; see --{key}.help" if key else reason
    if match := _MISSING.fullmatch(reason):
        return f"missing: {match[1]}; give them as options (--{match[1].split(', ')[0]}) or in --config"
    if reason.startswith("unrecognized arguments"):
        return f"{reason}; see --help"
    if key and _OF_OPTION.match(reason):
        return f"{key}.{reason}"
    return f"{key}: {reason}" if key else reason


def _no_class(wrong: str, key: str, base: type | None) -> str:
    if base is None:
        return f"{key} cannot be {wrong!r}; see --help"
    classes = f"known are {', '.join(known(base))}"
    if not wrong or "NestedArg" in wrong:  # jsonargparse does not say what it was given
        return f"{key} must name a class; {classes}"
    return f"{key}: there is no {wrong!r}; {classes}"
