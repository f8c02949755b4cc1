"""The command line: `edgeprune COMMAND ...`. Light commands are dispatched before anything heavy is imported."""

import importlib
import sys
from collections.abc import Sequence

from edgeprune.errors import EdgepruneError
from edgeprune.sweeps.parent_death import end_with_sweep

COMMANDS = {
    "fit": ("edgeprune.cli.training", "learn a circuit: --config X.yaml"),
    "validate": (
        "edgeprune.cli.training",
        "judge a checkpoint's circuit on the validation pairs: --config X.yaml --ckpt_path C",
    ),
    "test": ("edgeprune.cli.training", "the same on the test pairs"),
    "plan": ("edgeprune.cli.plan", "what a fit would take, without loading weights: --config X.yaml"),
    "discover": ("edgeprune.cli.discover", "find a circuit with a method that does not train: --config X.yaml"),
    "polish": ("edgeprune.cli.polish", "swap a circuit's edges for better ones: CIRCUIT --config X.yaml"),
    "evaluate": ("edgeprune.cli.evaluate", "score circuit files on pairs: CIRCUIT... --config DATA.yaml"),
    "compare": ("edgeprune.cli.compare", "what circuits have in common: CIRCUIT CIRCUIT..."),
    "across": ("edgeprune.cli.across", "circuits of two models on one task: CIRCUIT CIRCUIT --config DATA.yaml"),
    "convert": ("edgeprune.cli.convert", "circuits to and from the files of other tools: IN OUT"),
    "draw": ("edgeprune.cli.draw", "circuits as a page, an image or DOT, patching as heat maps: FILE... --out X.html"),
    "data": ("edgeprune.cli.data", "show some pairs of a data config: CONFIG"),
    "sweep": ("edgeprune.cli.sweep", "run a W&B sweep file here: FILE; compare its trials: --summary DIR"),
    "configs": ("edgeprune.cli.configs", "list the configs that come along, or copy one: NAME --out X.yaml"),
    "selfcheck": ("edgeprune.cli.selfcheck", "check a model on this machine: open = library, gradients, cost: MODEL"),
    "get": ("edgeprune.cli.get", "fetch a model that needs no model hub: smollm2, gemma3-270m"),
}


HELP, HELP_ALL = ("-h", "--help"), "--help-all"
MANY_OPTIONS = ("fit", "validate", "test", "discover")  # too many for one page, and slow to list


def main(args: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status; a user's mistake is one line and status 2."""
    end_with_sweep()
    arguments = list(sys.argv[1:] if args is None else args)
    if not arguments or arguments[0] in HELP:
        print(usage())  # noqa: T201
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from edgeprune import __version__

        print(f"edgeprune {__version__}")  # noqa: T201
        return 0
    if arguments[0] not in COMMANDS:
        return _fail(f"no command {arguments[0]!r}; the commands are {', '.join(COMMANDS)}")
    home, what = COMMANDS[arguments[0]]
    if HELP_ALL in arguments:
        arguments = [arguments[0], "--help"]
    elif arguments[0] in MANY_OPTIONS and any(word in HELP for word in arguments):
        from edgeprune.cli.arguments import show
        from edgeprune.cli.short_help import short_page

        show(short_page(arguments[0], what))
        return 0
    module = importlib.import_module(home)
    try:
        return module.run(arguments) or 0
    except EdgepruneError as error:
        return _fail(str(error))
    except OSError as error:  # a file that went, or could not be written after all
        if error.filename is None:
            raise
        return _fail(f"{error.filename}: {error.strerror}; look whether it is there, and may be read or written")
    except KeyboardInterrupt:
        return 130


def usage() -> str:
    """What `edgeprune --help` prints."""
    lines = [
        "usage: edgeprune COMMAND ...",
        "",
        "Find circuits in transformers by differentiable edge pruning.",
        "",
    ]
    lines += [f"  {name:<10} {what}" for name, (_, what) in COMMANDS.items()]
    return "\n".join([*lines, "", "`edgeprune COMMAND --help` tells more."])


def _fail(message: str) -> int:
    print(f"edgeprune: error: {' '.join(message.split())}", file=sys.stderr)  # noqa: T201
    return 2
