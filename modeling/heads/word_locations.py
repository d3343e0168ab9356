"""Where each word of a text is (PixelLLM, Xu et al., 2023): points of words, which words have any, boxes from points.

Shapes: R texts, T tokens, K points per token, D width of the language model.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...utils.errors import UsageError, nearest
from ..layers.mlp import MLP

TOKEN_KINDS = ("pad", "begin", "end", "end-1", "text")


class Located(NamedTuple):
    """Where the tokens of texts are.

    Attributes:
        states: (R, T, D) that the places were read from.
        points: (R, T, K, 2), pixels.
        scores: (R, T, N) of the map's cells, when words point at them; see `WordPointer`.
    """

    states: Tensor
    points: Tensor
    scores: Tensor | None = None


class WordLocations(nn.Module):
    """LayerNorm, then an MLP that turns the state of each word into points.

    The state of word i is the one at the position where word i is the *input* of the language model, one step after
    the state that predicted it. Coordinates are not clamped: a point may leave the image.

    Args:
        dim: D.
        hidden_dim: width of the MLP.
        depth: its linear layers.
        num_points: K; 2 for the corners of a box, of which a trace repeats one.
    """

    def __init__(self, *, dim: int, hidden_dim: int = 512, depth: int = 4, num_points: int = 2) -> None:
        super().__init__()
        self.num_points = num_points
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        # x, y and two numbers that nothing trains or reads: the published weights have them
        self.mlp = MLP((dim, *[hidden_dim] * (depth - 1), 4 * num_points), F.gelu)

    def forward(self, states: Tensor, sizes: Tensor) -> Tensor:
        """Predict, in pixels.

        Args:
            states: (R, T, D).
            sizes: (R, 2) height and width of each text's image without padding.

        Returns:
            float32 (R, T, K, 2), x and y.
        """
        raw = self.mlp(self.norm(states)).float().unflatten(-1, (self.num_points, 4))[..., :2]
        return (raw + 1) / 2 * sizes.flip(-1)[:, None, None]  # (h, w) -> (x, y)


def token_mask(tokens: Tensor, spec: str, *, begin_id: int, end_id: int, pad_id: int = 0) -> Tensor:
    """Select the tokens that are of none of some kinds, or with ``^`` in front those that are of any.

    ``begin,end,pad`` are the words, ``^end-1`` is the last piece of the last word (and nothing where a text was cut
    before its end). Texts end with one end token, then padding. Where padding and begin share an id (T5) so do the
    kinds.

    Args:
        tokens: int64 (..., T).
        spec: kinds separated by commas: ``pad``, ``begin``, ``end``, ``end-1`` (the next token is the end), ``text``
            (none of pad, begin and end).
        begin_id, end_id, pad_id: of the tokenizer.

    Returns:
        bool (..., T).

    Raises:
        UsageError: there is no such kind.
    """
    begin, end, pad = (tokens == i for i in (begin_id, end_id, pad_id))
    last = F.pad(end[..., 1:], (0, 1))
    kinds = dict(zip(TOKEN_KINDS, (pad, begin, end, last, ~(pad | begin | end)), strict=True))
    negated = spec.startswith("^")
    found = torch.zeros_like(pad)
    for kind in spec.removeprefix("^").split(","):
        if kind not in kinds:
            raise _unknown_kind(kind, spec)
        found = found | kinds[kind]
    return found if negated else ~found


def _unknown_kind(kind: str, spec: str) -> UsageError:
    guess = nearest(kind, TOKEN_KINDS)
    return UsageError(
        f"There is no kind of token {kind!r}." + (f" Did you mean {guess!r}?" if guess else ""),
        where="a selection of tokens",
        value=spec,
        allowed=f"kinds separated by commas, '^' in front negates: {', '.join(TOKEN_KINDS)}",
    )


def points_to_boxes(points: Tensor, valid: Tensor) -> Tensor:
    """Return the box around the points of the valid tokens.

    Args:
        points: (R, T, K, 2).
        valid: bool (R, T).

    Returns:
        (R, 4) xyxy. A text without a valid token has an inverted box, (max + 1, ..., min - 1, ...) over all its
        points: finite, of no area, and of IoU 0 with every box.
    """
    points = points.flatten(1, 2)  # R T*K 2
    valid = valid.repeat_interleave(points.shape[1] // valid.shape[1], 1)[..., None]
    above, below = points.amax(1, keepdim=True) + 1, points.amin(1, keepdim=True) - 1
    return torch.cat((torch.where(valid, points, above).amin(1), torch.where(valid, points, below).amax(1)), -1)
