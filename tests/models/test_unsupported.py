"""Models without an adapter: one line with the reason and the types that have one, before weights are looked at."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    Gemma3Config,
    LlamaConfig,
    LlavaConfig,
    MistralConfig,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from edgeprune.cli import main
from edgeprune.errors import UnsupportedFamilyError
from edgeprune.models.families.gemma import Gemma3
from edgeprune.models.families.gpt_oss import GptOss
from edgeprune.models.families.rotary import RotaryDecoder
from edgeprune.models.family import find_family, registry
from edgeprune.models.loading import load_model
from edgeprune.models.masked import MaskedModel
from edgeprune.models.unsupported import reason

ENCODER_DECODER = "it is an encoder-decoder, and the graph has no edges from an encoder"
LATENT = "it has multi-head latent attention"
REASONS = {
    "t5": ENCODER_DECODER,
    "bart": ENCODER_DECODER,
    "whisper": ENCODER_DECODER,
    "deepseek_v2": LATENT,
    "deepseek_v3": LATENT,
    "minicpm3": LATENT,
    "kimi_linear": LATENT,
    "mamba": "it has layers (linear_attention) that are not softmax attention",
    "mamba2": "it has layers (linear_attention) that",
    "falcon_mamba": "it has layers (linear_attention) that",
    "jamba": "it has layers (linear_attention) that",
    "bamba": "it has layers (linear_attention) that",
    "zamba2": "it has layers (hybrid, linear_attention) that",
    "falcon_h1": "it has layers (hybrid) that",
    "qwen3_next": "it has layers (linear_attention) that",
    "granitemoehybrid": "it has layers (linear_attention) that",
    "nemotron_h": "it has layers (linear_attention, mlp, moe) that",
    "minimax": "it has layers (linear_attention) that",
    "lfm2": "it has layers (convolution) that",
    "recurrent_gemma": "it has layers (",
    "rwkv": "it has layers (linear attention) that",
    "xlstm": "it has layers (recurrent) that",
    "qwen2_vl": "it is made of several models (text_config, vision_config), and the text model, of type qwen2_vl_text,",
    "llava": "(text_config, vision_config); the text model, of type llama, is supported: take it out as docs/guides",
    "gemma3": "it is made of several models (text_config, vision_config); the text model, of type gemma3_text, is supp",
    "bert": "it is an encoder, whose tokens see those behind them",
    "vit": "it is no causal language model",
}


@pytest.mark.parametrize("model_type", REASONS)
def test_a_type_is_refused_in_one_line_with_its_reason(
    model_type: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))  # and no weights
    with pytest.raises(UnsupportedFamilyError) as caught:
        load_model(tmp_path)
    message = str(caught.value)
    assert message.startswith(f"no adapter for model_type {model_type!r}: ")
    assert REASONS[model_type] in message
    assert message.endswith("; known: " + ", ".join(sorted(registry())))
    assert "\n" not in message
    assert capfd.readouterr() == ("", "")


def test_the_command_line_says_no_more(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder, out = tmp_path / "t5", tmp_path / "out"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": "t5"}))
    arguments = ["--method", "EAPIG", "--data.task", "CompiledTask", "--data.task.program", "reverse"]
    assert main(["discover", "--model.name", str(folder), *arguments, "--out", str(out)]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith(f"edgeprune: error: no adapter for model_type 't5': {ENCODER_DECODER}")
    assert not out.exists()


@pytest.mark.parametrize("model_type", ["gpt9", "bloom"])
def test_a_type_that_nobody_has_written_an_adapter_for_says_where(model_type: str) -> None:
    with pytest.raises(
        UnsupportedFamilyError, match=f"'{model_type}'; known: .*families/{model_type}.py to support it$"
    ):
        find_family(model_type)


def test_the_reason_names_the_text_model_that_the_config_has() -> None:
    for text, end in (("mistral", "mistral, is supported"), ("bloom", "bloom, has no adapter either")):
        assert end in str(reason("llava", registry(), {"text_config": {"model_type": text}}))
    assert "type llama, is" in str(reason("llava", registry(), {"text_config": None}))


def test_no_rule_is_about_a_type_that_has_an_adapter() -> None:
    known = registry()
    ours = set(known) & set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    assert {"gpt2", "gemma3_text", "gpt_oss", "llama", "mixtral"} <= ours
    assert [kind for kind in ours if reason(kind, known, {}) is not None] == []


def test_a_model_in_memory_is_refused_alike() -> None:
    with pytest.raises(UnsupportedFamilyError, match="'llava': it is made of several models"):
        load_model(whole_model(llava_of(LlamaConfig)))


# -------------------------------------------------------------------- the text model of several
VISION = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION |= {"image_size": 28, "patch_size": 14}


def gemma3() -> Any:
    text = Gemma3.tiny()[0].to_dict()
    return Gemma3Config(text_config=text, vision_config={**VISION, "model_type": "siglip_vision_model"})


def llava_of(kind: Any) -> Any:
    text = kind(**RotaryDecoder.shape(), num_key_value_heads=2).to_dict()
    return LlavaConfig(text_config=text, vision_config={**VISION, "model_type": "clip_vision_model"})


def whole_model(config: Any) -> Any:
    torch.manual_seed(0)
    return AutoModelForImageTextToText.from_config(config).eval()


WHOLE: dict[str, Callable[[], Any]] = {
    "gemma3": gemma3,
    "llava of llama": lambda: llava_of(LlamaConfig),
    "llava of mistral": lambda: llava_of(MistralConfig),
}


@pytest.mark.parametrize("name", WHOLE)
def test_the_text_model_is_taken_out_as_the_guide_says(name: str, tmp_path: Path) -> None:
    whole_model(WHOLE[name]()).save_pretrained(tmp_path / "whole")
    whole = AutoModelForImageTextToText.from_pretrained(tmp_path / "whole", dtype="auto")
    whole.config.text_config.tie_word_embeddings = whole.config.tie_word_embeddings
    with torch.device("meta"):
        text = AutoModelForCausalLM.from_config(whole.config.text_config)
    text.model, text.lm_head = whole.model.language_model, whole.lm_head
    ids = torch.randint(0, 29, (2, 7))
    expected = whole(ids).logits
    assert torch.equal(load_model(text).full(ids), expected)
    text.save_pretrained(tmp_path / "text")
    assert torch.equal(load_model(tmp_path / "text").full(ids), expected)


# -------------------------------------------------------------------- MXFP4
def test_mxfp4_is_refused_before_weights_are_looked_at(tmp_path: Path) -> None:
    config = GptOss.tiny()[0].to_dict() | {"quantization_config": {"quant_method": "mxfp4"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedFamilyError, match=r"has weights quantised to MXFP4; .*dequantize=True") as caught:
        load_model(tmp_path)
    assert "\n" not in str(caught.value)


def test_packed_experts_of_a_loaded_model_are_refused() -> None:
    class Mxfp4GptOssExperts(torch.nn.Module):
        """Its weights are no parameters once kernels have them."""

    hf = AutoModelForCausalLM.from_config(GptOss.tiny()[0], attn_implementation="eager")
    hf.model.layers[1].mlp.experts = Mxfp4GptOssExperts()
    with pytest.raises(ValueError, match=r"experts is a Mxfp4GptOssExperts, .*load a copy that is not quantised"):
        MaskedModel(hf)
