"""A panoptic data set of two 64 x 48 images on disk, with captions."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from locap.datasets.readers.pix2cap import Pix2CapReader
from locap.utils.tokenizers import CaptionTokenizer

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    "a",
    "man",
    "in",
    "red",
    "the",
    "dog",
    "sky",
    "grass",
    "second",
    "blue",
    "ok",
    "crowd",
    ".",
    "'",
    "|",
    "é",
]
CATEGORIES = [
    {"id": 184, "name": "tree-merged", "isthing": 0, "color": [107, 142, 35]},
    {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60]},
    {"id": 18, "name": "dog", "isthing": 1, "color": [0, 226, 252]},
]


def draw_first() -> np.ndarray:
    """Ids in all three channels; column 40 on is void except for a crowd."""
    ids = np.zeros((48, 64), np.int32)
    ids[:24, :20] = 1
    ids[:24, 20:40] = 256
    ids[24:, :40] = 65_536 + 7
    ids[:10, 50:60] = 300
    return ids


def draw_second() -> np.ndarray:
    ids = np.full((48, 64), 9, np.int32)
    ids[10:20, 30:50] = 4
    return ids


def describe(ids: np.ndarray, categories: dict[int, int], descriptions: dict[int, str]) -> list[dict[str, Any]]:
    segments = []
    for i, category in categories.items():
        ys, xs = np.nonzero(ids == i)
        box = [int(xs.min()), int(ys.min()), int(np.ptp(xs)) + 1, int(np.ptp(ys)) + 1]
        crowd = int(i == 300)
        segment = {"id": i, "category_id": category, "iscrowd": crowd, "bbox": box, "area": len(ys)}
        segments.append(segment | {"description": descriptions[i]})
    return segments


@dataclass
class PanopticSet:
    """The files, and the document to spoil before a reader is made."""

    root: Path
    document: dict[str, Any]

    def write_ids(self, index: int, ids: np.ndarray) -> None:
        rgb = np.stack([ids % 256, ids // 256 % 256, ids // 65_536], -1).astype(np.uint8)
        Image.fromarray(rgb).save(self.root / "panoptic" / self.document["annotations"][index]["file_name"])

    def segments(self, index: int = 0) -> list[dict[str, Any]]:
        return self.document["annotations"][index]["segments_info"]

    def save(self) -> Path:
        path = self.root / "pix2cap.json"
        path.write_text(json.dumps(self.document), encoding="utf-8")
        return path

    def open(self, reader=Pix2CapReader, **options):
        return reader(self.save(), self.root / "images", self.root / "panoptic", **options)


@pytest.fixture
def panoptic_set(tmp_path) -> PanopticSet:
    first, second = draw_first(), draw_second()
    texts = {1: "a man in red", 256: "the second man ' s blue | dog\n", 65_543: "the grass.", 300: "a crowd"}
    annotations = [
        {
            "image_id": 139,
            "file_name": "000000000139.png",
            "segments_info": describe(first, {1: 1, 256: 1, 65_543: 184, 300: 1}, texts),
        },
        {
            "image_id": 7,
            "file_name": "000000000007.png",
            "segments_info": describe(second, {9: 184, 4: 18}, {9: "the sky é", 4: "ok"}),
        },
    ]
    images = [
        {"id": 139, "file_name": "000000000139.jpg", "height": 48, "width": 64},
        {"id": 7, "file_name": "000000000007.jpg", "height": 48, "width": 64},
    ]
    made = PanopticSet(tmp_path, {"images": images, "annotations": annotations, "categories": CATEGORIES})
    (tmp_path / "images").mkdir()
    (tmp_path / "panoptic").mkdir()
    for index, (image, ids) in enumerate(zip(images, (first, second), strict=True)):
        made.write_ids(index, ids)
        Image.fromarray(color_of(ids)).save(tmp_path / "images" / image["file_name"], quality=95, subsampling=0)
    return made


def color_of(ids: np.ndarray) -> np.ndarray:
    """A picture whose colours tell the segments apart."""
    return np.stack([ids * 37 % 256, ids * 101 % 256, ids * 59 % 256], -1).astype(np.uint8)


@pytest.fixture
def tokenizer(tmp_path_factory) -> CaptionTokenizer:
    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n", encoding="utf-8")
    return CaptionTokenizer.from_pretrained(folder)
