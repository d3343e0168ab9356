"""Formats of annotation files that are read by their path and written by ``data convert``."""

from __future__ import annotations

FORMS = {  # name: what it is
    "jsonl": "locap's records, one per line",
    "records": "locap's records, one JSON object",
    "coco": "COCO-style annotations with bbox or segmentation, and captions",
    "panoptic": "COCO panoptic, with a folder of PNGs",
    "pix2cap": "COCO panoptic with a description in every segment",
    "vg": "Visual Genome's region_descriptions.json, with image_data.json beside it",
    "labelme": "a folder of LabelMe's files",
}
