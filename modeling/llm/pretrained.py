"""Weights of language models from a folder or the hub: safetensors only, and no code of the repository's."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from ...utils.errors import CheckpointError, LocapError
from ...utils.hub import resolve
from ...utils.untrusted import read_json

_CODE_KEYS = ("attn_implementation", "experts_implementation", "auto_map", "trust_remote_code", "use_kernels")
_log = logging.getLogger(__name__)


def load_pretrained(kind: Any, name_or_path: str | Path, *, dtype: torch.dtype) -> Any:
    """Return a transformers model, complete.

    Args:
        kind: a class of transformers with ``from_pretrained``.
        name_or_path: a local folder or a hub name such as ``google/flan-t5-xl``.
        dtype: of the weights in memory.

    Raises:
        UsageError: the folder does not exist.
        MissingDependencyError: a hub name that is neither cached nor reachable.
        CheckpointError: the folder holds no such model, or weights are missing.
    """
    folder = resolve(name_or_path, what="language model")
    try:
        model, report = kind.from_pretrained(
            folder,
            **_safe_config(folder),
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except LocapError:
        raise
    except Exception as err:  # transformers raises what it likes at an odd config.json: ImportError, its own kinds, …
        reason = " ".join(str(err).split())[:300] or type(err).__name__
        raise CheckpointError(
            f"The language model cannot be read: {reason}",
            where=str(folder),
            allowed=f"config.json and *.safetensors of a {kind.__name__}",
        ) from None
    lacking = sorted(report["missing_keys"]) + sorted(str(x) for x in report["mismatched_keys"])
    if lacking:
        raise CheckpointError("The language model lacks weights.", where=str(folder), value=", ".join(lacking[:5]))
    return model


def _safe_config(folder: Path) -> dict[str, Any]:
    """Return ``config`` for transformers where ``config.json`` asks for code; else nothing, and it reads the file.

    The name of an attention or expert implementation may be that of a repository, whose kernels transformers would
    download and run, whatever ``trust_remote_code`` says (CVE-2026-4372).

    Raises:
        CheckpointError: the file is malformed.
    """
    file = folder / "config.json"
    if not file.is_file():
        return {}
    try:
        found = read_json(file)
    except LocapError as err:
        raise CheckpointError(err.what, where=err.where, value=err.value, fix=err.fix) from None
    removed: list[str] = []
    clean = _without_code(found, removed)
    if not removed:
        return {}
    from transformers import AutoConfig

    _log.warning("%s: %s are ignored: they could run code of others", file, ", ".join(sorted(set(removed))))
    return {"config": AutoConfig.for_model(**clean)}


def _without_code(value: Any, removed: list[str]) -> Any:
    """Return a configuration without the keys that name code, in its parts as well; they are added to ``removed``."""
    if not isinstance(value, dict):
        return value
    asks = [key for key in value if key.strip("_").removesuffix("_internal") in _CODE_KEYS]
    removed += asks
    return {key: _without_code(part, removed) for key, part in value.items() if key not in asks}
