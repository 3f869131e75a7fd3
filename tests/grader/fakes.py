"""A good submission in a few lines, in parts that tests replace, and ways to measure it: in processes, and without them."""

import contextlib
import os
import sys
import threading
from types import SimpleNamespace

import numpy as np
from PIL import Image

from grader import grading, serve
from grader.measure import Data, Measures
from grader.remote import Processes, Remote
from grader.sandbox import Ended, Limits

# --- a good submission in a few lines: frames are grey 5x5 squares, a token is a square's grey level ------------------

AE = """
import torch

class AutoEncoder(torch.nn.Module):
    P = 5

    def encode(self, x):  # (B,H,W,3) -> (B,h,w,3), a patch's mean colour
        B, H, W, _ = x.shape
        x = x.view(B, H // self.P, self.P, W // self.P, self.P, 3)
        return x.mean((2, 4))

    def decode(self, z):
        B, h, w, C = z.shape
        x = z[:, :, None, :, None].expand(B, h, self.P, w, self.P, C)
        return x.reshape(B, h * self.P, w * self.P, 3)

def load():
    return AutoEncoder()
"""

BSQ = """
import torch

class Tokenizer(torch.nn.Module):
    n_tokens = 16

    def encode_index(self, x):  # (B,H,W,3) -> (B,h,w)
        grey = torch.nn.functional.avg_pool2d(x.mean(-1)[:, None], 5)[:, 0]
        return ((grey + 0.5) * 15).round().long().clamp(0, 15)

    def decode_index(self, tokens):
        x = (tokens.float() / 15 - 0.5)[..., None].repeat(1, 1, 1, 3)
        return x.repeat_interleave(5, 1).repeat_interleave(5, 2)

def load():
    return Tokenizer()
"""

AUTOREGRESSIVE = """
import torch

class Prior(torch.nn.Module):
    K = 16

    def forward(self, tokens):  # a token probably repeats the one before it
        flat = tokens.flatten(1)
        logits = torch.zeros(*flat.shape, self.K)
        logits[:, 1:] = 3.0 * torch.nn.functional.one_hot(flat[:, :-1], self.K)
        return logits.view(*tokens.shape, self.K), {}

    def generate(self, B, h, w, device):
        tokens = torch.zeros(B, h * w, dtype=torch.long)
        for n in range(h * w):
            logits, _ = self(tokens.view(B, h, w))
            tokens[:, n] = torch.multinomial(logits.flatten(1, 2)[:, n].softmax(-1), 1)[:, 0]
        return tokens.view(B, h, w)

def load():
    return Prior()
"""

COMPRESSOR = """
import torch

class Compressor:
    def __init__(self, tokenizer, prior):
        self.tokenizer = tokenizer

    def compress(self, x):
        tokens = self.tokenizer.encode_index(x[None])[0]
        return bytes(tokens.shape) + bytes(tokens.flatten().tolist())

    def decompress(self, data):
        h, w = data[:2]
        return self.tokenizer.decode_index(torch.tensor(list(data[2:])).view(1, h, w))[0]
"""

GOOD = dict(__init__=COMPRESSOR, ae=AE, bsq=BSQ, autoregressive=AUTOREGRESSIVE)


def package(folder, **changed):
    """Writes the good submission, with these modules' sources changed, to folder / "homework"."""
    (folder / "homework").mkdir(parents=True)
    for name, source in (GOOD | changed).items():
        (folder / f"homework/{name}.py").write_text(source)
    return folder / "homework"


def built(source):
    """The model that the module with this source would load."""
    names = {}
    exec(source, names)
    return names["load"]()


def grey_squares(n, h=4, w=6):
    """(n,5h,5w,3) uint8 of the fake tokenizer's grey levels."""
    levels = np.random.default_rng(0).integers(0, 16, (n, h, w)) * 17
    return np.repeat(levels[..., None].repeat(5, 1).repeat(5, 2), 3, -1).astype(np.uint8)


def some_data(n=12, h=4, w=6):
    return Data(grey_squares(n, h, w), np.full(n, 1000))


def write_images(root):
    """A data folder with 12 frames in valid/, three of them in sample/."""
    for name, n in (("valid", 12), ("sample", 3)):
        (root / name).mkdir()
        for i, frame in enumerate(grey_squares(n)):
            Image.fromarray(frame).save(root / name / f"{i:02}.jpg", quality=100)
    return root


class Thread:
    """In place of a child process: a thread with the same pipes. (Its code runs in this process: let it end nothing.)"""

    def __init__(self, load):
        (self.read, write), (read, self.write) = os.pipe(), os.pipe()
        ends = os.fdopen(read, "rb"), os.fdopen(write, "wb")
        self.thread = threading.Thread(target=self.run, args=(*ends, load), daemon=True)
        self.thread.start()

    @staticmethod
    def run(read, write, load):
        with read, write, contextlib.suppress(BrokenPipeError):
            serve.serve(read, write, load)

    def send(self, data):
        while data:
            data = data[os.write(self.write, data) :]

    def receive(self, n, seconds):
        data = b""
        while len(data) < n:
            piece = os.read(self.read, n - len(data))
            if not piece:
                raise Ended("ended")
            data += piece
        return data

    def close(self):
        os.close(self.write)
        os.close(self.read)
        self.thread.join(60)


class Fork(Thread):
    """In place of a child process: a fork of this one, which need not import torch again. Nothing confines it."""

    guards, output, cpu_seconds = ("fork",), "", 0.0

    def __init__(self, submission):
        (read, self.write), (self.read, write) = os.pipe(), os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            with contextlib.suppress(BaseException):
                os.close(self.write)
                os.dup2(os.open(os.devnull, os.O_RDWR), 2)
                for name in [name for name in sys.modules if name.split(".")[0] == "homework"]:
                    del sys.modules[name]
                sys.path.insert(0, str(submission))
                serve.serve(os.fdopen(read, "rb"), os.fdopen(write, "wb"))
            os._exit(0)
        os.close(read)
        os.close(write)

    def close(self):
        os.close(self.write)
        os.close(self.read)
        os.waitpid(self.pid, 0)


@contextlib.contextmanager
def forked(target, submission, scratch, limits):
    """In place of :func:`grader.sandbox.start`."""
    child = Fork(submission)
    try:
        yield child
    finally:
        child.close()


def measuring(data, models=None, **changed):
    """The measures of the good submission with these modules' sources changed, without processes: each start executes the
    sources again. ``models`` has functions that make a model, by module, in place of sources."""

    @contextlib.contextmanager
    def start():
        names = {name: {} for name in GOOD}

        def load(name, file=None):
            if name in (models or {}):
                return models[name]()
            module = "__init__" if name == "Compressor" else name
            exec((GOOD | changed)[module], names[module])
            return names[module].get(name) if name == "Compressor" else names[module]["load"]()

        child = Thread(load)
        try:
            yield Remote(child, data.frames.shape[1:3], {}, 60)
        finally:
            child.close()

    return Measures(data, start)


def graded(data, **changed):
    """The lines of the report on such a submission, by the names of the parts."""
    unused = SimpleNamespace(output="", cpu_seconds=0.0, guards=[])
    return {line["name"]: line for line in grading.lines(measuring(data, **changed), unused)}


def processes(folder, data, cpu_seconds=120.0, **changed):
    """The same measures, in processes."""
    package(folder / "submission", **changed)
    limits = Limits(cpu_seconds, 300.0, memory=16 * 2**30, processes=256, disk=2**30)
    return Measures(data, Processes(folder / "submission", folder / "scratch", limits, data.frames.shape[1:3]).start)
