"""Numbers of a run are complete and nobody waits for them, whatever happens to disks, services and terminals."""

from __future__ import annotations

import ast
import json
import logging
import os
import socket
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

import locap
from locap.inference.charts import read_log
from locap.trainer.logs import JsonLines, SpikeWatch, open_trackers
from locap.utils import fault_points

PACKAGE = Path(locap.__file__).parent
NOT_CODE = {"tests", "build", "dist", "output"}


def steps(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def fault(monkeypatch):
    """Return a function that sets LOCAP_FAULT for this test."""

    def set_fault(text: str) -> None:
        fault_points.activate({fault_points.VARIABLE: text})

    yield set_fault
    fault_points.activate({})


@pytest.mark.fault("B2")
def test_a_full_disk_delays_lines_and_loses_none(tmp_path, fault, caplog):
    fault("metrics.write@2:enospc;metrics.write@3:enospc")
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path)
    seen = []
    for step in range(1, 6):
        log.log("train", step, {"loss": 0.5})
        seen.append(steps(path))
    log.close()
    assert seen == [[1], [1], [1], [1, 2, 3, 4], [1, 2, 3, 4, 5]]
    assert caplog.text.count("No space left") == 1, "one warning while it lasts"
    assert "written again" in caplog.text


@pytest.mark.fault("B2")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's own writer
def test_a_disk_that_fills_up_within_a_line_tears_none(tmp_path, caplog):
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    trackers = open_trackers(tmp_path)
    path = tmp_path / "metrics.jsonl"
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, before[1]))  # no file may become larger
        for step in range(300):
            trackers.log("train", step, {"text": "x" * 301, **{f"loss_{k}": 0.5 for k in range(10)}})
            assert path.read_bytes().endswith(b"\n")
        assert 0 < len(steps(path)) < 300
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    trackers.log("train", 300, {})
    trackers.close()
    assert steps(path) == list(range(301))
    assert "metrics.jsonl cannot be written" in caplog.text
    assert caplog.text.count("TensorBoard stops") == 1


@pytest.mark.fault("B2")
def test_a_disk_that_stays_full_is_said_at_the_end(tmp_path, caplog):
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
    log = JsonLines(tmp_path / "metrics.jsonl")
    log.log("train", 1, {})
    log.close()
    assert "lacks its last 1 line(s)" in caplog.text


