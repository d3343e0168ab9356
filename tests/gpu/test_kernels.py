"""The CUDA library through its C interface, against the reference in double precision."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import pytest
import torch

from locap.ops.ms_deform_attn.library import Library

DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
WIDTHS = (8, 16, 30, 32, 64, 71, 128)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", WIDTHS)
def test_widths(kernels: Library, msda: ModuleType, dtype: torch.dtype, dim: int):
    for queries in (37, None):
        case = msda.draw(dtype, dim, 4, 3, queries=queries).to("cuda")
        msda.assert_close(case.found(kernels), case.expected())


@pytest.mark.parametrize("levels", [1, 3, 4, 5])
@pytest.mark.parametrize("points", [1, 2, 3, 4, 8])
def test_points_and_levels(kernels: Library, msda: ModuleType, points: int, levels: int):
    for dtype in DTYPES:
        for reference_dim in (0, 2):
            case = msda.draw(dtype, 32, points, levels, reference_dim=reference_dim).to("cuda")
            msda.assert_close(case.found(kernels), case.expected())


@pytest.mark.parametrize("reference_dim", [2, 4])
@pytest.mark.parametrize("dim", WIDTHS)
def test_fused(kernels: Library, msda: ModuleType, dim: int, reference_dim: int):
    for dtype in DTYPES:
        for points_dtype in {dtype, torch.promote_types(dtype, torch.float32)}:
            case = msda.draw(dtype, dim, 4, 3, reference_dim=reference_dim, points_dtype=points_dtype).to("cuda")
            msda.assert_close(case.found(kernels), case.expected())


def test_rows_of_value_apart_or_misaligned(kernels: Library, msda: ModuleType):
    for dtype in DTYPES:
        case = msda.draw(dtype, 32, 4, 3).to("cuda")
        expected = case.expected()
        spread = torch.full((2, case.value.shape[1], 3, 40), torch.nan, dtype=dtype, device="cuda")
        for shift in (0, 8, 3):
            view = spread[:, :, 1:, shift : shift + 32].copy_(case.value)
            msda.assert_close(replace(case, value=view).found(kernels), expected)


def test_nothing_to_sum(kernels: Library, msda: ModuleType):
    for sizes in ((16, 4, 0), (0, 4, 5), (16, 0, 5)):
        for reference_dim in (0, 2):
            case = msda.draw(torch.float32, *sizes[:2], 2, queries=sizes[2], reference_dim=reference_dim).to("cuda")
            assert not any(x.any() for x in case.found(kernels))  # NaN where nothing was written


def test_places_far_outside_or_unknown(kernels: Library, msda: ModuleType):
    case = msda.draw(torch.float32, 32, 4, 3).to("cuda")
    for place in (1e30, -1e30, torch.inf, -torch.inf, torch.nan):
        case.points = torch.full_like(case.points, place)
        assert not any(x.any() for x in case.found(kernels))


@pytest.mark.parametrize("reference_dim", [0, 2])
def test_deterministic_sums_repeat_their_bits(kernels: Library, msda: ModuleType, reference_dim: int):
    for dtype in DTYPES:
        case = msda.draw(dtype, 32, 4, 3, queries=None, reference_dim=reference_dim).to("cuda")
        first = case.found(kernels, deterministic=True)
        msda.assert_close(first, case.expected())
        for _ in range(5):
            again = case.found(kernels, deterministic=True)
            assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_waits_for_its_own_stream(kernels: Library, msda: ModuleType):
    case = msda.draw(torch.float32, 32, 4, 3).to("cuda")
    expected, value, stream = case.expected(), case.value.clone(), torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        case.value = torch.zeros_like(value)
        torch.cuda._sleep(200_000_000)  # about 0.1 s: a launch on another stream would read the zeros
        case.value.copy_(value)
        found = case.found(kernels)
    stream.synchronize()
    msda.assert_close(found, expected)


def test_runs_in_a_cuda_graph(kernels: Library, msda: ModuleType):
    case = msda.draw(torch.float32, 32, 4, 3).to("cuda")
    expected = case.expected()
    for deterministic in (False, True):
        case.found(kernels, deterministic)  # loads the code
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            found = case.found(kernels, deterministic)
        for x in found:
            x.fill_(torch.nan)
        graph.replay()
        msda.assert_close(found, expected)


def test_other_devices(kernels: Library, msda: ModuleType):
    if torch.cuda.device_count() < 2:
        pytest.skip("one GPU only: a second device was not tried")
    assert torch.cuda.current_device() == 0
    case = msda.draw(torch.bfloat16, 32, 4, 3).to("cuda:1")
    msda.assert_close(case.found(kernels), case.expected())
    assert torch.cuda.current_device() == 0


def test_more_than_two_to_the_31_elements(kernels: Library, msda: ModuleType):
    images, free = 12, torch.cuda.mem_get_info()[0]
    if free < 48 << 30:
        pytest.skip(f"{free >> 30} GiB of GPU memory are free, indices beyond 2^31 want 48")
    shapes, heads, dim, queries = ((600, 600),), 8, 64, 16
    value = torch.zeros(images, 360_000, heads, dim, dtype=torch.bfloat16, device="cuda")
    assert value.numel() > 2**31
    value[-1].normal_()
    points = torch.rand(images, queries, heads, 1, 4, 2, device="cuda")
    shares = torch.rand(images, queries, heads, 1, 4, device="cuda")
    grad_out = torch.randn(images, queries, heads, dim, device="cuda").bfloat16()
    found = msda.Case(shapes, value, points, shares, None, grad_out).found(kernels)
    last = msda.Case(shapes, *(x[-1:] for x in (value, points, shares)), None, grad_out[-1:])
    msda.assert_close([x[-1:] for x in found], last.expected())
    assert not found[0][:-1].any()
