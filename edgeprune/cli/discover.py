"""`edgeprune discover --config X.yaml`: find circuits with a method that does not train."""

import shutil
import sys
import time
import warnings
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast, final

import torch
from jsonargparse import ArgumentParser, Namespace
from torch import Tensor

import edgeprune.methods
from datamodules import PairDataModule
from edgeprune import __version__
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.batch import PairBatch
from edgeprune.circuit import Circuit
from edgeprune.cli.arguments import innermost
from edgeprune.cli.configs import with_paths
from edgeprune.cli.pairs import pair_batches, prepare_runs
from edgeprune.cli.strict_parser import StrictParser, check_numbers
from edgeprune.console import Progress, ProgressReporter, counted, print_report
from edgeprune.errors import EdgepruneError
from edgeprune.methods.attention_effects import attention_scores, with_best_attention
from edgeprune.methods.attribution import require_slope
from edgeprune.methods.bootstrap import Samples, discover_by_batch
from edgeprune.methods.discovery import AbstractDiscovery, DiscoveryResult
from edgeprune.methods.problem import Metric, Problem
from edgeprune.methods.selection import Selection
from edgeprune.metrics.measure import gates_of, measure_examples, random_like
from edgeprune.model_options import ModelOptions
from edgeprune.models.limits import Limits
from edgeprune.models.loading import fingerprint
from edgeprune.models.weight_mask import mask_header
from edgeprune.objectives import error_measure
from edgeprune.paths import check_writable, write_whole_text
from edgeprune.report.frontier import Row, frontier_row, frontier_table, write_frontier
from edgeprune.roles import RoleOption, roles_of_option
from edgeprune.runs import CIRCUITS, CONFIG, FRONTIER, SCORES

__all__ = ["make_parser", "run"]
_ = edgeprune.methods  # imported so that configs can name its classes without a path

STATE = "state"
WRITTEN = (CONFIG, SCORES, CIRCUITS, STATE, FRONTIER, "frontier.png")
DONE = FRONTIER  # written last


def make_parser() -> ArgumentParser:
    """Arguments of the command: all of them may come from the config."""
    parser = StrictParser(prog="edgeprune discover", description="Find circuits with a method that does not train.")
    parser.add_argument("--config", action="config", help="YAML file; later options win")
    parser.add_class_arguments(ModelOptions, "model")
    parser.add_subclass_arguments(AbstractDiscovery, "method", required=True)
    parser.add_argument("--metric", type=Metric, default="kl", help="what the loss of an example is")
    parser.add_class_arguments(PairDataModule, "data")
    parser.add_argument("--split", type=Literal["train", "validation", "test"], default="train", help="pairs to use")
    parser.add_argument("--limit", type=int | None, default=None, help="how many of them, from the first; null: all")
    parser.add_argument(
        "--roles",
        type=RoleOption,
        default=None,
        help="edges at roles: true for all of the task's, names such as [S2,END], or positions; null: of all tokens",
    )
    parser.add_argument(
        "--attention",
        type=bool,
        default=False,
        help="with roles: score attention edges too, to first order; circuits open the best, as sparse as their edges",
    )
    parser.add_argument(
        "--selection",
        type=Selection | None,
        default=None,
        help="how circuits are cut from scores (--selection.rule, ...: see --selection.help); null: not, if the method "
        "makes circuits itself, else with the defaults",
    )
    parser.add_argument("--control_seed", type=int, default=0, help="seed of the random circuits to compare with")
    parser.add_argument("--out", type=str, default="runs/discover", help="folder for scores, circuits and frontier")
    parser.add_argument("--overwrite", action="store_true", help="replace the results that are in that folder")
    return parser


