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


@pytest.mark.fault("H7")
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


@pytest.mark.fault("H7")
@pytest.mark.parametrize(
    ("error", "says"),
    [
        ("GatedRepoError", ("its repository is gated", "run `hf auth login` and accept its licence")),
        (
            "RepositoryNotFoundError",
            ("has no such repository, or it is private", "hf download owner/model", "hf auth login"),
        ),
        ("RevisionNotFoundError", ("403", "nothing is cached", "local folder")),
    ],
)
def test_what_the_hub_answers_is_told_with_the_way_out(monkeypatch, tmp_path, error, says):
    import httpx
    import huggingface_hub
    from huggingface_hub import errors

    asked = []

    def answer(self, name, revision, timeout):
        asked.append(timeout)
        raise getattr(errors, error)("no", response=httpx.Response(403, request=httpx.Request("GET", "https://x")))

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", answer)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(MissingDependencyError) as caught:
        resolve("owner/model", what="caption tokenizer")
    assert [part for part in says if part not in str(caught.value)] == []
    assert asked == [5]
