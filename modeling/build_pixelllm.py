"""PixelLLM from its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from ..datasets.records import Category
from ..utils.errors import UsageError
from ..utils.hub import resolve
from ..utils.tokenizers import LanguageTokenizer
from .backbones.eva import TimmViT
from .backbones.fused import FUSED, CanvasEncoder, FusedEncoder
from .backbones.pyramid_map import PyramidMap
from .backbones.sam_encoder import SamEncoder
from .backbones.sam_vit import SIZES
from .build_backbones import build_focal
from .checkpoints.loader import load_weights
from .heads.dense_words import DenseWords
from .heads.detector.detector import Detector, DetectorNumbers
from .heads.sam_masks import MaskAdapter, SamMaskDecoder
from .heads.word_locations import WordLocations
from .heads.word_pointer import WordPointer
from .layers.frozen import freeze_by_name
from .llm.adapter import LanguageModel
from .llm.bert import BertLanguageModel
from .llm.lora import Lora
from .losses.prompt_criterion import PromptCriterion, PromptWeights
from .pixelllm import PixelLLM, PredictionOptions
from .region_encoders.grid_features import GridFeatures
from .region_encoders.location_prompts import LocationPrompts
from .region_encoders.prompt_features import PromptFeatures
from .text_decoders.generation import Search

MAIN, SAM = "main", "sam"  # the encoders
STARTS_FRESH = ("detector.", "mask_adapter.", "masks.", "places.")  # a stage of training may add them
_MAX_POSITIONS = 1024
_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def build_language_tokenizer(cfg: Any) -> LanguageTokenizer:
    """Return the tokenizer that loader and model share."""
    text = cfg.MODEL.TEXT_DECODER
    return LanguageTokenizer.from_pretrained(text.TOKENIZER, text.MAX_STEPS)


def takes(cfg: Any) -> frozenset[str]:
    """Return what may be asked; boxes encoded as published leave no way to ask about a point."""
    points = set() if cfg.MODEL.PROMPT_FEATURES.PUBLISHED_PROMPTS else {"point"}
    return frozenset({"box", "mask", "text", "prompt"} | points)


def build_pixelllm(cfg: Any, categories: Sequence[Category], tokenizer: LanguageTokenizer) -> PixelLLM:
    """Assemble PixelLLM and freeze what the configuration freezes.

    Args:
        cfg: the resolved configuration, MODEL.NAME ``pixelllm_model``.
        categories: of the data set; the system names no classes.
        tokenizer: see `build_language_tokenizer`.

    Raises:
        UsageError, MissingDependencyError: a pretrained part is not there.
        CheckpointError: its weights do not fit.
    """
    model, features = cfg.MODEL, cfg.MODEL.PROMPT_FEATURES
    side = cfg.COCO.INPUT.IMAGE_SIZE
    encoder = _encoder(cfg)
    language = _language_model(model, tokenizer)
    _check(cfg, tokenizer, language.vocab_size, getattr(language, "end_id", None))
    system = PixelLLM(
        canvas=(side, side),
        encoder=encoder,
        text_map=FUSED,
        mask_map=MAIN if model.SAM.SIZE == "none" else SAM,
        location_prompts=LocationPrompts(dim=features.PROMPT_DIM),
        prompt_features=PromptFeatures(
            image_dim=encoder.out_dims[FUSED],
            prompt_dim=features.PROMPT_DIM,
            dim=features.DIM,
            out_dim=features.OUTPUT_DIM,
            num_queries=features.QUERIES,
            depth=features.DEPTH,
            num_heads=features.HEADS,
            mlp_dim=features.FFN_DIM,
        ),
        language=language,
        places=WordLocations(dim=language.dim, hidden_dim=model.PLACES.DIM, depth=model.PLACES.DEPTH),
        detector=_detector(model.DETECTOR, encoder.out_dims[FUSED]) if model.DETECTOR.ENABLED else None,
        masks=_mask_decoder(model) if model.MASKS else None,
        mask_adapter=_mask_adapter(model, language.dim) if model.MASKS else None,
        tokenizer=tokenizer,
        criterion=PromptCriterion(_weights(model.LOSS), tokenizer, smoothing=model.LOSS.LABEL_SMOOTHING),
        prediction=_prediction(model, tokenizer),
        frozen_in_eval=model.FROZEN_MODE == "eval",
        published_prompts=features.PUBLISHED_PROMPTS,
        grid_features=_grid_features(features, encoder.out_dims[FUSED]),
        dense_words=_dense_words(encoder.out_dims[FUSED], tokenizer) if model.LOSS.WORDS else None,
        pointer=_pointer(model, encoder.out_dims[FUSED], language.dim) if model.PLACES.POINTER_DIM else None,
    )
    if model.SAM.PRETRAINED:
        load_weights(system, resolve(model.SAM.PRETRAINED, what="SAM model"), partial=True)
    _freeze(system, cfg)
    return system.train()


def encoder_layers(system: PixelLLM) -> list[list[nn.Parameter]]:
    """Return the parameters of the main encoder's layers, the input first; none of an encoder that is no plain ViT."""
    body = system.encoder.encoders[MAIN].encoder
    return body.layers() if isinstance(body, TimmViT) else []


