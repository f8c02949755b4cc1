"""`edgeprune plan --config X.yaml`: what a fit would take, worked out without loading weights."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from edgeprune.cli.arguments import Arguments, check_file, check_least, write_json
from edgeprune.cli.configs import find_config
from edgeprune.errors import EdgepruneError
from edgeprune.parsing import read_options

if TYPE_CHECKING:
    from edgeprune.costs import StepCost
    from edgeprune.memory import MemoryPlan
    from edgeprune.plan import Remedy, Run

GB = 1e9
LEAST = {"world_size": 1, "tokens": 1, "positions": 1, "batch_size": 1}


def run(arguments: list[str]) -> None:
    """Print tables of memory, of a step's operations and bytes, and of cards; then what to change."""
    options = _parser().parse_args(arguments[1:])
    check_least(options, LEAST)
    check_file(options.json, "--json")
    if options.config is None and options.model_config is None:
        raise EdgepruneError("nothing to plan: give --config X.yaml, or --model-config with --tokens")
    from edgeprune.console import print_report
    from edgeprune.plan import check_device, remedies, shortfall

    check_device(options.device)
    planned = _run(options)
    cost, lack, changes = planned.cost, shortfall(planned), remedies(planned)
    print_report(_title(planned), *_tables(planned, cost))
    if lack:
        print_report(f"{planned.device}: {lack}", *(_line(remedy) for remedy in changes))
        if not changes:
            print_report("no change of batch, prompts, precision or cards alone makes it fit: take a smaller model")
    if options.json is not None:
        write_json(options.json, _content(planned, cost, lack, changes))


def _parser() -> Arguments:
    parser = Arguments(prog="edgeprune plan", description=__doc__)
    parser.add_argument("--config", metavar="X.yaml", help="of the fit, or the name of one that comes along")
    parser.add_argument("--model-config", metavar="FILE", help="a model's config.json, or a known shape: codellama-13b")
    parser.add_argument("--device", metavar="CARD", help="such as h100-80gb, or cpu; without it, all known cards")
    parser.add_argument("--world-size", type=int, default=1, metavar="N", help="cards (1)")
    parser.add_argument("--tokens", type=int, metavar="N", help="of the longest prompt, instead of the task's")
    parser.add_argument("--positions", type=int, metavar="P", help="scored positions, instead of the task's")
    parser.add_argument("--batch-size", type=int, metavar="B", help="pairs per batch, instead of the config's")
    parser.add_argument("--dtype", help="of the weights, instead of the config's")
    parser.add_argument("--json", type=Path, metavar="FILE", help="a file for the figures")
    return parser


# -------------------------------------------------------------------- what is planned
def _run(options: argparse.Namespace) -> "Run":
    """The run that a config and the options describe.

    Raises:
        EdgepruneError: An option of the config has no such value, or the length of prompts is not known.
    """
    from edgeprune.metrics.losses import TRAINING_OBJECTIVES
    from edgeprune.models.loading import load_config
    from edgeprune.models.meta import shape_config
    from edgeprune.objectives import error_measure
    from edgeprune.plan import Run

    sections = {} if options.config is None else read_options(find_config(options.config))
    model, data, trainer = (_section(sections, name) for name in ("model", "data", "trainer"))
    recipe = _section(_section(model, "recipe"), "init_args")
    if options.model_config is not None:
        config = shape_config(options.model_config)
    elif isinstance(model.get("name"), str) and not model.get("gguf_file"):
        try:
            config = load_config(model["name"], model.get("revision"))
        except EdgepruneError as error:
            raise EdgepruneError(f"{error}; or give its shape with --model-config") from None
    else:
        raise EdgepruneError(f"{options.config} names no model with a config.json; give --model-config FILE")
    tokens, positions, kept = _extent(options, data, model)
    target, batch = data.get("target_batch_size", 8), options.batch_size or data.get("batch_size", 8)
    evaluated = data.get("eval_batch_size", 32)
    planned = Run(
        config=config,
        dtype=_dtype(options.dtype or model.get("dtype", "float32"), config),
        kv_readers=_one_of("model.kv_readers", model.get("kv_readers", "group"), ("group", "head")),
        split_embedding=bool(model.get("split_embedding", getattr(config, "model_type", "") == "edgeprune_compiled")),
        attn_implementation=model.get("attn_implementation"),
        objective=error_measure(_one_of("model.objective", model.get("objective", "kl"), TRAINING_OBJECTIVES)),
        batch=_number("data.target_batch_size", target) if batch == "auto" else _number("data.batch_size", batch),
        accumulate=_number("trainer.accumulate_grad_batches", trainer.get("accumulate_grad_batches", 1)),
        eval_batch=None if evaluated == "auto" else _number("data.eval_batch_size", evaluated),
        tokens=tokens,
        positions=positions,
        masks=_number("model.recipe.init_args.masks_per_batch", recipe.get("masks_per_batch", 1)),
        roles=_num_roles(options, model, tokens),
        attention=bool(recipe.get("attention_edges", False)),
        kept=kept,
        device=options.device,
        world=options.world_size,
    )
    most = planned.model.family.num_positions(config)
    if most is not None and tokens > most:
        raise EdgepruneError(f"prompts of {tokens} tokens are longer than the model's {most} positions; shorten them")
    return _settled(planned) if batch == "auto" else planned


