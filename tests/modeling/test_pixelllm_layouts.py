"""PixelLLM from weights of other code bases: the published Flax parameters and SAM's."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from locap.modeling.backbones import sam_vit
from locap.modeling.build_pixelllm import STARTS_FRESH, build_language_tokenizer, build_pixelllm
from locap.modeling.checkpoints.adapter import to_ours
from locap.modeling.checkpoints.flax import channels_first, transpose_kernel
from locap.modeling.checkpoints.loader import load_weights
from locap.modeling.llm.lora import Lora
from locap.modeling.llm.t5 import T5LanguageModel
from locap.modeling.pixelllm import PixelLLM
from locap.modeling.pixelllm_layouts import PIXELLLM_LAYOUTS
from locap.modeling.schemas import MODEL_SCHEMAS
from locap.modeling.systems import export_weights
from locap.utils.config import load_config
from locap.utils.errors import CheckpointError, UsageError

TINY = {
    "MODEL.NAME": "pixelllm_model",
    "COCO.INPUT.IMAGE_SIZE": 56,
    **{f"MODEL.BACKBONE.{name}": value for name, value in (("DIM", 32), ("DEPTH", 2), ("HEADS", 2))},
    "MODEL.SAM.SIZE": "base",
    **{f"MODEL.PROMPT_FEATURES.{name}": 16 for name in ("DIM", "OUTPUT_DIM", "FFN_DIM")},
    **{f"MODEL.PROMPT_FEATURES.{name}": 2 for name in ("QUERIES", "DEPTH", "HEADS")},
    "MODEL.TEXT_DECODER.TOKENIZER": "shapes",
    "MODEL.TEXT_DECODER.VOCAB_SIZE": 143,
    **{f"MODEL.TEXT_DECODER.{name}": 16 for name in ("HIDDEN_SIZE", "FEEDFORWARD_SIZE")},
    **{f"MODEL.TEXT_DECODER.{name}": 2 for name in ("NUM_LAYERS", "ATTENTION_HEADS")},
    **{f"MODEL.DETECTOR.{name}": 8 for name in ("DIM", "DECONV_DIM", "HIDDEN_DIM")},
    "MODEL.DETECTOR.POOLED": 3,
    **{f"MODEL.MASK_HEAD.{name}": 8 for name in ("FFN_DIM", "QUALITY_DIM")},
    "MODEL.PLACES.DIM": 8,
}


@pytest.fixture
def make(monkeypatch):
    """Return a function: overrides -> a tiny PixelLLM, its weights random (``shaken``) or as they start."""
    monkeypatch.setitem(sam_vit.SIZES, "base", (24, 4, 2))

    def build(seed: int = 0, shaken: bool = True, **overrides: object) -> PixelLLM:
        pairs = {**TINY, **{name.replace("__", "."): value for name, value in overrides.items()}}
        cfg = load_config([], [str(x) for pair in pairs.items() for x in pair], model_schemas=MODEL_SCHEMAS)
        torch.manual_seed(seed)
        model = build_pixelllm(cfg, [], build_language_tokenizer(cfg))
        if shaken:
            for tensor in model.state_dict().values():
                tensor.copy_(torch.randn(tensor.shape))
        return model

    return build


def untie(model: nn.Module) -> None:
    """Give T5 an output of its own, as FLAN-T5 has; a configuration cannot say so."""
    model.lm_head.weight = nn.Parameter(torch.randn(model.shared.weight.shape))


@pytest.fixture
def t5(tmp_path) -> dict[str, object]:
    """Overrides for a tiny T5 with LoRA."""
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {
        "vocab_size": 143,
        "d_model": 16,
        "d_kv": 4,
        "d_ff": 24,
        "num_layers": 2,
        "num_heads": 3,
        "eos_token_id": 3,
    }
    model = T5ForConditionalGeneration(T5Config(feed_forward_proj="gated-gelu", **sizes))
    untie(model)
    model.save_pretrained(tmp_path / "t5")
    text = {"NAME": "t5", "PRETRAINED": tmp_path / "t5", "LORA.RANK": 3}
    return {f"MODEL.TEXT_DECODER.{name}": value for name, value in text.items()}


# ours -> path of the published tree; what a layer's weight is called there depends on its kind
_T5_BLOCK = r"language\.model\.(encoder|decoder)\.block\.(\d+)\.layer\."
_T5_LETTERS = {"q": "query", "k": "key", "v": "value", "o": "out"}
_PATHS = (
    (r"encoder\.encoders\.main\.encoder\.body\.fc_norm", "git_backbone/ln_post"),
    (r"encoder\.encoders\.main\.encoder\.body\.(patch_embed\.proj|cls_token|pos_embed)", r"git_backbone/\1"),
    (r"encoder\.encoders\.main\.encoder\.body\.(blocks\.\d+)\.(norm\d)", r"git_backbone/\1/\2"),
    (r"encoder\.encoders\.main\.encoder\.body\.(blocks\.\d+)\.attn\.(\w+)", r"git_backbone/\1/attn/\2"),
    (r"encoder\.encoders\.main\.encoder\.body\.(blocks\.\d+)\.mlp\.fc1_g", r"git_backbone/\1/mlp/w1"),
    (r"encoder\.encoders\.main\.encoder\.body\.(blocks\.\d+)\.mlp\.fc1_x", r"git_backbone/\1/mlp/w2"),
    (r"encoder\.encoders\.main\.encoder\.body\.(blocks\.\d+)\.mlp\.norm", r"git_backbone/\1/mlp/ffn_ln"),
    (r"encoder\.encoders\.main\.encoder\.body\.(blocks\.\d+)\.mlp\.fc2", r"git_backbone/\1/mlp/w3"),
    (r"encoder\.encoders\.sam\.encoder\.(patch_embed\.proj|pos_embed)", r"sam_backbone/\1"),
    (r"encoder\.encoders\.sam\.encoder\.(blocks\.\d+)\.(norm\d)", r"sam_backbone/\1/\2"),
    (r"encoder\.encoders\.sam\.encoder\.(blocks\.\d+)\.attn\.(\w+)", r"sam_backbone/\1/attn/\2"),
    (r"encoder\.encoders\.sam\.encoder\.(blocks\.\d+)\.mlp\.fc(\d)", r"sam_backbone/\1/mlp/lin\2"),
    (r"encoder\.encoders\.sam\.encoder\.neck\.(\d)", r"sam_backbone/neck/\1"),
    (r"location_prompts\.frequencies", "prompt_encoder/pe_layer/positional_encoding_gaussian_matrix"),
    (r"location_prompts\.point_embed\.(\d)", r"prompt_encoder/point_embeddings.\1"),
    (r"location_prompts\.(not_a_point|no_mask)", r"prompt_encoder/\1_embed"),
    (r"prompt_features\.queries", "prompt_adapter/output_tokens"),
    (r"prompt_features\.image_proj", "prompt_adapter/image_projection_mlp/layers.0"),
    (r"prompt_features\.prompt_proj", "prompt_adapter/prompt_embedding_projection_mlp/layers.0"),
    (r"prompt_features\.position_proj", "prompt_adapter/image_pe_projection_mlp/layers.0"),
    (r"prompt_features\.outputs\.(\d+)", r"prompt_adapter/output_hypernetworks_mlps.\1/layers.0"),
    (r"prompt_features\.transformer\.(.*)", r"prompt_adapter/transformer/\1"),
    (r"masks\.transformer\.(.*)", r"mask_decoder/transformer/\1"),
    (r"masks\.(iou_token|mask_tokens)", r"mask_decoder/\1"),
    (r"masks\.upscale1", "mask_decoder/output_upscaling/0"),
    (r"masks\.upscale_norm", "mask_decoder/output_upscaling/1"),
    (r"masks\.upscale2", "mask_decoder/output_upscaling/3"),
    (r"masks\.mask_mlps\.(\d)\.(layers\.\d)", r"mask_decoder/output_hypernetworks_mlps.\1/\2"),
    (r"masks\.quality\.(layers\.\d)", r"mask_decoder/iou_prediction_head/\1"),
    (r"mask_adapter\.output_tokens", "mask_adapter/output_tokens.weight"),
    (r"mask_adapter\.gate", "mask_adapter/alpha_output.weight"),
    (r"mask_adapter\.(visual|textual)\.0", r"mask_adapter/\1_projection_mlp/LayerNorm_0"),
    (r"mask_adapter\.(visual|textual)\.1", r"mask_adapter/\1_projection_mlp/layers.0"),
    (r"mask_adapter\.transformer\.(.*)", r"mask_adapter/transformer/\1"),
    (r"places\.norm", "point_predictor/LayerNorm_0"),
    (r"places\.mlp\.(layers\.\d)", r"point_predictor/mlp/\1"),
    (r"language\.decoder\.region_proj\.(\d)", r"textual/visual_projection.\1"),
    (r"language\.decoder\.(words|positions)", r"textual/embedding/\1"),
    (r"language\.decoder\.embedding_norm", "textual/embedding/layer_norm"),
    (r"language\.decoder\.output", "textual/output"),
    (
        r"language\.decoder\.layers\.(\d)\.attention\.(query|key|value)",
        r"textual/transformer/encoder/layer.\1/attention/self/\2",
    ),
    (
        r"language\.decoder\.layers\.(\d)\.attention\.dense",
        r"textual/transformer/encoder/layer.\1/attention/output/dense",
    ),
    (
        r"language\.decoder\.layers\.(\d)\.attention\.norm",
        r"textual/transformer/encoder/layer.\1/attention/output/LayerNorm",
    ),
    (r"language\.decoder\.layers\.(\d)\.intermediate", r"textual/transformer/encoder/layer.\1/intermediate/dense"),
    (r"language\.decoder\.layers\.(\d)\.output", r"textual/transformer/encoder/layer.\1/output/dense"),
    (r"language\.decoder\.layers\.(\d)\.norm", r"textual/transformer/encoder/layer.\1/output/LayerNorm"),
    (r"language\.visual_proj\.(\d)", r"visual_project_layers/visual_projection.\1"),
    (r"language\.model\.shared", "textual/t5_module/token_embedder"),
    (r"language\.model\.lm_head", "textual/t5_module/decoder/logits_dense"),
    (r"language\.model\.(encoder|decoder)\.final_layer_norm", r"textual/t5_module/\1/\1_norm"),
    (_T5_BLOCK + r"0\.SelfAttention\.relative_attention_bias", r"textual/t5_module/\1/relpos_bias/rel_embedding"),
    (
        r"language\.model\.encoder\.block\.(\d+)\.layer\.0\.SelfAttention",
        r"textual/t5_module/encoder/layers_\1/attention",
    ),
    (
        r"language\.model\.decoder\.block\.(\d+)\.layer\.0\.SelfAttention",
        r"textual/t5_module/decoder/layers_\1/self_attention",
    ),
    (_T5_BLOCK + r"1\.EncDecAttention", r"textual/t5_module/\1/layers_\2/encoder_decoder_attention"),
    (_T5_BLOCK + r"\d\.DenseReluDense", r"textual/t5_module/\1/layers_\2/mlp"),
    (
        r"language\.model\.encoder\.block\.(\d+)\.layer\.0\.layer_norm",
        r"textual/t5_module/encoder/layers_\1/pre_attention_layer_norm",
    ),
    (
        r"language\.model\.encoder\.block\.(\d+)\.layer\.1\.layer_norm",
        r"textual/t5_module/encoder/layers_\1/pre_mlp_layer_norm",
    ),
    (
        r"language\.model\.decoder\.block\.(\d+)\.layer\.0\.layer_norm",
        r"textual/t5_module/decoder/layers_\1/pre_self_attention_layer_norm",
    ),
    (
        r"language\.model\.decoder\.block\.(\d+)\.layer\.1\.layer_norm",
        r"textual/t5_module/decoder/layers_\1/pre_cross_attention_layer_norm",
    ),
    (
        r"language\.model\.decoder\.block\.(\d+)\.layer\.2\.layer_norm",
        r"textual/t5_module/decoder/layers_\1/pre_mlp_layer_norm",
    ),
    (r"detector\.pyramid\.upsample", "box_decoder/fpn/simfp_3.0"),
    (r"detector\.pyramid\.p3\.0(\.norm)?", r"box_decoder/fpn/simfp_3.1\1"),
    (r"detector\.pyramid\.p3\.1(\.norm)?", r"box_decoder/fpn/simfp_3.2\1"),
    (r"detector\.pyramid\.p4\.([01])(\.norm)?", r"box_decoder/fpn/simfp_4.\1\2"),
    (r"detector\.pyramid\.p5\.0(\.norm)?", r"box_decoder/fpn/simfp_5.1\1"),
    (r"detector\.pyramid\.p5\.1(\.norm)?", r"box_decoder/fpn/simfp_5.2\1"),
    (r"detector\.pyramid\.(p6|p7)", r"box_decoder/fpn/top_block/\1"),
    *((rf"detector\.proposals\.tower\.{k}", f"box_decoder/proposal_generator/bbox_tower/{3 * k}") for k in range(4)),
    *(
        (rf"detector\.proposals\.tower\.{k}\.norm", f"box_decoder/proposal_generator/bbox_tower/{3 * k + 1}")
        for k in range(4)
    ),
    (r"detector\.proposals\.reach", "box_decoder/proposal_generator/bbox_pred"),
    (r"detector\.proposals\.heat", "box_decoder/proposal_generator/agn_hm"),
    (r"detector\.proposals\.scales", "box_decoder/proposal_generator/scales"),
    (r"detector\.rois\.(fc1|fc2)", r"box_decoder/roi_heads/box_head.0/\1"),
    (r"detector\.rois\.deltas", "box_decoder/roi_heads/box_head.0/bbox_pred"),
    (r"detector\.rois\.logits", "box_decoder/roi_heads/box_head.0/cls_score"),
)
_TWO_WAY = (
    (r"token_to_image", "cross_attn_token_to_image"),
    (r"image_to_token", "cross_attn_image_to_token"),
    (r"final_attn", "final_attn_token_to_image"),
    (r"norm_final", "norm_final_attn"),
    (r"mlp\.layers\.0", "mlp.lin1"),
    (r"mlp\.layers\.1", "mlp.lin2"),
)
_LITERAL = re.compile(r"prompt_encoder/.*_embed|.*/point_embeddings\.\d|.*_tokens?$")  # parameters called "x.weight"


def path_of(name: str) -> str:
    """Return the path of one of our modules, or of a parameter outside of any layer."""
    for pattern, template in _PATHS:
        if match := re.fullmatch(pattern, name):
            path = match.expand(template)
            head, found, rest = path.partition("/transformer/")
            if not found or head == "textual":
                return path
            for ours, theirs in _TWO_WAY:
                rest = re.sub(rf"(^|(?<=\.)){ours}(?=\.|$)", theirs, rest)
            layer = re.match(r"(layers\.\d+)\.(.*)", rest)
            rest = f"{layer[1]}/{layer[2].replace('.', '/')}" if layer else rest.replace(".", "/")
            return f"{head}/transformer/{rest}"
    raise AssertionError(f"the published tree has no place for {name}")


def flax_tree(model: nn.Module) -> dict[str, Tensor]:
    """Turn a system into the published tree, tied tensors once."""
    tree, seen = {}, set()
    modules = dict(model.named_modules())
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        tensor, (parent, _, leaf) = tensor.detach(), name.rpartition(".")
        if lora := re.search(r"\.([qv])\.(base_layer|lora_A|lora_B)", name):
            path = f"{path_of(name[: lora.start()])}/{_T5_LETTERS[lora[1]]}"
            kinds = {"base_layer": "kernel", "lora_A": "kernel_left_lora", "lora_B": "kernel_right_lora"}
            tree[f"{path}/{kinds[lora[2]]}"] = tensor.T
        elif dense := re.fullmatch(_T5_BLOCK + r"\d\.\w+\.([qkvo]|wi_0|wi_1|wo)", parent):
            tree[f"{path_of(parent.rpartition('.')[0])}/{_T5_LETTERS.get(dense[3], dense[3])}/kernel"] = tensor.T
        elif leaf not in ("weight", "bias"):
            path = path_of(name)
            if path.endswith("scales"):
                tree |= {f"{path}.{level}/scale": number[None] for level, number in enumerate(tensor)}
            else:
                tree[path] = tensor
        else:
            tree |= _layer(path_of(parent), modules[parent], leaf, tensor)
    return tree


def _layer(path: str, module: nn.Module, leaf: str, tensor: Tensor) -> dict[str, Tensor]:
    if path.endswith("rel_embedding"):
        return {path: tensor.T}
    if leaf == "bias":
        eva = re.fullmatch(r"(git_backbone/.*/attn)/([qv])_proj", path)
        return {f"{eva[1]}/{eva[2]}_bias" if eva else f"{path}/bias": tensor}
    if isinstance(module, nn.Embedding):
        return {f"{path}.weight" if _LITERAL.fullmatch(path) else f"{path}/embedding": tensor}
    if isinstance(module, nn.ConvTranspose2d) and path.startswith("box_decoder"):
        return {f"{path}/kernel": tensor.flip(2, 3).permute(2, 3, 0, 1)}
    if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
        return {f"{path}/kernel": tensor.permute(2, 3, 1, 0)}
    if path.endswith("box_head.0/fc1"):
        channels = {72: 8, 12544: 256}[tensor.shape[1]]
        channels_last = tensor.unflatten(1, (channels, -1)).transpose(1, 2)
        return {f"{path}/kernel": channels_last.flatten(1).T}
    if isinstance(module, nn.Linear):
        return {f"{path}/kernel": tensor.T}
    return {f"{path}/scale": tensor}


def save(path: Path, tree: dict[str, Tensor], prefix: str = "") -> Path:
    np.savez(path, **{prefix + name: tensor.numpy() for name, tensor in tree.items()})
    return path


def assert_same(found: nn.Module, wanted: nn.Module) -> None:
    theirs = wanted.state_dict()
    for name, tensor in found.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("prefix", ["", "params/", "optimizer/target/params/"])
def test_bert(make, tmp_path: Path, prefix: str):
    wanted, found = make(1), make(2)
    tree = flax_tree(wanted)
    inert = {
        "prompt_adapter/dense_output_mlp/layers.0/kernel": torch.zeros(16, 16),
        "prompt_encoder/mask_downscaling/1/scale": torch.zeros(4),
    }
    report = load_weights(found, save(tmp_path / "w.npz", {**tree, **inert}, prefix))
    assert_same(found, wanted)
    assert (report.missing, report.unexpected, len(report.inert)) == ([], [], 2)
    assert report.layout == "published PixelLLM (Flax)"


@pytest.mark.parametrize("rank", [0, 3])
def test_t5_in_safetensors_with_dots(make, t5, tmp_path: Path, rank: int):
    from safetensors.torch import save_file

    t5["MODEL.TEXT_DECODER.LORA.RANK"] = rank
    wanted, found = make(1, **t5), make(2, **t5)
    tree = {path.replace("/", "."): tensor.contiguous() for path, tensor in flax_tree(wanted).items()}
    assert any("kernel_left_lora" in path for path in tree) == bool(rank)
    assert any("logits_dense" in path for path in tree)
    save_file(tree, tmp_path / "w.safetensors")
    assert not load_weights(found, tmp_path / "w.safetensors").missing
    assert_same(found, wanted)


_PUBLISHED = {
    "git_backbone/patch_embed.proj/kernel": (14, 14, 3, 1024),
    "git_backbone/pos_embed": (1, 257, 1024),
    "git_backbone/blocks.23/attn/v_bias": (1024,),
    "git_backbone/blocks.0/mlp/w1/kernel": (1024, 2730),
    "git_backbone/blocks.0/mlp/w3/kernel": (2730, 1024),
    "sam_backbone/pos_embed": (1, 64, 64, 1280),
    "sam_backbone/blocks.31/attn/qkv/kernel": (1280, 3840),
    "sam_backbone/blocks.31/attn/rel_pos_h": (127, 80),
    "sam_backbone/blocks.30/attn/rel_pos_w": (27, 80),
    "sam_backbone/neck/0/kernel": (1, 1, 1280, 256),
    "sam_backbone/neck/2/kernel": (3, 3, 256, 256),
    "prompt_encoder/pe_layer/positional_encoding_gaussian_matrix": (2, 128),
    "prompt_encoder/point_embeddings.3.weight": (1, 256),
    "prompt_encoder/no_mask_embed.weight": (1, 256),
    "prompt_adapter/output_tokens.weight": (32, 512),
    "prompt_adapter/image_projection_mlp/layers.0/kernel": (1280, 512),
    "prompt_adapter/image_pe_projection_mlp/layers.0/kernel": (256, 512),
    "prompt_adapter/output_hypernetworks_mlps.31/layers.0/kernel": (512, 1024),
    "prompt_adapter/transformer/layers.5/cross_attn_token_to_image/q_proj/kernel": (512, 256),
    "prompt_adapter/transformer/layers.5/mlp/lin1/kernel": (512, 2048),
    "textual/visual_projection.0/kernel": (1024, 768),
    "textual/embedding/positions/embedding": (1024, 768),
    "textual/output/kernel": (768, 143),  # the drawn world's words
    "point_predictor/mlp/layers.3/kernel": (512, 8),
    "box_decoder/fpn/simfp_3.0/kernel": (2, 2, 1280, 384),
    "box_decoder/fpn/simfp_3.1/kernel": (1, 1, 384, 256),
    "box_decoder/fpn/simfp_5.1/kernel": (1, 1, 1280, 256),
    "box_decoder/proposal_generator/bbox_tower/9/kernel": (3, 3, 256, 256),
    "box_decoder/proposal_generator/bbox_tower/10/scale": (256,),
    "box_decoder/proposal_generator/scales.4/scale": (1,),
    "box_decoder/roi_heads/box_head.0/fc1/kernel": (12544, 1024),
    "box_decoder/roi_heads/box_head.0/cls_score/kernel": (1024, 2),
    "mask_decoder/mask_tokens.weight": (4, 256),
    "mask_decoder/output_upscaling/0/kernel": (2, 2, 64, 256),
    "mask_decoder/output_hypernetworks_mlps.3/layers.2/kernel": (256, 32),
    "mask_adapter/alpha_output.weight": (2, 256),
    "mask_adapter/textual_projection_mlp/layers.0/kernel": (768, 256),
}


def assert_all_placed(tree: dict[str, Tensor], model: nn.Module) -> None:
    """Every tensor of the model, tied ones once, comes out of the tree in its shape."""
    own = model.state_dict(keep_vars=True)
    placed = to_ours(tree, PIXELLLM_LAYOUTS, own.__contains__).tensors
    found = {id(own[name]): (name, tensor.shape) for name, tensor in placed.items() if name in own}
    assert found.keys() == {id(tensor) for tensor in own.values()}
    assert all(own[name].shape == shape for name, shape in found.values())


def test_the_published_size():
    settings = ["MODEL.NAME", "pixelllm_model", "MODEL.TEXT_DECODER.TOKENIZER", "shapes"]
    cfg = load_config([], [*settings, "MODEL.TEXT_DECODER.VOCAB_SIZE", "143"], model_schemas=MODEL_SCHEMAS)
    with torch.device("meta"):
        model = build_pixelllm(cfg, [], build_language_tokenizer(cfg))
    tree = flax_tree(model)
    assert {name: tuple(tree[name].shape) for name in _PUBLISHED} == _PUBLISHED
    assert_all_placed(tree, model)


_PUBLISHED_T5 = {
    "textual/t5_module/token_embedder/embedding": (32128, 2048),
    "textual/t5_module/encoder/relpos_bias/rel_embedding": (32, 32),
    "textual/t5_module/decoder/relpos_bias/rel_embedding": (32, 32),
    "textual/t5_module/encoder/layers_23/attention/query/kernel": (2048, 2048),
    "textual/t5_module/encoder/layers_23/attention/query/kernel_left_lora": (2048, 32),
    "textual/t5_module/decoder/layers_23/encoder_decoder_attention/value/kernel_right_lora": (32, 2048),
    "textual/t5_module/decoder/layers_23/mlp/wi_1/kernel": (2048, 5120),
    "textual/t5_module/decoder/layers_23/mlp/wo/kernel": (5120, 2048),
    "textual/t5_module/decoder/layers_0/pre_cross_attention_layer_norm/scale": (2048,),
    "textual/t5_module/decoder/logits_dense/kernel": (2048, 32128),
    "visual_project_layers/visual_projection.0/kernel": (1024, 2048),
}


def test_the_published_size_of_t5():
    from transformers import T5Config, T5ForConditionalGeneration

    sizes = {"d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24, "num_heads": 32, "eos_token_id": 3}
    config = T5Config(vocab_size=32128, feed_forward_proj="gated-gelu", **sizes)
    with torch.device("meta"):
        model = T5ForConditionalGeneration(config)
        untie(model)
        language = T5LanguageModel(model, visual_dim=1024, lora=Lora(32, 64.0, ("q", "v")))
    model = nn.ModuleDict({"language": language})
    tree = flax_tree(model)
    assert {name: tuple(tree[name].shape) for name in _PUBLISHED_T5} == _PUBLISHED_T5
    tree["git_backbone/cls_token"] = torch.empty(0)  # tells the layout
    assert_all_placed(tree, model)
    adapted = [tensor.numel() for name, tensor in tree.items() if name.endswith("_lora")]
    assert (len(adapted), sum(adapted)) == (2 * 144, 18_874_368)


def test_values_mean_the_same_in_both():
    generator = torch.Generator().manual_seed(0)
    maps, kernel = torch.randn(3, 4, 5, generator=generator), torch.randn(2, 2, 5, 6, generator=generator)  # h w C
    dilated = torch.zeros(8, 10, 5)[: 2 * 3 + 1, : 2 * 4 + 1].clone()
    dilated[1::2, 1::2] = maps
    wanted = torch.stack(
        [
            torch.stack(
                [torch.einsum("abc,abcd->d", dilated[y : y + 2, x : x + 2], kernel) for x in range(8)],
            )
            for y in range(6)
        ]
    )
    weight = transpose_kernel(kernel).permute(3, 2, 0, 1)
    found = nn.functional.conv_transpose2d(maps.permute(2, 0, 1)[None], weight, stride=2)[0].permute(1, 2, 0)
    torch.testing.assert_close(found, wanted)
    square, dense = maps[:, :3], torch.randn(45, 7, generator=generator)
    first = square.permute(2, 0, 1).flatten() @ channels_first(dense, 5)
    torch.testing.assert_close(first, square.flatten() @ dense)


def test_a_stage_of_training_may_add_parts_and_evaluation_may_not(make, tmp_path: Path):
    path = save(tmp_path / "w.npz", flax_tree(make(1, MODEL__MASKS="false", MODEL__DETECTOR__ENABLED="false")))
    model = make(2)
    with pytest.raises(CheckpointError, match="do not fit") as caught:
        load_weights(model, path)
    for part in ("detector.pyramid (", "masks.transformer (", "mask_adapter.transformer ("):
        assert part in caught.value.value
    report = load_weights(model, path, allow_missing=STARTS_FRESH, partial=True)
    assert {name.split(".")[0] for name in report.missing} == {"detector", "masks", "mask_adapter"}
    tree = {name: tensor for name, tensor in flax_tree(make(1)).items() if not name.startswith("sam_backbone/")}
    with pytest.raises(CheckpointError, match="do not fit"):  # a published file has it
        load_weights(model, save(tmp_path / "w.npz", tree), allow_missing=STARTS_FRESH, partial=True)


def test_a_layer_without_what_tells_its_order_is_refused(make, tmp_path: Path):
    tree = flax_tree(make(1))
    del tree["box_decoder/proposal_generator/agn_hm/kernel"]
    with pytest.raises(CheckpointError, match="cannot be told"):
        load_weights(make(2), save(tmp_path / "w.npz", tree), allow_missing=STARTS_FRESH)


def test_sams_own_release(make, tmp_path: Path):
    wanted, model = make(1), make(2)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    names = {
        "encoder.encoders.sam.encoder.": "image_encoder.",
        "location_prompts.": "prompt_encoder.",
        "masks.": "mask_decoder.",
    }
    content = {}
    for name, tensor in wanted.state_dict().items():
        if part := next((part for part in names if name.startswith(part)), None):
            path = path_of(name.removesuffix(".weight").removesuffix(".bias"))
            leaf = name.rpartition(".")[2]
            theirs = ".".join([names[part].rstrip("."), *path.replace("/", ".").split(".")[1:]])
            content[f"{theirs}.{leaf}" if leaf in ("weight", "bias") else theirs] = tensor
    content["prompt_encoder.mask_downscaling.3.weight"] = torch.zeros(2)
    torch.save(content, tmp_path / "sam.pth")
    report = load_weights(model, tmp_path / "sam.pth", allow_missing=STARTS_FRESH, partial=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, (wanted.state_dict() if name.startswith(tuple(names)) else before)[name]), name
    assert report.layout == "SAM (segment-anything)"
    with pytest.raises(CheckpointError, match="do not fit") as caught:
        load_weights(model, tmp_path / "sam.pth")
    assert "language.decoder (" in caught.value.value
    assert "SAM's weights alone" in caught.value.fix
    without = make(2, MODEL__MASKS="false")
    report = load_weights(without, tmp_path / "sam.pth", partial=True)
    assert report.ignored
    assert all(name.startswith("masks.") for name in report.ignored)


def test_sam_of_transformers(make, tmp_path: Path, monkeypatch):
    """Encoder, prompts and mask decoder compute the same."""
    from transformers import SamConfig, SamModel

    torch.manual_seed(0)
    vision = {"hidden_size": 24, "num_hidden_layers": 4, "num_attention_heads": 2, "global_attn_indexes": [0, 1, 2, 3]}
    config = SamConfig(
        vision_config={**vision, "mlp_dim": 96, "image_size": 1024},
        mask_decoder_config={"mlp_dim": 8, "iou_head_hidden_dim": 8, "layer_norm_eps": 1e-5},
    )
    theirs = SamModel(config).eval()
    with torch.no_grad():
        for tensor in theirs.parameters():
            tensor.normal_(0, 0.2)
    theirs.save_pretrained(tmp_path)
    ours = make(COCO__INPUT__IMAGE_SIZE=1024).eval()
    report = load_weights(ours, tmp_path, allow_missing=STARTS_FRESH, partial=True)
    assert report.layout == "SAM (transformers' SamModel)"
    started = make(MODEL__SAM__PRETRAINED=tmp_path, shaken=False)
    for part in ("encoder.encoders.sam", "location_prompts", "masks"):
        assert_same(started.get_submodule(part), ours.get_submodule(part))
    monkeypatch.setitem(sam_vit.SIZES, "base", (24, 5, 2))
    with pytest.raises(CheckpointError, match="do not fit") as caught:
        make(MODEL__SAM__PRETRAINED=tmp_path)
    assert "MODEL.SAM.SIZE" in caught.value.fix
    image = torch.randn(1, 3, 1024, 1024)
    with torch.no_grad():
        seen = theirs.get_image_embeddings(image)
        torch.testing.assert_close(ours.encoder.encoders["sam"].encoder(image), seen, atol=1e-4, rtol=1e-4)
        box = torch.tensor([[100.0, 200.0, 500.0, 900.0]])
        wanted = theirs(image_embeddings=seen, input_boxes=box[None], multimask_output=False)
        prompts = ours.location_prompts
        corners = prompts(box.unflatten(1, (2, 2)), torch.tensor([[2, 3]]), canvas=(1024, 1024)).tokens[:, :2]
        found = ours.masks(seen, prompts.grid(64, 64), corners, counts=[1], dense_prompt=prompts.no_mask.weight)
    torch.testing.assert_close(found.logits, wanted.pred_masks[0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(found.quality, wanted.iou_scores[0], atol=1e-3, rtol=1e-3)


def test_there_is_no_way_back(tmp_path: Path):
    cfg = load_config([], ["MODEL.NAME", "pixelllm_model"], model_schemas=MODEL_SCHEMAS)
    with pytest.raises(UsageError, match="not written in this layout"):
        export_weights(cfg, tmp_path / "w.pt")
