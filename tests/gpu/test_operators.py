"""The operators on a GPU: as torch expects of an operator, and inside the pixel decoder."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch
from torch import Tensor

functions = pytest.importorskip("locap.ops.ms_deform_attn.functions")


def arguments(msda: ModuleType, fused: bool, dtype: torch.dtype = torch.float32) -> list:
    case = msda.draw(dtype, 32, 4, 3, reference_dim=2 if fused else 0).to("cuda")
    return [case.value, list(case.shapes), *case.inputs()[1:]]


def function(fused: bool):
    return functions.ms_deform_attn_fused if fused else functions.ms_deform_attn


def with_gradients(call, args: list) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() if i in (0, 2, 3) else x for i, x in enumerate(args)]
    out = call(*leaves)
    return [out, *torch.autograd.grad(out.square().sum(), [leaves[i] for i in (0, 2, 3)])]


@pytest.mark.parametrize("fused", [False, True])
def test_agrees_with_the_reference_backend(msda: ModuleType, fused: bool):
    for dtype, tolerance in ((torch.float64, 1e-11), (torch.float32, 2e-5)):
        args = arguments(msda, fused, dtype)
        found = with_gradients(lambda *x: function(fused)(*x, backend="cuda"), args)
        expected = with_gradients(lambda *x: function(fused)(*x, backend="reference"), args)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, atol=tolerance * theirs.abs().max().item(), rtol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_gradcheck(msda: ModuleType, fused: bool):
    value, shapes, *rest = arguments(msda, fused, torch.float64)
    leaves = [x[:1, : 19 if i == 0 else 2].contiguous() for i, x in enumerate([value, *rest])]
    leaves[0] = torch.randn(1, value.shape[1], 2, 32, dtype=torch.float64, device="cuda")
    leaves = [x.requires_grad_(i < 3) for i, x in enumerate(leaves)]

    def call(*x: Tensor) -> Tensor:
        return function(fused)(x[0], shapes, *x[1:], backend="cuda")

    assert torch.autograd.gradcheck(call, leaves, fast_mode=True, nondet_tol=1e-9)


@pytest.mark.parametrize("fused", [False, True])
def test_opcheck_compile_and_export(msda: ModuleType, fused: bool):
    value, shapes, *rest = arguments(msda, fused)
    name = "ms_deform_attn_fused" if fused else "ms_deform_attn"
    flat = [side for shape in shapes for side in shape]
    leaves = [x.requires_grad_(i < 3) for i, x in enumerate([value, *rest])]
    torch.library.opcheck(getattr(torch.ops.locap, name).default, (leaves[0], flat, *leaves[1:]), atol=1e-4, rtol=1e-4)

    def call(*x: Tensor) -> Tensor:
        return function(fused)(x[0], shapes, *x[1:], backend="cuda")

    eager = with_gradients(lambda v, _, *x: call(v, *x), [value, shapes, *rest])
    for backend in ("aot_eager", "inductor"):
        compiled = torch.compile(call, fullgraph=True, backend=backend)
        found = with_gradients(lambda v, _, *x, run=compiled: run(v, *x), [value, shapes, *rest])
        torch.testing.assert_close(found, eager, atol=1e-3, rtol=1e-4)

    class Module(torch.nn.Module):
        def forward(self, *x: Tensor) -> Tensor:
            return call(*x)

    with torch.no_grad():
        program = torch.export.export(Module(), tuple(x.detach() for x in leaves))
        torch.testing.assert_close(program.module()(*leaves), eager[0])
    assert sum(f"locap.{name}.default" in str(node.target) for node in program.graph.nodes) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_keeps_locations_in_float32(msda: ModuleType, dtype: torch.dtype):
    args = arguments(msda, False)
    with torch.autocast("cuda", dtype):
        out, value, points, shares = with_gradients(functions.ms_deform_attn, args)
    assert out.dtype == dtype
    assert {value.dtype, points.dtype, shares.dtype} == {torch.float32}
    exact = functions.ms_deform_attn(args[0].to(dtype).double(), args[1], args[2].double(), args[3].double())
    assert (out.double() - exact).abs().max() <= msda.TOLERANCE[dtype] * exact.abs().max()


def test_deterministic_algorithms(msda: ModuleType):
    args = arguments(msda, True)
    torch.use_deterministic_algorithms(True)
    try:
        first, again = (with_gradients(functions.ms_deform_attn_fused, args) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_agrees_with_transformers(msda: ModuleType):
    module = pytest.importorskip("transformers.models.deformable_detr.modeling_deformable_detr")
    if not hasattr(module, "MultiScaleDeformableAttention"):
        pytest.skip("transformers has no MultiScaleDeformableAttention")
    value, shapes, locations, weights = arguments(msda, False)
    areas = torch.tensor([h * w for h, w in shapes])
    start = torch.cat((areas.new_zeros(1), areas.cumsum(0)[:-1])).cuda()
    theirs = module.MultiScaleDeformableAttention()(
        value, torch.tensor(shapes, device="cuda"), shapes, start, locations, weights, 64
    )
    torch.testing.assert_close(functions.ms_deform_attn(value, shapes, locations, weights), theirs, atol=2e-5, rtol=0)


def test_pixel_decoder_trains_under_bfloat16():
    deformable = pytest.importorskip("locap.modeling.pixel_decoders.deformable")
    torch.manual_seed(0)
    channels = {f"res{i}": 16 * i for i in range(2, 6)}
    sizes = {"dim": 256, "mask_dim": 64, "num_layers": 6, "num_heads": 8}
    decoder, plain = (
        deformable.DeformablePixelDecoder(channels, **sizes, backend=backend).cuda()
        for backend in ("cuda", "reference")
    )
    plain.load_state_dict(decoder.state_dict())
    features = {
        name: torch.randn(2, width, 256 >> (i + 2), 320 >> (i + 2), device="cuda")
        for i, (name, width) in enumerate(channels.items())
    }
    exact = plain(features)
    torch.testing.assert_close(decoder(features).mask_features, exact.mask_features, atol=1e-3, rtol=1e-3)
    with torch.autocast("cuda", torch.bfloat16):
        found = decoder(features)
    for ours, theirs in zip(
        (found.mask_features, *found.multi_scale), (exact.mask_features, *exact.multi_scale), strict=True
    ):
        assert (ours.float() - theirs).norm() <= 0.05 * theirs.norm()
    sum(x.float().square().mean() for x in (found.mask_features, *found.multi_scale)).backward()
    gradients = [p.grad for p in decoder.parameters()]
    assert all(g is not None and g.isfinite().all() for g in gradients)
