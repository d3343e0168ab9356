"""Hub names and local paths."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from locap.utils.errors import MissingDependencyError, UsageError
from locap.utils.hub import resolve


def test_a_local_folder_is_used_as_it_is(tmp_path, monkeypatch):
    (tmp_path / "bert-base-uncased").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve("bert-base-uncased", what="tokenizer") == Path("bert-base-uncased")
    assert resolve(tmp_path, what="tokenizer") == tmp_path


@pytest.mark.parametrize("name", ["./absent", "/absent/folder", "a/b/c", ""])
def test_a_missing_path_is_a_usage_error(name):
    with pytest.raises(UsageError, match="tokenizer"):
        resolve(name, what="tokenizer")


def test_an_unreachable_name_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(MissingDependencyError) as caught:
        resolve("owner/absent-model", what="caption tokenizer", files=("vocab.txt",))
    assert time.monotonic() - start < 15
    message = str(caught.value)
    assert "caption tokenizer 'owner/absent-model' is not on this machine" in message
    assert "local folder with its files (vocab.txt)" in message
    assert "hf download owner/absent-model --local-dir absent-model" in message
    assert caught.value.exit_code == 5
