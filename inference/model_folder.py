"""Model folders: all that a system needs to be used elsewhere, and nothing that runs.

    config.yaml         the resolved configuration, without what concerned training on one machine
    model.safetensors   the weights; its header says format, version, system and the classes
    README.md           the model card
    tokenizer/ ...      vocabularies that were local folders; config.yaml names them ./tokenizer

They are read wherever they come from: a configuration that names files outside its folder is refused.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf, read_write

from .. import __version__
from ..modeling.schemas import MODEL_SCHEMAS
from ..utils.config import load_config, save_config
from ..utils.errors import CheckpointError, UsageError, nearest
from ..utils.files import disk_errors, sync, write_tensors, write_text
from ..utils.hub import (
    TOKENIZER_FILES,
    download_model,
    from_hub,
    is_embedded,
    is_hub_name,
    split_model_name,
    upload_folder,
)
from ..utils.yaml_reader import Leaf, read_yaml

FORMAT = "locap-model/1"
CONFIG, WEIGHTS, CARD = "config.yaml", "model.safetensors", "README.md"
VOCABULARIES = {  # key of a vocabulary or a language model -> its folder in a model folder, and what is copied
    "MODEL.TEXT_DECODER.TOKENIZER": ("tokenizer", TOKENIZER_FILES),
    "MODEL.TEXT.PRETRAINED_TOKENIZER": ("class_tokenizer", TOKENIZER_FILES),
    "MODEL.TEXT_DECODER.PRETRAINED": ("language_model", (*TOKENIZER_FILES, "*.safetensors", "*.json")),
}
MACHINE = (  # keys that only concerned training on one machine
    *("SAVE_DIR", "BASENAME", "RESUME", "RESUME_CHANGES", "WEIGHT", "RESUME_FROM", "DEVICE", "CUDA", "DETERMINISTIC"),
    *("COMPILE", "PARALLEL", "TIMEOUTS", "MAX_HOURS", "PORT", "LOG_EVERY", "LOG_FIRST", "TENSORBOARD", "WANDB"),
    *("WANDB_PROJECT", "EVAL_AT_START", "EVAL_EVERY_EPOCHS", "EVAL_EVERY_STEPS", "EVAL_MAX_IMAGES", "EVAL_PICTURES"),
    *("CHECKPOINT_EVERY_STEPS", "KEEP_CHECKPOINTS", "KEEP_BEST", "BEST_FIGURE", "ASYNC_CHECKPOINTS", "PEAK_TFLOPS"),
    *("COCO.DATALOADER", "DATASETS.ROOT", "MODEL.SAM.PRETRAINED", "MODEL.BACKBONE.LOAD_PRETRAINED"),
)
DATA = ("DATASETS.TRAIN", "DATASETS.TEST")
_INSIDE = "./"


def find_model(name_or_path: str | Path) -> Path:
    """Return the folder of a model: a model folder, a run folder, or the copy of one on the Hugging Face hub.

    Args:
        name_or_path: a folder, or ``owner/name[@revision]``.

    Raises:
        UsageError: there is no such folder, or it holds no model.
        MissingDependencyError: a hub name that is neither cached nor reachable.
    """
    if not isinstance(name_or_path, (str, Path)) or not str(name_or_path):
        allowed = "a model folder or run folder, or owner/name on the hub"
        raise UsageError("No model is named.", value=name_or_path, allowed=allowed)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return _with_config(path)
    if path.exists():
        allowed = f"a folder with {CONFIG} and {WEIGHTS}"
        fix = f"give {path.parent}" if (path.parent / CONFIG).is_file() else None
        raise UsageError("This is a file, not a model folder.", value=str(path), allowed=allowed, fix=fix)
    named = split_model_name(str(name_or_path))
    if named and not path.parent.is_dir():  # a first part that exists means a path
        return _with_config(download_model(*named))
    close = _nearest_path(path)
    raise UsageError(
        "There is no such model folder.",
        value=str(name_or_path),
        allowed=f"a model folder or run folder (with {CONFIG}), or owner/name on the hub",
        fix=f"did you mean {close}?" if close else None,
    )


def _with_config(folder: Path) -> Path:
    if (folder / CONFIG).is_file():
        return folder
    inside = sorted(folder.glob(f"*/{CONFIG}"), key=lambda file: file.stat().st_mtime)
    raise UsageError(
        f"The folder holds no model: {CONFIG} is missing.",
        value=str(folder),
        allowed=f"a folder with {CONFIG} and {WEIGHTS}",
        fix=f"did you mean {inside[-1].parent}?" if inside else f"copy the {CONFIG} of the training run there",
    )


def _nearest_path(path: Path) -> Path | None:
    """Return the path whose first missing part is replaced by its nearest neighbour on disk, if that exists."""
    missing = next((part for part in reversed([path, *path.parents]) if not part.exists()), path)
    if not missing.parent.is_dir():
        return None
    guess = nearest(missing.name, [entry.name for entry in missing.parent.iterdir() if entry.is_dir()])
    found = guess and missing.parent / guess / path.relative_to(missing)
    return found if found and found.is_dir() else None


def read_folder(folder: Path, overrides: Sequence[str] = (), config_overrides: Sequence[str] = ()) -> Any:
    """Return the resolved configuration of a model or run folder, RESUME_FROM being the folder.

    A folder from the hub, and one without ``checkpoints/``, so not a run, is taken for a stranger's: what it says about
    paths counts only inside the folder, or when the caller repeats it.

    Args:
        folder: see `find_model`.
        overrides: ``KEY VALUE ...`` of the caller, see `load_config`.
        config_overrides: the same as words of a JSON object.

    Raises:
        UsageError: the configuration is wrong or names files outside its folder.
        CheckpointError: there are no weights.
    """
    _require_weights(folder)
    own = [] if (folder / "checkpoints").is_dir() and not from_hub(folder) else _own_paths(folder, overrides)
    last = ["RESUME_FROM", str(folder), "RESUME", "false", "WEIGHT", "false"]
    tokens = [*own, *overrides, *last]
    return load_config([folder / CONFIG], tokens, model_schemas=MODEL_SCHEMAS, config_overrides=config_overrides)


def _require_weights(folder: Path) -> None:
    """Raise CheckpointError for a folder without any weights; which of them are read is told when they are."""
    places = ("model*.safetensors", "checkpoints/step_*", "default/*.pt", "*/default/*.pt")
    if not any(next(folder.glob(place), None) for place in places):
        raise CheckpointError(
            "The folder holds no weights.",
            value=str(folder),
            allowed=f"{WEIGHTS} beside {CONFIG}, or checkpoints of a run",
            fix=f"put the {WEIGHTS} that belongs to this {CONFIG} there",
        )


def _own_paths(folder: Path, overrides: Sequence[str]) -> list[str]:
    """Return overrides that put the folder's own vocabularies in place, and take away what it may not say."""
    leaves = {leaf.key: leaf for leaf in read_yaml(folder / CONFIG, []) if leaf.key not in overrides[::2]}
    if "_base_" in leaves:
        raise _refused(leaves["_base_"], "the whole configuration in one file")
    tokens = ["DATASETS.ROOT", ""]
    for key in VOCABULARIES:
        if key in leaves and isinstance(leaves[key].value, str):
            tokens += [key, _vocabulary(folder, leaves[key])]
    _check_names(leaves)
    return tokens


