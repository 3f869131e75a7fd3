"""What tokenizers share: the contract, the auto-encoder of images, the rate predictor, and how often codes are used."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from homework.core import checks, fingerprint
from homework.core.model import Model
from homework.nn.blocks import MaskedConv2d, halo, pad_to_patches

LMBDA = 0.01  # mean squared error (of pixels from 0 to 1) that a bit per pixel is worth, unless it is said otherwise
OCTAVES = 4  # up and down from there within which an encoder with a dial makes tokens of its own for every lmbda


class Tokenizer(Model):
    """The contract: an image becomes a grid of integers and comes back. A subclass defines :meth:`encode_index`,
    :meth:`code_vectors`, and either ``decode``, (...,h,w,d) -> (...,h*P,w*Q,3), or :meth:`decode_index`.

    ``patch_size`` is the pixels of a token: P for squares, (P, Q) for P rows and Q columns. ``encoder_halo`` says how many
    patches around its own a token depends on, and ``decoder_halo`` how many tokens around their own the pixels of a patch
    depend on; None if on any. With both, large images are coded in blocks; else memory grows with the image. A subclass
    that looks further than its base has to say so.
    """

    n_tokens: int
    patch_size: int | tuple[int, int]
    encoder_halo: int | None = None
    decoder_halo: int | None = None
    has_dial: bool = False  # whether :meth:`encode_at` depends on its lmbda

    @property
    def patch_shape(self) -> tuple[int, int]:
        """``patch_size`` as (rows, columns)."""
        return self.patch_size if isinstance(self.patch_size, tuple) else (self.patch_size, self.patch_size)

    def encode_index(self, x: Tensor) -> Tensor:
        """(...,H,W,3) float in [-0.5,0.5] -> (...,h,w) int64 in [0,K), h = ceil(H/P), w = ceil(W/Q)."""
        raise NotImplementedError

    def encode_at(self, x: Tensor, lmbda: float | Tensor) -> Tensor:
        """As :meth:`encode_index`, where a bit per pixel is worth ``lmbda`` of mean squared error, above 0: a number, or one
        for each image (...). By default tokens are the same at any."""
        return self.encode_index(x)

    def code_vectors(self, index: Tensor) -> Tensor:
        """(...,h,w) integers in [0,K) -> (...,h,w,d): the vector of each token."""
        raise NotImplementedError

    def encode(self, x: Tensor) -> Tensor:
        """(...,H,W,3) -> (...,h,w,d): the vector of each token."""
        return self.code_vectors(self.encode_index(x))

    def decode_index(self, index: Tensor) -> Tensor:
        """(...,h,w) integers in [0,K) -> (...,h*P,w*Q,3)."""
        return self.decode(self.code_vectors(index))  # type: ignore[operator]

    def decode_grids(self, grids: Sequence[Tensor]) -> Tensor:
        """Grids (...,h,w) of all codebooks of a cascade from the coarsest to this one -> (...,h*P,w*Q,3). By default that of
        its own grid; a residual codebook needs them all."""
        return self.decode_index(grids[-1])

    def follows(self, before: "Tokenizer | None") -> bool:
        """Whether its grids can follow those of the coarser tokenizer ``before``, None for none, in a cascade."""
        return True

    def check_single(self, code: Tensor) -> None:
        """For a tokenizer with one code for an image: ValueError if ``code``, (...,h,w,d), has more."""
        if code.shape[-3:-1] != (1, 1):
            H, W = self.patch_shape
            raise ValueError(f"This {type(self).__name__} has one code for an image of {H}x{W}, but this grid has "
                             f"{code.shape[-3]}x{code.shape[-2]}; use --image_size {H}x{W}.")  # fmt: skip

    def encode_features(self, z: Tensor) -> Tensor:
        """Feature maps (B,h,w,C) -> (B,h,w) int64, for a tokenizer that reads them. ValueError for the others."""
        raise ValueError(f"These are feature maps, but the model {type(self).__name__} makes tokens of images; name images.")

    @torch.no_grad()
    def code_table(self) -> Tensor:
        """(K,d) float: the vector of every code. ValueError for more than 2^20 codes."""
        if self.n_tokens > 2**20:
            raise ValueError(f"The tokenizer has {self.n_tokens} codes, too many for a table of vectors (at most 2^20); "
                             "leave --codes out.")  # fmt: skip
        index = torch.arange(self.n_tokens, device=self.device)
        return self.code_vectors(index[:, None, None])[:, 0, 0]  # (K,1,1,d) -> (K,d)

    def code_layout(self) -> Tensor:
        """(R,S) int64: where the codes are on a sheet of all, row by row in a near square; -1 where there is none."""
        S = math.ceil(math.sqrt(self.n_tokens))
        return F.pad(torch.arange(self.n_tokens), (0, -self.n_tokens % S), value=-1).view(-1, S)  # (R*S) -> (R,S)


class AutoEncoder(Model):
    """An auto-encoder of images with a grid of vectors in its bottleneck, one for each square of ``stride`` pixels.

    ::

        x (...,H,W,3) -> edge-pad -> encoder -> z (...,h,w,C) -> decoder -> crop -> x_hat (...,H,W,3)

    ``encoder`` and ``decoder`` are modules (B,h*stride,w*stride,3) -> (B,h,w,C), and back; ``local`` says that only their
    convolutions look around, from which follow ``encoder_halo`` and ``decoder_halo``, as of :class:`Tokenizer`.
    """

    data = "images"
    patch_size: int | tuple[int, int]
    encoder_halo: int | None = None
    decoder_halo: int | None = None

    def __init__(self, stride: int, encoder: nn.Module, decoder: nn.Module, local: bool = False):
        super().__init__()
        self.stride = self.patch_size = stride
        self.encoder, self.decoder = encoder, decoder
        if local:
            self.encoder_halo, self.decoder_halo = halo(encoder), halo(decoder)

    def encode(self, x: Tensor) -> Tensor:
        """(...,H,W,3) float in [-0.5,0.5] -> (...,h,w,C), h = ceil(H/stride), w = ceil(W/stride). ValueError for images of
        another shape."""
        return self.encoded(x)

    def encoded(self, x: Tensor, *more: Tensor) -> Tensor:
        """As :meth:`encode`, with what the encoder is told of each image beside it, (B)."""
        if x.ndim < 3 or x.shape[-1] != 3:
            raise ValueError(f"Images have the shape (...,H,W,3), but this one has {tuple(x.shape)}.")
        z = self.encoder(pad_to_patches(x.reshape(-1, *x.shape[-3:]), self.stride), *more)  # (...,H,W,3) -> (B,H,W,3)
        return z.reshape(*x.shape[:-3], *z.shape[1:])  # (B,h,w,C) -> (...,h,w,C)

    def decode(self, z: Tensor) -> Tensor:
        """(...,h,w,C) -> (...,h*stride,w*stride,3): complete squares, in [-0.5,0.5] except where the network overshoots."""
        x = self.decoder(z.reshape(-1, *z.shape[-3:]))  # (...,h,w,C) -> (B,h,w,C)
        return x.reshape(*z.shape[:-3], *x.shape[1:])  # (B,H,W,3) -> (...,H,W,3)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(...,H,W,3) -> (x_hat (...,H,W,3), extra losses and measures: none here)."""
        return self.decode(self.encode(x))[..., : x.shape[-3], : x.shape[-2], :], {}

    def loss(self, x: Tensor) -> dict[str, Tensor]:
        """Mean squared error of (B,H,W,3) images, "psnr" in dB for a peak of 1, and what ``forward`` measures, of which
        the entries that end in "_loss" are added to the error."""
        x_hat, measures = self(x)
        mse = F.mse_loss(x_hat, x)
        extra = sum(v for k, v in measures.items() if k.endswith("_loss"))
        return {"loss": mse + extra, "mse": mse.detach(), "psnr": -10 * mse.detach().log10(), **measures}

    def figures(self, means: dict[str, float], counts: Tensor) -> dict[str, float]:
        """With "psnr" of the mean error of all."""
        return means | {"psnr": -10 * math.log10(means["mse"])} if means.get("mse") else means

    @torch.no_grad()
    def images(self, x: Tensor) -> dict[str, Tensor]:
        """(B,H,W,3) -> {"input", "reconstruction"}: (B,3,H,W) in [0,1]."""
        return {"input": to_pictures(x), "reconstruction": to_pictures(self(x)[0])}


