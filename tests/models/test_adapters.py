"""LoRA adapters of PEFT: refused with what to do, and taken once merged."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from edgeprune.errors import EdgepruneError, UnsupportedFamilyError
from edgeprune.models.families.llama import Llama
from edgeprune.models.loading import load_model

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")  # PEFT asks for it
IDS = torch.arange(6)[None]


def wrapped(*targets: str) -> Any:
    torch.manual_seed(0)
    model = peft.get_peft_model(
        AutoModelForCausalLM.from_config(Llama.tiny()[0]),
        peft.LoraConfig(r=2, target_modules=list(targets), task_type="CAUSAL_LM", init_lora_weights=False),
    )
    return model.eval()


@pytest.mark.parametrize("target", ["q_proj", "up_proj"])
def test_an_adapter_is_merged_first(target: str) -> None:
    model = wrapped(target)
    expected = model(IDS).logits.detach()
    with pytest.raises(UnsupportedFamilyError, match=r"PeftModelForCausalLM holds adapters of PEFT.*merge_and_unload"):
        load_model(model)
    merged = model.merge_and_unload()
    loaded = load_model(merged).full(IDS)
    assert torch.equal(loaded, merged(IDS).logits)
    assert torch.allclose(loaded, expected, atol=1e-5)


def test_an_adapter_put_into_the_model_is_one_too() -> None:
    with pytest.raises(UnsupportedFamilyError, match="LlamaForCausalLM holds adapters of PEFT"):
        load_model(wrapped("up_proj").get_base_model())


def test_a_folder_with_an_adapter_is_no_model(tmp_path: Path) -> None:
    wrapped("q_proj").save_pretrained(tmp_path)
    assert (tmp_path / "adapter_config.json").is_file()
    with pytest.raises(EdgepruneError, match=r"holds an adapter of PEFT; load it with its base model, merge them"):
        load_model(tmp_path)
