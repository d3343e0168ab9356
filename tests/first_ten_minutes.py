"""The first ten minutes with locap, on a fresh environment and outside the clone, without compiler, GPU and Java.

    python tests/first_ten_minutes.py                   # makes an environment in a temporary folder
    python tests/first_ten_minutes.py --here            # uses the environment of this Python, which has locap
    python tests/first_ten_minutes.py --keep FOLDER     # works there, and leaves everything behind

Ten steps, each as a new user would take it; a table at the end, and exit code 1 when one has failed. No model can be
fetched without a hub, so that the third step, to describe a box, asks the model that the fourth one trains, after it.
The page of the demo is clicked in Chromium where that and playwright are there, else asked through gradio's client.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
NOT_SOURCE = shutil.ignore_patterns(".*", "__pycache__", "build", "dist", "output", "wandb", "*.egg-info")
# programs that the steps must do without: what compiles, and Java
WITHOUT = re.compile(r"(.*-)?(gcc|g\+\+|cc|c\+\+|clang|clang\+\+|nvcc|java)(-[\d.]+)?")
UNSET = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "JAVA_HOME", "CUDA_HOME", "CC", "CXX", "LOCAP_CACHE", "LOCAP_FAULT")
ROOTS = ("DETECTRON2_DATASETS", "DATASETS")
MINUTE = 60

IMAGE = "data/toy/images/val/000000000001.png"
BOX = ("10", "20", "80", "80")
RUN = "runs/quickstart/run_1"
STEPS_OF_TRAINING, STOPPED_AT = 80, 30
TRAIN = (
    *("train", "--conf_files", "quickstart.yaml", "--overrides", "RESUME", "True", "SAVE_DIR", "runs"),
    *("DATASETS.ROOT", "data", "DATASETS.TRAIN", "[toy/annotations/pix2cap_train.json]"),
    *("DATASETS.TEST", "[toy/annotations/pix2cap_val.json]", "SOLVER.MAX_STEPS", str(STEPS_OF_TRAINING)),
    *("SOLVER.WARMUP_ITERS", "10", "CHECKPOINT_EVERY_STEPS", "20", "LOG_EVERY", "10", "PROTOCOLS", "[panoptic]"),
    *("EVAL_AT_START", "False", "EVAL_EVERY_STEPS", "0", "MODEL.DECODER.TEST.OBJECT_MASK_THRESHOLD", "0.0"),
)
SAME_LOSSES = 1e-4  # relative
ASKED = """
import json, locap
captioner = locap.load({folder!r})
captioner.set_image({image!r})
print(json.dumps(captioner.caption(boxes=[{box}]).to_json()["regions"]))
"""


class Failed(Exception):
    """A step did not do what it should."""


def require(holds: bool, what: str) -> None:
    """Raise Failed with a text unless something holds."""
    if not holds:
        raise Failed(what)


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended."""

    code: int
    out: str
    err: str
    seconds: float


