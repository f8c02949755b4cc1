"""States that are the same for every example, to a file and back."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from datamodules.tasks.base import TokenPair
from edgeprune.ablations import load_states, mean_of_pairs, save_states
from edgeprune.ablations.runs import ReferenceRuns
from edgeprune.errors import EdgepruneError
from edgeprune.models.masked import MaskedModel
from tests.ablations.cases import PAIRS, against_the_right_edge, batch_of, fields
from tests.methods.small_problems import linear_model, random_pairs, tiny


@pytest.fixture(scope="module")
def model() -> MaskedModel:
    return tiny("gpt2")


@pytest.fixture
def path(model: MaskedModel, tmp_path: Path) -> Path:
    states = mean_of_pairs(model, [batch_of(PAIRS)])
    return save_states(tmp_path / "new" / "means.safetensors", model, states, {"from": "six pairs"})


def test_states_come_back_as_they_were(model: MaskedModel, path: Path) -> None:
    states = mean_of_pairs(model, [batch_of(PAIRS)])
    for found in (load_states(path, model), ReferenceRuns(model, f"optimal:{path}").states()):
        for one, other in zip(fields(found), fields(states), strict=True):
            assert torch.equal(one, other)
            assert one.dtype == other.dtype
    assert [item.name for item in path.parent.iterdir()] == ["means.safetensors"]


def test_positional_means_from_a_file_are_positional_means(model: MaskedModel, tmp_path: Path) -> None:
    batch = against_the_right_edge(batch_of(PAIRS))
    states = mean_of_pairs(model, [batch], positional=True)
    runs = ReferenceRuns(model, "mean:positional")
    runs.prepare([batch])
    again = ReferenceRuns(model, f"optimal:{save_states(tmp_path / 'means.safetensors', model, states, {})}")
    for found, wanted in zip(fields(again(batch, "train")[1]), fields(runs(batch, "train")[1]), strict=True):
        assert torch.equal(found, wanted)
    with pytest.raises(EdgepruneError, match="knows the first 6 positions"):
        again(batch_of([TokenPair((1,) * 7, (2,) * 7, (6,), (3,), (4,))]), "train")


def test_a_model_without_mlps_has_none_in_its_file(tmp_path: Path) -> None:
    model = linear_model()
    states = mean_of_pairs(model, [batch_of(random_pairs(2))])
    assert load_states(save_states(tmp_path / "means.safetensors", model, states, {}), model).mlps is None


def test_files_of_other_models_are_refused(path: Path) -> None:
    for other in (tiny("gpt2", split_embedding=True), tiny("llama")):
        with pytest.raises(EdgepruneError, match=r"belongs to a model with fingerprint .*, this one has"):
            load_states(path, other)


def test_damaged_files_and_folders_are_refused(model: MaskedModel, path: Path, tmp_path: Path) -> None:
    with pytest.raises(EdgepruneError, match=r"no file of states at .*missing"):
        ReferenceRuns(model, f"optimal:{tmp_path / 'missing.safetensors'}")
    with pytest.raises(EdgepruneError, match="is a folder"):
        save_states(tmp_path, model, load_states(path, model), {})
    path.write_bytes(path.read_bytes()[:-8])
    not_whole = r"is not a whole file of states of format edgeprune-states/1.*write it again"
    with pytest.raises(EdgepruneError, match=not_whole):
        load_states(path, model)
    save_file({"keep": torch.zeros(2)}, path, metadata={"edgeprune": '{"format": "edgeprune-circuit/1"}'})
    with pytest.raises(EdgepruneError, match="it holds edgeprune-circuit/1"):
        load_states(path, model)
    save_file({"keep": torch.zeros(2)}, path)
    with pytest.raises(EdgepruneError, match="missing 'edgeprune'"):
        load_states(path, model)
