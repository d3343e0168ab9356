"""From configuration to model: the only place where Pix2Cap's numbers meet its parts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ..datasets.records import Category
from ..utils.errors import UsageError
from ..utils.tokenizers import CaptionTokenizer, TextTokenizer
from .build_backbones import build_backbone
from .heads.dense import DenseHead, SemanticHead, WordHead
from .heads.panoptic import PanopticThresholds
from .heads.segmentation import InferenceModes
from .layers.frozen import freeze_by_name
from .layers.images import ImageBatch
from .losses.criterion import SegmentWeights, SetCriterion
from .matching.hungarian import MatchingCosts
from .pix2cap import Pix2Cap, TrainingOptions
from .pix2cap_layouts import to_original
from .pixel_decoders.deformable import DeformablePixelDecoder
from .pixel_decoders.fpn import TransformerFPN
from .region_encoders.query_decoder import QueryDecoder
from .region_encoders.region_tokens import RegionTokens
from .text_decoders.bert_captioner import BertCaptioner
from .text_decoders.captions import CaptionSearch
from .text_encoders.class_texts import BARE, CLIP_TEMPLATES, ClassTexts
from .text_encoders.clip_text import ClipTextEncoder

FROZEX_TRAINED = ("captioner.", "region_proj.", "region_tokens.", "decoder.classifier.")
STARTS_FRESH = (  # X-Decoder and GRiT have none of these, nor have original files the optional aids
    *("region_proj.", "decoder.box_embed."),
    *("region_tokens.", "auxiliary.", "decoder.pooled_proj.", "decoder.geometry_proj."),
)
MASK_HEAD_TRAINED = ("decoder.cross_attention.", "decoder.self_attention.", "decoder.ffn.", "decoder.mask_embed.")


def build_tokenizer(cfg: Any) -> CaptionTokenizer:
    """Return the caption tokenizer that loader and model share."""
    text = cfg.MODEL.TEXT_DECODER
    return CaptionTokenizer.from_pretrained(text.TOKENIZER, max_tokens=text.MAX_STEPS, keep=text.KEEP_LONG)


def takes(cfg: Any) -> frozenset[str]:
    """Return what may be asked: the queries of masks that fit answer for prompts, which it did not learn from."""
    return frozenset({"box", "point", "mask", "text"})


def build_pix2cap(cfg: Any, categories: Sequence[Category], tokenizer: CaptionTokenizer) -> Pix2Cap:
    """Assemble Pix2Cap and freeze what the configuration freezes.

    Args:
        cfg: the resolved configuration, MODEL.NAME ``pix2cap_model``.
        categories: K classes of the training set, in the order of the class indices.
        tokenizer: see `build_tokenizer`.
    """
    model, decoder_cfg = cfg.MODEL, cfg.MODEL.DECODER
    _check(cfg, categories, tokenizer)
    backbone = build_backbone(model.BACKBONE)
    class_tokenizer = TextTokenizer.from_pretrained(model.TEXT.PRETRAINED_TOKENIZER, model.TEXT.CONTEXT_LENGTH)
    templates = CLIP_TEMPLATES if model.TEXT.PROMPT_TEMPLATES == "clip" else BARE
    options = _training_options(model)
    system = Pix2Cap(
        categories=categories,
        images=ImageBatch(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD, decoder_cfg.SIZE_DIVISIBILITY),
        backbone=backbone,
        pixel_decoder=_pixel_decoder(model, backbone.channels),
        decoder=_query_decoder(model),
        lang_encoder=_text_encoder(model, class_tokenizer.vocab_size),
        captioner=_captioner(model.TEXT_DECODER),
        region_tokens=RegionTokens(
            decoder_cfg.CAPTION_TOKENS,
            dim=decoder_cfg.HIDDEN_DIM,
            fine_dims=(model.ENCODER.MASK_DIM, backbone.channels["res2"]),
        ),
        region_dim=model.TEXT_DECODER.OBJECT_FEATURE_SIZE,
        class_texts=ClassTexts(
            [category.name for category in categories],
            class_tokenizer,
            templates,
            background_templates=model.TEXT.BACKGROUND_TEMPLATES,
        ),
        tokenizer=tokenizer,
        criterion=_criterion(decoder_cfg),
        options=options,
        modes=InferenceModes(
            panoptic=decoder_cfg.TEST.PANOPTIC_ON,
            instance=decoder_cfg.TEST.INSTANCE_ON,
            semantic=decoder_cfg.TEST.SEMANTIC_ON,
            boxes=decoder_cfg.DETECTION,
            max_instances=cfg.COCO.TEST.DETECTIONS_PER_IMAGE,
        ),
        thresholds=PanopticThresholds(decoder_cfg.TEST.OBJECT_MASK_THRESHOLD, decoder_cfg.TEST.OVERLAP_THRESHOLD),
        search=_caption_search(model.TEXT_DECODER),
        auxiliary=_auxiliary(model, categories, tokenizer),
        class_query_in_panoptic=decoder_cfg.CLASS_QUERY_IN_PANOPTIC,
        joint_padding=decoder_cfg.TEST.JOINT_PADDING,
    )
    _freeze(system, cfg)
    return system.train()


def original_pix2cap(
    cfg: Any, tensors: Mapping[str, Tensor], like: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Return a configured system's weights in the layout of the original Pix2Cap; see `to_original`."""
    model = cfg.MODEL
    weights = {"num_classes": model.ENCODER.NUM_CLASSES, "no_object_weight": model.DECODER.NO_OBJECT_WEIGHT}
    return to_original(tensors, like=like, **weights)


