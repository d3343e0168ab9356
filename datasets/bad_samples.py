"""Training samples that cannot be used: left out of their batch, listed, and counted up to a cap."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..utils.errors import DataError
from ..utils.files import survived, write_text

FILE = "bad_samples.jsonl"
_MOST_REASONS, _MOST_PATHS = 5, 3  # of a message


@dataclass(frozen=True, slots=True)
class BadSample:
    """A sample that reader or mapper refused.

    Attributes:
        source: name of its data set; "" where there is only one.
        index: in its data set.
        image_id: None where not even the record could be read.
        where: the file, as the error named it.
        reason: what was wrong.
    """

    source: str
    index: int
    image_id: int | str | None
    where: str
    reason: str


def to_text(bads: Iterable[BadSample]) -> str:
    """Return JSON that `from_text` reads, to be sent from rank to rank."""
    return json.dumps([asdict(bad) for bad in bads])


def from_text(text: str) -> list[BadSample]:
    """Undo `to_text`."""
    return [BadSample(**body) for body in json.loads(text)]


def most_bad(samples: int, max_bad_samples: int, max_bad_share: float) -> int:
    """Return how many of ``samples`` may be bad: the larger of a number and a share."""
    return max(max_bad_samples, int(max_bad_share * samples))


class BadSampleLog:
    """``bad_samples.jsonl``: one JSON object a line, each sample once however often it is met. One rank writes.

    Args:
        path: the file.
        samples: number of training samples.
        max_bad_samples, max_bad_share: how many may be bad, see `most_bad`.
        resume_step: the step that a resumed run goes on from; what came after it is forgotten, since it will be met
            again. 0 begins anew.
    """

    def __init__(
        self,
        path: Path,
        *,
        samples: int,
        max_bad_samples: int = 100,
        max_bad_share: float = 0.001,
        resume_step: int = 0,
    ) -> None:
        self.path, self.samples = Path(path), samples
        self.most = most_bad(samples, max_bad_samples, max_bad_share)
        self._known: dict[tuple[str, int], BadSample] = {}
        if self.path.exists():
            self._restore(resume_step)

    def __len__(self) -> int:
        """Return how many distinct samples were bad so far."""
        return len(self._known)

    def add(self, step: int, epoch: float, bads: Iterable[BadSample]) -> int:
        """Note what all ranks left out in a step; returns how many were not known yet.

        Raises:
            DataError: there are more than allowed, or no sample is left.
        """
        new = {(bad.source, bad.index): bad for bad in bads if (bad.source, bad.index) not in self._known}
        if not new:
            return 0
        self._known |= new
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with survived(self.path), self.path.open("a", encoding="utf-8") as file:
            for bad in new.values():
                file.write(json.dumps(_line(step, epoch, bad), ensure_ascii=False) + "\n")
        if len(self._known) > self.most or len(self._known) >= self.samples:
            raise self._too_many()
        return len(new)

    def reasons(self) -> dict[str, list[BadSample]]:
        """Return the samples by reason, most frequent first; reasons that differ in numbers only are one."""
        groups: dict[str, list[BadSample]] = {}
        for bad in self._known.values():
            groups.setdefault(re.sub(r"\d+", "…", bad.reason).rstrip("."), []).append(bad)
        return dict(sorted(groups.items(), key=lambda item: -len(item[1])))

    def _restore(self, step: int) -> None:
        kept = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                body = json.loads(line)
                bad = BadSample(body["source"], body["index"], body["image"], body["where"], body["reason"])
                known = body["step"] <= step
            except (ValueError, KeyError, TypeError):  # the last line of a run that was killed
                continue
            if known:
                kept.append(line + "\n")
                self._known[bad.source, bad.index] = bad
        write_text(self.path, "".join(kept))

    def _too_many(self) -> DataError:
        lines = [f"{_spaced(len(self._known))} of {_spaced(self.samples)} samples unusable:"]
        groups = self.reasons()
        for reason, bads in list(groups.items())[:_MOST_REASONS]:
            more = ", …" if len(bads) > _MOST_PATHS else ""
            lines.append(
                f"  {_spaced(len(bads))} x {reason}: {', '.join(bad.where for bad in bads[:_MOST_PATHS])}{more}"
            )
        if len(groups) > _MOST_REASONS:
            lines.append(f"  and {len(groups) - _MOST_REASONS} more reasons")
        return DataError(
            "\n".join(lines),
            where=str(self.path),
            allowed=f"up to {_spaced(min(self.most, self.samples - 1))}",
            fix="mend the files, or raise COCO.DATALOADER.MAX_BAD_SAMPLES or MAX_BAD_SHARE",
        )


def _line(step: int, epoch: float, bad: BadSample) -> Mapping[str, Any]:
    body = asdict(bad)
    return {
        "step": step,
        "epoch": epoch,
        "source": bad.source,
        "index": bad.index,
        "image": body.pop("image_id"),
    } | body


def _spaced(number: int) -> str:
    return f"{number:,}".replace(",", " ")
