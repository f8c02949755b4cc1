"""What a user reads of a wrong option of `discover`: the key, the rule and the value, and which classes there are."""

import re
from pathlib import Path

import pytest

from edgeprune.cli import main
from edgeprune.cli.parser_errors import known, one_sentence
from edgeprune.methods import AbstractDiscovery, AbstractRecipe

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
METHODS = (
    "ACDC, ActivationMagnitude, ContextualDecomposition, EAP, EAPIG, ExactEdgePatching, HISP, InformationFlowRoutes, "
    "RandomScores"
)
GOOD = ["discover", "--model.name", "compiled:reverse", "--method", "EAPIG", "--data.task", "CompiledTask"]

SAID: dict[str, tuple[list[str], str]] = {
    "an unknown class": (["--method", "Nope"], "method: there is no 'Nope'; known are "),
    "a class of another kind": (
        ["--method", "edgeprune.methods.UGS"],
        "there is no 'edgeprune.methods.UGS'; known are ",
    ),
    "an unknown task": (["--data.task", "Nope"], "data.task: there is no 'Nope'; known are "),
    "an abstract class": (["--data.task", "AbstractTask"], "data.task must name a class; known are "),
    "an option that the method lacks": (
        ["--method.depth", "1"],
        "method has no option 'depth'; it takes variant, steps",
    ),
    "an option that the task lacks": (["--data.task.depth", "1"], "data.task has no option 'depth'; it takes "),
    "not one of several": (
        ["--method.variant", "x"],
        "method.variant must be one of inputs, activations, clean_corrupted, gates, local, got x",
    ),
    "no number": (["--method.steps", "x"], "method.steps must be a whole number, got x"),
    "no number where none may be": (["--limit", "x"], "limit must be a whole number, got x"),
    "no list": (["--method", "ACDC", "--method.taus", "0.1"], "method.taus must be a list such as [1, 2], got 0.1"),
    "a rule that is none": (
        ["--selection.rule", "x"],
        "selection.rule must be one of top_n, greedy, connected, threshold, got x",
    ),
    "an option of selection that is none": (["--selection.depth", "1"], "selection has no option 'depth'"),
    "a selection that is none": (["--selection", "greedy"], "selection cannot be 'greedy'"),
    "an unknown option": (["--depth", "3"], "unrecognized arguments: --depth 3; see --help"),
    "a value out of its range": (["--method.steps", "0"], "steps must be at least 1, got 0"),
    "a selection out of its range": (["--selection.sparsities", "[1.5]"], "sparsities must lie in [0, 1), got 1.5"),
    "no such device": (["--model.device", "tpu9"], "cannot use device 'tpu9'"),
    "no such file": (["--config", "missing.yaml"], "no config file at missing.yaml, and none of this name comes along"),
    "no such file of options": (
        ["--model", "missing.yaml"],
        "model: cannot read options from 'missing.yaml' (no such file); give a YAML file, or --model.NAME VALUE",
    ),
    "an option of a section that is none": (["--model.nope", "1"], "unrecognized arguments: --model.nope 1"),
    "an argument that is none": (["more"], "unrecognized arguments: more; see --help"),
    "a key twice": (["--data.task", "{class_path: CompiledTask, class_path: IOI}"], "key 'class_path' comes twice"),
}


