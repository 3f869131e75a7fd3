"""Coarse grids that are parts of a finer one."""

import torch.nn.functional as F
from torch import Tensor

from homework.core import checks, fingerprint
from homework.core.devices import keeping_generators
from homework.core.model import Model
from homework.core.registry import build_part
from homework.nn.blocks import pad_to_patches
from homework.tokenizers.base import Tokenizer, usage


class SubsampledTokenizer(Tokenizer):
    """Another tokenizer's grid, but of each patch of its tokens only the one in the middle (Reed et al., *Parallel
    Multiscale Autoregressive Density Estimation*, arXiv 1703.03664, where it is pixels that are left out)::

        x -> tokenizer -> fine grid (...,h*P,w*Q) -> middles of the patches -> index (...,h,w)
        index -> the tokenizer's vectors, interpolated -> (...,h*P,w*Q,d) -> the tokenizer's decoder -> x_hat

    In a cascade whose finest grid is the tokenizer's, nothing is said twice: what a finer grid repeats of a coarser one is
    known. So all grids together need no more bits than the finest alone, up to what the stages have not learned. The
    tokenizer may itself be such a one: so are still coarser grids made, each a part of the next.

    It is made by ``python -m homework.som subsample``, without any training.

    Args:
        tokenizer: {"model": name, "config": {...}} of the tokenizer; its weights come with :meth:`set_tokenizer`.
        rows, columns: P and Q, how many tokens a patch has.
    """

    architecture = "subsampled 1"
    data = "images"
    fitted_by = "python -m homework.som subsample"
    tokenizer: Tokenizer

    def __init__(self, tokenizer: dict, rows: int = 2, columns: int = 2):
        super().__init__()
        checks.integer(1, 4096, rows=rows, columns=columns)
        model = build_part("tokenizer", tokenizer, "SOM")
        if not isinstance(model, Tokenizer) or type(model).decode_index is not Tokenizer.decode_index:
            raise ValueError(f"tokenizer is {checks.article(tokenizer['model'])}, but must be a tokenizer that decodes code "
                             "vectors, such as a SOM.")  # fmt: skip
        if getattr(model, "n_coarser", 0):
            raise ValueError("tokenizer is a residual codebook, whose grid alone makes no image; take one that is none.")
        self.tokenizer, self.sides, self.n_tokens = model.requires_grad_(False), (rows, columns), model.n_tokens
        P, Q = model.patch_shape
        self.patch_size = rows * P, columns * Q

    @classmethod
    def part_of(cls, tokenizer: Tokenizer, rows: int, columns: int) -> "SubsampledTokenizer":
        """Of the trained ``tokenizer``, with its weights, in eval mode."""
        with keeping_generators():
            model = cls({"model": type(tokenizer).__name__, "config": tokenizer.config}, rows, columns)
        model.set_tokenizer(tokenizer)
        return model.eval()

    def set_tokenizer(self, model: Model) -> None:
        """Copies the weights of the tokenizer."""
        self.tokenizer.load_state_dict(model.state_dict())
        self.meta[fingerprint.CODES_OF] = fingerprint.codes_of_part(self, model, self.sides)

    def subsampled(self, fine: Tensor) -> Tensor:
        """The tokenizer's grid (...,h*P,w*Q) -> (...,h,w). ValueError if the patches do not divide it."""
        (P, Q), (h, w) = self.sides, fine.shape[-2:]
        if h % P or w % Q:
            raise ValueError(f"The grid is {h}x{w}, which patches of {P}x{Q} tokens do not divide; choose others.")
        return fine[..., P // 2 :: P, Q // 2 :: Q]

    def encode_index(self, x: Tensor) -> Tensor:
        return self.subsampled(self.tokenizer.encode_index(pad_to_patches(x, *self.patch_shape)))

    def encode_features(self, z: Tensor) -> Tensor:
        return self.subsampled(self.tokenizer.encode_features(z))

    def code_vectors(self, index: Tensor) -> Tensor:
        return self.tokenizer.code_vectors(index)

    def code_layout(self) -> Tensor:
        return self.tokenizer.code_layout()

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        index = self.encode_index(x)
        return self.decode_index(index)[..., : x.shape[-3], : x.shape[-2], :], usage(index, self.n_tokens)

    def decode(self, code: Tensor) -> Tensor:
        """(...,h,w,d) -> (...,H,W,3): complete patches, between whose middles the vectors are interpolated."""
        (h, w, d), (P, Q) = code.shape[-3:], self.sides
        x = code.reshape(-1, h, w, d).permute(0, 3, 1, 2)  # (...,h,w,d) -> (B,d,h,w)
        x = F.interpolate(x.float(), (h * P, w * Q), mode="bilinear").permute(0, 2, 3, 1)  # -> (B,h*P,w*Q,d)
        return self.tokenizer.decode(x.reshape(*code.shape[:-3], *x.shape[1:]))  # type: ignore[operator]
