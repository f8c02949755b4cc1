"""Problems and methods of `frontier.py`, with the settings that each method may choose from."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml
from schedule_settings import write_stories

ROOT = Path(__file__).resolve().parents[1]
SPARSITIES = (0.90, 0.95, 0.98, 0.99, 0.995)
Tries = tuple[tuple[str, ...], ...]
RECIPE, CIRCUITS = "--model.recipe", "--trainer.callbacks.init_args.sparsities"
STEPS, BATCH = 600, 8  # of methods that train: 4,800 passes, forward and backward, of one pair


# -------------------------------------------------------------------- a problem
@dataclass(frozen=True)
class Problem:
    """A model with a task.

    Attributes:
        title: As the tables say it.
        config: Of `fit`, in `configs`; its model and data serve every method.
        task: Class of another task than the config's.
        options: Settings of the task in place of the config's.
        all_methods: Run every method by default, not only `STRONGEST`.
        own_model: Another model than the config's; `--model`: from the command line.
        tries: Settings that a method may choose from here, in place of its entry's.
    """

    title: str
    config: str
    task: str | None
    options: Mapping[str, Any]
    all_methods: bool = False
    own_model: str | None = None
    tries: Mapping[str, Tries] = field(default_factory=dict[str, Tries])

    @property
    def settings(self) -> dict[str, Any]:
        """Of the task."""
        drawn = {} if self.task == "JSONLTask" else {"num_train": 1600, "num_validation": 200, "num_test": 1000}
        return {**drawn, **self.options}

    def placed(self, place: Path, model: str | None) -> "Problem":
        """The problem with its model and, where they lie in a file, its pairs, which are written to `place`."""
        if self.own_model != "--model":
            return self
        if model is None:
            raise SystemExit(f"{self.title}: name its model with --model")
        pairs = place / "pairs.jsonl"
        if not pairs.exists():
            write_stories(pairs, model, validation=100)
        return replace(self, own_model=model, options={"path": str(pairs)})

    def arguments(self) -> list[str]:
        """The task, for any command."""
        own = [] if self.task is None else [f"--data.task={self.task}"]
        return [*own, *(f"--data.task.init_args.{key}={value}" for key, value in self.settings.items())]

    def _shipped(self) -> dict[str, Any]:
        return yaml.safe_load((ROOT / "configs" / f"{self.config}.yaml").read_text())

    @property
    def model(self) -> str:
        """Its name."""
        return self.own_model or self._shipped()["model"]["name"]

    def write(self, path: Path, *, recipe: bool) -> None:
        """Write the shipped config, or all but its recipe, with this problem's pairs and sparsities."""
        config, shipped = self._shipped(), self._shipped()["data"]["task"]
        own = {**shipped["init_args"], **self.settings} if self.task is None else self.settings
        config["model"]["name"] = self.model
        config["data"]["task"] = {"class_path": self.task or shipped["class_path"], "init_args": own}
        if not recipe:
            del config["model"]["recipe"]
        (snapshots,) = config["trainer"]["callbacks"]
        snapshots["init_args"]["sparsities"] = list(SPARSITIES)
        path.write_text(yaml.safe_dump(config, sort_keys=False))


# -------------------------------------------------------------------- methods
@dataclass(frozen=True)
class Entry:
    """A method with the settings that it may choose from.

    Attributes:
        label: As the tables say it.
        command: `fit`, `discover`, `polish`, or `regrow`: a `fit` that starts from a circuit and stays at its size.
        tries: Arguments beside the problem's; `{seed}` is the seed. All are run with the first seed, and the one whose
            circuits have the lowest mean KL on the validation pairs with the others.
        seeds: Whether other seeds give other circuits.
        cut: Judge also the circuits cut from the final gates, and take the better one by the validation pairs.
        of: Of `polish` and `regrow`: the entry whose circuits are made better.
        passes: Forward and backward passes of one pair, where they can be told beforehand.
    """

    label: str
    command: str
    tries: Tries
    seeds: bool = True
    cut: bool = False
    of: str | None = None
    passes: int | None = None


def _recipe(name: str, **settings: Any) -> tuple[str, ...]:
    return (f"{RECIPE}={name}", *(f"{RECIPE}.init_args.{key}={value}" for key, value in settings.items()))


def _method(name: str, metric: str, *more: str) -> tuple[str, ...]:
    return (f"--method={name}", f"--metric={metric}", *more)


def _each(base: tuple[str, ...], option: str, *values: float) -> Tries:
    return tuple((*base, f"{RECIPE}.init_args.{option}={value}") for value in values)


FEW = ("--limit=4", "--data.batch_size=4", "--selection=null")
ALL_PAIRS = ("--method.steps=15", "--limit=320")  # of the stories: 4,800 passes, as training
PATHS = ("--method.steps=5", f"--limit={STEPS * BATCH // 5}")  # as many passes as training has


