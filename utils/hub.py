"""Hub names resolve here: a local folder is used as it is, a name on the Hugging Face hub becomes a local folder."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import MissingDependencyError, UsageError
from .untrusted import require_file, shown

SAFE_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")  # never code, never pickles
VOCABULARY_FILES = (
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
)
TOKENIZER_FILES = (*VOCABULARY_FILES, "*.model", "config.json")
NEVER = ["checkpoints/*"]  # that folder would make a stranger's model folder look like a run of one's own
MODEL_FILES = ("config.yaml", "README.md", "*.safetensors", *(f"*/{name}" for name in TOKENIZER_FILES))
TIMEOUT_SECONDS = 5
EMBEDDED = Path(__file__).resolve().parent.parent / "datasets" / "vocabularies"  # "shapes" is here
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")
_MODEL_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@([\w][\w./-]*))?")


def resolve(name_or_path: str | Path, *, what: str, files: Sequence[str] | None = None) -> Path:
    """Return the local file or folder of a path or hub name.

    Args:
        name_or_path: an existing file or folder, a hub name such as ``bert-base-uncased`` or ``owner/name``, or the
            name of a vocabulary that comes with locap: ``shapes``.
        what: what is being looked for, for the message ("caption tokenizer").
        files: patterns of the files needed from the hub; default `SAFE_FILES`.

    Raises:
        UsageError: it looks like a path and does not exist.
        MissingDependencyError: a hub name that is neither cached nor reachable; names the ways out.
    """
    name = str(name_or_path)
    if not name:
        raise UsageError(f"The {what} is not given.", allowed="an existing folder or a hub name")
    if (EMBEDDED / name).is_dir():
        return EMBEDDED / name
    path = Path(name).expanduser()
    if path.exists():
        return path
    if isinstance(name_or_path, Path) or not _HUB_NAME.fullmatch(name):
        require_file(path, error=UsageError, what=what)
    return _download(name, what, files or SAFE_FILES)


def split_model_name(name: str) -> tuple[str, str | None] | None:
    """Return (``owner/name``, revision) of ``owner/name[@revision]``; None when it is no such name."""
    match = _MODEL_NAME.fullmatch(name)
    return match and (match[1], match[2])


def is_embedded(name: str) -> bool:
    """Return whether a vocabulary of this name comes with locap."""
    return "/" not in name and (EMBEDDED / name / "vocab.txt").is_file()


def is_hub_name(name: str) -> bool:
    """Return whether the hub can have something of this name."""
    return _HUB_NAME.fullmatch(name) is not None


def download_model(name: str, revision: str | None = None) -> Path:
    """Return the local copy of a model folder on the hub: `MODEL_FILES` of it, never code or pickles.

    Raises:
        UsageError: the repository holds no model folder.
        MissingDependencyError: it is neither cached nor reachable.
    """
    return _download(name, "model", MODEL_FILES, revision, needed=("config.yaml", "model.safetensors"))


def from_hub(folder: Path) -> bool:
    """Return whether a folder is a copy that was downloaded from the hub."""
    return "snapshots" in folder.resolve().parts


def _download(
    name: str, what: str, files: Sequence[str], revision: str | None = None, needed: Sequence[str] = ()
) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    patterns = list(files)
    try:  # one bounded question first: the download itself would retry for minutes on a dead network
        found = HfApi().model_info(name, revision=revision, timeout=TIMEOUT_SECONDS)
        _require_files(name, {file.rfilename for file in found.siblings or ()}, needed)
        return Path(snapshot_download(name, revision=found.sha, allow_patterns=patterns, ignore_patterns=NEVER))
    except UsageError:
        raise
    except GatedRepoError:
        login = "run `hf auth login` and accept its licence"
        raise _unreachable(name, what, files, "its repository is gated", login, revision) from None
    except RepositoryNotFoundError:
        reason = "the hub has no such repository, or it is private (then run `hf auth login`)"
        raise _unreachable(name, what, files, reason, None, revision) from None
    except RevisionNotFoundError as err:
        if revision is not None:
            raise UsageError(f"The {what} {name!r} has no such revision.", value=revision) from None
        raise _unreachable(name, what, files, _reason(err), None) from None
    except Exception as err:  # each version of the client has its own network errors; the cache needs no network
        try:
            kept = {"allow_patterns": patterns, "ignore_patterns": NEVER}
            return Path(snapshot_download(name, revision=revision, local_files_only=True, **kept))
        except (OSError, ValueError):
            raise _unreachable(name, what, files, _reason(err), None, revision) from None


def upload_folder(
    write: Callable[[], Path],
    name: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Upload a folder to the hub; returns the repository's address.

    Args:
        write: makes the folder; called when the hub has said yes.
        name: ``owner/name``; made where it is missing.
        private: of a new repository.
        token: default: that of ``hf auth login``.
        revision: branch to write to, made where it is missing.

    Raises:
        UsageError: it is no such name, or may not be written to.
        MissingDependencyError: nobody is logged in, or the hub cannot be reached.
    """
    from huggingface_hub import HfApi

    if (split_model_name(name) or (None, name))[1] is not None:
        raise UsageError("This is no name of a repository.", value=name, allowed="owner/name")
    api = HfApi(token=token)
    with _hub_refusals(name):
        api.whoami()
        url = api.create_repo(name, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(name, branch=revision, exist_ok=True)
    folder = write()
    with _hub_refusals(name):
        api.upload_folder(repo_id=name, folder_path=folder, revision=revision, commit_message="A model of locap")
    return str(url)


@contextmanager
def _hub_refusals(name: str) -> Iterator[None]:
    """Say why the hub does not take something."""
    from huggingface_hub.errors import LocalTokenNotFoundError

    by_hand = f"save the model to a folder, and on a machine with network: hf upload {name} <folder>"
    try:
        yield
    except LocalTokenNotFoundError:
        raise _no_login(name, "nobody is logged in to the hub") from None
    except Exception as err:  # each version of the client has its own errors
        status = getattr(getattr(err, "response", None), "status_code", None)
        if status == 401:
            raise _no_login(name, "the hub does not know this token") from None
        if status in (403, 404):
            who = "hf auth whoami"
            raise UsageError(
                "You may not write to this repository of the hub.",
                value=name,
                allowed="a name that begins with your own or your organisation's, and a token with write permission",
                fix=f"`{who}` shows who you are; `hf auth login` takes another token",
            ) from None
        reason = f"the hub answers {status}" if status else "the hub cannot be reached"
        raise MissingDependencyError(f"The model is not uploaded: {reason}.", value=name, fix=by_hand) from None


def _no_login(name: str, why: str) -> MissingDependencyError:
    fix = "run `hf auth login` with a token that may write, or set HF_TOKEN"
    return MissingDependencyError(f"The model is not uploaded: {why}.", value=name, fix=fix)


def _reason(err: Exception) -> str:
    status = getattr(getattr(err, "response", None), "status_code", None)
    if status in (401, 403):
        return f"the hub refuses it ({status}: `hf auth login` shows who you are), and nothing is cached"
    return "the hub cannot be reached and nothing is cached"


def _require_files(name: str, found: set[str], needed: Sequence[str]) -> None:
    missing = [file for file in needed if file not in found]
    if missing:
        raise UsageError(
            f"The repository {name!r} holds no model folder of locap: {', '.join(missing)} missing.",
            value=name,
            allowed=f"a repository with {', '.join(needed)}",
        )


def _unreachable(
    name: str, what: str, files: Sequence[str], reason: str, first: str | None, revision: str | None = None
) -> MissingDependencyError:
    local = f"give a local folder with its files ({', '.join(files)})"
    if files is MODEL_FILES:
        own = "config.yaml, model.safetensors, and the tokenizer folders beside them where it has any"
        local = f"put its files ({own}) into a folder, and give that"
    at = f" --revision {revision}" if revision else ""
    download = f"on a machine with network: hf download {name}{at} --local-dir {shown(name.split('/')[-1])}"
    return MissingDependencyError(
        f"The {what} {name!r} is not on this machine: {reason}.",
        value=name,
        allowed="an existing folder or a hub name",
        fix="; or ".join(step for step in (first, local, download) if step),
    )
