"""The MODEL section of PixelLLM; the defaults are its published BERT model with everything in it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...utils.config_keys import key, section
from ...utils.schema import Conflict, ModelConfig
from .pix2cap import Focal
from .prompts import Prompts

CLIP_MEAN = [122.7709383, 116.7460125, 104.09373615]
CLIP_STD = [68.5005327, 66.6321579, 70.32316305]


@dataclass
class ImageEncoder:
    """Image encoder that learns."""

    NAME: str = key(
        "timm:eva02_large_patch14_224.mim_m38m",
        "timm:<a plain ViT>, or focal: FocalNet's levels as one map",
        choices=["timm:?*", "focal"],
    )
    LOAD_PRETRAINED: bool = key(False, "start from timm's weights")
    DIM: int = key(0, "timm: width instead of the named model's; 0: its own", minimum=0)
    DEPTH: int = key(0, "timm: layers; 0: its own", minimum=0)
    HEADS: int = key(0, "timm: attention heads; 0: its own", minimum=0)
    DROP_PATH_RATE: float = key(0.1, "timm: stochastic depth of the last block", minimum=0, maximum=0.99)
    STRETCHED_ROPE: bool = key(True, "EVA-02: places relative to the grid of the pretraining; false: as published")
    MLP_NORM_EPS: float = key(1e-5, "EVA-02: epsilon of the norm inside the MLPs; timm has 1e-6", minimum=0)
    REMAINDER: str = key(
        "resized",
        "what the patches do not divide of the canvas: resized, or unseen as published",
        choices=["resized", "unseen"],
    )
    PIXEL_MEAN: list[float] = key(CLIP_MEAN, "mean per channel, RGB, 0-255 scale")
    PIXEL_STD: list[float] = key(CLIP_STD, "standard deviation per channel", minimum=1e-6)
    RECOMPUTE: bool = key(False, "recompute activations in the backward pass: less memory, slower")
    MAP_DIM: int = key(256, "focal: channels of the map", minimum=1)
    MAP_STRIDE: int = key(8, "focal: pixels per cell of the map", choices=[4, 8, 16, 32])
    FOCAL: Focal = section(Focal)


@dataclass
class SamBackbone:
    """SAM's image encoder beside it; INPUT.PIXEL_MEAN and PIXEL_STD are its own."""

    SIZE: str = key("huge", "which of SAM's; none: without", choices=["none", "base", "large", "huge"])
    PRETRAINED: str = key("", "SAM's weights to start from, mask decoder included: hub name, folder or .pth")
    FROZEN: bool = key(True, "it does not learn, nor does the prompt encoder")
    DROP_PATH_RATE: float = key(0.5, "stochastic depth, where it is not at rest", minimum=0, maximum=0.99)
    TABLES: str = key(
        "antialiased",
        "relative positions of another size: antialiased as published, or as SAM",
        choices=["antialiased", "sam"],
    )


@dataclass
class PromptFeatures:
    """What an image shows at a prompt."""

    PROMPT_DIM: int = key(256, "width of location prompts and of the mask decoder", minimum=8)
    PUBLISHED_PROMPTS: bool = key(False, "boxes as PixelLLM encodes them, three no-mask vectors behind the corners")
    QUERIES: int = key(32, "visual tokens per prompt", minimum=1)
    DIM: int = key(512, "width of the two-way transformer", minimum=8)
    DEPTH: int = key(6, "its layers", minimum=1)
    HEADS: int = key(8, "its attention heads", minimum=1)
    FFN_DIM: int = key(2048, "hidden size of its feed-forward blocks", minimum=1)
    OUTPUT_DIM: int = key(1024, "width of the visual tokens", minimum=1)
    GRID: int = key(0, "cells each way of a box that are read beside them; not published, 0: none", minimum=0)
    WHOLE_GRID: int = key(0, "the same of a whole image", minimum=0)


@dataclass
class Lora:
    """Low-rank adaptation."""

    RANK: int = key(0, "rows of the low-rank matrices; 0: none, the language model is frozen", minimum=0)
    ALPHA: float = key(64.0, "scale, times the rank", minimum=0)
    TARGETS: list[str] = key(["q", "v"], "last names of the layers that are adapted")


