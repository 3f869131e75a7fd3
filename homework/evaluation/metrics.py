"""How good an image is: PSNR, MS-SSIM."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of the scales of MS-SSIM, the finest first
WINDOW, SIGMA = 11, 1.5  # side and deviation of SSIM's Gaussian window, in pixels


def errors(x_hat: Tensor, x: Tensor) -> list[float]:
    """Mean squared error of each image (B,H,W,3)."""
    return (x_hat - x).square().mean(dim=(1, 2, 3)).tolist()


def psnr(mse: float) -> float:
    """Mean squared error -> dB, for a peak of 1."""
    return -10 * math.log10(mse) if mse else math.inf


def n_scales(H: int, W: int) -> int:
    """How many of MS-SSIM's five scales have room for the window, at least one: five need 161 pixels a side, four 81."""
    return max(1, sum(min(H, W) > (WINDOW - 1) * 2**scale for scale in range(len(WEIGHTS))))


def ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003, equation 7), the mean over colour channels.

    Scales and weights are those of the paper. Where an image has no room for all five (see :func:`n_scales`), the weights of
    the finest are scaled to sum to 1, so that values compare between images of one size only. The window (11x11, sigma 1.5)
    is cut to images that are smaller. A contrast term that is negative on average counts as 0.

    (B,H,W,C) in [0,1] twice (SSIM is not blind to an offset: not [-0.5,0.5]) -> (B) float64 from 0 to 1; 1 for equal images.
    """
    device, C = "cpu" if x.device.type == "mps" else x.device, x.shape[-1]  # MPS has no float64
    x, y = (z.to(device, torch.float64).movedim(-1, 1).flatten(0, 1)[:, None] for z in (x, y))  # (B,H,W,C) -> (B*C,1,H,W)
    sides = x.shape[-2:]
    weights = torch.tensor(WEIGHTS[: n_scales(*sides)], dtype=torch.float64, device=device)
    windows = [gaussian(min(WINDOW, side)).to(device) for side in sides]
    terms = []
    for scale in range(len(weights)):
        if scale:  # means of 2x2 pixels, (n,1,H,W) -> (n,1,ceil(H/2),ceil(W/2)); a last odd row or column by itself
            x, y = (F.avg_pool2d(z, 2, ceil_mode=True) for z in (x, y))
        luminance, contrast = ssim(x, y, windows)
        terms.append(contrast.mean(dim=(1, 2, 3)))  # (B*C,1,H,W) -> (B*C)
    terms[-1] = (luminance * contrast).mean(dim=(1, 2, 3))  # luminance is compared at the coarsest scale alone
    terms = torch.stack(terms, dim=-1).clamp_min(0)  # (B*C,scales)
    return (terms ** (weights / weights.sum())).prod(dim=-1).view(-1, C).mean(dim=-1)  # (B*C) -> (B,C) -> (B)


def ssim(x: Tensor, y: Tensor, windows: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """The two factors of SSIM (Wang et al. 2004, equation 13) wherever the window fits, luminance l and contrast times
    structure cs: (n,1,H,W) twice -> (n,1,H',W') twice."""

    def mean(z: Tensor) -> Tensor:  # under the window, which is a product of its rows and columns
        return F.conv2d(F.conv2d(z, windows[0][None, None, :, None]), windows[1][None, None, None])

    c1, c2 = 0.01**2, 0.03**2
    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    return (2 * mx * my + c1) / (mx * mx + my * my + c1), (2 * vxy + c2) / (vx + vy + c2)


def gaussian(n: int) -> Tensor:  # (n) float64 that sum to 1
    g = torch.exp(-((torch.arange(n, dtype=torch.float64) - (n - 1) / 2) ** 2) / (2 * SIGMA**2))
    return g / g.sum()
