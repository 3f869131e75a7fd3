"""PixelCNN and Gated PixelCNN fed token by token: the functions of pixelcnn.py, computed once at each position.

Only convolutions wider than 1x1 and attention look at other positions, so the inputs of the ones are kept, and the keys and
values of the other. What they take from the rows above is computed for a whole row, when it begins; a position then costs a
few products of vectors and matrices in each layer. For one image these are so small that most of the time goes into calling
torch. So all memory stays, with views, made once, of what a position needs. The results of a row hold the bias, and what
comes from above, before their positions are computed: adding a product to what is there takes torch half as long as adding
a bias to a product.
"""

import torch
from torch import Tensor, nn

from homework.priors.steps import Steps


class ConvolutionSteps(Steps):
    """What the incremental forms of both models share. A subclass adds all that keeps memory to ``parts``, in the order in
    which they begin a row unless it has a ``begin_row`` of its own, and has ``put(token (B,), row, column)``, which stores
    the token of a position, and ``compute(column)``, which returns, once, the (B,C) that enters the head, all positions
    before it being known."""

    def __init__(self, model: nn.Module, B: int, h: int, w: int, device: str | torch.device = "cpu"):
        super().__init__(model, h, w)
        self.model, self.size, self.device, self.n = model, (h, w), device, -1  # n is the last position computed
        self.head = [Pointwise(i.weight, i.bias, B, w) if isinstance(i, nn.Conv2d) else None for i in model.head]  # or ReLU
        self.parts = [part for part in self.head if part]

    def advance(self, tokens: Tensor) -> Tensor:
        start = [None] if self.n < 0 else []  # the first position comes after no token
        for token in (*start, *tokens.to(self.device).unbind(dim=1)):
            if token is not None:
                self.put(token, *divmod(self.n, self.size[1]))
            self.n += 1
            if (column := self.n % self.size[1]) == 0:
                self.begin_row()
            x = self.compute(column)
        for layer in self.head:
            x = layer(x, column) if layer else x.relu_()
        return self.model.to_logits(x.clone())  # the next row uses the memory again

    def begin_row(self) -> None:
        for part in self.parts:
            part.begin_row()

    @torch.inference_mode()
    def select(self, rows: Tensor) -> None:
        rows, new = rows.to(self.device), type(self)(self.model, len(rows), *self.size, self.device)
        for part, kept in zip(new.parts, self.parts, strict=True):
            for memory, old in zip(part.memory, kept.memory, strict=True):
                memory.copy_(old[rows])
        self.__dict__ = vars(new) | {name: vars(self)[name] for name in ("n", "left", "started")}


def taps(weight: Tensor) -> Tensor:
    """(C',C,rows,n), a kernel's weights for n positions in each of some rows -> (rows*n*C,C'), to multiply by these
    positions side by side."""
    return weight.permute(2, 3, 1, 0).flatten(0, 2).contiguous()  # (rows,n,C,C') -> (rows*n*C,C')


class Pointwise:
    """A convolution, of weight (C',C,1,n) and bias (C'), at one position of a row after the other: (B,n*C), the n positions
    that the kernel sees, side by side, -> (B,C'), which the caller may change in place. The results of a row of w go to
    ``row`` (w,B,C'), or to new memory if it is None."""

    def __init__(self, weight: Tensor, bias: Tensor, B: int, w: int, row: Tensor | None = None):
        self.weight, self.bias = taps(weight), bias
        self.row = weight.new_empty(w, B, len(bias)) if row is None else row
        self.columns = self.row.unbind()
        self.memory = [self.row.transpose(0, 1)]  # all that it keeps of each grid, (B,...): (w,B,C') -> (B,w,C')

    def begin_row(self) -> None:
        self.row.copy_(self.bias)

    def __call__(self, x: Tensor, column: int) -> Tensor:
        return self.columns[column].addmm_(x, self.weight)


