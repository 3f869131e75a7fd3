"""Patch auto-encoder: an image becomes a small grid of vectors and comes back."""

from homework.core import checkpoint, checks
from homework.nn.blocks import patch_networks
from homework.tokenizers.base import AutoEncoder


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
    """

    architecture = "patch auto-encoder 1"

    def __init__(self, patch_size: int = 25, latent_dim: int = 128, bottleneck: int = 128, encoder_blocks: int = 2,
                 decoder_blocks: int = 3, detail: int = 16):  # fmt: skip
        checks.integer(1, 4096, bottleneck=bottleneck)
        networks = patch_networks(patch_size, latent_dim, bottleneck, encoder_blocks, decoder_blocks, detail)
        super().__init__(patch_size, *networks, local=True)
