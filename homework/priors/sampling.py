"""From logits to tokens: temperature, top-k, top-p, best of n, beam search. Knows no model; every draw comes from a
generator that is passed in."""

import functools
import numbers
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from homework.core import checks
from homework.priors.steps import Steps, check_tokens


def check(temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None, num_beam: int = 1,
          beam_width: int = 1, beams: int = 1) -> None:  # fmt: skip
    """ValueError, naming the value and what is allowed, if a setting of :func:`generate` makes no sense."""

    def is_real(x: object) -> bool:  # Python's or numpy's
        return isinstance(x, numbers.Real) and not isinstance(x, bool)

    if not is_real(temperature) or not 0 <= temperature <= checks.LARGEST:
        raise ValueError(f"temperature is {temperature}, but must be 0 (always the most probable token) or more, up to "
                         f"{checks.LARGEST:g}.")
    if top_k is not None and (not is_real(top_k) or not isinstance(top_k, numbers.Integral) or top_k < 1):
        raise ValueError(f"top_k is {top_k}, but must be an integer of at least 1, or left out to keep every token.")
    if top_p is not None and (not is_real(top_p) or not 0 < top_p <= 1):
        raise ValueError(f"top_p is {top_p}, but must be above 0 and at most 1.")
    checks.integer(1, num_beam=num_beam, beam_width=beam_width, beams=beams)
    given = {"temperature": (temperature, 1), "top_k": (top_k, None), "top_p": (top_p, None), "num_beam": (num_beam, 1)}
    extra = [name for name, (value, default) in given.items() if value != default]
    if beams > 1 and extra:
        raise ValueError(f"beams is {beams}: a beam search, which draws nothing, so leave {extra[0]} out; or leave beams "
                         "out.")  # fmt: skip


def check_prefix(prefix: Tensor | None, steps: Steps, B: int, h: int, w: int) -> Tensor:
    """The prefix (B,R,w) int64 of (B,h,w) grids, of 0 rows for None. ValueError if it does not fit, or holds other tokens
    than the ``steps`` know."""
    if prefix is None:
        return torch.zeros(B, 0, w, dtype=torch.int64, device="cpu")
    if prefix.ndim != 3 or len(prefix) != B or prefix.shape[1] > h or prefix.shape[2] != w:
        raise ValueError(f"The prefix {tuple(prefix.shape)} does not fit {B} grids of {h} rows and {w} columns.")
    return check_tokens(prefix, steps.n_tokens, steps.given)


def restrict(logits: Tensor, top_k: int | None = None, top_p: float | None = None) -> Tensor:
    """Sets logits (...,K) to -inf, though never all: those not among the ``top_k`` largest (ties with the last one stay)
    and, of the rest, those outside of the nucleus, the smallest set of most probable tokens whose probabilities sum to
    ``top_p`` or more (Holtzman et al., arXiv 1904.09751, section 3.1)."""
    if top_k is not None and top_k < logits.shape[-1]:
        logits = logits.masked_fill(logits < logits.topk(top_k, dim=-1).values[..., -1:], -torch.inf)
    if top_p is not None and top_p < 1:
        ordered, order = logits.sort(dim=-1, descending=True, stable=True)
        p = ordered.softmax(dim=-1)
        drop = p.cumsum(dim=-1) - p >= top_p  # the mass *before* a token: the first one always stays
        logits = logits.masked_fill(drop.scatter(-1, order, drop), -torch.inf)
    return logits


