"""Write the semantic PNGs that other code wants of COCO panoptic (`locap.datasets.prepare.semantic_maps`).

python utils/prepare_coco_semantic_annos_from_panoptic_annos.py                # val2017, then train2017
python utils/prepare_coco_semantic_annos_from_panoptic_annos.py val2017 --root DATASETS --workers 8
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

if __name__ == "__main__":
    _folder = Path(__file__).resolve().parent
    sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _folder]  # it has a logging.py
    _spec = importlib.util.spec_from_file_location("locap_entry", _folder.parent / "entry.py")
    _spec.loader.exec_module(importlib.util.module_from_spec(_spec))  # makes the clone importable
    sys.exit(importlib.import_module("locap.datasets.prepare.semantic_maps").main())
