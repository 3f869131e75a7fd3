"""Several processes or machines under ``torchrun``; with a single process, all of it is trivial."""

import contextlib
import os
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from homework.core.processes import rank, world_size

TIMEOUT = 1800  # seconds that a process waits for the others, by default
LONG = 7 * 24 * 3600  # the same, where processes do not meet before the end of their shares of the work
BEAT = 1.0  # seconds between two signs of life of a process


class Pulse(threading.Thread):
    """Counts this process's seconds in the ``store`` that all share, so that the others can tell who is gone when something
    that all do together fails: a process that has ended, hangs or is out of reach counts no more."""

    def __init__(self, store: dist.Store):
        super().__init__(daemon=True)
        self.store, self.ended = store, threading.Event()

    def run(self) -> None:
        with contextlib.suppress(RuntimeError):  # the store is gone, with the process that held it
            while not self.ended.is_set():
                self.store.add(f"beats of {rank()}", 1)
                self.ended.wait(BEAT)

    def silent(self) -> list[int]:
        """The processes whose count has not grown for a while, or those that the first who asked has found, for he has ended
        himself by now; the first one if the store is gone."""
        try:
            if not self.store.check(["silent"]):
                before = self.beats()
                time.sleep(4 * BEAT)
                found = [str(i) for i, (a, b) in enumerate(zip(before, self.beats(), strict=True)) if a == b]
                self.store.compare_set("silent", "", " ".join(found))
                if rank() == 0:  # without torchrun, this process holds the store, which others ask a little later
                    time.sleep(4 * BEAT)
            return [int(i) for i in self.store.get("silent").split()]
        except RuntimeError:
            return [0]

    def beats(self) -> list[int]:
        return [self.store.add(f"beats of {i}", 0) for i in range(world_size())]


_pulse: Pulse | None = None  # as long as this process is in a group


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around what all processes do together: an OSError if another one has ended or keeps them waiting too long."""
    try:
        yield
    except RuntimeError as error:
        if not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        silent = [str(i) for i in _pulse.silent() if i != rank()] if _pulse else []
        who = f"Process {', '.join(silent)}" if silent else "Another process"
        raise ConnectionError(f"{who} of {world_size()} has ended or hangs, and its own message says why if it could; "
                              "start again, a training with --resume.") from error  # fmt: skip


@contextlib.contextmanager
def group(timeout: float = TIMEOUT) -> Iterator[None]:
    """Joins the other processes, as :func:`join`, and leaves them at the end of the block."""
    try:
        join(timeout)
        yield
    finally:
        cleanup()


def setup(device: torch.device) -> torch.device:
    """Joins the other processes and returns this one's device."""
    join()
    return own_device(device)


def own_device(device: torch.device) -> torch.device:
    """This process's device, one GPU a process."""
    if world_size() > 1 and device.type == "cuda":
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
    return device


def join(timeout: float = TIMEOUT) -> None:
    """Joins the other processes, unless that is done: tensors on the CPU are exchanged by gloo, those on CUDA by nccl. Who
    waits for another one longer than ``timeout`` seconds gives up."""
    global _pulse
    if world_size() == 1 or dist.is_initialized():
        return
    wait = timedelta(seconds=timeout)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() and dist.is_nccl_available() else "gloo"
    with together():
        store, number, size = next(dist.rendezvous("env://", timeout=wait))
        store = fresh_part(store, timeout)
        dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=wait)
    _pulse = Pulse(store.clone())  # type: ignore[attr-defined]  # a connection of its own
    _pulse.start()


def fresh_part(store: dist.Store, timeout: float) -> dist.Store:
    """A part of the ``store`` with nothing in it. Under torchrun it holds what processes that had to be started again have
    left there, their addresses too (pytorch/pytorch#135712). So the first process makes up a name, and answers the others
    until each has it, by a name that each has made up as well, for else it could be that of an earlier process."""
    own = uuid.uuid4().hex
    if rank():
        store.set(f"question of {rank()}", own)
        name = store.get(f"answer to {own}").decode()
        store.set(f"{name} known to {rank()}", "")
        return dist.PrefixStore(name, store)
    missing, end = set(range(1, world_size())), time.monotonic() + timeout
    while missing:
        for i in (i for i in missing if store.check([f"question of {i}"])):
            store.set(f"answer to {store.get(f'question of {i}').decode()}", own)
        missing = {i for i in missing if not store.check([f"{own} known to {i}"])}
        if time.monotonic() > end:
            raise ConnectionError(f"Process {', '.join(map(str, sorted(missing)))} of {world_size()} has not started.")
        time.sleep(0.02)
    return dist.PrefixStore(own, store)


