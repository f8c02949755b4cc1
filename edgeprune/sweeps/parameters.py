"""Parameters of a sweep file and their distributions, as W&B defines them.

A distribution maps a *latent* number, which the sampler draws, to a value: an index into a list, a whole number, or a
float. So one sampler serves all of W&B's distributions, those that it has no word for included.
"""

import math
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import NormalDist
from typing import Any, Literal, cast, final

from edgeprune.errors import EdgepruneError

Shape = Literal["plain", "exp", "inverse_exp", "normal", "exp_normal"]
EDGE = 1e-6  # a normal distribution is drawn from between its quantiles EDGE and 1 - EDGE


@final
@dataclass(frozen=True)
class Choice:
    """One of some values."""

    values: tuple[Any, ...]
    probabilities: tuple[float, ...] | None = None  # None: all alike

    def value(self, latent: float) -> Any:
        """The value of an index, or, with probabilities, of a number in [0, 1]."""
        if self.probabilities is None:
            return self.values[int(latent)]
        position = bisect(list(accumulate(self.probabilities)), latent)
        return self.values[min(position, len(self.values) - 1)]

    def extremes(self) -> list[Any]:
        """Values that a check has to try: all."""
        return list(self.values)


@final
@dataclass(frozen=True)
class IntegerRange:
    """A whole number, both ends included."""

    low: int
    high: int

    def value(self, latent: float) -> int:
        """The number itself."""
        return int(latent)

    def extremes(self) -> list[Any]:
        """Both ends."""
        return [self.low, self.high]


@final
@dataclass(frozen=True)
class Continuous:
    """A number from an interval of latent numbers."""

    low: float  # least latent number
    high: float  # greatest
    log: bool = False  # the latent number itself is drawn on a logarithmic scale
    shape: Shape = "plain"  # from latent number to value
    mu: float = 0.0  # mean of a normal shape
    sigma: float = 1.0  # its standard deviation
    q: float | None = None  # step that values are rounded to; None: none

    def value(self, latent: float) -> float:
        """The value of a latent number.

        >>> Continuous(0.0, 10.0, q=0.5).value(3.3)
        3.5
        """
        number = latent
        if self.shape in ("normal", "exp_normal"):
            number = NormalDist(self.mu, self.sigma).inv_cdf(latent)
        if self.shape in ("exp", "exp_normal"):
            number = math.exp(number)
        if self.shape == "inverse_exp":
            number = math.exp(-number)
        return number if self.q is None else round(number / self.q) * self.q

    def extremes(self) -> list[Any]:
        """Both ends."""
        return [self.value(self.low), self.value(self.high)]


Distribution = Choice | IntegerRange | Continuous


@final
@dataclass(frozen=True)
class Parameter:
    """A parameter and its place: `("model", "recipe")` is `recipe` inside the nested parameter `model`."""

    path: tuple[str, ...]
    distribution: Distribution

    @property
    def name(self) -> str:
        """The place as one text; unique, because a nested place and a dotted name mean the same argument."""
        return ".".join(self.path)

    @property
    def varies(self) -> bool:
        """Whether there is more than one value."""
        return not (isinstance(self.distribution, Choice) and len(self.distribution.values) == 1)


def read_parameters(section: Any, where: str) -> list[Parameter]:
    """The parameters of a sweep file, from what stands under `parameters`; `where` is the file, for messages.

    Raises:
        EdgepruneError: For the first one that W&B would not take either, or that has no counterpart here.
    """
    found = list(_leaves(section, (), where))
    if not found:
        raise EdgepruneError(f"{where}: parameters is empty; give at least one, such as seed_everything: {{value: 0}}")
    names = [parameter.name for parameter in found]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise EdgepruneError(f"{where}: parameter {twice[0]} is given twice, nested and with dots; keep one")
    return found


def nested(parameters: Sequence[Parameter], values: Mapping[str, Any]) -> dict[str, Any]:
    """Values by name as W&B gives them to a trial: nested where the parameters are."""
    tree: dict[str, Any] = {}
    for parameter in parameters:
        node = tree
        for key in parameter.path[:-1]:
            node = node.setdefault(key, {})
        node[parameter.path[-1]] = values[parameter.name]
    return tree


def short(name: str, names: Sequence[str]) -> str:
    """The last words of a dotted name that tell it from the others.

    >>> short("model.recipe.init_args.target", ["model.recipe.init_args.target", "seed_everything"])
    'target'
    """
    words = name.split(".")
    for count in range(1, len(words)):
        tail = ".".join(words[-count:])
        if sum(other == tail or other.endswith(f".{tail}") for other in names) == 1:
            return tail
    return name


def _leaves(section: Any, path: tuple[str, ...], where: str) -> Iterator[Parameter]:
    if not isinstance(section, dict):
        raise EdgepruneError(f"{where}: {_named(path)} must be a mapping of names to values, got {section!r}")
    for key, spec in cast("dict[Any, Any]", section).items():
        place = (*path, str(key))
        if not isinstance(spec, dict):
            raise EdgepruneError(
                f"{where}: parameter {'.'.join(place)} must be a mapping, got {spec!r}; write {{value: {spec}}}"
            )
        content = cast("dict[str, Any]", spec)
        if "parameters" in content:
            yield from _leaves(content["parameters"], place, where)
        else:
            yield Parameter(place, _distribution(content, f"{where}: parameter {'.'.join(place)}"))


