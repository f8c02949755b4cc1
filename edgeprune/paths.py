"""Where edgeprune keeps what it fetches or makes once, and how it writes a file."""

import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """`cache_dir`, else `$EDGEPRUNE_CACHE`, else `~/.cache/edgeprune`."""
    chosen = cache_dir or os.environ.get("EDGEPRUNE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "edgeprune"


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """A temporary file beside `path` to write to; it takes the place of `path` if all goes well, and goes if not.

    So a reader sees the old file or the new one, never a part, and two processes do each other no harm.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".partial", delete=False) as file:
        partial = Path(file.name)
    try:
        yield partial
        partial.chmod(0o644)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
