"""Caption loss from the states in front of the vocabulary: the logits are never kept, only their softmax.

Shapes: N words, D hidden width, V vocabulary.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


class _ProjectedDivergence(torch.autograd.Function):
    """KL(smoothed target || softmax(states weight^T + bias)) per word, in closed form.

    With p the softmax, a = smoothing / (V - 1) and y the word, the gradient of the logits is p - a, and at y less
    c = 1 - smoothing - a. Both constants leave the large products: p weight - a sum(weight) - c weight[y] and so on,
    so backward has two products with p and no pass over (N, V).
    """

    @staticmethod
    def forward(ctx, states: Tensor, weight: Tensor, bias: Tensor, words: Tensor, smoothing: float) -> Tensor:
        floor = smoothing / (len(weight) - 1)
        peak = 1 - smoothing - floor
        entropy = (1 - smoothing) * math.log(1 - smoothing) + smoothing * math.log(floor) if smoothing else 0.0
        wide = torch.promote_types(states.dtype, torch.float32)
        softmax = states.new_empty(len(states), len(weight))
        losses = states.to(wide) @ weight.sum(0, dtype=wide) + bias.sum()  # the sum of a word's logits
        losses.mul_(-floor).add_(entropy)
        rows = 128 if states.device.type == "cpu" else 1024  # enough for a product, few enough for the cache
        for x, word, p, loss in zip(*(t.split(rows) for t in (states, words, softmax, losses)), strict=True):
            logits = torch.mm(x, weight.t()).to(wide).add_(bias)
            chosen, top = logits.gather(1, word[:, None])[:, 0], logits.amax(-1)
            exact = torch.softmax(logits, -1, out=p if p.dtype == wide else None)
            loss.add_(top - exact.amax(-1).log() - peak * chosen)
            if exact is not p:
                p.copy_(exact)
        ctx.save_for_backward(states, weight, words, softmax)
        ctx.floor, ctx.peak, ctx.wide = floor, peak, wide
        return losses

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor | None, ...]:
        states, weight, words, softmax = ctx.saved_tensors
        wide = ctx.wide
        of_states = of_weight = of_bias = None
        if ctx.needs_input_grad[0]:
            of_states = (softmax @ weight).to(wide).sub_(weight.sum(0, dtype=wide), alpha=ctx.floor)
            of_states = of_states.sub_(weight[words], alpha=ctx.peak).mul_(grad[:, None]).to(states.dtype)
        if ctx.needs_input_grad[1]:
            scaled = states.to(wide) * grad[:, None]
            of_weight = (softmax.t() @ scaled.to(softmax.dtype)).to(wide).sub_(scaled.sum(0), alpha=ctx.floor)
            of_weight = of_weight.index_add_(0, words, scaled, alpha=-ctx.peak).to(weight.dtype)
        if ctx.needs_input_grad[2]:
            of_bias = (grad.to(softmax.dtype) @ softmax).to(wide).sub_(grad.sum(), alpha=ctx.floor)
            of_bias = of_bias.index_add_(0, words, grad, alpha=-ctx.peak)
        return of_states, of_weight, of_bias, None, None


def projected_caption_loss(
    states: Tensor, weight: Tensor, bias: Tensor, words: Tensor, *, smoothing: float = 0.1
) -> Tensor:
    """Return per word KL(smoothed target || prediction) of a linear output layer, (N,), float32 at least.

    The same as `smoothed_caption_loss` of the layer's logits; products are in autocast's precision, if it is on, the
    softmax and the loss in float32, or float64 where the states are.

    Args:
        states: (N, D).
        weight: (V, D), of the output layer.
        bias: float32 (V,).
        words: int64 (N,).
        smoothing: epsilon.
    """
    device = states.device.type
    if torch.is_autocast_enabled(device):
        states, weight = (x.to(torch.get_autocast_dtype(device)) for x in (states, weight))
    with torch.autocast(device, enabled=False):
        return _ProjectedDivergence.apply(states, weight, bias, words, smoothing)
