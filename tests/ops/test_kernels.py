"""The compiled kernels against the reference: every type, width and shape, at the edges, and as operators of torch."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor

from locap.ops.ms_deform_attn import backends, build, ms_deform_attn, ms_deform_attn_fused
from locap.ops.ms_deform_attn.build import BuildError, find_compiler
from locap.ops.ms_deform_attn.operators import attend, attend_fused

try:
    find_compiler("cpu")
except BuildError as err:
    pytestmark = pytest.mark.skip(reason=f"the CPU kernels were not checked: {err}")

LEVELS = {
    1: [(4, 6)],
    3: [(9, 17), (5, 8), (1, 1)],
    4: [(6, 4), (3, 2), (8, 8), (1, 5)],
    5: [(7, 3), (4, 4), (2, 2), (1, 1), (16, 1)],
}
Inputs = tuple[Tensor, Tensor, Tensor]


def draw(
    levels: int, dim: int, points: int, *, batch: int = 2, heads: int = 3, queries: int = 11, dtype=torch.float64
) -> tuple[list[tuple[int, int]], Inputs]:
    """Value, locations (some far outside; none within 1e-3 pixels of a pixel's centre line) and weights."""
    torch.manual_seed(levels * 100 + dim + points)
    shapes = LEVELS[levels]
    sizes = torch.tensor([(w, h) for h, w in shapes], dtype=torch.float64)[:, None]
    pixels = (torch.rand(batch, queries, heads, levels, points, 2, dtype=torch.float64) * 1.8 - 0.4) * sizes - 0.5
    near = (pixels - pixels.round()).abs() < 1e-3
    locations = (pixels + near * 0.01 + 0.5) / sizes
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, dim, dtype=torch.float64)
    weights = torch.randn(batch, queries, heads, levels * points, dtype=torch.float64).softmax(-1)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    return shapes, (value.to(dtype), locations.to(exact), weights.unflatten(-1, (levels, points)).to(exact))


def results(function, inputs: tuple[Tensor, ...], seed: int = 5) -> list[Tensor]:
    """Output and gradients under a random gradient, in float64."""
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = function(*leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return [x.double() for x in (out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype)))]


def assert_agree(found: list[Tensor], truth: list[Tensor], tolerance: float):
    for x, y in zip(found, truth, strict=True):
        if y.numel():
            assert (x - y).abs().max() <= tolerance * y.abs().max()


def compare(shapes, inputs: Inputs, tolerance: float):
    rounded = tuple(x.double() for x in inputs)
    found = results(lambda v, at, w: ms_deform_attn(v, shapes, at, w, backend="cpu"), inputs)
    truth = results(lambda v, at, w: ms_deform_attn(v, shapes, at, w, backend="reference"), rounded)
    if inputs[0].dtype in (torch.float16, torch.bfloat16):  # the gradient given is rounded too
        truth[1:] = results(
            lambda v, at, w: ms_deform_attn(v, shapes, at, w, backend="reference").to(inputs[0].dtype), rounded
        )[1:]
    assert_agree(found, truth, tolerance)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("dim", [8, 16, 30, 32, 64, 71, 128, 200])
def test_every_width(dim: int, dtype: torch.dtype):
    shapes, inputs = draw(3, dim, 4, dtype=dtype)
    compare(shapes, inputs, 1e-12 if dtype == torch.float64 else 2e-6)


@pytest.mark.parametrize("points", [1, 4, 8])
@pytest.mark.parametrize("levels", [1, 3, 4, 5])
def test_every_number_of_levels_and_points(levels: int, points: int):
    compare(*draw(levels, 32, points, dtype=torch.float32), 2e-6)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
@pytest.mark.parametrize("dim", [30, 32, 64])
def test_half_precision_rounds_once(dim: int, dtype: torch.dtype, tolerance: float):
    compare(*draw(3, dim, 4, dtype=dtype), tolerance)


def test_half_precision_keeps_special_values():
    """One pixel, sampled at its centre with weight 1, comes back as it is."""
    bits = torch.arange(-(2**15), 2**15, dtype=torch.int16)
    for dtype in (torch.float16, torch.bfloat16):
        value = bits.view(dtype).view(1, 1, 256, 256)
        at, weight = torch.full((1, 1, 256, 1, 1, 2), 0.5), torch.ones(1, 1, 256, 1, 1)
        found = ms_deform_attn(value, [(1, 1)], at, weight, backend="cpu").flatten()
        clean = value.flatten().isfinite()
        assert torch.equal(found[clean], value.flatten()[clean])
        large = torch.full((1, 1, 1, 1), 3.0e38).to(dtype)
        assert not ms_deform_attn(large, [(1, 1)], at[:, :, :1], weight[:, :, :1] * 2, backend="cpu").isfinite().any()


