"""`edgeprune sweep FILE`: W&B's sweep file without W&B's server; `--summary DIR`: what its trials found."""

import contextlib
import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import final

from rich.console import Console
from rich.live import Live
from rich.table import Table

from edgeprune.cli.arguments import Arguments, check_least
from edgeprune.cli.configs import find_config
from edgeprune.console import report_console
from edgeprune.errors import EdgepruneError
from edgeprune.paths import check_writable
from edgeprune.sweeps.command import fit_arguments, trial_command, unknown_macros
from edgeprune.sweeps.executors import run_local, run_ray
from edgeprune.sweeps.file import SweepFile
from edgeprune.sweeps.parameters import nested, short
from edgeprune.sweeps.sampling import check_optuna
from edgeprune.sweeps.store import PLAN, Store, Trial
from edgeprune.tables import Numbers, table

SHOWN = 30  # trials in the live table: the newest, so that it fits a screen


def run(arguments: list[str]) -> None:
    """Run a sweep, or summarise one."""
    parser = _parser()
    options = parser.parse_args(arguments[1:])
    if options.summary is not None:
        if options.file is not None:
            raise EdgepruneError("give a sweep file to run it, or --summary DIR for one that ran, not both")
        from edgeprune.sweeps.summary import summarise

        check_writable(options.summary, "--summary", folder=True)
        summarise(options.summary, report_console())
        return
    if options.file is None:
        raise EdgepruneError("give a sweep file, such as configs/sweeps/reverse_grid.yaml, or --summary DIR")
    check_least(options, {"workers": 1, "trials": 1})
    check_optuna()
    options.file = find_config(options.file)
    sweep = SweepFile.read(options.file)
    size = _size(options.file, sweep, options.trials)
    folder: Path = options.folder or Path("runs") / "sweeps" / sweep.name
    check_writable(folder, "--folder", folder=True)
    if not (folder / PLAN).exists():
        check_trials(options.file, sweep)
    store = Store.make(folder, sweep, size, options.seed)
    if options.retry:
        store.retry()
    _warn_of_early_terminate(options.file, sweep)
    with _View(store) as view:
        if options.executor == "ray":
            run_ray(folder, options.workers, view.update, options.cpus, options.gpus)
        else:
            run_local(folder, options.workers, view.update)
    _close(store)


def _parser() -> Arguments:
    parser = Arguments(prog="edgeprune sweep", description="Run a W&B sweep file here, or summarise a sweep that ran.")
    parser.add_argument("file", nargs="?", type=Path, help="W&B sweep YAML, or the name of one that comes along")
    parser.add_argument("--folder", type=Path, help="of the sweep, shared by all workers; default: runs/sweeps/NAME")
    parser.add_argument("--workers", type=int, default=1, help="trials at a time")
    parser.add_argument("--trials", type=int, help="how many trials, where the file has no run_cap")
    parser.add_argument("--seed", type=int, default=0, help="of the sampler")
    parser.add_argument("--retry", action="store_true", help="run failed trials again")
    parser.add_argument(
        "--executor", choices=("local", "ray"), default="local", help="processes here, or a Ray cluster"
    )
    parser.add_argument("--cpus", type=float, default=1.0, help="of each worker; for Ray")
    parser.add_argument("--gpus", type=float, default=0.0, help="of each worker; for Ray")
    parser.add_argument("--summary", type=Path, metavar="DIR", help="show and plot what a sweep's folder holds")
    return parser


def _size(path: Path, sweep: SweepFile, trials: int | None) -> int:
    if sweep.size is None:
        if trials is None:
            raise EdgepruneError(
                f"{path}: method {sweep.method} has no end of its own; set run_cap, or give --trials N"
            )
        return trials
    return sweep.size if trials is None else min(trials, sweep.size)


