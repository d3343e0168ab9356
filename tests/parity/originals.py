"""The original Pix2Cap as its own code leaves it: names and shapes of its tensors, formula-made weights, inputs.

`original_names` rebuilds the names of any configuration from the published layout; the measured manifests in ``data/``
check it.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

DATA = Path(__file__).parent / "data"
NUMBERS = json.loads((DATA / "numbers.json").read_text())
PREDICTOR = "sem_seg_head.predictor."
CAPTIONER = PREDICTOR + "text_decoder."
INERT = tuple(PREDICTOR + name for name in ("caping_embed", "pos_embed_caping.weight", "self_attn_mask"))
INERT += ("criterion.empty_weight",)
NOT_IN_XDECODER = (CAPTIONER, PREDICTOR + "object_proj.", PREDICTOR + "bbox_embed.")
Names = dict[str, tuple[tuple[int, ...], str]]


def measured_names(which: str) -> Names:
    """Return name -> (shape, dtype) of the original model, ``full`` or ``tiny``; ``[0-5]`` stands for six names."""
    names: Names = {}
    for pattern, value in json.loads((DATA / f"manifest_{which}.json").read_text()).items():
        size, _, dtype = value.partition(" ")
        shape = () if size == "scalar" else tuple(map(int, size.split("x")))
        pieces = re.split(r"\[(\d+)-(\d+)\]", pattern)
        ranges = [range(int(a), int(b) + 1) for a, b in zip(pieces[1::3], pieces[2::3], strict=True)]
        for numbers in itertools.product(*ranges):
            filled = [text + str(number) for text, number in zip(pieces[::3], (*numbers, ""), strict=True)]
            names["".join(filled)] = shape, dtype or "float32"
    return names


class _Names:
    """Collects names by the kind of layer they belong to."""

    def __init__(self) -> None:
        self.names: Names = {}

    def add(self, name: str, *shape: int, dtype: str = "float32") -> None:
        assert name not in self.names
        self.names[name] = shape, dtype

    def affine(self, name: str, *weight: int) -> None:
        self.add(name + ".weight", *weight)
        self.add(name + ".bias", weight[0])

    def conv(self, name: str, *weight: int, norm: str) -> None:
        if norm:
            self.add(name + ".weight", *weight)
            self.affine(name + ".norm", weight[0])
        else:
            self.affine(name, *weight)

    def attention(self, name: str, dim: int) -> None:
        self.add(name + ".in_proj_weight", 3 * dim, dim)
        self.add(name + ".in_proj_bias", 3 * dim)
        self.affine(name + ".out_proj", dim, dim)

    def mlp(self, name: str, *dims: int) -> None:
        for index, (a, b) in enumerate(itertools.pairwise(dims)):
            self.affine(f"{name}.layers.{index}", b, a)


def original_names(cfg: Any) -> Names:
    """Return name -> (shape, dtype) of the original model of a configuration."""
    names = _Names()
    {"davit": _davit, "vit": _sam}.get(cfg.MODEL.BACKBONE.NAME, _focal)(names, cfg.MODEL.BACKBONE)
    (_deformable if cfg.MODEL.ENCODER.NAME.endswith("deform") else _fpn)(names, cfg.MODEL)
    _query_decoder(names, cfg.MODEL)
    _text_encoder(names, cfg.MODEL)
    _captioner(names, cfg.MODEL.TEXT_DECODER)
    names.affine(PREDICTOR + "object_proj", cfg.MODEL.TEXT_DECODER.OBJECT_FEATURE_SIZE, cfg.MODEL.DECODER.HIDDEN_DIM)
    names.add("criterion.empty_weight", cfg.MODEL.ENCODER.NUM_CLASSES + 1)
    return names.names


def _focal(names: _Names, cfg: Any) -> None:
    focal = cfg.FOCAL
    stem, down = (7, 3) if focal.USE_CONV_EMBED else (4, 2)
    names.affine("backbone.patch_embed.proj", focal.EMBED_DIM, 3, stem, stem)
    if focal.PATCH_NORM:
        names.affine("backbone.patch_embed.norm", focal.EMBED_DIM)
    for stage, depth in enumerate(focal.DEPTHS):
        dim = focal.EMBED_DIM * 2**stage
        for block in range(depth):
            at = f"backbone.layers.{stage}.blocks.{block}."
            for part in (1, 2):
                if focal.USE_LAYERSCALE:
                    names.add(f"{at}gamma_{part}", dim)
                names.affine(f"{at}norm{part}", dim)
                if cfg.NAME == "focal_dw":
                    names.affine(f"{at}dw{part}", dim, 1, 3, 3)
            levels = focal.FOCAL_LEVELS[stage]
            names.affine(at + "modulation.f", 2 * dim + levels + 1, dim)
            names.affine(at + "modulation.h", dim, dim, 1, 1)
            names.affine(at + "modulation.proj", dim, dim)
            if focal.USE_POSTLN_IN_MODULATION:
                names.affine(at + "modulation.ln", dim)
            for level in range(levels):
                kernel = focal.FOCAL_WINDOWS[stage] + 2 * level
                names.add(f"{at}modulation.focal_layers.{level}.0.weight", dim, 1, kernel, kernel)
            names.affine(at + "mlp.fc1", int(dim * focal.MLP_RATIO), dim)
            names.affine(at + "mlp.fc2", dim, int(dim * focal.MLP_RATIO))
        if stage < len(focal.DEPTHS) - 1:
            names.affine(f"backbone.layers.{stage}.downsample.proj", 2 * dim, dim, down, down)
            names.affine(f"backbone.layers.{stage}.downsample.norm", 2 * dim)
        names.affine(f"backbone.norm{stage}", dim)


def _davit(names: _Names, cfg: Any) -> None:
    davit, given = cfg.DAVIT, 3
    for stage, dim in enumerate(davit.DIM_EMBED):
        kernel = davit.PATCH_SIZE[stage]
        names.affine(f"backbone.convs.{stage}.proj", dim, given, kernel, kernel)
        names.affine(f"backbone.convs.{stage}.norm", given if davit.PATCH_PRENORM[stage] else dim)
        given = dim
        pairs = itertools.product(range(davit.DEPTHS[stage]), (("spatial", "window"), ("channel", "channel")))
        for depth, (block, attention) in pairs:
            at = f"backbone.blocks.{stage}.{depth}.{block}_block."
            for part in (1, 2):
                names.affine(f"{at}conv{part}.fn.dw", dim, 1, 3, 3)
            names.affine(f"{at}{attention}_attn.norm", dim)
            names.affine(f"{at}{attention}_attn.fn.qkv", 3 * dim, dim)
            names.affine(f"{at}{attention}_attn.fn.proj", dim, dim)
            names.affine(at + "ffn.norm", dim)
            names.affine(at + "ffn.fn.net.fc1", 4 * dim, dim)
            names.affine(at + "ffn.fn.net.fc2", dim, 4 * dim)


def _sam(names: _Names, cfg: Any) -> None:
    dim, heads, whole = {
        "base": (768, 12, (2, 5, 8, 11)),
        "large": (1024, 16, (5, 11, 17, 23)),
    }[cfg.VIT.SIZE]
    names.affine("backbone.patch_embed.proj", dim, 3, 16, 16)
    names.add("backbone.pos_embed", 1, 64, 64, dim)
    for block in range(whole[-1] + 1):
        at, side = f"backbone.blocks.{block}.", 64 if block in whole else 14
        for part in (1, 2):
            names.affine(f"{at}norm{part}", dim)
        names.affine(at + "attn.qkv", 3 * dim, dim)
        names.affine(at + "attn.proj", dim, dim)
        for axis in "hw":
            names.add(f"{at}attn.rel_pos_{axis}", 2 * side - 1, dim // heads)
        names.affine(at + "mlp.lin1", 4 * dim, dim)
        names.affine(at + "mlp.lin2", dim, 4 * dim)
    _sam_neck(names, dim, max(256, dim // 2), max(256, dim // 2), max(1024, 2 * dim))


def _sam_neck(names: _Names, dim: int, hidden4: int, hidden8: int, hidden32: int) -> None:
    """Every convolution is followed by a GroupNorm; a transposed one's weight begins with its input."""
    for stride, index, given, width, kernel, transposed in (
        (4, 0, dim, hidden4, 2, True),
        (4, 3, hidden4, hidden4 // 2, 2, True),
        (4, 5, hidden4 // 2, 128, 1, False),
        (8, 0, dim, hidden8, 2, True),
        (8, 2, hidden8, 256, 1, False),
        (16, 0, dim, 512, 1, False),
        (32, 0, dim, hidden32, 2, False),
        (32, 2, hidden32, 1024, 1, False),
    ):
        at = f"backbone.neck.down_{stride}."
        names.add(f"{at}{index}.weight", *((given, width) if transposed else (width, given)), kernel, kernel)
        names.add(f"{at}{index}.bias", width)
        names.affine(f"{at}{index + 1}", width)


def _widths(cfg: Any) -> list[int]:
    """Return the widths of res2 ... res5."""
    if cfg.NAME == "vit":
        return [128, 256, 512, 1024]
    return list(cfg.DAVIT.DIM_EMBED) if cfg.NAME == "davit" else [cfg.FOCAL.EMBED_DIM * 2**stage for stage in range(4)]


def _fpn(names: _Names, model: Any) -> None:
    at, dim, widths = "sem_seg_head.pixel_decoder.", model.ENCODER.CONVS_DIM, _widths(model.BACKBONE)
    names.affine(at + "input_proj", dim, widths[3], 1, 1)
    for layer in range(model.ENCODER.TRANSFORMER_ENC_LAYERS):
        names.attention(f"{at}transformer.encoder.layers.{layer}.self_attn", dim)
        _encoder_ffn(names, f"{at}transformer.encoder.layers.{layer}.", dim, model.DECODER.DIM_FEEDFORWARD)
    if model.DECODER.PRE_NORM:
        names.affine(at + "transformer.encoder.norm", dim)
    for index in (1, 2, 3):
        names.conv(f"{at}adapter_{index}", dim, widths[index - 1], 1, 1, norm=model.ENCODER.NORM)
    for index in (1, 2, 3, 4):
        names.conv(f"{at}layer_{index}", dim, dim, 3, 3, norm=model.ENCODER.NORM)
    names.affine(at + "mask_features", model.ENCODER.MASK_DIM, dim, 3, 3)


def _deformable(names: _Names, model: Any) -> None:
    at, dim, widths = "sem_seg_head.pixel_decoder.", model.ENCODER.CONVS_DIM, _widths(model.BACKBONE)
    samples = model.DECODER.NHEADS * 3 * 4  # levels, points
    for index, stage in enumerate((3, 2, 1)):
        names.affine(f"{at}input_proj.{index}.0", dim, widths[stage], 1, 1)
        names.affine(f"{at}input_proj.{index}.1", dim)
    names.add(at + "transformer.level_embed", 3, dim)
    for layer in range(model.ENCODER.TRANSFORMER_ENC_LAYERS):
        inside = f"{at}transformer.encoder.layers.{layer}."
        names.affine(inside + "self_attn.sampling_offsets", 2 * samples, dim)
        names.affine(inside + "self_attn.attention_weights", samples, dim)
        names.affine(inside + "self_attn.value_proj", dim, dim)
        names.affine(inside + "self_attn.output_proj", dim, dim)
        _encoder_ffn(names, inside, dim, 1024)
    names.conv(at + "adapter_1", dim, widths[0], 1, 1, norm=model.ENCODER.NORM)
    names.conv(at + "layer_1", dim, dim, 3, 3, norm=model.ENCODER.NORM)
    names.affine(at + "mask_features", model.ENCODER.MASK_DIM, dim, 1, 1)


def _encoder_ffn(names: _Names, at: str, dim: int, hidden: int) -> None:
    names.affine(at + "linear1", hidden, dim)
    names.affine(at + "linear2", dim, hidden)
    names.affine(at + "norm1", dim)
    names.affine(at + "norm2", dim)


def _query_decoder(names: _Names, model: Any) -> None:
    cfg, at, dim = model.DECODER, PREDICTOR, model.DECODER.HIDDEN_DIM
    for name in ("query_feat", "query_embed"):
        names.add(f"{at}{name}.weight", cfg.NUM_OBJECT_QUERIES, dim)
    names.add(at + "level_embed.weight", 3, dim)
    for level in range(3):
        if dim != model.ENCODER.CONVS_DIM or cfg.ENFORCE_INPUT_PROJ:
            names.affine(f"{at}input_proj.{level}", dim, model.ENCODER.CONVS_DIM, 1, 1)
    for layer in range(cfg.DEC_LAYERS - 1):
        for kind, name in (("self", "self_attn"), ("cross", "multihead_attn")):
            names.attention(f"{at}transformer_{kind}_attention_layers.{layer}.{name}", dim)
            names.affine(f"{at}transformer_{kind}_attention_layers.{layer}.norm", dim)
        names.affine(f"{at}transformer_ffn_layers.{layer}.linear1", cfg.DIM_FEEDFORWARD, dim)
        names.affine(f"{at}transformer_ffn_layers.{layer}.linear2", dim, cfg.DIM_FEEDFORWARD)
        names.affine(f"{at}transformer_ffn_layers.{layer}.norm", dim)
    names.affine(at + "decoder_norm", dim)
    names.add(at + "class_embed", dim, model.DIM_PROJ)
    names.mlp(at + "mask_embed", dim, dim, dim, model.ENCODER.MASK_DIM)
    names.mlp(at + "bbox_embed", dim, dim, dim, 4)
    names.add(at + "caping_embed", dim, model.DIM_PROJ)
    names.add(at + "pos_embed_caping.weight", model.TEXT.CONTEXT_LENGTH, dim)
    side = cfg.NUM_OBJECT_QUERIES + model.TEXT.CONTEXT_LENGTH
    names.add(at + "self_attn_mask", 1, side, side, dtype="bool")


def _text_encoder(names: _Names, model: Any) -> None:
    at, width = PREDICTOR + "lang_encoder.", model.TEXT.WIDTH
    names.add(at + "lang_proj", width, model.DIM_PROJ)
    names.add(at + "logit_scale")
    names.add(at + "lang_encoder.positional_embedding", model.TEXT.CONTEXT_LENGTH, width)
    names.add(at + "lang_encoder.token_embedding.weight", 49408, width)
    names.affine(at + "lang_encoder.ln_final", width)
    for layer in range(model.TEXT.LAYERS):
        block = f"{at}lang_encoder.resblocks.{layer}."
        names.attention(block + "attn", width)
        names.affine(block + "ln_1", width)
        names.affine(block + "ln_2", width)
        names.affine(block + "mlp.c_fc", 4 * width, width)
        names.affine(block + "mlp.c_proj", width, 4 * width)


def _captioner(names: _Names, cfg: Any) -> None:
    at, dim = CAPTIONER + "textual.", cfg.HIDDEN_SIZE
    names.affine(at + "object_feature_projection.0", dim, cfg.OBJECT_FEATURE_SIZE)
    names.affine(at + "object_feature_projection.1", dim)
    names.add(at + "embedding.words.weight", cfg.VOCAB_SIZE, dim)
    names.add(at + "embedding.positions.weight", 1024, dim)
    names.affine(at + "embedding.layer_norm", dim)
    for layer in range(cfg.NUM_LAYERS):
        inside = f"{at}transformer.encoder.layer.{layer}."
        for name in ("query", "key", "value"):
            names.affine(f"{inside}attention.self.{name}", dim, dim)
        names.affine(inside + "attention.output.dense", dim, dim)
        names.affine(inside + "attention.output.LayerNorm", dim)
        names.affine(inside + "intermediate.dense", cfg.FEEDFORWARD_SIZE, dim)
        names.affine(inside + "output.dense", dim, cfg.FEEDFORWARD_SIZE)
        names.affine(inside + "output.LayerNorm", dim)
    names.affine(at + "output", cfg.VOCAB_SIZE, dim)


def numbered(names: Names) -> list[str]:
    """Return the names that the weight formula numbers, in its order."""
    return sorted(name for name, (_, dtype) in names.items() if dtype == "float32" and name != INERT[-1])


def original_file(names: Names) -> dict[str, Tensor]:
    """Return a whole file of the original with the formula's weights."""
    tensors = {name: formula(name, number, names[name][0]) for number, name in enumerate(numbered(names))}
    tensors[CAPTIONER + "textual.output.weight"] = tensors[CAPTIONER + "textual.embedding.words.weight"]
    num_words = names[PREDICTOR + "pos_embed_caping.weight"][0][0]
    tensors[INERT[2]] = self_attention_mask(names[INERT[2]][0][1] - num_words, num_words)
    tensors[INERT[3]] = torch.ones(names[INERT[3]][0])
    tensors[INERT[3]][-1] = 0.1
    return tensors


def formula(name: str, number: int, shape: tuple[int, ...]) -> Tensor:
    """Return the weights that the measured numbers belong to: 0.05 sin(0.37 i + number), norms around 1."""
    size = int(np.prod(shape)) if shape else 1
    values = (0.05 * np.sin(0.37 * np.arange(size, dtype=np.float64) + number)).astype(np.float32)
    norm = any(part in name for part in ("norm", "ln_", "LayerNorm", "object_feature_projection.1"))
    if len(shape) == 1 and name.endswith("weight") and norm:
        values = (1 + values).astype(np.float32)
    last = name.rsplit(".", 1)[-1]
    if last.startswith("gamma_") or last == "logit_scale":
        values[:] = 0.5 if last.startswith("gamma_") else 2.0
    return torch.from_numpy(values).reshape(shape)


def self_attention_mask(num_queries: int, num_words: int) -> Tensor:
    """Return X-Decoder's mask row by row, True = blocked."""
    last, side = num_queries - 1, num_queries + num_words

    def blocked(row: int, column: int) -> bool:
        if row < num_queries:  # queries: no caption words; objects and the class query do not see each other
            return column >= num_queries or (row == last) != (column == last)
        return column > row  # caption words: every query, and the words before them

    return torch.tensor([[[blocked(row, column) for column in range(side)] for row in range(side)]])


def xdecoder_file(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return what X-Decoder's file has of a Pix2Cap: 930 tensors of the published 1043, and a projection of its own."""
    kept = {name: tensor for name, tensor in tensors.items() if not name.startswith(NOT_IN_XDECODER)}
    return kept | {"backbone_proj": torch.zeros(8, 4)}


def grit_file(tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Return what GRiT's file has of a Pix2Cap, the captioner, beside a detector and the state of its training."""
    captioner = {
        "roi_heads." + name.removeprefix(PREDICTOR): tensor
        for name, tensor in tensors.items()
        if name.startswith(CAPTIONER)
    }
    detector = (
        "backbone.net.pos_embed",
        "proposal_generator.centernet_head.scales.0.scale",
        "roi_heads.box_head.0.fc1",
    )
    return {"model": {**captioner, **{name: torch.zeros(2) for name in detector}}, "iteration": 180000}


def image(height: int, width: int) -> Tensor:
    """Return the measured image, float32 (3, height, width) in 0-255."""
    values = 127.5 + 100 * np.sin(0.013 * np.arange(3 * height * width, dtype=np.float64))
    return torch.from_numpy(values.astype(np.float32)).reshape(3, height, width)


def waves(frequency: float, *shape: int) -> Tensor:
    """Return sin(frequency * i), i the flat index."""
    return torch.from_numpy(np.sin(frequency * np.arange(int(np.prod(shape)), dtype=np.float64))).float().view(shape)
