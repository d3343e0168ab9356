"""Copies of what is saved, so that training goes on while a thread writes them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class Staging:
    """CPU copies of tensors in memory that is kept for the next ones; page-locked for those of a GPU.

    One set of copies: the next `copy` overwrites what the last returned.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, str], Tensor] = {}

    def copy(self, files: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Tensor]]:
        """Return the tensors of several files, copied when it returns; the host waits once for each GPU."""
        buffers, devices = self._buffers, set()
        self._buffers = {}  # what is not asked for any more is let go
        for file, tensors in files.items():
            for name, tensor in tensors.items():
                buffer = _fitting(buffers.get((file, name)), tensor)
                self._buffers[file, name] = buffer.copy_(tensor.detach(), non_blocking=tensor.is_cuda)
                devices |= {tensor.device} if tensor.is_cuda else set()
        for device in devices:
            torch.cuda.current_stream(device).synchronize()
        return {file: {name: self._buffers[file, name] for name in tensors} for file, tensors in files.items()}


def _fitting(buffer: Tensor | None, tensor: Tensor) -> Tensor:
    if buffer is not None and (buffer.shape, buffer.dtype) == (tensor.shape, tensor.dtype):
        return buffer
    return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
