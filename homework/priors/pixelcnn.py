"""Priors made of causal convolutions: PixelCNN for binary pixels, Gated PixelCNN for any grid of tokens."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homework.core import checks
from homework.nn.blocks import MaskedConv2d
from homework.priors.base import Prior
from homework.priors.pixel_steps import GatedSteps, PixelSteps


@torch.no_grad()
def he_init(layer: nn.Module) -> None:
    """Draws a convolution's weights from N(0, 2 / inputs), so that ReLU layers keep the variance (He et al., arXiv
    1502.01852, equation 10), where masked taps do not count as inputs; biases are 0. Leaves other layers alone."""
    if isinstance(layer, nn.Conv2d):
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)
        if isinstance(layer, MaskedConv2d):
            layer.weight /= layer.mask.mean().sqrt()


class ResidualBlock(nn.Module):
    """x + f(x), with f through half of the channels (arXiv 1601.06759, section 3.3, figure 5). ValueError unless c_out is
    c_in, which is at least 2.

    ::

        (B,C,H,W) -> 1x1 -> (B,C/2,H,W) -> masked 3x3 -> 1x1 -> (B,C,H,W) -> + x -> ReLU      each followed by a ReLU
    """

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        checks.integer(2, c_in=c_in)
        if c_in != c_out:
            raise ValueError(f"c_out is {c_out!r}, but must be c_in = {c_in}, as the input is added to the output.")
        self.down = nn.Conv2d(c_in, c_out // 2, 1)
        self.conv = MaskedConv2d("B", c_out // 2, c_out // 2, 3)
        self.up = nn.Conv2d(c_out // 2, c_out, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu_(self.conv(F.relu_(self.down(x))))
        return F.relu_(F.relu_(self.up(y)) + x)


class PixelCNN(Prior):
    """The PixelCNN of van den Oord, Kalchbrenner and Kavukcuoglu (arXiv 1601.06759, section 3) for binary pixels.

    ::

        pixels (B,H,W) in {0,1} -> (B,1,H,W) -> masked 7x7 (A) -> num_res_block x ResidualBlock -> 2 x (1x1, ReLU)
                                             -> 1x1 -> (B,1,H,W), the log odds of a 1

    Some pixels above, to the right, are never seen (the blind spot; ``python -m homework.receptive_field`` draws it).

    Args:
        c_in, c_hidden: channels of the input (only 1 is allowed) and of the hidden layers.
        num_res_block, kernel_size: number of residual blocks, from 0; side of the first convolution, odd.
    """

    architecture = "PixelCNN 1"
    data, n_tokens = "mnist", 2
    learning_rate, warmup = 5e-4, 20
    steps_class = PixelSteps

    def __init__(self, c_in: int = 1, c_hidden: int = 128, num_res_block: int = 5, kernel_size: int = 7):
        super().__init__()
        if type(c_in) is not int or c_in != 1:
            raise ValueError(f"c_in is {c_in!r}, but must be 1, as grids of pixels have one channel.")
        checks.integer(2, c_hidden=c_hidden)
        checks.integer(0, num_res_block=num_res_block)
        C = c_hidden
        self.first = MaskedConv2d("A", c_in, C, kernel_size)
        self.blocks = nn.Sequential(*(ResidualBlock(C, C) for _ in range(num_res_block)))
        inner = [layer for _ in range(2) for layer in (nn.Conv2d(C, C, 1), nn.ReLU(inplace=True))]
        self.head = nn.Sequential(*inner, nn.Conv2d(C, 1, 1))
        self.apply(he_init)

    def net(self, x: Tensor) -> Tensor:
        """(B,c_in,H,W) float -> (B,1,H,W), the log odds that a pixel is 1, given those before it."""
        x = self.first(x).contiguous(memory_format=torch.channels_last)  # a little faster than channels first
        return self.head(self.blocks(x))

    def forward(self, tokens: Tensor) -> tuple[Tensor, dict]:
        x = tokens[:, None].to(self.first.weight.dtype)  # (B,h,w) -> (B,1,h,w)
        return self.to_logits(self.net(x)[:, 0, :, :, None]), {}  # (B,1,h,w) -> (B,h,w,1)

    @staticmethod
    def to_logits(odds: Tensor) -> Tensor:
        """(...,1) log odds of a 1 -> (...,2) logits of 0 and 1."""
        return torch.cat((torch.zeros_like(odds), odds), dim=-1)


class GatedLayer(nn.Module):
    """A layer of two stacks (arXiv 1606.05328, section 2.2 and figure 2).

    ::

        v (rows above) --> k//2+1 x k ---+--> gate -----------------------> v
                                        1x1
        h (the row left) --> 1 x k//2+1 -+--> gate --> 1x1 --> (+ h) -----> h

    The horizontal stack sees its own row and takes in what the vertical one sees of those above, so there is no blind spot.
    Kernels that end at the position need no masks. The first layer's end one short of it, and its horizontal stack does not
    add its input, which is the token to predict. ``c_in`` and ``C`` are the channels of the input and of either stack.
    """

    def __init__(self, c_in: int, C: int, kernel: int, first: bool):
        super().__init__()
        self.reach, self.first = kernel // 2, first
        n = self.reach + (not first)
        self.vertical = nn.Conv2d(c_in, 2 * C, (n, kernel), padding=(0, self.reach))
        self.horizontal = nn.Conv2d(c_in, 2 * C, (1, n))
        self.across, self.out = nn.Conv2d(2 * C, 2 * C, 1), nn.Conv2d(C, C, 1)

    def forward(self, v: Tensor, h: Tensor, last: bool = False) -> tuple[Tensor | None, Tensor]:
        """v, h (B,c_in,H,W) -> v, h (B,C,H,W). The last layer's v is not used, and None."""
        # a negative padding cuts off the last row, or column, which the first layer must not see
        v = self.vertical(F.pad(v, (0, 0, self.reach, -int(self.first))))
        x = self.horizontal(F.pad(h, (self.reach, -int(self.first)))).add_(self.across(v))
        x = self.out(self.gate(x))
        return None if last else self.gate(v), x if self.first else x.add_(h)

    @staticmethod
    def gate(x: Tensor) -> Tensor:
        """(B,2C,...) -> (B,C,...): tanh of one half, times the sigmoid of the other (equation 2)."""
        a, b = x.chunk(2, dim=1)
        return a.tanh() * b.sigmoid()


