"""Every kind of kernel once, on small sizes, for NVIDIA's checker of memory accesses and races:

    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool memcheck  --error-exitcode 1 python tests/gpu/sanitize.py
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool racecheck --error-exitcode 1 python tests/gpu/sanitize.py
    PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool initcheck --error-exitcode 1 python tests/gpu/sanitize.py

Without torch's cache every tensor is an allocation of its own, so that a read one element too far is seen.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from itertools import product
from pathlib import Path

import torch

TESTS = Path(__file__).resolve().parents[1]


def main() -> int:
    """Run; return the number of cases whose results are wrong."""
    if not torch.cuda.is_available():
        sys.exit("sanitize.py needs a CUDA device, and torch sees none: nothing was run.")
    from locap.ops.ms_deform_attn.library import load

    spec = importlib.util.spec_from_file_location("msda_cases", TESTS / "msda_cases.py")
    msda = importlib.util.module_from_spec(spec)
    sys.modules["msda_cases"] = msda
    spec.loader.exec_module(msda)
    wrong = 0
    for dtype, dim, queries, reference_dim in product(msda.TOLERANCE, (16, 30, 32, 64, 128), (5, None), (0, 2, 4)):
        case = msda.draw(dtype, dim, 4, 5, queries=queries, reference_dim=reference_dim).to("cuda")
        for deterministic in (False, True):
            try:
                msda.assert_close(case.found(load("cuda"), deterministic), case.expected())
            except AssertionError as err:
                wrong += 1
                print(f"{dtype} D={dim} queries={queries} reference={reference_dim} {deterministic=}: {err}")
    print(f"{wrong} cases with wrong results")
    return wrong


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "locap").symlink_to(TESTS.parent, target_is_directory=True)
        sys.path.insert(0, folder)
        sys.exit(min(main(), 1))