@dataclass(frozen=True, slots=True)
class Place:
    """Where the steps are taken.

    Attributes:
        folder: of the user, outside the clone.
        clone: a copy of the source tree.
        bin: folder of the environment's programs.
        fresh: whether the environment has yet to be made.
    """

    folder: Path
    clone: Path
    bin: Path
    fresh: bool

    @property
    def environ(self) -> dict[str, str]:
        """Variables of the commands: PATH leads to the environment and to `tools` alone."""
        kept = {name: value for name, value in os.environ.items() if name not in (*UNSET, *ROOTS)}
        own = {"PATH": f"{self.bin}{os.pathsep}{self.tools}", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return {**kept, **own, "LOCAP_CACHE": str(self.folder / "cache"), "COLUMNS": "120"}

    @property
    def tools(self) -> Path:
        """Folder with links to this machine's programs but for compilers and Java."""
        return self.clone.parent / "tools"

    def start(self, *words: object, folder: Path | None = None) -> subprocess.Popen[str]:
        """Start a command."""
        line = [str(word) for word in words]
        program = shutil.which(line[0], path=self.environ["PATH"])
        require(program is not None, f"there is no {line[0]}")
        pipe = subprocess.PIPE
        where = folder or self.folder
        return subprocess.Popen([program, *line[1:]], cwd=where, env=self.environ, stdout=pipe, stderr=pipe, text=True)

    def run(self, *words: object, code: int = 0, limit: float = 5 * MINUTE, folder: Path | None = None) -> Done:
        """Run a command, which must leave with a code; no command may show a traceback."""
        began = time.monotonic()
        process = self.start(*words, folder=folder)
        try:
            out, err = process.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            process.kill()
            raise Failed(f"{words[0]} took longer than {limit:.0f} s\n{process.communicate()[1][-2000:]}") from None
        return checked(Done(process.returncode, out, err, time.monotonic() - began), code)

    def locap(self, *words: object, **options: Any) -> Done:
        """Run the installed command."""
        return self.run("locap", *words, **options)


def checked(done: Done, code: int) -> Done:
    """Return what has ended as it should."""
    text = f"{done.out[-2000:]}\n{done.err[-3000:]}"
    require(done.code == code, f"exit code {done.code} instead of {code}\n{text}")
    require("Traceback (most recent call last)" not in done.err, f"a traceback is shown\n{text}")
    return done


# the steps, each returning what is to be said about it


def install(place: Place) -> str:
    """Make the environment; everything but torch must come within two minutes, and nothing may be compiled."""
    make_tools(place)
    require(not any(map(place_of(place), ("gcc", "cc", "nvcc", "java"))), "a compiler, or Java, is still on the PATH")
    shutil.copytree(ROOT, place.clone, ignore=NOT_SOURCE)
    if not place.fresh:
        place.locap("--help")
        return "the environment of this Python"
    subprocess.run([sys.executable, "-m", "venv", str(place.bin.parent)], check=True)
    wheels = ("python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--only-binary=:all:")
    torch = place.run(*wheels, "torch", "torchvision", limit=20 * MINUTE)
    rest = place.run(*wheels, ".[demo]", limit=10 * MINUTE, folder=place.clone)
    within = "" if rest.seconds <= 2 * MINUTE else ", which is more than 120 s"
    return f"torch {torch.seconds:.0f} s, all else {rest.seconds:.0f} s{within}; no compiler"


def make_tools(place: Place) -> None:
    """Link this machine's programs but for `WITHOUT`."""
    place.tools.mkdir()
    for folder in os.environ["PATH"].split(os.pathsep):
        for program in Path(folder).iterdir() if folder and Path(folder).is_dir() else ():
            if not WITHOUT.fullmatch(program.name) and program.name != "locap":
                with contextlib.suppress(FileExistsError):
                    (place.tools / program.name).symlink_to(program.absolute())


def place_of(place: Place) -> Callable[[str], str | None]:
    """Return the function that finds a program on the PATH of the steps."""
    return lambda name: shutil.which(name, path=place.environ["PATH"])


def doctor(place: Place) -> str:
    """Nothing is broken, and what is optional says how to get it."""
    done = place.locap("doctor")
    lines = json.loads(place.locap("doctor", "--json").out)["checks"]
    require(not [line for line in lines if line["state"] == "broken"], done.out)
    require(all(line["fix"] for line in lines if line["state"] != "ok"), f"a line without a fix\n{done.out}")
    return done.out.strip().splitlines()[-1]


def train(place: Place) -> str:
    """Toy data; training that is told to stop half-way goes on by the same command."""
    place.locap("data", "download", "toy", "--root", "data", "--yes")
    place.locap("data", "verify", "toy", "--root", "data")
    began = time.monotonic()
    first = stopped(place)
    require(not (place.folder / RUN / "model.safetensors").exists(), "the run was over before it was stopped")
    at = steps_of(place.folder / RUN)[-1]
    again = place.locap(*TRAIN)
    seconds = time.monotonic() - began
    require(f"going on with {RUN}" in again.err, again.err[-2000:])
    require([path.name for path in (place.folder / "runs" / "quickstart").iterdir()] == ["run_1"], "a second run")
    found = steps_of(place.folder / RUN)
    require(found == sorted(set(found)) and found[-1] == STEPS_OF_TRAINING, f"steps {found}")
    for said in (first.err, again.err):
        require(re.search(rf"training \d+/{STEPS_OF_TRAINING}.*left", said) is not None, f"no progress\n{said[-2000:]}")
    within = "" if seconds <= 2 * MINUTE else ", which is more than 120 s"
    return f"SIGTERM at step {at}: exit code 75; went on to {found[-1]}; {seconds:.0f} s in all{within}"


def stopped(place: Place) -> Done:
    """Train, and ask for the end half-way, as a queue does."""
    process = place.start("locap", *TRAIN)
    watch = threading.Thread(target=terminate_at, args=(process, place.folder / RUN, STOPPED_AT), daemon=True)
    watch.start()
    out, err = process.communicate(timeout=5 * MINUTE)
    return checked(Done(process.returncode, out, err, 0), 75)


def terminate_at(process: subprocess.Popen[str], run: Path, step: int) -> None:
    """Send SIGTERM when the log has a step."""
    while process.poll() is None and steps_of(run)[-1:] < [step]:
        time.sleep(0.1)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)


