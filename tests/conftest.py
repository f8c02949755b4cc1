"""What every test needs."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True, scope="session")
def no_pytest_arguments() -> Iterator[None]:
    """Lightning warns where it finds arguments of another program in sys.argv, and warnings are errors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["edgeprune"])
        yield
