"""Several processes or machines under ``torchrun``: who am I, and what do the others hold. Alone, all of it is trivial."""

import os

import torch
import torch.distributed as dist


def rank() -> int:
    """The number of this process, from 0; 0 is the one that writes files."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """How many processes work together; 1 without torchrun."""
    return int(os.environ.get("WORLD_SIZE", 1))


def setup(device: torch.device) -> torch.device:
    """Joins the other processes (nccl on CUDA, gloo elsewhere) and returns this one's device, one GPU a process."""
    if world_size() > 1 and not dist.is_initialized():
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    return device


def gather(value: object) -> list | None:
    """Every process's ``value`` (any picklable object) in the order of their ranks, on rank 0; None on the others."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)  # gather_object does not exist for nccl
    return values if rank() == 0 else None


def broadcast(value: object) -> object:
    """Rank 0's ``value`` on every process."""
    if world_size() == 1:
        return value
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


def cleanup() -> None:
    """Leaves the group; without this, torch warns at exit."""
    if dist.is_initialized():
        dist.destroy_process_group()
