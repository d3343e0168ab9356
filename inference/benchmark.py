"""What many images in one process gain over a process per image, and whether memory stays flat.

python -m locap.inference.benchmark --model output/quickstart/quickstart/run_1 --images 200
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from ..datasets.shapes import Shapes

ENTRY = Path(__file__).resolve().parents[1] / "entry.py"
SAMPLE_SECONDS = 0.2


@dataclass(slots=True)
class Run:
    """A run of ``predict``.

    Attributes:
        seconds, cpu_seconds: of the process.
        memory: (share of the run, resident megabytes) now and then.
    """

    seconds: float = 0.0
    cpu_seconds: float = 0.0
    memory: list[tuple[float, float]] = field(default_factory=list)

    def at(self, share: float) -> float:
        """Return the resident memory at a share of the run, megabytes."""
        return min(self.memory, key=lambda sample: abs(sample[0] - share))[1]


def predict(model: str, images: Sequence[Path], output: Path, *words: str) -> Run:
    """Run ``predict`` on images in a process of its own."""
    command = [sys.executable, str(ENTRY), "predict", *map(str, images), "--model", model, "--output", str(output)]
    before, started = os.times(), time.monotonic()
    with subprocess.Popen([*command, *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        samples: list[tuple[float, float]] = []
        watcher = threading.Thread(target=_watch, args=(process, started, samples))
        watcher.start()
        told = process.stderr.read().decode()
        if process.wait():
            raise SystemExit(told)
        watcher.join()
    seconds, after = time.monotonic() - started, os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return Run(seconds, cpu, [(at / seconds, memory) for at, memory in samples])


def _watch(process: subprocess.Popen, started: float, samples: list[tuple[float, float]]) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    while process.poll() is None:
        try:
            resident = int(Path(f"/proc/{process.pid}/statm").read_text(encoding="ascii").split()[1])
        except (OSError, IndexError):  # it has just ended
            return
        samples.append((time.monotonic() - started, resident * page / 1e6))
        time.sleep(SAMPLE_SECONDS)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, metavar="FOLDER")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--size", type=int, default=96, help="side of the drawn scenes, pixels")
    parser.add_argument("--single", type=int, default=5, help="images that have a process each")
    parser.add_argument("--predict", nargs=argparse.REMAINDER, default=[], help="further arguments of predict")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as folder:
        images = _draw(Path(folder), arguments.images, arguments.size)
        together = predict(arguments.model, images, Path(folder) / "together", *arguments.predict)
        alone = [
            predict(arguments.model, [image], Path(folder) / f"alone_{image.stem}", *arguments.predict)
            for image in images[: arguments.single]
        ]
    _report(arguments.images, together, alone)


def _draw(folder: Path, count: int, size: int) -> list[Path]:
    scenes = Shapes(count, split="test", image_size=size)
    paths = [folder / f"{index:05d}.png" for index in range(count)]
    for index, path in enumerate(paths):
        Image.fromarray(scenes[index].read_image()).save(path)
    return paths


def _report(count: int, together: Run, alone: Sequence[Run]) -> None:
    seconds = statistics.median(run.seconds for run in alone)
    cpu = statistics.median(run.cpu_seconds for run in alone)
    print(f"{count} images in one process: {together.seconds:.1f} s, {count / together.seconds:.1f} images/s,")
    print(f"    {together.cpu_seconds:.1f} s of processor time")
    print(f"a process per image (median of {len(alone)}): {seconds:.1f} s, {cpu:.1f} s of processor time")
    print(f"gain: {seconds * count / together.seconds:.0f} x in time, {cpu * count / together.cpu_seconds:.0f} x in")
    print("    processor time")
    print(f"memory: {together.at(0.5):.0f} MB at half of the run, {together.at(0.95):.0f} MB at the end")


if __name__ == "__main__":
    main()
