"""Where tests find files: a skip says what to set."""

from pathlib import Path

import pytest

from tests.files import GROUND_TRUTH, KNOWN_MODELS, OUTSIDE, outside


def test_data_outside_the_project_are_found_by_a_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OUTSIDE, raising=False)
    with pytest.raises(pytest.skip.Exception, match="set EDGEPRUNE_DATA to a folder with tokenizers/gpt2"):
        outside("tokenizers/gpt2")
    monkeypatch.setenv(OUTSIDE, str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match="which has no tokenizers/gpt2"):
        outside("tokenizers/gpt2")
    (tmp_path / "tokenizers" / "gpt2").mkdir(parents=True)
    assert outside("tokenizers/gpt2") == tmp_path / "tokenizers" / "gpt2"


def test_known_models_are_in_the_project() -> None:
    assert sorted(file.parent for file in GROUND_TRUTH.glob("*/model.json")) == KNOWN_MODELS
