"""Several users at once, for a few seconds: nobody gets another one's answer."""

from __future__ import annotations

import os
import time

import pytest

from locap.inference.demo import load

pytest.importorskip("gradio")


@pytest.mark.slow
@pytest.mark.fault("J6", "J10")
def test_four_users_for_two_seconds(serve, service):
    figures = load.load(serve(service), 4, 2.0, pid=os.getpid())
    assert figures.errors == []
    assert figures.wrong == 0
    assert figures.requests >= 8
    assert set(figures.seconds) == {"page", "service"}
    assert figures.memory
    assert "wrong answers 0" in figures.describe()


def test_a_wrong_answer_is_counted():
    figures, said = load.Figures(), ["late", "right", "wrong", "right"]

    def ask():
        time.sleep(0.01)
        if len(said) == 1:
            raise OSError("gone")
        return said.pop()

    load._ask_on(ask, "right", time.monotonic() + 0.2, figures, "page")
    assert figures.wrong == 1
    assert len(figures.errors) == figures.requests - 3 > 0
    assert "error: OSError: gone" in figures.describe()
