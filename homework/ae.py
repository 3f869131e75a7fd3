"""Patch auto-encoder: an image becomes a small grid of vectors and comes back. The blocks here serve all tokenizers."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homework import checks
from homework.checkpoint import load_reference
from homework.masked_conv import MaskedConv2d


def load() -> nn.Module:
    """The reference auto-encoder, ``homework/PatchAutoEncoder.pth``, in eval mode."""
    return load_reference("PatchAutoEncoder")


class Conv(nn.Conv2d):
    """A convolution of (B,H,W,C) tensors. The permuted views are what torch calls channels_last: nothing is copied."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B,H,W,C) -> (B,C,H,W) -> (B,H,W,C)


class Block(nn.Module):
    """A ConvNeXt block (Liu et al., arXiv 2201.03545, figure 4): look around by a depthwise convolution, then think at
    each place by a perceptron; (B,h,w,D) -> (B,h,w,D). Starts close to the identity."""

    def __init__(self, D: int, kernel: int = 5, expansion: int = 4):
        super().__init__()
        self.around = Conv(D, D, kernel, padding=kernel // 2, groups=D)
        self.norm = nn.LayerNorm(D)
        self.mlp = nn.Sequential(nn.Linear(D, expansion * D), nn.GELU(), nn.Linear(expansion * D, D))
        nn.init.normal_(self.mlp[2].weight, std=1e-3)
        nn.init.zeros_(self.mlp[2].bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(self.around(x)))


def pad_to_patches(x: Tensor, P: int, Q: int | None = None) -> Tensor:
    """Repeats the last row and column of (B,H,W,C) until H is a multiple of P and W one of Q (P if None)."""
    H, W = x.shape[1:3]
    down, right = -H % P, -W % (Q or P)
    if down:
        x = torch.cat([x, x[:, -1:].expand(-1, down, -1, -1)], dim=1)
    if right:
        x = torch.cat([x, x[:, :, -1:].expand(-1, -1, right, -1)], dim=2)
    return x


def unpatch(x: Tensor, P: int, Q: int | None = None) -> Tensor:
    """Lays out patches: (B,h,w,P*Q*C) -> (B,h*P,w*Q,C); Q = P if None."""
    B, h, w, _ = x.shape
    Q = Q or P
    x = x.view(B, h, w, P, Q, -1).transpose(2, 3)  # (B,h,w,P*Q*C) -> (B,h,P,w,Q,C)
    return x.reshape(B, h * P, w * Q, -1)  # (B,h,P,w,Q,C) -> (B,h*P,w*Q,C)


class PatchEncoder(nn.Module):
    """(B,H,W,3) -> (B,h,w,out): every patch to a vector, then blocks that see its surroundings; H, W multiples of P."""

    def __init__(self, P: int, D: int, out: int, n_blocks: int):
        super().__init__()
        self.patch = Conv(3, D, P, stride=P)
        self.blocks = nn.Sequential(*(Block(D) for _ in range(n_blocks)), nn.LayerNorm(D))
        self.out = nn.Linear(D, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(self.patch(x)))


class PatchDecoder(nn.Module):
    """(B,h,w,inp) -> (B,h*P,w*P,3): blocks on the grid, a linear map to pixels, and what small convolutions add to it at
    full resolution, from ``detail`` channels, where they can mend the seams between patches."""

    def __init__(self, P: int, D: int, inp: int, n_blocks: int, detail: int):
        super().__init__()
        self.P = P
        self.inp = nn.Linear(inp, D)
        self.blocks = nn.Sequential(*(Block(D) for _ in range(n_blocks)), nn.LayerNorm(D))
        self.pixels = nn.Linear(D, P * P * 3)
        nn.init.normal_(self.pixels.weight, std=0.02)  # start near grey, the middle of what pixels can be
        nn.init.zeros_(self.pixels.bias)
        self.features = nn.Linear(D, P * P * detail)
        self.mend = nn.Sequential(nn.GELU(), Conv(detail, detail, 3, padding=1), nn.GELU(), Conv(detail, 3, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        z = self.blocks(self.inp(z))
        return unpatch(self.pixels(z), self.P) + self.mend(unpatch(self.features(z), self.P))


class AutoEncoder(nn.Module):
    """An auto-encoder of images that leaves a grid of vectors, one for each square of ``stride`` pixels.

    ::

        x (...,H,W,3) -> edge-pad -> encoder -> z (...,h,w,C) -> decoder -> crop -> x_hat (...,H,W,3)

    A subclass has ``config``, ``encoder``, a module (B,h*stride,w*stride,3) -> (B,h,w,C), and ``decoder``, the way back.

    Args:
        stride: pixels from one vector to the next, down and to the right; also its ``patch_size``.
    """

    data = "images"

    def __init__(self, stride: int):
        super().__init__()
        self.stride = self.patch_size = stride

    def encode(self, x: Tensor) -> Tensor:
        """(...,H,W,3) float in [-0.5,0.5] -> (...,h,w,C), h = ceil(H/stride), w = ceil(W/stride).
        ValueError if the last dimension is not 3."""
        if x.ndim < 3 or x.shape[-1] != 3:
            raise ValueError(f"Images have the shape (...,H,W,3), but this one has {tuple(x.shape)}.")
        z = self.encoder(pad_to_patches(x.reshape(-1, *x.shape[-3:]), self.stride))  # (...,H,W,3) -> (B,H,W,3)
        return z.reshape(*x.shape[:-3], *z.shape[1:])  # (B,h,w,C) -> (...,h,w,C)

    def decode(self, z: Tensor) -> Tensor:
        """(...,h,w,C) -> (...,h*stride,w*stride,3): whole squares, in [-0.5,0.5] but for what the network overshoots."""
        x = self.decoder(z.reshape(-1, *z.shape[-3:]))  # (...,h,w,C) -> (B,h,w,C)
        return x.reshape(*z.shape[:-3], *x.shape[1:])  # (B,H,W,3) -> (...,H,W,3)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(...,H,W,3) -> (x_hat (...,H,W,3), extra losses and measures: none here)."""
        return self.decode(self.encode(x))[..., : x.shape[-3], : x.shape[-2], :], {}

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """Mean squared error of (B,H,W,3) images, and "psnr" in dB for a peak of 1. What ``forward`` measures is logged
        too; entries whose names end in "_loss" are added to the error."""
        x_hat, measures = self(x)
        mse = F.mse_loss(x_hat, x)
        extra = sum(v for k, v in measures.items() if k.endswith("_loss"))
        return {"loss": mse + extra, "mse": mse.detach(), "psnr": -10 * mse.detach().log10(), **measures}

    @torch.no_grad()
    def images(self, x: Tensor) -> dict[str, Tensor]:
        """(B,H,W,3) -> {"input", "reconstruction"}: (B,3,H,W) in [0,1]."""
        pictures = {"input": x, "reconstruction": self(x)[0]}
        return {k: (v + 0.5).clamp(0, 1).permute(0, 3, 1, 2) for k, v in pictures.items()}  # (B,H,W,3) -> (B,3,H,W)

    def set_progress(self, f: float) -> None:
        """Nothing anneals."""


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
    Raises:
        ValueError: naming the argument and what is allowed.
    """

    def __init__(
        self,
        patch_size: int = 25,
        latent_dim: int = 128,
        bottleneck: int = 128,
        encoder_blocks: int = 2,
        decoder_blocks: int = 3,
        detail: int = 16,
    ):
        config = {k: v for k, v in locals().items() if k not in ("self", "__class__")}
        checks.whole(1, 64, patch_size=patch_size)
        checks.whole(1, 4096, latent_dim=latent_dim, bottleneck=bottleneck, detail=detail)
        checks.whole(0, 64, encoder_blocks=encoder_blocks, decoder_blocks=decoder_blocks)
        super().__init__(patch_size)
        self.config = config
        self.encoder = PatchEncoder(patch_size, latent_dim, bottleneck, encoder_blocks)
        self.decoder = PatchDecoder(patch_size, latent_dim, bottleneck, decoder_blocks, detail)


# --- what tokenizers share ------------------------------------------------------------------------------------------------


def usage(index: Tensor, n_tokens: int) -> dict[str, Tensor]:
    """Of integers in [0,K) of any shape: "usage" (part of the K codes that occur), "entropy" of their frequencies in bits,
    "perplexity" 2^entropy; scalars."""
    return usage_of(index.flatten().unique(return_counts=True)[1], n_tokens)


def usage_of(counts: Tensor, n_tokens: int) -> dict[str, Tensor]:
    """As :func:`usage`, given how often codes occur, (n)."""
    p = counts[counts > 0] / counts.sum()
    entropy = -(p * p.log2()).sum()
    return {"usage": torch.tensor(len(p) / n_tokens), "entropy": entropy, "perplexity": 2**entropy}


def check_weights(config: dict, names: tuple[str, ...]) -> None:
    """ValueError, naming the first of ``names`` whose value in ``config`` is no finite number of at least 0."""
    for name in names:
        if type(config[name]) not in (int, float) or not 0 <= config[name] < float("inf"):
            raise ValueError(f"{name} is {config[name]!r}, but must be a number of at least 0.")


class CausalContext(nn.Module):
    """What the codes at earlier places tell of each place: (B,h,w,C) -> (B,h,w,out), by a convolution that sees only what
    comes before in raster order. Minnen, Ballé and Toderici, arXiv 1809.02736: their context model."""

    def __init__(self, C: int, out: int, hidden: int = 64, kernel: int = 5):
        super().__init__()
        self.context, self.out = MaskedConv2d("A", C, hidden, kernel), nn.Linear(hidden, out)

    def look(self, code: Tensor) -> Tensor:
        """(B,h,w,C) -> (B,h,w,out)."""
        x = self.context(code.permute(0, 3, 1, 2))  # (B,h,w,C) -> (B,C,h,w) -> (B,hidden,h,w)
        return self.out(F.gelu(x.permute(0, 2, 3, 1)))  # (B,hidden,h,w) -> (B,h,w,hidden) -> (B,h,w,out)


class PatchTokenizer(PatchAutoEncoder):
    """A patch auto-encoder with a quantizer in its waist: codes (...,h,w,d), one of K at each place, and their indices.

    A subclass has ``n_tokens``, K, and ``encode(x) -> code``, ``decode(code) -> x_hat``, ``encode_index(x) -> index``,
    ``code_vectors(index) -> code`` and :meth:`quantize`.
    """

    def latent(self, x: Tensor) -> Tensor:
        """(...,H,W,3) -> (...,h,w,bottleneck): what is to be quantized."""
        return PatchAutoEncoder.encode(self, x)

    def quantize(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(...,h,w,bottleneck) -> (code (...,h,w,d) with a gradient to z, measures: usage, and the weighted losses)."""
        raise NotImplementedError

    def decode_index(self, index: Tensor) -> Tensor:
        """(...,h,w) integers in [0,K) -> (...,h*P,w*P,3)."""
        return self.decode(self.code_vectors(index))

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(...,H,W,3) -> (x_hat (...,H,W,3), measures): those of :func:`usage` over the batch, and the weighted losses
        that are switched on."""
        code, measures = self.quantize(self.latent(x))
        return self.decode(code)[..., : x.shape[-3], : x.shape[-2], :], measures
