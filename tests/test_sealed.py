"""Files under a seal: whatever bit of one is changed, it is refused; for every format that is written so."""

import json
from collections.abc import Callable
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from edgeprune.ablations import load_states, save_states
from edgeprune.ablations.means import zero
from edgeprune.circuit import Circuit
from edgeprune.compiled.trained_induction import WEIGHTS, read_weights
from edgeprune.errors import EdgepruneError
from edgeprune.graph import ArchSpec, EdgeGraph
from edgeprune.methods.acdc_state import FILE as ACDC_FILE
from edgeprune.methods.acdc_state import Counts, State, ThresholdRun
from edgeprune.methods.exact import STATE_FILE, _State  # pyright: ignore[reportPrivateUsage]
from edgeprune.models.weight_mask import WeightMask
from edgeprune.patching.result import PatchingResult
from edgeprune.sealed import SealedFile
from tests.methods.small_problems import linear_model
from tests.test_circuit import flips

GRAPH = EdgeGraph(ArchSpec(num_layers=1, num_heads=2, num_kv_heads=2))
ABOUT = {"name": "größer", "small": 1e-05, "nothing": None, "many": [1, 2.5, True], "not": float("nan")}

IDENTITY = {"model": "some", "taus": [0.01, float("inf")]}


class Case(NamedTuple):
    """How a file of one format is made in a folder, and read."""

    make: Callable[[Path], Path]
    read: Callable[[Path], Any]


_model = cache(linear_model)


def _states(folder: Path) -> Path:
    model = _model()
    states = zero(model).map(lambda field: torch.full_like(field, 1 / 3))
    return save_states(folder / "states.safetensors", model, states, ABOUT)


def _acdc(folder: Path) -> Path:
    effects = torch.rand(GRAPH.shape, dtype=torch.float64)
    run = ThresholdRun(0.01, GRAPH.exists.clone(), effects, 3, 0.5, 1e-05, counts=Counts(tested=5))
    State(IDENTITY, [run]).save(folder)
    return folder / ACDC_FILE


def _exact(folder: Path) -> Path:
    sweep = _sweep(folder)
    for number in range(5):
        sweep.add(torch.tensor(number / 7))
    sweep.save()
    return folder / STATE_FILE


def _sweep(folder: Path) -> _State:
    return _State.start("the key", 8, folder)


def _patching(folder: Path) -> Path:
    values = torch.rand(3, 2, 2, dtype=torch.float64)
    values[0, 0, 0] = torch.nan  # a site that no example has
    result = PatchingResult(
        values=values[0],
        clean=values[1],
        corrupted=values[2],
        count=torch.arange(4).view(2, 2),
        dims=("layer", "role"),
        labels=(("0", "end"), ("io", "s")),
        what="residual",
        metric="kl",
        direction="noising",
        about=ABOUT,
    )
    return result.save(folder / "result.safetensors")


def _weight_mask(folder: Path) -> Path:
    keep = {"a.weight": torch.arange(15).view(3, 5) % 2 == 0, "b.bias": torch.ones(4, dtype=torch.bool)}
    return WeightMask(keep, "0123", {"a0.h0": 1 / 3}, ABOUT).save(folder / "mask.safetensors")


def _weights(folder: Path) -> Path:
    (folder / WEIGHTS).write_bytes((resources.files("edgeprune.compiled") / WEIGHTS).read_bytes())
    return folder / WEIGHTS


def _circuit(folder: Path) -> Path:
    scores = torch.where(GRAPH.exists, torch.rand(GRAPH.shape), 0.0)
    return Circuit.from_scores(GRAPH, scores, num_edges=7, header=ABOUT).save(folder / "circuit.safetensors")


def _read_acdc(path: Path) -> State:
    return State.load(path.parent, IDENTITY)


def _read_exact(path: Path) -> _State:
    return _sweep(path.parent)


def _read_states(path: Path) -> Any:
    return load_states(path, _model())


