"""Binary Spherical Quantization (Zhao, Xiong and Krähenbühl, arXiv 2406.07548), and the tokenizer built on it."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homework.core import checkpoint, checks
from homework.nn.blocks import patch_networks
from homework.tokenizers.base import QuantizedAutoEncoder, RatePredictor, usage

SHARPNESS = 10.0  # of the bits that an encoder learns from given tokens


def load() -> "BSQPatchAutoEncoder":
    """The trained tokenizer, in eval mode: the latest copy of a training, or else the pretrained one."""
    return checkpoint.load_reference("BSQPatchAutoEncoder")


def diff_sign(x: Tensor) -> Tensor:
    """-1 for negative x, +1 for zero and above, with the gradient of the identity: the straight-through estimator (Bengio,
    Léonard and Courville, arXiv 1308.3432, section 4)."""
    sign = torch.where(x < 0, -1.0, 1.0).to(x.dtype)
    return sign + (x - x.detach())  # adds an exact 0; in x + (sign - x) a large x would swallow the sign


def binary_entropy(p: Tensor) -> Tensor:
    """Entropy in nats of a bit that is 1 with probability p, elementwise."""
    eps = torch.finfo(p.dtype).eps
    p = p.clamp(eps, 1 - eps)  # the slope at 0 and 1 is infinite; times the slope 0 of a saturated sigmoid it is NaN
    return -p * p.log() - (1 - p) * (1 - p).log()


class BSQ(nn.Module):
    """Quantizes vectors to the corners of a hypercube, one bit for the sign of each of L coordinates on the unit sphere:
    code = sign(u), u = down(x) / |down(x)| (section 4 of the paper, whose factor 1/sqrt(L) is left to ``up``).

    ::

        (...,D) -> down, linear -> (...,L) -> L2 norm -> u -> sign -> code in {-1,1}^L -> up, linear -> (...,D)

    There are K = 2^L codes; ``codebook_bits`` is L, from 1 to 62, and ``embedding_dim`` D.
    """

    powers: Tensor

    def __init__(self, codebook_bits: int, embedding_dim: int):
        super().__init__()
        checks.integer(1, 62, codebook_bits=codebook_bits)
        self.codebook_bits = codebook_bits
        self.down, self.up = nn.Linear(embedding_dim, codebook_bits), nn.Linear(codebook_bits, embedding_dim)
        # powers of two by multiplication: shifts of tensors are wrong on MPS (PyTorch issue 147889)
        self.register_buffer("powers", torch.tensor([2**i for i in range(codebook_bits)]), persistent=False)

    def project(self, x: Tensor) -> Tensor:
        """(...,D) -> u (...,L) on the unit sphere."""
        return F.normalize(self.down(x), dim=-1)

    def encode(self, x: Tensor) -> Tensor:
        """(...,D) -> (...,L) of -1 and +1, with the gradient of u."""
        return diff_sign(self.project(x))

    def decode(self, code: Tensor) -> Tensor:
        """(...,L) -> (...,D)."""
        return self.up(code)

    def encode_index(self, x: Tensor) -> Tensor:
        """(...,D) -> (...) int64 in [0, 2^L)."""
        return self._code_to_index(self.encode(x))

    def decode_index(self, index: Tensor) -> Tensor:
        """(...) int64 in [0, 2^L) -> (...,D)."""
        return self.decode(self._index_to_code(index))

    def _code_to_index(self, code: Tensor) -> Tensor:  # (...,L) -> (...) int64: coordinate i, from 0, is bit i; 1 if >= 0
        return ((code >= 0).long() * self.powers).sum(dim=-1)

    def _index_to_code(self, index: Tensor) -> Tensor:  # (...) integers -> (...,L) of -1 and +1
        bits = torch.div(index.long()[..., None], self.powers, rounding_mode="floor") % 2
        return (2 * bits - 1).to(self.up.weight.dtype)


class BSQPatchAutoEncoder(QuantizedAutoEncoder):
    """A tokenizer: the patch auto-encoder with BSQ in its bottleneck.

    ::

        x (...,H,W,3) -> PatchEncoder -> BSQ -> code (...,h,w,L) <-> index (...,h,w) -> BSQ -> PatchDecoder -> x_hat

    Args:
        patch_size, latent_dim, encoder_blocks, decoder_blocks, detail: see :class:`homework.ae.PatchAutoEncoder`.
        codebook_bits: L, bits kept of a patch, from 1 to 62.
        commitment_weight: of the commitment loss |u - sign(u)/sqrt(L)|^2 (the paper's section 4); 0 for none.
        entropy_weight: of the entropy loss E[H(q(u))] - gamma H(E[q(u)]) in nats (section 4), which favours bits that are
            certain for each vector and balanced over all; both entropies are sums over independent bits; 0 for none.
        gamma: weight of its second term.
        rate_weight: of the bits of a token under a RatePredictor, beside the mean squared error: trades error for tokens
            that are cheaper under a prior (entropy-constrained quantization); 0 for none.
        inverse_temperature: tau, how sharply q(bit = 1 | u) = sigmoid(2 tau u / sqrt(L)) follows u.
        dial: whether the encoder makes tokens for any quality, see :meth:`encode_at`. It learns that from tokens that a
            search found at several (--dataset tokenized_images), from images alone nothing.
        learns: what learns from such tokens: "encoder", to make them by itself, or "decoder", to make better images of them
            and of those that the encoder makes.
    """

    architecture = "BSQ patch auto-encoder 1"
    training_options = frozenset({"commitment_weight", "entropy_weight", "gamma", "inverse_temperature", "rate_weight",
                                  "learns"})  # fmt: skip

    def __init__(self, patch_size: int = 5, latent_dim: int = 128, codebook_bits: int = 10, encoder_blocks: int = 2,
                 decoder_blocks: int = 4, detail: int = 16, commitment_weight: float = 0.0, entropy_weight: float = 0.0,
                 gamma: float = 1.0, inverse_temperature: float = 100.0, rate_weight: float = 0.0,
                 dial: bool = False, learns: str = "encoder"):  # fmt: skip
        networks = patch_networks(patch_size, latent_dim, latent_dim, encoder_blocks, decoder_blocks, detail, dial)
        super().__init__(patch_size, *networks, local=True, dial=dial, learns=learns)
        checks.not_negative(commitment_weight=commitment_weight, entropy_weight=entropy_weight, gamma=gamma)
        checks.not_negative(inverse_temperature=inverse_temperature, rate_weight=rate_weight)
        self.bsq = BSQ(codebook_bits, latent_dim)
        self.rate = RatePredictor(codebook_bits) if rate_weight else None
        self.n_tokens = 2**codebook_bits

    def encode(self, x: Tensor) -> Tensor:
        """(...,H,W,3) -> (...,h,w,L) of -1 and +1."""
        return self.bsq.encode(self.latent(x))

    def decode(self, code: Tensor) -> Tensor:
        return super().decode(self.bsq.decode(code))

    def to_index(self, z: Tensor) -> Tensor:
        return self.bsq.encode_index(z)

    def code_vectors(self, index: Tensor) -> Tensor:
        return self.bsq._index_to_code(index)

    def quantize(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        u = self.bsq.project(z)
        code = diff_sign(u)
        return code, {**usage(self.bsq._code_to_index(code.detach()), self.n_tokens), **self._losses(u, code)}

    def distance(self, z: Tensor, index: Tensor) -> Tensor:
        """Minus the mean log-likelihood of the tokens' bits, in nats, with sigmoid(SHARPNESS u) for a bit that is 1."""
        return F.softplus(-SHARPNESS * self.code_vectors(index) * self.bsq.project(z)).mean()

    def _losses(self, u: Tensor, code: Tensor) -> dict[str, Tensor]:
        c, losses, scale = self.config, {}, self.bsq.codebook_bits**-0.5
        if c["commitment_weight"]:
            distance = (u - code.detach() * scale).square().sum(dim=-1).mean()
            losses["commitment_loss"] = c["commitment_weight"] * distance
        if c["entropy_weight"]:
            q = torch.sigmoid(2 * c["inverse_temperature"] * scale * u).flatten(0, -2)  # (...,L) -> (n,L)
            mean_entropy, entropy_of_mean = binary_entropy(q).sum(dim=-1).mean(), binary_entropy(q.mean(dim=0)).sum()
            losses["entropy_loss"] = c["entropy_weight"] * (mean_entropy - c["gamma"] * entropy_of_mean)
        if self.rate is not None:
            bits = self.rate.bits_of_signs(code.reshape(-1, *code.shape[-3:])).mean()  # (...,h,w,L) -> (B,h,w,L)
            losses |= {"bits_per_token": bits.detach(), "rate_loss": c["rate_weight"] * bits}
        return losses
