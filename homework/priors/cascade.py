"""A cascade: codebooks whose grids get finer, and the stages between them."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from homework.core import checkpoint, fingerprint
from homework.core.model import Model, ordinary_tensors
from homework.datasets.features import FeatureModel
from homework.priors import sampling
from homework.priors.cascade_stage import CascadeStage
from homework.tokenizers.base import Tokenizer
from homework.tokenizers.som import SOM

PATHS = ("model_path", "lr_codebook_path", "hr_codebook_path")
OPTIONS = ("temperature", "top_k", "top_p", "num_beam", "beam_width", "beams")


class Cascade(nn.Module):
    """p(grids) = p(condition) prod_k p(grid k | grid k-1), where the condition, one code for a whole image, is any of its K
    codes with the same probability; of residual codebooks prod_k p(grid k | grids 0 .. k-1), as all of them together make
    what a stage reads, and an image.

    ::

        condition (B,1,1) -- stage 0 --> grid (B,h,w) -- stage 1 --> finer grid -- ... --> finest grid
            |                              |                            |                     |
         codebook                       codebook                     codebook              codebook     each to an image

    Attributes: ``codebooks``, one more than there are ``stages``, from coarse to fine, and ``sizes`` (h,w) of their grids.

    Args:
        stages: from coarse to fine, {"model_path": of the stage, "lr_codebook_path" and "hr_codebook_path": of the
            tokenizers of the coarser grid, which it reads, and of the finer one, which it makes}; and any of OPTIONS for
            sampling, see :func:`homework.priors.sampling.generate`. If the last stage's hr_codebook_path is the only path of
            a codebook, it is residual, and the others are those that it bears.
        device: where the models compute.
    Raises:
        FileNotFoundError: a checkpoint does not exist.
        ValueError: an entry is missing or unknown, or stages and codebooks do not go together.
    """

    codebooks: Any  # nn.ModuleList of tokenizers
    stages: Any  # nn.ModuleList of CascadeStage

    def __init__(self, stages: list[dict], device: str | torch.device = "cpu"):
        super().__init__()
        self.options = read_options(stages)
        borne, stages = borne_codebooks(stages)
        paths = dict.fromkeys(str(stage[p]) for stage in stages for p in PATHS)
        loaded = {path: (borne.get(path) or checkpoint.load(path)).to(device) for path in paths}
        identities = {path: fingerprint.identity(model) for path, model in loaded.items()}
        for k, stage in enumerate(stages):
            check_stage(k, stage, loaded, identities)
            coarse, before = str(stage["lr_codebook_path"]), str(stages[max(0, k - 1)]["hr_codebook_path"])
            if k and identities[coarse] != identities[before]:
                raise ValueError(f"Stage {k} reads the grids of {coarse}, but stage {k - 1} makes those of {before}; they "
                                 "must be of one codebook.")  # fmt: skip
        self.stages = nn.ModuleList(loaded[str(stage["model_path"])] for stage in stages)
        codebook_paths = [stages[0]["lr_codebook_path"], *(stage["hr_codebook_path"] for stage in stages)]
        self.codebooks = nn.ModuleList(loaded[str(path)] for path in codebook_paths)
        for path, before, codebook in zip(codebook_paths, [None, *self.codebooks], self.codebooks, strict=False):
            if not codebook.follows(before):
                raise ValueError(f"{path} is residual, and was fitted on what other codebooks leave than those before it "
                                 "in this cascade; name these, as its --coarser did.")  # fmt: skip
        self.sizes = check_sizes([model.config for model in self.stages])

    @property
    def device(self) -> torch.device:
        return self.stages[0].device

    @property
    def n_tokens(self) -> int:
        """K of the finest grid."""
        return self.codebooks[-1].n_tokens

    @property
    def image_size(self) -> tuple[int, int]:
        """(H,W) in pixels of the images whose grids the stages know."""
        (h, w), (P, Q) = self.sizes[0], self.codebooks[0].patch_shape
        return h * P, w * Q

    @ordinary_tensors
    def encode(self, x: Tensor) -> list[Tensor]:
        """(B,H,W,3) float in [-0.5,0.5] -> the grids (B,h,w) int64 of all codebooks, the condition first. ValueError for
        images of a size whose grids the stages do not read."""
        grids = [codebook.encode_index(x.to(self.device)) for codebook in self.codebooks]
        for k, grid in enumerate(grids):
            self.check_grid(k, tuple(grid.shape[1:]), tuple(x.shape[1:3]))
        return grids

    def check_grid(self, k: int, grid: tuple[int, int], image: tuple[int, int]) -> None:
        """ValueError unless codebook k's ``grid`` (h,w) of an ``image`` (H,W) has the size that the stages know."""
        if grid != (size := self.sizes[k]):
            raise ValueError(f"Images of {image[0]}x{image[1]} have grids of {grid[0]}x{grid[1]}, but this cascade knows "
                             f"{size[0]}x{size[1]}; scale them by --image_size.")  # fmt: skip

    @ordinary_tensors
    def decode(self, grids: Sequence[Tensor]) -> list[Tensor]:
        """Grids of the first codebooks, or of all -> the images (B,H,W,3) of each, float."""
        grids = [grid.to(self.device) for grid in grids]
        return [self.codebooks[k].decode_grids(grids[: k + 1]) for k in range(len(grids))]

    @ordinary_tensors
    def known(self, grids: Sequence[Tensor]) -> Tensor:
        """Grids of the first codebooks, but not of all -> what the next stage reads: the last one, or the sum of all."""
        stage, codebook = self.stages[len(grids) - 1], self.codebooks[len(grids)]
        return codebook.context(grids) if stage.context_dim else grids[-1]

    def generate(self, condition: Tensor, generator: torch.Generator | None = None) -> list[Tensor]:
        """Conditions (B,hc,wc) int64 -> grids (B,h,w), the conditions first, each sampled given the one before."""
        return [condition.to(self.device), *self.refine([condition], generator)]

    def refine(self, grids: Sequence[Tensor], generator: torch.Generator | None = None) -> Iterator[Tensor]:
        """Grids (B,h,w) int64 of the first codebooks -> the finer ones, one after another, each sampled given the former."""
        known = [grid.to(self.device) for grid in grids]
        for stage, options, size in list(zip(self.stages, self.options, self.sizes[1:], strict=True))[len(grids) - 1 :]:
            known.append(stage.generate(self.known(known), *size, self.device, generator=generator, **options))
            yield known[-1]

    @ordinary_tensors
    def bits(self, grids: Sequence[Tensor]) -> list[float]:
        """Mean bits per image of the condition, and of each stage given the grids before."""
        condition = grids[0][0].numel() * math.log2(self.codebooks[0].n_tokens)
        batches = [(self.known(grids[:k]), grids[k]) for k in range(1, len(grids))]
        losses = [stage.loss(batch) for stage, batch in zip(self.stages, batches, strict=True)]
        return [condition] + [float(loss["bits_per_image"]) for loss in losses]


