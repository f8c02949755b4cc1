"""Weights in GGUF form: unpacked they are as good as others, whatever the config says; packed ones are refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from edgeprune.errors import EdgepruneError, UnsupportedFamilyError
from edgeprune.models.families.llama import Llama
from edgeprune.models.loading import load_model

pytest.importorskip("gguf")
pytest.importorskip("accelerate")

from tests.models.tiny_gguf import write_gguf

IDS = torch.arange(6)[None]


@pytest.mark.parametrize("quantised", [False, True])
def test_a_file_is_unpacked_to_the_numbers_that_it_holds(tmp_path: Path, quantised: bool) -> None:
    expected = write_gguf(tmp_path / "tiny.gguf", quantised=quantised)
    model = load_model(tmp_path, gguf_file="tiny.gguf")
    assert model.dtype == torch.float32
    for name, weight in expected.state_dict().items():
        assert torch.equal(model.hf.state_dict()[name], weight), name
    assert torch.equal(model.full(IDS), expected(IDS).logits)
    assert load_model(tmp_path, gguf_file="tiny.gguf", dtype="bfloat16").dtype == torch.bfloat16


def test_a_tensor_that_the_file_lacks_is_named(tmp_path: Path) -> None:
    write_gguf(tmp_path / "tiny.gguf", quantised=True, without="blk.1.ffn_up.weight")
    with pytest.raises(EdgepruneError, match=r"lacks the weights model.layers.1.mlp.up_proj.weight, which its config"):
        load_model(tmp_path, gguf_file="tiny.gguf")


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "tiny.gguf"
    write_gguf(path, quantised=False)
    path.write_bytes(path.read_bytes()[:1000])
    for name in ("tiny.gguf", "other.gguf"):
        with pytest.raises(EdgepruneError, match=r"^cannot load model '[^']*': [^\n]*$"):
            load_model(tmp_path, gguf_file=name)
    with pytest.raises(EdgepruneError, match=r"tiny.gguf' is a file; give the folder .* as gguf_file"):
        load_model(path)


def llama() -> Any:
    return AutoModelForCausalLM.from_config(Llama.tiny()[0])


def test_plain_weights_count_whatever_the_config_says() -> None:
    hf = llama()
    hf.config.quantization_config = BitsAndBytesConfig(load_in_8bit=True)
    assert load_model(hf).hf is hf


class Packed(nn.Module):
    """A linear map whose weight lies in a buffer, as GPTQ and AWQ keep it."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("qweight", torch.zeros(4, 32, dtype=torch.int32))


class Params4bit(nn.Parameter):
    """A parameter of a class of its own, as bitsandbytes has it."""


@pytest.mark.parametrize(
    "packed",
    [
        nn.Parameter(torch.zeros(48, 32, dtype=torch.int8), requires_grad=False),
        nn.Parameter(torch.zeros(48, 32).to(torch.float8_e4m3fn), requires_grad=False),
        Params4bit(torch.zeros(48, 32)),
    ],
    ids=["int8", "float8", "class"],
)
def test_packed_weights_are_refused_whatever_the_config_says(packed: nn.Parameter) -> None:
    hf = llama()
    hf.model.layers[1].mlp.up_proj.weight = packed
    assert getattr(hf.config, "quantization_config", None) is None
    with pytest.raises(UnsupportedFamilyError, match=r"quantised weights \(model.layers.1.mlp.up_proj.weight\) cannot"):
        load_model(hf)


def test_a_projection_without_a_plain_weight_is_refused() -> None:
    hf = llama()
    hf.model.layers[0].self_attn.q_proj = Packed()
    with pytest.raises(EdgepruneError, match="q_proj is a Packed, expected a plain Linear; merge adapters first, or"):
        load_model(hf)
