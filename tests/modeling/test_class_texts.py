"""Class sentences and the text encoder."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from locap.modeling.text_encoders.class_texts import BARE, CLIP_TEMPLATES, ClassTexts, strip_suffixes
from locap.modeling.text_encoders.clip_text import ClipTextEncoder, Float32LayerNorm

END = 39


class Letters:
    """Tokenizer of a letter per token; END ends and pads."""

    end_id = END

    def __init__(self) -> None:
        self.texts: list[str] = []

    def __call__(self, texts: list[str]) -> torch.Tensor:
        self.texts += texts
        rows = torch.full((len(texts), 50), END)
        for row, text in zip(rows, texts, strict=True):
            letters = text[:49].lower()
            row[: len(letters)] = torch.tensor([ord(letter) % 39 for letter in letters])
        return rows


def encoder() -> ClipTextEncoder:
    torch.manual_seed(0)
    return ClipTextEncoder(vocab_size=40, context_length=50, width=16, num_heads=2, num_layers=2, output_dim=8)


def test_81_templates_begin_with_the_bare_name():
    assert len(CLIP_TEMPLATES) == len(set(CLIP_TEMPLATES)) == 81
    assert CLIP_TEMPLATES[:3] == ("{}.", "a photo of a {}.", "a bad photo of a {}.")
    assert CLIP_TEMPLATES[-1] == "a tattoo of the {}."
    assert all(template.count("{}") == 1 and template.endswith(".") for template in CLIP_TEMPLATES)


@pytest.mark.parametrize(
    ("name", "shown"),
    [("sky-other-merged", "sky"), ("door-stuff", "door"), ("wall-brick", "wall-brick"), ("person", "person")],
)
def test_suffixes_are_stripped(name: str, shown: str):
    assert strip_suffixes(name) == shown


def test_the_table_is_the_renormalised_mean_of_every_sentence():
    model, letters = encoder(), Letters()
    templates = ("{}.", "a photo of a {}.", "the {}.")
    texts = ClassTexts(["sky-other", "cat"], letters, templates)
    table = texts.ensemble(model, batch_size=4)
    assert letters.texts[:3] == ["sky.", "a photo of a sky.", "the sky."]
    assert letters.texts[-1] == "the background."
    rows = model(Letters()([template.format("cat") for template in templates]), END)
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(table[1], F.normalize(rows.mean(0), dim=0))
    assert table.shape == (3, 8)


def test_the_table_is_kept_until_it_is_forgotten():
    model, texts = encoder(), ClassTexts(["cat"], Letters(), BARE)
    first = texts.ensemble(model)
    assert texts.ensemble(model) is first
    with torch.no_grad():
        model.projection.mul_(-1)
    texts.forget()
    torch.testing.assert_close(texts.ensemble(model), -first)


def test_the_table_is_float32_under_autocast():
    texts = ClassTexts(["cat"], Letters(), BARE)
    with torch.autocast("cpu", torch.bfloat16):
        half = texts.ensemble(encoder())
    assert half.dtype == torch.float32
    assert torch.equal(half, ClassTexts(["cat"], Letters(), BARE).ensemble(encoder()))


def test_training_draws_one_sentence_per_class_from_the_generator():
    model, letters = encoder(), Letters()
    texts = ClassTexts(["a, b+c", "cat"], letters, CLIP_TEMPLATES)
    found = texts.sampled(model, np.random.default_rng(3))
    drawn = np.random.default_rng(3).integers(81, size=3)
    sentences = [CLIP_TEMPLATES[i].format(name) for i, name in zip(drawn, ("a b c", "cat", "background"), strict=True)]
    torch.testing.assert_close(found, model(Letters()(sentences), END))
    assert "a b c." in letters.texts  # commas and plus signs leave the name in training
    count = len(letters.texts)
    texts.sampled(model, np.random.default_rng(4))
    assert len(letters.texts) == count  # tokenised once
    assert found.requires_grad


def test_a_sentence_is_read_at_its_first_end_token():
    model = encoder()
    short = torch.tensor([[5, 6, END, END]])
    torch.testing.assert_close(model(short, END), model(torch.tensor([[5, 6, END, 7]]), END))
    batch = torch.tensor([[5, 6, END, END, END], [5, 6, 7, 8, END]])
    torch.testing.assert_close(model(batch, END)[:1], model(short, END), atol=1e-6, rtol=1e-5)


def test_layer_norm_is_computed_in_float32():
    norm = Float32LayerNorm(8, eps=1e-12)
    x = torch.randn(3, 8)
    assert norm(x.bfloat16()).dtype == torch.float32  # float32 weights times a bfloat16 result
    torch.testing.assert_close(norm(x), F.layer_norm(x, (8,)), atol=1e-4, rtol=1e-4)
    assert encoder().norm.eps == encoder().blocks[0].norm1.eps == 1e-12


def test_logit_scale_starts_at_one():
    assert encoder().logit_scale.item() == 1.0
