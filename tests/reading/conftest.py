"""What several tests of readings need."""

import pytest
from torch import Tensor


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> None:
    """Logits stay in float64, so that what is compared is the arithmetic and not its last rounding."""
    monkeypatch.setattr(Tensor, "float", lambda self: self)
