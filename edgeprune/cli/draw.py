"""`edgeprune draw FILE...`: heat maps of results of patching."""

import json
from collections.abc import Callable
from pathlib import Path

from edgeprune.cli.arguments import Arguments, check_file
from edgeprune.errors import EdgepruneError


def run(arguments: list[str]) -> None:
    """Draw files of one kind into one image."""
    parser = Arguments(prog="edgeprune draw", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="results of patching, one panel each")
    parser.add_argument("--out", type=Path, help="image file; by default the first file's name with .png")
    options = parser.parse_args(arguments[1:])
    out = options.out or options.files[0].with_suffix(".png")
    check_file(out, "--out")
    kinds = {path: _format(path) for path in options.files}
    for path, kind in kinds.items():
        if kind not in _DRAWERS:
            raise EdgepruneError(f"{path} holds {kind}; draw knows {', '.join(_DRAWERS)}")
    _DRAWERS[kinds[options.files[0]]](options.files, out)
    print(f"drew {out}")  # noqa: T201


def _format(path: Path) -> str:
    """What an own file says that it holds."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise EdgepruneError(f"no file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            return str(json.loads((file.metadata() or {})["edgeprune"])["format"])
    except (SafetensorError, OSError, KeyError, ValueError, TypeError):
        raise EdgepruneError(f"{path} is not a whole file of edgeprune; write it again") from None


def _draw_patching(files: list[Path], out: Path) -> None:
    from edgeprune.patching.heatmap import draw_heatmaps
    from edgeprune.patching.result import PatchingResult

    draw_heatmaps([PatchingResult.load(path) for path in files], out)


_DRAWERS: dict[str, Callable[[list[Path], Path], None]] = {"edgeprune-patching/1": _draw_patching}
