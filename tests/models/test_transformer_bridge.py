"""TransformerLens' `TransformerBridge`: its Hugging Face model is taken out of it. The library is not needed."""

import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

import edgeprune as ep
from edgeprune.errors import UnsupportedFamilyError
from edgeprune.models.family import registry

IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])
Bridges = Callable[[Any, Path], Any]


class Part(nn.Module):
    """Put around a module, as the library's parts are."""

    def __init__(self, original: nn.Module) -> None:
        super().__init__()
        self.add_module("_original_component", original)
        self.hook = nn.Identity()

    def forward(self, *inputs: Any, **options: Any) -> Any:
        return self.get_submodule("_original_component")(*inputs, **options)


class TransformerBridge(nn.Module):
    """A stand-in: parts within parts, put into the model itself."""

    __module__ = "transformer_lens.stand_in"

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.original_model, self.scale, self.tokenizer = model, 1.0, "its own"
        for name, module in list(model.named_modules()):
            if name.rpartition(".")[2] in ("c_attn", "q_proj", "attn", "self_attn", "mlp", "lm_head", "0", "1", "2"):
                parent, _, own = name.rpartition(".")
                setattr(model.get_submodule(parent), own, Part(module))

    def forward(self, tokens: Tensor, attention_mask: Tensor | None = None, return_type: str = "logits") -> Tensor:
        return self.scale * self.original_model(tokens, attention_mask=attention_mask).logits


def stand_in(model: Any, folder: Path) -> Any:
    return TransformerBridge(copy.deepcopy(model)).eval()


def of_the_library(model: Any, folder: Path) -> Any:
    from tokenizers import Tokenizer, models
    from transformer_lens.model_bridge import TransformerBridge  # pyright: ignore[reportMissingImports]

    words = Tokenizer(models.WordLevel({f"w{number}": number for number in range(61)}, unk_token="w0"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2", pad_token="w2").save_pretrained(
        folder
    )
    model.save_pretrained(folder)
    return TransformerBridge.boot_transformers(str(folder), device="cpu")


MAKERS = [stand_in, *([of_the_library] if find_spec("transformer_lens") else [])]


def tiny(name: str) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(registry()[name].tiny()[1], attn_implementation="eager").eval()


def load(bridge: Any) -> ep.MaskedModel:
    with pytest.warns(UserWarning, match=r"^a TransformerBridge: its Hugging Face model .* is loaded instead") as said:
        model = ep.load_model(bridge)
    assert [warning.filename for warning in said] == [__file__]
    return model


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_its_model_is_loaded_with_the_same_weights(name: str, make: Bridges, tmp_path: Path) -> None:
    model = tiny(name)
    expected = model(IDS).logits
    bridge = make(model, tmp_path)
    parts, own = [id(part) for part in bridge.original_model.modules()], bridge(IDS)
    masked = load(bridge)
    assert torch.equal(masked.full(IDS), expected)
    assert torch.equal(masked(IDS, masked.graph.all_open(), masked.record(IDS + 1)), expected)
    assert type(masked.hf) is type(model)
    assert {id(weight) for weight in masked.hf.parameters()} <= {
        id(weight) for weight in bridge.original_model.parameters()
    }
    assert [id(part) for part in bridge.original_model.modules()] == parts  # the bridge stays as it is
    assert torch.equal(bridge(IDS), own)
    assert ep.load_tokenizer(bridge) is bridge.tokenizer


def test_one_that_computes_something_else_is_refused(tmp_path: Path) -> None:
    bridge = stand_in(tiny("gpt2"), tmp_path)
    bridge.scale = 1.01
    with pytest.raises(UnsupportedFamilyError, match=r"other logits .* \(by 0\.00\d of the largest"):
        load(bridge)


def test_one_around_no_hugging_face_model_is_refused() -> None:
    bridge = TransformerBridge(nn.Sequential())
    with pytest.raises(UnsupportedFamilyError, match="around Sequential has no Hugging Face model to load; give one"):
        ep.load_model(bridge)
    with pytest.raises(ep.EdgepruneError, match="or HookedTransformer, got Sequential"):
        ep.load_model(nn.Sequential())