def _trained(label: str, *tries: tuple[str, ...], passes: int = STEPS * BATCH, cut: bool = True) -> Entry:
    return Entry(label, "fit", tries, cut=cut, passes=passes)


EDGES, NODES = (_recipe("SubnetworkProbing", granularity=kind, learning_rate=0.1) for kind in ("edges", "nodes"))
SAMPLES = _recipe("UGS", learning_rate=0.05, samples_per_step=1, masks_per_batch=8)
RANKING = _recipe("Matryoshka", draw="log", shares=[0.005, 1.0], masks_per_batch=8, stratified=True)
WARM = {"path": "{place}/eap_ig_inputs/0-s0/scores.safetensors", "magnitude": "true", "keep_below": 0.3}
HELD = tuple(f"{RECIPE}.init_args.sparsity_term{part}" for part in ("=Pace", ".end=0.99", ".hold=0.25"))
ANSWERS = ("--model.objective=nll_answers", "--model.complement_weight=1")
TRAINED: dict[str, Entry] = {
    "edge_pruning": _trained("Edge Pruning", ()),
    "edge_pruning_long": _trained(
        "Edge Pruning, twice the steps", (f"--trainer.max_steps={2 * STEPS}",), passes=2 * STEPS * BATCH
    ),
    "small_steps": _trained(
        "Edge Pruning, 1,200 steps of 4 pairs",
        ("--data.batch_size=4", f"--trainer.max_steps={2 * STEPS}", f"{CIRCUITS}=[0.95,0.98,0.99]"),
        cut=False,
    ),
    "edge_pruning_held": _trained(
        *("Edge Pruning, twice the steps, a quarter of them at 99 %", (f"--trainer.max_steps={2 * STEPS}", *HELD)),
        passes=2 * STEPS * BATCH,
    ),
    "sp_edges": _trained("SP, edges", *_each(EDGES, "penalty_weight", 100, 300, 1000)),
    "ugs": _trained("UGS", *_each(SAMPLES, "edge_weight", 0.005, 0.014, 0.04)),
    "matryoshka": _trained("Matryoshka (sigmoid top-k)", *_each(RANKING, "learning_rate", 0.03, 0.1, 0.3), cut=False),
    "disco_gp": _trained("DiscoGP, edges", (*_recipe("DiscoGP", masks_per_batch=8), *ANSWERS)),
    "sp_nodes": _trained("SP, nodes", *_each(NODES, "penalty_weight", 5, 20, 80)),
    "edge_pruning_warm": _trained(
        "Edge Pruning, warm-started",
        tuple(f"{RECIPE}.init_args.warm_start.{key}={value}" for key, value in WARM.items()),
        passes=2 * STEPS * BATCH,
    ),
}


def _scored(label: str, name: str, metric: str, *more: str, passes: int | None = None) -> Entry:
    return Entry(label, "discover", (_method(name, metric, *more),), seeds="{seed}" in str(more), passes=passes)


def _rules(**rules: str) -> tuple[str, ...]:
    return tuple(f"--method.rules.{part}={rule}" for part, rule in rules.items())


RELP = _rules(norm="detach", activation="secant", product="half")
GIM = _rules(norm="detach", product="half", attention="temperature", temperature="2.0")
SIGNED = "--selection.absolute=false"
SCORED: dict[str, Entry] = {
    "random": _scored("random", "RandomScores", "kl", "--method.seed={seed}"),
    "activation_magnitude": _scored("activation magnitude", "ActivationMagnitude", "kl"),
    "ifr": _scored("IFR", "InformationFlowRoutes", "kl", "--selection.rule=greedy"),
    "hisp": _scored("HISP", "HISP", "logit_difference", SIGNED),
    "contextual_decomposition": _scored(
        *("contextual decomposition", "ContextualDecomposition", "logit_difference"),
        *("--method.larger=true", "--limit=50", "--data.batch_size=10"),
    ),
    "eap_ld": _scored("EAP, logit difference", "EAP", "logit_difference"),
    "eap_ld_signed": _scored("EAP, logit difference, signed", "EAP", "logit_difference", SIGNED),
    "eap_kl": _scored("EAP, KL", "EAP", "kl"),
    "relp": _scored("RelP, logit difference", "EAP", "logit_difference", *RELP),
    "relp_kl": _scored("RelP, KL", "EAP", "kl", *RELP),
    "gim": _scored("GIM, logit difference", "EAP", "logit_difference", *GIM),
    "gim_kl": _scored("GIM, KL", "EAP", "kl", *GIM),
    "eap_ig_inputs": _scored("EAP-IG-inputs, KL", "EAPIG", "kl", *PATHS, passes=STEPS * BATCH),
    "eap_ig_inputs_ld": _scored(
        "EAP-IG-inputs, logit difference", "EAPIG", "logit_difference", *PATHS, passes=STEPS * BATCH
    ),
    "eap_ig_local": _scored(
        "EAP-IG, local increments, KL", "EAPIG", "kl", *PATHS, "--method.variant=local", passes=STEPS * BATCH
    ),
    "eap_ig_activations": _scored(
        "EAP-IG-activations, KL", "EAPIG", "kl", "--method.steps=5", "--method.variant=activations", "--limit=16"
    ),
    "eap_ig_gates": _scored(
        "IG over all gates, KL", "EAPIG", "kl", *PATHS, "--method.variant=gates", passes=STEPS * BATCH
    ),
    "acdc": _scored("ACDC", "ACDC", "kl", "--method.taus=[0.1,0.03,0.01]", *FEW),
    "acdc_fine": _scored("ACDC, fine", "ACDC", "kl", "--method.taus=[0.002]", *FEW),
}
FOUND = SCORED | TRAINED
POLISH = ("--held-out=200", "--probes=1", "--batch-size=16", "--overshoot=0")
SEEN = 160  # pairs of a round of polishing
REGROW_STEPS = 300
REGROW = (
    f"--trainer.max_steps={REGROW_STEPS}",
    f"{RECIPE}.init_args.init_mean=3",
    f"{RECIPE}.init_args.learning_rate=0.06",
    f"{RECIPE}.init_args.warm_start.closed_at=-6",
    f"{RECIPE}.init_args.regrow.share=0.03",
    f"{RECIPE}.init_args.sparsity_term=Pace",
    f"{RECIPE}.init_args.sparsity_term.init_args.hold=0.9",
)


