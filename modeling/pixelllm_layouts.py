"""Where PixelLLM's weights lie in files of other code bases.

The published code's own parameters (Flax; `checkpoints.flax` tells how to write a file of them), and SAM's, from which
training starts: its own release or transformers' ``SamModel``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from ..utils.errors import CheckpointError
from .backbones import eva, sam_encoder
from .checkpoints.flax import channels_first, from_flax, transpose_kernel
from .checkpoints.key_table import KeyTable, Layout, Row
from .heads import sam_masks
from .region_encoders import location_prompts, prompt_features

_MAIN, _SAM = "encoder.encoders.main.encoder.", "encoder.encoders.sam.encoder."
_MASK_INPUT = (0, 1, 3, 4, 6)  # layers that encode a mask given as prompt, which nothing here does


def _below(theirs: str, ours: str, rows: Iterable[Row]) -> tuple[Row, ...]:
    return tuple((theirs + a, ours + b) for a, b in rows)


def _modules(theirs: str, ours: str, names: Mapping[str, str]) -> tuple[Row, ...]:
    """Return the rows of layers with weight and bias."""
    return tuple((f"{theirs}{a}.*", f"{ours}{b}.*") for a, b in names.items())


_PROMPTS_AND_MASKS: tuple[Row, ...] = (
    *_below("prompt_encoder.", "location_prompts.", location_prompts.ORIGINAL_NAMES),
    *_below("mask_decoder.", "masks.", sam_masks.ORIGINAL_NAMES),
)
_MASK_DOWNSCALING = tuple(
    f"prompt_encoder.mask_downscaling.{index}.{kind}" for index in _MASK_INPUT for kind in ("weight", "bias")
)

_BERT_LAYER = {
    **{f"attention.self.{name}": f"attention.{name}" for name in ("query", "key", "value")},
    "attention.output.dense": "attention.dense",
    "attention.output.LayerNorm": "attention.norm",
    "intermediate.dense": "intermediate",
    "output.dense": "output",
    "output.LayerNorm": "norm",
}
_BERT: tuple[Row, ...] = (
    *_modules("textual.", "language.decoder.", {"visual_projection.{}": "region_proj.{}"}),
    ("textual.embedding.words.weight", "language.decoder.words.weight"),
    ("textual.embedding.positions.weight", "language.decoder.positions.weight"),
    *_modules("textual.", "language.decoder.", {"embedding.layer_norm": "embedding_norm", "output": "output"}),
    *_modules("textual.transformer.encoder.layer.{}.", "language.decoder.layers.{}.", _BERT_LAYER),
)


def _t5_linear(theirs: str, ours: str, names: Mapping[str, str]) -> tuple[Row, ...]:
    """Return the rows of layers without bias, which LoRA may have wrapped."""
    return tuple(
        (f"{theirs}{a}.{kind}", f"{ours}{b}.{own}")
        for a, b in names.items()
        for kind, own in (
            ("weight", "weight"),
            ("weight", "base_layer.weight"),
            ("kernel_left_lora", "lora_A.default.weight"),
            ("kernel_right_lora", "lora_B.default.weight"),
        )
    )


def _t5_stack(stack: str, attentions: Mapping[str, tuple[str, str]]) -> tuple[Row, ...]:
    """``attentions``: their name of each and of the norm before it -> ours."""
    theirs, ours = f"textual.t5_module.{stack}.", f"language.model.{stack}."
    layer, block = theirs + "layers_{}.", ours + "block.{}.layer."
    rows: list[Row] = [
        (theirs + "relpos_bias.rel_embedding", ours + "block.0.layer.0.SelfAttention.relative_attention_bias.weight"),
        (theirs + f"{stack}_norm.weight", ours + "final_layer_norm.weight"),
    ]
    for index, (attention, (norm, own)) in enumerate(attentions.items()):
        letters = {"query": "q", "key": "k", "value": "v", "out": "o"}
        rows += _t5_linear(f"{layer}{attention}.", f"{block}{index}.{own}.", letters)
        rows.append((f"{layer}{norm}.weight", f"{block}{index}.layer_norm.weight"))
    last = len(attentions)
    mlp = {name: name for name in ("wi_0", "wi_1", "wo")}
    rows += _t5_linear(f"{layer}mlp.", f"{block}{last}.DenseReluDense.", mlp)
    return (*rows, (f"{layer}pre_mlp_layer_norm.weight", f"{block}{last}.layer_norm.weight"))


_T5: tuple[Row, ...] = (
    *_modules("visual_project_layers.", "language.", {"visual_projection.{}": "visual_proj.{}"}),
    ("textual.t5_module.token_embedder.weight", "language.model.shared.weight"),
    ("textual.t5_module.decoder.logits_dense.weight", "language.model.lm_head.weight"),
    *_t5_stack("encoder", {"attention": ("pre_attention_layer_norm", "SelfAttention")}),
    *_t5_stack(
        "decoder",
        {
            "self_attention": ("pre_self_attention_layer_norm", "SelfAttention"),
            "encoder_decoder_attention": ("pre_cross_attention_layer_norm", "EncDecAttention"),
        },
    ),
)

_PYRAMID = {
    "simfp_3.0": "upsample",
    **{
        f"simfp_{level}.{first + index}{norm}": f"p{level}.{index}{norm}"
        for level, first in ((3, 1), (4, 0), (5, 1))  # a layer that resizes comes before some
        for index in (0, 1)
        for norm in ("", ".norm")
    },
    "top_block.p6": "p6",
    "top_block.p7": "p7",
}
_TOWER = {
    f"bbox_tower.{3 * index + part}": f"tower.{index}{norm}"  # their third layer is the ReLU
    for index in range(4)
    for part, norm in enumerate(("", ".norm"))
}
_ROIS = {"fc1": "fc1", "fc2": "fc2", "bbox_pred": "deltas", "cls_score": "logits"}
_DETECTOR: tuple[Row, ...] = (
    *_modules("box_decoder.fpn.", "detector.pyramid.", _PYRAMID),
    ("box_decoder.proposal_generator.scales", "detector.proposals.scales"),
    *_modules(
        "box_decoder.proposal_generator.", "detector.proposals.", {**_TOWER, "bbox_pred": "reach", "agn_hm": "heat"}
    ),
    *_modules("box_decoder.roi_heads.box_head.0.", "detector.rois.", _ROIS),
)


def _from_flax(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """See `Layout.to_torch`: what `from_flax` does, and three tensors of the detector that are laid out otherwise."""
    named = {path.replace("/", "."): tensor for path, tensor in tensors.items()}
    for name, tensor in named.items():
        if name.endswith("box_decoder.fpn.simfp_3.0.kernel") and tensor.ndim == 4:
            named[name] = transpose_kernel(tensor)
        elif name.endswith("box_decoder.roi_heads.box_head.0.fc1.kernel"):
            named[name] = channels_first(tensor, _pyramid_channels(named, len(tensor)))
    found = from_flax(named)
    scales = sorted(name for name in found if ".proposal_generator.scales." in name)  # one number per level
    if scales:
        joined = torch.cat([found.pop(name).flatten() for name in scales])
        found[scales[0].rpartition(".scales.")[0] + ".scales"] = joined
    return found


def _pyramid_channels(named: Mapping[str, Tensor], inputs: int) -> int:
    """Return the channels of the maps that the detector's second stage reads flattened."""
    heat = next((tensor for name, tensor in named.items() if name.endswith("proposal_generator.agn_hm.kernel")), None)
    channels = 0 if heat is None or heat.ndim != 4 else heat.shape[2]
    if not channels or math.isqrt(inputs // channels) ** 2 * channels != inputs:
        raise CheckpointError(
            "The order of the inputs of the detector's second stage cannot be told.",
            where="box_decoder/roi_heads/box_head.0/fc1/kernel",
            value=f"{inputs} inputs",
            allowed="beside it box_decoder/proposal_generator/agn_hm/kernel, (3, 3, channels, 1)",
            fix="write the file with all parameters of box_decoder",
        )
    return channels


FLAX = Layout(
    "published PixelLLM (Flax)",
    ("git_backbone.",),
    KeyTable(
        (
            *_below("git_backbone.", _MAIN, eva.ORIGINAL_NAMES),
            *_below("sam_backbone.", _SAM, sam_encoder.ORIGINAL_NAMES),
            *_PROMPTS_AND_MASKS,
            *_below("prompt_adapter.", "prompt_features.", prompt_features.ORIGINAL_NAMES),
            *_BERT,
            *_T5,
            *_modules("point_predictor.", "places.", {"LayerNorm_0": "norm", "mlp.layers.{}": "mlp.layers.{}"}),
            *_DETECTOR,
            *_below("mask_adapter.", "mask_adapter.", sam_masks.ADAPTER_NAMES),
        )
    ),
    inert=(
        *(f"prompt_adapter.dense_output_mlp.layers.0.{kind}" for kind in ("weight", "bias")),
        *_MASK_DOWNSCALING,
    ),
    to_torch=_from_flax,
)

_SAM_PARTS = ("encoder.encoders.sam.", "location_prompts.", "masks.")
_SAM_ADVICE = {
    "language.": "these are SAM's weights alone, to start training from: MODEL.SAM.PRETRAINED, or WEIGHT true",
    "encoder.encoders.sam.": "MODEL.SAM.SIZE must be that of the file: base, large or huge",
}

SAM_RELEASE = Layout(
    "SAM (segment-anything)",
    ("image_encoder.",),
    KeyTable((*_below("image_encoder.", _SAM, sam_encoder.ORIGINAL_NAMES), *_PROMPTS_AND_MASKS)),
    inert=_MASK_DOWNSCALING,
    advice=_SAM_ADVICE,
    parts=_SAM_PARTS,
)
SAM_TRANSFORMERS = Layout(
    "SAM (transformers' SamModel)",
    ("vision_encoder.",),
    KeyTable(
        (
            *_below("vision_encoder.", _SAM, sam_encoder.TRANSFORMERS_NAMES),
            *_below("", "location_prompts.", location_prompts.TRANSFORMERS_NAMES),
            *_below("mask_decoder.", "masks.", sam_masks.TRANSFORMERS_NAMES),
        )
    ),
    inert=(
        "prompt_encoder.shared_embedding.positional_embedding",  # shared_image_embedding once more
        *(
            f"prompt_encoder.mask_embed.{layer}.{kind}"
            for layer in ("conv1", "layer_norm1", "conv2", "layer_norm2", "conv3")
            for kind in ("weight", "bias")
        ),
    ),
    advice=_SAM_ADVICE,
    parts=_SAM_PARTS,
)
PIXELLLM_LAYOUTS = (FLAX, SAM_RELEASE, SAM_TRANSFORMERS)
