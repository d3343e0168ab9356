"""The one gate: every file of a stranger (JSON, text, images, masks, weights, paths in data) enters here.

Nothing is allocated before its size was checked, nothing in a file is ever executed, and each refusal names the file.
"""

from .files import read_json, read_json_lines, read_text, require_file, resolve_under, shown
from .images import MAX_PIXELS, read_grey, read_id_map, read_image, read_image_size
from .masks import compressed_rle, decode_rle, polygons_to_mask, polygons_to_rle, rle_runs
from .weights import load_flat_tensors, load_tensors

__all__ = [
    "MAX_PIXELS",
    "compressed_rle",
    "decode_rle",
    "load_flat_tensors",
    "load_tensors",
    "polygons_to_mask",
    "polygons_to_rle",
    "read_grey",
    "read_id_map",
    "read_image",
    "read_image_size",
    "read_json",
    "read_json_lines",
    "read_text",
    "require_file",
    "resolve_under",
    "rle_runs",
    "shown",
]
