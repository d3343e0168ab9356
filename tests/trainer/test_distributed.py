"""What processes tell each other, and how they end together."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time

import pytest
import torch
import torch.distributed as dist

from locap.trainer import distributed
from locap.trainer.distributed import (
    Timeouts,
    World,
    agree,
    gather_texts,
    on_main,
    process_group,
    shared_store,
    sum_numbers,
)
from locap.trainer.rendezvous import check_devices
from locap.utils.devices import pick_device
from locap.utils.errors import CheckpointError, MissingDependencyError, UsageError


@pytest.mark.fault("C4")
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_asking_for_a_missing_gpu_names_the_way_out():
    assert pick_device("auto") == torch.device("cpu")
    with pytest.raises(MissingDependencyError, match="--overrides DEVICE cpu"):
        pick_device("cuda")


def test_one_process_needs_no_group(monkeypatch):
    for name in ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_ID"):
        monkeypatch.delenv(name, raising=False)
    with process_group(device="cpu") as world:
        assert world == World()
        assert not dist.is_initialized()
        assert on_main(lambda: "text") == "text"


@pytest.mark.fault("N8")
def test_processes_share_the_cores(monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(os, "cpu_count", lambda: 12)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    for size in (1, 2, 4, 99):
        distributed._share_cores(size)
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    distributed._share_cores(2)
    assert asked == [8, 6, 3, 1]


def _refuse() -> str:
    raise CheckpointError("No.", where="here")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_two(body, *, size: int = 2, started: int = 2, seconds: float = 5) -> tuple[list[int], list]:
    """Call ``body(world)`` in forked processes; their exit codes and what they returned, in rank order."""
    context, port = multiprocessing.get_context("fork"), free_port()
    results = context.SimpleQueue()

    def member(rank: int) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        with process_group(device="cpu", timeouts=Timeouts(seconds, 30, 30)) as world:
            results.put((rank, body(world)))

    members = [context.Process(target=member, args=(rank,), daemon=True) for rank in range(started)]
    for process in members:
        process.start()
    for process in members:
        process.join(40)
    found = []
    while not results.empty():
        found.append(results.get())
    return [process.exitcode for process in members], [value for _, value in sorted(found, key=lambda pair: pair[0])]


def _exchange(world: World) -> tuple:
    text = on_main(lambda: f"from {world.rank}")
    store = shared_store()
    store.set(f"note {world.rank}", text)
    store.wait(["note 0", "note 1"])
    try:
        on_main(_refuse)
    except CheckpointError as err:
        return text, str(err), gather_texts(f"of {world.rank}"), sum_numbers([0.1, 2.0**60, world.rank]), world.host
    raise AssertionError


def test_an_error_of_rank_0_reaches_every_rank():
    """A rank that waits for a message of a rank that has left would wait for ten minutes."""
    codes, found = run_two(_exchange)
    message, host = "No.\n  where:   here", socket.gethostname()
    sums = [0.2, 2.0**61, 1.0]
    assert found == [("from 0", message, ["of 0", "of 1"], sums, host), ("from 0", message, None, sums, host)]
    assert codes == [0, 0]


@pytest.mark.fault("A17")
def test_ranks_that_disagree_are_told_the_first_difference_once(capfd):
    codes, found = run_two(lambda world: agree({"seed": "0", "data size": str(7 + world.rank)}, "the data"))
    err = capfd.readouterr().err
    assert codes == [2, 2]
    assert found == []
    assert err.count("error:") == 1
    for part in ("disagree about the data", "first difference: data size", "rank 0: 7; rank 1: 8"):
        assert part in err
    assert "Traceback" not in err


@pytest.mark.fault("A17")
def test_the_line_in_which_texts_differ_is_found_with_its_headings():
    texts = [f"A: 1\nB:\n  C:\n    D: 1\n  E:\n    F: {value}\nG: {value}" for value in (1, 2)]
    assert distributed._first_difference(texts) == ["B: E: F: 1", "B: E: F: 2"]
    assert distributed._first_difference(["A: 1", "A: 1\nB: 2"]) == ["(nothing)", "B: 2"]
    assert distributed._first_difference(["7", "8"]) == ["7", "8"]


def test_ranks_that_agree_go_on():
    assert run_two(lambda world: agree({"seed": "0"}, "the data"))[0] == [0, 0]


@pytest.mark.fault("C2")
def test_a_rank_that_does_not_come_is_named(capfd):
    codes, _ = run_two(lambda world: None, started=1, seconds=1)
    err = capfd.readouterr().err
    assert codes == [5]
    assert "Rank 1 of 2 did not come within 1 s" in err
    assert f"Rank 0 came, on {socket.gethostname()}" in err
    assert "-x MASTER_ADDR" in err


def test_processes_that_part_do_not_wait_for_one_another():
    """Rank 0 may write a report when the others have left."""
    codes, found = run_two(lambda world: time.sleep(2.0 * (world.rank == 0)))
    assert codes == [0, 0]
    assert found == [None, None]


@pytest.mark.fault("C3")
def test_two_processes_on_one_gpu_are_an_error():
    cards = [{"host": "a", "device": "cuda:0", "uuid": "GPU-1"}, {"host": "a", "device": "cuda:0", "uuid": "GPU-1"}]
    with pytest.raises(UsageError, match=r"Ranks 0 and 1 compute on one GPU") as caught:
        check_devices(cards, allow_shared_gpu=False)
    assert "rank 1: a cuda:0 GPU-1" in str(caught.value)
    check_devices(cards, allow_shared_gpu=True)
    check_devices([card | {"uuid": ""} for card in cards], allow_shared_gpu=False)
