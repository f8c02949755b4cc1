"""A whole reading: its plain values, what it leaves out and why, and the page that is made of it."""

import json
from typing import Any

import pytest
from rich.console import Console

import edgeprune as ep
from edgeprune.batch import IGNORE
from edgeprune.circuit import Circuit
from edgeprune.errors import EdgepruneError
from edgeprune.reading import Reading, interpret_circuit
from edgeprune.report import report_html
from edgeprune.roles import observed_roles
from tests.methods.small_problems import linear_model, tiny
from tests.reading.small import circuit_of, evaluator, pairs
from tests.report.example_result import reading as example_reading
from tests.report.test_report import read, table

Json = dict[str, Any]


@pytest.fixture(scope="module")
def made() -> Reading:
    model = tiny("gpt2")
    return interpret_circuit(evaluator(model), circuit_of(model), max_heads=3, max_prompts=4, max_exact=2)


def keys(data: Any, path: str = "") -> set[str]:
    """Keys of the schema by their path; names of heads, roles and parts as a star."""
    if isinstance(data, list):
        return {key for item in data for key in keys(item, path)}
    found = set[str]()
    if isinstance(data, dict):
        named = path.endswith((".roles", ".heads", ".first_order", ".exact", ".standard_error", ".total"))
        for name, value in data.items():
            inside = f"{path}.{'*' if named else name}"
            found |= {inside} | keys(value, inside)
    return found


def page_of(plain: Json) -> Any:
    circuit = {"name": "one", "reading": plain}
    return read(report_html({"schema": "edgeprune-evaluation/1", "circuits": [circuit]}))


def test_it_has_the_keys_that_the_example_of_the_page_has(made: Reading) -> None:
    plain = made.to_dict()
    assert keys(plain) == keys(example_reading())
    json.dumps(plain, allow_nan=False)
    assert (plain["num_examples"], plain["notes"]) == (5, [])
    assert [len(plain["attention"][name]) for name in ("heads", "prompts")] == [3, 4]
    assert list(plain["by_role"]["heads"]) == plain["attention"]["heads"]
    assert plain["effects"]["num_exact"] == 2


def test_heads_are_ranked_by_what_hangs_on_their_edges(made: Reading) -> None:
    assert made.effects is not None
    assert made.attention is not None
    weights = made.effects.weights()
    sizes = [weights[head] for head in made.attention.heads]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[-1] > 0
    assert made.num_heads > 3
    assert max(value for name, value in weights.items() if name.startswith("a")) == sizes[0]


def test_the_page_shows_it(made: Reading) -> None:
    page = page_of(made.to_dict())
    maps = [
        plot for plot in page.one("section", id="reading").all("svg", role="img") if "maps" in plot.attributes["class"]
    ]
    assert len(maps) == 3 * 4
    assert len(list(table(page, "reading", 4).one("tbody").all("tr"))) == 2
    assert "Not shown" not in page.one("section", id="reading").text


def test_it_can_be_looked_at_in_a_terminal(made: Reading) -> None:
    console = Console(width=160)
    with console.capture() as shown:
        console.print(made)
    text = shown.get()
    assert made.attention is not None
    assert made.attention.heads[0] in text
    assert "DirectAttribution(logit_difference" in text
    assert "exact effects" in text
    assert repr(made).startswith("Reading(AttentionPatterns(3 heads on 4 prompts); ")


def test_prompts_without_roles_and_circuits_without_heads() -> None:
    model = tiny("gpt2")
    without = interpret_circuit(evaluator(model, examples=pairs(2, {})), circuit_of(model), max_heads=1)
    assert without.effects is without.by_role is None
    assert without.chosen == "that add most to the logit_difference"
    assert len(without.notes) == 2
    assert "effects by role: the task marks no position roles" in without.notes[0]
    assert (
        "Not shown effects by role: the task marks no" in page_of(without.to_dict()).one("section", id="reading").text
    )
    bare = interpret_circuit(evaluator(model), Circuit.from_edges(model.graph, ["embed->logits"]))
    assert bare.attention is bare.by_role is None
    assert bare.notes == (
        "attention: no head of the circuit has a path to the logits; name `heads` to see others' attention",
    )
    empty = interpret_circuit(evaluator(model), Circuit.from_edges(model.graph, []))
    assert empty.direct is not None
    assert page_of(empty.to_dict()).one("section", id="reading").text.count("Not shown") == 1
    with pytest.raises(EdgepruneError, match="the circuit was made for a graph with num_heads=3"):
        interpret_circuit(evaluator(model), Circuit.from_edges(linear_model().graph, []))


def test_of_a_circuit_with_roles_it_reads_attention_and_says_what_it_does_not() -> None:
    model = tiny("gpt2")
    judge = evaluator(model)
    model.use_roles(observed_roles(judge.batches))
    found = interpret_circuit(judge, circuit_of(model))
    assert found.attention is not None
    assert found.by_role is not None
    assert found.by_role[0].keys[-1] == found.by_role[1].keys[-1] == "rest"
    assert found.direct is found.effects is None
    assert len(found.notes) == 2
    for note in found.notes:
        assert "circuits without roles, this one has the roles IO, S1, S2, rest; take its union" in note
        assert "\n" not in note


def test_without_distractors_it_reads_the_right_answer_and_kl() -> None:
    model = tiny("gpt2")
    judge = evaluator(model)
    for batch in judge.batches:
        batch.distractors.fill_(IGNORE)
    found = interpret_circuit(judge, circuit_of(model), max_exact=0)
    assert found.direct is not None
    assert found.effects is not None
    assert (found.direct.direction, found.effects.measure) == ("target", "kl")
    assert not list(filter(None, [row["exact"] for row in found.effects.table()]))


def test_public_names() -> None:
    assert ep.reading.interpret_circuit is interpret_circuit
    assert "reading" in dir(ep)
