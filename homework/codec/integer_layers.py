"""A prior in integer arithmetic, for entropy coding: the same distributions on every machine and in every batch.

The decoder of a compressed file must see exactly the probabilities that the encoder saw: one other last bit, and the rest of
the image is noise. Sums of floats do not give that, since their last bits depend on the order of summation, and that on the
batch, the threads and the machine. Sums of integers do. So everything here is an integer, in tensors of float32, which hold
integers exactly below 2^24 and multiply them fast; "Q.n" is a fixed-point number with n fractional bits, the integer x 2^-n:

    norms Q.6    hidden layer (ReLU) Q.8, squared Q.5    logits Q.5    residual stream Q.4 to Q.12, see :func:`export`
    queries Q.(b-2), keys Q.(b-4), values Q.(b-3) of b bits each    scores Q.(2b-6)    attention weights Q.8
    weights of a linear layer: Q.n with an n for each row

- Every weight row is rounded to as many bits as keep |inputs| x |weights| + |bias| below 2^24 for all inputs, which are
  clamped; so no partial sum is ever rounded, in whatever order it is made.
- Results are divided by a power of two and floored; all scales are powers of two.
- Norms and attention divide integers and floor; a quotient of integers below 2^24 is floored rightly even after it was
  rounded to float32, and the one square root is taken half-way between integers, where no rounding can carry it across one.
- Powers of two with fractional exponents come from tables that were made with Python's integers.

That entropy models need integer networks is from Balle, Johnston and Minnen, "Integer Networks for Data Compression with
Latent-Variable Models" (ICLR 2019).
"""

import copy
import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homework.autoregressive import AutoregressiveModel
from homework.nn.transformer import Attention

EXACT = 2**24  # float32 holds every integer up to here
NORMED, UP, HIDDEN, LOGIT = 6, 8, 5, 5  # fractional bits of: norms, the hidden layer, its squares, logits
NORMED_LIMIT, U_LIMIT, HIDDEN_LIMIT = 511, 2**11 - 1, 1023  # what norms, ReLUs and their squares are clamped to
LEAST = 4  # fractional bits of the residual stream, where weights leave room for no more
WEIGHT_BITS = 8  # of an attention weight before it is normalized
BLOCK = 64  # positions of a grid whose queries attend at once on a CPU: what is made of them fits its cache


