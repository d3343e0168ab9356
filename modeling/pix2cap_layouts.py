"""Where Pix2Cap's weights lie in files of the published code bases: Pix2Cap itself, X-Decoder v2.0 and GRiT.

X-Decoder's files are laid out as Pix2Cap's and lack the captioner, ``object_proj`` and ``bbox_embed``; GRiT's captioner
lies beside a detector. Any of the backbones of X-Decoder and SEEM may be in them.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ..utils.errors import CheckpointError
from .backbones import davit, sam_vit
from .checkpoints.adapter import to_ours, to_theirs
from .checkpoints.key_table import KeyTable, Layout, Row

_PIXELS = "sem_seg_head.pixel_decoder."
_ENCODER = _PIXELS + "transformer.encoder.layers.{}."
_PREDICTOR = "sem_seg_head.predictor."
_LANG = _PREDICTOR + "lang_encoder."
_BLOCK = "backbone.layers.{}.blocks.{}."


def _attention(theirs: str, ours: str) -> tuple[Row, ...]:
    return (theirs + "in_proj_*", ours + "in_proj_*"), (theirs + "out_proj.*", ours + "out_proj.*")


def _convolution(theirs: str, ours: str) -> tuple[Row, ...]:
    """Return the rows of one of a pixel decoder's convolutions, which has a bias instead of a norm with NORM ""."""
    return tuple((_PIXELS + theirs + part, "pixel_decoder." + ours + part) for part in ("weight", "bias", "norm.*"))


_FOCAL: tuple[Row, ...] = (
    ("backbone.patch_embed.proj.*", "backbone.patch_embed.proj.*"),
    ("backbone.patch_embed.norm.*", "backbone.patch_embed.norm.*"),
    (_BLOCK + "gamma_{}", "backbone.stages.{}.{}.gamma_{}"),
    (_BLOCK + "norm{}.*", "backbone.stages.{}.{}.norm{}.*"),
    (_BLOCK + "dw{}.*", "backbone.stages.{}.{}.dw{}.*"),  # focal_dw
    (_BLOCK + "mlp.fc{}.*", "backbone.stages.{}.{}.fc{}.*"),
    (_BLOCK + "modulation.f.*", "backbone.stages.{}.{}.modulation.f.*"),
    (_BLOCK + "modulation.h.*", "backbone.stages.{}.{}.modulation.h.*"),
    (_BLOCK + "modulation.proj.*", "backbone.stages.{}.{}.modulation.proj.*"),
    (_BLOCK + "modulation.ln.*", "backbone.stages.{}.{}.modulation.norm.*"),  # USE_POSTLN_IN_MODULATION
    (_BLOCK + "modulation.focal_layers.{}.0.*", "backbone.stages.{}.{}.modulation.focal_layers.{}.*"),
    ("backbone.layers.{}.downsample.proj.*", "backbone.downsamples.{}.proj.*"),
    ("backbone.layers.{}.downsample.norm.*", "backbone.downsamples.{}.norm.*"),
    ("backbone.norm{}.*", "backbone.norms.{}.*"),
)

_BACKBONES: tuple[Row, ...] = (
    *_FOCAL,
    *(("backbone." + theirs, "backbone." + ours) for theirs, ours in davit.ORIGINAL_NAMES),
    *(("backbone." + theirs, "backbone." + ours) for theirs, ours in sam_vit.ORIGINAL_NAMES),
)

_ANY_PIXEL_DECODER: tuple[Row, ...] = (
    (_PIXELS + "mask_features.*", "pixel_decoder.mask_features.*"),
    (_ENCODER + "linear{}.*", "pixel_decoder.encoder.{}.ffn.linear{}.*"),
    (_ENCODER + "norm2.*", "pixel_decoder.encoder.{}.ffn.norm.*"),
)

_FPN: tuple[Row, ...] = (
    (_PIXELS + "input_proj.*", "pixel_decoder.input_proj.*"),
    *_attention(_ENCODER + "self_attn.", "pixel_decoder.encoder.{}.attention.attn."),
    (_ENCODER + "norm1.*", "pixel_decoder.encoder.{}.attention.norm.*"),
    (_PIXELS + "transformer.encoder.norm.*", "pixel_decoder.encoder_norm.*"),  # PRE_NORM
    *(row for index in (1, 2, 3) for row in _convolution(f"adapter_{index}.", f"laterals.res{index + 1}.")),
    *(row for index in (1, 2, 3, 4) for row in _convolution(f"layer_{index}.", f"outputs.res{index + 1}.")),
)

_DEFORMABLE: tuple[Row, ...] = (
    (_PIXELS + "input_proj.{}.{}.*", "pixel_decoder.input_proj.{}.{}.*"),
    (_PIXELS + "transformer.level_embed", "pixel_decoder.level_embed"),
    *(
        (_ENCODER + f"self_attn.{name}.*", "pixel_decoder.encoder.{}.attn." + f"{name}.*")
        for name in ("sampling_offsets", "attention_weights", "value_proj", "output_proj")
    ),
    (_ENCODER + "norm1.*", "pixel_decoder.encoder.{}.norm.*"),
    *_convolution("adapter_1.", "lateral."),
    *_convolution("layer_1.", "output."),
)

