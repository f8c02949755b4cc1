"""`edgeprune fit-weights --config X.yaml [--then EDGES.yaml]`: gates on weights, then on the edges that are left."""

import argparse

from edgeprune.cli import training
from edgeprune.cli.configs import find_config
from edgeprune.errors import EdgepruneError
from lit_modules.pruning import PruningModule
from lit_modules.snapshots import run_folder
from lit_modules.weight_pruning import MASK, WeightPruningModule


def run(arguments: list[str]) -> None:
    """Train gates on weights; with `--then`, train gates on edges with the mask that was found on the weights."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--then")
    options, rest = parser.parse_known_args(arguments[1:])
    first, second = ["fit", *rest], None
    if options.then is not None:
        second = ["fit", "--config", str(find_config(options.then))]
        if not _check(first, second, options.then):
            return
    cli = training.train(first, WeightPruningModule)
    if second is None or cli is None:  # --help and --print_config train nothing
        return
    training.run([*second, "--model.weight_mask", str(run_folder(cli.trainer) / MASK)])


def _check(first: list[str], second: list[str], then: str) -> bool:
    """Refuse a second phase that could not begin, before the first one runs for hours; False where nothing shall run.

    Raises:
        EdgepruneError: What either config has wrong, or models that are not the same.
    """
    weights_phase = training.train(first, WeightPruningModule, training.CheckedCLI)
    if weights_phase is None:
        return False
    edges_phase = training.train(second, PruningModule, training.CheckedCLI)
    if edges_phase is None:
        return False
    own, other = (str(cli.config.fit.model.name) for cli in (weights_phase, edges_phase))
    if own != other:
        raise EdgepruneError(
            f"--then {then} is for model {other!r}, the weights are those of {own!r}: give both the same model.name"
        )
    return True
