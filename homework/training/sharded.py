"""Models whose weights, gradients and optimizer are shared out among the processes (--fsdp), for what fits none of them.

The functions take other models and states too, and leave them as they are.
"""

from typing import Any

import torch
from torch import Tensor, nn

from homework.core.model import Model
from homework.core.processes import rank, world_size
from homework.training.distributed import Loss


def check(model: Model, compiled: bool) -> None:
    """ValueError if ``model`` cannot be shared out."""
    if world_size() == 1:
        raise ValueError("--fsdp shares a model out among several processes, but there is one; leave it out, or start more, "
                         "as in torchrun --nproc-per-node 2 -m homework.train ...")  # fmt: skip
    if type(model).after_update is not Model.after_update:
        raise ValueError(f"--fsdp is not for {type(model).__name__}, whose weights also move between updates; leave it out.")
    if compiled:
        raise ValueError("--fsdp and --compile do not go together; leave one of them out.")


def share_out(model: Model, device: torch.device) -> None:
    """Leaves a part of the rows of each weight of ``model`` here, on ``device``, and the others to the other processes. Its
    ``loss``, and nothing else, brings the weights together, of :meth:`homework.core.model.Model.modules_in_turn` one module
    at a time (the third stage of ZeRO, Rajbhandari et al., arXiv 1910.02054, section 5)."""
    from torch.distributed.device_mesh import init_device_mesh  # a second, which other trainings do not have to wait
    from torch.distributed.fsdp import fully_shard

    mesh, loss = init_device_mesh(device.type, (world_size(),)), Loss(model, model.loss)
    for module in (*model.modules_in_turn(), loss):  # not the model: its loss may call forward, and use the weights after it
        fully_shard(module, mesh=mesh, reshard_after_forward=True)  # which moves it to the mesh's device as well
    model.__dict__["loss"] = loss  # not a module of the model, which is one of the loss


def whole(model: Model) -> Model:
    """``model``, or, if it is shared out, a copy with all of its weights on the CPU of the first process, in eval mode; to
    be called by all of them."""
    if not any(map(_is_shared, model.parameters())):
        return model
    state = gathered(model.state_dict())
    if rank():
        return model  # of no use here
    copy = type(model)(**model.config)
    copy.load_state_dict(state)
    copy.meta = model.meta
    return copy.eval()


def gathered(state: Any) -> Any:
    """A state, of dictionaries and lists, with all of each tensor that is shared out, on the CPU of the first process, where
    it is None on the others; to be called by all of them."""
    if isinstance(state, dict):
        return {k: gathered(v) for k, v in state.items()}
    if isinstance(state, list):
        return [gathered(v) for v in state]
    if not _is_shared(state):
        return state
    tensor = state.full_tensor()
    return None if rank() else tensor.cpu()


def load(module: nn.Module, state: dict[str, Tensor]) -> None:
    """Loads a state of whole tensors into a ``module``."""
    own = module.state_dict()
    module.load_state_dict({k: _part(v, own[k]) if k in own else v for k, v in state.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """Loads a state of whole tensors into an ``optimizer``."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]  # in the order of the state's numbers
    tensors = {i: {k: _part(v, parameters[i]) for k, v in of_one.items()} for i, of_one in state["state"].items()}
    optimizer.load_state_dict(state | {"state": tensors})


def summed(x: Tensor) -> Tensor:
    """A scalar of which each process may have a part."""
    return x.full_tensor() if _is_shared(x) else x  # type: ignore[attr-defined]


class Gradients:
    """As :class:`homework.training.distributed.Gradients`, for a ``model`` that is shared out: the backward pass itself
    leaves the means over all processes, each with its part."""

    def __init__(self, model: Model):
        self.own_loss: Any = model.loss

    def loss(self, batch: Any, last: bool) -> dict[str, Tensor]:
        self.own_loss.set_requires_gradient_sync(last)
        return self.own_loss(batch)

    def average(self) -> None:
        pass

    def close(self) -> None:
        pass


def _is_shared(x: Any) -> bool:
    return hasattr(x, "full_tensor")  # a DTensor, whose import takes a second


def _part(tensor: Any, like: Tensor) -> Any:
    # of a whole tensor what belongs here, if that of its shape, like, is shared out
    if not _is_shared(like) or tensor.shape != like.shape:
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements, src_data_rank=None)  # type: ignore[attr-defined]
