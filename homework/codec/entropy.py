"""What codes grids under a prior: integer frequencies, exact where the prior allows it."""

from collections.abc import Callable

import torch
from torch import Tensor

from homework.autoregressive import AutoregressiveModel
from homework.codec.integer_layers import LOGIT, exp2_table, export, floor_divide_, look_up
from homework.codec.integer_steps import ExactSteps, softmax
from homework.codec.precision import full_precision
from homework.codec.range_coder import TOTAL
from homework.core.fingerprint import digest, fingerprint, legacy_digest, legacy_fingerprint, legacy_options
from homework.priors.base import Prior


def entropy_model(prior: Prior) -> "ExactPrior | FloatPrior":
    """What codes grids under ``prior``: whole numbers where it is a transformer that can be exported to them, else floats.

    Both have ``n_tokens`` (K), ``exact``, ``height`` and ``width`` (of the largest grid), ``fingerprints`` (32 bytes by
    which files of each format know it) and ``steps``; in whole numbers also ``weights``, of whole grids. A place's weights
    are K whole numbers of at least 0 as float32; they sum to 2^24 - K, and token k has the frequency weight + 1 of 2^24.
    """
    if isinstance(prior, AutoregressiveModel):
        try:
            return ExactPrior(prior)
        except OverflowError:  # its shape or weights leave whole numbers too few bits
            pass
    return FloatPrior(prior)


class ExactPrior:
    """A transformer prior in whole numbers, see :func:`entropy_model`. The whole grid at once and step by step, it gives the
    same weights to the last bit: in any batch, with any number of threads, on the CPU and on CUDA (MPS has no float64, so
    there the CPU computes).

    Args:
        prior: the model; it stays as it is.
        carrier: dtype that holds the whole numbers: float32, the fastest, float64 or int64.
    Raises:
        OverflowError: the model has no room for all of its parts below 2^24.
    """

    exact = True

    def __init__(self, prior: AutoregressiveModel, carrier: torch.dtype = torch.float32):
        device = prior.device
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.model = export(prior, carrier).to(self.device)
        self.n_tokens, self.height, self.width = (prior.config[k] for k in ("n_tokens", "height", "width"))
        tensors = self.model.state_dict()
        self.fingerprints = {1: legacy_digest("exact 1", legacy_options(prior), tensors, torch.int32),
                             2: digest(prior, tensors.values(), torch.int32, prefix="exact 1 ")}  # fmt: skip
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
    """Any prior with an incremental form, in floats, see :func:`entropy_model`. Its weights may differ in other batches and
    on other machines, so encoder and decoder both take steps, in batches of the same size and order, on the same kind of
    machine."""

    exact = False

    def __init__(self, prior: Prior):
        self.model = prior.eval()
        self.device = prior.device
        self.n_tokens = prior.n_tokens
        self.height, self.width = prior.grid_size or (64, 64)
        self.fingerprints = {1: legacy_fingerprint(prior), 2: fingerprint(prior)}

    def steps(self, B: int, h: int, w: int) -> Callable[[Tensor], Tensor]:
        """As :meth:`ExactPrior.steps`."""
        return quantize_probabilities(lambda: self.model.steps(B, h, w, self.device), self.n_tokens, self.device)


def quantize_probabilities(
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
