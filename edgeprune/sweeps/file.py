"""W&B's sweep YAML: read, and checked so that a mistake is one line before any trial starts."""

import difflib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal, cast, final

from edgeprune.errors import EdgepruneError
from edgeprune.parsing import parse_yaml, read_text
from edgeprune.sweeps.parameters import Choice, IntegerRange, Parameter, read_parameters

Method = Literal["grid", "random", "bayes"]
METHODS: tuple[Method, ...] = ("grid", "random", "bayes")
COMMAND = ("${env}", "${interpreter}", "${program}", "${args}")  # W&B's own, where the file has none
KEYS = (
    "program",
    "command",
    "method",
    "parameters",
    "metric",
    "name",
    "description",
    "project",
    "entity",
    "run_cap",
    "early_terminate",
)


@final
@dataclass(frozen=True)
class SweepMetric:
    """The metric that a sweep's trials are compared by."""

    name: str  # of the logged number; its last value counts, as in W&B's summary of a run
    goal: Literal["minimize", "maximize"] = "minimize"
    target: float | None = None  # no trial starts any more once one is this good; None: all run

    def reached(self, value: float) -> bool:
        """Whether a trial with this value ends the sweep."""
        if self.target is None:
            return False
        return value <= self.target if self.goal == "minimize" else value >= self.target


@final
@dataclass(frozen=True)
class SweepFile:
    """A sweep file."""

    name: str  # the file's stem where it has none
    method: Method
    parameters: tuple[Parameter, ...]
    command: tuple[str, ...]  # of a trial, with W&B's macros
    program: str  # what `${program}` stands for
    metric: SweepMetric | None  # what trials are compared by
    run_cap: int | None  # the most trials; None: as many as a grid has
    project: str | None  # of W&B
    entity: str | None  # W&B user or team
    early_terminate: bool  # the file has such a section, which has no effect here
    text: str  # of the file

    @classmethod
    def read(cls, path: Path) -> "SweepFile":
        """Read and check a file.

        Raises:
            EdgepruneError: If it cannot be read, or is no sweep that can be run here.
        """
        text = read_text(path)
        content = parse_yaml(text, str(path))
        if not isinstance(content, dict):
            raise EdgepruneError(f"{path} must be a mapping with method and parameters, got {content!r}")
        return _checked(path, cast("dict[str, Any]", content), text)

    @property
    def size(self) -> int | None:
        """Trials of the whole sweep; None if nothing ends it."""
        if self.method != "grid":
            return self.run_cap
        whole = prod(len(grid_values(parameter)) for parameter in self.parameters)
        return whole if self.run_cap is None else min(whole, self.run_cap)

    def combination(self, number: int) -> dict[str, int]:
        """Positions in the lists of values, by parameter, of a grid's trial; the last parameter varies fastest."""
        places: dict[str, int] = {}
        for parameter in reversed(self.parameters):
            number, places[parameter.name] = divmod(number, len(grid_values(parameter)))
        return {parameter.name: places[parameter.name] for parameter in self.parameters}


def grid_values(parameter: Parameter) -> list[Any]:
    """The values of a parameter in a grid."""
    distribution = parameter.distribution
    if isinstance(distribution, IntegerRange):
        return list(range(distribution.low, distribution.high + 1))
    assert isinstance(distribution, Choice)
    return list(distribution.values)


def _checked(path: Path, content: dict[str, Any], text: str) -> SweepFile:
    for key in content:
        if key not in KEYS:
            close = difflib.get_close_matches(str(key), KEYS, 1)
            hint = f"did you mean {close[0]!r}?" if close else f"known are {', '.join(KEYS)}"
            raise EdgepruneError(f"{path}: a sweep has no {key!r}; {hint}")
    method = content.get("method")
    if method not in METHODS:
        raise EdgepruneError(f"{path}: method must be one of {', '.join(METHODS)}, got {method!r}")
    parameters = read_parameters(content.get("parameters"), str(path))
    if method == "grid":
        _check_grid(path, parameters)
    metric = _metric(path, content.get("metric"))
    if method == "bayes" and metric is None:
        raise EdgepruneError(f"{path}: method bayes needs a metric; add metric: {{name: val/kl, goal: minimize}}")
    return SweepFile(
        name=str(content.get("name") or path.stem),
        method=method,
        parameters=tuple(parameters),
        command=_command(path, content.get("command")),
        program=_text(path, content, "program") or "",
        metric=metric,
        run_cap=_run_cap(path, content.get("run_cap")),
        project=_text(path, content, "project"),
        entity=_text(path, content, "entity"),
        early_terminate="early_terminate" in content,
        text=text,
    )


def _check_grid(path: Path, parameters: list[Parameter]) -> None:
    for parameter in parameters:
        distribution = parameter.distribution
        if isinstance(distribution, Choice) and distribution.probabilities is None:
            continue
        if not isinstance(distribution, IntegerRange):
            raise EdgepruneError(
                f"{path}: parameter {parameter.name} has no list of values, which method grid needs; "
                "give values: [...], or take method random"
            )


def _metric(path: Path, section: Any) -> SweepMetric | None:
    if section is None:
        return None
    if not isinstance(section, dict) or not isinstance(cast("dict[str, Any]", section).get("name"), str):
        raise EdgepruneError(
            f"{path}: metric must have a name, as in {{name: val/kl, goal: minimize}}, got {section!r}"
        )
    metric = cast("dict[str, Any]", section)
    goal, target = metric.get("goal", "minimize"), metric.get("target")
    if goal not in ("minimize", "maximize"):
        raise EdgepruneError(f"{path}: metric.goal must be minimize or maximize, got {goal!r}")
    if target is not None and (isinstance(target, bool) or not isinstance(target, int | float)):
        raise EdgepruneError(f"{path}: metric.target must be a number, got {target!r}")
    extra = sorted(set(metric) - {"name", "goal", "target"})
    if extra:
        raise EdgepruneError(f"{path}: metric has no {extra[0]!r}; it takes name, goal and target")
    return SweepMetric(metric["name"], goal, target)


def _command(path: Path, section: Any) -> tuple[str, ...]:
    if section is None:
        return COMMAND
    if not isinstance(section, list) or not section:
        raise EdgepruneError(f"{path}: command must be a list of words, got {section!r}")
    return tuple(str(word) for word in cast("list[Any]", section))


def _run_cap(path: Path, value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise EdgepruneError(f"{path}: run_cap must be a whole number of at least 1, got {value!r}")
    return value


def _text(path: Path, content: dict[str, Any], key: str) -> str | None:
    value = content.get(key)
    if value is not None and not isinstance(value, str):
        raise EdgepruneError(f"{path}: {key} must be a text, got {value!r}")
    return value
