"""YAML and JSON of users: what is no such text, or says a thing twice, is refused with file and line."""

import json
from pathlib import Path

import pytest
import yaml

from edgeprune.errors import EdgepruneError
from edgeprune.parsing import DEEPEST, parse_json, parse_yaml, read_options, read_text

DIGITS = "9" * 10_000
NO_YAML = {
    "a key twice": ("a: 1\nb: 2\na: 3\n", "x:3: key 'a' comes twice, first on line 1; keep one of them"),
    "a key twice further in": ("a:\n  b: 1\n  b: 2\n", "x:3: key 'b' comes twice, first on line 2"),
    "on one line": ("{a: 1, a: 2}", "x:1: key 'a' comes twice, first on that line"),
    "in quotes": ("a: 1\n'a': 2\n", "x:2: key 'a' comes twice"),
    "after lists and mappings": ("a: [1, {b: 2}]\n? [c]\n: {d: 1}\na: 2\n", "x:4: key 'a' comes twice"),
    "in a list": ("- {b: 1}\n- b: 1\n  c: 2\n  b: 3\n", "x:4: key 'b' comes twice, first on line 2"),
    "too many digits": (f"a: {DIGITS}", "x is no YAML: Exceeds the limit .*; take it out"),
    "no such month": ("a: 2026-13-01", "x is no YAML: month must be in 1..12"),
    "a tab": ("a:\n\tb: 1\n", "x:2 is no YAML: .*; write `name: value`, indented with spaces"),
    "a NUL": ("a: 1\x00", "x is no YAML: unacceptable character #x0000"),
    "no end": ("a: [1,\n", "x:2 is no YAML: "),
    "two documents": ("a: 1\n---\na: 1\n", "x:2 is no YAML: "),
    "code": ("a: !!python/object/apply:os.getcwd []", "x:1 is no YAML: could not determine a constructor"),
    "deep": ("[" * 200 + "]" * 200, f"x:1: more than {DEEPEST} levels"),
    # newer releases of the YAML library have a limit of their own
    "far too deep": ("[" * 20_000 + "]" * 20_000, rf"x:1(: more than {DEEPEST} levels| is no YAML: .*nesting depth)"),
    "deep without brackets": (
        "".join(f"{' ' * i}a:\n" for i in range(500)),
        f"x:{DEEPEST}: more than {DEEPEST} levels",
    ),
    "itself": ("a: &b\n  c: *b\n", "x:2: 'b' holds itself; take out \\*b"),
}
NO_JSON = {
    "a key twice": ('{"a": 1,\n "b": {"a": 2},\n "a": 3}', "x:3: key 'a' comes twice, first on line 1"),
    "a key twice further in": (
        '[{"a": {"b": "}"}},\n {"a": {"b": 1,\n "b": "a: {"}}]',
        "x:3: key 'b' comes twice, .* line 2",
    ),
    "escaped": ('{"\\u0061": 1, "a": [{"a": "\\"a\\": "}]}', "x:1: key 'a' comes twice, first on that line"),
    "too many digits": (f'{{"a": {DIGITS}}}', "x: Exceeds the limit .* 10000 digits; write a shorter one"),
    "no end": ('{"a": 1,\n', "x:2: not JSON .*column 1"),
    "nothing": ("", "x:1: not JSON"),
    "deep": ("[" * 100_000, "x: not JSON, brackets within brackets go on too far"),
    "a NUL": ('{"a": \x00}', "x:1: not JSON"),
}


@pytest.mark.parametrize(("text", "said"), NO_YAML.values(), ids=NO_YAML)
def test_wrong_yaml_is_one_line(text: str, said: str) -> None:
    with pytest.raises(EdgepruneError, match=f"^{said}") as caught:
        parse_yaml(text, "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("text", "said"), NO_JSON.values(), ids=NO_JSON)
def test_wrong_json_is_one_line(text: str, said: str) -> None:
    with pytest.raises(EdgepruneError, match=f"^{said}") as caught:
        parse_json(text, "x")
    assert "\n" not in str(caught.value)


def test_a_line_of_a_file_is_named_once() -> None:
    with pytest.raises(EdgepruneError, match=r"^x:7: key 'a' comes twice, first on that line"):
        parse_json('{"a": 1, "a": 2}', "x:7", one_line=True)
    with pytest.raises(EdgepruneError, match=r"^x:7: not JSON"):
        parse_json("{", "x:7", one_line=True)


@pytest.mark.parametrize(
    "text",
    [
        "a: 1\nb: {a: 2, c: [{a: 1}, {a: 2}]}\n",
        "base: &base {a: 1, b: 2}\nx:\n  <<: *base\n  a: 3\ny:\n  <<: [*base, {d: 4}]\n  b: 5\n",
        "a: &x [1, 2]\nb: *x\nc: &y {x: 1}\nd: [*x, *y]\n",
        "# nothing\n",
        "1e-3",
        "\ufeffa: 1\nb: 2\n",
        f"a: {'[' * (DEEPEST - 2)}{']' * (DEEPEST - 2)}",
    ],
)
def test_what_is_right_is_read_as_before(text: str) -> None:
    assert parse_yaml(text, "x") == yaml.safe_load(text)


def test_right_json_is_read_as_before() -> None:
    text = '{"a": [1, 2.5, null, true, {"a": "b"}], "c": {"a": "\\u00e9"}, "d": NaN}'
    assert repr(parse_json(text, "x")) == repr(json.loads(text))


def test_shipped_configs_are_read_as_before() -> None:
    files = sorted((Path(__file__).parents[1] / "configs").rglob("*.yaml"))
    assert len(files) > 30
    for file in files:
        assert read_options(file) == yaml.safe_load(file.read_text(encoding="utf-8"))


def test_a_file_that_is_no_text_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_bytes(b"\xef\xbb\xbfa: 1\r\n")
    assert read_text(file) == "a: 1\r\n"
    assert read_options(file) == {"a": 1}
    file.write_bytes(b"a: caf\xe9\n")
    with pytest.raises(EdgepruneError, match=r"x.yaml is not UTF-8 text .*; save it as UTF-8"):
        read_text(file)
    wrong = {tmp_path: "Is a directory", "a\0b": "null", "x" * 5000: "too long", tmp_path / "no": "No such file"}
    for path, said in wrong.items():
        with pytest.raises(EdgepruneError, match=f"^.+: .*{said}.*; give the path of a file"):
            read_text(path)


@pytest.mark.parametrize(
    ("text", "said"), [("", "is empty"), ("# a\n", "is empty"), ("- 1", "a list"), ("7", "only '7'")]
)
def test_options_have_names(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(EdgepruneError, match=f"x.yaml .*{said}.*configs/quickstart.yaml"):
        read_options(tmp_path / "x.yaml")


def test_a_file_that_may_not_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(EdgepruneError, match=r"^.*x: Permission denied; give"):
        read_text(tmp_path / "x")
