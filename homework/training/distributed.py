"""Several processes or machines under ``torchrun``; with a single process, all of it is trivial."""

import contextlib
import os
from collections.abc import Iterable, Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from homework.core.processes import rank, world_size


@contextlib.contextmanager
def _together() -> Iterator[None]:
    """Around what all processes do together: an OSError if another one has ended, which has said itself why."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            raise ConnectionError("Another of the processes has ended; its own message says why.") from error
        raise


def setup(device: torch.device) -> torch.device:
    """Joins the other processes (nccl on CUDA, gloo elsewhere) and returns this one's device, one GPU a process."""
    if world_size() > 1 and not dist.is_initialized():
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


@_together()
def gather(value: object) -> list | None:
    """Every process's ``value`` (any picklable object) in the order of their ranks, on rank 0; None on the others."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)  # gather_object does not exist for nccl
    return values if rank() == 0 else None


@_together()
def broadcast(value: Any) -> Any:
    """Rank 0's ``value`` on every process."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def share(model: nn.Module) -> None:
    """Gives rank 0's weights to every process's ``model``."""
    if world_size() > 1:
        model.load_state_dict(broadcast({k: v.cpu() for k, v in model.state_dict().items()}))


@_together()
def add_up(x: Tensor) -> Tensor:
    """Makes ``x`` the sum of all processes' ``x``, in-place, the same bits on each."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Makes every gradient the mean of all processes' own. DistributedDataParallel would overlap this with the backward
    pass; but its threads outlive the group, and now and then abort a process at exit."""
    if world_size() > 1:
        grads = [p.grad for p in parameters if p.grad is not None]
        flat = add_up(torch.cat([g.flatten() for g in grads])) / world_size()
        for g, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
            g.copy_(mean.view_as(g))  # (n) -> the parameter's shape


def cleanup() -> None:
    """Leaves the group; without this, torch warns at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()
