"""GPT-NeoX, Phi and GPT-J: layers whose attention and MLP read the same stream; what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import edgeprune as ep
from edgeprune.errors import EdgepruneError, UnsupportedFamilyError
from edgeprune.models.families.gpt_neox import GPTNeoX
from edgeprune.models.families.gptj import GPTJ
from edgeprune.models.families.phi import Phi
from edgeprune.models.masked import MaskedModel
from tests.models.test_conformance import build, prompts

PARALLEL = {("gpt_neox", True): 0, ("gpt_neox", False): 1, ("phi", True): 0, ("gptj", True): 0}
FAMILIES: dict[str, Any] = {"gpt_neox": GPTNeoX, "phi": Phi, "gptj": GPTJ}


@pytest.mark.parametrize(("name", "parallel"), PARALLEL)
def test_a_head_moves_the_mlp_of_its_layer_only_where_there_is_an_edge(name: str, parallel: bool) -> None:
    """Found in the library's own model, with one layer's attention replaced by nothing."""
    model = build(FAMILIES[name], PARALLEL[name, parallel])
    ids, _ = prompts()
    block: Any = model.blocks[1]
    outputs: list[torch.Tensor] = []
    block.module.mlp.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    model.hf(ids)
    handle = block.output.register_forward_hook(lambda module, inputs, output: torch.zeros_like(output))
    model.hf(ids)
    handle.remove()
    assert torch.equal(*outputs) == parallel == model.graph.arch.parallel_blocks
    try:
        model.graph.index("a1.h0->m1")
    except EdgepruneError:
        assert parallel
    else:
        assert not parallel


@pytest.mark.parametrize(
    ("flags", "implementation", "said"),
    [
        ({"rotary_dim": 0}, "eager", "^rotary_dim=0: a table as wide as the model is not supported"),
        (
            {},
            "flash_attention_2",
            "^attention implementation 'flash_attention_2' is not supported by gptj; .* one of eager$",
        ),
    ],
)
def test_what_gptj_has_and_the_adapter_does_not_follow_is_refused(
    flags: dict[str, Any], implementation: str, said: str
) -> None:
    config = GPTJ.tiny()[0]
    config.update(flags)
    hf = AutoModelForCausalLM.from_config(config)
    hf.config._attn_implementation_internal = implementation
    with pytest.raises(UnsupportedFamilyError, match=said):
        MaskedModel(hf)


def test_a_kernel_that_the_library_lacks_is_refused_before_weights_are_read(tmp_path: Path) -> None:
    build(GPTJ, 0, torch.float32).hf.save_pretrained(tmp_path)
    with pytest.raises(
        UnsupportedFamilyError, match="'sdpa' is not supported by gptj; load the model with one of eager"
    ):
        ep.load_model(tmp_path, attn_implementation="sdpa")
