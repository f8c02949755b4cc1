"""Transformers whose circuit is known: written in code here, or read from a folder (`tracr_format`)."""

from collections.abc import Callable
from typing import Literal, NamedTuple

from edgeprune.compiled.reverse import INTERCHANGE_CIRCUIT, ZERO_CIRCUIT, build_reverse, reverse_cases
from edgeprune.compiled.transformer import CompiledConfig, CompiledTransformer
from edgeprune.errors import EdgepruneError

__all__ = [
    "CompiledConfig",
    "CompiledTransformer",
    "Program",
    "cases",
    "load_compiled",
    "programs",
    "true_circuit",
]


Case = tuple[tuple[int, ...], tuple[int, ...]]


class Program(NamedTuple):
    """How to build a model, what it should compute, and the edges that matter under each ablation."""

    build: Callable[[], CompiledTransformer]
    cases: Callable[[], list[Case]]
    zero: tuple[str, ...]
    interchange: tuple[str, ...]


_PROGRAMS = {"reverse": Program(build_reverse, reverse_cases, ZERO_CIRCUIT, INTERCHANGE_CIRCUIT)}


def programs() -> tuple[str, ...]:
    """Names of the programs."""
    return tuple(_PROGRAMS)


def load_compiled(name: str) -> CompiledTransformer:
    """Build the model of a program; `name` as in `programs()`."""
    return _program(name).build()


def cases(name: str) -> list[Case]:
    """Every valid input of a program (token ids), each with the right outputs at its positions 1, 2, ..."""
    return _program(name).cases()


def true_circuit(name: str, ablation: Literal["zero", "interchange"]) -> tuple[str, ...]:
    """Edges of the program that matter, for a graph with token and position embedding apart.

    Args:
        name: A program, as in `programs()`.
        ablation: `"zero"`: a closed edge carries nothing. `"interchange"`: what it carries on another valid
            input of the same length.
    """
    program = _program(name)
    circuits = {"zero": program.zero, "interchange": program.interchange}
    if ablation not in circuits:
        raise EdgepruneError(f"no true circuit is known under ablation {ablation!r}; use one of {', '.join(circuits)}")
    return circuits[ablation]


def _program(name: str) -> Program:
    if name not in _PROGRAMS:
        raise EdgepruneError(f"no compiled program named {name!r}; the known ones are: {', '.join(_PROGRAMS)}")
    return _PROGRAMS[name]
