"""The CUDA kernels, thread by thread on the processor (`emulator/`), against the reference in double precision.

Shuffles, index arithmetic, accumulation and the C interface are the compiled library's own; what only a GPU can show
(speed, memory order, the toolkit's arithmetic) is in ``tests/gpu``.
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from locap.ops.ms_deform_attn import library
from locap.ops.ms_deform_attn.library import KernelError, Library
from locap.ops.ms_deform_attn.reference import ms_deform_attn

HERE = Path(__file__).parent
SOURCES = HERE.parents[1] / "ops" / "ms_deform_attn" / "csrc"
LEVELS = ((9, 10), (5, 5), (1, 1), (3, 2), (2, 1))
TOLERANCE = {torch.float64: 1e-12, torch.float32: 4e-6, torch.float16: 2**-11, torch.bfloat16: 2**-8}


@pytest.fixture(scope="module", params=[80, 90], ids=["sm_80", "sm_90"])
def kernels(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Library:
    """The library as for a GPU of either generation: 9.0 adds four numbers to memory at once."""
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is absent: the CUDA kernels were not emulated")
    path = tmp_path_factory.mktemp("emulated") / "cuda.so"
    flags = ["-std=c++17", "-O1", "-w", "-shared", "-fPIC", "-DMSDA_EMULATED", f"-D__CUDA_ARCH__={request.param}0"]
    folders = [f"-I{HERE / 'emulator'}", f"-I{SOURCES}"]
    subprocess.run([compiler, *flags, *folders, str(HERE / "emulator" / "library.cpp"), "-o", str(path)], check=True)
    loaded = Library("cuda", ctypes.CDLL(str(path)))
    loaded.function("error_text").restype = ctypes.c_char_p
    loaded.function("workspace").restype = ctypes.c_int64
    assert loaded.function("abi")() == library.ABI
    assert loaded.usable(0) is None
    assert loaded.usable(7) == "emulated"
    return loaded


@dataclass
class Case:
    """Inputs of one call. ``points`` are locations or offsets, ``shares`` weights or logits."""

    shapes: tuple[tuple[int, int], ...]
    value: Tensor
    points: Tensor
    shares: Tensor
    reference: Tensor | None
    grad_out: Tensor

    @property
    def sizes(self) -> list[int]:
        return [side for shape in self.shapes for side in shape]

    def inputs(self) -> list[Tensor]:
        return [self.value, self.points, self.shares, *([] if self.reference is None else [self.reference])]

    def expected(self) -> list[Tensor]:
        """The output and the three derivatives, in double precision, of the inputs as rounded."""
        leaves = [x.double().requires_grad_() for x in (self.value, self.points, self.shares)]
        value, points, shares = leaves
        if self.reference is not None:
            points, shares = locate(points, self.reference.double(), self.shapes), shares.flatten(3).softmax(-1)
        out = ms_deform_attn(value, self.shapes, points, shares.view(points.shape[:-1]))
        return [out.detach(), *torch.autograd.grad(out, leaves, self.grad_out.double().flatten(2))]

    def found(self, kernels: Library, deterministic: bool = False) -> list[Tensor]:
        wide = torch.promote_types(self.value.dtype, torch.float32)
        out = torch.full_like(self.grad_out, torch.nan)
        grads = [torch.full_like(x, torch.nan, memory_format=torch.contiguous_format) for x in self.inputs()[:3]]
        grads[0] = grads[0].to(wide)
        prefix = "" if self.reference is None else "fused_"
        options = {"reference": self.reference, "deterministic": deterministic}
        count = self.points.shape[4]
        kernels.run(prefix + "forward", [*self.inputs(), out], self.sizes, count, **options)
        kernels.run(prefix + "backward", [*self.inputs(), self.grad_out, *grads], self.sizes, count, **options)
        return [out.flatten(2), *grads]


def locate(offsets: Tensor, reference: Tensor, shapes: tuple[tuple[int, int], ...]) -> Tensor:
    """Locations of offsets (N, Q, M, L, K, 2) around points or boxes (N, Q, L, 2 or 4)."""
    at = reference[:, :, None, :, None]
    if at.shape[-1] == 4:
        return at[..., :2] + offsets / offsets.shape[4] * at[..., 2:] * 0.5
    return at + offsets / torch.tensor([(w, h) for h, w in shapes], dtype=at.dtype)[:, None]


def away_from_edges(pixels: Tensor) -> Tensor:
    """Move positions (in pixels, less a half) so that none is within 0.05 of an integer, where derivatives jump."""
    return pixels.floor() + (pixels - pixels.floor()).clamp(0.05, 0.95)


def draw(
    dtype: torch.dtype,
    dim: int,
    points: int,
    levels: int,
    *,
    queries: int | None = 7,
    reference_dim: int = 0,
    points_dtype: torch.dtype | None = None,
) -> Case:
    """Two images, two heads; a part of the samples outside. ``queries`` None: as many as tokens."""
    torch.manual_seed(0)
    shapes = LEVELS[:levels]
    tokens = sum(height * width for height, width in shapes)
    queries = tokens if queries is None else queries
    wide = torch.promote_types(dtype, torch.float32)
    value = torch.randn(2, tokens, 2, dim, dtype=torch.float64).to(dtype)
    grad_out = torch.randn(2, queries, 2, dim, dtype=torch.float64).to(dtype)
    sides = torch.tensor([(width, height) for height, width in shapes], dtype=torch.float64)[:, None]
    layout = (2, queries, 2, levels, points)
    pixels = away_from_edges(torch.rand(*layout, 2, dtype=torch.float64) * (sides + 4) - 2.5)
    logits = torch.randn(layout, dtype=torch.float64)
    if not reference_dim:
        weights = logits.flatten(3).softmax(-1).view(layout).to(wide)
        return Case(shapes, value, ((pixels + 0.5) / sides).to(wide), weights, None, grad_out)
    reference = torch.rand(2, queries, levels, reference_dim, dtype=torch.float64).to(wide)
    reference = (reference * 64).round() / 64  # so that offsets of 16 bits reach the drawn pixels nearly
    anchor = reference.double()[:, :, None, :, None]
    offsets = pixels + 0.5 - anchor[..., :2] * sides
    if reference_dim == 4:
        reference[..., 2:] = 0.5
        offsets = offsets / sides * points / 0.25
    points_dtype = points_dtype or dtype
    return Case(shapes, value, offsets.to(points_dtype), logits.to(points_dtype), reference, grad_out)


def assert_close(found: list[Tensor], expected: list[Tensor], *, scale: float = 1) -> None:
    """Every tensor within its own type's tolerance, relative to its largest magnitude."""
    for name, ours, theirs in zip(("out", "value", "points", "shares"), found, expected, strict=True):
        error = (ours.double() - theirs).abs().max() / theirs.abs().max()
        assert error <= scale * TOLERANCE[ours.dtype], f"{name}: {error:.2e}"


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("dim", [8, 16, 30, 32, 64, 71, 128])
def test_widths(kernels: Library, dtype: torch.dtype, dim: int):
    case = draw(dtype, dim, 4, 3)
    assert_close(case.found(kernels), case.expected())


