"""What a user reads of a wrong option of `discover`: the key, the rule and the value, and which classes there are."""

from pathlib import Path

import pytest

from edgeprune.cli import main
from edgeprune.cli.mistakes import known, one_sentence
from edgeprune.methods import AbstractDiscovery, AbstractRecipe

METHODS = "ACDC, ActivationMagnitude, EAP, EAPIG, ExactEdgePatching, HISP, InformationFlowRoutes, RandomScores"
GOOD = ["discover", "--model.name", "compiled:reverse", "--method", "EAPIG", "--data.task", "CompiledTask"]

SAID: dict[str, tuple[list[str], str]] = {
    "an unknown class": (["--method", "Nope"], "method: there is no 'Nope'; known are "),
    "a class of another kind": (
        ["--method", "edgeprune.methods.UGS"],
        "there is no 'edgeprune.methods.UGS'; known are ",
    ),
    "an unknown task": (["--data.task", "Nope"], "data.task: there is no 'Nope'; known are "),
    "an abstract class": (["--data.task", "AbstractTask"], "data.task must name a class; known are "),
    "an option that the method lacks": (["--method.depth", "1"], "method has no option 'depth'; see --method.help"),
    "an option that the task lacks": (["--data.task.depth", "1"], "data.task has no option 'depth'"),
    "not one of several": (
        ["--method.variant", "x"],
        "method.variant must be one of inputs, activations, clean_corrupted, gates, got x",
    ),
    "no number": (["--method.steps", "x"], "method.steps must be a whole number, got x"),
    "no number where none may be": (["--limit", "x"], "limit must be a whole number, got x"),
    "no list": (["--method", "ACDC", "--method.taus", "0.1"], "method.taus must be a list such as [1, 2], got 0.1"),
    "a rule that is none": (["--selection.rule", "x"], "selection.rule must be one of top_n, greedy, threshold, got x"),
    "an option of selection that is none": (["--selection.depth", "1"], "selection has no option 'depth'"),
    "a selection that is none": (["--selection", "greedy"], "selection cannot be 'greedy'"),
    "an unknown option": (["--depth", "3"], "unrecognized arguments: --depth 3; see --help"),
    "a value out of its range": (["--method.steps", "0"], "steps must be at least 1, got 0"),
    "a selection out of its range": (["--selection.sparsities", "[1.5]"], "sparsities must lie in [0, 1), got 1.5"),
    "no such device": (["--model.device", "tpu9"], "cannot use device 'tpu9'"),
    "no such file": (["--config", "missing.yaml"], "no config file at missing.yaml, and none of this name comes along"),
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