def _polished(name: str, passes: int) -> Entry:
    """The circuits of a method, each with as many passes again as all of them have had."""
    entry, settings = FOUND[name], ("--limit=1600", "--parts=10", *POLISH, f"--max-passes={passes // SEEN}")
    total = (1 + len(SPARSITIES)) * passes
    return Entry(f"{entry.label}, polished", "polish", (settings,), seeds=entry.seeds, of=name, passes=total)


POLISHED = {
    f"{name}_polished": _polished(name, entry.passes)
    for name, entry in FOUND.items()
    if entry.passes and (name.startswith(("edge_pruning", "matryoshka")) or name in ("eap_ig_inputs", "eap_ig_local"))
}
REGROWN = {
    f"{name}_regrown": Entry(
        *(f"{FOUND[name].label}, regrown", "regrow", (REGROW,)),
        of=name,
        passes=(FOUND[name].passes or 0) + count * REGROW_STEPS * BATCH,
    )
    for name, count in {**dict.fromkeys(("edge_pruning", "matryoshka", "eap_ig_inputs"), 5), "small_steps": 3}.items()
}
ENTRIES = FOUND | POLISHED | REGROWN
STRONGEST = (
    *("random", "eap_ig_inputs", "eap_ig_local", "edge_pruning", "edge_pruning_long", "edge_pruning_held", "sp_edges"),
    *("ugs", "matryoshka", "small_steps"),
    *POLISHED,
    *REGROWN,
)


# -------------------------------------------------------------------- problems
# A run takes half an hour of a core: one try each, of the ranking the rate that was the lowest of three on the stories.
LONG: dict[str, Tries] = {
    "matryoshka": _each(RANKING, "learning_rate", 0.03),
    "sp_edges": _each(EDGES, "penalty_weight", 300),
    "sp_nodes": _each(NODES, "penalty_weight", 20),
    "ugs": _each(SAMPLES, "edge_weight", 0.014),
}
PROBLEMS: dict[str, Problem] = {
    "ioi": Problem(
        *("IOI, four sentences, SmolLM2-135M", "ioi_smollm2", None, {"templates": 4}), all_methods=True, tries=LONG
    ),
    "pronoun": Problem(
        *("Gendered pronoun, SmolLM2-135M", "ioi_smollm2", "GenderedPronoun", {"entities": "shared", "templates": 4}),
        tries=LONG,
    ),
    "gemma": Problem("IOI, four sentences, Gemma-3-270M", "ioi_gemma3", None, {"templates": 4}, tries=LONG),
    "stories": Problem(
        *("Pronoun, stories of 260,000 parameters", "ioi_smollm2", "JSONLTask", {}),
        own_model="--model",
        tries={
            "sp_edges": _each(EDGES, "penalty_weight", 30, 100, 300),
            "ugs": _each(SAMPLES, "edge_weight", 0.0014, 0.004, 0.0125),
            "eap_ig_inputs": (_method("EAPIG", "kl", *ALL_PAIRS),),
            "eap_ig_local": (_method("EAPIG", "kl", *ALL_PAIRS, "--method.variant=local"),),
            **dict.fromkeys(POLISHED, ((f"--limit={SEEN}", *POLISH, f"--max-passes={STEPS * BATCH // SEEN}"),)),
        },
    ),
}
