"""The stand-in program says which trials it ran in a file of the test's folder."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def starts_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STARTS", str(tmp_path / "starts"))
