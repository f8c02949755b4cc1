from dataclasses import replace

import pytest
import torch

from edgeprune.compiled.builder import (
    Description,
    Head,
    Layer,
    Match,
    Move,
    Unit,
    build,
    copy,
    equal,
    levels,
    one_hot,
    ramp,
    table,
)
from edgeprune.errors import EdgepruneError

LETTERS = one_hot("is", "ab")
SMALL = Description(
    columns=[*LETTERS, "seen", "both"],
    tokens={"a": {"is a": 1.0}, "b": {"is b": 2.0}},
    positions=[{}] * 3,
    layers=[
        Layer([Head([Move({"is a": 3.0}, {"seen": 0.5})], [Match({"is b": 7.0}, {"is a": 1.0, "is b": -1.0})])]),
        Layer(units=[Unit({"seen": 1.0, "is b": 4.0}, {"both": 5.0}, bias=-0.25)], adds={"both": 0.125}),
    ],
    outputs={"answer": {"both": 1.0}, "nothing": {}},
)


def test_weights_stand_where_the_description_says() -> None:
    model = build("small", SMALL)
    config, (first, second) = model.config, model.layers
    assert config.name_or_path == "compiled:small"
    assert (config.hidden_size, config.head_dim, config.intermediate_size, config.num_attention_heads) == (4, 1, 1, 1)
    assert (config.vocab, config.output_labels, config.n_ctx) == (["a", "b"], ["answer", "nothing"], 3)
    assert model.tok_embed.weight.tolist() == [[1, 0, 0, 0], [0, 2, 0, 0]]
    assert first.attn.q_proj.weight.tolist() == [[0, 7, 0, 0]]
    assert first.attn.k_proj.weight.tolist() == [[1, -1, 0, 0]]
    assert first.attn.v_proj.weight.tolist() == [[3, 0, 0, 0]]
    assert first.attn.o_proj.weight.tolist() == [[0], [0], [0.5], [0]]
    assert second.mlp.fc_in.weight.tolist() == [[0, 4, 1, 0]]
    assert second.mlp.fc_in.bias.tolist() == [-0.25]
    assert second.mlp.fc_out.weight.tolist() == [[0], [0], [0], [5]]
    assert second.mlp.fc_out.bias.tolist() == [0, 0, 0, 0.125]
    assert model.unembed.weight.tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]
    assert not any(part.any() for part in (*second.attn.parameters(), *first.mlp.parameters()))


def test_the_second_head_has_rows_of_its_own() -> None:
    heads = [Head(copy(LETTERS, ["seen", "both"])), Head([Move({"is b": 1.0}, {"both": 2.0})])]
    attn = build("two", replace(SMALL, layers=[Layer(heads)], outputs={"x": {"seen": 1.0, "both": 1.0}})).layers[0].attn
    assert attn.v_proj.weight.tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    assert attn.o_proj.weight.tolist() == [[0] * 4, [0] * 4, [1, 0, 0, 0], [0, 1, 2, 0]]


def values(units: list[Unit], **columns: float) -> dict[str, float]:
    """What units write for given columns."""
    out: dict[str, float] = {}
    for unit in units:
        on = max(0.0, unit.bias + sum(weight * columns.get(name, 0.0) for name, weight in unit.reads.items()))
        for name, weight in unit.writes.items():
            out[name] = out.get(name, 0.0) + on * weight
    return out


@pytest.mark.parametrize("one", [None, "one"])
def test_ramps_are_flat_outside_the_middle_third(one: str | None) -> None:
    units = ramp("x", 2.0, 5.0, {"high": 4.0}, one)
    for x, expected in ((0, 0), (2, 0), (3, 0), (3.5, 2), (4, 4), (5, 4), (9, 4)):
        assert values(units, x=x, one=1.0)["high"] == pytest.approx(expected, abs=1e-12)


def test_levels_tell_numbers_apart() -> None:
    numbers, names = [1.0, 0.5, 0.25], ["whole", "half", "quarter"]
    units = levels("x", numbers, [{name: 1.0} for name in names])
    for number, name in zip(numbers, names, strict=True):
        assert values(units, x=number) == pytest.approx({other: float(other == name) for other in names}, abs=1e-12)
    assert not any(values(units, x=0.0).values())


@pytest.mark.parametrize("one", [None, "one"])
def test_a_table_is_on_where_all_its_columns_are(one: str | None) -> None:
    units = table({("x", "y"): {"both": 3.0}, ("z",): {"both": 1.0}}, one)
    for x, y, z in ((0, 0, 0), (1, 0, 0), (0, 1, 1), (1, 1, 0), (1, 1, 1)):
        assert values(units, x=x, y=y, z=z, one=1.0)["both"] == 3.0 * (x and y) + z


def test_equal_looks_where_the_key_is_what_the_query_asks_for() -> None:
    description = Description(
        columns=[*LETTERS, "out a", "out b"],
        tokens={"a": {"is a": 1.0}, "b": {"is b": 1.0}},
        positions=[{}] * 4,
        layers=[Layer([Head(copy(LETTERS, one_hot("out", "ab")), equal(LETTERS, LETTERS))])],
        outputs={"a": {"out a": 1.0}, "b": {"out b": 1.0}},
    )
    logits = build("same", description)(torch.tensor([[0, 1, 1, 0]])).logits[0]
    expected = torch.tensor([[1.0, 0], [0, 1], [0, 1], [1, 0]])
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-8)  # leak exp(-20)


IDLE = Layer([Head([Move({"is a": 1.0}, {"seen": 1.0})])])
WRONG = {
    "unknown column": (
        {"outputs": {"answer": {"bofh": 1.0}}},
        "output 'answer' names column 'bofh', which is not declared; did you mean 'both'",
    ),
    "nothing like it": ({"tokens": {"a": {"xyz": 1.0}, "b": {}}}, "token 'a' names .*; declare it among the columns"),
    "twice": ({"columns": [*SMALL.columns, "seen"]}, "column 'seen' is declared twice"),
    "never written": ({"layers": [IDLE]}, "column 'both' is never written; leave it out"),
    "never read": ({"outputs": {"answer": {}}}, "column 'both' is never read; leave it out"),
    "no head": ({"layers": [Layer(units=SMALL.layers[1].units)]}, "at least one head"),
    "idle head": ({"layers": [Layer([Head([])]), *SMALL.layers]}, "value of a0.h0 reads nothing"),
    "empty query": (
        {"layers": [Layer([replace(IDLE.heads[0], match=[Match({}, {"is a": 1.0})])])]},
        "query of a0.h0 reads nothing",
    ),
    "mute head": ({"layers": [Layer([Head([Move({"is a": 1.0}, {})])])]}, "a0.h0 writes nothing"),
    "idle unit": (
        {"layers": [IDLE, Layer(units=[Unit({}, {"both": 1.0})])]},
        "unit 0 of m1 reads nothing; name at least one column, or leave it out",
    ),
    "mute unit": ({"layers": [IDLE, Layer(units=[Unit({"seen": 1.0}, {})])]}, "unit 0 of m1 writes nothing"),
}


@pytest.mark.parametrize("mistake", WRONG)
def test_mistakes_are_named_in_one_line(mistake: str) -> None:
    changes, message = WRONG[mistake]
    with pytest.raises(EdgepruneError, match=message) as caught:
        build("wrong", replace(SMALL, **changes))
    assert "\n" not in str(caught.value)
