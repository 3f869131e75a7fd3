"""The child's side: answers the grader's calls (:mod:`grader.protocol`) with what the submission's functions return.

The submission runs in this process, so that nothing that comes from here can be trusted: :mod:`grader.remote` checks it.
"""

import contextlib
import importlib
import json
import math
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from grader.protocol import HEADER, LENGTH, MAX_DIMENSIONS, RESULTS

MAX_THREADS = 4  # of torch: the CPU time that many more waste would count


class Wrong(Exception):
    """What a function of the submission returned is not what it must return; the message says which, in one line."""


def forward(prior: Any, tokens: Tensor) -> Any:
    output = prior(tokens)
    if not (isinstance(output, tuple) and len(output) == 2):
        raise Wrong(f"forward must return (logits, dict), not a {type(output).__name__}")
    return output[0]


def generate(prior: Any, size: Tensor) -> Any:
    return prior.generate(*size.tolist(), torch.device("cpu"))


def decompress(compressor: Any, data: Tensor) -> Any:
    return compressor.decompress(data.numpy().tobytes())


def compress(compressor: Any, image: Tensor) -> Tensor:
    data = compressor.compress(image)
    if not isinstance(data, bytes):
        raise Wrong(f"compress must return bytes, not a {type(data).__name__}")
    return torch.from_numpy(np.frombuffer(data, np.uint8).copy())


# call -> the module whose model it takes, or "compressor", and (model, argument) -> the submission's result
CALLS: dict[str, tuple[str, Callable[..., Any]]] = {
    "encode": ("ae", lambda model, x: model.encode(x)),
    "decode": ("ae", lambda model, code: model.decode(code)),
    "encode_index": ("bsq", lambda model, x: model.encode_index(x)),
    "decode_index": ("bsq", lambda model, tokens: model.decode_index(tokens)),
    "forward": ("autoregressive", forward),
    "generate": ("autoregressive", generate),
    "compress": ("compressor", compress),
    "decompress": ("compressor", decompress),
}


def load(name: str, file: str | None = None) -> Any:
    """What the submission's ``homework.{name}.load()`` returns, in eval mode; with a ``file`` of its package, what
    ``homework.load(file)`` returns. The class ``homework.Compressor`` for "Compressor"."""
    package = importlib.import_module("homework")
    if name == "Compressor":
        return getattr(package, name, None)
    model = package.load(Path(package.__path__[0], file)) if file else importlib.import_module(f"homework.{name}").load()
    return model.eval() if isinstance(model, torch.nn.Module) else model


class Models(dict[str, Any]):
    """The submission's models by their modules, loaded when first asked for, and its "compressor".

    Args:
        files: those to load, in the submission's package, in place of what a module's ``load()`` returns.
        load: as :func:`load`.
    """

    def __init__(self, files: dict[str, str], load: Callable[..., Any]):
        self.files, self.load = files, load

    def __missing__(self, name: str) -> Any:
        if name == "compressor":
            compressor = self.guarded("import homework", self.load, "Compressor")
            if compressor is None:
                raise Wrong("not implemented")
            self[name] = self.guarded("Compressor", compressor, self["bsq"], self["autoregressive"])
        else:
            file = self.files.get(name)
            call = f"homework.load({file!r})" if file else f"homework.{name}.load()"
            self[name] = self.guarded(call, self.load, name, file)
        return self[name]

    @staticmethod
    def guarded(call: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except Exception as error:
            raise Wrong(f"{call} failed: {describe(error)}") from error


def serve(read: BinaryIO, write: BinaryIO, load: Callable[..., Any] = load) -> None:
    """Answers requests until ``read`` ends."""
    torch.manual_seed(0)
    torch.set_num_threads(min(torch.get_num_threads(), MAX_THREADS))
    models = Models({}, load)
    while length := read.read(LENGTH.size):
        request = json.loads(read.read(*LENGTH.unpack(length)))
        dtype = np.dtype(request["dtype"])
        data = bytearray(read.read(math.prod(request["shape"]) * dtype.itemsize))
        argument = torch.from_numpy(np.frombuffer(data, dtype).reshape(request["shape"]))
        models.files = request["files"]
        try:
            result = answer(request["call"], models, argument)
            sizes = [result.ndim, *result.shape]
        except BaseException as error:  # noqa: B036  sys.exit and KeyboardInterrupt are failures of this part only
            with contextlib.suppress(Exception):  # as of an error that fails to say what it is
                traceback.print_exception(error)
            result = np.frombuffer(describe(error).encode("utf-8", "replace"), np.uint8)
            sizes = [-1, len(result)]
        write.write(HEADER.pack(*sizes, *[0] * (1 + MAX_DIMENSIONS - len(sizes))))
        write.write(result.tobytes())
        write.flush()


def answer(name: str, models: Models, argument: Tensor) -> np.ndarray:
    """The result of a call as an array of the type that ``RESULTS`` names."""
    module, function = CALLS[name]
    model = models[module]
    try:
        with torch.no_grad():  # not inference_mode, in whose tensors a package may not write
            result = function(model, argument)
    except Wrong:
        raise
    except Exception as error:
        raise Wrong(f"{name} failed: {describe(error)}") from error
    return values(result, RESULTS[name], name)


def values(result: Any, dtype: type, call: str) -> np.ndarray:
    """The submission's result as an array of ``dtype``."""
    if not isinstance(result, Tensor):
        raise Wrong(f"{call} must return a tensor, not a {type(result).__name__}")
    if dtype is np.int64 and (result.is_floating_point() or result.dtype == torch.bool):
        raise Wrong(f"{call} must return integers, not {result.dtype}")
    if result.is_complex():
        raise Wrong(f"{call} must return real numbers, not {result.dtype}")
    if result.ndim > MAX_DIMENSIONS:
        raise Wrong(f"{call} returned a tensor of {result.ndim} dimensions")
    result = result.detach().cpu()
    return (result.float() if dtype is np.float32 else result).numpy().astype(dtype)


def describe(error: BaseException) -> str:
    """One line for the report, at most 300 characters."""
    try:
        line = next(iter(str(error).strip().splitlines()), "")[:300]
    except Exception:  # of the submission's own kind of error
        line = ""
    if isinstance(error, Wrong):
        return line
    if isinstance(error, SystemExit):
        return f"called sys.exit({line})"
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