def _vocabulary(folder: Path, leaf: Leaf) -> str:
    """Return the folder that ``./name`` means, or the name of a vocabulary as it is."""
    value = leaf.value
    if not value.startswith(_INSIDE):
        if is_embedded(value) or (is_hub_name(value) and not Path(value).exists()):
            return value
        raise _refused(leaf, "a name on the hub, or ./folder inside the model folder")
    found, root = folder / value, folder.resolve()
    parts = Path(value).parts
    if ".." in parts or "\0" in value or not found.is_dir() or not found.resolve().is_relative_to(root):
        raise _refused(leaf, "a folder inside the model folder")
    homes = [root, *([root.parent.parent] if root.parent.name == "snapshots" else [])]  # the hub's cache has links
    for file in found.rglob("*"):
        if not any(file.resolve().is_relative_to(home) for home in homes):
            raise _refused(dataclasses.replace(leaf, value=str(file)), "files, or links that stay inside the folder")
    return str(found.absolute())


def _check_names(leaves: Mapping[str, Leaf]) -> None:
    """Refuse data sets and encoders that are places on a disk or elsewhere."""
    for key in DATA:
        leaf = leaves.get(key)
        names = leaf.value if leaf and isinstance(leaf.value, list) else []
        if any(isinstance(name, str) and _is_place(name) for name in names):
            raise _refused(leaf, "names of data sets")
    backbone = leaves.get("MODEL.BACKBONE.NAME")
    if backbone and isinstance(backbone.value, str) and set(backbone.value.removeprefix("timm:")) & set(":/\\"):
        raise _refused(backbone, "the name of a model that timm lists")


