"""SAM's mask decoder, the adapter before it, masks in the original image, and their losses."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from locap.datasets.batches import unpack_masks
from locap.modeling.heads.sam_masks import MaskAdapter, SamMaskDecoder, masks_to_image
from locap.modeling.losses.sam_masks import focal_loss, hard_iou, sam_mask_losses

SMALL = {"dim": 16, "num_heads": 2, "mlp_dim": 24}


def decoder() -> SamMaskDecoder:
    torch.manual_seed(0)
    return SamMaskDecoder(**SMALL, quality_dim=8).eval()


def test_masks_have_four_times_the_embedding():
    image, pe, prompts, dense = torch.randn(2, 16, 3, 5), torch.randn(15, 16), torch.randn(4, 2, 16), torch.zeros(16)
    model = decoder()
    one = model(image, pe, prompts, counts=[1, 3], dense_prompt=dense)
    assert one.logits.shape == (4, 1, 12, 20)
    assert one.quality.shape == (4, 1)
    many = model(image, pe, prompts, counts=[1, 3], dense_prompt=dense, ambiguous=True)
    assert many.logits.shape == (4, 3, 12, 20)
    assert many.quality.shape == (4, 3)
    alone = model(image[1:], pe, prompts[1:2], counts=[1], dense_prompt=dense)
    torch.testing.assert_close(alone.logits, one.logits[1:2])
    none = model(image, pe, prompts[:0], counts=[0, 0], dense_prompt=dense)
    assert none.logits.shape == (0, 1, 12, 20)


def test_the_adapter_begins_as_pure_box_prompting_and_learns():
    adapter = MaskAdapter(visual_dim=12, text_dim=10, **SMALL)
    visual, text = torch.randn(3, 4, 12), torch.randn(3, 6, 10, requires_grad=True)
    spoken = torch.ones(3, 6, dtype=torch.bool)
    added = adapter(visual, text, spoken)
    assert added.shape == (3, 2, 16)
    assert not added.any()
    added.square().sum().backward()
    assert not text.grad.any()
    adapter(visual, text, spoken).sum().backward()
    assert adapter.gate.grad.abs().min() > 0
    torch.nn.init.constant_(adapter.gate, 0.5)
    half = adapter(visual, text, spoken)
    half.square().sum().backward()
    assert text.grad.abs().sum() > 0
    torch.nn.init.constant_(adapter.gate, 1e4)  # as open as it gets
    torch.testing.assert_close(half, adapter(visual, text, spoken) * torch.tensor(0.5).tanh())


def test_the_adapter_does_not_look_at_padding():
    adapter = MaskAdapter(visual_dim=12, text_dim=10, **SMALL, initial_gate=1.0)
    visual, text = torch.randn(3, 4, 12), torch.randn(3, 6, 10)
    short = adapter(visual, text[:, :4], torch.ones(3, 4, dtype=torch.bool))
    padded = adapter(visual, text, torch.arange(6).expand(3, 6) < 4)
    torch.testing.assert_close(padded, short)
    assert not torch.allclose(padded, adapter(visual, text, torch.ones(3, 6, dtype=torch.bool)))


def test_masks_return_to_the_original_image():
    logits = torch.full((2, 8, 8), -5.0)
    logits[0, :4, :3] = 5  # the image fills 16 x 24 of 32 x 32 pixels: 4 x 6 cells
    logits[:, 4:], logits[:, :, 6:] = 99, 99  # padding
    masks = masks_to_image(logits, canvas=(32, 32), size=(16, 24), original=(40, 60))
    assert masks.shape == (2, 40, 60)
    assert masks[0, :, :30].all()
    assert not masks[0, :, 30:].any()
    assert not masks[1].any()
    assert masks_to_image(logits[:0], canvas=(32, 32), size=(16, 24), original=(4, 6)).shape == (0, 4, 6)


def test_mask_loss_against_a_dense_loop():
    torch.manual_seed(0)
    logits, quality = torch.randn(4, 3, 4), torch.rand(4)
    masks = torch.rand(4, 12, 16) > 0.6
    sizes, learns = torch.tensor([[12, 16], [7, 16], [12, 3], [5, 5]]), torch.tensor([True, False, True, True])
    found = sam_mask_losses(logits, quality, masks, sizes, learns)
    mask = error = 0.0
    for i in (0, 2, 3):
        up = F.interpolate(logits[None, None, i], size=(12, 16), mode="bilinear")[0, 0]
        p, y, (h, w) = up.sigmoid(), masks[i].float(), sizes[i].tolist()
        p_t = p * y + (1 - p) * (1 - y)
        focal = (-0.5 * (1 - p_t) ** 2 * p_t.log())[:h, :w].sum() / (h * w)
        dice = 1 - (2 * (p * y).sum() + 1) / (p.sum() + y.sum() + 1)
        mask += 20 * focal + dice
        shared = ((up > 0) & masks[i]).sum() / ((up > 0) | masks[i]).sum()
        error += (quality[i] - shared) ** 2
    torch.testing.assert_close(found.mask, mask)
    torch.testing.assert_close(found.quality, error)


def test_focal_loss_is_finite_for_any_logit():
    logits = torch.tensor([[[-1e4, 1e4], [-1e4, 1e4]]], requires_grad=True)
    loss = focal_loss(logits, torch.tensor([[[0.0, 0], [1, 1]]]))
    assert loss.detach().flatten().tolist() == pytest.approx([0, 5e3, 5e3, 0])
    loss.sum().backward()
    assert logits.grad.isfinite().all()


def test_no_mask_to_learn_is_zero_and_differentiable():
    logits = torch.full((2, 3, 3), float("nan"), requires_grad=True)
    quality = torch.rand(2, requires_grad=True)
    masks, sizes = torch.zeros(2, 6, 6, dtype=torch.bool), torch.full((2, 2), 6)
    found = sam_mask_losses(logits, quality, masks, sizes, torch.zeros(2, dtype=torch.bool))
    (found.mask + found.quality).backward()
    assert found.mask == found.quality == 0
    assert not logits.grad.any()


def test_the_quality_target_carries_no_gradient():
    logits, quality = torch.randn(1, 3, 3, requires_grad=True), torch.rand(1, requires_grad=True)
    masks = torch.ones(1, 6, 6, dtype=torch.bool)
    sam_mask_losses(logits, quality, masks, torch.tensor([[6, 6]]), torch.ones(1, dtype=torch.bool)).quality.backward()
    assert quality.grad.any()
    assert logits.grad is None or not logits.grad.any()
    assert hard_iou(torch.zeros_like(masks), torch.zeros_like(masks)) == 0


def test_packed_masks():
    masks = np.random.default_rng(0).random((3, 5, 13)) > 0.5
    packed = torch.from_numpy(np.packbits(masks, axis=-1))
    assert packed.shape == (3, 5, 2)
    assert torch.equal(unpack_masks(packed, 13), torch.from_numpy(masks))