def restarted() -> bool:
    """Whether torchrun has started this process again, after it or another one had failed (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def gather(value: object) -> list | None:
    """Every process's ``value`` (any picklable object) in the order of their ranks, on rank 0; None on the others."""
    values = gather_everywhere(value)
    return values if rank() == 0 else None


@together()
def gather_everywhere(value: Any) -> list:
    """As :func:`gather`, on all."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)  # gather_object does not exist for nccl
    return values


@together()
def broadcast(value: Any) -> Any:
    """Rank 0's ``value`` on every process."""
    box = [value]
    if world_size() > 1:
        dist.broadcast_object_list(box)
    return box[0]


def of_first(function: Callable) -> Any:
    """What ``function()`` returns on rank 0, on every process; or the ValueError or OSError that it raises there."""
    result, error = None, None
    if rank() == 0:
        try:
            result = function()
        except (ValueError, OSError) as caught:
            error = caught
    result, error = broadcast((result, error))
    if error:
        raise error
    return result


@together()
def any_of(*flags: bool) -> list[bool]:
    """Of each of the ``flags``, whether that of one process or more is true."""
    if world_size() == 1:
        return list(flags)
    box = torch.tensor(flags, dtype=torch.int64)  # on the CPU: no GPU has to finish what it is doing
    dist.all_reduce(box, dist.ReduceOp.MAX)
    return box.bool().tolist()


def share(model: nn.Module) -> None:
    """Gives rank 0's weights to every process's ``model``."""
    if world_size() > 1:
        model.load_state_dict(broadcast({k: v.cpu() for k, v in model.state_dict().items()}))


@together()
def add_up(x: Tensor) -> Tensor:
    """Makes ``x`` the sum of all processes' ``x``, in-place, the same bits on each."""
    if world_size() > 1:
        dist.all_reduce(x)
    return x


def collect(batches: list[Tensor]) -> Tensor:
    """The batches (n,d) of an update, of all processes: one (m,d), in the order in which the training loop shares them out,
    so that it is the same as one process would have."""
    if world_size() == 1:
        return torch.cat(batches)
    every = gather_everywhere([x.cpu() for x in batches])
    return torch.cat([x for one in zip(*every, strict=True) for x in one]).to(batches[0].device)


class Loss(nn.Module):
    """A model and a function of batches, its ``loss``, as a module that returns that."""

    def __init__(self, model: nn.Module, loss: Callable):
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, batch: Any) -> dict[str, Tensor]:
        return self.loss(batch)


class Gradients:
    """Makes the gradients of a ``model`` the means over all processes. On CUDA DistributedDataParallel does so while the
    backward pass runs (``overlap``); on CPUs, where that gains nothing, one sum after it does."""

    def __init__(self, model: nn.Module, loss: Callable, overlap: bool):
        self.parameters, self.own_loss = list(model.parameters()), loss
        self.parallel = None
        if world_size() > 1 and overlap:
            with together():
                self.parallel = DistributedDataParallel(Loss(model, loss), broadcast_buffers=False,
                                                        find_unused_parameters=True)  # fmt: skip

    def loss(self, batch: Any, last: bool) -> dict[str, Tensor]:
        """The loss of a batch; gradients are averaged with the ``last`` one of an update alone."""
        if self.parallel is None:
            return self.own_loss(batch)
        with contextlib.nullcontext() if last else self.parallel.no_sync():
            return self.parallel(batch)

    def average(self) -> None:
        """To be called after the backward pass of the last batch."""
        if self.parallel is None and world_size() > 1:
            grads = [p.grad for p in self.parameters if p.grad is not None]
            flat = add_up(torch.cat([g.flatten() for g in grads])) / world_size()
            for g, mean in zip(grads, flat.split([g.numel() for g in grads]), strict=True):
                g.copy_(mean.view_as(g))  # (n) -> the parameter's shape

    def close(self) -> None:
        """Lets go of DistributedDataParallel, whose threads would outlive the group, and now and then abort a process at
        exit, if anything referred to it when the group ends."""
        self.parallel = None


def cleanup() -> None:
    """Leaves the group; without this, torch warns at exit."""
    global _pulse
    if _pulse:
        _pulse.ended.set()
        _pulse.join(2 * BEAT)
        _pulse = None
    if dist.is_initialized():
        dist.destroy_process_group()
