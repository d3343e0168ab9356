"""The compiled kernels as operators of torch: ``torch.ops.locap.ms_deform_attn`` and its kin.

They work under autograd (once), autocast (values in the low precision, locations and weights in float32),
``torch.compile``, ``torch.export`` and on tensors of any strides. Callers want `locap.ops.ms_deform_attn`, which
chooses the backend; a backend that cannot be built or fails raises here.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.library import custom_op

from .backends import usable_library
from .library import NotDeterministicError

_DEVICES = ("cpu", "cuda")
_ONCE = (
    "multi-scale deformable attention's compiled kernels can be differentiated once; "
    'backend="reference" can be differentiated again'
)


def sum_type(dtype: torch.dtype) -> torch.dtype:
    """Return the type of locations, weights and sums that goes with a type of values."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _run(name: str, tensors: list[Tensor | None], shapes: Sequence[int], points: int, **kwargs) -> None:
    value = tensors[0]
    library = usable_library(value.device.type)
    strict = torch.are_deterministic_algorithms_enabled()
    try:
        library.run(name, tensors, shapes, points, deterministic=strict, **kwargs)
    except NotDeterministicError:
        message = (
            f"locap::ms_deform_attn ({name}) does not have a deterministic implementation on {value.device.type}, but "
            "you set 'torch.use_deterministic_algorithms(True)'. You can turn off determinism just for this operation, "
            "or you can use the 'warn_only=True' option, if that's acceptable for your application."
        )
        if not torch.is_deterministic_algorithms_warn_only_enabled():
            raise RuntimeError(message) from None
        warnings.warn(message, stacklevel=2)
        library.run(name, tensors, shapes, points, deterministic=False, **kwargs)


def _rows(value: Tensor) -> Tensor:
    """Return value with its last axis contiguous, copied only if it is not."""
    return value if value.stride(-1) == 1 or value.shape[-1] < 2 else value.contiguous()


def _new_out(value: Tensor, queries: int) -> Tensor:
    return value.new_empty(value.shape[0], queries, value.shape[2] * value.shape[3])


def _new_grads(value: Tensor, like: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor]:
    """Return a place for each gradient, that of value in the type of sums; an empty one where it is not needed."""
    types = (sum_type(value.dtype), *(tensor.dtype for tensor in like))
    return [
        torch.empty(tensor.shape if wanted else (0,), dtype=dtype, device=tensor.device)
        for tensor, dtype, wanted in zip((value, *like), types, needed, strict=True)
    ]


def _wanted(grads: Sequence[Tensor], needed: Sequence[bool]) -> list[Tensor | None]:
    return [grad if wanted else None for grad, wanted in zip(grads, needed, strict=True)]


@custom_op("locap::ms_deform_attn", mutates_args=(), device_types=_DEVICES)
def attend(value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor) -> Tensor:
    """Run the forward kernel; see `locap.ops.ms_deform_attn.ms_deform_attn`, but shapes are h, w, h, w ..."""
    value, out = _rows(value), _new_out(value, locations.shape[1])
    _run("forward", [value, locations.contiguous(), weights.contiguous(), out], shapes, locations.shape[4])
    return out


@attend.register_fake
def _(value, shapes, locations, weights):
    return _new_out(value, locations.shape[1])


