"""Whether the boxes of two sets stand in the same frame of coordinates; mixed frames are the commonest mistake."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

DENSECAP_SIDE = 720.0  # the longer side of an image in the frame of densecap and of GRiT's results
TOLERANCE = 1.0  # pixels that rounding may push a box out of its frame
SUSPICIOUS_SHARE = 0.1  # of boxes out of the frame


def count_frames(truth: np.ndarray, predicted: np.ndarray, height: int, width: int) -> dict[str, int]:
    """Count the boxes (x0, y0, x1, y1) [N, 4] of one image that leave the image, and the 720-pixel frame.

    The counts of the 720-pixel frame are taken on images of more than 720 pixels only.
    """
    counts = {
        "truth_outside_image": outside(truth, height, width),
        "predicted_outside_image": outside(predicted, height, width),
    }
    scale = DENSECAP_SIDE / max(height, width)
    if scale < 1:
        counts |= {
            "truth_large": len(truth),
            "truth_outside_720": outside(truth, height * scale, width * scale),
            "predicted_large": len(predicted),
            "predicted_outside_720": outside(predicted, height * scale, width * scale),
        }
    return counts


def outside(boxes: np.ndarray, height: float, width: float) -> int:
    """Return how many boxes leave (0, 0, width, height) by more than a pixel."""
    low, high = boxes.min(1, initial=0.0), boxes.reshape(-1, 2, 2).max(1, initial=0.0)
    return int(((low < -TOLERANCE) | (high > np.array([width, height]) + TOLERANCE).any(1)).sum())


def frame_notes(counts: Mapping[str, int], predicted: int) -> list[str]:
    """Return what is suspicious about the predictions' frame, from summed counts and the number of predicted boxes."""
    notes = []
    leaving = counts.get("predicted_outside_image", 0)
    if leaving > SUSPICIOUS_SHARE * predicted:
        notes.append(
            f"{leaving} of {predicted} predicted boxes leave their image: they look like boxes of another frame (720 "
            "pixels as in GRiT's results, the network's input) or of another order (x, y, x, y for x, y, width, height)"
        )
    truth, truth_beyond = counts.get("truth_large", 0), counts.get("truth_outside_720", 0)
    boxes, beyond = counts.get("predicted_large", 0), counts.get("predicted_outside_720", 0)
    if boxes and beyond < SUSPICIOUS_SHARE / 10 * boxes and truth_beyond > SUSPICIOUS_SHARE * truth:
        notes.append(
            f"on images of more than 720 pixels all but {beyond} of {boxes} predicted boxes stay within 720 pixels, "
            f"where {truth_beyond} of {truth} true ones leave them: the predictions look like boxes of the 720-pixel "
            "frame; the ground truth has original pixels"
        )
    return notes