class RowAttention(nn.Module):
    """h plus what each position finds by attention in the rows above its own, however far (the attention block of
    PixelSNAIL, arXiv 1712.09763, which sees its own row too; the convolutions do that here). N positions take N^2 scores.

    ::

        h (the tokens before) ------- 1x1 --> query ---+
        h, tokens of the rows above - 1x1 --> key -----+--> softmax, weighted mean --> 1x1 --> + h
                                          --> value ---+

    Queries and keys are rotated, half of their channels by the row and half by the column (RoPE, arXiv 2104.09864, section
    3.2.2; in two dimensions arXiv 2403.13298, section 3.2): scores depend on what is there and on how far away it is, in
    grids of any size. ``C`` and ``E`` are the channels of h and of a token's embedding.
    """

    channels = 16  # of queries, keys and values

    def __init__(self, C: int, E: int):
        super().__init__()
        self.query, self.key_value = nn.Linear(C, self.channels), nn.Linear(C + E, 2 * self.channels)
        self.out = nn.Linear(self.channels, C)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        """h (B,C,H,W), which depends on tokens before each position, and the embeddings x (B,E,H,W) -> (B,C,H,W)."""
        H, W = h.shape[2:]
        upper, lower = torch.cat((h, x), dim=1)[:, :, :-1], h[:, :, 1:]  # what is seen, and what sees
        k, v = self.key_value(upper.permute(0, 2, 3, 1)).chunk(2, dim=-1)  # (B,C+E,H-1,W) -> (B,H-1,W,d)
        q, turns = self.query(lower.permute(0, 2, 3, 1)), self.turns(H, W, h.device)  # (B,C,H-1,W) -> (B,H-1,W,d)
        q, k = self.rotate(q, turns[:, 1:]), self.rotate(k, turns[:, :-1])
        q, k, v = (t.flatten(1, 2)[:, None] for t in (q, k, v))  # (B,H-1,W,d) -> (B,1,N,d)
        row = torch.arange(H - 1, device=h.device).repeat_interleave(W)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=row[:, None] >= row)[:, 0]  # (B,N,d)
        y = F.pad(y, (0, 0, W, 0)).unflatten(1, (H, W))  # (B,H*W,d) -> (B,H,W,d)
        return h + self.out(y).permute(0, 3, 1, 2)  # (B,H,W,C) -> (B,C,H,W)

    @classmethod
    def turns(cls, H: int, W: int, device: torch.device) -> Tensor:
        """(2,H,W,channels/2): cosine and sine of the angle by which a pair of channels is rotated at each position; a full
        turn takes 6 to 200 rows, or columns."""
        n = cls.channels // 4
        speeds = 100 ** (-torch.arange(n, device=device) / n)  # (n)
        rows, columns = (torch.arange(size, device=device)[:, None] * speeds for size in (H, W))  # (H,n), (W,n)
        angles = torch.cat((rows[:, None].expand(H, W, n), columns.expand(H, W, n)), dim=-1)
        return torch.stack((angles.cos(), angles.sin()))

    @staticmethod
    def rotate(x: Tensor, turns: Tensor) -> Tensor:
        """(...,d): channel i and channel i + d/2 as a point of the plane, rotated by ``turns`` (2,...,d/2)."""
        (a, b), (cos, sin) = x.chunk(2, dim=-1), turns.to(x.dtype)
        return torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)


