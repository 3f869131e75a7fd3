"""A cascade put together: the codebooks whose grids get finer, and the stages between them. Sampling and bits."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from homework.core import checkpoint, fingerprint
from homework.core.model import ordinary_tensors
from homework.priors import sampling
from homework.tokenizers.base import Tokenizer

PATHS = ("model_path", "lr_codebook_path", "hr_codebook_path")
OPTIONS = ("temperature", "top_k", "top_p", "num_beam", "beam_width", "beams")


class Cascade:
    """p(grids) = p(condition) prod_k p(grid k | grid k-1), where the condition, one code for a whole image, is any of its K
    codes alike.

    ::

        condition (B,1,1) -- stage 0 --> grid (B,h,w) -- stage 1 --> finer grid -- ... --> finest grid
            |                              |                            |                     |
         codebook                       codebook                     codebook              codebook     each to a picture

    Attributes: ``codebooks``, one more than there are ``stages``, from coarse to fine, and ``sizes`` (h,w) of their grids.

    Args:
        stages: from coarse to fine, {"model_path": of the stage, "lr_codebook_path" and "hr_codebook_path": of the
            tokenizers of the coarser grid, which it reads, and of the finer one, which it makes}; and any of OPTIONS for
            sampling, see :func:`homework.sampling.generate`.
        device: where the models compute.
    Raises:
        FileNotFoundError: there is no such checkpoint.
        ValueError: an entry is missing or unknown, or stages and codebooks do not go together: which, and why.
    """

    def __init__(self, stages: list[dict], device: str | torch.device = "cpu"):
        if not isinstance(stages, list | tuple) or not stages or not all(isinstance(stage, dict) for stage in stages):
            raise ValueError('A cascade is {"stages": [{"model_path": ..., ...}, ...]}, with one object for each stage.')
        for k, stage in enumerate(stages):
            missing, unknown = [p for p in PATHS if p not in stage], [p for p in stage if p not in PATHS + OPTIONS]
            if missing or unknown:
                what = f"has no {missing[0]}" if missing else f"has an unknown entry {unknown[0]!r}"
                raise ValueError(f"Stage {k} {what}; it needs {', '.join(PATHS)}, and may have {', '.join(OPTIONS)}.")
        self.options = [{o: stage[o] for o in OPTIONS if o in stage} for stage in stages]
        for k, options in enumerate(self.options):
            try:
                sampling.check(**options)
            except ValueError as error:
                raise ValueError(f"Stage {k}: {error}") from error
        loaded = {path: checkpoint.load(path).to(device) for path in {str(stage[p]): 0 for stage in stages for p in PATHS}}
        self.device = torch.device(device)
        self.stages = [loaded[str(stage["model_path"])] for stage in stages]
        self.codebooks = [loaded[str(stages[0]["lr_codebook_path"])]]
        prints = {path: fingerprint.identity(model) for path, model in loaded.items()}
        for k, (stage, model) in enumerate(zip(stages, self.stages, strict=True)):
            path, coarse, fine = (str(stage[p]) for p in PATHS)
            if model.data != "multiscale":
                raise ValueError(f"Stage {k}: {path} holds a {type(model).__name__}, but a CascadeStage is needed here.")
            for role, book, key, K in (
                ("lr_codebook_path", coarse, "coarse_tokenizer", model.config["coarse_tokens"]),
                ("hr_codebook_path", fine, "tokenizer", model.n_tokens),
            ):
                if not isinstance(loaded[book], Tokenizer):
                    kind = type(loaded[book]).__name__
                    raise ValueError(f"Stage {k}: {book} holds a {kind}, but a tokenizer is needed here.")
                if loaded[book].n_tokens != K:
                    raise ValueError(f"Stage {k}: {role} {book} has {loaded[book].n_tokens} codes, but {path} was trained "
                                     f"on {K}; name the codebook that made its grids.")  # fmt: skip
                if not fingerprint.is_same(model.meta.get(key, prints[book]), prints[book]):
                    raise ValueError(f"Stage {k}: {path} was trained on the grids of another codebook than {role} {book}; "
                                     "name that one.")  # fmt: skip
            if k and prints[coarse] != prints[str(stages[k - 1]["hr_codebook_path"])]:
                raise ValueError(f"Stage {k} reads the grids of {coarse}, but stage {k - 1} makes those of "
                                 f"{stages[k - 1]['hr_codebook_path']}; they must be of one codebook.")  # fmt: skip
            self.codebooks.append(loaded[fine])
        configs = [model.config for model in self.stages]
        self.sizes = [(configs[0]["coarse_height"], configs[0]["coarse_width"])]
        if self.sizes[0] != (1, 1):
            h, w = self.sizes[0]
            raise ValueError(f"Stage 0 reads grids of {h}x{w}, but a cascade starts from one code for the whole image; name "
                             "the stage that reads the codebook of whole maps first.")  # fmt: skip
        self.sizes += [(c["height"], c["width"]) for c in configs]
        for k in range(1, len(configs)):
            read = (configs[k]["coarse_height"], configs[k]["coarse_width"])
            if read != self.sizes[k]:
                raise ValueError(f"Stage {k} reads grids of {read[0]}x{read[1]}, but stage {k - 1} makes those of "
                                 f"{self.sizes[k][0]}x{self.sizes[k][1]}; train one on the other's.")  # fmt: skip

    @ordinary_tensors
    def encode(self, x: Tensor) -> list[Tensor]:
        """(B,H,W,3) float in [-0.5,0.5] -> the grids (B,h,w) int64 of all codebooks, the condition first. ValueError if
        images of this size have other grids than the stages know."""
        grids = [book.encode_index(x.to(self.device)) for book in self.codebooks]
        for grid, size in zip(grids, self.sizes, strict=True):
            if grid.shape[1:] != size:
                raise ValueError(f"Images of {x.shape[1]}x{x.shape[2]} have grids of {grid.shape[1]}x{grid.shape[2]}, but "
                                 f"this cascade knows {size[0]}x{size[1]}; scale them by --image_size.")  # fmt: skip
        return grids

    @ordinary_tensors
    def decode(self, grids: Sequence[Tensor]) -> list[Tensor]:
        """Grids of all codebooks -> the pictures (B,H,W,3) of each, float."""
        return [book.decode_index(grid) for book, grid in zip(self.codebooks, grids, strict=True)]

    def generate(self, condition: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """Conditions (B,hc,wc) int64 -> grids (B,h,w) int64, the conditions first, each sampled given the one before, with
        the options of its stage."""
        grids = [condition.to(self.device)]
        for stage, options, size in zip(self.stages, self.options, self.sizes[1:], strict=True):
            grids.append(stage.generate(grids[-1], *size, self.device, generator=generator, **options))
        return grids

    @ordinary_tensors
    def bits(self, grids: Sequence[Tensor]) -> list[float]:
        """Mean bits an image of the condition, and of each stage given the grid before."""
        condition = grids[0][0].numel() * math.log2(self.codebooks[0].n_tokens)
        pairs = zip(self.stages, grids[:-1], grids[1:], strict=True)
        return [condition] + [float(stage.loss((coarse, fine))["bits_per_image"]) for stage, coarse, fine in pairs]
