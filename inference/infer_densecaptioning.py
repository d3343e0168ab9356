"""Caption the segments of one image, under the original Pix2Cap command line.

    python inference/infer_densecaptioning.py evaluate --conf_files configs/... --overrides RESUME_FROM weights

Without ``--image`` the first image of DATASETS.TEST is taken. Writes ``output/densemask.png`` and ``.json``.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

if __name__ == "__main__":
    _path = Path(__file__).resolve().parent.parent / "entry.py"
    _spec = importlib.util.spec_from_file_location("locap_entry", _path)
    entry = importlib.util.module_from_spec(_spec)
    _spec.loader.exec_module(entry)
    _arguments = sys.argv[2:] if sys.argv[1:2] == ["evaluate"] else sys.argv[1:]
    sys.exit(entry.main(["predict", "--name", "densemask", *_arguments]))
