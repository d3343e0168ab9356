"""The MODEL section of Pix2Cap: original keys and defaults, and the named options that the publication lacks."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from ...utils.config_keys import key, section
from ...utils.schema import Conflict, ModelConfig


@dataclass
class TextEncoder:
    """Text encoder that embeds the class names."""

    ARCH: str = key("vlpencoder", "kind of text encoder", choices=["vlpencoder"])
    NAME: str = key("transformer", "its network", choices=["transformer"])
    TOKENIZER: str = key("clip", "kind of tokeniser")
    PRETRAINED_TOKENIZER: str = key("openai/clip-vit-base-patch32", "tokeniser: hub name or folder")
    CONTEXT_LENGTH: int = key(77, "tokens per text, padded", minimum=1)
    WIDTH: int = key(512, "hidden size", minimum=1)
    HEADS: int = key(8, "attention heads", minimum=1)
    LAYERS: int = key(12, "layers", minimum=1)
    PROMPT_TEMPLATES: str = key(
        "clip",
        "+ sentences per class name: CLIP's 80 prompts and the bare name, or that alone",
        choices=["clip", "bare"],
    )
    BACKGROUND_TEMPLATES: bool = key(True, '+ put "background" into the sentences too, as upstream; false: it alone')
    AUTOGRESSIVE: bool = key(True, "causal attention (spelt as in the original)", choices=[True])


@dataclass
class Focal:
    """FocalNet; lists have one entry per stage."""

    PATCH_SIZE: int = key(4, "stride of the stem, pixels", choices=[4])
    EMBED_DIM: int = key(192, "channels of the first stage, doubled at each next", minimum=1)
    DEPTHS: list[int] = key([2, 2, 18, 2], "blocks per stage", minimum=1)
    FOCAL_LEVELS: list[int] = key([4, 4, 4, 4], "focal levels", minimum=1)
    FOCAL_WINDOWS: list[int] = key([3, 3, 3, 3], "kernel of the first focal level, +2 per level", minimum=1)
    DROP_PATH_RATE: float = key(0.3, "stochastic depth of the last block, rising from 0", minimum=0, maximum=0.99)
    MLP_RATIO: float = key(4.0, "hidden size of the MLP in channels", minimum=0.01)
    DROP_RATE: float = key(0.0, "dropout", minimum=0, maximum=0.99)
    PATCH_NORM: bool = key(True, "normalise after the stem and each downsampling")
    USE_CONV_EMBED: bool = key(True, "overlapping convolutions for stem and downsampling")
    SCALING_MODULATOR: bool = key(True, "divide the modulator by the number of its summands")
    USE_CHECKPOINT: bool = key(False, "recompute activations in the backward pass: less memory, slower")
    USE_POSTLN: bool = key(True, "normalise after each branch instead of before")
    USE_POSTLN_IN_MODULATION: bool = key(False, "normalise inside the modulation as well")
    USE_LAYERSCALE: bool = key(True, "learned scale on each branch, initially 1e-4")


@dataclass
class DaViT:
    """DaViT, as in X-Decoder; lists have one entry per stage."""

    DIM_EMBED: list[int] = key([128, 256, 512, 1024], "+ channels", minimum=1)
    DEPTHS: list[int] = key([1, 1, 9, 1], "+ pairs of blocks", minimum=1)
    NUM_HEADS: list[int] = key([4, 8, 16, 32], "+ heads of the window attention", minimum=1)
    NUM_GROUPS: list[int] = key([4, 8, 16, 32], "+ groups of the channel attention, as NUM_HEADS", minimum=1)
    WINDOW_SIZE: int = key(7, "+ side of the attention windows, tokens", minimum=1)
    PATCH_SIZE: list[int] = key([7, 2, 2, 2], "+ kernels of the stem and of downsampling, 2 or 3", choices=[7, 2, 3])
    PATCH_STRIDE: list[int] = key([4, 2, 2, 2], "+ their strides", choices=[4, 2])
    PATCH_PADDING: list[int] = key([3, 0, 0, 0], "+ their padding, half the kernel; 0 for 2", choices=[3, 0, 1])
    PATCH_PRENORM: list[bool] = key([False, True, True, True], "+ normalise before the convolution, not after")
    CONV_AT_ATTN: bool = key(True, "+ depthwise convolution before each attention", choices=[True])
    CONV_AT_FFN: bool = key(True, "+ depthwise convolution before each MLP", choices=[True])
    DROP_PATH_RATE: float = key(0.3, "+ stochastic depth of the last block, rising from 0", minimum=0, maximum=0.99)
    ENABLE_CHECKPOINT: bool = key(
        False, "+ recompute activations in the backward pass: less memory, slower", choices=[False]
    )

    @staticmethod
    def conflicts(davit: Any) -> Iterator[Conflict]:
        """Yield what X-Decoder's code could build and this one cannot, keys relative to the section."""
        for name in ("DIM_EMBED", "DEPTHS", "NUM_HEADS"):
            if len(davit[name]) != 4:
                yield name, f"{len(davit[name])} entries for four stages"
        kernel = davit.PATCH_SIZE[-1]
        padding = 0 if kernel == 2 else 1
        for name, wanted in (
            ("NUM_GROUPS", list(davit.NUM_HEADS)),
            ("PATCH_SIZE", [7, kernel, kernel, kernel]),
            ("PATCH_STRIDE", [4, 2, 2, 2]),
            ("PATCH_PADDING", [3, padding, padding, padding]),
            ("PATCH_PRENORM", [False, True, True, True]),
        ):
            if list(davit[name]) != wanted:
                yield name, f"{list(davit[name])} is not built here, only {wanted}"
        for dim, heads in zip(davit.DIM_EMBED, davit.NUM_HEADS, strict=False):
            if dim % heads:
                yield "DIM_EMBED", f"{dim} is not a multiple of NUM_HEADS {heads}"


