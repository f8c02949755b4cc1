"""The hub out of reach: asked once, one line, and what its local cache holds loads all the same."""

import shutil
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import close_session
from transformers import AutoModelForCausalLM

from edgeprune.cli import main
from edgeprune.errors import EdgepruneError, NoTokenizerError
from edgeprune.models import hub
from edgeprune.models.families.gpt2 import GPT2
from edgeprune.models.loading import load_model, load_tokenizer
from tests.datamodules.conftest import word_tokenizer

COMMIT = "a" * 40
IDS = torch.arange(6)[None]
# One question, and once per process huggingface_hub's own, for a list; its six tries would make at least six.
AT_MOST = 2


@pytest.fixture(autouse=True)
def fresh_session(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No connection from before, no cache but an empty one, and no setting of whoever runs the tests."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    close_session()
    yield
    close_session()


@pytest.fixture
def attempts(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Connections that were tried; none is made."""
    tried: list[Any] = []

    def refuse(address: Any, *_: Any, **__: Any) -> None:
        tried.append(address)
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr("socket.create_connection", refuse)
    return tried


def cache(folder: Path, name: str, source: Path, revision: str = "main") -> Path:
    """Put a folder where the hub's client keeps what it fetched."""
    kept = folder / "cache" / f"models--{name.replace('/', '--')}"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / revision).write_text(COMMIT)
    return Path(shutil.copytree(source, kept / "snapshots" / COMMIT))


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("saved")
    AutoModelForCausalLM.from_config(GPT2.tiny()[0]).save_pretrained(path)
    word_tokenizer(["Mary", "met"]).save_pretrained(path)
    return path


@pytest.mark.parametrize("load", [load_model, load_tokenizer])
def test_a_name_that_is_not_cached_is_asked_for_once(
    load: Callable[[str], Any], attempts: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(
        EdgepruneError, match=r"^'some/one' is no folder here and not in the local cache, .* cannot be "
    ):
        load("some/one")
    assert 1 <= len(attempts) <= AT_MOST
    assert capfd.readouterr() == ("", "")


def test_the_command_line_says_one_line(attempts: list[Any], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["--method", "EAPIG", "--data.task", "CompiledTask", "--data.task.program", "reverse"]
    assert main(["discover", "--model.name", "some/one", *arguments, "--out", str(tmp_path / "out")]) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "'some/one'" in line
    assert "([Errno 111] Connection refused); give a local folder, or fetch it" in line
    assert 1 <= len(attempts) <= AT_MOST
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("revision", [None, "v1", COMMIT])
def test_what_the_cache_holds_loads(
    saved: Path, tmp_path: Path, revision: str | None, attempts: list[Any], capfd: pytest.CaptureFixture[str]
) -> None:
    cache(tmp_path, "some/one", saved, "v1" if revision == "v1" else "main")
    model = load_model("some/one", revision=revision)
    assert torch.equal(model.full(IDS), load_model(saved).full(IDS))
    assert model.hf.config.name_or_path == "some/one"
    assert load_tokenizer("some/one", revision).get_vocab()["Mary"] == 3  # type: ignore[union-attr]
    assert 1 <= len(attempts) <= AT_MOST + 1
    assert capfd.readouterr() == ("", "")


def test_a_part_in_the_cache_is_not_the_model(saved: Path, tmp_path: Path, attempts: list[Any]) -> None:
    kept = cache(tmp_path, "some/one", saved)
    (kept / "model.safetensors").unlink()
    (kept / "tokenizer.json").unlink()
    with pytest.raises(EdgepruneError, match=r"no file named model.safetensors.*; the model hub cannot be reached \("):
        load_model("some/one")
    with pytest.raises(NoTokenizerError):
        load_tokenizer("some/one")
    with pytest.raises(EdgepruneError, match=r"not in the local cache"):
        load_model("some/one", revision="v2")
    assert attempts


def test_offline_mode_is_not_asked(monkeypatch: pytest.MonkeyPatch, attempts: list[Any]) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EdgepruneError, match=r"cannot be reached \(HF_HUB_OFFLINE is set\)"):
        load_model("some/one")
    assert not attempts


def test_no_answer_is_waited_for_a_while_only(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = threading.Event()
    monkeypatch.setattr(hub, "SECONDS", 0.1)
    monkeypatch.setattr(hub, "_ask", lambda *_: waiting.wait() and None)
    assert hub.unreachable("some/one", "config.json") == "no answer within 0.1 s"
    waiting.set()


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A hub on this machine that answers every question with one status; `questions` counts them."""
    answer: dict[str, Any] = {"code": 404, "headers": {}, "questions": 0}

    class Hub(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            answer["questions"] += 1
            self.send_response(answer["code"])
            for key, value in answer["headers"].items():
                self.send_header(key, value)
            self.end_headers()

        do_GET = do_HEAD

        def log_message(self, *_: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    yield answer
    server.shutdown()
    server.server_close()


def test_a_hub_that_fails_counts_as_out_of_reach(status: dict[str, Any]) -> None:
    status["code"] = 503
    assert hub.unreachable("some/one", "config.json") == "it answers 503"
    assert status["questions"] <= AT_MOST


@pytest.mark.parametrize(("code", "headers"), [(404, {}), (401, {"X-Error-Code": "RepoNotFound"}), (403, {})])
def test_a_hub_that_has_no_such_file_is_within_reach(
    status: dict[str, Any], code: int, headers: dict[str, str]
) -> None:
    status |= {"code": code, "headers": headers}
    assert hub.unreachable("some/one", "config.json") is None


def test_a_name_that_the_hub_does_not_know(status: dict[str, Any], capfd: pytest.CaptureFixture[str]) -> None:
    status |= {"code": 401, "headers": {"X-Error-Code": "RepoNotFound"}}
    for load in (load_model, load_tokenizer):
        with pytest.raises(EdgepruneError, match=r"'some/one': .*not a valid model identifier.*check the spelling"):
            load("some/one")
    assert capfd.readouterr() == ("", "")
