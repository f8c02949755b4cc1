"""`discover --roles`, and its circuits in `evaluate` and `polish`."""

import json
from pathlib import Path

import pytest
import torch
import yaml

from edgeprune.circuit import ROLE_FORMAT, Circuit
from edgeprune.circuit_attention import num_at
from edgeprune.cli import main
from edgeprune.comparison.nested import circuits_of_runs
from edgeprune.sealed import says
from tests.cli.test_discover import arguments, error_line

QUICK = ["--seeds", "2", "--draws", "20", "--random", "2", "--test-limit", "4", "--minimality-edges", "4"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of one run with roles, and a file of its data alone."""
    out = tmp_path_factory.mktemp("roles") / "out"
    assert main(arguments(out, "--roles", "positions")) == 0
    data = yaml.safe_load((out / "config.yaml").read_text())["data"]
    (out.parent / "data.yaml").write_text(yaml.safe_dump({"data": data}))
    return out


def test_scores_and_circuits_are_of_edges_at_roles(folder: Path) -> None:
    everything = Circuit.load(folder / "scores.safetensors")
    roles = everything.roles
    assert roles == tuple(f"p{place}" for place in range(len(roles)))
    assert len(roles) > 2
    assert says(folder / "scores.safetensors", ROLE_FORMAT)
    assert yaml.safe_load((folder / "config.yaml").read_text())["roles"] == "positions"
    assert everything.scores is not None
    assert (everything.scores.abs().amax((1, 2)) > 0).sum() > 1
    circuit = Circuit.load(folder / "circuits" / "sparsity-0.9000.safetensors")
    assert circuit.roles == roles
    assert circuit.num_dangling == 0  # the config drops those
    assert 0 < circuit.num_edges <= 0.1 * everything.graph.num_edges
    assert torch.equal(circuit.scores, everything.scores)  # pyright: ignore[reportArgumentType]


def test_circuits_of_one_run_are_known_as_such(folder: Path) -> None:
    circuits = [Circuit.load(folder / "circuits" / f"sparsity-{name}.safetensors") for name in ("0.8000", "0.9000")]
    assert circuits_of_runs(circuits) == [[1, 0]]


def test_evaluate_judges_them_beside_their_union(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, union, out = folder / "circuits" / "sparsity-0.9000.safetensors", tmp_path / "u.safetensors", tmp_path / "o"
    circuit = Circuit.load(path)
    circuit.union().save(union)
    page = tmp_path / "page.html"
    more = ["--config", str(folder.parent / "data.yaml"), "--split", "validation", *QUICK, "--tests", "all"]
    more += ["--json", str(out), "--report", str(page)]
    assert main(["evaluate", str(path), str(union), *more]) == 0
    result = json.loads(out.read_text(), parse_constant=pytest.fail)
    first, second = result["circuits"]
    figures = first["ablations"]["interchange"]["measures"]
    assert figures["squared_error"]["value"] == pytest.approx(circuit.header["metrics"]["squared_error"], rel=1e-4)
    assert result["about"]["roles"] == first["roles"] == list(circuit.roles)
    assert first["union"]["edges"] == second["edges"] == circuit.union().num_edges
    assert first["mib"]["cmd"] is not None
    shown = capsys.readouterr().out
    assert "union's" in shown
    assert "edges shared by their unions" in shown
    assert result["pairs"][0]["both"] == second["edges"]
    assert f"{circuit.num_edges}" in shown
    assert f"union {circuit.union().num_edges}" in page.read_text()


def test_polish_swaps_edges_at_roles(folder: Path, tmp_path: Path) -> None:
    path, out = folder / "circuits" / "sparsity-0.9500.safetensors", tmp_path / "better.safetensors"
    circuit = Circuit.load(path)
    worse = circuit.with_edges(circuit.keep, {"by": "hand"})
    start = tmp_path / "start.safetensors"
    worse.save(start)
    more = ["--config", str(folder / "config.yaml"), "--limit", "12", "--held-out", "6", "--max-passes", "12"]
    assert main(["polish", str(start), *more, "--out", str(out)]) == 0
    better = Circuit.load(out)
    about = better.header["derived"][-1]["polished"]
    assert better.roles == circuit.roles
    assert better.num_edges == circuit.num_edges
    assert about["loss"] <= about["start"]
    assert (about["swaps"] > 0) == (not torch.equal(better.keep, circuit.keep))


# -------------------------------------------------------------------- mistakes
def test_a_task_without_roles_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(tmp_path / "out", "--roles", "true")) == 2
    assert "marks no position roles" in error_line(capsys)
    assert not (tmp_path / "out").exists()


def test_prompts_that_lack_the_roles_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = yaml.safe_load((folder.parent / "data.yaml").read_text())
    data["data"]["task"]["init_args"]["lengths"] = [4]
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(data))
    path = folder / "circuits" / "sparsity-0.9000.safetensors"
    capsys.readouterr()
    assert main(["evaluate", str(path), "--config", str(tmp_path / "other.yaml"), *QUICK]) == 2
    line = error_line(capsys)
    assert "sparsity-0.9000.safetensors has the roles p0, p1, " in line
    assert "prompts of one length" in line


def test_circuits_of_other_roles_are_judged_apart(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = folder / "circuits" / "sparsity-0.9000.safetensors"
    circuit = Circuit.load(path)
    roles = circuit.graph.with_roles(None).with_roles(type(circuit.graph.roles)(("X", "rest")))  # pyright: ignore
    Circuit(roles, roles.exists, None, circuit.header).save(tmp_path / "x.safetensors")
    for files, what in (
        ([str(path), str(tmp_path / "x.safetensors")], "run them apart"),
        ([str(tmp_path / "x.safetensors")], "has the roles X, rest: no prompt has a role 'X'"),
    ):
        assert main(["evaluate", *files, "--config", str(folder.parent / "data.yaml"), *QUICK]) == 2
        assert what in error_line(capsys)


# -------------------------------------------------------------------- attention edges
@pytest.fixture
def closed(folder: Path, tmp_path: Path) -> Path:
    """A circuit with every second attention edge closed."""
    circuit = Circuit.load(folder / "circuits" / "sparsity-0.8000.safetensors")
    edges = circuit.graph.attention
    attend = edges.exists.flatten() & (torch.arange(edges.exists.numel()) % 2 == 0)
    circuit.with_attention(attend.view(edges.shape), {}).save(tmp_path / "closed.safetensors")
    return tmp_path / "closed.safetensors"


def test_closed_attention_edges_are_judged(
    folder: Path, closed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, out, page = folder / "circuits" / "sparsity-0.8000.safetensors", tmp_path / "o.json", tmp_path / "page.html"
    config = ["--config", str(folder.parent / "data.yaml"), "--split", "validation", *QUICK]
    capsys.readouterr()
    more = ["--json", str(out), "--report", str(page)]
    assert main(["evaluate", str(plain), str(closed), *config, *more]) == 0
    assert "attention" in capsys.readouterr().out
    result = json.loads(out.read_text(), parse_constant=pytest.fail)
    first, second = result["circuits"]
    circuit = Circuit.load(closed)
    number = circuit.graph.attention.num_edges
    assert "attention" not in first
    assert second["attention"] == {"edges": number // 2, "all_edges": number, "sparsity": 0.5}
    name = next(iter(first["ablations"]))
    rows = [row["ablations"][name]["measures"]["squared_error"]["value"] for row in (first, second)]
    assert abs(rows[0] - rows[1]) > 1e-3
    assert f"attention edges {number // 2} of {number}" in page.read_text()
    (pair,) = result["pairs"]
    assert (pair["attention"]["both"], pair["attention"]["only_found"]) == (number // 2, number // 2)
    assert main(["evaluate", str(closed), *config, "--tests", "controls"]) == 2
    assert "test 'controls' is of edges alone" in error_line(capsys)


def test_closed_attention_edges_are_compared_and_listed(
    folder: Path, closed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, out = folder / "circuits" / "sparsity-0.8000.safetensors", tmp_path / "o.json"
    capsys.readouterr()
    assert main(["compare", str(plain), str(closed), "--edges", "--json", str(out)]) == 0
    assert "Shared attention edges" in capsys.readouterr().out
    circuit, (pair,) = Circuit.load(closed), json.loads(out.read_text())["pairs"]
    edges = circuit.graph.attention
    assert circuit.attend is not None
    assert pair["edges_only_a"] == edges.names(edges.exists & ~circuit.attend)
    assert pair["edges_only_b"] == []
    assert pair["attention"]["jaccard"] == 0.5
    assert pair["jaccard"] == 1
    assert main(["compare", str(plain), str(closed), "--union"]) == 0
    assert "attention edges that they close are open there" in " ".join(capsys.readouterr().out.split())


def test_closed_attention_edges_are_drawn(folder: Path, closed: Path, tmp_path: Path) -> None:
    page, dot = tmp_path / "page.html", tmp_path / "page.dot"
    assert main(["draw", str(closed), "--out", str(page)]) == 0
    data = json.loads(page.read_text().split('id="data">')[1].split("</script>")[0])
    circuit = Circuit.load(closed)
    (shown,) = data["attention"]
    assert [f"{head}[{one.replace(chr(92) + 'u003c', '<')}]" for head in shown for one in shown[head]] == (
        circuit.attention_edges()
    )
    number = len(circuit.attention_edges())
    assert ["attention edges", f"{number} of {circuit.graph.attention.num_edges}"] in data["circuits"][0]["facts"]
    for role, count in (("union", number), ("p1", number // len(circuit.roles))):
        assert main(["draw", str(closed), "--out", str(dot), "--role", role]) == 0
        assert f"without its {count} attention edges" in dot.read_text().splitlines()[0]


def test_commands_that_open_attention_edges_refuse_them(
    folder: Path, closed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ["--config", str(folder.parent / "data.yaml")]
    capsys.readouterr()
    assert main(["polish", str(closed), *config, "--out", str(tmp_path / "out.safetensors")]) == 2
    assert "attention edges, which" in error_line(capsys)


@pytest.mark.parametrize("more", [[], ["--membership"], ["--like"]])
def test_convert_keeps_attention_edges_closed(folder: Path, tmp_path: Path, more: list[str]) -> None:
    circuit = Circuit.load(folder / "circuits" / "sparsity-0.9000.safetensors")
    edges = circuit.graph.attention
    scores = torch.rand(edges.shape)
    path, out = tmp_path / "closed.safetensors", tmp_path / "out.safetensors"
    circuit.with_attention(edges.exists & (scores > 0.5), {}, scores).save(path)
    assert main(["convert", str(path), str(out), *more, *([str(path)] if more == ["--like"] else [])]) == 0
    before, after = Circuit.load(path), Circuit.load(out)
    assert after.attention_edges() == before.attention_edges()
    assert (after.attend_scores is None) == (more == ["--membership"])


# -------------------------------------------------------------------- attention edges that `discover` scores
def test_discover_scores_attention_edges_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    options = ["--roles", "positions", "--attention", "true", "--metric", "nll"]
    assert main(arguments(out, *options)) == 0
    everything = Circuit.load(out / "scores.safetensors")
    assert everything.attend is None
    assert everything.attend_scores is not None
    edges, existing = everything.graph.attention, everything.graph.num_edges
    for path in (out / "circuits").glob("*.safetensors"):
        circuit = Circuit.load(path)
        assert circuit.attend is not None
        ranks = edges.to_vector(everything.attend_scores.abs())
        kept = edges.to_vector(circuit.attend)
        before = num_at(edges.num_edges, 1 - circuit.header["selection"]["edges_before_pruning"] / existing, None)
        assert 0 < len(circuit.attention_edges()) <= before < edges.num_edges
        assert ranks[kept].min() >= ranks.sort(descending=True).values[before - 1]
        assert circuit.num_dangling == 0  # the config drops those
        assert circuit.header["selection"]["edges"] == circuit.num_edges
    capsys.readouterr()
    assert main(arguments(tmp_path / "other", "--attention", "true")) == 2
    assert "give --roles, or leave it out" in error_line(capsys)
    flat = ["--roles", "positions", "--attention", "true", "--metric", "kl", "--method", "RandomScores"]
    assert main(arguments(tmp_path / "flat", *flat)) == 2
    assert "scoring attention edges takes the gradient at the full model" in error_line(capsys)
    assert not (tmp_path / "flat").exists()