@dataclass
class Vit:
    """SAM's image encoder with a feature pyramid, as in SEEM."""

    SIZE: str = key("base", "+ which of SAM's", choices=["base", "large", "huge"])


@dataclass
class Backbone:
    """Image encoder."""

    NAME: str = key(
        "focal",
        "focal, focal_dw, davit, vit or timm:<model name>",
        choices=["focal", "focal_dw", "davit", "vit", "timm:?*"],
    )
    LOAD_PRETRAINED: bool = key(False, "start the backbone from PRETRAINED")
    FOCAL: Focal = section(Focal)
    DAVIT: DaViT = section(DaViT)
    VIT: Vit = section(Vit)


@dataclass
class PixelDecoder:
    """Pixel decoder."""

    NAME: str = key(
        "transformer_encoder_fpn",
        "feature pyramid, or multi-scale deformable attention",
        choices=["transformer_encoder_fpn", "transformer_encoder_deform"],
    )
    NUM_CLASSES: int = key(133, "classes, without background", minimum=1)
    CONVS_DIM: int = key(512, "channels of the maps", minimum=1)
    MASK_DIM: int = key(512, "channels of the mask features", minimum=1)
    NORM: str = key("GN", "GN: group normalisation; empty: none, and biases instead", choices=["GN", ""])
    MEMORY_STRIDES: list[int] = key(
        [32, 16, 8], "+ strides of the three maps the queries attend to, coarse first", choices=[4, 8, 16, 32]
    )
    TRANSFORMER_ENC_LAYERS: int = key(6, "transformer encoder layers", minimum=0)
    MS_DEFORM_ATTN: str = key(
        "auto",
        "+ deformable encoder: kernels to use; auto: compiled ones where they can be built, else the reference",
        choices=["auto", "cuda", "cpu", "reference"],
    )
    FULL_PRECISION: bool = key(False, "+ deformable encoder: float32 under mixed precision too, as the original")


@dataclass
class DenseCaption:
    """Captions of the segments."""

    ENABLED: bool = key(True, "train on the caption loss")


@dataclass
class DecoderTest:
    """What inference returns. The original's file says true three times; here only what is asked for is computed."""

    SEMANTIC_ON: bool = key(False, "a category per pixel; dense, so only on request")
    INSTANCE_ON: bool = key(False, "overlapping instances, COCO.TEST.DETECTIONS_PER_IMAGE of them, all described")
    PANOPTIC_ON: bool = key(True, "segments that share no pixel; instances are then of thing classes only")
    OBJECT_MASK_THRESHOLD: float = key(0.8, "class probability a query needs to become a segment", minimum=0, maximum=1)
    OVERLAP_THRESHOLD: float = key(0.8, "part of its mask that must stay visible", minimum=0, maximum=1)
    JOINT_PADDING: bool = key(
        False, "+ pad images that are predicted together to one size, as upstream; answers then depend on their mates"
    )


