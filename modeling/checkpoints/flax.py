"""Parameters of Flax under PyTorch's names and in PyTorch's order.

A file of them is ``.npz`` or ``.safetensors``, a tensor per path of the tree, its steps joined by slashes or dots. From
any checkpoint that Flax can read, numpy writes one:

    tree = flax.traverse_util.flatten_dict(params, sep="/")
    numpy.savez("weights.npz", **{path: numpy.asarray(value) for path, value in tree.items()})
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

_LEAVES = {"kernel": "weight", "scale": "weight", "embedding": "weight"}
_TRANSPOSED = ("kernel", "rel_embedding")  # beginnings: kernel_left_lora is one as well


def from_flax(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return parameters with dots in their paths, ``kernel``, ``scale`` and ``embedding`` as ``weight``.

    Kernels of dense layers are transposed, (in, out) -> (out, in); those of convolutions turned, (height, width, in,
    out) -> (out, in, height, width). A transposed convolution is right with that only if it was made with
    ``transpose_kernel=True``; see `transpose_kernel` for others.
    """
    found = {}
    for path, tensor in tensors.items():
        module, _, leaf = path.replace("/", ".").rpartition(".")
        if leaf.startswith(_TRANSPOSED) and tensor.ndim in (2, 4):
            tensor = tensor.T if tensor.ndim == 2 else tensor.permute(3, 2, 0, 1)
        found[f"{module}.{_LEAVES.get(leaf, leaf)}"] = tensor
    return found


def transpose_kernel(kernel: Tensor) -> Tensor:
    """Turn a kernel of a transposed convolution without ``transpose_kernel`` into one with it, and back.

    (height, width, in, out) -> (height, width, out, in), turned by 180 degrees.
    """
    return kernel.flip(0, 1).transpose(2, 3)


def channels_first(kernel: Tensor, channels: int) -> Tensor:
    """Reorder the rows of a dense kernel that reads flattened square maps: (h w C, out) -> (C h w, out)."""
    side = round((len(kernel) / channels) ** 0.5)
    return kernel.reshape(side, side, channels, -1).permute(2, 0, 1, 3).reshape(len(kernel), -1)
