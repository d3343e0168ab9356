"""The CUDA kernels compile for Ampere and Hopper, keep their numbers in registers, and fit enough threads."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections import defaultdict
from pathlib import Path

import pytest

from locap.ops.ms_deform_attn.build import BuildError, find_compiler

SOURCE = Path(__file__).parents[2] / "ops" / "ms_deform_attn" / "csrc" / "cuda.cu"
ARCHS = ("80", "90")
REPORT = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<arch>\d+)'\n.*\n\s*(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n.*Used (?P<registers>\d+) registers"
)
# 65536 registers: 64 each let 1024 threads live on a multiprocessor, 128 let 512. Double precision is for tests.
CEILINGS = {"forward": 64, "forward, two lanes": 80, "backward": 128, "double": 168, "other": 32}


def subject(name: str) -> str:
    """Group of a kernel by its mangled name."""
    if "_kernel" not in name:
        return "other"
    if "Id" in name:  # a template argument is double
        return "double"
    if "forward_kernel" not in name:
        return "backward"
    return "forward, two lanes" if "ILi8ELi2E" in name else "forward"


@pytest.mark.slow
def test_no_spills_and_few_registers(tmp_path: Path, record_property):
    try:
        compiler = find_compiler("cuda")
    except BuildError as err:
        pytest.skip(f"the CUDA kernels were not compiled: {err}")
    code = [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHS]
    code.append(f"-gencode=arch=compute_{ARCHS[-1]},code=compute_{ARCHS[-1]}")
    flags = ["-std=c++17", "-O3", "--threads", "0", "-Xptxas", "-v", "-Xcompiler", "-fPIC", "--cudart", "static"]
    output = tmp_path / "cuda.so"
    done = subprocess.run(
        [compiler, *flags, *code, "-shared", str(SOURCE), "-o", str(output)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    kernels = [match.groupdict() for match in REPORT.finditer(done.stderr)]
    assert {kernel["arch"] for kernel in kernels} == set(ARCHS)
    assert len(kernels) == done.stderr.count("Compiling entry function")
    most: dict[str, int] = defaultdict(int)
    for kernel in kernels:
        spilled = {key: kernel[key] for key in ("stack", "stores", "loads") if int(kernel[key])}
        assert not spilled, f"{kernel['name']} sm_{kernel['arch']}: {spilled}"
        of = subject(kernel["name"])
        registers = int(kernel["registers"])
        most[f"sm_{kernel['arch']} {of}"] = max(most[f"sm_{kernel['arch']} {of}"], registers)
        assert registers <= CEILINGS[of], f"{kernel['name']} sm_{kernel['arch']}: {registers} registers"
    for group, registers in sorted(most.items()):
        print(f"{group}: at most {registers} registers")
        record_property(group, registers)
    assert shutil.which("nm") is None or "locap_msda_cuda_fused_backward" in exported(output)


def exported(path: Path) -> str:
    return subprocess.run(["nm", "-D", str(path)], capture_output=True, text=True, check=True).stdout
