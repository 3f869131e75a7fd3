"""Layers of networks over grids: activation functions by name, convolutions, and images in patches."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homework.core import checks


class SquaredReLU(nn.Module):
    """max(x, 0)^2 (So et al., arXiv 2109.08668)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).square()


ACTIVATIONS = {
    "relu": nn.ReLU, "relu2": SquaredReLU, "leaky_relu": nn.LeakyReLU, "elu": nn.ELU, "gelu": nn.GELU, "silu": nn.SiLU,
    "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "none": nn.Identity,
}  # fmt: skip


class MaskedConv2d(nn.Conv2d):
    """A k x k convolution, (B,C,H,W) -> (B,C',H,W), that sees no later position (van den Oord et al., arXiv 1601.06759,
    section 3.4). Type A hides the position itself too, for the first layer; type B shows it, as by then it depends on
    earlier positions alone. ``weight`` is masked whenever it is used. ValueError for another type, or an even kernel."""

    mask: Tensor

    def __init__(self, mask_type: str, c_in: int, c_out: int, kernel_size: int):
        if mask_type not in ("A", "B"):
            raise ValueError(f"mask_type is {mask_type!r}, but must be A (the position itself hidden) or B (seen).")
        checks.odd(3, kernel_size=kernel_size)  # with a middle, and something around it
        super().__init__(c_in, c_out, kernel_size, padding=kernel_size // 2)
        self.mask_type, k = mask_type, kernel_size
        seen = torch.arange(k * k).view(k, k) < k * k // 2 + (mask_type == "B")
        self.register_buffer("mask", seen.float(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # the kernel's rows below the middle are all masked; leaving them out saves a third of the work of a 3x3
        above = self.kernel_size[0] // 2
        weight = (self.weight * self.mask)[:, :, : above + 1]  # (C',C,k//2+1,k)
        return F.conv2d(F.pad(x, (0, 0, above, 0)), weight, self.bias, padding=(0, above))


class Conv(nn.Conv2d):
    """A convolution of (B,H,W,C) tensors. The permuted views are what torch calls channels_last: nothing is copied."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)  # (B,H,W,C) -> (B,C,H,W) -> (B,H,W,C)


class Block(nn.Module):
    """A ConvNeXt block (Liu et al., arXiv 2201.03545, figure 4): a depthwise convolution, then an MLP at each position;
    (B,h,w,D) -> (B,h,w,D). Starts close to the identity."""

    def __init__(self, D: int, kernel: int = 5, expansion: int = 4):
        super().__init__()
        self.around = Conv(D, D, kernel, padding=kernel // 2, groups=D)
        self.norm = nn.LayerNorm(D)
        self.mlp = nn.Sequential(nn.Linear(D, expansion * D), nn.GELU(), last := nn.Linear(expansion * D, D))
        nn.init.normal_(last.weight, std=1e-3)
        nn.init.zeros_(last.bias)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mlp(self.norm(self.around(x)))


def halo(network: nn.Module) -> int:
    """How many positions beyond its own an output of a network depends on, if only its convolutions look around: an upper
    bound, in positions of the coarsest grid between its layers, and the exact number if there is but one grid."""
    total = 0
    for conv in network.modules():
        if isinstance(conv, nn.Conv2d):
            before = int(conv.padding[0])  # and after its own ``stride`` positions, what is left of the kernel
            total += max(before, conv.kernel_size[0] - conv.stride[0] - before)
    return total


def pad_to_patches(x: Tensor, P: int, Q: int | None = None) -> Tensor:
    """Repeats the last row and column of (...,H,W,C) until H is a multiple of P and W one of Q (P if None)."""
    down, right = -x.shape[-3] % P, -x.shape[-2] % (Q or P)
    if down:
        x = torch.cat([x, *[x[..., -1:, :, :]] * down], dim=-3)
    if right:
        x = torch.cat([x, *[x[..., -1:, :]] * right], dim=-2)
    return x


def to_patches(x: Tensor, P: int, Q: int | None = None) -> Tensor:
    """Cuts into patches: (...,h*P,w*Q,C) -> (...,h,w,P*Q*C); Q = P if None."""
    x = x.unflatten(-2, (-1, Q or P)).unflatten(-4, (-1, P))  # (...,h*P,w*Q,C) -> (...,h,P,w,Q,C)
    return x.transpose(-4, -3).flatten(-3)  # (...,h,w,P,Q,C) -> (...,h,w,P*Q*C)


def unpatch(x: Tensor, P: int, Q: int | None = None) -> Tensor:
    """Joins patches: (...,h,w,P*Q*C) -> (...,h*P,w*Q,C); Q = P if None."""
    x = x.unflatten(-1, (P, Q or P, -1)).transpose(-4, -3)  # (...,h,w,P*Q*C) -> (...,h,P,w,Q,C)
    return x.flatten(-3, -2).flatten(-4, -3)  # (...,h,P,w,Q,C) -> (...,h*P,w*Q,C)


class PatchEncoder(nn.Module):
    """(B,H,W,3) -> (B,h,w,out): every patch to a vector, then blocks that see its surroundings; H, W multiples of P. With a
    ``dial`` the vectors depend on a number in [-1,1] for each image too (B); at 0 they are those of an encoder without."""

    def __init__(self, P: int, D: int, out: int, n_blocks: int, dial: bool = False):
        super().__init__()
        self.patch = Conv(3, D, P, stride=P)
        self.dial = nn.Linear(3, D, bias=False) if dial else None
        if self.dial:
            nn.init.zeros_(self.dial.weight)
        self.blocks = nn.Sequential(*(Block(D) for _ in range(n_blocks)), nn.LayerNorm(D))
        self.out = nn.Linear(D, out)

    def forward(self, x: Tensor, s: Tensor | None = None) -> Tensor:
        z = self.patch(x)
        if self.dial and s is not None:
            z = z + self.dial(torch.stack([s, s**2, s**3], dim=-1))[:, None, None]  # (B,3) -> (B,1,1,D)
        return self.out(self.blocks(z))


class PatchDecoder(nn.Module):
    """(B,h,w,inp) -> (B,h*P,w*P,3): blocks on the grid, a linear map to pixels, and what small convolutions add to it at
    full resolution, from ``detail`` channels, where they can mend the seams between patches."""

    def __init__(self, P: int, D: int, inp: int, n_blocks: int, detail: int):
        super().__init__()
        self.P, self.inp = P, nn.Linear(inp, D)
        self.blocks = nn.Sequential(*(Block(D) for _ in range(n_blocks)), nn.LayerNorm(D))
        self.pixels = nn.Linear(D, P * P * 3)
        nn.init.normal_(self.pixels.weight, std=0.02)  # start near grey, the middle of what pixels can be
        nn.init.zeros_(self.pixels.bias)
        self.features = nn.Linear(D, P * P * detail)
        self.mend = nn.Sequential(nn.GELU(), Conv(detail, detail, 3, padding=1), nn.GELU(), Conv(detail, 3, 3, padding=1))

    def forward(self, z: Tensor) -> Tensor:
        z = self.blocks(self.inp(z))
        return unpatch(self.pixels(z), self.P) + self.mend(unpatch(self.features(z), self.P))


def patch_networks(patch_size: int, latent_dim: int, bottleneck: int, encoder_blocks: int, decoder_blocks: int,
                   detail: int, dial: bool = False) -> tuple[PatchEncoder, PatchDecoder]:  # fmt: skip
    """The encoder and decoder of a patch auto-encoder. ValueError, naming the argument, for a value that is not allowed."""
    check_sizes(patch_size, latent_dim, encoder_blocks, decoder_blocks, detail)
    checks.boolean(dial=dial)
    encoder = PatchEncoder(patch_size, latent_dim, bottleneck, encoder_blocks, dial)
    return encoder, PatchDecoder(patch_size, latent_dim, bottleneck, decoder_blocks, detail)


def check_sizes(patch_size: int, latent_dim: int, encoder_blocks: int, decoder_blocks: int, detail: int) -> None:
    """ValueError, naming the argument, for a size of a patch auto-encoder's networks that is not allowed."""
    checks.integer(1, 64, patch_size=patch_size)
    checks.integer(1, 4096, latent_dim=latent_dim, detail=detail)
    checks.integer(0, 64, encoder_blocks=encoder_blocks, decoder_blocks=decoder_blocks)
