"""The CUDA kernels, thread by thread on the processor (`emulator/`), against the reference in double precision.

Shuffles, index arithmetic, accumulation and the C interface are the compiled library's own; what only a GPU can show
(speed, memory order, the toolkit's arithmetic) is in ``tests/gpu``.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
import torch

from locap.ops.ms_deform_attn import library
from locap.ops.ms_deform_attn.library import KernelError, Library

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "ops" / "ms_deform_attn" / "csrc"
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def emulate(arch: int, folder: Path) -> Library:
    """Compile and load the library as for compute capability ``arch / 100``."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is absent: the CUDA kernels were not emulated")
    path = folder / "cuda.so"
    flags = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-U_FORTIFY_SOURCE", "-DMSDA_EMULATED"]
    flags.append(f"-D__CUDA_ARCH__={arch}")
    folders = [f"-I{HERE / 'emulator'}", f"-I{SOURCES}"]
    subprocess.run([compiler, *flags, *folders, str(HERE / "emulator" / "library.cpp"), "-o", str(path)], check=True)
    loaded = Library("cuda", ctypes.CDLL(str(path)))
    loaded.function("error_text").restype = ctypes.c_char_p
    loaded.function("workspace").restype = ctypes.c_int64
    assert loaded.function("abi")() == library.ABI
    assert loaded.usable(0) is None
    assert loaded.usable(7) == "emulated"
    return loaded


@pytest.fixture(scope="module")
def kernels(tmp_path_factory: pytest.TempPathFactory) -> Library:
    return emulate(900, tmp_path_factory.mktemp("emulated"))


def test_before_additions_of_four_numbers(msda: ModuleType, tmp_path: Path):
    older = emulate(800, tmp_path)
    for dtype in DTYPES:
        for dim in (16, 30, 128):
            case = msda.draw(dtype, dim, 4, 3)
            msda.assert_close(case.found(older), case.expected())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [8, 16, 30, 32, 64, 71, 128])
def test_widths(kernels: Library, msda: ModuleType, dtype: torch.dtype, dim: int):
    case = msda.draw(dtype, dim, 4, 3)
    msda.assert_close(case.found(kernels), case.expected())


@pytest.mark.parametrize("levels", [1, 4, 5])
@pytest.mark.parametrize("points", [1, 2, 3, 8])
def test_points_and_levels(kernels: Library, msda: ModuleType, points: int, levels: int):
    for dtype in (torch.float32, torch.bfloat16):
        case = msda.draw(dtype, 16, points, levels, queries=3)
        msda.assert_close(case.found(kernels), case.expected())


@pytest.mark.parametrize("reference_dim", [2, 4])
@pytest.mark.parametrize("dim", [16, 32, 71])
@pytest.mark.parametrize("points", [1, 5])
def test_fused(kernels: Library, msda: ModuleType, points: int, dim: int, reference_dim: int):
    for dtype in DTYPES:
        case = msda.draw(dtype, dim, points, 3, reference_dim=reference_dim)
        msda.assert_close(case.found(kernels), case.expected())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fused_with_float_offsets(kernels: Library, msda: ModuleType, dtype: torch.dtype):
    case = msda.draw(dtype, 32, 4, 3, reference_dim=2, points_dtype=torch.float32)
    found = case.found(kernels)
    assert [x.dtype for x in found] == [dtype, torch.float32, torch.float32, torch.float32]
    msda.assert_close(found, case.expected())


@pytest.mark.parametrize("dim", [16, 30, 128])
def test_queries_in_tiles_of_the_picture(kernels: Library, msda: ModuleType, dim: int):
    for dtype, reference_dim in ((torch.float32, 0), (torch.bfloat16, 2)):
        case = msda.draw(dtype, dim, 2, 2, queries=None, reference_dim=reference_dim)
        msda.assert_close(case.found(kernels), case.expected())


def test_rows_of_value_apart_or_misaligned(kernels: Library, msda: ModuleType):
    case = msda.draw(torch.bfloat16, 32, 4, 3)
    expected = case.expected()
    spread = torch.full((2, case.value.shape[1], 3, 40), torch.nan, dtype=torch.bfloat16)
    for shift, of_head in ((0, 32), (8, 32), (3, 32)):  # the last one begins between two 16-byte words
        view = spread[:, :, 1:, shift : shift + of_head]
        view.copy_(case.value)
        msda.assert_close(replace(case, value=view).found(kernels), expected)
    heads_first = case.value.transpose(1, 2).contiguous().transpose(1, 2)
    msda.assert_close(replace(case, value=heads_first).found(kernels), expected)


