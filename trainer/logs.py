"""Where training writes its numbers: JSON lines always, TensorBoard and Weights & Biases when asked for."""

from __future__ import annotations

import json
import logging
import math
import os
import uuid
from collections.abc import Callable, Mapping
from netrc import netrc
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from ..utils.files import write_text

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
    """Event files in ``<run>/tensorboard``; a resumed run hides the points that it will repeat."""

    def __init__(self, folder: Path, *, resume_step: int | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder), purge_step=None if resume_step is None else resume_step + 1)

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
        import wandb

        mode = os.environ.get("WANDB_MODE", "online")
        settings = wandb.Settings(silent=True, init_timeout=10)
        identity = folder / "wandb_id.txt"  # a resumed run goes on with its own curves
        if not identity.exists():
            write_text(identity, uuid.uuid4().hex[:8])
        arguments = {"project": project, "name": name, "dir": str(folder), "config": dict(config), "settings": settings}
        arguments |= {"id": identity.read_text(encoding="utf-8"), "resume": "allow"}
        try:
            self._run = wandb.init(mode=mode if mode != "online" or _has_login() else "offline", **arguments)
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
        self._each(lambda tracker: tracker.log(event, step, values))

    def close(self) -> None:
        """See `Tracker`."""
        self._each(lambda tracker: tracker.close())

    def _each(self, action: Callable[[Tracker], None]) -> None:
        for tracker in list(self._trackers):
            try:
                action(tracker)
            except Exception as err:  # a full disk, a service that is down: no log is worth the run
                _log.warning("%s stops: %s. Training goes on.", type(tracker).__name__, err)
                self._trackers.remove(tracker)


def _has_login() -> bool:
    """Return whether wandb could log in without asking."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return host in netrc(os.environ.get("NETRC")).hosts
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
    write_text(path, "".join(kept))


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