def sample(logits: Tensor, temperature: float = 1.0, top_k: int | None = None, top_p: float | None = None,
           generator: torch.Generator | None = None) -> Tensor:  # fmt: skip
    """Draws one token from each distribution, (...,K) float logits -> (...) int64 in [0,K): inverts the cumulative
    distribution at one uniform number from a CPU generator (torch's global one if None), so that a seed gives the same
    numbers for every device. ``temperature`` divides the logits; 0 takes the most probable token, the first of equals.
    ``top_k`` and ``top_p`` as of :func:`restrict`."""
    if temperature == 0:
        return logits.argmax(dim=-1)
    logits = logits.float()
    if (temperature, top_k, top_p) != (1, None, None):
        logits = logits - logits.amax(dim=-1, keepdim=True)  # no temperature makes the largest one infinite
        logits = restrict(logits / max(float(temperature), 1e-30), top_k, top_p)
    p = logits.softmax(dim=-1)
    # float64 so that a thousand small probabilities add up without loss; MPS has none, and float32 does there
    dtype = torch.float32 if p.device.type == "mps" else torch.float64
    cumulative = p.cumsum(dim=-1, dtype=dtype)
    total = cumulative[..., -1:]
    u = torch.rand(total.shape, generator=generator, dtype=torch.float64, device="cpu")
    # float32 may round u up to 1; with u below it the target, even rounded, is below the total, and the token has some mass
    target = u.to(dtype).clamp_(max=1 - torch.finfo(dtype).eps / 2).to(p.device) * total
    return (cumulative <= target).sum(dim=-1)  # the first token whose cumulative mass exceeds the target


