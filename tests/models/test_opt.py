"""OPT: what is refused."""

from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from edgeprune.errors import UnsupportedFamilyError
from edgeprune.models.families.opt import OPT
from edgeprune.models.masked import MaskedModel


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"do_layer_norm_before": False}, "do_layer_norm_before=False: a norm of the whole stream after each layer is"),
        ({"word_embed_proj_dim": 16}, "word_embed_proj_dim other than hidden_size is"),
    ],
)
def test_a_flag_that_only_one_model_has_is_refused(flags: dict[str, Any], said: str) -> None:
    config = OPT.tiny()[0]
    config.update(flags)
    with pytest.raises(UnsupportedFamilyError, match=f"^{said} not supported by the adapter, so the model is refused"):
        MaskedModel(AutoModelForCausalLM.from_config(config))