@pytest.fixture(params=[(), ("-march=x86-64-v3",)], ids=["base", "v3"])
def older_processor(request, monkeypatch):
    """The kernels as compiled for a processor without this one's widest vectors."""
    if request.param and "avx2" not in torch.backends.cpu.get_cpu_capability().lower().replace("avx512", "avx2"):
        pytest.skip("this processor cannot run them")
    monkeypatch.setattr(build.platform, "machine", lambda: "any")  # one set of kernels, without a choice at run time
    monkeypatch.setattr(build, "_COMMON_FLAGS", (*build._COMMON_FLAGS, *request.param))
    for cached in (backends.usable_library, backends.load):
        cached.cache_clear()
    yield
    for cached in (backends.usable_library, backends.load):
        cached.cache_clear()


@pytest.mark.usefixtures("older_processor")
def test_every_instruction_set():
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2**-8)):
        for dim in (30, 32, 64, 200):
            compare(*draw(3, dim, 4, dtype=dtype), tolerance)


def test_queries_that_are_the_tokens():
    """They are worked on in tiles, which the result must not show."""
    shapes = LEVELS[3]
    compare(*draw(3, 32, 4, queries=sum(h * w for h, w in shapes), dtype=torch.float32), 2e-6)


def test_second_derivative_is_refused_and_first_ones_are_right():
    shapes, inputs = draw(3, 5, 2, queries=2, heads=2)
    inputs = tuple(x.requires_grad_() for x in inputs)

    def function(v: Tensor, at: Tensor, w: Tensor) -> Tensor:
        return ms_deform_attn(v, shapes, at, w, backend="cpu")

    assert torch.autograd.gradcheck(function, inputs)
    (first,) = torch.autograd.grad(function(*inputs).sum(), inputs[1], create_graph=True)
    with pytest.raises(RuntimeError, match="differentiated once"):
        first.sum().backward()


@pytest.mark.parametrize("needed", [(True, False, False), (False, True, False), (False, False, True)])
def test_only_the_gradient_that_is_wanted(needed: tuple[bool, ...]):
    shapes, inputs = draw(3, 16, 4)
    everything = results(lambda *x: ms_deform_attn(x[0], shapes, *x[1:], backend="cpu"), inputs)[1:]
    leaves = [x.clone().requires_grad_(wanted) for x, wanted in zip(inputs, needed, strict=True)]
    out = ms_deform_attn(leaves[0], shapes, *leaves[1:], backend="cpu")
    out.backward(torch.randn(out.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64))
    for leaf, wanted, expected in zip(leaves, needed, everything, strict=True):
        assert torch.equal(leaf.grad, expected) if wanted else leaf.grad is None


@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [False, True])
def test_fused_form(dtype: torch.dtype, size: int, shared: bool):
    shapes, (value, locations, weights) = draw(4, 32, 4, dtype=dtype)
    exact = locations.dtype
    torch.manual_seed(3)
    reference = torch.rand(1 if shared else 2, 11, 1 if shared else 4, size, dtype=exact) * 0.6 + 0.2
    offsets, logits = (torch.randn_like(locations) * 1.5).to(dtype), torch.randn_like(weights).to(dtype)

    def run(backend: str, at: Tensor):
        return lambda v, o, s: ms_deform_attn_fused(v, shapes, o, s, at, backend=backend)

    found = results(run("cpu", reference), (value, offsets, logits))
    truth = results(run("reference", reference.double()), tuple(x.double() for x in (value, offsets, logits)))
    tolerance = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2**-6}[dtype]  # bfloat16: its gradient too
    assert_agree(found, truth, tolerance)


