"""What priors share: the contract, the loss, and sampling."""

import contextlib
import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homework.core.model import Model, ordinary_tensors
from homework.priors import sampling
from homework.priors.steps import NaiveSteps, Steps


def grid_cross_entropy(logits: Tensor, grids: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of (B,h,w) int64 grids under (B,h,w,K) logits: "loss" in nats per token, "bits_per_image" in bits; for
    binary pixels (K = 2) also "nats_per_image" and "bits_per_pixel"."""
    nats = F.cross_entropy(logits.flatten(0, 2).float(), grids.flatten())  # (B,h,w,K) -> (B*N,K)
    per_token, N = nats.detach(), grids[0].numel()
    found = {"loss": nats, "bits_per_image": per_token * N / math.log(2)}
    binary = {"nats_per_image": per_token * N, "bits_per_pixel": per_token / math.log(2)}
    return found | binary if logits.shape[-1] == 2 else found


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; after the block, and after an error in it, in the mode in which it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class Prior(Model):
    """The contract: p(grid) = prod_n p(t_n | t_0 .. t_{n-1}), in raster order. A subclass has ``n_tokens`` and ``forward``.

    Attributes:
        steps_class: its incremental form; by default each token costs a pass over the whole grid.
        reads_codes: whether it can read the tokenizer's code vectors in place of an embedding of its own: then its
            constructor has an argument ``code_dim``, and it defines ``stored_codes``.
    """

    data = "tokens"
    steps_class: ClassVar[Callable[..., Steps]] = NaiveSteps
    reads_codes: ClassVar[bool] = False
    n_tokens: int
    row: Tensor
    column: Tensor
    place: Tensor

    @property
    def grid_size(self) -> tuple[int, int] | None:
        """(height, width) in tokens of the grids that it was built for; None if it takes any size."""
        return (self.config["height"], self.config["width"]) if "height" in self.config else None

    def forward(self, tokens: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(B,h,w) int64 in [0,K) -> (logits (B,h,w,K), {}). The logits at n depend on tokens before n alone."""
        raise NotImplementedError

    def positions(self, h: int, w: int) -> Tensor:
        """(h,w,D): the position embedding of an h x w grid, for a model with one: ``row`` (H,D) + ``column`` (W,D) for
        position "2d", ``place`` (H*W,D) for "1d". ValueError for a grid larger than it was built for."""
        position, H, W = (self.config[name] for name in ("position", "height", "width"))
        if position == "none":
            return torch.zeros(h, w, 1, dtype=torch.bool, device=self.device)  # added to any type, leaves it as it is
        if position == "2d" and h <= H and w <= W:
            return self.row[:h, None] + self.column[:w]
        if position == "1d" and h * w <= H * W:
            return self.place[: h * w].unflatten(0, (h, w))  # (N,D) -> (h,w,D)
        raise ValueError(f"A {h}x{w} grid is larger than the {H}x{W} that this prior was built for; train one with "
                         f"--height {h} --width {w}, or with --position none.")  # fmt: skip

    def stored_codes(self) -> Tensor | None:
        """The code vectors (K,code_dim) that it reads, as a view; None if it has an embedding of its own."""
        return None

    def set_codes(self, codes: Tensor) -> None:
        """Stores the tokenizer's code vectors (K,code_dim) float; they are not trained. ValueError if it reads none, or
        those of another shape."""
        stored = self.stored_codes()
        if stored is None or codes.shape != stored.shape:
            wanted = "none" if stored is None else f"{len(stored)} vectors of code_dim = {stored.shape[1]}"
            raise ValueError(f"The code vectors are {tuple(codes.shape)}, but this prior reads {wanted}; train one with "
                             f"--inputs codes on the grids of this tokenizer.")  # fmt: skip
        with torch.no_grad():
            stored.copy_(codes)

    def bits(self, tokens: Tensor, sharpness: float = 1.0) -> Tensor:
        """(B,h,w) int64 in [0,K) -> (B,h,w) float: the bits of each token, under the probabilities to the power of
        ``sharpness``, an inverse temperature, normalized again."""
        logits = sharpness * self(tokens)[0].movedim(-1, 1)  # (B,h,w,K) -> (B,K,h,w)
        return F.cross_entropy(logits, tokens, reduction="none") / math.log(2)

    @torch.no_grad()
    def replacement_bits(self, tokens: Tensor, sharpness: float = 1.0) -> tuple[Tensor, Tensor]:
        """(B,h,w) int64 in [0,K) -> (their :meth:`bits` (B,h,w), and (B,h,w,K): about how many bits more a grid takes with
        token k at a position in place of its own). Here only what the token itself takes; a subclass may add its effect
        on later ones."""
        bits = (sharpness * self(tokens)[0]).log_softmax(dim=-1).div_(-math.log(2))  # (B,h,w,K)
        own = bits.gather(-1, tokens[..., None])  # (B,h,w,1)
        return own[..., 0], bits - own

    @torch.inference_mode()
    def steps(self, B: int, h: int, w: int, device: str | torch.device = "cpu") -> Steps:
        """The same function token by token, over B grids of h x w, for a model in eval mode on ``device``."""
        return self.steps_class(self, B, h, w, device)

    def loss(self, tokens: Tensor) -> dict[str, Tensor]:
        """:func:`grid_cross_entropy` of (B,h,w) int64 grids."""
        return grid_cross_entropy(self(tokens)[0], tokens)

    @ordinary_tensors
    def generate(self, B: int, h: int, w: int, device: str | torch.device = "cpu", **sampling_options: Any) -> Tensor:
        """Samples (B,h,w) int64 grids, or searches for probable ones: see :func:`homework.priors.sampling.generate`. The
        model must be on ``device``."""
        with evaluating(self):
            return sampling.generate(self.steps(B, h, w, device), B, h, w, **sampling_options).to(device)

    def generate_rows(self, B: int, h: int, w: int, device: str | torch.device = "cpu", **options: Any) -> Iterator[Tensor]:
        """Draws as :meth:`generate` does, and yields after each row the grids (B,r,w) int64 so far. Options as of
        :func:`homework.priors.sampling.generate_rows`."""
        with evaluating(self):
            yield from sampling.generate_rows(self.steps(B, h, w, device), B, h, w, **options)

    def images(self, tokens: Tensor) -> dict[str, Tensor]:
        """Token grids (n,h,w) int64, for the training loop to decode: some of the data's, and as many samples."""
        some = tokens[:4]
        samples = self.generate(*some.shape, device=tokens.device, generator=torch.Generator().manual_seed(0))
        return {"data": some, "samples": samples}
