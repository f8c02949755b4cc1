"""`edgeprune fit-weights --config X.yaml [--then EDGES.yaml]`: gates on weights, then on the edges that are left."""

import argparse

from edgeprune.cli import training
from edgeprune.cli.configs import find_config
from lit_modules.snapshots import run_folder
from lit_modules.weight_pruning import MASK, WeightPruningModule


def run(arguments: list[str]) -> None:
    """Train gates on weights; with `--then`, train gates on edges with the mask that was found on the weights."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--then")
    options, rest = parser.parse_known_args(arguments[1:])
    after = None if options.then is None else str(find_config(options.then))
    cli = training.train(["fit", *rest], WeightPruningModule)
    if after is None or cli is None:  # --help and --print_config train nothing
        return
    mask = run_folder(cli.trainer) / MASK
    training.run(["fit", "--config", after, "--model.weight_mask", str(mask)])
