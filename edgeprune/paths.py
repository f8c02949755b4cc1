"""Where edgeprune keeps what it fetches or makes once, and how it writes a file."""

import errno
import os
import re
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTIAL = ".partial"  # ends the name of a file that is being written
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, largest size of a file
_OS_ERROR = re.compile(r"os error (\d+)")  # how safetensors says it


class DiskFullError(EdgepruneError, OSError):
    """A file could not be written for want of space; the one that was there before is as it was."""


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """`cache_dir`, else `$EDGEPRUNE_CACHE`, else `~/.cache/edgeprune`."""
    chosen = cache_dir or os.environ.get("EDGEPRUNE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "edgeprune"


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """A temporary file beside `path` to write to; it takes the place of `path` if all goes well, and goes if not.

    So a reader sees the old file or the new one, never a part, and two processes do each other no harm. A process that
    is killed meanwhile leaves a file whose name ends in `.partial`.

    Raises:
        DiskFullError: There is no room for the file.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=PARTIAL, delete=False) as file:
            partial = Path(file.name)
        try:
            yield partial
            partial.chmod(0o644)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    except DiskFullError:
        raise
    except Exception as error:
        if not _is_full(error):
            raise
        raise DiskFullError(
            f"no room to write {path} ({error}); what was there before is untouched: free some space or raise the "
            "quota, then give the command again (fit: with --ckpt_path last)"
        ) from None


def save_figure(figure: "Figure", path: Path, **options: Any) -> None:
    """Write a figure of matplotlib, whole or not at all, in the format of the name's ending (without one, PNG)."""
    with whole_file(path) as partial:
        figure.savefig(partial, format=path.suffix[1:] or "png", **options)


def _is_full(error: Exception) -> bool:
    said = _OS_ERROR.search(str(error))
    return (getattr(error, "errno", None) or (int(said[1]) if said else 0)) in FULL