def _is_place(name: str) -> bool:
    return bool(set(name) & set("/\\")) or name.endswith(".tar") or name.startswith("pipe:")


def _refused(leaf: Leaf, allowed: str) -> UsageError:
    return UsageError(
        f"A model folder may not name {leaf.key} like this: it leads out of the folder.",
        where=leaf.where,
        value=leaf.value,
        allowed=allowed,
        fix=f"if you trust it, set it yourself: --overrides {leaf.key} ..., or overrides={{{leaf.key!r}: ...}}",
    )


def save_model(captioner: Any, folder: str | Path, *, license: str = "other", name: str | None = None) -> Path:
    """Write a system as a model folder; it appears whole or not at all.

    Args:
        captioner: a `Captioner`.
        folder: new, empty, or an earlier model folder, which is replaced.
        license: of the weights, an identifier of the hub's such as ``apache-2.0``, for the card.
        name: what the card calls it and loads it by; default: the folder's.

    Raises:
        UsageError: the folder holds something else.
        CheckpointError: the disk is full, or cannot be written to.
    """
    from .model_card import write_card

    folder = Path(folder).expanduser()
    _require_ours(folder)
    model, categories = captioner.engine.model, captioner.categories
    with disk_errors("The model folder could not be written", folder), _replaced(folder) as temporary:
        cfg = _portable(captioner.cfg, temporary)
        save_config(cfg, temporary / CONFIG, omit=[*MACHINE, *(key for key in DATA if not OmegaConf.select(cfg, key))])
        write_tensors(temporary / WEIGHTS, _weights(model), _header(cfg, categories))
        card = write_card(captioner, name=name or folder.name, license=license)
        write_text(temporary / CARD, card)
    return folder


def push_model(
    captioner: Any,
    name: str,
    *,
    private: bool = False,
    token: str | None = None,
    revision: str | None = None,
    license: str = "other",
) -> str:
    """Save a system and upload it to the Hugging Face hub as ``owner/name``; returns its address.

    Args:
        captioner: a `Captioner`.
        name: of the repository, which is made where it is missing.
        private: whether only you can see a new one.
        token: default: that of ``hf auth login``.
        revision: branch to write to, made where it is missing; default: ``main``.
        license: see `save_model`.

    Raises:
        UsageError: it is no name of a repository, or you may not write to it.
        MissingDependencyError: you are not logged in, or the hub cannot be reached.
    """
    with tempfile.TemporaryDirectory(prefix="locap-push-") as temporary:

        def write() -> Path:
            return save_model(captioner, Path(temporary) / "model", license=license, name=name)

        return upload_folder(write, name, private=private, token=token, revision=revision)


def stored_categories(path: str | Path) -> tuple[Any, ...] | None:
    """Return the classes that a model folder's weights name; None where they name none, as those of a run.

    Raises:
        CheckpointError: they are malformed.
    """
    from ..datasets.records import Category
    from ..utils.untrusted import open_safetensors

    file = Path(path) / WEIGHTS
    text = (open_safetensors(file).metadata() or {}).get("categories") if path and file.is_file() else None
    if text is None:
        return None
    try:
        rows = [(int(i), str(n), bool(t), c and tuple(map(int, c[:3]))) for i, n, t, c in json.loads(text)]
    except (ValueError, TypeError, RecursionError):
        raise CheckpointError("The classes in the weights' header are malformed.", where=str(file)) from None
    return tuple(Category(*row) for row in rows)