def generate(steps: Steps, B: int, h: int, w: int, temperature: float = 1.0, top_k: int | None = None,
             top_p: float | None = None, generator: torch.Generator | None = None, prefix: Tensor | None = None,
             num_beam: int = 1, beam_width: int = 1, beams: int = 1) -> Tensor:  # fmt: skip
    """Fills whole grids in raster order: draws token by token, or draws several continuations and keeps the most probable
    one again and again (``num_beam`` > 1), or searches without drawing (``beams`` > 1).

    Args:
        steps: a prior's :class:`homework.priors.steps.Steps`, before their first call.
        temperature, top_k, top_p, generator: see :func:`sample`.
        prefix: (B,R,w) first rows, of any integer type, to keep as they are, 0 <= R <= h; None for none.
        num_beam, beam_width: how many continuations, and of how many tokens, see :func:`best_of`; 1 to draw one.
        beams: how many partial grids a beam search keeps, see :func:`beam_search`; 1 to draw.
    Returns:
        (B,h,w) int64. ValueError for a bad setting or prefix, steps that cannot select, or logits that are not numbers.
    """
    check(temperature, top_k, top_p, num_beam, beam_width, beams)
    known = check_prefix(prefix, steps, B, h, w).flatten(1)  # (B,R,w) -> (B,R*w)
    N = h * w - known.shape[1]
    if N == 0 or B == 0:
        return F.pad(known, (0, N)).view(B, h, w)
    draw = functools.partial(sample, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
    if beams > 1:
        new = beam_search(steps, known, N, beams)
    elif num_beam > 1:
        new = best_of(steps, known, N, draw, num_beam, beam_width)
    else:
        new = torch.cat(list(draw_tokens(steps, known, N, draw)), dim=1)
    return torch.cat([known.to(new.device), new], dim=1).view(B, h, w)  # (B,h*w) -> (B,h,w)


def draw_tokens(steps: Steps, known: Tensor, N: int, draw: Callable[[Tensor], Tensor]) -> Iterator[Tensor]:
    """The N >= 1 tokens after (B,n) ``known`` ones, drawn one by one: (B,1) int64 each."""
    last = known
    for _ in range(N):
        logits = steps(last)
        yield (last := draw(logits)[:, None])
    check_numbers(logits)


def generate_rows(steps: Steps, B: int, h: int, w: int, temperature: float = 1.0, top_k: int | None = None,
                  top_p: float | None = None, generator: torch.Generator | None = None,
                  prefix: Tensor | None = None) -> Iterator[Tensor]:  # fmt: skip
    """As :func:`generate` draws, with the same draws, but to watch: the grids (B,r,w) int64 so far, after each row."""
    check(temperature, top_k, top_p)
    known = check_prefix(prefix, steps, B, h, w).flatten(1)  # (B,R,w) -> (B,R*w)
    N = h * w - known.shape[1]
    if N == 0 or B == 0:
        yield F.pad(known, (0, N)).view(B, h, w)
        return
    draw = functools.partial(sample, temperature=temperature, top_k=top_k, top_p=top_p, generator=generator)
    drawn = known
    for new in draw_tokens(steps, known, N, draw):
        drawn = torch.cat([drawn.to(new.device), new], dim=1)
        if drawn.shape[1] % w == 0:
            yield drawn.view(B, -1, w)  # (B,r*w) -> (B,r,w)


def check_numbers(logits: Tensor) -> None:
    """ValueError if the logits of the last position are not numbers; a NaN at an earlier one has spread to them."""
    if logits.isnan().any():
        raise ValueError("The prior gives logits that are not numbers; was set_codes forgotten, or did it diverge?")


def log_probabilities(logits: Tensor) -> Tensor:
    """(...,K) logits -> natural logarithms of probabilities, in float64 (on MPS, which has none, in the type of the logits),
    so that the sums of two grids differ even over hundreds of positions."""
    return (logits if logits.device.type == "mps" else logits.double()).log_softmax(dim=-1)


def best_of(steps: Steps, known: Tensor, N: int, draw: Callable[[Tensor], Tensor], num_beam: int, beam_width: int) -> Tensor:
    """The N >= 1 tokens (B,N) int64 after (B,n) ``known`` ones: again and again draws ``num_beam`` continuations of
    ``beam_width`` tokens (or what is left) for each grid, and continues from the one that the prior finds most probable, at
    temperature 1 and with all tokens; the first of equals."""
    logits = steps(known)
    first = torch.arange(len(known), device=logits.device) * num_beam  # the rows of grid b are b * num_beam + i
    best, tokens = first // num_beam, logits.new_zeros(len(known), 0, dtype=torch.int64)
    while tokens.shape[1] < N:
        rows = best.repeat_interleave(num_beam)  # (B) -> (B*num_beam)
        steps.select(rows)
        logits, tokens, scores = logits[rows], tokens[rows], logits.new_zeros(())
        for _ in range(min(beam_width, N - tokens.shape[1])):
            new = draw(logits)[:, None]
            scores = scores + log_probabilities(logits).gather(1, new)
            tokens = torch.cat([tokens, new], dim=1)
            if tokens.shape[1] < N:
                logits = steps(new)
        best = first + scores.view(-1, num_beam).argmax(dim=1)  # (B*num_beam,1) -> (B,num_beam)
    check_numbers(logits)
    return tokens[best]


def beam_search(steps: Steps, known: Tensor, N: int, beams: int) -> Tensor:
    """The N >= 1 tokens (B,N) int64 after (B,n) ``known`` ones: keeps the ``beams`` most probable partial grids of each
    image at every position (fewer while there are fewer different ones), and returns the most probable at the end."""
    logits = steps(known)
    B, K = logits.shape
    image = torch.arange(B, device=logits.device)[:, None]
    tokens, scores = image.new_zeros(B, 0), torch.zeros_like(image, dtype=log_probabilities(logits[:1]).dtype)  # (B,m)
    for n in range(N):
        m = scores.shape[1]
        expanded = scores[:, :, None] + log_probabilities(logits).view(B, m, K)  # (B*m,K) -> (B,m,K)
        scores, best = expanded.flatten(1).topk(min(beams, m * K), dim=1)  # (B,m,K) -> (B,m*K)
        rows = (image * m + best // K).flatten()  # (B,beams) -> (B*beams)
        new = (best % K).view(-1, 1)  # (B,beams) -> (B*beams,1)
        tokens = torch.cat([tokens[rows], new], dim=1)
        if n + 1 < N:
            steps.select(rows)
            logits = steps(new)
    check_numbers(logits)
    return tokens.view(B, -1, N)[:, 0]  # (B*beams,N) -> (B,beams,N): the most probable comes first
