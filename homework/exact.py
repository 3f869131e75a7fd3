"""A prior in whole numbers, for entropy coding: the same distributions on every machine, in every batch, at every speed.

The decoder of a compressed file must see exactly the probabilities that the encoder saw: one other last bit, and the rest of
the image is noise. Sums of floats do not give that, since their last bits depend on the order of summation, and that on the
batch, the threads and the machine. Sums of whole numbers do. So :class:`ExactPrior` computes with whole numbers alone, in
tensors of float32, which hold them exactly below 2^24 and multiply them fast:

- every weight row is rounded to as many bits as keep |inputs| x |weights| + |bias| below 2^24 for all inputs, which are
  clamped; so no partial sum is ever rounded, in whatever order it is made;
- what goes on is divided by a power of two and floored; all scales are powers of two;
- norms and attention divide whole numbers and floor; a quotient of whole numbers below 2^24 is floored rightly even after
  it was rounded to float32, and the one square root is taken half-way between whole numbers, where no rounding can carry it
  across one;
- powers of two with fractional exponents come from tables that were made with Python's whole numbers.

That entropy models need integer networks is from Balle, Johnston and Minnen, "Integer Networks for Data Compression with
Latent-Variable Models" (ICLR 2019). Their name for numbers with a fixed place of the point is fixed-point numbers.
"""

import contextlib
import copy
import math
import threading
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homework.autoregressive import AutoregressiveModel
from homework.checkpoint import digest
from homework.exact_steps import ExactSteps, softmax
from homework.transformer import Attention

TOTAL = 2**24  # what the frequencies of one place add up to: the range coder's (homework.container)
EXACT = 2**24  # float32 holds every whole number up to here
NORMED, HIDDEN, LOGIT = 6, 5, 5  # binary digits behind the point of: norms, squared ReLUs, logits
NORMED_LIMIT, U_LIMIT, HIDDEN_LIMIT = 511, 2**11 - 1, 1023  # what norms, ReLUs and their squares are clamped to
WEIGHT_BITS = 8  # of an attention weight before it is normalised
BLOCK = 64  # places of a grid whose queries attend at once on a CPU: what is made of them fits its cache


def coder(prior: nn.Module) -> "ExactPrior | FloatPrior":
    """What codes grids under ``prior``: whole numbers where it is a transformer that can be exported to them, else floats.

    Both have ``n_tokens`` (K), ``exact``, ``height`` and ``width`` (of the largest grid), ``fingerprint`` (32 bytes that
    tell which model it is) and ``steps``; in whole numbers also ``weights``, of whole grids. A place's weights are K whole
    numbers of at least 0 as float32; they sum to 2^24 - K, and token k has the frequency weight + 1 of 2^24.
    """
    if isinstance(prior, AutoregressiveModel):
        try:
            return ExactPrior(prior)
        except OverflowError:  # its shape or weights leave whole numbers too few bits
            pass
    return FloatPrior(prior)


