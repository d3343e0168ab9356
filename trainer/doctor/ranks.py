"""Under a launcher: which processes there are, and where each computes."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence

from ...utils.errors import LocapError
from ..launch import Launch, discover
from .lines import BROKEN, OK, Line

SECONDS = 20.0


def join() -> tuple[int, list[Line]]:
    """Meet the other processes; returns this one's rank and, for rank 0, the lines about all of them.

    Every process of a launch must call it; it is the only part of the doctor that loads torch.
    """
    try:
        launch = discover()
    except LocapError as err:
        return 0, [Line("launcher", BROKEN, f"{err.what} {err.value}", err.fix or "")]
    if launch.size == 1:
        alone = "none: one process" if launch.launcher == "none" else f"{launch.launcher}, one process"
        return 0, [Line("launcher", OK, alone)]
    try:
        return launch.rank, _meet(launch)
    except LocapError as err:
        return launch.rank, [Line("launcher", BROKEN, err.what, err.fix or "")]


def _meet(launch: Launch) -> list[Line]:
    from ..distributed import Timeouts, gather_texts, process_group

    logging.getLogger("locap.trainer.distributed").setLevel(logging.WARNING)  # its table is the one below
    with process_group(timeouts=Timeouts(SECONDS, SECONDS, SECONDS), allow_shared_gpu=True) as world:
        threads = os.environ.get("OMP_NUM_THREADS", "")
        mine = {"host": world.host, "local_rank": world.local_rank, "device": str(world.device), "threads": threads}
        texts = gather_texts(json.dumps(mine)) or []
    return lines_of(launch, [json.loads(text) for text in texts])


def lines_of(launch: Launch, cards: Sequence[dict]) -> list[Line]:
    """Return a line per process; two on one GPU are broken."""
    lines = [Line("launcher", OK, f"{launch.launcher}, {launch.size} processes")]
    seen: dict[tuple[str, str], int] = {}
    for rank, card in enumerate(cards):
        place = (card["host"], card["device"])
        text = f"{card['host']}, local rank {card['local_rank']}, {card['device']}"
        text += f", OMP_NUM_THREADS {card['threads'] or 'not set'}"
        if card["device"].startswith("cuda") and place in seen:
            fix = "start as many processes per machine as it has GPUs; or PARALLEL.ALLOW_SHARED_GPU true"
            lines.append(Line(f"rank {rank}", BROKEN, f"{text}: the GPU of rank {seen[place]} too", fix))
        else:
            lines.append(Line(f"rank {rank}", OK, text))
        seen.setdefault(place, rank)
    return lines