CASES = {
    "circuit": Case(_circuit, Circuit.load),
    "ablation states": Case(_states, _read_states),
    "state of ACDC": Case(_acdc, _read_acdc),
    "sweep of exact patching": Case(_exact, _read_exact),
    "weight mask": Case(_weight_mask, WeightMask.load),
    "patching result": Case(_patching, PatchingResult.load),
    "shipped weights": Case(_weights, read_weights),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


def refused(case: Case, path: Path, content: bytes) -> str:
    """The one line in which a content is refused; the file has its own content again."""
    whole = path.read_bytes()
    path.write_bytes(content)
    try:
        with pytest.raises(EdgepruneError) as caught:
            case.read(path)
    finally:
        path.write_bytes(whole)
    line = str(caught.value)
    assert str(path) in line
    assert "\n" not in line
    return line


def test_a_flipped_bit_anywhere_is_refused(case: Case, tmp_path: Path) -> None:
    path = case.make(tmp_path)
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    places = [(place, 1 << place % 8) for place in range(0, header, 3)]
    for place, bit in (*places, *flips(len(whole), 200)):
        altered = whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :]
        assert "is not a whole" in refused(case, path, altered), place
    case.read(path)  # the file itself is right


def test_a_value_written_in_another_way_is_refused(case: Case, tmp_path: Path) -> None:
    """The same number or letter to JSON, but not what was written: a bit that was flipped all the same."""
    path = case.make(tmp_path)
    whole = path.read_bytes()
    for one, other in ((b"1e-05", b"1E-05"), (b"u00f6", b"u00F6")):
        if one in whole:
            refused(case, path, whole.replace(one, other))
    end = 8 + int.from_bytes(whole[:8], "little")
    spaced = whole[8:end].rstrip().replace(b'{\\"', b'{ \\"', 1)
    refused(case, path, len(spaced).to_bytes(8, "little") + spaced + whole[end:])


def test_a_cut_or_empty_file_is_refused(case: Case, tmp_path: Path) -> None:
    path = case.make(tmp_path)
    whole = path.read_bytes()
    for length in (0, 1, 7, 8, 9, 100, len(whole) // 2, len(whole) - 1):
        assert "is not a whole" in refused(case, path, whole[:length])
    refused(case, path, whole + b"\0")


def test_a_file_without_a_seal_is_refused_with_what_to_do(case: Case, tmp_path: Path) -> None:
    """As earlier versions wrote all but circuits."""
    path = case.make(tmp_path)
    with safe_open(path, framework="pt") as file:
        header = json.loads(file.metadata()["edgeprune"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    del header["sha256"]
    save_file(tensors, tmp_path / "bare", metadata={"edgeprune": json.dumps(header)})
    line = refused(case, path, (tmp_path / "bare").read_bytes())
    assert "it has no seal" in line
    assert any(remedy in line for remedy in ("; write it again", "; remove it to begin anew", "; install the package"))


def test_a_refused_state_of_a_sweep_stays_as_it_is(tmp_path: Path) -> None:
    path = _exact(tmp_path)
    path.write_bytes(path.read_bytes()[:-1])
    before = path.read_bytes()
    with pytest.raises(EdgepruneError, match="remove it to begin anew"):
        _sweep(tmp_path)
    assert path.read_bytes() == before


def test_any_tensor_and_plain_header_come_back(tmp_path: Path) -> None:
    kind = SealedFile("some/1", "file of something")
    tensors = {
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 3),
        "turned": torch.arange(6).view(2, 3).T,
        "half": torch.rand(3).bfloat16(),
    }
    kind.write(tmp_path / "a.safetensors", tensors, {"sizes": {10: "a", 9: "b"}, "path": Path("x")})
    header, found = kind.read(tmp_path / "a.safetensors")
    assert header["sizes"] == {"10": "a", "9": "b"}
    assert header["path"] == "x"
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert torch.equal(found[name], tensor)
        assert found[name].dtype == tensor.dtype