def steps_of(run: Path) -> list[int]:
    """Return the steps in a run's log."""
    return [step for step, _ in losses_of(run)]


def losses_of(run: Path) -> list[tuple[int, float]]:
    """Return steps and losses of a run's log, of which the last line may be half written."""
    found, path = [], run / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        with contextlib.suppress(json.JSONDecodeError):
            event = json.loads(line)
            if event["event"] == "train":
                found.append((event["step"], event["loss"]))
    return found


def predict(place: Place) -> str:
    """A caption is printed, and an overlay written."""
    shutil.copy(place.folder / IMAGE, place.folder / "toy.png")
    done = place.locap("predict", "toy.png", "--box", *BOX, "--model", RUN, "--output", "out")
    caption = regions_in(place.folder / "out")[0]["captions"][0]
    require(len(caption.split()) > 1, f"the caption is {caption!r}")
    require(all(word in done.out for word in caption.split()), done.out)
    require((place.folder / "out" / "toy.png").stat().st_size > 1000, "there is no overlay")
    return f'"{caption}", out/toy.png'


def regions_in(folder: Path) -> list[dict[str, Any]]:
    """Return the regions of the only image of a folder of predictions."""
    _, line = (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return json.loads(line)["regions"]


def evaluate(place: Place) -> str:
    """A table of figures, with the Java that pip brought."""
    words = ("--model", RUN, "--overrides", "SAVE_DIR", "figures", "PROTOCOLS", "[panoptic_captioning]")
    done = place.locap("evaluate", *words)
    figures = dict(re.findall(r"^\W*(\w+)\W+?([\d.]+) ", done.out, re.MULTILINE))
    wanted = {"pq", "map", "meteor", "cider", "rouge_l", "bleu_4"}
    require(wanted <= figures.keys() and "unavailable" not in done.out, done.out)
    return ", ".join(f"{name} {figures[name]}" for name in ("pq", "meteor", "cider")) + "; no java on the PATH"


def mistype(place: Place) -> str:
    """A wrong key costs one short message."""
    words = ("train", "--conf_files", "quickstart.yaml", "--overrides", "SOLVER.LEARNING_RATE", "1")
    done = place.locap(*words, code=2, limit=MINUTE)
    lines = done.err.strip().splitlines()
    require(len(lines) <= 4 and not done.out, done.err)
    require("did you mean SOLVER.BASE_LR?" in done.err, done.err)
    return f"exit code 2, {len(lines)} lines: did you mean SOLVER.BASE_LR?"


def launch(place: Place) -> str:
    """One process, mpirun and torchrun lose the same."""
    root = ["--allow-run-as-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    launchers = {
        "one process": [],
        "mpirun": ["mpirun", "-n", "2", "--oversubscribe", *root],
        "torchrun": ["torchrun", "--nproc_per_node", "2", "--master_port", str(free_port()), "--no-python"],
    }
    found = {name: losses_under(place, name, words) for name, words in launchers.items()}
    alone = found["one process"]
    require([step for step, _ in alone] == [1, 2, 3, 4] and all(math.isfinite(loss) for _, loss in alone), f"{alone}")
    apart = 0.0
    for name, losses in found.items():
        require([step for step, _ in losses] == [1, 2, 3, 4], f"{name}: {losses}")
        pairs = zip(losses, alone, strict=True)
        apart = max(apart, *(abs(loss - other) / abs(other) for (_, loss), (_, other) in pairs))
    require(apart <= SAME_LOSSES, f"{found}")
    return f"losses of 4 steps are at most {apart:.0e} apart"


def losses_under(place: Place, name: str, launcher: list[str]) -> list[tuple[int, float]]:
    """Train four steps under a launcher."""
    folder = name.replace(" ", "_")
    more = ("RESUME", "False", "SAVE_DIR", folder, "SOLVER.MAX_STEPS", "4", "LOG_EVERY", "1", "EVAL_MAX_IMAGES", "2")
    place.run(*launcher, "locap", *TRAIN, *more)
    return losses_of(place.folder / folder / "quickstart" / "run_1")


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def demonstrate(place: Place) -> str:
    """The page opens, a box on it is described, and the HTTP service says what `predict` said."""
    with served(place) as address:
        page = urllib.request.urlopen(address, timeout=MINUTE).read().decode()
        require("locap" in page, page[:500])
        said = through_service(address, place.folder / "toy.png")
        expected = regions_in(place.folder / "out")[0]["captions"][0]
        require(said == expected, f"the service said {said!r}, predict {expected!r}")
        clicked = in_browser(address, place.folder / "toy.png")
        if clicked is not None:
            require(len(clicked.split()) > 1, f"the caption is {clicked!r}")
            return f'clicked in Chromium: "{clicked}"'
        require(through_client(place, address) == expected, "the page says something else than predict")
        return "asked through gradio's client; no Chromium with playwright"


@contextlib.contextmanager
def served(place: Place) -> Iterator[str]:
    """Serve the demo; yields its address."""
    process = place.start("locap", "demo", "--model", RUN, "--port", "0")
    said: list[str] = []
    try:
        guard = threading.Timer(2 * MINUTE, process.kill)
        guard.start()
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"demo at (http://\S+)", line):
                break
        guard.cancel()
        require(bool(said) and found is not None, "the demo does not start\n" + "".join(said)[-2000:])
        for pipe in (process.stdout, process.stderr):
            threading.Thread(target=pipe.read, daemon=True).start()
        yield found[1]
    finally:
        process.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        process.kill()


