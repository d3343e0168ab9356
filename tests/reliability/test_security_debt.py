"""What the code must never do with a stranger's file, read from its syntax; tests may, to make hostile ones."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PARTS = ("configs", "datasets", "evaluation", "inference", "modeling", "ops", "trainer", "utils")
SOURCES = [ROOT / "entry.py", *sorted(path for part in PARTS for path in (ROOT / part).rglob("*.py"))]
RESTRICTED = "utils/untrusted/pickles.py"  # its unpickler refuses to import anything
HANDED_OVER = "utils/files.py"  # .pt files for other code, which knows nothing else; ours are safetensors


def keyword(call: ast.Call, name: str) -> object:
    """Return the constant given by name; None when it is not given, or no constant."""
    found = next((word.value for word in call.keywords if word.arg == name), None)
    return found.value if isinstance(found, ast.Constant) else None


def given(call: ast.Call, name: str) -> bool:
    return any(word.arg == name for word in call.keywords)


def named(*names: str) -> Callable[[str, ast.Call, str], bool]:
    return lambda called, call, file: called in names


RULES: dict[str, Callable[[str, ast.Call, str], bool]] = {
    "reads a pickle": lambda called, call, file: (
        re.fullmatch(r"c?[pP]ickle\.(load|loads|Unpickler)|(dill|joblib|cloudpickle|shelve)\.\w+", called) is not None
        and file != RESTRICTED
    ),
    "writes a pickle": lambda called, call, file: (
        called in ("pickle.dump", "pickle.dumps", "torch.save") and file != HANDED_OVER
    ),
    "torch.load without weights_only": lambda called, call, file: (
        called == "torch.load" and keyword(call, "weights_only") is not True
    ),
    "torch.jit or torch.hub code": named("torch.jit.load", "torch.hub.load", "torch.package.PackageImporter"),
    "numpy.load with pickles": lambda called, call, file: (
        called in ("np.load", "numpy.load") and keyword(call, "allow_pickle") is not False
    ),
    "remote code": lambda called, call, file: (
        given(call, "trust_remote_code") and keyword(call, "trust_remote_code") is not False
    ),
    "unsafe YAML": lambda called, call, file: (
        called in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load")
        or (called in ("yaml.compose", "yaml.parse") and "SafeLoader" not in ast.unparse(call))
    ),
    "runs text": named("eval", "exec", "os.system", "os.popen", "builtins.eval", "builtins.exec"),
    "goes through a shell": lambda called, call, file: given(call, "shell") and keyword(call, "shell") is not False,
    "unpacks an archive": lambda called, call, file: called.endswith((".extractall", ".unpack_archive")),
    "weak temporary file": named("tempfile.mktemp", "os.tempnam"),
}


def calls() -> Iterator[tuple[str, str, ast.Call]]:
    """Yield (file, place, call) of every call in the package."""
    for path in SOURCES:
        file = str(path.relative_to(ROOT))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                yield file, f"{file}:{node.lineno}", node


def test_no_call_is_unsafe(figure):
    found = {
        place: rule
        for file, place, call in calls()
        for rule, breaks in RULES.items()
        if breaks(ast.unparse(call.func), call, file)
    }
    assert found == {}
    loads = sum(ast.unparse(call.func) == "torch.load" for _, _, call in calls())
    saves = sum(ast.unparse(call.func) == "torch.save" for _, _, call in calls())
    assert saves == 1
    figure(
        "T18",
        f"{len(SOURCES)} files: 0 pickles among what locap reads back, 0 unguarded loads (of {loads}), 0 remote code",
    )


@pytest.mark.parametrize(
    ("code", "rule"),
    [
        ("torch.load(path)", "torch.load without weights_only"),
        ("torch.load(path, weights_only=flag)", "torch.load without weights_only"),
        ("pickle.loads(data)", "reads a pickle"),
        ("joblib.load(path)", "reads a pickle"),
        ("torch.save(model, path)", "writes a pickle"),
        ("np.load(path)", "numpy.load with pickles"),
        ("M.from_pretrained(x, trust_remote_code=flag)", "remote code"),
        ("yaml.load(text, Loader=yaml.Loader)", "unsafe YAML"),
        ("yaml.compose(text)", "unsafe YAML"),
        ("eval(text)", "runs text"),
        ("subprocess.run(line, shell=True)", "goes through a shell"),
        ("archive.extractall(folder)", "unpacks an archive"),
    ],
)
def test_rules_find_what_they_are_for(code: str, rule: str):
    call = ast.parse(code, mode="eval").body
    assert rule in [name for name, breaks in RULES.items() if breaks(ast.unparse(call.func), call, "x.py")]


def test_every_exception_of_the_security_rules_has_a_reason(figure):
    """Of a line: ``# noqa: S310 - the scheme was checked``. Of the whole package: a comment in pyproject.toml."""
    lines = [
        (f"{path.relative_to(ROOT)}:{number}", line)
        for path in SOURCES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if re.search(r"noqa(: *[A-Z0-9, ]*S\d|\s*$)", line)
    ]
    assert [place for place, line in lines if not re.search(r"noqa: [A-Z0-9, ]+ - \w+", line)] == []
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    ignored = re.search(r"^ignore = \[\n(.*?)^\]", project, re.DOTALL | re.MULTILINE)[1].splitlines()
    rules = [line for line in ignored if re.search(r'"S\d', line)]
    assert [line for line in rules if not re.search(r"# \w+ \w+", line)] == []
    assert re.search(r'select = \[.*"S".*\]', project)
    figure("T18", f"{len(lines)} lines and {len(rules)} rules excepted from ruff's S, each with a reason")