@dataclass
class QueryDecoder:
    """Query decoder and losses."""

    NAME: str = key("pix2cap_transformer_decoder", "kind of decoder", choices=["pix2cap_transformer_decoder"])
    TRANSFORMER_IN_FEATURE: str = key(
        "multi_scale_pixel_decoder", "what the queries attend to", choices=["multi_scale_pixel_decoder"]
    )
    MASK: bool = key(True, "predict masks", choices=[True])
    DETECTION: bool = key(False, "add boxes to the instances (the published command's Fasle counted as True there)")
    FROZEX: bool = key(
        True,
        "train only captioner and class projection (with MASK_HEAD_ENABLED: query decoder layers and mask head too)",
    )
    DENSECAPTION: DenseCaption = section(DenseCaption)
    HIDDEN_DIM: int = key(512, "width", minimum=1)
    NUM_OBJECT_QUERIES: int = key(201, "queries, the last of them the image-level class query", minimum=2)
    NHEADS: int = key(8, "attention heads", minimum=1)
    DEC_LAYERS: int = key(10, "prediction points: layers + 1, the first before any layer", minimum=2)
    DIM_FEEDFORWARD: int = key(2048, "hidden size of the feed-forward blocks", minimum=1)
    DROPOUT: float = key(
        0.0, "dropout of the pixel decoder's encoder (the query decoder has none)", minimum=0, maximum=0.99
    )
    PRE_NORM: bool = key(False, "normalise before each block instead of after (deformable encoder: always after)")
    ENFORCE_INPUT_PROJ: bool = key(False, "project the maps even where their width fits")
    SIZE_DIVISIBILITY: int = key(32, "images are padded to multiples of this, pixels", minimum=1)
    DEEP_SUPERVISION: bool = key(True, "losses at every prediction point, not only the last")
    TOP_MASK_LAYERS: int = key(10, "prediction points, from the last, with class and mask losses", minimum=1)
    TOP_DETECTION_LAYERS: int = key(10, "+ prediction points, from the last, with box losses", minimum=1)
    TOP_DENSECAPTION_LAYERS: int = key(3, "prediction points, from the last, with the caption loss", minimum=0)
    CLASS_WEIGHT: float = key(2.0, "weight of the class loss and cost", minimum=0)
    MASK_WEIGHT: float = key(5.0, "weight of the mask cross-entropy and its cost", minimum=0)
    DICE_WEIGHT: float = key(5.0, "weight of the dice loss and cost", minimum=0)
    BBOX_WEIGHT: float = key(5.0, "weight of the box L1 loss and cost", minimum=0)
    GIOU_WEIGHT: float = key(2.0, "weight of the box GIoU loss and cost", minimum=0)
    DENSECAPTION_WEIGHT: float = key(1.0, "weight of the caption loss", minimum=0)
    NO_OBJECT_WEIGHT: float = key(0.1, "class-loss weight of unmatched queries", minimum=0)
    TRAIN_NUM_POINTS: int = key(12544, "points sampled per mask for matching and losses", minimum=1)
    OVERSAMPLE_RATIO: float = key(3.0, "candidates per point", minimum=1)
    IMPORTANCE_SAMPLE_RATIO: float = key(
        0.75, "part of the points taken where the mask is least certain", minimum=0, maximum=1
    )
    TEST: DecoderTest = section(DecoderTest)
    QUERY_INIT_STD: float = key(1.0, "+ standard deviation of the initial queries", minimum=0)
    QUERY_POSITION: str = key(
        "learned", "+ query position: learned, or from the mask's centre", choices=["learned", "mask_centre"]
    )
    MASK_POOLED_QUERIES: bool = key(False, "+ add features pooled under a query's mask to the query")
    SEMANTIC_AUX_WEIGHT: float = key(0.0, "+ weight of a dense semantic loss on the mask features; 0: none", minimum=0)
    SEMANTIC_AUX_THING_WEIGHT: float = key(1.0, "+ in that loss: weight of thing classes; stuff has 1", minimum=0)
    WORDS_AUX_WEIGHT: float = key(
        0.0, "+ weight of a dense loss on the words of the captions, from the mask features; 0: none", minimum=0
    )
    CLASS_QUERY_IN_PANOPTIC: bool = key(
        True, "+ the class query may become a segment, as upstream; false leaves it out of all of TEST's results"
    )
    MASK_CLASS_QUERY: bool = key(
        True, "+ the class query looks only under its own mask, as upstream; false: everywhere, as was meant"
    )
    CLASS_MASK_AFTER_POOLING: bool = key(
        False, "+ the class query's mask is read after objects are pooled into it, as in X-Decoder"
    )
    CAPTION_TOKENS: list[str] = key(
        ["query", "global"],
        "+ what the captioner sees of a region",
        choices=["query", "global", "mask_pooled", "position", "grid", "others"],
    )
    CAPTION_GRADIENT_SCALE: float = key(1 / 3, "+ factor of the caption loss's gradient into the regions", minimum=0)
    DENSECAPTION_MATCH: str = key(
        "iou", "+ caption loss on the query of highest mask IoU, or the matched one", choices=["iou", "hungarian"]
    )


