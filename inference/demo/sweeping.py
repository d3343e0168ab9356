"""A look, now and then, at what is kept for users: what is old or too much goes, and freed memory goes back."""

from __future__ import annotations

import logging
import threading
import weakref
from pathlib import Path
from typing import Any

from ...utils.memory import give_memory_back
from .keeping import sweep_folder
from .limits import KEEP_SECONDS, MAX_FILE_BYTES, SWEEP_SECONDS
from .page import Page, UploadedPainting

logger = logging.getLogger(__name__)


class Sweeper:
    """Sweeps what belongs to a page until the page is gone.

    Args:
        page: whose desks and paintings are swept.
        blocks: what gradio made of it; its lists of files are kept short, too.
        folder: of the uploads and pictures.
        keep_seconds: after which a file is deleted.
        max_bytes: of all files; the oldest go first.
    """

    def __init__(
        self,
        page: Page,
        blocks: Any,
        folder: Path,
        *,
        keep_seconds: float = KEEP_SECONDS,
        max_bytes: int = MAX_FILE_BYTES,
    ) -> None:
        self.page, self.blocks, self.folder = weakref.ref(page), weakref.ref(blocks), folder
        self.keep_seconds, self.max_bytes = keep_seconds, max_bytes

    def start(self, sweep_seconds: float = SWEEP_SECONDS) -> None:
        """Sweep from now on, in a thread of its own."""
        threading.Thread(target=self._run, args=(sweep_seconds,), name="locap-sweeper", daemon=True).start()

    def _run(self, seconds: float) -> None:
        wait = threading.Event().wait
        while not wait(seconds) and self.blocks() is not None:
            try:
                self.sweep()
            except Exception:  # the next look may fare better; without any, everything would be kept
                logger.exception("what is kept for users could not be swept")

    def sweep(self) -> None:
        """Look once."""
        page, blocks = self.page(), self.blocks()
        if page is None or blocks is None:
            return
        page.desks.sweep()
        UploadedPainting.kept.sweep()
        spared = {file for part in list(blocks.blocks.values()) for file in getattr(part, "keep_in_cache", ())}
        deleted = sweep_folder(self.folder, self.max_bytes, self.keep_seconds, spared)
        for files in [blocks.upload_file_set, *blocks.temp_file_sets]:
            files.difference_update(deleted)
        give_memory_back()
