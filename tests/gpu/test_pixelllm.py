"""PixelLLM on a GPU: the losses of the processor, in half precision too, and answers."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

for package in ("omegaconf", "transformers", "timm"):  # where only torch is installed the kernels alone are tested
    pytest.importorskip(package)

TASKS = ("trace", "region", "refer", "detect")


def losses(model, batch) -> dict[str, float]:
    return {name: float(term.total.detach()) for name, term in model(batch).items()}


@pytest.mark.parametrize("aids", [False, True])
def test_losses_are_those_of_the_processor(tiny_pixelllm: ModuleType, aids: bool):
    model = tiny_pixelllm.build(aids=aids)
    batch = tiny_pixelllm.Drawn().lessons(*TASKS)
    expected = losses(model, batch)
    assert losses(model.cuda(), batch.to("cuda")) == pytest.approx(expected, rel=1e-3, abs=1e-4)


def test_half_precision_learns(tiny_pixelllm: ModuleType):
    model = tiny_pixelllm.build(aids=True).cuda()
    batch = tiny_pixelllm.Drawn().lessons(*TASKS).to("cuda")
    with torch.autocast("cuda", torch.bfloat16):
        terms = model(batch)
    sum(term.total * term.weight for term in terms.values()).backward()
    assert all(p.grad is None or bool(p.grad.isfinite().all()) for p in model.parameters())


def test_every_task_is_answered(tiny_pixelllm: ModuleType):
    model = tiny_pixelllm.build().eval().cuda()
    for task in TASKS:
        (record,) = model.predict(tiny_pixelllm.Drawn().questions(task).to("cuda"))
        assert record.regions or record.narratives
