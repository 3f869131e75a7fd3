"""Vector quantization (van den Oord, Vinyals and Kavukcuoglu, arXiv 1711.00937), and the tokenizers built on it."""

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homework.core import checks
from homework.nn.blocks import patch_networks
from homework.tokenizers.base import QuantizedAutoEncoder, RatePredictor, usage
from homework.training import distributed


def nearest(x: Tensor, entries: Tensor, at_once: int = 2**22) -> Tensor:
    """argmin_k |x - e_k|^2, the first of equals (equation 1 of the paper).

    Args:
        x: (n,d) float.
        entries: (K,d) float.
        at_once: how many distances may be in memory at the same time; at least those of one vector are.
    Returns:
        (n,) int64 in [0,K).
    """
    return torch.cat([d.argmin(dim=-1) for d in chunked_distances(x, entries, at_once)])  # (rows,K) -> (rows)


def chunked_distances(x: Tensor, entries: Tensor, at_once: int = 2**22) -> Iterator[Tensor]:
    """(|x - e_k|^2 - |x|^2) / 2 for some vectors after the others: (rows,K). Arguments as of :func:`nearest`."""
    squares = entries.square().sum(dim=-1) / 2
    for rows in x.split(max(1, at_once // len(entries))):
        with torch.autocast("cuda" if x.is_cuda else "cpu", enabled=False):  # bfloat16 mistakes neighbours for each other
            # |x - e|^2 = |x|^2 - 2 x.e + |e|^2, where |x|^2 is the same for all entries
            yield torch.addmm(squares, rows, entries.T, alpha=-1)


class VectorQuantizer(nn.Module):
    """Replaces each vector by the nearest of K entries, which follow the vectors in their turn.

    ::

        x (...,d) -> nearest entry -> index (...) -> lookup -> q (...,d), its gradient passed straight through to x

    The entries learn by gradient from the codebook loss |sg[x] - q|^2, or, with ``ema_decay``, as moving averages of the
    vectors that chose them (appendix A.1 of the paper). In training mode :meth:`forward` accumulates statistics of the
    vectors, and :meth:`after_update`, to be called after each step of the optimizer, acts on them: it moves the averages,
    takes the first entries from the first batch, and restarts entries that are hardly chosen at vectors of the latest batch
    (as Dhariwal et al., arXiv 2005.00341, section 3.1). ``forward`` itself changes no weights.

    Weight decay does not hurt: with ``l2_norm`` an entry's length means nothing; without, it shrinks by lr x decay = 1e-5
    an update, and the loss or a restart pulls it back; with ``ema_decay`` the entries are no optimizer's business.

    Args:
        n_tokens: K, from 1 to 2^24.
        code_dim: d, from 1 to 4096.
        l2_norm: compare directions only, x and entries scaled to length 1 (Yu et al., arXiv 2110.04627, section 3.2).
        ema_decay: gamma of the moving averages, below 1, 0.99 in the paper; 0 to learn the entries by gradient.
        restart_below: an entry is restarted when it is chosen less often than this part, from 0 to 1, of the mean, as an
            average over some 100 updates (fewer at first); with 0 only one that was never chosen.
    Raises:
        ValueError: naming the argument and what is allowed.
    """

    def __init__(
        self, n_tokens: int, code_dim: int, l2_norm: bool = False, ema_decay: float = 0.0, restart_below: float = 0.1
    ):
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
        self.statistics = None  # of the batches since the last update: how often i was chosen, by what sum; the last vectors
        self.restarts = True  # whether dead entries are restarted

    def entries(self) -> Tensor:
        """(K,d): what stands for each index."""
        return F.normalize(self.codebook, dim=-1) if self.l2_norm else self.codebook

    def scale(self, x: Tensor) -> Tensor:
        """(...,d) -> (...,d), as it is compared with the entries, and in their type (autocast may have made it bfloat16)."""
        x = x.to(self.codebook.dtype)
        return F.normalize(x, dim=-1) if self.l2_norm else x

    def encode_index(self, x: Tensor) -> Tensor:
        """(...,d) -> (...) int64 in [0,K)."""
        return nearest(self.scale(x).flatten(0, -2), self.entries()).view(x.shape[:-1])  # (...,d) -> (n,d) -> (n) -> (...)

    def decode_index(self, index: Tensor) -> Tensor:
        """(...) integers in [0,K) -> (...,d)."""
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
        # straight through: x + (q - x).detach(), without its rounding
        return q.detach() + (x - x.detach()), index, losses

    def accumulate_statistics(self, x: Tensor, index: Tensor) -> None:
        hits = torch.bincount(index, minlength=len(self.codebook)).to(x.dtype)
        sums = torch.zeros_like(self.codebook).index_add_(0, index, x) if self.ema_decay else x.new_zeros(())
        earlier = self.statistics or (0, 0, None)
        self.statistics = (earlier[0] + hits, earlier[1] + sums, x)

    @torch.no_grad()
    def after_update(self) -> None:
        """Moves the averages and restarts dead entries, from what the processes have seen since the last call, together.

        With n_i of n vectors, of the sum s_i, nearest to entry i: N_i <- gamma N_i + (1 - gamma) n_i/n, and e_i becomes
        m_i/N_i where m_i <- gamma m_i + (1 - gamma) s_i/n. No m_i is kept, since it is N_i e_i. At first gamma is lower.
        """
        if self.statistics is None:
            return
        (hits, sums, x), self.statistics = self.statistics, None
        hits, u = distributed.add_up(hits), int(self.updates)
        decay = min(self.ema_decay or 0.99, (1 + u) / (10 + u))  # while the encoder is young, what was is soon of no worth
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

    def _restart(self, dead: Tensor, x: Tensor) -> None:
        """Puts the entries ``dead`` at vectors drawn from all processes' ``x`` (n,d), as many as there are, for a vector is
        taken once; the rest have to wait. The draw depends on the number of the update alone: it repeats on resuming."""
        generator = torch.Generator().manual_seed(int(self.updates))
        drawn = torch.randperm(distributed.world_size() * len(x), generator=generator)[: len(dead)]
        mine = (drawn // len(x) == distributed.rank()).nonzero()[:, 0]
        vectors = x.new_zeros(len(drawn), x.shape[1])
        vectors[mine.to(x.device)] = x[(drawn[mine] % len(x)).to(x.device)]
        dead = dead[: len(drawn)]
        self.codebook[dead] = distributed.add_up(vectors)
        self.frequency[dead] = 1 / len(self.codebook)


class VQPatchAutoEncoder(QuantizedAutoEncoder):
    """A tokenizer: the patch auto-encoder with a vector quantizer in its waist.

    ::

        x (...,H,W,3) -> PatchEncoder -> (...,h,w,d) -> VectorQuantizer -> code (...,h,w,d) <-> index (...,h,w)
                                                        code -> PatchDecoder -> x_hat (...,H,W,3)

    The waist is narrow (d = 16): in few dimensions more entries are chosen (Yu et al., arXiv 2110.04627, section 3.2).

    Args:
        patch_size, latent_dim, encoder_blocks, decoder_blocks, detail: see :class:`homework.ae.PatchAutoEncoder`.
        n_tokens, code_dim, l2_norm, ema_decay, restart_below: see :class:`VectorQuantizer`.
        codebook_weight: of the codebook loss, which the moving averages of ``ema_decay`` replace.
        commitment_weight: of the commitment loss (beta in equation 3 of the paper); lower, for the entries are to follow
            the vectors rather than the other way round.
        rate_weight: of the bits of a token that a RatePredictor cannot foretell, beside the mean squared error: trades
            error for tokens that are cheaper under a prior (entropy-constrained quantization); 0 for none.
    Raises:
        ValueError: naming the argument and what is allowed.
    """

    architecture = "VQ patch auto-encoder 1"
    training_options = frozenset({"codebook_weight", "commitment_weight", "ema_decay", "restart_below", "rate_weight"})

    def __init__(
        self,
        patch_size: int = 5,
        latent_dim: int = 128,
        n_tokens: int = 1024,
        code_dim: int = 16,
        encoder_blocks: int = 2,
        decoder_blocks: int = 4,
        detail: int = 16,
        l2_norm: bool = True,
        codebook_weight: float = 1.0,
        commitment_weight: float = 0.25,
        ema_decay: float = 0.0,
        restart_below: float = 0.1,
        rate_weight: float = 0.0,
    ):
        quantizer = VectorQuantizer(n_tokens, code_dim, l2_norm, ema_decay, restart_below)
        checks.not_negative(codebook_weight=codebook_weight, commitment_weight=commitment_weight, rate_weight=rate_weight)
        networks = patch_networks(patch_size, latent_dim, code_dim, encoder_blocks, decoder_blocks, detail)
        super().__init__(patch_size, *networks)
        self.quantizer, self.n_tokens = quantizer, n_tokens
        self.weights = {"codebook": codebook_weight, "commitment": commitment_weight, "rate": rate_weight}
        self.rate = RatePredictor(code_dim, n_tokens) if rate_weight else None

    def encode(self, x: Tensor) -> Tensor:
        """(...,H,W,3) -> (...,h,w,d): the entries that stand for it."""
        return self.code_vectors(self.encode_index(x))

    def encode_index(self, x: Tensor) -> Tensor:
        """(...,H,W,3) float in [-0.5,0.5] -> (...,h,w) int64 in [0,K)."""
        return self.quantizer.encode_index(self.latent(x))

    def code_vectors(self, index: Tensor) -> Tensor:
        """(...,h,w) integers in [0,K) -> (...,h,w,d)."""
        return self.quantizer.decode_index(index)

    def quantize(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(...,h,w,d) -> the entries that stand for it, with a straight-through gradient, and losses and measures."""
        code, index, losses = self.quantizer(z)
        measures = usage(index, self.n_tokens)
        if self.rate is not None:
            grid = index.reshape(-1, *index.shape[-2:])  # (...,h,w) -> (B,h,w)
            losses["rate"] = self.rate.bits_of_entries(code.view(*grid.shape, -1), grid, self.quantizer.entries()).mean()
            measures["bits_per_token"] = losses["rate"].detach()
        return code, measures | {f"{name}_loss": self.weights[name] * loss for name, loss in losses.items()}

    def set_progress(self, f: float) -> None:
        """No restarts in the last fifth of a training: an entry that has jumped is worth nothing in an average of weights
        until all of that is from after the jump."""
        self.quantizer.restarts = f < 0.8

    def after_update(self) -> None:
        """To be called after each step of the optimizer, see :class:`VectorQuantizer`."""
        self.quantizer.after_update()


class VQVAE(VQPatchAutoEncoder):
    """The simplest vector-quantized auto-encoder: one code for a whole image. It can make K pictures and no more, which
    is why the others keep a grid of codes.

    ::

        x (...,height,width,3) -> PatchEncoder -> (...,h,w,d) -> linear -> (...,1,1,d) -> VectorQuantizer
            -> code (...,1,1,d) <-> index (...,1,1);  code -> linear -> (...,h,w,d) -> PatchDecoder -> x_hat

    Args:
        height, width: of the images, in pixels; there can be no others.
        stride: size of the patches that the networks start and end with, from 1 to 64.
        latent_dim, n_tokens, code_dim, encoder_blocks, decoder_blocks, detail, ema_decay: see :class:`VQPatchAutoEncoder`.
    Raises:
        ValueError: naming the argument and what is allowed.
    """

    architecture = "VQ-VAE 1"

    def __init__(
        self,
        height: int = 100,
        width: int = 150,
        latent_dim: int = 128,
        n_tokens: int = 1024,
        code_dim: int = 16,
        stride: int = 10,
        encoder_blocks: int = 2,
        decoder_blocks: int = 4,
        detail: int = 16,
        ema_decay: float = 0.0,
    ):
        checks.integer(1, 4096, height=height, width=width)
        checks.integer(1, 64, stride=stride)
        super().__init__(stride, latent_dim, n_tokens, code_dim, encoder_blocks, decoder_blocks, detail, ema_decay=ema_decay)
        self.size = (height, width)
        self.patch_size = self.size  # a token stands for the whole image
        self.grid = (-(-height // stride), -(-width // stride), code_dim)
        self.down = nn.Linear(math.prod(self.grid), code_dim)
        self.up = nn.Linear(code_dim, math.prod(self.grid))

    def latent(self, x: Tensor) -> Tensor:
        """(...,height,width,3) -> (...,1,1,d). ValueError for an image of another size."""
        if x.ndim > 2 and x.shape[-3:-1] != self.size:
            H, W = x.shape[-3:-1]
            raise ValueError(f"The images are {H}x{W}, but this VQVAE knows {self.size[0]}x{self.size[1]} only; train one "
                             f"with --height {H} --width {W}.")  # fmt: skip
        return self.down(super().latent(x).flatten(-3))[..., None, None, :]  # (...,h,w,d) -> (...,h*w*d) -> (...,1,1,d)

    def decode(self, code: Tensor) -> Tensor:
        """(...,1,1,d) -> (...,height,width,3). ValueError for a larger grid."""
        if code.shape[-3:-1] != (1, 1):
            H, W = self.size
            raise ValueError(f"A VQVAE has one code for an image of {H}x{W}, but this grid has {code.shape[-3]}x"
                             f"{code.shape[-2]}; use --image_size {H}x{W}.")  # fmt: skip
        z = self.up(code[..., 0, 0, :]).unflatten(-1, self.grid)  # (...,h*w*d) -> (...,h,w,d)
        return super().decode(z)[..., : self.size[0], : self.size[1], :]
