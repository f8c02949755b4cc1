"""A tiny transformer that learned induction: two layers of two heads, attention alone, trained here from scratch.

    ids       BOS s1 ... sn s1 ... sn        BOS is 0, symbols are 1 to 64, no symbol twice in s1 ... sn
    logits    at the second s1: s2, at the second s2: s3, ...

`python benchmarks/train_induction.py` makes the weights, which are shipped with the package. Nobody wrote
them, so nobody knows the true circuit; the guide on compiled models says what its heads look at.
"""

from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edgeprune.batch import IGNORE
from edgeprune.compiled.program import BOS, Case, Program
from edgeprune.compiled.transformer import CompiledConfig, CompiledTransformer
from edgeprune.sealed import SealedFile

VOCAB_SIZE = 65  # ids from 1 on are symbols
LONGEST = 24  # symbols in one half
SHORTEST = 4
SAMPLED = (8, 16, 24)  # symbols in one half of the inputs that `trained_cases` gives
CASES_EACH = 128

WEIGHTS = "trained_induction.safetensors"
FILE = SealedFile(
    "edgeprune-trained-induction/1",
    "file of weights of trained_induction",
    remedy="install the package again, or make them with `python benchmarks/train_induction.py`",
)


def empty_model() -> CompiledTransformer:
    """The architecture with random weights, from torch's global generator."""
    head_dim = 32
    config = CompiledConfig(
        vocab_size=VOCAB_SIZE,
        n_ctx=2 * LONGEST + 1,
        num_hidden_layers=2,
        num_attention_heads=2,
        head_dim=head_dim,
        hidden_size=64,
        intermediate_size=0,
        d_out=VOCAB_SIZE,
        causal=True,
        attn_scale=head_dim**-0.5,
        bos_token_id=0,
        vocab=[BOS, *map(str, range(1, VOCAB_SIZE))],
        output_labels=[BOS, *map(str, range(1, VOCAB_SIZE))],
        initializer_range=0.1,  # without a norm, 0.02 learns several times slower
    )
    config.name_or_path = "compiled:trained_induction"
    return CompiledTransformer(config)


def sample(num: int, half: int, generator: torch.Generator) -> Tensor:
    """Random inputs `[num, 1 + 2 * half]`: BOS, `half` different symbols, the same again."""
    symbols = torch.rand(num, VOCAB_SIZE - 1, generator=generator).argsort(1)[:, :half] + 1
    return torch.cat([torch.zeros(num, 1, dtype=torch.long), symbols, symbols], dim=1)


def load_trained_induction() -> CompiledTransformer:
    """The model with the shipped weights."""
    model = empty_model()
    with resources.as_file(resources.files("edgeprune.compiled") / WEIGHTS) as path:
        model.load_state_dict(read_weights(path)[0])
    return model.eval()


def trained_cases() -> list[Case]:
    """A fixed random sample: 128 inputs for each of three lengths, with the next token from the second s1 on."""
    generator = torch.Generator().manual_seed(2**20)  # far from the seeds that training uses
    return [
        (tuple(row), (*[IGNORE] * half, *row[half + 2 :], IGNORE))
        for half in SAMPLED
        for row in sample(CASES_EACH, half, generator).tolist()
    ]


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and record of a file that training wrote."""
    if not path.is_file():
        raise FILE.refused(path, ValueError("it is not there"))
    record, tensors = FILE.read(path)
    with torch.device("meta"):  # shapes alone
        expected = {name: tensor.shape for name, tensor in empty_model().state_dict().items()}
    odd = {name: tensor.shape for name, tensor in tensors.items()}.items() ^ expected.items()
    if odd:
        raise FILE.refused(path, ValueError(f"tensor {min(odd)[0]!r} is missing, unexpected or of another shape"))
    return tensors, {name: value for name, value in record.items() if name not in ("format", "sha256")}


TRAINED_INDUCTION = Program(load_trained_induction, trained_cases, "categorical", {})