def test_reference_broadcast_over_images_and_levels(kernels: Library, msda: ModuleType):
    case = msda.draw(torch.float32, 32, 4, 3, reference_dim=2)
    case.reference = case.reference[:1, :, :1].expand(2, -1, 3, -1)
    assert case.reference.stride()[0] == case.reference.stride()[2] == 0
    found, expected = case.found(kernels), case.expected()
    assert (found[0].double() - expected[0]).abs().max() <= 2e-6 * expected[0].abs().max()


def test_edges_and_places_far_outside(kernels: Library, msda: ModuleType):
    case = msda.draw(torch.float64, 16, 4, 1, queries=4)
    width = case.shapes[0][1]
    u = torch.tensor([-1, -1 + 1e-9, 0, 0.5, width - 1, width - 1e-9, width, 1e30, -1e30, torch.inf, torch.nan])
    u = u.double()
    case.points = torch.stack(((u + 0.5) / width, torch.full_like(u, 0.4)), -1)[:8].view(1, 2, 1, 1, 4, 2)
    case.points = case.points.expand(2, 2, 2, 1, 4, 2).contiguous()
    case.shares, case.grad_out = case.shares[:, :2].contiguous(), case.grad_out[:, :2].contiguous()
    found, expected = case.found(kernels), case.expected()
    torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=0)
    case.points = ((u[7:] + 0.5) / width)[None, None, None, None, :, None].expand(2, 2, 2, 1, 4, 2).contiguous()
    assert all(not x.any() for x in case.found(kernels))


def test_deterministic_sums(kernels: Library, msda: ModuleType):
    for dtype, reference_dim in ((torch.float32, 0), (torch.bfloat16, 2), (torch.float64, 0)):
        case = msda.draw(dtype, 32, 4, 3, queries=None, reference_dim=reference_dim)
        msda.assert_close(case.found(kernels, deterministic=True), case.expected())
    case.grad_out[0, 0, 0, 0] = torch.nan
    assert case.found(kernels, deterministic=True)[1].isnan().all()  # integers know no NaN


def test_nothing_to_sum(kernels: Library, msda: ModuleType):
    for size in ("queries", "dim", "points"):
        dim, points, queries = (0 if size == name else 4 for name in ("dim", "points", "queries"))
        case = msda.draw(torch.float32, dim, points, 2, queries=queries)
        found = case.found(kernels)
        assert all(x.shape == y.shape for x, y in zip(found[1:], case.inputs(), strict=False))
        assert not any(x.any() for x in found)  # NaN where nothing was written
    case = msda.draw(torch.float32, 16, 4, 2)
    case.shapes = ((9, 10), (25, 1), (0, 7), (3, 0))
    case.points, case.shares = case.points.repeat(1, 1, 1, 2, 1, 1), case.shares.repeat(1, 1, 1, 2, 1)
    found = case.found(kernels)
    assert not any(x.isnan().any() for x in found)
    assert not found[2][:, :, :, 2:].any()


def test_unwanted_derivatives(kernels: Library, msda: ModuleType):
    for reference_dim in (0, 2):
        case = msda.draw(torch.float32, 32, 4, 3, reference_dim=reference_dim)
        every = case.found(kernels)[1:]
        prefix = "fused_" if reference_dim else ""
        for wanted in range(3):
            grads = [torch.full_like(x, torch.nan) if i == wanted else None for i, x in enumerate(every)]
            kernels.run(
                prefix + "backward", [*case.inputs(), case.grad_out, *grads], case.sizes, 4, reference=case.reference
            )
            torch.testing.assert_close(grads[wanted], every[wanted])


def test_calls_that_contradict_themselves(kernels: Library, msda: ModuleType):
    case = msda.draw(torch.float32, 16, 4, 2)
    case.shapes = ((9, 10), (5, 6))
    with pytest.raises(KernelError, match="contradict"):
        case.found(kernels)
    case = msda.draw(torch.float32, 16, 4, 2, reference_dim=2, points_dtype=torch.bfloat16)
    with pytest.raises(KernelError, match="element types"):
        case.found(kernels)
