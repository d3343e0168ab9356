"""The compiled libraries: loaded through their C interface (``csrc/ms_deform_attn.h``), no torch headers needed."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from .build import BuildError, library

ABI = 1
MAX_LEVELS = 64
DTYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2, torch.float64: 3}
_NOT_DETERMINISTIC = 4
_FUNCTIONS = {"forward": 0, "backward": 1, "fused_forward": 2, "fused_backward": 3}


class KernelError(RuntimeError):
    """A compiled kernel reported an error."""


class NotDeterministicError(KernelError):
    """The kernel has no deterministic way for this case, and one was asked for."""


class _Problem(ctypes.Structure):  # locap_msda_problem
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "tokens", "heads", "dim", "queries", "levels", "points")),
        ("shapes", ctypes.POINTER(ctypes.c_int64)),
        ("value_strides", ctypes.c_int64 * 3),
        ("reference_strides", ctypes.c_int64 * 3),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_int64),
        ("stream", ctypes.c_void_p),
        *(
            (name, ctypes.c_int32)
            for name in ("device", "threads", "dtype", "points_dtype", "reference_dim", "deterministic")
        ),
    )


@dataclass(frozen=True)
class Library:
    """The functions of one library.

    Attributes:
        kind: ``cpu`` or ``cuda``.
        handle: what ctypes loaded.
    """

    kind: str
    handle: Any

    def function(self, name: str) -> Any:
        """Return ``locap_msda_<kind>_<name>``."""
        return getattr(self.handle, f"locap_msda_{self.kind}_{name}")

    def error_text(self, code: int) -> str:
        """Return what a return code means."""
        return self.function("error_text")(code).decode()

    def usable(self, device: int = 0) -> str | None:
        """Return why the library cannot run on a device, or None if it can."""
        code = self.function("usable")(device)
        return self.error_text(code) if code else None

    def run(
        self,
        name: str,
        tensors: Sequence[Tensor | None],
        shapes: Sequence[int],
        points: int,
        *,
        reference: Tensor | None = None,
        deterministic: bool = False,
    ) -> None:
        """Call a function; it writes to the last of its tensors.

        Args:
            name: ``forward``, ``backward``, ``fused_forward`` or ``fused_backward``.
            tensors: in the order of the C function; None where a gradient is not wanted. The first is value, the second
                locations or offsets.
            shapes: height, width, height, width ... of the levels.
            points: K.
            reference: of the fused functions, also among ``tensors``.
            deterministic: the same inputs must give the same bits.

        Raises:
            NotDeterministicError: there is no deterministic way.
            KernelError: anything else that went wrong.
        """
        value, coordinates = tensors[0], tensors[1]
        problem = _Problem(*value.shape, coordinates.shape[1], len(shapes) // 2, points)
        problem.shapes = (ctypes.c_int64 * max(len(shapes), 1))(*shapes)
        problem.value_strides = value.stride()[:3]
        problem.dtype, problem.points_dtype = DTYPES[value.dtype], DTYPES[coordinates.dtype]
        problem.deterministic, problem.threads = deterministic, torch.get_num_threads()
        if reference is not None:
            problem.reference_strides, problem.reference_dim = reference.stride()[:3], reference.shape[-1]
        if value.is_cuda:
            problem.device = value.device.index
            problem.stream = torch.cuda.current_stream(value.device).cuda_stream
        size = self.function("workspace")(ctypes.byref(problem), _FUNCTIONS[name])
        workspace = torch.empty(size, dtype=torch.uint8, device=value.device) if size else None
        if workspace is not None:
            problem.workspace, problem.workspace_bytes = workspace.data_ptr(), size
        pointers = [None if tensor is None else ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
        code = self.function(name)(ctypes.byref(problem), *pointers)
        if code:
            kind = NotDeterministicError if code == _NOT_DETERMINISTIC else KernelError
            raise kind(f"multi-scale deformable attention, {self.kind} {name}: {self.error_text(code)} (code {code})")


@lru_cache(maxsize=2)
def load(kind: str) -> Library:
    """Return a library, compiling it at its first use on this machine.

    Raises:
        BuildError: it cannot be compiled or loaded.
    """
    path = library(kind)
    try:
        loaded = Library(kind, ctypes.CDLL(str(path)))
        loaded.function("error_text").restype = ctypes.c_char_p
        loaded.function("workspace").restype = ctypes.c_int64
        abi = loaded.function("abi")()
    except (OSError, AttributeError) as err:
        raise BuildError(f"{path} cannot be loaded: {err}; remove it and start again") from err
    if abi != ABI:
        raise BuildError(f"{path} speaks version {abi} of the interface, not {ABI}; remove it and start again")
    return loaded
