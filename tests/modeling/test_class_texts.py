"""Class sentences and the text encoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

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
    table = texts.ensemble(model)
    assert letters.texts[-9:-6] == ["sky.", "a photo of a sky.", "the sky."]
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
    model.projection.data.mul_(-1)  # unseen by PyTorch's own records
    texts.forget()
    torch.testing.assert_close(texts.ensemble(model), first)


@pytest.mark.parametrize("kind", ["no_grad", "load", "SGD", "foreach AdamW", "fused AdamW"])
def test_new_weights_are_noticed(kind: str):
    model, texts = encoder(), ClassTexts(["cat"], Letters(), BARE)
    first = texts.ensemble(model)
    if kind == "no_grad":
        with torch.no_grad():
            model.blocks[0].fc1.weight.mul_(3)
    elif kind == "load":
        model.load_state_dict({name: 2 * weight for name, weight in model.state_dict().items()})
    else:
        options = {kind.split()[0]: True} if " " in kind else {}
        optimizer = getattr(torch.optim, kind.split()[-1])(model.parameters(), lr=0.3, **options)
        texts.sampled(model, np.random.default_rng(0))[0, 0].backward()
        optimizer.step()
    found = texts.ensemble(model)
    assert (found - first).abs().max() > 1e-3
    texts.forget()
    assert torch.equal(found, texts.ensemble(model))


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


def test_sentences_of_all_lengths_are_encoded_as_if_alone_and_uncut():
    """Sorting by length, batches and the cut after the end token change nothing."""
    model, texts = encoder(), ClassTexts(["a", "hippopotamus", "sky-other"], Letters(), CLIP_TEMPLATES)
    table = texts.ensemble(model)
    for index, name in enumerate(("a", "hippopotamus", "sky", "background")):
        rows = torch.cat([model(Letters()([template.format(name)]), END) for template in CLIP_TEMPLATES])
        torch.testing.assert_close(table[index], F.normalize(rows.mean(0), dim=0), atol=1e-6, rtol=0)


# Kept on disk, and looked up in training


class Calls:
    """Counts the sentences an encoder encodes."""

    def __init__(self, model: ClipTextEncoder) -> None:
        self.count = 0
        model.register_forward_hook(self)

    def __call__(self, model, inputs, output) -> None:
        self.count += len(output)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LOCAP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "class_texts"


def fresh_table(names=("a", "cat"), scale: float = 1.0, templates=BARE, tokenizer=None) -> tuple[torch.Tensor, int]:
    """Return a new process's table and how many sentences it had to encode."""
    model = encoder()
    model.projection.data.mul_(scale)
    calls = Calls(model)
    return ClassTexts(names, tokenizer or Letters(), templates).ensemble(model), calls.count


def test_the_second_start_encodes_nothing(cache: Path):
    (cold, encoded), (warm, none) = fresh_table(), fresh_table()
    assert (encoded, none) == (3, 0)
    assert torch.equal(cold, warm)
    assert len(list(cache.iterdir())) == 1


class OtherLetters(Letters):
    def __call__(self, texts: list[str]) -> torch.Tensor:
        rows = super().__call__(texts)
        return rows.where(rows == END, 38 - rows)


@pytest.mark.parametrize(
    "change",
    [{"names": ("a", "dog")}, {"scale": -1.0}, {"templates": ("the {}.",)}, {"tokenizer": OtherLetters()}],
    ids=lambda change: next(iter(change)),
)
def test_anything_that_matters_makes_a_new_entry(cache: Path, change: dict):
    first, _ = fresh_table()
    other, encoded = fresh_table(**change)
    assert encoded == 3
    assert not torch.allclose(first, other)
    assert len(list(cache.iterdir())) == 2


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def flip(path: Path) -> None:
    body = bytearray(path.read_bytes())
    body[-200] ^= 0x10
    path.write_bytes(body)


@pytest.mark.parametrize(
    "damage",
    [
        truncate,
        flip,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"<html>" * 20),
        lambda path: save_file({"other": torch.zeros(2)}, path),
        lambda path: save_file({"value": torch.zeros(3, 1, 8), "sha256": torch.zeros(())}, path),
    ],
    ids=["truncated", "flipped", "empty", "html", "another's", "no digest"],
)
def test_a_damaged_file_is_made_anew_with_one_line(cache: Path, caplog: pytest.LogCaptureFixture, damage):
    cold, _ = fresh_table()
    [path] = cache.iterdir()
    damage(path)
    with caplog.at_level("WARNING", logger="locap"):
        again, encoded = fresh_table()
    assert encoded == 3
    assert torch.equal(cold, again)
    [line] = [record.getMessage() for record in caplog.records if record.name.startswith("locap")]
    assert "\n" not in line
    assert str(path) in line
    assert fresh_table()[1] == 0


def test_a_folder_that_cannot_be_written_is_no_error(cache: Path, caplog: pytest.LogCaptureFixture):
    cache.parent.mkdir()
    cache.write_text("a file where the folder should be")
    with caplog.at_level("WARNING", logger="locap"):
        assert fresh_table()[1] == 3
    assert [record.levelname for record in caplog.records] == ["WARNING"]


def test_a_frozen_encoder_is_looked_up_with_the_same_draws(cache: Path):
    trained, frozen = encoder(), encoder().requires_grad_(False)
    frozen.logit_scale.requires_grad_(True)  # no sentence depends on it
    names = ["a, b+c", "cat"]
    wanted = [
        ClassTexts(names, Letters(), CLIP_TEMPLATES).sampled(trained, np.random.default_rng(seed)) for seed in range(5)
    ]
    texts = ClassTexts(names, Letters(), CLIP_TEMPLATES)
    texts.sampled(frozen, np.random.default_rng(0))
    calls = Calls(frozen)
    for seed, rows in enumerate(wanted):
        found = texts.sampled(frozen, np.random.default_rng(seed))
        torch.testing.assert_close(found, rows.detach(), atol=1e-6, rtol=0)
    assert calls.count == 0
    assert wanted[0].requires_grad


def test_layer_norm_is_computed_in_float32():
    norm = Float32LayerNorm(8, eps=1e-12)
    x = torch.randn(3, 8)
    assert norm(x.bfloat16()).dtype == torch.float32  # float32 weights times a bfloat16 result
    torch.testing.assert_close(norm(x), F.layer_norm(x, (8,)), atol=1e-4, rtol=1e-4)
    assert encoder().norm.eps == encoder().blocks[0].norm1.eps == 1e-12


def test_logit_scale_starts_at_one():
    assert encoder().logit_scale.item() == 1.0
