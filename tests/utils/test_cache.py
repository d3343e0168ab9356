"""What is kept on disk: where, for how long, under which key."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from locap.utils.cache import KEPT_FILES, cached_tensor, digest
from locap.utils.folders import cache_folder


def test_users_can_move_the_folder(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CACHE_HOME", "/big")
    monkeypatch.setenv("LOCAP_CACHE", "~/mine")
    assert cache_folder() == Path("/home/me/mine")
    monkeypatch.delenv("LOCAP_CACHE")
    assert cache_folder() == Path("/big/locap")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path("/home/me/.cache/locap")


def test_the_digest_depends_on_every_value_type_and_shape():
    x = torch.arange(6.0)
    parts = [(x,), (x.view(2, 3),), (x.double(),), (x.bfloat16(),), (x[:3], x[3:]), ("ab", "c"), ("a", "bc"), ()]
    parts += [(torch.tensor(1.0),), (x.view(2, 3).t(),)]
    assert len({digest(*part) for part in parts}) == len(parts)
    assert digest([x, x]) == digest(x.clone(), x)


def test_only_the_newest_files_stay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("LOCAP_CACHE", str(tmp_path))
    for index in range(KEPT_FILES + 2):
        cached_tensor("kind", f"key{index}", (1,), lambda i=index: torch.tensor([i]))
        for age, path in enumerate(sorted(tmp_path.rglob("*.safetensors"), key=lambda p: p.stat().st_mtime)):
            os.utime(path, (age + 1, age + 1))
        cached_tensor("kind", "key0", (1,), lambda: torch.tensor([-1]))  # used: it stays young
    names = {path.stem for path in tmp_path.rglob("*.safetensors")}
    assert len(names) == KEPT_FILES
    assert {"key0", f"key{KEPT_FILES + 1}"} <= names
    assert cached_tensor("kind", "key0", (1,), lambda: torch.tensor([-1])).tolist() == [0]


def test_many_ranks_may_write_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog):
    monkeypatch.setenv("LOCAP_CACHE", str(tmp_path))
    ranks = 12
    together = threading.Barrier(ranks)

    def compute() -> torch.Tensor:
        together.wait(timeout=60)  # nobody finds a file
        return torch.arange(50_000)

    def work(rank: int) -> list[torch.Tensor]:
        return [cached_tensor("kind", "same", (50_000,), compute), cached_tensor("kind", f"own{rank}", (2,), own)]

    def own() -> torch.Tensor:
        return torch.ones(2)

    with ThreadPoolExecutor(ranks) as pool, caplog.at_level("WARNING", logger="locap"):
        for same, _ in pool.map(work, range(ranks)):
            assert torch.equal(same, torch.arange(50_000))
    assert not caplog.records
    names = {path.stem for path in (tmp_path / "kind").iterdir()}
    assert len(names) <= ranks + 1
    assert not any(name.startswith(".") for name in names)


@pytest.mark.fault("N7")
@pytest.mark.parametrize("why", ["read-only", "no home"])
def test_a_cache_that_cannot_be_written_to_costs_a_warning_only(monkeypatch, tmp_path: Path, caplog, why: str):
    for name in ("LOCAP_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    if why == "read-only":
        (tmp_path / "file").touch()  # nobody, not even root, can make a folder in it
        monkeypatch.setenv("LOCAP_CACHE", str(tmp_path / "file" / "cache"))
    else:
        monkeypatch.setattr(Path, "home", _no_home)
        monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    assert cached_tensor("kind", "key", (1,), lambda: torch.tensor([3])).tolist() == [3]
    if why == "read-only":
        assert "nothing is cached in" in caplog.text
    else:
        assert [path.parent.parent.parent for path in tmp_path.rglob("*.safetensors")] == [tmp_path]


def _no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")
