"""One model on several processes: a copy each (DDP), or one copy that they share (FSDP2), in whole or by machines.

What the loop needs of either: a module to call, gradients that stay local until the last batch of a step, and one norm.
"""

from __future__ import annotations

import inspect
import math
import types
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..utils.errors import UsageError
from .distributed import World

if TYPE_CHECKING:  # FSDP2 takes a second to import
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.fsdp import FSDPModule


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is this process's part of one that several share (a DTensor)."""
    return hasattr(tensor, "to_local")


class Replicas:
    """A model among the processes that train it; gradients are averaged over them.

    Args:
        model: the system; with "fsdp" it is sharded here unless it is already. Make the optimiser afterwards.
        world: this process among its peers; of one alone nothing is wrapped.
        strategy: "ddp" or "fsdp".
        ranks_per_copy: with "fsdp", see `shard`.
        blocks: with "fsdp", see `shard`.
        dtype: with "fsdp", see `shard`.

    Attributes:
        forward: what to call instead of the model.
        sharded: whether the model's parameters are shards.
    """

    def __init__(
        self,
        model: nn.Module,
        world: World,
        *,
        strategy: str = "ddp",
        ranks_per_copy: int = 0,
        blocks: Sequence[nn.Module] = (),
        dtype: torch.dtype | None = None,
    ) -> None:
        self.model, self.world = model, world
        if strategy == "fsdp" and world.size > 1 and not any(map(is_shard, model.parameters())):
            shard(model, world, ranks_per_copy=ranks_per_copy, blocks=blocks, dtype=dtype)
        self.sharded = any(map(is_shard, model.parameters()))
        self.forward = model if self.sharded or world.size == 1 else _copies(model)

    def local_gradients(self) -> AbstractContextManager[None]:
        """Inside, a backward pass adds to this process's gradients only: for all batches of a step but the last."""
        if self.world.size == 1:
            return nullcontext()
        return _unsynchronised(self.model) if self.sharded else self.forward.no_sync()

    def clip(self, parameters: Iterable[nn.Parameter], largest: float) -> Tensor:
        """Scale all gradients so that their common norm is at most ``largest``, without waiting for the device.

        Call it once per step, after the last backward pass, also with ``largest`` infinite: gradients of sharded models
        are complete only then.

        Returns:
            The norm before: 0-dimensional, on the device, the same on all ranks; not finite if a gradient is not.
        """
        learning = [p for p in parameters if p.grad is not None]
        shards = [p for p in learning if is_shard(p)]
        whole = [p for p in learning if not is_shard(p)]
        if self.sharded:
            _average([p.grad for p in whole], self.world.size)
        norm = _norm(shards, whole)
        if math.isfinite(largest):
            grads = [p.grad.to_local() for p in shards] + [p.grad for p in whole]
            _scale(grads, norm, largest)
        return norm

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Give every process the whole model, for the length of the block: to predict, each its own batches.

        All ranks enter and leave together; inside they need not do the same. Nothing may be trained or loaded there.
        """
        if not self.sharded:
            yield
            return
        from torch.distributed.fsdp import FSDPModule

        parts = [module for module in self.model.modules() if isinstance(module, FSDPModule)]
        for part in parts:
            part.set_reshard_after_forward(False, recurse=False)
            part.unshard()
        try:
            yield
        finally:
            for part in parts:
                part.reshard()
                part.set_reshard_after_forward(part is not self.model, recurse=False)
            # the next backward pass would gather in the order of these calls too, which differs between ranks
            self.model._get_fsdp_state()._comm_ctx.post_forward_order.clear()


def shard(
    model: nn.Module,
    world: World,
    *,
    ranks_per_copy: int = 0,
    blocks: Sequence[nn.Module] = (),
    dtype: torch.dtype | None = None,
) -> DeviceMesh:
    """Share one copy of a model among processes, in place (FSDP2): parameters become shards, along their first axis.

    A block is gathered when it is called and when its gradients are computed; all other parameters for the length of a
    forward and backward pass. Outside of blocks only what learns is shared: frozen rest stays whole, and so do scalars.

    Args:
        model: on its device, its parameters frozen or not for good.
        world: all processes.
        ranks_per_copy: processes that share a copy, neighbours; 0: all of them. The copies average their gradients.
        blocks: repeated parts of the model. All ranks must call each of them equally often in a forward pass, by their
            ``forward``, and use their parameters nowhere else.
        dtype: what parameters are gathered and computed in; gradients are summed in float32. None: as they are.

    Returns:
        The processes: (ranks,), or (copies, ranks per copy).

    Raises:
        UsageError: ``ranks_per_copy`` does not divide the processes.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = _mesh(world, ranks_per_copy)
    policy = MixedPrecisionPolicy(dtype, torch.float32) if dtype else MixedPrecisionPolicy()
    inside = {parameter for block in blocks for parameter in block.parameters()}
    kept = {p for p in model.parameters() if p.ndim == 0 or (not p.requires_grad and p not in inside)}
    for block in blocks:
        if any(parameter not in kept for parameter in block.parameters()):
            fully_shard(block, mesh=mesh, mp_policy=policy, ignored_params=kept)
    fully_shard(model, mesh=mesh, mp_policy=policy, ignored_params=kept)
    if hasattr(model, "equal_calls"):
        model.equal_calls = partial(_most, next(model.parameters()).device)
    _enter(model)
    return mesh


