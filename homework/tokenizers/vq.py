"""The tokenizers built on vector quantization, see :mod:`homework.tokenizers.vector_quantizer`."""

import math

import torch.nn.functional as F
from torch import Tensor, nn

from homework.core import checks
from homework.nn.blocks import patch_networks
from homework.tokenizers.base import QuantizedAutoEncoder, RatePredictor, usage
from homework.tokenizers.vector_quantizer import VectorQuantizer


class VQPatchAutoEncoder(QuantizedAutoEncoder):
    """A tokenizer: the patch auto-encoder with a vector quantizer in its bottleneck.

    ::

        x (...,H,W,3) -> PatchEncoder -> (...,h,w,d) -> VectorQuantizer -> code (...,h,w,d) <-> index (...,h,w)
                                                        code -> PatchDecoder -> x_hat (...,H,W,3)

    The bottleneck is narrow (d = 16): in few dimensions more entries are chosen (Yu et al., arXiv 2110.04627, section 3.2).

    Args:
        patch_size, latent_dim, encoder_blocks, decoder_blocks, detail: see :class:`homework.ae.PatchAutoEncoder`.
        n_tokens, code_dim, l2_norm, ema_decay, restart_below: see :class:`VectorQuantizer`.
        codebook_weight: of the codebook loss, which the moving averages of ``ema_decay`` replace.
        commitment_weight: of the commitment loss (beta in equation 3 of the paper); lower, for the entries are to follow
            the vectors rather than the other way round.
        rate_weight, dial, learns: as of :class:`homework.bsq.BSQPatchAutoEncoder`.
    """

    architecture = "VQ patch auto-encoder 1"
    training_options = frozenset({"codebook_weight", "commitment_weight", "ema_decay", "restart_below", "rate_weight",
                                  "learns"})  # fmt: skip

    def __init__(self, patch_size: int = 5, latent_dim: int = 128, n_tokens: int = 1024, code_dim: int = 16,
                 encoder_blocks: int = 2, decoder_blocks: int = 4, detail: int = 16, l2_norm: bool = True,
                 codebook_weight: float = 1.0, commitment_weight: float = 0.25, ema_decay: float = 0.0,
                 restart_below: float = 0.1, rate_weight: float = 0.0, dial: bool = False,
                 learns: str = "encoder"):  # fmt: skip
        quantizer = VectorQuantizer(n_tokens, code_dim, l2_norm, ema_decay, restart_below)
        checks.not_negative(codebook_weight=codebook_weight, commitment_weight=commitment_weight, rate_weight=rate_weight)
        networks = patch_networks(patch_size, latent_dim, code_dim, encoder_blocks, decoder_blocks, detail, dial)
        super().__init__(patch_size, *networks, local=True, dial=dial, learns=learns)
        self.quantizer, self.n_tokens = quantizer, n_tokens
        self.weights = {"codebook": codebook_weight, "commitment": commitment_weight, "rate": rate_weight}
        self.rate = RatePredictor(code_dim, n_tokens) if rate_weight else None

    def to_index(self, z: Tensor) -> Tensor:
        return self.quantizer.encode_index(z)

    def code_vectors(self, index: Tensor) -> Tensor:
        return self.quantizer.decode_index(index)

    def quantize(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        code, index, losses = self.quantizer(z)
        measures = usage(index, self.n_tokens)
        if self.rate is not None:
            grid = index.reshape(-1, *index.shape[-2:])  # (...,h,w) -> (B,h,w)
            losses["rate"] = self.rate.bits_of_entries(code.view(*grid.shape, -1), grid, self.quantizer.entries()).mean()
            measures["bits_per_token"] = losses["rate"].detach()
        return code, measures | {f"{name}_loss": self.weights[name] * loss for name, loss in losses.items()}

    def distance(self, z: Tensor, index: Tensor) -> Tensor:
        """The mean squared difference from the tokens' entries, which stay as they are."""
        return F.mse_loss(self.quantizer.scale(z), self.code_vectors(index).detach())

    def set_progress(self, f: float) -> None:
        # an entry that has jumped is worthless in an average of weights that reaches back to before the jump
        self.quantizer.restarts = f < 0.8

    def after_update(self) -> None:
        self.quantizer.after_update()


class VQVAE(VQPatchAutoEncoder):
    """The simplest vector-quantized auto-encoder: one code for an image. It can make K images and no more, which is why
    the others keep a grid of codes.

    ::

        x (...,height,width,3) -> PatchEncoder -> (...,h,w,d) -> linear -> (...,1,1,d) -> VectorQuantizer
            -> code (...,1,1,d) <-> index (...,1,1);  code -> linear -> (...,h,w,d) -> PatchDecoder -> x_hat

    Args:
        height, width: of the images, in pixels; it takes no others.
        stride: size of the patches that the networks start and end with, from 1 to 64.
        latent_dim, n_tokens, code_dim, encoder_blocks, decoder_blocks, detail, ema_decay: see :class:`VQPatchAutoEncoder`.
    """

    architecture = "VQ-VAE 1"

    def __init__(self, height: int = 100, width: int = 150, latent_dim: int = 128, n_tokens: int = 1024, code_dim: int = 16,
                 stride: int = 10, encoder_blocks: int = 2, decoder_blocks: int = 4, detail: int = 16,
                 ema_decay: float = 0.0):  # fmt: skip
        checks.integer(1, 4096, height=height, width=width)
        checks.integer(1, 64, stride=stride)
        super().__init__(stride, latent_dim, n_tokens, code_dim, encoder_blocks, decoder_blocks, detail, ema_decay=ema_decay)
        self.size = self.patch_size = height, width
        self.encoder_halo = self.decoder_halo = None  # the code sees the entire image, and is seen there
        self.grid = -(-height // stride), -(-width // stride), code_dim
        self.down, self.up = nn.Linear(math.prod(self.grid), code_dim), nn.Linear(code_dim, math.prod(self.grid))

    def latent(self, x: Tensor, lmbda: float | Tensor | None = None) -> Tensor:
        """(...,height,width,3) -> (...,1,1,d); there is no dial. ValueError for an image of another size."""
        if x.ndim > 2 and x.shape[-3:-1] != self.size:
            H, W = x.shape[-3:-1]
            raise ValueError(f"The images are {H}x{W}, but this VQVAE is for {self.size[0]}x{self.size[1]}; train one "
                             f"with --height {H} --width {W}.")  # fmt: skip
        z = super().latent(x).flatten(-3)  # (...,h,w,d) -> (...,h*w*d)
        return self.down(z)[..., None, None, :]  # (...,h*w*d) -> (...,1,1,d)

    def decode(self, code: Tensor) -> Tensor:
        """(...,1,1,d) -> (...,height,width,3). ValueError for a larger grid."""
        self.check_single(code)
        z = self.up(code[..., 0, 0, :]).unflatten(-1, self.grid)  # (...,h*w*d) -> (...,h,w,d)
        return super().decode(z)[..., : self.size[0], : self.size[1], :]
