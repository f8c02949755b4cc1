"""What jsonargparse reports of a wrong option, in one sentence.

Its exceptions say only whether an option is unknown, and its parser's actions which options and classes there are. The
key, the rule and the value stand in the text alone, which has a line for every type that a value did not fit.
"""

import difflib
import inspect
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import final

INNER = "\x1f"  # on both sides of the sentence that the parser of a class within a value has made
_INNER = re.compile(f"{INNER}([^{INNER}]*){INNER}")
_GOES_ON = (".", ":", " ")  # begins what is said of a part of a value, to follow its key
_KEY = re.compile(r'Parser key "([^"]+)":\s*')
_GIVEN = re.compile(r"Given value: (.*)")
_RULE = re.compile(
    r"Expected a (?:typing\.Literal\[(?P<literals>.+)\]|<class '(?P<type>[\w.]+)'>)(?:\. Got value: (?P<value>.*))?"
)
_NO_CLASS = re.compile(
    r"Expected a dot import path string: (?P<path>.*)"
    r"|Import path (?:(?P<other>\S+) )?does not .*"
    r"|Problem with given class_path '(?P<given>.*)':(?P<why>.*)"
    r"|Expected an instantiatable class, but .*"
    r"|(?P<form>Not a valid subclass of )\w+(?:\. Got value: (?P<value>.*))?"
)
_OF_OPTION = re.compile(r"\w+ must be ")
_MISSING = "the following arguments are required: "
_NAME_OF = {"Option": slice(1), "Subcommand": slice(1, 2), "Group": slice(2)}  # among what is in quotes
_COMMAND = re.compile(r"^(?:fit|validate|test)\.")  # before the key of an option of a command
_NO_CONFIG = re.compile(r"Unable to load config ['\"](.*)['\"]")
_NOISE = (
    "Does not validate against",
    "Subtypes:",
    "Errors:",
    "Given value type:",
    "Expected a path but",
    "Expected a <class 'NoneType'>",
    "Subclass types expect one of:",
    "a class path (str)",
    "a dict with class_path entry",
    "a dict without class_path but with",
    "a dict with parameters accepted by",
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


def one_sentence(report: str, key_bases: Mapping[str, Sequence[type]] | None = None, *, within: bool = False) -> str:
    """What is wrong with a value, or what is missing.

    Args:
        report: What jsonargparse reports, on one or more lines.
        key_bases: For options that name a class, its bases: `{"method": [AbstractDiscovery]}`.
        within: The report is of options of a class, which is itself the value of an option: the sentence goes on from
            that option's key.
    """
    read = _Report.read(report)
    key = f".{read.key}" if within and read.key else read.key
    inner = _INNER.search(report)
    if inner is not None:
        return f"{key}{inner[1]}" if inner[1].startswith(_GOES_ON) else inner[1]
    if len(read.reasons) > 1 and (config := _NO_CONFIG.fullmatch(read.reasons[0])):
        why = read.reasons[1] if not _NO_CONFIG.fullmatch(read.reasons[1]) else "no such file"
        return f"{key}: cannot read options from {config[1]!r} ({why}); give a YAML file, or --{read.key}.NAME VALUE"
    wrong = [match for reason in read.reasons if (match := _NO_CLASS.fullmatch(reason))]
    if wrong:
        return _no_class(wrong, key, read.given, (key_bases or {}).get(read.key, ()))
    rules = [match for reason in read.reasons if (match := _RULE.fullmatch(reason))]
    sentences = [_sentence(reason, key, within) for reason in read.reasons if not _RULE.fullmatch(reason)]
    if rules:
        sentences.insert(0, _broken(rules, key, read.given))
    return "; or ".join(dict.fromkeys(sentences)) or " ".join(report.split())


def unknown_option(error: KeyError, names: Collection[str], *, within: bool = False) -> str:
    """That there is no such option; `within` as in `one_sentence`.

    >>> unknown_option(KeyError("Group 'model' does not accept option 'nam'"), ["model.name"])
    "there is no option 'model.nam' (did you mean 'model.name'?); see --help"
    """
    text = str(error.args[0])
    quoted = _NAME_OF.get(text.partition(" ")[0])
    if quoted is None:
        return text
    name = ".".join(text.split("'")[1::2][quoted])
    if not within:
        return f"there is no option {name!r}{did_you_mean(name, names)}; see --help"
    if name in ("class_path", "init_args"):
        return " must hold class_path and init_args alone; put its options among the init_args"
    takes = f"; it takes {', '.join(names)}" if names else "; it takes none"
    return f" has no option {name!r}{did_you_mean(name, names)}{takes}"


def unknown_arguments(report: str, names: Collection[str]) -> str:
    """That no option takes some words of the command line.

    >>> unknown_arguments("unrecognized arguments: --depht 3", ["depth"])
    "unrecognized arguments: --depht 3 (did you mean 'depth'?); see --help"
    """
    word = report.partition(": ")[2].partition(" ")[0].partition("=")[0]
    return f"{report}{did_you_mean(word.removeprefix('--'), names) if word.startswith('--') else ''}; see --help"


def known(*bases: type) -> list[str]:
    """Names of the classes of some kinds that can be made, in order."""
    found = {item.__name__ for base in bases for item in _subclasses(base) if not inspect.isabstract(item)}
    return sorted(name for name in found if not name.startswith(("_", "LazyInstance")))  # the latter are defaults


def did_you_mean(name: str, names: Collection[str]) -> str:
    """A question with the name that is most like `name`, to follow it; empty if none is like it.

    >>> did_you_mean("model.nam", ["model.name", "name"])
    " (did you mean 'model.name'?)"
    """
    group, dot, last = name.rpartition(".")
    siblings = [item.removeprefix(group + dot) for item in names if item.startswith(group + dot)]
    close = difflib.get_close_matches(last, siblings, 1, 0.7) or difflib.get_close_matches(name, names, 1, 0.8)
    return f" (did you mean {(group + dot if close[0] in siblings else '') + close[0]!r}?)" if close else ""


def _subclasses(base: type) -> Iterator[type]:
    for item in base.__subclasses__():
        yield item
        yield from _subclasses(item)


@final
@dataclass
class _Report:
    """A report, taken apart."""

    key: str = ""
    given: str = ""  # the value, if it has a line to itself
    reasons: list[str] = field(default_factory=list[str])  # why it was refused, one for each type that it could have

    @classmethod
    def read(cls, text: str) -> "_Report":
        """Take a report apart."""
        report, begins = cls(), True
        for whole in text.splitlines():
            begins = begins or whole.strip().startswith("- ")
            line = whole.strip(" -")
            if match := _KEY.match(line):
                report.key = _joined(report.key, match[1])
                line = line[match.end() :]
            if match := _GIVEN.match(line):
                report.given = match[1]
            elif line and not line.startswith(_NOISE):
                if begins:
                    report.reasons.append(line)
                else:
                    report.reasons[-1] += f" {line}"
                begins = False
        return report


def _joined(outer: str, inner: str) -> str:
    """The key of a value inside the value of another; reports name it with or without the outer one."""
    return inner if not outer or inner == outer or inner.startswith(f"{outer}.") else f"{outer}.{inner}"


def _broken(rules: Sequence[re.Match[str]], key: str, given: str) -> str:
    """Which of several rules would do."""
    texts = [literal.strip("'\" ") for rule in rules if rule["literals"] for literal in rule["literals"].split(",")]
    types = [rule["type"] for rule in rules if rule["type"]]
    allowed = [_TYPES.get(name, name) for name in types if not (name == "int" and "float" in types)]
    if texts:
        allowed.append(f"{'one of ' if len(texts) > 1 else ''}{', '.join(dict.fromkeys(texts))}")
    value = next((rule["value"] for rule in rules if rule["value"]), given)
    return f"{key} must be {' or '.join(dict.fromkeys(allowed))}, got {value}"


def _sentence(reason: str, key: str, within: bool) -> str:
    if reason.startswith(_MISSING):
        missing = [_COMMAND.sub("", name) for name in reason.removeprefix(_MISSING).split(", ")]
        if within:
            return f"{key} lacks {', '.join(missing)}; give it among the init_args"
        return f"missing: {', '.join(missing)}; give them as options (--{missing[0]}) or in --config"
    if key and _OF_OPTION.match(reason):
        return f"{key}.{reason}"
    return f"{key}: {reason}" if key or within else reason


def _no_class(reasons: Sequence[re.Match[str]], key: str, given: str, bases: Sequence[type]) -> str:
    """Of reasons why a value is no class; that it has another form counts least."""
    reason = min(reasons, key=lambda reason: reason["form"] is not None)
    wrong = reason["path"] or reason["other"] or reason["given"] or reason["value"] or ""
    if not wrong and not given.startswith("NestedArg"):
        wrong = given
    names = known(*bases)
    if not names:
        return f"{key} cannot be {wrong!r}; see --help"
    classes = f"known are {', '.join(names)}"
    if not wrong or reason[0].startswith("Expected an inst"):
        return f"{key} must name a class; {classes}"
    if reason["form"]:
        return f"{key} must name a class, got {wrong}; {classes}"
    why = (reason["why"] or "").strip()  # a module is not there
    hint = f" ({why})" if why else did_you_mean(wrong.rpartition(".")[2], names)
    return f"{key}: there is no {wrong!r}{hint}; {classes}"
