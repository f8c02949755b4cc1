"""A tiny Llama and a tiny Gemma-3 as GGUF files, and the same models with the numbers that the files hold."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from transformers import AutoModelForCausalLM, Gemma3TextConfig, LlamaConfig

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


GEMMA_NAMES = NAMES | {
    "q_norm": "attn_q_norm",
    "k_norm": "attn_k_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
# In order of the merges: what is there from the start, runs of spaces as they are, then what two others make.
GEMMA_TOKENS = [
    *("<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<mark>", "<b>", "  ", "   "),
    *(f"<0x{byte:02X}>" for byte in range(256)),
    *("ab", "\u2581a", "\u2581ab", "bc", "aa", "abc", "\u2581", "a", "b", "c", "<", ">"),
]


def write_gemma_gguf(path: Path) -> Any:
    """Write a tiny Gemma-3 with its tokenizer, as llama.cpp has them, in 32 bits, and return the model."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        num_hidden_layers=7, num_attention_heads=4, num_key_value_heads=1, hidden_size=32, intermediate_size=64,
        head_dim=16, vocab_size=len(GEMMA_TOKENS), max_position_embeddings=64, sliding_window=4,
    )  # fmt: skip
    model: Any = AutoModelForCausalLM.from_config(config).eval()
    for key, weight in model.named_parameters():
        if "norm" in key:  # or they are all zero; eighths, so that one can be added and taken off exactly
            weight.data.copy_(torch.randint(-4, 16, weight.shape) / 8)
    writer = gguf.GGUFWriter(path, "gemma3")
    writer.add_block_count(7)
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(1)
    writer.add_key_length(16)
    writer.add_value_length(16)
    writer.add_sliding_window(4)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(1000000.0)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(GEMMA_TOKENS)
    writer.add_token_scores([-float(position) for position in range(len(GEMMA_TOKENS))])
    kinds = [gguf.TokenType.CONTROL] * 6 + [gguf.TokenType.USER_DEFINED] * 3 + [gguf.TokenType.BYTE] * 256
    writer.add_token_types(kinds + [gguf.TokenType.NORMAL] * (len(GEMMA_TOKENS) - len(kinds)))
    for key, weight in model.state_dict().items():
        parts = key.split(".")
        if parts[0] == "lm_head":  # tied
            continue
        name = GEMMA_NAMES[parts[-2]]
        name = f"blk.{parts[2]}.{name}.weight" if parts[1] == "layers" else f"{name}.weight"
        writer.add_tensor(name, np.ascontiguousarray((weight + 1 if "norm" in name else weight).numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return model
