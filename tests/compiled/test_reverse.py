import hashlib

import pytest

from edgeprune.compiled import cases, load_compiled, true_circuit
from tests.compiled.slow import all_runs, forward

WEIGHTS = "e803857edac27c38d2bfc8a80eace850d9a18eddb89ec7af94bf62dbab459c03"  # written before there was a builder


def test_the_weights_are_what_they_have_always_been() -> None:
    digest = hashlib.sha256()
    for name, weight in sorted(load_compiled("reverse").state_dict().items()):
        digest.update(name.encode() + str(tuple(weight.shape)).encode() + weight.contiguous().numpy().tobytes())
    assert digest.hexdigest() == WEIGHTS


def test_valid_inputs_are_all_words_of_up_to_five_symbols() -> None:
    inputs = [ids for ids, _ in cases("reverse")]
    assert len(set(inputs)) == len(inputs) == 3 + 9 + 27 + 81 + 243
    assert {ids[0] for ids in inputs} == {3}
    assert {token for ids in inputs for token in ids[1:]} == {0, 1, 2}


@pytest.mark.parametrize("ablation", ["zero", "interchange"])
def test_closing_a_true_edge_is_clear_in_the_divergence(ablation: str) -> None:
    model = load_compiled("reverse").double().requires_grad_(False)
    runs = [run for run in all_runs("reverse", model, ablation) if run.ids.shape[1] > 2]  # one token: nothing to do
    for edge in true_circuit("reverse", ablation):
        divergences = []
        for run in runs:
            log_p = run.full[:, 1:].log_softmax(-1)
            log_q = forward(model, run.ids, {edge}, run.ablated)[0][:, 1:].log_softmax(-1)
            divergences.append((log_p.exp() * (log_p - log_q)).sum(-1).mean().item())
        assert min(divergences) > 0.1, edge  # nats


def test_the_model_says_what_it_is() -> None:
    config = load_compiled("reverse").config
    assert config.name_or_path == "compiled:reverse"
    assert config.vocab[config.bos_token_id] == "BOS"
    assert config.vocab[config.pad_token_id] == "PAD"