def through_service(address: str, image: Path) -> str:
    """Ask the HTTP service about the box."""
    uri = "data:image/png;base64," + base64.b64encode(image.read_bytes()).decode()
    content = [{"type": "image_url", "image_url": {"url": uri}}]
    body = {"messages": [{"role": "user", "content": content}], "regions": [{"box": [int(side) for side in BOX]}]}
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), headers)
    answer = json.load(urllib.request.urlopen(request, timeout=2 * MINUTE))
    return answer["regions"][0]["caption"]


def in_browser(address: str, image: Path) -> str | None:
    """Upload the image, click two corners and return the caption; None without a browser."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        return None
    if program is None:
        return None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.goto(address)
        page.locator("#image input[type=file]").wait_for(state="attached", timeout=MINUTE * 1000)
        page.set_input_files("#image input[type=file]", image)
        page.locator("#image img").wait_for()
        page.wait_for_timeout(3000)  # the picture that comes back takes the place of the upload
        x0, y0, x1, y1 = (int(side) for side in BOX)
        before = page.locator("#image img").get_attribute("src")
        click(page, x0, y0)
        drawn = "before => document.querySelector('#image img').getAttribute('src') !== before"
        page.wait_for_function(drawn, arg=before, timeout=MINUTE * 1000)
        click(page, x1, y1)
        page.wait_for_function("document.querySelector('#caption textarea').value", timeout=MINUTE * 1000)
        caption = page.locator("#caption textarea").input_value()
        browser.close()
    return caption


def click(page: Any, x: int, y: int) -> None:
    """Click where the shown image has a pixel; it stands in the middle of its frame, and is never enlarged."""
    page.wait_for_function("(i => i && i.complete && i.naturalWidth)(document.querySelector('#image img'))")
    width, height = page.evaluate("(i => [i.naturalWidth, i.naturalHeight])(document.querySelector('#image img'))")
    box = page.locator("#image img").bounding_box()
    scale = min(box["width"] / width, box["height"] / height, 1)
    left, top = box["x"] + (box["width"] - width * scale) / 2, box["y"] + (box["height"] - height * scale) / 2
    page.mouse.click(left + (x + 0.5) * scale, top + (y + 0.5) * scale)


def through_client(place: Place, address: str) -> str:
    """Ask the page's functions through gradio's own client."""
    code = (
        "import gradio_client as g; c = g.Client({!r}, verbose=False, download_files=False, analytics_enabled=False);"
        "c.predict(g.handle_file('toy.png'), api_name='/open_image');"
        "print(c.predict('Box', {!r}, None, '', 'Describe', '', api_name='/caption')[1])"
    )
    return place.run("python", "-c", code.format(address, " ".join(BOX))).out.strip()


def export(place: Place) -> str:
    """A model folder gives what the run gave, to the last bit."""
    place.locap("export", "--model", RUN, "--to", "folder", "--output", "mine")
    place.locap("predict", "toy.png", "--box", *BOX, "--model", "mine", "--output", "again")
    for name in ("predictions.jsonl", "toy.png"):
        same = (place.folder / "out" / name).read_bytes() == (place.folder / "again" / name).read_bytes()
        require(same, f"{name} differs")
    code = ASKED.format(folder="mine", image="toy.png", box=tuple(map(int, BOX)))
    loaded = json.loads(place.run("python", "-c", code).out)
    require(loaded == regions_in(place.folder / "out"), f"locap.load differs: {loaded}")
    files = ", ".join(sorted(path.name for path in (place.folder / "mine").iterdir()))
    return f"{files}: locap.load and predict give the same bits"


def stand_beside_others(place: Place) -> str:
    """In the root of the clone, which holds a folder of that name, Hugging Face's datasets is found."""
    found = place.run("python", "-c", "import locap, transformers; print(locap.__file__)", folder=place.folder)
    require(place.clone not in Path(found.out.strip()).parents, f"{found.out} is not the installed package")
    if place.fresh:
        place.run("python", "-m", "pip", "install", "--quiet", "--only-binary=:all:", "datasets", limit=10 * MINUTE)
    elif place.start("python", "-c", "import datasets").wait():
        return "Hugging Face's datasets is not installed: its place was not checked"
    code = "import locap; import datasets, transformers; print(datasets.load_dataset.__module__)"
    for folder in (place.clone, place.folder):
        said = place.run("python", "-c", code, folder=folder).out.strip()
        require(said.startswith("datasets."), f"in {folder}: {said}")
    return "import locap; import datasets, transformers"


