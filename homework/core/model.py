"""The contract of everything that can be trained, saved and loaded."""

import copy
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn


class Model(nn.Module):
    """A trainable model: it owns its configuration, its loss and its pictures, so that the training loop knows no model. A
    constructor raises a ValueError that names the bad argument, what is allowed and the remedy. ``config`` is captured here
    for every subclass, before the subclass's ``__init__`` runs."""

    data: ClassVar[str]  # the kind of data that it is trained on, a name in homework.datasets.kinds
    more_data: ClassVar[tuple[str, ...]] = ()  # other kinds that it can be trained on
    reads_codes: ClassVar[bool] = False  # whether --inputs codes is for it, see homework.priors.base.Prior
    fitted_by: ClassVar[str] = ""  # the command that makes it, if it has no gradients to be trained by
    # names what is computed, for fingerprints; to be changed whenever the same weights begin to compute something else
    architecture: ClassVar[str] = ""  # not inherited: a class without has its own name
    training_options: ClassVar[frozenset[str]] = frozenset()  # arguments that never change what a trained model computes
    new_options: ClassVar[dict[str, Any]] = {}  # a new training's defaults, where old checkpoints need the constructor's
    n_tokens: int | None = None  # K of the tokens that it reads or makes, in [0, K); None for a model without tokens
    learning_rate: float = 1e-3  # the peak, of AdamW; this and warmup unless a training asks for others
    warmup: int = 100  # updates
    config: dict[str, Any]  # its constructor's arguments by name, defaults included, copied; JSON must be able to hold them
    meta: dict[str, Any]  # what its checkpoint says of its training; empty for a new model

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        model = super().__new__(cls)
        arguments = inspect.signature(cls.__init__).bind_partial(model, *args, **kwargs)  # partial: copy passes none
        arguments.apply_defaults()
        config = dict(list(arguments.arguments.items())[1:])  # without self
        for parameter in arguments.signature.parameters.values():
            if parameter.kind is parameter.VAR_POSITIONAL:
                raise TypeError(f"{cls.__name__} takes *{parameter.name}, which have no names in its config; name them.")
            if parameter.kind is parameter.VAR_KEYWORD:
                config |= config.pop(parameter.name, {})
        model.__dict__ |= {"config": copy.deepcopy(config), "meta": {}}  # nn.Module's own __setattr__ needs its __init__
        return model

    def __init__(self) -> None:
        super().__init__()  # nn.Module's takes any arguments; config would hold their names

    @property
    def device(self) -> torch.device:
        """Where its weights are; the CPU if it has none."""
        return next((p.device for p in self.parameters()), torch.device("cpu"))

    def start(self, data: Any) -> None:
        """Called once before the first update of a new model, with its training data, for what starts from these."""

    def keeps(self, meta: dict[str, Any], base: "Model | None") -> dict[str, Any]:
        """What the checkpoints of a training keep of the ``meta`` of its data and of the model that it starts from, ``base``
        if there is one; by default all of the former."""
        return meta

    def loss(self, batch: Any) -> dict[str, Tensor]:
        """The scalars of a batch: "loss" is minimized, and every entry is logged under its name. In eval mode there may be
        integers of any shape, too, the batch's tokens, for :meth:`figures`."""
        raise NotImplementedError(f"{type(self).__name__} defines no loss.")

    def figures(self, means: dict[str, float], counts: Tensor) -> dict[str, float]:
        """The figures of a data set, given the means of :meth:`loss`'s scalars over its samples, and the counts (n) of those
        tokens that occur. To be overridden where the figure of a whole data set is not a mean over batches."""
        return means

    def set_codes(self, codes: Tensor) -> None:
        """Stores the tokenizer's code vectors (K,d), for a model that ``reads_codes``."""
        raise NotImplementedError(f"{type(self).__name__} reads no code vectors.")

    def images(self, batch: Any) -> dict[str, Tensor]:
        """Pictures of a batch for TensorBoard: (n,3,H,W) float in [0,1], or token grids (n,h,w) int64 to be decoded."""
        return {}

    def modules_in_turn(self) -> Iterable[nn.Module]:
        """Its largest modules that are called one after another, and whose weights nothing else reads: with --fsdp, one of
        them at a time is gathered. By default there are none, and the whole model is gathered at once."""
        return ()

    def set_progress(self, f: float) -> None:
        """Called before each update with the fraction f in [0,1] of the training that is done, for what anneals."""

    def after_update(self) -> None:
        """Called after each update, for what moves by other means than gradients."""


def ordinary_tensors(function: Callable) -> Callable:
    """Runs ``function`` in inference mode, which is faster than ``no_grad``, and makes ordinary tensors of what it returns,
    which a caller may write into and use under autograd; except for a caller that is in inference mode itself."""

    @functools.wraps(function)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if torch.is_inference_mode_enabled():  # as in each step of a sampler, where entering it again would cost time
            return function(*args, **kwargs)
        with torch.inference_mode():
            result = function(*args, **kwargs)
        return _ordinary(result)

    return wrapped


def _ordinary(x: Any) -> Any:
    if isinstance(x, Tensor):
        return x.clone() if x.is_inference() else x
    if isinstance(x, dict):
        return {k: _ordinary(v) for k, v in x.items()}
    if isinstance(x, list | tuple):
        return type(x)(*map(_ordinary, x)) if hasattr(x, "_fields") else type(x)(map(_ordinary, x))  # a named tuple
    return x
