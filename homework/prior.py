"""What priors over one grid share: the loss, and sampling."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homework import sampling


class GridPrior(nn.Module):
    """p(grid) = prod_n p(t_n | t_0 .. t_{n-1}), in raster order.

    A subclass has ``n_tokens``, ``forward((B,h,w)) -> (logits (B,h,w,K), {})`` and ``steps(B, h, w, device)``, its
    incremental form.
    """

    def loss(self, tokens: Tensor) -> dict[str, Tensor]:
        """Cross-entropy of (B,h,w) int64 grids: "loss" in nats per token, "bits_per_image" in bits; for binary pixels also
        "nats_per_image" and "bits_per_pixel"."""
        logits, _ = self(tokens)
        nats = F.cross_entropy(logits.flatten(0, 2).float(), tokens.flatten())  # (B,h,w,K) -> (B*N,K)
        per_token, N = nats.detach(), tokens[0].numel()
        measures = {"loss": nats, "bits_per_image": per_token * N / math.log(2)}
        if self.n_tokens == 2:
            measures |= {"nats_per_image": per_token * N, "bits_per_pixel": per_token / math.log(2)}
        return measures

    @torch.inference_mode()
    def generate(self, B: int, h: int, w: int, device: str | torch.device = "cpu", **sampling_options) -> Tensor:
        """Samples (B,h,w) int64 grids; options as in :func:`homework.sampling.generate` (temperature, top_k, top_p,
        generator, prefix). The model must be on ``device`` already."""
        was_training = self.training
        self.eval()
        try:
            return sampling.generate(self.steps(B, h, w, device), B, h, w, **sampling_options)
        finally:
            self.train(was_training)

    def images(self, tokens: Tensor) -> dict[str, Tensor]:
        """Token grids (n,h,w) int64, for the training loop to decode: some of the data's, and as many samples."""
        some = tokens[:4]
        samples = self.generate(*some.shape, device=tokens.device, generator=torch.Generator().manual_seed(0))
        return {"data": some, "samples": samples}

    def set_progress(self, f: float) -> None:
        """Nothing anneals."""
