"""Where edgeprune keeps what it fetches or makes once: models and tokens."""

import os
from pathlib import Path


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """`cache_dir`, else `$EDGEPRUNE_CACHE`, else `~/.cache/edgeprune`."""
    chosen = cache_dir or os.environ.get("EDGEPRUNE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "edgeprune"
