"""A tiny Llama as a GGUF file, and the same model with the numbers that the file holds."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

HEADS = {"attn_q": 4, "attn_k": 2}
NAMES = {
    "embed_tokens": "token_embd",
    "norm": "output_norm",
    "lm_head": "output",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
}


def write_gguf(path: Path, *, quantised: bool, without: str = "") -> Any:
    """Write the file, less one tensor if it is named, and return the model: in 8 bits, or as it is."""
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, hidden_size=32, intermediate_size=64,
        vocab_size=61, max_position_embeddings=64, pad_token_id=None, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(2)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(61)
    for key, weight in model.state_dict().items():
        parts = key.split(".")
        name, array = NAMES[parts[-2]], weight.numpy().copy()
        if quantised and array.ndim == 2:
            bits = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
            weight.copy_(torch.from_numpy(gguf.quants.dequantize(bits, gguf.GGMLQuantizationType.Q8_0)))
        if name in HEADS:  # the two halves of each head are interleaved
            array = array.reshape(HEADS[name], 2, -1, 32).swapaxes(1, 2).reshape(array.shape)
        name = f"blk.{parts[2]}.{name}.weight" if parts[1] == "layers" else f"{name}.weight"
        if name == without:
            continue
        if quantised and array.ndim == 2:
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(np.ascontiguousarray(array), kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(array))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
