"""The one gate: every file of a stranger (JSON, text, images, masks, weights, paths in data) enters here.

Nothing is allocated before its size was checked, nothing in a file is ever executed, and each refusal names the file.
"""

from .archives import ArchiveMember, member_at, read_member, scan_tar
from .fields import each_object, get, objects
from .files import (
    iterate_json_lines,
    parse_json,
    read_json,
    read_json_lines,
    read_text,
    require_file,
    resolve_under,
    shown,
)
from .images import (
    MAX_PIXELS,
    decode_png_mask,
    picture_to_rgb,
    read_alpha,
    read_grey,
    read_id_map,
    read_image,
    read_image_size,
    read_stored_image,
)
from .masks import compressed_rle, decode_rle, polygons_to_mask, polygons_to_rle, rle_runs
from .pickles import read_plain_pickle
from .unpacking import free_bytes, require_space, unpack, zip_members
from .weight_shards import Part, load_tensor_parts, open_safetensors, tensor_parts, weight_files
from .weights import load_flat_tensors, load_tensors

__all__ = [
    "MAX_PIXELS",
    "ArchiveMember",
    "Part",
    "compressed_rle",
    "decode_png_mask",
    "decode_rle",
    "each_object",
    "free_bytes",
    "get",
    "iterate_json_lines",
    "load_flat_tensors",
    "load_tensor_parts",
    "load_tensors",
    "member_at",
    "objects",
    "open_safetensors",
    "parse_json",
    "picture_to_rgb",
    "polygons_to_mask",
    "polygons_to_rle",
    "read_alpha",
    "read_grey",
    "read_id_map",
    "read_image",
    "read_image_size",
    "read_json",
    "read_json_lines",
    "read_member",
    "read_plain_pickle",
    "read_stored_image",
    "read_text",
    "require_file",
    "require_space",
    "resolve_under",
    "rle_runs",
    "scan_tar",
    "shown",
    "tensor_parts",
    "unpack",
    "weight_files",
    "zip_members",
]
