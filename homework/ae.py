"""Patch auto-encoder: an image becomes a small grid of vectors and comes back."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from homework.core import checkpoint, checks
from homework.core.processes import say
from homework.datasets.base import Dataset
from homework.nn.blocks import pad_to_patches, patch_networks
from homework.nn.pca import PCAEncoder, pca_networks
from homework.tokenizers.base import AutoEncoder

PATCHES = 2**18  # of training images, for their principal components


def load() -> "PatchAutoEncoder":
    """The trained auto-encoder, in eval mode: the latest copy of a training, or else the pretrained one."""
    return checkpoint.load_reference("PatchAutoEncoder")


class PatchAutoEncoder(AutoEncoder):
    """Compresses each patch of an image into a vector, and back.

    ::

        x (B,H,W,3) -> edge-pad -> PatchEncoder -> z (B,h,w,bottleneck) -> PatchDecoder -> crop -> x_hat (B,H,W,3)

    Args:
        patch_size: P in pixels, from 1 to 64; where it does not divide the image, the image's edge is repeated.
        latent_dim: D, the width of both networks.
        bottleneck: numbers that are kept of a patch.
        encoder_blocks, decoder_blocks: depth on the grid of patches.
        detail: channels of the decoder at full resolution.
        pca: kinds of patches, at most 256, each with a PCA of its own, whose results the networks correct, see
            :class:`homework.nn.pca.PatchPCA`; 1 for a plain PCA, 0 for networks alone. A new training has 16.
    """

    new_options = {"pca": 16}
    architecture = "patch auto-encoder 1"

    def __init__(self, patch_size: int = 25, latent_dim: int = 128, bottleneck: int = 128, encoder_blocks: int = 2,
                 decoder_blocks: int = 3, detail: int = 16, pca: int = 0):  # fmt: skip
        checks.integer(1, 4096, bottleneck=bottleneck)
        checks.integer(0, 256, pca=pca)
        sizes = patch_size, latent_dim, bottleneck, encoder_blocks, decoder_blocks, detail
        networks: tuple[nn.Module, nn.Module] = pca_networks(*sizes, pca) if pca else patch_networks(*sizes)
        super().__init__(patch_size, *networks, local=True)

    def start(self, data: Dataset) -> None:
        if isinstance(self.encoder, PCAEncoder):
            say("Starting at the principal components of training images, a minute or two ...")
            self.encoder.pca.fit(lambda: self.some_images(data))

    def some_images(self, data: Dataset) -> Iterator[Tensor]:
        """Batches (B,H,W,3) of images, padded to complete patches, about PATCHES patches in all: evenly spread over the
        ``data``, or the first ones if it has no random access."""
        H, W = data.batch([0]).shape[1:3]
        n = max(256, PATCHES // (-(-H // self.stride) * -(-W // self.stride)))
        of = len(data) if data.random_access else min(n, len(data))
        for some in torch.arange(0, of, max(1, of // n)).split(64):
            yield pad_to_patches(data.batch(some, self.device), self.stride)
