"""Files that tests read: known circuits in `tests/data`, and what is too large for the project, outside of it."""

import os
from pathlib import Path

import pytest

GROUND_TRUTH = Path(__file__).parent / "data" / "ground_truth"
KNOWN_MODELS = [GROUND_TRUTH / name for name in ("and_gate", "hist", "or_gate", "reverse", "sort", "xproportion")]
OUTSIDE = "EDGEPRUNE_DATA"


def outside(name: str) -> Path:
    """A file or folder such as `tokenizers/gpt2`, in the folder that `$EDGEPRUNE_DATA` names; without it, a skip."""
    root = os.environ.get(OUTSIDE)
    if not root:
        pytest.skip(f"set {OUTSIDE} to a folder with {name}")
    path = Path(root).resolve() / name
    if not path.exists():
        pytest.skip(f"{OUTSIDE} names {root}, which has no {name}")
    return path