def _settled(planned: "Run") -> "Run":
    """An open batch size becomes the largest part of the step that fits, as in `fit`."""
    sizes = [size for size in range(planned.batch, 0, -1) if planned.batch % size == 0]
    made = [replace(planned, batch=size, accumulate=planned.batch // size) for size in sizes]
    return next((one for one in made if one.training.fits), made[-1])


def _extent(options: argparse.Namespace, data: Mapping[str, Any], model: Mapping[str, Any]) -> tuple[int, int, int]:
    """Tokens of the longest prompt, most scored positions, and bytes of reference runs that are kept, at most."""
    room = int(float(model.get("cache_gb", 2.0)) * GB)
    if options.tokens is None and not data:
        raise EdgepruneError("the length of prompts is not known: give --tokens N, and --positions P if more than one")
    if options.tokens is not None:
        tokens, positions = options.tokens, options.positions or 1
        if positions > tokens:
            raise EdgepruneError(f"--positions {positions} are more than --tokens {tokens}; score fewer")
        return tokens, positions, room
    from edgeprune.cli.data import read_data_config

    try:
        module = read_data_config(options.config)
        found = [module.extent(split) for split in ("train", "validation") if module.pairs(split)]
    except EdgepruneError as error:
        raise EdgepruneError(f"{error}; or give --tokens N, the length of prompts") from None
    if not found:
        raise EdgepruneError(f"{options.config} gives no pairs; raise their number, or give --tokens N")
    tokens, positions = (max(sizes) for sizes in zip(*found, strict=True))
    return tokens, options.positions or positions, room


def _num_roles(options: argparse.Namespace, model: Mapping[str, Any], tokens: int) -> int:
    """Roles that edges are told apart by, with that of tokens without any."""
    from edgeprune.roles import POSITIONS, check_option

    option = model.get("roles")
    check_option(option)
    if option is not True:
        return tokens if option == POSITIONS else len(option) + 1 if option else 0
    from edgeprune.cli.data import read_data_config
    from lit_modules.roles import roles_of_data

    roles = roles_of_data(True, read_data_config(options.config))
    return 0 if roles is None else len(roles)


def _section(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    found = values.get(name)
    return cast("dict[str, Any]", found) if isinstance(found, dict) else {}


def _number(name: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise EdgepruneError(f"{name} must be a whole number of at least 1, got {value!r}; change it")
    return value


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> Any:
    if value not in known:
        raise EdgepruneError(f"{name} must be one of {', '.join(known)}, got {value!r}; change it")
    return value


def _dtype(name: Any, config: Any) -> Any:
    import torch

    from edgeprune.models.loading import DTYPES

    if _one_of("model.dtype", name, DTYPES) == "auto":
        return config.dtype or torch.float32
    return getattr(torch, name)


# -------------------------------------------------------------------- tables
def _title(planned: "Run") -> str:
    model = planned.model
    weights = sum(parameter.numel() for parameter in model.hf.parameters())
    at_roles = f" at {planned.roles} roles" if planned.roles else ""
    arch, step = model.graph.arch, "" if planned.accumulate == 1 else f", {planned.accumulate} of them a step"
    return (
        f"{planned.config.model_type}: {weights / 1e9:.2f}e9 weights in {str(planned.dtype).removeprefix('torch.')}, "
        f"{arch.num_layers} layers of width {model.width}, {model.graph.num_edges:,} edges{at_roles}; batches of "
        f"{planned.batch} x {planned.tokens} tokens{step}, scored at {planned.positions}"
    )


def _columns(planned: "Run") -> "dict[str, MemoryPlan]":
    """Plans by heading: of one card, and where there are several, with the weights sharded over them."""
    plans = {"training": planned.training, "evaluation": planned.evaluation}
    if planned.world > 1:
        shards = replace(planned, sharded=True)
        plans |= {"training, sharded": shards.training, "evaluation, sharded": shards.evaluation}
    return plans


def _tables(planned: "Run", cost: "StepCost") -> list[Any]:
    from edgeprune.tables import Numbers, table

    plans = _columns(planned)
    longest = sorted(plans.values(), key=lambda plan: -len(plan.parts))
    names = list(dict.fromkeys(name for plan in longest for name, size in plan.parts.items() if size))
    rows: list[list[Any]] = [[name, *(plan.parts.get(name, 0) / GB for plan in plans.values())] for name in names]
    rows += [[], ["together", *(plan.total / GB for plan in plans.values())]]
    each = "memory in GB" if planned.world == 1 else f"memory in GB of each of {planned.world} cards"
    made = [table(each, ["part", *(Numbers(name, 2) for name in plans)], rows)]
    plain = cost.per_token["plain step"]
    work = [[name, n / 1e6, n / plain, cost.operations(name) / 1e9] for name, n in cost.per_token.items()]
    headings = [Numbers(name, 2) for name in ("M multiply-adds per token", "times plain")]
    moved = (
        f"stack {cost.stack_row / 1e3:,.2f} kB per token; it and its gradient move {cost.traffic / 1e6:,.2f} MB per "
        f"token; a batch moves {cost.bytes_moved(built=False) / GB:,.1f} GB at least, "
        f"{cost.bytes_moved(built=True) / GB:,.1f} GB as built"
    )
    made += [table("operations", ["what", *headings, Numbers("1e9 operations, batch", 1)], work), moved]
    return [*made, *([] if planned.device == "cpu" else [_cards(planned, cost)])]


def _cards(planned: "Run", cost: "StepCost") -> Any:
    from edgeprune.costs import CARDS
    from edgeprune.tables import Numbers, table

    peak = planned.peak.total / GB
    rows = [
        [name, CARDS[name].memory_gb, peak, "yes" if replace(planned, device=name).peak.fits else "no",
         *(1000 * seconds for seconds in _seconds(planned, cost, name).values())]
        for name in _names(planned)
    ]  # fmt: skip
    times = [Numbers(name, 1) for name in _seconds(planned, cost, next(iter(CARDS)))]
    headings = ["card", Numbers("GB", 0), Numbers("needs", 1), "fits", *times]
    return table("milliseconds of a step, at least", headings, rows)


def _names(planned: "Run") -> list[str]:
    from edgeprune.costs import CARDS

    return [name for name in CARDS if planned.device in (None, name)]


def _seconds(planned: "Run", cost: "StepCost", card: str) -> dict[str, float]:
    """Of a step, at least; reference runs are kept or made anew."""
    from edgeprune.costs import CARDS, REFERENCE_RUNS

    return {
        f"{'built' if built else 'floor'}, runs {'anew' if runs else 'kept'}": planned.accumulate
        * cost.seconds(CARDS[card], built=built, runs=runs)
        for runs in (0, REFERENCE_RUNS)
        for built in (False, True)
    }


def _line(remedy: "Remedy") -> str:
    return f"  {remedy.change}: {remedy.run.peak.total / GB:.1f} GB"


def _content(planned: "Run", cost: "StepCost", lack: str, changes: "list[Remedy]") -> dict[str, Any]:
    """The same figures for a file: bytes, operations, seconds."""
    return {
        "model_type": planned.config.model_type,
        "dtype": str(planned.dtype).removeprefix("torch."),
        "edges": planned.model.graph.num_edges,
        "roles": planned.roles,
        **{name: getattr(planned, name) for name in ("batch", "accumulate", "tokens", "positions", "masks", "world")},
        "memory": {name: {**plan.parts, "together": plan.total} for name, plan in _columns(planned).items()},
        "multiply_adds_per_token": cost.per_token,
        "operations": {name: cost.operations(name) for name in cost.per_token},
        "bytes_moved": {name: cost.bytes_moved(built=name == "built") for name in ("floor", "built")},
        "cards": {
            name: {"fits": replace(planned, device=name).peak.fits, "seconds": _seconds(planned, cost, name)}
            for name in _names(planned)
        },
        "shortfall": lack or None,
        "remedies": {remedy.change: remedy.run.peak.total for remedy in changes},
    }
