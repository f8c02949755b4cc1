"""`edgeprune draw`: what is in the image, and what is refused."""

import json
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
import torch

from edgeprune.circuit import Circuit
from edgeprune.cli import main
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph, RoleSpec
from edgeprune.patching import PatchingResult
from edgeprune.patching.heatmap import draw_heatmaps, panels

LABELS = {"layer": ("0", "1", "end"), "head": ("0", "1"), "role": ("IO", "S1+1", "S2", "END")}


def result(*dims: str, **more: Any) -> PatchingResult:
    """Random effects over these axes."""
    labels = tuple(LABELS[name] for name in dims)
    shape = [len(names) for names in labels]
    values = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    options: dict[str, Any] = {
        "values": values,
        "clean": torch.ones_like(values),
        "corrupted": torch.zeros_like(values),
        "count": torch.ones(shape).long(),
        "what": "residual",
        "metric": "logit_difference",
        "direction": "noising",
        "model": "a-model",
    }
    return PatchingResult(**{**options, "dims": dims, "labels": labels, **more})


def error_line(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def colours(path: Path) -> np.ndarray:
    """Distinct colours of an image, `[number, 3]`."""
    return np.unique(matplotlib.image.imread(path)[..., :3].reshape(-1, 3), axis=0)


def test_a_result_becomes_an_image_beside_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = result("layer", "role").save(tmp_path / "residual.safetensors")
    assert main(["draw", str(path)]) == 0
    assert sorted(file.name for file in tmp_path.iterdir()) == ["residual.png", "residual.safetensors"]
    assert "residual.png" in capsys.readouterr().out
    assert colours(tmp_path / "residual.png").shape[0] > 50


def test_several_results_share_an_image(tmp_path: Path) -> None:
    one = result("layer", "role").save(tmp_path / "one.safetensors")
    two = result("layer", "head", what="z").save(tmp_path / "two.safetensors")
    assert main(["draw", str(one), str(two), "--out", str(tmp_path / "both.png")]) == 0
    assert main(["draw", str(one), "--out", str(tmp_path / "one.png")]) == 0
    both, alone = (matplotlib.image.imread(tmp_path / f"{name}.png") for name in ("both", "one"))
    assert both.shape[1] > alone.shape[1]


def test_one_panel_for_each_entry_of_a_third_axis() -> None:
    found = panels(result("layer", "head", "role", what="z"))
    assert [panel.title for panel in found] == [f"heads, output z, role {name}" for name in LABELS["role"]]
    assert [panel.effect.shape for panel in found] == [(3, 2)] * 4
    assert (found[1].row_axis, found[1].column_axis) == ("layer", "head")
    (row,) = panels(result("role"))
    assert (row.effect.shape, row.columns) == ((1, 4), LABELS["role"])
    (paths,) = panels(result("layer", "head", what="paths to logits", about={"mlps": "freeze"}))
    assert paths.title == "paths to logits (MLPs between: freeze)"


@pytest.mark.parametrize("dims", [("role",), ("layer", "head"), ("layer", "head", "role")])
def test_every_shape_is_drawn(tmp_path: Path, dims: tuple[str, ...]) -> None:
    path = draw_heatmaps([result(*dims, direction="denoising")], tmp_path / "map.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_no_effect_is_white_and_the_scale_is_symmetric(tmp_path: Path) -> None:
    values = torch.tensor([[1.0, 0.0], [1.0, 1.0]], dtype=torch.float64)  # one site corrupts, none helps
    options: dict[str, Any] = {"labels": (("0", "1"), ("0", "1")), "clean": torch.ones(2, 2), "count": torch.ones(2, 2)}
    one = result("layer", "head", values=values, corrupted=torch.zeros(2, 2), **options)
    image = matplotlib.image.imread(draw_heatmaps([one], tmp_path / "map.png"))[..., :3]
    darkest_red, middle, darkest_blue = ([103, 0, 31], [247, 247, 247], [5, 48, 97])  # ends and middle of RdBu
    share = [(np.abs(image * 255 - colour) < 12).all(-1).mean() for colour in (darkest_red, middle, darkest_blue)]
    assert share[0] > 0.05  # a quarter of the map
    assert share[1] > 2.5 * share[0]
    assert 0 < share[2] < 0.01  # only in the bar


def test_sites_without_a_value_are_grey(tmp_path: Path) -> None:
    values = result("layer", "head").values.clone()
    values[0] = torch.nan
    image = matplotlib.image.imread(draw_heatmaps([result("layer", "head", values=values)], tmp_path / "map.png"))
    assert (np.abs(image[..., :3] - 0.75) < 0.01).all(-1).mean() > 0.05


# ---------------------------------------------------------------- mistakes
def test_results_of_two_experiments_are_refused(tmp_path: Path) -> None:
    for more in ({"direction": "denoising"}, {"metric": "kl"}, {"model": "another"}):
        with pytest.raises(EdgepruneError, match="draw them apart"):
            draw_heatmaps([result("role"), result("role", **more)], tmp_path / "map.png")
    assert not list(tmp_path.iterdir())


def test_nothing_to_draw_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgepruneError, match="nothing to draw"):
        draw_heatmaps([result("role", clean=torch.zeros(4))], tmp_path / "map.png")


def test_files_that_draw_does_not_know(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = EdgeGraph(ArchSpec(num_layers=1, num_heads=1, num_kv_heads=1))
    circuit = Circuit.random(graph, 3).save(tmp_path / "circuit.safetensors")
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(circuit.read_bytes()[:50])
    for file, named in ((broken, "not a whole file"), (tmp_path / "none", "no file at")):
        assert main(["draw", str(file)]) == 2
        assert named in error_line(capsys)
    path = result("role").save(tmp_path / "result.safetensors")
    for out, named in (
        (tmp_path, "is a folder"),
        (tmp_path / "no" / "x.png", "no folder"),
        (tmp_path / "x.xyz", "xyz"),
    ):
        assert main(["draw", str(path), "--out", str(out)]) == 2
        assert named in error_line(capsys)
    assert main(["draw"]) == 2
    assert "FILE" in error_line(capsys)
    assert len(list(tmp_path.iterdir())) == 3


# -------------------------------------------------------------------- circuits
GRAPH = EdgeGraph(ArchSpec(num_layers=2, num_heads=2, num_kv_heads=1))


def circuit(folder: Path, name: str, num_edges: int, *, scores: bool = True) -> str:
    made = Circuit.random(GRAPH, num_edges, seed=num_edges)
    made = made if scores else Circuit(GRAPH, made.keep)
    return str(made.save(folder / f"{name}.safetensors"))


def page_data(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    return json.loads(text.partition('id="data">')[2].partition("</script>")[0])


@pytest.mark.parametrize("suffix", [".html", ".svg", ".png", ".pdf", ".dot"])
def test_a_circuit_in_every_format(suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = circuit(tmp_path, "one", 9), circuit(tmp_path, "two", 5)
    out = tmp_path / f"drawn{suffix}"
    assert main(["draw", one, "--diff", two, "--out", str(out)]) == 0
    assert out.stat().st_size > 500
    assert str(out) in capsys.readouterr().out


def test_a_circuit_becomes_a_page_beside_it(tmp_path: Path) -> None:
    assert main(["draw", circuit(tmp_path, "one", 9), "--max-edges", "4"]) == 0
    data = page_data(tmp_path / "one.html")
    assert [len(order) for order in data["order"]] == [4]
    assert data["compare"] is None


def test_a_part_without_dangling_edges(tmp_path: Path) -> None:
    edges = ["embed->m0", "m0->logits", "a0.h0->m1"]
    path = Circuit.from_edges(GRAPH, edges, {"method": "eap"}).save(tmp_path / "one.safetensors")
    assert main(["draw", str(path), "--without-dangling"]) == 0
    data = page_data(tmp_path / "one.html")
    assert [len(order) for order in data["order"]] == [2]
    assert ["part of", "3 edges"] in data["circuits"][0]["facts"]
    assert main(["draw", str(path), "--without-dangling", "--out", str(tmp_path / "one.svg")]) == 0
    assert "2 of the 3 are drawn" in (tmp_path / "one.svg").read_text()


def test_a_difference_to_an_edge_list(tmp_path: Path) -> None:
    one = circuit(tmp_path, "one", 9)
    (tmp_path / "truth.json").write_text(json.dumps(["embed->m0", "m0->logits"]))
    assert main(["draw", one, "--diff", str(tmp_path / "truth.json")]) == 0
    data = page_data(tmp_path / "one.html")
    assert [item["name"] for item in data["circuits"]] == ["one", "truth"]
    assert (data["start"], data["compare"], len(data["order"][1])) == (0, 1, 2)


def test_a_run_becomes_a_page_with_all_its_circuits(tmp_path: Path) -> None:
    for name, size in (("final", 3), ("sparsity-0.5000", 12), ("sparsity-0.8000", 6)):
        circuit(tmp_path / "circuits", name, size)
    assert main(["draw", str(tmp_path)]) == 0
    data = page_data(tmp_path / "circuits.html")
    assert [item["name"] for item in data["circuits"]] == ["sparsity-0.5000", "sparsity-0.8000", "final"]


def role_circuit_file(folder: Path, name: str, roles: tuple[str, ...] = ("IO", "S2", "rest")) -> str:
    made = Circuit.random(GRAPH.with_roles(RoleSpec(roles, scored=(roles[-1],))), 20, seed=len(roles))
    return str(made.save(folder / f"{name}.safetensors"))


def test_circuits_with_roles(tmp_path: Path) -> None:
    path = role_circuit_file(tmp_path, "one")
    made = Circuit.load(path)
    for more, role in (([], None), (["--role", "S2"], "S2"), (["--role", "union"], "union")):
        assert main(["draw", path, *more]) == 0
        data = page_data(tmp_path / "one.html")
        assert (data["role"], len(data["order"][0])) == (role, 20)
        assert len(data["union"]["order"][0]) == made.union().num_edges
    for more, number in (([], made.union().num_edges), (["--role", "S2"], int(made.keep[1].sum()))):
        assert main(["draw", path, "--out", str(tmp_path / "one.dot"), *more]) == 0
        assert (tmp_path / "one.dot").read_text().count(' class="') == number
    assert main(["draw", path, "--out", str(tmp_path / "one.dot"), "--role", "S2", "--without-dangling"]) == 0
    useful = int(made.without_dangling().keep[1].sum())
    assert useful < int(made.keep[1].sum())
    assert (tmp_path / "one.dot").read_text().count(' class="') == useful
    assert main(["draw", path, "--max-edges", "7"]) == 0
    assert len(page_data(tmp_path / "one.html")["order"][0]) == 7


def test_differences_of_circuits_with_roles(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, same = role_circuit_file(tmp_path, "one"), role_circuit_file(tmp_path, "same")
    other, plain = role_circuit_file(tmp_path, "other", ("IO", "rest")), circuit(tmp_path, "plain", 9)
    (tmp_path / "truth.json").write_text(json.dumps(["embed->m0", "m0->logits"]))
    assert main(["draw", one, "--diff", same]) == 0
    assert page_data(tmp_path / "one.html")["compare"] == 1
    for path in (other, plain, str(tmp_path / "truth.json")):
        assert main(["draw", one, "--diff", path]) == 2
        assert "one has the roles IO, S2, rest; compare their unions: --role union" in error_line(capsys)
        assert main(["draw", one, "--diff", path, "--role", "union"]) == 0
        data = page_data(tmp_path / "one.html")
        assert "role" not in data
        assert len(data["order"][0]) == Circuit.load(one).union().num_edges
        assert main(["draw", one, "--diff", path, "--out", str(tmp_path / "x.svg")]) == 0
        assert "only in one" in (tmp_path / "x.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["one", "--role", "S3"], "no role named 'S3'; the roles are IO, S2, rest"),
        (["one", "--role", "S3", "--out", "x.svg"], "no role named 'S3'"),
        (["plain", "--role", "S2"], "--role S2: plain has no roles; leave it out"),
        (["one", "plain"], "plain has no roles, one has the roles IO, S2, rest"),
        (
            ["one", "--diff", "plain.safetensors", "--role", "S2", "--out", "x.svg"],
            "plain has no roles, so none is 'S2'",
        ),
    ],
)
def test_mistakes_with_roles(
    arguments: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    role_circuit_file(tmp_path, "one")
    circuit(tmp_path, "plain", 9)
    before = sorted(tmp_path.iterdir())
    named = [f"{one}.safetensors" if one in ("one", "plain") else one for one in arguments]
    assert main(["draw", *named]) == 2
    assert said in error_line(capsys)
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--out", "x.gif"], "cannot draw a circuit as '.gif'"),
        (["--max-edges", "0"], "--max-edges must be at least 1, got 0"),
        (["--max-edges", "5"], "one has 9 edges, more than 5, and no scores"),
        (["--diff", "absent.json"], "absent.json"),
        (["two.safetensors", "--out", "x.svg"], "a .svg file is of one circuit"),
        (["two.safetensors", "--diff", "two.safetensors"], "--diff is of one circuit"),
        (["patching.safetensors"], "draw them apart"),
        (["--out", "absent/x.svg"], "there is no folder absent"),
    ],
)
def test_mistakes_with_circuits(
    more: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    circuit(tmp_path, "one", 9, scores=False)
    circuit(tmp_path, "two", 5)
    result("layer", "role").save(tmp_path / "patching.safetensors")
    before = sorted(tmp_path.iterdir())
    assert main(["draw", "one.safetensors", *more]) == 2
    assert said in error_line(capsys)
    assert sorted(tmp_path.iterdir()) == before


def test_options_of_circuits_are_refused_for_patching(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = result("layer", "role").save(tmp_path / "residual.safetensors")
    for option in (["--diff", str(path)], ["--max-edges", "5"], ["--without-dangling"], ["--role", "S2"]):
        assert main(["draw", str(path), *option]) == 2
        assert f"{option[0]} is for circuits" in error_line(capsys)