def to_pictures(x: Tensor) -> Tensor:
    """(B,H,W,3) in [-0.5,0.5] -> (B,3,H,W) in [0,1]."""
    return (x + 0.5).clamp(0, 1).permute(0, 3, 1, 2)


class QuantizedAutoEncoder(Tokenizer, AutoEncoder):
    """An auto-encoder with a quantizer in its bottleneck: codes (...,h,w,d), one of K at each position, and their indices.
    A subclass has ``n_tokens``, ``code_vectors(index) -> code``, :meth:`to_index` (or ``encode_index``, without a dial) and
    :meth:`quantize`, and, to be trained on images with their tokens too, :meth:`distance`."""

    more_data = ("tokenized_images",)

    def __init__(self, stride: int, encoder: nn.Module, decoder: nn.Module, local: bool = False, dial: bool = False,
                 learns: str = "encoder"):  # fmt: skip
        """``learns`` from given tokens: the "encoder", to make such by itself, or the "decoder", better images of them."""
        super().__init__(stride, encoder, decoder, local)
        checks.choice(("encoder", "decoder"), learns=learns)
        self.has_dial, self.learns = dial, learns

    def latent(self, x: Tensor, lmbda: float | Tensor | None = None) -> Tensor:
        """(...,H,W,3) -> (...,h,w,C): what is to be quantized; with a dial, ``lmbda`` as of :meth:`encode_at`, None for
        LMBDA. ValueError for a number that is not above 0."""
        if lmbda is None:
            return self.encoded(x)
        if not isinstance(lmbda, Tensor):
            checks.positive(lmbda=lmbda)
        s = (torch.as_tensor(lmbda, dtype=torch.float32, device=x.device) / LMBDA).log2() / OCTAVES
        return self.encoded(x, s.clamp(-1, 1).to(x.dtype).expand(x.shape[:-3]).flatten())  # (...) -> (B)

    def to_index(self, z: Tensor) -> Tensor:
        """(...,h,w,C) -> (...,h,w) int64 in [0,K)."""
        raise NotImplementedError

    def encode_index(self, x: Tensor) -> Tensor:
        return self.to_index(self.latent(x))

    def encode_at(self, x: Tensor, lmbda: float | Tensor) -> Tensor:
        return self.to_index(self.latent(x, lmbda)) if self.has_dial else self.encode_index(x)

    def quantize(self, z: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """(...,h,w,C) -> (code (...,h,w,d) with a gradient to z, measures: usage, and the weighted losses)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        code, measures = self.quantize(self.latent(x))
        return self.decode(code)[..., : x.shape[-3], : x.shape[-2], :], measures

    def distance(self, z: Tensor, index: Tensor) -> Tensor:
        """How far vectors (...,h,w,C) are from being quantized to tokens (...,h,w): a scalar that the encoder minimizes."""
        raise ValueError(f"{type(self).__name__} does not say how to learn given tokens; train it on images alone.")

    def loss(self, batch: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
        """As of :class:`AutoEncoder` for images. For images (B,H,W,3) with tokens (B,h,w) that a search found at ``lmbda``
        (B), which an encoder without a dial does not need, the encoder's :meth:`distance` from making them by itself, while
        the decoder stays as it is, and with it what a token means; or if the decoder ``learns``, the error of the decoded
        tokens and of those that the encoder makes at ``lmbda``, the mean of both, while encoder and codes stay as they are.
        In eval mode, and where the decoder learns, also these errors: "mse", with "psnr", and "own_mse". ValueError if the
        lmbda is missing."""
        if isinstance(batch, Tensor):
            return super().loss(batch) | ({} if self.training else {"tokens": self.encode_index(batch)})
        x, index, *lmbda = batch
        if not self.has_dial:
            lmbda = []
        elif not lmbda:
            raise ValueError("These tokens do not say at which quality they were found, which an encoder with a dial learns "
                             "by; make them by python -m homework.tokenize --prior, or train one without, by --dial False.")

        def error(tokens: Tensor) -> Tensor:
            return F.mse_loss(self.decode(self.code_vectors(tokens).detach())[:, : x.shape[1], : x.shape[2]], x)

        decodes = self.learns == "decoder"
        if self.training and not decodes:
            return {"loss": self.distance(self.latent(x, *lmbda), index)}
        with torch.no_grad():
            own = self.encode_at(x, *lmbda) if lmbda else self.encode_index(x)
        mse, own_mse = error(index), error(own)
        loss = (mse + own_mse) / 2 if decodes else self.distance(self.latent(x, *lmbda), index)
        return {"loss": loss, "mse": mse, "psnr": -10 * mse.log10(), "own_mse": own_mse}

    def keeps(self, meta: dict[str, Any], base: Model | None) -> dict[str, Any]:
        """Of given tokens: that its codes are theirs, or if its decoder learns from them, its tokens alone; but if ``base``
        keeps such already, the codes are that one's."""
        if base is None or fingerprint.CODES_OF not in meta:
            return meta
        if self.learns == "decoder":
            return {fingerprint.TOKENS_OF: fingerprint.identity(base)}
        own = {fingerprint.CODES_OF, fingerprint.TOKENS_OF} & base.meta.keys()
        return {fingerprint.CODES_OF: fingerprint.codes_of(base)} if own else meta

    def figures(self, means: dict[str, float], counts: Tensor) -> dict[str, float]:
        """With :func:`usage` over all tokens, too."""
        return super().figures(means, counts) | figures_of_usage(counts, self.n_tokens)

    def images(self, batch: Tensor | tuple[Tensor, ...]) -> dict[str, Tensor]:
        """As of :class:`AutoEncoder`; of images with their tokens, the images of these too."""
        if isinstance(batch, Tensor):
            return super().images(batch)
        x, index = batch[:2]
        with torch.no_grad():
            of_tokens = to_pictures(self.decode_index(index)[:, : x.shape[1], : x.shape[2]])
        return super().images(x) | {"of_given_tokens": of_tokens}


def usage(index: Tensor, n_tokens: int) -> dict[str, Tensor]:
    """Of integers in [0,K) of any shape: "usage" (the fraction of the K codes that occur), "entropy" of their frequencies in
    bits, "perplexity" 2^entropy; scalars."""
    return usage_of(index.flatten().unique(return_counts=True)[1], n_tokens)


def usage_of(counts: Tensor, n_tokens: int) -> dict[str, Tensor]:
    """As :func:`usage`, given how often codes occur, (n)."""
    p = counts[counts > 0] / counts.sum()
    entropy = (p * (1 / p).log2()).sum()
    return {"usage": torch.tensor(len(p) / n_tokens), "entropy": entropy, "perplexity": 2**entropy}


def figures_of_usage(counts: Tensor, n_tokens: int) -> dict[str, float]:
    """As :func:`usage_of`, in numbers; empty without any counts."""
    return {k: float(v) for k, v in usage_of(counts.double(), n_tokens).items()} if len(counts) else {}


class RatePredictor(nn.Module):
    """Predicts each code (B,h,w,C) from those at earlier positions, by a masked convolution (the context model of Minnen,
    Ballé and Toderici, arXiv 1809.02736); takes the part of a prior while a tokenizer is being trained. ``n_tokens`` is K
    for :meth:`bits_of_entries`, 0 for :meth:`bits_of_signs`; ``hidden`` the width of the hidden layer."""

    def __init__(self, C: int, n_tokens: int = 0, hidden: int = 64, kernel: int = 5):
        super().__init__()
        self.context, self.out = MaskedConv2d("A", C, hidden, kernel), nn.Linear(hidden, C)
        if n_tokens:
            self.bias = nn.Parameter(torch.zeros(n_tokens))

    def predict(self, code: Tensor) -> Tensor:
        """(B,h,w,C) -> (B,h,w,C), each position from those before it in raster order."""
        x = self.context(code.permute(0, 3, 1, 2))  # (B,h,w,C) -> (B,C,h,w) -> (B,hidden,h,w)
        return self.out(F.gelu(x.permute(0, 2, 3, 1)))  # (B,hidden,h,w) -> (B,h,w,hidden) -> (B,h,w,C)

    def bits_of_signs(self, code: Tensor) -> Tensor:
        """(B,h,w,L) of -1 and +1 -> bits (B,h,w) that each code costs, with the prediction as log odds. The gradient, which
        a straight-through estimator passes on, draws an unexpected bit towards the expected value."""
        return F.softplus(-code * self.predict(code)).sum(dim=-1) / math.log(2)

    def bits_of_entries(self, code: Tensor, index: Tensor, entries: Tensor) -> Tensor:
        """(B,h,w,d) codes and their (B,h,w) indices among (K,d) entries -> bits (B,h,w) of each: the logit of entry k is
        <prediction, e_k> + bias_k. That of the own code has a gradient to the code too: it is drawn to what was expected."""
        prediction = self.predict(code)
        own = (prediction.detach() * code).sum(dim=-1, keepdim=True)
        logits = prediction @ entries.detach().T + self.bias  # (B,h,w,K)
        logits = logits.scatter_add(-1, index[..., None], own - own.detach())  # adds 0, and the gradient
        nats = F.cross_entropy(logits.flatten(0, -2), index.flatten(), reduction="none")  # (B,h,w,K) -> (n,K)
        return nats.view(index.shape) / math.log(2)  # (n) -> (B,h,w)