def _encoder(cfg: Any) -> FusedEncoder:
    main, sam = cfg.MODEL.BACKBONE, cfg.MODEL.SAM
    body = _pyramid_map(main) if main.NAME == "focal" else _timm_vit(main)
    encoders = {MAIN: CanvasEncoder(body, mean=main.PIXEL_MEAN, std=main.PIXEL_STD, remainder=main.REMAINDER)}
    if sam.SIZE != "none":
        dim, depth, num_heads = SIZES[sam.SIZE]
        encoders[SAM] = CanvasEncoder(
            SamEncoder(dim=dim, depth=depth, num_heads=num_heads, drop_path=sam.DROP_PATH_RATE, tables=sam.TABLES),
            mean=cfg.INPUT.PIXEL_MEAN,
            std=cfg.INPUT.PIXEL_STD,
            frozen=sam.FROZEN,
            frozen_in_eval=cfg.MODEL.FROZEN_MODE == "eval",
        )
    return FusedEncoder(encoders)


def _timm_vit(cfg: Any) -> nn.Module:
    return TimmViT(
        cfg.NAME.removeprefix("timm:"),
        pretrained=cfg.LOAD_PRETRAINED,
        dim=cfg.DIM or None,
        depth=cfg.DEPTH or None,
        num_heads=cfg.HEADS or None,
        drop_path=cfg.DROP_PATH_RATE,
        stretched_rope=cfg.STRETCHED_ROPE,
        mlp_norm_eps=cfg.MLP_NORM_EPS,
        recomputing=cfg.RECOMPUTE,
    )


def _pyramid_map(cfg: Any) -> nn.Module:
    return PyramidMap(build_focal(cfg.FOCAL), dim=cfg.MAP_DIM, stride=cfg.MAP_STRIDE)


def _grid_features(cfg: Any, image_dim: int) -> GridFeatures | None:
    if not (cfg.GRID or cfg.WHOLE_GRID):
        return None
    return GridFeatures(
        image_dim=image_dim,
        prompt_dim=cfg.PROMPT_DIM,
        out_dim=cfg.OUTPUT_DIM,
        cells=cfg.GRID,
        whole_cells=cfg.WHOLE_GRID,
    )


def _dense_words(dim: int, tokenizer: LanguageTokenizer) -> DenseWords:
    return DenseWords(dim, tokenizer.vocab_size, (tokenizer.pad_id, tokenizer.start_id, tokenizer.end_id))


def _pointer(model: Any, image_dim: int, dim: int) -> WordPointer:
    place_dim, hidden_dim = model.PROMPT_FEATURES.PROMPT_DIM, model.PLACES.POINTER_DIM
    return WordPointer(dim=dim, image_dim=image_dim, place_dim=place_dim, hidden_dim=hidden_dim)


def _language_model(model: Any, tokenizer: LanguageTokenizer) -> LanguageModel:
    cfg, visual_dim = model.TEXT_DECODER, model.PROMPT_FEATURES.OUTPUT_DIM
    if cfg.NAME == "bert":
        return BertLanguageModel(
            visual_dim=visual_dim,
            vocab_size=cfg.VOCAB_SIZE,
            dim=cfg.HIDDEN_SIZE,
            num_layers=cfg.NUM_LAYERS,
            num_heads=cfg.ATTENTION_HEADS,
            ffn_dim=cfg.FEEDFORWARD_SIZE,
            dropout=cfg.DROPOUT,
            max_positions=_MAX_POSITIONS,
            pad_id=tokenizer.pad_id,
            init_std=cfg.INIT_STD,
            checkpoint=cfg.RECOMPUTE,
        )
    lora = Lora(cfg.LORA.RANK, cfg.LORA.ALPHA, tuple(cfg.LORA.TARGETS)) if cfg.LORA.RANK else None
    options = {"visual_dim": visual_dim, "lora": lora, "dtype": _DTYPES[cfg.PRECISION], "checkpoint": cfg.RECOMPUTE}
    if cfg.NAME == "t5":
        from .llm.t5 import T5LanguageModel

        return T5LanguageModel.from_pretrained(cfg.PRETRAINED, **options)
    from .llm.causal import CausalLanguageModel

    return CausalLanguageModel.from_pretrained(cfg.PRETRAINED, pad_id=tokenizer.pad_id, **options)


