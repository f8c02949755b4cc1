"""`edgeprune get MODEL`: fetch a model that needs no model hub."""

from edgeprune.cli.arguments import Arguments


def run(arguments: list[str]) -> None:
    """Fetch the model into the cache."""
    from edgeprune.downloads import MODELS, get_model

    parser = Arguments(prog="edgeprune get", description=__doc__)
    models = "; ".join(f"{name}: {model.title}, {model.licence}" for name, model in MODELS.items())
    parser.add_argument("model", choices=list(MODELS), help=f"dequantised from 4 bits ({models})")
    terms = "; ".join(f"{name}: {model.terms}" for name, model in MODELS.items() if model.terms)
    parser.add_argument("--accept-terms", action="store_true", help=f"you accept the model's terms of use ({terms})")
    options = parser.parse_args(arguments[1:])
    get_model(options.model, accept_terms=options.accept_terms)