@dataclass
class TextDecoder:
    """Caption decoder."""

    DECODER_TYPE: str = key("bert_en", "kind of decoder", choices=["bert_en"])
    TOKENIZER: str = key("bert-base-uncased", "+ tokeniser: hub name or folder")
    OBJECT_FEATURE_SIZE: int = key(256, "width of the region tokens", minimum=1)
    VOCAB_SIZE: int = key(30522, "size of the caption vocabulary", minimum=4)
    HIDDEN_SIZE: int = key(768, "width", minimum=1)
    NUM_LAYERS: int = key(6, "layers", minimum=1)
    ATTENTION_HEADS: int = key(12, "attention heads", minimum=1)
    FEEDFORWARD_SIZE: int = key(3072, "hidden size of the feed-forward blocks", minimum=1)
    DROPOUT: float = key(0.1, "+ dropout of the caption decoder", minimum=0, maximum=0.99)
    INIT_STD: float = key(0.02, "+ standard deviation of the initial weights", minimum=0.0001, maximum=1)
    MASK_FUTURE_POSITIONS: bool = key(True, "causal attention among the words", choices=[True])
    PADDING_IDX: int = key(0, "id of the padding token", choices=[0])
    USE_ACT_CHECKPOINT: bool = key(False, "recompute activations in the backward pass: less memory, slower")
    MAX_STEPS: int = key(40, "tokens per caption, start and end included", minimum=3, maximum=1024)
    KEEP_LONG: str = key(
        "last", "+ which end of a too long caption is kept; last as upstream", choices=["last", "first"]
    )
    BEAM_SIZE: int = key(1, "beams when generating captions; 1: greedy", minimum=1)
    BEAM_SEARCH: str = key(
        "rollouts",
        "+ with beams: the best first words continued greedily, as upstream, or a true beam search",
        choices=["rollouts", "beam"],
    )
    CAPTION_QUERIES: str = key(
        "kept", "+ describe what becomes a result, or all queries as upstream: same captions", choices=["kept", "all"]
    )
    USE_CACHE: bool = key(True, "+ false reads all words anew for each next one, as upstream: same captions, slow")