def read_options(stages: list[dict]) -> list[dict]:
    """The sampling options of each stage. ValueError if an entry is missing or unknown, or an option makes no sense."""
    if not isinstance(stages, list | tuple) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise ValueError('A cascade is {"stages": [{"model_path": ..., ...}, ...]}, with one object for each stage.')
    options = [{o: stage[o] for o in OPTIONS if o in stage} for stage in stages]
    needed = [(PATHS[0],)] * (len(stages) - 1) + [(PATHS[0], PATHS[2])] if one_codebook(stages) else [PATHS] * len(stages)
    for k, stage in enumerate(stages):
        missing, unknown = [p for p in needed[k] if p not in stage], [p for p in stage if p not in PATHS + OPTIONS]
        if missing or unknown:
            what = f"has no {missing[0]}" if missing else f"has an unknown entry {unknown[0]!r}"
            raise ValueError(f"Stage {k} {what}; it needs {', '.join(PATHS)}, and may have {', '.join(OPTIONS)}.")
        try:
            sampling.check(**options[k])
        except ValueError as error:
            raise ValueError(f"Stage {k}: {error}") from error
    return options


def one_codebook(stages: list[dict]) -> bool:
    """Whether only the last stage's hr_codebook_path names a codebook."""
    return "hr_codebook_path" in stages[-1] and sum(path in stage for stage in stages for path in PATHS[1:]) == 1


