"""The mappers of prompted systems, as MODEL.PROMPTS describes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..datasets.tasks import EVAL_INSTRUCTIONS, INSTRUCTIONS
from ..datasets.transforms.prompt_mapper import PromptEvalMapper, PromptMapper, Tokenizer


def training_mapper(task: str, tokenizer: Tokenizer, cfg: Any) -> PromptMapper:
    """Return the training mapper of a task."""
    own, prompts = cfg.MODEL.PROMPTS[task.upper()], cfg.MODEL.PROMPTS
    return PromptMapper(
        {task: 1.0},
        tokenizer,
        min_scale=own.MIN_SCALE,
        max_scale=own.MAX_SCALE,
        flip=own.FLIP,
        max_prompts=prompts.MAX_PROMPTS,
        box_rate=prompts.BOX_RATE,
        with_masks=cfg.MODEL.MASKS,
        instructions=_instructions(task, cfg, INSTRUCTIONS),
        seed=cfg.SEED,
        **_shared(cfg),
    )


def evaluation_mapper(task: str, tokenizer: Tokenizer, cfg: Any) -> PromptEvalMapper:
    """Return the evaluation mapper of a task; masks are left to those who score them."""
    return PromptEvalMapper(task, tokenizer, instructions=_instructions(task, cfg, EVAL_INSTRUCTIONS), **_shared(cfg))


def _shared(cfg: Any) -> dict[str, Any]:
    prompts = cfg.MODEL.PROMPTS
    return {
        "image_size": cfg.COCO.INPUT.IMAGE_SIZE,
        "max_context": prompts.MAX_CONTEXT,
        "alignment": prompts.ALIGNMENT,
        "published": prompts.PUBLISHED,
    }


def _instructions(task: str, cfg: Any, published: Mapping[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    return {**published, task: tuple(cfg.MODEL.PROMPTS[task.upper()].INSTRUCTIONS) or published[task]}
