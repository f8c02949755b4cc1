"""What a sweep's next trial tries: Optuna's samplers over the sweep's journal."""

import math
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edgeprune.errors import EdgepruneError
from edgeprune.sweeps.file import SweepFile
from edgeprune.sweeps.parameters import Choice, Distribution, IntegerRange

JOURNAL = "journal.log"
STUDY = "sweep"


def check_optuna() -> None:
    """Refuse to sweep without Optuna."""
    try:
        import optuna  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError:
        raise EdgepruneError("a sweep needs Optuna, which is not installed; pip install 'edgeprune[sweep]'") from None


def sample(folder: Path, sweep: SweepFile, seed: int, number: int, results: Mapping[int, float]) -> dict[str, float]:
    """Draw the latent numbers of a trial; the caller holds the lock of the sweep's folder.

    The sampler's seed depends on the trial's number, so that a random search is the same whatever the number of
    workers, and whether or not it was interrupted.

    Args:
        folder: Of the sweep.
        sweep: Its file.
        seed: Of the whole sweep.
        number: Of the trial.
        results: The metric of earlier trials that are done, by their numbers.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study = optuna.create_study(
            storage=_journal(folder / JOURNAL),
            study_name=STUDY,
            direction=sweep.metric.goal if sweep.metric else "minimize",
            sampler=_sampler(sweep, seed, number),
            load_if_exists=True,
        )
        known = study.get_trials(deepcopy=False)
        for earlier, value in results.items():
            if not known[earlier].state.is_finished():
                study.tell(earlier, value)
        if number < len(known):  # a worker died between drawing and writing it down
            drawn = optuna.trial.Trial(study, known[number]._trial_id)
        else:
            if sweep.method == "grid":
                study.enqueue_trial(sweep.combination(number))
            drawn = study.ask()
        return {item.name: _draw(drawn, item.name, item.distribution) for item in sweep.parameters}


def _sampler(sweep: SweepFile, seed: int, number: int) -> Any:
    import optuna

    seed = (seed * 1_000_003 + number) % 2**32
    if sweep.method == "bayes":
        return optuna.samplers.TPESampler(multivariate=True, constant_liar=True, seed=seed)
    return optuna.samplers.RandomSampler(seed=seed)


def _draw(trial: Any, name: str, distribution: Distribution) -> float:
    if isinstance(distribution, IntegerRange):
        return trial.suggest_int(name, distribution.low, distribution.high)
    if not isinstance(distribution, Choice):
        return trial.suggest_float(name, distribution.low, distribution.high, log=distribution.log)
    if distribution.probabilities is None:
        return trial.suggest_categorical(name, list(range(len(distribution.values))))
    return trial.suggest_float(name, 0.0, math.nextafter(1.0, 0.0))


def _journal(path: Path) -> Any:
    import optuna
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    class Held(JournalFileOpenLock):
        """The folder's lock is held already, and unlike Optuna's own it ends with its process."""

        def acquire(self) -> bool:
            return True

        def release(self) -> None:
            pass

    if path.exists():
        _mend(path)
    return optuna.storages.JournalStorage(JournalFileBackend(str(path), Held(str(path))))


def _mend(path: Path) -> None:
    """Cut off a last line that a killed worker did not finish."""
    content = path.read_bytes()
    if content and not content.endswith(b"\n"):
        os.truncate(path, content.rfind(b"\n") + 1)  # the rest is not written anew, so no kill can lose it