def _pixel_decoder(model: Any, channels: dict[str, int]) -> nn.Module:
    common = {
        "dim": model.ENCODER.CONVS_DIM,
        "mask_dim": model.ENCODER.MASK_DIM,
        "num_layers": model.ENCODER.TRANSFORMER_ENC_LAYERS,
        "num_heads": model.DECODER.NHEADS,
        "dropout": model.DECODER.DROPOUT,
        "norm": model.ENCODER.NORM == "GN",
    }
    if model.ENCODER.NAME == "transformer_encoder_deform":
        return DeformablePixelDecoder(
            channels, backend=model.ENCODER.MS_DEFORM_ATTN, full_precision=model.ENCODER.FULL_PRECISION, **common
        )
    return TransformerFPN(
        channels,
        ffn_dim=model.DECODER.DIM_FEEDFORWARD,
        pre_norm=model.DECODER.PRE_NORM,
        memory_strides=model.ENCODER.MEMORY_STRIDES,
        **common,
    )


def _query_decoder(model: Any) -> QueryDecoder:
    cfg = model.DECODER
    return QueryDecoder(
        num_queries=cfg.NUM_OBJECT_QUERIES,
        dim=cfg.HIDDEN_DIM,
        input_dim=model.ENCODER.CONVS_DIM,
        mask_dim=model.ENCODER.MASK_DIM,
        text_dim=model.DIM_PROJ,
        num_heads=cfg.NHEADS,
        ffn_dim=cfg.DIM_FEEDFORWARD,
        num_layers=cfg.DEC_LAYERS - 1,
        project_input=cfg.ENFORCE_INPUT_PROJ,
        mask_class_query=cfg.MASK_CLASS_QUERY,
        class_mask_after_pooling=cfg.CLASS_MASK_AFTER_POOLING,
        pre_norm=cfg.PRE_NORM,
        query_init_std=cfg.QUERY_INIT_STD,
        mask_pooled=cfg.MASK_POOLED_QUERIES,
        position_from_mask=cfg.QUERY_POSITION == "mask_centre",
    )


def _text_encoder(model: Any, vocab_size: int) -> ClipTextEncoder:
    return ClipTextEncoder(
        vocab_size=vocab_size,
        context_length=model.TEXT.CONTEXT_LENGTH,
        width=model.TEXT.WIDTH,
        num_heads=model.TEXT.HEADS,
        num_layers=model.TEXT.LAYERS,
        output_dim=model.DIM_PROJ,
    )


def _captioner(cfg: Any) -> BertCaptioner:
    return BertCaptioner(
        region_dim=cfg.OBJECT_FEATURE_SIZE,
        vocab_size=cfg.VOCAB_SIZE,
        dim=cfg.HIDDEN_SIZE,
        num_layers=cfg.NUM_LAYERS,
        num_heads=cfg.ATTENTION_HEADS,
        ffn_dim=cfg.FEEDFORWARD_SIZE,
        dropout=cfg.DROPOUT,
        init_std=cfg.INIT_STD,
        checkpoint=cfg.USE_ACT_CHECKPOINT,
    )