@custom_op("locap::ms_deform_attn_backward", mutates_args=(), device_types=_DEVICES)
def attend_backward(
    value: Tensor, shapes: Sequence[int], locations: Tensor, weights: Tensor, grad: Tensor, needed: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, locations and weights; empty ones where not needed."""
    value, locations, weights = _rows(value), locations.contiguous(), weights.contiguous()
    grads = _new_grads(value, (locations, weights), needed)
    inputs = [value, locations, weights, grad.contiguous()]
    _run("backward", [*inputs, *_wanted(grads, needed)], shapes, locations.shape[4])
    return grads[0].to(value.dtype), grads[1], grads[2]


@attend_backward.register_fake
def _(value, shapes, locations, weights, grad, needed):
    grads = _new_grads(value, (locations, weights), needed)
    return grads[0].to(value.dtype), grads[1], grads[2]


@custom_op("locap::ms_deform_attn_fused", mutates_args=(), device_types=_DEVICES)
def attend_fused(value: Tensor, shapes: Sequence[int], offsets: Tensor, logits: Tensor, reference: Tensor) -> Tensor:
    """Run the fused forward kernel; see `locap.ops.ms_deform_attn.ms_deform_attn_fused`."""
    value, out = _rows(value), _new_out(value, offsets.shape[1])
    reference = _rows(_broadcast(reference, offsets))
    tensors = [value, offsets.contiguous(), logits.contiguous(), reference, out]
    _run("fused_forward", tensors, shapes, offsets.shape[4], reference=reference)
    return out


@attend_fused.register_fake
def _(value, shapes, offsets, logits, reference):
    return _new_out(value, offsets.shape[1])


@custom_op("locap::ms_deform_attn_fused_backward", mutates_args=(), device_types=_DEVICES)
def attend_fused_backward(
    value: Tensor,
    shapes: Sequence[int],
    offsets: Tensor,
    logits: Tensor,
    reference: Tensor,
    grad: Tensor,
    needed: Sequence[bool],
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of value, offsets and logits; empty ones where not needed."""
    value, offsets, logits = _rows(value), offsets.contiguous(), logits.contiguous()
    reference = _rows(_broadcast(reference, offsets))
    grads = _new_grads(value, (offsets, logits), needed)
    inputs = [value, offsets, logits, reference, grad.contiguous()]
    _run("fused_backward", [*inputs, *_wanted(grads, needed)], shapes, offsets.shape[4], reference=reference)
    return grads[0].to(value.dtype), grads[1], grads[2]


@attend_fused_backward.register_fake
def _(value, shapes, offsets, logits, reference, grad, needed):
    grads = _new_grads(value, (offsets, logits), needed)
    return grads[0].to(value.dtype), grads[1], grads[2]


def _broadcast(reference: Tensor, offsets: Tensor) -> Tensor:
    batch, queries, _, levels = offsets.shape[:4]
    return reference.expand(batch, queries, levels, reference.shape[-1])


def _differentiate(op, backward, others: int) -> None:
    """Give an operator (value, shapes, two tensors with gradients, others without) its derivative."""

    def remember(ctx, inputs, output):
        value, ctx.shapes, *rest = inputs
        ctx.save_for_backward(value, *rest)

    def derive(ctx, grad):
        value, *rest = ctx.saved_tensors
        needed = [ctx.needs_input_grad[index] for index in (0, 2, 3)]
        found = backward(value, ctx.shapes, *rest, grad, needed)
        grads = [grad if wanted else None for grad, wanted in zip(found, needed, strict=True)]
        return (grads[0], None, grads[1], grads[2], *[None] * others)

    def refuse(ctx, *grads):
        raise RuntimeError(_ONCE)

    op.register_autograd(derive, setup_context=remember)
    backward.register_autograd(refuse, setup_context=lambda ctx, inputs, output: None)


_differentiate(attend, attend_backward, 0)
_differentiate(attend_fused, attend_fused_backward, 1)


def _cast(device: str, value: Tensor, points: Sequence[Tensor], fused: bool) -> tuple[Tensor, ...]:
    """Autocast: values take the low precision; so may offsets and logits, but locations and weights stay in float32."""
    low = value if value.dtype == torch.float64 else value.to(torch.get_autocast_dtype(device))
    exact = sum_type(low.dtype)
    if not fused:
        return low, *(tensor.to(exact) for tensor in points)
    offsets, logits, reference = points
    narrow = low.dtype if offsets.dtype == logits.dtype == low.dtype else exact
    return low, offsets.to(narrow), logits.to(narrow), reference.to(exact)


def _register_autocast() -> torch.library.Library:
    library = torch.library.Library("locap", "FRAGMENT")

    def register(op, name: str, device: str, fused: bool) -> None:
        def call(value, shapes, *points):
            with torch.autocast(device, enabled=False):
                value, *points = _cast(device, value, points, fused)
                return op(value, shapes, *points)

        library.impl(name, call, f"Autocast{device.upper()}")

    for device in _DEVICES:
        register(attend, "ms_deform_attn", device, False)
        register(attend_fused, "ms_deform_attn_fused", device, True)
    return library


_AUTOCAST = _register_autocast()  # the rules last as long as this object
