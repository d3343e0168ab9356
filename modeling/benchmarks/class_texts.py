"""The start of an evaluation: every sentence about every class, encoded for the first time, and read back."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..pix2cap import Pix2Cap
from ..text_encoders.class_texts import ClassTexts
from .measuring import Measurement, PartMeter, measure
from .report import Report

SAMPLE = 54  # sentences of the published way that are really encoded


def class_texts(model: Pix2Cap, *, repeats: int, original: bool) -> Report:
    """Make the table of class texts with an empty cache, then again as a new process would, from the cache.

    The published way encodes every sentence at full length, a class at a time; it is measured on a few sentences and
    multiplied.

    Args:
        model: for its text encoder and class names.
        repeats: timed warm starts.
        original: whether to measure the published way.
    """
    encoder, known = model.lang_encoder.eval(), model.class_texts
    names = [category.name for category in model.categories]
    meter = PartMeter({"text encoder": (encoder, ("forward",))})

    def start() -> torch.Tensor:
        return ClassTexts(names, known.tokenizer, known.templates).ensemble(encoder)

    with _empty_cache():
        cold, first = measure("cold start", start, meter, repeats=0)
        warm, again = measure("warm start", start, meter, repeats=max(repeats, 1))
    sentences = len(known.names) * len(known.templates)
    report = Report("class_texts", [warm, cold], {"sentences": sentences, "same table": torch.equal(first, again)})
    if original:
        slow = _original(model, meter, sentences)
        report.measurements.append(slow)
        report.ratios = {"TFLOP of a cold start": slow.tflop / cold.tflop}
    return report


def _original(model: Pix2Cap, meter: PartMeter, sentences: int) -> Measurement:
    texts = model.class_texts
    sample = [template.format(texts.names[0]) for template in texts.templates][:SAMPLE]

    @torch.no_grad()
    def encode() -> None:
        for part in texts.tokenizer(sample).split(27):
            model.lang_encoder(part, texts.tokenizer.end_id)

    slow, _ = measure(f"as published ({len(sample)} of {sentences}, multiplied)", encode, meter, repeats=1)
    slow.multiply(sentences / len(sample))
    return slow


@contextmanager
def _empty_cache() -> Iterator[None]:
    """Cache in a new folder, which goes afterwards."""
    before = os.environ.get("LOCAP_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["LOCAP_CACHE"] = folder
        try:
            yield
        finally:
            del os.environ["LOCAP_CACHE"]
            if before is not None:
                os.environ["LOCAP_CACHE"] = before
