"""transformers without its own messages."""

import contextlib
import io
import sys
import warnings
from collections.abc import Generator


@contextlib.contextmanager
def quiet() -> Generator[None]:
    """No tables, advice or (outside a terminal) bars: what matters is said by what comes out of the files."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    bars = contextlib.nullcontext() if sys.stderr.isatty() else contextlib.redirect_stderr(io.StringIO())
    try:
        with bars, warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # those of deprecations are for us
            yield
    finally:
        logging.set_verbosity(verbosity)