class RowCache:
    """The present row of the input (C channels) of a convolution and the ``reach`` rows above it, within the zeros of the
    padding. The kernel reaches that far up, to the left and to the right, and sees n positions of the row: ``reach``, or one
    more if it sees the position itself.

    Attributes:
        rows: all of it, (B,reach+1,w+2*reach,C), with the type and device of ``like``.
        row: the present row (w,B,C); ``columns`` are its w positions (B,C).
        left: for each position, the n positions of the row that the kernel sees, side by side, (B,n*C).
    """

    def __init__(self, B: int, w: int, C: int, reach: int, n: int, like: Tensor):
        self.rows = rows = like.new_zeros(B, reach + 1, w + 2 * reach, C)
        self.upper, self.lower = rows[:, :-1], rows[:, 1:]
        self.row = rows[:, -1, reach : reach + w].transpose(0, 1)  # (B,w,C) -> (w,B,C)
        self.columns = self.row.unbind()
        flat = rows.flatten(2)  # (B,reach+1,w+2*reach,C) -> (B,reach+1,(w+2*reach)*C)
        self.left = flat[:, -1].unfold(1, n * C, C).unbind(dim=1)  # (B,(w+2*reach)*C) -> (B,.,n*C) -> (B,n*C) for each
        self.around = flat.unfold(2, (2 * reach + 1) * C, C).permute(2, 0, 1, 3)  # (w,B,reach+1,(2*reach+1)*C)

    def begin_row(self) -> None:  # moves all rows up by one
        self.upper.copy_(self.lower.clone())

    def above(self, n: int) -> Tensor:
        """What the kernel sees of the upper n rows at each position, side by side: (w*B,n*(2*reach+1)*C)."""
        return self.around[:, :, :n].flatten(2).flatten(0, 1)  # (w,B,n,k*C) -> (w,B,n*k*C) -> (w*B,n*k*C)


class Masked(Pointwise):
    """A masked k x k convolution at one position after the other: what ``known`` holds -> (B,C')."""

    def __init__(self, conv: nn.Module, B: int, w: int):
        self.reach, weight = conv.kernel_size[0] // 2, conv.weight * conv.mask
        n = self.reach + (conv.mask_type == "B")  # positions seen of its own row
        super().__init__(weight[:, :, self.reach : self.reach + 1, :n], conv.bias, B, w)
        self.over, self.flat = taps(weight[:, :, : self.reach]), self.row.flatten(0, 1)  # (w,B,C') -> (w*B,C')
        self.known = RowCache(B, w, conv.in_channels, self.reach, n, weight)
        self.memory.append(self.known.rows)

    def begin_row(self) -> None:
        self.known.begin_row()
        torch.addmm(self.bias, self.known.above(self.reach), self.over, out=self.flat)

    def __call__(self, column: int) -> Tensor:
        return super().__call__(self.known.left[column], column)


class PixelSteps(ConvolutionSteps):
    """The incremental form of a PixelCNN."""

    def __init__(self, model: nn.Module, B: int, h: int, w: int, device: str | torch.device = "cpu"):
        super().__init__(model, B, h, w, device)
        self.first, self.blocks = Masked(model.first, B, w), []
        self.parts.append(self.first)
        for block in model.blocks:
            conv, up = Masked(block.conv, B, w), Pointwise(block.up.weight, block.up.bias, B, w)
            down = Pointwise(block.down.weight, block.down.bias, B, w, conv.known.row)
            self.blocks.append((down, conv, up))
            self.parts += conv, down, up  # conv first: it moves up the row that down then begins again

    def put(self, token: Tensor, row: int, column: int) -> None:
        self.first.known.columns[column].copy_(token[:, None])

    def compute(self, column: int) -> Tensor:
        x = self.first(column)
        for down, conv, up in self.blocks:
            down(x, column).relu_()
            x = up(conv(column).relu_(), column).relu_().add_(x).relu_()
        return x


class Gated:
    """A gated layer: its vertical stack at one row after the other, its horizontal one at one position after the other. The
    results of a row go to ``row`` (w,B,C), or to new memory if it is None."""

    def __init__(self, layer: nn.Module, B: int, w: int, row: Tensor | None = None):
        self.first, self.gate, self.rows = layer.first, layer.gate, layer.vertical.kernel_size[0]
        self.vertical, self.vertical_bias = taps(layer.vertical.weight), layer.vertical.bias
        self.across = taps(layer.across.weight)
        self.horizontal = Pointwise(layer.horizontal.weight, layer.horizontal.bias + layer.across.bias, B, w)
        self.out = Pointwise(layer.out.weight, layer.out.bias, B, w, row)
        args = B, w, layer.vertical.in_channels, layer.reach, layer.horizontal.kernel_size[1], layer.out.weight
        self.v = RowCache(*args)
        self.h = self.v if self.first else RowCache(*args)  # of one row; in the first layer, that is the tokens' own
        self.memory = [*self.horizontal.memory, *self.out.memory, self.v.rows, self.h.rows]

    def begin_row(self, v: Tensor | None) -> Tensor:
        """Takes the vertical stack's row (w,B,C) of the layer before, if there is one, and returns that of this one."""
        self.v.begin_row()
        if not self.first:
            self.v.row.copy_(v)
        x = torch.addmm(self.vertical_bias, self.v.above(self.rows), self.vertical)  # (w*B,2C)
        torch.addmm(self.horizontal.bias, x, self.across, out=self.horizontal.row.flatten(0, 1))  # (w,B,2C) -> (w*B,2C)
        self.out.begin_row()
        return self.gate(x).unflatten(0, self.out.row.shape[:2])  # (w*B,C) -> (w,B,C)

    def __call__(self, x: Tensor | None, column: int) -> Tensor:
        """The output (B,C) of the layer before at this position, if there is one -> (B,C)."""
        y = self.out(self.gate(self.horizontal(self.h.left[column], column)), column)
        return y if self.first else y.add_(x)