_DECODER: tuple[Row, ...] = (
    *(
        (_PREDICTOR + name, "decoder." + name)
        for name in ("query_feat.weight", "query_embed.weight", "level_embed.weight", "input_proj.{}.*")
    ),
    *_attention(
        _PREDICTOR + "transformer_cross_attention_layers.{}.multihead_attn.", "decoder.cross_attention.{}.attn."
    ),
    (_PREDICTOR + "transformer_cross_attention_layers.{}.norm.*", "decoder.cross_attention.{}.norm.*"),
    *_attention(_PREDICTOR + "transformer_self_attention_layers.{}.self_attn.", "decoder.self_attention.{}.attn."),
    (_PREDICTOR + "transformer_self_attention_layers.{}.norm.*", "decoder.self_attention.{}.norm.*"),
    (_PREDICTOR + "transformer_ffn_layers.{}.linear{}.*", "decoder.ffn.{}.linear{}.*"),
    (_PREDICTOR + "transformer_ffn_layers.{}.norm.*", "decoder.ffn.{}.norm.*"),
    (_PREDICTOR + "decoder_norm.*", "decoder.norm.*"),
    (_PREDICTOR + "class_embed", "decoder.classifier.class_embed"),
    (_PREDICTOR + "mask_embed.layers.{}.*", "decoder.mask_embed.layers.{}.*"),
    (_PREDICTOR + "bbox_embed.layers.{}.*", "decoder.box_embed.layers.{}.*"),
    (_PREDICTOR + "object_proj.*", "region_proj.*"),
)

_TEXT_ENCODER: tuple[Row, ...] = (
    (_LANG + "lang_proj", "lang_encoder.projection"),
    (_LANG + "logit_scale", "lang_encoder.logit_scale"),
    (_LANG + "lang_encoder.positional_embedding", "lang_encoder.positional_embedding"),
    (_LANG + "lang_encoder.token_embedding.weight", "lang_encoder.token_embedding.weight"),
    (_LANG + "lang_encoder.ln_final.*", "lang_encoder.norm.*"),
    *_attention(_LANG + "lang_encoder.resblocks.{}.attn.", "lang_encoder.blocks.{}.attn."),
    (_LANG + "lang_encoder.resblocks.{}.ln_{}.*", "lang_encoder.blocks.{}.norm{}.*"),
    (_LANG + "lang_encoder.resblocks.{}.mlp.c_fc.*", "lang_encoder.blocks.{}.fc1.*"),
    (_LANG + "lang_encoder.resblocks.{}.mlp.c_proj.*", "lang_encoder.blocks.{}.fc2.*"),
)


def _captioner(root: str) -> tuple[Row, ...]:
    textual, layer, ours = root + "textual.", root + "textual.transformer.encoder.layer.{}.", "captioner.layers.{}."
    return (
        (textual + "object_feature_projection.{}.*", "captioner.region_proj.{}.*"),
        (textual + "embedding.words.weight", "captioner.words.weight"),
        (textual + "embedding.positions.weight", "captioner.positions.weight"),
        (textual + "embedding.layer_norm.*", "captioner.embedding_norm.*"),
        (textual + "output.*", "captioner.output.*"),
        *((layer + f"attention.self.{name}.*", ours + f"attention.{name}.*") for name in ("query", "key", "value")),
        (layer + "attention.output.dense.*", ours + "attention.dense.*"),
        (layer + "attention.output.LayerNorm.*", ours + "attention.norm.*"),
        (layer + "intermediate.dense.*", ours + "intermediate.*"),
        (layer + "output.dense.*", ours + "output.*"),
        (layer + "output.LayerNorm.*", ours + "norm.*"),
    )


def _tied(root: str) -> dict[str, str]:
    return {root + "textual.output.weight": root + "textual.embedding.words.weight"}


CAPTION_QUERIES = _PREDICTOR + "caping_embed"
CAPTION_POSITIONS = _PREDICTOR + "pos_embed_caping.weight"
SELF_ATTENTION_MASK = _PREDICTOR + "self_attn_mask"
CLASS_WEIGHTS = "criterion.empty_weight"


def _original(name: str, marks: tuple[str, ...], pixel_decoder: tuple[Row, ...]) -> Layout:
    root = _PREDICTOR + "text_decoder."
    rows = (*_BACKBONES, *_ANY_PIXEL_DECODER, *pixel_decoder, *_DECODER, *_TEXT_ENCODER, *_captioner(root))
    return Layout(
        name,
        marks,
        KeyTable(dict.fromkeys(rows)),  # SAM's patch_embed.proj is focal's as well
        inert=(CAPTION_QUERIES, CAPTION_POSITIONS, SELF_ATTENTION_MASK, CLASS_WEIGHTS),
        ignored=("backbone_proj",),  # X-Decoder's image-text retrieval
        tied=_tied(root),
        advice={
            "captioner.": "an X-Decoder file lacks the captioner: python entry.py combine adds GRiT's",
            "region_proj.": "a combination of X-Decoder and GRiT has to be trained first: entry.py train, WEIGHT True",
        },
    )


