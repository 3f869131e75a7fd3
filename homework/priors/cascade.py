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
from homework.tokenizers.subsampled import SubsampledTokenizer

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
            sampling, see :func:`homework.priors.sampling.generate`. The last stage's hr_codebook_path may be the only one of
            a codebook: the others are those that it bears, if it is residual, and else its
            :class:`homework.tokenizers.subsampled.SubsampledTokenizer`, where the first stage's lr_codebook_path may still
            name another, of the condition.
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
        loaded = {path: checkpoint.load(path).to(device) for path in named_models(stages)}
        for k, path in enumerate(str(stage[PATHS[0]]) for stage in stages):
            if not isinstance(loaded[path], CascadeStage):
                raise checkpoint.wrong_model(f"Stage {k}: {path}", type(loaded[path]).__name__, "a CascadeStage")
        made, stages = made_codebooks(stages, loaded)
        loaded |= {name: codebook.to(device) for name, codebook in made.items()}
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
    needed = [PATHS] * len(stages)
    if some_left_out(stages):
        needed = [(PATHS[0],)] * (len(stages) - 1) + [(PATHS[0], PATHS[2])]
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


def named_models(stages: list[dict]) -> list[str]:
    """The paths of all models that the ``stages`` name, each once."""
    return list(dict.fromkeys(str(stage[path]) for stage in stages for path in PATHS if path in stage))


def some_left_out(stages: list[dict]) -> bool:
    """Whether the ``stages`` name the finest codebook and no other one, but maybe that of the condition."""
    named = {(k, path) for k, stage in enumerate(stages) for path in PATHS[1:] if path in stage}
    condition, finest = (0, PATHS[1]), (len(stages) - 1, PATHS[2])
    return finest in named and len(named) < 2 * len(stages) and named <= {condition, finest}


def made_codebooks(stages: list[dict], loaded: dict[str, Model]) -> tuple[dict[str, Tokenizer], list[dict]]:
    """The codebooks that the ``stages`` do not name, see :class:`Cascade`, by names made up for them; and the stages with
    these for paths. Nothing, and the stages, if they name all. ValueError if the finest, in ``loaded``, has not as many or,
    for the sizes that the stages there know, no such parts."""
    if not some_left_out(stages):
        return {}, stages
    path, condition = str(stages[-1][PATHS[2]]), [str(stages[0][PATHS[1]])] if PATHS[1] in stages[0] else []
    finest = loaded[path]
    if not isinstance(finest, Tokenizer):
        raise checkpoint.wrong_model(path, type(finest).__name__, "a tokenizer")
    if isinstance(finest, SOM) and (n := finest.n_coarser):
        if n != len(stages) or condition:
            raise ValueError(f"Only {path} is named as a codebook, but it does not bear the {len(stages)} coarser ones of "
                             f"this cascade; name all by {PATHS[1]} and {PATHS[2]}.")  # fmt: skip
        made = {f"scale {k} of {path}": finest.coarser_codebook(k) for k in range(n)}
    else:
        sizes = check_sizes([loaded[str(stage[PATHS[0]])].config for stage in stages])
        made = parts(finest, path, sizes[len(condition) :])
    names = [*condition, *made, path]
    paths = [dict(zip(PATHS[1:], pair, strict=True)) for pair in zip(names[:-1], names[1:], strict=True)]
    return made, [stage | own for stage, own in zip(stages, paths, strict=True)]


def parts(finest: Tokenizer, path: str, sizes: list[tuple[int, int]]) -> dict[str, Tokenizer]:
    """Tokenizers whose grids are each a part of the next one's, the last of them of that of ``finest``, from ``path``;
    ``sizes`` (h,w) are theirs and the finest grid's. ValueError if a size does not divide the next."""
    made: dict[str, Tokenizer] = {}
    codebook = finest
    for (h, w), (H, W) in reversed(list(zip(sizes[:-1], sizes[1:], strict=True))):
        if H % h or W % w:
            raise ValueError(f"Only {path} is named as a codebook, but grids of {h}x{w} are no parts of those of {H}x{W}; "
                             f"name all by {PATHS[1]} and {PATHS[2]}.")  # fmt: skip
        codebook = SubsampledTokenizer.part_of(codebook, H // h, W // w)
        made = {f"{h}x{w} tokens of {path}": codebook} | made
    return made


def check_stage(k: int, stage: dict, loaded: dict[str, Model], identities: dict[str, str]) -> None:
    """ValueError unless the model of stage ``k``, a CascadeStage, was trained on the grids of its two codebooks. ``loaded``
    and ``identities`` have each path's model and its identity."""
    path = str(stage["model_path"])
    model = loaded[path]
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
