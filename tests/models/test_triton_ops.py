"""The fused read in Triton's interpreter, on a processor, against the operations that keep every reader's input."""

import os

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

from edgeprune.compiled import load_compiled
from edgeprune.errors import EdgepruneError
from edgeprune.models.masked import MaskedModel
from edgeprune.models.projections import Projection, Projections
from edgeprune.models.read_ops import HOST, ReadOps, exact_dtype, ops_for
from tests.models.test_conformance import CASES, VOCAB, build

pytest.importorskip("triton", reason="triton is not installed")
os.environ["TRITON_INTERPRET"] = "1"  # read when the kernels are defined

from edgeprune.models.triton_ops import TRITON