def _detector(cfg: Any, in_dim: int) -> Detector:
    return Detector(
        in_dim=in_dim,
        dim=cfg.DIM,
        deconv_dim=cfg.DECONV_DIM,
        num_convs=cfg.CONVS,
        initial_reach=cfg.INITIAL_REACH,
        hidden_dim=cfg.HIDDEN_DIM,
        pooled=cfg.POOLED,
        published_strides=cfg.PUBLISHED_STRIDES,
        numbers=DetectorNumbers(
            train_candidates=cfg.TRAIN_CANDIDATES,
            train_proposals=cfg.TRAIN_PROPOSALS,
            test_candidates=cfg.TEST_CANDIDATES,
            test_proposals=cfg.TEST_PROPOSALS,
            num_samples=cfg.SAMPLES,
            least_score=cfg.MIN_SCORE,
            nms_iou=cfg.NMS_IOU,
            num_detections=cfg.DETECTIONS,
        ),
    )


def _mask_decoder(model: Any) -> SamMaskDecoder:
    cfg = model.MASK_HEAD
    return SamMaskDecoder(
        dim=model.PROMPT_FEATURES.PROMPT_DIM,
        depth=cfg.DEPTH,
        num_heads=cfg.HEADS,
        mlp_dim=cfg.FFN_DIM,
        quality_dim=cfg.QUALITY_DIM,
    )


def _mask_adapter(model: Any, text_dim: int) -> MaskAdapter:
    cfg = model.MASK_HEAD
    return MaskAdapter(
        visual_dim=model.PROMPT_FEATURES.OUTPUT_DIM,
        text_dim=text_dim,
        dim=model.PROMPT_FEATURES.PROMPT_DIM,
        depth=cfg.DEPTH,
        num_heads=cfg.HEADS,
        mlp_dim=cfg.FFN_DIM,
        initial_gate=cfg.INITIAL_GATE,
    )


def _weights(loss: Any) -> PromptWeights:
    published = PromptWeights()
    detector = {name: getattr(published, name) * loss.DETECTION for name in ("heat", "reach", "objects", "deltas")}
    names = ("TEXT", "TRACE", "BOX", "GIOU", "MASK", "QUALITY", "POINTER", "WORDS")
    return PromptWeights(**{name.lower(): loss[name] for name in names}, **detector)


def _prediction(model: Any, tokenizer: LanguageTokenizer) -> PredictionOptions:
    text = model.TEXT_DECODER
    search = Search(
        tokenizer.start_id,
        tokenizer.end_id,
        max_length=text.MAX_STEPS,
        beam_size=text.BEAM_SIZE,
        length_penalty=text.LENGTH_PENALTY,
        forbid_repeat="always" if text.BEAM_SIZE == 1 else "never",
        count_end=False,
    )
    given = model.TRACE_WORDS == "given"
    return PredictionOptions(search, given_words=given, caption_in_score=model.CAPTION_IN_SCORE)


def _freeze(system: PixelLLM, cfg: Any) -> None:
    """Freeze once, before the optimiser exists."""
    if cfg.MODEL.SAM.SIZE != "none" and cfg.MODEL.SAM.FROZEN:
        system.location_prompts.requires_grad_(False)
    if system.masks is not None and cfg.MODEL.MASK_HEAD.FROZEN:
        system.masks.requires_grad_(False)
    elif system.masks is not None:
        system.masks.mask_mlps[1:].requires_grad_(False)  # of ambiguous prompts, which are never asked about
    freeze_by_name(system, cfg.SOLVER.FIX_PARAM, cfg.SOLVER.IGNORE_FIX)


def _check(cfg: Any, tokenizer: LanguageTokenizer, vocab_size: int, end_id: int | None) -> None:
    text = cfg.MODEL.TEXT_DECODER
    if text.NAME == "bert" and tokenizer.vocab_size != vocab_size:
        raise UsageError(
            "The model does not fit its vocabulary.",
            where="MODEL.TEXT_DECODER.VOCAB_SIZE",
            value=text.VOCAB_SIZE,
            allowed=f"{tokenizer.vocab_size}, as {text.TOKENIZER} has",
            fix=f"--overrides MODEL.TEXT_DECODER.VOCAB_SIZE {tokenizer.vocab_size}",
        )
    if tokenizer.vocab_size > vocab_size:  # published tables are often longer than their vocabulary
        raise UsageError(
            "The model does not know all words of the vocabulary.",
            where="MODEL.TEXT_DECODER.TOKENIZER",
            value=f"{text.TOKENIZER}, {tokenizer.vocab_size} words",
            allowed=f"at most {vocab_size}, as {text.PRETRAINED} has",
            fix=f"--overrides MODEL.TEXT_DECODER.TOKENIZER {text.PRETRAINED}",
        )
    if end_id not in (None, tokenizer.end_id):
        raise UsageError(
            "The language model and its tokenizer end a text with different tokens.",
            where="MODEL.TEXT_DECODER.TOKENIZER",
            value=f"{text.TOKENIZER}: {tokenizer.end_id}",
            allowed=f"one that ends with token {end_id}, as {text.PRETRAINED} does",
            fix=f"--overrides MODEL.TEXT_DECODER.TOKENIZER {text.PRETRAINED}",
        )
