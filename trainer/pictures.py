"""Pictures of an evaluation: for some images the truth beside the prediction, and all of them on one sheet."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from scipy.optimize import linear_sum_assignment

from ..datasets.reader import Reader
from ..datasets.records import Category, Record, Region
from ..inference.drawing import INK, MUTED, WHITE, load_font, printable, region_masks, shorten
from ..inference.fonts import draw_text
from ..inference.visualise import comparison_grid, draw_record, region_boxes
from ..utils.files import atomic_path

_log = logging.getLogger(__name__)
PAIR_WIDTH = 1280  # pixels
SHEET_PAIRS, THUMBNAIL, LABEL, GAP = 3, 240, 20, 12  # pairs in a row, pixels
MOST_REGIONS = 40  # drawn of a prediction, those with the highest scores
LEAST_OVERLAP, OVERLAP_GRID = 0.3, 160  # intersection over union of a match; points along the longer side
NOT_FOUND = "(not found)"
SHEET = "all"


def draw_predictions(
    predictions: Sequence[Record], reader: Reader, folder: Path, count: int, *, task: str = ""
) -> dict[str, Path]:
    """Draw the first images of an evaluated data set, the truth at the left and the prediction at the right.

    Regions have numbers and colours, the same on both sides, and their categories, scores and captions stand below;
    narratives are drawn as paths. One that cannot be drawn or written is left
    out with a warning: no picture is worth the run.

    Args:
        predictions: in the order of the data set, as `evaluate.predict_all` returns them.
        reader: the data set's records (``EvalSet.reader``), the truth, with its categories.
        folder: gets the PNG files.
        count: images at most.
        task: of the set (``EvalSet.task``), "" for systems without prompts.

    Returns:
        Name -> file: "all", the contact sheet, and "0", "1", ... for each image. Empty without images.
    """
    pairs, drawn = [], {}
    for index in range(min(count, len(predictions), len(reader))):
        try:
            truth, prediction = comparable(reader[index], predictions[index], task)
            pixels = truth.read_image()
            picture = comparison_grid([(pixels, truth, prediction)], reader.categories, pair_width=PAIR_WIDTH)
            drawn[str(index)] = _write(picture, folder / f"{index:03d}.png")
            pairs.append((Image.fromarray(pixels), truth, prediction))
        except Exception as err:
            _log.warning("image %s is not drawn: %s", predictions[index].image_id, err)
    if not pairs:
        return {}
    try:
        return {SHEET: _write(contact_sheet(pairs, reader.categories), folder / f"{SHEET}.png")} | drawn
    except Exception as err:
        _log.warning("the contact sheet is not drawn: %s", err)
        return drawn


def comparable(truth: Record, prediction: Record, task: str = "") -> tuple[Record, Record]:
    """Return both sides as they are drawn: what the task is about, numbered alike.

    A number means one prompt, or, without prompts, one region and what overlaps it most (`NOT_FOUND` where nothing
    does); what matches nothing comes last. Where the prediction has boxes only, so has the truth.
    """
    if task == "trace":
        return _without_regions(truth), _without_regions(prediction)
    truth, prediction = replace(truth, narratives=()), replace(prediction, narratives=())
    if task == "caption":
        return _told(truth, truth.captions), _told(truth, prediction.captions)
    if task == "refer":
        truth = replace(truth, regions=[replace(each, captions=each.expressions) for each in truth.regions])
    if prediction.id_map is None and not any(region.mask for region in prediction.regions):
        truth = _boxes_only(truth)
    if task in ("region", "refer"):
        return truth, replace(prediction, regions=_in_order_of(truth.regions, prediction.regions))
    best = sorted(prediction.regions, key=lambda region: -(region.score or 0.0))[:MOST_REGIONS]
    return truth, numbered_alike(truth, replace(prediction, regions=best))


def numbered_alike(truth: Record, prediction: Record) -> Record:
    """Return the prediction with its regions in the order of the true ones that they match."""
    if not truth.regions or not prediction.regions:
        return prediction
    overlaps = _overlaps(truth, prediction)
    chosen = dict(zip(*map(np.ndarray.tolist, linear_sum_assignment(-overlaps)), strict=True))
    chosen = {true: found for true, found in chosen.items() if overlaps[true, found] >= LEAST_OVERLAP}
    missed = Region(captions=(NOT_FOUND,))
    regions = [prediction.regions[chosen[k]] if k in chosen else missed for k in range(len(truth.regions))]
    others = sorted(set(range(len(prediction.regions))) - set(chosen.values()))
    return replace(prediction, regions=regions + [prediction.regions[k] for k in others])


def _overlaps(truth: Record, prediction: Record) -> np.ndarray:
    """Return intersection over union of true (rows) and predicted regions (columns), on a coarse grid."""
    frame = truth.height, truth.width
    step = max(1, round(max(frame) / OVERLAP_GRID))
    first, second = (
        np.stack([_area(mask, box, frame)[::step, ::step].ravel() for mask, box in zip(*each, strict=True)])
        for each in ((region_masks(record), region_boxes(record)) for record in (truth, prediction))
    )
    common = first @ second.T
    return common / np.maximum(first.sum(1)[:, None] + second.sum(1) - common, 1)


def _area(mask: np.ndarray | None, box: Sequence[float] | None, frame: tuple[int, int]) -> np.ndarray:
    """Return the pixels of a region as 0 and 1, of its box where it has no mask."""
    if mask is not None:
        return mask.astype(np.float32)
    area = np.zeros(frame, np.float32)
    if box is not None:
        x0, y0, x1, y1 = (max(0, round(side)) for side in box)
        area[y0:y1, x0:x1] = 1
    return area


def _without_regions(record: Record) -> Record:
    return replace(record, regions=[], id_map=None)


def _boxes_only(record: Record) -> Record:
    boxes = region_boxes(record)
    regions = [replace(region, mask=None, box_xyxy=box) for region, box in zip(record.regions, boxes, strict=True)]
    return replace(record, regions=regions, id_map=None)


def _told(record: Record, captions: Sequence[str]) -> Record:
    """Return an image with captions of the whole of it, as a list without places."""
    regions = [Region(number, captions=(text,)) for number, text in enumerate(captions, 1)]
    return replace(record, regions=regions, id_map=None)


def _in_order_of(asked: Sequence[Region], answers: Sequence[Region]) -> list[Region]:
    """Return the answers in the order of the prompts, by id; one that is only a place shows what it was asked for."""
    found = {answer.id: answer for answer in answers}
    regions = []
    for prompt in asked:
        answer = found.get(prompt.id, Region(captions=(NOT_FOUND,)))
        regions.append(answer if answer.captions else replace(answer, captions=prompt.captions))
    return regions


def contact_sheet(
    pairs: Sequence[tuple[Image.Image, Record, Record]], categories: Sequence[Category], columns: int = SHEET_PAIRS
) -> Image.Image:
    """Return small pictures of (image, truth, prediction) in rows, truth at the left, without captions."""
    columns = min(columns, len(pairs))
    cells = [_cell(*pair, categories) for pair in pairs]
    rows = [cells[start : start + columns] for start in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in row) + GAP for row in rows]
    width = columns * (cells[0].width + 2 * GAP)
    sheet = Image.new("RGB", (width, LABEL + GAP + sum(heights)), WHITE)
    text = "left: truth, right: prediction"
    ImageDraw.Draw(sheet).text((GAP, GAP // 2), text, font=load_font(13), fill=MUTED)
    top = LABEL + GAP
    for row, height in zip(rows, heights, strict=True):
        for place, cell in enumerate(row):
            sheet.paste(cell, (GAP + place * (cell.width + 2 * GAP), top))
        top += height
    return sheet


def _cell(image: Image.Image, truth: Record, prediction: Record, categories: Sequence[Category]) -> Image.Image:
    sides = []
    for record in (truth, prediction):  # a narrative's words would hide a small picture
        side = draw_record(
            image, record, categories, panel="none", max_width=THUMBNAIL * (2 if record.narratives else 1)
        )
        side.thumbnail((THUMBNAIL, 2 * THUMBNAIL))
        sides.append(side)
    width = 2 * THUMBNAIL + GAP // 3
    cell = Image.new("RGB", (width, max(side.height for side in sides) + LABEL), WHITE)
    font = load_font(13, bold=True)
    label = shorten(printable(truth.image_id), font, width)
    draw_text(ImageDraw.Draw(cell), (0, 0), label, font=font, fill=INK)
    for place, side in enumerate(sides):
        cell.paste(side, (place * (THUMBNAIL + GAP // 3) + (THUMBNAIL - side.width) // 2, LABEL))
    return cell


def _write(picture: Image.Image, path: Path) -> Path:
    with atomic_path(path) as temporary:
        picture.save(temporary, "PNG")
    return path
