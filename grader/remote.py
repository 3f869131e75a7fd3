"""The parent's side of a process that runs a submission: calls its functions and believes nothing that it answers.

What comes back are numbers of a type that is fixed here, of a shape that is checked before the first value is read, all
of them finite. The reasons of failures are text for the report, cut to a line.
"""

import contextlib
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from grader import sandbox
from grader.protocol import HEADER, LENGTH, RESULTS
from grader.sandbox import Child, Limits, printable

MAX_REASON = 400  # bytes
MAX_VALUES = 2**27  # of a response
Size = int | range  # of a dimension: exactly, or one of these


class Failed(Exception):
    """The submission did not do what it must; the message, one line, is the reason that is reported."""


@dataclass
class Remote:
    """A process that runs the submission.

    Attributes:
        child: the process.
        image: (H,W) of the images.
        files: checkpoints of the submission to use in place of its own choice, by module.
        seconds: for an answer, wall-clock.
    """

    child: Child
    image: tuple[int, int]
    files: dict[str, str]
    seconds: float

    def encode(self, x: np.ndarray) -> np.ndarray:
        """float32 (B,H,W,3) -> float32 (B,h,w,channels)."""
        sides = [range(1, n + 1) for n in (*self.image, x[0].size)]
        wanted = f"({len(x)},h,w,channels), at most {x[0].size} numbers of an image"
        return self.call("encode", x, wanted, len(x), *sides, most=x.size).clip(-1e30, 1e30)

    def decode(self, code: np.ndarray) -> np.ndarray:
        """float32 (B,h,w,channels) -> float32 (B,H,W,3)."""
        return self.images("decode", code, len(code))

    def encode_index(self, x: np.ndarray) -> np.ndarray:
        """float32 (B,H,W,3) -> int64 (B,h,w), not negative."""
        sides = [range(1, n + 1) for n in self.image]
        return not_negative("encode_index", self.call("encode_index", x, f"({len(x)},h,w)", len(x), *sides))

    def decode_index(self, tokens: np.ndarray) -> np.ndarray:
        """int64 (B,h,w) -> float32 (B,H,W,3)."""
        return self.images("decode_index", tokens, len(tokens))

    def forward(self, tokens: np.ndarray, n_tokens: Size) -> np.ndarray:
        """int64 (B,h,w) -> float32 logits (B,h,w,K), with this K or one of these."""
        wanted = f"logits ({','.join(map(str, tokens.shape))},{n_tokens if isinstance(n_tokens, int) else 'K'})"
        return self.call("forward", tokens, wanted, *tokens.shape, n_tokens).clip(-1e30, 1e30)

    def generate(self, B: int, h: int, w: int) -> np.ndarray:
        """int64 (B,h,w), not negative."""
        return not_negative("generate", self.call("generate", np.array([B, h, w]), f"({B},{h},{w})", B, h, w))

    def compress(self, x: np.ndarray) -> np.ndarray:
        """One image float32 (H,W,3) -> its file, uint8 (n,)."""
        return self.call("compress", x, "at least one byte, and fewer than the pixels have", range(1, x.size))

    def decompress(self, file: np.ndarray) -> np.ndarray:
        """A file uint8 (n,) -> float32 (H,W,3)."""
        return self.images("decompress", file)

    def images(self, name: str, argument: np.ndarray, *batch: int) -> np.ndarray:
        """What comes back as float32 (...,H,W,3), cut to that size: decoders return complete patches."""
        H, W = self.image
        wanted = f"images ({','.join(map(str, (*batch, H, W, 3)))})"
        found = self.call(name, argument, wanted, *batch, range(H, 2 * H), range(W, 2 * W), 3)
        return found[..., :H, :W, :].clip(-1e6, 1e6)  # so that no sum overflows

    def call(self, name: str, argument: np.ndarray, wanted: str, *shape: Size, most: int = MAX_VALUES) -> np.ndarray:
        """What the function ``name`` of the submission returns: an array of this shape and of ``most`` values, which
        ``wanted`` words. Failed if it returns something else, Ended if it does not return."""
        request = dict(call=name, files=self.files, dtype=argument.dtype.str, shape=argument.shape)
        text = json.dumps(request).encode()
        self.child.send(LENGTH.pack(len(text)) + text + argument.tobytes())
        ndim, *sizes = HEADER.unpack(self.child.receive(HEADER.size, self.seconds))
        if ndim == -1:
            reason = self.child.receive(min(max(sizes[0], 0), MAX_REASON), self.seconds).decode("utf-8", "replace")
            raise Failed(" ".join(printable(reason).split()) or f"{name} failed")
        found = tuple(sizes[: max(ndim, 0)])
        if len(found) != len(shape) or not all(map(within, found, shape)) or math.prod(found) > most:
            raise Failed(f"{name} must return {wanted}, not a tensor ({','.join(map(str, found))})")
        dtype = np.dtype(RESULTS[name])
        data = bytearray(self.child.receive(math.prod(found) * dtype.itemsize, self.seconds))
        values = np.frombuffer(data, dtype)
        if not np.isfinite(values).all():
            raise Failed(f"NaN or infinity in the output of {name}")
        return values.reshape(found)


def not_negative(name: str, tokens: np.ndarray) -> np.ndarray:
    if tokens.min() < 0:
        raise Failed(f"{name} returned the negative index {tokens.min()}")
    return tokens


def within(n: int, size: Size) -> bool:
    return n in size if isinstance(size, range) else n == size


@dataclass
class Processes:
    """Starts the processes of a submission, each in a folder of its own that goes with it.

    Attributes:
        package: the folder that holds the submission's ``homework``.
        scratch: a folder for theirs.
        limits: of each.
        image: (H,W) of the images.
        files: as those of :class:`Remote`.
        guards: what confined the latest one.
        output: the end of what they printed since it was last emptied.
        cpu_seconds: what they used since it was last set to 0.
    """

    package: Path
    scratch: Path
    limits: Limits
    image: tuple[int, int]
    files: dict[str, str] = field(default_factory=dict)
    guards: list[str] = field(default_factory=list)
    output: str = ""
    cpu_seconds: float = 0.0

    @contextlib.contextmanager
    def start(self) -> Iterator[Remote]:
        """A new process. Ended if it cannot start."""
        with sandbox.start("grader.serve:serve", self.package, self.scratch / "process", self.limits) as child:
            self.guards = child.guards
            try:
                yield Remote(child, self.image, self.files, self.limits.wall_seconds)
            finally:
                self.cpu_seconds += child.cpu_seconds
                self.output = (self.output + child.output)[-sandbox.TAIL :]
