"""Models as judges: an OpenAI-compatible endpoint, its answers in a file, and the replay of such a file."""

from .containment import containment_score
from .evaluator import JudgedEvaluator, one_text
from .judge import JUDGE_OPTIONS, Judge, open_judge
from .requests import Reply, Request

__all__ = [
    "JUDGE_OPTIONS",
    "Judge",
    "JudgedEvaluator",
    "Reply",
    "Request",
    "containment_score",
    "one_text",
    "open_judge",
]
