"""`edgeprune configs`, and configs by name wherever a command takes one."""

from pathlib import Path

import pytest
import yaml

from edgeprune.cli import main
from edgeprune.cli.configs import find_config, folder, shipped, with_paths

# Lightning's own command-line class calls jsonargparse in a way that jsonargparse is about to drop.
pytestmark = pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("edgeprune: error: ")
    return line


# ---------------------------------------------------------------- the command
def test_the_list_has_every_config_with_what_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs"]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines())
    assert [CONFIGS / f"{name}.yaml" for name in lines] == sorted(CONFIGS.rglob("*.yaml"))
    assert lines["discover/exact"] == "Exact edge patching: every edge closed alone."
    assert lines["discover/hisp"].endswith("in GPT-2 small, for machines that reach a model hub.")  # two lines there
    for text in lines.values():
        assert text.endswith(".")
        assert "edgeprune fit" not in text
        assert ". " not in text


def test_a_config_is_copied_and_runs_from_there(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "quickstart", "--out", "mine.yaml"]) == 0
    assert (elsewhere / "mine.yaml").read_bytes() == (CONFIGS / "quickstart.yaml").read_bytes()
    assert capsys.readouterr().out == "wrote mine.yaml; run it with --config mine.yaml\n"
    assert main(["fit", "--config", "mine.yaml", "--print_config"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["trainer"]["max_steps"] == 600


def test_a_config_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "data/ioi"]) == 0
    assert capsys.readouterr().out == (CONFIGS / "data" / "ioi.yaml").read_text()


def test_a_copy_replaces_a_file_only_when_asked(elsewhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (elsewhere / "mine.yaml").write_text("mine")
    assert main(["configs", "quickstart", "--out", "mine.yaml"]) == 2
    assert "--out mine.yaml is there already; choose another name, or give --overwrite" in error_line(capsys)
    assert (elsewhere / "mine.yaml").read_text() == "mine"
    assert main(["configs", "quickstart", "--out", "mine.yaml", "--overwrite"]) == 0
    assert (elsewhere / "mine.yaml").read_bytes() == (CONFIGS / "quickstart.yaml").read_bytes()


@pytest.mark.parametrize("out", [".", "nowhere/mine.yaml", "file/mine.yaml", f"{'x' * 300}.yaml", "/proc/mine.yaml"])
def test_a_place_that_cannot_be_written_is_one_line(
    out: str, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (elsewhere / "file").write_text("")
    assert main(["configs", "quickstart", "--out", out]) == 2
    assert error_line(capsys).startswith(f"edgeprune: error: --out {out}")
    assert list(elsewhere.iterdir()) == [elsewhere / "file"]


def test_out_needs_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["configs", "--out", "mine.yaml"]) == 2
    assert "--out mine.yaml takes a copy of one config; name it" in error_line(capsys)


# ---------------------------------------------------------------- names
@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "configs/quickstart", "configs/quickstart.yaml"])
def test_a_name_stands_for_a_file(name: str) -> None:
    assert find_config(name) == shipped()["quickstart"] == folder() / "quickstart.yaml"


def test_a_local_file_wins_over_a_name_and_a_local_folder_does_not(elsewhere: Path) -> None:
    (elsewhere / "quickstart").mkdir()
    assert find_config("quickstart") == folder() / "quickstart.yaml"
    (elsewhere / "ioi_gpt2").write_text("")
    assert find_config("ioi_gpt2") == Path("ioi_gpt2")
    (elsewhere / "quickstart" / "mine.yaml").write_text("")
    assert find_config("quickstart/mine.yaml") == Path("quickstart/mine.yaml")


@pytest.mark.parametrize("given", ["-", "{}", "~/mine.yaml", "trainer: {max_steps: 3}", "https://example.org/a.yaml"])
def test_what_cannot_be_a_name_is_left_to_the_parser(given: str) -> None:
    assert with_paths(["fit", "--config", given, f"--config={given}"]) == [
        "fit",
        "--config",
        given,
        f"--config={given}",
    ]


def test_names_are_found_in_every_form_of_the_option() -> None:
    path = str(folder() / "data" / "ioi.yaml")
    given = ["fit", "-c", "data/ioi", "--config", "data/ioi", "--config=data/ioi", "--model.name", "data/ioi"]
    assert with_paths(given) == ["fit", "-c", path, "--config", path, f"--config={path}", "--model.name", "data/ioi"]


COMMANDS = {
    "fit": ["fit", "--config", "NAME", "--print_config"],
    "validate": ["validate", "--config=NAME"],
    "test": ["test", "-c", "NAME"],
    "discover": ["discover", "--config", "NAME"],
    "evaluate": ["evaluate", "circuit.safetensors", "--config", "NAME"],
    "compare": ["compare", "circuit.safetensors", "circuit.safetensors", "--config", "NAME"],
    "data": ["data", "NAME"],
    "sweep": ["sweep", "NAME"],
    "configs": ["configs", "NAME"],
}
NEAR = {
    "quikstart": "did you mean quickstart?",
    "ioi": "did you mean data/ioi?",
    "x" * 300: "give the path of a file.",
}


@pytest.fixture(scope="module")
def circuit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from edgeprune.circuit import Circuit
    from edgeprune.models.loading import load_model

    path = tmp_path_factory.mktemp("circuit") / "circuit.safetensors"
    graph = load_model("compiled:reverse").graph
    Circuit.random(graph, 10, 0).save(path)
    return path


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", NEAR, ids=["near", "below", "long"])
def test_an_unknown_name_is_one_line_with_near_names(
    command: str, name: str, circuit: Path, elsewhere: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    replaced = {"circuit.safetensors": str(circuit)}
    words = [replaced.get(word, word.replace("NAME", name)) for word in COMMANDS[command]]
    if command in ("evaluate", "compare"):
        words += ["--model", "compiled:reverse"]
    assert main(words) == 2
    line = error_line(capsys)
    assert line == (
        f"edgeprune: error: no config file at {name}, and none of this name comes along; {NEAR[name]} "
        "`edgeprune configs` lists those that do"
    )
    assert list(elsewhere.iterdir()) == []


def test_configs_are_taken_by_name(elsewhere: Path, circuit: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "quickstart", "--config", "logger/wandb", "--print_config"]) == 0
    assert len(yaml.safe_load(capsys.readouterr().out)["trainer"]["logger"]) == 2
    assert main(["discover", "--config", "discover/random", "--data.eval_batch_size", "254", "--print_config"]) == 0
    assert "RandomScores" in capsys.readouterr().out
    assert main(["data", "data/compiled", "-n", "1"]) == 0
    same = [str(circuit), str(circuit), "--model", "compiled:reverse", "--config", "data/compiled"]
    assert main(["compare", *same]) == 0
    assert main(["evaluate", str(circuit), *same[2:], "--limit", "4", "--draws", "5", "--seeds", "1"]) == 0
    assert list(elsewhere.iterdir()) == []


def test_a_sweep_and_the_configs_of_its_trials_are_found(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The sweep's command names configs by their paths in a checkout."""
    from edgeprune.cli import sweep

    def stop(*given: object, **options: object) -> None:
        raise InterruptedError

    monkeypatch.setattr(sweep, "check_optuna", lambda: None)
    monkeypatch.setattr(sweep.Store, "make", stop)
    with pytest.raises(InterruptedError):  # after the arguments of its trials were read
        main(["sweep", "sweeps/reverse_grid"])
    assert capsys.readouterr().err == ""
