"""Circuit files that a command names, and the model that they are of."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from edgeprune.batch import PairBatch
    from edgeprune.circuit import Circuit
    from edgeprune.formats import Holds
    from edgeprune.models.masked import MaskedModel
    from edgeprune.models.weight_mask import WeightMask


MASK = "edgeprune-weight-mask/"  # what files of masks on weights say that they hold
HOLDS = ("scores", "circuit")  # as `edgeprune.formats.Holds`, which is slow to import


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """How files of other tools are read."""
    parser.add_argument(
        "--holds", choices=HOLDS, help="what is in files that do not say it: EAP-IG's in which no edge is in the graph"
    )
    parser.add_argument(
        "--split-embedding",
        action="store_true",
        help="token and position embedding apart; EAP-IG always keeps the latter",
    )


def circuit_row(path: str, circuit: "Circuit") -> dict[str, Any]:
    """What commands write of a circuit file."""
    return {
        "circuit": path,
        "edges": circuit.num_edges,
        "sparsity": circuit.sparsity,
        "dangling": circuit.num_dangling,
        "nodes": len(circuit.nodes()),
    }


def _native(path: str) -> "Circuit":
    """The circuit of a file of ours; of a mask on weights, all edges on the weights that it keeps."""
    from edgeprune.circuit import Circuit
    from edgeprune.sealed import says

    if not says(path, MASK):
        return Circuit.load(path)
    from edgeprune.models.mask_circuit import mask_circuit

    return mask_circuit(path)


@final
@dataclass(frozen=True)
class CircuitFiles:
    """Circuit files. Native ones, and masks on weights, are read at once; others need a graph, and perhaps the model.

    Attributes:
        paths: As given.
        native: Circuits of the native files, by path.
        holds: What is in files that do not say it themselves.
    """

    paths: list[str]
    native: "dict[str, Circuit]"
    holds: "Holds | None" = None

    @classmethod
    def open(
        cls, paths: list[str], holds: "Holds | None" = None, *, roles: bool = False, attention: bool = False
    ) -> "CircuitFiles":
        """Read the native files.

        Args:
            paths: Of circuits.
            holds: What is in files that do not say it themselves.
            roles: The command knows circuits with roles.
            attention: It knows closed attention edges.

        Raises:
            EdgepruneError: One is damaged, or has roles or closes attention edges that the command does not know; or
                any path is missing or a folder without just one circuit.
        """
        from edgeprune.circuit_attention import require_open
        from edgeprune.formats import is_native
        from edgeprune.formats.plain_values import load_values

        for path in paths:
            if not Path(path).exists():
                raise EdgepruneError(f"no circuit file at {path}")
            if Path(path).is_dir():
                load_values(Path(path))  # refuses a folder that does not stand for one circuit
        native = {path: _native(path) for path in paths if is_native(path)}
        for path, circuit in native.items():
            if not roles:
                circuit.require_no_roles(f"{path}: this command")
            try:
                require_open(circuit.graph, None if attention else circuit.attend, "this command")
            except EdgepruneError as error:
                raise EdgepruneError(f"{path}: {error}") from None
        return cls(paths, native, holds)

    @property
    def header(self) -> dict[str, Any]:
        """That of the first native file; empty without one."""
        return next((circuit.header for circuit in self.native.values()), {})

    def use_roles(self, model: "MaskedModel", batches: "Sequence[PairBatch]") -> None:
        """Give the model the roles that circuits have, as they lie in the prompts that it is run on.

        Raises:
            EdgepruneError: Two circuits have different roles, or the prompts lack some.
        """
        from edgeprune.roles import roles_named

        found = {path: circuit.roles for path, circuit in self.native.items() if circuit.roles}
        for path, names in found.items():
            if names != found[(first := next(iter(found)))]:
                raise EdgepruneError(
                    f"{path} has the roles {', '.join(names)}, {first} has {', '.join(found[first])}; run them apart"
                )
        for path, names in list(found.items())[:1]:
            try:
                model.use_roles(roles_named(names, batches))
            except EdgepruneError as error:
                raise EdgepruneError(f"{path} has the roles {', '.join(names)}: {error}") from None

    def model_name(self, given: str | None, option: str = "--model") -> str:
        """The model given on the command line by `option`, or that of the first native file.

        Raises:
            EdgepruneError: Neither is known.
        """
        name = given or self.header.get("model")
        if name is None:
            raise EdgepruneError(f"{self.paths[0]} does not say which model it is of; give {option}")
        return str(name)

    def load_model(self, name: str, device: str, *, split_embedding: bool = False, runs: bool = True) -> "MaskedModel":
        """The model, wired as the first native circuit is; warns of circuits that were found on other weights.

        Args:
            name: Of the model.
            device: Where to put it.
            split_embedding: Token and position embedding apart, whatever circuits say.
            runs: Circuits will be run, so that the weights matter.

        Raises:
            EdgepruneError: A circuit does not fit it, or circuits that will be run name different weight masks.
        """
        from edgeprune.circuit_roles import check_same
        from edgeprune.console import warn
        from edgeprune.models.loading import fingerprint, load_model

        loading: dict[str, Any] = {"device": device}
        first = next(iter(self.native), None)
        for circuit in list(self.native.values())[:1]:
            arch = circuit.graph.arch
            loading = {**circuit.header.get("model_options", {}), **loading}
            loading |= {"split_embedding": arch.split_embedding, "kv_readers": arch.kv_readers}
        if split_embedding:
            loading["split_embedding"] = True
        model = load_model(name, **loading)
        if runs and (mask := self.weight_mask()) is not None:
            mask.apply(model)
            for path in (path for path in self.paths if path not in self.native):
                warn(f"{path} names no weight mask, so it was found on other weights; it runs with that of {first}")
        weights = fingerprint(model)
        for path, circuit in self.native.items():
            check_same(circuit.graph.without_roles, model.graph, f"{name!r}, asked to run {path},")
            if runs and circuit.header.get("model_fingerprint", weights) != weights:
                warn(f"{path} was found on other weights than those of {name!r}")
        return model

    def weight_mask(self) -> "WeightMask | None":
        """The mask on weights that the native circuits name; None if they name none.

        Raises:
            EdgepruneError: They name different ones, or some name none; the file is not there, or another one.
        """
        from edgeprune.models.weight_mask import mask_named_in

        named = {path: (circuit.header.get("weight_mask") or {}).get("digest") for path, circuit in self.native.items()}
        for path, digest in named.items():
            if digest != named[(first := next(iter(named)))]:
                raise EdgepruneError(f"{path} and {first} do not have the same weight mask; run them apart")
        return next((mask_named_in(circuit.header, path) for path, circuit in self.native.items()), None)

    def circuits(self, model: "MaskedModel | None") -> "list[Circuit]":
        """All circuits, on the graph of the model or of the first native file; where that has roles, or without.

        Raises:
            EdgepruneError: A file is damaged or of another graph.
        """
        from edgeprune.circuit_roles import check_same
        from edgeprune.reference import read_reference

        first = next(iter(self.native), "the model")
        graph = self.native[first].graph if model is None else model.graph
        for path, circuit in self.native.items():
            try:
                check_same(circuit.graph.without_roles, graph.without_roles, first)
            except EdgepruneError as error:
                raise EdgepruneError(f"{path}: {error}") from None
        return [
            self.native[path] if path in self.native else read_reference(path, graph.without_roles, self.holds)
            for path in self.paths
        ]

    def warn_of_positions(self, model: "MaskedModel", circuits: "Sequence[Circuit]", ablations: Sequence[str]) -> None:
        """Warn of circuits that never close a position embedding where they came from, and do here."""
        from edgeprune.console import warn
        from edgeprune.reference import ablated_positions

        for path, circuit in zip(self.paths, circuits, strict=True):
            found = next(filter(None, (ablated_positions(circuit, model, ablation) for ablation in ablations)), None)
            if found:
                warn(f"{path} {found}; read the file with --split-embedding")
