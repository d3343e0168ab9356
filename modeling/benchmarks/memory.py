"""How much memory a piece of work takes at once, from the allocator's own records."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile


def allocated_gb(run: Callable[[], object], device: torch.device | str = "cpu") -> float:
    """Run once and return the most that was allocated at a time beyond what was there before, 10^9 bytes.

    On the CPU PyTorch's profiler records every allocation and release, whose sum does not depend on what the process
    did before, as its resident memory does.
    """
    device = torch.device(device)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return (torch.cuda.max_memory_allocated(device) - before) / 1e9
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        found.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    return (
        max((event["args"]["Total Allocated"] for event in events if event.get("name") == "[memory]"), default=0) / 1e9
    )