# ---------------------------------------------------------------- checks before the first trial
def check_trials(path: Path, sweep: SweepFile) -> None:
    """Let `edgeprune fit` read the arguments of trials, without running them.

    One trial is tried whole, then each other value (both ends of an interval) in its place.

    Raises:
        EdgepruneError: For the first value that the config does not take.
    """
    unknown = unknown_macros(sweep.command)
    if unknown:
        raise EdgepruneError(
            f"{path}: there is no macro ${{{unknown[0]}}}; W&B's are env, interpreter, program, args, ..."
        )
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        for values in probes(sweep):
            given = nested(sweep.parameters, values)
            words = trial_command(sweep.command, sweep.program, given, Path(folder) / "parameters.json")
            try:
                _dry_run(fit_arguments(words))
            except EdgepruneError as error:
                raise EdgepruneError(f"{path}: a trial would fail: {error}") from None


def probes(sweep: SweepFile) -> Iterator[dict[str, object]]:
    """Values to try: the first of each parameter, then the others one at a time."""
    extremes = {parameter.name: parameter.distribution.extremes() for parameter in sweep.parameters}
    first = {name: values[0] for name, values in extremes.items()}
    yield first
    for name, values in extremes.items():
        yield from ({**first, name: value} for value in values[1:])


def _dry_run(arguments: Sequence[str]) -> None:
    from edgeprune.cli import training

    with contextlib.redirect_stdout(io.StringIO()):
        training.run([*arguments, "--print_config"])


def _warn_of_early_terminate(path: Path, sweep: SweepFile) -> None:
    if sweep.early_terminate:
        print(f"{path}: early_terminate has no effect here; every trial runs to its end", file=sys.stderr)  # noqa: T201


# ---------------------------------------------------------------- what is shown
@final
class _View:
    """A live table in a terminal; elsewhere a line for every trial that ends."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.console = Console()
        self.live = Live(console=self.console, auto_refresh=False) if self.console.is_terminal else None
        self.printed: set[int] = set()

    def __enter__(self) -> "_View":
        if self.live is not None:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live is not None:
            self.live.stop()

    def update(self) -> None:
        """Show the trials as they are now."""
        trials = self.store.trials()
        if self.live is not None:
            self.live.update(trial_table(self.store, trials), refresh=True)
            return
        for trial in trials:
            if trial.state in ("done", "failed") and trial.number not in self.printed:
                self.printed.add(trial.number)
                self.console.print(_line(self.store, trial), soft_wrap=True, markup=False, highlight=False)


def trial_table(store: Store, trials: Sequence[Trial]) -> Table:
    """The newest trials: what they try, where they stand, what came out."""
    varied = [parameter.name for parameter in store.sweep.parameters if parameter.varies]
    ended = sum(trial.state in ("done", "failed") for trial in trials)
    metric = store.sweep.metric.name if store.sweep.metric else "metric"
    columns = ["state", Numbers(metric), Numbers("seconds", 0), "machine"]
    rows = [
        [
            *(trial.number, *(_cell(trial.values[name]) for name in varied)),
            f"failed: {trial.reason}" if trial.state == "failed" else trial.state,
            "" if trial.value is None else f"{trial.value:.4g}",
            "" if trial.seconds is None else trial.seconds,
            trial.host,
        ]
        for trial in trials[-SHOWN:]
    ]
    return table(
        f"{store.plan.name}: {ended} of {store.plan.size} trials ended",
        [Numbers("trial"), *(Numbers(short(name, varied)) for name in varied), *columns],
        rows,
        caption=str(store.folder),
    )


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(store: Store, trial: Trial) -> str:
    varied = [parameter.name for parameter in store.sweep.parameters if parameter.varies]
    tried = ", ".join(f"{short(name, varied)} {_cell(trial.values[name])}" for name in varied)
    metric = store.sweep.metric.name if store.sweep.metric else ""
    came = f"failed: {trial.reason}" if trial.state == "failed" else "done"
    value = f", {metric} {trial.value:.4g}" if trial.value is not None else ""
    return f"trial {trial.number} ({tried}): {came}{value}"


def _close(store: Store) -> None:
    trials = store.trials()
    failed = [trial for trial in trials if trial.state == "failed"]
    print(f"trials are in {store.folder}; `edgeprune sweep --summary {store.folder}` compares them")  # noqa: T201
    if failed:
        first = failed[0]
        raise EdgepruneError(
            f"{len(failed)} of {len(trials)} trials failed, the first, {store.trial_folder(first.number)}, with "
            f"{first.reason!r}; mend the cause and run the same with --retry"
        )
