"""Every result is written whole or not at all: a write that fails leaves the old file, and nothing beside it."""

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from matplotlib.figure import Figure

from edgeprune.circuit import Circuit
from edgeprune.cli.discover import CONFIG, STATE, DiscoverCommand
from edgeprune.drawing import draw_image, write_dot
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.patching.heatmap import draw_heatmaps
from edgeprune.paths import save_figure
from edgeprune.sweeps.command import trial_command
from tests.cli.test_draw import result

ROOT = Path(__file__).resolve().parents[1]
CIRCUIT = Circuit.random(EdgeGraph(ArchSpec(num_layers=1, num_heads=2, num_kv_heads=2)), 7)


def _heatmap(path: Path) -> None:
    draw_heatmaps([result("layer", "role")], path)


def _figure(path: Path) -> None:
    save_figure(Figure(), path)


def _arguments(path: Path) -> None:
    trial_command(["${args_json_file}"], "program", {"rate": 0.5}, path)


def _image(path: Path) -> None:
    draw_image(CIRCUIT, path)


def _dot(path: Path) -> None:
    write_dot(CIRCUIT, path)


WRITERS = {"a.png": _heatmap, "b.pdf": _figure, "c.json": _arguments, "d.svg": _image, "e.dot": _dot}


class Killed(Exception):
    """Stands for the end of the process before a file is whole."""


def killed(*_: Any) -> None:
    raise Killed


@pytest.mark.parametrize("name", WRITERS)
def test_a_write_that_is_broken_off_leaves_the_old_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        patch.setattr("edgeprune.paths.Path.replace", killed)
        with pytest.raises(Killed):
            WRITERS[name](path)
    assert path.read_bytes() == b"old"
    WRITERS[name](path)
    assert len(path.read_bytes()) > len(b"old")
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("name", "begin"), [("x.png", b"\x89PNG"), ("x.PDF", b"%PDF"), ("x", b"\x89PNG")])
def test_a_figure_has_the_format_of_its_name(name: str, begin: bytes, tmp_path: Path) -> None:
    _figure(tmp_path / "new" / name)
    assert (tmp_path / "new" / name).read_bytes().startswith(begin)


def test_the_config_of_discover_is_whole_or_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A part of it would be taken for another config, and the run could not go on."""
    run = DiscoverCommand.__new__(DiscoverCommand)
    run.folder, run.config, run.overwrite = tmp_path / "out", "model: {name: gpt2}\n", False
    enter: Callable[[], Any] = run._prepared().__enter__  # pyright: ignore[reportPrivateUsage]
    with monkeypatch.context() as patch:
        patch.setattr("edgeprune.paths.Path.replace", killed)
        with pytest.raises(Killed):
            enter()
    assert [path.name for path in run.folder.iterdir()] == [STATE]
    with run._prepared():  # pyright: ignore[reportPrivateUsage]
        assert (run.folder / CONFIG).read_text() == run.config


# -------------------------------------------------------------------- none was forgotten
WRITES = {"write_text": 0, "write_bytes": 0, "savefig": 1, "save_file": 2, "save": 2}  # which argument is the file
WHOLE = {"partial", "buffer"}  # a name of `whole_file`'s, or memory
ELSEWHERE = {"edgeprune/downloads.py"}  # into a folder that takes its place when it is whole


def _targets(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and target of each call that writes a file."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        place = WRITES.get(name)
        if place is None or (name == "save" and ast.unparse(node.func) != "torch.save"):
            continue
        assert place or isinstance(node.func, ast.Attribute)
        target = node.args[place - 1] if place else node.func.value  # pyright: ignore[reportAttributeAccessIssue]
        yield node.lineno, ast.unparse(target)


def test_no_result_is_written_in_place() -> None:
    found = {
        f"{file.relative_to(ROOT)}:{line}": target
        for package in ("edgeprune", "lit_modules", "datamodules")
        for file in (ROOT / package).rglob("*.py")
        if str(file.relative_to(ROOT)) not in ELSEWHERE
        for line, target in _targets(ast.parse(file.read_text()))
    }
    assert len(found) > 5
    assert {place: target for place, target in found.items() if target not in WHOLE} == {}
