"""Output that cannot be written: every command says so in one line, before the work, and leaves nothing behind."""

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from datamodules.cache import load_or_build
from datamodules.tasks.base import SPLITS, TokenPair
from edgeprune import downloads, model_options
from edgeprune.circuit import Circuit
from edgeprune.cli import compare, evaluate, main
from edgeprune.models import loading
from edgeprune.models.loading import load_model
from edgeprune.paths import DiskFullError, NotWrittenError, check_writable, whole_file
from tests.cli.test_compare import error_line
from tests.cli.test_draw import result

# Lightning's own command-line class calls jsonargparse in a way that jsonargparse is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

DATA = {"task": {"class_path": "CompiledTask", "init_args": {"program": "reverse", "lengths": [3]}}}
MODEL = {"name": "compiled:reverse", "ablation": "zero"}
LONG = "n" * 300


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What commands read: circuits, a result of patching, configs, a sweep."""
    folder = tmp_path_factory.mktemp("given")
    graph = load_model("compiled:reverse").graph
    for seed in range(2):
        circuit = Circuit(graph, Circuit.random(graph, 20, seed).keep, graph.exists.float(), {"model": MODEL["name"]})
        circuit.save(folder / f"{seed}.safetensors")
    result("layer", "role").save(folder / "patching.safetensors")
    term = {"class_path": "GeometricPenalty", "init_args": {"start": 0.02, "end": 1.0}}
    recipe = {"class_path": "EdgePruning", "init_args": {"sparsity_term": term}}
    (folder / "data.yaml").write_text(yaml.safe_dump({"model": MODEL, "data": DATA}))
    fit = {"model": {**MODEL, "recipe": recipe}, "data": DATA, "trainer": {"max_steps": 1, "logger": False}}
    (folder / "fit.yaml").write_text(yaml.safe_dump(fit))
    sweep: dict[str, Any] = {
        "program": "edgeprune",
        "method": "grid",
        "parameters": {"model.recipe.init_args.learning_rate": {"values": [0.1]}},
    }
    sweep["command"] = ["${interpreter}", "-m", "${program}", "fit", "--config", str(folder / "fit.yaml"), "${args}"]
    (folder / "sweep.yaml").write_text(yaml.safe_dump(sweep))
    return folder


def _command(*options: str) -> Callable[[Path, Path], list[str]]:
    return lambda given, out: [text.format(given=given, out=out) for text in options]


def _fit(*options: str) -> Callable[[Path, Path], list[str]]:
    return _command("fit", "--config", "{given}/fit.yaml", *options, "{out}")


CSV, WANDB = "lightning.pytorch.loggers.CSVLogger", "lit_modules.WandbTracker"
PAIRS, ONE = "{given}/data.yaml", "{given}/0.safetensors"
FILES: dict[str, tuple[str, Callable[[Path, Path], list[str]]]] = {
    "evaluate --json": (".json", _command("evaluate", ONE, "--config", PAIRS, "--json", "{out}")),
    "evaluate --report": (".html", _command("evaluate", ONE, "--config", PAIRS, "--report", "{out}")),
    "compare --json": (
        ".json",
        _command("compare", ONE, "{given}/1.safetensors", "--config", PAIRS, "--json", "{out}"),
    ),
    "convert": (".json", _command("convert", ONE, "{out}", "--to", "edges", "--model", "compiled:reverse")),
    "draw a page": (".html", _command("draw", ONE, "--out", "{out}")),
    "draw an image": (".png", _command("draw", ONE, "--out", "{out}")),
    "draw DOT": (".dot", _command("draw", ONE, "--out", "{out}")),
    "draw patching": (".png", _command("draw", "{given}/patching.safetensors", "--out", "{out}")),
}
FOLDERS: dict[str, Callable[[Path, Path], list[str]]] = {
    "discover": _command("discover", "--config", PAIRS, "--method", "EAP", "--out", "{out}"),
    "fit without a logger": _fit("--trainer.default_root_dir"),
    "fit, CSV": _fit("--trainer.logger", CSV, "--trainer.logger.save_dir"),
    "fit, W&B": _fit("--trainer.logger", WANDB, "--trainer.logger.save_dir"),
    "fit, checkpoints": _fit("--checkpoint.dirpath"),
    "test": _command("test", "--config", "{given}/fit.yaml", "--trainer.default_root_dir", "{out}"),
    "sweep": _command("sweep", "{given}/sweep.yaml", "--folder", "{out}"),
    "sweep --summary": _command("sweep", "--summary", "{out}"),
}


def no_work(*_: object, **__: object) -> None:
    pytest.fail("work begins before the place of the output is looked at")


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Path]:
    """Places that take no file, by what is wrong with them; models cannot be loaded meanwhile."""
    (tmp_path / "file").touch()
    for name in ("folder", "locked", "frozen"):
        (tmp_path / name).mkdir()
    refused = {tmp_path / "locked": errno.EACCES, tmp_path / "frozen": errno.EROFS}
    opened = os.open

    def refusing(path: Any, flags: int, *rest: Any, **more: Any) -> int:
        code = next((code for folder, code in refused.items() if Path(str(path)).is_relative_to(folder)), None)
        if code is not None and flags & (os.O_CREAT | os.O_WRONLY | os.O_RDWR):
            raise OSError(code, os.strerror(code), str(path))
        return opened(path, flags, *rest, **more)

    monkeypatch.setattr(os, "open", refusing)
    for module in (loading, model_options):  # all imported by now, each with a name of its own
        monkeypatch.setattr(module, "load_model", no_work)
    monkeypatch.setenv("WANDB_MODE", "offline")

    def place(what: str, suffix: str) -> Path:
        wrong = {
            "below a file": tmp_path / "file" / f"out{suffix}",
            "too long": tmp_path / f"{LONG}{suffix}",
            "too long, below a folder that is not there": tmp_path / "folder" / LONG / f"out{suffix}",
            "a system's folder": Path("/proc") / f"out{suffix}",
            "no permission": tmp_path / "locked" / f"out{suffix}",
            "read-only": tmp_path / "frozen" / f"out{suffix}",
            "the other kind": tmp_path / ("folder" if suffix else "file"),
        }
        return wrong[what]

    return place


WRONG = (
    "below a file",
    "too long",
    "too long, below a folder that is not there",
    "a system's folder",
    "no permission",
    "read-only",
    "the other kind",
)
IN_EACH = ("below a file", "too long", "no permission")  # of commands that take a second to say so
QUICK = ("sweep", "sweep --summary", "discover")


def tree(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def refused(arguments: list[str], out: Path, tmp_path: Path, given: Path, capsys: pytest.CaptureFixture[str]) -> str:
    before = tree(tmp_path) + tree(given)
    assert main(arguments) == 2
    line = error_line(capsys)
    assert line.startswith("edgeprune: error: ")
    assert str(out) in line
    assert tree(tmp_path) + tree(given) == before
    return line


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("command", FILES)
def test_files(
    command: str,
    wrong: str,
    given: Path,
    places: Callable[[str, str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    suffix, words = FILES[command]
    out = places(wrong, suffix)
    line = refused(words(given, out), out, tmp_path, given, capsys)
    assert ("--to" in words(given, out) and " OUT " in line) or f"{words(given, out)[-2]} " in line


@pytest.mark.parametrize(
    ("command", "wrong"), [(name, wrong) for name in FOLDERS for wrong in (WRONG if name in QUICK else IN_EACH)]
)
def test_folders(
    command: str,
    wrong: str,
    given: Path,
    places: Callable[[str, str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = places(wrong, "")
    refused(FOLDERS[command](given, out), out, tmp_path, given, capsys)


def test_a_page_beside_the_circuit(
    given: Path, places: Callable[[str, str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where no name is given, the page goes beside the file that is drawn."""
    path = places("no permission", ".safetensors")
    shutil.copy(given / "0.safetensors", path)
    line = refused(["draw", str(path)], path.with_suffix(".html"), tmp_path, given, capsys)
    assert "(Permission denied)" in line


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("model", [["smollm2"], ["gemma3-270m", "--accept-terms"]])
def test_get(
    model: list[str],
    wrong: str,
    places: Callable[[str, str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The cache is the place of what is fetched."""
    monkeypatch.setattr(downloads, "_require_packages", lambda: None)
    monkeypatch.setattr(downloads, "_download", no_work)
    cache = places(wrong, "")
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(cache))
    refused(["get", *model], cache, tmp_path, tmp_path / "folder", capsys)


@pytest.mark.parametrize("wrong", WRONG)
def test_tokens_that_cannot_be_kept_are_made_again(wrong: str, places: Callable[[str, str], Path]) -> None:
    """The cache is no output: `data` and all that read pairs go on, with a warning."""
    built: dict[str, list[TokenPair]] = {split: [] for split in SPLITS}
    with pytest.warns(UserWarning, match="tokens are not cached"):
        assert load_or_build(places(wrong, ""), "key", lambda: built) is built


# -------------------------------------------------------------------- what changes meanwhile
@pytest.mark.parametrize("command", ["evaluate --json", "compare --json"])
def test_a_folder_that_becomes_a_file_meanwhile(
    command: str, given: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too late to be found before the work: still one line."""
    folder = tmp_path / "out"
    folder.mkdir()

    def nothing(*_: object, **__: object) -> None:
        pass

    def work(*_: object) -> dict[str, Any]:
        folder.rmdir()
        folder.touch()
        return {}

    for module, name, said in ((evaluate, "evaluate_files", "_print"), (compare, "compare_files", "print_tables")):
        monkeypatch.setattr(module, name, work)
        monkeypatch.setattr(module, said, nothing)
    assert main(FILES[command][1](given, folder / "out.json")) == 2
    assert f"cannot write {folder / 'out.json'} (File exists)" in error_line(capsys)
    assert list(tmp_path.iterdir()) == [folder]


def test_any_other_file_that_the_system_refuses(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def work(*_: object) -> dict[str, Any]:
        (tmp_path / "gone").read_text()
        return {}

    monkeypatch.setattr(compare, "compare_files", work)
    assert main(["compare", "a", "b"]) == 2
    assert f"{tmp_path / 'gone'}: No such file or directory" in error_line(capsys)


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), RuntimeError("I/O error: (os error 13)")])
def test_an_error_of_the_system_while_a_file_is_written(error: Exception, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with pytest.raises(NotWrittenError, match=r"cannot write .*file \(Permission denied\)") as caught, whole_file(path):
        raise error
    assert not isinstance(caught.value, DiskFullError)
    assert [item.read_text() for item in tmp_path.iterdir()] == ["before"]
    with pytest.raises(ZeroDivisionError), whole_file(path):
        _ = 1 / 0


def test_what_can_be_written_stays_as_it_is(tmp_path: Path) -> None:
    """A new name, one that is there, folders that are not; an address is left to who can reach it."""
    (tmp_path / "there").write_text("before")
    before = tree(tmp_path)
    for path in ("new", "there", "a/b/new"):
        check_writable(tmp_path / path, "--out")
    check_writable(tmp_path / "a" / "b", "--out", folder=True)
    check_writable(Path("s3://bucket/runs"), "--out", folder=True)
    assert tree(tmp_path) == before


def test_devices_are_not_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", "a", "b", "--json", "/dev/null"]) == 2
    assert "--json /dev/null is no ordinary file" in error_line(capsys)
    assert not Path("/dev/null").is_file()