def test_fused_form_passes_a_gradient_to_the_reference_points():
    shapes, (value, locations, weights) = draw(3, 8, 2)
    reference = (torch.rand(2, 11, 3, 4, dtype=torch.float64) * 0.6 + 0.2).requires_grad_()
    grads = [
        torch.autograd.grad(
            ms_deform_attn_fused(value, shapes, locations, weights, reference, backend=backend).square().sum(),
            reference,
        )[0]
        for backend in ("cpu", "reference")
    ]
    torch.testing.assert_close(*grads, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("edge", [-0.5, 0.0, 0.5, 1.0, 3.5, 4.0, 4.5])
def test_on_the_edges_of_cells(edge: float):
    """Values at the edges agree from both sides; gradients there may take either side, but are finite."""
    shapes, size = [(4, 4)], 4
    value = torch.randn(1, 16, 1, 32, dtype=torch.float64)
    locations = torch.full((1, 1, 1, 1, 1, 2), edge / size, dtype=torch.float64)
    weights = torch.ones(1, 1, 1, 1, 1, dtype=torch.float64)
    found = results(lambda *x: ms_deform_attn(x[0], shapes, *x[1:], backend="cpu"), (value, locations, weights))
    assert all(x.isfinite().all() for x in found)
    for step in (-1e-9, 1e-9):
        beside = ms_deform_attn(value, shapes, locations + step, weights, backend="cpu")
        torch.testing.assert_close(found[0], beside, atol=1e-7, rtol=0)
    if edge in (-0.5, 4.5):  # a pixel outside: nothing is left
        assert not any(x.any() for x in found)


def test_a_location_that_is_no_number_counts_for_nothing():
    shapes, (value, locations, weights) = draw(1, 16, 1)
    for bad in (float("nan"), float("inf"), -float("inf"), 1e30):
        spoilt = locations.clone()
        spoilt[0, 3] = bad
        found = results(lambda *x: ms_deform_attn(x[0], shapes, *x[1:], backend="cpu"), (value, spoilt, weights))
        assert all(x.isfinite().all() for x in found)
        assert not found[0][0, 3].any()
        assert not found[2][0, 3].any()


@pytest.mark.parametrize("sizes", [{"batch": 0}, {"queries": 0}, {"heads": 0}, {"dim": 0}, {"points": 0}])
def test_nothing_to_do(sizes: dict[str, int]):
    arguments = {"levels": 3, "dim": 16, "points": 2, **sizes}
    compare(*draw(arguments.pop("levels"), arguments.pop("dim"), arguments.pop("points"), **arguments), 1e-12)


def test_strides_do_not_matter():
    shapes, (value, locations, weights) = draw(3, 32, 4, dtype=torch.float32)
    apart = torch.cat((value, value), 3)[..., :32]  # rows apart
    turned = value.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)  # channels apart
    points = locations.transpose(1, 2).contiguous().transpose(1, 2)
    shares = weights.flip(0).flip(0).transpose(0, 4).contiguous().transpose(0, 4)
    expected = results(lambda *x: ms_deform_attn(x[0], shapes, *x[1:], backend="cpu"), (value, locations, weights))
    for odd in (apart, turned, value[:1].expand(2, -1, -1, -1)):
        found = ms_deform_attn(odd, shapes, points, shares, backend="cpu")
        if odd.stride(0):
            torch.testing.assert_close(found.double(), expected[0], atol=0, rtol=0)
    grad = torch.ones(()).expand(expected[0].shape)
    leaf = apart.detach().requires_grad_()
    ms_deform_attn(leaf, shapes, points, shares, backend="cpu").backward(grad)
    assert leaf.grad.isfinite().all()


def test_threads_change_no_bit():
    shapes, inputs = draw(4, 64, 4, queries=900, heads=5, dtype=torch.float32)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 3, 7):
            torch.set_num_threads(threads)
            found.append(results(lambda *x: ms_deform_attn(x[0], shapes, *x[1:], backend="cpu"), inputs))
    finally:
        torch.set_num_threads(before)
    for other in found[1:]:
        assert all(torch.equal(x, y) for x, y in zip(found[0], other, strict=True))


def test_operators_keep_torchs_rules():
    shapes, (value, locations, weights) = draw(3, 16, 4, dtype=torch.float32)
    flat = [size for shape in shapes for size in shape]
    leaves = tuple(x.requires_grad_() for x in (value, locations, weights))
    torch.library.opcheck(attend, (leaves[0], flat, *leaves[1:]))
    reference = torch.rand(1, 11, 1, 2)
    torch.library.opcheck(attend_fused, (leaves[0], flat, *leaves[1:], reference))


def test_compiles_and_exports_as_one_node():
    shapes, inputs = draw(3, 16, 4, dtype=torch.float32)

    class Module(torch.nn.Module):
        def forward(self, v: Tensor, at: Tensor, w: Tensor) -> Tensor:
            return ms_deform_attn(v, shapes, at, w) + 1

    expected = results(Module(), inputs)
    compiled = torch.compile(Module(), fullgraph=True, backend="aot_eager")
    assert_agree(results(compiled, inputs), expected, 0)
    exported = torch.export.export(Module(), inputs)
    nodes = [str(node.target) for node in exported.graph.nodes if node.op == "call_function"]
    assert sum("locap.ms_deform_attn" in name for name in nodes) == 1
    assert torch.equal(exported.module()(*inputs).double(), expected[0])


def test_autocast_takes_values_in_half_and_locations_in_float32():
    shapes, inputs = draw(3, 32, 4, dtype=torch.float32)
    leaves = [x.requires_grad_() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        out = ms_deform_attn(leaves[0], shapes, *leaves[1:], backend="cpu")
        slow = ms_deform_attn(leaves[0], shapes, *leaves[1:], backend="reference")
    out.sum().backward()
    assert out.dtype == slow.dtype == torch.bfloat16
    assert [x.grad.dtype for x in leaves] == [torch.float32] * 3
    direct = ms_deform_attn(leaves[0].bfloat16(), shapes, *leaves[1:], backend="cpu")
    assert torch.equal(out, direct)


def test_is_deterministic_when_asked_to_be():
    shapes, inputs = draw(3, 32, 4, dtype=torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            runs = [results(lambda *x: ms_deform_attn(x[0], shapes, *x[1:], backend="cpu"), inputs) for _ in range(2)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, y) for x, y in zip(*runs, strict=True))
