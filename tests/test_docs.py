"""The pages say what is so: marked blocks are run, every command names options and configs that are there."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import yaml

from edgeprune.cli import main
from edgeprune.console import no_progress
from tests.methods.small_problems import problem, tiny

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
FOLDERS = ("start", "howto", "contributing", "guides", "results")
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *(page for each in FOLDERS for page in (DOCS / each).glob("*.md")),
]
MARKED = re.compile(r"<!-- tested -->\n```(\w*)\n(.*?)```", re.DOTALL)
FILES = re.compile(r"`([\w.]+\.yaml)`:\n\n```yaml\n(.*?)```", re.DOTALL)
STANDS_FOR = {
    "X.yaml": "ioi_smollm2",
    "weights.yaml": "weights/disco_ioi_smollm2",
    "edges.yaml": "disco_ioi_smollm2",
    "S": "0",
}
PARSED = ("fit", "fit-weights", "discover")  # they read their whole config before they do anything
pytestmark = [
    pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*(treespec, LeafSpec|does not have many workers|in eval mode at the start).*"),
    pytest.mark.filterwarnings("ignore:.*(dirpath has changed|smaller than the logging interval|exists and is not).*"),
]


class Command(NamedTuple):
    """A command of a page."""

    page: Path
    line: str

    @property
    def words(self) -> list[str]:
        """Its arguments, behind `edgeprune`."""
        return [STANDS_FOR.get(word, word) for word in shlex.split(self.line, comments=True)[1:]]

    @property
    def name(self) -> str:
        """For the list of tests."""
        return f"{self.page.stem}: {self.line[:60]}"


def marked(language: str) -> list[tuple[Path, str]]:
    return [(page, text) for page in PAGES for kind, text in MARKED.findall(page.read_text()) if kind == language]


def commands() -> Iterator[Command]:
    """Every command on every page, but for those that are run and those with a place to fill in."""
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", MARKED.sub("", page.read_text()))
        for line in re.findall(r"^(?:    )?(?:.*&& )?(edgeprune \w.*)$", text, re.MULTILINE):
            if "..." not in line:
                yield Command(page, line)
        for line in re.findall(r"^\| `(edgeprune [^`]*)`", text, re.MULTILINE):
            if re.search(r" [A-Z]", line) is None:
                yield Command(page, line)


COMMANDS = list(commands())
SCRIPTS = marked("")
BLOCKS = marked("python")


def test_pages_have_what_is_looked_for() -> None:
    assert len(SCRIPTS) == 3
    assert len(BLOCKS) == 5
    assert len(COMMANDS) >= 110
    assert {"fit", "discover", "sweep", "convert", "polish"} <= {command.words[0] for command in COMMANDS}


@pytest.mark.parametrize(("page", "script"), SCRIPTS, ids=[page.stem for page, _ in SCRIPTS])
def test_marked_commands_run(page: Path, script: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for line in script.strip().splitlines():
        assert main(Command(page, line).words) == 0, line


def run(stem: str, number: int = 0) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": f"page_{stem}"}
    code = [text for page, text in BLOCKS if page.stem == stem][number]
    exec(compile(code, f"{stem}.md", "exec"), names)
    return names


def test_a_circuit_is_found_in_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = run("python")
    assert set(names["circuit"].edges()) == names["truth"]


def test_gates_are_an_argument() -> None:
    names = run("python", 1)
    assert names["gates"].grad.shape == names["model"].graph.shape
    assert names["logits"].shape[:2] == names["tokens"].shape


def test_the_template_of_a_task() -> None:
    task = run("task")["Opposites"]()
    for pairs in task.splits(None).values():
        for pair in pairs:
            assert pair.clean[slice(*pair.roles["word"])] != pair.corrupted[slice(*pair.corrupted_roles["word"])]
            assert pair.answer not in (pair.distractor, None)


def test_the_template_of_a_method() -> None:
    asked = problem(tiny())
    found = run("method")["LargestOutput"]().discover(asked, no_progress).scores
    exists = asked.model.graph.exists
    assert (found[exists] > 0).all()
    assert (found[~exists] == 0).all()
    embedded = [asked.model.record(batch.clean).embeddings[0].abs() for batch in asked.batches]
    masks = [batch.attention_mask[..., None] for batch in asked.batches]
    largest = sum((part * mask).amax((1, 2)).sum() for part, mask in zip(embedded, masks, strict=True))
    torch.testing.assert_close(found[0, 0], (largest / asked.num_examples).double())


def test_the_template_of_a_metric() -> None:
    batch: Any = SimpleNamespace(position_mask=torch.tensor([[True, False]]))
    full = torch.tensor([[[3.0, 1.0], [1.0, 9.0]]]).log()  # probabilities .75 and .25 at the scored position
    gap = run("metric")["measure"].values(full, torch.zeros(1, 2, 2), batch)
    torch.testing.assert_close(gap, torch.tensor([0.25]))


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that only tells something prints; argparse ends the process where it has."""
    try:
        status = main(arguments)
    except SystemExit as end:
        status = end.code
    assert status == 0
    return capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS, ids=[command.name for command in COMMANDS])
def test_commands_can_be_given(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, text in FILES.findall(command.page.read_text()):
        (tmp_path / name).write_text(text)
    words = command.words
    if words[0] in PARSED:
        assert yaml.safe_load(said([*words, "--print_config"], capsys))["data"]
        return
    known = said([words[0], "--help"], capsys)
    for word in words[1:]:
        if word.startswith("--"):
            assert re.search(rf"{re.escape(word.partition('=')[0])}(?![\w-])", known), word
