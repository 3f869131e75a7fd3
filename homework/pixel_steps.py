"""PixelCNN and Gated PixelCNN fed place by place: the same functions as in pixelcnn.py, without computing a thing twice.

Only convolutions wider than 1x1 look at neighbours, so their inputs are kept. What they take from the rows above is computed
once for a whole row, when it begins; a place then costs a few products of vectors and matrices in each layer.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Steps:
    """An incremental form: fed with tokens, it tells the logits of the place behind them. Use it under
    ``torch.inference_mode()``.

    A subclass has ``put(token (B,))``, which takes a token; ``begin_row(row)``, all rows above it being known; and
    ``place(column)``, which returns the (B,C) that enters the head at the next place, all places before it being known.

    Args:
        model: the prior, on ``device``.
        w: width of the grid.
        device: where the model is.
    """

    def __init__(self, model: nn.Module, w: int, device: str | torch.device):
        self.model, self.w, self.device, self.n = model, w, device, 0  # n tokens are known
        self.head = [Pointwise(layer) if isinstance(layer, nn.Conv2d) else layer for layer in model.head]

    def __call__(self, tokens: Tensor) -> Tensor:
        """Takes the (B,n) int64 tokens of the next n places, returns the (B,K) logits of the place behind them.

        The first call takes any n >= 0; the later ones n = 1.
        """
        if self.n == 0:
            x = self.advance()
        for token in tokens.to(self.device).unbind(dim=1):
            self.put(token)
            self.n += 1
            x = self.advance()
        for layer in self.head:
            x = layer(x)
        return self.model.to_logits(x)

    def advance(self) -> Tensor:
        row, column = divmod(self.n, self.w)
        if column == 0:
            self.begin_row(row)
        return self.place(column)


class Pointwise:
    """A 1x1 convolution at one place: (B,C) -> (B,C')."""

    def __init__(self, conv: nn.Conv2d):
        self.weight, self.bias = conv.weight.flatten(1).T.contiguous(), conv.bias  # (C',C,1,1) -> (C',C) -> (C,C')

    def __call__(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x, self.weight)


class Known:
    """The input of a convolution so far, within the zeros of its padding.

    Args:
        B, h, w, C: its shape.
        reach: how far the kernel reaches up, to the left and to the right.
        like: a tensor of the same type and device.
    """

    def __init__(self, B: int, h: int, w: int, C: int, reach: int, like: Tensor):
        self.rows, self.reach, self.w = like.new_zeros(B, h + reach, w + 2 * reach, C), reach, w
        self.zeros = [like.new_zeros(B, C)] * reach
        self.row = list(self.zeros)  # the present one, its places side by side

    def begin_row(self, row: int) -> None:
        """Puts the row that ends here, above ``row``, to the others."""
        if row:
            self.put_row(row - 1, torch.stack(self.row[self.reach :], dim=1))
        self.row = list(self.zeros)

    def put_row(self, row: int, x: Tensor) -> None:
        """Takes a whole row (B,w,C)."""
        self.rows[:, row + self.reach, self.reach : self.reach + self.w] = x

    def above(self, row: int, n: int) -> Tensor:
        """The n rows from ``row - reach`` on, (B,C,n,w+2*reach)."""
        return self.rows[:, row : row + n].permute(0, 3, 1, 2)

    def left(self, n: int) -> Tensor:
        """The last n places of the present row, (B,n*C)."""
        return torch.cat(self.row[-n:], dim=1)


def taps(weight: Tensor) -> Tensor:
    """(C',C,n), what a kernel has for n places in a row -> (n*C,C'), to multiply these places side by side."""
    return weight.permute(2, 1, 0).flatten(0, 1)


def by_column(row: Tensor) -> tuple[Tensor, ...]:
    """(B,C,1,w) -> w tensors (B,C)."""
    return row[:, :, 0].permute(2, 0, 1).contiguous().unbind()


class MaskedPlaces:
    """A masked k x k convolution at one place after the other: (B,C) -> (B,C')."""

    def __init__(self, conv: nn.Module, B: int, h: int, w: int):
        self.reach, self.bias = conv.kernel_size[0] // 2, conv.bias
        weight = conv.weight * conv.mask
        self.n = self.reach + (conv.mask_type == "B")  # places seen of the own row
        self.over, self.left = weight[:, :, : self.reach], taps(weight[:, :, self.reach, : self.n])
        self.known = Known(B, h, w, conv.in_channels, self.reach, weight)

    def begin_row(self, row: int) -> None:
        self.known.begin_row(row)
        self.from_above = by_column(F.conv2d(self.known.above(row, self.reach), self.over, self.bias))

    def __call__(self, column: int) -> Tensor:
        return torch.addmm(self.from_above[column], self.known.left(self.n), self.left)


class PixelSteps(Steps):
    """The incremental form of a PixelCNN on B grids of h x w, see :class:`Steps`."""

    def __init__(self, model: nn.Module, B: int, h: int, w: int, device: str | torch.device = "cpu"):
        super().__init__(model, w, device)
        self.first = MaskedPlaces(model.first, B, h, w)
        self.blocks = [(Pointwise(b.down), MaskedPlaces(b.conv, B, h, w), Pointwise(b.up)) for b in model.blocks]

    def put(self, token: Tensor) -> None:
        self.first.known.row.append(token[:, None].to(self.first.bias.dtype))

    def begin_row(self, row: int) -> None:
        for conv in (self.first, *(conv for _, conv, _ in self.blocks)):
            conv.begin_row(row)

    def place(self, column: int) -> Tensor:
        x = self.first(column)
        for down, conv, up in self.blocks:
            conv.known.row.append(down(x).relu_())
            x = up(conv(column).relu_()).relu_().add_(x).relu_()
        return x


class GatedSteps(Steps):
    """The incremental form of a Gated PixelCNN on B grids of h x w, see :class:`Steps`: the vertical stack goes row by row,
    the horizontal one place by place."""

    def __init__(self, model: nn.Module, B: int, h: int, w: int, device: str | torch.device = "cpu"):
        super().__init__(model, w, device)
        self.positions, self.layers = model.positions(h, w), list(model.layers)
        self.v = [Known(B, h, w, layer.vertical.in_channels, layer.reach, layer.out.weight) for layer in self.layers]
        self.taps = [layer.horizontal.kernel_size[1] for layer in self.layers]
        self.left = [taps(layer.horizontal.weight[:, :, 0]) for layer in self.layers]
        self.out = [Pointwise(layer.out) for layer in self.layers]

    def put(self, token: Tensor) -> None:
        row, column = divmod(self.n, self.w)
        position = self.positions[row, column] if torch.is_tensor(self.positions) else self.positions
        self.v[0].row.append(self.model.embed(token) + position)

    def begin_row(self, row: int) -> None:
        self.v[0].begin_row(row)
        self.from_above = []
        # the horizontal stack looks at one row; in the first layer, that is the tokens' own
        self.h = [self.v[0].row, *(list(v.zeros) for v in self.v[1:])]
        for i, layer in enumerate(self.layers):
            above = self.v[i].above(row, layer.vertical.kernel_size[0])
            x = F.conv2d(above, layer.vertical.weight, layer.vertical.bias)  # (B,2C,1,w)
            self.from_above.append(by_column(layer.across(x) + layer.horizontal.bias[:, None, None]))
            if i + 1 < len(self.layers):
                self.v[i + 1].put_row(row, layer.gate(x)[:, :, 0].mT)  # (B,C,1,w) -> (B,w,C)

    def place(self, column: int) -> Tensor:
        x = None
        for i, layer in enumerate(self.layers):
            if i:
                self.h[i].append(x)
            left = torch.cat(self.h[i][-self.taps[i] :], dim=1)  # taps x (B,C) -> (B,taps*C)
            y = self.out[i](layer.gate(torch.addmm(self.from_above[i][column], left, self.left[i])))
            x = y.add_(x) if i else y
        return x