@pytest.mark.fault("B17")
@pytest.mark.parametrize("torn", ['{"event": "train", "step": 4, "lo', '{"event": "train", "step": 4, "t": "ä'])
def test_half_a_line_is_no_reason_to_stop(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    log = JsonLines(path)
    for step in (1, 2, 3):
        log.log("train", step, {"loss": step})
    log.close()
    with path.open("ab") as file:
        file.write(torn.encode()[: -1 if "ä" in torn else None])
    assert [event["step"] for event in read_log(path).train] == [1, 2, 3]
    resumed = JsonLines(path, resume_step=2)
    resumed.log("train", 3, {"loss": 30})
    resumed.close()
    assert [(event["step"], event["loss"]) for event in read_log(path).train] == [(1, 1), (2, 2), (3, 30)]
    assert steps(path) == [1, 2, 3]


SLEEPING = """
    import sys, time, types
    from pathlib import Path
    wandb = types.ModuleType("wandb")
    wandb.Settings = lambda **_: None
    wandb.init = lambda **_: time.sleep(600)
    sys.modules["wandb"] = wandb
"""
RUN = """
    import time
    from pathlib import Path
    from locap.trainer.logs import WandbRun, open_trackers
    started = time.monotonic()
    trackers = open_trackers(Path("run"), tensorboard=False, wandb=WandbRun("p", "n", {}))
    for step in range(100):
        trackers.log("train", step, {"loss": 0.5})
    trackers.close()
    print(time.monotonic() - started)
"""


def python(code: str, folder: Path, **environ: str) -> subprocess.CompletedProcess:
    """Run code in a process of its own, whose standard input is closed."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=folder,
        env=os.environ | environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=90,
        check=False,
    )


@pytest.mark.fault("N2")
@pytest.mark.slow
@pytest.mark.parametrize("case", ["hangs", "unreachable", "deaf"])
def test_a_service_that_is_away_costs_ten_seconds_at_most(tmp_path, case):
    with socket.create_server(("127.0.0.1", 0)) as deaf:  # takes what is sent and says nothing
        port = deaf.getsockname()[1] if case == "deaf" else 9
        environ = {"WANDB_API_KEY": "x" * 40, "WANDB_BASE_URL": f"http://127.0.0.1:{port}", "WANDB_MODE": "online"}
        started = time.monotonic()
        done = python((SLEEPING if case == "hangs" else "") + RUN, tmp_path, **environ)
    seconds = time.monotonic() - started
    assert done.returncode == 0, done.stderr.decode()
    assert float(done.stdout.split()[-1]) < 10
    assert seconds < 30, "nor does it keep the process from ending"
    assert steps(tmp_path / "run" / "metrics.jsonl") == list(range(100))
    if case != "hangs":
        assert list((tmp_path / "run" / "wandb").glob("offline-run-*/*.wandb")), "stored for later"


@pytest.mark.fault("N3")
def test_curves_that_cannot_be_written_are_done_without(tmp_path, caplog):
    (tmp_path / "tensorboard").touch()  # permissions would not stop root
    trackers = open_trackers(tmp_path)
    trackers.log("train", 1, {"loss": 0.5})
    trackers.close()
    assert "TensorBoard cannot be used" in caplog.text
    assert steps(tmp_path / "metrics.jsonl") == [1]


SHOW = """
    import logging
    from pathlib import Path
    from locap.trainer.logs import SpikeWatch, open_trackers
    from locap.utils.progress import ProgressBar
    from locap.utils.logging import set_up_logging, terminal
    set_up_logging()
    print("terminal", terminal().is_terminal, terminal().width)
    trackers = open_trackers(Path("rün"), tensorboard=False)
    watch = SpikeWatch()
    with ProgressBar("träining ·", 30) as bar:
        for step in range(30):
            watch.add(step, 99.0 if step == 29 else 1.0, ["größe_年"])
            bar.advance(note="löss 0.5 ≥ 年")
            trackers.log("train", step, {"id": "größe_年"})
    logging.getLogger("locap").warning("größe 年")
    trackers.close()
"""


@pytest.mark.fault("N6")
@pytest.mark.parametrize("terminal", [False, True])
@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_any_terminal_and_any_code_page(tmp_path, terminal, encoding):
    environ = {"LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "COLUMNS": "20"}
    environ |= {"FORCE_COLOR": "1"} if terminal else {}
    environ |= {"PYTHONIOENCODING": encoding} if encoding != "ascii" else {}
    script = tmp_path / "show.py"
    script.write_text(textwrap.dedent(SHOW).replace("rün", "run"), encoding="utf-8")
    done = python("import runpy; runpy.run_path('show.py')", tmp_path, **environ)
    assert done.returncode == 0, done.stderr.decode("latin-1")
    assert b"Traceback" not in done.stderr
    assert b"Logging error" not in done.stderr
    assert f"terminal {terminal} 20".encode() in done.stdout
    assert json.loads((tmp_path / "run" / "metrics.jsonl").read_bytes().splitlines()[0])["id"] == "größe_年"


@pytest.mark.fault("N6")
def test_text_files_are_opened_with_their_encoding():
    found = []
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).parts
        if parts[0] in NOT_CODE or any(part.startswith(".") for part in parts):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and _reads_as_the_locale_says(node):
                found.append(f"{path.relative_to(PACKAGE)}:{node.lineno}")
    assert not found


def _reads_as_the_locale_says(call: ast.Call) -> bool:
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if any(keyword.arg in ("encoding", None) for keyword in call.keywords):
        return False
    if name in ("read_text", "write_text"):
        owner = getattr(getattr(call.func, "value", None), "id", "")
        return len(call.args) < (1 if name == "read_text" else 2) and owner not in ("untrusted", "files")
    if name != "open" or (isinstance(call.func, ast.Attribute) and getattr(call.func.value, "id", "") in OTHER_OPEN):
        return False
    texts = [arg.value for arg in (*call.args, *(k.value for k in call.keywords)) if isinstance(arg, ast.Constant)]
    mode = next((text for text in texts if isinstance(text, str) and set(text) <= set("rwaxbt+")), "r")
    return "b" not in mode and not (isinstance(call.func, ast.Attribute) and mode == "r" and call.args)


OTHER_OPEN = {"Image", "os", "tarfile", "zipfile", "webbrowser"}


@pytest.mark.fault("D9")
def test_a_spike_names_its_images(caplog):
    watch = SpikeWatch()
    with caplog.at_level(logging.WARNING):
        for step in range(150):
            assert not watch.add(step, 2.0 + step % 5, [f"fine_{step}"])
        assert watch.add(150, 41.0, ["broken.jpg", 7, *range(100, 200)])
    assert "step 150: the loss is 41, lately 4 (median)" in caplog.text
    assert "broken.jpg, 7, 100" in caplog.text
    assert "and 70 more" in caplog.text
    assert "fine_" not in caplog.text
