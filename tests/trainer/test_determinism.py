"""Deterministic algorithms for the length of a block."""

from __future__ import annotations

import os

import torch

from locap.trainer.determinism import deterministic


def settings() -> tuple:
    return (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
        torch.backends.cudnn.benchmark,
        os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
    )


def test_settings_hold_inside_and_return_afterwards(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    before = settings()
    with deterministic():
        assert settings() == (True, True, False, ":4096:8")
    assert settings() == before
    with deterministic(False):
        assert settings() == before


def test_a_chosen_workspace_stays(monkeypatch):
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic():
        assert settings()[3] == ":16:8"
    assert settings()[3] == ":16:8"
