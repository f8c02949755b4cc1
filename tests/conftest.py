"""What every test needs."""

import os
import signal
import sys
from collections.abc import Iterator

import pytest

# Set before torch is imported: one thread per worker, since threads of several workers that fight are slower than one.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Set before Triton is imported, where it is installed: its kernels are run on the processor.
os.environ.setdefault("TRITON_INTERPRET", "1")
# Under nohup it is ignored, in all processes that tests start too, and a run leaves it so.
signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture(autouse=True, scope="session")
def no_pytest_arguments() -> Iterator[None]:
    """Lightning warns where it finds arguments of another program in sys.argv, and CI makes warnings errors."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["edgeprune"])
        yield
