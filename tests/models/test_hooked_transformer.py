"""TransformerLens' `HookedTransformer`: the families' suites on tiny ones, its own logits, and what is refused."""

import importlib
import warnings
from collections.abc import Callable
from types import FunctionType
from typing import Any

import pytest
import torch
from torch import Tensor

import edgeprune as ep
from datamodules.collate import collate
from datamodules.tasks.induction import Induction
from edgeprune.errors import EdgepruneError, UnsupportedFamilyError
from edgeprune.memory import BatchShape, activations_per_example, evaluation_terms, plan_of
from edgeprune.models.families.hooked_transformer import HookedModel, HookedTransformer
from edgeprune.models.limits import Limits
from edgeprune.models.loading import fingerprint
from edgeprune.patching.result import name_of
from tests.models import test_conformance
from tests.reading.conftest import double as double
from tests.reading.test_attention import eager_weights as eager_weights

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of the libraries that it loads
    lens = pytest.importorskip("transformer_lens")
    try:
        lens.HookedTransformer  # noqa: B018
    except ImportError:
        pytest.skip("version 4 of TransformerLens has no HookedTransformer", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:HookedTransformer is deprecated")

SHAPE: dict[str, Any] = {
    **{"n_layers": 3, "d_model": 32, "d_head": 8, "n_heads": 4, "n_ctx": 32, "d_vocab": 61, "eps": 1e-3},
    **{"device": "cpu", "act_fn": "gelu_new"},
}
KINDS: dict[str, dict[str, Any]] = {
    "attention_only": {"attn_only": True},
    "no_norm": {"attn_only": True, "normalization_type": None, "d_vocab_out": 29, "attn_scale": 2.0},
    "gpt2": {"d_mlp": 48, "scale_attn_by_inverse_layer_idx": True},
    "folded": {"normalization_type": "LNPre", "use_attn_scale": False},
    "parallel": {"parallel_attn_mlp": True, "normalization_type": "RMSPre", "act_fn": "relu"},
    "grouped": {"n_key_value_heads": 2, "gated_mlp": True, "act_fn": "silu", "post_embedding_ln": True},
}
IDS = torch.tensor([[3, 1, 4, 1, 5, 9], [2, 6, 5, 3, 5, 8]])


def hooked(**options: Any) -> Any:
    """A tiny random model; biases and norms too are random."""
    torch.manual_seed(0)
    model = lens.HookedTransformer(lens.HookedTransformerConfig(**{**SHAPE, **options}))
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def refused(model: Any, error: type[EdgepruneError] = UnsupportedFamilyError) -> str:
    """The message of a refusal, which is one line."""
    with pytest.raises(error) as caught:
        ep.load_model(model)
    message = str(caught.value)
    assert "\n" not in message
    return message


# ---------------------------------------------------------------- the suites of all families
@pytest.fixture(autouse=True)
def among_the_families(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the suites build these models as they do those of other families."""

    def from_config(config: Any, attn_implementation: str = "eager") -> HookedModel:
        config = getattr(config, "made_of", config)
        model = HookedModel(lens.HookedTransformer(config))
        model.config.made_of = config
        return model

    configs = [lens.HookedTransformerConfig(**{**SHAPE, **options}) for options in KINDS.values()]
    monkeypatch.setattr(HookedTransformer, "tiny", lambda: configs)
    monkeypatch.setattr(test_conformance.AutoModelForCausalLM, "from_config", from_config)


def cases(names: tuple[str, ...]) -> list[Any]:
    """These models as the suites name what they run on: family, index, perhaps k and v readers and a kernel."""
    found: list[Any] = []
    for index, (kind, options) in enumerate(KINDS.items()):
        both = "kv_readers" in names and "n_key_value_heads" in options
        for kv_readers in test_conformance.KV if both else test_conformance.KV[:1]:
            known = {
                **{"family": HookedTransformer, "index": index, "kv_readers": kv_readers},
                **{"kernel": "eager", "implementation": "eager"},
            }
            found.append(pytest.param(*(known[name] for name in names), id=f"{kind}-{kv_readers}" if both else kind))
    return found


def on_these(function: FunctionType) -> Callable[..., None] | None:
    """A test of a suite with these models in place of the families; None if it has none."""
    marks = list(getattr(function, "pytestmark", ()))
    ours = [
        pytest.mark.parametrize(mark.args[0], cases(mark.args[0])).mark
        if mark.name == "parametrize" and mark.args[0][:2] == ("family", "index")
        else mark
        for mark in marks
    ]
    if ours == marks:
        return None
    test = FunctionType(function.__code__, function.__globals__, function.__name__, function.__defaults__)
    test.__dict__["pytestmark"] = ours
    return test


OTHERS = ("test_kernels_get_what_the_library_hands_them",)  # these models call none of transformers' attention kernels
for suite in (
    *("models.test_conformance", "models.test_projections", "models.test_fixed_outputs", "models.test_groups"),
    *("models.test_circuit_run", "methods.test_acdc_partial", "methods.test_eap", "methods.test_hisp"),
    *("methods.test_information_flow", "methods.test_subnetwork_probing", "test_patching"),
    *("reading.test_attention", "reading.test_direct", "reading.test_role_effects"),
):
    for name, value in list(vars(importlib.import_module(f"tests.{suite}")).items()):
        ours = on_these(value) if isinstance(value, FunctionType) and name not in OTHERS else None
        if ours is not None:
            globals()[f"{name}_{suite.rpartition('.')[2]}"] = ours


# ---------------------------------------------------------------- its own logits
FLAGS: dict[str, dict[str, Any]] = {
    "layer_norm_in_the_mlp": {"act_fn": "solu_ln"},
    "root_mean_square": {"normalization_type": "RMS"},
    "inputs_by_head": {"use_split_qkv_input": True, "use_hook_mlp_in": True},
    "input_by_head": {"use_attn_in": True},
    "results_by_head": {"use_attn_result": True},
}


@pytest.mark.parametrize("options", [pytest.param(own, id=name) for name, own in (KINDS | FLAGS).items()])
def test_logits_are_its_own(options: dict[str, Any]) -> None:
    model = hooked(**options)
    expected = model(IDS)
    masked = ep.load_model(model)
    close = {"atol": 1e-5, "rtol": 0.0}
    torch.testing.assert_close(masked.full(IDS), expected, **close)
    torch.testing.assert_close(masked(IDS, masked.graph.all_open(), masked.record(IDS + 1)), expected, **close)
    torch.testing.assert_close(masked.hf(IDS).logits, expected, **close)
    assert torch.equal(model(IDS), expected)  # it still is as it was


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_its_own(side: str) -> None:
    model, masked = hooked(d_mlp=48), ep.load_model(hooked(d_mlp=48))
    mask = torch.ones_like(IDS)
    mask[0, slice(2) if side == "left" else slice(-2, None)] = 0
    found, expected = masked.full(IDS, mask), model(IDS, attention_mask=mask)
    torch.testing.assert_close(found[mask.bool()], expected[mask.bool()], atol=1e-5, rtol=0)


def test_weights_folded_by_the_library_give_the_same_probabilities() -> None:
    model = hooked(d_mlp=48)
    expected = model(IDS).log_softmax(-1)
    model.process_weights_(fold_ln=True, center_writing_weights=True, center_unembed=True)
    masked = ep.load_model(model)
    assert masked.blocks[0].input_spec().weight is None
    torch.testing.assert_close(masked.full(IDS), model(IDS), atol=1e-5, rtol=0)
    torch.testing.assert_close(masked.full(IDS).log_softmax(-1), expected, atol=1e-4, rtol=0)


def test_weights_are_referred_to_and_follow_the_model() -> None:
    model = hooked(attn_only=True)
    masked = ep.load_model(model)
    assert {id(own) for own in masked.hf.parameters()} == {id(own) for own in model.parameters()}
    assert not any(own.requires_grad for own in model.parameters())
    before = fingerprint(masked)
    assert fingerprint(ep.load_model(hooked(attn_only=True))) == before
    with torch.no_grad():
        model.W_V[0].mul_(2)
        model.blocks[0].attn.W_V.mul_(2)
    torch.testing.assert_close(masked.full(IDS), model(IDS), atol=1e-5, rtol=0)
    assert fingerprint(masked) != before
    masked.double()
    assert model.cfg.dtype == masked.dtype == torch.float64  # so that its own forward goes with its weights
    assert torch.equal(masked.full(IDS), model(IDS))


def test_a_subclass_is_one_too() -> None:
    class Mine(lens.HookedTransformer):
        pass

    model = Mine(lens.HookedTransformerConfig(**SHAPE, attn_only=True))
    torch.testing.assert_close(ep.load_model(model).full(IDS), model(IDS), atol=1e-5, rtol=0)


# ---------------------------------------------------------------- what goes with a model
def test_names_limits_and_tokenizer() -> None:
    masked = ep.load_model(hooked(attn_only=True, d_vocab_out=29))
    assert name_of(masked) == "hooked_transformer"
    assert name_of(ep.load_model(hooked(attn_only=True, model_name="toy"))) == "toy"
    assert Limits.of(masked) == Limits("hooked_transformer", 61, 29, 32)
    with pytest.raises(EdgepruneError, match="33 tokens, model 'hooked_transformer' has 32 positions"):
        masked.full(torch.zeros(1, 33, dtype=torch.long))
    with pytest.raises(EdgepruneError, match="knows 0 to 60"):
        masked.full(torch.tensor([[61]]))
    assert "attention only" in masked.graph.describe()
    model = hooked(attn_only=True)
    assert ep.load_tokenizer(model) is None
    model.tokenizer = tokenizer = object()
    assert ep.load_tokenizer(model) is tokenizer


def test_memory_is_planned() -> None:
    model = hooked(attn_only=True)
    masked = ep.load_model(model)
    shape = BatchShape(batch=4, seq=8, positions=1)
    plan = plan_of(masked, evaluation_terms(masked, shape), kept=0)
    assert plan.weights == sum(own.nbytes for own in model.parameters())
    assert activations_per_example(masked, shape, lambda full, found: (full - found).square().mean((1, 2))) > 0


def test_embeddings_can_be_two_writers() -> None:
    masked = ep.load_model(hooked(attn_only=True), split_embedding=True)
    assert masked.graph.writers[:2] == ("tok_embed", "pos_embed")


# ---------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    "options",
    [
        {"positional_embedding_type": "rotary", "rotary_dim": 8},
        {"positional_embedding_type": "shortformer"},
        {"positional_embedding_type": "alibi"},
        {"attention_dir": "bidirectional"},
        {"use_local_attn": True, "window_size": 4, "attn_types": ["global", "local", "global"]},
        {"use_normalization_before_and_after": True, "normalization_type": "RMS"},
        {"use_qk_norm": True},
        {"attn_scores_soft_cap": 5.0},
        {"output_logits_soft_cap": 5.0},
    ],
    ids=lambda options: next(iter(options)),
)
def test_other_kinds_are_refused(options: dict[str, Any]) -> None:
    flag, value = next(iter(options.items()))
    if not hasattr(lens.HookedTransformerConfig(**SHAPE), flag):
        pytest.skip(f"{flag} came later")
    assert f"{flag}={value!r} of a HookedTransformer is not supported" in refused(hooked(d_mlp=48, **options))


def test_hooks_that_change_something_are_refused() -> None:
    model = hooked(attn_only=True)
    model.add_hook("blocks.1.hook_attn_out", lambda value, hook: 0 * value)
    message = refused(model)
    assert message.startswith("the HookedTransformer gives other logits than the model that its weights make (by 0.")
    assert "reset_hooks" in message
    model.reset_hooks()
    ep.load_model(model)


def test_a_forward_of_its_own_is_refused() -> None:
    class Louder(lens.HookedTransformer):
        def forward(self, *arguments: Any, **options: Any) -> Tensor:
            return 2 * super().forward(*arguments, **options)

    assert "the Louder gives other logits" in refused(Louder(lens.HookedTransformerConfig(**SHAPE, attn_only=True)))


def test_weights_that_are_no_numbers_are_named() -> None:
    model = hooked(attn_only=True)
    model.blocks[1].attn.W_K.data[0, 0, 0] = torch.nan
    assert "blocks.1.attn.W_K" in refused(model, EdgepruneError)


# ---------------------------------------------------------------- an example
def induction_model() -> Any:
    """Two attention-only layers that continue a repeated sequence, with a head in each that does nothing to the point.

    The stream is a row of one-hot vectors: token, position, previous token (written by `a0.h0`), prediction (`a1.h0`).
    Token 0 comes first, for what is first has no previous one.
    """
    vocab, seq, sharp = 13, 11, 20.0
    parts = dict(zip(("token", "place", "previous", "next"), (vocab, seq, vocab, vocab), strict=True))
    ends = [sum(list(parts.values())[: number + 1]) for number in range(len(parts))]
    at = {name: slice(end - size, end) for (name, size), end in zip(parts.items(), ends, strict=True)}
    config = lens.HookedTransformerConfig(
        **{"n_layers": 2, "n_heads": 2, "d_model": ends[-1], "d_head": vocab, "n_ctx": seq, "d_vocab": vocab},
        **{"attn_only": True, "normalization_type": None, "use_attn_scale": False, "device": "cpu", "seed": 0},
    )
    model = lens.HookedTransformer(config)
    tokens, places = torch.eye(vocab), torch.eye(seq)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.embed.W_E[:, at["token"]] = tokens
        model.pos_embed.W_pos[:, at["place"]] = places
        previous, induction = (block.attn for block in model.blocks)
        previous.W_Q[0, at["place"], :seq] = sharp * places
        previous.W_K[0, at["place"], 1:seq] = places[:, :-1]  # the key of a place matches the query of the next one
        previous.W_V[0, at["token"]] = tokens
        previous.W_O[0, :, at["previous"]] = tokens
        induction.W_Q[0, at["token"]] = sharp * tokens
        induction.W_K[0, at["previous"]] = tokens
        induction.W_V[0, at["token"]] = tokens
        induction.W_O[0, :, at["next"]] = 5 * tokens
        for attention in (previous, induction):
            for weight in (attention.W_Q, attention.W_K, attention.W_V, attention.W_O):
                weight[1] = 0.02 * torch.randn(weight.shape[1:], generator=torch.Generator().manual_seed(0))
        model.unembed.W_U[at["next"]] = tokens
    return model


def test_the_circuit_of_an_induction_head_is_found() -> None:
    model = ep.load_model(induction_model(), split_embedding=True)
    task = Induction(num_train=24, num_validation=1, num_test=1, length=5, vocab_size=13, first_token=1, bos_token=0)
    pairs = task.splits(None)["train"]
    batch = collate(list(enumerate(pairs)))
    assert torch.equal(model.full(batch.clean, positions=batch.positions).argmax(-1), batch.targets)
    problem = ep.methods.Problem(model, [batch], ep.ReferenceRuns(model, "zero"), "kl")
    found = ep.methods.ACDC((0.01,)).discover(problem, lambda what, done, total: None)
    assert set(found.circuits["tau-0.01"].edges()) == {
        *("pos_embed->a0.h0.q", "pos_embed->a0.h0.k", "tok_embed->a0.h0.v"),  # what the previous token is
        *("tok_embed->a1.h0.q", "a0.h0->a1.h0.k", "tok_embed->a1.h0.v"),  # what followed this token before
        "a1.h0->logits",
    }