@dataclass
class Pix2CapModelConfig(ModelConfig):
    """Pix2Cap: panoptic segmentation with a caption per segment."""

    HEAD: str = key("pix2cap_head", "kind of head", choices=["pix2cap_head"])
    DIM_PROJ: int = key(512, "width of the space shared by class names and queries", minimum=1)
    MASK_HEAD_ENABLED: bool = key(False, "with FROZEX: train the query decoder's layers and the mask head as well")
    FROZEN_MODE: str = key(
        "eval",
        "+ mode of frozen parts in training; train: dropout and drop-path stay on, as upstream",
        choices=["eval", "train"],
    )
    TEXT: TextEncoder = section(TextEncoder)
    BACKBONE: Backbone = section(Backbone)
    ENCODER: PixelDecoder = section(PixelDecoder)
    DECODER: QueryDecoder = section(QueryDecoder)
    TEXT_DECODER: TextDecoder = section(TextDecoder)

    DEAD: ClassVar[tuple[str, ...]] = (
        *("MODEL.MASK_ON", "MODEL.KEYPOINT_ON", "MODEL.LOAD_PROPOSALS", "MODEL.BACKBONE_DIM"),
        *("MODEL.BACKBONE.FOCAL.PRETRAIN_IMG_SIZE", "MODEL.ENCODER.IGNORE_VALUE", "MODEL.ENCODER.LOSS_WEIGHT"),
        *("MODEL.DECODER.COSINE.*", "MODEL.DECODER.COSINE_WEIGHT", "MODEL.DECODER.TOP_COSINE_LAYERS"),
        *("MODEL.BACKBONE.FOCAL.OUT_FEATURES", "MODEL.BACKBONE.FOCAL.OUT_INDICES", "MODEL.BACKBONE.PRETRAINED"),
        *(f"MODEL.BACKBONE.{name}.OUT_{what}" for name in ("DAVIT", "VIT") for what in ("FEATURES", "INDICES")),
        *("MODEL.ENCODER.IN_FEATURES", "MODEL.ENCODER.DEFORMABLE_TRANSFORMER_ENCODER_IN_FEATURES"),
        *("MODEL.ENCODER.COMMON_STRIDE", "MODEL.DECODER.BACKBONER_WEIGHT"),
        "MODEL.DECODER.TEST.SEM_SEG_POSTPROCESSING_BEFORE_INFERENCE",
    )

    @staticmethod
    def conflicts(cfg: Any) -> Iterator[Conflict]:
        """Yield widths that their heads don't divide, and stage lists of unequal length."""
        model, test = cfg.MODEL, cfg.MODEL.DECODER.TEST
        if not (test.SEMANTIC_ON or test.INSTANCE_ON or test.PANOPTIC_ON):
            yield "MODEL.DECODER.TEST.PANOPTIC_ON", "SEMANTIC_ON, INSTANCE_ON and PANOPTIC_ON are all false"
        focal = model.BACKBONE.FOCAL
        for width, parts in (
            ("MODEL.DECODER.HIDDEN_DIM", "MODEL.DECODER.NHEADS"),
            ("MODEL.ENCODER.CONVS_DIM", "MODEL.DECODER.NHEADS"),
            ("MODEL.TEXT.WIDTH", "MODEL.TEXT.HEADS"),
            ("MODEL.TEXT_DECODER.HIDDEN_SIZE", "MODEL.TEXT_DECODER.ATTENTION_HEADS"),
        ):
            whole, part = _select(cfg, width), _select(cfg, parts)
            if whole % part:
                yield width, f"{whole} is not a multiple of {parts} {part}"
        for width in ("MODEL.DECODER.HIDDEN_DIM", "MODEL.ENCODER.CONVS_DIM"):
            if _select(cfg, width) % 4:
                yield width, f"{_select(cfg, width)} is not a multiple of 4, as the position encoding needs"
        if model.BACKBONE.LOAD_PRETRAINED and not model.BACKBONE.NAME.startswith("timm:"):
            yield "MODEL.BACKBONE.LOAD_PRETRAINED", "only timm: backbones bring weights of their own"
        if list(model.ENCODER.MEMORY_STRIDES) != [32, 16, 8] and model.ENCODER.NAME != "transformer_encoder_fpn":
            yield "MODEL.ENCODER.MEMORY_STRIDES", "only transformer_encoder_fpn offers other strides than 32, 16 and 8"
        if model.BACKBONE.NAME == "davit":
            yield from ((f"MODEL.BACKBONE.DAVIT.{name}", why) for name, why in DaViT.conflicts(model.BACKBONE.DAVIT))
        if model.BACKBONE.NAME == "vit" and model.DECODER.SIZE_DIVISIBILITY != 1024:
            yield (
                "MODEL.DECODER.SIZE_DIVISIBILITY",
                "MODEL.BACKBONE.NAME vit takes images of 1024 x 1024 only: give 1024",
            )
        for name in ("FOCAL_LEVELS", "FOCAL_WINDOWS"):
            if len(focal[name]) != len(focal.DEPTHS):
                yield f"MODEL.BACKBONE.FOCAL.{name}", f"{len(focal[name])} stages, but DEPTHS has {len(focal.DEPTHS)}"


def _select(cfg: Any, dotted: str) -> Any:
    for name in dotted.split("."):
        cfg = cfg[name]
    return cfg