def run(arguments: list[str]) -> None:
    """Find, write, evaluate and show circuits."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # torch deprecation inside Lightning itself
    parser = make_parser()
    try:
        config = parser.parse_args(with_paths(arguments[1:]))
        check_numbers(config)
        _default_tokenizer(config)
        built = parser.instantiate(config)
    except SystemExit as stop:  # --help and --print_config
        if stop.code not in (0, None):
            sys.exit(stop.code)
        return
    except (TypeError, ValueError) as error:  # jsonargparse wraps what a constructor raised
        raise innermost(error) from None
    plain = parser.dump(config.clone())
    DiscoverCommand(cast("Any", built), plain).run()


def _default_tokenizer(config: Namespace) -> None:
    if config.data.tokenizer is None:
        config.data.tokenizer = config.model.name


@final
class DiscoverCommand:
    """One discovery: everything is built and checked before anything is written.

    Args:
        options: The instantiated config.
        config: The same as YAML, for the record, and to know an interrupted run again.
    """

    def __init__(self, options: Any, config: str) -> None:
        self.model: ModelOptions = options.model
        self.method: AbstractDiscovery = options.method
        self.metric: Metric = options.metric
        self.data: PairDataModule = options.data
        self.split: str = options.split
        self.limit: int | None = options.limit
        self.roles: RoleOption = _roles(options)
        self.attention: bool = options.attention
        self.selection: Selection | None = options.selection
        self.control_seed: int = options.control_seed
        self.overwrite: bool = options.overwrite
        self.folder = Path(options.out)
        self.config = _without(config, ("out", "overwrite"))

    def run(self) -> None:
        """Find circuits, write, evaluate and show them."""
        if self.limit is not None and self.limit < 1:
            raise EdgepruneError(f"limit must be at least 1, got {self.limit}")
        if self.attention and not self.roles:
            raise EdgepruneError("--attention true scores what roles see of each other: give --roles, or leave it out")
        self._check_folder()
        model = self.model.load()
        limits = Limits.of(model)
        self.data.check(limits, self.split, self.limit)
        self.data.check(limits, "validation")
        batches = pair_batches(self.data, self.split, self.limit)
        validation = pair_batches(self.data, "validation", None, self.data.eval_batch_size)
        model.use_roles(roles_of_option(self.roles, [*batches, *validation]))
        runs = ReferenceRuns(model, self.model.ablation, self.model.cache_gb)
        problem = Problem(model, batches, runs, self.metric, self.split)
        if self.attention:
            require_slope(problem, "scoring attention edges")
        with self._prepared(), ProgressReporter(stderr=True) as bars:
            report = bars.report
            self._prepare_runs(runs, (*batches, *validation), report)
            start = time.perf_counter()
            found, samples = self._discover(problem, report)
            seconds = time.perf_counter() - start if found.seconds is None else found.seconds
            inside = attention_scores(problem, report) if self.attention else None
            header = self._header(problem, found, seconds)
            circuits = self._circuits(problem, found, header, samples)
            if inside is not None:
                circuits = {name: with_best_attention(one, inside) for name, one in circuits.items()}
            rows = self._evaluate(problem, validation, circuits, report)
            self._finish(problem, found, header, rows, inside)
        self._show(rows)

    def _prepare_runs(self, runs: ReferenceRuns, batches: Sequence[PairBatch], report: Progress) -> None:
        """Give the ablation the pairs that it takes its values from; refuse `batches` that it cannot serve."""
        prepare_runs(runs, self.data, self.split, "validation", report=report, objective=error_measure(self.metric))
        for batch in batches:
            runs.check(batch)

    def _discover(self, problem: Problem, report: Progress) -> tuple[DiscoveryResult, Samples | None]:
        """What the method finds, and its scores of single batches where the selection wants them."""
        if self.selection is not None and self.selection.bootstrap is not None:
            return discover_by_batch(self.method, problem, report)
        return self.method.discover(problem, self._going_on(report), self.folder / STATE), None

    def _going_on(self, report: Progress) -> Progress:
        """Where the method has a state to go on from, print so on stderr with its first report, which has how far."""
        pending = any((self.folder / STATE).iterdir())

        def report_first(what: str, done: int, total: int) -> None:
            nonlocal pending
            if pending:
                where = f"{what}, {done:,} of {total:,} done"
                sys.stderr.write(f"edgeprune: going on with the interrupted run in {self.folder}: {where}\n")
                pending = False
            report(what, done, total)

        return report_first

    # ---------------------------------------------------------------- the folder
    def _check_folder(self) -> None:
        """Refuse to write over results, or into a folder of something else."""
        check_writable(self.folder, "--out", folder=True)
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
            return
        config = self.folder / CONFIG
        if not config.is_file() or not any((self.folder / name).exists() for name in (STATE, SCORES, CIRCUITS, DONE)):
            raise EdgepruneError(f"out folder {self.folder} holds other things than results; choose another --out")
        if self.overwrite or self._resumes():
            return
        why = "holds results" if (self.folder / DONE).exists() else "holds an interrupted run with another config"
        raise EdgepruneError(f"out folder {self.folder} {why}; choose another --out, or give --overwrite")

    def _resumes(self) -> bool:
        """Whether the folder holds a run of this very config that did not finish."""
        config = self.folder / CONFIG
        unfinished = config.is_file() and not (self.folder / DONE).exists()
        return unfinished and not self.overwrite and config.read_text(encoding="utf-8") == self.config

    @contextmanager
    def _prepared(self) -> Generator[None]:
        """Make the folder; after a user's mistake that shows only now, leave no new one behind."""
        resumes, new = self._resumes(), not self.folder.exists()
        if not resumes:
            _remove(self.folder)
        (self.folder / STATE).mkdir(parents=True, exist_ok=True)
        write_whole_text(self.folder / CONFIG, self.config)
        try:
            yield
        except EdgepruneError:
            if not resumes and not any((self.folder / STATE).iterdir()):
                _remove(self.folder)
                if new:
                    self.folder.rmdir()
            raise

    # ---------------------------------------------------------------- results
    def _header(self, problem: Problem, found: DiscoveryResult, seconds: float) -> dict[str, Any]:
        return {
            **self.method.describe(),
            **found.about,
            "metric": self.metric,
            "objective": error_measure(self.metric),
            "num_examples": problem.num_examples,
            "found_on": self.split,
            "seconds": seconds,
            "model": self.model.name,
            "model_fingerprint": fingerprint(problem.model),
            "model_options": self.model.loading,
            **mask_header(problem.model),
            "ablation": problem.runs.ablation,
            "direction": "clean run, closed edges carry ablated values (noising)",
            "task": self.data.describe(),
            "edgeprune": __version__,
            "torch": str(torch.__version__),
        }

    def _circuits(
        self, problem: Problem, found: DiscoveryResult, header: dict[str, Any], samples: Samples | None
    ) -> dict[str, Circuit]:
        """The method's own circuits, and those that are cut from its scores if it has none or a selection is given."""
        circuits = dict(found.circuits)
        if found.scores is not None and (self.selection is not None or not circuits):
            circuits |= (self.selection or Selection()).circuits(problem.model.graph, found.scores, samples)
        if not circuits:
            raise EdgepruneError(f"method {type(self.method).__name__} found neither scores nor circuits")
        return {name: replace(one, header={**header, **one.header}) for name, one in circuits.items()}

    def _evaluate(
        self, problem: Problem, batches: Sequence[PairBatch], circuits: Mapping[str, Circuit], report: Progress
    ) -> list[Row]:
        """Write each circuit with its measures and those of a random one; a row for each, densest first."""
        controls = [random_like(item, self.control_seed) for item in circuits.values()]
        gates = [gates_of(circuit) for circuit in (*circuits.values(), *controls)]
        shown = counted(batches, "evaluating circuits", report, len(batches))
        measures = measure_examples(problem.model, problem.runs, shown, gates, "validation").as_dicts()
        rows: list[Row] = []
        for (name, circuit), found, control in zip(
            circuits.items(), measures[: len(circuits)], measures[len(circuits) :], strict=True
        ):
            header = {**circuit.header, "split": "validation", "metrics": found, "random_control": control}
            replace(circuit, header=header).save(self.folder / CIRCUITS / f"{name}.safetensors")
            rows.append(frontier_row(name, circuit, found, control))
        return sorted(rows, key=lambda row: row["sparsity"])

    def _finish(
        self,
        problem: Problem,
        found: DiscoveryResult,
        header: dict[str, Any],
        rows: list[Row],
        inside: Tensor | None,
    ) -> None:
        """Write the scores, with every edge kept, and the frontier; drop the method's state."""
        if found.scores is not None:
            graph = problem.model.graph
            everything = Circuit.from_scores(graph, found.scores, num_edges=graph.num_edges, header=header)
            replace(everything, attend_scores=inside).save(self.folder / SCORES)
        write_frontier(self.folder, rows, error_measure(self.metric))
        shutil.rmtree(self.folder / STATE)

    def _show(self, rows: list[Row]) -> None:
        title = f"{type(self.method).__name__}: circuits on the validation pairs"
        named = any(not str(row["asked"]).startswith("sparsity-") for row in rows)  # else a column says it
        table = frontier_table(title, rows, error_measure(self.metric), named=named)
        print_report(table, f"scores, circuits, frontier.csv and frontier.png are in {self.folder}")


def _roles(options: Any) -> RoleOption:
    """Those of the command, or of its section `model`, which `fit` has them in.

    Raises:
        EdgepruneError: Both are given, and differ.
    """
    own, of_model = options.roles, options.model.roles
    if None not in (own, of_model) and own != of_model:
        raise EdgepruneError(f"--roles is {own} and --model.roles is {of_model}; give one of them")
    return of_model if own is None else own


def _without(config: str, keys: Sequence[str]) -> str:
    import yaml

    values = yaml.safe_load(config)
    return yaml.safe_dump({key: value for key, value in values.items() if key not in keys}, sort_keys=False)


def _remove(folder: Path) -> None:
    """Delete what this command writes in a folder, and nothing else."""
    for path in (folder / name for name in WRITTEN):
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
