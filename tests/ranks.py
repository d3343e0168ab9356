"""Run a function in several processes that share a process group on the CPU; forked, which saves them the start-up."""

from __future__ import annotations

import multiprocessing
import os
import queue
import socket
import time
import traceback
from collections.abc import Callable
from typing import Any

import torch

from locap.trainer.distributed import process_group

LIMIT = 120  # seconds


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _member(rank: int, size: int, port: int, answers: Any, function: Callable, arguments: tuple) -> None:
    os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    try:
        with process_group(device="cpu") as world:
            answers.put((rank, function(world, *arguments), None))
    except BaseException:
        answers.put((rank, None, traceback.format_exc()))
        raise


def on_ranks(size: int, function: Callable, *arguments: Any) -> list[Any]:
    """Call ``function(world, *arguments)`` on every rank; returns what they return, in rank order; no tensors."""
    context, port = multiprocessing.get_context("fork"), free_port()
    answers, found = context.Queue(), {}
    members = [
        context.Process(target=_member, args=(rank, size, port, answers, function, arguments), daemon=True)
        for rank in range(size)
    ]
    for member in members:
        member.start()
    deadline = time.monotonic() + LIMIT
    try:
        while len(found) < size:
            rank, answer, error = answers.get(timeout=max(deadline - time.monotonic(), 0.1))
            assert error is None, f"rank {rank} of {size}:\n{error}"
            found[rank] = answer
    except queue.Empty:
        raise AssertionError(f"ranks {sorted(set(range(size)) - found.keys())} of {size} did not answer") from None
    finally:
        for member in members:
            member.join(5)
            if member.is_alive():
                member.kill()
    return [found[rank] for rank in range(size)]
