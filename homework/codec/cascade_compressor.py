"""Images to bytes and back, under a cascade: the tokens of all its grids."""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from homework.codec import archive, dial, tiles
from homework.codec.compressor import PIXELS_AT_ONCE, Compressor
from homework.codec.range_coder import damaged
from homework.core.fingerprint import of_all_weights
from homework.datasets.image_files import batches_of
from homework.datasets.images import as_float
from homework.priors.cascade import Cascade

NO_SEARCH = ("A cascade codes the tokens that its codebooks make, without a search for better ones; leave --effort, "
             "--quality, --lmbda, --target_bytes and --target_psnr out.")  # fmt: skip


class CascadeCompressor(Compressor):
    """As :class:`homework.codec.compressor.Compressor`, for images of the one size that a cascade knows::

        x (H,W,3) -> grids of all codebooks -> one row (1,N) of their tokens, from coarse to fine -> range coder -> file
        file -> range coder <-> stage after stage -> (1,N) -> grids of all codebooks -> decode_grids -> crop -> x_hat (H,W,3)

    What the methods call a grid is this row. There is no search. ValueError if one is asked for.
    """

    priors = Cascade

    def __init__(self, cascade: Cascade, device: str | torch.device | None = None, batch_size: int = 64, effort: int = 0,
                 quality: float = dial.QUALITY, target: dial.Target | None = None):  # fmt: skip
        super().__init__(cascade.codebooks[-1], cascade, device, batch_size, effort, quality, target)

    def _set(self, effort: int, quality: float, target: dial.Target | None) -> None:
        if effort or target or quality != dial.QUALITY:
            raise ValueError(NO_SEARCH)
        super()._set(effort, quality, target)

    @property
    def encoders(self) -> list[str]:
        return [of_all_weights(codebook) for codebook in self.prior.codebooks]

    def grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """(1,N). ValueError if an image of ``size`` (H,W) has another finest grid than the cascade knows."""
        self.prior.check_grid(-1, super().grid(size), size)
        return 1, self.entropy_model.width

    def grid_in(self, reader: archive.Reader, i: int) -> tuple[int, int]:
        if reader.grid(i) != self.prior.sizes[-1]:
            raise damaged(reader.label(i), "its size is not one that its models know")
        return 1, self.entropy_model.width

    def to_tokens(self, images: Tensor | Sequence[Tensor], searched: Callable[[], object] = lambda: None) -> np.ndarray:
        """Images (H,W,3) of one size, float in [-0.5,0.5] or uint8 -> (B,1,N) int64; none is ``searched``. ValueError for
        another size than the cascade's."""
        at_once, rows = max(1, PIXELS_AT_ONCE // images[0][..., 0].numel()), []
        for part in batches_of(images, at_once):
            grids = self.prior.encode(as_float(torch.stack(list(part)).to(self.device)))
            rows.append(torch.cat([grid.flatten(1) for grid in grids], dim=1))  # (B,h,w) each -> (B,N)
        return torch.cat(rows)[:, None].cpu().numpy()  # (B,N) -> (B,1,N)

    def decoded_blocks(self, grids: Sequence[np.ndarray], sizes: Sequence[tuple[int, int]],
                       ) -> Iterator[tuple[int, tiles.Slices, Tensor]]:  # fmt: skip
        for part in batches_of(range(len(grids)), max(1, PIXELS_AT_ONCE // math.prod(self.prior.image_size))):
            rows = torch.from_numpy(np.concatenate([grids[i] for i in part])).to(self.device)  # (1,N) each -> (B,N)
            with torch.inference_mode():  # one by itself as a person would decode it, without a batch
                split = self.entropy_model.grids if len(part) > 1 else self.entropy_model.split
                found = self.tokenizer.decode_grids(split(rows))
            for i, x in zip(part, found if len(part) > 1 else [found], strict=True):
                H, W = sizes[i]
                yield i, (slice(H), slice(W)), x[:H, :W]

    def by_patch(self, bits: Tensor, grid: np.ndarray) -> Tensor:
        """(1,N) -> (h,w): of each patch, the coarser tokens' bits in equal parts for all patches that are below them."""
        size, found = self.prior.sizes[-1], torch.zeros(self.prior.sizes[-1], dtype=bits.dtype)
        for part in self.entropy_model.split(bits):
            found += F.interpolate(part[None, None], size)[0, 0] * (part.numel() / found.numel())
        return found
