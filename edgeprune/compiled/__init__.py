"""Transformers whose circuit is known: written here (`builder`), or read from a folder (`tracr_format`).

One more is trained here rather than written, `trained_induction`: small enough to look at, no true circuit claimed.
"""

from edgeprune.compiled.chain import FAMILY, chain_program
from edgeprune.compiled.hist import HIST
from edgeprune.compiled.induction import INDUCTION
from edgeprune.compiled.logic_gates import AND_GATE, OR_GATE
from edgeprune.compiled.program import Ablation, Case, Edges, Output, Program
from edgeprune.compiled.reverse import REVERSE
from edgeprune.compiled.sort import SORT
from edgeprune.compiled.trained_induction import TRAINED_INDUCTION
from edgeprune.compiled.transformer import CompiledConfig, CompiledTransformer
from edgeprune.compiled.xproportion import XPROPORTION
from edgeprune.errors import EdgepruneError

__all__ = [
    "Case",
    "CompiledConfig",
    "CompiledTransformer",
    "Program",
    "cases",
    "load_compiled",
    "minimal_circuits",
    "output_kind",
    "programs",
    "true_circuit",
]


_PROGRAMS = {
    "reverse": REVERSE,
    "xproportion": XPROPORTION,
    "hist": HIST,
    "sort": SORT,
    "or_gate": OR_GATE,
    "and_gate": AND_GATE,
    "induction": INDUCTION,
    "trained_induction": TRAINED_INDUCTION,
}


def programs() -> tuple[str, ...]:
    """Names of the programs; those of `chain`, which come in every size, are not among them."""
    return tuple(_PROGRAMS)


def load_compiled(name: str) -> CompiledTransformer:
    """Build the model of a program; `name` as in `programs()`."""
    return _program(name).build()


def cases(name: str) -> list[Case]:
    """Every valid input of a program (token ids), each with the right outputs at its positions 1, 2, ...

    An output is the index of the right logit, or the number itself where `output_kind(name)` is `"numerical"`;
    `edgeprune.batch.IGNORE` where the program does not say. A trained model has a fixed random sample of inputs.
    """
    return _program(name).cases()


def output_kind(name: str) -> Output:
    """`"categorical"`: compare outputs by divergence; `"numerical"`: by squared error."""
    return _program(name).output


def true_circuit(name: str, ablation: Ablation) -> Edges:
    """Edges of the program that matter, for a graph with token and position embedding apart.

    Args:
        name: A program, as in `programs()`.
        ablation: `"zero"`: a closed edge carries nothing. `"interchange"`: what it carries on another valid
            input of the same length.

    Returns:
        The first of `minimal_circuits`; the only one for every program but `or_gate`.

    Raises:
        EdgepruneError: No such program or ablation, or the program was trained, so nobody knows.
    """
    return minimal_circuits(name, ablation)[0]


def minimal_circuits(name: str, ablation: Ablation) -> tuple[Edges, ...]:
    """All circuits that do what the program does and stop doing it without any one of their edges.

    Arguments and errors as for `true_circuit`.
    """
    circuits = _program(name).circuits
    if not circuits:
        raise EdgepruneError(
            f"no true circuit of {name!r} is known: its weights were learned; compare with a circuit file instead"
        )
    if ablation not in circuits:
        raise EdgepruneError(f"no true circuit is known under ablation {ablation!r}; use one of {', '.join(circuits)}")
    return circuits[ablation]


def _program(name: str) -> Program:
    program = _PROGRAMS.get(name) or chain_program(name)
    if program is None:
        known = ", ".join(_PROGRAMS)
        raise EdgepruneError(f"no compiled program named {name!r}; the known ones are: {known}, and {FAMILY}")
    return program
