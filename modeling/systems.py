"""The systems, by MODEL.NAME. Each is one file, its builder and its layouts; deleting these and its line removes it."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf, read_write
from torch import Tensor, nn

from ..datasets.batches import PromptTargets, RegionTargets, Targets
from ..datasets.records import Category
from ..utils import untrusted
from ..utils.errors import UsageError, nearest
from ..utils.files import write_tensors
from . import build_pix2cap as pix2cap
from . import build_pixelllm as pixelllm
from .checkpoints.loader import find_weights, load_weights, read_weights
from .layers.repeated import repeated_blocks

Tensors = Mapping[str, Tensor]
Layers = Sequence[Sequence[nn.Parameter]]
QUESTIONS = ("box", "point", "mask", "text", "prompt")  # "text" finds a phrase, "prompt" are words of one's own


@dataclass(frozen=True, slots=True)
class System:
    """How to make a system, and what may be done with its weights.

    Attributes:
        tokenizer: cfg -> its caption tokenizer.
        model: cfg, categories, tokenizer -> the system itself.
        starts_fresh: beginnings of names that weights to start *training* from may lack, besides all that their layout
            never has.
        targets: kind of a batch's targets; of `PromptTargets` the data sets are named with their tasks.
        takes: cfg -> what may be asked about an image: some of `QUESTIONS`.
        blocks: model -> its repeated layers, such as those of its transformers: what is sharded or compiled one by one.
            They are called by their ``forward`` alone, each as often on every rank.
        layers: model -> parameters of its encoder's layers, the input first, for SOLVER.LAYER_DECAY; None: it has none.
        exports: layout -> function (cfg, weights, weights to be like) -> weights in that layout.
    """

    tokenizer: Callable[[Any], Any]
    model: Callable[[Any, Sequence[Category], Any], nn.Module]
    starts_fresh: tuple[str, ...] = ()
    targets: type[Targets] = RegionTargets
    takes: Callable[[Any], frozenset[str]] = lambda cfg: frozenset()
    blocks: Callable[[nn.Module], list[nn.Module]] = repeated_blocks
    layers: Callable[[nn.Module], Layers] | None = None
    exports: Mapping[str, Callable[[Any, Tensors, Tensors | None], Tensors]] = field(default_factory=dict)


SYSTEMS = {
    "pix2cap_model": System(
        pix2cap.build_tokenizer,
        pix2cap.build_pix2cap,
        pix2cap.STARTS_FRESH,
        takes=pix2cap.takes,
        blocks=lambda m: repeated_blocks(m.backbone, m.pixel_decoder, m.decoder, m.captioner),
        exports={"original": pix2cap.original_pix2cap},
    ),
    "pixelllm_model": System(
        pixelllm.build_language_tokenizer,
        pixelllm.build_pixelllm,
        pixelllm.STARTS_FRESH,
        targets=PromptTargets,
        takes=pixelllm.takes,
        blocks=lambda m: repeated_blocks(m.encoder, m.language),
        layers=pixelllm.encoder_layers,
    ),
}


STARTED_FROM = {"MODEL.BACKBONE.LOAD_PRETRAINED": False, "MODEL.SAM.PRETRAINED": ""}  # and the values for none


def find_system(name: str) -> System:
    """Return the system called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in SYSTEMS:
        guess = nearest(name, SYSTEMS)
        raise UsageError(
            "There is no such system.",
            where="MODEL.NAME",
            value=name,
            allowed=", ".join(SYSTEMS),
            fix=f"--overrides MODEL.NAME {guess}" if guess else None,
        )
    return SYSTEMS[name]


def configured_weights(cfg: Any) -> Path:
    """Return the weights file that RESUME_FROM means.

    Raises:
        UsageError: it is empty.
        CheckpointError: there is no such file.
    """
    if not cfg.RESUME_FROM:
        raise UsageError(
            "No weights are given.",
            where="RESUME_FROM",
            value="",
            allowed="a weights file, a checkpoint or run folder",
            fix="--overrides RESUME_FROM <run folder>; predict also takes --model, and evaluate --predictions FILE",
        )
    return find_weights(Path(cfg.RESUME_FROM))


def build_trained(
    cfg: Any, categories: Sequence[Category], tokenizer: Any = None, device: torch.device | str = "cpu"
) -> nn.Module:
    """Build the configured system with the weights of RESUME_FROM, every one of them, to evaluate or predict.

    Raises:
        UsageError, CheckpointError: as `configured_weights`; also when the weights do not fit.
    """
    configured_weights(cfg)  # a wrong path is told before the model is built
    cfg = without_start(cfg)
    system = find_system(cfg.MODEL.NAME)
    model = system.model(cfg, categories, tokenizer or system.tokenizer(cfg)).to(device)
    load_weights(model, cfg.RESUME_FROM)
    return model


def without_start(cfg: Any) -> Any:
    """Return the configuration without the weights that training started from: all of them are replaced."""
    cfg = copy.deepcopy(cfg)
    with read_write(cfg):
        for key, value in STARTED_FROM.items():
            if OmegaConf.select(cfg, key) is not None:
                OmegaConf.update(cfg, key, value)
    return cfg


def export_weights(cfg: Any, output: str | Path, *, layout: str = "original", like: str | Path | None = None) -> Path:
    """Write the weights of RESUME_FROM in another layout; no model is built.

    Args:
        cfg: the resolved configuration that the weights belong to.
        output: a ``.pt`` or ``.pth``, as the original code reads them, or a ``.safetensors``.
        layout: a key of the system's ``exports``.
        like: a file of that layout; tensors that its code stores but never reads are copied from it.

    Raises:
        UsageError, CheckpointError: as `configured_weights`; also when the system has no such layout, or that no place
            for a tensor.
    """
    exports = find_system(cfg.MODEL.NAME).exports
    if layout not in exports:
        raise UsageError(
            "The system's weights are not written in this layout.",
            where=cfg.MODEL.NAME,
            value=layout,
            allowed=", ".join(exports) or "none: a run's model.safetensors is all there is",
        )
    configured_weights(cfg)  # says what is missing
    weights = read_weights(Path(cfg.RESUME_FROM))
    copied = None if like is None else untrusted.load_flat_tensors(like)
    return write_tensors(output, exports[layout](cfg, weights, copied))