def _named(path: tuple[str, ...]) -> str:
    return f"parameters of {'.'.join(path)}" if path else "parameters"


# ---------------------------------------------------------------- distributions
KEYS: dict[str, tuple[str, ...]] = {
    "constant": ("value",),
    "categorical": ("values",),
    "categorical_w_probabilities": ("values", "probabilities"),
    "int_uniform": ("min", "max"),
    "uniform": ("min", "max"),
    "q_uniform": ("min", "max", "q"),
    "log_uniform": ("min", "max"),
    "log_uniform_values": ("min", "max"),
    "q_log_uniform": ("min", "max", "q"),
    "q_log_uniform_values": ("min", "max", "q"),
    "inv_log_uniform": ("min", "max"),
    "inv_log_uniform_values": ("min", "max"),
    "normal": ("mu", "sigma"),
    "q_normal": ("mu", "sigma", "q"),
    "log_normal": ("mu", "sigma"),
    "q_log_normal": ("mu", "sigma", "q"),
}
OPTIONAL = {"mu": 0.0, "sigma": 1.0, "q": 1}  # as W&B fills them in


def _distribution(spec: Mapping[str, Any], where: str) -> Distribution:
    name = str(spec.get("distribution") or _inferred(spec, where))
    if name not in KEYS:
        raise EdgepruneError(f"{where}: distribution {name!r} cannot be drawn from here; known are {', '.join(KEYS)}")
    if set(spec) == {"value", "probabilities"} or set(spec) - {"distribution", *KEYS[name]}:
        extra = sorted(set(spec) - {"distribution", *KEYS[name]})
        raise EdgepruneError(f"{where}: {extra[0]!r} has no place in {name}; it takes {', '.join(KEYS[name])}")
    missing = [key for key in KEYS[name] if key not in spec and key not in OPTIONAL]
    if missing:
        raise EdgepruneError(f"{where}: {name} needs {missing[0]}; add it")
    if name == "constant":
        return Choice((spec["value"],))
    if name.startswith("categorical"):
        return _choice(spec, where)
    numbers = {key: _number(spec.get(key, OPTIONAL.get(key)), key, where) for key in KEYS[name]}
    return _numeric(name, numbers, where)


def _inferred(spec: Mapping[str, Any], where: str) -> str:
    """The distribution that W&B takes where none is named."""
    if "value" in spec:
        return "constant"
    if "values" in spec:
        return "categorical_w_probabilities" if "probabilities" in spec else "categorical"
    if "min" in spec or "max" in spec:
        ends = [spec.get("min"), spec.get("max")]
        return "int_uniform" if all(isinstance(end, int) for end in ends) else "uniform"
    raise EdgepruneError(f"{where}: give value, values, or min and max (or nested parameters), got {dict(spec)}")


def _choice(spec: Mapping[str, Any], where: str) -> Choice:
    values, weights = spec["values"], spec.get("probabilities")
    if not isinstance(values, list) or not values:
        raise EdgepruneError(f"{where}: values must be a list with at least one entry, got {values!r}")
    values = cast("list[Any]", values)
    if weights is None:
        return Choice(tuple(values))
    if not isinstance(weights, list) or len(cast("list[Any]", weights)) != len(values):
        raise EdgepruneError(f"{where}: probabilities must be a list of {len(values)} numbers, got {weights!r}")
    numbers = tuple(_number(weight, "probabilities", where) for weight in cast("list[Any]", weights))
    if min(numbers) < 0 or not math.isclose(sum(numbers), 1.0, abs_tol=1e-6):
        raise EdgepruneError(f"{where}: probabilities must add up to 1, got {list(numbers)}")
    return Choice(tuple(values), numbers)


def _number(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        hint = "; YAML reads 1e-3 as a text, write 1.0e-3" if isinstance(value, str) else ""
        raise EdgepruneError(f"{where}: {key} must be a number, got {value!r}{hint}")
    return value


def _numeric(name: str, numbers: Mapping[str, float], where: str) -> Distribution:
    q = numbers.get("q")
    if q is not None and q <= 0:
        raise EdgepruneError(f"{where}: q must be positive, got {q}")
    if "sigma" in numbers:
        if numbers["sigma"] <= 0:
            raise EdgepruneError(f"{where}: sigma must be positive, got {numbers['sigma']}")
        shape: Shape = "exp_normal" if "log" in name else "normal"
        return Continuous(EDGE, 1 - EDGE, shape=shape, mu=numbers["mu"], sigma=numbers["sigma"], q=q)
    low, high = numbers["min"], numbers["max"]
    if low >= high:
        raise EdgepruneError(f"{where}: min must be below max, got {low} and {high}; for one value write value: {low}")
    if name == "int_uniform":
        if not isinstance(low, int) or not isinstance(high, int):
            raise EdgepruneError(f"{where}: int_uniform needs whole numbers, got {low} and {high}; or take uniform")
        return IntegerRange(low, high)
    if name.endswith("_values") and low <= 0:
        raise EdgepruneError(f"{where}: {name} needs a positive min, got {low}")
    shapes: dict[str, Shape] = {"log_uniform": "exp", "q_log_uniform": "exp", "inv_log_uniform": "inverse_exp"}
    return Continuous(float(low), float(high), name.endswith("_values"), shapes.get(name, "plain"), q=q)