DEFORMABLE = _original(
    "original Pix2Cap and X-Decoder (deformable pixel decoder)", (_PIXELS + "transformer.level_embed",), _DEFORMABLE
)
FPN = _original(
    "original Pix2Cap and X-Decoder",
    ("sem_seg_head.", "backbone.layers.", "backbone.convs.", "backbone.neck.down_"),  # or a backbone of theirs alone
    _FPN,
)
GRIT = Layout(
    "original GRiT",
    ("roi_heads.",),
    KeyTable(_captioner("roi_heads.text_decoder.")),
    ignored=("backbone.", "proposal_generator.", "roi_heads."),  # its detector
    tied=_tied("roi_heads.text_decoder."),
    advice={"backbone.": "a GRiT file has a captioner alone: python entry.py combine adds it to X-Decoder's weights"},
)
PIX2CAP_LAYOUTS = (DEFORMABLE, FPN, GRIT)


def to_original(
    tensors: Mapping[str, Tensor],
    *,
    num_classes: int,
    no_object_weight: float,
    like: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Return a whole Pix2Cap under its original names, with the tensors that the original stores and never reads.

    Args:
        tensors: all weights, under our names or the original's.
        num_classes, no_object_weight: K and the last entry of the original's class weights.
        like: a file of the original layout, from which unread tensors come that ``tensors`` lacks. Those that neither
            has are made as the original makes them: by formula, or drawn, here from a fixed seed.

    Raises:
        CheckpointError: it is not a whole Pix2Cap, has parts that the original lacks, or ``like`` does not fit it.
    """
    found = to_ours(tensors, PIX2CAP_LAYOUTS, _is_ours)
    result = to_theirs(found.tensors, DEFORMABLE if "pixel_decoder.level_embed" in found.tensors else FPN)
    kept = found.inert
    if like is not None:
        kept = _inert_of(like) | kept
    for name, made in _made(found.tensors, num_classes, no_object_weight).items():
        result[name] = kept.get(name, made)
        if result[name].shape != made.shape:
            raise CheckpointError(
                "A tensor that the original stores and never reads is of another size.",
                where=name,
                value=tuple(result[name].shape),
                allowed=str(tuple(made.shape)),
                fix="take them from a file of the same model",
            )
    return result


def _is_ours(name: str) -> bool:
    return any(layout.table.theirs(name) is not None for layout in (FPN, DEFORMABLE))


def _inert_of(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the unread tensors of a file in the original layout."""
    inert = to_ours(tensors, PIX2CAP_LAYOUTS, _is_ours).inert
    if not inert:
        raise CheckpointError(
            "The file to be like holds none of the tensors that it is wanted for.",
            allowed=", ".join(FPN.inert),
            fix="give a weights file of the original Pix2Cap or X-Decoder",
        )
    return inert


def _made(tensors: Mapping[str, Tensor], num_classes: int, no_object_weight: float) -> dict[str, Tensor]:
    try:
        num_queries, dim = tensors["decoder.query_feat.weight"].shape
        text_dim = tensors["decoder.classifier.class_embed"].shape[1]
        num_words = tensors["lang_encoder.positional_embedding"].shape[0]
    except KeyError as err:
        raise CheckpointError(
            "These are not the weights of a whole Pix2Cap.", value=f"{err.args[0]} is missing"
        ) from None
    generator = torch.Generator().manual_seed(0)
    captions = torch.nn.init.trunc_normal_(torch.empty(dim, text_dim), std=0.02, generator=generator)
    class_weights = torch.ones(num_classes + 1)
    class_weights[-1] = no_object_weight
    return {
        CAPTION_QUERIES: captions,
        CAPTION_POSITIONS: torch.randn(num_words, dim, generator=generator),
        SELF_ATTENTION_MASK: _self_attention_mask(num_queries, num_words),
        CLASS_WEIGHTS: class_weights,
    }


def _self_attention_mask(num_queries: int, num_words: int) -> Tensor:
    """Return X-Decoder's bool (1, Q + T, Q + T), True = blocked: objects, the class query, then T caption queries."""
    blocked = torch.zeros(num_queries + num_words, num_queries + num_words, dtype=torch.bool)
    blocked[:num_queries, num_queries:] = True
    blocked[num_queries:, num_queries:] = torch.ones(num_words, num_words, dtype=torch.bool).triu(1)
    blocked[: num_queries - 1, num_queries - 1] = blocked[num_queries - 1, : num_queries - 1] = True
    return blocked[None]