def borne_codebooks(stages: list[dict]) -> tuple[dict[str, Tokenizer], list[dict]]:
    """The codebooks that the only one named by the ``stages`` bears, by names made up for them; and the stages with these
    for paths. Nothing, and the stages, if they name more. ValueError if it bears not as many as the stages need."""
    if not one_codebook(stages):
        return {}, stages
    path = str(stages[-1]["hr_codebook_path"])
    finest = checkpoint.load(path)
    if not isinstance(finest, SOM) or finest.n_coarser != len(stages):
        raise ValueError(f"Only {path} is named as a codebook, but it does not bear the {len(stages)} coarser ones of this "
                         "cascade, as a residual one would; name all by lr_codebook_path and hr_codebook_path.")  # fmt: skip
    names = [*(f"scale {k} of {path}" for k in range(len(stages))), path]
    codebooks = {name: finest.coarser_codebook(k) for k, name in enumerate(names[:-1])} | {path: finest}
    paths = [dict(zip(PATHS[1:], pair, strict=True)) for pair in zip(names[:-1], names[1:], strict=True)]
    return codebooks, [stage | own for stage, own in zip(stages, paths, strict=True)]


def check_stage(k: int, stage: dict, loaded: dict[str, Model], identities: dict[str, str]) -> None:
    """ValueError unless the model of stage ``k`` is a stage, and was trained on the grids of its two codebooks. ``loaded``
    and ``identities`` have each path's model and its identity."""
    path = str(stage["model_path"])
    model = loaded[path]
    if not isinstance(model, CascadeStage):
        raise checkpoint.wrong_model(f"Stage {k}: {path}", type(model).__name__, "a CascadeStage")
    roles = ("lr_codebook_path", "coarse_tokenizer", "coarse_tokens"), ("hr_codebook_path", "tokenizer", "n_tokens")
    for role, key, codes in roles:
        name, K = str(stage[role]), model.config[codes]
        codebook, identity = loaded[name], identities[name]
        if not isinstance(codebook, Tokenizer):
            raise checkpoint.wrong_model(f"Stage {k}: {name}", type(codebook).__name__, "a tokenizer")
        if codebook.n_tokens != K:
            raise ValueError(f"Stage {k}: {role} {name} has {codebook.n_tokens} codes, but {path} was trained on {K}; "
                             "name the codebook that made its grids.")  # fmt: skip
        if not fingerprint.is_same(model.meta.get(key, identity), identity):
            raise ValueError(f"Stage {k}: {path} was trained on the grids of another codebook than {role} {name}; name that "
                             "one.")  # fmt: skip
    if model.context_dim and (not isinstance(codebook, FeatureModel) or codebook.n_coarser != k + 1):
        raise ValueError(f"Stage {k}: {path} reads the vectors of residual codebooks, but {name} is none on {k + 1} coarser "
                         "ones; name the codebook that made its grids.")  # fmt: skip


def check_sizes(configs: list[dict]) -> list[tuple[int, int]]:
    """Sizes (h,w) of the grids of a cascade, given its stages' configurations. ValueError unless the first is 1x1, and each
    stage reads grids of the size that the one before makes."""
    sizes = [(1, 1), *((c["height"], c["width"]) for c in configs)]
    for k, config in enumerate(configs):
        h, w = config["coarse_height"], config["coarse_width"]
        if (h, w) != sizes[k]:
            wanted = f"stage {k - 1} makes those of {sizes[k][0]}x{sizes[k][1]}; train one on the other's"
            if k == 0:
                wanted = "a cascade starts from one code for the whole image; name the stage that reads that codebook first"
            raise ValueError(f"Stage {k} reads grids of {h}x{w}, but {wanted}.")
    return sizes
