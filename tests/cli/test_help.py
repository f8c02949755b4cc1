"""Help pages: short ones read from the source, which name what the parsers really take, and the whole ones."""

import contextlib
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any, get_args

import pytest

from edgeprune.cli import COMMANDS, circuits, evaluate, main, short_help
from edgeprune.formats import Holds
from edgeprune.methods.weight_gates import WeightGates
from edgeprune.report.evaluate import TESTS

# Lightning's own command-line class calls jsonargparse in a way that jsonargparse is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

ROOT = Path(__file__).parents[2]
LISTED = ("fit", "discover")  # whose options come from classes; validate and test share the page of fit
PAGES = """
import contextlib, io, json, sys
from edgeprune.cli import COMMANDS, main
pages = {}
for words in ([], *([name] for name in COMMANDS)):
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    heavy = ("torch", "lightning", "transformers", "torchmetrics", "matplotlib", "wandb", "jsonargparse")
    pages[" ".join(words)] = [printed.getvalue(), [name for name in heavy if name in sys.modules]]
print(json.dumps(pages))
"""


@pytest.fixture(scope="module")
def pages() -> dict[str, tuple[str, list[str]]]:
    """What `--help` of each command prints in a fresh process, and the heavy libraries that are loaded by then."""
    done = subprocess.run([sys.executable, "-c", PAGES], cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """A page; argparse leaves by itself, the commands of many options return."""
    with contextlib.suppress(SystemExit):
        assert main(words) == 0
    return capsys.readouterr().out


@pytest.fixture(params=LISTED)
def command(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("COLUMNS", "100000")  # so that no text goes on in a second line
    return str(request.param)


def entries(page: str) -> dict[str, str]:
    """The text about each option that a whole page lists."""
    blocks = re.findall(r"^  (-.*(?:\n {6}.*)*)", page, re.MULTILINE)
    return {match[1]: block for block in blocks if (match := re.search(r"--([\w.]+)", block)) is not None}


def test_no_help_page_loads_anything_heavy(pages: dict[str, tuple[str, list[str]]]) -> None:
    assert list(pages) == ["", *COMMANDS]
    assert {name: heavy for name, (_, heavy) in pages.items() if heavy} == {}
    assert all(page.startswith("usage: ") for page, _ in pages.values())


def test_the_first_page_names_every_command(pages: dict[str, tuple[str, list[str]]]) -> None:
    assert re.findall(r"^  ([\w-]+) ", pages[""][0], re.MULTILINE) == list(COMMANDS)


ALIKE = ("fit-weights", "validate", "test")  # as those with many options


def test_a_short_page_names_every_option_of_our_own(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    every = entries(printed(capsys, command, "--help-all"))
    shown = re.findall(r"^  --([\w.]+)", printed(capsys, command, "--help"), re.MULTILINE)
    assert len(set(shown)) == len(shown)
    assert set(shown) - {"method"} <= set(every)  # what stands for --method in a whole page is checked below
    lightnings = ("trainer.", "checkpoint.")
    # they may be files of their own
    sections = ("model", "data", "trainer", "checkpoint", "progress", "upload_circuits")
    own = {name for name in every if not name.endswith(".help") and not name.startswith(lightnings)}
    assert set(shown) >= own - {"help", "weights_only", *sections}
    assert {"config", "print_config"} <= set(shown)


def test_a_short_page_gives_the_real_defaults(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    every = entries(printed(capsys, command, "--help-all"))
    compared = 0
    for group in short_help.groups(command):
        for option in group.options:
            said = re.search(r"\(default: (.*)\)$", option.text)
            real = re.search(r"default: ([^,]*?)(?:, known subclasses.*)?\)$", every.get(option.name, ""))
            if said is not None:
                assert real is not None
                assert said[1].lower() == real[1].lower(), option.name
                compared += 1
            elif not option.text and option.value != "CSVLogger":  # the value shown is the default
                assert real is not None
                assert option.value == real[1].lower(), option.name
                compared += 1
    assert compared > 10


def test_a_short_page_names_the_classes_that_there_are(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    every = entries(printed(capsys, command, "--help-all"))
    short = entries(printed(capsys, command, "--help"))
    for option in set(short_help.BASES) & set(short):
        listed = every[option].rpartition("known subclasses: ")[2].rstrip(")").split(", ")
        ours = sorted(name.rpartition(".")[2] for name in listed if not name.startswith("tests."))
        assert list(short_help.kinds(option)) == ours
        assert short[option].endswith(", ".join(ours))


def test_the_page_of_gates_on_weights_has_their_options(capsys: pytest.CaptureFixture[str]) -> None:
    every = set(entries(printed(capsys, "fit-weights", "--help-all")))
    shown = re.findall(r"^  --([\w.]+)", printed(capsys, "fit-weights", "--help"), re.MULTILINE)
    assert {"model.recipe", "model.complement_step", "then"} <= set(shown)
    assert set(shown) - {"then"} <= every


def test_the_page_of_gates_on_weights_names_their_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    page = entries(printed(capsys, "fit-weights", "--help"))
    assert page["model.recipe"].endswith(", ".join(sorted(kind.__name__ for kind in WeightGates.__subclasses__())))


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in (*LISTED, *ALIKE)])
def test_other_commands_have_one_page(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, name, "--help-all") == printed(capsys, name, "--help")


@pytest.mark.parametrize("name", ["fit", "validate", "test", "discover"])
def test_help_wins_over_everything_else(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = printed(capsys, name, "--config", "nowhere.yaml", "-h")
    assert page.startswith(f"usage: edgeprune {name} --config X.yaml")
    assert "--trainer.max_steps 300" in page
    assert f"edgeprune {name} --help-all" in page


def test_everything_is_listed_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    page = printed(capsys, "fit", "--config", "quickstart", "--help-all")
    assert {"trainer.gradient_clip_val", "trainer.precision", "checkpoint.monitor"} <= set(entries(page))
    assert len(page.splitlines()) > 300


def test_commands_know_the_names_that_there_are() -> None:
    """They stand in the commands a second time, for help pages that import little."""
    assert tuple(TESTS) == evaluate.TESTS
    assert get_args(Holds) == circuits.HOLDS


def test_a_reader_of_the_page_may_leave() -> None:
    code = "import sys; from edgeprune.cli import main; sys.stdin.readline(); sys.exit(main(['fit', '--help']))"
    process: Any = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    process.stdout = None
    _, errors = process.communicate(b"go on\n")
    assert (process.returncode, errors) == (0, b"")
