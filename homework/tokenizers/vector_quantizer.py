"""Vector quantization (van den Oord, Vinyals and Kavukcuoglu, arXiv 1711.00937): nearest entries that learn."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homework.core import checks
from homework.training import distributed


def nearest(x: Tensor, entries: Tensor, at_once: int = 2**22) -> Tensor:
    """argmin_k |x - e_k|^2, the first of equals (equation 1 of the paper): x (...,d) and entries (K,d) float -> (...) int64
    in [0,K). ``at_once`` is how many distances may be in memory at the same time; at least those of one vector are."""
    blocks = chunked_distances(x.flatten(0, -2), entries, at_once)  # (...,d) -> (n,d)
    return torch.cat([d.argmin(dim=-1) for d in blocks]).view(x.shape[:-1])  # (rows,K) -> (rows); (n) -> (...)


def chunked_distances(x: Tensor, entries: Tensor, at_once: int = 2**22) -> Iterator[Tensor]:
    """(|x - e_k|^2 - |x|^2) / 2 of one block of rows after the other: (rows,K). Arguments as of :func:`nearest`."""
    squares = entries.square().sum(dim=-1) / 2
    for rows in x.split(max(1, at_once // len(entries))):
        with torch.autocast("cuda" if x.is_cuda else "cpu", enabled=False):  # bfloat16 mistakes neighbours for each other
            # |x - e|^2 = |x|^2 - 2 x.e + |e|^2, where |x|^2 is the same for all entries
            yield torch.addmm(squares, rows, entries.T, alpha=-1)


class VectorQuantizer(nn.Module):
    """Replaces each vector by the nearest of K entries, q(x) = e_k with k = argmin_j |x - e_j|^2 (section 3.1 of the paper).

    ::

        x (...,d) -> nearest entry -> index (...) -> lookup -> q (...,d), its gradient passed straight through to x

    The entries learn by gradient from the codebook loss |sg[x] - q|^2 (section 3.2), or, with ``ema_decay``, as moving
    averages of the vectors that chose them (appendix A.1). In training mode :meth:`forward` accumulates statistics of the
    vectors, and :meth:`after_update`, called after each step of the optimizer, acts on them: it moves the averages, takes
    the first entries from the first batch, and restarts entries that are hardly chosen at vectors of the latest batch (as
    Dhariwal et al., arXiv 2005.00341, section 3.1). ``forward`` itself changes no weights.

    Weight decay does no harm: with ``l2_norm`` an entry's length means nothing; without, it shrinks by lr x decay = 1e-5 an
    update, and the loss or a restart pulls it back; averages have no gradient, so that the optimizer leaves them alone.

    Args:
        n_tokens, code_dim: K, from 1 to 2^24, and d, from 1 to 4096.
        l2_norm: compare directions only, x and entries scaled to length 1 (Yu et al., arXiv 2110.04627, section 3.2).
        ema_decay: gamma of the moving averages, from 0 to 0.99999, 0.99 in the paper; 0 to learn the entries by gradient.
        restart_below: an entry is restarted when it is chosen less often than this fraction, from 0 to 1, of the mean, as an
            average over some 100 updates (fewer at first); with 0 only one that was never chosen.
    """

    def __init__(self, n_tokens: int, code_dim: int, l2_norm: bool = False, ema_decay: float = 0.0,
                 restart_below: float = 0.1):  # fmt: skip
        super().__init__()
        checks.integer(1, 2**24, n_tokens=n_tokens)
        checks.integer(1, 4096, code_dim=code_dim)
        checks.boolean(l2_norm=l2_norm)
        for name, value, high in ("ema_decay", ema_decay, 0.99999), ("restart_below", restart_below, 1):
            if type(value) not in (int, float) or not 0 <= value <= high:
                raise ValueError(f"{name} is {value!r}, but must be a number from 0 to {high}.")
        self.l2_norm, self.ema_decay, self.restart_below = l2_norm, ema_decay, restart_below
        # no gradient, no optimizer; but still a parameter, for the training loop to average with the other weights
        self.codebook = nn.Parameter(torch.randn(n_tokens, code_dim) * code_dim**-0.5, requires_grad=not ema_decay)
        self.register_buffer("frequency", torch.zeros(n_tokens))  # N_i, the moving average of how often i is chosen
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self.statistics = None  # since the last update: how often i was chosen, the sum of what chose it, all vectors
        self.restarts = True  # whether dead entries are restarted

    def entries(self) -> Tensor:
        """(K,d): the vector of each index."""
        return F.normalize(self.codebook, dim=-1) if self.l2_norm else self.codebook

    def scale(self, x: Tensor) -> Tensor:
        """(...,d) -> (...,d), as it is compared with the entries, and in their type (autocast may have made it bfloat16)."""
        x = x.to(self.codebook.dtype)
        return F.normalize(x, dim=-1) if self.l2_norm else x

    def encode_index(self, x: Tensor) -> Tensor:
        return nearest(self.scale(x), self.entries())

    def decode_index(self, index: Tensor) -> Tensor:
        return F.embedding(index.long(), self.entries())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """(...,d) -> (q (...,d) with the gradient of x, index (...) int64, losses). The losses are means over all numbers:
        "commitment" (x - sg[q])^2, which moves x alone, and, unless the entries are averages, "codebook" (sg[x] - q)^2,
        which moves the entries alone (equation 3 of the paper)."""
        x = self.scale(x)
        index = self.encode_index(x.detach())
        q = self.decode_index(index)
        losses = {"commitment": F.mse_loss(x, q.detach())}
        if not self.ema_decay:
            losses["codebook"] = F.mse_loss(q, x.detach())
        if self.training and torch.is_grad_enabled():
            self.accumulate_statistics(x.detach().flatten(0, -2), index.flatten())  # (...,d) -> (n,d)
        return q.detach() + (x - x.detach()), index, losses  # straight through: x + (q - x).detach(), without its rounding

    def accumulate_statistics(self, x: Tensor, index: Tensor) -> None:
        """Adds vectors (n,d) and their indices (n) to what the next :meth:`after_update` acts on."""
        hits = torch.bincount(index, minlength=len(self.codebook)).to(x.dtype)
        sums = torch.zeros_like(self.codebook).index_add_(0, index, x) if self.ema_decay else x.new_zeros(())
        earlier = self.statistics or (0, 0, [])
        self.statistics = earlier[0] + hits, earlier[1] + sums, [*earlier[2], x]

    @torch.no_grad()
    def after_update(self) -> None:
        """Moves the averages and restarts dead entries, from what all processes have seen since the last call. With n_i of n
        vectors, of the sum s_i, nearest to entry i: N_i <- gamma N_i + (1 - gamma) n_i/n, and e_i becomes m_i/N_i where
        m_i <- gamma m_i + (1 - gamma) s_i/n. No m_i is kept, since it is N_i e_i. At first gamma is lower."""
        if self.statistics is None:
            return
        (hits, sums, x), self.statistics = self.statistics, None
        hits, u = distributed.add_up(hits), int(self.updates)
        decay = min(self.ema_decay or 0.99, (1 + u) / (10 + u))  # a young encoder soon outdates averages
        if u > 0:  # at the first one the entries are random, and who chose them says nothing
            n, share = hits.sum(), hits / hits.sum()
            self.frequency.lerp_(share, 1 - decay)
            if self.ema_decay:
                change = distributed.add_up(sums) / n - share[:, None] * self.codebook
                self.codebook += (1 - decay) * change / self.frequency[:, None].clamp_min(1e-30)
        dead = (self.frequency <= self.restart_below / len(self.codebook)).nonzero()[:, 0]
        if len(dead) and self.restarts:
            self._restart(dead, x)
        self.updates += 1

    def _restart(self, dead: Tensor, x: list[Tensor]) -> None:
        """Moves the entries ``dead`` to different vectors drawn from the batches ``x``, each (n,d), of all processes; if
        there are too few, the rest have to wait. The draw depends on the number of the update alone, so that it repeats on
        resuming, and is the same for the same vectors on any number of processes."""
        generator, n, world = torch.Generator().manual_seed(int(self.updates)), len(x[0]), distributed.world_size()
        drawn = torch.randperm(len(x) * world * n, generator=generator)[: len(dead)]  # in the order of collect
        batch, process, row = drawn // (world * n), drawn // n % world, drawn % n
        mine = (process == distributed.rank()).nonzero()[:, 0]
        vectors = x[0].new_zeros(len(drawn), x[0].shape[1])
        vectors[mine.to(vectors.device)] = torch.cat(x)[(batch * n + row)[mine].to(vectors.device)]
        dead = dead[: len(drawn)]
        self.codebook[dead] = distributed.add_up(vectors)
        self.frequency[dead] = 1 / len(self.codebook)
