"""What priors over one grid share: the loss, and sampling."""

import contextlib
import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homework import sampling


def measures(logits: Tensor, grids: Tensor) -> dict[str, Tensor]:
    """Cross-entropy of (B,h,w) int64 grids under (B,h,w,K) logits: "loss" in nats per token, "bits_per_image" in bits; for
    binary pixels (K = 2) also "nats_per_image" and "bits_per_pixel"."""
    nats = F.cross_entropy(logits.flatten(0, 2).float(), grids.flatten())  # (B,h,w,K) -> (B*N,K)
    per_token, N = nats.detach(), grids[0].numel()
    found = {"loss": nats, "bits_per_image": per_token * N / math.log(2)}
    if logits.shape[-1] == 2:
        found |= {"nats_per_image": per_token * N, "bits_per_pixel": per_token / math.log(2)}
    return found


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; behind it, and after an error, in the mode in which it was."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


class GridPrior(nn.Module):
    """p(grid) = prod_n p(t_n | t_0 .. t_{n-1}), in raster order.

    A subclass has ``n_tokens``, ``forward((B,h,w)) -> (logits (B,h,w,K), {})`` and ``steps(B, h, w, device)``, its
    incremental form.
    """

    def loss(self, tokens: Tensor) -> dict[str, Tensor]:
        """Of (B,h,w) int64 grids, see :func:`measures`."""
        return measures(self(tokens)[0], tokens)

    @torch.inference_mode()
    def generate(self, B: int, h: int, w: int, device: str | torch.device = "cpu", **sampling_options) -> Tensor:
        """Samples (B,h,w) int64 grids, or searches for likely ones; options as in :func:`homework.sampling.generate`
        (temperature, top_k, top_p, generator, prefix, num_beam, beam_width, beams). The model must be on ``device``."""
        with evaluating(self):
            return sampling.generate(self.steps(B, h, w, device), B, h, w, **sampling_options)

    def images(self, tokens: Tensor) -> dict[str, Tensor]:
        """Token grids (n,h,w) int64, for the training loop to decode: some of the data's, and as many samples."""
        some = tokens[:4]
        samples = self.generate(*some.shape, device=tokens.device, generator=torch.Generator().manual_seed(0))
        return {"data": some, "samples": samples}

    def set_progress(self, f: float) -> None:
        """Nothing anneals."""
