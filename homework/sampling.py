"""From logits to tokens: temperature, top-k, top-p. Knows no model; every draw comes from a generator that is passed in."""

import math

import torch
from torch import Tensor


def check(temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None) -> None:
    """ValueError, naming the value and what is allowed, if a setting makes no sense."""
    if not _is_number(temperature) or not 0 <= temperature < math.inf:
        raise ValueError(f"temperature is {temperature}, but must be 0 (always the likeliest token) or more.")
    if top_k is not None and (not _is_number(top_k, int) or top_k < 1):
        raise ValueError(f"top_k is {top_k}, but must be a whole number of at least 1, or left out to keep every token.")
    if top_p is not None and (not _is_number(top_p) or not 0 < top_p <= 1):
        raise ValueError(f"top_p is {top_p}, but must be above 0 and at most 1.")


def _is_number(value: object, kind=int | float) -> bool:
    return isinstance(value, kind) and not isinstance(value, bool)


def restrict(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Sets to -inf every logit that is not among the ``top_k`` largest, nor in the nucleus of mass ``top_p``.

    Args:
        logits: (..., K) float, natural logarithms up to a constant.
        top_k: how many tokens to keep at least; ties with the last one stay too.
        top_p: keep the smallest set of likeliest tokens whose probabilities sum to this or more
            (nucleus sampling, Holtzman et al., arXiv 1904.09751, section 3.1).
    Returns:
        (..., K) logits; at least one of them is finite.
    """
    if top_k is not None and top_k < logits.shape[-1]:
        kth = logits.topk(top_k, dim=-1).values[..., -1:]
        logits = logits.masked_fill(logits < kth, -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        p = ordered.softmax(dim=-1)
        drop = p.cumsum(dim=-1) - p >= top_p  # the mass *before* a token: the first one always stays
        logits = logits.masked_fill(drop.gather(-1, order.argsort(dim=-1)), -torch.inf)
    return logits


def sample(
    logits: Tensor,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draws one token from each distribution.

    The draw is an inverse of the cumulative distribution by one uniform number from a CPU generator, so that a seed
    gives the same numbers for every device.

    Args:
        logits: (..., K) float, natural logarithms up to a constant.
        temperature: divides the logits; 0 takes the likeliest token (the first of equals).
        top_k, top_p: see :func:`restrict`.
        generator: a CPU generator; torch's global one if None.
    Returns:
        (...) int64 in [0, K).
    """
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float() - logits.float().amax(dim=-1, keepdim=True)  # no temperature makes the largest one infinite
    logits = restrict(logits / max(temperature, 1e-30), top_k, top_p)
    # float64 so that a thousand small probabilities add up without loss; MPS has none, and float32 does there
    p = logits.softmax(dim=-1)
    cumulative = p.cumsum(dim=-1) if p.device.type == "mps" else p.double().cumsum(dim=-1)
    u = torch.rand(logits.shape[:-1], generator=generator, dtype=torch.float64)
    target = u.to(cumulative.dtype).to(cumulative.device)[..., None] * cumulative[..., -1:]
    token = (cumulative <= target).sum(dim=-1)  # the first token whose cumulative mass exceeds the target
    # rounding may push the target up to the total: then the last token that has any mass
    last = logits.shape[-1] - 1 - (p > 0).flip(-1).to(torch.uint8).argmax(dim=-1)
    return torch.minimum(token, last)


def generate(
    steps,
    B: int,
    h: int,
    w: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    prefix: Tensor | None = None,
) -> Tensor:
    """Samples whole grids, one place after the other in raster order.

    Args:
        steps: a prior's incremental form, still empty: ``steps(tokens)`` takes the (B, n) int64 tokens of the next n
            places (n = 0 at the start) and returns the (B, K) logits of the place after them.
        B, h, w: how many grids, and their size in tokens.
        temperature, top_k, top_p, generator: see :func:`sample`.
        prefix: (B, R, w) int64 first rows to keep as they are, 0 <= R <= h; None for none.
    Returns:
        (B, h, w) int64.
    """
    check(temperature, top_k, top_p)
    if prefix is None:
        prefix = torch.zeros(B, 0, w, dtype=torch.int64)
    if prefix.ndim != 3 or len(prefix) != B or prefix.shape[1] > h or prefix.shape[2] != w:
        raise ValueError(f"The prefix {tuple(prefix.shape)} does not fit {B} grids of {h} rows and {w} columns.")
    kept = prefix.flatten(1)  # (B,R,w) -> (B,R*w)
    tokens = [kept[:, n : n + 1] for n in range(kept.shape[1])]
    new = kept
    for _ in range(h * w - kept.shape[1]):
        new = sample(steps(new), temperature, top_k, top_p, generator)[:, None]
        tokens.append(new)
    device = tokens[-1].device
    return torch.cat([t.to(device) for t in tokens], dim=1).view(B, h, w)  # (B,N) -> (B,h,w)