def exp2_table(bits: int, digits: int) -> list[int]:
    """2^bits * 2^(-i / 2^digits), rounded, for i = 0, 1, ... until it is 0: by whole numbers, the same on every machine."""
    table = []
    while not table or table[-1]:
        power = 2 ** ((bits + 1) * 2**digits - len(table)) if len(table) <= (bits + 1) * 2**digits else 0
        for _ in range(digits):  # the 2^digits-th root; roots of floored roots are floored rightly
            power = math.isqrt(power)
        table.append((power + 1) // 2)  # one bit more than wanted, to round by
    return table


def floor_divide_(x: Tensor, by: Tensor) -> Tensor:
    """Divides whole numbers (...) by positive ones, towards minus infinity, in place."""
    return x.div_(by).floor_() if x.is_floating_point() else x.div_(by, rounding_mode="floor")


def look_up(table: Tensor, i: Tensor) -> Tensor:
    """``table`` (n) at whole numbers i (...) of at least 0, its last entry beyond its end; i is changed."""
    return table.index_select(0, i.clamp_max_(len(table) - 1).int().flatten()).view(i.shape)  # (m) -> (...)


class ExactLinear(nn.Module):
    """A linear layer in whole numbers: floor((W x + b) / 2^s + 1/2), with a power of two for every row of W.

    Args:
        weight, bias: (out,in) and (out), real numbers, float64.
        digits: binary digits behind the point of the inputs.
        limit: inputs are from -limit to limit.
        out_digits: binary digits behind the point of the outputs, for all or for each (out).
        carrier: dtype of the tensors.
        floored: whether the inputs were floored, not rounded: then they stand for values that are half a unit higher.
    Raises:
        OverflowError: some row has no room for weights of at least the outputs' precision.
    """

    def __init__(self, weight: Tensor, bias: Tensor, digits: int, limit: int, out_digits: int | Tensor,
                 carrier: torch.dtype, floored: bool = False):  # fmt: skip
        super().__init__()
        if floored:
            bias = bias + weight.sum(dim=1) * 2.0 ** -(digits + 1)
        scale = torch.full((len(weight),), 20)  # digits behind the point of a row's weights: as many as there is room for
        while True:
            w, shift = (weight * 2.0 ** scale[:, None]).round(), scale + digits - out_digits
            b = (bias * 2.0 ** (scale + digits)).round() + (2.0 ** (shift - 1)).floor()  # a half, to round by
            largest = w.abs().sum(dim=1) * limit + b.abs()
            if (largest < EXACT).all():
                break
            scale = scale - (largest >= EXACT).long()
            if (shift < 1).any():
                raise OverflowError("The weights are too large for whole numbers below 2^24.")
        self.bound = int((largest / 2.0**shift).max()) + 1  # of the outputs
        self.register_buffer("weight", w.to(carrier))
        self.register_buffer("bias", b.to(carrier))
        self.register_buffer("divisor", (2.0**shift).to(carrier))
        self.limit = limit
        if carrier != torch.int64:  # floats need no division: whole numbers times powers of two are as exact as they are
            scaled = (w / 2.0 ** shift[:, None]).T.to(carrier)  # (in,out), which is faster for few rows
            self.register_buffer("scaled", scaled.contiguous(), persistent=False)
            self.register_buffer("scaled_bias", (b / 2.0**shift).to(carrier), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(...,in) -> (...,out)."""
        if x.is_floating_point():
            return F.linear(x, self.scaled.T, self.scaled_bias).floor_()
        return floor_divide_(F.linear(x, self.weight, self.bias), self.divisor)


class ExactNorm(nn.Module):
    """Divides (...,D) whole numbers by the root of the mean of their squares; NORMED digits behind the point, floored."""

    def __init__(self, D: int, carrier: torch.dtype):
        super().__init__()
        wide = torch.int64 if carrier == torch.int64 else torch.float64  # sums of squares are below 2^53
        self.register_buffer("D", torch.tensor(D, dtype=wide))
        self.register_buffer("one", torch.tensor(2**NORMED, dtype=carrier))
        self.limit = NORMED_LIMIT

    def forward(self, x: Tensor) -> Tensor:
        mean = floor_divide_(x.to(self.D.dtype, copy=True).square_().sum(dim=-1, keepdim=True), self.D)
        # mean + 1 is a whole number; a half more, and no rounding of the root can take it across one
        root = mean.double().add_(1.5).sqrt_().floor_().to(x.dtype)
        return floor_divide_(x * self.one, root).clamp_(-NORMED_LIMIT, NORMED_LIMIT)


class ExactAttention(Attention):
    """:class:`homework.transformer.Attention` in whole numbers; ``gain`` (D) is that of the norm before it."""

    unseen = -(2**25)  # added to a score of up to 2^23, so far behind the least one, -2^23 - 2^22, that its weight becomes 0

    def __init__(self, attention: Attention, gain: Tensor, stream: int, carrier: torch.dtype):
        nn.Module.__init__(self)  # not with the float parts
        self.n_heads, self.window = attention.n_heads, attention.window
        D = len(gain)
        d = D // self.n_heads
        # sums of d products of queries and keys stay below 2^23, those of ``window`` weights and values below 2^24
        self.limit = min(2 ** ((23 - (d - 1).bit_length()) // 2) - 1, EXACT // (self.window * 2**WEIGHT_BITS) - 1)
        if self.limit < 63:
            raise OverflowError("Heads are too wide, or the window too long, for whole numbers below 2^24.")
        bits = self.limit.bit_length()
        digits = torch.tensor([bits - 2, bits - 4, bits - 3])  # queries reach to about 4, keys to 16, values to 8
        scale = torch.tensor([d**-0.5 * math.log2(math.e), 1, 1]).double().repeat_interleave(D)  # attention in powers of 2
        weight, bias = attention.qkv.weight * gain * scale[:, None], attention.qkv.bias * scale
        rows = digits.repeat_interleave(D)
        self.qkv = ExactLinear(weight, bias, NORMED, NORMED_LIMIT, rows, carrier, floored=True)
        self.out = ExactLinear(attention.out.weight, attention.out.bias, bits - 3, self.limit, stream, carrier, floored=True)
        score_digits = 2 * bits - 6
        bias = (attention.bias.flip(1) * math.log2(math.e) * 2.0**score_digits).round().clamp(-(2**22), 2**22)
        self.register_buffer("bias", bias.to(carrier))  # (heads,window), the own place last
        self.register_buffer("step", torch.tensor(2 ** (score_digits - 4), dtype=carrier))  # 16 entries for a factor of 2
        self.register_buffer("table", torch.tensor(exp2_table(WEIGHT_BITS, 4), dtype=carrier))

    def project(self, x: Tensor) -> Tensor:
        return self.qkv(x).clamp_(-self.limit, self.limit)

    def last_biases(self, m: int) -> Tensor:
        return self.bias[:, self.window - m :]

    def attend_all(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.is_cuda:
            return super().attend_all(q, k, v)
        n, reach, y = q.shape[2], min(self.window, q.shape[2]) - 1, []
        padded = F.pad(self.last_biases(reach + 1), (BLOCK - 1, BLOCK - 1), value=self.unseen)
        biases = padded.unfold(1, reach + BLOCK, 1).flip(1)  # (heads,c,reach+c): query i, key j is i + reach - j places back
        for start in range(0, n, BLOCK):
            first, stop = max(0, start - reach), min(n, start + BLOCK)
            bias = biases[:, : stop - start, first - start + reach : stop - start + reach]
            y.append(self.attend(q[:, :, start:stop], k[:, :, first:stop], v[:, :, first:stop], bias))
        return torch.cat(y, dim=2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        """Queries (...,n,d), keys and values (...,m,d) -> weighted means of the values (...,n,d), floored."""
        scores = (q @ k.transpose(-1, -2)).add_(bias)  # (...,n,m)
        behind = torch.sub(scores.amax(dim=-1, keepdim=True), scores, out=scores)
        weights = look_up(self.table, floor_divide_(behind, self.step))
        return floor_divide_(weights @ v, weights.sum(dim=-1, keepdim=True))


class ExactLayer(nn.Module):
    """:class:`homework.transformer.Layer` in whole numbers, on a residual stream with ``stream`` digits."""

    def __init__(self, layer: nn.Module, stream: int, carrier: torch.dtype):
        super().__init__()
        up, down, D = layer.up, layer.down, layer.up.in_features
        self.attention = ExactAttention(layer.attention, layer.norm1.weight, stream, carrier)
        self.norm = ExactNorm(D, carrier)
        self.up = ExactLinear(up.weight * layer.norm2.weight, up.bias, NORMED, NORMED_LIMIT, 8, carrier, floored=True)
        self.down = ExactLinear(down.weight, down.bias, HIDDEN, HIDDEN_LIMIT, stream, carrier)
        self.register_buffer("rounding", torch.tensor(2 ** (15 - HIDDEN), dtype=carrier))  # squares of 8 digits have 16
        self.register_buffer("divisor", 2 * self.rounding)
        self.u_limit = U_LIMIT
        self.bound = self.attention.out.bound + self.down.bound  # of what it adds to the stream

    def forward(self, x: Tensor, cache: tuple[Tensor, Tensor] | None = None, start: int = 0) -> Tensor:
        x = x.to(self.rounding.dtype)  # embeddings are always floats
        x = x + self.attention(self.norm(x), cache, start)
        u = self.up(self.norm(x)).clamp_(0, U_LIMIT)
        h = floor_divide_(u.square_().add_(self.rounding), self.divisor).clamp_max_(HIDDEN_LIMIT)
        return x + self.down(h)


def export(prior: AutoregressiveModel, carrier: torch.dtype = torch.float32) -> AutoregressiveModel:
    """The same model with its parts exchanged for their twins in whole numbers: its forward pass and its steps give logits
    in powers of 2 with LOGIT binary digits behind the point. OverflowError if there is no room for some part, ValueError for
    weights that are no numbers."""
    if not all(t.isfinite().all() for t in prior.state_dict().values() if t.is_floating_point()):
        raise ValueError("The prior has weights that are not numbers; was set_codes forgotten, or did it diverge?")
    wide = copy.deepcopy(prior).cpu().eval().requires_grad_(False).double()
    D, entering = wide.config["d_latent"], [name for name in ("row", "column", "place") if hasattr(wide, name)]
    wide.embedding = nn.Embedding.from_pretrained(wide.table())
    wide.config = wide.config | {"code_dim": 0}  # code vectors have become rows of the table
    for stream in range(12, 3, -1):  # digits of the residual stream: as many as there is room for, whatever is added up
        model = copy.deepcopy(wide)
        for p in (model.embedding.weight, *(getattr(model, name) for name in entering)):
            p.data = (p * 2.0**stream).round()
        model.layers = nn.ModuleList(ExactLayer(layer, stream, carrier) for layer in wide.layers)
        bound = int(model.embedding.weight.abs().max()) * len(model.neighbours) + sum(layer.bound for layer in model.layers)
        bound += sum(int(getattr(model, name).abs().max()) for name in entering)
        if bound * 2**NORMED < EXACT and bound**2 * D < 2**53:
            break
    else:
        raise OverflowError("The embeddings or layers add up to too much for whole numbers below 2^24.")
    weight, bias = wide.head.weight * wide.norm.weight * math.log2(math.e), wide.head.bias * math.log2(math.e)
    model.head = ExactLinear(weight, bias, NORMED, NORMED_LIMIT, LOGIT, carrier, floored=True)
    model.norm = ExactNorm(D, carrier)
    if carrier == torch.float32:
        for p in model.parameters():
            p.data = p.float()
    return model


@contextlib.contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Matrix products with all bits of float32, whatever the caller has allowed (TF32, bfloat16, autocast). What is allowed
    is one setting for all threads: the first to come in changes it, the last to go out changes it back."""
    autocast = torch.autocast(device.type, enabled=False) if torch.is_autocast_enabled(device.type) else None
    with _lock:
        _inside.append(_allowed() if not _inside else _inside[0])
        torch.set_float32_matmul_precision("highest")
    try:
        with torch.inference_mode(), autocast or contextlib.nullcontext():
            yield
    finally:
        with _lock:
            allowed = _inside.pop()
            if not _inside:
                _allow(*allowed)


_lock, _inside = threading.Lock(), []


def _allowed() -> tuple[str | None, list]:
    """The setting for all backends, None where each has been given its own; and these, which torch 2.9 and later have."""
    backends = (getattr(backend, "matmul", None) for backend in (torch.backends.cuda, torch.backends.mkldnn))
    own = [(backend, backend.fp32_precision) for backend in backends if hasattr(backend, "fp32_precision")]
    try:
        return torch.get_float32_matmul_precision(), own
    except RuntimeError:  # torch's word for a mix of both
        return None, own


def _allow(common: str | None, own: list) -> None:
    if common is not None:
        torch.set_float32_matmul_precision(common)
    for backend, precision in own:
        backend.fp32_precision = "none"  # so that it has again what it had from a setting for several backends
        if backend.fp32_precision != precision:
            backend.fp32_precision = precision


class ExactPrior:
    """A transformer prior in whole numbers, see :func:`coder`. The whole grid at once and step by step, it gives the same
    weights to the last bit: in any batch, with any number of threads, on the CPU and on CUDA (MPS has no float64, so there
    the CPU computes).

    Args:
        prior: the model; it stays as it is.
        carrier: dtype that holds the whole numbers: float32, the fastest, float64 or int64.
    Raises:
        OverflowError: the model has no room for all of its parts below 2^24.
    """

    exact = True

    def __init__(self, prior: AutoregressiveModel, carrier: torch.dtype = torch.float32):
        device = next(prior.parameters()).device
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.model = export(prior, carrier).to(self.device)
        self.n_tokens, self.height, self.width = (prior.config[k] for k in ("n_tokens", "height", "width"))
        self.fingerprint = digest("exact 1", prior.config, self.model.state_dict(), torch.int32)
        bits = 28 - (self.n_tokens - 1).bit_length()  # K of the table's entries, times 2^24, sum to 2^52 at most
        if bits < 6:
            raise OverflowError(f"{self.n_tokens} codes are too many for frequencies out of 2^24.")
        table = torch.tensor(exp2_table(bits, LOGIT), dtype=torch.float64)
        self.table = (table * (TOTAL - self.n_tokens)).to(self.device)
        self.in_numpy = self.device.type == "cpu" and carrier == torch.float32  # what can be: it is faster
        self.free = torch.tensor(TOTAL - self.n_tokens, dtype=torch.float64, device=self.device)

    def weights(self, grids: Tensor) -> Tensor:
        """(B,h,w) int64 in [0,K) -> (B,N,K) float32 on the CPU, in one parallel pass."""
        with full_precision(self.device):
            return self._weights(self.model(grids.to(self.device))[0].flatten(1, 2))  # (B,h,w,K) -> (B,N,K)

    def steps(self, B: int, h: int, w: int) -> Callable[[Tensor], Tensor]:
        """Takes the (B,n) int64 tokens of the next n places (any n at first, then 1), returns (B,K) float32 on the CPU for
        the place behind them."""
        with full_precision(self.device):
            steps = ExactSteps(self.model, B, h, w) if self.in_numpy else self.model.steps(B, h, w, self.device)

        def step(tokens: Tensor) -> Tensor:
            with full_precision(self.device):
                return self._weights(steps(tokens.to(self.device)))

        return step

    def _weights(self, logits: Tensor) -> Tensor:
        """Softmax of (...,K) logits in whole numbers: the table has p_k (2^24 - K), which is divided by the sum of p."""
        if self.in_numpy:
            softmax(logits.view(-1, self.n_tokens).numpy(), self.table.numpy(), TOTAL - self.n_tokens)  # (...,K) -> (R,K)
            return logits
        behind = logits.amax(dim=-1, keepdim=True) - logits
        scaled = look_up(self.table, behind)  # float64: sums are up to 2^52
        weights = floor_divide_(scaled, scaled.sum(dim=-1, keepdim=True).div_(self.free)).float()
        weights[..., 0] += TOTAL - self.n_tokens - weights.sum(dim=-1)  # what the floors left over, less than K
        return weights.cpu()


class FloatPrior:
    """Any prior with an incremental form, in floats, see :func:`coder`. Its weights may differ in other batches and on other
    machines, so encoder and decoder both take steps, in batches of the same size and order, on the same kind of machine."""

    exact = False

    def __init__(self, prior: nn.Module):
        self.model = prior.eval()
        self.device = next(prior.parameters()).device
        self.n_tokens = prior.n_tokens
        self.height, self.width = (prior.config.get(k, default) for k, default in (("height", 64), ("width", 64)))
        self.fingerprint = digest(type(prior).__name__, prior.config, prior.state_dict(), torch.float32)

    def steps(self, B: int, h: int, w: int) -> Callable[[Tensor], Tensor]:
        """As :meth:`ExactPrior.steps`."""
        return weighed(lambda: self.model.steps(B, h, w, self.device), self.n_tokens, self.device)


def weighed(
    begin: Callable[[], Callable[[Tensor], Tensor]], n_tokens: int, device: torch.device
) -> Callable[[Tensor], Tensor]:
    """An incremental form on ``device`` that gives weights for the range coder, (B,K) float32 on the CPU, where the one that
    ``begin`` makes gives logits; both in full precision, for a model may compute as soon as it is begun."""
    with full_precision(device):
        steps = begin()

    def step(tokens: Tensor) -> Tensor:
        with full_precision(device):
            p = steps(tokens.to(device)).float().softmax(dim=-1).cpu().double()
            total = p.sum(dim=-1, keepdim=True)
            if not total.isfinite().all():
                raise ValueError("The prior gives probabilities that are not numbers, so nothing can be coded under it.")
            weights = (p / total * (TOTAL - n_tokens)).floor_().float()
            weights[..., 0] += TOTAL - n_tokens - weights.sum(dim=-1)
            return weights

    return step
