from pathlib import Path

import pytest
import torch

from edgeprune.compiled import CompiledConfig, CompiledTransformer
from edgeprune.errors import EdgepruneError
from tests.compiled.slow import forward


def random_model(
    implementation: str = "sdpa", dtype: torch.dtype = torch.float64, **settings: object
) -> CompiledTransformer:
    config = CompiledConfig(**settings)
    config._attn_implementation = implementation
    model = CompiledTransformer(config).double().eval()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)  # biases too
    return model.to(dtype).requires_grad_(False)


IDS = torch.tensor([[1, 2, 3, 4, 0], [7, 7, 5, 2, 1]])


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("units", [12, 0])
def test_computes_the_formula(implementation: str, causal: bool, units: int) -> None:
    model = random_model(implementation, causal=causal, intermediate_size=units, attn_scale=0.7)
    expected, _ = forward(model, IDS)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=1e-12)  # float64, a few hundred terms


@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("causal", [False, True])
def test_padding_changes_nothing(implementation: str, causal: bool) -> None:
    model = random_model(implementation, causal=causal)
    padded = torch.cat([IDS, torch.full((2, 2), 6)], dim=1)
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0]]).expand(2, -1)
    logits = model(padded, attention_mask=mask).logits[:, :5]
    torch.testing.assert_close(logits, model(IDS).logits, rtol=0, atol=1e-12)


def test_position_ids_choose_rows_of_the_position_table() -> None:
    model = random_model()
    shifted = model(IDS, position_ids=torch.arange(3, 8)[None]).logits
    assert not torch.allclose(shifted, model(IDS).logits)
    model.pos_embed.weight[:5] = model.pos_embed.weight[3:8].clone()
    assert torch.equal(shifted, model(IDS).logits)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_dtype_is_kept(dtype: torch.dtype, implementation: str) -> None:
    logits = random_model(implementation, dtype)(IDS).logits
    assert logits.dtype == dtype
    expected = random_model(implementation)(IDS).logits
    rounding = 4 * torch.finfo(dtype).eps * expected.abs().max().item()  # one unit each of a few roundings
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=rounding)


def test_saved_and_loaded_is_the_same(tmp_path: Path) -> None:
    model = random_model(dtype=torch.float32, vocab=list("abcdefgh"), causal=True)
    model.save_pretrained(tmp_path)
    again = CompiledTransformer.from_pretrained(tmp_path)
    assert again.config.vocab == list("abcdefgh")
    assert torch.equal(again(IDS).logits, model(IDS).logits)


def test_a_sequence_longer_than_the_position_table_is_refused() -> None:
    with pytest.raises(EdgepruneError, match="5 tokens given, this model takes at most 4"):
        random_model(n_ctx=4)(IDS)