@dataclass
class LanguageModel:
    """Language model."""

    NAME: str = key(
        "bert",
        "bert: a decoder of its own, from scratch; t5 or causal: of transformers",
        choices=["bert", "t5", "causal"],
    )
    PRETRAINED: str = key("google/flan-t5-xl", "t5, causal: hub name or folder")
    TOKENIZER: str = key("bert-base-uncased", "hub name or folder")
    MAX_STEPS: int = key(128, "tokens per text, begin and end included", minimum=3, maximum=4096)
    VOCAB_SIZE: int = key(30522, "bert: size of the vocabulary", minimum=4)
    HIDDEN_SIZE: int = key(768, "bert: width", minimum=1)
    NUM_LAYERS: int = key(6, "bert: layers", minimum=1)
    ATTENTION_HEADS: int = key(12, "bert: attention heads", minimum=1)
    FEEDFORWARD_SIZE: int = key(3072, "bert: hidden size of the feed-forward blocks", minimum=1)
    DROPOUT: float = key(0.1, "bert: dropout", minimum=0, maximum=0.99)
    INIT_STD: float = key(0.02, "bert: standard deviation of the initial weights", minimum=0.0001, maximum=1)
    LORA: Lora = section(Lora)
    PRECISION: str = key("fp32", "t5, causal: number type of the frozen weights", choices=["fp32", "bf16", "fp16"])
    RECOMPUTE: bool = key(False, "recompute activations in the backward pass: less memory, slower")
    BEAM_SIZE: int = key(1, "beams when generating; 1: greedy", minimum=1)
    LENGTH_PENALTY: float = key(0.6, "with beams: exponent of T5X's length penalty", minimum=0)


@dataclass
class Places:
    """Where words are."""

    DIM: int = key(512, "hidden size of the MLP", minimum=1)
    DEPTH: int = key(4, "its layers", minimum=1)
    POINTER_DIM: int = key(0, "width in which words choose cells of the map; not published, 0: they don't", minimum=0)


@dataclass
class Detector:
    """Proposals for dense captioning (CenterNet2 on a simple pyramid)."""

    ENABLED: bool = key(True, "detect")
    DIM: int = key(256, "channels of the pyramid", minimum=8)
    DECONV_DIM: int = key(384, "channels of its finest level before they are projected", minimum=8)
    CONVS: int = key(4, "convolutions of the proposal head's tower", minimum=0)
    HIDDEN_DIM: int = key(1024, "hidden size of the region head", minimum=1)
    POOLED: int = key(7, "cells of a region, each way", minimum=1)
    INITIAL_REACH: float = key(8.0, "to each side, in strides, before training", minimum=0)
    PUBLISHED_STRIDES: bool = key(False, "levels 8, 16, ... pixels apart whatever the canvas, as published")
    TRAIN_CANDIDATES: int = key(2000, "training: boxes before suppression", minimum=1)
    TRAIN_PROPOSALS: int = key(1000, "training: proposals", minimum=1)
    TEST_CANDIDATES: int = key(1000, "boxes before suppression", minimum=1)
    TEST_PROPOSALS: int = key(256, "proposals", minimum=1)
    SAMPLES: int = key(512, "regions the second stage learns from", minimum=1)
    MIN_SCORE: float = key(0.05, "least score of a detection", minimum=0, maximum=1)
    NMS_IOU: float = key(0.5, "a detection that overlaps a better one by more is dropped", minimum=0, maximum=1)
    DETECTIONS: int = key(100, "detections per image at most", minimum=1)


@dataclass
class MaskHead:
    """SAM's mask decoder, steered by the language model."""

    DEPTH: int = key(2, "layers of its two-way transformer", minimum=1)
    HEADS: int = key(8, "attention heads", minimum=1)
    FFN_DIM: int = key(2048, "hidden size of the feed-forward blocks", minimum=1)
    QUALITY_DIM: int = key(256, "hidden size of the MLP that predicts the IoU", minimum=1)
    FROZEN: bool = key(True, "it keeps SAM's weights; what steers it learns")
    INITIAL_GATE: float = key(0.0, "what steers it starts with the hyperbolic tangent of this; 0: as published")


