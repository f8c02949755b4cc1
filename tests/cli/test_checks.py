"""A wrong value of `fit`, `validate`, `test` or `discover`: one line of value, rule, remedy, and nothing written."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from edgeprune.cli import main
from edgeprune.errors import EdgepruneError
from lit_modules import PruningModule

QUICKSTART = str(Path(__file__).parents[2] / "configs" / "quickstart.yaml")
TERM = "model.recipe.init_args.sparsity_term.init_args"
DISCOVER = ["discover", "--model.name", "compiled:reverse", "--method", "EAPIG", "--data.task", "CompiledTask"]

# Lightning's own command-line class calls jsonargparse in a way that jsonargparse is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

# option, value, what the line says beside both
FIT: list[tuple[str, str, str]] = [
    ("trainer.precision", "16-true", "set model.dtype to float16"),
    ("trainer.precision", "bf16-true", "set model.dtype to bfloat16"),
    ("trainer.precision", "64-true", "set model.dtype to float64"),
    ("trainer.precision", "64", "set model.dtype to float64"),
    ("trainer.precision", "16-mixed", "gates are learned in float32"),
    ("trainer.precision", "bf16-mixed", "set model.dtype to bfloat16"),
    ("trainer.precision", "transformer-engine", "set model.dtype to bfloat16"),
    ("trainer.accelerator", "tpu", "set it to cpu or auto"),
    ("trainer.accelerator", "abacus", "invalid accelerator name"),
    ("trainer.devices", "0", "set it to auto or to a number of processes"),
    ("trainer.devices", "two", "set it to auto or to a number of processes"),
    ("trainer.num_nodes", "0", "must be a positive integer"),
    ("trainer.strategy", "alone", "set it to auto, ddp or sharded"),
    ("trainer.max_steps", "-2", "must be a non-negative integer or -1"),
    ("trainer.max_epochs", "-2", "must be a non-negative integer or -1"),
    ("trainer.min_steps", "-1", "at least 0, or null"),
    ("trainer.max_time", "soon", "DD:HH:MM:SS"),
    ("trainer.max_steps", "9" * 10_000, "10000 digits"),
    ("trainer.val_check_interval", "0", "must be more than 0"),
    ("trainer.val_check_interval", "1.5", "should be an integer"),
    ("trainer.check_val_every_n_epoch", "0", "at least 1, or null"),
    ("trainer.accumulate_grad_batches", "0", "at least 1"),
    ("trainer.accumulate_grad_batches", "-1", "at least 1"),
    ("trainer.limit_train_batches", "1.5", "it has to be in [0.0, 1.0] or an int"),
    ("trainer.limit_val_batches", "-3", "it has to be in [0.0, 1.0] or an int"),
    ("trainer.num_sanity_val_steps", "-5", "at least 0, or -1 for all"),
    ("trainer.log_every_n_steps", "-1", "at least 0"),
    ("trainer.gradient_clip_val", "-1", "at least 0"),
    ("trainer.gradient_clip_val", ".nan", "must be a finite number"),
    ("trainer.gradient_clip_algorithm", "shears", "Allowed algorithms: ['value', 'norm']"),
    ("trainer.profiler", "sherlock", "one of ['simple', 'advanced', 'pytorch', 'xla']"),
    ("trainer.fast_dev_run", "-1", "It should be >= 0"),
    ("trainer.reload_dataloaders_every_n_epochs", "-1", "should be an int >= 0"),
    ("trainer.enable_checkpointing", "false", "found `ModelCheckpoint` in callbacks list"),
    ("trainer.deterministic", "maybe", "must be true or false or warn"),
    ("seed_everything", "-1", "must lie in 0 to 4294967295"),
    ("seed_everything", "4294967296", "must lie in 0 to 4294967295"),
    ("ckpt_path", "best", "give last, or a file"),
    ("ckpt_path", "registry", "give last, or a file"),
    ("ckpt_path", "hpc", "Please pass an exact checkpoint path"),
    ("checkpoint.every_n_train_steps", "-1", "Must be >= 0"),
    ("checkpoint.save_top_k", "-3", "Must be >= -1"),
    ("checkpoint.mode", "best", "can be min, max"),
    ("model.cache_gb", ".nan", "must be a finite number"),
    ("model.cache_gb", ".inf", "must be a finite number"),
    ("model.cache_disk_gb", ".nan", "must be a finite number"),
    ("model.cache_gb", "-1", "need room of at least 0 GB"),
    ("model.recipe.init_args.learning_rate", ".nan", "must be a finite number"),
    ("model.recipe.init_args.learning_rate", ".inf", "must be a finite number"),
    ("model.recipe.init_args.learning_rate", "-1", "need learning_rate > 0"),
    (f"{TERM}.end", ".nan", "must be a finite number"),
    ("data.batch_size", "0", "must be a number of pairs, at least 1"),
    ("data.num_workers", "-1", "0 or more"),
]
JUDGE: list[tuple[str, str, str]] = [
    ("trainer.precision", "bf16-true", "set model.dtype to bfloat16"),
    ("trainer.devices", "0", "set it to auto or to a number of processes"),
    ("trainer.limit_test_batches", "-1", "it has to be in [0.0, 1.0] or an int"),
    ("seed_everything", "-1", "must lie in 0 to 4294967295"),
    ("model.cache_gb", ".nan", "must be a finite number"),
    ("ckpt_path", "best", "give last, or a file"),
]
FIND: list[tuple[str, str, str]] = [
    ("model.cache_gb", ".nan", "must be a finite number"),
    ("model.cache_gb", ".inf", "must be a finite number"),
    ("model.cache_gb", "-1", "need room of at least 0 GB"),
    ("selection.sparsities", "[.nan]", "must be a finite number"),
    ("control_seed", "9" * 10_000, "10000 digits"),
    ("data.batch_size", "0", "must be a number of pairs, at least 1"),
    ("limit", "-1", "must be at least 1"),
]
LINES = [
    *[(["fit", "--config", QUICKSTART], *case) for case in FIT],
    *[([command, "--config", QUICKSTART], *case) for command in ("validate", "test") for case in JUDGE],
    *[(DISCOVER, *case) for case in FIND],
]


def named(line: Any) -> str:
    return f"{line[0][0]} {line[1]} {line[2][:20]}"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where commands run, so that what they write lies there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path.with_name(f"{tmp_path.name}-cache")))
    return tmp_path


@pytest.mark.parametrize(("command", "option", "value", "said"), LINES, ids=map(named, LINES))
def test_a_wrong_value_is_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], command: list[str], option: str, value: str, said: str
) -> None:
    assert main([*command, f"--{option}", value]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("edgeprune: error: ")
    assert said in line
    assert option.rpartition(".")[2] in line or option == "model.cache_gb"
    assert value.strip("[].")[:4].lower() in line.lower() or len(value) > 100
    assert not list(folder.iterdir())


@pytest.mark.skipif("__import__('torch').cuda.is_available()")
def test_an_accelerator_that_is_not_there_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", QUICKSTART, "--trainer.accelerator", "gpu"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "trainer.accelerator gpu: No supported gpu backend found; set it to cpu or auto" in line
    assert not list(folder.iterdir())


def test_an_interval_that_no_epoch_reaches_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    epochs = ["--trainer.check_val_every_n_epoch", "1", "--trainer.limit_train_batches"]
    for batches, said in (("1.0", "an epoch has 7 batches"), ("3", "an epoch has 3 batches")):
        assert main(["fit", "--config", QUICKSTART, *epochs, batches]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert "trainer.val_check_interval is 100 and" in line
        assert said in line
        assert "set trainer.check_val_every_n_epoch to null" in line
        assert not list(folder.iterdir())


# ---------------------------------------------------------------- what is not the user's mistake
STEP = ["fit", "--config", QUICKSTART, "--trainer.max_steps", "1", "--trainer.enable_progress_bar", "false"]


@pytest.mark.parametrize("kind", [ValueError, TypeError, AttributeError, KeyError, OSError])
def test_an_error_in_own_code_stays_one(folder: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def wrong(*_: Any) -> None:
        raise kind("a bug")

    for name in ("recipe.build", "ablation"):  # while it is made, and afterwards
        with monkeypatch.context() as patch:
            if name == "ablation":
                patch.setattr("lit_modules.pruning.Ablation.parse", wrong)
            else:
                patch.setattr(PruningModule, "configure_model", wrong)
            with pytest.raises(kind, match="a bug") as caught:
                main(STEP)
            assert not isinstance(caught.value, EdgepruneError)
    assert not list(folder.iterdir())


def test_an_error_of_a_library_in_own_code_stays_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import json

    def wrong(*_: Any) -> None:
        json.loads("")

    with monkeypatch.context() as patch:
        patch.setattr("lit_modules.pruning.Ablation.parse", wrong)
        with pytest.raises(json.JSONDecodeError):
            main(STEP)
    monkeypatch.setattr(PruningModule, "training_step", wrong)
    with pytest.raises(json.JSONDecodeError):
        main(STEP)


class UsersCallback(pl.Callback):
    def on_train_batch_start(self, *_: Any) -> None:
        raise ValueError("a shape of mine")


def test_an_error_in_a_user_s_callback_stays_one(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"{UsersCallback.__module__}.UsersCallback"
    with pytest.raises(ValueError, match="a shape of mine") as caught:
        main([*STEP, "--trainer.callbacks", name])
    assert not isinstance(caught.value, EdgepruneError)


def test_a_refusal_in_the_middle_is_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: Any) -> None:
        raise MisconfigurationException("cannot do\nthat")

    monkeypatch.setattr(PruningModule, "training_step", refuse)
    assert main(STEP) == 2
    *warnings, line = capsys.readouterr().err.splitlines()
    assert line == "edgeprune: error: Lightning refuses an option: cannot do that; change it or leave it out"
    assert all("steps to close" in warning for warning in warnings)  # true of a run of one step