def categories_for(cfg: Any) -> tuple[Any, ...]:
    """Return a system's classes: those of its model folder, or of the first data set in DATASETS.TEST."""
    from ..datasets.readers import categories_of

    stored = stored_categories(cfg.RESUME_FROM)
    names = [entry.rpartition(":")[2] for entry in cfg.DATASETS.TEST]
    return categories_of(names, cfg.DATASETS.ROOT or None) if stored is None else stored


def _portable(cfg: Any, folder: Path) -> Any:
    """Return a copy of the configuration that names nothing of this machine; its vocabularies go into the folder."""
    cfg = copy.deepcopy(cfg)
    copied: dict[Path, str] = {}
    with read_write(cfg):
        for key, (name, patterns) in VOCABULARIES.items():
            source = _local_folder(cfg, key)
            if source is not None:
                copied[source] = copied.get(source) or _copy(source, folder / name, patterns)
                OmegaConf.update(cfg, key, copied[source])
        for key in DATA:
            OmegaConf.update(cfg, key, [entry for entry in OmegaConf.select(cfg, key) if not _is_place(entry)])
        cfg.DATASETS.WEIGHTS = {k: v for k, v in cfg.DATASETS.WEIGHTS.items() if not _is_place(k)}
    return cfg


def _local_folder(cfg: Any, key: str) -> Path | None:
    value = OmegaConf.select(cfg, key)
    unused = key.endswith(".PRETRAINED") and OmegaConf.select(cfg, "MODEL.TEXT_DECODER.NAME") == "bert"
    if not value or unused or is_embedded(value) or not Path(value).expanduser().is_dir():
        return None
    return Path(value).expanduser().resolve()


def _copy(source: Path, target: Path, patterns: Sequence[str]) -> str:
    target.mkdir()
    for file in sorted({file for pattern in patterns for file in source.glob(pattern) if file.is_file()}):
        shutil.copyfile(file, target / file.name)
        sync(target / file.name)
    return _INSIDE + target.name


def _weights(model: Any) -> dict[str, Any]:
    """Return the state dict, each shared tensor under its first name only."""
    first = {id(tensor): (name, tensor) for name, tensor in reversed(model.state_dict(keep_vars=True).items())}
    return {name: tensor.detach().cpu().contiguous() for name, tensor in reversed(first.values())}


def _header(cfg: Any, categories: Sequence[Any]) -> dict[str, str]:
    rows = [[c.id, c.name, c.is_thing, c.color and list(c.color)] for c in categories]
    return {
        "format": FORMAT,
        "version": __version__,
        "system": cfg.MODEL.NAME,
        "categories": json.dumps(rows, ensure_ascii=False),
    }


def _require_ours(folder: Path) -> None:
    """Raise UsageError when a folder holds anything that replacing a model folder would lose."""
    if not folder.exists() and not folder.is_symlink():
        return
    ours = {CONFIG, WEIGHTS, CARD, *(name for name, _ in VOCABULARIES.values())}
    found = {entry.name for entry in folder.iterdir()} if folder.is_dir() and not folder.is_symlink() else {"a file"}
    if found <= ours and (not found or {CONFIG, WEIGHTS, CARD} <= found):
        return
    raise UsageError(
        "The folder exists and is no model folder: nothing is written over it.",
        value=str(folder),
        allowed="a new or empty folder, or an earlier model folder",
        fix=f"give another one, such as {folder}-model",
    )


@contextmanager
def _replaced(folder: Path) -> Iterator[Path]:
    """Yield a new folder beside this one; on success it takes its place, else it is removed."""
    folder.absolute().parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.absolute().parent, prefix=f".{folder.name}."))
    new, old = temporary / "new", temporary / "old"
    try:
        new.mkdir()
        yield new
        sync(new)
        if folder.exists():
            os.rename(folder, old)
        try:
            os.rename(new, folder)
        except OSError:
            if old.exists():
                os.rename(old, folder)
            raise
        sync(folder.absolute().parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