@pytest.mark.parametrize("levels", [1, 4, 5])
@pytest.mark.parametrize("points", [1, 2, 3, 8])
def test_points_and_levels(kernels: Library, points: int, levels: int):
    for dtype in (torch.float32, torch.bfloat16):
        case = draw(dtype, 16, points, levels, queries=3)
        assert_close(case.found(kernels), case.expected())


@pytest.mark.parametrize("reference_dim", [2, 4])
@pytest.mark.parametrize("dim", [16, 32, 71])
@pytest.mark.parametrize("points", [1, 4, 5])
def test_fused(kernels: Library, points: int, dim: int, reference_dim: int):
    for dtype in TOLERANCE:
        case = draw(dtype, dim, points, 3, reference_dim=reference_dim)
        assert_close(case.found(kernels), case.expected(), scale=4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_fused_with_float_offsets(kernels: Library, dtype: torch.dtype):
    case = draw(dtype, 32, 4, 3, reference_dim=2, points_dtype=torch.float32)
    found = case.found(kernels)
    assert [x.dtype for x in found] == [dtype, torch.float32, torch.float32, torch.float32]
    assert_close(found, case.expected(), scale=4)


@pytest.mark.parametrize("dim", [32, 71])
def test_queries_in_tiles_of_the_picture(kernels: Library, dim: int):
    for dtype, reference_dim in ((torch.float32, 0), (torch.bfloat16, 2)):
        case = draw(dtype, dim, 4, 4, queries=None, reference_dim=reference_dim)
        assert_close(case.found(kernels), case.expected(), scale=4)


def test_rows_of_value_apart_or_misaligned(kernels: Library):
    case = draw(torch.bfloat16, 32, 4, 3)
    expected = case.expected()
    spread = torch.full((2, case.value.shape[1], 3, 40), torch.nan, dtype=torch.bfloat16)
    for shift, of_head in ((0, 32), (8, 32), (3, 32)):  # the last one begins between two 16-byte words
        view = spread[:, :, 1:, shift : shift + of_head]
        view.copy_(case.value)
        assert_close(Case(case.shapes, view, *case.inputs()[1:], None, case.grad_out).found(kernels), expected)
    heads_first = case.value.transpose(1, 2).contiguous().transpose(1, 2)
    assert_close(Case(case.shapes, heads_first, *case.inputs()[1:], None, case.grad_out).found(kernels), expected)


def test_reference_broadcast_over_images_and_levels(kernels: Library):
    case = draw(torch.float32, 32, 4, 3, reference_dim=2)
    case.reference = case.reference[:1, :, :1].expand(2, -1, 3, -1)
    assert case.reference.stride()[0] == case.reference.stride()[2] == 0
    found, expected = case.found(kernels), case.expected()
    assert (found[0].double() - expected[0]).abs().max() <= 2e-5 * expected[0].abs().max()


def test_edges_and_places_far_outside(kernels: Library):
    case = draw(torch.float64, 16, 4, 1, queries=4)
    height, width = case.shapes[0]
    u = torch.tensor([-1, -1 + 1e-9, 0, 0.5, width - 1, width - 1e-9, width, 1e30, -1e30, torch.inf, torch.nan])
    u = u.double()
    case.points = torch.stack(((u + 0.5) / width, torch.full_like(u, 0.4)), -1)[:8].view(1, 2, 1, 1, 4, 2)
    case.points = case.points.expand(2, 2, 2, 1, 4, 2).contiguous()
    case.shares, case.grad_out = case.shares[:, :2].contiguous(), case.grad_out[:, :2].contiguous()
    found, expected = case.found(kernels), case.expected()
    torch.testing.assert_close(found[0], expected[0], atol=1e-6, rtol=0)
    case.points = ((u[7:] + 0.5) / width)[None, None, None, None, :, None].expand(2, 2, 2, 1, 4, 2).contiguous()
    assert all(not x.any() for x in case.found(kernels))


def test_deterministic_sums(kernels: Library):
    for dtype, reference_dim in ((torch.float32, 0), (torch.bfloat16, 2), (torch.float64, 0)):
        case = draw(dtype, 32, 4, 3, queries=None, reference_dim=reference_dim)
        assert_close(case.found(kernels, deterministic=True), case.expected(), scale=4)
    case.grad_out[0, 0, 0, 0] = torch.nan
    assert case.found(kernels, deterministic=True)[1].isnan().all()  # integers know no NaN


def test_nothing_to_sum(kernels: Library):
    for size in ("queries", "dim", "points"):
        case = draw(torch.float32, 0 if size == "dim" else 16, 0 if size == "points" else 4, 2, queries=0 if size == "queries" else 5)
        found = case.found(kernels)
        assert all(x.shape == y.shape for x, y in zip(found[1:], case.inputs(), strict=False))
        assert not any(x.any() for x in found)  # NaN where nothing was written
    case = draw(torch.float32, 16, 4, 2)
    case.shapes = ((9, 10), (25, 1), (0, 7), (3, 0))
    case.points, case.shares = case.points.repeat(1, 1, 1, 2, 1, 1), case.shares.repeat(1, 1, 1, 2, 1)
    found = case.found(kernels)
    assert not any(x.isnan().any() for x in found)
    assert not found[2][:, :, :, 2:].any()


def test_unwanted_derivatives(kernels: Library):
    for reference_dim in (0, 2):
        case = draw(torch.float32, 32, 4, 3, reference_dim=reference_dim)
        every = case.found(kernels)[1:]
        prefix = "fused_" if reference_dim else ""
        for wanted in range(3):
            grads = [torch.full_like(x, torch.nan) if i == wanted else None for i, x in enumerate(every)]
            kernels.run(
                prefix + "backward", [*case.inputs(), case.grad_out, *grads], case.sizes, 4, reference=case.reference
            )
            torch.testing.assert_close(grads[wanted], every[wanted])


def test_calls_that_contradict_themselves(kernels: Library):
    case = draw(torch.float32, 16, 4, 2)
    case.shapes = ((9, 10), (5, 6))
    with pytest.raises(KernelError, match="contradict"):
        case.found(kernels)
    case = draw(torch.float32, 16, 4, 2, reference_dim=2, points_dtype=torch.bfloat16)
    with pytest.raises(KernelError, match="element types"):
        case.found(kernels)
