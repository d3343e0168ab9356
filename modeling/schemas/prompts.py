"""The MODEL.PROMPTS section of systems that are prompted: how records become prompts, the same for all of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ...utils.config_keys import key, section
from ...utils.schema import Conflict


@dataclass
class TaskInput:
    """How a task's images are augmented, and what the model is told."""

    MIN_SCALE: float = key(1.0, "training: smallest longest side relative to COCO.INPUT.IMAGE_SIZE", minimum=0.01)
    MAX_SCALE: float = key(1.0, "training: largest longest side; above 1 crops", minimum=0.01, maximum=100)
    FLIP: float = key(0.0, "training: how often the image is mirrored, left and right in texts with it", minimum=0)
    INSTRUCTIONS: list[str] = key([], 'one is drawn; "{}" is the expression or question; empty: the published ones')


@dataclass
class CroppedTaskInput(TaskInput):
    """As TaskInput, cropped a little."""

    MIN_SCALE: float = key(0.75, "training: smallest longest side relative to COCO.INPUT.IMAGE_SIZE", minimum=0.01)
    MAX_SCALE: float = key(1.25, "training: largest longest side; above 1 crops", minimum=0.01, maximum=100)


@dataclass
class JitteredTaskInput(TaskInput):
    """As TaskInput, with large-scale jitter."""

    MIN_SCALE: float = key(0.1, "training: smallest longest side relative to COCO.INPUT.IMAGE_SIZE", minimum=0.01)
    MAX_SCALE: float = key(2.0, "training: largest longest side; above 1 crops", minimum=0.01, maximum=100)
    FLIP: float = key(0.5, "training: how often the image is mirrored, left and right in texts with it", minimum=0)


@dataclass
class Prompts:
    """Prompts; a data set is named with its task, such as refer:refcoco_unc_train."""

    MAX_PROMPTS: int = key(16, "prompts of an image that teach; of more, so many are drawn", minimum=1)
    MAX_CONTEXT: int = key(32, "tokens of an instruction, end included", minimum=2)
    BOX_RATE: float = key(1.0, "how often a located prompt is a box; else a point in it", minimum=0, maximum=1)
    ALIGNMENT: str = key(
        "aligned",
        "words of a narrative find their utterance by the words themselves, or in proportion as published",
        choices=["aligned", "proportional"],
    )
    PUBLISHED: bool = key(False, "round sizes, and keep left and right in mirrored texts, as PixelLLM's pipeline did")
    TRACE: TaskInput = section(TaskInput)
    CAPTION: CroppedTaskInput = section(CroppedTaskInput)
    REGION: JitteredTaskInput = section(JitteredTaskInput)
    REFER: CroppedTaskInput = section(CroppedTaskInput)
    DETECT: JitteredTaskInput = section(JitteredTaskInput)
    INSTRUCT: TaskInput = section(TaskInput)

    @staticmethod
    def conflicts(prompts: Any) -> Iterator[Conflict]:
        """Yield the values that cannot go together, keys relative to the section."""
        for task in ("TRACE", "CAPTION", "REGION", "REFER", "DETECT", "INSTRUCT"):
            low, high = prompts[task].MIN_SCALE, prompts[task].MAX_SCALE
            if low > high:
                yield f"{task}.MIN_SCALE", f"MIN_SCALE {low} > MAX_SCALE {high}"
