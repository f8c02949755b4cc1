"""Where edgeprune keeps what it fetches or makes once, and how it writes a file."""

import csv
import errno
import os
import re
import tempfile
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgeprune.errors import EdgepruneError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PARTIAL = ".partial"  # ends the name of a file that is being written
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota, largest size of a file
_OS_ERROR = re.compile(r"os error (\d+)")  # how safetensors says it


class NotWrittenError(EdgepruneError, OSError):
    """A file could not be written; the one that was there before is as it was."""


class DiskFullError(NotWrittenError):
    """There was no space for it."""


def cache_root(cache_dir: str | Path | None = None) -> Path:
    """`cache_dir`, else `$EDGEPRUNE_CACHE`, else `~/.cache/edgeprune`."""
    chosen = cache_dir or os.environ.get("EDGEPRUNE_CACHE")
    return Path(chosen).expanduser() if chosen else Path.home() / ".cache" / "edgeprune"


def check_writable(path: str | Path, name: str, *, folder: bool = False) -> None:
    """Refuse, before any work is done, a file or folder that could not be written.

    A nameless file is made and dropped where the path would begin to exist: modes of folders say too little of
    read-only disks, quotas and users with all rights.

    Args:
        path: The file or folder, there or not. Addresses of other machines, texts with `://`, are not looked at.
        name: What the user calls it, such as `--json`.
        folder: Whether files will be written into it.

    Raises:
        EdgepruneError: It could not.
    """
    if "://" in str(path):
        return
    path = Path(path)
    try:
        if not folder and path.is_dir():
            raise EdgepruneError(f"{name} {path} is a folder; give a file name")
        if not folder and path.exists() and not path.is_file():
            raise EdgepruneError(f"{name} {path} is no ordinary file; give another name")
        missing = [] if folder else [path.name]
        there = path if folder else path.parent
        while not there.exists():
            missing.append(there.name)
            there = there.parent
        if not there.is_dir():
            raise EdgepruneError(f"{name} {path} cannot be written: {there} is a file; choose another place")
        for part in missing:  # one that is too long is found only where its folder exists
            (there / part).exists()
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise EdgepruneError(f"{name} {path} cannot be written ({error.strerror}); choose another place") from None


@contextmanager
def whole_file(path: Path) -> Generator[Path]:
    """A temporary file beside `path` to write to; it takes the place of `path` if all goes well, and goes if not.

    So a reader sees the old file or the new one, never a part, and two processes do each other no harm. A process that
    is killed meanwhile leaves a file whose name ends in `.partial`.

    Raises:
        DiskFullError: There is no room for the file.
        NotWrittenError: It cannot be written for another reason of the system.
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
    except EdgepruneError:
        raise
    except Exception as error:
        code = _system_code(error)
        if code is None:
            raise
        if code not in FULL:
            raise NotWrittenError(
                f"cannot write {path} ({os.strerror(code)}); what was there before is untouched: choose another place"
            ) from None
        raise DiskFullError(
            f"no room to write {path} ({error}); what was there before is untouched: free some space or raise the "
            "quota, then give the command again (fit: with --ckpt_path last)"
        ) from None


def write_whole_text(path: Path, text: str) -> None:
    """Write a text as UTF-8, whole or not at all."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def save_figure(figure: "Figure", path: Path, **options: Any) -> None:
    """Write a figure of matplotlib, whole or not at all, in the format of the name's ending (without one, PNG).

    Raises:
        EdgepruneError: matplotlib does not know the format.
    """
    with whole_file(path) as partial:
        try:
            figure.savefig(partial, format=path.suffix[1:] or "png", **options)
        except ValueError as error:  # matplotlib names the formats it knows
            raise EdgepruneError(f"cannot draw to {path}: {error}") from None


def write_table(path: Path, rows: Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> None:
    """Write rows as a CSV file, whole or not at all; columns are `names`, or those of the first row."""
    with whole_file(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names or list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def _system_code(error: Exception) -> int | None:
    """The number of an error of the operating system, however it was raised; None for others."""
    match = _OS_ERROR.search(str(error))
    return getattr(error, "errno", None) or (int(match[1]) if match else None)
