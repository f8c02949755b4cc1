"""An ablation as configs and commands say it: `interchange`, `mean:corrupted:positional`, `resample:seed=3`, ..."""

from dataclasses import dataclass
from typing import Literal, Self, final, get_args

from edgeprune.errors import EdgepruneError

Kind = Literal["interchange", "zero", "resample", "mean", "optimal"]
Source = Literal["clean", "corrupted", "both"]

SEED = "seed="
OPTIONS: dict[Kind, tuple[str, ...]] = {
    "interchange": (),
    "zero": (),
    "resample": ("clean", "corrupted", f"{SEED}N"),
    "mean": ("clean", "corrupted", "both", "positional"),
    "optimal": (),  # what follows it is the name of a file
}


@final
@dataclass(frozen=True)
class Ablation:
    """What closed edges carry.

    >>> Ablation.parse("mean:positional:corrupted")
    Ablation(kind='mean', source='corrupted', positional=True, seed=0, path=None)
    >>> str(Ablation.parse("mean:clean")), str(Ablation("resample", seed=3))
    ('mean', 'resample:seed=3')

    Attributes:
        kind: `"interchange"`: the values of the pair's corrupted prompt. `"zero"`: nothing. `"resample"`: the values of
            another example of the same split. `"mean"`: means over the training pairs. `"optimal"`: one constant per
            writer, learned on the training pairs.
        source: Of `"resample"` and `"mean"`: values of clean prompts, of corrupted ones or (mean only) of both.
        positional: Of `"mean"`: one mean per position, counted from a prompt's first token, instead of one for all.
        seed: Of `"resample"`: chooses the other examples.
        path: Of `"optimal"`: a file of `save_states`; None: learned anew.
    """

    kind: Kind
    source: Source = "clean"
    positional: bool = False
    seed: int = 0
    path: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in OPTIONS:
            raise EdgepruneError(f"ablation must be one of {', '.join(get_args(Kind))}, got {self.kind!r}")
        if self.source != "clean" and self.source not in OPTIONS[self.kind]:
            raise EdgepruneError(self._unknown(self.source))
        if self.positional and self.kind != "mean":
            raise EdgepruneError(self._unknown("positional"))
        if (self.seed and self.kind != "resample") or self.seed < 0:
            raise EdgepruneError(self._unknown(f"{SEED}{self.seed}"))
        if self.path is not None and (self.kind != "optimal" or not self.path):
            raise EdgepruneError(f"ablation {self.kind!r} takes no file {self.path!r}; only 'optimal:FILE' does")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `KIND`, `KIND:OPTION:...` (in any order, each once) or `optimal:FILE`.

        Raises:
            EdgepruneError: The kind or an option is unknown, or two options contradict each other.
        """
        kind, *options = text.split(":")
        if kind not in OPTIONS:
            raise EdgepruneError(f"ablation must be one of {', '.join(get_args(Kind))}, got {text!r}")
        if kind == "optimal":
            return cls(kind, path=":".join(options) if options else None)
        found: dict[str, str | bool | int] = {}
        for option in options:
            name, value = _option(cls(kind), option)
            if name in found:
                raise EdgepruneError(f"ablation {text!r} says its {name} twice; say it once")
            found[name] = value
        return cls(kind, **found)  # pyright: ignore[reportArgumentType] (`_option` pairs names with their types)

    def __str__(self) -> str:
        """The shortest text that `parse` reads as this ablation."""
        if self.path is not None:
            return f"{self.kind}:{self.path}"
        options = [self.source] * (self.source != "clean") + ["positional"] * self.positional
        return ":".join([self.kind, *options, *[f"{SEED}{self.seed}"] * (self.seed != 0)])

    def _unknown(self, option: str) -> str:
        """Why `option` is refused."""
        known = OPTIONS[self.kind]
        return f"ablation {self.kind!r} knows {', '.join(known) or 'no options'}, got {option!r}"


def _option(ablation: Ablation, text: str) -> tuple[str, str | bool | int]:
    """Name and value of an option of `ablation`."""
    known = OPTIONS[ablation.kind]
    if text.startswith(SEED) and text.removeprefix(SEED).isdecimal() and f"{SEED}N" in known:
        return "seed", int(text.removeprefix(SEED))
    if text not in known or text == f"{SEED}N":
        raise EdgepruneError(ablation._unknown(text))
    return ("positional", True) if text == "positional" else ("source", text)