@dataclass
class LossWeights:
    """Factors of the losses' means; 0 leaves a loss out."""

    TEXT: float = key(1.0, "next word", minimum=0)
    TRACE: float = key(0.1, "places of a narrative's words, L1 in pixels", minimum=0)
    BOX: float = key(0.1, "box of an expression, L1 in pixels", minimum=0)
    GIOU: float = key(0.0, "the same, 1 - GIoU; not published", minimum=0)
    MASK: float = key(1.0, "masks: 20 focal + dice", minimum=0)
    QUALITY: float = key(1.0, "predicted IoU of masks", minimum=0)
    POINTER: float = key(1.0, "cells of the map that words choose, with PLACES.POINTER_DIM", minimum=0)
    WORDS: float = key(0.0, "words of the texts, from every cell of the map; not published, 0: no such head", minimum=0)
    DETECTION: float = key(1.0, "the detector's four losses", minimum=0)
    LABEL_SMOOTHING: float = key(0.1, "of the next word", minimum=0, maximum=0.99)


@dataclass
class PixelLLMModelConfig(ModelConfig):
    """PixelLLM: words with places; boxes, points and sentences as prompts."""

    FROZEN_MODE: str = key(
        "eval",
        "mode of frozen parts in training; train: dropout and drop-path stay on, as upstream",
        choices=["eval", "train"],
    )
    MASKS: bool = key(True, "masks of what expressions refer to")
    TRACE_WORDS: str = key(
        "own",
        "places of a narrative's words: of the model's own, or piece by piece of the given narrative, as published",
        choices=["own", "given"],
    )
    CAPTION_IN_SCORE: bool = key(False, "a detection's score is the root of its own times its caption's likelihood")
    BACKBONE: ImageEncoder = section(ImageEncoder)
    SAM: SamBackbone = section(SamBackbone)
    PROMPT_FEATURES: PromptFeatures = section(PromptFeatures)
    TEXT_DECODER: LanguageModel = section(LanguageModel)
    PLACES: Places = section(Places)
    DETECTOR: Detector = section(Detector)
    MASK_HEAD: MaskHead = section(MaskHead)
    LOSS: LossWeights = section(LossWeights)
    PROMPTS: Prompts = section(Prompts)

    @staticmethod
    def conflicts(cfg: Any) -> Iterator[Conflict]:
        """Yield the values that cannot go together."""
        model = cfg.MODEL
        features, text = model.PROMPT_FEATURES, model.TEXT_DECODER
        for where, width, heads in (
            ("PROMPT_FEATURES.DIM", features.DIM, 2 * features.HEADS),
            ("PROMPT_FEATURES.PROMPT_DIM", features.PROMPT_DIM, 2 * model.MASK_HEAD.HEADS if model.MASKS else 2),
            ("TEXT_DECODER.HIDDEN_SIZE", text.HIDDEN_SIZE, text.ATTENTION_HEADS),
        ):
            if width % heads:
                yield f"MODEL.{where}", f"{width} is not a multiple of {heads}, as its attention heads need"
        if model.MASKS and model.SAM.SIZE == "none" and model.BACKBONE.NAME != "focal":
            yield "MODEL.SAM.SIZE", "masks are read from SAM's map or from focal's: give a size, or MODEL.MASKS false"
        if model.MASKS and model.SAM.SIZE == "none" and model.BACKBONE.MAP_DIM != features.PROMPT_DIM:
            yield "MODEL.BACKBONE.MAP_DIM", f"masks are read from this map: it must be PROMPT_DIM {features.PROMPT_DIM}"
        if model.SAM.SIZE != "none" and features.PROMPT_DIM != 256 and model.MASKS:
            yield "MODEL.PROMPT_FEATURES.PROMPT_DIM", "SAM's map has 256 channels, so must prompts"
        found = [entry for entry in cfg.DATASETS.TEST if entry.startswith("detect:")]
        if found and not model.DETECTOR.ENABLED:
            yield "MODEL.DETECTOR.ENABLED", f"the objects of {found[0]} in DATASETS.TEST are found by a detector: true"
        if features.PUBLISHED_PROMPTS and model.PROMPTS.BOX_RATE < 1:
            yield "MODEL.PROMPTS.BOX_RATE", "published prompts are boxes: points need PUBLISHED_PROMPTS false"
        yield from ((f"MODEL.PROMPTS.{name}", why) for name, why in Prompts.conflicts(model.PROMPTS))
