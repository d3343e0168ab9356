"""Where training writes its numbers: JSON lines always, TensorBoard and Weights & Biases when asked for."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

_log = logging.getLogger(__name__)


class Tracker(Protocol):
    """One place numbers go to."""

    def log(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """Store one event: "train" or "evaluate"."""

    def close(self) -> None:
        """Flush and end."""


class JsonLines:
    """``metrics.jsonl``: one JSON object a line, readable while the run goes on."""

    def __init__(self, path: Path, *, resume_step: int | None = None) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        if resume_step is not None and path.exists():
            _cut_after(path, resume_step)
        self._file = path.open("a", encoding="utf-8")

    def log(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """See `Tracker`; NaN and infinity become null."""
        self._file.write(json.dumps({"event": event, "step": step, **_finite(values)}, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """See `Tracker`."""
        self._file.close()


class TensorBoard:
    """Event files in ``<run>/tensorboard``."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder))

    def log(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        for name, value in _flat(values):
            self._writer.add_scalar(f"{event}/{name}", value, step)

    def close(self) -> None:
        """See `Tracker`."""
        self._writer.close()


class Wandb:
    """Weights & Biases; without a network or a login the run is stored offline, and nothing ever asks a question."""

    def __init__(self, folder: Path, *, project: str, name: str, config: Mapping[str, Any]) -> None:
        import os

        import wandb

        offline = os.environ.get("WANDB_MODE") or ("online" if _has_login() else "offline")
        settings = wandb.Settings(silent=True, init_timeout=10)
        arguments = {"project": project, "name": name, "dir": str(folder), "config": dict(config), "settings": settings}
        try:
            self._run = wandb.init(mode=offline, **arguments)
        except Exception as err:  # whatever the service does must not stop training
            _log.warning("Weights & Biases cannot be reached (%s); this run is stored offline.", err)
            self._run = wandb.init(mode="offline", **arguments)

    def log(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        self._run.log({f"{event}/{name}": value for name, value in _flat(values)}, step=step)

    def close(self) -> None:
        """See `Tracker`."""
        self._run.finish()


class Trackers:
    """All of them as one; one that fails is dropped with a warning, the others go on."""

    def __init__(self, trackers: list[Tracker]) -> None:
        self._trackers = trackers

    def log(self, event: str, step: int, values: Mapping[str, Any]) -> None:
        """See `Tracker`."""
        for tracker in list(self._trackers):
            try:
                tracker.log(event, step, values)
            except OSError as err:
                _log.warning("%s stops: %s. Training goes on.", type(tracker).__name__, err)
                self._trackers.remove(tracker)

    def close(self) -> None:
        """See `Tracker`."""
        for tracker in self._trackers:
            tracker.close()


def _has_login() -> bool:
    import os
    from netrc import netrc

    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        return "api.wandb.ai" in netrc().hosts
    except (OSError, ValueError):
        return False


def _cut_after(path: Path, step: int) -> None:
    """Drop events of steps that a resumed run will repeat, and a torn last line."""
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (ValueError, KeyError):
            continue
    path.write_text("".join(kept), encoding="utf-8")


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {name: plain(item) for name, item in value.items()}
        return value if not isinstance(value, float) or math.isfinite(value) else None

    return plain(values)


def _flat(values: Mapping[str, Any]) -> list[tuple[str, float]]:
    rows = []
    for name, value in values.items():
        if isinstance(value, Mapping):
            rows += [(f"{name}/{inner}", number) for inner, number in _flat(value)]
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            rows.append((name, value))
    return rows
