"""A convolution over a grid that sees no later position in raster order."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homework.core import checks


class MaskedConv2d(nn.Conv2d):
    """A k x k convolution, (B,C,H,W) -> (B,C',H,W), that sees no later position (van den Oord et al., arXiv 1601.06759,
    section 3.3). Type A hides the position itself too, for the first layer; type B shows it, as by then it depends on
    earlier positions alone. ``weight`` is masked whenever it is used. ValueError for another type, or an even kernel."""

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