def exp2_table(bits: int, fractional: int) -> list[int]:
    """2^bits * 2^(-i / 2^fractional), rounded, for i = 0, 1, ... until it is 0: by integers, the same on every machine."""
    first, table = [], list[int]()
    for i in range(2**fractional):
        power = 2 ** ((bits + 1) * 2**fractional - i)  # one bit more than wanted, to round by
        for _ in range(fractional):  # the 2^fractional-th root; roots of floored roots are floored rightly
            power = math.isqrt(power)
        first.append(power)
    while not table or table[-1]:
        octave, i = divmod(len(table), 2**fractional)
        table.append((first[i] // 2**octave + 1) // 2)
    return table


def floor_divide_(x: Tensor, by: Tensor) -> Tensor:
    """Divides integers (...) by positive ones, towards minus infinity, in place."""
    return x.div_(by).floor_() if x.is_floating_point() else x.div_(by, rounding_mode="floor")


def look_up(table: Tensor, i: Tensor) -> Tensor:
    """``table`` (n) at integers i (...) of at least 0, its last entry beyond its end; i is changed."""
    return table.index_select(0, i.clamp_max_(len(table) - 1).int().flatten()).view(i.shape)  # (m) -> (...)


class ExactLinear(nn.Module):
    """A linear layer on integers, of dtype ``carrier``: floor((W x + b) / 2^s + 1/2), with an s for every row of W.

    ``weight`` (out,in) and ``bias`` (out) are real, float64. Inputs are Q.in_bits from -limit to limit, outputs Q.out_bits,
    all or each (out). Inputs that were ``floored``, not rounded, represent values that are half a unit higher. OverflowError
    if some row has no room for weights of at least the outputs' precision.
    """

    def __init__(self, weight: Tensor, bias: Tensor, in_bits: int, limit: int, out_bits: int | Tensor,
                 carrier: torch.dtype, floored: bool = False):  # fmt: skip
        super().__init__()
        if floored:
            bias = bias + weight.sum(dim=1) * 2.0 ** -(in_bits + 1)
        scale = torch.full((len(weight),), 20)  # fractional bits of a row's weights: as many as there is room for
        while True:
            w, shift = (weight * 2.0 ** scale[:, None]).round(), scale + in_bits - out_bits
            b = (bias * 2.0 ** (scale + in_bits)).round() + (2.0 ** (shift - 1)).floor()  # a half, to round by
            largest = w.abs().sum(dim=1) * limit + b.abs()
            if (largest < EXACT).all():
                break
            scale = scale - (largest >= EXACT).long()
            if (shift < 1).any():
                raise OverflowError("The weights are too large for integers below 2^24.")
        self.bound = int((largest / 2.0**shift).max()) + 1  # of the outputs
        for name, values in ("weight", w), ("bias", b), ("divisor", 2.0**shift):
            self.register_buffer(name, values.to(carrier))
        if carrier != torch.int64:  # floats need no division: integers times powers of two are as exact as they are
            scaled = (w / 2.0 ** shift[:, None]).T.to(carrier)  # (in,out), which is faster for few rows
            self.register_buffer("scaled", scaled.contiguous(), persistent=False)
            self.register_buffer("scaled_bias", (b / 2.0**shift).to(carrier), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(...,in) -> (...,out)."""
        if x.is_floating_point():
            return F.linear(x, self.scaled.T, self.scaled_bias).floor_()
        return floor_divide_(F.linear(x, self.weight, self.bias), self.divisor)


class ExactNorm(nn.Module):
    """Divides (...,D) integers by the root of the mean of their squares, floored: Q.6."""

    def __init__(self, D: int, carrier: torch.dtype):
        super().__init__()
        wide = torch.int64 if carrier == torch.int64 else torch.float64  # sums of squares are below 2^53
        self.register_buffer("D", torch.tensor(D, dtype=wide))
        self.register_buffer("one", torch.tensor(2**NORMED, dtype=carrier))

    def forward(self, x: Tensor) -> Tensor:
        mean = floor_divide_(x.to(self.D.dtype, copy=True).square_().sum(dim=-1, keepdim=True), self.D)
        # mean + 1 is an integer; a half more, and no rounding of the root can take it across one
        root = mean.double().add_(1.5).sqrt_().floor_().to(x.dtype)
        return floor_divide_(x * self.one, root).clamp_(-NORMED_LIMIT, NORMED_LIMIT)


class ExactAttention(Attention):
    """:class:`homework.nn.transformer.Attention` on integers, Q.6 -> Q.stream; ``gain`` (D) is the norm's before it."""

    mask_value = -(2**25)  # added to a score of up to 2^23: far enough below the least one, -2^23 - 2^22, for a weight of 0

    def __init__(self, attention: Attention, gain: Tensor, stream: int, carrier: torch.dtype):
        nn.Module.__init__(self)  # not with the float parts
        self.n_heads, self.window = attention.n_heads, attention.window
        D = len(gain)
        d = D // self.n_heads
        # sums of d products of queries and keys stay below 2^23, those of ``window`` weights and values below 2^24
        self.limit = min(2 ** ((23 - (d - 1).bit_length()) // 2) - 1, EXACT // (self.window * 2**WEIGHT_BITS) - 1)
        if self.limit < 63:
            raise OverflowError("Heads are too wide, or the window too long, for integers below 2^24.")
        bits = self.limit.bit_length()
        fractional = torch.tensor([bits - 2, bits - 4, bits - 3])  # queries reach to about 4, keys to 16, values to 8
        scale = torch.tensor([d**-0.5 * math.log2(math.e), 1, 1]).double().repeat_interleave(D)  # attention in powers of 2
        weight, bias = attention.qkv.weight * gain * scale[:, None], attention.qkv.bias * scale
        rows = fractional.repeat_interleave(D)
        self.qkv = ExactLinear(weight, bias, NORMED, NORMED_LIMIT, rows, carrier, floored=True)
        self.out = ExactLinear(attention.out.weight, attention.out.bias, bits - 3, self.limit, stream, carrier, floored=True)
        score_bits = 2 * bits - 6
        bias = (attention.bias.flip(1) * math.log2(math.e) * 2.0**score_bits).round().clamp(-(2**22), 2**22)
        self.register_buffer("bias", bias.to(carrier))  # (heads,window), the own position last
        self.register_buffer("step", torch.tensor(2 ** (score_bits - 4), dtype=carrier))  # 16 entries for a factor of 2
        self.register_buffer("table", torch.tensor(exp2_table(WEIGHT_BITS, 4), dtype=carrier))

    def project(self, x: Tensor) -> Tensor:
        return self.qkv(x).clamp_(-self.limit, self.limit)

    def last_biases(self, m: int) -> Tensor:
        return self.bias[:, self.window - m :]

    def attend_all(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.is_cuda:
            return super().attend_all(q, k, v)
        n, reach, y = q.shape[2], min(self.window, q.shape[2]) - 1, []
        padded = F.pad(self.last_biases(reach + 1), (BLOCK - 1, BLOCK - 1), value=self.mask_value)
        biases = padded.unfold(1, reach + BLOCK, 1).flip(1)  # (heads,c,reach+c): key j is i + reach - j before query i
        for start in range(0, n, BLOCK):
            first, stop = max(0, start - reach), min(n, start + BLOCK)
            bias = biases[:, : stop - start, first - start + reach : stop - start + reach]
            y.append(self.attend(q[:, :, start:stop], k[:, :, first:stop], v[:, :, first:stop], bias))
        return torch.cat(y, dim=2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Queries (...,n,d), keys and values (...,m,d) -> weighted means of the values (...,n,d), floored."""
        scores = (q @ k.transpose(-1, -2)).add_(bias)  # (...,n,m)
        below_max = torch.sub(scores.amax(dim=-1, keepdim=True), scores, out=scores)
        weights = look_up(self.table, floor_divide_(below_max, self.step))
        return floor_divide_(weights @ v, weights.sum(dim=-1, keepdim=True))


class ExactLayer(nn.Module):
    """:class:`homework.nn.transformer.Layer` on integers, Q.stream -> Q.stream."""

    def __init__(self, layer: nn.Module, stream: int, carrier: torch.dtype):
        super().__init__()
        up, down, D = layer.up, layer.down, layer.up.in_features
        self.attention = ExactAttention(layer.attention, layer.norm1.weight, stream, carrier)
        self.norm = ExactNorm(D, carrier)
        self.up = ExactLinear(up.weight * layer.norm2.weight, up.bias, NORMED, NORMED_LIMIT, UP, carrier, floored=True)
        self.down = ExactLinear(down.weight, down.bias, HIDDEN, HIDDEN_LIMIT, stream, carrier)
        self.register_buffer("rounding", torch.tensor(2 ** (2 * UP - 1 - HIDDEN), dtype=carrier))
        self.register_buffer("divisor", 2 * self.rounding)  # from squares, Q.16, to Q.5
        self.bound = self.attention.out.bound + self.down.bound  # of what it adds to the stream

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor] | None = None, start: int = 0) -> Tensor:
        x = x.to(self.rounding.dtype)  # embeddings are always floats
        x = x + self.attention(self.norm(x), cache, start)
        u = self.up(self.norm(x)).clamp_(0, U_LIMIT)
        h = floor_divide_(u.square_().add_(self.rounding), self.divisor).clamp_max_(HIDDEN_LIMIT)
        return x + self.down(h)


def export(prior: AutoregressiveModel, carrier: torch.dtype = torch.float32) -> AutoregressiveModel:
    """The same model with its parts exchanged for their integer twins: its forward pass and its steps give logits in powers
    of 2, Q.5. OverflowError if there is no room for some part, ValueError for weights that are NaN or infinite."""
    if not all(t.isfinite().all() for t in prior.state_dict().values() if t.is_floating_point()):
        raise ValueError("The prior has weights that are not numbers; was set_codes forgotten, or did it diverge?")
    wide = copy.deepcopy(prior).cpu().eval().requires_grad_(False).double()
    D, positions = wide.config["d_latent"], {"2d": ("row", "column"), "1d": ("place",), "none": ()}[wide.position]
    wide.embedding = nn.Embedding.from_pretrained(wide.table())
    wide.config = wide.config | {"code_dim": 0}  # code vectors have become rows of the table
    for stream in range(12, LEAST - 1, -1):  # as many bits as there is room for in all sums
        model = copy.deepcopy(wide)
        entering = [getattr(model, name) for name in positions]
        for p in (model.embedding.weight, *entering):
            p.data = (p * 2.0**stream).round()
        try:
            model.layers = nn.ModuleList(ExactLayer(layer, stream, carrier) for layer in wide.layers)
        except OverflowError:
            if stream == LEAST:
                raise
            continue
        bound = int(model.embedding.weight.abs().max()) * len(model.neighbours) + sum(layer.bound for layer in model.layers)
        bound += sum(int(p.abs().max()) for p in entering)
        if bound * 2**NORMED < EXACT and bound**2 * D < 2**53:
            break
    else:
        raise OverflowError("The embeddings or layers add up to too much for integers below 2^24.")
    weight, bias = wide.head.weight * wide.norm.weight * math.log2(math.e), wide.head.bias * math.log2(math.e)
    model.head = ExactLinear(weight, bias, NORMED, NORMED_LIMIT, LOGIT, carrier, floored=True)
    model.norm = ExactNorm(D, carrier)
    for p in model.parameters() if carrier == torch.float32 else ():
        p.data = p.float()
    return model