def _caption_search(cfg: Any) -> CaptionSearch:
    return CaptionSearch(
        max_length=cfg.MAX_STEPS,
        beam_size=cfg.BEAM_SIZE,
        rollouts=cfg.BEAM_SEARCH == "rollouts",
        queries=cfg.CAPTION_QUERIES,
        use_cache=cfg.USE_CACHE,
    )


def _criterion(cfg: Any) -> SetCriterion:
    boxes = float(cfg.DETECTION and not cfg.FROZEX)  # a frozen box head cannot learn
    return SetCriterion(
        MatchingCosts(class_weight=cfg.CLASS_WEIGHT, mask_weight=cfg.MASK_WEIGHT, dice_weight=cfg.DICE_WEIGHT),
        SegmentWeights(
            mask_ce=cfg.CLASS_WEIGHT,
            mask_bce=cfg.MASK_WEIGHT,
            mask_dice=cfg.DICE_WEIGHT,
            box_l1=boxes * cfg.BBOX_WEIGHT,
            box_giou=boxes * cfg.GIOU_WEIGHT,
        ),
        num_points=cfg.TRAIN_NUM_POINTS,
        oversample_ratio=cfg.OVERSAMPLE_RATIO,
        importance_ratio=cfg.IMPORTANCE_SAMPLE_RATIO,
        no_object_weight=cfg.NO_OBJECT_WEIGHT,
    )


def _auxiliary(model: Any, categories: Sequence[Category], tokenizer: CaptionTokenizer) -> dict[str, DenseHead]:
    cfg, dim = model.DECODER, model.ENCODER.MASK_DIM
    heads: dict[str, DenseHead] = {}
    if cfg.SEMANTIC_AUX_WEIGHT:
        factors = [cfg.SEMANTIC_AUX_THING_WEIGHT if category.is_thing else 1.0 for category in categories]
        heads["semantic"] = SemanticHead(dim, factors, weight=cfg.SEMANTIC_AUX_WEIGHT)
    if cfg.WORDS_AUX_WEIGHT:
        no_words = (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id)
        heads["words"] = WordHead(dim, tokenizer.vocab_size, no_words, weight=cfg.WORDS_AUX_WEIGHT)
    return heads


def _training_options(model: Any) -> TrainingOptions:
    cfg = model.DECODER
    points = cfg.DEC_LAYERS if cfg.DEEP_SUPERVISION else 1
    return TrainingOptions(
        caption_weight=cfg.DENSECAPTION_WEIGHT if cfg.DENSECAPTION.ENABLED and cfg.TOP_DENSECAPTION_LAYERS else 0.0,
        caption_points=min(cfg.TOP_DENSECAPTION_LAYERS, points),
        mask_points=min(cfg.TOP_MASK_LAYERS, points),
        box_points=min(cfg.TOP_DETECTION_LAYERS, points),
        caption_match=cfg.DENSECAPTION_MATCH,
        caption_gradient_scale=cfg.CAPTION_GRADIENT_SCALE,
        frozen_in_eval=model.FROZEN_MODE == "eval",
    )


def _freeze(system: Pix2Cap, cfg: Any) -> None:
    """Freeze once, before the optimiser exists (the published code toggles it in every forward)."""
    solver, decoder = cfg.SOLVER, cfg.MODEL.DECODER
    trained = FROZEX_TRAINED + (MASK_HEAD_TRAINED if cfg.MODEL.MASK_HEAD_ENABLED else ())
    for name, parameter in system.named_parameters():
        parameter.requires_grad_(not decoder.FROZEX or name.startswith(trained))
    freeze_by_name(system, solver.FIX_PARAM, solver.IGNORE_FIX)
    if not system.criterion.weights.boxes:
        system.decoder.box_embed.requires_grad_(False)
    if not system.options.caption_weight:
        for part in (system.captioner, system.region_proj, system.region_tokens):
            part.requires_grad_(False)


def _check(cfg: Any, categories: Sequence[Category], tokenizer: CaptionTokenizer) -> None:
    for key, value, wanted in (
        ("MODEL.ENCODER.NUM_CLASSES", cfg.MODEL.ENCODER.NUM_CLASSES, len(categories)),
        ("MODEL.TEXT_DECODER.VOCAB_SIZE", cfg.MODEL.TEXT_DECODER.VOCAB_SIZE, tokenizer.vocab_size),
    ):
        if value != wanted:
            raise UsageError(
                "The model does not fit its data.",
                where=key,
                value=value,
                allowed=f"{wanted}, as the data set and its vocabulary have",
                fix=f"--overrides {key} {wanted}",
            )
