"""Add GRiT's captioner to X-Decoder's weights: what training of Pix2Cap starts from.

    python utils/combine_weights.py                                     # the original's names, in the current folder
    python entry.py combine --xdecoder A.pt --grit B.pth --output C.pt  # the same, with other names

Only names are changed. The result is laid out as the original Pix2Cap's files. It lacks ``object_proj`` and
``bbox_embed``, which start fresh.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

XDECODER_FILE = "xdecoder_focall_last.pt"
GRIT_FILE = "grit_b_densecap.pth"
OUTPUT_FILE = "xdecoder_focall_last_updated.pt"
PREDICTOR = "sem_seg_head.predictor."


def combine(xdecoder: Mapping[str, Any], grit: Mapping[str, Any]) -> dict[str, Any]:
    """Return X-Decoder's tensors and, renamed, GRiT's captioner: ``X.text_decoder.Y`` -> ``PREDICTOR.text_decoder.Y``.

    Prefixes of wrappers (``module.``, ``model.``) are taken off.

    Raises:
        CheckpointError: GRiT's file has no captioner, or X-Decoder's is laid out otherwise.
    """
    from .untrusted.weights import without_prefixes

    combined = {without_prefixes(name): tensor for name, tensor in xdecoder.items()}
    if not any(name.startswith(PREDICTOR) for name in combined):
        raise _not_the_file("X-Decoder", f"{PREDICTOR}…", xdecoder)
    parts = {tuple(without_prefixes(name).split(".", 2)): tensor for name, tensor in grit.items()}
    captioner = {name[2]: tensor for name, tensor in parts.items() if len(name) == 3 and name[1] == "text_decoder"}
    if not captioner:
        raise _not_the_file("GRiT", "roi_heads.text_decoder.…", grit)
    return combined | {f"{PREDICTOR}text_decoder.{name}": tensor for name, tensor in captioner.items()}


def _not_the_file(what: str, wanted: str, tensors: Mapping[str, Any]) -> Exception:
    from .errors import CheckpointError

    some = ", ".join(list(tensors)[:3])
    return CheckpointError(f"These are not the weights of {what}.", value=some, allowed=f"names like {wanted}")


def combine_files(
    xdecoder: str | Path = XDECODER_FILE, grit: str | Path = GRIT_FILE, output: str | Path = OUTPUT_FILE
) -> Path:
    """Combine two files to a third, ``.pt`` as the original reads it or ``.safetensors``.

    Raises:
        CheckpointError: a file is missing, cannot be read, or is not what it should be.
    """
    from .errors import CheckpointError
    from .files import write_tensors
    from .untrusted import load_flat_tensors

    for name, path in (("xdecoder", xdecoder), ("grit", grit)):
        if not Path(path).exists():
            what = f"The weights file {path} does not exist."
            raise CheckpointError(what, where=str(Path(path).absolute()), fix=f"download it, and give --{name} FILE")
    return write_tensors(output, combine(load_flat_tensors(xdecoder), load_flat_tensors(grit)))


if __name__ == "__main__":
    _folder = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _folder]  # it has a logging.py
    _spec = importlib.util.spec_from_file_location("locap_entry", _folder.parent / "entry.py")
    _entry = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(_entry)
    sys.exit(_entry.main(["combine", *sys.argv[1:]]))
