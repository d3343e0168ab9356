"""Weights of language models from a folder or the hub: safetensors only, and no code of the repository's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...utils.errors import CheckpointError
from ...utils.hub import resolve


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
            dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as err:
        raise CheckpointError(
            f"The language model cannot be read: {str(err).splitlines()[0]}",
            where=str(folder),
            allowed=f"config.json and *.safetensors of a {kind.__name__}",
        ) from None
    lacking = sorted(report["missing_keys"]) + sorted(str(x) for x in report["mismatched_keys"])
    if lacking:
        raise CheckpointError("The language model lacks weights.", where=str(folder), value=", ".join(lacking[:5]))
    return model
