"""The compressor of the models that a command names."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from homework.codec import dial
from homework.codec.cascade_compressor import CascadeCompressor
from homework.codec.compressor import Compressor
from homework.codec.enhanced_compressor import EnhancedCompressor, NotOnIntegers, step_at
from homework.codec.enhancement import EnhancementLayer
from homework.core import checkpoint
from homework.core.processes import say
from homework.priors.base import Prior
from homework.priors.cascade import Cascade
from homework.priors.images import Detail
from homework.priors.pairs import load_models
from homework.tokenizers.base import Tokenizer

AUTO, NONE = "auto", "none"  # the enhancement layer that belongs to the tokenizer, if there is one, or none
LAYER = "EnhancementLayer"


def load_compressor(tokenizer: str | Path, autoregressive: str | Path, device: torch.device, batch_size: int,
                    *options: Any, enhancement: str | Path = AUTO) -> Compressor:  # fmt: skip
    """The compressor of a tokenizer and a prior, checkpoints or names, or of a cascade, in its JSON file; ``options`` as of
    :func:`compressor_of`. ValueError or OSError if the models cannot be loaded, or do not go together."""
    coder, prior = load_models(tokenizer, autoregressive, device)
    return compressor_of(coder, prior, device, batch_size, *options, enhancement=enhancement)


def compressor_of(tokenizer: Tokenizer, prior: Prior | Cascade, device: torch.device | None = None, batch_size: int = 64,
                  effort: int | None = None, *options: Any, enhancement: str | Path = AUTO) -> Compressor:  # fmt: skip
    """The compressor of a tokenizer and a prior, with an enhancement layer as :func:`find_layer` finds it, or of a cascade.
    ``effort`` is None for the default, where there is a search, and the other options are as of
    :class:`homework.codec.compressor.Compressor`."""
    if isinstance(prior, Cascade):
        if enhancement not in (AUTO, NONE):
            raise ValueError("An enhancement layer goes with a tokenizer and a prior, not with a cascade; leave it out.")
        return CascadeCompressor(prior, device, batch_size, effort or 0, *options)
    effort = dial.EFFORT if effort is None else effort
    if layer := find_layer(tokenizer, enhancement):
        try:  # that it can be on integers shows when it is exported to them, which takes half a second
            return EnhancedCompressor(tokenizer, prior, layer, device, batch_size, effort, *options)
        except NotOnIntegers:
            if enhancement != AUTO:
                raise
    return Compressor(tokenizer, prior, device, batch_size, effort, *options)


def find_layer(tokenizer: Tokenizer, enhancement: str | Path = AUTO) -> EnhancementLayer | None:
    """The enhancement layer in a checkpoint; with AUTO the one of ./homework/EnhancementLayer.pth, the same in the package's
    folder, and the pretrained one that is of the tokenizer, None if none is. ValueError or OSError if it cannot be
    loaded."""
    if enhancement == NONE:
        return None
    if enhancement != AUTO:
        if not checkpoint.locate(enhancement).is_file():
            remedy = "make one by python -m homework.enhancement"
            raise FileNotFoundError(f"There is no enhancement layer {enhancement}; {remedy}.")
        layer = checkpoint.load(enhancement, LAYER)
        assert isinstance(layer, EnhancementLayer)
        return layer
    for folder in (Path("homework"), checkpoint.PACKAGE, checkpoint.PRETRAINED):
        path = folder / f"{LAYER}.pth"
        try:
            layer = checkpoint.load(path, LAYER) if path.is_file() else None
        except (ValueError, OSError) as error:  # nothing may need it
            say(f"{path} is left out: {error}")
            continue
        if isinstance(layer, EnhancementLayer) and layer.is_for(tokenizer):
            return layer
    return None


def detail_at(tokenizer: Tokenizer, quality: float) -> Detail | None:
    """What draws a second grid for tokens, as files of a quality have it; None for a quality without one. ValueError if the
    tokenizer has no enhancement layer."""
    dial.lmbda_at(quality)  # ValueError if it is none
    if not (step := step_at(quality)):
        return None
    if not (layer := find_layer(tokenizer)):
        raise ValueError(f"A quality of {quality:g} has a second grid, but this tokenizer has no enhancement layer; make "
                         "one, by python -m homework.enhancement, or leave --quality out.")  # fmt: skip
    layer.check()

    def detail(grids: Tensor, generator: torch.Generator) -> Tensor:
        return layer.residual(layer.generate(grids.cpu().numpy(), step, generator), step)

    return detail
