"""Prediction of an image, and its captioner alone: what is kept and cached, beside the published way."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch

from ..pix2cap import Pix2Cap
from ..text_decoders.bert_captioner import BertCaptioner
from ..text_decoders.captions import CaptionSearch
from ..text_decoders.generation import Recomputed, generate
from .measuring import Measurement, PartMeter, Parts, measure
from .report import Report, ratios
from .workload import Numbers, Shape, draw_batch, keep_segments, never_end

CAPTIONER = ("forward", "logits", "prefill", "read")
KEPT, ORIGINAL = "kept segments, cached", "all queries, recomputed"


def parts_of(model: Pix2Cap) -> Parts:
    """Return the parts whose costs are shown apart."""
    return {
        "backbone": (model.backbone, ("forward",)),
        "pixel decoder": (model.pixel_decoder, ("forward",)),
        "query decoder": (model.decoder, ("forward",)),
        "captioner": (model.captioner, CAPTIONER),
        "text encoder": (model.lang_encoder, ("forward",)),
    }


def inference(model: Pix2Cap, shape: Shape, *, kept: int, repeats: int, original: bool) -> Report:
    """Predict images with ``kept`` segments each, every caption of full length.

    Random weights keep nothing, so the segments are named (`keep_segments`); everything else is the model's own work.
    The class texts are there before the first measurement, as in any evaluation.

    Args:
        model: it is changed for good.
        shape: of the images.
        kept: segments per image.
        repeats: timed runs of the product; the published way is run once.
        original: whether to run that at all.
    """
    model.eval()
    kept = keep_segments(model, kept)
    never_end(model)
    with _no_class_texts(model):
        return _predictions(model, shape, kept, repeats, original)


def _predictions(model: Pix2Cap, shape: Shape, kept: int, repeats: int, original: bool) -> Report:
    batch = draw_batch(replace(shape, segments=1), model.captioner.words.num_embeddings)
    meter = PartMeter(parts_of(model))
    ours, records = measure(KEPT, lambda: model.predict(batch), meter, repeats=repeats)
    report = Report("inference", [ours], {"segments": [len(record.regions) for record in records], "wanted": kept})
    if original:
        model.search = CaptionSearch(model.search.max_length, model.search.beam_size, queries="all", use_cache=False)
        slow, slow_records = measure(ORIGINAL, lambda: model.predict(batch), meter, repeats=0)
        report.measurements.append(slow)
        report.facts["same captions"] = [_captions(records) == _captions(slow_records)]
        report.ratios = ratios(ours, slow) | {f"captioner {k}": v for k, v in ratios(*_captioner(ours, slow)).items()}
    return report


def _captions(records: list) -> list[tuple[str, ...]]:
    return [region.captions for record in records for region in record.regions]


def _captioner(*measurements: Measurement):
    return (measurement.parts["captioner"] for measurement in measurements)


def captioner(model: Pix2Cap, *, kept: int, repeats: int, original: bool) -> Report:
    """Write ``kept`` captions of full length, beside those of all queries without a cache; both from random tokens."""
    model.eval()
    never_end(model)
    writer: BertCaptioner = model.captioner
    generator = torch.Generator().manual_seed(0)
    count = len(model.region_tokens.kinds)
    tokens = torch.randn(model.num_objects, count, writer.region_proj[0].in_features, generator=generator)
    kept = min(kept, len(tokens))
    meter = PartMeter({"captioner": (writer, CAPTIONER)})
    options = {"start_id": Numbers.start_id, "end_id": Numbers.end_id, "max_length": model.search.max_length}
    ours, found = measure(KEPT, lambda: generate(writer, tokens[:kept], **options), meter, repeats=repeats)
    report = Report("captioner", [ours], {"regions": [kept, len(tokens)], "tokens": [found.tokens.shape[1] - 1]})
    if original:
        slow, wanted = measure(ORIGINAL, lambda: generate(Recomputed(writer), tokens, **options), meter, repeats=0)
        report.measurements.append(slow)
        report.facts["same ids"] = [torch.equal(found.tokens, wanted.tokens[:kept])]
        report.ratios = ratios(ours, slow)
    return report


@contextmanager
def _no_class_texts(model: Pix2Cap) -> Iterator[None]:
    """Give the model a random table of class texts, which costs nothing and is measured by ``class_texts``."""
    table = torch.randn(len(model.categories) + 1, model.lang_encoder.projection.shape[1])
    model.class_texts.ensemble = lambda encoder: torch.nn.functional.normalize(table, dim=-1)
    try:
        yield
    finally:
        del model.class_texts.ensemble