class GatedPixelCNN(Prior):
    """The Gated PixelCNN of van den Oord et al. (arXiv 1606.05328, section 2) over grids of K tokens.

    ::

        tokens (B,h,w) -> embedding, or the tokenizer's code vectors (B,E,h,w) -> + row and column embedding
                       -> n_layers x (GatedLayer, at times RowAttention) -> ReLU, 1x1, ReLU, 1x1 -> logits (B,h,w,K)

    Args:
        c_hidden, n_layers: C, channels of each stack, and number of gated layers.
        n_tokens: K, codes of the tokenizer, or 2 for binary pixels.
        height, width: the largest grid, in tokens, that has a position embedding.
        kernel, first_kernel: sides, odd, of all layers' kernels but the first one's, and of that one.
        embedding_dim: E, length of a token's embedding.
        code_dim: 0 to learn an embedding; otherwise the length of the tokenizer's code vectors, which ``set_codes`` stores.
        position: "2d" (row + column) or "none", for grids of any size.
        attention: after every so many layers each position attends to all of the rows above, at a cost that grows with the
            square of their number; 0 for convolutions alone.
    """

    architecture = "Gated PixelCNN 1"
    reads_codes = True
    codes: Tensor
    steps_class = GatedSteps

    def __init__(self, c_hidden: int = 64, n_layers: int = 8, n_tokens: int = 1024, height: int = 20, width: int = 30,
                 kernel: int = 3, first_kernel: int = 7, embedding_dim: int = 32, code_dim: int = 0,
                 position: str = "2d", attention: int = 0):  # fmt: skip
        super().__init__()
        checks.integer(1, c_hidden=c_hidden, n_layers=n_layers, n_tokens=n_tokens, embedding_dim=embedding_dim)
        checks.integer(1, height=height, width=width)
        checks.integer(0, code_dim=code_dim, attention=attention)
        checks.odd(3, kernel=kernel, first_kernel=first_kernel)
        checks.choice(("none", "2d"), position=position)
        if attention > n_layers:
            raise ValueError(f"attention is {attention}, but must be at most n_layers = {n_layers}, as it comes after every "
                             "so many layers; 0 for none.")  # fmt: skip
        C, E, self.n_tokens = c_hidden, code_dim or embedding_dim, n_tokens
        if code_dim:  # NaN until set_codes, so that a forgotten call shows
            self.register_buffer("codes", torch.full((n_tokens, code_dim), torch.nan))
        else:
            self.embedding = nn.Embedding(n_tokens, E)
        if position == "2d":
            self.row, self.column = nn.Parameter(torch.zeros(height, E)), nn.Parameter(torch.zeros(width, E))
        layers = (GatedLayer(C, C, kernel, first=False) for _ in range(n_layers - 1))
        self.layers = nn.ModuleList([GatedLayer(E, C, first_kernel, first=True), *layers])
        attends = [attention > 0 and i % attention == 0 for i in range(1, n_layers + 1)]  # after which layers
        # torch keeps the place of a None
        self.attentions = nn.ModuleList(RowAttention(C, E) if i else None for i in attends)  # type: ignore[misc]
        self.head = nn.Sequential(nn.ReLU(), nn.Conv2d(C, C, 1), nn.ReLU(inplace=True), nn.Conv2d(C, n_tokens, 1))

    def stored_codes(self) -> Tensor | None:
        return self.codes if self.config["code_dim"] else None

    def embed(self, tokens: Tensor) -> Tensor:
        """(...) int64 -> (...,E)."""
        return self.codes[tokens] if self.config["code_dim"] else self.embedding(tokens)

    def net(self, x: Tensor) -> Tensor:
        """Embeddings (B,E,h,w) -> logits (B,K,h,w), given the embeddings at earlier positions."""
        v = h = x
        for layer, attention in zip(self.layers, self.attentions, strict=True):
            v, h = layer(v, h, last=layer is self.layers[-1])
            h = attention(h, x) if attention else h
        return self.head(h)

    def forward(self, tokens: Tensor) -> tuple[Tensor, dict]:
        x = self.embed(tokens) + self.positions(*tokens.shape[1:])
        return self.net(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1), {}  # (B,h,w,E) -> (B,E,h,w); (B,K,h,w) -> (B,h,w,K)

    @staticmethod
    def to_logits(x: Tensor) -> Tensor:
        """The head's output at a position, (B,K): logits already."""
        return x