class Attended:
    """An attention to the rows above, at one position after the other, in grids of h x w. Keys and values of a row are
    computed when the next one begins. The results of a row go to ``row`` (w,B,C), unless it is None."""

    def __init__(self, attention: nn.Module, B: int, h: int, w: int, row: Tensor | None = None):
        self.attention, like = attention, attention.out.weight
        self.turns = attention.turns(h, w, like.device).to(like.dtype)  # (2,h,w,d/2)
        self.keys, self.values = (like.new_zeros(B, h, w, attention.channels) for _ in range(2))
        self.columns = (like.new_zeros(w, B, len(like)) if row is None else row).unbind()
        self.memory = [self.keys, self.values]

    def begin_row(self, row: int, h: Tensor, x: Tensor) -> None:
        """Takes the row above: what the layer before made of it (w,B,C), and the embeddings of its tokens (w,B,E)."""
        if row:
            read = torch.cat((h, x), dim=2).transpose(0, 1)  # (w,B,C+E) -> (B,w,C+E)
            k, v = self.attention.key_value(read).chunk(2, dim=2)  # (B,w,d)
            self.keys[:, row - 1], self.values[:, row - 1] = self.attention.rotate(k, self.turns[:, row - 1]), v

    def __call__(self, h: Tensor, row: int, column: int) -> Tensor:
        """The output (B,C) of the layer before at this position -> (B,C)."""
        q = self.attention.rotate(self.attention.query(h), self.turns[:, row, column])[:, None]  # (B,1,d)
        k, v = (kept[:, :row].flatten(1, 2) for kept in (self.keys, self.values))  # (B,row,w,d) -> (B,row*w,d)
        weights = (q * q.shape[-1] ** -0.5 @ k.transpose(1, 2)).softmax(dim=-1)  # (B,1,row*w); faster than torch's attention
        return torch.add(h, self.attention.out((weights @ v)[:, 0]), out=self.columns[column])


class GatedSteps(ConvolutionSteps):
    """The incremental form of a Gated PixelCNN."""

    def __init__(self, model: nn.Module, B: int, h: int, w: int, device: str | torch.device = "cpu"):
        super().__init__(model, B, h, w, device)
        self.positions, self.layers, self.attentions, row = model.positions(h, w), [], [], None
        for layer, attention in zip(reversed(model.layers), reversed(model.attentions), strict=True):
            # each one writes into the memory of the next one's input, row
            self.attentions.insert(0, Attended(attention, B, h, w, row) if attention else None)
            self.layers.insert(0, Gated(layer, B, w, None if attention else row))
            row = self.layers[0].h.row
        self.parts += [*filter(None, self.attentions), *self.layers]

    def put(self, token: Tensor, row: int, column: int) -> None:
        self.layers[0].h.columns[column].copy_(self.model.embed(token) + self.positions[row, column])

    def begin_row(self) -> None:
        for layer, attention in zip(self.layers, self.attentions, strict=True):
            if attention:  # before its layer begins the row again
                attention.begin_row(self.n // self.size[1], layer.out.row, self.layers[0].h.row)
        v = None
        for layer in self.layers:
            v = layer.begin_row(v)
        for part in filter(None, self.head):
            part.begin_row()

    def compute(self, column: int) -> Tensor:
        x = None
        for layer, attention in zip(self.layers, self.attentions, strict=True):
            x = layer(x, column)
            x = attention(x, self.n // self.size[1], column) if attention else x
        return x
