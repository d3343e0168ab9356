"""The typed configuration: data, solver, logging and run time.

Keys are those of the original Pix2Cap configuration, defaults are those of its file (but for what inference returns,
see ``MODEL.DECODER.TEST``), and keys of our own keep its style, their help beginning with "+". The MODEL section is
the model's own: `ModelConfig` is what all share, ``modeling/schemas`` has one per system.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from .config_keys import MISSING, key, section

Conflict = tuple[str, str]  # a key, and why its value can't go with the others


@dataclass
class ModelConfig:
    """The model; further keys depend on NAME."""

    NAME: str = key(MISSING, "which system: chooses the other keys of this section")

    DEAD: ClassVar[tuple[str, ...]] = ()  # accepted without effect; relative to the root, "A.*" covers a section

    @staticmethod
    def conflicts(cfg: Any) -> Iterator[Conflict]:
        """Yield the values of the whole configuration that cannot go together."""
        yield from ()


@dataclass
class CocoInput:
    """Image size and augmentation."""

    IMAGE_SIZE: int = key(1024, "training crop: side of the square, pixels", minimum=1)
    MIN_SCALE: float = key(0.1, "large-scale jitter: smallest resize factor relative to IMAGE_SIZE", minimum=0.001)
    MAX_SCALE: float = key(2.0, "large-scale jitter: largest resize factor", minimum=0.001, maximum=100)
    RANDOM_FLIP: str = key("horizontal", "training flip, probability 0.5", choices=["horizontal", "vertical", "none"])
    MIN_SIZE_TEST: int = key(800, "evaluation: shorter side after resizing, pixels", minimum=1)
    MAX_SIZE_TEST: int = key(1333, "evaluation: longer side at most, pixels (wins over MIN_SIZE_TEST)", minimum=1)
    FORMAT: str = key("RGB", "channel order", choices=["RGB"])
    DATASET_MAPPER_NAME: str = key(
        "coco_panoptic_densecap", "how records become inputs", choices=["coco_panoptic_densecap"]
    )


@dataclass
class CocoTrain:
    """Training batches."""

    BATCH_SIZE_TOTAL: int = key(2, "images per step over all processes; a multiple of their number", minimum=1)


@dataclass
class CocoTest:
    """Evaluation batches."""

    IMAGES_PER_FORWARD: int = key(1, "+ images that are predicted together; answers do not depend on it", minimum=1)
    DETECTIONS_PER_IMAGE: int = key(100, "instances kept per image, best scores first", minimum=1)


@dataclass
class CocoDataloader:
    """Loading."""

    NUM_WORKERS: int = key(0, "loader processes per training process; 0 loads in the training process", minimum=0)
    PREFETCH: int = key(2, "+ batches that each loader process has ready", minimum=1)
    TIMEOUT: float = key(120.0, "+ seconds to wait for a loader process before the run stops; 0: for ever", minimum=0)
    MAX_BAD_SAMPLES: int = key(
        100, "+ unreadable training samples that are left out, and listed, before the run stops; 0: none", minimum=0
    )
    MAX_BAD_SHARE: float = key(
        0.001, "+ the same as a share of the training samples; the larger of the two counts", minimum=0, maximum=1
    )


@dataclass
class Coco:
    """Inputs and batches (of every data set, under the original section name)."""

    INPUT: CocoInput = section(CocoInput)
    TRAIN: CocoTrain = section(CocoTrain)
    TEST: CocoTest = section(CocoTest)
    DATALOADER: CocoDataloader = section(CocoDataloader)


@dataclass
class Input:
    """Normalisation, applied before padding."""

    PIXEL_MEAN: list[float] = key([123.675, 116.28, 103.53], "mean per channel, RGB, 0-255 scale")
    PIXEL_STD: list[float] = key([58.395, 57.12, 57.375], "standard deviation per channel, 0-255 scale", minimum=1e-6)


@dataclass
class Datasets:
    """Which data sets, by name, and where they lie."""

    TRAIN: list[str] = key(["pix2cap_coco_train_with_sem_seg"], "training sets; of prompted systems, task:name")
    TEST: list[str] = key(["pix2cap_coco_val_with_sem_seg"], "evaluation sets; of prompted systems, task:name")
    WEIGHTS: dict[str, float] = key(
        {}, "+ item of TRAIN: how often it is drawn, others 1; empty: every record once per epoch", minimum=0
    )
    SAMPLES_PER_EPOCH: int = key(0, "+ samples of an epoch, shared out by WEIGHTS; 0: full passes", minimum=0)
    ROOT: str = key("", "+ folder of the data; empty: $DETECTRON2_DATASETS, else $DATASETS")


@dataclass
class Shapes:
    """The embedded data set: drawn, nothing to download."""

    NUM_TRAIN: int = key(100000, "+ training scenes", minimum=1)
    NUM_TEST: int = key(200, "+ evaluation scenes, never among the training scenes", minimum=1)
    IMAGE_SIZE: int = key(128, "+ side of the scene, pixels", minimum=32, maximum=4096)
    SEED: int = key(0, "+ which world: every scene is a function of this number and its index", minimum=0)


@dataclass
class Parallel:
    """How processes share the work."""

    STRATEGY: str = key(
        "ddp", "+ ddp: each process holds the whole model; fsdp: they share one copy", choices=["ddp", "fsdp"]
    )
    RANKS_PER_COPY: int = key(0, "+ fsdp: processes that share a copy; 0: all of them", minimum=0)
    ALLOW_SHARED_GPU: bool = key(False, "+ let several processes compute on one GPU")


@dataclass
class Timeouts:
    """How long processes wait for each other, seconds."""

    RENDEZVOUS: float = key(60.0, "+ for all processes to start", minimum=1)
    STEP: float = key(300.0, "+ for a step; then the process that is behind is named and the run ends", minimum=1)
    FIRST_STEP: float = key(1800.0, "+ for the first step, an evaluation or a checkpoint", minimum=1)


@dataclass
class ClipGradients:
    """Gradient clipping."""

    ENABLED: bool = key(True, "clip")
    CLIP_TYPE: str = key("full_model", "one norm over all gradients", choices=["full_model"])
    CLIP_VALUE: float = key(5.0, "largest global norm", minimum=0)
    NORM_TYPE: float = key(2.0, "the norm is Euclidean", choices=[2.0])


@dataclass
class Solver:
    """Optimiser and schedule."""

    OPTIMIZER: str = key("ADAMW", "ADAMW (betas 0.9, 0.999) or SGD", choices=["ADAMW", "SGD"])
    BASE_LR: float = key(1e-4, "learning rate before the multipliers", minimum=0)
    MOMENTUM: float = key(0.9, "SGD only", minimum=0, maximum=1)
    LR_MULTIPLIER: dict[str, float] = key(
        {"backbone": 0.1, "lang_encoder": 0.1},
        "part of a parameter's name: factor on its learning rate; several factors multiply; null removes an entry",
        minimum=0,
    )
    WEIGHT_DECAY: float = key(0.05, "decoupled weight decay", minimum=0)
    WEIGHT_DECAY_NORM: float = key(0.0, "weight decay of normalisation layers", minimum=0)
    WEIGHT_DECAY_EMBED: float = key(0.0, "weight decay of embeddings", minimum=0)
    WEIGHT_DECAY_BIAS: float = key(0.0, "weight decay of modules named bias (as upstream: not of biases)", minimum=0)
    WEIGHT_DECAY_BY: str = key(
        "module",
        "+ by kind of module, as the keys above; or shape: WEIGHT_DECAY for all but vectors, embeddings too",
        choices=["module", "shape"],
    )
    LAYER_DECAY: float = key(
        1.0,
        "+ factor on the learning rate per layer of the encoder, from the last to the first; 1: none",
        minimum=0.01,
        maximum=1,
    )
    FIX_PARAM: dict[str, bool] = key({}, "part of a parameter's name: true freezes it")
    IGNORE_FIX: list[str] = key([], "parts of names that FIX_PARAM leaves alone")
    MAX_NUM_EPOCHS: int = key(50, "passes over the training set", minimum=1)
    MAX_STEPS: int = key(0, "+ optimiser steps instead of epochs; 0: by epochs", minimum=0)
    LR_SCHEDULER_NAME: str = key(
        "WarmupMultiStepLR",
        "shape of the schedule; CosineAfterWarmupLR: its cosine starts where the warm-up ends",
        choices=["WarmupMultiStepLR", "WarmupCosineLR", "WarmupPolyLR", "CosineAfterWarmupLR"],
    )
    STEPS: list[float] = key([0.88889, 0.96296], "multi-step: fractions of the run", minimum=0, maximum=1)
    GAMMA: float = key(0.1, "multi-step: factor at each of STEPS", minimum=0, maximum=1)
    BASE_LR_END: float = key(0.0, "cosine: final learning rate before the multipliers", minimum=0)
    POLY_LR_POWER: float = key(0.9, "polynomial: exponent", minimum=0)
    POLY_LR_CONSTANT_ENDING: float = key(0.0, "polynomial: fraction of BASE_LR kept at the end", minimum=0, maximum=1)
    WARMUP_FACTOR: float = key(1.0, "learning-rate factor of the first step; 1: no warm-up", minimum=0, maximum=1)
    WARMUP_ITERS: int = key(10, "steps of warm-up", minimum=0)
    WARMUP_METHOD: str = key("linear", "shape of the warm-up", choices=["linear", "constant"])
    CLIP_GRADIENTS: ClipGradients = section(ClipGradients)
    MAX_SKIPPED_STEPS: int = key(
        3, "+ steps in a row that are left out for a gradient that is not finite; one more stops the run", minimum=0
    )
    EMA_DECAY: float = key(
        0.0, "+ keep a moving average of the weights, to evaluate and export; 0: none", minimum=0, maximum=0.999999
    )


@dataclass
class Config:
    """The whole configuration."""

    SAVE_DIR: str = key("./data/test", "folder that runs write to")
    BASENAME: str = key("", "name of the run; empty: that of the first configuration file")
    RESUME: bool = key(
        False, "go on exactly where the run in RESUME_FROM stopped; without that, the newest unfinished one, if any"
    )
    RESUME_CHANGES: list[str] = key(
        [], "+ keys that may differ from those of the run that RESUME goes on with, though its samples hang on them"
    )
    WEIGHT: bool = key(False, "start from the weights in RESUME_FROM (a file)")
    RESUME_FROM: str = key("", "weights file or run folder, see WEIGHT and RESUME")
    SEED: int = key(0, "+ order, augmentation, initial weights and dropout follow from it", minimum=0)
    DEVICE: str = key("auto", "+ auto takes the GPU when there is one", choices=["auto", "cpu", "cuda"])
    CUDA: bool = key(True, "false stays on the CPU, like DEVICE cpu")
    FP16: bool = key(False, "half precision with loss scaling on a GPU; ignored on the CPU")
    PRECISION: str = key(
        "auto",
        "+ number type of training and evaluation; auto: as FP16 says",
        choices=["auto", "fp32", "bf16", "fp16"],
    )
    DETERMINISTIC: bool = key(False, "+ only algorithms that give the same bits every time; slower on a GPU")
    COMPILE: bool = key(False, "+ compile the model's blocks (torch.compile): a slower start, then faster steps")
    PARALLEL: Parallel = section(Parallel)
    TIMEOUTS: Timeouts = section(Timeouts)
    MAX_HOURS: float = key(0.0, "+ stop and save after so many hours, with exit code 75; 0: no limit", minimum=0)
    PORT: str = key("36872", "TCP port of the process group when the launcher gives none")
    GRADIENT_ACCUMULATE_STEP: int = key(1, "batches per optimiser step", minimum=1)
    LOG_EVERY: int = key(100, "log every so many steps", minimum=1)
    LOG_FIRST: int = key(10, "log each of the first steps", minimum=0)
    TENSORBOARD: bool = key(True, "+ write TensorBoard curves")
    WANDB: bool = key(False, "log to Weights & Biases (WANDB_MODE=offline works)")
    WANDB_PROJECT: str = key("pix2cap", "+ its project")
    EVAL_AT_START: bool = key(False, "evaluate before the first step")
    EVAL_EVERY_EPOCHS: int = key(1, "+ evaluate after every so many epochs; 0: never", minimum=0)
    EVAL_EVERY_STEPS: int = key(0, "+ evaluate after every so many steps as well; 0: don't", minimum=0)
    EVAL_MAX_IMAGES: int = key(0, "+ images of an evaluation during training; 0: all", minimum=0)
    EVAL_PICTURES: int = key(8, "+ images of each test set that evaluation draws; 0: none", minimum=0)
    PROTOCOLS: list[str] = key([], "+ which figures evaluation computes; empty: panoptic_captioning, or the tasks' own")
    EVAL_PROTOCOL: str = key(
        "standard", "+ upstream repeats the published code's arithmetic", choices=["standard", "upstream"]
    )
    EVAL_VARIANTS: dict[str, str] = key({}, "+ item of DATASETS.TEST, or task: variant of its protocol")
    CHECKPOINT_EVERY_STEPS: int = key(0, "+ save after every so many steps as well as every epoch; 0: don't", minimum=0)
    KEEP_CHECKPOINTS: int = key(2, "+ newest checkpoints kept; 0: all", minimum=0)
    KEEP_BEST: int = key(0, "+ checkpoints with the best BEST_FIGURE that are kept besides; 0: none", minimum=0)
    BEST_FIGURE: str = key("", "+ figure of the evaluation that decides, as it is printed; empty: the first")
    ASYNC_CHECKPOINTS: bool = key(True, "+ write checkpoints while training goes on")
    PEAK_TFLOPS: float = key(0.0, "+ what one device can do, to show the share used; 0: of known GPUs", minimum=0)
    MODEL: ModelConfig = section(ModelConfig)
    COCO: Coco = section(Coco)
    INPUT: Input = section(Input)
    DATASETS: Datasets = section(Datasets)
    SHAPES: Shapes = section(Shapes)
    SOLVER: Solver = section(Solver)

    DEAD: ClassVar[tuple[str, ...]] = (
        *("PIPELINE", "TRAINER", "base_path", "RESET_DATA_LOADER", "VERBOSE", "EVAL_PER_UPDATE_NUM"),
        *("LR_SCHEDULER_PARAMS", "FIND_UNUSED_PARAMETERS", "LOADER.*", "DATALOADER.*", "COCO.DATASET.*"),
        *("DATASETS.SIZE_DIVISIBILITY", "DATASETS.PROPOSAL_FILES_TRAIN"),
        *("COCO.INPUT.MIN_SIZE_TRAIN", "COCO.INPUT.MAX_SIZE_TRAIN", "COCO.INPUT.MIN_SIZE_TRAIN_SAMPLING"),
        *("COCO.INPUT.IGNORE_VALUE", "COCO.INPUT.COLOR_AUG_SSD", "COCO.INPUT.SIZE_DIVISIBILITY"),
        *("COCO.INPUT.MASK_FORMAT", "COCO.INPUT.CROP.*"),
        *(
            "COCO.TEST.NAME",
            "COCO.TEST.BATCH_SIZE_TOTAL",
            "COCO.TEST.IOU_TYPE",
            "COCO.TEST.USE_MULTISCALE",
            "COCO.TEST.MODEL_FILE",
            "COCO.TEST.AUG.*",
        ),
        *("COCO.TRAIN.ASPECT_RATIO_GROUPING", "COCO.TRAIN.BATCH_SIZE_PER_GPU", "COCO.TRAIN.SHUFFLE"),
        *("COCO.DATALOADER.FILTER_EMPTY_ANNOTATIONS", "COCO.DATALOADER.LOAD_PROPOSALS"),
        *("COCO.DATALOADER.SAMPLER_TRAIN", "COCO.DATALOADER.ASPECT_RATIO_GROUPING"),
        *("SOLVER.MAX_ITER", "SOLVER.AMP.*", "SOLVER.RESCALE_INTERVAL"),
    )

    @staticmethod
    def conflicts(cfg: Any) -> Iterator[Conflict]:
        """Yield the values that cannot go together."""
        if cfg.WEIGHT and cfg.RESUME:
            yield "RESUME", "RESUME goes on with a run and WEIGHT starts from weights: only one of them can be true"
        if cfg.WEIGHT and not cfg.RESUME_FROM:
            yield "RESUME_FROM", "WEIGHT is true, but RESUME_FROM names no weights file"
        if cfg.FP16 and cfg.PRECISION not in ("auto", "fp16"):
            yield "PRECISION", f"FP16 is true, but PRECISION is {cfg.PRECISION}"
        if cfg.PARALLEL.STRATEGY == "fsdp" and "fp16" in (cfg.PRECISION, "fp16" if cfg.FP16 else ""):
            yield "PARALLEL.STRATEGY", "fsdp goes with PRECISION bf16 or fp32, not with the loss scaling of fp16"
        inputs = cfg.COCO.INPUT
        if inputs.MIN_SCALE > inputs.MAX_SCALE:
            yield "COCO.INPUT.MIN_SCALE", f"MIN_SCALE {inputs.MIN_SCALE} > MAX_SCALE {inputs.MAX_SCALE}"
        if inputs.MIN_SIZE_TEST > inputs.MAX_SIZE_TEST:
            yield (
                "COCO.INPUT.MIN_SIZE_TEST",
                f"MIN_SIZE_TEST {inputs.MIN_SIZE_TEST} > MAX_SIZE_TEST {inputs.MAX_SIZE_TEST}",
            )
        for name in ("PIXEL_MEAN", "PIXEL_STD"):
            if len(cfg.INPUT[name]) != 3:
                yield f"INPUT.{name}", f"{len(cfg.INPUT[name])} values for 3 channels"
        if list(cfg.SOLVER.STEPS) != sorted(cfg.SOLVER.STEPS):
            yield "SOLVER.STEPS", f"the fractions {list(cfg.SOLVER.STEPS)} are not in rising order"
