"""From the names in a file to the names of a model, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from ...utils.errors import CheckpointError
from ...utils.untrusted.weights import PREFIXES, without_prefixes
from .key_table import Layout


@dataclass(slots=True)
class Translation:
    """A file's tensors under our names.

    Attributes:
        layout: the layout they came in, None for our own.
        tensors: our name -> tensor; names that the layout does not know are kept as they are.
        ignored: names, theirs or ours, of parts that we do not have.
        inert: their tensors that nothing reads, by name; an export back to the layout wants them.
    """

    layout: Layout | None
    tensors: dict[str, Tensor]
    ignored: list[str] = field(default_factory=list)
    inert: dict[str, Tensor] = field(default_factory=dict)


def detect(names: Iterable[str], layouts: Sequence[Layout]) -> Layout | None:
    """Return the first layout that a name, prefixes of wrappers aside, is a mark of; None for our own."""
    short = [without_prefixes(name.replace("/", ".")) for name in names]
    return next((layout for layout in layouts if any(name.startswith(layout.marks) for name in short)), None)


def to_ours(tensors: Mapping[str, Tensor], layouts: Sequence[Layout], is_ours: Callable[[str], bool]) -> Translation:
    """Bring a file's tensors under our names, whatever layout they are in.

    Args:
        tensors: the file's content, flat.
        layouts: foreign layouts that the system can read.
        is_ours: tells the names of the system itself.

    Raises:
        CheckpointError: two names of the file mean the same tensor of ours, or a conversion lacks a tensor.
    """
    layout = detect(tensors, layouts)
    if layout is None:
        return Translation(None, strip_prefixes(tensors, is_ours))
    found = Translation(layout, {})
    if layout.to_torch is not None:
        tensors = layout.to_torch(tensors)
    for name, tensor in strip_prefixes(tensors, layout.knows).items():
        if name in layout.inert:
            found.inert[name] = tensor
        elif (own := layout.table.ours(name, is_ours)) is None and name.startswith(layout.ignored):
            found.ignored.append(name)
        else:
            _put(found.tensors, own or name, tensor)
    return found


def to_theirs(tensors: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Bring our tensors under their names, tied ones under both.

    Raises:
        CheckpointError: the layout has no name for a tensor.
        ValueError: the layout orders values in its own way.
    """
    if layout.to_torch is not None:
        raise ValueError(f"values of the {layout.name} are converted one way only")
    renamed = {name: layout.table.theirs(name) for name in tensors}
    homeless = [name for name, theirs in renamed.items() if theirs is None]
    if homeless:
        raise CheckpointError(
            f"The layout of the {layout.name} has no place for some tensors.",
            value=", ".join(homeless[:6]),
            fix="switch the options off that added these parts, and train or load again",
        )
    result = {renamed[name]: tensor for name, tensor in tensors.items()}
    for name, other in layout.tied.items():
        for missing, present in ((name, other), (other, name)):
            if present in result:
                result.setdefault(missing, result[present])
    return result


def strip_prefixes(tensors: Mapping[str, Tensor], known: Callable[[str], bool]) -> dict[str, Tensor]:
    """Take prefixes of wrappers (``module.``, ``model.``) off names that are not known with them.

    Raises:
        CheckpointError: that makes two names equal.
    """
    stripped: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        short = name
        while not known(short) and short.startswith(PREFIXES):
            short = short.split(".", 1)[1]
        _put(stripped, short if known(short) else name, tensor)
    return stripped


def _put(tensors: dict[str, Tensor], name: str, tensor: Tensor) -> None:
    if name in tensors:
        raise CheckpointError("The file holds a tensor twice, under two names.", value=name)
    tensors[name] = tensor