@dataclass(frozen=True, slots=True)
class Step:
    """A step: its number, what a user types, and the function that takes it."""

    number: int
    command: str
    take: Callable[[Place], str]


STEPS = (  # in the order in which they are taken
    Step(1, 'pip install ".[demo]"', install),
    Step(2, "locap doctor", doctor),
    Step(4, "locap data download toy; locap train, stopped, and again", train),
    Step(3, "locap predict toy.png --box 10 20 80 80 --model RUN", predict),
    Step(5, "locap evaluate --model RUN", evaluate),
    Step(6, "locap train … SOLVER.LEARNING_RATE 1", mistype),
    Step(7, "mpirun -n 2, torchrun --nproc_per_node 2", launch),
    Step(8, "locap demo --model RUN", demonstrate),
    Step(9, "locap export --to folder; locap.load", export),
    Step(10, "python -c 'import locap; import datasets, transformers'", stand_beside_others),
)


def take(step: Step, place: Place) -> tuple[float, str | None, str]:
    """Take a step; returns its seconds, what is to be said about it, and what went wrong."""
    began, said, wrong = time.monotonic(), None, ""
    try:
        said = step.take(place)
    except Exception as err:  # each step is its own: the table shows them all
        wrong = str(err) if isinstance(err, Failed) else traceback.format_exc()
    return time.monotonic() - began, said, wrong


def main(arguments: list[str] | None = None) -> int:
    """Take the steps and print the table; 1 when one has failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--here", action="store_true", help="use the environment of this Python")
    parser.add_argument("--keep", metavar="FOLDER", help="work in this new folder and leave it")
    given = parser.parse_args(arguments)
    with contextlib.ExitStack() as stack:
        home = given.keep or stack.enter_context(tempfile.TemporaryDirectory(prefix="first-ten-minutes-"))
        home = Path(home).absolute()
        (home / "user").mkdir(parents=True)
        programs = Path(sys.executable).parent if given.here else home / "environment" / "bin"
        place = Place(home / "user", home / "a clone", programs, fresh=not given.here)
        rows = [(step, *taken(step, place)) for step in STEPS]
    write_table(rows)
    return 0 if all(said is not None for _, _, said in rows) else 1


def taken(step: Step, place: Place) -> tuple[float, str | None]:
    """Take a step and tell at once how it went."""
    print(f"{step.number:>2}  {step.command} …", flush=True)
    seconds, said, wrong = take(step, place)
    print(f"    {seconds:.0f} s: {said if said is not None else 'FAILED: ' + wrong}", flush=True)
    return seconds, said


def write_table(rows: list[tuple[Step, float, str | None]]) -> None:
    """Print step, command, seconds and result."""
    width = max(len(step.command) for step, _, _ in rows)
    print(f"\nstep  {'command':<{width}}  seconds  result")
    for step, seconds, said in rows:
        print(f"{step.number:>4}  {step.command:<{width}}  {seconds:>7.0f}  {'FAILED' if said is None else said}")
    print(f"      {'all':<{width}}  {sum(seconds for _, seconds, _ in rows):>7.0f}")


if __name__ == "__main__":
    sys.exit(main())
