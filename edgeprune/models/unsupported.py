"""Why a type of model has no adapter: what it has that the edge graph has no words for.

Found in the library's default config of the type, so that no list of all models is kept here.
"""

from collections.abc import Collection, Mapping
from typing import Any

from edgeprune.models.quiet import quiet

PLAIN_LAYERS = frozenset({"full_attention", "sliding_attention", "chunked_attention"})
# Types whose default config does not say that some layers are of another kind.
OTHER_LAYERS = {
    "lfm2": "convolution",
    "lfm2_moe": "convolution",
    "recurrent_gemma": "recurrent",
    "rwkv": "linear attention",
    "xlstm": "recurrent",
}
PARTS = frozenset({"text_config", "vision_config", "audio_config", "audio_encoder_config", "codec_config", "vq_config"})


def reason(model_type: str, known: Collection[str], values: Mapping[str, Any]) -> str | None:
    """Why there is none for a `config.model_type`, in words that follow a colon; None: nobody has written one.

    Args:
        model_type: Of any model, of the library or not.
        known: Types that have an adapter.
        values: What the model's config says beyond its type, as far as it is known.
    """
    config = _default_config(model_type)
    if config is None:
        return None
    return (
        _encoder_decoder(config)
        or _several(config, known, values)
        or _latent(config)
        or _other_layers(config)
        or _no_language_model(config)
    )


def _default_config(model_type: str) -> Any | None:
    from transformers import AutoConfig

    try:
        with quiet():
            return AutoConfig.for_model(model_type)
    except Exception:  # no such type, or one whose parts have to be given: of any class
        return None


def _value(config: Any, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except Exception:  # one that differs by layer is there, but cannot be read
        return name


def _encoder_decoder(config: Any) -> str | None:
    if not _value(config, "is_encoder_decoder"):
        return None
    return "it is an encoder-decoder, and the graph has no edges from an encoder's outputs to a decoder"


def _several(config: Any, known: Collection[str], values: Mapping[str, Any]) -> str | None:
    parts = sorted(type(config).sub_configs)
    if PARTS.isdisjoint(parts):
        return None
    what, given = f"it is made of several models ({', '.join(parts)})", values.get("text_config")
    default = getattr(_value(config, "text_config"), "model_type", None)
    text = given.get("model_type", default) if isinstance(given, Mapping) else default
    if text not in known:
        return f"{what}" + ("" if text is None else f", and the text model, of type {text}, has no adapter either")
    return (
        f"{what}; the text model, of type {text}, is supported: take it out as docs/guides/models.md shows, and load it"
    )


def _latent(config: Any) -> str | None:
    if not _value(config, "kv_lora_rank"):
        return None
    return "it has multi-head latent attention, whose keys and values are read from the stream for all heads at once"


def _other_layers(config: Any) -> str | None:
    kinds = ", ".join(sorted(set(_value(config, "layer_types") or ()) - PLAIN_LAYERS))
    kinds = kinds or OTHER_LAYERS.get(config.model_type)
    if kinds is None:
        return None
    return (
        f"it has layers ({kinds}) that are not softmax attention over all tokens or a window, but state-space, "
        "convolution, linear or sparse ones, or a mixture"
    )


def _no_language_model(config: Any) -> str | None:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if _value(config, "is_decoder") is False and _value(config, "type_vocab_size"):
        return "it is an encoder, whose tokens see those behind them"
    return None if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING else "it is no causal language model"