def compile_blocks(blocks: Iterable[nn.Module]) -> None:
    """Compile each block in place at its first call; all blocks of a kind share what was compiled."""
    for block in blocks:
        block.compile()


def _mesh(world: World, ranks_per_copy: int) -> DeviceMesh:
    ranks = ranks_per_copy or world.size
    if world.size % ranks:
        raise UsageError(
            "The processes cannot share copies of the model evenly.",
            where="PARALLEL.RANKS_PER_COPY",
            value=ranks_per_copy,
            allowed=f"0, or a divisor of the {world.size} processes",
        )
    from torch.distributed.device_mesh import init_device_mesh

    if ranks == world.size:
        return init_device_mesh(world.device.type, (ranks,), mesh_dim_names=("shard",))
    return init_device_mesh(world.device.type, (world.size // ranks, ranks), mesh_dim_names=("copy", "shard"))


def _copies(model: nn.Module) -> nn.Module:
    """Wrap a model in DDP. Every parameter that learns takes part in every step, so that nobody looks for unused ones.

    DDP's ``static_graph`` says the same of a graph, but fails where the first backward pass is inside ``no_sync``.
    """
    # gradients of 1 x 1 convolutions come with other strides of the same order: the copy costs nothing
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    known = inspect.signature(DistributedDataParallel).parameters
    sync = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"  # renamed in torch
    return DistributedDataParallel(model, gradient_as_bucket_view=True, **{sync: False})


@contextmanager
def _unsynchronised(model: FSDPModule) -> Iterator[None]:
    model.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        model.set_requires_gradient_sync(True)


def _enter(model: nn.Module) -> None:
    """Pass through the root once: whichever part is called first would otherwise take itself for it."""
    from torch.distributed.fsdp import register_fsdp_forward_method

    model._enter = types.MethodType(lambda self: None, model)
    register_fsdp_forward_method(model, "_enter")
    with torch.no_grad():
        model._enter()
    model.reshard()
    del model._enter


def _most(device: torch.device, number: int) -> int:
    """Return the largest number that any rank gives."""
    box = torch.tensor([number], device=device)
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return int(box)


def _average(grads: list[Tensor], ranks: int) -> None:
    """Average the gradients of what is not sharded over all ranks, in place and in one message per type."""
    for dtype in {grad.dtype for grad in grads}:
        chosen = [grad for grad in grads if grad.dtype == dtype]
        packed = torch.cat([grad.flatten() for grad in chosen])
        dist.all_reduce(packed)
        parts = (packed / ranks).split([grad.numel() for grad in chosen])
        torch._foreach_copy_(chosen, [part.view_as(grad) for part, grad in zip(parts, chosen, strict=True)])


def _norm(shards: list[nn.Parameter], whole: list[nn.Parameter]) -> Tensor:
    """Return the norm of all gradients, plain."""
    norms = [torch.nn.utils.get_total_norm([p.grad for p in part], foreach=True) for part in (shards, whole) if part]
    norms = [norm.full_tensor() if is_shard(norm) else norm for norm in norms]
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def _scale(grads: list[Tensor], norm: Tensor, largest: float) -> None:
    """Multiply gradients as `torch.nn.utils.clip_grad_norm_` does."""
    factor = (largest / (norm + 1e-6)).clamp(max=1.0)
    for dtype in {grad.dtype for grad in grads}:
        torch._foreach_mul_([grad for grad in grads if grad.dtype == dtype], factor.to(dtype))
