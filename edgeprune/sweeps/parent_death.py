"""A trial ends with the sweep that started it, however that ends: otherwise its next attempt would meet it at work."""

import ctypes
import os
import signal
import sys
from pathlib import Path

PARENT_VARIABLE = "EDGEPRUNE_SWEEP_PID"  # the process that a trial is not to outlive
PR_SET_PDEATHSIG = 1  # <linux/prctl.h>


def end_with_sweep() -> None:
    """Let Linux end this process with its parent, if that is the sweep; call it before anything slow is imported."""
    sweep = os.environ.get(PARENT_VARIABLE)
    if sweep is None or not sys.platform.startswith("linux"):
        return
    if sweep == str(os.getppid()):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if not Path(f"/proc/{sweep}").exists():
        os.kill(os.getpid(), signal.SIGKILL)  # it ended before it could be asked
