"""Many users at once: ``python -m locap.inference.demo.load --model FOLDER --users 20 --seconds 60``.

Starts the demo in a process of its own. Every user has another image, half of them ask through the page and half
through the HTTP service, and every answer is compared with what the same user was told while alone.
"""

from __future__ import annotations

import argparse
import base64
import os
import queue
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console

from ...datasets.shapes import Shapes
from ...utils.errors import MissingDependencyError

ENTRY = Path(__file__).resolve().parents[2] / "entry.py"
IMAGE_SIDE = 96
START_SECONDS = 120.0
SETTLE_SHARE = 0.2  # of the time, after which memory is expected to stay where it is


@dataclass(slots=True)
class Figures:
    """What a run of many users came to.

    Attributes:
        seconds: of each request, by the way it came: "page" (an upload and a question) or "service".
        errors: texts of those that failed.
        wrong: requests whose answer was not that of the same user alone.
        memory: (seconds since the start, resident bytes of the server).
    """

    seconds: dict[str, list[float]] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)
    wrong: int = 0
    memory: list[tuple[float, int]] = field(default_factory=list)

    @property
    def requests(self) -> int:
        """How many there were."""
        return sum(map(len, self.seconds.values()))

    def describe(self) -> str:
        """Return the figures in a few lines."""
        lines = [f"requests {self.requests}, errors {len(self.errors)}, wrong answers {self.wrong}"]
        for way, seconds in sorted(self.seconds.items()):
            middle, high = np.percentile(seconds, [50, 95])
            lines.append(f"{way}: {len(seconds)} requests, latency p50 {middle:.2f} s, p95 {high:.2f} s")
        if self.memory:
            last = self.memory[-1][0]
            settled = next(size for at, size in self.memory if at >= SETTLE_SHARE * last)
            sizes = [self.memory[0][1], settled, self.memory[-1][1], max(size for _, size in self.memory)]
            start, settled, end, most = (size / 2**20 for size in sizes)
            lines.append(
                f"server memory {start:.0f} MB at the start, {settled:.0f} after {SETTLE_SHARE:.0%} of the time, "
                f"{end:.0f} at the end, {most:.0f} at most"
            )
        return "\n".join(lines + [f"error: {text}" for text in sorted(set(self.errors))[:5]])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the program; returns 0 when every answer was there and right."""
    parser = argparse.ArgumentParser(prog="python -m locap.inference.demo.load", description=__doc__)
    parser.add_argument("--model", required=True, metavar="FOLDER", help="as of the demo")
    parser.add_argument("--users", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--no-ui", action="store_true", help="all users through the HTTP service")
    arguments = parser.parse_args(argv)
    command = [sys.executable, str(ENTRY), "demo", "--model", arguments.model, "--port", "0"]
    server, address = start_server(command + (["--no-ui"] if arguments.no_ui else []))
    try:
        figures = load(address, arguments.users, arguments.seconds, pid=server.pid, with_page=not arguments.no_ui)
    finally:
        server.terminate()
        server.wait(30)
    Console().print(figures.describe(), markup=False, highlight=False)
    return int(bool(figures.errors or figures.wrong or not figures.requests))


def start_server(command: Sequence[str]) -> tuple[subprocess.Popen[str], str]:
    """Start the demo; returns its process and address.

    Raises:
        MissingDependencyError: it did not start.
    """
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    lines: queue.Queue[str] = queue.Queue()
    threading.Thread(target=lambda: [lines.put(line) for line in server.stderr], daemon=True).start()
    said, until = "", time.monotonic() + START_SECONDS
    while time.monotonic() < until and server.poll() is None:
        try:
            said += lines.get(timeout=0.5)
        except queue.Empty:
            continue
        if found := re.search(r"at (http://\S+)", said):
            return server, found.group(1)
    server.kill()
    raise MissingDependencyError("The demo did not start.", value=said)


def load(address: str, users: int, seconds: float, *, pid: int | None = None, with_page: bool = True) -> Figures:
    """Let users ask for a while.

    Args:
        address: of the demo, ``http://127.0.0.1:7860``.
        users: how many at once.
        seconds: how long.
        pid: of the server, for its memory.
        with_page: whether every other user asks through the page.
    """
    scenes = Shapes(users, seed=7, split="test", image_size=IMAGE_SIDE)
    with tempfile.TemporaryDirectory() as folder:
        ways = ["page" if with_page and number % 2 else "service" for number in range(users)]
        asks = [
            make_user(address, scenes[number], Path(folder) / f"{number}.png", way == "page")
            for number, way in enumerate(ways)
        ]
        alone = [ask() for ask in asks]
        figures, started = Figures(), time.monotonic()
        threads = [
            threading.Thread(target=_ask_on, args=(ask, right, started + seconds, figures, way))
            for ask, right, way in zip(asks, alone, ways, strict=True)
        ]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            if pid is not None and (size := resident_bytes(pid)):
                figures.memory.append((time.monotonic() - started, size))
            time.sleep(0.5)
    return figures


def make_user(address: str, scene: Any, file: Path, through_page: bool) -> Callable[[], Any]:
    """Return a function that sends the user's image, asks about it, and returns the answer."""
    Image.fromarray(scene.read_image()).save(file)
    box = [round(side) for side in scene.regions[0].box_xyxy]
    return _page_user(address, file, box) if through_page else _service_user(address, file, box)


def _service_user(address: str, file: Path, box: list[int]) -> Callable[[], Any]:
    import httpx

    client = httpx.Client(base_url=address, timeout=120)
    image = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": image}}]
    body = {
        "messages": [{"role": "user", "content": content}],
        "regions": [{"box": box}] if takes_boxes(address) else [],
    }

    def ask() -> Any:
        answer = client.post("/v1/chat/completions", json=body).raise_for_status().json()
        return answer["choices"][0]["message"]["content"], answer["regions"]

    return ask


def _page_user(address: str, file: Path, box: list[int]) -> Callable[[], Any]:
    import gradio_client

    client = gradio_client.Client(address, verbose=False, download_files=False, analytics_enabled=False)
    mode = "Box" if takes_boxes(address) else "Everything"

    def ask() -> Any:
        client.predict(gradio_client.handle_file(file), api_name="/open_image")
        given = [mode, " ".join(map(str, box)), None, "", "Describe", ""]
        _, text, table = client.predict(*given, api_name="/caption")
        return text, table["data"]

    return ask


def takes_boxes(address: str) -> bool:
    """Whether the demo's system answers questions about boxes."""
    import httpx

    return "box" in httpx.get(f"{address}/v1/models").raise_for_status().json()["data"][0]["takes"]


def _ask_on(ask: Callable[[], Any], right: Any, until: float, figures: Figures, way: str) -> None:
    seconds = figures.seconds.setdefault(way, [])
    while time.monotonic() < until:
        began = time.monotonic()
        try:
            figures.wrong += ask() != right
        except Exception as err:  # any of a client's: what failed is counted and told
            figures.errors.append(f"{type(err).__name__}: {err}"[:300])
        seconds.append(time.monotonic() - began)


def resident_bytes(pid: int) -> int:
    """Return the memory that a process holds, 0 where that is not told."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    sys.exit(main())
