"""A cascade's grids as range-coded payloads."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from homework.codec import range_coder
from homework.codec.entropy import coding_steps, quantize_probabilities
from homework.core.model import ordinary_tensors
from homework.priors.cascade import Cascade


class CascadeCoder:
    """Codes the grids of all scales of an image into one payload: both directions take the same float steps, as for any
    prior in floats."""

    def __init__(self, cascade: Cascade):
        self.cascade = cascade

    def _step(self, k: int, coarse: Tensor | None, B: int) -> range_coder.Step:
        """Over B grids of codebook k, given those of codebook k-1."""
        cascade, K = self.cascade, self.cascade.codebooks[k].n_tokens
        if k:
            stage, size, device = cascade.stages[k - 1], cascade.sizes[k], cascade.device
            return coding_steps(lambda: stage.steps(coarse, *size, device), quantize_probabilities, device)
        uniform = np.full((B, K), range_coder.TOTAL // K - 1, np.float32)
        uniform[:, 0] += range_coder.TOTAL % K
        return lambda tokens: uniform

    def compress(self, grids: Sequence[Tensor]) -> list[bytes]:
        """Grids (B,h,w) int64 of all codebooks -> B payloads, which :meth:`decompress` needs together: floats are repeated
        only in the batch in which they were coded."""
        parts = []
        for k, grid in enumerate(grids):
            step = self._step(k, grids[k - 1] if k else None, len(grid))
            parts.append(range_coder.intervals_by_steps(step, grid.flatten(1).cpu().numpy()))  # (B,h,w) -> (B,N)
        return [range_coder.encode(*image) for image in np.concatenate(parts, axis=2).swapaxes(0, 1)]  # (2,B,N) -> (B,2,N)

    @ordinary_tensors
    def decompress(self, payloads: Sequence[bytes]) -> list[Tensor]:
        """The grids of payloads, all that were coded together. ValueError if one cannot be decoded; but most damage gives
        other grids silently, for a payload, unlike a file, has no checksum."""
        decoder = range_coder.BatchDecoder(payloads, [f"Payload {i}" for i in range(len(payloads))], exact=False)
        grids = []
        for k, (h, w) in enumerate(self.cascade.sizes):
            step = self._step(k, grids[-1] if k else None, len(payloads))
            tokens = torch.from_numpy(decoder.decode(step, len(payloads), h * w))
            grids.append(tokens.view(-1, h, w).to(self.cascade.device))  # (B,N) -> (B,h,w)
        decoder.finish()
        return grids
