"""What a family's library code can do and its adapter does not: refused in one line that names it."""

from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from edgeprune.errors import UnsupportedFamilyError
from edgeprune.models.family import registry
from edgeprune.models.masked import MaskedModel

SLIDING = ["full_attention", "full_attention", "sliding_attention"]
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention"),
    ("hyperclovax", {"use_post_norm": False}, "use_post_norm: false"),
    ("hyperclovax", {"attention_bias": True}, "attention_bias: a bias under the norm behind the attention"),
    ("smollm3", {"layer_types": SLIDING, "sliding_window": 3}, "a layer type without the window"),
]


@pytest.mark.parametrize(("model_type", "flags", "named"), REFUSED)
def test_a_flag_that_the_adapter_does_not_follow_is_named(model_type: str, flags: dict[str, Any], named: str) -> None:
    config = registry()[model_type].tiny()[0]
    hf = AutoModelForCausalLM.from_config(type(config).from_dict({**config.to_dict(), **flags}))
    with pytest.raises(UnsupportedFamilyError, match=f"^{named} is not supported by the adapter"):
        MaskedModel(hf)