@pytest.mark.parametrize(("more", "said"), SAID.values(), ids=SAID)
def test_one_sentence_and_nothing_of_the_parser_s_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], said: str
) -> None:
    assert main([*GOOD, "--out", str(tmp_path / "out"), *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line
    assert not any(word in line for word in ("class '", "Union", "NestedArg", "NoneType", "typing"))
    assert not (tmp_path / "out").exists()


CALLBACKS = "known are BackboneFinetuning, .*, CompareToReference, .*, SnapshotCircuits, "
RECIPE = "model:\n  recipe:\n    class_path: EdgePruning\n    init_args:\n"
FILES: dict[str, tuple[str, str]] = {
    "no such callback": (
        "trainer:\n  callbacks:\n  - class_path: SnapshotCircuit\n",
        r"trainer.callbacks: there is no 'SnapshotCircuit' \(did you mean 'SnapshotCircuits'\?\); " + CALLBACKS,
    ),
    "a callback from nowhere": (
        "trainer:\n  callbacks:\n  - class_path: nowhere.Callback\n",
        r"trainer.callbacks: there is no 'nowhere.Callback' \(No module named 'nowhere'\); " + CALLBACKS,
    ),
    "a recipe among callbacks": (
        "trainer:\n  callbacks:\n  - class_path: edgeprune.methods.UGS\n",
        "trainer.callbacks: there is no 'edgeprune.methods.UGS'; " + CALLBACKS,
    ),
    "a function among callbacks": (
        "trainer:\n  callbacks: [os.getcwd]\n",
        "trainer.callbacks: there is no 'os.getcwd'",
    ),
    "no list of callbacks": ("trainer:\n  callbacks: 3\n", "trainer.callbacks must name a class, got 3; " + CALLBACKS),
    "an option that the callback lacks": (
        "trainer:\n  callbacks:\n  - class_path: SnapshotCircuits\n    init_args: {sparsitis: [0.5]}\n",
        r"trainer.callbacks has no option 'sparsitis' \(did you mean 'sparsities'\?\); it takes sparsities, control_",
    ),
    "a value of the callback": (
        "trainer:\n  callbacks:\n  - class_path: SnapshotCircuits\n    init_args: {sparsities: x}\n",
        r"trainer.callbacks.sparsities must be a list such as \[1, 2\], got x$",
    ),
    "an option that the sparsity term lacks": (
        RECIPE + "      sparsity_term: {class_path: GeometricPenalty, init_args: {strat: 0.1}}\n",
        r"model.recipe.sparsity_term has no option 'strat' \(did you mean 'start'\?\); it takes start, end$",
    ),
    "an option beside the class": (
        RECIPE + "      sparsity_term: {class_path: GeometricPenalty, start: 0.1}\n",
        "model.recipe.sparsity_term must hold class_path and init_args alone; put its options among the init_args$",
    ),
    "no such sparsity term": (
        RECIPE + "      sparsity_term: {class_path: GeometricPenalti}\n",
        r"model.recipe.sparsity_term: there is no 'GeometricPenalti' \(did you mean 'GeometricPenalty'\?\); known are "
        "GeometricPenalty, Lagrangian, Pace, RampPenalty$",
    ),
    "no class as sparsity term": (
        RECIPE + "      sparsity_term: 3\n",
        "model.recipe.sparsity_term must name a class, got 3; known are GeometricPenalty, Lagrangian, Pace, Ramp",
    ),
    "a value of the sparsity term": (
        RECIPE + "      sparsity_term: {class_path: GeometricPenalty, init_args: {start: x}}\n",
        "model.recipe.sparsity_term.start must be a number, got x$",
    ),
    "no such recipe": (
        "model:\n  recipe: {class_path: EdgePrunning}\n",
        r"model.recipe: there is no 'EdgePrunning' \(did you mean 'EdgePruning'\?\); known are DiscoGP, EdgePruning, ",
    ),
    "an option that the recipe lacks": (
        RECIPE + "      learningrate: 0.1\n",
        r"model.recipe has no option 'learningrate' \(did you mean 'learning_rate'\?\); it takes sparsity_term, ",
    ),
    "no such logger": (
        "trainer:\n  logger: {class_path: CSVLoger}\n",
        r"trainer.logger: there is no 'CSVLoger' \(did you mean 'CSVLogger'\?\); known are CSVLogger, ",
    ),
    "no such logger among several": (
        "trainer:\n  logger: [{class_path: CSVLoger}]\n",
        r"trainer.logger: there is no 'CSVLoger' \(did you mean 'CSVLogger'\?\); known are CSVLogger, ",
    ),
    "an option that the logger lacks": (
        "trainer:\n  logger: {class_path: CSVLogger, init_args: {savedir: x}}\n",
        r"trainer.logger has no option 'savedir' \(did you mean 'save_dir'\?\); it takes save_dir, name, ",
    ),
    "no such task": ("data: {task: {class_path: IOITask}}\n", "data.task: there is no 'IOITask'; known are .*, IOI, "),
    "an option that the task lacks": (
        "data:\n  task: {class_path: CompiledTask, init_args: {progam: x}}\n",
        r"data.task has no option 'progam' \(did you mean 'program'\?\); it takes program, ",
    ),
    "no such objective": (
        "model:\n  objective: klx\n",
        "model.objective must be one of kl, squared_error, .*cmd, got klx$",
    ),
    "one of two kinds": ("data:\n  batch_size: x\n", "data.batch_size must be a whole number or auto, got x$"),
    "no such option": (
        "trainer:\n  max_step: 3\n",
        r"there is no option 'trainer.max_step' \(did you mean 'trainer.max_steps'\?\); see --help$",
    ),
    "no such section": ("modle: {name: x}\n", r"there is no option 'modle.name' \(did you mean 'model.name'\?\)"),
    "a key twice": (
        "model:\n  name: a\n  name: b\n",
        "x.yaml:3: key 'name' comes twice, first on line 2; keep one of them$",
    ),
    "a key twice in a file that it names": ("model: other.yaml\n", "2: key 'name' comes twice, first on line 1"),
    "nothing": ("", "x.yaml is empty; write options into it"),
    "a list": ("- a\n", "x.yaml must hold options by name .*, it holds a list"),
    "a word": ("a\n", "x.yaml must hold options by name .*, it holds only 'a'"),
    "no UTF-8": ("model:\n  name: caf\xe9\n", "x.yaml is not UTF-8 text .*; save it as UTF-8$"),
    "too many digits": (f"seed_everything: {'9' * 10_000}\n", "x.yaml is no YAML: Exceeds the limit .*; take it out$"),
    "not a number": (
        RECIPE + "      learning_rate: .nan\n",
        "learning_rate must be a finite number, got nan; give one",
    ),
}


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
@pytest.mark.parametrize(("text", "said"), FILES.values(), ids=FILES)
def test_a_mistake_in_a_config_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], text: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "x.yaml").write_bytes(text.encode("latin-1"))
    (tmp_path / "other.yaml").write_text("name: a\nname: b\n")
    before = sorted(tmp_path.iterdir())
    assert main(["fit", "--config", str(QUICKSTART), "--config", "x.yaml"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(said, line), line
    assert not any(word in line for word in ("<class", "Union", "NestedArg", "NoneType", "typing", "\x1f", "; or "))
    assert sorted(tmp_path.iterdir()) == before


WRONG_CONFIGS = {
    "a folder": (".", "error: .: Is a directory; give the path of a file"),
    "no file": ("missing.yaml", "no config file at missing.yaml, and none of this name comes along"),
    "no name": ("", "error: '': Is a directory; give"),
    "too long a name": ("x" * 5000, "no config file at xxxx"),
    "no end": ("{model: ", "config:2 is no YAML: "),
    "a key twice": ("{model: {name: a, name: b}}", "config:1: key 'name' comes twice, first on that line"),
}


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")
@pytest.mark.parametrize(("config", "said"), WRONG_CONFIGS.values(), ids=WRONG_CONFIGS)
def test_a_config_that_is_none_is_one_sentence(capsys: pytest.CaptureFixture[str], config: str, said: str) -> None:
    for command in ("fit", "discover"):
        assert main([command, "--config", config]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert re.search(said, line), line


def test_a_config_may_stand_on_the_line_and_begin_with_a_mark(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "x.yaml").write_bytes(b"\xef\xbb\xbfmodel: {nam: x}\n")
    for config in ("{model: {nam: x}}", str(tmp_path / "x.yaml")):
        assert main(["discover", "--config", config]) == 2
        assert "there is no option 'model.nam' (did you mean 'model.name'?)" in capsys.readouterr().err


def test_what_is_missing_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["discover", "--model.name", "compiled:reverse"]) == 2
    assert "missing: data.task, method; give them as options (--data.task)" in capsys.readouterr().err
    assert main(["discover", "--method.steps", "3"]) == 2
    assert "method must name a class; known are ACDC" in capsys.readouterr().err


def test_every_method_of_a_kind_is_known() -> None:
    assert set(METHODS.split(", ")) <= set(known(AbstractDiscovery))
    assert set(known(AbstractRecipe)) >= {"EdgePruning", "SubnetworkProbing", "UGS"}
    assert "AbstractDiscovery" not in known(AbstractDiscovery)


def test_lines_of_one_reason_stay_together() -> None:
    assert one_sentence("Problems parsing config: while parsing\n  in line 2") == (
        "Problems parsing config: while parsing in line 2"
    )
    assert one_sentence("") == ""
