"""Hub names resolve here: a local folder is used as it is, a name on the Hugging Face hub becomes a local folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .errors import MissingDependencyError, UsageError
from .untrusted import require_file, shown

SAFE_FILES = ("*.safetensors", "*.json", "*.txt", "*.model")  # never code, never pickles
TIMEOUT_SECONDS = 5
EMBEDDED = Path(__file__).resolve().parent.parent / "datasets" / "vocabularies"  # "shapes" is here
_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


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


def _download(name: str, what: str, files: Sequence[str]) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    patterns = list(files)
    try:  # one bounded question first: the download itself would retry for minutes on a dead network
        commit = HfApi().model_info(name, timeout=TIMEOUT_SECONDS).sha
        return Path(snapshot_download(name, revision=commit, allow_patterns=patterns))
    except GatedRepoError:
        login = "run `hf auth login` and accept its licence"
        raise _unreachable(name, what, files, "its repository is gated", login) from None
    except RepositoryNotFoundError:
        raise _unreachable(name, what, files, "the hub has no such repository, or it is private", None) from None
    except Exception:  # each version of the client has its own network errors; what is cached is used without network
        try:
            return Path(snapshot_download(name, allow_patterns=patterns, local_files_only=True))
        except (OSError, ValueError):
            reason = "the hub cannot be reached and nothing is cached"
            raise _unreachable(name, what, files, reason, None) from None


def _unreachable(name: str, what: str, files: Sequence[str], reason: str, first: str | None) -> MissingDependencyError:
    local = f"give a local folder with its files ({', '.join(files)})"
    download = f"on a machine with network: hf download {name} --local-dir {shown(name.split('/')[-1])}"
    return MissingDependencyError(
        f"The {what} {name!r} is not on this machine: {reason}.",
        value=name,
        allowed="an existing folder or a hub name",
        fix="; or ".join(step for step in (first, local, download) if step),
    )
